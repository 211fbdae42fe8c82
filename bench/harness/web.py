"""Web servers that run CGI programs, each with a config made for it in a temporary directory.

All serve the same directory of programs under /cgi-bin/, on an unprivileged port and without logs on disk. A server
that insists on giving up root gets the user that its Debian package would give it.
"""

import os
import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path

from .environment import BENCH, BUILD, PYTHON, which
from .peers import COMPILED, POOLSRV, poolsrv_command, poolsrv_config
from .servers import Launch, Peer

WEB_USER = "www-data"
APACHE_MODULES = "/usr/lib/apache2/modules"

SHELL_SCRIPT = """\
#!/bin/sh
printf 'Content-Type: text/plain\\r\\nContent-Length: 6\\r\\n\\r\\nhello\\n'
"""
PYTHON_SCRIPT = """\
#!{python}
print("Content-Type: text/plain\\r\\nContent-Length: 6\\r\\n\\r\\nhello")
"""


def public_python() -> Path:
    """An interpreter that any user can run: some servers give up root, and a home directory may be closed to them."""
    public = [Path("/usr/bin/python3"), Path("/usr/local/bin/python3")]
    return next((path for path in public if path.exists()), PYTHON.resolve())


def make_programs(directory: Path) -> Path:
    """Make the programs that all servers run: cgi-bin/ with static, big, shell.sh and script.py."""
    programs = directory / "cgi-bin"
    programs.mkdir()
    shutil.copy(BUILD / "cgi_static", programs / "static")
    shutil.copy(BUILD / "cgi_big", programs / "big")
    (programs / "shell.sh").write_text(SHELL_SCRIPT)
    (programs / "script.py").write_text(PYTHON_SCRIPT.format(python=public_python()))
    for file in programs.iterdir():
        file.chmod(0o755)
    return programs


def _poolsrv(warm: bool, *, compiled: bool = False) -> Callable[[Path, int], Launch]:
    def launch(directory: Path, port: int) -> Launch:
        make_programs(directory)
        options = {"protocol": '"http"', "root": '"cgi-bin"', "prefix": '"/cgi-bin/"'}
        if warm:
            options["warm"] = "true"
        config = poolsrv_config(port, handler="cgi", options=options)
        return Launch([poolsrv_command(directory, config, compiled=compiled)], ready_line=True)

    return launch


def _lighttpd(directory: Path, port: int) -> Launch:
    make_programs(directory)
    (directory / "lighttpd.conf").write_text(
        textwrap.dedent(f"""\
        server.document-root = "{directory}"
        server.bind = "127.0.0.1"
        server.port = {port}
        server.modules = ("mod_cgi")
        $HTTP["url"] =~ "^/cgi-bin/" {{ cgi.assign = ("" => "") }}
        """)
    )
    return Launch([[str(which("lighttpd")), "-D", "-f", "lighttpd.conf"]])


def _apache(directory: Path, port: int) -> Launch:
    programs = make_programs(directory)
    user = f"User {WEB_USER}\nGroup {WEB_USER}\n" if os.geteuid() == 0 else ""
    if user:
        shutil.chown(directory, WEB_USER)  # it makes the socket of its CGI daemon here
    modules = "".join(
        f"LoadModule {name}_module {APACHE_MODULES}/mod_{name}.so\n"
        for name in ("mpm_event", "authz_core", "alias", "cgid")
    )
    (directory / "apache.conf").write_text(
        modules
        + user
        + textwrap.dedent(f"""\
        ServerRoot "{directory}"
        ServerName localhost
        Listen 127.0.0.1:{port}
        PidFile "{directory}/apache.pid"
        Mutex file:{directory} default
        ErrorLog "{directory}/apache.log"
        ScriptSock "{directory}/cgid.sock"
        ScriptAlias "/cgi-bin/" "{programs}/"
        MaxKeepAliveRequests 0
        <Directory "{programs}">
            Require all granted
        </Directory>
        """)
    )
    return Launch([[str(which("apache2")), "-DFOREGROUND", "-f", str(directory / "apache.conf")]])


def nginx_command(directory: Path, port: int, http: str, location: str) -> list[str]:
    """Write a config for nginx with one process; the command that runs it.

    :param http: further directives of its `http` block.
    :param location: the content of its `server` block.
    """
    user = f"user {WEB_USER};\n" if os.geteuid() == 0 else ""
    temporary = "".join(
        f"{kind}_temp_path {directory}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (directory / "nginx.conf").write_text(
        f"""\
{user}daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log stderr crit;
events {{ worker_connections 1024; }}
http {{
{temporary}access_log off;
keepalive_requests 1000000000;
{http}
server {{
    listen 127.0.0.1:{port};
{location}
}}
}}
"""
    )
    return [str(which("nginx")), "-p", str(directory), "-e", "stderr", "-c", "nginx.conf"]


def _nginx(directory: Path, port: int) -> Launch:
    make_programs(directory)
    nginx = nginx_command(
        directory,
        port,
        "fastcgi_max_temp_file_size 0;",
        f"""\
    location /cgi-bin/ {{
        fastcgi_pass unix:{directory}/fcgi.sock;
        fastcgi_param GATEWAY_INTERFACE CGI/1.1;
        fastcgi_param SERVER_PROTOCOL $server_protocol;
        fastcgi_param REQUEST_METHOD $request_method;
        fastcgi_param QUERY_STRING $query_string;
        fastcgi_param SCRIPT_NAME $fastcgi_script_name;
        fastcgi_param SCRIPT_FILENAME {directory}$fastcgi_script_name;
        fastcgi_param DOCUMENT_ROOT {directory};
    }}""",
    )
    # fcgiwrap runs one program at a time in each of its processes, so there are as many as connections. The umask opens
    # its socket to nginx's user.
    wrap = f"umask 0; exec {which('fcgiwrap')} -c 16 -s unix:{directory}/fcgi.sock"
    return Launch([["/bin/sh", "-c", wrap], nginx])


def _http_server(directory: Path, port: int) -> Launch:
    make_programs(directory)
    return Launch([[str(PYTHON), "-m", "http.server", "--cgi", "--bind", "127.0.0.1", str(port)]])


def _smallest(*options: str) -> Callable[[Path, int], Launch]:
    def launch(directory: Path, port: int) -> Launch:
        make_programs(directory)
        program = str(BENCH / "peers" / "smallest_cgi.py")
        return Launch([[str(public_python()), program, *options, str(port), str(directory)]])

    return launch


def web_servers(*, warm: bool = False, large: bool = False) -> list[Peer]:
    """All of them. With warm interpreters they are peers of their own, where the program is a Python script.

    :param large: only those that can pass on an answer larger than memory.
    """
    peers = [
        Peer("lighttpd", _lighttpd, programs=frozenset({"lighttpd"})),
        Peer(POOLSRV, _poolsrv(False)),
        Peer(COMPILED, _poolsrv(False, compiled=True)),
        Peer("poolsrv, warm", _poolsrv(True)),
        Peer("smallest server in Python", _smallest()),
        Peer("smallest server in Python, warm", _smallest("--warm")),
        Peer("Apache, mod_cgid", _apache, programs=frozenset({"apache2"}), hides_cpu=True),
        Peer("nginx, fcgiwrap", _nginx, programs=frozenset({"nginx", "fcgiwrap"}), hides_cpu=True),
        Peer("http.server --cgi", _http_server),
    ]
    left_out = ["http.server --cgi", "smallest server in Python"] if large else []
    return [peer for peer in peers if peer.name not in left_out and (warm or not peer.name.endswith(", warm"))]
