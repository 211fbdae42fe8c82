"""Which of both is being tested: the sources in plain Python, or the compiled wheel (``make test-compiled``)."""

from __future__ import annotations

import os
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from typing import Final

from tools.compiled import MODULES

PURE: Final = "pure Python"
COMPILED: Final = "compiled"
EXPECTED: Final = os.environ.get("POOLSRV_TESTS_EXPECT", PURE)
is_compiled: Final = EXPECTED == COMPILED


def kind_of(module: str) -> str:
    """What would be imported, or has been, under this name."""
    spec = find_spec(module)
    assert spec is not None, module
    return COMPILED if (spec.origin or "").endswith(tuple(EXTENSION_SUFFIXES)) else PURE


def others(expected: str = EXPECTED) -> list[str]:
    """Of the modules that the compiled wheel has compiled: those that are not of the kind that is to be tested."""
    return [f"{module} is {kind}" for module in MODULES if (kind := kind_of(module)) != expected]
