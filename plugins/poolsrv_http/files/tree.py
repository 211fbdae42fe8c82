"""Finding and opening the files below a directory, and no others.

A name is opened in two steps. The first, with O_PATH, lets the kernel resolve it, symbolic links and all, without
opening what is there: a FIFO would block, and a device might do something. /proc/self/fd tells where that led: it must
be inside the directory, by whole components, and a regular file. The second opens that very file for reading, by its
descriptor and not by a name, so nobody can exchange it in between.

Names with a dot in front are not there (`.git`, `.htaccess`), but for `/.well-known` at the top (RFC 8615). Only the
URL is asked: a link may lead to such a name, as in the volumes of Kubernetes.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from ..url_path import is_below

__all__ = ["Directory", "File", "FileError", "Tree", "Trees", "is_hidden"]

_READ: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_WELL_KNOWN: Final = b"/.well-known"
_FORBIDDEN: Final = frozenset({errno.EACCES, errno.EPERM, errno.ELOOP})
_NO_ROOM: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})


class FileError(Exception):
    """No file answers.

    :ivar status: 403, 404, 500, or 503 where there are no descriptors, no memory or no threads left.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class File(msgspec.Struct, frozen=True):
    """A regular file that is open for reading. Its descriptor is the caller's to close.

    :ivar name: as it was found, not resolved.
    :ivar size: bytes.
    :ivar modified: nanoseconds since the epoch.
    """

    fd: int
    name: bytes
    size: int
    modified: int


class Directory(msgspec.Struct, frozen=True):
    """A directory.

    :ivar name: as it was found, without a slash at its end.
    """

    name: bytes


class Tree:
    """The files below one directory.

    :param directory: it need not exist yet; its own symbolic links are resolved here, once.
    :param closed: directories of programs, and programs, that are not shown, by whatever name. If the directory itself
        is in one of them, its executable files are not shown, nor those with an interpreter's suffix.
    :param suffixes: of files that are programs without being executable.
    """

    __slots__ = ("_among_programs", "_inside", "_real", "_suffixes", "closed", "root")

    def __init__(
        self,
        directory: str | os.PathLike[str],
        closed: Sequence[str | bytes | os.PathLike[str]] = (),
        suffixes: Sequence[str] = (),
    ) -> None:
        self.root = os.fsencode(os.path.abspath(directory))
        self._real = os.path.realpath(self.root)
        self._inside = self._real if self._real.endswith(b"/") else self._real + b"/"
        real = [os.path.realpath(os.fsencode(name)) for name in closed]
        self.closed = [name for name in real if name.startswith(self._inside)]
        self._among_programs = any(is_below(self._real, name.rstrip(b"/")) for name in real)
        self._suffixes = tuple(map(os.fsencode, suffixes))

    def find(self, relative: bytes) -> File | Directory:
        """Open what a name below the directory leads to.

        :param relative: decoded and normalised, "" or with a slash in front.
        :raises FileError: there is none, or none that may be shown.
        """
        name = self.root + relative
        try:
            return self._open(name)
        except OSError as error:
            raise refusal(error, name) from None

    def neighbour(self, file: File, suffix: bytes) -> File | None:
        """Open the precompressed form of a file; None where there is none that is of use."""
        name = file.name + suffix
        try:
            found = self._open(name)
        except (OSError, FileError):
            return None
        if isinstance(found, Directory):
            return None
        # As old in whole seconds: not every archive keeps more.
        if found.modified // 10**9 < file.modified // 10**9:
            os.close(found.fd)
            return None
        return found

    def holds(self, name: bytes) -> bool:
        """Whether a name below the directory leads to something inside it."""
        real = os.path.realpath(name)
        return self._is_inside(real) and not self._is_closed(real)

    def _is_inside(self, real: bytes) -> bool:
        return real == self._real or real.startswith(self._inside)

    def _is_closed(self, real: bytes) -> bool:
        return any(real == name or real.startswith(name + b"/") for name in self.closed)

    def _open(self, name: bytes) -> File | Directory:
        found = os.open(name, os.O_PATH | os.O_CLOEXEC)
        try:
            status = os.fstat(found)
            link = b"/proc/self/fd/%d" % found
            try:
                real = os.readlink(link)
            except OSError:  # no /proc in this container
                link = real = os.path.realpath(name)
            if not self._is_inside(real):
                raise FileError(403, f"{os.fsdecode(name)} is outside of the directory")
            if self.closed and self._is_closed(real):
                raise FileError(403, f"{os.fsdecode(name)} is none of the files, but a program or its directory")
            if stat.S_ISDIR(status.st_mode):
                return Directory(name.rstrip(b"/"))
            if not stat.S_ISREG(status.st_mode):
                raise FileError(403, f"{os.fsdecode(name)} is not a regular file")
            if self._among_programs and (status.st_mode & 0o111 or real.endswith(self._suffixes)):
                raise FileError(403, f"{os.fsdecode(name)} is a program")
            if name.endswith(b"/"):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            fd = os.open(link, _READ)
        finally:
            os.close(found)
        if link is real:
            opened = os.fstat(fd)
            if not os.path.samestat(status, opened):
                os.close(fd)
                raise FileNotFoundError(errno.ENOENT, "it was exchanged")
        return File(fd, name, status.st_size, status.st_mtime_ns)


class Trees:
    """Directories by the URL paths that stand for them; the longest that fits counts.

    :param directories: URL path to directory.
    :param closed: as of a tree, like `suffixes`.
    """

    __slots__ = ("_trees",)

    def __init__(
        self,
        directories: Mapping[str, str | os.PathLike[str]],
        closed: Sequence[str | bytes | os.PathLike[str]] = (),
        suffixes: Sequence[str] = (),
    ) -> None:
        trees = [
            (os.fsencode(url.rstrip("/")), Tree(directory, closed, suffixes)) for url, directory in directories.items()
        ]
        self._trees = sorted(trees, key=lambda item: -len(item[0]))

    def match(self, path: bytes) -> tuple[bytes, Tree] | None:
        """The URL prefix and the tree for a decoded path."""
        for prefix, tree in self._trees:
            if is_below(path, prefix):
                return prefix, tree
        return None

    def directories(self) -> Sequence[tuple[bytes, bytes]]:
        """URL prefixes, without a slash at their end, and the directories, the longest first."""
        return [(prefix, tree.root) for prefix, tree in self._trees]


def is_hidden(path: bytes) -> bool:
    """Whether a decoded path has a name with a dot in front."""
    return b"/." in (path[len(_WELL_KNOWN) :] if is_below(path, _WELL_KNOWN) else path)


def refusal(error: OSError, name: bytes) -> FileError:
    """What an error means for the client."""
    text = f"{os.fsdecode(name)}: {error.strerror}"
    if error.errno in _FORBIDDEN:
        return FileError(403, text)
    if error.errno in _NO_ROOM:
        return FileError(503, text)
    return FileError(500 if error.errno == errno.EIO else 404, text)
