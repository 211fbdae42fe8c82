"""The program ``poolsrv``; ``python -m poolsrv`` is the same."""

import gc
import os
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line. Always raises SystemExit, or ends the process."""
    # Next to nothing that is made while starting goes away again: to look for it takes a tenth of the time to "ready".
    # The supervisor and the pool enable it again, and the other commands end soon.
    gc.disable()
    _open_standard_streams()
    arguments = sys.argv[1:]
    if len(arguments) == 2 and arguments[0] in ("--config", "-c") and not arguments[1].startswith("-"):
        # How servers are started: the supervisor then needs no parser for the command line, nor its memory.
        from .core import logs
        from .supervisor import process

        logs.set_up()
        process.run(arguments[1], None)
    from .cli import main

    main.main()


def _open_standard_streams() -> None:
    """Where the caller has closed one of descriptors 0 to 2, a socket would get its number, and the log with it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one


if __name__ == "__main__":
    main()
