"""What a program may do besides what its user may: files, TCP ports, system calls, signals. See docs/security.md.

Theory. All of this belongs to a thread in Linux, not to a process, and is inherited by what the thread starts. So a
program is started by a thread that has restricted itself, and ends. No launcher runs between the server and the
program: ``posix_spawn`` reports an error as ever, and the program is the child of this process, whose other threads are
as free as before. As each program has a thread of its own, each is in a Landlock domain of its own.
"""

from __future__ import annotations

import _thread
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from . import landlock
from . import private_tmp as own_tmp
from .capabilities import gain_no_more, keep_only
from .system_calls import Filter

_T = TypeVar("_T")

_EXPECTED = "expected Linux 6.2 or newer, with landlock in /sys/kernel/security/lsm"
_WITHOUT = {
    landlock.FILES_SINCE: "files",
    landlock.TCP_SINCE: "TCP ports",
    landlock.ISOLATED_SINCE: "signals and abstract unix sockets",
}


class Sandbox:
    """What a program may do; for ``spawn(sandbox=...)``. What it may not fails in the program, with EACCES or EPERM.

    A program in a sandbox can't gain privileges by set-user-ID bits, and neither trace nor look into any process but
    its own children. Where it runs as root, it has none of root's capabilities.

    :ivar read: files, and directories with all below, that it may read.
    :ivar write: those that it may read and change.
    :ivar execute: those that it may read and execute.
    :ivar connect: TCP ports that it may connect to; None: all.
    :ivar bind: those that it may listen on; None: all.
    :ivar isolated: whether it can neither signal processes that it has not started, nor connect to their abstract unix
        sockets.
    :ivar system_calls: whether calls that no CGI program needs are forbidden, such as those to trace, to mount and to
        make name spaces, and those for which Landlock has no rule: to limit or slow down other processes; to change
        modes and times of files, where it may change no file; to lease files, and to watch them; to listen, without
        ``bind``. If ``connect`` and ``bind`` are both empty, all sockets but unix sockets are forbidden too.
    :ivar private_tmp: bytes of an empty /tmp of its own, in memory, which it may write to; 0: it has none. Only where
        the config gives the listener a launcher, by ``user`` or ``private_tmp`` of cgi.
    """

    def __init__(
        self,
        *,
        read: Iterable[str | os.PathLike[str]] = (),
        write: Iterable[str | os.PathLike[str]] = (),
        execute: Iterable[str | os.PathLike[str]] = (),
        connect: Iterable[int] | None = (),
        bind: Iterable[int] | None = (),
        isolated: bool = True,
        system_calls: bool = True,
        private_tmp: int = 0,
    ) -> None:
        self.read = _names(read)
        self.write = _names(write)
        self.execute = _names(execute)
        self.connect = None if connect is None else tuple(connect)
        self.bind = None if bind is None else tuple(bind)
        self.isolated = isolated
        self.system_calls = system_calls
        self.private_tmp = private_tmp
        self._filter: Filter | None = None
        self._rules = -1
        self._pid = 0  # of the process that has opened it

    def arguments(self) -> dict[str, object]:
        """What another process needs to make the same."""
        names = ("read", "write", "execute", "connect", "bind", "isolated", "system_calls", "private_tmp")
        return {name: getattr(self, name) for name in names}

    def problems(self) -> Iterator[tuple[str, str]]:
        """What this machine lacks for it: the parameter, or an empty string, and a message."""
        version = landlock.version()
        if not version:
            yield "", f"this kernel has no Landlock, {_EXPECTED}"
            return
        for parameter, since, is_wanted in (
            ("", landlock.FILES_SINCE, True),
            ("connect", landlock.TCP_SINCE, self.connect is not None),
            ("bind", landlock.TCP_SINCE, self.bind is not None),
            ("isolated", landlock.ISOLATED_SINCE, self.isolated),
        ):
            if is_wanted and version < since[0]:
                yield (
                    parameter,
                    f"the Landlock of this kernel (version {version}) can't restrict {_WITHOUT[since]},"
                    f" expected Linux {since[1]} or newer",
                )
        for parameter in ("read", "write", "execute"):
            for path in getattr(self, parameter):
                try:
                    os.close(os.open(path, os.O_PATH | os.O_CLOEXEC))
                except OSError as error:
                    yield parameter, f"{path}: {error.strerror}"
        if self.system_calls:
            try:
                self._make_filter()
            except OSError as error:
                yield "system_calls", str(error.strerror)
        if self.private_tmp and (why := own_tmp.why_not()):
            yield "private_tmp", f"this machine allows no user and mount name spaces: {why}"

    def open(self) -> None:
        """Open what it names, in the process that starts the programs. ``start`` does so otherwise.

        :raises OSError: a path can't be opened, or the kernel lacks something.
        """
        if self._pid == os.getpid():
            return
        if self.system_calls:
            self._filter = self._make_filter()
        self._pid, self._rules = os.getpid(), self._make_rules()

    def close(self) -> None:
        """Close what is open, if it was opened by this process."""
        if self._pid == os.getpid():
            self._pid = 0
            os.close(self._rules)

    def _make_filter(self) -> Filter:
        return Filter(
            network=self.connect != () or self.bind != (),
            listens=self.bind != (),
            has_ports=self.connect is not None or self.bind is not None,
            changes_files=bool(self.private_tmp) or not all(map(_is_device, self.write)),
        )

    def _make_rules(self, writable: tuple[str, ...] = ()) -> int:
        devices = landlock.DEVICE_CONTROL if landlock.version() >= landlock.DEVICES_SINCE[0] else 0
        tcp = (landlock.CONNECT_TCP if self.connect is not None else 0) | (
            landlock.BIND_TCP if self.bind is not None else 0
        )
        rules = landlock.create(
            landlock.READ | landlock.WRITE | landlock.EXECUTE | devices, tcp, landlock.ISOLATED if self.isolated else 0
        )
        try:
            for paths, rights in (
                (self.read, landlock.READ),
                ((*self.write, *writable), landlock.READ | landlock.WRITE | devices),
                (self.execute, landlock.READ | landlock.EXECUTE),
            ):
                for path in paths:
                    _allow(rules, path, rights)
            landlock.allow_ports(rules, self.connect or (), landlock.CONNECT_TCP)
            landlock.allow_ports(rules, self.bind or (), landlock.BIND_TCP)
        except BaseException:
            os.close(rules)
            raise
        return rules

    def start(self, start: Callable[[], _T]) -> _T:
        """Call ``start()``, which starts a program, so that the program is in this sandbox. Return what it returns.

        :raises OSError: as ``start`` and ``open`` do.
        """
        self.open()
        return in_a_thread(lambda: self._start(start))

    def _start(self, start: Callable[[], _T]) -> _T:
        if os.geteuid() == 0:
            keep_only(0)
        gain_no_more()
        if self.private_tmp:
            own_tmp.mount_for_thread(self.private_tmp)
            rules = self._make_rules((own_tmp.PATH,))  # each mount is another directory
            try:
                landlock.restrict_thread(rules)
            finally:
                os.close(rules)
        else:
            landlock.restrict_thread(self._rules)
        if self._filter is not None:
            self._filter.apply_to_thread()
        return start()


def in_a_thread(call: Callable[[], _T]) -> _T:
    """Call it in a thread of its own, which then ends, and return what it returns.

    :raises BaseException: what it raises.
    """
    results: list[_T] = []
    errors: list[BaseException] = []
    done = _thread.allocate_lock()
    done.acquire()

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)
        finally:
            done.release()

    _thread.start_new_thread(run, ())
    done.acquire()
    if errors:
        raise errors[0]
    return results[0]


def _names(paths: Iterable[str | os.PathLike[str]]) -> tuple[str, ...]:
    return tuple(os.fspath(path) for path in paths)


def _is_device(path: str) -> bool:
    try:
        return stat.S_ISCHR(os.stat(path).st_mode)
    except OSError:
        return False


def _allow(rules: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise OSError(error.errno, f"sandbox: {path}: {error.strerror}") from None
    try:
        landlock.allow_path(rules, descriptor, rights)
    finally:
        os.close(descriptor)
