"""The fork server with real processes: a script does there what it does in an interpreter of its own."""

from __future__ import annotations

import marshal
import os
import re
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from poolsrv_cgi.warm.messages import (
    Exited,
    Failed,
    Forked,
    NewCode,
    Pong,
    Ready,
    Reply,
    Started,
    decode_replies,
    encode_run,
    helper_argv,
    python_command,
    read_replies,
    send_code,
    send_fork,
    send_ping,
    send_run,
)

ENVIRONMENT = {"PATH": os.defpath, "LANG": "C.UTF-8", "SCRIPT": "x", "EMPTY": "", "ODD": "a=b\udcff"}


def same(output: bytes) -> bytes:
    """Output without the addresses of objects and threads."""
    return re.sub(rb"0x[0-9a-f]{6,}|(?<=started )[0-9]{9,}", b"...", output)


class Outcome(NamedTuple):
    stdout: bytes
    stderr: bytes
    returncode: int


class Helper:
    """A helper process and its control socket, as the server would have it."""

    def __init__(self, flags: Sequence[str] = (), modules: Sequence[str] = (), path: str = "") -> None:
        self.flags = list(flags)
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                helper_argv([sys.executable, *flags], modules),
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**ENVIRONMENT, **({"PYTHONPATH": path} if path else {})},
                process_group=0,
            )
        self.ids = 0
        self.replies: list[Reply] = []

    def reply(self) -> Reply:
        """The next message; what it says of code is passed on to the helper, as the server does."""
        while True:
            while not self.replies:
                assert select.select([self.control], [], [], 60)[0], "no message within a minute"
                self.replies, gone, fault = read_replies(self.control)
                assert not fault, fault
                assert self.replies or not gone, "it has ended"
            reply = self.replies.pop(0)
            if not isinstance(reply, NewCode):
                return reply
            send_code(self.control, reply.path)

    def fork(self, count: int = 1) -> list[tuple[int, int]]:
        """Process ids and sockets of children that wait for a request."""
        assert send_fork(self.control, count)
        forked = self.reply()
        assert isinstance(forked, Forked), forked
        return list(forked.children)

    def send(self, message: bytes, descriptors: tuple[int, int, int]) -> int:
        """Give a request to a new child; its process id."""
        ((pid, child),) = self.fork()
        assert send_run(child, message, descriptors)
        return pid

    def start(
        self,
        argv: Sequence[str],
        descriptors: tuple[int, int, int],
        *,
        cwd: str = "/",
        environment: dict[str, str] = ENVIRONMENT,
        limits: Sequence[tuple[int, int, int]] = (),
        kinds: bytes = b"???",
    ) -> Started:
        self.ids += 1
        pid = self.send(encode_run(self.ids, argv, environment, cwd, limits, kinds), descriptors)
        reply = self.reply()
        assert reply == Started(self.ids, pid)
        return reply

    def run(
        self,
        argv: Sequence[str],
        stdin: bytes = b"",
        *,
        cwd: str = "/",
        environment: dict[str, str] = ENVIRONMENT,
        limits: Sequence[tuple[int, int, int]] = (),
    ) -> Outcome:
        with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            source.write(stdin)
            source.seek(0)
            descriptors = source.fileno(), out.fileno(), err.fileno()
            started = self.start(argv, descriptors, cwd=cwd, environment=environment, limits=limits)
            ended = self.reply()
            assert isinstance(ended, Exited), ended
            assert ended.pid == started.pid
            out.seek(0)
            err.seek(0)
            return Outcome(same(out.read()), same(err.read()), ended.returncode)

    def close(self) -> int:
        self.control.close()
        return self.process.wait(60)


@pytest.fixture
def helper() -> Iterator[Helper]:
    started = Helper()
    assert started.reply() == Ready(4)
    yield started
    assert started.close() == 0


def test_a_helper_says_that_it_is_alive(helper: Helper) -> None:
    send_ping(helper.control)
    assert helper.reply() == Pong()


def plainly(argv: Sequence[str], stdin: bytes = b"", flags: Sequence[str] = (), cwd: str = "/") -> Outcome:
    """Run the same in an interpreter of its own, with files as standard streams too."""
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        source.write(stdin)
        source.seek(0)
        process = subprocess.Popen(
            [sys.executable, *flags, *argv],
            stdin=source,
            stdout=out,
            stderr=err,
            cwd=cwd,
            env=ENVIRONMENT,
            process_group=0,
        )
        returncode = process.wait(60)
        out.seek(0)
        err.seek(0)
        return Outcome(same(out.read()), same(err.read()), returncode)


