"""What an interpreter is when a script begins, and what it does when the script has ended.

A part of the fork server (`helper`), which runs this file in a module of its own, before anything else has changed the
interpreter. Like `helper` it needs the standard library alone, of any Python from 3.9 on.

Using an object writes to its page (reference counts), which a child has to copy first. So what a child does is kept to
a few calls, and the fork server does before the fork whatever does not depend on the request: standard streams that are
pipes, an empty environment. For the same reason a child does not destroy, at its end, what it shares with the fork
server.
"""

import _weakref
import gc
import os
import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType
    from typing import Any


class Interpreter:
    """This interpreter as it was when it started.

    :param main: the attributes of `__main__` before it ran anything.
    :ivar search_path: `sys.path` without the directory of the script.
    :ivar own_variables: environment variables that an interpreter sets at its start: LC_CTYPE (PEP 538).
    """

    def __init__(self, main: "dict[str, Any]") -> None:
        self.main = main
        self.streams = (sys.stdin, sys.stdout, sys.stderr)
        self.prepared: dict[bytes, list[Any]] = {}  # streams, by kinds
        self.has_orig_argv = hasattr(sys, "orig_argv")
        self.command = getattr(sys, "orig_argv", sys.argv)[: -len(sys.argv)]
        self.safe_path = has_safe_path()
        self.search_path: list[str] = []
        self.own_variables: dict[bytes, bytes] = {}

    def prepare(self) -> None:
        """Do what all children would do, after the last import."""
        os.environb.clear()
        posix.environ.clear()
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        reader, writer = os.pipe2(os.O_CLOEXEC)
        own = [os.dup(target) for target in range(3)]
        for kinds, ends in ((b"ppp", (reader, writer, writer)), (b"npp", (null, writer, writer))):
            for target, descriptor in enumerate(ends):
                os.dup2(descriptor, target)
            self.prepared[kinds] = [self._open_stream(target) for target in range(3)]
        for target, descriptor in enumerate(own):
            os.dup2(descriptor, target)
        for descriptor in (null, reader, writer, *own):
            os.close(descriptor)

    def become(
        self,
        argv: "list[str]",
        cwd: bytes,
        environment: "dict[bytes, bytes]",
        descriptors: "tuple[int, int, int]",
        kinds: bytes,
        directory: "str | None",
    ) -> "dict[str, Any]":
        """Become what a new interpreter would be for a script.

        :param descriptors: its standard input, output and error.
        :param kinds: a letter for each of them: `p` a pipe, `n` the null device, `?` anything.
        :param directory: that of the script, without symbolic links; None where that is not known.
        :returns: the globals to run it with.
        :raises OSError: there is no such directory to run it in.
        :raises ValueError: a variable has a name that none can have.
        """
        os.chdir(cwd)
        stdin, stdout, stderr = descriptors
        os.dup2(stdin, 0)
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        self._set_environment(environment)
        standard: Any = sys
        streams = self.prepared.get(kinds) or [self._open_stream(target) for target in range(3)]
        standard.stdin, standard.stdout, standard.stderr = streams
        standard.__stdin__, standard.__stdout__, standard.__stderr__ = streams
        self._set_paths(argv, directory)
        main = type(sys)("__main__")
        loader = type(self.main["__loader__"])("__main__", argv[0])
        main.__dict__.update(self.main, __doc__=None, __loader__=loader, __file__=argv[0])
        sys.modules["__main__"] = main
        return main.__dict__

    def _set_environment(self, environment: "dict[bytes, bytes]") -> None:
        if b"LC_ALL" not in environment and b"LC_CTYPE" not in environment and b"LANG" not in environment:
            environment.update(self.own_variables)
        set_variable = posix.putenv
        for name, value in environment.items():
            set_variable(name, value)
        os.environ._data.update(environment)  # type: ignore[attr-defined]  # as `putenv` is called already
        posix.environ.update(environment)  # what the os module reads when it is imported (with -S, that is yet to come)

    def _open_stream(self, target: int) -> "Any":
        return _open_stream(target, self.streams[target], "w" if target else "r")

    def _set_paths(self, argv: "list[str]", directory: "str | None") -> None:
        standard: Any = sys
        sys.argv = argv
        if self.has_orig_argv:  # from 3.10 on: the interpreter, its flags, then argv
            standard.orig_argv = self.command + argv
        if self.safe_path:
            sys.path = [*self.search_path]
        else:
            sys.path = [directory or os.path.dirname(os.path.realpath(argv[0])), *self.search_path]
        sys.path_importer_cache[argv[0]] = None  # the interpreter looks whether the script is an archive


