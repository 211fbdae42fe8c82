"""``python -m poolsrv``: the same program as ``poolsrv``."""

from .cli import main

if __name__ == "__main__":
    main()
