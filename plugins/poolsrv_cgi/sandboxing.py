"""The option `sandbox`: what the programs of a listener may do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, Protocol

import msgspec
from msgspec import Meta

from poolsrv import Sandbox

__all__ = ["SandboxOptions", "sandbox_of", "sandbox_problems", "sandbox_rows"]

Ports = bool | tuple[Annotated[int, Meta(ge=0, le=65535)], ...]

# With a usual Debian, or another distribution, in these are: programs, interpreters, libraries and their settings.
_SYSTEM = ("/bin", "/lib", "/lib32", "/lib64", "/libx32", "/sbin", "/usr")
_READABLE = ("/etc", "/proc")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


class SandboxOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A sandbox. A key that is not set is as in "strict", which is the table without any key.

    :ivar read: files and directories that programs may read, besides the system's own.
    :ivar write: those that they may read and change.
    :ivar execute: those that they may read and execute, besides those of the programs and the system.
    :ivar connect: the TCP ports that they may connect to; true: all. If this and `bind` are empty, programs can open
        unix sockets alone.
    :ivar bind: the TCP ports that they may listen on; true: all.
    :ivar isolated: whether a program can signal no process but those that it has started.
    :ivar system_calls: "strict": without those that no CGI program needs; "all".
    :ivar private_tmp: bytes of an empty /tmp that each program has for itself, in memory, with as many files as it has
        KiB, and 64 more; 0: none.
    """

    read: tuple[Path, ...] = ()
    write: tuple[Path, ...] = ()
    execute: tuple[Path, ...] = ()
    connect: Ports = ()
    bind: Ports = ()
    isolated: bool = True
    system_calls: Literal["strict", "all"] = "strict"
    private_tmp: Annotated[int, Meta(ge=0)] = 0


class Programs(Protocol):
    """Of the options, what says where the programs are."""

    @property
    def sandbox(self) -> Literal["strict"] | SandboxOptions | None:
        """The option itself."""

    @property
    def root(self) -> Path | None: ...

    @property
    def roots(self) -> dict[str, Path]: ...

    @property
    def aliases(self) -> dict[str, Path]: ...

    @property
    def interpreters(self) -> dict[str, tuple[str, ...]]: ...

    @property
    def program(self) -> tuple[str, ...]: ...

    @property
    def warm(self) -> bool | tuple[str, ...]: ...


def sandbox_of(options: Programs) -> Sandbox | None:
    """The sandbox of all programs of a listener; None without the option."""
    wanted = options.sandbox
    if wanted is None:
        return None
    if not isinstance(wanted, SandboxOptions):
        wanted = SandboxOptions()
    return Sandbox(
        read=[*_that_exist(_READABLE), *wanted.read],
        write=[*_that_exist(_DEVICES), *wanted.write],
        execute=[*_that_exist(_SYSTEM), *_that_exist(_of_programs(options)), *wanted.execute],
        connect=_ports(wanted.connect),
        bind=_ports(wanted.bind),
        isolated=wanted.isolated,
        system_calls=wanted.system_calls == "strict",
        private_tmp=wanted.private_tmp,
    )


def sandbox_problems(options: Programs) -> Iterator[tuple[str, str]]:
    """What is wrong with the option, or keeps this machine from doing what it says."""
    sandbox = sandbox_of(options)
    if sandbox is None:
        return
    if options.warm:
        yield "warm", "can't be combined with `sandbox`: scripts that run warm are copies of one process"
    if sandbox.private_tmp:
        yield from _tmp_problems(sandbox)
    for key, message in sandbox.problems():
        yield f"sandbox.{key}" if key else "sandbox", message


def _tmp_problems(sandbox: Sandbox) -> Iterator[tuple[str, str]]:
    for path in (*sandbox.read, *sandbox.write, *sandbox.execute):
        if Path(path).is_relative_to("/tmp"):
            yield "sandbox.private_tmp", f"hides {path}, expected another place for that"


def sandbox_rows(sandbox: Sandbox) -> Iterator[tuple[str, str]]:
    """Explain it, for `poolsrv explain`."""
    for name, ports in (("connect", sandbox.connect), ("bind", sandbox.bind)):
        yield f"sandbox.{name}", "all" if ports is None else ", ".join(map(str, ports)) or "none"
    for name in ("read", "write", "execute"):
        yield f"sandbox.{name}", ", ".join(getattr(sandbox, name))
    yield "sandbox.isolated", "yes" if sandbox.isolated else "no"
    yield "sandbox.system_calls", "strict" if sandbox.system_calls else "all"
    yield "sandbox.private_tmp", f"{sandbox.private_tmp} bytes" if sandbox.private_tmp else "none"


def _ports(ports: Ports) -> tuple[int, ...] | None:
    return (None if ports else ()) if isinstance(ports, bool) else ports


def _of_programs(options: Programs) -> Iterator[str]:
    """The directories of the programs, which are their working directories, and the commands that run them."""
    if options.root is not None:
        yield os.fspath(options.root)
    yield from map(os.fspath, options.roots.values())
    for file in options.aliases.values():
        yield os.fspath(file.parent)
    for command in (*options.interpreters.values(), options.program):
        if command and command[0].startswith("/"):
            yield command[0]


def _that_exist(paths: Iterator[str] | tuple[str, ...]) -> list[str]:
    return [path for path in paths if os.path.exists(path)]
