"""bench/README.md beside what the benchmark has written."""

from __future__ import annotations

import re
from pathlib import Path

BENCH = Path(__file__).parents[2] / "bench"


def test_the_page_shows_each_plot_once() -> None:
    shown = re.findall(r"!\[.*?\]\(results/plots/(.*?)\)", (BENCH / "README.md").read_text())
    assert sorted(shown) == sorted(path.name for path in (BENCH / "results" / "plots").iterdir())
