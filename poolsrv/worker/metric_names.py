"""Names of metrics and labels, and values of labels: what plugins may have."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from ..ipc.metrics import COUNTER, LONGEST_NAME, LONGEST_VALUE, MOST_LABELS

RESERVED_PREFIX: Final = "poolsrv_"
RESERVED_LABELS: Final = frozenset({"le", "listener", "plugin", "quantile", "worker"})
# Prometheus makes names with these endings itself.
RESERVED_ENDINGS: Final = ("_bucket", "_count", "_created", "_info", "_sum")
_NAME: Final = r"[a-z][a-z0-9_]*"  # compiled for the first metric of a plugin


def checked_name(kind: str, name: str) -> str:
    """Return a metric's name, without the ``_total`` of a counter.

    :raises ValueError: a plugin can't have a metric of that name.
    """
    if not isinstance(name, str) or len(name) > LONGEST_NAME or re.fullmatch(_NAME, name) is None:
        raise ValueError(
            f"{name!r}: a metric's name is small letters, digits and underscores, at most {LONGEST_NAME}, and begins"
            " with a letter"
        )
    if name.startswith(RESERVED_PREFIX):
        raise ValueError(f"{name}: names that begin with {RESERVED_PREFIX!r} are the server's own")
    for ending in RESERVED_ENDINGS if kind == COUNTER else (*RESERVED_ENDINGS, "_total"):
        if name.endswith(ending):
            raise ValueError(f"{name}: a {kind}'s name can't end with {ending!r}, which has a meaning of its own")
    return name.removesuffix("_total")


def checked_labels(name: str, labels: Sequence[str]) -> tuple[str, ...]:
    """Return the names of a metric's labels.

    :raises ValueError: a plugin's metric can't have these.
    """
    if isinstance(labels, str) or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"{name}: labels are a list of names, not {labels!r}")
    if len(labels) > MOST_LABELS - 2:
        raise ValueError(f"{name}: a metric may have {MOST_LABELS - 2} labels, not {len(labels)}")
    for label in labels:
        if re.fullmatch(_NAME, label) is None or len(label) > LONGEST_NAME:
            raise ValueError(f"{name}: a label's name is small letters, digits and underscores, not {label!r}")
        if label in RESERVED_LABELS:
            raise ValueError(f"{name}: the label {label!r} is the server's own")
    if len(set(labels)) != len(labels):
        raise ValueError(f"{name}: a label is there twice: {', '.join(labels)}")
    return tuple(labels)


def label_value(value: object) -> str:
    """Return a label's value as text, shortened if it is too long."""
    text = str(value)
    if len(text) > LONGEST_VALUE:
        text = text[: LONGEST_VALUE - 3] + "..."
    return text.encode(errors="backslashreplace").decode()[:LONGEST_VALUE]