def write(directory: Path, source: str | bytes, name: str = "script.py") -> str:
    file = directory / name
    file.write_bytes(source if isinstance(source, bytes) else source.encode())
    return str(file)


LOOK_AROUND = r"""
import sys
modules = sorted(sys.modules)
first_names = list(globals())
import gc, os, signal, threading
print(first_names)
print(modules)
print(__name__, __doc__, __file__, __package__, __spec__, __builtins__, type(__loader__), __loader__.path)
print(globals().get("__annotations__"), sys.modules["__main__"].__dict__ is globals())
print(sys.argv, sys.orig_argv, sys.path, sys.flags, sys.executable, sys.warnoptions, sys._xoptions)
print(list(os.environ.items()), os.environb[b"ODD"], os.getcwd(), os.umask(0o22))
for stream in (sys.stdin, sys.stdout, sys.stderr):
    print(stream, stream.encoding, stream.errors, stream.line_buffering, stream.write_through, stream.newlines)
    print(stream.buffer.raw, stream.buffer.mode, stream.fileno(), stream.seekable(), stream.mode, stream.isatty())
print(sys.stdin is sys.__stdin__, sys.stdout is sys.__stdout__, sys.stderr is sys.__stderr__)
print({number: signal.getsignal(number) for number in range(1, 32)}, signal.set_wakeup_fd(-1))
print(signal.pthread_sigmask(signal.SIG_BLOCK, []), os.getpgid(0) == os.getpid())
print(gc.isenabled(), gc.get_threshold(), gc.garbage, threading.enumerate(), threading.main_thread())
print(sorted(os.listdir("/proc/self/fd"))[:4], sys.getrecursionlimit(), sys.gettrace(), sys.excepthook)
print(sys.path_hooks, sys.meta_path, __file__ in sys.path_importer_cache, "warm" in str(sys.path_importer_cache))
"""

