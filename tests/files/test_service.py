"""The plugin `files`, and files beside programs, on a running server."""

from __future__ import annotations

import gzip
import os
import re
import ssl
from collections.abc import Iterator
from http.client import HTTPSConnection
from pathlib import Path

import pytest

from tests.helpers.certificates import Certificates
from tests.helpers.http import Client, cgi_listener, pool, write_programs
from tests.helpers.plugins import listener
from tests.helpers.server import ServerProcess, wait_until

pytestmark = pytest.mark.server

BIG = os.urandom(1 << 16) * 48  # 3 MiB
PAGE = b"<!DOCTYPE html><title>page</title>" + b"words " * 100
PROGRAMS = {
    "hello.sh": "printf 'Content-Type: text/plain\\n\\nhello %s' \"$DOCUMENT_ROOT\"",
    "away.sh": "printf 'Location: /sub/note.txt\\n\\n'",
}


def write(file: Path, data: bytes, modified: int = 1_700_000_000) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    os.utime(file, (modified, modified))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    root = folder / "htdocs"
    write(root / "index.html", PAGE)
    write(root / "sub/note.txt", b"0123456789")
    write(root / "sub/deeper/index.html", b"deeper")
    write(root / "big.bin", BIG)
    write(root / "empty", b"")
    write(root / ".secret", b"secret")
    write(root / ".well-known/token", b"token")
    write(root / ".well-known/.hidden", b"secret")
    write(root / "app.js", b"let a = 1;" * 100)
    write(root / "app.js.gz", gzip.compress(b"let a = 1;" * 100))
    write(root / "app.js.br", b"brotli, as far as anybody can tell")
    write(root / "stale.css", b"a {}")
    write(root / "stale.css.gz", gzip.compress(b"old"), 1_600_000_000)
    write(root / "odd <&> näme%.txt", b"odd")
    write(folder / "outside/secret.txt", b"secret")
    write(folder / "icons/one.svg", b"<svg/>")
    (root / "out.txt").symlink_to("../outside/secret.txt")
    (root / "inside.txt").symlink_to("sub/note.txt")
    (root / "nowhere.txt").symlink_to("nowhere")
    (root / "cgi-bin").mkdir()
    write_programs(root / "cgi-bin", PROGRAMS)
    os.mkfifo(root / "fifo")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    config = pool()
    config += listener("www", "files") + '[listeners.www.files]\nroot = "htdocs"\n'
    config += listener("listed", "files") + "[listeners.listed.files]\nlistings = true\n"
    config += 'root = { "/" = "htdocs", "/icons/" = "icons" }\nindex = []\n'
    config += 'cache_control = { "/sub/*" = "max-age=60", "*.bin" = "", "*" = "no-cache" }\n'
    config += 'access_log = "log"\n'
    Certificates(folder)
    config += listener("sealed", "files") + '[listeners.sealed.files]\nroot = "htdocs"\n'
    config += '[listeners.sealed.tls]\ncertificate = "server.pem"\nkey = "server.key"\n'
    config += cgi_listener("cgi", root="htdocs/cgi-bin", prefix="/cgi-bin/", files="htdocs")
    with ServerProcess(config, folder) as running:
        yield running.wait_ready()


def test_a_file(client: Client) -> None:
    answer = client.get("/index.html?a=query")
    assert (answer.status, answer.body) == (200, PAGE)
    fields = {name: answer.headers[name] for name in (b"content-type", b"last-modified", b"accept-ranges")}
    assert list(fields.values()) == [b"text/html; charset=utf-8", b"Tue, 14 Nov 2023 22:13:20 GMT", b"bytes"]
    assert re.fullmatch(rb'"[0-9a-f]+-[0-9a-f]+"', answer.headers[b"etag"])
    assert b"cache-control" not in answer.headers
    assert client.get("/").body == PAGE


def test_a_big_file(client: Client) -> None:
    """And the next one on the same connection."""
    for _ in range(2):
        assert client.get("/big.bin").body == BIG
    assert client.get("/empty").body == b""


