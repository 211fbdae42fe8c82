"""How root safely opens files in folders that other users may change.

Theory. A user who may write to a folder may give its names to other files at any moment: by a symbolic link, by a hard
link, by renaming. If root then acts on a path twice, the second time may hit a file of that user's choice. So root
opens the folder step by step, from ``/`` on, and follows a symbolic link only if nobody but root could have made it
(``_walk``). From then on root names the file relative to that descriptor, which stays the same folder whatever is
renamed, and does not follow the last step. Root changes an existing file only by a descriptor of that very file, after
looking at what it is.

*Trusted* are root and the user that this process acts as. The kernel already limits what a process that is not root can
do to the files of others: it opens a path as it is.
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

    :param path: the path of the file.
    :param make: create missing folders on the way, with this mode; None: a missing folder is an error.
    :param follow: the file itself may be a symbolic link, if only a trusted user can have made it.
    :ivar path: the path as given.
    :ivar name: the file's name in this folder.
    :ivar fixed: no other user can rename anything on the way to this folder, nor a trusted user's file in it.
    :ivar shared: other users may create files in it.
    :raises OSError: as open(2); ``ELOOP`` if a link must not be followed.
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
        """Return the status of the file that has the name now, links not followed; None if there is none.

        :raises OSError: as fstatat(2).
        """
        try:
            return os.stat(self.name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def open(self, flags: int, mode: int = 0o600) -> int:
        """Open the file without following a link.

        :raises OSError: as openat(2).
        """
        return os.open(self.name, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY, mode, dir_fd=self.fd)

    def unlink(self, inode: Inode) -> bool:
        """Remove the name, if it still belongs to that file.

        :returns: whether it did.
        :raises OSError: as unlinkat(2).
        """
        found = self.stat()
        if found is None or inode_of(found) != inode:
            return False
        os.unlink(self.name, dir_fd=self.fd)
        return True

    @property
    def address(self) -> str:
        """The path for bind(2) and connect(2) of a unix socket.

        If other users may rename on the way, it goes through the open folder (proc_pid_fd(5)).
        """
        return self.path if self.fixed else f"/proc/self/fd/{self.fd}/{self.name}"


class Socket:
    """The file of a unix socket, held open as it is; for ``with``.

    :ivar status: the status of the file.
    :raises FileNotFoundError: there is no file of that name.
    :raises OSError: it can't be opened, or (``EEXIST``) it is no socket.
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
        """Close the descriptor."""
        os.close(self._fd)

    @property
    def address(self) -> str:
        """The path for connect(2) to this very socket, even if another file has its name by now."""
        return f"/proc/self/fd/{self._fd}"

    def give(self, uid: int, gid: int, mode: int | None) -> None:
        """Set user, group and permissions; -1 and None leave them as they are.

        :raises OSError: as chown(2) and chmod(2); ``EPERM`` if it has a second name, because root might then give away
            another server's socket.
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
    """Return what identifies a file among all that exist now."""
    return status.st_dev, status.st_ino


def open_for_appending(path: str, mode: int, owner: Sequence[int] | None = None) -> int:
    """Open a log file, and create it if it is missing. This does not wait, even if the file is a pipe without a reader.

    Root follows no link that another user can have made. In a folder where other users may create files, the file must
    belong to root or the owner, and must not have a second name.

    :param mode: the permissions of a new file, before the umask.
    :param owner: user and group of a file that root creates; with it, the file itself must not be a symbolic link. -1:
        root's own.
    :returns: a descriptor, close-on-exec and non-blocking.
    :raises OSError: as openat(2); ``EPERM`` for a file that is not allowed, as above.
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


def open_private_folder(path: str) -> int:
    """Open a folder, in which nobody but root and this user may make or rename files.

    Root follows no link on the way that another user can have made.

    :returns: a descriptor, close-on-exec, for openat(2) and for listing.
    :raises OSError: as openat(2); ``EPERM`` if others may write to it; ``EACCES`` if this user may not.
    """
    with Folder(os.path.join(path, "x")) as folder:
        fixed = folder.fixed
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder.fd)
    try:
        status = os.fstat(fd)
        mode = stat.S_IMODE(status.st_mode)
        if status.st_uid not in (0, os.geteuid()):
            raise PermissionError(errno.EPERM, f"it belongs to user {status.st_uid}, expected root or this user")
        if mode & _OTHERS_WRITE:
            raise PermissionError(errno.EPERM, f"others may write to it (mode {mode:04o}), expected at most 0755")
        if not fixed:
            raise PermissionError(errno.EPERM, "others can rename a folder on the way to it")
        if not os.access(".", os.W_OK | os.X_OK, dir_fd=fd, effective_ids=True):
            raise PermissionError(errno.EACCES, "this user may not make files in it")
    except OSError:
        os.close(fd)
        raise
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
    """Open the folder of a path, and set ``fd``, ``name`` and ``fixed``."""
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
    """Return non-zero if users that are not trusted may create and remove files in a folder."""
    if status.st_uid not in (0, os.geteuid()):
        return 1
    writers = status.st_mode & _OTHERS_WRITE
    return writers & ~stat.S_IWGRP if status.st_gid == 0 else writers


def _is_fixed(status: os.stat_result) -> bool:
    """Whether no other user can rename the files of trusted users in a folder, as in one with the sticky bit."""
    if not _writers(status):
        return True
    return status.st_uid in (0, os.geteuid()) and bool(status.st_mode & stat.S_ISVTX)


def _is_proc(fd: int) -> bool:
    return os.fstat(fd).st_dev == os.stat("/proc").st_dev
