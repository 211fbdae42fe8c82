"""What the environment says to a command that `make` starts."""

from __future__ import annotations

import math
import os


def number_of(name: str, default: float) -> float:
    """A number greater than zero from the environment; the default where it is missing or empty.

    :raises SystemExit: it is something else; with exit status 2.
    """
    text = os.environ.get(name) or str(default)
    try:
        number = float(text)
    except ValueError:
        number = 0
    if not 0 < number < math.inf:
        print(f"{name}={text!r}: expected a number greater than 0")
        raise SystemExit(2)
    return number
