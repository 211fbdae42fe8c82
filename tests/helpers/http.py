"""Programs, a config, and a client that is strict about HTTP, for tests of the cgi plugin on a running server."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from types import TracebackType
from typing import Any

import h11

from poolsrv.core.toml import toml
from tests.helpers.plugins import prompt_client
from tests.helpers.server import TIMEOUT, ServerProcess, receive_exactly

# Programs that many tests use: shell scripts, unless they begin with #!.
PROGRAMS = {
    "hello.sh": "printf 'Content-Type: text/plain\\n\\nhello'",
    "env.sh": "printf 'Content-Type: text/plain\\n\\n'; exec env -0",
    "cat.sh": "printf 'Content-Type: application/octet-stream\\n\\n'; exec cat",
    "length.sh": "printf 'Content-Type: text/plain\\nContent-Length: 5\\n\\nhello'",
    "sub/deep.sh": "printf 'Content-Type: text/plain\\n\\n'; pwd",
    # Prints its pid, then waits until the file go.PID exists.
    "wait.sh": "printf 'Content-Type: text/plain\\n\\n%s\\n' $$; while [ ! -e go.$$ ]; do sleep 0.02; done; echo end",
    # Prints its pid and that of a child in its group; both ignore TERM.
    "stubborn.sh": "trap '' TERM; sleep 1000 & printf 'Content-Type: text/plain\\n\\n%s %s\\n' $$ $!; "
    "while :; do sleep 0.1; done",
}


def write_programs(root: Path, programs: dict[str, str]) -> Path:
    """Write executable files. A text that does not begin with ``#!`` becomes a shell script."""
    for name, text in programs.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text if text.startswith("#!") else f"#!/bin/sh\n{text}\n")
        file.chmod(0o755)
    return root


def cgi_listener(name: str = "www", /, bind: str = "127.0.0.1:0", keys: str = "", **options: Any) -> str:
    """A listener's table of a config."""
    lines = [f"[listeners.{name}]", f'bind = "{bind}"', 'handler = "cgi"', keys, f"[listeners.{name}.cgi]"]
    return "\n".join([*lines, *(f"{key} = {toml(value)}" for key, value in options.items()), ""])


def pool(workers: int = 1, **keys: Any) -> str:
    return "\n".join(["[pool]", f"workers = {workers}", *(f"{key} = {toml(value)}" for key, value in keys.items()), ""])


class Response:
    """What a client has received; names of header fields are in lower case."""

    def __init__(self, status: int, reason: bytes, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        self.status = status
        self.reason = reason
        self.headers = dict(headers)
        self.fields = headers
        self.body = body

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a program that prints `env -0`."""
        variables = (entry.partition(b"=") for entry in self.body.split(b"\0") if entry)
        return {os.fsdecode(name): os.fsdecode(value) for name, _, value in variables}


class Client:
    """A connection that writes requests as bytes and reads responses with h11, which is strict."""

    def __init__(self, server: ServerProcess, listener: str = "www", receive_buffer: int = 0) -> None:
        self.sock = server.connect(listener) if not receive_buffer else _small(server, listener, receive_buffer)
        self._rest = b""

    @classmethod
    def over(cls, sock: socket.socket) -> Client:
        """A client with a connection that there is already."""
        client = cls.__new__(cls)
        client.sock, client._rest = sock, b""
        return client

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.sock.close()

    def send(self, data: bytes) -> Client:
        self.sock.sendall(data)
        return self

    def get(self, target: str, *fields: str, method: str = "GET", body: bytes | None = None) -> Response:
        """Send one request, and return its response."""
        self.request(target, *fields, method=method, body=body)
        return self.response(method)

    def request(self, target: str, *fields: str, method: str = "GET", body: bytes | None = None) -> None:
        """Send a request."""
        length = [f"Content-Length: {len(body)}"] if body is not None else []
        head = "\r\n".join([f"{method} {target} HTTP/1.1", "Host: test", *fields, *length, "", ""])
        self.send(head.encode("latin-1") + (body or b""))

    def response(self, method: str = "GET") -> Response:
        """Read one response, to its end.

        :raises h11.RemoteProtocolError: it is malformed, or the connection closed before it was complete.
        """
        parser = h11.Connection(h11.CLIENT)
        parser.send(h11.Request(method=method, target="/", headers=[("Host", "test")]))
        parser.send(h11.EndOfMessage())
        if self._rest:
            parser.receive_data(self._rest)
            self._rest = b""
        head: h11.Response | None = None
        body = []
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                parser.receive_data(self.sock.recv(65536))
            elif isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                break
        self._rest = parser.trailing_data[0]
        assert head is not None
        return Response(head.status_code, bytes(head.reason), list(head.headers), b"".join(body))

    def head(self) -> bytes:
        """Read the bytes up to the empty line; the rest stays in the socket."""
        head = b""
        while not head.endswith(b"\r\n\r\n") and (byte := self.take(1)):
            head += byte
        return head

    def take(self, size: int) -> bytes:
        """Read this many bytes."""
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken + (receive_exactly(self.sock, size - len(taken)) if len(taken) < size else b"")

    def is_closed(self) -> bool:
        """Whether the server closes without sending more; waits for that."""
        try:
            return not self._rest and not self.sock.recv(1)
        except ConnectionResetError:
            return True


def prompt(server: ServerProcess, listener: str, data: bytes, seconds: float) -> Client:
    """A client that has sent the data within this time (`prompt_client`)."""
    return Client.over(prompt_client(server, listener, data, seconds))


def _small(server: ServerProcess, listener: str, size: int) -> socket.socket:
    """A client's socket with a small buffer, which has to be set before it is connected."""
    host, _, port = server.addresses(listener)[0].rpartition(":")
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
    sock.settimeout(TIMEOUT)
    sock.connect((host, int(port)))
    return sock


def read_response(data: bytes, method: str = "GET", closed: bool = True) -> tuple[h11.Response, bytes, bool]:
    """A client's view, by h11: the response, its body, and whether the connection can be used again."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    if closed:
        client.receive_data(b"")
    head, body = None, b""
    while not isinstance(event := client.next_event(), h11.EndOfMessage):
        if isinstance(event, h11.Response):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
        else:
            raise AssertionError(event)
    assert head is not None
    return head, body, client.their_state is h11.DONE


def chunked(*pieces: bytes) -> bytes:
    """A body in chunks (RFC 9112 section 7.1)."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def resident(pid: int) -> int:
    """The resident memory of a process, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def is_socket(fd: int) -> bool:
    return stat.S_ISSOCK(os.fstat(fd).st_mode)
