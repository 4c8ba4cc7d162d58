"""An audit of a scorer: what it pays for the right answer, for wrong ones, and for attacks.

On every row the right answer and wrong ones are scored in several forms; attacks are written in the
form in which the most rows tell them apart. An attack succeeds on a row where it scores above the
wrong answer by more than half the distance to the right one, or above the right one by as much
where it is the right answer and more.

Besides attacks: whether a completion scores the same again, beside other completions, and after
them; whether scores are finite; whether the scorer fails.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Many
from dataclasses import dataclass, replace
from statistics import median

from posttrain.scoring.attacks import ATTACKS, Try, tries
from posttrain.scoring.cases import AS_GIVEN, FORMS, Case
from posttrain.scoring.functions import LATE
from posttrain.scoring.score import NOT_FINITE, Response, Score, Scorer

BATCH = 256  # responses scored together
ALONE = 6  # rows whose completions are also scored one by one
WRONG = 2  # wrong answers of a row that are scored
SMALL = 0.1  # of the usual distance between right and wrong: below it a row tells them not apart
NOISE = 0.05  # of that distance: a larger difference of one completion's scores is a difference
# what is found besides attacks: name → what it shows, and the cure
CHECKS = {
    "right answer": (
        "Right answers do not score above wrong ones.",
        "check the column of the wanted answer, and the form: --form 'FINAL: {answer}'.",
    ),
    "wrong answer": (
        "Wrong answers do not score below right ones.",
        "compare the answer, all of it, with the wanted one.",
    ),
    "not finite": ("Scores are infinite or NaN.", "bound what is divided by, and logarithms."),
    "repeat": (
        "The same completion scores otherwise when it is scored again.",
        "take randomness, the clock and counters out of the scorer; a judge at temperature 0.",
    ),
    "order": (
        "A score depends on what else is in the batch.",
        "score every completion by itself; keep one score a completion where one fails.",
    ),
    "memory": (
        "A score depends on what was scored before.",
        "keep nothing between calls, and run code where it can change nothing.",
    ),
    "raises": (
        "The scorer fails, and all scores of the batch are missing.",
        "catch what reading a completion may raise, and give the score of a wrong answer.",
    ),
}


@dataclass(frozen=True)
class Ends:
    """What a row's right and wrong answers score in the form that is read.

    Attributes:
        right, wrong: the wrong answer that is paid best.
        unread: the median of wrong answers over all forms. first: the first wrong answer, when new.
        apart: whether right is clearly above wrong.
    """

    right: float | None
    wrong: float | None
    unread: float | None
    first: float | None
    apart: bool


@dataclass(frozen=True)
class Control:
    """What right and wrong answers score.

    Attributes:
        form: in which the most rows tell them apart. reads: rows that do, by form.
        rows: by row. noise: the largest difference that is none.
        middle: between the highest and the lowest of all scores; 0 where all are the same.
    """

    form: str
    reads: dict[str, int]
    rows: list[Ends]
    noise: float
    middle: float


@dataclass(frozen=True)
class Tried:
    """A completion that was scored.

    Attributes:
        name: of the attack or check. variant: the trick.
        ends: what right and wrong score on its row.
        succeeded: whether the scorer fell for it.
    """

    name: str
    variant: str
    case: Case
    completion: str
    score: Score
    ends: Ends
    succeeded: bool


def audit(
    scorer: Scorer,
    cases: Many[Case],
    form: str = "",
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[Control, list[Tried]]:
    """Try everything on a scorer.

    Args:
        form: another form of answers, with {answer} in it.
        progress: called with how many rows are done.
    Returns: the control, and every try.
    """
    worked = any(case.given.gold != case.answer for case in cases)
    forms = [*([form] if form else []), *FORMS, *([AS_GIVEN] if worked else [])]
    control = _control(scorer, cases, forms)
    tried = [*_controlled(control, cases)]
    tried += _attacked(scorer, cases, control, progress)
    tried += _constant(scorer, cases, control)
    return control, tried


def scored(
    scorer: Scorer, responses: Many[Response], progress: Callable[[int], None] = lambda done: None
) -> list[Score]:
    """Scores; a batch that failed altogether is halved, so that a completion that makes the scorer
    raise takes no other's score.
    """
    out: list[Score] = []
    for a in range(0, len(responses), BATCH):
        out += _halved(scorer, responses[a : a + BATCH])
        progress(len(out))
    return out


def _halved(scorer: Scorer, batch: Many[Response]) -> list[Score]:
    scores, middle = scorer(batch), len(batch) // 2
    late = scores[0].why.startswith(LATE)
    if not middle or late or not all(score.failed for score in scores):
        return scores
    return _halved(scorer, batch[:middle]) + _halved(scorer, batch[middle:])


# -------------------------------------------------------------------------------- right and wrong


def _control(scorer: Scorer, cases: Many[Case], forms: Many[str]) -> Control:
    """Right and wrong answers in every form."""
    answers = [[case.answer, *(case.wrong * WRONG)[:WRONG]] for case in cases]
    responses = [
        case.response(case.written(form, answer))
        for form in forms
        for case, some in zip(cases, answers, strict=True)
        for answer in some
    ]
    scores = iter(scored(scorer, responses))
    found: dict[str, list[list[float | None]]] = {}  # form → row → right, wrong …
    for form in forms:
        found[form] = [[next(scores).value for _ in range(1 + WRONG)] for _ in cases]
    reads = {form: sum(_distance(values) > 0 for values in found[form]) for form in forms}
    right = {form: _known([values[0] for values in found[form]]) for form in forms}
    best = max(forms, key=lambda x: (reads[x], math.fsum(right[x]) / max(1, len(right[x]))))
    distances = [d for values in found[best] if (d := _distance(values)) > 0]
    usual = median(distances) if distances else 0.0
    rows: list[Ends] = []
    for row, (first, *wrong) in enumerate(found[best]):
        unread = _known([value for form in forms for value in found[form][row][1:]])
        rows.append(
            Ends(
                first,
                max(_known(wrong), default=None),
                median(unread) if unread else None,
                wrong[0],
                _distance([first, *wrong]) > SMALL * usual,
            )
        )
    every = _known([x for of_form in found.values() for values in of_form for x in values]) or [0.0]
    middle = (min(every) + max(every)) / 2 if min(every) < max(every) else 0.0
    return Control(best, reads, rows, NOISE * usual, middle)


def _known(values: Many[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _distance(values: Many[float | None]) -> float:
    """How far the first is above the highest of the others; 0 where it is not."""
    right, others = values[0], _known(values[1:])
    return max(0.0, right - max(others)) if right is not None and others else 0.0


def _controlled(control: Control, cases: Many[Case]) -> Iterator[Tried]:
    """Rows that do not tell right from wrong: right is paid too little, or wrong too much."""
    for case, ends in zip(cases, control.rows, strict=True):
        low = ends.right is None or ends.right <= control.middle
        for name, answer, value in (
            ("right answer", case.answer, ends.right),
            ("wrong answer", case.wrong[0], ends.wrong),
        ):
            text, missed = case.written(control.form, answer), not ends.apart
            succeeded = missed and low == (name == "right answer")
            yield Tried(name, control.form, case, text, Score(value), ends, succeeded)


# ---------------------------------------------------------------------------------------- attacks


def _attacked(
    scorer: Scorer, cases: Many[Case], control: Control, progress: Callable[[int], None]
) -> Iterator[Tried]:
    """Every attack on every row that tells right from wrong."""
    group: list[tuple[str, Try, Case, Ends]] = []
    for name, kind in ATTACKS.items():
        some: list[tuple[str, Try, Case, Ends]] = []
        for case, ends in zip(cases, control.rows, strict=True):
            if ends.apart:
                some += [(name, one, case, ends) for one in tries(kind, case, control.form)]
        # by trick: those that make the scorer raise stand together
        group += sorted(some, key=lambda entry: entry[1].variant)
    responses = [case.response(x.completion, x.prompt, x.columns) for _, x, case, _ in group]
    scores = scored(scorer, responses, lambda done: progress(done * len(cases) // len(group)))
    blind = {  # rows whose wanted answer the scorer does not read: it scores the same without
        id(case)
        for (_, one, case, ends), score in zip(group, scores, strict=True)
        if one.above == "missing" and not _differ(score.value, ends.right, control, none=True)
    }
    for (name, one, case, ends), score in zip(group, scores, strict=True):
        succeeded = _succeeds(one, score.value, ends, control)
        if one.columns is not None:
            succeeded = succeeded and id(case) not in blind
        yield Tried(name, one.variant, case, one.completion, score, ends, succeeded)


def _succeeds(one: Try, value: float | None, ends: Ends, control: Control) -> bool:
    right, wrong = ends.right, ends.wrong
    if value is None or right is None or wrong is None:
        return False
    if one.above == "missing":  # a scorer that scores as before does not read the wanted answer
        return _differ(value, right, control)
    if one.above == "unread" and ends.unread is not None:
        wrong = min(wrong, ends.unread)
    return value > (right if one.above == "right" else wrong) + (right - wrong) / 2


def failures(tried: Many[Tried]) -> Iterator[Tried]:
    """Of every attack's try, whether the scorer failed on it, and whether the score was finite. A
    scorer may fail on a row whose wanted answer was taken out.
    """
    for one in tried:
        if one.name in ATTACKS and one.name not in ("no answer", "missing as number"):
            trick = f"{one.name}: {one.variant}"
            yield replace(one, name="raises", variant=trick, succeeded=one.score.failed)
            infinite = one.score.why.endswith(NOT_FINITE)
            yield replace(one, name="not finite", variant=trick, succeeded=infinite)


# ------------------------------------------------------------------------------ the same completion


def _constant(scorer: Scorer, cases: Many[Case], control: Control) -> Iterator[Tried]:
    """Whether right and wrong answers score the same again, in other company, and as they did when
    they were new.
    """
    entries = [
        (case, ends, variant, case.written(control.form, answer), new)
        for case, ends in zip(cases, control.rows, strict=True)
        for variant, answer, new in (
            ("right", case.answer, ends.right),
            ("wrong", case.wrong[0], ends.first),
        )
    ]
    responses = [case.response(text) for case, _, _, text, _ in entries]
    again = [scored(scorer, responses) for _ in range(3)]
    odd = [cases[0].response(text) for text in ("", "{", "\\boxed{")]
    mixed = [x for i, response in enumerate(responses) for x in (odd[i % 3], response)]
    alone = [scored(scorer, [response])[0] for response in responses[: 2 * ALONE]]
    alone += again[0][len(alone) :]
    company = [scored(scorer, responses[::-1])[::-1], scored(scorer, mixed)[1::2], alone]
    for i, (case, ends, variant, text, new) in enumerate(entries):
        now, restless = again[0][i], False
        for name, others in (
            ("repeat", [scores[i] for scores in again[1:]]),
            ("order", [scores[i] for scores in company]),
            ("memory", [Score(new)]),
        ):
            other = [x for x in others if _differ(x.value, now.value, control)]
            succeeded = bool(other) and not restless  # what is restless depends on nothing else
            restless = restless or (name == "repeat" and succeeded)
            yield Tried(name, variant, case, text, other[0] if other else now, ends, succeeded)


def _differ(one: float | None, other: float | None, control: Control, none: bool = False) -> bool:
    """Whether two scores differ; `none` says whether a missing one differs from any."""
    if one is None or other is None:
        return none
    return abs(one - other) > max(control.noise, 1e-9 * abs(one))
