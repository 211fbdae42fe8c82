"""A fork server: an interpreter that has started already, and forks a child for each script it is asked to run.

    INTERPRETER [FLAGS] helper.py [MODULE...]

It is a process of its own with nothing of the server in it. Of the server's descriptors it has one, as its standard
input: its end of a SOCK_SEQPACKET pair. It imports each MODULE, says that it is ready, and serves requests, with
one thread. It is started by its path and needs the standard library alone (with `interpreter`, the file beside it),
since it is run by whatever Python, from 3.9 on, the "#!" line of a script names.

Messages are fields separated by NUL, which neither arguments nor environment can contain:

    to the helper    run ID CWD ARGC ARG... LIMITC "RESOURCE SOFT HARD"... NAME=VALUE...
                     with three descriptors (SCM_RIGHTS): the script's standard input, output and error
                     ping               asks whether the helper is alive
    from the helper  ready VERSION
                     pong
                     pid ID PID         from the child: it runs, as the leader of its own process group
                     exit ID STATUS UTIME STIME MAXRSS      its wait status (wait(2)), seconds, seconds, KiB
                     failed ID TEXT     it could not be started (ID 0: the helper ends)

A child runs this file to its end, with the script as `__main__`, so that an exception meets the
interpreter's own way of ending. In the common case it ends by itself, as the interpreter would: threads joined,
`atexit`, what the script has made destroyed, buffers flushed. When the server is gone, the helper kills what still runs
and ends.

No script can look into the helper, or change what it does for the next: the helper is not dumpable (prctl(2)). A child
is.

A script is not meant to notice that it runs in a child of a running interpreter. What it can tell all the same:
`os.getppid()` and /proc/self are the helper's; one frame of this file lies below its own; all children share one hash
seed; `sys.modules` has what the MODULEs brought along, and what these keep is not destroyed at the end;
`gc.get_freeze_count()` is not 0.
"""

import sys

_main_attributes = {name: value for name, value in globals().items() if name[:2] == "__"}
_new_interpreters_modules = set(sys.modules)

# The modules with an underscore are the C parts, which import nothing further.
import _ctypes  # noqa: E402
import _socket  # noqa: E402
import builtins  # noqa: E402
import gc  # noqa: E402
import os  # noqa: E402
import resource  # noqa: E402
import select  # noqa: E402

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from types import CodeType, ModuleType, TracebackType
    from typing import NoReturn

    from . import interpreter
else:
    import _signal

VERSION = 1
MAX_MESSAGE = 1 << 18  # bytes; the kernel's default for a socket's buffer is less
MAX_CODES = 256
MSG_CMSG_CLOEXEC = 0x40000000  # linux/socket.h; Python's socket module does not always have it
PR_SET_DUMPABLE = 4  # linux/prctl.h

_prctl = _ctypes.dlsym(_ctypes.dlopen(None, 0), "prctl")  # type: ignore[arg-type]


def load_neighbour(name: str) -> "ModuleType":
    """Run a file beside this one as a module. A script finds no trace of it: no module in `sys.modules`, no path in a
    cache, no bytecode in a directory."""
    path = os.path.join(os.path.dirname(__file__), f"{name}.py")
    module = type(sys)(name)
    with open(path, "rb") as file:
        exec(compile(file.read(), path, "exec", dont_inherit=True), module.__dict__)
    return module


if not TYPE_CHECKING:
    interpreter = load_neighbour("interpreter")

_fresh = interpreter.Interpreter(_main_attributes)


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


class Script:
    """A script about to run, for which this process has become what a new interpreter would be.

    :param code: the compiled script, None where the child is to compile it.
    :raises OSError: there is no such directory to run it in.
    :raises ValueError: a variable has a name that none can have.
    """

    def __init__(self, request: Request, code: "CodeType | None") -> None:
        self.code = code
        self.limits = request.limits
        self.path = request.argv[0]
        self.globals = _fresh.become(request.argv, request.cwd, request.environment, request.descriptors)

    def run(self) -> None:
        """Run the script, in the child, whatever it may raise."""
        code = self.code
        if code is None:
            with open(self.path, "rb") as file:
                code = compile(file.read(), self.path, "exec", dont_inherit=True)
        exec(code, self.globals)


