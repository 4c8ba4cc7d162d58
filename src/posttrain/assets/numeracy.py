"""The skills with numbers. Each draws a `Problem` of one level, 1 (easy) … 5 (hard); `wordings`
puts it into English.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from posttrain.assets.words import (
    CONTAINERS,
    DAYS,
    FIRST,
    MONTHS,
    THINGS,
    WORDS,
    Draw,
    commas,
    listed,
)


class Problem(NamedTuple):
    """What is asked, before it is worded.

    Attributes:
        kind: which wordings fit (see `wordings`).
        key: what identifies the question among its kind, in words that stand in every wording: a
            key that said more would put one question into two splits.
        slots: what the wordings name in braces.
        answer, solution: as in `Item`.
    """

    kind: str
    key: str
    slots: dict[str, object]
    answer: str
    solution: str = ""


def parts(n: int) -> list[int]:
    """347 → [300, 40, 7]"""
    digits = str(n)
    places = []
    for power, digit in zip(reversed(range(len(digits))), digits, strict=True):
        if digit != "0":
            places.append(int(digit) * 10**power)
    return places or [0]


def _sum(a: int, b: int) -> str:
    """Place by place from the left: '40 plus 30 is 70, 7 plus 8 is 15, 70 plus 15 is 85.'"""
    steps, place_sums = [], []
    place = 10 ** max(len(str(a)), len(str(b)))
    while place := place // 10:
        x, y = a // place % 10 * place, b // place % 10 * place
        if x and y:
            steps.append(f"{x} plus {y} is {x + y}")
        if x or y:
            place_sums.append(x + y)
    total = place_sums[0]
    for place_sum in place_sums[1:]:
        steps.append(f"{total} plus {place_sum} is {total + place_sum}")
        total += place_sum
    return ", ".join(steps) + "."


def plus(draw: Draw, level: int) -> Problem:
    if level == 5 and draw.chance(0.5):
        a, b, c = (draw.between(11, 99) for _ in range(3))
        return Problem(
            "plus3",
            f"{sorted((a, b, c))}",
            {"a": a, "b": b, "c": c},
            str(a + b + c),
            f"{a} plus {b} is {a + b}, {a + b} plus {c} is {a + b + c}.",
        )
    (low, high), (least, most) = (
        ((1, 20), (1, 20)),
        ((10, 99), (2, 9)),
        ((10, 99), (10, 99)),
        ((100, 999), (10, 99)),
        ((100, 999), (100, 999)),
    )[level - 1]
    a, b = draw.between(low, high), draw.between(least, most)
    if draw.chance(0.5):
        a, b = b, a
    return Problem("plus", f"{min(a, b)} {max(a, b)}", {"a": a, "b": b}, str(a + b), _sum(a, b))


def minus(draw: Draw, level: int) -> Problem:
    (low, high), (least, most) = (
        ((3, 20), (1, 20)),
        ((10, 99), (2, 9)),
        ((30, 99), (10, 99)),
        ((100, 999), (10, 99)),
        ((200, 999), (100, 999)),
    )[level - 1]
    a = draw.between(low, high)
    b = draw.between(least, min(most, a - 1))
    left, steps = a, []
    for part in parts(b):
        steps.append(f"{left} minus {part} is {left - part}")
        left -= part
    return Problem("minus", f"{a} {b}", {"a": a, "b": b}, str(a - b), ", ".join(steps) + ".")


def times(draw: Draw, level: int) -> Problem:
    (low, high), (least, most) = (
        ((2, 10), (2, 10)),
        ((2, 12), (11, 30)),
        ((11, 99), (3, 9)),
        ((100, 999), (2, 9)),
        ((11, 99), (11, 99)),
    )[level - 1]
    a, b = draw.between(low, high), draw.between(least, most)
    big, small = max(a, b), min(a, b)
    pieces = [(part, part * small) for part in parts(big)]
    steps = [f"{part} times {small} is {value}" for part, value in pieces]
    if len(pieces) > 1:
        steps.append(f"{listed([value for _, value in pieces])} make {a * b}")
    if draw.chance(0.5):
        a, b = b, a
    return Problem("times", f"{small} {big}", {"a": a, "b": b}, str(a * b), ", ".join(steps) + ".")


def compare(draw: Draw, level: int) -> Problem:
    count, high = ((2, 99), (3, 99), (4, 999), (4, 99), (4, 99))[level - 1]
    values = draw.different(count, 1 if level < 3 else 10, high)
    kinds = {4: ("second-largest", "second-smallest"), 5: ("range",)}
    kind = draw.pick(kinds.get(level, ("largest", "smallest")))
    order = sorted(values, reverse="largest" in kind)
    if kind == "range":
        answer, solution = (
            order[-1] - order[0],
            f"The largest is {order[-1]}, the smallest is {order[0]}.",
        )
    else:
        answer = order[1 if "second" in kind else 0]
        solution = f"In order: {commas(order)}." if count > 2 else ""
    return Problem(kind, f"{sorted(values)}", {"list": listed(values)}, str(answer), solution)


def sort(draw: Draw, level: int) -> Problem:
    count, high = ((3, 99), (4, 99), (5, 99), (5, 999), (7, 999))[level - 1]
    values = draw.different(count, 1, high)
    kind = "sort-up" if level == 1 or draw.chance(0.5) else "sort-down"
    return Problem(
        kind,
        f"{sorted(values)}",
        {"list": commas(values)},
        commas(sorted(values, reverse=kind == "sort-down")),
    )


def sequence(draw: Draw, level: int) -> Problem:
    """Next in an even row; from level 3 downwards, too; at 4 with a gap inside; at 5 by doubling or
    by growing steps.
    """
    step = draw.pick((1, 2, 5, 10)) if level == 1 else draw.between(2, 9 if level < 3 else 15)
    row = [draw.between(1, (99, 150, 200, 200, 200)[level - 1]) + (step * 5 if level > 2 else 0)]
    shrink = level > 2 and draw.chance(0.5)
    row += [row[0] + (-step if shrink else step) * i for i in range(1, 5)]
    solution = f"Each number is {step} {'less' if shrink else 'more'} than the one before it."
    if level == 5:
        start, grow = draw.between(1, 99), draw.between(1, 12)
        if draw.chance(0.25):
            row, solution = (
                [start * 2**i for i in range(5)],
                "Each number is twice the one before it.",
            )
        else:
            row = [start + grow * i + i * (i - 1) // 2 for i in range(5)]
            steps = [row[i + 1] - row[i] for i in range(4)]
            solution = f"The steps are {listed(steps)}: each is 1 more than the one before it."
    gap = draw.between(1, 3) if level == 4 else 4
    shown = [value if i != gap else "_" for i, value in enumerate(row)]
    kind, shown = ("sequence-gap", shown) if level == 4 else ("sequence", shown[:-1])
    return Problem(kind, f"{shown}", {"list": commas(shown)}, str(row[gap]), solution)


def story(draw: Draw, level: int) -> Problem:
    """Word problems: one step (1 and 2), multiplication (3), two steps (4), three steps (5)."""
    p, q = draw.sample(FIRST, 2)
    slots: dict[str, object] = {
        "p": p,
        "q": q,
        "things": draw.pick(THINGS),
        "boxes": draw.pick(CONTAINERS),
    }
    high = 12 if level < 3 else 9
    a, b, c = draw.between(3, high * 3), draw.between(2, high), draw.between(2, 20)
    if level < 3:
        a += 10 * (level - 1)
        kind, answer, solution = "story-more", a + b, f"{a} plus {b} is {a + b}."
        if draw.chance(0.5):
            a += b
            kind, answer, solution = "story-less", a - b, f"{a} minus {b} is {a - b}."
    elif level == 3:
        kind, answer, solution = "story-times", a * b, f"{a} times {b} is {a * b}."
    elif level == 4 and draw.chance(0.5):
        c = draw.between(2, a + b - 1)
        kind, answer, solution = (
            "story-twice",
            a + b - c,
            f"{a} plus {b} is {a + b}, {a + b} minus {c} is {a + b - c}.",
        )
    elif level == 4:
        kind, answer, solution = (
            "story-times-more",
            a * b + c,
            f"{a} times {b} is {a * b}, {a * b} plus {c} is {a * b + c}.",
        )
    else:
        e, made = draw.between(2, 5), a * b + c
        kind, answer = "story-three", made - e
        solution = (
            f"{a} times {b} is {a * b}, {a * b} plus {c} is {made}, {made} minus {e} is {answer}."
        )
        slots["e"] = e
    slots |= {"a": a, "b": b, "c": c}
    numbers = f"{a} {b} {c if level > 3 else ''} {slots.get('e', '')}"
    return Problem(kind, f"{numbers} {slots['things']}", slots, str(answer), solution)


def calendar(draw: Draw, level: int) -> Problem:
    """Hours (1), days (2 and 4), months (3), and both ways in one question (5)."""
    back = draw.chance(0.5)
    if level == 1:
        a, b = draw.between(1, 12), draw.between(1, 11)
        hour = (a + (-b if back else b) - 1) % 12 + 1
        return Problem(
            "hour-before" if back else "hour-after", f"{a} {b}", {"a": a, "b": b}, str(hour)
        )
    cycle, name = (MONTHS, "month") if level == 3 else (DAYS, "day")
    start = draw.below(len(cycle))
    if level == 5:
        a, b = draw.between(5, 40), draw.between(2, 20)
        middle, end = DAYS[(start + a) % 7], DAYS[(start + a - b) % 7]
        return Problem(
            "day-both",
            f"{DAYS[start]} {a} {b}",
            {"from": DAYS[start], "a": a, "b": b},
            end,
            f"{a} days after {DAYS[start]} is {middle}. {b} days before {middle} is {end}.",
        )
    n = draw.between(2, 30) if level != 4 else draw.between(20, 200)
    end = cycle[(start + (-n if back else n)) % len(cycle)]
    rest = n % len(cycle)
    solution = f"{n} is {n - rest} plus {rest}, so count {rest} {name}s." if n >= len(cycle) else ""
    kind = f"{name}-{'before' if back else 'after'}"
    return Problem(kind, f"{cycle[start]} {n}", {"from": cycle[start], "n": n}, end, solution)


_UNITS = (
    ("week", "days", 7),
    ("minute", "seconds", 60),
    ("hour", "minutes", 60),
    ("day", "hours", 24),
    ("metre", "centimetres", 100),
    ("kilometre", "metres", 1000),
    ("kilogram", "grams", 1000),
    ("dozen", "pieces", 12),
    ("year", "months", 12),
    ("yard", "inches", 36),
)


def convert(draw: Draw, level: int) -> Problem:
    """Into the small unit (1, 2), into the large one (3), of a mixed amount (4), into a mixed
    amount (5).
    """
    units = [unit for unit in _UNITS if level > 1 or unit[2] in (7, 12, 100, 1000)]
    singular, small, size = draw.pick(units)
    big = singular + "s"
    a, b = draw.between(2, 20 if level < 2 else 60), draw.between(1, size - 1)
    slots: dict[str, object] = {"big": big, "small": small, "a": a, "b": b, "total": a * size + b}
    rule = f"There are {size} {small} in one {singular}"
    if level < 3:
        return Problem(
            "convert-down",
            f"{big} {small} {a}",
            slots,
            f"{a * size}",
            f"{rule}: {a} times {size} is {a * size}.",
        )
    if level == 3:
        return Problem(
            "convert-up",
            f"{big} {small} {a * size}",
            slots | {"total": a * size},
            f"{a}",
            f"{rule}: {a * size} is {a} times {size}.",
        )
    if level == 4:
        return Problem(
            "convert-mixed",
            f"{big} {small} {a} {b}",
            slots,
            f"{a * size + b}",
            f"{rule}: {a} times {size} is {a * size}, plus {b} is {a * size + b}.",
        )
    return Problem(
        "convert-split",
        f"{big} {small} {a * size + b}",
        slots,
        f"{a} {big} and {b} {small}",
        f"{rule}: {a} times {size} is {a * size}, and {b} are left.",
    )


def code(draw: Draw, level: int) -> Problem:
    """What a line prints (1), two variables (2), a call (3), an update (4), a loop (5)."""
    x, y = draw.sample("abcnxyz", 2)
    a, b, n = draw.between(1, 30), draw.between(1, 30), draw.between(2, 5)
    if level < 3:
        op = draw.pick("+-" if level == 1 else "+-*")
        if op == "-":
            a, b = max(a, b), min(a, b)
        elif op == "*":
            b = b % 9 + 1
        if level == 1:
            text = f"{x} = {a}\nprint({x} {op} {b})"
        else:
            text = f"{x} = {a}\n{y} = {b}\nprint({x} {op} {y})"
        answer = {"+": a + b, "-": a - b, "*": a * b}[op]
    elif level == 3:
        text, answer = _call(draw, x)
    elif level == 4:
        text, answer = f"{x} = {a}\n{y} = {x} + {b}\n{x} = {y} * {n}\nprint({x})", (a + b) * n
    else:
        text, answer = (
            f"{x} = {a}\nfor {y} in range({n}):\n    {x} = {x} + {b}\nprint({x})",
            a + n * b,
        )
    return Problem("code", text, {"code": text}, str(answer))


def _call(draw: Draw, x: str) -> tuple[str, object]:
    numbers: Sequence[int] = draw.different(4, 1, 60)
    word, i = draw.pick(WORDS), draw.below(4)
    return draw.pick(
        (
            (f"{x} = {numbers}\nprint(max({x}))", max(numbers)),
            (f"{x} = {numbers}\nprint(min({x}))", min(numbers)),
            (f"{x} = {numbers}\nprint({x}[{i}])", numbers[i]),
            (f"{x} = {numbers}\nprint(sum({x}))", sum(numbers)),
            (f'{x} = "{word}"\nprint({x}.upper() + "{i}")', f"{word.upper()}{i}"),
        )
    )
