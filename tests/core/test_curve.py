"""The text chart, dot by dot."""

from __future__ import annotations

import math

from posttrain.core.curve import draw


def dots(chart: str) -> set[tuple[int, int]]:
    """(column, row) of every braille dot, from the upper left."""
    at = (
        (0, 0, 0x01),
        (0, 1, 0x02),
        (0, 2, 0x04),
        (0, 3, 0x40),
        (1, 0, 0x08),
        (1, 1, 0x10),
        (1, 2, 0x20),
        (1, 3, 0x80),
    )
    rows = [line.split("┤")[1] for line in chart.splitlines() if "┤" in line]
    return {
        (2 * x + dx, 4 * y + dy)
        for y, row in enumerate(rows)
        for x, c in enumerate(row)
        if 0x2800 <= ord(c) < 0x2900
        for dx, dy, bit in at
        if ord(c) - 0x2800 & bit
    }


def test_golden() -> None:
    parabola = [(float(i), (10 - i) ** 2 / 10) for i in range(11)]
    assert (
        draw(
            [("loss", parabola), ("held-out", [(0, 10), (5, 3), (10, 1)])], width=30, height=6
        ).replace("⠀", " ")
        == "        ── loss   ● held-out\n"
        "10.000 ┤●⢄                    \n"
        "       ┤  ⠑⠤⡀                 \n"
        "       ┤    ⠈⠢⡀               \n "
        "4.000 ┤      ⠈⠢⢄⡀            \n"
        "       ┤         ⠈⠑●⠤⡀        \n "
        "0.000 ┤             ⠈⠉⠒⠤⠤⢄⣀⣀●\n"
        "        0                   10"
    )


def test_a_straight_line_is_straight() -> None:
    # 7 characters are 14 columns, 3 lines are 12 rows: from the lower left dot to the upper right,
    # 11/13 rows a column
    chart = draw([("y", [(0, 0), (1, 1)])], width=14, height=3)
    assert dots(chart) == {(x, round(11 - 11 * x / 13)) for x in range(14)}
    assert [line[:6] for line in chart.splitlines()[1:4]] == ["1.000 ", "      ", "0.000 "]


def test_many_points_are_averaged_but_the_axis_keeps_its_ends() -> None:
    chart = draw([("y", [(i, i % 2) for i in range(1, 2001)])], width=30, height=3)
    lines = chart.splitlines()
    assert lines[-1].split() == ["1", "2000"]
    assert float(lines[1].split()[0]) < 0.54  # the mean of zeros and ones, not their range
    assert float(lines[3].split()[0]) > 0.44


def test_marks_outside_the_curve_widen_both_axes() -> None:
    lines = draw(
        [("loss", [(1, 2), (4, 1)]), ("held-out", [(0, 5)])], width=20, height=3
    ).splitlines()
    assert lines[1].startswith("5.000 ┤●")
    assert lines[3].startswith("1.000 ┤")
    assert lines[-1].split() == ["0", "4"]


def test_nothing_to_draw_is_nothing() -> None:
    assert (
        draw([("y", [])])
        == draw([("y", [(0, 1)])])
        == draw([("y", [(0, 1), (1, math.nan), (2, math.inf)])])
        == ""
    )


def test_values_that_are_not_finite_are_left_out() -> None:
    good = [(0.0, 0.0), (3.0, 1.0)]
    assert draw([("y", [*good, (1.0, math.nan), (2.0, math.inf)])]) == draw([("y", good)])


def test_a_level_curve_divides_by_nothing() -> None:
    assert dots(draw([("y", [(0, 2), (1, 2)])], width=14, height=3)) == {(x, 0) for x in range(14)}
