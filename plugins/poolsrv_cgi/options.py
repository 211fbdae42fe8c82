"""The options of `[listeners.NAME.cgi]`, and the mistakes in them.

The config reader checks the declared types and ranges. `problems` finds what no type can express: options of one
protocol under another, directories that do not exist, names that no environment can hold.

All times are seconds, all sizes bytes. 0 is no limit where that is said.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from poolsrv_http import (
    FileOptions,
    IndexFiles,
    UrlDirectories,
    file_problems,
    http_problems,
    index_files_problems,
    url_directories_problems,
)

from poolsrv import open_private_folder

from .sandboxing import SandboxOptions, sandbox_problems

__all__ = ["Limits", "Options", "problems"]

Seconds = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Resource limits of each program (setrlimit(2)); None leaves the server's own.

    :ivar address_space: bytes of address space.
    :ivar cpu_seconds: CPU time; when it is used up the program gets SIGXCPU, a second later SIGKILL.
    :ivar open_files: one more than the highest descriptor that it may have.
    :ivar processes: how many processes the server's user may have, those of other programs included.
    """

    address_space: Positive | None = None
    cpu_seconds: Positive | None = None
    open_files: Annotated[int, Meta(ge=3)] | None = None
    processes: Positive | None = None


class Options(FileOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of the cgi plugin. Those of `HttpOptions` and `FileOptions` are for http.

    What is served (`root` is for http and line, `files` for http):

    :ivar root: the directory of the programs; nothing outside of it runs, except by `aliases`.
    :ivar files: the directory of static files, for all URL paths that are no program's, or a table of URL path to
        directory; the longest path that fits counts, those of programs included. Without it none are sent.

    For every protocol:

    :ivar protocol: "http" (CGI/1.1 over HTTP), "line" (a line names the program, its output is the answer) or "inetd"
        (one fixed program with the connection on its descriptors).
    :ivar environment: variables to set; they win over those of the request.
    :ivar pass_environment: names of variables to pass on from the server's own environment, which is otherwise hidden.
    :ivar timeout: how long a program may run; then its whole process group is ended. 0: no limit.
    :ivar max_programs: how many may run at a time, over all workers. 0: no limit.
    :ivar queue_size: how many requests may wait for one of these to end; further ones are refused (http: 503).
    :ivar queue_timeout: how long a request may wait. 0: no limit.
    :ivar limits: resource limits of each program.
    :ivar user: the user of the programs, by name or number; not set: the server's. Only a server that was started as
        root can have it.
    :ivar group: their group; not set: the user's own.
    :ivar sandbox: what programs may do besides what their user may: "strict", or a table for more than that.
    :ivar stderr_rate: lines of standard error that are logged for a program, per second. 0: no limit.
    :ivar mask: further names of variables, header fields and query parameters whose values are secret, so that
        `poolsrv runs` and captures do not have them: `["X-Session", "pin", "*PRIVATE*"]`.
    :ivar capture: the directory in which runs that have failed are kept for `poolsrv replay`, without those values.
    :ivar capture_max: how many are kept; the oldest are removed.

    For http and line:

    :ivar interpreters: suffix to the command that runs such files, `{".py" = ["python3"]}`; these need not be
        executable, other files have to be.
    :ivar extensions: the suffixes of files that may run, `[".cgi", ".sh"]`; empty: all.

    For http:

    :ivar capture_body: bytes of a request's body that are kept in its capture.
    :ivar output_timeout: how long a program may print nothing. 0: no limit.
    :ivar warm: run Python programs in children of a warm interpreter, which each worker starts when it starts itself:
        true, or patterns of SCRIPT_NAME (`["/app/*"]`).
    :ivar warm_modules: modules that the warm interpreters import beforehand.
    :ivar prefix: the URL path that stands for `root`.
    :ivar roots: URL path to further directories of programs, `{"/cgi-bin" = "cgi-bin", "/htbin" = "htbin"}`; the
        longest one that fits counts. They need not exist yet.
    :ivar index: the name of the program that answers for its directory, "index.cgi"; "": none.
    :ivar aliases: URL path to a program anywhere, `{"/git" = "/usr/lib/git-core/git-http-backend"}`; the rest of the
        URL path is PATH_INFO.
    :ivar nph: patterns of SCRIPT_NAME (`["*/nph-*"]`) whose programs write the whole response themselves.
    :ivar pass_authorization: give programs the Authorization header field, with the password in it.
    :ivar max_local_redirects: local redirects in a row (502).
    :ivar file_index: the static files that answer for their directory, the first that is there.

    For line:

    :ivar arguments: whether a client may give arguments to the program.
    :ivar max_line: bytes of the longest line; a longer one is refused.

    For line and inetd:

    :ivar stderr: where a program's standard error goes: to the "log", line by line, or to the "client".
    :ivar nice: how much lower than the server's the priority of a program is, from -20 to 19; below 0 takes root.
    :ivar umask: permission bits that new files of a program do not get, "0027"; "": those of the server.

    For inetd:

    :ivar program: the command to run for each connection.
    """

    root: Path | None = None
    files: UrlDirectories = msgspec.field(default_factory=dict)
    protocol: Literal["http", "line", "inetd"] = "http"
    environment: dict[str, str] = msgspec.field(default_factory=dict)
    pass_environment: tuple[str, ...] = ()
    timeout: Seconds = 300.0
    max_programs: Count = 100
    queue_size: Count = 1000
    queue_timeout: Seconds = 30.0
    limits: Limits = Limits()
    user: str | int | None = None
    group: str | int | None = None
    sandbox: Literal["strict"] | SandboxOptions | None = None
    stderr_rate: Count = 100
    mask: tuple[str, ...] = ()
    capture: Path | None = None
    capture_max: Positive = 100

    interpreters: dict[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    extensions: tuple[str, ...] = ()

    capture_body: Annotated[int, Meta(ge=0, le=262144)] = 65536
    output_timeout: Seconds = 60.0
    warm: bool | tuple[str, ...] = False
    warm_modules: tuple[str, ...] = ()
    prefix: str = "/"
    roots: dict[str, Path] = msgspec.field(default_factory=dict)
    index: str = ""
    aliases: dict[str, Path] = msgspec.field(default_factory=dict)
    nph: tuple[str, ...] = ()
    pass_authorization: bool = False
    max_local_redirects: Count = 10
    file_index: IndexFiles = ("index.html",)

    arguments: bool = False
    max_line: Annotated[int, Meta(ge=64, le=1 << 20)] = 4096

    stderr: Literal["log", "client"] = "log"
    nice: Annotated[int, Meta(ge=-20, le=19)] = 0
    umask: str = ""

    program: tuple[str, ...] = ()


# The protocols of each option that is not for all of them.
_HTTP_AND_LINE = "root interpreters extensions"
_HTTP = (
    "capture_body output_timeout warm warm_modules prefix roots index aliases nph pass_authorization"
    " user_field auth_type_field"
    " client_field scheme_field host_field header_timeout body_timeout keepalive_timeout max_target_size"
    " max_header_size max_header_fields max_chunk_extensions max_local_redirects max_body_size"
    " min_body_rate spool_memory max_spooled"
    " access_log access_log_format mask_addresses"
    " listings media_types default_media_type charset cache_control precompressed send_timeout files file_index"
)
PROTOCOLS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_HTTP_AND_LINE.split(), ("http", "line")),
    **dict.fromkeys(_HTTP.split(), ("http",)),
    **dict.fromkeys(("arguments", "max_line"), ("line",)),
    **dict.fromkeys(("stderr", "nice", "umask"), ("line", "inetd")),
    "program": ("inetd",),
}


def problems(options: Options) -> list[tuple[str, str]]:
    """Find every mistake in options whose types are right.

    It looks at the file system, so it belongs to the start. An option with its default value counts as not set.

    :returns: pairs of key and message: what is wrong and what was expected.
    """
    return [
        *_wrong_protocol(options), *_paths(options), *_names(options), *_patterns(options), *_files(options),
        *_user(options), *_capture(options), *http_problems(options), *sandbox_problems(options),
    ]  # fmt: skip


def _wrong_protocol(options: Options) -> Iterator[tuple[str, str]]:
    defaults = Options()
    for name in Options.__struct_fields__:
        protocols = PROTOCOLS.get(name)
        if protocols and options.protocol not in protocols and getattr(options, name) != getattr(defaults, name):
            wanted = " or ".join(f'"{protocol}"' for protocol in protocols)
            yield name, f'has no meaning with protocol "{options.protocol}", expected protocol {wanted}'


def _paths(options: Options) -> Iterator[tuple[str, str]]:
    if options.protocol == "inetd":
        if not options.program:
            yield "program", "missing, expected a list: the command to run for each connection"
        elif wrong := _no_command(options.program):
            yield "program", wrong
        return
    if options.root is None:
        if options.protocol == "line" or not (options.aliases or options.roots):
            yield "root", "missing, expected the directory of the programs"
    elif not options.root.is_dir():
        yield "root", f"{options.root} is not a directory"
    for url, file in options.aliases.items():
        if not url.startswith("/"):
            yield "aliases", f'"{url}" is not a URL path, expected one that begins with a slash'
        if wrong := _not_a_file(file) if file.suffix in options.interpreters else _not_executable(file):
            yield "aliases", f'"{url}": {wrong}'
    if not _is_url_path(options.prefix):
        yield "prefix", f'"{options.prefix}" is not a URL path, expected one such as "/cgi-bin/"'
    yield from _roots(options)
    if "/" in options.index or options.index in (".", ".."):
        yield "index", "expected the name of a file, without a slash"


def _roots(options: Options) -> Iterator[tuple[str, str]]:
    seen = {options.prefix.strip("/"): "the prefix of root"} if options.root is not None else {}
    for url, directory in options.roots.items():
        if not _is_url_path(url):
            yield "roots", f'"{url}" is not a URL path, expected one such as "/cgi-bin"'
        elif (earlier := seen.get(url.strip("/"))) is not None:
            yield "roots", f'"{url}" is {earlier} too, expected each URL path once'
        elif directory.exists() and not directory.is_dir():
            yield "roots", f'"{url}": {directory} is not a directory'
        seen.setdefault(url.strip("/"), f'"{url}"')


def _is_url_path(path: str) -> bool:
    return path.startswith("/") and not any(bad in path for bad in ("//", "/.", "%", "?", "#"))


def _names(options: Options) -> Iterator[tuple[str, str]]:
    for name, value in options.environment.items():
        if not name or "=" in name or "\0" in name:
            yield "environment", f'"{name}" is not a name for a variable'
        if "\0" in value:
            yield "environment", f'the value of "{name}" contains a NUL'
    for name in options.pass_environment:
        if not name or "=" in name or "\0" in name:
            yield "pass_environment", f'"{name}" is not a name for a variable'
    for name in options.mask:
        if not name.strip("*? "):
            yield "mask", f'"{name}" is not a name, expected that of a variable, a header field or a parameter'
    for suffix, argv in options.interpreters.items():
        if not _is_suffix(suffix):
            yield "interpreters", f'"{suffix}" is not a suffix, expected one such as ".py"'
        if not argv or not all(argv):
            yield "interpreters", f'"{suffix}" has no command, expected one such as ["python3"]'
        elif wrong := _no_command(argv):
            yield "interpreters", f'"{suffix}": {wrong}'
    for suffix in options.extensions:
        if not _is_suffix(suffix):
            yield "extensions", f'"{suffix}" is not a suffix, expected one such as ".cgi"'
    if not re.fullmatch("(0?[0-7]{3})?", options.umask):
        yield "umask", f'"{options.umask}" is not a umask, expected octal digits in quotes, such as "0027"'
    for name in options.warm_modules:
        if not all(part.isidentifier() for part in name.split(".")):
            yield "warm_modules", f'"{name}" is not the name of a module'


def _patterns(options: Options) -> Iterator[tuple[str, str]]:
    for key, patterns in (("nph", options.nph), ("warm", options.warm)):
        for pattern in () if isinstance(patterns, bool) else patterns:
            if pattern[:1] not in ("/", "*"):
                yield key, f'"{pattern}" never matches: a SCRIPT_NAME begins with a slash'
    if options.warm_modules and not options.warm:
        yield "warm_modules", "has no meaning without warm"


def _files(options: Options) -> Iterator[tuple[str, str]]:
    yield from url_directories_problems("files", options.files)
    yield from index_files_problems("file_index", options.file_index)
    yield from file_problems(options)
    programs = {url.strip("/") for url in options.roots} | ({options.prefix.strip("/")} if options.root else set())
    for url in options.files:
        if url.strip("/") in programs:
            yield "files", f'the programs have "{url}" too, expected them at another URL path: prefix = "/cgi-bin/"'


def _capture(options: Options) -> Iterator[tuple[str, str]]:
    if options.capture is None:
        for key, value, default in (
            ("capture_max", options.capture_max, 100),
            ("capture_body", options.capture_body, 65536),
        ):
            if value != default:
                yield key, "has no meaning without capture"
        return
    try:
        os.close(open_private_folder(str(options.capture)))
    except OSError as error:
        yield "capture", f"{options.capture}: {error.strerror}"


def _user(options: Options) -> Iterator[tuple[str, str]]:
    """What the engine does not check, which reads both keys before it loads the plugin."""
    if options.user is None and options.group is None:
        return
    if options.warm:
        yield "warm", "can't be combined with `user` or `group`: warm interpreters run as the server's user"
    if options.nice:
        yield "nice", "can't be combined with `user` or `group`: only root can change the priority of others' processes"


def _is_suffix(suffix: str) -> bool:
    return len(suffix) > 1 and suffix[0] == "." and "/" not in suffix and "." not in suffix[1:]


def _not_a_file(file: Path) -> str:
    try:
        mode = os.stat(file).st_mode
    except OSError as error:
        return f"{file}: {error.strerror}"
    return "" if stat.S_ISREG(mode) else f"{file} is not a regular file"


def _no_command(argv: tuple[str, ...]) -> str:
    """What is wrong with a command, or "". A name is searched for in the server's own PATH. A relative path is not
    checked: it counts from a directory that is known only when the program is started."""
    name = argv[0]
    if any("\0" in word for word in argv):
        return "the command contains a NUL"
    if name.startswith("/"):
        return _not_executable(Path(name))
    if not name or ("/" not in name and shutil.which(name) is None):
        return f'no program "{name}" in {os.environ.get("PATH", os.defpath)}, expected one that is in PATH, or a path'
    return ""


def _not_executable(file: Path) -> str:
    return _not_a_file(file) or ("" if os.access(file, os.X_OK) else f"{file} is not executable")