def test_head(client: Client) -> None:
    """RFC 9110 section 9.3.2: the header of a GET, without the body; a range has no meaning."""
    for path, size in (("/index.html", len(PAGE)), ("/big.bin", len(BIG)), ("/empty", 0)):
        answer = client.get(path, "Range: bytes=0-1", method="HEAD")
        assert (answer.status, answer.headers[b"content-length"]) == (200, b"%d" % size)
    assert client.get("/").status == 200


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/nothing", 404), ("/nothing/", 404), ("/index.html/", 404), ("/index.html/x", 404), ("/.secret", 404),
        ("/.well-known/.hidden", 404), ("/sub/.well-known/x", 404), ("/out.txt", 403), ("/nowhere.txt", 404),
        ("/fifo", 403), ("/sub/", 403), ("/%2e%2e/outside/secret.txt", 400), ("/..%2foutside/secret.txt", 400),
        ("/a%00", 400), ("/%", 400), ("/" + "a" * 300, 404), ("/" + "a/" * 2000, 404), ("//outside/secret.txt", 404),
        ("/sub/../../outside/secret.txt", 400), ("/sub/%2e/note.txt", 200), ("/inside.txt", 200),
        ("/.well-known/token", 200), ("/sub//./x/../note.txt", 200), ("/odd%20%3C&%3E%20n%C3%A4me%25.txt", 200),
    ],
)  # fmt: skip
def test_paths(client: Client, target: str, status: int) -> None:
    answer = client.get(target)
    assert answer.status == status
    assert b"secret" not in answer.body
    assert client.get("/inside.txt").body == b"0123456789"


def test_a_directory_gets_its_slash(client: Client) -> None:
    answer = client.get("/sub/deeper?a=b")
    assert (answer.status, answer.headers[b"location"]) == (301, b"/sub/deeper/?a=b")
    assert client.get("/sub/deeper/").body == b"deeper"


def test_other_methods(client: Client) -> None:
    """RFC 9110 section 15.5.6: a 405 says what is allowed."""
    for method, status in (("POST", 405), ("DELETE", 405), ("OPTIONS", 204)):
        answer = client.get("/index.html", method=method, body=b"x" * 100)
        assert (answer.status, answer.headers[b"allow"]) == (status, b"GET, HEAD, OPTIONS")
    assert client.get("/index.html", body=b"a GET may have one").body == PAGE


def test_conditions(client: Client) -> None:
    tag = client.get("/index.html").headers[b"etag"].decode()
    answer = client.get("/index.html", f"If-None-Match: {tag}")
    assert (answer.status, answer.body, answer.headers[b"etag"]) == (304, b"", tag.encode())
    assert b"content-type" not in answer.headers
    assert client.get("/index.html", "If-Modified-Since: Tue, 14 Nov 2023 22:13:20 GMT", method="HEAD").status == 304
    assert client.get("/index.html", 'If-Match: "other"').status == 412
    assert client.get("/nothing", 'If-Match: "other"').status == 404
    assert client.get("/index.html", f"If-Match: {tag}", "Range: bytes=0-4").body == PAGE[:5]
    assert client.get("/index.html", 'If-Range: "other"', "Range: bytes=0-4").body == PAGE


def test_ranges(client: Client) -> None:
    for first, last in ((0, 0), (5, 9), (1000, 2_000_000), (len(BIG) - 1, len(BIG) - 1)):
        answer = client.get("/big.bin", f"Range: bytes={first}-{last}")
        assert (answer.status, answer.body) == (206, BIG[first : last + 1])
        assert answer.headers[b"content-range"] == b"bytes %d-%d/%d" % (first, last, len(BIG))
    answer = client.get("/big.bin", f"Range: bytes={len(BIG)}-")
    assert (answer.status, answer.headers[b"content-range"]) == (416, b"bytes */%d" % len(BIG))
    assert client.get("/empty", "Range: bytes=0-").status == 200
    assert client.get("/sub/note.txt", "Range: bytes=-3").body == b"789"


@pytest.mark.parametrize("wanted", ["0-9,2000000-2999999,-5", "0-1,4-5"])
def test_several_ranges(client: Client, wanted: str) -> None:
    answer = client.get("/big.bin", f"Range: bytes={wanted}")
    assert answer.status == 206
    boundary = answer.headers[b"content-type"].removeprefix(b"multipart/byteranges; boundary=")
    *parts, end = answer.body.split(b"--" + boundary)[1:]
    assert end == b"--\r\n"
    for part in parts:
        head, _, body = part.partition(b"\r\n\r\n")
        found = re.search(rb"Content-Range: bytes (\d+)-(\d+)/%d" % len(BIG), head)
        assert found is not None
        assert body == BIG[int(found[1]) : int(found[2]) + 1] + b"\r\n"
    assert len(parts) == len(wanted.split(","))
    assert client.get("/").body == PAGE


