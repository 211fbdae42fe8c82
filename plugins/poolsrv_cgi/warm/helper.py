"""The warm helper: an interpreter that has started already and forks a child for each script it is asked to run.

    INTERPRETER [FLAGS] helper.py DESCRIPTOR [MODULE...]

It is a process of its own with nothing of the server in it; of the server's descriptors it has one, the number
DESCRIPTOR: its end of a SOCK_SEQPACKET pair. It imports each MODULE, says that it is ready, and serves requests, with
one thread. It is one file and needs the standard library alone, since it is run by whatever Python (from 3.9 on) the
"#!" line of a script names.

Messages are fields separated by NUL, which neither arguments nor environment can contain:

    to the helper    run ID CWD ARGC ARG... LIMITC "RESOURCE SOFT HARD"... NAME=VALUE...
                     with three descriptors (SCM_RIGHTS): the script's standard input, output and error
                     ping               asks whether the helper is alive
    from the helper  ready VERSION
                     pong
                     pid ID PID         from the child: it runs, as the leader of its own process group
                     exit ID STATUS UTIME STIME MAXRSS      its wait status (wait(2)), seconds, seconds, KiB
                     failed ID TEXT     it could not be started (ID 0: the helper ends)

A child runs this file to its end, with the script in the place of `__main__`, so that an exception meets the
interpreter's own way of ending. In the common case it ends by itself, as the interpreter would: threads joined,
`atexit`, what the script has made destroyed, buffers flushed. What it shares with the helper is left standing: each
page of that would be copied first. When the server is gone, the helper kills what still runs and ends.

Every look at an object writes to its page, which a child has to copy first. So all that can be done before the fork the
helper does in the child's stead: it takes on the environment, directory, streams and `__main__` of each script in turn.
No script can look into the helper, or change what it does for the next: it is not dumpable (prctl(2)). A child is.

A script is not to be able to tell that it was not started anew. What it can tell by all the same: `os.getppid()` and
/proc/self are the helper's; one frame of this file lies below its own; all children share one hash seed;
`sys.modules` has what the MODULEs brought along, and what these keep is not destroyed at the end;
`gc.get_freeze_count()` is not 0.
"""

import sys

_main_attributes = {name: value for name, value in globals().items() if name[:2] == "__"}
_new_interpreters_modules = set(sys.modules)

# The modules with an underscore are the C parts, which import nothing further.
import _ctypes  # noqa: E402
import _socket  # noqa: E402
import _weakref  # noqa: E402
import builtins  # noqa: E402
import gc  # noqa: E402
import os  # noqa: E402
import posix  # noqa: E402
import resource  # noqa: E402
import select  # noqa: E402

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from types import CodeType, TracebackType
    from typing import Any, NoReturn
else:
    import _signal

_first_streams = {name: getattr(sys, name) for name in ("stdin", "stdout", "stderr")}
_search_path = []  # type: list[str]
_own_variables = {}  # type: dict[bytes, bytes]  # which an interpreter sets at its start: LC_CTYPE (PEP 538)
_prctl = _ctypes.dlsym(_ctypes.dlopen(None, 0), "prctl")  # type: ignore[arg-type]
_interpreter = getattr(sys, "orig_argv", sys.argv)[: -len(sys.argv)]

VERSION = 1
MAX_MESSAGE = 1 << 18  # bytes; the kernel's default for a socket's buffer is less
MAX_CODES = 256
MSG_CMSG_CLOEXEC = 0x40000000  # linux/socket.h; Python's socket module does not always have it


class Request:
    """What to run: a decoded message.

    :raises ValueError, IndexError: the message is malformed.
    """

    def __init__(self, message: bytes, descriptors: "list[int]") -> None:
        kind, request_id, self.cwd, count, *fields = message.split(b"\0")
        self.id = int(request_id)
        self.descriptors = descriptors
        argc = int(count)
        self.argv = [os.fsdecode(field) for field in fields[:argc]]
        environment = argc + 1 + int(fields[argc])
        self.limits = [[int(number) for number in field.split()] for field in fields[argc + 1 : environment]]
        self.environment = dict(field.split(b"=", 1) for field in fields[environment:])
        if kind != b"run" or not self.argv or len(descriptors) != 3:
            raise ValueError("not a request to run something")


