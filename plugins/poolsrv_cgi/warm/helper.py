"""A fork server: an interpreter that has started already, and forks children, each of which runs one script.

    INTERPRETER [FLAGS] helper.py [MODULE...]

It is a process of its own with nothing of the server in it. Of the server's descriptors it has one, as its standard
input: its end of a SOCK_SEQPACKET pair. It imports each MODULE, says that it is ready, and forks children ahead of
their requests, with one thread. It is started by its path and needs the standard library alone (with `interpreter`, the
file beside it), since it is run by whatever Python, from 3.9 on, the "#!" line of a script names.

The server gets a socket for each child, and sends it one request. The helper itself never sees a request, so there is
nothing of one in the memory of another's child. Messages are fields separated by NUL:

    to the helper    fork COUNT         fork so many children
                     code PATH          compile this script, for the children to come
                     ping               asks whether the helper is alive
    from the helper  ready VERSION
                     pong
                     forked PID...      with a socket for each (SCM_RIGHTS)
                     short COUNT TEXT   so many could not be forked
                     exit PID STATUS UTIME STIME MAXRSS ...
                                        of one child or several: wait status (wait(2)), seconds, seconds, KiB
                     failed 0 TEXT      the helper can't be what it should be, and ends
    to a child       LENGTH of the next message, if that is longer than 8192 bytes
                     a tuple (marshal): ID, working directory, arguments, the kinds of its descriptors, the directory of
                     the script without symbolic links or None, limits, environment (None, or names and values, each
                     joined by NUL); with its standard input, output and error (SCM_RIGHTS)
    from a child     pid ID PID         it runs, as the leader of its own process group
                     failed ID TEXT     it can't be started
                     code PATH          it has had to compile its script

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
import marshal  # noqa: E402
import os  # noqa: E402
import resource  # noqa: E402
import select  # noqa: E402

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from types import CodeType, ModuleType, TracebackType
    from typing import Any, NoReturn

    from . import interpreter, memory, rehearsal

    Code = tuple[tuple[int, ...], CodeType]
else:
    import _signal

VERSION = 4
MAX_MESSAGE = 1 << 18  # bytes; the kernel's default for a socket's buffer is less
MAX_UNANNOUNCED = 8192  # bytes of a request; a longer one follows a message that has its length
MAX_CODES = 256
MSG_CMSG_CLOEXEC = 0x40000000  # linux/socket.h; Python's socket module does not always have it
PR_SET_DUMPABLE = 4  # linux/prctl.h

_prctl = _ctypes.dlsym(_ctypes.dlopen(None, 0), "prctl")  # type: ignore[arg-type]


def _set_dumpable(dumpable: bool) -> None:
    """Set whether others of this user may read and change this process's memory."""
    _ctypes.call_function(_prctl, (PR_SET_DUMPABLE, int(dumpable), 0, 0, 0))


with open("/proc/self/environ", "rb") as _file:  # not to be read any more afterwards
    _given = {_entry.partition(b"=")[0] for _entry in _file.read().split(b"\0")}
_set_dumpable(False)  # as early as can be: a script could change what the next ones do


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
    memory = load_neighbour("memory")
    rehearsal = load_neighbour("rehearsal")

_fresh = interpreter.Interpreter(_main_attributes)
_encoding, _errors = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
_RIGHTS_SIZE = _socket.CMSG_SPACE(3 * 4)
_LOW, _HIGH = (0, 1) if sys.byteorder == "little" else (3, 2)  # bytes of a small int


class Script:
    """A script about to run, for which this process has become what a new interpreter would be.

    :ivar code: the compiled script. None where it gives errors or warnings, which are for its own streams, and where it
        can't be read.
    :ivar compiled: whether it has been compiled here.
    """

    path = ""
    limits: "list[tuple[int, int, int]]"
    globals: "dict[str, Any]"
    code: "CodeType | None" = None
    compiled = False

    def find_code(self, known: "Code | None") -> None:
        """Take the code that has been compiled before, if the file has not changed; else compile it."""
        try:
            if known is not None and known[0] == _identity(self.path):
                self.code = known[1]
                return
            file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return
        try:
            found = _compiled(file, self.path)
            self.code, self.compiled = found and found[1], found is not None
        finally:
            os.close(file)

    def begin(self) -> None:
        """Set limits; end the process where they can't be set, or the script can't be read."""
        try:
            for limit in self.limits:
                resource.setrlimit(limit[0], (limit[1], limit[2]))
            if self.code is None:
                open(self.path, "rb").close()
        except ValueError as error:
            os.write(2, os.fsencode(f"{self.path}: resource limit: {error}\n"))
            os._exit(127)
        except OSError as error:
            reason = f"[Errno {error.errno}] {error.strerror}"
            os.write(2, os.fsencode(f"{sys.executable}: can't open file {self.path!r}: {reason}\n"))
            os._exit(2)

    def run(self) -> None:
        """Run the script, in the child, whatever it may raise."""
        code = self.code
        if code is None:
            with open(self.path, "rb") as file:
                code = compile(file.read(), self.path, "exec", dont_inherit=True)
        exec(code, self.globals)


