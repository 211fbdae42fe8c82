"""How processes end, whose child an orphan becomes, and what the end of a parent does."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from poolsrv.core import processes, procfs
from poolsrv.core.processes import describe_exit
from tests.helpers.programs import Program, in_a_subreaper, wait_for
from tests.helpers.server import wait_until


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

    in_a_subreaper(check)


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
