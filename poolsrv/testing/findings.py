"""What conformance has found, shown so that the difference is easy to see."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .client import shown
from .in_process import Fault

_FRAMES = 4  # of a traceback, the innermost


class Finding(NamedTuple):
    """A difference.

    :ivar play: how the dialogue was played: ``"with a half-close"``.
    :ivar point: after how many bytes; None if this play has no such point.
    :ivar problem: what is wrong, in one line.
    :ivar details: further lines: what was sent, expected, received.
    :ivar cause: the probable cause, and what to do; empty if it is not known.
    """

    play: str
    point: int | None
    problem: str
    details: tuple[str, ...] = ()
    cause: str = ""


class NotConforming(AssertionError):
    """The plugin does not give the dialogue's answers under all circumstances.

    :ivar findings: what differs, in the order of the plays.
    """

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings = tuple(findings)
        super().__init__("\n\n".join(_paragraphs(self.findings)))


def difference(expected: bytes, received: bytes, *, at_least: bool = False) -> tuple[str, ...]:
    """Where two byte strings differ, for a finding.

    :param at_least: more may follow after what is expected.
    """
    same = next(
        (index for index, (one, other) in enumerate(zip(expected, received, strict=False)) if one != other),
        min(len(expected), len(received)),
    )
    if same == len(received) and len(received) < len(expected):
        verdict = f"{len(received)} of {len(expected)} bytes have arrived"
    elif same == len(expected):
        verdict = f"{len(received) - len(expected)} bytes more than expected"
    else:
        verdict = f"they differ from byte {same} on: {shown(received[same : same + 60])}"
    more = " and perhaps more" if at_least else ""
    return (f"expected: {shown(expected)}{more}", f"received: {shown(received)}", verdict)


def raised(play: str, point: int | None, fault: Fault) -> Finding:
    """An exception of the plugin."""
    frames = traceback.format_tb(fault.error.__traceback__)[-_FRAMES:]
    lines = [line for frame in frames for line in frame.rstrip("\n").split("\n")]
    return Finding(play, point, str(fault), tuple(lines))


def _paragraphs(findings: Sequence[Finding]) -> Iterable[str]:
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        kind = finding.cause or finding.problem
        groups.setdefault((finding.play, finding.problem, kind), []).append(finding)
    yield f"{len(groups)} {'problem' if len(groups) == 1 else 'problems'}"
    for number, ((play, problem, _), group) in enumerate(groups.items(), 1):
        first = group[0]
        where = "" if first.point is None else f" after {first.point} bytes"
        if len(group) > 1:
            where += f" (and at {len(group) - 1} more points: {_list([one.point for one in group[1:]])})"
        lines = [f"{number}. {play}{where}: {problem}", *(f"     {line}" for line in first.details)]
        if first.cause:
            lines.append(f"   cause: {first.cause}")
        yield "\n".join(lines)


def _list(points: Sequence[int | None], most: int = 8) -> str:
    return ", ".join(map(str, points[:most])) + (", ..." if len(points) > most else "")