def _identity(file: "int | str") -> "tuple[int, ...]":
    """What changes when the file does."""
    status = os.stat(file)
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _compiled(file: int, path: str) -> "Code | None":
    """Compile a script. None where each child is to do it for itself: with every mistake, to report it, and with
    warnings, to print them."""
    try:
        identity = _identity(file)
        with open(file, "rb", closefd=False) as source:
            code = interpreter.compile_silently(source.read(), path)
    except Exception:  # noqa: BLE001 (whatever it is, the child meets it again)
        return None
    return None if code is None else (identity, code)


class Helper:
    """The process that forks. It waits for messages and for the ends of its children."""

    def __init__(self, control: _socket.socket) -> None:
        self.control = control
        self.children: set[int] = set()
        self.codes: dict[str, Code] = {}
        self.script = Script()  # each child's own
        self.null = os.open(os.devnull, os.O_RDWR)
        self.resource_is_known = False  # whether a MODULE has imported it
        self.wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)  # a byte for each SIGCHLD
        self.child_is_dumpable = True

    def serve(self) -> "Script":
        """Serve until the server is gone, then end the process. Returns only in a child, with what it is to run."""
        _signal.signal(_signal.SIGCHLD, lambda number, frame: None)
        _signal.set_wakeup_fd(self.wakeup[1], warn_on_full_buffer=False)
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
                requests = self.receive()
                if requests is not None:
                    return self.await_request(requests)

    def say(self, *fields: object) -> None:
        """Send a message to the server; end where it does not listen."""
        try:
            self.send(*fields)
        except OSError:
            self.end()

    def send(self, *fields: object) -> None:
        """Send a message to the server.

        :raises OSError: it does not listen.
        """
        self.control.send("\0".join(map(str, fields)).encode("utf-8", "replace"))

    def end(self) -> "NoReturn":
        """End, and leave nothing behind: the server is gone."""
        for pid in self.children:
            try:
                os.killpg(pid, _signal.SIGKILL)
            except OSError:
                pass  # the group has gone already, or the child has got no request; its socket tells it to end
        os._exit(0)

    def receive(self) -> "_socket.socket | None":
        """Do what the server asks for. In a child, the socket that its request comes on."""
        try:
            message = self.control.recv(MAX_MESSAGE)
        except OSError:
            self.end()
        kind, _, argument = message.partition(b"\0")
        if not message:
            self.end()
        elif kind == b"ping":
            self.say("pong")
        elif kind == b"fork" and argument.isdigit():
            return self.fork(int(argument))
        elif kind == b"code":
            self.learn(os.fsdecode(argument))
        else:
            self.say("failed", 0, "not a message for a warm helper")
            self.end()
        return None

    def fork(self, count: int) -> "_socket.socket | None":
        """Fork children ahead, all in one go: between two forks, as little as possible is written to memory, which
        would be copied. In a child, the socket that its request comes on."""
        if gc.get_count()[2]:  # something has grown old
            interpreter.freeze()
        made: list[tuple[_socket.socket, int]] = []
        for number in range(count):
            try:
                ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
                pid = os.fork()
            except OSError as error:
                self.say("short", count - number, error.strerror)
                break
            if pid == 0:
                ours.close()
                for socket, _ in made:
                    socket.close()
                return theirs
            theirs.close()
            self.children.add(pid)
            made.append((ours, pid))
        if made:
            sockets = b"".join(socket.fileno().to_bytes(4, sys.byteorder) for socket, _ in made)
            message = b"\0".join([b"forked", *(b"%d" % pid for _, pid in made)])
            try:
                self.control.sendmsg([message], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, sockets)])
            except OSError:
                self.end()
        for socket, _ in made:
            socket.close()
        return None

    def await_request(self, requests: _socket.socket) -> Script:
        """Wait, in a child, for its request, and become what it needs. It runs if the server still listens.

        All that this uses has to be copied for each request, so it uses little.
        """
        self.children.clear()  # the helper's to end, not this one's
        try:
            message, ancillary, _, _ = requests.recvmsg(MAX_UNANNOUNCED, _RIGHTS_SIZE, MSG_CMSG_CLOEXEC)
            if not ancillary:  # a large buffer is a mapping of its own, to be made and removed
                message, ancillary, _, _ = requests.recvmsg(
                    min(int(message), MAX_MESSAGE), _RIGHTS_SIZE, MSG_CMSG_CLOEXEC
                )
        except (OSError, ValueError):
            message = b""
        if not message:
            os._exit(0)
        requests.close()
        number, script = 0, self.script
        del self.script  # at the script's end nothing may hold its globals
        try:
            number, cwd, arguments, kinds, directory, script.limits, variables = marshal.loads(message)
            names, values = variables or (b"", b"")
            environment = dict(zip(names.split(b"\0"), values.split(b"\0"))) if variables else {}  # noqa: B905 (new in 3.10)
            data = ancillary[0][2]  # three numbers, none of them above 65535
            stdin = data[_LOW] | data[_HIGH] << 8
            stdout = data[_LOW + 4] | data[_HIGH + 4] << 8
            stderr = data[_LOW + 8] | data[_HIGH + 8] << 8
            script.path = path = arguments[0].decode(_encoding, _errors)
            script.globals = _fresh.become(
                [argument.decode(_encoding, _errors) for argument in arguments] if arguments[1:] else [path],
                cwd,
                environment,
                (stdin, stdout, stderr),
                kinds,
                None if directory is None else directory.decode(_encoding, _errors),
            )
        except (OSError, ValueError, EOFError, TypeError, IndexError) as error:
            cause = getattr(error, "filename", None) or b""
            self.say("failed", number, f"{getattr(error, 'strerror', error)}: {os.fsdecode(cause)}")
            os._exit(0)
        _signal.set_wakeup_fd(-1)
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
        os.setpgid(0, 0)
        self.say("pid", number, os.getpid())  # before it runs: where the server no longer listens it does not
        script.find_code(self.codes.get(path))
        if script.compiled:
            try:
                self.send("code", path)
            except OSError:
                pass  # the server is gone, or has given up the helper, and counts on this child
        self.control.close()
        for descriptor in (*self.wakeup, self.null, stdin, stdout, stderr):
            os.close(descriptor)
        # Not before: another script could take the socket to the server from this process, and get others' requests.
        _set_dumpable(self.child_is_dumpable)
        return script

    def reap(self) -> None:
        """Report every child that has ended."""
        fields: list[object] = ["exit"]
        if not self.resource_is_known:
            sys.modules["resource"] = resource  # `os.wait4` imports it
        while self.children:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid in self.children:
                self.children.remove(pid)
                fields += (pid, status, usage.ru_utime, usage.ru_stime, usage.ru_maxrss)
        if not self.resource_is_known:
            del sys.modules["resource"]  # no script has it unless it imports it
        if len(fields) > 1:
            self.say(*fields)

    def learn(self, path: str) -> None:
        """Compile a script, for the children to come, unless that has been done."""
        try:
            file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # whatever it has been replaced by
        except OSError:
            return
        try:
            known = self.codes.get(path)
            if known is None or known[0] != _identity(file):
                found = _compiled(file, path)
                if found is not None:
                    if len(self.codes) >= MAX_CODES:
                        self.codes.clear()
                    self.codes[path] = found
        finally:
            os.close(file)


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
    _fresh.own_variables.update((name, value) for name, value in os.environb.items() if name not in _given)
    for name in sys.argv[1:]:
        try:
            builtins.__import__(name)
            if len(os.listdir("/proc/self/task")) > 1:
                raise RuntimeError("its import starts a thread, which no child would have")
        except BaseException as error:  # noqa: BLE001 (a module may raise anything, and may call sys.exit)
            helper.say("failed", 0, f"{name}: {type(error).__name__}: {error}")
            os._exit(1)
    _fresh.prepare()
    interpreter.freeze()
    helper.resource_is_known = "resource" in sys.modules
    code = _identity(__file__), compile(rehearsal.SOURCE, __file__, "exec", dont_inherit=True)
    try:
        rehearsal.rehearse(Helper, _fresh, interpreter, (__file__, code))
    except OSError:
        pass  # children learn it by themselves
    memory.put_code_into_huge_pages()
    interpreter.freeze()
    return helper


if __name__ == "__main__":
    _globals = globals()
    _helper = prepare()
    _known_modules = interpreter.modules_known()
    _end = interpreter.end
    _script = _helper.serve()  # from here on, this is a child
    _status = 0
    _script.begin()
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
    _quick = _end(_status, _known_modules)
    if _quick is not None:
        os._exit(_quick)
    sys.exit(_status)
