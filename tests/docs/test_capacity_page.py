"""docs/capacity.md: its figures are those that have been measured, and its arithmetic is right."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "capacity.md").read_text()
RESULTS = (ROOT / "bench" / "results" / "results.md").read_text()

FIGURES = re.findall(r"^\| .* \| ([\d.,]+) [^|]+ \| `([\w-]+)` \| ([^|]+) \| ([^|]+) \|$", PAGE, re.MULTILINE)
SUMS = re.findall(r"^([\d.() */+-]+) = ([\d.]+) ", PAGE, re.MULTILINE)
OPERATORS: dict[type, Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def measured(case: str, server: str, column: str) -> str:
    """A cell of the results, without its minimum and maximum."""
    (section,) = (each for each in re.split(r"^## ", RESULTS, flags=re.MULTILINE) if f"`--case {case}`" in each)
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("| ")
    ]
    number = next(index for index, title in enumerate(rows[0]) if title.partition(" (less")[0] == column)
    (row,) = (row for row in rows if row[0] == f"**{server}**")
    return row[number].partition(" (")[0]


def test_the_page_has_figures_and_sums() -> None:
    assert len(FIGURES) == 9
    assert len(SUMS) == PAGE.count(" = ") - len(re.findall(r"^- \*\*.* = ", PAGE, re.MULTILINE)) - PAGE.count(
        'dispatch = "'
    )


@pytest.mark.parametrize(("figure", "case", "server", "column"), FIGURES, ids=[each[1] for each in FIGURES])
def test_a_figure_is_what_was_measured(figure: str, case: str, server: str, column: str) -> None:
    assert figure == measured(case, server, column)


def value(node: ast.expr) -> float:
    """The value of a sum."""
    if isinstance(node, ast.BinOp):
        return OPERATORS[type(node.op)](value(node.left), value(node.right))
    assert isinstance(node, ast.Constant)
    assert isinstance(node.value, int | float)
    return node.value


@pytest.mark.parametrize(("left", "right"), SUMS)
def test_a_sum_is_right(left: str, right: str) -> None:
    digits = len(right.partition(".")[2])
    assert abs(value(ast.parse(left.strip(), mode="eval").body) - float(right)) <= 0.51 / 10**digits


def test_the_figures_in_sums_are_those_of_the_page() -> None:
    """Measured, or the result of a sum before it; but for a tenth of a second, and 60 %."""
    for left, _ in SUMS:
        before = PAGE[: PAGE.index(left)].replace(",", "")
        for number in re.findall(r"\d+\.\d+", left):
            assert re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", before) or number in ("0.1", "0.6")


def test_the_metrics_to_look_at_exist() -> None:
    documented = (ROOT / "docs" / "operations.md").read_text()
    names = set(re.findall(r"`((?:poolsrv|cgi)_\w+)`", PAGE))
    assert len(names) > 8
    assert {name for name in names if f"| `{name}` |" not in documented} == set()
