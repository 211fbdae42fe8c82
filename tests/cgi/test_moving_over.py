"""docs/moving-over.md: the same program, served by the old server and by poolsrv; the answers are compared."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from poolsrv.cli.importing.document import Document
from poolsrv.cli.importing.files import read_services
from tests.helpers.http import cgi_listener, pool, write_programs
from tests.helpers.server import TIMEOUT, ServerProcess, free_port, listens, wait_until

# Where Debian has them; in CI they are installed.
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin"
VARIABLES = "GATEWAY_INTERFACE REQUEST_METHOD SCRIPT_NAME PATH_INFO QUERY_STRING CONTENT_TYPE CONTENT_LENGTH HTTP_X_A"
PROGRAMS = {
    "cgi-bin/show.cgi": "printf 'Content-Type: text/plain\\r\\nX-From: program\\r\\n\\r\\n'\n"
    f'for name in {VARIABLES}; do eval "echo $name=\\"\\$$name\\""; done\n'
    'head -c "${CONTENT_LENGTH:-0}"',
    "cgi-bin/status.cgi": "printf 'Status: 418 A teapot\\nContent-Type: text/plain\\n\\nshort and stout'",
    "cgi-bin/away.cgi": "printf 'Location: http://example.org/\\n\\n'",
    "cgi-bin/plain.cgi": "echo never",
}
REQUESTS: list[tuple[str, str, bytes | None]] = [
    ("GET", "/cgi-bin/show.cgi", None),
    ("GET", "/cgi-bin/show.cgi/more/of%20it?a=1&b=%2F", None),
    ("POST", "/cgi-bin/show.cgi?x", b"some\0bytes" * 1000),
    ("GET", "/cgi-bin/status.cgi", None),
    ("GET", "/cgi-bin/away.cgi", None),
    ("GET", "/cgi-bin/plain.cgi", None),  # not executable
    ("GET", "/cgi-bin/none.cgi", None),
]
Start: TypeAlias = Callable[..., None]

APACHE = """\
ServerRoot {folder}
ServerName test
Listen 127.0.0.1:{port}
PidFile {folder}/apache.pid
ErrorLog {folder}/apache.log
User nobody
Group nogroup
LoadModule mpm_prefork_module /usr/lib/apache2/modules/mod_mpm_prefork.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule alias_module /usr/lib/apache2/modules/mod_alias.so
LoadModule cgi_module /usr/lib/apache2/modules/mod_cgi.so
DocumentRoot {folder}
ScriptAlias "/cgi-bin/" "{folder}/cgi-bin/"
"""
LIGHTTPD = """\
server.modules = ("mod_cgi")
server.document-root = "{folder}"
server.port = {port}
server.bind = "127.0.0.1"
server.errorlog = "{folder}/lighttpd.log"
cgi.assign = (".cgi" => "")
"""
NGINX = """\
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body; fastcgi_temp_path {folder}/fcgi; proxy_temp_path {folder}/proxy;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location /cgi-bin/ {{ {location} }}
    }}
}}
"""
FASTCGI = """
    include /etc/nginx/fastcgi_params; fastcgi_pass unix:{folder}/fcgiwrap.sock;
    fastcgi_split_path_info ^(/cgi-bin/[^/]+)(.*)$;
    fastcgi_param SCRIPT_FILENAME {folder}$fastcgi_script_name; fastcgi_param PATH_INFO $fastcgi_path_info;
"""


def installed(name: str) -> str:
    program = shutil.which(name, path=PATH)
    if program is None:
        assert "CI" not in os.environ, f"{name} is not installed"
        pytest.skip(f"{name} is not installed")
    return program


@pytest.fixture(scope="module")
def site() -> Iterator[Path]:
    """A folder that every user can read."""
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="poolsrv-test-") as name:
        folder = write_programs(Path(name), PROGRAMS)
        folder.chmod(0o777)
        (folder / "cgi-bin" / "plain.cgi").chmod(0o644)
        yield folder


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a program of the system, and wait until it listens."""
    running: list[subprocess.Popen[bytes]] = []

    def run(*command: str, ready: Callable[[], bool]) -> None:
        output = subprocess.DEVNULL
        running.append(subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True))
        wait_until(ready, f"{command[0]} listens")

    try:
        yield run
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait(TIMEOUT)


