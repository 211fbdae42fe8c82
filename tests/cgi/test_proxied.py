"""cgi behind HTTP proxies, on a running server: who is believed, and the example of docs/cgi.md with nginx itself."""

from __future__ import annotations

import base64
import json
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tomli

from tests.helpers.http import PROGRAMS, Client, cgi_listener, pool, write_programs
from tests.helpers.server import TIMEOUT, ServerProcess, receive_all, wait_until

pytestmark = pytest.mark.server

PAGE = (Path(__file__).parents[2] / "docs" / "cgi.md").read_text()
SECTION = PAGE.partition("\n## Behind an HTTP proxy\n")[2].partition("\n## ")[0]
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")

FIELDS = {
    "user_field": "X-Remote-User",
    "client_field": "X-Forwarded-For",
    "scheme_field": "X-Forwarded-Proto",
    "host_field": "X-Forwarded-Host",
}
SPOOF = (
    "X-Remote-User: root",
    "x-remote-user: root",
    "X-Forwarded-For: 192.0.2.66",
    "X-Forwarded-Proto: https",
    "X-Forwarded-Host: evil.example",
)
LOCAL = "printf 'Location: /env.sh\\n\\n'"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("behind")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    root = write_programs(folder / "root", PROGRAMS | {"local.sh": LOCAL})
    trusted = 'trusted_proxies = ["127.0.0.1", "192.0.2.64/26"]'
    elsewhere = 'trusted_proxies = ["192.0.2.0/24"]'
    log: dict[str, Any] = {"access_log": folder / "access.log", "access_log_format": "json"}
    documented = tomli.loads(re.findall(r"```toml\n(.*?)```", SECTION, re.DOTALL)[0])["listeners"]["git"]["cgi"]
    named = {key: value for key, value in documented.items() if key.endswith("_field")}
    config = pool() + cgi_listener(root=root, keys=trusted, **FIELDS, **log)
    config += cgi_listener("direct", root=root, keys=elsewhere, **FIELDS)
    config += cgi_listener("unix", bind="unix:www.sock", root=root, **FIELDS)
    config += cgi_listener("both", root=root, keys=f"proxy_protocol = true\n{trusted}", **FIELDS)
    config += cgi_listener("nginx", root=root, keys=trusted, **named)
    with ServerProcess(config, folder) as running:
        yield running.wait_ready()


def test_a_proxy_is_believed(server: ServerProcess, folder: Path) -> None:
    """RFC 3875 sections 4.1.1, 4.1.8, 4.1.11: each request of a proxy's connection is of its own client; the access log
    and a local redirect know it."""
    with Client(server) as client:
        found = client.get("/env.sh?1", "X-Remote-User: jo", "X-Forwarded-For: 6.6.6.6, 198.51.100.7").environment
        assert (found["REMOTE_USER"], found["AUTH_TYPE"], found["REMOTE_ADDR"]) == ("jo", "Proxy", "198.51.100.7")
        assert (found["HTTP_X_REMOTE_USER"], "HTTPS" in found) == ("jo", False)
        found = client.get(
            "/local.sh?2",
            "X-Forwarded-For: 2001:db8::7, 192.0.2.66",
            "X-Forwarded-Proto: https",
            "X-Forwarded-Host: a.example",
        ).environment
        assert "REMOTE_USER" not in found
        assert (found["REMOTE_ADDR"], found["HTTPS"]) == ("2001:db8::7", "on")
        assert (found["HTTP_HOST"], found["SERVER_PORT"], found["SCRIPT_NAME"]) == ("a.example", "443", "/env.sh")
        found = client.get("/env.sh?3").environment
        assert (found["REMOTE_ADDR"], "REMOTE_USER" in found, found["HTTP_HOST"]) == ("127.0.0.1", False, "test")
        assert client.get("/env.sh?4", "X-Remote-User: root", "X-Remote-User: jo").status == 400
    log = folder / "access.log"
    wait_until(lambda: log.exists() and log.read_text().count("\n") >= 4, "four lines")
    records = {record["request"]: record for record in map(json.loads, log.read_text().splitlines())}
    seen = [records[f"GET {target} HTTP/1.1"] for target in ("/env.sh?1", "/local.sh?2", "/env.sh?3", "/env.sh?4")]
    assert [entry["address"] for entry in seen] == ["198.51.100.7", "2001:db8::7", "127.0.0.1", "127.0.0.1"]
    assert [entry.get("user") for entry in seen] == ["jo", None, None, None]


def test_nobody_else_is_believed(server: ServerProcess) -> None:
    """The same fields from a peer that is no trusted proxy reach no program, under any name."""
    with Client(server, "direct") as client:
        plain = client.get("/env.sh").environment
        before = len(server.lines)
        for fields in (SPOOF[1:], SPOOF[:1], [field.upper() for field in SPOOF[1:]]):
            assert client.get("/env.sh", *fields).environment == plain
            assert client.get("/local.sh", *fields).environment == plain
        found = client.get("/env.sh", *(field.replace("-", "_", 2) for field in SPOOF)).environment
        assert found == plain
        server.wait_for_line(r"127\.0\.0\.1 is none of trusted_proxies: fields that only these may set are dropped")
        assert sum("none of trusted_proxies" in line for line in server.lines[before:]) <= 1
        assert client.get("/env.sh", *SPOOF).status == 400  # one of them comes twice


