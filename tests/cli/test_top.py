"""``poolsrv top`` in a pseudoterminal, with a running server."""

from __future__ import annotations

import codecs
import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import pytest

from poolsrv.cli import top
from tests.helpers.puppet import install_puppet
from tests.helpers.server import TIMEOUT, ServerProcess, receive_line

CONFIG = """[pool]
workers = 2
control = "ctl"
[listeners.puppet]
bind = "127.0.0.1:0"
handler = "puppet"
[listeners.shut]
bind = "127.0.0.1:0"
handler = "puppet"
deny = ["127.0.0.1"]
"""
CLEAR = "\x1b[H"  # the cursor goes home before each screen
LEAVE = "\x1b[?1049l"  # back to the normal screen
ESCAPE = re.compile(r"\x1b\[[?0-9;]*[a-zA-Z]")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("top")
    with ServerProcess(CONFIG, folder, paths=(install_puppet(folder / "site"),)) as running:
        yield running.wait_ready()


class Terminal:
    """``poolsrv top`` in a terminal that is its controlling terminal, so that Ctrl-C sends a signal."""

    def __init__(self, config: Path, columns: int = 80, lines: int = 24) -> None:
        self._master, slave = os.openpty()
        self.resize(columns, lines)
        self.attributes = termios.tcgetattr(slave)
        self.process = subprocess.Popen(
            ["setsid", "--ctty", sys.executable, "-m", "poolsrv", "top", "--config", str(config)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**{k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}, "TERM": "xterm-256color"},
        )
        self._slave = slave
        self._decoder = codecs.getincrementaldecoder("utf-8")()  # a piece may end within a character
        self.output = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)
        os.close(self._slave)

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def screens(self) -> list[list[str]]:
        """Every complete screen so far, without colours."""
        return [ESCAPE.sub("", screen).split("\r\n") for screen in self.output.split(CLEAR)[1:-1]]

    def wait_for(self, pattern: str, after: int = 0) -> list[str]:
        """Wait for a screen that matches, and is not one of the first ``after``."""
        deadline = time.monotonic() + TIMEOUT
        while True:
            for screen in self.screens()[after:]:
                if re.search(pattern, "\n".join(screen)):
                    return screen
            assert time.monotonic() < deadline, self.output
            self._read(0.1)

    def wait(self) -> int:
        """Wait for its end, and return its exit code."""
        deadline = time.monotonic() + TIMEOUT
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.output
            self._read(0.05)
        self._read(0)
        return self.process.returncode

    def _read(self, patience: float) -> None:
        while select.select([self._master], [], [], patience)[0]:
            try:
                self.output += self._decoder.decode(os.read(self._master, 65536))
            except OSError:
                return
            patience = 0

    def is_restored(self) -> bool:
        shown = self.output.rfind("\x1b[?25h") > self.output.rfind("\x1b[?25l")  # the cursor
        left = self.output.rfind(LEAVE) > self.output.rfind("\x1b[?1049h")
        return shown and left and termios.tcgetattr(self._slave) == self.attributes


@pytest.mark.server
def test_a_small_terminal(server: ServerProcess) -> None:
    with server.connect("puppet") as sock, Terminal(server.file) as terminal:
        sock.sendall(b"program\n")
        program = int(receive_line(sock))
        with pytest.raises(ConnectionResetError), server.connect("shut") as refused:
            refused.recv(1)
        screen = terminal.wait_for(rf"(?s)\b{program}\b.*127\.0\.0\.1.* deny")
        assert len(screen) <= 24
        assert max(map(len, screen)) <= 80
        text = "\n".join(line.rstrip() for line in screen)
        assert re.search(r"^poolsrv \S+, serving, up ", text)
        assert re.search(r"^worker +pid +state +open +conn/s +events/s", text, re.MULTILINE)
        for pid in server.worker_pids():
            assert re.search(rf"^[01] +{pid} +serving ", text, re.MULTILINE)
        assert re.search(r"^puppet +127\.0\.0\.1:\d+ +1 ", text, re.MULTILINE)
        assert top.KEYS in screen[-1] or top.KEYS in text
        terminal.type(b"q")
        assert terminal.wait() == 0
        assert terminal.is_restored()
        assert "Traceback" not in terminal.output


@pytest.mark.server
def test_the_view_follows_the_size_of_the_terminal(server: ServerProcess) -> None:
    with Terminal(server.file) as terminal:
        narrow = terminal.wait_for("serving")
        assert "restarts" not in "\n".join(narrow)
        terminal.resize(160, 40)
        wide = terminal.wait_for("restarts", after=len(terminal.screens()) - 1)
        assert 80 < max(map(len, wide)) <= 160
        terminal.resize(40, 10)
        tiny = terminal.wait_for("serving", after=len(terminal.screens()) + 2)
        assert len(tiny) <= 10
        assert max(map(len, tiny)) <= 40
        terminal.type(b"x?")  # nothing happens
        terminal.wait_for("serving", after=len(terminal.screens()) + 1)
        terminal.type(b"\x03")
        assert terminal.wait() == 0
        assert terminal.is_restored()
        assert "Traceback" not in terminal.output


@pytest.mark.server
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_restores_the_terminal(server: ServerProcess, number: signal.Signals) -> None:
    with Terminal(server.file) as terminal:
        terminal.wait_for("serving")
        terminal.process.send_signal(number)
        assert terminal.wait() == 128 + number
        assert terminal.is_restored()


@pytest.mark.server
def test_the_view_waits_for_a_server_that_has_stopped(tmp_path: Path) -> None:
    with ServerProcess(CONFIG, tmp_path, paths=(install_puppet(tmp_path / "site"),)) as first:
        first.wait_ready()
        with Terminal(first.file) as terminal:
            terminal.wait_for("serving")
            assert first.stop() == 0
            terminal.wait_for(r"(?s)the\s+server\s+does\s+not\s+run")
            with ServerProcess(CONFIG, tmp_path, paths=(tmp_path / "site",)) as second:
                second.wait_ready()
                terminal.wait_for(rf"pid {second.pid},")
                terminal.type(b"q")
                assert terminal.wait() == 0


def test_no_server_is_a_message_without_a_screen(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(CONFIG)
    with Terminal(tmp_path / "a.toml") as terminal:
        assert terminal.wait() == 1
        assert terminal.output.replace("\r\n", "\n") == f"poolsrv: {tmp_path}/a.toml: the server does not run\n"


@pytest.mark.server
def test_without_a_terminal(server: ServerProcess) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "poolsrv", "top", "--config", str(server.file)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    expected = "poolsrv: top needs a terminal; `poolsrv status` prints the same once\n"
    assert (result.returncode, result.stdout, result.stderr) == (1, "", expected)


def test_rich_is_imported_by_nothing_else() -> None:
    modules = "poolsrv.cli.main, poolsrv.cli.commands.status, poolsrv.supervisor.start, poolsrv.dispatcher.process"
    code = f"import sys, {modules}; sys.exit('rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=TIMEOUT).returncode == 0


@pytest.mark.parametrize(
    ("wanted", "room", "shares"),
    [
        ([2, 3], 20, [2, 3]),
        ([100, 3], 20, [13, 3]),
        ([100, 100, 100, 100], 12, [1, 1, 1, 1]),
        ([100, 100], 5, [3, 0]),
        ([5, 5], 2, [0, 0]),
    ],
)
def test_every_table_gets_its_share(wanted: list[int], room: int, shares: list[int]) -> None:
    assert top._shares(wanted, room) == shares