SCRIPTS: dict[str, str | bytes] = {
    "looks around": LOOK_AROUND,
    "reads its standard input": "import sys\nprint(repr(input()), sys.stdin.tell() >= 0, repr(sys.stdin.read()))",
    "binary streams": "import sys\nsys.stdout.buffer.write(sys.stdin.buffer.read()[::-1] + b'\\xff\\0')",
    "no newline at the end": "print('abc', end='')",
    "both streams": "import sys\nfor i in range(3): print(i); print(-i, file=sys.stderr)",
    "much output": "for i in range(50000): print('line', i)",
    "non-ASCII": "print('äöü€😀 \\udcff')",
    "not encodable": "print('\\ud800')",
    "sys.exit": "import sys\nprint('x')\nsys.exit()",
    "sys.exit number": "import sys\nprint('x')\nsys.exit(3)",
    "sys.exit 256": "import sys\nsys.exit(256)",
    "sys.exit -1": "import sys\nsys.exit(-1)",
    "sys.exit huge": "import sys\nsys.exit(1 << 70)",
    "sys.exit True": "import sys\nsys.exit(True)",
    "sys.exit text": "import sys\nprint('x')\nsys.exit('what went wrong')",
    "sys.exit other": "import sys\nsys.exit((1, 2))",
    "SystemExit in a function": "def f():\n raise SystemExit(7)\nf()",
    "os._exit": "import os\nprint('lost')\nos._exit(4)",
    "exception": "def f(x):\n    return 1 / x\nprint('before')\nf(0)",
    "exception chain": "try:\n    {}['a']\nexcept KeyError as e:\n    raise ValueError('x') from e",
    "exception context": "def f():\n    try:\n        [][1]\n    except IndexError:\n        undefined\nf()",
    "exception group": "raise ExceptionGroup('g', [ValueError(1), TypeError(2)])",
    "exception with a note": "e = ValueError('x')\ne.add_note('a note')\nraise e",
    "exception in an import": "import broken_module",
    "excepthook": "import sys, traceback\ndef hook(k, v, t): print('hook', k, v, traceback.extract_tb(t))\n"
    "sys.excepthook = hook\nraise ValueError('x')",
    "excepthook that fails": "import sys\ndef hook(*a): raise TypeError\nsys.excepthook = hook\nsys.exit('x')",
    "last exception": "import atexit, sys\natexit.register(lambda: print(sys.last_type, sys.last_value))\n"
    "raise KeyError(1)",
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "interrupted": "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nimport time; time.sleep(60)",
    "SIGKILL": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    "SIGTERM": "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)",
    "abort": "import os\nos.abort()",
    "syntax error": "print('x')\ndef f(:\n    pass\n",
    "indentation error": "if 1:\nprint(2)\n",
    "undecodable": b"# -*- coding: utf-8 -*-\nprint('\xff')\n",
    "coding cookie": b"# -*- coding: latin-1 -*-\nprint('\xe4')\n",
    "byte order mark": b"\xef\xbb\xbfprint('bom')\n",
    "CRLF": b"print('a')\r\nprint('b')\r\n",
    "a shebang": "#!/usr/bin/python3\nprint('x')\n",
    "empty": "",
    "syntax warning": "print(1 is 1)\nassert (1, 'x')\n",
    "deprecation warning": "import warnings\nwarnings.warn('x', DeprecationWarning)\nprint(warnings.filters)",
    "no future": "def f(a: int): pass\nprint(f.__annotations__)",
    "future": "from __future__ import annotations\ndef f(a: undefined): pass\nprint(f.__annotations__)",
    "atexit": "import atexit\natexit.register(print, 'a')\natexit.register(print, 'b')\nprint('c')",
    "atexit that fails": "import atexit\natexit.register(lambda: 1 / 0)\natexit.register(print, 'b')",
    "atexit and sys.exit": "import atexit, sys\natexit.register(print, 'a')\nsys.exit(5)",
    "threads": "import threading\nmay = threading.Event()\ndef f():\n    may.wait()\n    print('thread')\n"
    "threading.Thread(target=f).start()\nprint('main')\nmay.set()",
    "daemon thread": "import threading\n"
    "threading.Thread(target=threading.Event().wait, daemon=True).start()\nprint('x')",
    "thread pool": "from concurrent.futures import ThreadPoolExecutor\nimport threading\nmay = threading.Event()\n"
    "pool = ThreadPoolExecutor(2)\npool.submit(lambda: (may.wait(), print('done')))\nprint('main')\nmay.set()",
    "exception in a thread": "import threading\nt = threading.Thread(target=lambda: 1 / 0, name='T')\n"
    "t.start(); t.join()",
    "file left open": "f = open('left.txt', 'w')\nf.write('written')\n",
    "file left open in a circle": "class C: pass\nc = C(); c.c = c; c.f = open('left.txt', 'w')\n"
    "c.f.write('circle')\ndel c",
    "file left open by a module": "import other_module\nother_module.f.write('by module')",
    "destructors": "class C:\n def __init__(s, n): s.n = n\n def __del__(s): print('del', s.n, text)\n"
    "text = 'still here'\na = C('a')\nb = C('b')\nb.b = b\ndef f(): return a\n",
    "destructor that fails": "exec('class C:\\n def __del__(s): 1 / 0\\nc = C()')",
    "generator left open": "def g():\n try:\n  yield 1\n finally:\n  print('closed')\nx = g(); next(x)\n",
    "stdout closed": "import sys\nsys.stdout.close()",
    "stdout None": "import sys\nprint('x')\nsys.stdout = None",
    "stdout replaced": "import io, sys\nsys.stdout = io.TextIOWrapper(sys.stdout.buffer, 'latin-1')\nprint('ä')",
    "stdout detached": "import io, sys\nsys.stdout = io.TextIOWrapper(sys.stdout.detach(), 'utf-16')\nprint('ä')",
    "stdout by a writer": "import codecs, sys\nsys.stdout = codecs.getwriter('latin-1')(sys.stdout.buffer)\nprint('ä')",
    "stdout full": "import os, sys\nos.dup2(os.open('/dev/full', os.O_WRONLY), 1)\nprint('x')",
    "stdout gone": "import os\nos.close(1)\nprint('x')",
    "ctypes": "import ctypes\nctypes.CDLL(None).printf(b'by C\\n')\nprint('by Python', flush=True)",
    "module beside it": "import neighbour\nprint(neighbour.__file__, neighbour.VALUE)",
    "itself as a module": "import script\nprint(script.__name__, __name__)",
    "main guard": "class C: pass\nif __name__ == '__main__':\n import pickle\n"
    " print(pickle.loads(pickle.dumps(C())).__class__)",
    "source of itself": "import inspect\ndef f(): return 1\nprint(inspect.getsource(f), inspect.getmodule(f))",
    "subprocess": "import subprocess, sys\n"
    "print(subprocess.run([sys.executable, '-c', 'print(1)'], capture_output=True))",
    "fork": "import os, sys\nif os.fork() == 0:\n print('child'); sys.exit(3)\nprint(os.wait()[1])",
    "exec": "import os\nos.execv('/bin/echo', ['echo', 'hello'])",
    "multiprocessing": "import multiprocessing as m\nif __name__ == '__main__':\n"
    " p = m.get_context('fork').Process(target=print, args=('x',)); p.start(); p.join(); print(p.exitcode)",
    "asyncio": "import asyncio\nasync def f(): await asyncio.sleep(0); print('x')\nasyncio.run(f())",
    "signals": "import signal, socket, select, warnings, resource, enum\nprint(signal.Signals(9), socket.AF_INET)",
    "own exec": "exec(compile('print(__name__); 1 / 0', 'inner', 'exec'))",
    "recursion": "def f(n): return f(n + 1)\ntry:\n f(0)\nexcept RecursionError as e: print(type(e))",
}  # fmt: skip