class Helper:
    """The process that forks. It waits for messages and for the ends of its children."""

    def __init__(self, control: _socket.socket) -> None:
        self.control = control
        self.children: dict[int, int] = {}  # pid to the request's id
        self.codes: dict[str, tuple[tuple[int, ...], CodeType]] = {}
        self.null = os.open(os.devnull, os.O_RDWR)
        self.wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)  # a byte for each SIGCHLD
        _signal.signal(_signal.SIGCHLD, lambda number, frame: None)
        _signal.set_wakeup_fd(self.wakeup[1], warn_on_full_buffer=False)

    def serve(self) -> "Script":
        """Serve until the server is gone, then end the process. Returns only in a child, with what it is to run."""
        poll = select.poll()
        poll.register(self.control.fileno(), select.POLLIN)
        poll.register(self.wakeup[0], select.POLLIN)
        self.say("ready", VERSION)
        while True:
            for descriptor, _ in poll.poll():
                if descriptor == self.wakeup[0]:
                    os.read(descriptor, 4096)
                    self.reap()
                    continue
                request = self.receive()
                script = None if request is None else self.start(request)
                if script is not None:
                    return script

    def say(self, *fields: object) -> None:
        """Tell the server."""
        try:
            self.control.send("\0".join(map(str, fields)).encode("utf-8", "replace"))
        except OSError:
            self.end()

    def end(self) -> "NoReturn":
        """The server is gone: leave nothing behind."""
        for pid in self.children:
            try:
                os.killpg(pid, _signal.SIGKILL)
            except OSError:
                pass  # the group has gone already
        os._exit(0)

    def receive(self) -> "Request | None":
        """The next request, with its descriptors; None where there is none to run."""
        try:
            message, ancillary, _, _ = self.control.recvmsg(MAX_MESSAGE, _socket.CMSG_SPACE(3 * 4), MSG_CMSG_CLOEXEC)
        except OSError:
            self.end()
        if not message:
            self.end()
        if message == b"ping":
            self.say("pong")
            return None
        descriptors = [
            int.from_bytes(data[at : at + 4], sys.byteorder)
            for _, _, data in ancillary
            for at in range(0, len(data), 4)
        ]
        try:
            return Request(message, descriptors)
        except (ValueError, IndexError) as error:
            for descriptor in descriptors:
                os.close(descriptor)
            self.say("failed", [*message.split(b"\0"), b"?"][1].decode("ascii", "replace"), error)
            return None

    def start(self, request: Request) -> "Script | None":
        """Fork. The script in the child, None in the helper; the descriptors stay open in the child alone."""
        if gc.get_count()[2]:  # something has grown old
            _freeze()
        pid = -1
        try:
            script = Script(request, self.code(request.argv[0]))
            pid = os.fork()
        except (OSError, ValueError) as error:
            cause = getattr(error, "filename", None) or b""
            self.say("failed", request.id, f"{getattr(error, 'strerror', error)}: {os.fsdecode(cause)}")
        if pid == 0:
            _set_dumpable(True)
            _signal.set_wakeup_fd(-1)
            _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
            os.setpgid(0, 0)
            self.children.clear()  # not this one's to end
            self.say("pid", request.id, os.getpid())  # before it runs: where the server no longer listens it does not
            self.control.close()
            for descriptor in (*self.wakeup, self.null, *request.descriptors):
                os.close(descriptor)
            return script
        for target, descriptor in enumerate(request.descriptors):
            os.dup2(self.null, target)
            os.close(descriptor)
        sys.path_importer_cache.pop(request.argv[0], None)
        if pid > 0:
            try:
                os.setpgid(pid, pid)  # both do it: the group exists as soon as anyone can know of it
            except OSError:
                pass  # the child has ended already
            self.children[pid] = request.id
        return None

    def reap(self) -> None:
        """Report every child that has ended."""
        while self.children:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
            if pid == 0:
                return
            if pid in self.children:
                self.say("exit", self.children.pop(pid), status, usage.ru_utime, usage.ru_stime, usage.ru_maxrss)

    def code(self, script: str) -> "CodeType | None":
        """The script's code, compiled once for as long as its file does not change; None: the child is to compile it.

        So it is with every mistake, for the child to report it, and with warnings, for each child to print them.
        """
        try:
            with open(script, "rb") as file:
                status = os.fstat(file.fileno())
                key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
                known = self.codes.get(script)
                if known is not None and known[0] == key:
                    return known[1]
                code = _compile_silently(file.read(), script)
        except Exception:  # noqa: BLE001 (whatever it is, the child meets it too)
            return None
        if code is None:
            return None
        if len(self.codes) >= MAX_CODES:
            self.codes.clear()
        self.codes[script] = (key, code)
        return code


