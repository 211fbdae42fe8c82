"""Web servers that send files, each with a config made for it in a temporary directory; one process serves."""

import os
import textwrap
from pathlib import Path

from .environment import which
from .peers import POOLSRV, poolsrv_command, poolsrv_config
from .servers import Launch, Peer
from .web import nginx_command

SMALL, LARGE = 1024, 100 << 20  # bytes

FILES = {"small.txt": SMALL, "large.bin": LARGE}


def make_files(directory: Path) -> None:
    """Make htdocs/, with a small file and a large one, in the page cache."""
    htdocs = directory / "htdocs"
    htdocs.mkdir()
    for name, size in FILES.items():
        with (htdocs / name).open("wb") as file:
            block = os.urandom(min(size, 1 << 20))
            for _ in range(size // len(block)):
                file.write(block)


def _poolsrv(directory: Path, port: int) -> Launch:
    make_files(directory)
    config = poolsrv_config(port, handler="files", options={"root": '"htdocs"'})
    return Launch([poolsrv_command(directory, config)], ready_line=True)


def _lighttpd(directory: Path, port: int) -> Launch:
    make_files(directory)
    (directory / "lighttpd.conf").write_text(
        textwrap.dedent(f"""\
        server.document-root = "{directory}/htdocs"
        server.bind = "127.0.0.1"
        server.port = {port}
        server.max-keep-alive-requests = 1000000000
        mimetype.assign = (".txt" => "text/plain")
        """)
    )
    return Launch([[str(which("lighttpd")), "-D", "-f", "lighttpd.conf"]])


def _nginx(directory: Path, port: int) -> Launch:
    make_files(directory)
    return Launch(
        [nginx_command(directory, port, "sendfile on;\ntypes { text/plain txt; }", f"    root {directory}/htdocs;")]
    )


def file_servers() -> list[Peer]:
    """All of them."""
    return [
        Peer("lighttpd", _lighttpd, programs=frozenset({"lighttpd"})),
        Peer("nginx", _nginx, programs=frozenset({"nginx"})),
        Peer(POOLSRV, _poolsrv),
    ]
