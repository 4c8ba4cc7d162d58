"""From rows to a global batch: the forests of their trees, and beside each forest the facts that
the method knows.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from collections.abc import Sequence as Many
from dataclasses import dataclass

import numpy as np
import torch

from posttrain.core.seeds import generator
from posttrain.core.types import Facts
from posttrain.data.forest import Sequence, TokenForest, Tree, forests

Told = Callable[[int, int], None]  # hears how many of how many are done
LogProbs = Callable[
    [Many[TokenForest]], "list[torch.Tensor]"
]  # forests → log-probabilities [N] of each


@dataclass(frozen=True)
class Batch:
    """A global batch: forests and facts to train on, and forests and facts that are scored only."""

    forests: list[TokenForest]
    facts: list[Facts]
    probes: tuple[list[TokenForest], list[Facts]] | None = None


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
        return tuple(
            self._joined(one, other[k % len(other)]) for k, one in enumerate(self.trees[i])
        )

    def _joined(self, one: Sequence, other: Sequence) -> Sequence:
        begin, after = _answer(one), _answer(other)
        tokens = np.concatenate([one.tokens[:begin], other.tokens[after:]])[: self.longest]
        trained = np.concatenate([one.trained[:begin], other.trained[after:]])[: self.longest]
        return Sequence(tokens, trained)


def _answer(one: Sequence) -> int:
    """Where the answer of a sequence begins."""
    return int(np.flatnonzero(one.trained[1:])[0]) + 1


@dataclass(frozen=True)
class Rows:
    """The rows of a run, and what a method knows of each.

    Attributes:
        trees: a tree for each row.
        together: sequences of a tree that are compared: 2 of pairs, 3 of triples, 1 where they
            stand for themselves.
        numbers: beside each tree: its label for every sequence, or the margin of a pair.
        labelled: whether the numbers are labels. stepped: whether they are labels of steps, each a
            target.
        reference: the reference's log-probabilities of each tree's targets, sequence after
            sequence; or a function that scores forests; None for methods without one.
        probes: see `Mismatched`; probe_reference: as `reference`, of the probes.
        prompt_lengths: tokens of each tree's prompt; None: up to the first trained one.
    """

    trees: Many[Tree]
    together: int = 1
    numbers: Many[np.ndarray] | None = None
    labelled: bool = False
    stepped: bool = False
    reference: Many[np.ndarray] | LogProbs | None = None
    probes: Many[Tree] | None = None
    probe_reference: Many[np.ndarray] | LogProbs | None = None
    prompt_lengths: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.trees)

    def prompts(self) -> list[Hashable]:
        """The tokens of every row's prompt: rows with the same one are not independent."""
        known = self.prompt_lengths
        lengths = [_answer(tree[0]) for tree in self.trees] if known is None else known.tolist()
        return [
            tree[0].tokens[:n].tobytes() if n else i  # without a prompt a row is its own
            for i, (tree, n) in enumerate(zip(self.trees, lengths, strict=True))
        ]

    def batch(self, rows: Many[int], budget: int, *, shared: bool) -> Batch:
        """Some rows as a global batch.

        Args:
            rows: which.
            budget: tokens a forest may hold. shared: whether prefixes are shared; see
                `posttrain.data.forest.forests`.
        """
        trees = [self.trees[i] for i in rows]
        found = forests(trees, budget, together=self.together, shared=shared)
        facts = [self._facts(forest, rows, trees) for forest in found]
        _refer(found, facts, self.reference, rows, trees)
        if self.probes is None:
            return Batch(found, facts)
        others = [self.probes[i] for i in rows]
        probes = [f for f in forests(others, budget, shared=shared) if f.N]
        known: list[Facts] = [{} for _ in probes]
        _refer(probes, known, self.probe_reference, rows, others)
        return Batch(found, facts, (probes, known))

    def _facts(self, forest: TokenForest, rows: Many[int], trees: list[Tree]) -> Facts:
        """What is known of a forest but for the reference."""
        number = forest.sequence
        if self.together > 1:
            order = number.argsort()
            sides = {
                name: order[number[order] % self.together == k]
                for k, name in enumerate(("chosen", "rejected", "gold"))
                if k < self.together
            }
            pair = number[sides["chosen"]] // self.together
            facts: Facts = {**sides, "number": pair}
            if self.numbers is not None:
                margins = [self.numbers[rows[i]] for i in pair.tolist()]
                if any(len(one) for one in margins):
                    facts["margin"] = torch.tensor(
                        [float(one[0]) if len(one) else 0.0 for one in margins]
                    )
            return facts
        if self.labelled:
            assert self.numbers is not None
            every = np.concatenate([self.numbers[i] for i in rows])
            return {"label": torch.from_numpy(every[number.numpy()]), "number": number}
        if self.stepped:
            assert self.numbers is not None
            parts = _by_sequence([self.numbers[i] for i in rows], trees)
            return {
                "step_label": torch.from_numpy(np.concatenate([parts[k] for k in number.tolist()]))
            }
        return {}


def _by_sequence(values: Many[np.ndarray], trees: Many[Tree]) -> list[np.ndarray]:
    """Values of the targets of trees, cut into those of each sequence."""
    return [
        part
        for value, tree in zip(values, trees, strict=True)
        for part in np.split(value, np.cumsum([one.targets for one in tree])[:-1])
    ]


def _refer(
    found: Many[TokenForest],
    facts: Many[Facts],
    reference: Many[np.ndarray] | LogProbs | None,
    rows: Many[int],
    trees: list[Tree],
) -> None:
    """Put the reference's log-probabilities among the facts of each forest."""
    if reference is None:
        return
    if callable(reference):
        for fact, logprob in zip(facts, reference(found), strict=True):
            fact["reference"] = logprob
        return
    every = _by_sequence([reference[i] for i in rows], trees)
    for forest, fact in zip(found, facts, strict=True):
        parts = [every[k] for k in forest.sequence.tolist()]
        fact["reference"] = torch.from_numpy(
            np.concatenate(parts) if parts else np.empty(0, np.float32)
        )


def by_tree(
    found: Many[TokenForest], values: Many[torch.Tensor], trees: Many[Tree]
) -> list[np.ndarray]:
    """Values of targets, by tree: the inverse of laying trees out as forests.

    Args:
        found: `forests(trees, …)`; values: [N] of each.
    Returns: for each tree the values of its targets, sequence after sequence, float32.
    """
    by_sequence: dict[int, np.ndarray] = {}
    for forest, value in zip(found, values, strict=True):
        counts = torch.bincount(forest.leaf, minlength=forest.L).tolist()
        for number, part in zip(
            forest.sequence.tolist(), value.float().cpu().split(counts), strict=True
        ):
            by_sequence[number] = part.numpy()
    out, first = [], 0
    for tree in trees:
        out.append(np.concatenate([by_sequence[first + k] for k in range(len(tree))]))
        first += len(tree)
    return out
