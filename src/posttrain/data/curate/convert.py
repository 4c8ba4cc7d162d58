"""From pairs to labelled answers, and from labelled answers to pairs.

Left out: an answer to imitate, beside a pair, does not become a labelled one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from posttrain.core.seeds import generator
from posttrain.data.curate.groups import equal
from posttrain.data.formats import Example
from posttrain.data.messages import Text

REPEATED = "repeats an answer that is there"
AMBIGUOUS = "ambiguous: chosen in one pair, rejected in another"
ONLY_GOOD, ONLY_BAD = "its prompt has no bad answer", "its prompt has no good answer"
NO_PROMPT = "no prompt to share"
OVER = "in none of its prompt's pairs (--pairs-per-prompt)"


def labelled(answers: np.ndarray, stays: np.ndarray, keep_ambiguous: bool) -> np.ndarray:
    """What becomes of both answers of every pair.

    Args:
        answers: [R, 2] number of the chosen and of the rejected answer.
        stays: [R] the pairs to take.
        keep_ambiguous: whether to write answers that are chosen here and rejected there.
    Returns: [R, 2] "" to write the answer, else the reason why not; "" for pairs that are not
        taken.
    """
    reasons = np.full(answers.shape, "", object)
    if not keep_ambiguous:
        ambiguous = np.intersect1d(answers[stays, 0], answers[stays, 1])
        reasons[np.isin(answers, ambiguous) & stays[:, None]] = AMBIGUOUS
    rows = np.flatnonzero(stays)
    for side in (0, 1):
        for group in equal(answers[rows, side]):
            again = rows[group[1:]]
            reasons[again, side] = np.where(
                reasons[again, side] == "", REPEATED, reasons[again, side]
            )
    return reasons


@dataclass(frozen=True)
class Labelled:
    """Labelled answers.

    Attributes:
        prompts: [R] number of the prompt, by which pairs are ordered.
        answers: [R] number of the answer.
        good: [R] the label.
        stays: [R] the rows to take.
    """

    prompts: np.ndarray
    answers: np.ndarray
    good: np.ndarray
    stays: np.ndarray


def paired(
    rows: Labelled, most: int, seed: int, names: Callable[[int], str]
) -> tuple[np.ndarray, np.ndarray, int]:
    """Pairs of a good and a bad answer to the same prompt; a prompt's answers are used about
    equally often.

    Args:
        rows: the labelled answers.
        most: pairs of a prompt at most.
        seed: decides which.
        names: row → name of its prompt. The choice depends on it, and not on other rows.
    Returns: [P, 2] the rows of the good and the bad answer; [R] why a row is in no pair, "" where
        it is in one or not taken; how many pairs are possible.
    """
    reasons, pairs, possible = np.full(len(rows.prompts), "", object), [], 0
    for group in _by_prompt(rows):
        good, bad = group[rows.good[group]], group[~rows.good[group]]
        if not len(good) or not len(bad):
            reasons[group] = ONLY_BAD if not len(good) else ONLY_GOOD
            continue
        rng = generator(seed, "pairs", names(int(group[0])))
        same = _same_answer(rows.answers[good], rows.answers[bad])
        possible += len(good) * len(bad) - same
        orders = rng.permutation(good).tolist(), rng.permutation(bad).tolist()
        combinations = _combinations(*orders)
        different = ((a, b) for a, b in combinations if rows.answers[a] != rows.answers[b])
        pairs += islice(different, most)
    indices = np.array(pairs, np.int64).reshape(-1, 2)
    unused = rows.stays & (reasons == "")
    unused[indices.ravel()] = False
    reasons[unused] = OVER
    return indices, reasons, possible


def _by_prompt(rows: Labelled) -> list[np.ndarray]:
    """The rows to take, grouped by prompt."""
    taken = np.flatnonzero(rows.stays)
    if not len(taken):
        return []
    order = taken[np.argsort(rows.prompts[taken], kind="stable")]
    return np.split(order, np.flatnonzero(np.diff(rows.prompts[order])) + 1)


def _same_answer(good: np.ndarray, bad: np.ndarray) -> int:
    """How many pairs of a good and a bad answer have the same answer on both sides."""
    same = 0
    for answer in np.intersect1d(good, bad):
        same += int((good == answer).sum() * (bad == answer).sum())
    return same


def _combinations(good: list[int], bad: list[int]) -> Iterator[tuple[int, int]]:
    """All good ones with all bad ones; each recurs as late as possible."""
    period = math.lcm(len(good), len(bad))
    for i in range(len(good) * len(bad)):
        yield good[i % len(good)], bad[(i + i // period) % len(bad)]


def as_label(example: Example, side: int, extra: dict[str, Any]) -> dict[str, Any]:
    """One answer of a pair as a row: side 0 is good, side 1 bad."""
    return {
        "prompt": _for_json(example.prompt),
        "completion": _for_json(example.answers[side]),
        "label": side == 0,
        **_context(example),
        **extra,
    }


def as_pair(prompt: dict[str, Any], chosen: Any, rejected: Any) -> dict[str, Any]:
    """A row of a pair, from what `parts` gives for two labelled answers."""
    context = {key: value for key, value in prompt.items() if key != "prompt"}
    return {"prompt": prompt["prompt"], "chosen": chosen, "rejected": rejected, **context}


def parts(example: Example) -> tuple[dict[str, Any], Any]:
    """The prompt with its tools and template arguments, and the one answer, for JSON."""
    prompt = {"prompt": _for_json(example.prompt), **_context(example)}
    return prompt, _for_json(example.answers[0])


def _for_json(part: Text) -> Any:
    return part if isinstance(part, str) else list(part)


def _context(example: Example) -> dict[str, Any]:
    """What belongs to a prompt besides its text, where there is any."""
    context: dict[str, Any] = {}
    if example.tools:
        context["tools"] = list(example.tools)
    if example.kwargs:
        context["chat_template_kwargs"] = example.kwargs
    return context
