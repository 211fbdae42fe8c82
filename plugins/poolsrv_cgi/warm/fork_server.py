"""One warm interpreter as the worker sees it: the process of `helper`, and its children.

Children are forked ahead of their requests, some at a time, and wait, each on a socket of its own. A request goes to
the next one, directly. A request that finds none waits here, for the moment that the helper takes to fork.

While the helper starts, requests wait for it too, as many cold starts at a time would delay its own. If it takes
longer than such a start should, requests start cold, one at a time; if it takes long, or fails, all that wait do.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from poolsrv import Handle, Worker

from .child import WarmChild
from .messages import (
    VERSION,
    Exited,
    Forked,
    NewCode,
    Pong,
    Ready,
    Reply,
    Short,
    Started,
    helper_argv,
    helper_environment,
    read_replies,
    send_code,
    send_fork,
    send_ping,
    send_run,
)
from .stuck import is_stopped, kill_child

__all__ = ["ForkServer"]

log = logging.getLogger("poolsrv.cgi")

CHECK_INTERVAL = 1.0  # seconds between two checks whether it is well
START_TIMEOUT = 60.0  # seconds that it has for its imports
ANSWER_TIMEOUT = 10.0  # seconds that it has for an answer, while it has scripts
AHEAD = 8  # children that are to wait for requests
LEAST_FORKED = 4  # children that it is asked for at a time, unless a request waits
MOST_FORKED = 64
SOON = 0.25  # seconds from its start for which all requests wait for it
PATIENCE = 2.0  # seconds from its start for which all but one of them wait


class ForkServer:
    """One process, from its start to its end.

    :param command: the interpreter, with its flags.
    :param modules: to import beforehand.
    :param on_end: called as `on_end(fork_server)` when it has ended by itself or been ended for a fault.
    :param on_settled: called once, as `on_settled()`: it is ready, or has had time enough for that, or has ended.
    :param is_awaited: whether requests may wait for it while it starts.
    :ivar process: it; its children may outlive it, so its end is seen by nothing else.
    :ivar cold: scripts that run cold while it starts.
    :ivar ready_since: monotonic; 0: it is not ready yet.
    :raises OSError: it can't be started.
    """

    def __init__(
        self,
        worker: Worker,
        command: tuple[str, ...],
        modules: Sequence[str],
        environment: Mapping[str, str],
        on_end: Callable[[ForkServer], object],
        on_settled: Callable[[], object] = lambda: None,
        *,
        is_awaited: bool = True,
    ) -> None:
        self.command = command
        self.ready_since = 0.0
        self.cold = 0
        self._is_late = False
        self.children: dict[int, WarmChild] = {}  # by the number of the request
        self._worker = worker
        self._on_end = on_end
        self._on_settled: Callable[[], object] | None = on_settled
        self._is_awaited = is_awaited
        self._last_id = 0
        self._waiting: deque[tuple[int, bytes]] = deque()  # requests, by their numbers
        self._spares: deque[tuple[int, int]] = deque()  # process id and socket of children that wait
        self._asked = 0  # children that it has been asked for
        self._given: dict[int, int] = {}  # process id of a child to the number of its request
        self._slow: dict[int, float] = {}  # process ids of those that do not begin, and since when that was seen
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control = ours
        try:
            self.process = worker.spawn(
                helper_argv(command, modules), env=helper_environment(environment), stdin=theirs.fileno()
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._closed = False
        self._started_at = time.monotonic()
        self._asked_at = 0.0  # monotonic; 0: it owes no answer
        worker.call_later(SOON, self._come_late)
        self._checks: Handle = worker.every(CHECK_INTERVAL, self._check_all)
        self._watch: Handle = worker.add_reader(ours.fileno(), self._on_replies)

    def run(self, child: WarmChild, message: Callable[[int], bytes]) -> bool:
        """Send a request; False where it can't be sent.

        :param message: makes the request from its number.
        """
        self._last_id += 1
        try:
            encoded = message(self._last_id)
            self.children[self._last_id] = child
            if not self._give(self._last_id, encoded):
                self._waiting.append((self._last_id, encoded))
                child.withdraw = partial(self._withdraw, self._last_id)
        except (OSError, ValueError):
            self.children.pop(self._last_id, None)
            return False
        self._ask()
        return True

    def _give(self, number: int, message: bytes) -> bool:
        """Give a request to a child that waits; False where there is none.

        :raises OSError: it can't be sent.
        """
        descriptors = self.children[number].descriptors
        assert descriptors is not None
        while self._spares:
            pid, spare = self._spares.popleft()
            if send_run(spare, message, descriptors):
                self._given[pid] = number
                return True
        return False

    def _ask(self) -> None:
        """Have children forked: for the requests that wait, and ahead."""
        if not self.ready_since:
            return
        wanted = min(AHEAD + len(self._waiting) - len(self._spares) - self._asked, MOST_FORKED)
        if (wanted >= LEAST_FORKED or (self._waiting and not self._asked)) and send_fork(self._control, wanted):
            self._asked += wanted

    def can_run(self) -> bool:
        """Whether a request is to be sent: a child waits for one, or the fork server is well and will make one."""
        if self.ready_since:
            return bool(self._spares) or self.check()
        return self._is_awaited and (not self._is_late or bool(self._waiting) or self.cold > 0) and self.check()

    # --- requests that wait

    def cold_ended(self) -> None:
        """One of the scripts that run cold has ended."""
        self.cold -= 1
        self._start_next_cold()

    def _come_late(self) -> None:
        self._is_late = True
        self._start_next_cold()

    def _start_next_cold(self) -> None:
        """Start the request cold that has waited longest, if the helper takes so long and no other runs cold."""
        if self._is_late and not self.ready_since and self._waiting and not self.cold:
            self._start_cold(self._waiting.popleft()[0])

    def give_up_waiting(self) -> None:
        """Start all that wait cold."""
        waiting, self._waiting = self._waiting, deque()
        for number, _ in waiting:
            self._start_cold(number)

    def _start_cold(self, number: int) -> None:
        self.children.pop(number).not_started()

    def _withdraw(self, number: int) -> None:
        """The client of a request is gone, or has got another answer: if the request still waits, it is over."""
        for request in self._waiting:
            if request[0] == number:
                self._waiting.remove(request)
                self._start_cold(number)  # not even that, as it was to end
                return

    def _settled(self) -> None:
        settled, self._on_settled = self._on_settled, None
        if settled is not None:
            settled()

    # --- whether it is well

    def _check_all(self) -> None:
        if not self.check():
            return
        now = time.monotonic()
        if self.ready_since:
            self._check_starts(now)
        elif now - self._started_at >= PATIENCE:
            self._is_awaited = False
            self.give_up_waiting()
            self._settled()

    def _check_starts(self, now: float) -> None:
        """Kill the children that have a request and do not begin: one that is stopped, or takes too long. Their
        requests start cold."""
        waiting = (pid for pid, number in self._given.items() if number in self.children and not self._begun(number))
        self._slow = {pid: self._slow.get(pid, now) for pid in waiting}
        stopped = [pid for pid, since in self._slow.items() if since < now and is_stopped(pid)]
        if stopped:
            log.warning(
                "warm %s: children have been stopped by a signal before they had a request", " ".join(self.command)
            )
            self._kill_stopped()
        for pid, since in self._slow.items():
            if now - since > ANSWER_TIMEOUT:
                kill_child(pid, self._parents())

    def _begun(self, number: int) -> bool:
        return self.children[number].pid != 0

    def _kill_stopped(self) -> None:
        """Kill what is stopped of the children that have not begun."""
        given = [pid for pid, number in self._given.items() if number in self.children and not self._begun(number)]
        for pid in (*given, *(pid for pid, _ in self._spares)):
            if is_stopped(pid):
                kill_child(pid, self._parents())

    def _parents(self) -> tuple[int, int]:
        """Whose children they can be: the worker adopts them at the end of their fork server."""
        return self.process.pid, os.getpid()

    def check(self) -> bool:
        """Check that it is neither stopped nor hangs; else end it, so that it is replaced. True where it is well."""
        if self._closed:
            return False
        fault = self._fault(time.monotonic())
        if fault:
            log.error("the warm interpreter %s %s", " ".join(self.command), fault)
            self.end()
        return not fault

    def _fault(self, now: float) -> str:
        if self._is_stopped():
            return "has been stopped by a signal"
        if not self.ready_since:
            return f"is not ready after {START_TIMEOUT:g} s" if now - self._started_at > START_TIMEOUT else ""
        if self._asked_at:
            return f"has not answered for {ANSWER_TIMEOUT:g} s" if now - self._asked_at > ANSWER_TIMEOUT else ""
        if self.children:
            self._asked_at = now
            send_ping(self._control)
        return ""

    def _is_stopped(self) -> bool:
        try:
            return os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return False

    # --- replies

    def _on_replies(self) -> None:
        ended, fault = self._read_replies()
        if fault:
            log.error("warm %s: %s", " ".join(self.command), fault)
        if ended or fault:
            self.end()

    def _read_replies(self) -> tuple[bool, str]:
        """Handle its replies so far; whether there will be no more, and what is wrong with one of them ("": nothing).

        Each of the others counts all the same: a script that has said that it runs must not be started again.
        """
        replies, ended, fault = read_replies(self._control)
        for reply in replies:
            try:
                self._handle(reply)
            except KeyError:
                fault = fault or f"a message about a request that it does not have: {reply}"
        return ended, fault

    def _handle(self, reply: Reply) -> None:
        if isinstance(reply, Started):
            self.children[reply.id].started(reply.pid)
        elif isinstance(reply, Exited):
            self._exited(reply)
        elif isinstance(reply, Forked):
            self._asked -= len(reply.children)
            self._spares.extend(reply.children)
            self._serve_waiting()
        elif isinstance(reply, Pong):
            self._asked_at = 0.0
        elif isinstance(reply, NewCode):
            send_code(self._control, reply.path)
        elif isinstance(reply, Short):
            self._fall_short(reply)
        elif isinstance(reply, Ready):
            self.ready_since = time.monotonic() if reply.version == VERSION else 0.0
            self._ask()
            self._settled()
        elif reply.id in self.children:
            self._start_cold(reply.id)
        else:
            log.error("warm %s: %s", " ".join(self.command), reply.message)

    def _exited(self, reply: Exited) -> None:
        number = self._given.pop(reply.pid, 0)
        if not number:  # it was still waiting for a request
            self._forget_spare(reply.pid)
            return
        child = self.children.pop(number, None)
        if child is None:
            return  # it could not be started
        if child.pid:
            child.ended(reply.returncode, reply.user_time + reply.system_time)
        else:
            child.not_started()  # it ended before it ran

    def _forget_spare(self, pid: int) -> None:
        for spare in self._spares:
            if spare[0] == pid:
                self._spares.remove(spare)
                os.close(spare[1])
                self._ask()
                return

    def _serve_waiting(self) -> None:
        """Give the requests that wait to the children that there are now."""
        while self._waiting and self._spares:
            number, message = self._waiting[0]
            try:
                if not self._give(number, message):
                    break
            except OSError:
                self._start_cold(number)
            self._waiting.popleft()
        self._ask()

    def _fall_short(self, reply: Short) -> None:
        """Start cold what waits: there are no children for it."""
        log.warning("warm %s: can't fork: %s", " ".join(self.command), reply.message)
        self._asked -= reply.count
        self.give_up_waiting()

    # --- its end

    def end(self) -> None:
        """End it for a fault, or because it has ended; it is to be replaced."""
        self.close()
        self._on_end(self)
        self._settled()

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

    def close(self, *, with_children: bool = False) -> None:
        """End it. Scripts that have not begun are started cold.

        :param with_children: those that run are killed; otherwise they run on, as children of this process.
        """
        if self._closed:
            return
        self._closed = True
        self._watch.cancel()
        self._checks.cancel()
        self._kill_stopped()  # the others see that the server is gone
        self.process.kill()
        if self.process.returncode is None:
            try:
                os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)  # the worker reaps it
            except ChildProcessError:
                pass  # it has been reaped already
        # Read what is left: a script that has said that it runs does run, one that can't say so will not (`helper`). So
        # no script runs twice.
        self._control.shutdown(socket.SHUT_RD)
        while not self._read_replies()[0]:
            pass
        self._control.close()
        for _, spare in self._spares:
            os.close(spare)
        self._spares.clear()
        self._waiting.clear()
        self._given.clear()
        children, self.children = self.children, {}
        for child in children.values():
            if child.pid and with_children:
                child.end_now()
            elif child.pid:
                child.adopt()
            else:
                child.not_started()
