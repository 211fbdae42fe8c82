"""The specifiers of systemd's units: ``%t``."""

from __future__ import annotations

import re


def expanded(text: str, unit: str) -> str | None:
    """Replace the specifiers that do not depend on a connection (systemd.unit(5)).

    :returns: None if there is another one.
    """
    values = {"%%": "%", "%t": "/run", "%S": "/var/lib", "%C": "/var/cache", "%L": "/var/log", "%E": "/etc",
              "%T": "/tmp", "%V": "/var/tmp", "%p": unit, "%P": unit, "%h": "/root"}  # fmt: skip
    if any(found not in values for found in re.findall(r"%.?", text)):
        return None
    return re.sub(r"%.", lambda match: values[match[0]], text)


def advice(text: str) -> str:
    """What to do about a text that can't be expanded."""
    if re.search("%[iI]", text.replace("%%", "")):  # the number and addresses of the connection
        return "no counterpart of %i: remove it, or use $REMOTE_ADDR in the program"
    return "no counterpart of this specifier: write its value"
