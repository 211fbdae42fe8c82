"""Child processes: start a program, reap it, say how it ended, and leave nothing behind.

Theory. A program is started with ``posix_spawn``, which in glibc shares the memory of its parent until the exec
(``CLONE_VFORK``): the cost does not grow with the server's size, as that of ``fork`` does. It gets a process group of
its own, so that it and what it starts in that group can be ended together and Ctrl-C in a terminal does not reach
it; default signal actions and an empty signal mask, since Python ignores SIGPIPE; and only the three descriptors that
it is meant to have.

A process may wait only for children that it started itself: ``waitpid(-1)`` would steal the exit status of a plugin's
``subprocess``. So each program is reaped with ``wait4`` by its number. Most programs end when their output does, and
soon: a program whose output is a pipe is looked at when that ends. Any other, and one that outlives its output or a
moment, has a pidfd in the event loop.

Nothing is left behind: dispatcher and workers are subreapers (prctl(2), PR_SET_CHILD_SUBREAPER). What outlives the
program that started it becomes the worker's child; what outlives its worker becomes the dispatcher's, which kills it.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
import signal
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal

from ..core.event_loop import READ, EventLoop, Timer
from ..core.native import mypyc_attr
from ..core.processes import close_on_exec_from, describe_exit, group_of, signal_group
from ..core.procfs import children_of_this_process
from ..core.sandbox import Sandbox
from .descriptor import Owner
from .orphans import Orphans, start_marked
from .stream import Pipe, Stream

log = logging.getLogger("poolsrv.children")

PIPE: Final = -1  # in the place of a descriptor: a pipe, of which this side is a Stream
DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"
PROGRAM_GRACE: Final = 2.0  # seconds from TERM to KILL for programs that are left when their worker ends

_RESET_SIGNALS = tuple(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})

_DUP2: Final = os.POSIX_SPAWN_DUP2
_NULL: Final = tuple((os.POSIX_SPAWN_OPEN, target, os.devnull, os.O_RDWR, 0) for target in range(3))

UNWATCHED_TIME = 0.05  # seconds for which a program with a pipe for its output has no pidfd
_BELOW_LIMIT = {errno.ENOMEM, errno.EBADF, errno.EAGAIN}  # see _start_limited


@mypyc_attr(allow_interpreted_subclasses=True)
class Child:
    """A program that a plugin started, or (in the dispatcher) a worker of the pool.

    :ivar pid: its process id, and for a program that of its process group.
    :ivar role: ``"program"`` or ``"worker"``.
    :ivar stdin, stdout, stderr: this side of each ``PIPE``, as a ``Stream``; None where there is none.
    :ivar returncode: None while it runs; then its exit status, or the negative number of the signal that ended it.
    :ivar rusage: once it has been reaped, what it used (getrusage(2)); ``ru_maxrss`` is in KiB, and because of
        ``posix_spawn`` it is never below the peak of the worker that started it.
    :ivar name: for the log: at first what was started, ``argv[0]``; a plugin may say better.
    :ivar queued: seconds that a plugin has made it wait for its turn; for the log.
    :ivar outlives: False at first; a plugin that sets it lets the program run on when its connection is reset, aborted
        or fails.
    """

    __slots__ = (
        "_killer", "_loop", "name", "outlives", "pid", "queued", "returncode", "role", "rusage", "stderr", "stdin",
        "stdout",
    )  # fmt: skip

    def __init__(
        self, pid: int, role: Literal["program", "worker"], loop: EventLoop | None = None, name: str = ""
    ) -> None:
        self.pid = pid
        self.role = role
        self.name = name
        self.queued = 0.0
        self.stdin: Stream | None = None
        self.stdout: Stream | None = None
        self.stderr: Stream | None = None
        self.returncode: int | None = None
        self.rusage: resource.struct_rusage | None = None
        self.outlives = False
        self._loop = loop
        self._killer: Timer | None = None

    def __repr__(self) -> str:
        ended = "running" if self.returncode is None else describe_exit(self.returncode)
        return f"<{self.role} {self.pid}, {ended}>"

    @property
    def cpu(self) -> float | None:
        """Seconds of CPU time that it used; None until it has been reaped, or where that is not known."""
        return self.rusage.ru_utime + self.rusage.ru_stime if self.rusage is not None else None

    @property
    def peak_memory(self) -> int | None:
        """Bytes of memory that it used at most; None until it has been reaped, or where that is not known.

        A program shares the memory of its worker until its exec, so it is never reported with less than the worker's
        own peak (wait4(2)).
        """
        if self.rusage is None or self.rusage.ru_maxrss <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss:
            return None
        return self.rusage.ru_maxrss * 1024

    def terminate(self, grace: float = 5.0) -> None:
        """End the program's whole process group: TERM now, KILL once the program itself has ended or ``grace``
        seconds have passed. Where it has ended already, what it has left behind in its group is ended. Harmless when
        it has been called before.
        """
        if self._killer is not None or self._loop is None or not self._has_group():
            return
        self._killer = self._loop.call_later(grace, self.kill)
        signal_group(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End the program's whole process group at once."""
        if self._has_group():
            signal_group(self.pid, signal.SIGKILL)

    def _has_group(self) -> bool:
        """Whether the group's number still is that of this program's group. Once the program has been reaped, it is so
        while a process is left in it, which is an adopted child of this process by then."""
        if self.returncode is None:
            return True
        try:
            return self.role == "program" and any(group_of(pid) == self.pid for pid in children_of_this_process())
        except OSError:  # no descriptors are left: it can't be told, and another's group must not be ended
            return False

    def reaped(self, returncode: int, rusage: resource.struct_rusage | None) -> None:
        """Record how it ended; called by the part of the engine that has waited for it."""
        self.returncode = returncode
        self.rusage = rusage
        if self._killer is not None:
            self._killer.cancel()


