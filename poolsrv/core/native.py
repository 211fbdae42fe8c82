"""Marks for the compiler of the compiled wheel (mypyc); without it they mean nothing.

A compiled class can be derived from in plain Python only if it says so.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing takes a while to import
if TYPE_CHECKING:
    from mypy_extensions import mypyc_attr as mypyc_attr
else:

    def mypyc_attr(**options: object):
        """Stand in for the decorator, which plain Python has no use for."""
        return lambda cls: cls
