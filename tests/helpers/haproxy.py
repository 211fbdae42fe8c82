"""A real HAProxy, for tests that put one in front of a server."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from re import Pattern

from tests.helpers.server import TIMEOUT, ServerProcess, free_port, listens, wait_until


class Haproxy:
    """One with this configuration, until ``close``. It listens when this has returned.

    :param ports: at which it is to listen.
    :param prefix: a program with arguments that becomes the command that follows them.
    """

    def __init__(self, folder: Path, config: str, ports: Iterable[int], prefix: Sequence[str] = ()) -> None:
        file = folder / "haproxy.cfg"
        file.write_text(config)
        command = [*prefix, "haproxy", "-db", "-f", str(file)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        try:
            wait_until(lambda: self._listens(ports), "HAProxy listens")
        except BaseException:
            self.close()
            raise

    def _read(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            self._lines.extend(lines)

    def _listens(self, ports: Iterable[int]) -> bool:
        assert self._process.poll() is None, f"HAProxy has ended: {self._lines}"
        return all(map(listens, ports))

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return "".join(list(self._lines))

    def wait_for(self, pattern: Pattern[str]) -> None:
        """Wait until a line that it has logged matches."""
        wait_until(lambda: any(map(pattern.search, list(self._lines))), pattern.pattern)

    def close(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.wait(TIMEOUT)
        self._reader.join(TIMEOUT)


class HeaderProxy(Haproxy):
    """One in front of listeners of a server, whose clients it names in a header.

    :ivar ports: by the listener's name and the option for the version of the header.
    """

    def __init__(self, folder: Path, server: ServerProcess, names: tuple[str, ...]) -> None:
        sections = ["global\n  log stderr local0\n", "defaults\n  mode tcp\n  timeout connect 10s\n"]
        sections.append("  timeout client 30s\n  timeout server 30s\n")
        self.ports: dict[tuple[str, str], int] = {}
        for name in names:
            for option in ("send-proxy", "send-proxy-v2"):
                port = self.ports[name, option] = free_port()
                address = server.addresses(name)[0]
                sections.append(f"listen {name}-{option}\n  bind 127.0.0.1:{port}\n  server it {address} {option}\n")
        super().__init__(folder, "".join(sections), self.ports.values())