class _OutputPipe(Pipe):
    """The standard output of a program.

    :param on_end: called once, at the latest when it is closed; at its end before anybody else is told.
    """

    __slots__ = ("_on_end",)

    def __init__(self, loop: EventLoop, fd: int, owner: Owner, on_end: Callable[[], object]) -> None:
        Pipe.__init__(self, loop, fd, owner)
        self._on_end: Callable[[], object] | None = on_end

    def _at_eof(self) -> None:
        self.eof = True
        self._tell_end()
        Pipe._at_eof(self)

    def _closed(self) -> None:
        self._tell_end()
        Pipe._closed(self)

    def _tell_end(self) -> None:
        if self._on_end is not None:
            on_end, self._on_end = self._on_end, None
            on_end()


@mypyc_attr(allow_interpreted_subclasses=True)
class Reaper:
    """Waits for the programs of one worker, and calls back when one has been reaped.

    What programs have left behind is the worker's, which must reap it too when it ends (see orphans.py).
    """

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop
        self.running: dict[int, Child] = {}
        self._unwatched: dict[int, tuple[Child, Callable[[Child], object]]] = {}  # that have no pidfd yet
        self._look_due = False
        self.orphans = Orphans(loop, children_of_this_process, self.running)

    def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None,
        cwd: str | os.PathLike[str] | None,
        sources: Sequence[Any],
        limits: Mapping[int, int] | None,
        sandbox: Sandbox | None,
        owner: Owner,
        on_exit: Callable[[Child], object],
    ) -> Child:
        """Start a program, and watch it; see ``start_program``.

        :param sources: of standard input, output and error: a descriptor, ``PIPE``, or None (the null device).
        :param owner: of this side of each ``PIPE``.
        :param on_exit: called as ``on_exit(child)`` once it has ended and been reaped.
        :raises OSError: it can't be started.
        :raises ValueError: a source is something else.
        """
        stdin, stdout, stderr = sources
        pipes: list[tuple[int, int] | None] = [None, None, None]  # the program's end of each, and this side
        started = False
        try:
            if stdin == PIPE:
                stdin, writer = os.pipe2(os.O_CLOEXEC)
                pipes[0] = stdin, writer
            if stdout == PIPE:
                reader, stdout = os.pipe2(os.O_CLOEXEC)
                pipes[1] = stdout, reader
            if stderr == PIPE:
                reader, stderr = os.pipe2(os.O_CLOEXEC)
                pipes[2] = stderr, reader
            how = {"env": env, "cwd": cwd, "limits": limits, "sandbox": sandbox}
            child = self._start(argv, (stdin, stdout, stderr), on_exit, ends_with_output=pipes[1] is not None, **how)
            started = True
        finally:
            for pipe in pipes:
                if pipe is not None:
                    os.close(pipe[0])
                    if not started:
                        os.close(pipe[1])
        for_stdin, for_stdout, for_stderr = pipes
        if for_stdin is not None:
            child.stdin = Pipe(self._loop, for_stdin[1], owner)
            child.stdin._start()  # the others are watched once a plugin wants to read them
        if for_stdout is not None:
            child.stdout = _OutputPipe(self._loop, for_stdout[1], owner, partial(self._look_at, child.pid))
        if for_stderr is not None:
            child.stderr = Pipe(self._loop, for_stderr[1], owner)
        return child

    def _start(
        self,
        argv: Sequence[str],
        descriptors: tuple[int | None, int | None, int | None],
        on_exit: Callable[[Child], object],
        ends_with_output: bool,
        **how: Any,
    ) -> Child:
        pid = start_program(argv, descriptors=descriptors, **how)
        name = argv[0]
        child = Child(pid, "program", self._loop, name if type(name) is str else os.fsdecode(name))
        (self._watch_later if ends_with_output else self._watch_or_kill)(child, on_exit)
        return child

    def kill_all(self) -> None:
        """Send KILL to every program's group."""
        for child in self.running.values():
            child.kill()

    def end_all(self, grace: float) -> None:
        """Send TERM to every program's group, and KILL after ``grace`` seconds. Turn the loop until it has reaped them.

        A program that can't be killed, since it sleeps in the kernel, is given up after one more second.
        """
        loop = self._loop
        for child in self.running.values():
            child.terminate(grace)
        # Those of connections that were aborted have been told to end before, with a longer grace.
        loop.call_later(grace, self.kill_all)
        deadline = loop.now + grace + 1.0
        while self.running and loop.now < deadline:
            loop.turn(0.2)

    def _watch_or_kill(self, child: Child, on_exit: Callable[[Child], object]) -> None:
        try:
            self.watch(child, on_exit)
        except OSError:
            signal_group(child.pid, signal.SIGKILL)
            os.waitpid(child.pid, 0)
            raise

    def _watch_later(self, child: Child, on_exit: Callable[[Child], object]) -> None:
        """Watch it unless it ends soon."""
        self.running[child.pid] = child
        self._unwatched[child.pid] = child, on_exit
        if not self._look_due:
            self._look_due = True
            self._loop.call_later(UNWATCHED_TIME, self._look_at_all)
        self.orphans.look()

    def _look_at(self, pid: int) -> None:
        """Reap a program that has no pidfd yet, or watch it from now on."""
        child, on_exit = self._unwatched.pop(pid, (None, None))
        if child is None or on_exit is None:
            return
        try:
            # What has been told to end has a time of grace, and its group is killed only once it is known to be dead.
            if child._killer is not None or not self._reap(child, on_exit):
                self.watch(child, on_exit)
        except ProcessLookupError:  # somebody else has waited for it
            self._reap(child, on_exit)
        except OSError:  # no descriptors: it is looked at again
            self._watch_later(child, on_exit)

    def _look_at_all(self) -> None:
        self._look_due = False
        for pid in list(self._unwatched):
            self._look_at(pid)

    def watch(self, child: Child, on_exit: Callable[[Child], object]) -> None:
        """Call ``on_exit(child)`` once the child has ended and been reaped.

        :raises OSError: no descriptor for the pidfd; the child runs on, unwatched.
        """
        pidfd = os.pidfd_open(child.pid)
        try:
            self._loop.register(pidfd, READ, lambda _: self._reap_dead(child, pidfd, on_exit))
        except OSError:
            os.close(pidfd)
            raise
        self.running[child.pid] = child
        self.orphans.look()

    def _reap_dead(self, child: Child, pidfd: int, on_exit: Callable[[Child], object]) -> None:
        if child._killer is not None:
            # Not reaped yet, so its number, which is the group's, can't have gone to a stranger.
            signal_group(child.pid, signal.SIGKILL)
        self._reap(child, on_exit, pidfd)

    def _reap(self, child: Child, on_exit: Callable[[Child], object], pidfd: int = -1) -> bool:
        """Reap it if it has ended; whether it has."""
        try:
            pid, status, rusage = os.wait4(child.pid, os.WNOHANG)
        except ChildProcessError:
            log.warning("program %d has been waited for by somebody else: its exit status is lost", child.pid)
            pid, status, rusage = child.pid, 255 << 8, None
        if pid == 0:
            return False
        if pidfd >= 0:
            self._loop.unregister(pidfd)
            self._loop.at_end_of_turn(lambda: os.close(pidfd))
        del self.running[child.pid]
        child.reaped(os.waitstatus_to_exitcode(status), rusage)
        on_exit(child)
        return True