@pytest.fixture(scope="module")
def server(site: Path) -> Iterator[ServerProcess]:
    """As the page has it for a ScriptAlias; behind nginx by a unix socket."""
    sockets = f'["127.0.0.1:0", "unix:{site}/www.sock"]'
    config = cgi_listener("www", root=site / "cgi-bin", prefix="/cgi-bin/").replace('"127.0.0.1:0"', sockets)
    with ServerProcess(pool() + config, site) as running:
        yield running.wait_ready()


def answers(port: int) -> list[tuple[object, ...]]:
    """What a client sees: status, what the program says in its header, and the body of a program's answer."""
    found: list[tuple[object, ...]] = []
    for method, target, body in REQUESTS:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
        connection.request(method, target, body, {"X-A": "b, c", "Content-Type": "text/x"} if body else {"X-A": "b"})
        response = connection.getresponse()
        content = response.read().replace(b"CONTENT_LENGTH=0\n", b"CONTENT_LENGTH=\n")  # lighttpd, without a body
        connection.close()
        by_program = "show" in target or "status" in target
        found.append(
            (target, response.status, response.getheader("X-From"), response.getheader("Location"))
            + ((response.getheader("Content-Type"), content) if by_program else ())
        )
    return found


def port_of(server: ServerProcess, listener: str) -> int:
    return int(server.addresses(listener)[0].rpartition(":")[2])


@pytest.mark.server
def test_apache(site: Path, server: ServerProcess, start: Start) -> None:
    port = free_port()
    (site / "apache.conf").write_text(APACHE.format(folder=site, port=port))
    start(installed("apache2"), "-D", "FOREGROUND", "-f", f"{site}/apache.conf", ready=lambda: listens(port))
    ours, theirs = answers(port_of(server, "www")), answers(port)
    assert (ours[5][1], theirs[5][1]) == (403, 500)  # not executable
    assert [*ours[:5], *ours[6:]] == [*theirs[:5], *theirs[6:]]


@pytest.mark.server
def test_lighttpd(site: Path, server: ServerProcess, start: Start) -> None:
    port = free_port()
    (site / "lighttpd.conf").write_text(LIGHTTPD.format(folder=site, port=port))
    start(installed("lighttpd"), "-D", "-f", f"{site}/lighttpd.conf", ready=lambda: listens(port))
    ours, theirs = answers(port_of(server, "www")), answers(port)
    assert (ours[5][1], theirs[5][1]) == (403, 500)  # not executable
    assert [*ours[:5], *ours[6:]] == [*theirs[:5], *theirs[6:]]


@pytest.mark.server
def test_nginx_with_fcgiwrap_and_as_a_proxy(site: Path, server: ServerProcess, start: Start) -> None:
    """``fastcgi_pass`` is replaced by ``proxy_pass``."""
    nginx, port, proxy = installed("nginx"), free_port(), free_port()
    start(installed("fcgiwrap"), "-s", f"unix:{site}/fcgiwrap.sock", ready=(site / "fcgiwrap.sock").exists)
    locations = {port: FASTCGI.format(folder=site), proxy: f"proxy_pass http://unix:{site}/www.sock;"}
    for number, location in locations.items():
        config = site / f"nginx-{number}.conf"
        config.write_text("user root;\n" + NGINX.format(folder=site, port=number, location=location))
        start(nginx, "-p", str(site), "-c", str(config), ready=lambda number=number: listens(number))
    ours, theirs = answers(proxy), answers(port)
    assert [answer[1] for answer in theirs[5:]] == [403, 403]  # fcgiwrap does not tell what is missing
    assert [answer[1] for answer in ours[5:]] == [403, 404]
    assert ours[:5] == theirs[:5]


