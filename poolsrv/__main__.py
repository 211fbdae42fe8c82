"""The program ``poolsrv``, which is also ``python -m poolsrv``."""

from __future__ import annotations

import gc
import os
import sys

TYPE_CHECKING = False  # typing would be imported before the first pool is started
if TYPE_CHECKING:
    from typing import NoReturn

    from .supervisor.interpreter import PoolInterpreter


def main() -> NoReturn:
    """Run the command line. Always raises SystemExit, or ends the process."""
    # Hardly any object that is made during the start goes away again, and collections take a tenth of the time until
    # "ready". The supervisor and the pool enable them later; the other commands end soon.
    gc.disable()
    _open_standard_streams()
    arguments = sys.argv[1:]
    if len(arguments) == 2 and arguments[0] in ("--config", "-c") and not arguments[1].startswith("-"):
        # This is how servers are started: without the command line's parser, the supervisor needs less memory.
        # The first pool imports while the supervisor does.
        from .core.held_signals import hold

        hold()
        interpreter = _start_pool()
        from .core import logs
        from .supervisor import start

        logs.set_up()
        start.run(arguments[1], None, interpreter=interpreter)
    from .cli import main

    main.main()


def _start_pool() -> PoolInterpreter | None:
    """Start the interpreter of the first pool; None if that fails, which the supervisor will find out and report."""
    from .core.inherited import inherited_descriptors
    from .supervisor.interpreter import PoolInterpreter

    try:
        return PoolInterpreter(inherited_descriptors())
    except OSError:
        return None


def _open_standard_streams() -> None:
    """Open each of descriptors 0 to 2 that is closed: or else a socket would get its number, and be written to."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one


if __name__ == "__main__":
    main()
