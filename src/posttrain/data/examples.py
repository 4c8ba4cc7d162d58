"""Prepared rows as trees that carry what a method knows of them."""

from __future__ import annotations

from collections.abc import Hashable
from collections.abc import Sequence as Many
from dataclasses import replace
from typing import Literal

import numpy as np

from posttrain.core.seeds import generator
from posttrain.data.forest import Sequence, Tree, Unit

Kind = Literal["demonstrations", "pairs", "triples", "labels", "steps"]
MEMBERS = {"pairs": (0, 1), "triples": (0, 1, 2)}  # chosen, rejected, gold: as rows hold them


class Examples(Many[Tree]):
    """The trees of a data set with their facts.

    pairs, triples: a unit of chosen, rejected (and gold) answer; its fact `margin`.
    labels: the fact `label` of every sequence, 1 or 0.
    steps: the fact `step_label` of every target, the end of a step.

    Args:
        trees: a tree for each row.
        kind: of the rows.
        numbers: beside each tree its labels, or the margin of a pair, if it has one.
        margins: whether pairs get their margin, 0 where a row has none.
        prompt_lengths: [rows] tokens of each row's prompt; None: up to the first trained one.
    """

    def __init__(
        self,
        trees: Many[Tree],
        kind: Kind = "demonstrations",
        numbers: Many[np.ndarray] | None = None,
        *,
        margins: bool = False,
        prompt_lengths: np.ndarray | None = None,
    ) -> None:
        self.trees, self.kind, self.numbers, self.margins = trees, kind, numbers, margins
        self.prompt_lengths = prompt_lengths

    def __len__(self) -> int:
        return len(self.trees)

    def __getitem__(self, i: int) -> Tree:  # type: ignore[override] - no slices
        tree = self.trees[i]
        if self.kind in MEMBERS:
            return replace(tree, units=(Unit(MEMBERS[self.kind], self._margin(i)),))
        if self.numbers is None or self.kind == "demonstrations":
            return tree
        if self.kind == "steps":
            return tree.with_targets("step_label", np.asarray(self.numbers[i], np.float32))
        labelled = []
        for sequence, label in zip(tree, self.numbers[i].tolist(), strict=True):
            labelled.append(replace(sequence, whole={**sequence.whole, "label": label}))
        return Tree(tuple(labelled))

    def _margin(self, i: int) -> dict[str, float]:
        if not self.margins or self.numbers is None:
            return {}
        known = self.numbers[i]
        return {"margin": float(known[0]) if len(known) else 0.0}

    def prompts(self) -> list[Hashable]:
        """The tokens of every row's prompt: rows with the same one are not independent."""
        prompts: list[Hashable] = []
        for i, tree in enumerate(self.trees):
            if self.prompt_lengths is None:
                length = answer_start(tree[0])
            else:
                length = int(self.prompt_lengths[i])
            # without a prompt a row is its own
            prompts.append(tree[0].tokens[:length].tobytes() if length else i)
        return prompts


class Mismatched(Many[Tree]):
    """For every tree, its prompts with the answers of another tree: what KTO measures its distance
    from the reference on.

    The other tree is the next one in an order drawn by the seed. Sequences stay within the longest
    of the trees.

    Args:
        trees: sequences whose answer begins with their first trained token.
        seed: of the order.
        longest: tokens of a sequence at most.
    """

    def __init__(self, trees: Many[Tree], seed: int, longest: int) -> None:
        order = generator(seed, "mismatched").permutation(len(trees))
        self.trees, self.longest = trees, longest
        self._other = np.empty(len(trees), np.int64)
        self._other[order] = np.roll(order, -1)

    def __len__(self) -> int:
        return len(self.trees)

    def __getitem__(self, i: int) -> Tree:  # type: ignore[override] - no slices
        other = self.trees[int(self._other[i])]
        joined = []
        for k, sequence in enumerate(self.trees[i]):
            joined.append(self._joined(sequence, other[k % len(other)]))
        return Tree(tuple(joined))

    def _joined(self, sequence: Sequence, other: Sequence) -> Sequence:
        start, other_start = answer_start(sequence), answer_start(other)
        tokens = np.concatenate([sequence.tokens[:start], other.tokens[other_start:]])
        trained = np.concatenate([sequence.trained[:start], other.trained[other_start:]])
        return Sequence(tokens[: self.longest], trained[: self.longest])


def answer_start(sequence: Sequence) -> int:
    """Where the answer of a sequence begins: its first trained token."""
    return int(np.flatnonzero(sequence.trained[1:])[0]) + 1