def test_precompressed(client: Client, folder: Path) -> None:
    plain = client.get("/app.js")
    assert (plain.body, plain.headers[b"vary"]) == (b"let a = 1;" * 100, b"Accept-Encoding")
    assert b"content-encoding" not in plain.headers
    zipped = client.get("/app.js", "Accept-Encoding: gzip;q=1, br;q=0.5")
    assert (gzip.decompress(zipped.body), zipped.headers[b"content-encoding"]) == (plain.body, b"gzip")
    assert zipped.headers[b"content-type"] == b"text/javascript; charset=utf-8"
    assert zipped.headers[b"etag"] != plain.headers[b"etag"]
    assert client.get("/app.js", "Accept-Encoding: gzip, br").headers[b"content-encoding"] == b"br"
    assert client.get("/app.js", "Accept-Encoding: gzip", "Range: bytes=0-1").body == b"\x1f\x8b"
    assert client.get("/app.js", "Accept-Encoding: gzip", "Range: bytes=0-1,4-5").body == zipped.body
    assert client.get("/app.js", "Range: bytes=0-1,4-5").status == 206
    stale = client.get("/stale.css", "Accept-Encoding: gzip")
    assert (stale.body, b"content-encoding" in stale.headers) == (b"a {}", False)
    assert client.get("/app.js.gz").headers[b"content-type"] == b"application/gzip"
    assert b"vary" not in client.get("/index.html").headers


def test_a_listing(server: ServerProcess) -> None:
    with Client(server, "listed") as client:
        answer = client.get("/")
        assert answer.headers[b"content-type"] == b"text/html; charset=utf-8"
        text = answer.body.decode()
        assert '<a href="./odd%20%3C%26%3E%20n%C3%A4me%25.txt">odd &lt;&amp;&gt; näme%.txt</a>' in text
        names = re.findall(r'href="\./([^"]+)"', text)
        assert names[:2] == ["cgi-bin/", "sub/"]
        assert not {".secret", "out.txt", "nowhere.txt", "fifo"} & set(names)
        assert "inside.txt" in names
        assert "2023-11-14 22:13" in text
        assert "3.0 MiB" in text
        assert "../" not in text
        assert 'href="../"' in client.get("/sub/").body.decode()
        for name in names:
            assert client.get("/" + name).status == 200
        assert client.get("/", method="HEAD").body == b""


def test_the_access_log(server: ServerProcess, folder: Path) -> None:
    """It says how much a client has got, also of one that goes away."""
    with Client(server, "listed", receive_buffer=4096) as client:
        client.request("/big.bin?gone")
        client.head()
    with Client(server, "listed") as client:
        client.get("/big.bin?whole")

    def sent(query: str) -> int:
        found = re.search(rf'"GET /big.bin\?{query} HTTP/1.1" 200 (\d+) ', (folder / "log").read_text())
        return int(found[1]) if found else -1

    wait_until(lambda: sent("gone") >= 0 and sent("whole") >= 0, "two lines in the access log")
    assert sent("gone") < sent("whole") == len(BIG)


def test_over_tls(server: ServerProcess, folder: Path) -> None:
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    port = server.addresses("sealed")[0].rpartition(":")[2]
    client = HTTPSConnection("localhost", int(port), context=context, timeout=30)
    try:
        for field, expected in ({}, BIG), ({"Range": "bytes=100-2000000"}, BIG[100:2_000_001]), ({}, BIG):
            client.request("GET", "/big.bin", headers=field)
            assert client.getresponse().read() == expected
    finally:
        client.close()


def test_several_directories_and_cache_control(server: ServerProcess) -> None:
    with Client(server, "listed") as client:
        assert client.get("/icons/one.svg").body == b"<svg/>"
        assert client.get("/icons").headers[b"location"] == b"/icons/"
        assert client.get("/iconsx").status == 404
        assert client.get("/index.html").headers[b"cache-control"] == b"no-cache"
        assert client.get("/sub/note.txt").headers[b"cache-control"] == b"max-age=60"
        assert b"cache-control" not in client.get("/big.bin").headers


def test_beside_programs(server: ServerProcess, folder: Path) -> None:
    with Client(server, "cgi") as client:
        assert client.get("/cgi-bin/hello.sh").body == b"hello %s" % os.fsencode(folder / "htdocs")
        assert client.get("/").body == PAGE
        assert client.get("/cgi-bin/").status == 403
        assert client.get("/x/../cgi-bin/hello.sh").body.startswith(b"hello")
        assert client.get("/cgi-bin/away.sh", method="POST", body=b"x").body == b"0123456789"
        assert client.get("/", method="POST", body=b"x").status == 405
        assert client.get("/big.bin").body == BIG
