"""Other servers as readers: each is a proxy in front of a backend, which says in its answer what has come through."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import h11

from .reading import CLOSES, REFUSES, WAITS, Message, Reading, mark_in

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
SECONDS = 2  # that a server waits for more of a request
LONGEST = 20.0  # seconds until it has closed
AT_ONCE = 24  # connections

APACHE = """\
ServerName a
Listen 127.0.0.1:{port}
PidFile {folder}/apache.pid
ErrorLog {folder}/apache.log
LogLevel emerg
DefaultRuntimeDir {folder}
User {user}
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule reqtimeout_module /usr/lib/apache2/modules/mod_reqtimeout.so
LoadModule proxy_module /usr/lib/apache2/modules/mod_proxy.so
LoadModule proxy_http_module /usr/lib/apache2/modules/mod_proxy_http.so
RequestReadTimeout header={seconds} body={seconds}
KeepAliveTimeout {seconds}
ProxyPass / http://127.0.0.1:{backend}/ disablereuse=On nocanon
"""
LIGHTTPD = """\
server.modules = ("mod_proxy")
server.document-root = "{folder}"
server.port = {port}
server.bind = "127.0.0.1"
server.errorlog = "{folder}/lighttpd.log"
server.max-read-idle = {seconds}
server.max-keep-alive-idle = {seconds}
server.max-keep-alive-requests = 100
proxy.server = ("" => (("host" => "127.0.0.1", "port" => {backend})))
"""
_find_seen = re.compile(rb"^x-saw: (.*)\r$", re.IGNORECASE | re.MULTILINE).findall
_find_status = re.compile(rb"^HTTP/1\.[01] (\d+)", re.MULTILINE).findall


class Backend:
    """Answers each request with what it has seen, in a field, so that an answer to HEAD has it too."""

    async def __aenter__(self) -> Backend:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server = h11.Connection(h11.SERVER)
        seen: list[str] = []
        body = b""
        with suppress(OSError, h11.ProtocolError):
            while not isinstance(event := server.next_event(), h11.EndOfMessage):
                if event is h11.NEED_DATA:
                    if server.they_are_waiting_for_100_continue:
                        go_on = h11.InformationalResponse(status_code=100, headers=[])
                        writer.write(server.send(go_on) or b"")
                    server.receive_data(await reader.read(65536))
                elif isinstance(event, h11.Request):
                    seen = [event.method.decode(), event.target.decode("latin-1")]
                elif isinstance(event, h11.Data):
                    body += event.data
                else:
                    break
            text = json.dumps([*seen, body.decode("latin-1")])
            fields = [("X-Saw", text), ("Content-Length", "0"), ("Connection", "close")]
            writer.write(server.send(h11.Response(status_code=200, headers=fields)) or b"")
            await writer.drain()
        writer.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    assert isinstance(port, int)
    return port


@contextmanager
def running(name: str, backend: int) -> Iterator[int]:
    """Run a server; its port."""
    program = shutil.which({"apache": "apache2"}.get(name, name), path=PATH)
    if program is None:
        raise SystemExit(f"{name} is not installed: apt-get install apache2 lighttpd")
    port = free_port()
    user = "www-data" if os.getuid() == 0 else f"#{os.getuid()}"
    with tempfile.TemporaryDirectory(prefix="poolsrv-fuzz-") as folder:
        Path(folder).chmod(0o755)
        text = {"apache": APACHE, "lighttpd": LIGHTTPD}[name]
        config = Path(folder) / "conf"
        config.write_text(text.format(folder=folder, port=port, backend=backend, seconds=SECONDS, user=user))
        options = {"apache": ["-D", "FOREGROUND", "-f"], "lighttpd": ["-D", "-f"]}[name]
        process = subprocess.Popen([program, *options, str(config)], start_new_session=True)
        try:
            yield port
        finally:
            process.terminate()
            process.wait()


async def listens(port: int) -> None:
    """Wait until somebody accepts there."""
    for _ in range(400):
        with suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        await asyncio.sleep(0.05)
    raise SystemExit("the server does not listen")


async def read_by(port: int, data: bytes) -> Reading:
    """As the server at this port reads it."""
    received = b""
    began = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(LONGEST):
            writer.write(data)
            await writer.drain()
            while piece := await reader.read(65536):
                received += piece
    writer.close()
    return understood(received, time.monotonic() - began)


async def read_all(port: int, many: list[bytes]) -> list[Reading]:
    """The same of many, some at a time."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(data: bytes) -> Reading:
        async with gate:
            return await read_by(port, data)

    return await asyncio.gather(*map(one, many))


def understood(received: bytes, took: float) -> Reading:
    """What a server's answers say. What it has answered itself was refused, unless it says that it has waited.

    :param took: seconds. Some say nothing after they have waited; on a busy machine others may take as long.
    """
    messages = tuple(
        Message(method, mark_in(target), body.encode("latin-1"))
        for method, target, body in map(json.loads, _find_seen(received))
    )
    own = [status for status in _find_status(received) if status not in (b"100", b"200")]
    if own:
        return Reading(messages, WAITS if own[-1] == b"408" else REFUSES)
    is_last = bool(messages) and messages[-1].mark == "9"
    return Reading(messages, CLOSES if is_last or took < SECONDS / 2 else WAITS)