def start_program(
    argv: Sequence[str | bytes],
    *,
    env: Mapping[str, str] | None,
    cwd: str | os.PathLike[str] | None,
    descriptors: tuple[int | None, int | None, int | None],
    limits: Mapping[int, int] | None = None,
    sandbox: Sandbox | None = None,
) -> int:
    """Start a program in a process group of its own.

    :param argv: the program, searched for in PATH where it has no slash, and its arguments.
    :param env: its whole environment; None: nothing but a PATH.
    :param cwd: its working directory, against which a relative program name counts; None: the server's.
    :param descriptors: what becomes its standard input, output and error, none of them 0, 1 or 2; None: the null
        device.
    :param limits: resource limits (``resource.RLIMIT_*`` to a number), soft and hard; see ``_start_limited``.
    :param sandbox: what it may do; None: what this process may.
    :returns: its process id.
    :raises OSError: at once, when it can't be started.
    """
    stdin, stdout, stderr = descriptors
    for descriptor in descriptors:
        if descriptor is not None and not isinstance(descriptor, int):
            raise ValueError("a program can be given a descriptor, PIPE or None, and its own connection")
    actions = (
        _NULL[0] if stdin is None else (_DUP2, stdin, 0),
        _NULL[1] if stdout is None else (_DUP2, stdout, 1),
        _NULL[2] if stderr is None else (_DUP2, stderr, 2),
    )
    name = argv[0]
    close_on_exec_from(3)
    spawn = os.posix_spawn if (b"/" in name if isinstance(name, bytes) else "/" in name) else os.posix_spawnp
    former = _enter(cwd) if cwd is not None else None
    start: Callable[[], int] = partial(
        spawn,
        name,
        argv if type(argv) is tuple else list(argv),
        {"PATH": DEFAULT_PATH} if env is None else env,
        file_actions=actions,
        setpgroup=0,
        setsigmask=(),
        setsigdef=_RESET_SIGNALS,
    )
    if sandbox is not None:
        start = partial(sandbox.start, start)
    try:
        return start_marked(start if not limits else partial(_start_limited, start, limits))
    finally:
        if former is not None:
            os.fchdir(former)
            os.close(former)