@pytest.fixture(scope="module")
def shared() -> Iterator[Helper]:
    """One helper for all scripts, which must not see anything of each other either."""
    helper = Helper()
    assert helper.reply() == Ready(4)
    yield helper
    assert helper.close() == 0


@pytest.mark.parametrize("name", SCRIPTS)
def test_same_as_an_interpreter_of_its_own(name: str, shared: Helper, tmp_path: Path) -> None:
    """RFC 3875 section 7.2 (how a program is run): output, errors, tracebacks, exit status, files left behind."""
    write(tmp_path, "VALUE = 5", "neighbour.py")
    write(tmp_path, "\n\n1 / 0", "broken_module.py")
    write(tmp_path, "f = open('left.txt', 'w')", "other_module.py")
    argv = [write(tmp_path, SCRIPTS[name]), "one", "two words", ""]
    left = tmp_path / "left.txt"
    expected = plainly(argv, b"first\nsecond\n", cwd=str(tmp_path))
    expected_file = left.read_text() if left.exists() else None
    left.unlink(missing_ok=True)
    outcome = shared.run(argv, b"first\nsecond\n", cwd=str(tmp_path))
    assert outcome.stderr == expected.stderr
    assert outcome.stdout.splitlines() == expected.stdout.splitlines()
    assert outcome == expected
    assert (left.read_text() if left.exists() else None) == expected_file


@pytest.mark.parametrize("flags", [["-I"], ["-S"], ["-E", "-s", "-B"], ["-u"], ["-O"], ["-W", "error"], ["-X", "dev"]])
def test_flags(flags: list[str], tmp_path: Path) -> None:
    """RFC 3875 section 7.2: the interpreter has the flags of the script's first line."""
    source = LOOK_AROUND.replace("stream.buffer.raw, stream.buffer.mode, ", "") if "-u" in flags else LOOK_AROUND
    argv = [write(tmp_path, source)]
    helper = Helper(flags)
    try:
        assert helper.reply() == Ready(4)
        outcome, expected = helper.run(argv), plainly(argv, flags=flags)
        assert outcome.stdout.splitlines() == expected.stdout.splitlines()
        assert outcome == expected
    finally:
        helper.close()


@pytest.mark.parametrize("kinds", [b"???", b"ppp"])
def test_standard_streams_that_are_pipes(kinds: bytes, helper: Helper, tmp_path: Path) -> None:
    """RFC 3875 section 4.2: the streams know what they are (a pipe can't seek); input has its end."""
    script = write(tmp_path, "import sys\nprint(sys.stdin.seekable(), sys.stdout.seekable(), sys.stdin.read())")
    (source, feed), (drain, out), (_, err) = pipes = os.pipe(), os.pipe(), os.pipe()
    helper.start([script], (source, out, err), kinds=kinds)
    os.close(source)
    os.close(out)
    os.write(feed, b"hello")
    os.close(feed)
    with open(drain, "rb") as result:
        assert result.read() == b"False False hello\n"  # and end of file: no other process holds the pipe
    assert isinstance(helper.reply(), Exited)
    for fd in pipes[2]:
        os.close(fd)


