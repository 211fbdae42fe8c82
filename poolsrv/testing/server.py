"""A real server for a test: processes, sockets, signals, on free ports."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from ..core.procfs import is_alive
from ..core.toml import toml
from ..core.words import bare_or_quoted
from ..plugins.loader import target_of
from .loading import LISTENER, name_of, toml_value
from .logged_process import TIMEOUT, LoggedProcess, ServerFailed, descendants_of

_SETTLE: Final = 2.0  # seconds for processes that end with the server
_LOOK: Final = 0.01  # seconds between two looks at processes

_STRING = r"""(?:"[^"\n]*"|'[^'\n]*')"""
_BIND = re.compile(rf"^(\s*bind\s*=\s*)({_STRING}|\[(?:\s*{_STRING}\s*,?)*\s*\])", re.MULTILINE)
_PORT = re.compile(r""":\d+(?=["'])""")


class Server:
    """``poolsrv --config FILE`` in processes of its own, until ``close``. A context manager.

    :param config: the config's text, or its file. Every port in its ``bind`` becomes 0, so that the kernel chooses a
        free one. With a file, the config is copied to ``folder``, beside links to all that is beside the file.
    :param folder: a directory for the config and for what the server makes; the server's working directory.
    :param ready: whether to wait until the server serves.
    :raises ServerFailed: it ends first, or is not ready within 30 seconds; the message has its log.
    :ivar folder: the directory.
    :ivar lines: the lines of its log so far.
    :ivar pid: the process that a user would signal.
    """

    def __init__(self, config: str | Path, folder: Path, *, ready: bool = True) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(config, Path):
            _link_all(config.absolute().parent, folder, without=config.name)
            config = config.read_text()
        self._file = folder / "poolsrv.toml"
        self._file.write_text(_BIND.sub(lambda bind: bind[1] + _PORT.sub(":0", bind[2]), config))
        self._closed = False
        command = [sys.executable, "-m", "poolsrv", "--config", str(self._file)]
        # What the test can import, the server can too.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        self._run = LoggedProcess(command, folder, environment)
        self._process = self._run.process
        self.lines = self._run.lines
        self.pid = self._process.pid
        if ready:
            try:
                self.wait_for_line(r"\bready: ")
            except ServerFailed:
                self._end()
                raise

    # --- its log

    @property
    def log(self) -> str:
        """All lines of its log so far."""
        return self._run.log

    def wait_for_line(self, pattern: str, *, after: int = 0, timeout: float = TIMEOUT) -> re.Match[str]:
        """Wait for a line of the log.

        :param pattern: a regular expression, which is searched for in each line.
        :param after: how many lines to leave out: ``len(server.lines)`` before what makes the server log it.
        :param timeout: seconds.
        :returns: the first match.
        :raises ServerFailed: there is none in time, or the server ends.
        """
        return self._run.wait_for_line(pattern, after=after, timeout=timeout)

    # --- its addresses

    def addresses(self, listener: str | None = None) -> list[str]:
        """The addresses that it is bound to, with the real ports: ``"127.0.0.1:40123"``, ``"unix:/tmp/x.sock"``.

        :param listener: only those of this listener; None: of all.
        """
        return self._run.addresses(listener)

    def port(self, listener: str | None = None) -> int:
        """The port of a listener's first address; without a name, the first listener's."""
        return int(self._address(listener).rpartition(":")[2])

    def connect(self, listener: str | None = None, *, timeout: float = TIMEOUT) -> socket.socket:
        """A client's socket, connected to a listener's first address; without a name, the first listener's.

        :param timeout: seconds, of each call of the socket.
        :raises OSError: the connection is refused.
        """
        address = self._address(listener)
        if address.startswith("unix:"):
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(timeout)
            try:
                sock.connect(os.path.join(self.folder, address.removeprefix("unix:")))
            except OSError:
                sock.close()
                raise
            return sock
        host, _, port = address.rpartition(":")
        host = host.strip("[]") or "127.0.0.1"
        return socket.create_connection((_LOOPBACK.get(host, host), int(port)), timeout)

    def exchange(self, data: bytes, listener: str | None = None) -> bytes:
        """Connect, send, finish sending, and receive until the server closes."""
        with self.connect(listener) as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            pieces = []
            while piece := sock.recv(65536):
                pieces.append(piece)
            return b"".join(pieces)

    def _address(self, listener: str | None) -> str:
        found = self.addresses(listener)
        if not found:
            raise LookupError(f"the server has no listener {listener!r}: {', '.join(self.addresses())}")
        return found[0]

    # --- its life

    def reload(self) -> None:
        """Have it load its config and code again, and wait until the new workers serve and the old ones take no new
        connections.

        :raises ServerFailed: the reload has failed.
        """
        after = len(self.lines)
        self.signal(signal.SIGHUP)
        outcome = self.wait_for_line(r" reload: stopping|\breload\b.* failed", after=after).group()
        if "failed" in outcome:
            raise ServerFailed("the reload has failed:\n" + "\n".join(self.lines[after:]))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it."""
        self._process.send_signal(number)

    def stop(self) -> int:
        """Stop it, as TERM does, and wait.

        :returns: its exit code.
        :raises ServerFailed: it has not ended within 60 seconds, or has left something behind.
        """
        if self._closed:
            return self._process.returncode
        started = {pid: _started(pid) for pid in descendants_of(self.pid)}
        sockets = [Path(self.folder, address.removeprefix("unix:")) for address in self._unix_addresses()]
        self.signal(signal.SIGTERM)
        try:
            code = self._process.wait(2 * TIMEOUT)
            left = self._left(started, sockets)
        except subprocess.TimeoutExpired:
            code, left = -1, ["the server itself: it does not end"]
        self._end()
        if left:
            raise ServerFailed(f"the server has left behind: {', '.join(left)}; its log:\n{self.log}")
        return code

    def close(self) -> None:
        """Stop it, if that has not been done.

        :raises ServerFailed: it has left something behind, or its exit code is not 0.
        """
        if self._closed:
            return
        code = self.stop()
        if code:
            raise ServerFailed(f"the server has ended with exit code {code}; its log:\n{self.log}")

    def _unix_addresses(self) -> list[str]:
        try:
            return [address for address in self.addresses() if address.startswith("unix:")]
        except ServerFailed:
            return []

    def _left(self, started: Mapping[int, str], sockets: Sequence[Path]) -> list[str]:
        def alive() -> list[int]:
            return [pid for pid, when in started.items() if is_alive(pid) and _started(pid) == when]

        deadline = time.monotonic() + _SETTLE
        while alive() and time.monotonic() < deadline:
            time.sleep(_LOOK)
        left = [f"process {pid} ({_command(pid)})" for pid in alive()]
        for pid in alive():
            os.kill(pid, signal.SIGKILL)
        return left + [f"the socket {path}" for path in sockets if path.exists()]

    def _end(self) -> None:
        self._closed = True
        self._run.kill()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.close()
        elif not self._closed:
            self._end()  # the test has failed already


def config_of(
    handler: object,
    options: Mapping[str, Any] | None = None,
    *,
    plugins: Sequence[object] = (),
    plugin_options: Mapping[str, Mapping[str, Any]] | None = None,
    pool: Mapping[str, Any] | None = None,
    **listener: Any,
) -> str:
    """The text of a config with one listener, which is named ``test``.

    :param handler: the plugin: its class, or the name of an installed one.
    """
    tables: dict[str, Mapping[str, Any]] = dict(plugin_options or {})
    if options is not None:
        tables[name_of(handler)] = options
    further = [_reference(plugin) for plugin in plugins]
    keys = {"bind": "127.0.0.1:0", "handler": _reference(handler), "plugins": further, **listener}
    lines = ["[pool]", *_keys({"workers": 1, **(pool or {})}), f"[listeners.{LISTENER}]", *_keys(keys)]
    for name, table in tables.items():
        lines += [f"[listeners.{LISTENER}.{bare_or_quoted(name)}]", *_keys(table)]
    return "\n".join(lines) + "\n"


_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def _reference(plugin: object) -> str:
    return plugin if isinstance(plugin, str) else target_of(plugin)


def _keys(table: Mapping[str, Any]) -> list[str]:
    return [f"{bare_or_quoted(key)} = {toml(toml_value(value))}" for key, value in table.items()]


def _link_all(source: Path, folder: Path, without: str) -> None:
    for path in source.iterdir():
        target = folder / path.name
        hidden = path.name.startswith(".")
        if not hidden and path.name != without and path.resolve() != folder.resolve() and not target.exists():
            target.symlink_to(path)


def _started(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "?"
