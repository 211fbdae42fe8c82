"""A rehearsal: what a child will do for its script, done some times in the fork server itself, before its first fork.

A part of the fork server (`helper`), which runs this file in a module of its own. Like `helper` it needs the standard
library alone, of any Python from 3.9 on.

Code that runs for the first time writes to memory, which a child has to copy first: Python specializes its instructions
(PEP 659) and keeps the methods that it has looked up, and the dynamic linker binds functions. Specialized instructions
also touch fewer objects. After a rehearsal, children find all of that done.
"""

import _socket
import marshal
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, ModuleType
    from typing import Any

    from .interpreter import Interpreter

TIMES = 24  # CPython 3.11 specializes after 8 calls, and tries again after some more
VARIABLES = {
    b"GATEWAY_INTERFACE": b"CGI/1.1",
    b"PATH": b"/usr/bin:/bin",
    b"QUERY_STRING": b"",
    b"REQUEST_METHOD": b"GET",
    b"SCRIPT_NAME": b"/rehearsal",
}
SOURCE = "import os, sys\nprint(os.environ.get('QUERY_STRING'))\nsys.stdout.write('')"


def rehearse(
    helper: "Callable[[_socket.socket], Any]",
    fresh: "Interpreter",
    interpreter: "ModuleType",
    code: "tuple[str, tuple[tuple[int, ...], CodeType]]",
) -> None:
    """Be a child some times, with all files of its own, and be afterwards what this process was before.

    :param helper: makes the fork server's object, given what it speaks to the server on.
    :param code: the path of a file, and `SOURCE` compiled as if it were in it.
    """
    path, compiled = code
    standard: Any = sys
    streams = "stdin", "stdout", "stderr", "__stdin__", "__stdout__", "__stderr__"
    saved = {name: getattr(sys, name) for name in (*streams, "argv", "orig_argv", "path") if hasattr(sys, name)}
    modules = dict(sys.modules)
    here = os.open(".", os.O_PATH | os.O_CLOEXEC)
    own = [os.dup(target) for target in range(3)]
    known = interpreter.modules_known()
    try:
        for _ in range(TIMES):
            control, server = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
            double = helper(control)
            double.child_is_dumpable = False
            double.codes[path] = compiled
            script = double.await_request(_request(path))
            script.begin()
            script.run()
            del script, double
            interpreter.end(0, known, rehearsal=True)
            server.close()
    finally:
        for name, value in saved.items():
            setattr(standard, name, value)
        sys.modules.clear()  # the order of its names counts too
        sys.modules.update(modules)
        sys.path_importer_cache.pop(path, None)
        try:
            os.fchdir(here)
        except OSError:  # a directory that this user may not enter
            pass
        for target, descriptor in enumerate(own):
            os.dup2(descriptor, target)
        for descriptor in (here, *own):
            os.close(descriptor)
        fresh.prepare()  # streams that nothing has been written to, no variables


def _request(path: str) -> "_socket.socket":
    """The socket of a child, with its request."""
    requests, server = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    name = os.fsencode(path)
    variables = b"\0".join(VARIABLES), b"\0".join(VARIABLES.values())
    request = marshal.dumps((1, b"/", [name], b"npp", os.path.dirname(name), [], variables), 2)
    rights = null.to_bytes(4, sys.byteorder) * 3
    server.sendmsg([request], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
    server.close()
    os.close(null)
    return requests
