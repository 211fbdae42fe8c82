"""The program ``poolsrv``; ``python -m poolsrv`` is the same."""

import gc
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line. Always raises SystemExit."""
    # Next to nothing that is made while starting goes away again: to look for it takes a tenth of the time to "ready".
    # The pool enables it again before it forks, and the other commands end soon.
    gc.disable()
    from . import cli

    cli.main()


if __name__ == "__main__":
    main()