def _start_limited(start: Callable[[], int], limits: Mapping[int, int]) -> int:
    """Start a program with resource limits, without a launcher in between (a launcher halves the rate).

    ``posix_spawn`` can't set limits in the child. A soft limit that is lowered here for the moment of the start is
    inherited by the program, and its hard limit follows by prlimit(2). The soft one follows too where nothing can be
    started below it: with an address space that is too small for this process, with descriptors above the limit, which
    glibc refuses to pass on, and with as many processes as the user may have. Of CPU time this process may well have
    used more than the limit; then it is sent SIGXCPU, and ignores it, and the kernel may give the limit one more second
    until the hard one follows.
    """
    if resource.RLIMIT_CPU in limits and signal.getsignal(signal.SIGXCPU) == signal.SIG_DFL:
        signal.signal(signal.SIGXCPU, signal.SIG_IGN)
    former = []
    try:
        for number in limits:
            soft, hard = resource.getrlimit(number)
            former.append((number, (soft, hard)))
            resource.setrlimit(number, (_at_most(limits[number], hard), hard))
        pid = start()
    except (OSError, MemoryError) as error:
        for number, limit in former:
            resource.setrlimit(number, limit)
        if not isinstance(error, MemoryError) and error.errno not in _BELOW_LIMIT:
            raise
        pid = start()
    finally:
        for number, limit in former:
            resource.setrlimit(number, limit)
    for number, value in limits.items():
        try:
            hard = resource.prlimit(pid, number)[1]
            # At the soft limit of CPU time a program gets SIGXCPU, at the hard one, a second later, SIGKILL.
            extra = 1 if number == resource.RLIMIT_CPU else 0
            resource.prlimit(pid, number, (_at_most(value, hard), _at_most(value + extra, hard)))
        except ProcessLookupError:
            break  # it has ended
        except OSError as error:
            log.warning("can't limit program %d: %s", pid, error.strerror)
    return pid


def _at_most(value: int, hard: int) -> int:
    return value if hard == resource.RLIM_INFINITY else min(value, hard)


def _enter(directory: str | os.PathLike[str]) -> int:
    """Change to the directory; a descriptor of the former one. posix_spawn can't do it for the child alone."""
    former = os.open(".", os.O_PATH | os.O_DIRECTORY)
    try:
        os.chdir(directory)
    except OSError:
        os.close(former)
        raise
    return former
