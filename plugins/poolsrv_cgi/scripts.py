"""From a URL path to the script that answers it, or to the reason why none does.

The order of the steps is what makes it safe. Servers that took them in another order have run, or shown, what they
should not have:

1. Decode percent escapes, once. Control characters and an encoded slash are refused: NUL and a slash can't be part of
   a file's name, a line end in SCRIPT_NAME or PATH_INFO ends up in a program's header or log, and a decoded slash would
   give the path another shape than the one that a proxy in front has judged.
2. Normalise: drop empty segments and ".", let ".." drop its predecessor too, and refuse ".." above the top.
3. Split the path into the part that names the script and the rest: the longest path that exists as a file is
   SCRIPT_NAME, what follows is PATH_INFO (RFC 3875 sections 4.1.5 and 4.1.13).
4. Let the kernel resolve the file, symbolic links and all, and ask it where that led: /proc/self/fd of an O_PATH
   descriptor gives the name of the very file that was examined. That name must be inside `root`, by whole components.
5. Accept regular files only, and only executable ones unless an interpreter for the suffix is configured.

The file may be exchanged between this and the exec, since the kernel's exec of a script needs a name: anyone who may
change directories under `root` while the server runs decides what runs. The script is started by its name under `root`,
not by the resolved one, as a program that is linked under several names expects.

In the common case this costs four system calls: open, fstat, readlink, close. What a path has led to is remembered. For
a second, one system call then shows that its name still leads to the same file with the same mode (stat).
"""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import msgspec
from poolsrv_http import BadPath, encode_path, is_below
from poolsrv_http import decode_path as decoded_path

__all__ = [
    "NoScript",
    "Script",
    "ScriptPaths",
    "decode_path",
    "find_decoded",
    "find_script",
    "prefix_of",
    "resolve_line",
]

_find_control = re.compile(rb"[\x00-\x1f\x7f]").search
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.ELOOP})
_NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})  # the file may be there
MAX_KNOWN = 1024  # paths that are remembered
MAX_KNOWN_PATH = 200  # bytes of each
LOOK_AFTER = 1.0  # seconds from one examination of such a path to the next


class Script(msgspec.Struct, frozen=True, kw_only=True):
    """A script to run, and how the path was divided.

    :ivar argv: what to execute: the file, behind the interpreter that the config has for its suffix, if there is one.
    :ivar filename: its file, absolute (SCRIPT_FILENAME).
    :ivar directory: its working directory, where the file is (RFC 3875 section 7.2).
    :ivar script_name: the part of the URL path that names it, decoded (RFC 3875 section 4.1.13).
    :ivar path_info: the rest, decoded, empty or with a slash in front (section 4.1.5).
    :ivar root: the directory of programs that it is in; of an alias, the first one.
    :ivar nph: it writes the response itself, status line and all (section 5).
    :ivar interpreted: `argv` begins with an interpreter that the config has for its suffix.
    :ivar warm: it is to run in a child of a warm interpreter.
    :ivar real_directory: where its file really is, without symbolic links; "" where that has not been looked up.

    Bytes that are not text in the file system's encoding are surrogate escapes (PEP 383).
    """

    argv: tuple[str, ...]
    filename: str
    directory: str
    script_name: str
    path_info: str = ""
    root: str = ""
    nph: bool = False
    interpreted: bool = False
    warm: bool = False
    real_directory: str = ""


class NoScript(msgspec.Struct, frozen=True):
    """The reason why no script answers a path: the server does.

    :ivar status: 204 (`OPTIONS *`), 301 (a directory without its slash), 400, 403, 404, or 503 (no descriptors
        or no memory left to look).
    :ivar reason: one line for the log; it may name files, so it is not for the client.
    :ivar location: with 301 the path to send the client to, percent-encoded, without query.
    """

    status: int
    reason: str
    location: str = ""


class Known(msgspec.Struct, gc=False):
    """What a path has led to.

    :ivar identity: device, inode and mode of the file.
    :ivar real: its name without symbolic links.
    :ivar looked_at: when it was examined, monotonic.
    """

    file: bytes
    identity: tuple[int, int, int]
    real: bytes
    script: Script
    looked_at: float