@pytest.mark.parametrize(("flags", "kinds"), [((), b"ppp"), ((), b"npp"), (("-u",), b"ppp"), (("-X", "dev"), b"npp")])
def test_streams_that_were_prepared(flags: tuple[str, ...], kinds: bytes, tmp_path: Path) -> None:
    """They are what an interpreter of its own makes of pipes and of the null device."""
    source = LOOK_AROUND.replace("stream.buffer.raw, stream.buffer.mode, ", "") if "-u" in flags else LOOK_AROUND
    argv = [write(tmp_path, source + "print(sys.stdin.read())\nprint('an error', file=sys.stderr)")]
    body = b"some input\n" if kinds[:1] == b"p" else b""
    expected = subprocess.run(
        [sys.executable, *flags, *argv],
        input=body or None,
        stdin=None if body else subprocess.DEVNULL,
        capture_output=True,
        cwd="/",
        env=ENVIRONMENT,
        process_group=0,
        check=False,
    )
    helper = Helper(flags)
    try:
        assert helper.reply() == Ready(4)
        (source_end, feed), (drain, out), (drain_err, err) = os.pipe(), os.pipe(), os.pipe()
        os.write(feed, body)
        os.close(feed)
        with open(os.devnull, "rb") as null, open(drain, "rb") as output, open(drain_err, "rb") as errors:
            helper.start(argv, (source_end if body else null.fileno(), out, err), kinds=kinds)
            for fd in (source_end, out, err):
                os.close(fd)
            assert same(output.read()).splitlines() == same(expected.stdout).splitlines()
            assert errors.read() == expected.stderr
        ended = helper.reply()
        assert isinstance(ended, Exited)
        assert ended.returncode == expected.returncode == 0
    finally:
        helper.close()


def test_what_has_replaced_a_script_does_not_stop_the_helper(helper: Helper, tmp_path: Path) -> None:
    """A pipe that nobody writes to, opened to be compiled."""
    os.mkfifo(tmp_path / "pipe")
    send_code(helper.control, str(tmp_path / "pipe"))
    send_ping(helper.control)
    assert helper.reply() == Pong()
    assert helper.run([write(tmp_path, "print(1)")]).stdout == b"1\n"


def test_changed_scripts_are_noticed(helper: Helper, tmp_path: Path) -> None:
    """RFC 3875 section 3.1: the script that is there is the one that runs."""
    script = write(tmp_path, "print(1)")
    stamp = os.stat(script)
    assert helper.run([script]).stdout == b"1\n"
    assert helper.run([script]).stdout == b"1\n"
    write(tmp_path, "print(2)")
    os.utime(script, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # same size and time
    assert helper.run([script]).stdout == b"2\n"
    other = write(tmp_path, "print(3)", "other.py")
    os.replace(other, script)
    assert helper.run([script]).stdout == b"3\n"
    os.unlink(script)
    gone = helper.run([script])
    assert gone == plainly([script])
    assert gone.returncode == 2


def test_scripts_of_one_path_do_not_share_state(helper: Helper, tmp_path: Path) -> None:
    """RFC 3875 section 1.5: a fresh process per request."""
    script = write(
        tmp_path, "import os, sys\nprint(getattr(sys, 'mark', None), os.environ.get('MARK'), os.getcwd())\nsys.mark = 1"
    )
    assert helper.run([script], environment={"MARK": "a"}, cwd="/").stdout == b"None a /\n"
    assert helper.run([script], environment={}, cwd="/proc").stdout == b"None None /proc\n"


def test_modules(tmp_path: Path) -> None:
    """Modules that the config names are there already, and are the same as if the script had imported them."""
    write(tmp_path, "import os\nLOADED_BY = os.getpid()", "preloaded.py")
    helper = Helper(modules=["preloaded", "email.message"], path=str(tmp_path))
    try:
        assert helper.reply() == Ready(4)
        script = write(
            tmp_path,
            "import sys\nbefore = set(sys.modules)\nimport os, preloaded, email.message\n"
            "print(preloaded.LOADED_BY == os.getppid(), {'preloaded', 'email.message'} <= before)",
        )
        assert helper.run([script]).stdout == b"True True\n"
    finally:
        assert helper.close() == 0


SLOW_TO_COMPILE = """
import builtins, ctypes, os, time
real = builtins.compile
def compile(*arguments, **keywords):  # what a child does after it has told that it runs
    if os.path.exists("{0}/armed"):
        with open("{0}/dumpable", "w") as file:
            file.write(str(ctypes.CDLL(None).prctl(3)))
    while os.path.exists("{0}/armed") and not os.path.exists("{0}/released"):
        time.sleep(0.005)
    return real(*arguments, **keywords)
builtins.compile = compile
"""


def test_a_script_that_has_begun_runs_although_nobody_listens_any_more(tmp_path: Path) -> None:
    """Its helper dies while it compiles the script, of which it would tell the helper."""
    write(tmp_path, SLOW_TO_COMPILE.format(tmp_path), "slow_to_compile.py")
    helper = Helper(modules=["slow_to_compile"], path=str(tmp_path))
    try:
        assert helper.reply() == Ready(4)
        script = write(tmp_path, "print('hello')")
        (tmp_path / "armed").touch()
        output, its_output = os.pipe()
        with open(output, "rb") as read, open(os.devnull, "rb+") as null:
            helper.start([script], (null.fileno(), its_output, null.fileno()))
            os.close(its_output)
            helper.process.kill()
            helper.process.wait()
            helper.control.shutdown(socket.SHUT_RDWR)
            (tmp_path / "released").touch()
            assert read.read() == b"hello\n"
        # It has the socket to the server while it compiles: no other script may take that, and get others' requests.
        assert (tmp_path / "dumpable").read_text() == "0"
    finally:
        helper.close()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import no_such_module", "ModuleNotFoundError"),
        ("raise ValueError('no')", "ValueError: no"),
        ("raise SystemExit('no')", "SystemExit: no"),
        ("import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()", "thread"),
    ],
)
def test_modules_that_fail(source: str, words: str, tmp_path: Path) -> None:
    """A helper that can't be what it should be says so and ends."""
    write(tmp_path, source, "bad_module.py")
    helper = Helper(modules=["bad_module"], path=str(tmp_path))
    reply = helper.reply()
    assert isinstance(reply, Failed)
    assert reply.id == 0
    assert words in reply.message
    assert reply.message.startswith("bad_module: ")
    assert helper.close() == 1


