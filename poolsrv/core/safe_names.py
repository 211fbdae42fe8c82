"""Names of files in folders that somebody else may change, as root has to take them.

Theory. Whoever may write to a folder may give its names to other files at any moment: by a symbolic link, by a hard
link, by renaming. What root does by a path, between two looks, it then does to a file of somebody else's choice. So
root opens the folder, from ``/`` on, one step after the other, and follows a symbolic link only where nobody but root
could have put it (``_walk``). From then on it names the file relative to that descriptor, which stays the same folder
whatever is renamed, and does not follow the last step. What it changes in a file that is there already it changes by a
descriptor of that very file, after a look at what that is.

*Trusted* are root and the user that this process acts as. A process that is not root can do to others' files no more
than the kernel lets it, so for it a path is opened as it is.

The supervisor imports this: nothing but the standard library, and at once.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Sequence
from types import TracebackType
from typing import Final

Inode = tuple[int, int]  # device and number

_MOST_LINKS: Final = 40  # as the kernel follows, path_resolution(7)
_FOLDER: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


class Folder:
    """An open folder, and the name of a file in it; for ``with``.

    :param path: of the file.
    :param make: the mode of folders on the way that are missing, which are made then; None: they are an error.
    :param follow: the file itself may be a symbolic link that only a trusted user can have put there.
    :ivar path: as given.
    :ivar name: of the file, in this folder.
    :ivar fixed: nobody else can rename on the way to this folder, or in it what is a trusted user's.
    :ivar shared: others may make files in it.
    :raises OSError: as open(2); ``ELOOP`` where a link is not to be followed.
    """

    def __init__(self, path: str, make: int | None = None, follow: bool = False) -> None:
        self.path = path
        self.fd, self.name, self.fixed = -1, os.path.basename(path), True
        if os.geteuid() != 0:
            where = os.path.dirname(path) or "."
            if make is not None:
                os.makedirs(where, mode=make, exist_ok=True)
            self.fd = os.open(where, _FOLDER)
        else:
            _walk(self, path, make, follow)
        self.shared = not self.fixed or bool(_writers(os.fstat(self.fd)))

    def __enter__(self) -> Folder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the folder."""
        os.close(self.fd)

    def stat(self) -> os.stat_result | None:
        """What has that name now, links not followed; None where nothing has.

        :raises OSError: as fstatat(2).
        """
        try:
            return os.stat(self.name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def open(self, flags: int, mode: int = 0o600) -> int:
        """Open the file; no link is followed.

        :raises OSError: as openat(2).
        """
        return os.open(self.name, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY, mode, dir_fd=self.fd)

    def unlink(self, inode: Inode) -> bool:
        """Remove the name, if it still is that file's.

        :returns: whether it was.
        :raises OSError: as unlinkat(2).
        """
        found = self.stat()
        if found is None or inode_of(found) != inode:
            return False
        os.unlink(self.name, dir_fd=self.fd)
        return True

    @property
    def address(self) -> str:
        """The path to bind a unix socket to, or to connect by: where others may rename on the way, it begins with the
        open folder (proc_pid_fd(5))."""
        return self.path if self.fixed else f"/proc/self/fd/{self.fd}/{self.name}"


class Socket:
    """The file of a unix socket, held open as it is; for ``with``.

    :ivar status: of the file.
    :raises FileNotFoundError: nothing has that name.
    :raises OSError: it can't be opened, or (``EEXIST``) is no socket.
    """

    def __init__(self, folder: Folder) -> None:
        self._fd = folder.open(os.O_PATH)
        self.status = os.fstat(self._fd)
        if not stat.S_ISSOCK(self.status.st_mode):
            os.close(self._fd)
            raise FileExistsError(errno.EEXIST, "there is a file of that name, and it is no socket")

    def __enter__(self) -> Socket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)

    @property
    def address(self) -> str:
        """To connect to this very socket, whatever has its name by now."""
        return f"/proc/self/fd/{self._fd}"

    def give(self, uid: int, gid: int, mode: int | None) -> None:
        """Set user, group and permissions; -1 and None leave them.

        :raises OSError: as chown(2) and chmod(2); ``EPERM`` where root would give away what may be another's: it has
            one more name somewhere.
        """
        mode_now = stat.S_IMODE(self.status.st_mode)
        owners = (self.status.st_uid, self.status.st_gid)
        wanted = (owners[0] if uid < 0 else uid, owners[1] if gid < 0 else gid)
        if wanted == owners and mode in (None, mode_now):
            return
        if self.status.st_nlink != 1:
            raise PermissionError(errno.EPERM, "that socket has a second name: it may be another server's")
        if wanted != owners:
            os.chown(self.address, uid, gid)
        if mode is not None and mode != mode_now:
            os.chmod(self.address, mode)