class Tree:
    """A directory of scripts, and the URL path that stands for it.

    :ivar prefix: without slashes at either end; empty for all URL paths.
    :ivar real_root: without symbolic links.
    """

    __slots__ = ("prefix", "real_root", "root")

    def __init__(self, prefix: str, root: str | os.PathLike[str]) -> None:
        self.prefix = os.fsencode(prefix.strip("/"))
        self.root = os.fsencode(os.path.abspath(root))
        self.real_root = os.path.realpath(self.root)


class ScriptPaths:
    """Where the scripts are: the options about that, prepared once.

    :param root: a directory of scripts. It need not exist yet; its symbolic links are resolved here, once.
    :param prefix: the URL path that stands for `root`, "/" or "/cgi-bin/".
    :param roots: URL path to further such directories; the longest one that fits is taken.
    :param index: name of the script that answers for a directory, "" for none.
    :param extensions: suffixes that may run (".cgi"); empty: any.
    :param interpreters: suffix to the argument list that is put in front of the file.
    :param aliases: URL path to a script anywhere; the longest one that fits is taken.
    :param nph: patterns of SCRIPT_NAME (`fnmatch`) whose scripts write the response themselves.
    :param warm: True, or patterns of SCRIPT_NAME.
    """

    __slots__ = (
        "aliases", "extensions", "found", "index", "interpreters", "nph", "trees", "warm",
    )  # fmt: skip

    def __init__(
        self,
        *,
        root: str | os.PathLike[str] | None,
        prefix: str = "/",
        roots: Mapping[str, str | os.PathLike[str]] | None = None,
        index: str = "",
        extensions: Sequence[str] = (),
        interpreters: Mapping[str, Sequence[str]] | None = None,
        aliases: Mapping[str, str | os.PathLike[str]] | None = None,
        nph: Sequence[str] = (),
        warm: bool | Sequence[str] = False,
    ) -> None:
        trees = [Tree(prefix, root)] if root is not None else []
        trees += [Tree(*item) for item in (roots or {}).items()]
        self.trees = sorted(trees, key=lambda tree: -len(tree.prefix))
        self.index = os.fsencode(index)
        self.extensions = tuple(os.fsencode(suffix) for suffix in extensions)
        self.interpreters = {os.fsencode(suffix): tuple(argv) for suffix, argv in (interpreters or {}).items()}
        by_length = sorted((aliases or {}).items(), key=lambda item: -len(item[0].strip("/")))
        self.aliases = [
            (os.fsencode("/" + url.strip("/")), os.fsencode(os.path.abspath(file))) for url, file in by_length
        ]
        self.found: dict[str, Known] = {}
        self.nph = tuple(nph)
        self.warm = warm


def prefix_of(paths: ScriptPaths, decoded: bytes) -> bytes | None:
    """The part of a decoded path that makes it a program's, without a slash at its end: an alias, or the prefix of a
    root; None if it is no program's."""
    for url, _ in paths.aliases:
        if is_below(decoded, url.rstrip(b"/")):
            return url.rstrip(b"/")
    for tree in paths.trees:
        prefix = b"/" + tree.prefix if tree.prefix else b""
        if is_below(decoded, prefix):
            return prefix
    return None


def decode_path(path: str) -> bytes | NoScript:
    """Decode and normalise a URL path (steps 1 and 2). See `poolsrv_http.decode_path`."""
    if path == "*":
        return NoScript(204, "OPTIONS * is about the server, not a program")
    try:
        return decoded_path(path)
    except BadPath as error:
        return NoScript(400, str(error))


def find_script(paths: ScriptPaths, path: str) -> Script | NoScript:
    """Find the script for a URL path, percent-encoded and without the query (all steps).

    What a path has led to is remembered, and used as long as the file is where it was and what it was.
    """
    known = paths.found.get(path)
    if known is not None:
        try:
            if _is_unchanged(known):
                return known.script
        except OSError:
            pass
        del paths.found[path]
    return _find_script(paths, path)