def test_nothing_of_clients_is_kept(helper: Helper, tmp_path: Path) -> None:
    """RFC 3875 section 9: the helper keeps no descriptor of a request, starts no thread, and leaves no zombies."""
    script = write(tmp_path, "import os\nprint(sorted(map(int, os.listdir('/proc/self/fd'))))")
    directory = f"/proc/{helper.process.pid}"
    before = sorted(os.readlink(f"{directory}/fd/{name}") for name in os.listdir(f"{directory}/fd"))
    for _ in range(5):
        assert helper.run([script]).stdout in (b"[0, 1, 2, 3]\n", b"[0, 1, 2, 3, 4]\n")
    after = sorted(os.readlink(f"{directory}/fd/{name}") for name in os.listdir(f"{directory}/fd"))
    assert after == before
    assert os.listdir(f"{directory}/task") == [str(helper.process.pid)]
    assert Path(f"{directory}/task/{helper.process.pid}/children").read_text() == ""


def test_many_at_once(helper: Helper, tmp_path: Path) -> None:
    """RFC 3875 section 9: concurrent requests do not disturb each other; every end is reported."""
    script = write(tmp_path, "import sys\nsys.exit(int(sys.argv[1]))")
    with open(os.devnull, "r+b") as null:
        pids: dict[int, int] = {}
        for number, (pid, child) in enumerate(helper.fork(40), 1):
            message = encode_run(number, [script, str(number)], ENVIRONMENT, "/")
            assert send_run(child, message, (null.fileno(),) * 3)
            pids[pid] = number
        started: set[int] = set()
        ends: dict[int, int] = {}
        while len(ends) < 40:
            reply = helper.reply()
            if isinstance(reply, Started):
                assert pids[reply.pid] == reply.id
                started.add(reply.pid)
            else:
                assert isinstance(reply, Exited)
                assert reply.pid in started
                ends[pids[reply.pid]] = reply.returncode
    assert ends == {number: number for number in range(1, 41)}
    assert len(pids) == 40


def test_process_group_and_signals(helper: Helper, tmp_path: Path) -> None:
    """RFC 3875 section 9: a script can be ended with all that it has started, as soon as its process id is known."""
    script = write(tmp_path, "import os, time\nos.fork()\nos.write(1, b'x')\ntime.sleep(600)")
    drain, out = os.pipe()
    with open(os.devnull, "r+b") as null, open(drain, "rb") as result:
        started = helper.start([script], (null.fileno(), out, null.fileno()))
        os.close(out)
        assert os.getpgid(started.pid) == started.pid
        assert result.read(2) == b"xx"
        os.killpg(started.pid, signal.SIGTERM)
        assert result.read() == b""  # both are gone
    ended = helper.reply()
    assert isinstance(ended, Exited)
    assert ended.returncode == -signal.SIGTERM


def test_rusage(helper: Helper, tmp_path: Path) -> None:
    """wait4(2): what the script used is reported in its end."""
    script = write(tmp_path, "import time\nx = bytearray(50 << 20)\nwhile time.process_time() < 0.2: pass")
    with open(os.devnull, "r+b") as null:
        helper.start([script], (null.fileno(),) * 3)
    ended = helper.reply()
    assert isinstance(ended, Exited)
    assert 0.1 < ended.user_time + ended.system_time < 10
    assert ended.max_rss > 50 << 10


