"""Machines of a network that is there for one test: each has network, mounts and processes of its own, and no name.

They end with the test's process, however that ends. It takes root, or a kernel that lets others do it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.helpers.server import TIMEOUT, children_of, wait_until

CLONE_NEWNET: Final = 0x40000000
DEATH: Final = ("setpriv", "--pdeathsig", "KILL")
# The first process of a machine: it adopts and reaps what daemons leave.
FIRST: Final = """
mount -t tmpfs none /run
mkdir -p /run/poolsrv /run/haproxy
mount --bind "$1" /srv
echo up
trap : TERM
while :; do sleep 3600 & wait; done
"""


def run(*command: str | Path) -> str:
    """Run a program, which has to succeed."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=4 * TIMEOUT)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def require_namespaces() -> None:
    """Skip the test where namespaces can't be made; in CI, fail."""
    attempt = subprocess.run(
        ["unshare", "--net", "--pid", "--mount", "--fork", "--mount-proc", "ip", "link", "set", "lo", "up"],
        capture_output=True, text=True,
    )  # fmt: skip
    if attempt.returncode:
        reason = f"namespaces can't be made here: {attempt.stderr.strip()}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


class Machine:
    """A machine on a bridge of its own, or of another one. Its folder is its /srv, and its /run is empty.

    :param address: with the length of its network's prefix.
    :param bridge: the machine that has the bridge; None: this one.
    """

    def __init__(self, name: str, folder: Path, address: str, bridge: Machine | None = None) -> None:
        self.name = name
        self.folder = folder
        self._init: subprocess.Popen[str] | None = None
        # Keeps the network while the machine is down.
        self._holder = subprocess.Popen([*DEATH, "unshare", "--net", "sleep", "infinity"])
        try:
            own = os.readlink("/proc/self/ns/net")
            wait_until(lambda: os.readlink(self.net) != own, "a network")
            self._connect(address, bridge)
            self.power_on()
        except BaseException:
            self.close()
            raise

    @property
    def net(self) -> str:
        """The file of its network namespace."""
        return f"/proc/{self._holder.pid}/ns/net"

    def _connect(self, address: str, bridge: Machine | None) -> None:
        device = "br0" if bridge is None else "eth0"
        if bridge is None:
            self._ip("link", "add", "br0", "type", "bridge")
        else:
            peer = ("peer", "name", "eth0", "netns", str(self._holder.pid))
            bridge._ip("link", "add", f"to-{self.name}", "type", "veth", *peer)
            bridge._ip("link", "set", f"to-{self.name}", "master", "br0", "up")
        self._ip("address", "add", address, "dev", device)
        self._ip("link", "set", device, "up")
        self._ip("link", "set", "lo", "up")

    def _ip(self, *arguments: str) -> None:
        run("nsenter", f"--net={self.net}", "ip", *arguments)

    def power_on(self) -> None:
        """Start its first process."""
        spaces = ("--pid", "--mount", "--fork", "--kill-child", "--mount-proc")
        command = [*DEATH, "nsenter", f"--net={self.net}", "unshare", *spaces, "bash", "-ec", FIRST, "init"]
        self._init = subprocess.Popen(
            [*command, str(self.folder)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )
        assert self._init.stdout is not None
        with self._init.stdout as output:
            assert output.readline() == "up\n"

    @property
    def pid(self) -> int:
        """Its first process."""
        assert self._init is not None
        return children_of(self._init.pid)[0]

    def command(self, *words: str | Path, spaces: tuple[str, ...] = ("net", "mount", "pid")) -> list[str]:
        """The command that runs a program there. Without "pid", it becomes that program, which a signal reaches."""
        return ["nsenter", f"--target={self.pid}", *(f"--{space}" for space in spaces), "--", *map(str, words)]

    def run(self, *words: str | Path) -> str:
        """Run a program there, which has to succeed."""
        return run(*self.command(*words))

    def path(self, path: str) -> Path:
        """A file of it, as seen from here."""
        return Path(f"/proc/{self.pid}/root{path}")

    def kill(self) -> None:
        """End all its processes at once. The network stays, and refuses connections."""
        if self._init is not None:
            for pid in children_of(self._init.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._init.wait(TIMEOUT)
            self._init = None

    def unplug(self, name: str) -> None:
        """Take the cable of a machine out of this one's bridge: what is sent to it is lost, and nothing says so."""
        self._ip("link", "set", f"to-{name}", "down")

    def close(self) -> None:
        """End it, with its network."""
        self.kill()
        self._holder.kill()
        self._holder.wait(TIMEOUT)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Sockets that this thread makes in the block are in the machine's network."""
        with open("/proc/thread-self/ns/net") as before, open(self.net) as there:
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(before.fileno())


def _enter(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