def _is_unchanged(known: Known) -> bool:
    """Raises OSError."""
    now = time.monotonic()
    if now - known.looked_at < LOOK_AFTER:
        status = os.stat(known.file)
        return (status.st_dev, status.st_ino, status.st_mode) == known.identity
    known.looked_at = now
    status, real = _look_at(known.file)
    return real == known.real and (status.st_dev, status.st_ino, status.st_mode) == known.identity


def _find_script(paths: ScriptPaths, path: str) -> Script | NoScript:
    decoded = decode_path(path)
    return decoded if isinstance(decoded, NoScript) else find_decoded(paths, decoded, path)


def find_decoded(paths: ScriptPaths, decoded: bytes, remember_as: str = "") -> Script | NoScript:
    """Find the script for a URL path that `decode_path` has returned, or might have (steps 3 to 5).

    :param remember_as: the path as it was; "": what it leads to is not remembered.
    """
    for url, file in paths.aliases:
        if decoded == url or decoded.startswith(url + b"/") or url == b"/":
            name = b"" if url == b"/" else url
            return _alias(paths, file, name, decoded[len(name) :])
    relative = decoded[1:]
    for tree in paths.trees:
        if not tree.prefix:
            break
        if relative == tree.prefix:
            return _directory(paths, tree, tree.root, decoded)
        if relative.startswith(tree.prefix + b"/"):
            relative = relative[len(tree.prefix) + 1 :]
            break
    else:
        return NoScript(404, "the path is not below a prefix")
    wanted = relative.rstrip(b"/")
    return _examine(paths, tree, wanted, decoded[len(decoded) - len(relative) + len(wanted) :], decoded, remember_as)


def _examine(
    paths: ScriptPaths, tree: Tree, wanted: bytes, rest: bytes, decoded: bytes, remember_as: str = ""
) -> Script | NoScript:
    """Examine `wanted` below the root; `rest` is what follows it in the URL path `decoded`: "", "/", "/more"."""
    file = tree.root + b"/" + wanted if wanted else tree.root
    try:
        status, real = _look_at(file)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ENAMETOOLONG):
            split = _script_length(tree.root, wanted)
            if split < len(wanted):
                return _examine(paths, tree, wanted[:split], wanted[split:] + rest, decoded)
        return _refuse(error, file)
    if not _is_inside(real, tree.real_root):
        return NoScript(403, f"{os.fsdecode(file)} is outside of root")
    mode = status.st_mode
    if stat.S_ISDIR(mode):
        return _directory(paths, tree, file, decoded)
    script = _script(paths, tree.root, file, mode, decoded[: len(decoded) - len(rest)], rest, real=real)
    if 0 < len(remember_as) <= MAX_KNOWN_PATH and isinstance(script, Script):
        if len(paths.found) >= MAX_KNOWN:
            paths.found.clear()
        identity = status.st_dev, status.st_ino, mode
        paths.found[remember_as] = Known(file, identity, real, script, time.monotonic())
    return script


def _is_inside(real: bytes, real_root: bytes) -> bool:
    return real == real_root or real.startswith(real_root + b"/") or real_root == b"/"


def _mode_inside(file: bytes, real_root: bytes) -> int | None:
    """The mode of what `file` leads to; None where that is outside of `real_root`. Raises OSError."""
    status, real = _look_at(file)
    return status.st_mode if _is_inside(real, real_root) else None


