"""The fuzz targets, by name. Each module has a ``TARGET``; it is imported when it is needed."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import msgspec

NAMES = (
    "http_head",
    "chunked",
    "cgi_header",
    "proxy_header",
    "config_file",
    "control",
    "worker_report",
    "pool_link",
    "access_log",
    "importing",
)


class Target(msgspec.Struct, frozen=True):
    """What is to be fuzzed.

    :ivar run: takes an input; raises whatever if a rule is broken.
    :ivar longest: bytes of an input.
    :ivar words: that inputs are made of, for the fuzzer's dictionary.
    """

    run: Callable[[bytes], None]
    longest: int = 4096
    words: tuple[bytes, ...] = ()


def load(name: str) -> Target:
    """Import a target."""
    target = importlib.import_module(f"{__name__}.{name}").TARGET
    assert isinstance(target, Target)
    return target