class _Ear:
    """A `sys.stderr` that only remembers whether anything was written."""

    heard = False

    def write(self, text: str) -> None:
        self.heard = self.heard or bool(text)

    def flush(self) -> None:
        pass


def _compile_silently(source: bytes, script: str) -> "CodeType | None":
    """Compile; None where that gave warnings. The modules that were needed to show them are hidden again."""
    before = set(sys.modules)
    ear: Any = _Ear()
    sys.stderr = ear
    try:
        code = compile(source, script, "exec", dont_inherit=True)
        return None if ear.heard else code
    finally:
        _forget_modules(before)


def _forget_modules(before: "set[str]") -> None:
    """Hide what was imported since: a script that imports it gets it as if for the first time."""
    for name in set(sys.modules) - before:
        del sys.modules[name]


def _open_stream(descriptor: int, model: "Any", mode: str) -> "Any":
    """A standard stream as a new interpreter makes it (`create_stdio` in CPython's Python/pylifecycle.c).

    :param model: the one that this interpreter has made. It has the encoding and the way of buffering, but it knows
        what its old descriptor was: a pipe is no null device, one can't seek in it.
    """
    unbuffered = mode == "w" and model.write_through
    binary: Any = open(descriptor, mode + "b", 0 if unbuffered else -1, closefd=False)
    raw = getattr(binary, "raw", binary)
    raw.name = model.name
    by_line = model.line_buffering or (not model.write_through and raw.isatty())
    stream = type(model)(binary, model.encoding, model.errors, "\n", by_line, model.write_through)
    stream.mode = mode
    return stream


class Script:
    """A script about to run, for which this process has become what a new interpreter would be.

    :param code: the compiled script, None where the child is to compile it.
    :raises OSError: there is no such directory to run it in.
    :raises ValueError: a variable's name is none.
    """

    def __init__(self, request: Request, code: "CodeType | None") -> None:
        self.code = code
        self.limits = request.limits
        self.path = request.argv[0]
        os.chdir(request.cwd)
        for target, descriptor in enumerate(request.descriptors):
            os.dup2(descriptor, target)
        environment = request.environment
        if not {b"LC_ALL", b"LC_CTYPE", b"LANG"} & set(environment):
            environment.update(_own_variables)
        os.environb.clear()
        os.environb.update(environment)
        posix.environ.clear()  # what the os module reads when it is imported (with -S, that is yet to come)
        posix.environ.update(environment)
        standard: Any = sys
        for target, (name, model) in enumerate(_first_streams.items()):
            stream = _open_stream(target, model, "w" if target else "r")
            setattr(standard, name, stream)
            setattr(standard, f"__{name}__", stream)
        sys.argv = request.argv
        if hasattr(standard, "orig_argv"):  # from 3.10 on: the interpreter, its flags, then argv
            standard.orig_argv = _interpreter + request.argv
        sys.path = [] if _safe_path() else [os.path.dirname(os.path.realpath(self.path))]
        sys.path += _search_path
        sys.path_importer_cache[self.path] = None  # the interpreter looks whether the script is an archive
        main = type(sys)("__main__")
        loader = type(_main_attributes["__loader__"])("__main__", self.path)
        main.__dict__.update(_main_attributes, __doc__=None, __loader__=loader, __file__=self.path)
        sys.modules["__main__"] = main
        self.globals = main.__dict__

    def run(self) -> None:
        """In the child: run the script, whatever it may raise."""
        code = self.code
        if code is None:
            with open(self.path, "rb") as file:
                code = compile(file.read(), self.path, "exec", dont_inherit=True)
        exec(code, self.globals)


def _safe_path() -> bool:
    """Whether the script's directory is kept out of `sys.path` (-I, -P)."""
    return bool(sys.flags.isolated or getattr(sys.flags, "safe_path", False))


def end_quickly(status: int) -> None:
    """In the child, after the script: end as the interpreter would. Returns if it had better do it by itself."""
    new = [name for name in sys.modules if name not in _known_modules or name == "__main__"]
    if any(map(_may_have_handlers, new)):
        return
    try:
        if "threading" in sys.modules:
            sys.modules["threading"]._shutdown()
        if "atexit" in sys.modules:
            sys.modules["atexit"]._run_exitfuncs()
        _flush(sys.stdout)
        _flush(sys.stderr)
    except BaseException:  # noqa: BLE001 (of stdout: the interpreter meets it again, and says so)
        return
    modules = [sys.modules.pop(name, None) for name in new]
    alive = [_weakref.ref(module) for module in modules if isinstance(module, type(sys))]
    modules.clear()
    _collect()
    for reference in reversed(alive):  # what survives is in circles that only break when names are unbound
        module = reference()
        for name in list(vars(module)) if module is not None else ():
            if name != "__builtins__":
                vars(module)[name] = None
        del module
    _collect()
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        try:
            _flush(stream)
        except Exception:  # noqa: BLE001 (closed, detached, or no stream at all)
            status = 120 if stream is sys.stdout else status
    os._exit(status)


