"""The compiled wheel: which modules mypyc compiles, and how.

They are compiled from the sources that are run as they are elsewhere, and the wheel has both: Python prefers the
compiled module beside a source file. What stays in plain Python: what no event runs through, msgspec's structs, the
plugins' classes, and the functions whose frames tell which plugin is running (worker/hooks.py, worker/plugin_calls.py).
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

SWITCH = "POOLSRV_COMPILE"  # in the environment: 1 makes a wheel a compiled one; "debug": with symbols, for profilers
LIBRARY = "poolsrv__mypyc"  # all compiled modules are in one library of this name; each has a small one that finds it

_MODULES = {
    "core": ("event_loop", "guarded_loop"),
    "dispatcher": ("acceptor", "dispatcher", "listener"),
    "net": (
        *("accepting", "connector", "descriptor", "file_sender", "input_buffer", "programs", "relay"),
        *("stream", "transport"),
    ),
    "worker": (
        *("connection", "deadlines", "descriptor_room", "kernel_acceptor", "newcomers", "reporter", "service"),
        *("tls_connection", "waiting"),
    ),
}
FILES = tuple(f"poolsrv/{package}/{name}.py" for package, names in _MODULES.items() for name in names)
MODULES = tuple(file.removesuffix(".py").replace("/", ".") for file in FILES)
_CLEAR = " PyObject_ClearWeakRefs((PyObject *)self);"
REQUIRES = ("mypy[mypyc]>=2.4,<2.5",)  # see _allow_weak_references

# Their sources have __weakref__ in __slots__. Each class that derives from one that is here has to be here.
WEAK = (
    *("net.descriptor.Descriptor", "net.input_buffer.InputBuffer", "net.stream.Stream", "net.stream.Pipe"),
    *("net.connector.OutgoingStream", "net.programs._OutputPipe", "worker.waiting.Waiting"),
    *("worker.connection.Connection", "worker.tls_connection.TlsConnection"),
)


def is_wanted() -> bool:
    """Whether the environment asks for a compiled wheel."""
    return os.environ.get(SWITCH, "0") not in ("", "0")


def compile_modules(root: Path, folder: Path) -> dict[Path, str]:
    """Compile; the libraries, each with its place in the wheel.

    :param root: the sources' tree.
    :param folder: for what is made.
    """
    from mypyc.build import mypycify
    from setuptools import Distribution
    from setuptools.command.build_ext import build_ext

    former = Path.cwd(), sys.argv, os.environ.get("MYPYPATH")
    os.chdir(root)  # tracebacks have the names of files as they are given here
    os.environ["MYPYPATH"] = "plugins"
    try:
        extensions = mypycify(
            # Not with the project's own settings: a warning of a newer mypy is no reason not to build.
            ["--config-file=", f"--cache-dir={folder / 'cache'}", "--ignore-missing-imports", *FILES],
            opt_level=os.environ.get("POOLSRV_COMPILE_LEVEL", "3"),
            debug_level="1" if os.environ.get(SWITCH) == "debug" else "0",
            group_name=LIBRARY.removesuffix("__mypyc"),
            target_dir=str(folder / "c"),
        )
        _allow_weak_references(next((folder / "c").glob("__native_*.c")))
        if os.environ.get(SWITCH) != "debug":
            for extension in extensions:
                extension.extra_link_args.append("-s")
        distribution: Any = Distribution({"name": "poolsrv", "ext_modules": extensions})
        command = build_ext(distribution)
        command.build_lib, command.build_temp = str(folder / "lib"), str(folder / "temp")
        command.ensure_finalized()
        command.run()
    finally:
        os.chdir(former[0])
        sys.argv = former[1]
        os.environ.pop("MYPYPATH")
        if former[2] is not None:
            os.environ["MYPYPATH"] = former[2]
    built = folder / "lib"
    return {path: str(path.relative_to(built)) for path in sorted(built.rglob("*.so"))}


def _allow_weak_references(file: Path) -> None:
    """Give objects of some classes a list of weak references, which mypyc does not do by itself.

    It is one more pointer at an object's end, zero at first: each type says where, and its destructor clears it.
    """
    text = file.read_text()
    for name in WEAK:
        struct = f"poolsrv___{name.replace('.', '___')}Object"
        for pattern, added in (
            (rf"\.tp_basicsize = sizeof\({struct}\)", f" + sizeof(PyObject *), .tp_weaklistoffset = sizeof({struct})"),
            (
                rf"_dealloc\({struct} \*self\)\s*{{\s*PyObject_GC_UnTrack\(self\);\s*CPy_TRASHCAN_BEGIN\(self, \w+\)",
                _CLEAR,
            ),
        ):
            text, count = re.subn(pattern, rf"\g<0>{added}", text)
            if count != 1:
                raise RuntimeError(f"mypyc writes another C than expected for {name}: {count} of {pattern}")
    file.write_text(text)