def inode_of(status: os.stat_result) -> Inode:
    """What tells a file from all others that there are now."""
    return status.st_dev, status.st_ino


def open_for_appending(path: str, mode: int, owner: Sequence[int] | None = None) -> int:
    """Open a log file, which is made if it is missing. Nobody is waited for, should it be a pipe that nobody empties.

    As root: no link is followed that somebody else can have put there; and in a folder where others may make files it
    has to be a file of root's or of the owner's, without a second name.

    :param mode: its permissions if it is made, less the umask.
    :param owner: user and group to which root gives a file that it makes; then the file is not followed at all if it
        is a symbolic link. -1: root's own.
    :returns: a descriptor, close-on-exec and non-blocking.
    :raises OSError: as openat(2), or (``EPERM``) as said above.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    if os.geteuid() != 0:
        return os.open(path, flags | os.O_CREAT, mode)
    with Folder(path, follow=owner is None) as folder:
        if _is_proc(folder.fd):  # /proc/self/fd/1, as /dev/stdout has it: the kernel's own links
            return os.open(folder.name, flags, dir_fd=folder.fd)
        try:
            fd = folder.open(flags | os.O_CREAT | os.O_EXCL, mode)
        except FileExistsError:
            trusted = {0, *((owner[0],) if owner is not None else ())}
            return _open_existing(folder, flags, trusted)
        if owner is not None:
            os.fchown(fd, *owner)
        return fd


def _open_existing(folder: Folder, flags: int, trusted: Collection[int]) -> int:
    fd = folder.open(flags)
    status = os.fstat(fd)
    if folder.shared and (status.st_uid not in trusted or (stat.S_ISREG(status.st_mode) and status.st_nlink != 1)):
        os.close(fd)
        raise PermissionError(
            errno.EPERM, "others can make files in its directory, and it is another user's, or has a second name"
        )
    return fd


def _walk(folder: Folder, path: str, make: int | None, follow: bool) -> None:
    """Open the folder of a path; sets ``fd``, ``name`` and ``fixed``."""
    steps = [step for step in reversed(os.path.abspath(path).split("/")) if step]
    folder.fd, folder.fixed = _root()
    links = 0
    try:
        while True:
            step = steps.pop() if steps else "."
            is_last = not steps
            if is_last and not follow:
                folder.name = step
                return
            try:
                fd = os.open(step, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder.fd)
            except FileNotFoundError:
                if is_last:
                    folder.name = step
                    return
                if make is None:
                    raise
                os.mkdir(step, make, dir_fd=folder.fd)
                steps.append(step)
                continue
            status = os.fstat(fd)
            if stat.S_ISLNK(status.st_mode):
                links += 1
                if _is_proc(folder.fd) and is_last:
                    os.close(fd)
                    folder.name = step
                    return
                target = os.readlink("", dir_fd=fd)
                os.close(fd)
                if not folder.fixed or status.st_uid not in (0, os.geteuid()):
                    raise OSError(errno.ELOOP, f"{step} is a symbolic link that others can change")
                if links > _MOST_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                if target.startswith("/"):
                    os.close(folder.fd)
                    folder.fd, folder.fixed = _root()
                steps += [part for part in reversed(target.split("/")) if part]
            elif is_last:
                os.close(fd)
                folder.name = step
                return
            else:
                os.close(folder.fd)
                folder.fd = fd
                folder.fixed = folder.fixed and _is_fixed(status)
                if not stat.S_ISDIR(status.st_mode):
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    except BaseException:
        os.close(folder.fd)
        raise


def _root() -> tuple[int, bool]:
    fd = os.open("/", _FOLDER)
    return fd, _is_fixed(os.fstat(fd))


def _writers(status: os.stat_result) -> int:
    """Not 0 where others than trusted users may make and remove files in a folder."""
    if status.st_uid not in (0, os.geteuid()):
        return 1
    writers = status.st_mode & _OTHERS_WRITE
    return writers & ~stat.S_IWGRP if status.st_gid == 0 else writers


def _is_fixed(status: os.stat_result) -> bool:
    """Whether what trusted users have in a folder keeps its names: in a sticky one everybody renames only his own."""
    if not _writers(status):
        return True
    return status.st_uid in (0, os.geteuid()) and bool(status.st_mode & stat.S_ISVTX)


def _is_proc(fd: int) -> bool:
    return os.fstat(fd).st_dev == os.stat("/proc").st_dev