def _freeze() -> None:
    """In the helper: keep a child's collector from touching, and so copying, what it shares with the helper."""
    gc.collect()
    gc.freeze()


def _collect() -> None:
    """Collect what the script has left: nothing is in the oldest generation unless something was moved there."""
    gc.collect(1 if sys.version_info < (3, 14) and gc.get_count()[2] == 0 else 2)


def _may_have_handlers(name: str) -> bool:
    """Whether a module may have something to do when the C library ends the process, such as writing its buffers."""
    file = getattr(sys.modules.get(name), "__file__", None) or ""
    return name == "_ctypes" or (isinstance(file, str) and file.endswith(".so") and "/lib-dynload/" not in file)


def _flush(stream: "Any") -> None:
    if stream is not None and not getattr(stream, "closed", False):
        stream.flush()


def _without_this_file(kind: "type[BaseException]", error: BaseException, trace: "TracebackType | None") -> None:
    """A `sys.excepthook` that hides the frame of this file and hands over to the script's own hook."""
    sys.excepthook = _hook
    while trace is not None and trace.tb_frame.f_globals is _globals:
        trace = trace.tb_next
    error.__traceback__ = trace
    _hook(kind, error, trace)


def _set_dumpable(dumpable: bool) -> None:  # whether others of this user may read and change this process's memory
    _ctypes.call_function(_prctl, (4, int(dumpable), 0, 0, 0))


def prepare() -> Helper:
    """In the helper: import the modules that it is to have at hand."""
    control = _socket.socket(fileno=int(sys.argv[1]))
    helper = Helper(control)
    sys.path_importer_cache.pop(__file__, None)
    if not _safe_path():
        sys.path_importer_cache.pop(sys.path.pop(0), None)
    _search_path.extend(sys.path)
    if sys.version_info < (3, 9):  # noqa: UP036 (which Python this is, the scripts decide)
        helper.say("failed", 0, "this Python is older than 3.9")
        os._exit(1)
    _forget_modules(_new_interpreters_modules)
    with open("/proc/self/environ", "rb") as file:
        given = {entry.partition(b"=")[0] for entry in file.read().split(b"\0")}
    _set_dumpable(False)  # or a script could change what the next ones do
    _own_variables.update((name, value) for name, value in os.environb.items() if name not in given)
    for name in sys.argv[2:]:
        try:
            builtins.__import__(name)
            if len(os.listdir("/proc/self/task")) > 1:
                raise RuntimeError("its import starts a thread, which no child would have")
        except Exception as error:  # noqa: BLE001 (a module may raise anything)
            helper.say("failed", 0, f"{name}: {type(error).__name__}: {error}")
            os._exit(1)
    _freeze()
    return helper


if __name__ == "__main__":
    _globals = globals()
    _helper = prepare()
    _known_modules = set(() if any(map(_may_have_handlers, sys.modules)) else sys.modules)
    _script = _helper.serve()  # from here on, this is a child
    _status = 0
    try:
        for _limit in _script.limits:
            resource.setrlimit(_limit[0], (_limit[1], _limit[2]))
        if _script.code is None:
            open(_script.path, "rb").close()
    except ValueError as _error:
        os.write(2, os.fsencode(f"{_script.path}: resource limit: {_error}\n"))
        os._exit(127)
    except OSError as _error:
        _reason = f"[Errno {_error.errno}] {_error.strerror}"
        os.write(2, os.fsencode(f"{sys.executable}: can't open file {_script.path!r}: {_reason}\n"))
        os._exit(2)
    try:
        _script.run()
    except SystemExit as _exit:
        if _exit.code is not None and (type(_exit.code) is not int or not 0 <= _exit.code <= 255):
            raise
        _status = _exit.code or 0
    except BaseException:
        _hook = sys.excepthook
        sys.excepthook = _without_this_file
        raise
    del _script
    end_quickly(_status)
    sys.exit(_status)