class Helper:
    """The process that forks. It waits for messages and for the ends of its children."""

    def __init__(self, control: _socket.socket) -> None:
        self.control = control
        self.children: dict[int, int] = {}  # process id to the request's id
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
        """Send a message to the server."""
        try:
            self.control.send("\0".join(map(str, fields)).encode("utf-8", "replace"))
        except OSError:
            self.end()

    def end(self) -> "NoReturn":
        """End, and leave nothing behind: the server is gone."""
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
            interpreter.freeze()
        pid = -1
        try:
            script = Script(request, self.code(request.argv[0]))
            pid = os.fork()
        except (OSError, ValueError) as error:
            cause = getattr(error, "filename", None) or b""
            self.say("failed", request.id, f"{getattr(error, 'strerror', error)}: {os.fsdecode(cause)}")
        if pid == 0:
            self.become_child(request)
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

    def become_child(self, request: Request) -> None:
        """Close, in a child, what belongs to the helper, and say that it runs."""
        _set_dumpable(True)
        _signal.set_wakeup_fd(-1)
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
        os.setpgid(0, 0)
        self.children.clear()  # the helper's to end, not this one's
        self.say("pid", request.id, os.getpid())  # before it runs: where the server no longer listens it does not
        self.control.close()
        for descriptor in (*self.wakeup, self.null, *request.descriptors):
            os.close(descriptor)

    def reap(self) -> None:
        """Report every child that has ended."""
        while self.children:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
            if pid == 0:
                return
            if pid in self.children:
                self.say("exit", self.children.pop(pid), status, usage.ru_utime, usage.ru_stime, usage.ru_maxrss)

    def code(self, script: str) -> "CodeType | None":
        """The script's code, compiled once for as long as its file does not change.

        None where the child is to compile it: with every mistake, for the child to report it, and with warnings, for
        each child to print them.
        """
        try:
            with open(script, "rb") as file:
                status = os.fstat(file.fileno())
                key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
                known = self.codes.get(script)
                if known is not None and known[0] == key:
                    return known[1]
                code = interpreter.compile_silently(file.read(), script)
        except Exception:  # noqa: BLE001 (whatever it is, the child meets it too)
            return None
        if code is None:
            return None
        if len(self.codes) >= MAX_CODES:
            self.codes.clear()
        self.codes[script] = (key, code)
        return code


def _set_dumpable(dumpable: bool) -> None:
    """Set whether others of this user may read and change this process's memory."""
    _ctypes.call_function(_prctl, (PR_SET_DUMPABLE, int(dumpable), 0, 0, 0))


def _without_this_file(kind: "type[BaseException]", error: BaseException, trace: "TracebackType | None") -> None:
    """A `sys.excepthook` that hides the frames of this file and hands over to the script's own hook."""
    sys.excepthook = _hook
    while trace is not None and trace.tb_frame.f_globals is _globals:
        trace = trace.tb_next
    error.__traceback__ = trace
    _hook(kind, error, trace)


def prepare() -> Helper:
    """Import the modules that the helper is to have at hand."""
    helper = Helper(_socket.socket(fileno=os.dup(0)))
    os.dup2(helper.null, 0)
    sys.path_importer_cache.pop(__file__, None)
    if not interpreter.has_safe_path():
        sys.path_importer_cache.pop(sys.path.pop(0), None)
    _fresh.search_path.extend(sys.path)
    if sys.version_info < (3, 9):  # noqa: UP036 (which Python this is, the scripts decide)
        helper.say("failed", 0, "this Python is older than 3.9")
        os._exit(1)
    interpreter.forget_modules(_new_interpreters_modules)
    with open("/proc/self/environ", "rb") as file:
        given = {entry.partition(b"=")[0] for entry in file.read().split(b"\0")}
    _set_dumpable(False)  # or a script could change what the next ones do
    _fresh.own_variables.update((name, value) for name, value in os.environb.items() if name not in given)
    for name in sys.argv[1:]:
        try:
            builtins.__import__(name)
            if len(os.listdir("/proc/self/task")) > 1:
                raise RuntimeError("its import starts a thread, which no child would have")
        except Exception as error:  # noqa: BLE001 (a module may raise anything)
            helper.say("failed", 0, f"{name}: {type(error).__name__}: {error}")
            os._exit(1)
    interpreter.freeze()
    return helper


if __name__ == "__main__":
    _globals = globals()
    _helper = prepare()
    _known_modules = interpreter.modules_known()
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
    interpreter.end_quickly(_status, _known_modules)
    sys.exit(_status)
