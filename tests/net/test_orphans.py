"""What programs leave behind is reaped, and no child of a plugin is."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import threading

import pytest

from poolsrv.core import procfs
from poolsrv.core.event_loop import EventLoop
from poolsrv.core.processes import signal_group
from poolsrv.net import orphans
from poolsrv.net.programs import Child, Reaper
from tests.helpers.programs import Program, in_a_subreaper, run_until
from tests.helpers.server import process_state

SWEEP_INTERVAL = 0.02  # seconds; shorter than that of a worker, so that many sweeps can be waited for


@pytest.fixture(autouse=True)
def swept_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orphans, "SWEEP_INTERVAL", SWEEP_INTERVAL)


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
        after = loop.now + 10 * SWEEP_INTERVAL
        run_until(loop, lambda: loop.now > after and procfs.children_of_this_process() - spared <= {program.pid})
        run_until(loop, lambda: all(process_state(pid) == "Z" for pid in spared))
        signal_group(program.pid, signal.SIGKILL)
        after = loop.now + 10 * SWEEP_INTERVAL
        run_until(loop, lambda: loop.now > after and not reaper.running)
        over.set()
        assert [child.wait() for child in own] == [0, 0, 1, 0]
        assert resource.getrlimit(10) == (resource.RLIM_INFINITY, resource.RLIM_INFINITY)

    in_a_subreaper(check)


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
        after = loop.now + 10 * SWEEP_INTERVAL
        run_until(loop, lambda: loop.now > after)
        assert helper.wait() == 0

    in_a_subreaper(check)
