"""The name under which the supervisor of an older version starts a pool: see ``dispatcher/__main__.py``."""

from .dispatcher.__main__ import main

if __name__ == "__main__":
    main()