def _look_at(file: bytes) -> tuple[os.stat_result, bytes]:
    """What `file` leads to, and its real name. Raises OSError."""
    descriptor = os.open(file, os.O_PATH | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        try:
            real = os.readlink(b"/proc/self/fd/%d" % descriptor)
        except OSError:  # no /proc in this container
            real = os.path.realpath(file)
    finally:
        os.close(descriptor)
    return status, real


def _script_length(root: bytes, wanted: bytes) -> int:
    """The length of the shortest part of `wanted`, by whole segments, that is no directory; all of it if there is none.

    Goes from the top down, so the depth of real directories bounds the number of system calls, not the URL.
    """
    end = 0
    while end < len(wanted):
        end = wanted.find(b"/", end + 1)
        if end < 0:
            break
        try:
            mode = os.stat(root + b"/" + wanted[:end]).st_mode
        except OSError:
            break
        if not stat.S_ISDIR(mode):
            return end
    return len(wanted)


def _directory(paths: ScriptPaths, tree: Tree, file: bytes, decoded: bytes) -> Script | NoScript:
    """The index script of a directory, once the client has the slash that relative links need."""
    if not paths.index:
        return NoScript(403, f"{os.fsdecode(file)} is a directory")
    index = file + b"/" + paths.index
    try:
        mode = _mode_inside(index, tree.real_root)
    except OSError as error:
        return _refuse(error, index)
    if mode is None:
        return NoScript(403, f"{os.fsdecode(index)} is outside of root")
    if not decoded.endswith(b"/"):
        return NoScript(301, "a directory without its slash", encode_path(decoded + b"/"))
    return _script(paths, tree.root, index, mode, decoded + paths.index, b"")


def _alias(paths: ScriptPaths, file: bytes, name: bytes, rest: bytes) -> Script | NoScript:
    """A script that the config names: it may be anywhere and have any suffix."""
    try:
        mode = os.stat(file).st_mode
    except OSError as error:
        status = 503 if error.errno in _NO_ROOM else 404
        return NoScript(status, f"alias {os.fsdecode(name)}: {os.fsdecode(file)}: {error.strerror}")
    root = paths.trees[0].root if paths.trees else b"/nonexistent"
    return _script(paths, root, file, mode, name, rest, any_suffix=True)


def _script(
    paths: ScriptPaths,
    root: bytes,
    file: bytes,
    mode: int,
    name: bytes,
    rest: bytes,
    any_suffix: bool = False,
    real: bytes = b"",
) -> Script | NoScript:
    """Judge the file itself (step 5)."""
    filename = os.fsdecode(file)
    if not stat.S_ISREG(mode):
        return NoScript(403, f"{filename} is not a regular file")
    suffix = os.path.splitext(file)[1]
    if paths.extensions and suffix not in paths.extensions and not any_suffix:
        return NoScript(403, f"{filename}: its suffix is not among the extensions")
    interpreter = paths.interpreters.get(suffix, ()) if paths.interpreters else ()
    if not interpreter and not mode & 0o111:
        return NoScript(403, f"{filename} is not executable")
    script_name = os.fsdecode(name)
    return Script(
        argv=(*interpreter, filename),
        filename=filename,
        directory=filename[: filename.rindex("/")] or "/",
        script_name=script_name,
        path_info=os.fsdecode(rest),
        root=os.fsdecode(root),
        interpreted=bool(interpreter),
        nph=bool(paths.nph) and any(fnmatchcase(script_name, pattern) for pattern in paths.nph),
        warm=paths.warm
        if isinstance(paths.warm, bool)
        else any(fnmatchcase(script_name, pattern) for pattern in paths.warm),
        real_directory=os.fsdecode(real[: real.rindex(b"/")] or b"/") if real else "",
    )


def _refuse(error: OSError, file: bytes) -> NoScript:
    """The refusal for an error: 403 where permission is missing, 503 where the server lacks something, else 404."""
    status = 403 if error.errno in _FORBIDDEN else 503 if error.errno in _NO_ROOM else 404
    return NoScript(status, f"{os.fsdecode(file)}: {error.strerror}")


def resolve_line(paths: ScriptPaths, name: bytes) -> Script | NoScript:
    """Find the script that a client of the "line" protocol names: a path below `root`, taken as it is, never decoded.

    The status of a refusal is for the log. Clients get one text for all of them, so that it does not tell which files
    exist.
    """
    if not name:
        return NoScript(400, "an empty name")
    if control := _find_control(name):
        return NoScript(400, f"a control character {control[0]!r} in the name")
    if name[0] == 47:
        return NoScript(403, f"{name!r} is an absolute name")
    segments = name.split(b"/")
    if b".." in segments or b"." in segments or b"" in segments:
        return NoScript(403, f"{name!r} has a dot or empty segment")
    (tree,) = paths.trees
    file = tree.root + b"/" + name
    try:
        mode = _mode_inside(file, tree.real_root)
    except OSError as error:
        return _refuse(error, file)
    if mode is None:
        return NoScript(403, f"{os.fsdecode(file)} is outside of root")
    return _script(paths, tree.root, file, mode, b"/" + name, b"")
