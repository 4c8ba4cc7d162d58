"""The token forest: the one batch type of every method.

Sequences that begin alike share what they share: a tree. Trees laid end to end, without padding,
are a forest. A packed document is a tree of one sequence; a preference pair is a prompt with two
answers; a group of samples is a prompt with G.

The law, tested as a property: scoring a forest gives the log-probabilities and gradients of scoring
    every sequence alone.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence as Many
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from posttrain.core.errors import DataError


@dataclass(frozen=True)
class Sequence:
    """One root → leaf path: token ids and which of them are trained.

    Attributes:
        tokens: [n] int64 token ids.
        trained: [n] bool. Position 0 is never a target, because nothing comes before it.
    """

    tokens: np.ndarray
    trained: np.ndarray

    @property
    def targets(self) -> int:
        return int(self.trained[1:].sum())


Tree = tuple[Sequence, ...]  # sequences that are scored together and share their common prefixes


@dataclass(frozen=True)
class TokenForest:
    """Trees laid out flat, depth first, parents before children. No padding; no prefix is computed
    twice.

    T tokens, N targets, L sequences, P the lengths of all sequences added up (P = T where nothing
    is shared).

    Attributes:
        tokens: [T] token ids.
        positions: [T] position of each token in its sequence.
        subtree_end: [T] end (exclusive) of the token's subtree: q sees k iff `k <= q <
            subtree_end[k]`.
        predictor: [N] index into T of the token whose hidden state predicts each target.
        target: [N] token id of each target. A token trained in two sequences is two targets.
        leaf: [N] sequence of each target.
        sequence: [L] the caller's number of each sequence in the global batch.
        path: [P] index into T of each token of each sequence, one sequence after another.
        lengths: [L] tokens in each sequence.
        trees: start of every tree in T, then T.
    """

    tokens: Tensor
    positions: Tensor
    subtree_end: Tensor
    predictor: Tensor
    target: Tensor
    leaf: Tensor
    sequence: Tensor
    path: Tensor
    lengths: Tensor
    trees: tuple[int, ...]

    @property
    def T(self) -> int:
        return self.tokens.numel()

    @property
    def N(self) -> int:
        return self.target.numel()

    @property
    def L(self) -> int:
        return self.lengths.numel()

    @cached_property
    def shared(self) -> tuple[bool, ...]:
        """For each tree, whether it branches; where it does not, plain causal attention is the
        same.
        """
        ends = self.subtree_end.tolist()
        return tuple(
            any(end != b for end in ends[a:b])
            for a, b in zip(self.trees, self.trees[1:], strict=False)
        )

    @cached_property
    def token_lengths(self) -> Tensor:
        """[T] length of the longest sequence each token is in."""
        lengths = torch.repeat_interleave(self.lengths, self.lengths)
        return torch.zeros_like(self.tokens).scatter_reduce_(0, self.path, lengths, "amax")

    def to(self, device: torch.device | str) -> TokenForest:
        """The same forest on another device."""
        moved: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        moved.update({k: v.to(device) for k, v in moved.items() if isinstance(v, Tensor)})
        return TokenForest(**moved)


@dataclass(frozen=True)
class _Layout:
    """A tree laid out: flat tokens, positions and subtree ends, and where each sequence's tokens
    lie.
    """

    tokens: np.ndarray
    positions: np.ndarray
    ends: np.ndarray
    paths: list[np.ndarray]


def _lay_out(tree: Tree) -> _Layout:
    """Share the common prefixes of a tree's sequences.

    In sorted order, sequences that share a prefix are neighbours: each adds only what its neighbour
    before it lacks.
    """
    if len(tree) == 1:
        n = len(tree[0].tokens)
        flat = np.arange(n)
        return _Layout(tree[0].tokens, flat, np.full(n, n), [flat])
    order = sorted(range(len(tree)), key=lambda i: tree[i].tokens.tolist())
    paths: list[np.ndarray] = [np.empty(0, np.int64)] * len(tree)
    tokens: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    ends = np.zeros(sum(len(s.tokens) for s in tree), np.int64)
    total, before, open_path = 0, np.empty(0, np.int64), np.empty(0, np.int64)
    for i in order:
        now = tree[i].tokens
        m = min(len(before), len(now))
        differ = np.flatnonzero(before[:m] != now[:m])
        common = int(differ[0]) if len(differ) else m
        ends[open_path[common:]] = total  # what the new sequence does not share ends here
        open_path = np.concatenate(
            [open_path[:common], np.arange(total, total + len(now) - common)]
        )
        tokens.append(now[common:])
        positions.append(np.arange(common, len(now)))
        total += len(now) - common
        before, paths[i] = now, open_path
    ends[open_path] = total
    return _Layout(np.concatenate(tokens), np.concatenate(positions), ends[:total], paths)


def size(tree: Tree, *, shared: bool = True) -> int:
    """Tokens a tree takes in a forest, or the lengths of its sequences added up where nothing can
    be shared.
    """
    if len(tree) == 1 or not shared:
        return sum(len(s.tokens) for s in tree)
    return len(_lay_out(tree).tokens)


def plant(trees: Many[Tree], numbers: Many[Many[int]] | None = None) -> TokenForest:
    """Lay trees out as one forest.

    Args:
        trees: the trees, each a tuple of sequences.
        numbers: the caller's number of each sequence of each tree; counted from 0 where None.
    Returns: the forest, its targets ordered by sequence and then by position.
    """
    starts, layouts = [0], []
    path, lengths, predictor, target, leaf, sequence = [], [], [], [], [], []
    for t, tree in enumerate(trees):
        layout = _lay_out(tree)
        for s, (one, flat) in enumerate(zip(tree, layout.paths, strict=True)):
            flat = flat + starts[-1]
            at = np.flatnonzero(one.trained[1:])
            predictor.append(flat[at])
            target.append(one.tokens[at + 1])
            leaf.append(np.full(len(at), len(lengths)))
            sequence.append(numbers[t][s] if numbers is not None else len(lengths))
            path.append(flat)
            lengths.append(len(flat))
        layouts.append(layout)
        starts.append(starts[-1] + len(layout.tokens))

    def flat_tensor(arrays: list[np.ndarray]) -> Tensor:
        return (
            torch.from_numpy(np.concatenate(arrays).astype(np.int64))
            if arrays
            else torch.empty(0, dtype=torch.int64)
        )

    return TokenForest(
        tokens=flat_tensor([x.tokens for x in layouts]),
        positions=flat_tensor([x.positions for x in layouts]),
        subtree_end=flat_tensor([x.ends + a for x, a in zip(layouts, starts, strict=False)]),
        predictor=flat_tensor(predictor),
        target=flat_tensor(target),
        leaf=flat_tensor(leaf),
        sequence=torch.tensor(sequence, dtype=torch.int64),
        path=flat_tensor(path),
        lengths=torch.tensor(lengths, dtype=torch.int64),
        trees=tuple(starts),
    )


def pack(sizes: Many[int], budget: int) -> list[list[int]]:
    """Best-fit decreasing: put each item, largest first, into the fullest bin that still holds it.

    Args:
        sizes: tokens of each item, none above the budget.
        budget: tokens a bin holds.
    Returns: item numbers of each bin, ascending; the same input always gives the same bins.
    """
    bins: list[list[int]] = []
    room: list[
        tuple[int, int]
    ] = []  # (tokens left, bin), ascending: the first that fits is the fullest
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        at = bisect.bisect_left(room, (sizes[i], -1))
        if at == len(room):
            left, b = budget, len(bins)
            bins.append([])
        else:
            left, b = room.pop(at)
        bins[b].append(i)
        bisect.insort(room, (left - sizes[i], b))
    return [sorted(b) for b in bins]


def split(tree: Tree, budget: int, *, together: int = 1, shared: bool = True) -> list[list[int]]:
    """Cut a tree over budget between its leaves; every part repeats the prefix it needs.

    Args:
        tree: the sequences.
        budget: tokens a part may take.
        together: this many consecutive sequences stay in one part (2 for preference pairs).
        shared: whether prefixes are shared; see `size`.
    Returns: sequence numbers of each part, in order.
    Raises:
        DataError: one unit alone is over budget.
    """
    units = [list(range(i, min(i + together, len(tree)))) for i in range(0, len(tree), together)]
    parts: list[list[int]] = []
    for unit in units:
        need = size(tuple(tree[i] for i in unit), shared=shared)
        if need > budget:
            raise DataError(
                f"a sequence of {need} tokens does not fit the budget of {budget} tokens a forward"
                " pass",
                cure=f"lower --max-length to {budget // together}, or raise --budget to {need}",
            )
        joined = [*parts[-1], *unit] if parts else unit
        if parts and size(tuple(tree[i] for i in joined), shared=shared) <= budget:
            parts[-1] = joined
        else:
            parts.append(unit)
    return parts


def forests(
    trees: Many[Tree], budget: int, *, together: int = 1, shared: bool = True
) -> list[TokenForest]:
    """Pack the trees of one global batch into forests of at most `budget` tokens: the micro-batches
    of one step.

    Args:
        trees: the global batch. Its sequences are numbered from 0 in the order given.
        budget: tokens a forest may hold, which bounds the memory of one forward and backward pass.
        together: see `split`.
        shared: False where the model runs every path alone, so that the budget counts repeated
            prefixes.
    """
    pieces: list[Tree] = []
    numbers: list[list[int]] = []
    first = 0
    for tree in trees:
        parts = [list(range(len(tree)))]
        if size(tree, shared=shared) > budget:
            parts = split(tree, budget, together=together, shared=shared)
        for part in parts:
            pieces.append(tuple(tree[i] for i in part))
            numbers.append([first + i for i in part])
        first += len(tree)
    bins = pack([size(piece, shared=shared) for piece in pieces], budget)
    return [plant([pieces[i] for i in b], [numbers[i] for i in b]) for b in bins]
