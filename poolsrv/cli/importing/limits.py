"""Priority, umask and resource limits of programs, from xinetd's attributes."""

from __future__ import annotations

import re

from .attributes import Attributes
from .command import Preparation
from .service import Service

_LIMITS = {"rlimit_as": "address_space", "rlimit_cpu": "cpu_seconds", "rlimit_files": "open_files"}
_ULIMITS = {"rlimit_data": "d", "rlimit_stack": "s", "rlimit_rss": "m"}  # in KiB


def limit_program(service: Service, attributes: Attributes, preparation: Preparation) -> None:
    """Set what has an option, and prepare the rest.

    :raises BadSource: a value can't be understood.
    """
    nice = attributes.number("nice")
    if nice:
        service.option("nice", min(max(nice, -20), 19))
    if umask := attributes.text("umask"):
        if not re.fullmatch(r"0?[0-7]{1,3}", umask):
            raise attributes.place("umask").mistake(f'"umask" is "{umask}", expected octal digits')
        service.option("umask", f"{int(umask, 8):04o}")
    limits = {}
    for name, key in _LIMITS.items():
        value = attributes.number(name)
        if value is not None and value > 0:
            limits[key] = max(value, 3) if key == "open_files" else value
    if limits:
        service.option("limits", limits)
    for name, letter in _ULIMITS.items():
        value = attributes.number(name)
        if value is not None and value > 0:
            preparation.limit(letter, max(value // 1024, 1))