@pytest.mark.skipif(sys.version_info >= (3, 15), reason="Python 3.15 has no http.server --cgi any more")
@pytest.mark.server
def test_http_server(site: Path, server: ServerProcess, start: Start) -> None:
    """It runs no file that is not executable: on Linux it has fork."""
    port = free_port()
    command = [sys.executable, "-W", "ignore", "-m", "http.server", "--cgi", "--bind", "127.0.0.1", "-d", str(site)]
    start(*command, str(port), ready=lambda: listens(port))
    python = site / "cgi-bin" / "plain.py"
    python.write_text("print('Content-Type: text/plain\\n\\nnever')\n")
    for number in (port, port_of(server, "www")):
        connection = http.client.HTTPConnection("127.0.0.1", number, timeout=TIMEOUT)
        connection.request("GET", "/cgi-bin/plain.py")
        assert connection.getresponse().status == 403
        connection.close()


def talk(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), TIMEOUT) as sock:
        sock.sendall(b"line\n")
        sock.shutdown(socket.SHUT_WR)
        with sock.makefile("rb") as file:
            return file.read()


XINETD = """\
service probe
{{
    type = UNLISTED
    port = {port}
    bind = 127.0.0.1
    socket_type = stream
    protocol = tcp
    wait = no
    user = root
    server = {program}
    server_args = one two
    env = GREETING=hello
    nice = 3
    umask = 0137
    banner = {banner}
    rlimit_files = 77
    rlimit_data = 64M
}}
"""
# poolsrv sets the priority once the program has started.
SCRIPT = """\
#!/bin/sh
read -r line
tries=0
parents=$(ps -o ni= -p $PPID | tr -d ' ')
while [ "$(nice)" = "$parents" ] && [ $tries -lt 200 ]; do sleep 0.05; tries=$((tries + 1)); done
echo "$line $GREETING $* $(umask) $(nice) $(ulimit -n) $(ulimit -d) $(pwd)"
echo error >&2
"""


def serve_imported(source: Path, folder: Path) -> ServerProcess:
    """Serve what ``poolsrv import`` makes of a file."""
    return ServerProcess(Document(read_services([source])).text([str(source)]), folder)


@pytest.mark.server
def test_xinetd(site: Path, tmp_path: Path, start: Start) -> None:
    """The same config, read by xinetd and then imported."""
    program, banner, source, port = site / "probe", site / "banner", tmp_path / "xinetd.conf", free_port()
    program.write_text(SCRIPT)
    program.chmod(0o755)
    banner.write_text("welcome\n")
    source.write_text(XINETD.format(port=port, program=program, banner=banner))
    options = ["-filelog", str(tmp_path / "log"), "-pidfile", str(tmp_path / "pid")]
    process = subprocess.Popen([installed("xinetd"), "-dontfork", *options, "-f", str(source)])
    try:
        wait_until(lambda: listens(port), "xinetd listens")
        theirs = talk(port)
    finally:
        process.terminate()
        process.wait(TIMEOUT)
    nice = min(os.getpriority(os.PRIO_PROCESS, 0) + 3, 19)
    assert theirs == b"welcome\nline hello one two 0137 %d 77 65536 /\nerror\n" % nice
    with serve_imported(source, tmp_path) as server:
        server.wait_ready()
        assert talk(port) == theirs


@pytest.mark.server
def test_tcpserver_and_socat(site: Path, tmp_path: Path, start: Start) -> None:
    """The program's input and output, and the variables of UCSPI."""
    program = site / "ucspi"
    program.write_text('#!/bin/sh\nread -r line\necho "$line $PROTO $TCPLOCALIP $TCPREMOTEIP"\n')
    program.chmod(0o755)
    ucspi, socat = free_port(), free_port()
    options = ("-R", "-H", "-l0")
    start(installed("tcpserver"), *options, "127.0.0.1", str(ucspi), str(program), ready=lambda: listens(ucspi))
    listen = f"TCP-LISTEN:{socat},bind=127.0.0.1,fork"
    start(installed("socat"), listen, "EXEC:/bin/cat", ready=lambda: listens(socat))
    config = cgi_listener("ucspi", protocol="inetd", program=[str(program)])
    config += cgi_listener("socat", protocol="inetd", program=["/bin/cat"])
    with ServerProcess(pool() + config, tmp_path) as server:
        server.wait_ready()
        assert talk(port_of(server, "ucspi")) == talk(ucspi) == b"line TCP 127.0.0.1 127.0.0.1\n"
        assert talk(port_of(server, "socat")) == talk(socat) == b"line\n"
