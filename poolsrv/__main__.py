"""The program ``poolsrv``, which is also ``python -m poolsrv``."""

import gc
import os
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line. Always raises SystemExit, or ends the process."""
    # Hardly any object that is made during the start goes away again, and collections take a tenth of the time until
    # "ready". The supervisor and the pool enable them later; the other commands end soon.
    gc.disable()
    _open_standard_streams()
    arguments = sys.argv[1:]
    if len(arguments) == 2 and arguments[0] in ("--config", "-c") and not arguments[1].startswith("-"):
        # This is how servers are started: without the command line's parser, the supervisor needs less memory.
        from .core import logs
        from .supervisor import start

        logs.set_up()
        start.run(arguments[1], None)
    from .cli import main

    main.main()


def _open_standard_streams() -> None:
    """Open each of descriptors 0 to 2 that is closed: or else a socket would get its number, and be written to."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one


if __name__ == "__main__":
    main()
