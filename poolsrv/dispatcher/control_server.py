"""The control socket: answers questions about the server, a line of JSON for each.

Theory. The control socket is a unix socket in the dispatcher's loop. The dispatcher knows the answers, or reads them in
/proc, so it answers while workers are busy, stuck or stopped. Only root and the server's own user may ask: the socket's
file has mode 0600, and the client's user is checked again (SO_PEERCRED, unix(7)). No client can hold up the server.
There are at most ``MOST_CLIENTS`` at a time; further ones wait in the kernel's queue. A question has at most
``LONGEST_QUESTION`` bytes. One question is answered at a time, and an answer is written as fast as the client reads.
Idle clients are disconnected after ``TIMEOUT`` seconds. Whatever a client sends, it costs at most its own connection.

A question is a line: a word, or an object ``{"request": WORD}``. Some take an argument, a second word (``run ID``).
ipc/stats.py has the answers. A client may ask again on the same connection once it has the answer. A worker that asks
gets its next answer after the pause that it should keep by itself (worker/status_client.py): however it asks, the
dispatcher has time for connections.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import time
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from ..core.event_loop import HANGUP, READ, WRITE, EventLoop, Timer
from ..core.text import encodable_in
from ..ipc.stats import LONGEST_PAUSE, PAUSE_SHARE, PROTOCOL, Answer

log = logging.getLogger("poolsrv.control")

MOST_CLIENTS: Final = 8
LONGEST_QUESTION: Final = 1024  # bytes
TIMEOUT: Final = 10.0  # seconds
STARVED_PAUSE: Final = 0.5  # seconds without accepting after the system has run out of descriptors

_SEND_FLAGS: Final = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_CREDENTIALS: Final = struct.Struct("3i")  # pid, uid, gid


class ControlServer:
    """Answers on a listening socket, which stays the caller's.

    :param sock: None: no stranger may ask, only those that are connected by ``connect``.
    :param answers: by the word of a request, makes the answer.
    :param answers_about: the same of requests with an argument, from the argument.
    """

    def __init__(
        self,
        loop: EventLoop,
        sock: socket.socket | None,
        answers: Mapping[str, Callable[[], Answer]],
        answers_about: Mapping[str, Callable[[str], Answer]] = {},
    ) -> None:
        self._loop = loop
        self._socket = sock
        self._answers = answers
        self._answers_about = answers_about
        self._clients: set[_Client] = set()
        self._workers: set[_Client] = set()  # whose other ends workers have
        self._answers_workers = False
        self._is_open = False
        self._paused = False

    def open(self) -> None:
        """Begin to accept. Does nothing if it is open."""
        if not self._is_open and self._socket is not None:
            self._is_open = True
            self._loop.register(self._socket.fileno(), READ, self._accept)

    def close(self) -> None:
        """Stop accepting and disconnect all clients; called before the listening socket is closed.

        Workers go on being answered.
        """
        if self._is_open and self._socket is not None:
            self._is_open = False
            self._loop.unregister(self._socket.fileno())
        for client in list(self._clients):
            client.close()

    def close_inherited(self) -> None:
        """In a forked child: close its copies of all connections."""
        for client in (*self._clients, *self._workers):
            client.socket.close()

    # --- workers that may ask ``status``

    def connect(self) -> socket.socket:
        """Make a connection for a worker that is about to be forked.

        :returns: the worker's end, which the caller closes after the fork.
        :raises OSError: there are no descriptors left.
        """
        ours, theirs = socket.socketpair()
        try:
            ours.setblocking(False)
            client = _Client(self._loop, ours, self._answer_worker, self._workers.discard, None, PAUSE_SHARE)
        except OSError:
            ours.close()
            theirs.close()
            raise
        self._workers.add(client)
        if not self._answers_workers:
            client.pause()
        return theirs

    def answer_workers(self) -> None:
        """Begin to answer workers."""
        if not self._answers_workers:
            self._answers_workers = True
            for client in self._workers:
                client.go_on()

    def _answer_worker(self, question: bytes) -> bytes:
        return self._answer(question) if question == b"status" else _encoded(Answer(PROTOCOL, error="expected status"))

    # --- strangers

    def _accept(self, mask: int) -> None:
        assert self._socket is not None
        try:
            sock, _ = self._socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError:  # no descriptors: without a pause the loop would spin
            self._pause(True)
            self._loop.call_later(STARVED_PAUSE, self._pause_if_full)
            return
        try:
            if not _may_ask(sock):
                sock.close()
                return
            sock.setblocking(False)
            self._clients.add(_Client(self._loop, sock, self._answer, self._gone))
        except OSError as error:  # no memory to watch it, epoll_ctl(2)
            log.warning("can't serve a client of the control socket: %s", error.strerror)
            sock.close()
        self._pause_if_full()

    def _gone(self, client: _Client) -> None:
        self._clients.discard(client)
        self._pause_if_full()

    def _pause_if_full(self) -> None:
        self._pause(len(self._clients) >= MOST_CLIENTS)

    def _pause(self, paused: bool) -> None:
        if self._is_open and self._socket is not None and paused is not self._paused:
            self._paused = paused
            self._loop.modify(self._socket.fileno(), 0 if paused else READ)

    def _answer(self, question: bytes) -> bytes:
        try:
            return _encoded(self._answer_to(_word(question)))
        except Exception:
            log.exception("can't answer %r", question[:40])
            return _encoded(Answer(PROTOCOL, error="failed; the log says why"))

    def _answer_to(self, word: str | None) -> Answer:
        known = ", ".join([*self._answers, *self._answers_about])
        if word is None:
            expected = f'expected a line with a word or {{"request": WORD}}: {known}'
            return Answer(PROTOCOL, error=f"not understood, {expected}")
        name, _, argument = word.partition(" ")
        if name in self._answers_about:
            return self._answers_about[name](argument.strip())
        if word not in self._answers:
            return Answer(PROTOCOL, error=f"unknown request {word[:40]!r}, expected {known}")
        return self._answers[word]()


class _Client:
    """A connection, on which either a question is read or an answer is written."""

    def __init__(
        self,
        loop: EventLoop,
        sock: socket.socket,
        answer: Callable[[bytes], bytes],
        gone: Callable[[_Client], object],
        timeout: float | None = TIMEOUT,
        pause_share: float = 0.0,
    ) -> None:
        self.socket = sock
        self._loop = loop
        self._answer = answer
        self._gone = gone
        self._asked = b""
        self._unsent = b""
        self._finished = False  # its side of the connection is shut down
        self._closed = False
        self._pause_share = pause_share  # after each answer, in times that it took
        self._rest = 0.0  # seconds of the next pause
        loop.register(sock.fileno(), READ, self._on_event)
        self._timeout = timeout
        self._timer: Timer | None = None
        self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._timeout is not None:
            self._timer = self._loop.call_later(self._timeout, self.close)

    def pause(self) -> None:
        """Read no question for now."""
        self._loop.modify(self.socket.fileno(), 0)

    def go_on(self) -> None:
        """Read questions again."""
        self._loop.modify(self.socket.fileno(), READ)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()
            self._loop.unregister(self.socket.fileno())
            self._loop.at_end_of_turn(self.socket.close)
            self._gone(self)

    def _on_event(self, mask: int) -> None:
        self._set_timer()
        try:
            if self._unsent:
                self._send()
            elif b"\n" in self._asked:
                self._answer_next()
            elif mask & READ:
                self._receive()
            elif mask & HANGUP:
                self.close()
        except BlockingIOError:
            pass
        except OSError:
            self.close()

    def _receive(self) -> None:
        data = self.socket.recv(LONGEST_QUESTION)
        self._asked += data
        if not data:
            self._finished = True
            self._asked += b"\n" if self._asked else b""
        if b"\n" in self._asked:
            self._answer_next()
        else:
            self._wait_for_more()

    def _answer_next(self) -> None:
        """Answer one question; further ones that have come are answered at the next event."""
        question, _, self._asked = self._asked.partition(b"\n")
        if len(question) > LONGEST_QUESTION:
            self.close()
            return
        began = time.monotonic()
        self._unsent = self._answer(question)
        self._rest = min((time.monotonic() - began) * self._pause_share, LONGEST_PAUSE)
        self._loop.modify(self.socket.fileno(), WRITE)
        self._send()

    def _send(self) -> None:
        sent = self.socket.send(self._unsent, _SEND_FLAGS)
        self._unsent = self._unsent[sent:]
        if self._unsent:
            return
        if self._rest:
            self.pause()
            self._loop.call_later(self._rest, self._end_rest)
        elif b"\n" not in self._asked:
            self._wait_for_more()

    def _end_rest(self) -> None:
        if self._closed:
            return
        if b"\n" in self._asked:
            self._loop.modify(self.socket.fileno(), WRITE)
        else:
            self._wait_for_more()

    def _wait_for_more(self) -> None:
        if self._finished or len(self._asked) > LONGEST_QUESTION:
            self.close()
        else:
            self._loop.modify(self.socket.fileno(), READ)


def _word(question: bytes) -> str | None:
    try:
        text = question.decode().strip()
        if text.startswith("{"):
            request = msgspec.json.decode(text)["request"]
            return request if isinstance(request, str) else None
    except (ValueError, KeyError, RecursionError, msgspec.DecodeError):
        return None
    return text or None


def _encoded(answer: Answer) -> bytes:
    try:
        return msgspec.json.encode(answer) + b"\n"
    except UnicodeEncodeError:  # a name of a file or a process that is not UTF-8
        return msgspec.json.encode(encodable_in(msgspec.to_builtins(answer))) + b"\n"


def _may_ask(sock: socket.socket) -> bool:
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return _CREDENTIALS.unpack(data)[1] in (0, os.geteuid())
