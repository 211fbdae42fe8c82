"""Starts a pool for a supervisor of an older version, which knows this name: see ``dispatcher/__main__.py``."""

from .dispatcher.__main__ import main

if __name__ == "__main__":
    main()
