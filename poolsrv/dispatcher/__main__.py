"""A dispatcher's process, from its start by the supervisor until the main loop runs.

The supervisor runs ``main`` with the arguments LINK HANG_FILE in a fresh interpreter; it is not for users. Over the
descriptor LINK come the arguments of the command line and what outlives a pool (ipc/pool_link.py). Into HANG_FILE the
process dumps its stack when it is asked to (core/stack_dump.py).
"""

from __future__ import annotations

import errno
import faulthandler
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..config.errors import ConfigErrors
from ..core import logs, processes
from ..core.dumpable import set_dumpable
from ..core.hang_signal import HANG_SIGNAL
from ..core.listening_sockets import ListeningSocket
from ..core.titles import set_title
from ..errors import StartError
from ..ipc import pool_link
from ..ipc.pool_link import Message, PoolLink

if TYPE_CHECKING:
    from ..config.draft import Draft
    from ..config.model import Config
    from ..worker.spec import ServerSpec

log = logging.getLogger("poolsrv.dispatcher")

EXIT_FAILED = 1  # at run time
EXIT_CONFIG = 2
_SCARCITY = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOSPC})  # no fault of the engine


def main() -> NoReturn:
    """Serve as the supervisor says. Never returns: it ends the process."""
    pid = os.getpid()
    set_dumpable(False)  # exec resets it
    gc.disable()  # as in poolsrv/__main__.py; process.py enables it
    link = PoolLink(socket.socket(fileno=int(sys.argv[1])))
    # A supervisor of version 1 passes no file, and asks for no dump.
    hang_file = int(sys.argv[2]) if len(sys.argv) > 2 else os.open(os.devnull, os.O_WRONLY)
    for fd in (link.fileno(), hang_file):
        os.set_inheritable(fd, False)
    faulthandler.register(HANG_SIGNAL, file=hang_file, all_threads=True)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (HANG_SIGNAL,))
    # Until the loop runs, this process would not notice that the supervisor has died: a plugin's import may take long.
    processes.signal_when_parent_dies(signal.SIGTERM)
    try:
        code = _serve(link, hang_file)
    except ConfigErrors as errors:
        code = _fail(link, EXIT_CONFIG, [str(problem) for problem in errors.problems])
    except StartError as error:
        code = _fail(link, EXIT_FAILED, str(error).splitlines())
    except EOFError:
        code = EXIT_FAILED  # the supervisor is gone
    except OSError as error:
        if error.errno not in _SCARCITY:
            raise
        if os.getpid() == pid:
            code = _fail(link, EXIT_FAILED, [f"can't start the pool: {error.strerror}"])
        else:  # a worker that has just been forked; it does not speak for the pool
            log.error("can't start: %s", error.strerror)
            code = EXIT_FAILED
    logging.shutdown()
    # An exit in order must not be cut short by a signal that comes while the interpreter shuts down.
    os._exit(code)


def _serve(link: PoolLink, hang_file: int) -> int:
    logs.set_up()
    logs.set_role("dispatcher")
    set_title("dispatcher")
    # Import all of the engine now. The supervisor may still import itself; and later the user that the pool will run as
    # may not be able to read the engine.
    from ..config import exposure, reader  # noqa: F401
    from ..core import privileges  # noqa: F401
    from ..plugins import loader  # noqa: F401
    from . import bind, process, startup  # noqa: F401

    start, held = _receive_start(link)
    fields = start.fields
    logs.set_up(fields["log_level"] or "info")
    if fields["version"] not in (pool_link.WITHOUT_CLAIMS, pool_link.VERSION):
        link = _link_to_another_version(link, fields)
    if fields.get("arguments") is None:
        return _serve_config(reader.read(Path(fields["config"])), link, fields, held, hang_file)
    from ..config import arguments, from_arguments
    from ..plugins import settings  # noqa: F401 - for later, as below

    said = arguments.from_fields(fields["arguments"])
    try:
        warnings = said.warnings if fields["generation"] == 1 else ()
        return _serve_config(from_arguments.read(said), link, fields, held, hang_file, warnings)
    except StartError as error:
        raise StartError("\n".join(map(said.rename, str(error).splitlines()))) from error


def _link_to_another_version(link: PoolLink, fields: dict[str, Any]) -> PoolLink:
    """Speak the first version of the link.

    :raises StartError: the supervisor speaks a version that this one does not know.
    """
    from ..ipc import pool_link_v1

    if fields["version"] == pool_link_v1.VERSION:
        return pool_link_v1.adapt(link, fields)
    raise StartError(
        f"the supervisor, pid {os.getppid()}, is of another version of poolsrv than what is installed now:"
        " restart the server"
    )


def _serve_config(
    draft: Draft,
    link: PoolLink,
    fields: dict[str, Any],
    held: dict[str, ListeningSocket],
    hang_file: int,
    warnings: Sequence[str] = (),
) -> int:
    from ..config import exposure
    from ..core import privileges
    from ..plugins import loader
    from . import bound, process, startup

    if "start_timeout" in draft.pool:
        link.send("plan", start_timeout=draft.pool["start_timeout"])
    place = None
    if (identity := loader.identity_for(draft)) is not None:
        if draft.problems:
            privileges.become_for_imports(identity)  # to find what is wrong with the plugins too
        else:
            config = draft.finish()
            _log_as(config, fields["log_level"])
            place = startup.take_place(config, link, held, fields)
            processes.signal_when_parent_dies(signal.SIGTERM)  # a change of user has cleared it
    server = loader.load_plugins(draft)
    if fields["version"] != pool_link.VERSION:
        _refuse_exclusive(server)
    if place is None:  # so that errors of plugins are found before anything is bound
        _log_as(server.config, fields["log_level"])
        place = startup.take_place(server.config, link, held, fields)
    else:
        bound.apply_again(place.bound, server.config.listeners)
    for warning in (*warnings, *exposure.warnings(server.config)):
        log.warning("%s", warning)
    return process.run_server(server, place, link, fields, hang_file)


def _refuse_exclusive(server: ServerSpec) -> None:
    """Refuse exclusive listeners: the supervisor is older, and can't see to it that no other pool has them.

    :raises StartError: there are some.
    """
    lines = [
        f"listeners.{listener.config.name}.exclusive: the supervisor, pid {os.getppid()}, is of an older version, and"
        " knows no exclusive listeners: restart the server"
        for listener in server.listeners
        if listener.config.exclusive
    ]
    if lines:
        raise StartError("\n".join(lines))


def _log_as(config: Config, level: str | None) -> None:
    settings = config.log.settings(config.pool.identity)
    try:
        logs.set_up(**settings | ({"level": level} if level else {}))
    except OSError as error:
        raise StartError(f"log.file: can't open {settings['file']}: {error.strerror}") from None


def _receive_start(link: PoolLink) -> tuple[Message, dict[str, ListeningSocket]]:
    """Receive what the supervisor says at first, and the sockets that stand.

    :raises StartError: there are not enough descriptors for them.
    """
    held: dict[str, ListeningSocket] = {}
    while True:
        try:
            message = link.receive()
        except pool_link.BadMessage as error:
            raise StartError(f"the supervisor's sockets can't be taken over: {error}") from None
        assert message is not None  # the link blocks
        for one in pool_link.received_sockets(message):
            held[one.key] = one
        if message.fields.get("last"):
            return message, held


def _fail(link: PoolLink, code: int, lines: list[str]) -> int:
    pool_link.send_lines(link, "failed", lines, exit_code=code)
    return code


if __name__ == "__main__":
    main()
