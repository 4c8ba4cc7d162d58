"""The token forest: the one batch type of every method.

Sequences that begin alike share what they share: a tree. Trees laid end to end, without padding,
are a forest. A packed document is a tree of one sequence; a preference pair is a prompt with two
answers; a group of samples is a prompt with G.

The law, tested as a property: scoring a forest gives the log-probabilities and gradients of scoring
every sequence alone.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from posttrain.core.errors import DataError
from posttrain.core.types import Facts, Named


@dataclass(frozen=True)
class Sequence:
    """One root → leaf path: token ids, which of them are trained, and what a method knows of it.

    Attributes:
        tokens: [n] int64 token ids.
        trained: [n] bool. Position 0 is never a target, because nothing comes before it.
        targets: [n, …] by name: facts of tokens. Those of tokens that are not trained are not read.
        whole: by name: facts of the sequence.
    """

    tokens: np.ndarray
    trained: np.ndarray
    targets: Mapping[str, np.ndarray] = field(default_factory=dict)
    whole: Mapping[str, float] = field(default_factory=dict)

    @property
    def N(self) -> int:
        """Targets."""
        return int(self.trained[1:].sum())


@dataclass(frozen=True)
class Unit:
    """Sequences of a tree that a loss reads together: a pair, a triple, a group of samples.

    Attributes:
        members: their places in the tree, in the order that the method expects (chosen, rejected).
        facts: by name: facts of the unit.
    """

    members: tuple[int, ...]
    facts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Tree:
    """Sequences that are scored together and share their common prefixes.

    Attributes:
        sequences: the paths.
        units: which of them stay together when the tree is split. The others stand alone.
    """

    sequences: tuple[Sequence, ...]
    units: tuple[Unit, ...] = ()

    def __post_init__(self) -> None:
        if not self.sequences:
            raise DataError("a tree without sequences", cure="give it one at least")
        for unit in self.units:
            if not unit.members or not 0 <= min(unit.members) <= max(unit.members) < len(self):
                raise DataError(
                    f"a unit of the sequences {unit.members} in a tree of {len(self)}",
                    cure="name sequences by their places in the tree, from 0",
                )

    def __len__(self) -> int:
        return len(self.sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self.sequences)

    def __getitem__(self, i: int) -> Sequence:
        return self.sequences[i]

    @property
    def N(self) -> int:
        """Targets."""
        return sum(sequence.N for sequence in self.sequences)

    def with_targets(self, name: str, values: np.ndarray) -> Tree:
        """The same tree with a fact of every target.

        Args:
            name: of the fact.
            values: [N, …] sequence after sequence, within one by position.
        """
        sequences, first = [], 0
        for sequence in self.sequences:
            last = first + sequence.N
            column = np.zeros((len(sequence.tokens), *values.shape[1:]), values.dtype)
            column[np.flatnonzero(sequence.trained[1:]) + 1] = values[first:last]
            sequences.append(replace(sequence, targets={**sequence.targets, name: column}))
            first = last
        return replace(self, sequences=tuple(sequences))

    def groups(self) -> list[list[int]]:
        """Sequences that must stay together, in order: units that share a member are one group."""
        group = list(range(len(self)))
        for unit in self.units:
            joined = {group[member] for member in unit.members}
            group = [min(joined) if label in joined else label for label in group]
        return [[i for i in range(len(self)) if group[i] == label] for label in sorted(set(group))]

    def part(self, members: Many[int]) -> tuple[Tree, list[int]]:
        """Some of the sequences as a tree, and the places of the units that are in it."""
        place = {member: i for i, member in enumerate(members)}
        inside = [u for u, unit in enumerate(self.units) if unit.members[0] in place]
        units = tuple(
            replace(self.units[u], members=tuple(place[m] for m in self.units[u].members))
            for u in inside
        )
        return Tree(tuple(self.sequences[i] for i in members), units), inside


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
        facts: what a method knows of targets, sequences and units.
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
    facts: Facts
    sequence: Tensor
    path: Tensor
    lengths: Tensor
    trees: tuple[int, ...]

    @property
    def leaf(self) -> Tensor:
        """[N] sequence of each target."""
        return self.facts.leaf

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

    def followed_by(self, tokens: Many[int]) -> TokenForest:
        """The same forest with one more target a sequence: the token that follows it, which is not
        computed itself. The facts of targets are left out.

        Args:
            tokens: [L] what follows each sequence.
        """
        last = self.path[self.lengths.cumsum(0) - 1]
        leaf = torch.cat([self.leaf, torch.arange(self.L)])
        order = leaf.argsort(stable=True)
        return replace(
            self,
            predictor=torch.cat([self.predictor, last])[order],
            target=torch.cat([self.target, torch.tensor(tokens, dtype=torch.int64)])[order],
            facts=replace(self.facts, leaf=leaf[order], targets=Named({})),
        )

    def to(self, device: torch.device | str) -> TokenForest:
        """The same forest on another device."""
        moved: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in moved.items():
            if isinstance(value, (Tensor, Facts)):
                moved[name] = value.to(device)
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


@dataclass
class _Numbers:
    """The caller's numbers of a tree's sequences and units in the global batch."""

    sequences: Many[int]
    units: Many[int]


def collate(trees: Many[Tree], numbers: Many[_Numbers] | None = None) -> TokenForest:
    """Lay trees out as one forest.

    Args:
        trees: the trees.
        numbers: of each tree's sequences and units; counted from 0 where None.
    Returns: the forest, its targets ordered by sequence and then by position.
    Raises:
        DataError: a fact that some of the sequences or units have and others do not.
    """
    starts, layouts = [0], []
    path, lengths, predictor, target, leaf, sequence = [], [], [], [], [], []
    facts = _Collected()
    for t, tree in enumerate(trees):
        layout = _lay_out(tree)
        facts.add_units(tree, len(lengths), None if numbers is None else numbers[t].units)
        for s, (member, flat) in enumerate(zip(tree, layout.paths, strict=True)):
            flat = flat + starts[-1]
            at = np.flatnonzero(member.trained[1:])
            predictor.append(flat[at])
            target.append(member.tokens[at + 1])
            leaf.append(np.full(len(at), len(lengths)))
            sequence.append(len(lengths) if numbers is None else numbers[t].sequences[s])
            facts.add_sequence(member, at + 1)
            path.append(flat)
            lengths.append(len(flat))
        layouts.append(layout)
        starts.append(starts[-1] + len(layout.tokens))
    return TokenForest(
        tokens=_flat_tensor([x.tokens for x in layouts]),
        positions=_flat_tensor([x.positions for x in layouts]),
        subtree_end=_flat_tensor([x.ends + a for x, a in zip(layouts, starts, strict=False)]),
        predictor=_flat_tensor(predictor),
        target=_flat_tensor(target),
        facts=facts.tensors(_flat_tensor(leaf), len(lengths)),
        sequence=torch.tensor(sequence, dtype=torch.int64),
        path=_flat_tensor(path),
        lengths=torch.tensor(lengths, dtype=torch.int64),
        trees=tuple(starts),
    )


def _flat_tensor(arrays: list[np.ndarray]) -> Tensor:
    if not arrays:
        return torch.empty(0, dtype=torch.int64)
    return torch.from_numpy(np.concatenate(arrays).astype(np.int64))


class _Collected:
    """The facts of a forest while its trees are laid out."""

    def __init__(self) -> None:
        self._targets: dict[str, list[np.ndarray]] = {}
        self._sequences: dict[str, list[float]] = {}
        self._units: dict[str, list[float]] = {}
        self._members: list[list[int]] = []
        self._numbers: list[int] = []

    def add_units(self, tree: Tree, first: int, numbers: Many[int] | None) -> None:
        """The units of a tree whose first sequence has the number `first` in the forest."""
        for u, unit in enumerate(tree.units):
            self._numbers.append(len(self._members) if numbers is None else numbers[u])
            self._members.append([first + member for member in unit.members])
            for name, value in unit.facts.items():
                self._units.setdefault(name, []).append(value)

    def add_sequence(self, sequence: Sequence, at: np.ndarray) -> None:
        """A sequence whose targets stand at the places `at`."""
        for name, column in sequence.targets.items():
            if len(column) != len(sequence.tokens):
                raise DataError(
                    f"the fact {name!r} has {len(column)} values for {len(sequence.tokens)} tokens",
                    cure="give a value for every token, prompt included; or use Tree.with_targets",
                )
            self._targets.setdefault(name, []).append(column[at])
        for name, value in sequence.whole.items():
            self._sequences.setdefault(name, []).append(value)

    def tensors(self, leaf: Tensor, L: int) -> Facts:
        U, m = len(self._members), len(self._members[0]) if self._members else 0
        _check_sizes({len(members) for members in self._members})
        for name, columns in self._targets.items():
            if len(shapes := {column.shape[1:] for column in columns}) > 1:
                raise DataError(
                    f"the fact {name!r} has the shapes {sorted(shapes)} at targets of one batch",
                    cure="give it one shape at every target",
                )
        targets = {n: torch.from_numpy(np.concatenate(v)) for n, v in self._targets.items()}
        for facts, size, what in (
            (targets, len(leaf), "targets"),
            (self._sequences, L, "sequences"),
            (self._units, U, "units"),
        ):
            for name, values in facts.items():
                if len(values) != size:
                    raise DataError(
                        f"the fact {name!r} is known of {len(values)} of {size} {what}",
                        cure="give it to all or to none",
                    )
        return Facts(
            leaf=leaf,
            L=L,
            members=torch.tensor(self._members, dtype=torch.int64).reshape(U, m),
            numbers=torch.tensor(self._numbers, dtype=torch.int64),
            targets=Named(targets),
            sequences=Named({n: torch.tensor(v) for n, v in self._sequences.items()}),
            units=Named({n: torch.tensor(v) for n, v in self._units.items()}),
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


def split(tree: Tree, budget: int, *, shared: bool = True) -> list[list[int]]:
    """Cut a tree over budget between its units; every part repeats the prefix it needs.

    Args:
        tree: the sequences.
        budget: tokens a part may take.
        shared: whether prefixes are shared; see `size`.
    Returns: places of the sequences of each part, in order.
    Raises:
        DataError: one unit alone is over budget.
    """
    parts: list[list[int]] = []
    for group in tree.groups():
        need = size(tree.part(group)[0], shared=shared)
        if need > budget:
            raise DataError(
                f"{_what(len(group))} of {need} tokens does not fit the budget of {budget} tokens "
                "a forward pass",
                cure=f"lower --max-length to {budget // len(group)}, or raise --budget to {need}",
            )
        joined = [*parts[-1], *group] if parts else group
        if parts and size(tree.part(joined)[0], shared=shared) <= budget:
            parts[-1] = joined
        else:
            parts.append(group)
    return parts


def _what(sequences: int) -> str:
    return "a sequence" if sequences == 1 else f"a unit of {sequences} sequences"


def forests(trees: Many[Tree], budget: int, *, shared: bool = True) -> list[TokenForest]:
    """Pack the trees of one global batch into forests of at most `budget` tokens: the micro-batches
    of one step.

    Args:
        trees: the global batch. Its sequences and units are numbered from 0 in the order given.
        budget: tokens a forest may hold, which bounds the memory of one forward and backward pass.
        shared: False where the model runs every path alone, so that the budget counts repeated
            prefixes.
    Raises:
        DataError: a unit over budget; a fact that some of the batch have and others do not.
    """
    pieces: list[Tree] = []
    numbers: list[_Numbers] = []
    first = first_unit = 0
    for tree in trees:
        parts = [list(range(len(tree)))]
        if size(tree, shared=shared) > budget:
            parts = split(tree, budget, shared=shared)
        for members in parts:
            piece, units = tree.part(members) if len(parts) > 1 else (tree, range(len(tree.units)))
            pieces.append(piece)
            numbers.append(_Numbers([first + i for i in members], [first_unit + u for u in units]))
        first += len(tree)
        first_unit += len(tree.units)
    bins = pack([size(piece, shared=shared) for piece in pieces], budget)
    packed = [collate([pieces[i] for i in b], [numbers[i] for i in b]) for b in bins]
    _check_alike([forest.facts for forest in packed])
    return packed


def _check_alike(every: Many[Facts]) -> None:
    """Refuse facts and units of some forests only: what a loss may read must not hang on how the
    batch is cut.
    """
    united = [facts for facts in every if facts.U]
    for what, tables in (
        ("targets", [facts.targets for facts in every]),
        ("sequences", [facts.sequences for facts in every]),
        ("units", [facts.units for facts in united]),
    ):
        for name in sorted(set().union(*tables)):
            if not all(name in table for table in tables):
                raise DataError(
                    f"the fact {name!r} is known of some {what} of the batch and not of others",
                    cure="give it to all or to none",
                )
    _check_sizes({facts.members.shape[1] for facts in united})


def _check_sizes(sizes: set[int]) -> None:
    if len(sizes) > 1:
        raise DataError(
            f"units of {sorted(sizes)} sequences in one batch",
            cure="give all units as many sequences; a pair has two",
        )


def by_tree(packed: Many[TokenForest], values: Many[Tensor], trees: Many[Tree]) -> list[np.ndarray]:
    """Values of targets, by tree: the inverse of packing trees into forests.

    Args:
        packed: `forests(trees, …)`.
        values: [N] of each forest.
        trees: what was packed.
    Returns: for each tree the values of its targets, sequence after sequence, float32.
    """
    by_sequence: dict[int, np.ndarray] = {}
    for forest, value in zip(packed, values, strict=True):
        counts = forest.facts.lengths.tolist()
        parts = value.float().cpu().split(counts)
        for number, part in zip(forest.sequence.tolist(), parts, strict=True):
            by_sequence[number] = part.numpy()
    out, first = [], 0
    for tree in trees:
        out.append(np.concatenate([by_sequence[first + k] for k in range(len(tree))]))
        first += len(tree)
    return out
