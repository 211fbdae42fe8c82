"""One warm interpreter as the worker sees it: the process of `helper`, and the scripts that run in its children."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence

from poolsrv import Handle, Worker

from .child import WarmChild, exit_status_of
from .messages import (
    VERSION,
    Exited,
    Pong,
    Ready,
    Reply,
    Started,
    helper_argv,
    read_replies,
    send_ping,
    send_run,
)

__all__ = ["ForkServer"]

log = logging.getLogger("poolsrv.cgi")

CHECK_INTERVAL = 1.0  # seconds between two checks whether it is well
START_TIMEOUT = 60.0  # seconds that it has for its imports
ANSWER_TIMEOUT = 10.0  # seconds that it has for an answer, while it has scripts


class ForkServer:
    """One process, from its start to its end.

    :param command: the interpreter, with its flags.
    :param modules: to import beforehand.
    :param on_end: called as `on_end(fork_server)` when it has ended by itself or been ended for a fault.
    :raises OSError: it can't be started.
    """

    def __init__(
        self,
        worker: Worker,
        command: tuple[str, ...],
        modules: Sequence[str],
        environment: Mapping[str, str],
        on_end: Callable[[ForkServer], object],
    ) -> None:
        self.command = command
        self.ready = False
        self.children: dict[int, WarmChild] = {}  # by the number of the request
        self._on_end = on_end
        self._last_id = 0
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control = ours
        try:
            self._process = worker.spawn(helper_argv(command, modules), env=environment, stdin=theirs.fileno())
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._closed = False
        self._started_at = time.monotonic()
        self._asked_at = 0.0  # monotonic; 0: it owes no answer
        self._checks: Handle = worker.every(CHECK_INTERVAL, self.check)
        self._watch: Handle = worker.add_reader(ours.fileno(), self._on_replies)

    def run(self, child: WarmChild, message: Callable[[int], bytes]) -> bool:
        """Send a request; False where it can't be sent.

        :param message: makes the request from its number.
        """
        self._last_id += 1
        try:
            stdin, stdout, stderr = child.descriptors
            if not send_run(self._control, message(self._last_id), (stdin, stdout, stderr)):
                return False
        except (OSError, ValueError):
            return False
        self.children[self._last_id] = child
        return True

    # --- whether it is well

    def check(self) -> bool:
        """Check that it is neither stopped nor hangs; else end it, so that it is replaced. True where it is well."""
        if self._closed:
            return False
        fault = self._fault(time.monotonic())
        if fault:
            log.error("the warm interpreter %s %s", " ".join(self.command), fault)
            self.close()
            self._on_end(self)
        return not fault

    def _fault(self, now: float) -> str:
        if self._is_stopped():
            return "has been stopped by a signal"
        if not self.ready:
            return f"is not ready after {START_TIMEOUT:g} s" if now - self._started_at > START_TIMEOUT else ""
        if self._asked_at:
            return f"has not answered for {ANSWER_TIMEOUT:g} s" if now - self._asked_at > ANSWER_TIMEOUT else ""
        if self.children:
            self._asked_at = now
            send_ping(self._control)
        return ""

    def _is_stopped(self) -> bool:
        try:
            return os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return False

    # --- replies

    def _on_replies(self) -> None:
        if self._read_replies():
            self.close()
            self._on_end(self)

    def _read_replies(self) -> bool:
        """Handle its replies so far; True where there will be no more."""
        try:
            replies, ended = read_replies(self._control)
            for reply in replies:
                self._handle(reply)
        except (ValueError, KeyError) as error:
            log.error("warm %s: %s", " ".join(self.command), error)
            return True
        return ended

    def _handle(self, reply: Reply) -> None:
        if isinstance(reply, Ready):
            self.ready = reply.version == VERSION
        elif isinstance(reply, Pong):
            self._asked_at = 0.0
        elif isinstance(reply, Started):
            self.children[reply.id].started(reply.pid)
        elif isinstance(reply, Exited):
            child = self.children.pop(reply.id)
            if child.pid:
                child.ended(reply.returncode, reply.user_time + reply.system_time)
            else:
                child.not_started()  # it ended before it ran
        elif reply.id in self.children:
            self.children.pop(reply.id).not_started()
        else:
            log.error("warm %s: %s", " ".join(self.command), reply.message)

    # --- its end

    def wait_for_children(self, seconds: float) -> None:
        """Block, without an event loop, until every child has ended or the time is over."""
        deadline = time.monotonic() + seconds
        while self.children and (left := deadline - time.monotonic()) > 0:
            self._control.settimeout(left)
            try:
                if not self._control.recv(1, socket.MSG_PEEK):
                    return
            except TimeoutError:
                return
            self._control.settimeout(None)
            self._on_replies()

    def close(self) -> None:
        """End it. Its scripts end with it: it kills them, or they are killed here if it is gone already."""
        if self._closed:
            return
        self._closed = True
        self._watch.cancel()
        self._checks.cancel()
        self._process.kill()
        try:
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)  # the worker reaps it
        except ChildProcessError:
            pass  # it has been reaped already
        # Read what is left: a script that has said that it runs does run, one that can't say so will not (`helper`). So
        # no script runs twice.
        self._control.shutdown(socket.SHUT_RD)
        while not self._read_replies():
            pass
        self._control.close()
        children, self.children = self.children, {}
        for child in children.values():
            if child.pid:
                child.ended(exit_status_of(child), None)
            else:
                child.not_started()
