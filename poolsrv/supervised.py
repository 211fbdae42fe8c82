"""A pool's own process, from its start by the supervisor until its workers are forked.

``python -m poolsrv.supervised FD`` is nothing for users. What has come from the command line and what stands over all
pools arrives over the descriptor: see handshake.py.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import NoReturn

from . import children, handshake, logs
from .dumpable import set_dumpable
from .errors import StartError
from .handshake import Held, Link, Message
from .problems import ConfigErrors

EXIT_FAILED = 1  # at run time
EXIT_CONFIG = 2


def main() -> NoReturn:
    """Serve as the supervisor says. Always ends the process."""
    set_dumpable(False)  # an exec has made it so again
    gc.disable()  # as in __main__.py; the pool enables it
    link = Link(socket.socket(fileno=int(sys.argv[1])))
    os.set_inheritable(link.fileno(), False)
    # Until it listens to the supervisor, it would not notice the end of that: a plugin's import may take its time.
    children.signal_when_parent_dies(signal.SIGTERM)
    try:
        code = _serve(link)
    except ConfigErrors as errors:
        code = _fail(link, EXIT_CONFIG, [str(problem) for problem in errors.problems])
    except StartError as error:
        code = _fail(link, EXIT_FAILED, str(error).splitlines())
    except EOFError:
        code = EXIT_FAILED  # the supervisor is gone
    logging.shutdown()
    # What has begun to end in order is not to be ended by a signal that comes while the interpreter winds up.
    os._exit(code)


def _serve(link: Link) -> int:
    start, held = _receive_start(link)
    fields = start.fields
    logs.set_up(fields["log_level"] or "info")
    logs.set_role("dispatcher")
    if fields["version"] != handshake.VERSION:
        raise StartError(
            f"the supervisor, pid {os.getppid()}, is of another version of poolsrv than what is installed now:"
            " restart the server"
        )
    from .plugins import load
    from .pool import run_server

    server = load(Path(fields["config"]))
    settings = server.config.log.settings(server.config.pool.identity)
    try:
        logs.set_up(**settings | ({"level": fields["log_level"]} if fields["log_level"] else {}))
    except OSError as error:
        raise StartError(f"log.file: can't open {settings['file']}: {error.strerror}") from None
    return run_server(server, link, held, fields)


def _receive_start(link: Link) -> tuple[Message, dict[str, Held]]:
    held: dict[str, Held] = {}
    while True:
        message = link.receive()
        assert message is not None  # it blocks
        for one in handshake.received_sockets(message):
            held[one.key] = one
        if message.fields.get("last"):
            return message, held


def _fail(link: Link, code: int, lines: list[str]) -> int:
    handshake.send_lines(link, "failed", lines, exit_code=code)
    return code


if __name__ == "__main__":
    main()