def _open_stream(descriptor: int, model: "Any", mode: str) -> "Any":
    """Open a standard stream as a new interpreter does (`create_stdio` in CPython's Python/pylifecycle.c).

    :param model: the one that this interpreter made at its start. It has the encoding and the way of buffering, but it
        knows what its old descriptor was: a pipe is no null device, and can't seek.
    """
    unbuffered = mode == "w" and model.write_through
    binary: Any = open(descriptor, mode + "b", 0 if unbuffered else -1, closefd=False)
    raw = getattr(binary, "raw", binary)
    raw.name = model.name
    by_line = model.line_buffering or (not model.write_through and raw.isatty())
    stream = type(model)(binary, model.encoding, model.errors, "\n", by_line, model.write_through)
    stream.mode = mode
    return stream


def has_safe_path() -> bool:
    """Whether the script's directory is kept out of `sys.path` (-I, -P)."""
    return bool(sys.flags.isolated or getattr(sys.flags, "safe_path", False))


# --- compiling


class _WriteDetector:
    """A `sys.stderr` that only remembers whether anything was written."""

    written = False

    def write(self, text: str) -> None:
        self.written = self.written or bool(text)

    def flush(self) -> None:
        pass


def compile_silently(source: bytes, script: str) -> "CodeType | None":
    """Compile; None where that gave warnings. The modules that were needed to show them are hidden again."""
    before = set(sys.modules)
    detector: Any = _WriteDetector()
    stderr, sys.stderr = sys.stderr, detector
    try:
        code = compile(source, script, "exec", dont_inherit=True)
        return None if detector.written else code
    finally:
        sys.stderr = stderr
        forget_modules(before)


def forget_modules(before: "set[str]") -> None:
    """Hide what was imported since: a script that imports it gets it as if for the first time."""
    for name in set(sys.modules) - before:
        del sys.modules[name]


# --- memory


def freeze() -> None:
    """Keep a child's collector from touching, and so copying, what exists by now."""
    gc.collect()
    gc.freeze()


def _collect() -> None:
    """Collect what the script has left: nothing is in the oldest generation unless something was moved there."""
    gc.collect(1 if sys.version_info < (3, 14) and gc.get_count()[2] == 0 else 2)


# --- the end


def modules_known() -> "set[str]":
    """The names of the modules that are there before a script; none where one of them has handlers of its own."""
    return set(() if any(map(_may_have_handlers, sys.modules)) else sys.modules)


def end(status: int, known: "set[str]", *, rehearsal: bool = False) -> "int | None":
    """Do in a child, after its script, what the interpreter would. None if the interpreter had better do that itself.

    :param known: from `modules_known`, before the script.
    :param rehearsal: what modules have the interpreter do at its end stays to be done.
    :returns: the status to end the process with.
    """
    new = _new_modules(known)
    for name in new:
        if _may_have_handlers(name):
            return None
    try:
        if not rehearsal:
            if "threading" in sys.modules:
                sys.modules["threading"]._shutdown()
            if "atexit" in sys.modules:
                sys.modules["atexit"]._run_exitfuncs()
        _flush(sys.stdout)
        _flush(sys.stderr)
    except BaseException:  # noqa: BLE001 (of stdout: the interpreter meets it again, and says so)
        return None
    _destroy_modules([sys.modules.pop(name, None) for name in new])
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        try:
            _flush(stream)
        except Exception:  # noqa: BLE001 (closed, detached, or no stream at all)
            status = 120 if stream is sys.stdout else status
    return status


def _new_modules(known: "set[str]") -> "list[str]":
    """The names of the modules that the script has added, and `__main__`.

    New ones are at the end. Only where known ones have gone, too, is each of them looked at, which would be written to.
    """
    new = []
    modules = sys.modules
    for name in reversed(modules):
        if name in known:
            break
        new.append(name)
    if len(modules) - len(new) != len(known):
        new = [name for name in reversed(modules) if name not in known]
    new.reverse()
    return ["__main__", *[name for name in new if name != "__main__"]] if new else ["__main__"]


def _destroy_modules(modules: "list[Any]") -> None:
    """Destroy modules that are no longer in `sys.modules`, and what they hold."""
    alive = [_weakref.ref(module) for module in modules if isinstance(module, type(sys))]
    modules.clear()
    _collect()
    for reference in reversed(alive):  # what survives is in cycles that only break when names are unbound
        module = reference()
        for name in list(vars(module)) if module is not None else ():
            if name != "__builtins__":
                vars(module)[name] = None
        del module
    _collect()


def _may_have_handlers(name: str) -> bool:
    """Whether a module may have something to do when the C library ends the process, such as writing its buffers."""
    file = getattr(sys.modules.get(name), "__file__", None) or ""
    return name == "_ctypes" or (isinstance(file, str) and file.endswith(".so") and "/lib-dynload/" not in file)


def _flush(stream: "Any") -> None:
    if stream is not None and not getattr(stream, "closed", False):
        stream.flush()