def test_limits(helper: Helper, tmp_path: Path) -> None:
    """setrlimit(2): limits hold in the script, not in the helper."""
    script = write(
        tmp_path,
        "import resource as r\nprint(r.getrlimit(r.RLIMIT_NOFILE), r.getrlimit(r.RLIMIT_CPU))",
    )
    limits = [(resource.RLIMIT_NOFILE, 20, 30), (resource.RLIMIT_CPU, 5, 6)]
    assert helper.run([script], limits=limits).stdout == b"(20, 30) (5, 6)\n"
    plain = plainly([script]).stdout
    assert helper.run([script]).stdout == plain
    refused = helper.run([script], limits=[(resource.RLIMIT_NOFILE, 30, 20)])
    assert refused.returncode == 127
    assert b"resource limit" in refused.stderr


def test_what_can_not_be_started(helper: Helper, tmp_path: Path) -> None:
    """RFC 3875 section 7.2: a script that can't be started is reported, and the next one starts."""
    script = write(tmp_path, "print('x')")
    with open(os.devnull, "r+b") as null:
        pid = helper.send(encode_run(9, [script], {}, "/nonexistent"), (null.fileno(),) * 3)
        assert helper.reply() == Failed(9, "No such file or directory: /nonexistent")
        ended = helper.reply()
        assert isinstance(ended, Exited)
        assert ended.pid == pid
        helper.send(encode_run(10, [script], {"": "x"}, "/"), (null.fileno(),) * 3)
        reply = helper.reply()
        assert isinstance(reply, Failed)
        assert reply.id == 10
        assert isinstance(helper.reply(), Exited)
    assert helper.run([script]).stdout == b"x\n"


def test_malformed_messages(helper: Helper, tmp_path: Path) -> None:
    """A child ends at a malformed request, which it says; a helper that is told nonsense says so and ends."""
    script = write(tmp_path, "print('x')")
    with open(os.devnull, "r+b") as null:
        for message in (b"hello", encode_run(1, [], {}, "/"), encode_run(1, [script], {}, "/")[:-9]):
            pid = helper.send(message, (null.fileno(),) * 3)
            reply = helper.reply()
            assert isinstance(reply, Failed), reply
            ended = helper.reply()
            assert isinstance(ended, Exited)
            assert (ended.pid, ended.returncode) == (pid, 0)
    assert helper.run([script]).stdout == b"x\n"
    helper.control.send(b"what")
    assert helper.reply() == Failed(0, "not a message for a warm helper")


def test_children_that_were_forked_ahead(helper: Helper, tmp_path: Path) -> None:
    """They share nothing but what the helper has compiled: a script sees nothing of those before it, and no socket of
    those after it. They end when they are not wanted any more, or with the server."""
    script = write(
        tmp_path,
        "import os, sys\nprint(getattr(sys, 'mark', None), sorted(os.environ), os.getcwd(), sys.argv[1:])\n"
        "print(sorted(map(int, os.listdir('/proc/self/fd')))[:4])\n"
        "sys.mark = os.environ['X'] = 'x'\nos.chdir('/')\nsys.modules['os'].path = None\n",
    )
    first, second, third = helper.fork(3)
    for number, (pid, child) in enumerate((first, second), 1):
        with tempfile.TemporaryFile() as out, open(os.devnull, "rb") as null:
            message = encode_run(number, [script, str(number)], {f"ONLY_{number}": "x"}, str(tmp_path))
            assert send_run(child, message, (null.fileno(), out.fileno(), null.fileno()))
            assert helper.reply() == Started(number, pid)
            assert isinstance(helper.reply(), Exited)
            out.seek(0)
            expected = f"None ['ONLY_{number}'] {tmp_path} ['{number}']\n[0, 1, 2, 3]\n"
            assert out.read().decode() == expected
    os.close(third[1])
    assert helper.reply().pid == third[0]  # type: ignore[union-attr]


def test_a_script_is_compiled_once(helper: Helper, tmp_path: Path) -> None:
    """By the child that meets it first, and by the helper, for those to come."""
    script = write(tmp_path, "print(1)")
    with open(os.devnull, "r+b") as null:
        for expected in (True, False):
            pid = helper.send(encode_run(1, [script], {}, "/"), (null.fileno(),) * 3)
            assert decode_replies(helper.control.recv(4096)) == [Started(1, pid)]
            (reply,) = decode_replies(helper.control.recv(4096))
            assert (reply == NewCode(script)) is expected
            if expected:
                assert send_code(helper.control, script)
                assert isinstance(helper.reply(), Exited)


