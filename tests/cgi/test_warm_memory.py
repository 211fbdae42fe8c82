"""What a helper does before its first fork, so that its children have less to do, leaves no trace in them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from poolsrv_cgi.warm.messages import HELPER, Ready, helper_environment

from .test_warm import LOOK_AROUND, Helper, plainly, write

MOVE = """
import sys
memory = type(sys)("memory")
exec(open(sys.argv[1], "rb").read(), memory.__dict__)
moved = memory.put_code_into_huge_pages()
import ast, json
assert json.loads(json.dumps(ast.dump(ast.parse("f(1 / 3)")))) == ast.dump(ast.parse("f(1 / 3)"))
maps = open("/proc/self/smaps").read().split("VmFlags:")
huge = [text for text in maps if " r-xp " in text and "AnonHugePages:         0 kB" not in text]
print(moved, bool(huge), any(" rwxp " in text for text in maps), memory.put_code_into_huge_pages())
"""


@pytest.fixture(scope="module")
def used() -> Iterator[Helper]:
    """A helper that has forked and reaped."""
    helper = Helper()
    assert helper.reply() == Ready(4)
    assert helper.run([os.devnull]).returncode == 0
    yield helper
    assert helper.close() == 0


def test_code_in_huge_pages() -> None:
    """madvise(2), mremap(2): what was moved runs as before, and is nowhere writable. Where there are no huge pages
    nothing changes. Twice is not done."""
    result = subprocess.run(
        [sys.executable, "-c", MOVE, HELPER.with_name("memory.py")], capture_output=True, check=True
    )
    assert result.stdout.decode() in ("True True False False\n", "False False False False\n")


def test_a_rehearsal_leaves_nothing_behind(used: Helper, tmp_path: Path) -> None:
    """RFC 3875 section 7.2: modules and their order, variables, paths, signals and descriptors are a new interpreter's;
    and no module is there because the helper has needed it."""
    argv = [
        write(tmp_path, "import sys\nprint(list(sys.modules)[-5:], '__main__' in list(sys.modules)[:5])" + LOOK_AROUND)
    ]
    outcome, expected = used.run(argv, cwd="/"), plainly(argv, cwd="/")
    assert outcome.stdout.splitlines() == expected.stdout.splitlines()
    assert outcome == expected


def test_handlers_of_modules_wait_for_the_script(tmp_path: Path) -> None:
    """atexit, and threads: what a module of the helper has registered is done at the end of each script, not before."""
    write(tmp_path, "import atexit, threading\natexit.register(print, 'at exit')", "registers.py")
    helper = Helper(modules=["registers"], path=str(tmp_path))
    try:
        assert helper.reply() == Ready(4)
        script = write(tmp_path, "import threading\nthreading.Thread(target=print, args=('thread',)).start()")
        for _ in range(2):
            assert helper.run([script]).stdout == b"thread\nat exit\n"
    finally:
        assert helper.close() == 0


@pytest.mark.parametrize("size", [7000, 8192, 100000])
def test_long_requests(used: Helper, tmp_path: Path, size: int) -> None:
    """RFC 3875 section 4.1.7: a long query string arrives whole."""
    script = write(tmp_path, "import os\nprint(len(os.environ['QUERY_STRING']))")
    assert used.run([script], environment={"QUERY_STRING": "x" * size}).stdout == b"%d\n" % size


def test_functions_are_bound_at_the_start(used: Helper) -> None:
    """ld.so(8): LD_BIND_NOW is for the helper; what the config says of it counts more."""
    assert helper_environment({"A": "b"}) == {"LD_BIND_NOW": "1", "A": "b"}
    assert helper_environment({"LD_BIND_NOW": ""}) == {"LD_BIND_NOW": ""}
