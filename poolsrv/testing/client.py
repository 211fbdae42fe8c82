"""A client of a harness: the other end of a connection, in the test's own process."""

from __future__ import annotations

from collections.abc import Callable
from socket import MSG_DONTWAIT, SHUT_WR, socket
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from ..worker.connection import Connection
    from .in_process import InProcessWorker

TIMEOUT = 10.0  # seconds that a method waits
_SIZE = 65536


class Client:
    """One client. Each method returns once the server has nothing left to do at this moment. A client closes by itself
    once it has seen that the server has.

    :ivar connection: the server's side; None if it was refused at once.
    """

    def __init__(self, sock: socket, worker: InProcessWorker, number: int, run: Callable[..., Any]) -> None:
        self.connection: Connection | None = None
        self._sock = sock
        self._worker = worker
        self._number = number
        self._run = run
        self._received = bytearray()
        self._unsent = bytearray()
        self._reads = True
        self._sends_eof = False
        self._ended = ""  # "eof" or "reset", as the client has seen it

    def __repr__(self) -> str:
        return f"<Client {self._number}, {self._ended or 'open'}, {len(self._received)} bytes received>"

    # --- sending

    def send(
        self, data: bytes | bytearray | memoryview | str, *, then: Literal["send_eof", "reset", "close"] | None = None
    ) -> None:
        """Send. If the server does not read, and the kernel does not take everything, the rest is sent once it does.

        :param data: a string is sent as UTF-8.
        :param then: what the client does at the same moment, before the server has seen the data.
        """
        if self._sends_eof:
            raise ValueError("send() after send_eof()")
        self._unsent += data.encode() if isinstance(data, str) else data
        if then is None:
            self._run()
        else:
            self.push()
            getattr(self, then)()

    def send_eof(self) -> None:
        """Finish sending, and go on receiving: a half-close."""
        self._sends_eof = True
        if not self._unsent:
            self._shut_down()
        self._run()

    def reset(self) -> None:
        """Reset the connection, as a client that has crashed."""
        witness = self._worker.witness(self._number)
        if witness is not None:
            # A unix socket that is closed with input left to read resets its peer.
            try:
                witness.send(b"\0", MSG_DONTWAIT)
            except OSError:
                pass  # the server has finished sending, or there is enough to read
        self._unsent.clear()
        self._sock.close()
        self._run()

    def close(self) -> None:
        """Close both directions."""
        self._unsent.clear()
        self._sock.close()
        self._run()

    @property
    def unsent(self) -> int:
        """How many bytes wait until the server reads."""
        self._run()
        return len(self._unsent)

    # --- receiving

    @property
    def received(self) -> bytes:
        """Everything that has arrived and has not been taken. It does not wait for programs, threads and other servers;
        ``receive``, ``receive_line`` and ``receive_all`` do."""
        self._run()
        return bytes(self._received)

    def take(self) -> bytes:
        """Take what ``received`` has: it is not returned again."""
        data = self.received
        self._received.clear()
        return data

    def receive(self, size: int) -> bytes:
        """Wait for ``size`` bytes, and take them.

        :raises AssertionError: they do not arrive within 10 seconds, or the server closes first.
        """
        self._wait(lambda: len(self._received) >= size, f"{size} bytes")
        data = bytes(self._received[:size])
        del self._received[:size]
        return data

    def receive_line(self) -> bytes:
        """Wait for a line, and take it with its end.

        :raises AssertionError: as ``receive``.
        """
        self._wait(lambda: b"\n" in self._received, "a line")
        return self.receive(self._received.index(b"\n") + 1)

    def receive_all(self) -> bytes:
        """Wait until the server closes, and take everything that has arrived.

        :raises AssertionError: the server does not close within 10 seconds.
        """
        self._wait(lambda: self._ended, "the end of the stream")
        return self.take()

    def stop_reading(self) -> None:
        """Receive nothing until ``resume_reading``: the server's bytes fill the kernel's buffer, and then its own."""
        self._reads = False
        self._run()

    def resume_reading(self) -> None:
        """Receive again."""
        self._reads = True
        self._run()

    # --- the end

    @property
    def closed(self) -> bool:
        """Whether the server has closed, or finished sending."""
        self._run()
        return bool(self._ended)

    @property
    def was_reset(self) -> bool:
        """Whether the server has reset the connection: by ``abort``, or for a plugin's fault that left bytes unsent."""
        self._run()
        return self._ended == "reset"

    @property
    def end(self) -> str:
        """Why the server's side is closed, as in ``on_connection_close``; empty while it is open."""
        self._run()
        return str(getattr(self.connection, "end", "refused"))

    def _wait(self, condition: Callable[[], object], what: str) -> None:
        self._run(lambda: condition() or self._ended, TIMEOUT)
        if not condition():
            how = f"the server has closed ({self.end})" if self._ended else f"nothing came for {TIMEOUT:g} seconds"
            raise AssertionError(f"expected {what}, but {how}; received: {shown(bytes(self._received))}")

    # --- for the harness

    def push(self) -> bool:
        """Send what waits, as far as the kernel takes it. Returns whether anything was sent."""
        if self._sock.fileno() < 0:
            self._unsent.clear()
        if not self._unsent:
            return False
        try:
            sent = self._sock.send(self._unsent, MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            self._unsent.clear()  # the server is gone
            return False
        del self._unsent[:sent]
        if self._sends_eof and not self._unsent:
            self._shut_down()
        return True

    def pull(self) -> bool:
        """Receive what is there. Returns whether anything was."""
        if not self._reads or self._ended or self._sock.fileno() < 0:
            return False
        try:
            data = self._sock.recv(_SIZE, MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            self._ended = "reset"
            return True
        self._received += data
        if not data:
            self._ended = "reset" if self._number in self._worker.resets else "eof"
            if self.connection is None or not self.connection._is_open():
                self._sock.close()  # as a client does when it sees the end; the server waits for this
        return True

    def drop(self) -> None:
        """When the harness ends: receive what is there, and close."""
        self.pull()
        self._sock.close()

    def _shut_down(self) -> None:
        try:
            self._sock.shutdown(SHUT_WR)
        except OSError:
            pass  # the server was faster


def shown(data: bytes, most: int = 200) -> str:
    """Bytes for a message: the beginning and the end of many."""
    if len(data) <= most:
        return repr(data)
    half = most // 2
    return f"{data[:half]!r} ... {data[-half:]!r} ({len(data)} bytes)"
