"""Programs of their own process group: how they are started, ended and reaped."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from poolsrv.core.event_loop import EventLoop
from poolsrv.net.programs import PIPE, Child, Reaper, start_program
from tests.helpers.programs import Program, quiet_program, run_until, wait_for
from tests.helpers.server import children_of, is_alive, process_state, wait_until

# Each line is written when it is so; then it waits for its end.
DEAF = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(3600)"
IN_GROUP = (
    "import os, signal, time\n"
    "pid = os.fork()\n"
    "if not pid: signal.signal(15, signal.SIG_IGN)\n"
    "print(os.getpid(), flush=True)\n"
    "time.sleep(3600)\n"
)


# --- starting programs


def test_a_program_has_three_descriptors_and_a_process_group_of_its_own(tmp_path: Path) -> None:
    inheritable = os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(inheritable, True)  # as a C library in a plugin may leave it
    program = Program(
        "import os\n"
        "print(sorted(os.listdir('/proc/self/fd')), *(os.readlink(f'/proc/self/fd/{n}') for n in (0, 2)))\n"
        "print(os.getpgrp() == os.getpid(), os.getsid(0) == os.getpid(), dict(os.environ).keys() - {'LC_CTYPE'})\n"
    )
    try:
        # the fourth is the one with which they are listed
        assert program.line() == "['0', '1', '2', '3'] /dev/null /dev/null"
        assert program.output() == "True False {'PATH'}\n"
    finally:
        os.close(inheritable)
        wait_for(program.pid)


def test_a_program_has_default_signals_and_none_blocked() -> None:
    """Python ignores SIGPIPE: a program that inherited that would go on writing to a pipe without a reader."""
    former = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGHUP)}
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGCHLD})
    reader, writer = os.pipe()
    try:
        pid = start_program(["/bin/cat", "/proc/self/status"], env=None, cwd=None, descriptors=(None, writer, None))
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1, signal.SIGCHLD})
        for number, handler in former.items():
            signal.signal(number, handler)
        os.close(writer)
    with os.fdopen(reader) as file:
        status = dict(line.split(":\t") for line in file.read().splitlines())
    assert wait_for(pid) == 0
    internal = 0b11 << 31  # 32 and 33 are glibc's own, which its posix_spawn ignores
    assert [int(status[name], 16) & ~internal for name in ("SigBlk", "SigIgn", "SigCgt")] == [0, 0, 0]


def test_a_program_gets_its_directory_and_its_environment_and_this_process_keeps_its_own(tmp_path: Path) -> None:
    before = os.getcwd()
    program = Program("import os; print(os.getcwd(), os.environ['X'])", cwd=tmp_path, env={"X": "ä"})
    assert program.output() == f"{tmp_path.resolve()} ä\n"
    assert os.getcwd() == before
    wait_for(program.pid)


def test_a_program_without_a_slash_is_looked_for_in_the_path() -> None:
    assert wait_for(start_program(["true"], env=None, cwd=None, descriptors=(None, None, None))) == 0


@pytest.mark.parametrize(
    ("argv", "cwd", "error"),
    [
        (["/nowhere/at/all"], None, FileNotFoundError),
        (["no-such-program-anywhere"], None, FileNotFoundError),
        (["/etc/passwd"], None, PermissionError),
        (["/bin/true"], "/nowhere/at/all", FileNotFoundError),
    ],
)
def test_what_can_not_be_started_is_told_at_once(argv: list[str], cwd: str | None, error: type[OSError]) -> None:
    before = os.getcwd()
    with pytest.raises(error):
        start_program(argv, env=None, cwd=cwd, descriptors=(None, None, None))
    assert os.getcwd() == before
    assert children_of(os.getpid()) == []


# --- ending and reaping them


def test_a_program_is_reaped_when_it_has_ended(loop: EventLoop) -> None:
    reaper = Reaper(loop)
    ended: list[Child] = []
    child = Child(quiet_program("import sys; sys.exit(7)"), "program", loop)
    assert repr(child) == f"<program {child.pid}, running>"
    reaper.watch(child, ended.append)
    run_until(loop, lambda: ended)
    assert ended == [child]
    assert child.returncode == 7
    assert child.rusage is not None
    assert child.rusage.ru_utime + child.rusage.ru_stime > 0
    assert repr(child) == f"<program {child.pid}, exited 7>"
    assert reaper.running == {}
    child.terminate()  # harmless: its number may be another process's by now
    child.kill()


def test_reaping_takes_no_exit_status_from_a_plugins_subprocess(loop: EventLoop) -> None:
    own = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    wait_until(lambda: process_state(own.pid) == "Z", "its end")
    reaper = Reaper(loop)
    ended: list[Child] = []
    reaper.watch(Child(quiet_program(""), "program", loop), ended.append)
    run_until(loop, lambda: ended)
    assert own.wait() == 3


def test_a_status_that_somebody_else_has_waited_for_is_told_as_lost(
    loop: EventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    reaper = Reaper(loop)
    ended: list[Child] = []
    child = Child(quiet_program(""), "program", loop)
    reaper.watch(child, ended.append)
    os.waitpid(child.pid, 0)
    run_until(loop, lambda: ended)
    assert child.returncode == 255
    assert "waited for by somebody else" in caplog.text


def test_terminate_sends_term_then_kill_to_the_whole_group(loop: EventLoop) -> None:
    """The program dies of TERM; the other one in its group ignores it, and gets KILL at once."""
    reaper = Reaper(loop)
    ended: list[Child] = []
    program = Program(IN_GROUP)
    pids = [int(program.line()), int(program.line())]
    child = Child(program.pid, "program", loop)
    reaper.watch(child, ended.append)
    child.terminate(grace=1000.0)
    child.terminate(grace=0.0)  # harmless
    run_until(loop, lambda: ended)
    assert child.returncode == -signal.SIGTERM
    wait_until(lambda: not any(map(is_alive, pids)), "the whole group")
    program.close()


def test_terminate_kills_after_the_grace(loop: EventLoop) -> None:
    reaper = Reaper(loop)
    ended: list[Child] = []
    program = Program(DEAF)
    assert program.line() == "deaf"
    child = Child(program.pid, "program", loop)
    reaper.watch(child, ended.append)
    child.terminate(grace=0.05)
    run_until(loop, lambda: ended)
    assert child.returncode == -signal.SIGKILL
    program.close()


def test_without_a_descriptor_for_the_pidfd_nothing_is_left_half_done(loop: EventLoop) -> None:
    reaper = Reaper(loop)
    pid = quiet_program("")
    assert wait_for(pid) == 0
    with pytest.raises(ProcessLookupError):  # the other way to fail
        reaper.watch(Child(pid, "program", loop), lambda _: None)
    assert reaper.running == {}


# --- those whose output is a pipe


class Spawned:
    """A shell script with a pipe for its input and one for its output, which is read."""

    def __init__(self, loop: EventLoop, script: str) -> None:
        self.loop = loop
        self.events: list[str] = []
        self.reaper = Reaper(loop)
        self.child = self.reaper.spawn(
            ["/bin/sh", "-c", script],
            env=None,
            cwd=None,
            sources=(PIPE, PIPE, None),
            limits=None,
            sandbox=None,
            owner=self,
            on_exit=lambda child: self.events.append(f"exit {child.returncode}"),
        )
        assert self.child.stdout is not None
        self.child.stdout.on_readable = lambda stdout: self.events.append(stdout.recv().decode() or "eof")

    def until(self, *events: str) -> None:
        run_until(self.loop, lambda: set(events) <= set(self.events))

    def close(self) -> None:
        assert self.child.stdin is not None
        self.child.stdin.abort()
        self.loop.turn(0)

    def _stream_ended(self, stream: object) -> None: ...

    def _fault(self, what: str, error: BaseException) -> None:
        raise error

    def _peer_has_finished(self) -> bool:
        return False

    def _is_open(self) -> bool:
        return True


def without_pidfd(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_descriptors(pid: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", no_descriptors)


def test_a_program_that_ends_with_its_output_needs_no_pidfd(loop: EventLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads the output knows how the program has ended when the end comes."""
    without_pidfd(monkeypatch)
    spawned = Spawned(loop, "echo x; exit 7")
    wait_until(lambda: process_state(spawned.child.pid) == "Z", "its end")
    spawned.until("eof")
    assert spawned.events == ["x\n", "exit 7", "eof"]
    spawned.close()


