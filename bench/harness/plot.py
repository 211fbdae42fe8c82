"""A horizontal bar plot as SVG, by hand: a bar for each server's median, a line from minimum to maximum."""

from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, LEFT, RIGHT, TOP, ROW = 780, 230, 130, 64, 30


@dataclass(frozen=True)
class Bar:
    """One server's figure."""

    label: str
    median: float
    least: float
    greatest: float
    text: str
    own: bool  # whether the bar is poolsrv's, which has its own colour


STYLE = """\
text { font: 13px system-ui, sans-serif; fill: #222 } .title { font-size: 15px; font-weight: 600 }
.note { fill: #666; font-size: 12px } .bar { fill: #9aa7b4 } .own { fill: #2f6fb3 }
.spread { stroke: #222; stroke-width: 1.5 } .axis { stroke: #999 }
@media (prefers-color-scheme: dark) {
text { fill: #ddd } .note { fill: #aaa } .bar { fill: #66727e } .own { fill: #5b9be0 } .spread { stroke: #eee } }
"""


def bar_plot(title: str, note: str, bars: list[Bar]) -> str:
    """The whole SVG file. The axis starts at 0, so that the lengths are in proportion."""
    height = TOP + ROW * len(bars) + 14
    top = max((bar.greatest for bar in bars), default=0) or 1
    scale = (WIDTH - LEFT - RIGHT) / top
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
        f' role="img" aria-label="{escape(title, {chr(34): "&quot;"})}">',
        f"<style>{STYLE}</style>",
        f'<text class="title" x="12" y="24">{escape(title)}</text>',
        f'<text class="note" x="12" y="44">{escape(note)}</text>',
    ]
    for row, bar in enumerate(bars):
        y = TOP + ROW * row
        middle = y + ROW // 2 - 3
        parts += [
            f'<text x="{LEFT - 10}" y="{middle + 4}" text-anchor="end">{escape(bar.label)}</text>',
            f'<rect class="{"own" if bar.own else "bar"}" x="{LEFT}" y="{y}" width="{bar.median * scale:.1f}"'
            f' height="{ROW - 8}"/>',
            f'<line class="spread" x1="{LEFT + bar.least * scale:.1f}" x2="{LEFT + bar.greatest * scale:.1f}"'
            f' y1="{middle}" y2="{middle}"/>',
            f'<text x="{LEFT + bar.greatest * scale + 8:.1f}" y="{middle + 4}">{escape(bar.text)}</text>',
        ]
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{LEFT}" y1="{TOP - 6}" y2="{height - 10}"/>')
    return "\n".join([*parts, "</svg>"]) + "\n"