def test_peers_on_unix_sockets_are_believed(server: ServerProcess) -> None:
    """The permissions of the socket decide which clients may connect."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(TIMEOUT)
        sock.connect(str(server.folder / "www.sock"))
        sock.sendall(
            b"GET /env.sh HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Forwarded-For: 198.51.100.7\r\n"
            b"X-Remote-User: jo\r\n\r\n"
        )
        answer = receive_all(sock)
    assert b"REMOTE_ADDR=198.51.100.7\0" in answer
    assert b"REMOTE_USER=jo\0" in answer


@pytest.mark.parametrize(("client", "is_believed"), [("198.51.100.9", False), ("192.0.2.66", True)])
def test_with_the_proxy_protocol_its_client_is_the_peer(server: ServerProcess, client: str, is_believed: bool) -> None:
    """A proxy of TCP passes on what any client sends: its own address makes nothing of that true."""
    with Client(server, "both") as connection:
        connection.send(f"PROXY TCP4 {client} 192.0.2.1 40000 80\r\n".encode())
        found = connection.get("/env.sh", "X-Forwarded-For: 198.51.100.7", "X-Remote-User: jo").environment
    assert found["REMOTE_ADDR"] == ("198.51.100.7" if is_believed else client)
    assert ("REMOTE_USER" in found) is is_believed


# -- nginx


@contextmanager
def nginx(folder: Path, location: str) -> Iterator[tuple[Path, Path]]:
    """It listens on two unix sockets, the second one with TLS."""
    (folder / "htpasswd").write_text("jo:{PLAIN}secret\n")
    certificate = folder / "server.pem"
    request = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost -keyout"
    command = f"{request} {certificate} -out {certificate}.crt && cat {certificate}.crt >>{certificate}"
    subprocess.run(["/bin/sh", "-c", command], check=True, capture_output=True)
    plain, secure = folder / "plain.sock", folder / "secure.sock"
    paths = "\n".join(f"{kind}_temp_path temp-{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (folder / "nginx.conf").write_text(f"""
daemon off; master_process off; pid nginx.pid; error_log error.log;
events {{}}
http {{
    access_log off; {paths}
    real_ip_header X-Test-Client; set_real_ip_from unix:;
    server {{
        listen unix:{plain}; listen unix:{secure} ssl;
        ssl_certificate {certificate}; ssl_certificate_key {certificate};
        {location}
    }}
}}
""")
    assert NGINX is not None
    process = subprocess.Popen([NGINX, "-p", folder, "-c", "nginx.conf", "-e", "error.log"], stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + TIMEOUT
        while not secure.exists():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield plain, secure
    finally:
        process.terminate()
        process.communicate()


def ask(path: Path, *fields: str, tls: bool = False) -> tuple[int, dict[str, str]]:
    """A request by way of nginx: status and, where the program ran, its environment."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(TIMEOUT)
    sock.connect(str(path))
    if tls:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        sock = context.wrap_socket(sock)
    with sock:
        lines = ["GET /env.sh HTTP/1.0", "Host: www.example", *fields, "", ""]
        sock.sendall("\r\n".join(lines).encode())
        head, _, body = receive_all(sock).partition(b"\r\n\r\n")
    entries = (entry.partition("=") for entry in body.decode().split("\0") if "=" in entry)
    return int(head.split()[1]), {name: value for name, _, value in entries}


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_behind_nginx(server: ServerProcess, folder: Path) -> None:
    """docs/cgi.md, Behind an HTTP proxy: the password is asked for, and the program knows the user, the client and TLS,
    whatever the client says of itself."""
    here = folder / "nginx"
    here.mkdir()
    location = re.findall(r"```nginx\n(.*?)```", SECTION, re.DOTALL)[0]
    location = location.replace("127.0.0.1:8081", server.addresses("nginx")[0])
    location = location.replace("/etc/nginx/htpasswd", str(here / "htpasswd"))
    password = "Authorization: Basic " + base64.b64encode(b"jo:secret").decode()
    with nginx(here, location) as (plain, secure):
        assert ask(plain)[0] == 401
        assert ask(plain, *SPOOF)[0] == 401
        for spoofed in ((), SPOOF):
            status, found = ask(plain, password, "X-Test-Client: 198.51.100.7", *spoofed)
            assert (status, found["REMOTE_USER"], found["AUTH_TYPE"]) == (200, "jo", "Basic")
            assert (found["REMOTE_ADDR"], "HTTPS" in found, found["HTTP_HOST"]) == (
                "198.51.100.7",
                False,
                "www.example",
            )
            assert "HTTP_AUTHORIZATION" not in found
            status, found = ask(secure, password, "X-Test-Client: 2001:db8::7", *spoofed, tls=True)
            assert (found["REMOTE_ADDR"], found["HTTPS"], found["SERVER_PORT"]) == ("2001:db8::7", "on", "443")
