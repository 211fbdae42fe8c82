"""PHP's own CGI program as an interpreter: what it asks of a server, and what it prints."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.http import PROGRAMS, Client, cgi_listener, chunked, pool, write_programs
from tests.helpers.server import ServerProcess

PHP = shutil.which("php-cgi")
pytestmark = [pytest.mark.server, pytest.mark.skipif(PHP is None, reason="php-cgi is not installed")]

SCRIPTS = {
    "app.php": """<?php
header('Content-Type: text/plain; charset=utf-8');
header('X-Method: ' . $_SERVER['REQUEST_METHOD']);
echo json_encode([
    'get' => $_GET, 'post' => $_POST, 'cookie' => $_COOKIE, 'raw' => strlen(file_get_contents('php://input')),
    'path_info' => $_SERVER['PATH_INFO'] ?? null, 'self' => $_SERVER['PHP_SELF'], 'cwd' => getcwd(),
    'script' => $_SERVER['SCRIPT_FILENAME'], 'field' => $_SERVER['HTTP_X_FIELD'] ?? null, 'argv' => $argv ?? null,
    'redirect_status' => $_SERVER['REDIRECT_STATUS'],
]);
""",
    "status.php": "<?php http_response_code(418); header('X-A: 1'); header('X-A: 2', false); echo 'teapot';",
    "moved.php": "<?php header('Location: http://example.org/x'); setcookie('a', 'b');",
    "local.php": "<?php header('Location: /hello.sh');",
    "upload.php": "<?php $f = $_FILES['f']; echo $f['name'], ' ', $f['size'], ' ', md5_file($f['tmp_name']);",
    "sub/deep.php": "<?php echo __DIR__, ' ', getcwd();",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_programs(tmp_path_factory.mktemp("php") / "root", PROGRAMS)
    for name, text in SCRIPTS.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    # Where an administrator might put it by mistake.
    assert PHP is not None
    (root / "php").write_text(f'#!/bin/sh\nexec {PHP} "$@"\n')
    (root / "php").chmod(0o755)
    return root


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[ServerProcess]:
    config = pool() + cgi_listener(root=root, interpreters={".php": ["php-cgi"]})
    with ServerProcess(config, tmp_path_factory.mktemp("server")) as running:
        yield running.wait_ready()


def said(body: bytes) -> dict[str, object]:
    found: dict[str, object] = json.loads(body)
    return found


def test_get(client: Client, root: Path) -> None:
    """RFC 3875 section 4.1; php-cgi's cgi.force_redirect asks for REDIRECT_STATUS."""
    answer = client.get("/app.php/more/x?a=1&b[]=2&b[]=3", "Cookie: c=d", "X-Field: y")
    assert (answer.status, answer.headers[b"content-type"]) == (200, b"text/plain; charset=utf-8")
    assert answer.headers[b"x-method"] == b"GET"
    found = said(answer.body)
    assert (found["get"], found["cookie"], found["field"]) == ({"a": "1", "b": ["2", "3"]}, {"c": "d"}, "y")
    assert (found["path_info"], found["self"]) == ("/more/x", "/app.php/more/x")
    assert (found["script"], found["cwd"]) == (str(root / "app.php"), str(root))
    assert found["redirect_status"] == "200"
    assert client.get("/sub/deep.php").body == f"{root}/sub {root}/sub".encode()


def test_a_query_is_never_arguments(client: Client) -> None:
    """RFC 3875 section 4.4 and CVE-2012-1823: no words of a query become options of the interpreter."""
    for query in ("-s", "-dallow_url_include%3d1", "--%0a-s", "a+b"):
        answer = client.get(f"/app.php?{query}")
        assert answer.status == 200
        assert b"<?php" not in answer.body
        assert answer.headers[b"x-method"] == b"GET"


def test_post(client: Client) -> None:
    """RFC 3875 section 4.2: CONTENT_LENGTH and CONTENT_TYPE, of bodies with a length and in chunks."""
    form = "Content-Type: application/x-www-form-urlencoded"
    found = said(client.get("/app.php?q=1", form, method="POST", body=b"a=1&b=%C3%A4").body)
    assert (found["get"], found["post"], found["raw"]) == ({"q": "1"}, {"a": "1", "b": "ä"}, 12)
    client.send(f"POST /app.php HTTP/1.1\r\nHost: a\r\n{form}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
    assert said(client.send(chunked(b"a=", b"2")).response().body)["post"] == {"a": "2"}
    content = bytes(range(256)) * 800
    part = b'--x\r\nContent-Disposition: form-data; name="f"; filename="n"\r\n\r\n' + content + b"\r\n--x--\r\n"
    uploaded = client.get("/upload.php", "Content-Type: multipart/form-data; boundary=x", method="POST", body=part)
    assert uploaded.body.decode() == f"n {len(content)} {hashlib.md5(content).hexdigest()}"


def test_status_and_fields(client: Client) -> None:
    """RFC 3875 section 6.3: Status, repeated fields, redirects."""
    answer = client.get("/status.php")
    assert (answer.status, answer.body) == (418, b"teapot")
    assert [value for name, value in answer.fields if name == b"x-a"] == [b"1", b"2"]
    answer = client.get("/moved.php")
    assert (answer.status, answer.headers[b"location"]) == (302, b"http://example.org/x")
    assert answer.headers[b"set-cookie"].startswith(b"a=b")
    answer = client.get("/local.php")
    assert (answer.status, answer.headers[b"location"]) == (302, b"/hello.sh")
    assert client.get("/app.php", method="HEAD").headers[b"x-method"] == b"HEAD"
    assert client.get("/missing.php").status == 404


def test_the_interpreter_itself_is_not_to_be_called(client: Client, server: ServerProcess) -> None:
    """It would run any file that PATH_INFO names; only a program run by an interpreter gets REDIRECT_STATUS."""
    before = len(server.lines)
    for fields in ((), ("Redirect-Status: 200",), ("REDIRECT_STATUS: 200",), ("Redirect_Status: 200",)):
        assert client.get("/php/app.php", *fields).status == 502
        server.wait_for_line("Security Alert", after=before)
