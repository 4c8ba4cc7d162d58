"""From pairs to labelled answers, and from labelled answers to pairs.

Left out: an answer to imitate beside a pair does not become a labelled one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np

from posttrain.core.seeds import generator
from posttrain.data.curate.near_duplicates import equal
from posttrain.data.formats import Example
from posttrain.data.messages import Text

REPEATED, AMBIGUOUS = (
    "repeats an answer that is there",
    "ambiguous: chosen in one pair, rejected in another",
)
ONLY_GOOD, ONLY_BAD = "its prompt has no bad answer", "its prompt has no good answer"
NO_PROMPT, OVER = "no prompt to share", "in none of its prompt's pairs (--pairs-per-prompt)"


def labelled(answers: np.ndarray, stays: np.ndarray, keep_ambiguous: bool) -> np.ndarray:
    """What becomes of both answers of every pair.

    Args:
        answers: [R, 2] number of the chosen and of the rejected one.
        stays: [R] the pairs to take.
    Returns: [R, 2] "" to write it, else the reason why not; of a pair that is not taken, "".
    """
    out = np.full(answers.shape, "", object)
    if not keep_ambiguous:
        both = np.intersect1d(answers[stays, 0], answers[stays, 1])
        out[np.isin(answers, both) & stays[:, None]] = AMBIGUOUS
    for side in (0, 1):
        rows = np.flatnonzero(stays)
        for run in equal(answers[rows, side]):
            again = rows[run[1:]]
            out[again, side] = np.where(out[again, side] == "", REPEATED, out[again, side])
    return out


def paired(
    prompts: np.ndarray,
    answers: np.ndarray,
    good: np.ndarray,
    stays: np.ndarray,
    most: int,
    seed: int,
    names: Any,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Good and bad answers of the same prompt as pairs.

    All answers of a prompt are used about equally often.

    Args:
        prompts: [R] number of the prompt, by which pairs are ordered. answers: [R] number of the
            answer.
        good: [R] its label. stays: [R] the rows to take.
        most: pairs of a prompt at most.
        seed: of which. names: row → name of its prompt, which the choice depends on, and not on
            other rows.
    Returns: [P, 2] the rows of good and bad answer; [R] why a row is in no pair, "" where it is in
        one or not taken; and how many pairs there could be.
    """
    why, pairs, possible = np.full(len(prompts), "", object), [], 0
    rows = np.flatnonzero(stays)
    order = rows[np.argsort(prompts[rows], kind="stable")]
    for group in np.split(order, np.flatnonzero(np.diff(prompts[order])) + 1) if len(order) else ():
        sides = group[good[group]], group[~good[group]]
        if not len(sides[0]) or not len(sides[1]):
            why[group] = ONLY_BAD if not len(sides[0]) else ONLY_GOOD
            continue
        rng = generator(seed, "pairs", names(int(group[0])))
        possible += len(sides[0]) * len(sides[1]) - _shared(answers[sides[0]], answers[sides[1]])
        each = _combinations(rng.permutation(sides[0]).tolist(), rng.permutation(sides[1]).tolist())
        pairs += islice(((a, b) for a, b in each if answers[a] != answers[b]), most)
    found = np.array(pairs, np.int64).reshape(-1, 2)
    alone = stays & (why == "")
    alone[found.ravel()] = False
    why[alone] = OVER
    return found, why, possible


def _shared(a: np.ndarray, b: np.ndarray) -> int:
    """How many pairs of one of a and one of b are the same answer."""
    _, in_a, in_b = np.intersect1d(a, b, return_indices=True)
    return sum(int((a == a[i]).sum() * (b == b[j]).sum()) for i, j in zip(in_a, in_b, strict=True))


def _combinations(a: list[int], b: list[int]) -> Iterator[tuple[int, int]]:
    """All of a with all of b, each as late as possible again."""
    period = math.lcm(len(a), len(b))
    for i in range(len(a) * len(b)):
        yield a[i % len(a)], b[(i + i // period) % len(b)]


def as_label(example: Example, side: int, extra: dict[str, Any]) -> dict[str, Any]:
    """One answer of a pair as a row of its own."""
    return {
        "prompt": _written(example.prompt),
        "completion": _written(example.answers[side]),
        "label": side == 0,
        **_around(example),
        **extra,
    }


def as_pair(prompt: dict[str, Any], chosen: Any, rejected: Any) -> dict[str, Any]:
    """A pair from what `parts` gives for two labelled answers."""
    around = {key: value for key, value in prompt.items() if key != "prompt"}
    return {"prompt": prompt["prompt"], "chosen": chosen, "rejected": rejected, **around}


def parts(example: Example) -> tuple[dict[str, Any], Any]:
    """The prompt with what belongs to it, and the one answer; both as JSON can write them."""
    return {"prompt": _written(example.prompt), **_around(example)}, _written(example.answers[0])


def _written(part: Text) -> Any:
    return part if isinstance(part, str) else list(part)


def _around(example: Example) -> dict[str, Any]:
    around = {
        "tools": list(example.tools) if example.tools else None,
        "chat_template_kwargs": example.kwargs or None,
    }
    return {key: value for key, value in around.items() if value}
