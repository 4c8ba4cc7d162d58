"""A line chart in text: eight dots a character (braille), so that a loss curve fits under a
finished run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Point = tuple[float, float]

# bit of each dot in a braille character, by column and row
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))


def draw(lines: Sequence[tuple[str, Sequence[Point]]], *, width: int = 80, height: int = 12) -> str:
    """Draw one curve of dots and, over it, the others' points as symbols.

    Args:
        lines: (label, points) each; the first is drawn through, of the others each point is marked.
        width, height: characters, axes included.
    Returns: the chart, lines joined by newlines; empty without two finite points in the first
        curve.
    """
    points = [p for p in lines[0][1] if math.isfinite(p[1])]
    curve = _binned(points, 2 * width)
    marks = [(label, [p for p in others if math.isfinite(p[1])]) for label, others in lines[1:]]
    everything = [*curve, *(p for _, others in marks for p in others)]
    if len(curve) < 2:
        return ""
    low, high = min(y for _, y in everything), max(y for _, y in everything)
    # the axis has the true ends, not the middles of the bins
    steps = [x for x, _ in (*points, *everything)]
    left, right = min(steps), max(steps)
    names = [f"{high - (high - low) * row / (height - 1):.3f}" for row in range(height)]
    margin = max(map(len, names))
    columns = max(4, width - margin - 2)  # in a window narrower than that, the lines wrap

    def place(point: Point) -> tuple[int, int]:
        """Dot column and row of a point."""
        x = (point[0] - left) / ((right - left) or 1) * (2 * columns - 1)
        y = (high - point[1]) / ((high - low) or 1) * (4 * height - 1)
        return round(x), round(y)

    cells = [[0x2800] * columns for _ in range(height)]
    dots = [place(p) for p in curve]
    for (x0, y0), (x1, y1) in zip(dots, dots[1:], strict=False):
        n = max(abs(x1 - x0), abs(y1 - y0), 1)
        for i in range(n + 1):
            x, y = round(x0 + (x1 - x0) * i / n), round(y0 + (y1 - y0) * i / n)
            cells[y // 4][x // 2] |= _DOTS[x % 2][y % 4]
    text = [[chr(c) for c in row] for row in cells]
    legend = [f"── {lines[0][0]}"]
    for symbol, (label, others) in zip("●◆▲", marks, strict=False):
        legend.append(f"{symbol} {label}")
        for x, y in map(place, others):
            text[y // 4][x // 2] = symbol
    rows = [
        f"{names[i] if i % 3 == 0 or i == height - 1 else '':>{margin}} ┤{''.join(row)}"
        for i, row in enumerate(text)
    ]
    ends = f"{left:g}".ljust(columns - len(f"{right:g}")) + f"{right:g}"
    return "\n".join([" " * (margin + 2) + "   ".join(legend), *rows, " " * (margin + 2) + ends])


def _binned(points: Sequence[Point], bins: int) -> list[Point]:
    """Means over at most `bins` stretches of equal size."""
    size = max(1, -(-len(points) // bins))
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in p) / len(p), sum(y for _, y in p) / len(p)) for p in parts]