@pytest.mark.parametrize("descriptors", [True, False])
def test_a_program_that_outlives_its_output_is_reaped_when_it_ends(
    loop: EventLoop, monkeypatch: pytest.MonkeyPatch, descriptors: bool
) -> None:
    """Also where there is no descriptor for its pidfd."""
    if not descriptors:
        without_pidfd(monkeypatch)
    spawned = Spawned(loop, "exec >&-; read x; exit 3")
    spawned.until("eof")
    assert spawned.child.returncode is None
    assert spawned.child.stdin is not None
    spawned.child.stdin.send(b"go\n")
    spawned.until("exit 3")
    assert spawned.reaper.running == {}
    spawned.close()


def test_a_program_whose_output_another_process_holds_is_reaped_when_it_ends(loop: EventLoop) -> None:
    spawned = Spawned(loop, "sleep 1000 & echo $!; exit 3")
    run_until(loop, lambda: len(spawned.events) >= 2)
    (number,) = {*spawned.events} - {"exit 3"}  # in any order: it may have ended before its output was looked at
    os.kill(int(number), signal.SIGKILL)
    spawned.until("eof")
    spawned.close()


def test_the_end_of_its_output_does_not_shorten_the_grace(loop: EventLoop) -> None:
    spawned = Spawned(loop, "trap '' TERM; echo deaf; read x; exec >&-; read x")
    spawned.until("deaf\n")
    spawned.child.terminate(grace=1000.0)
    assert spawned.child.stdin is not None
    spawned.child.stdin.send(b"go\n")
    spawned.until("eof")
    for _ in range(3):
        loop.turn(0)
    assert spawned.child.returncode is None
    spawned.child.stdin.send(b"go\n")
    spawned.until("exit 0")
    spawned.close()
