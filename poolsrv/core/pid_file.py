"""The pid file. The process that holds its lock is the server; without a lock, the file is what a crash has left.

The lock is a record lock of fcntl(2): the kernel says which process holds it, so the content of the file need not be
trusted. The file has mode 0600: no other user can open it, and so none can lock it. If another user holds a lock all
the same, from a time when everybody could open the file, that process is not the server, and the file is replaced.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import stat
import struct
from typing import Final

from .safe_names import Folder, Inode, inode_of

FILE_MODE: Final = 0o600
LONGEST: Final = 32  # bytes; a longer file is no pid file
ATTEMPTS: Final = 10  # to look at the file twice and find it unchanged

_FLOCK: Final = struct.Struct("hhqqi0q")  # struct flock of fcntl(2): type, whence, start, length, pid
_mine: Final[set[Inode]] = set()  # held by this process: closing a second descriptor of one would end its lock


class PidFileTaken(Exception):
    """Another server holds the file.

    :ivar pid: that server's pid; 0 if it is not known.
    """

    def __init__(self, path: str, pid: int) -> None:
        super().__init__(f"{path} is another server's (pid {pid})" if pid else f"{path} is another server's")
        self.pid = pid


class PidFile:
    """This process's pid file, locked until ``remove``, or until the process ends, however it does.

    :raises PidFileTaken: another server holds it.
    :raises OSError: it can't be written, or the existing file is no pid file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._folder = Folder(path)
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, f"there is no directory {os.path.dirname(path)}") from None
        try:
            for _ in range(ATTEMPTS):
                fd = self._open()
                if fd >= 0:
                    self._fd = fd
                    return
            raise PidFileTaken(path, 0)
        except BaseException:
            self._folder.close()
            raise

    def _open(self) -> int:
        """Open, lock and write the file.

        :returns: the descriptor; -1 if the file has changed meanwhile, and has to be opened again.
        """
        found = self._folder.stat()
        if found is not None and inode_of(found) in _mine:
            raise PidFileTaken(self.path, os.getpid())
        flags = os.O_RDWR | os.O_NONBLOCK
        if found is None:
            flags |= os.O_CREAT | os.O_EXCL
        elif not stat.S_ISREG(found.st_mode):
            raise FileExistsError(errno.EEXIST, "there is something of that name, and it is no file with a pid")
        try:
            fd = self._folder.open(flags, FILE_MODE)
        except (FileExistsError, FileNotFoundError):
            return -1
        try:
            if self._take(fd):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return -1

    def _take(self, fd: int) -> bool:
        status = os.fstat(fd)
        text = os.pread(fd, LONGEST + 1, 0) if stat.S_ISREG(status.st_mode) else b"-"
        if len(text) > LONGEST or not (text.isspace() or text.strip().isdigit() or not text):
            raise FileExistsError(errno.EEXIST, "there is a file of that name, and it is none with a pid")
        # A file of another user, or with a second name, is not written to; one that a stranger has locked is replaced.
        is_ours = status.st_uid == os.geteuid() and status.st_nlink == 1
        if is_ours:
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                pid = _holder(fd)
                if pid == 0 or _user_of(pid) in (0, status.st_uid):
                    raise PidFileTaken(self.path, pid) from None
                is_ours = False
            else:
                pid = _older_holder(fd)
                if pid and _user_of(pid) in (0, status.st_uid):
                    raise PidFileTaken(self.path, pid)
        if not is_ours:
            self._folder.unlink(inode_of(status))
            return False
        found = self._folder.stat()
        if found is None or inode_of(found) != inode_of(status):
            return False  # its owner has just removed it
        os.fchmod(fd, FILE_MODE)
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        _mine.add(inode_of(status))
        return True

    def remove(self) -> None:
        """Remove the file, if it is still this one, and release the lock."""
        inode = inode_of(os.fstat(self._fd))
        try:
            self._folder.unlink(inode)
        except OSError:
            pass  # the folder may be gone, or no longer writable: only the lock counts
        _mine.discard(inode)
        os.close(self._fd)
        self._folder.close()


class Server:
    """The process that holds a pid file, and never another one that gets its pid later.

    :ivar pid: its pid.
    """

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self._pidfd = pidfd

    def signal(self, number: signal.Signals) -> None:
        """Send a signal (pidfd_send_signal(2)).

        :raises ProcessLookupError: the process has ended.
        :raises PermissionError: it is another user's.
        """
        signal.pidfd_send_signal(self._pidfd, number)

    def wait(self, seconds: float) -> bool:
        """Wait at most so many seconds for its end; whether it has ended."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._pidfd)


def find(path: str) -> Server | None:
    """Find the server that holds the file; None if there is none.

    :raises OSError: the file can't be read.
    """
    try:
        with Folder(path) as folder:
            fd = folder.open(os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        pid = _server(fd)
        if not pid:
            return None
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return None
        # Now the kernel can't give its pid to another process: does it still hold the lock?
        if _server(fd) == pid:
            return Server(pid, pidfd)
        os.close(pidfd)
        return None
    finally:
        os.close(fd)


def running(path: str) -> int:
    """Return the pid of the server that holds the file; 0 if there is none.

    :raises OSError: the file can't be read.
    """
    server = find(path)
    if server is None:
        return 0
    server.close()
    return server.pid


def _server(fd: int) -> int:
    """Return the process that holds the lock, if it belongs to the file's owner; else 0."""
    pid = _holder(fd)
    return pid if pid > 0 and _user_of(pid) == os.fstat(fd).st_uid else 0


def _holder(fd: int) -> int:
    """Return the process that holds the lock (F_GETLK, fcntl(2)).

    :returns: 0 where nobody holds it, or a process of another PID namespace; -1 where an open file holds it.
    """
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, asked))
    return _older_holder(fd) if kind == fcntl.F_UNLCK else int(pid)


def _older_holder(fd: int) -> int:
    """Return the process that holds a lock of flock(2), as supervisors from before an upgrade do; 0 where none does."""
    status = os.fstat(fd)
    file = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        with open("/proc/locks") as listed:
            locks = listed.read().splitlines()
    except OSError:
        return 0
    # "1: FLOCK  ADVISORY  WRITE 4711 fe:01:1234 0 EOF"; of a process that waits for one "1: -> FLOCK ...".
    held = (line.split() for line in locks)
    return next((int(lock[4]) for lock in held if lock[1] == "FLOCK" and lock[3] == "WRITE" and lock[5] == file), 0)


def _user_of(pid: int) -> int:
    """Return the effective user of a process (proc_pid_status(5)).

    The owner of /proc/PID does not tell: it is root if the process is not dumpable.

    :returns: -1 if the process is gone, or belongs to another user and is hidden.
    """
    try:
        with open(f"/proc/{pid}/status", "rb") as status:
            return next(int(line.split()[2]) for line in status if line.startswith(b"Uid:"))
    except (OSError, StopIteration):
        pass
    try:
        os.kill(pid, 0)  # /proc may hide it (hidepid), but this user may signal it: so it is this user's
    except OSError:
        return -1
    return os.geteuid()
