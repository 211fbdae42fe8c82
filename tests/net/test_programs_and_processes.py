"""Programs, their process groups, and what they leave behind: real ones."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from poolsrv.core import processes, procfs
from poolsrv.core.event_loop import EventLoop
from poolsrv.core.processes import describe_exit, signal_group
from poolsrv.net.programs import Child, Reaper, start_program
from tests.helpers.server import TIMEOUT, children_of, is_alive, process_state, wait_until

# Each line is written when it is so; then it waits for its end.
DEAF = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(3600)"
IN_GROUP = (
    "import os, signal, time\n"
    "pid = os.fork()\n"
    "if not pid: signal.signal(15, signal.SIG_IGN)\n"
    "print(os.getpid(), flush=True)\n"
    "time.sleep(3600)\n"
)


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    loop = EventLoop()
    yield loop
    loop.close()


def run_until(loop: EventLoop, condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        loop.turn(0.05)


class Program:
    """A Python program that writes to a pipe."""

    def __init__(self, source: str, **options: object) -> None:
        self.reader, writer = os.pipe()
        arguments: dict[str, object] = {"env": None, "cwd": None, "descriptors": (None, writer, None), **options}
        self.pid = start_program([sys.executable, "-c", source], **arguments)  # type: ignore[arg-type]
        os.close(writer)
        self._file = os.fdopen(self.reader)

    def line(self) -> str:
        return self._file.readline().rstrip("\n")

    def output(self) -> str:
        with self._file:
            return self._file.read()

    def close(self) -> None:
        self._file.close()


def quiet_program(source: str) -> int:
    """A Python program that writes nothing; its pid."""
    return start_program([sys.executable, "-c", source], env=None, cwd=None, descriptors=(None, None, None))


def wait_for(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize(
    ("returncode", "words"),
    [
        (0, "exited 0"),
        (255, "exited 255"),
        (-11, "killed by SIGSEGV"),
        (-9, "killed by SIGKILL"),
        (-37, "killed by signal 37"),
    ],
)
def test_how_a_process_ended_in_words(returncode: int, words: str) -> None:
    assert describe_exit(returncode) == words


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
    """Python ignores SIGPIPE: a program that inherited that would write on into a pipe that nobody reads."""
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
    child.terminate()  # harmless: its number may be somebody else's by now
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


def in_a_child(function: Callable[[], None]) -> None:
    """Run it in a forked process, which becomes a subreaper: that can't be undone."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            processes.become_subreaper()
            function()
            code = 0
        finally:
            os._exit(code)
    assert wait_for(pid) == 0


def test_orphans_become_the_subreapers_children_and_can_all_be_killed() -> None:
    def check() -> None:
        program = Program(
            "import os, time\n"
            "if os.fork() == 0:\n"
            "    os.setsid()\n"
            "    if os.fork() == 0:\n"
            "        print(os.getpid(), flush=True)\n"
            "        time.sleep(3600)\n"
            "    os._exit(0)\n"
        )
        orphan = int(program.line())
        spared = subprocess.Popen(["sleep", "3600"])
        assert wait_for(program.pid) == 0
        wait_until(lambda: orphan in procfs.children_of_this_process(), "an adopted child")
        assert {orphan, spared.pid} <= procfs.children_of_this_process()
        assert orphan in processes.kill_children({spared.pid})
        assert wait_for(orphan) == -signal.SIGKILL
        while (dead := os.waitpid(-1, os.WNOHANG)[0]) != 0:
            assert dead != spared.pid
        assert processes.kill_children({spared.pid}) == set()
        assert processes.kill_children() == {spared.pid}
        assert spared.wait() == -signal.SIGKILL

    in_a_child(check)


LEAVES = {
    "in the group": "if os.fork() == 0:\n    os.read(0, 1)\n    os._exit(0)\n",
    "in a session of its own": "if os.fork() == 0:\n    os.setsid()\n    time.sleep(0.1)\n    os._exit(0)\n",
    "a daemon": "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(0.1)\n"
    "    os._exit(0)\n",
    "of a program that goes on": "if os.fork() == 0:\n    os.setsid()\n    os.fork()\n    os._exit(0)\n"
    "os.wait()\nif len(sys.argv) == 1:\n    time.sleep(3600)\n",
}


@pytest.mark.parametrize("source", LEAVES.values(), ids=LEAVES)
@pytest.mark.parametrize("threads", [1, 2])
def test_what_programs_leave_behind_is_reaped(source: str, threads: int) -> None:
    """And no child of a plugin is, in whatever group or session it was; nor is it marked."""

    def check() -> None:
        over = threading.Event()
        if threads == 2:
            threading.Thread(target=over.wait).start()
        loop = EventLoop()
        reaper = Reaper(loop)
        own = [subprocess.Popen(["true"]), subprocess.Popen(["cat"], process_group=0, stdin=subprocess.PIPE)]
        own.append(subprocess.Popen(["false"], process_group=own[1].pid))  # a pipeline
        assert own[1].stdin is not None
        own[1].stdin.close()
        program = Program(f"import os, sys, time\nprint(flush=True)\ntime.sleep(0.1)\n{source}")
        reaper.watch(Child(program.pid, "program", loop), lambda _: None)
        own.append(subprocess.Popen(["true"], start_new_session=True))
        program.line()
        spared = {child.pid for child in own}
        after = loop.now + 0.5
        run_until(loop, lambda: loop.now > after and procfs.children_of_this_process() - spared <= {program.pid})
        run_until(loop, lambda: all(process_state(pid) == "Z" for pid in spared))
        signal_group(program.pid, signal.SIGKILL)
        after = loop.now + 1.0
        run_until(loop, lambda: loop.now > after and not reaper.running)
        over.set()
        assert [child.wait() for child in own] == [0, 0, 1, 0]
        assert resource.getrlimit(10) == (resource.RLIM_INFINITY, resource.RLIM_INFINITY)

    in_a_child(check)


def test_orphans_of_a_plugins_own_child(loop: EventLoop) -> None:
    """Where the plugin has said so they are reaped, and the child is not."""

    def check() -> None:
        reaper = Reaper(loop)
        source = "import os\ninput()\nif os.fork() == 0:\n    os.setsid()\n    os.fork()\n"
        helper = subprocess.Popen([sys.executable, "-c", source], stdin=subprocess.PIPE, start_new_session=True)
        reaper.orphans.look_behind(helper.pid)
        assert helper.stdin is not None
        with helper.stdin as stdin:
            stdin.write(b"\n")
        run_until(loop, lambda: process_state(helper.pid) == "Z")
        run_until(loop, lambda: procfs.children_of_this_process() == {helper.pid})
        after = loop.now + 0.5
        run_until(loop, lambda: loop.now > after)
        assert helper.wait() == 0

    in_a_child(check)


def test_a_stopped_child_goes_on_when_its_parent_dies() -> None:
    reader, writer = os.pipe()
    parent = os.fork()
    if parent == 0:
        child = os.fork()
        if child == 0:
            processes.signal_when_parent_dies(signal.SIGCONT)
            os.write(writer, f"{os.getpid()}\n".encode())
            os.kill(os.getpid(), signal.SIGSTOP)
            os.write(writer, b"goes on\n")
            os._exit(0)
        os.waitpid(child, os.WUNTRACED)
        os._exit(0)
    os.close(writer)
    assert wait_for(parent) == 0
    with os.fdopen(reader) as file:
        assert file.read().splitlines()[1:] == ["goes on"]