def test_server_gone(tmp_path: Path) -> None:
    """RFC 3875 section 9: when the server is gone, nothing of a script's process group is left."""
    script = write(tmp_path, "import os, time\nos.fork()\nos.write(1, b'x')\ntime.sleep(600)")
    helper = Helper()
    assert helper.reply() == Ready(4)
    drain, out = os.pipe()
    with open(os.devnull, "r+b") as null, open(drain, "rb") as result:
        helper.start([script], (null.fileno(), out, null.fileno()))
        os.close(out)
        assert result.read(2) == b"xx"
        assert helper.close() == 0
        assert result.read() == b""


def test_read_replies(helper: Helper, tmp_path: Path) -> None:
    """The server's side never waits."""
    assert read_replies(helper.control) == ([], False, "")
    script = write(tmp_path, "pass")
    with open(os.devnull, "r+b") as null:
        helper.start([script], (null.fileno(),) * 3)
    assert isinstance(helper.reply(), Exited)  # it may have come with the message before
    assert read_replies(helper.control) == ([], False, "")
    for unread in ([], [b"a request"]):
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with mine:
            theirs.send(b"ready\x004")
            for message in unread:
                mine.send(message)
            theirs.close()
            assert read_replies(mine) == ([Ready(4)], True, "")


def test_send_run_never_waits() -> None:
    """The server's side never waits, and notices a child that is gone."""
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.close()
    with open(os.devnull, "rb") as null:
        assert not send_run(mine.detach(), encode_run(1, ["/x"], {}, "/"), (null.fileno(),) * 3)


def test_messages() -> None:
    """What a message can't express is refused before it is sent."""
    request = (7, b"/d", [b"/s", b""], b"npp", b"/r", [(1, 2, 3)], (b"A\0B", b"b\xff\0"))
    environment = {"A": "b\udcff", "B": ""}
    assert marshal.loads(encode_run(7, ["/s", ""], environment, "/d", [(1, 2, 3)], b"npp", "/r")) == request
    assert marshal.loads(encode_run(7, ["/s"], {}, "/d"))[6] is None
    for argv, environment in (
        (["/s", "a\0b"], {}),
        (["/s"], {"A": "\0"}),
        (["/s"], {"A\0": ""}),
        (["/s"], {"\0": "\0"}),
    ):
        with pytest.raises(ValueError, match="NUL"):
            encode_run(1, argv, environment, "/")
    with pytest.raises(ValueError, match="too long"):
        encode_run(1, ["/s"], {"A": "a" * 300000}, "/")
    assert decode_replies(b"exit\x003\x00256\x000.5\x000.25\x00100\x004\x009\x000\x000\x00100") == [
        Exited(3, 1, 0.5, 0.25, 100),
        Exited(4, -9, 0.0, 0.0, 100),
    ]
    assert decode_replies(b"forked\x007\x008", [5, 6]) == [Forked(((7, 5), (8, 6)))]
    for wrong in (b"", b"exit", b"exit\x001", b"pid\x00x\x001", b"what", b"forked\x007", b"short\x00x", b"code"):
        with pytest.raises(ValueError, match=r"."):
            decode_replies(wrong)


@pytest.mark.parametrize(
    ("line", "command"),
    [
        (b"#!/usr/bin/python3\n", ("/usr/bin/python3",)),
        (b"#! /usr/bin/python3.12 -I\r\n", ("/usr/bin/python3.12", "-I")),
        (b"#!/usr/bin/env python3\n", ("/usr/bin/env", "python3")),
        (b"#!/usr/bin/env python3 -u\n", None),
        (b"#!/usr/bin/env -S python3 -u\n", None),
        (b"#!/opt/x/bin/python -E -s\n", ("/opt/x/bin/python", "-E -s")),
        (b"#!/usr/bin/perl\n", None),
        (b"#!/usr/bin/python2\n", None),
        (b"#!/usr/bin/python3-config\n", None),
        (b"#!python3\n", None),
        (b"#!\n", None),
        (b"#!/bin/sh\n# python3\n", None),
        (b"\x7fELF", None),
        (b"", None),
    ],
)
def test_python_command(line: bytes, command: tuple[str, ...] | None) -> None:
    """execve(2): the interpreter and one argument."""
    assert python_command(line) == command
