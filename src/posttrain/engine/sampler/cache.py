"""What running sequences keep, so that every token is computed once.

A cache holds rows, one a running sequence: `start` reads prompts and adds rows, `step` reads one
more token of every row, `keep` goes on with some of them. Logits come back a row each.

    Slots      keys and values of every layer in places of their own: rows of any lengths run
               together, and new ones join. For models that run as forests.
    Grouped    transformers' own cache, or none: rows of equal length, which start together.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from posttrain.core.errors import ModelError
from posttrain.data.forest import Sequence, Tree, collate
from posttrain.engine.attention import Attend, Scoring
from posttrain.engine.exact import KEYS, in_blocks, repeats
from posttrain.engine.modes import Way
from posttrain.engine.network import Network

BLOCK = KEYS  # positions by which slots grow
PREFILL = 4096  # tokens of prompts that are read in one pass

Prompt = tuple[int, ...]


class Cache(Protocol):
    """See the module.

    Attributes:
        joins: whether rows of any length may start while others run.
        passes: times the network was called.
        prefilled: tokens of prompts that were read. Of equal prompts that start together, or one
            after another, one is read.
        decoded: tokens that were read one by one, over all rows: all that were drawn, but for the
            last of each row.
    """

    joins: bool
    passes: int
    prefilled: int
    decoded: int

    def start(self, prompts: Many[Many[int]]) -> Tensor:
        """Read prompts, and add a row of each after those that run.

        Returns: [P, V] logits of what follows.
        """
        ...

    def step(self, tokens: Tensor) -> Tensor:
        """[B] the next token of every row → [B, V] logits of what follows."""
        ...

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows, in this order."""
        ...


# ----------------------------------------------------------------------------------------- slots


@dataclass(frozen=True)
class _Remembered:
    """A prompt that was read: [1, H_kv, P, D] keys and values of every layer, [V] logits."""

    prompt: Prompt
    layers: dict[int, tuple[Tensor, Tensor]]
    logits: Tensor


class Slots:
    """Keys and values of every layer in slots: row b's are at [b, :, : lengths[b]].

    Slots stay packed at the front, so that the keys of all rows are one view. The last prompt that
    was read is remembered: more rows of it may start later.

    Keys and values belong to the weights that made them: once these change, it reads no more.
    """

    joins = True

    def __init__(self, network: Network) -> None:
        self._network = network
        self._weights = list(network.parameters())
        self._version = self._weights_version()
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._rows, self._capacity = 0, 0
        self._last: _Remembered | None = None
        self.lengths = np.empty(0, np.int64)
        self.passes = self.prefilled = self.decoded = 0

    # ------------------------------------------------------------------------------ reading

    def start(self, prompts: Many[Many[int]]) -> Tensor:
        first, last = len(self.lengths), tuple(prompts[-1])
        slots: dict[Prompt, list[int]] = {}
        for i, prompt in enumerate(prompts):
            slots.setdefault(tuple(prompt), []).append(first + i)
        self._grow(first + len(prompts), max(map(len, slots)) + 1)
        logits: dict[Prompt, Tensor] = {}
        if self._last is not None and self._last.prompt in slots:
            logits[self._last.prompt] = self._last.logits
            self._copy(self._last, slots[self._last.prompt])
        for part in _passes([prompt for prompt in slots if prompt not in logits]):
            found = self._prefill(part, [slots[prompt] for prompt in part])
            logits.update(zip(part, found, strict=True))
        self._last = self._remembered(last, slots[last][0], logits[last].clone())
        self.lengths = np.concatenate([self.lengths, [len(prompt) for prompt in prompts]])
        return torch.stack([logits[tuple(prompt)] for prompt in prompts])

    def _prefill(self, prompts: list[Prompt], slots: list[list[int]]) -> Tensor:
        """[P, V] logits after each prompt; its keys and values go into its slots."""
        network = self._network
        trees = []
        for prompt in prompts:
            tokens = np.array(prompt, np.int64)
            trees.append(Tree((Sequence(tokens, np.zeros(len(tokens), bool)),)))
        forest = collate(trees)
        attend = Prefill(self, network.attend_to(forest), forest.trees, slots)
        forest = forest.to(network.device)
        hidden = self._read(forest.tokens, forest.positions, attend)
        self.prefilled += forest.T
        last = torch.tensor(forest.trees[1:], device=network.device) - 1
        return network.head.logits(hidden.index_select(0, last))

    def _remembered(self, prompt: Prompt, slot: int, logits: Tensor) -> _Remembered:
        layers = {}
        for number, (keys, values) in self._layers.items():
            at = slice(slot, slot + 1), slice(None), slice(len(prompt))
            layers[number] = keys[at].clone(), values[at].clone()
        return _Remembered(prompt, layers, logits)

    def _copy(self, remembered: _Remembered, places: list[int]) -> None:
        """Fill slots with the keys and values of a prompt."""
        for number, read in remembered.layers.items():
            for slots, new in zip(self.layer(number, *read), read, strict=True):
                slots[places, :, : new.shape[2]] = new

    def step(self, tokens: Tensor) -> Tensor:
        longest = int(self.lengths.max()) + 1
        self._grow(len(self.lengths), longest)
        positions = torch.from_numpy(self.lengths.copy()).to(tokens.device)
        attend = (DecodeExactly if self._network.exact else Decode)(self, positions, longest)
        self.lengths += 1
        self.decoded += len(tokens)
        return self._network.head.logits(self._read(tokens, positions, attend))

    def _read(self, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """[T, d] hidden states."""
        if self._weights_version() != self._version:
            raise ModelError(
                "the weights have changed while completions were being drawn",
                cure="take all completions before a step, or begin anew after it",
            )
        self.passes += 1
        return self._network.read(tokens, positions, attend)[: len(tokens)]

    def _weights_version(self) -> int:
        """Grows with every change of the weights in place."""
        return sum(weight._version for weight in self._weights)

    # -------------------------------------------------------------------------------- slots

    def keep(self, rows: list[int]) -> None:
        moved = [(new, old) for new, old in enumerate(rows) if new != old]
        if moved:
            longest = int(self.lengths[rows].max())
            to, since = (
                torch.tensor(x, device=self._network.device) for x in zip(*moved, strict=True)
            )
            for keys, values in self._layers.values():
                for slots in (keys, values):
                    slots[to, :, :longest] = slots[since, :, :longest]
        self.lengths = self.lengths[rows]

    def layer(self, number: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Slots of a layer, made where they are new or too few: [slots, H_kv, capacity, D].

        Args:
            key, value: [1, H_kv, T, D] as the layer has them.
        """
        old = self._layers.get(number)
        if old is None or old[0].shape[0] < self._rows or old[0].shape[2] < self._capacity:
            new = tuple(
                x.new_zeros(self._rows, x.shape[1], self._capacity, x.shape[3])
                for x in (key, value)
            )
            if old is not None:
                for fresh, known in zip(new, old, strict=True):
                    fresh[: len(known), :, : known.shape[2]] = known
            self._layers[number] = (new[0], new[1])
        return self._layers[number]

    def _grow(self, rows: int, length: int) -> None:
        self._rows = max(self._rows, rows)
        if length > self._capacity:
            self._capacity = -(-max(length, self._capacity * 3 // 2) // BLOCK) * BLOCK


class Prefill:
    """Attention over prompts; what it computes of keys and values goes into slots."""

    def __init__(
        self, cache: Slots, attend: Attend, starts: Many[int], slots: list[list[int]]
    ) -> None:
        self._cache, self._attend, self._starts, self._slots = cache, attend, starts, slots

    def to(self, device: torch.device) -> Prefill:
        return self

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        layer = self._cache.layer(scoring.layer, key, value)
        for slots, new in zip(layer, (key, value), strict=True):
            for tree, places in enumerate(self._slots):
                a, b = self._starts[tree], self._starts[tree + 1]
                for place in places:
                    slots[place, :, : b - a] = new[0, :, a:b]
        return self._attend(query, key, value, scoring)


class Decode:
    """Attention of one new token a row over the keys of its row.

    The queries of a group of heads that share keys are its rows: no key is repeated.
    """

    def __init__(self, cache: Slots, positions: Tensor, longest: int) -> None:
        self._cache, self._positions, self._longest = cache, positions, longest
        self._rows = torch.arange(len(positions), device=positions.device)
        self._masks: dict[int | None, Tensor] = {}

    def to(self, device: torch.device) -> Decode:
        return self

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        B = len(self._positions)
        keys, values = self._cache.layer(scoring.layer, key, value)
        keys[self._rows, :, self._positions] = key[0].transpose(0, 1)
        values[self._rows, :, self._positions] = value[0].transpose(0, 1)
        groups, keys, values = key.shape[1], keys[:B, :, : self._longest], values[:B]
        values = values[:, :, : self._longest]
        q = query[0].transpose(0, 1).unflatten(1, (groups, -1))  # [B, H_kv, H / H_kv, D]
        mask = self._mask(scoring.window, query.dtype)
        if scoring.softcap is None and scoring.sinks is None:
            out = F.scaled_dot_product_attention(q, keys, values, mask, scale=scoring.scale)
            return out.flatten(1, 2)[None]
        scale = query.shape[-1] ** -0.5 if scoring.scale is None else scoring.scale
        scores = (q * scale) @ keys.transpose(2, 3)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        if scoring.softcap is not None:
            scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
        scores = scores + mask
        if scoring.sinks is not None:
            sinks = scoring.sinks.to(scores.dtype).view(1, groups, -1, 1)
            scores = torch.cat([scores, sinks.expand(B, -1, -1, 1)], -1)
        weights = scores.softmax(-1)[..., : self._longest].to(value.dtype)
        return (weights @ values).flatten(1, 2)[None]

    def _mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """[B, 1, 1, longest] 0 where a row sees the key, else −∞."""
        if window not in self._masks:
            place = torch.arange(self._longest, device=self._positions.device)
            seen = place <= self._positions[:, None]
            if window is not None:
                seen &= place > self._positions[:, None] - window
            mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
            self._masks[window] = mask.masked_fill_(~seen, -torch.inf)[:, None, None]
        return self._masks[window]


class DecodeExactly:
    """The same in fixed blocks of keys, as `posttrain.engine.exact` has them."""

    def __init__(self, cache: Slots, positions: Tensor, longest: int) -> None:
        self._cache, self._positions = cache, positions
        self._rows = torch.arange(len(positions))
        self._blocks = -(-longest // KEYS) * KEYS

    def to(self, device: torch.device) -> DecodeExactly:
        return self

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        B = len(self._positions)
        keys, values = self._cache.layer(scoring.layer, key, value)
        keys[self._rows, :, self._positions] = key[0, :, :B].transpose(0, 1)
        values[self._rows, :, self._positions] = value[0, :, :B].transpose(0, 1)
        copies = repeats(query.shape[1], key.shape[1])
        q = query[0, :, :B].transpose(0, 1)[:, :, None].expand(-1, -1, copies, -1)
        positions = self._positions[:, None].expand(-1, copies)
        keys, values = keys[:B, :, : self._blocks], values[:B, :, : self._blocks]
        out = in_blocks(q, keys, values, positions, scoring)[:, :, 0]
        return F.pad(out, (0, 0, 0, 0, 0, query.shape[2] - B))[None]


def _passes(prompts: Many[Prompt]) -> list[list[Prompt]]:
    """Prompts, so many a pass as have `PREFILL` tokens together."""
    passes: list[list[Prompt]] = []
    total = 0
    for prompt in prompts:
        if not passes or total + len(prompt) > PREFILL:
            passes.append([])
            total = 0
        passes[-1].append(prompt)
        total += len(prompt)
    return passes


# ---------------------------------------------------------------------------------------- grouped


class Grouped:
    """Rows of equal length that start together, and leave one by one; others start after the last.

    Args:
        way: see `posttrain.engine.modes.WAYS`: transformers' own cache, or none.
    """

    joins = False

    def __init__(self, network: Network, way: Way) -> None:
        self._network = network
        self._whole, self._says_positions = way == "whole", way == "positions"
        self._cache: Any = None
        self._tokens: Tensor | None = None  # [B, T] all that was read, where nothing is kept of it
        self._length = 0
        self.passes = self.prefilled = self.decoded = 0

    def start(self, prompts: Many[Many[int]]) -> Tensor:
        self._cache = None if self._whole else DynamicCache(config=self._network.config)
        self._tokens, self._length = None, 0
        numbers: dict[Prompt, int] = {}
        rows = [numbers.setdefault(tuple(prompt), len(numbers)) for prompt in prompts]
        ids = torch.tensor(list(numbers), device=self._network.device)
        self.prefilled += ids.numel()
        logits = self._read(ids)
        if len(numbers) == len(rows):
            return logits
        forked = torch.tensor(rows, device=ids.device)
        self._select(forked)
        return logits[forked]

    def step(self, tokens: Tensor) -> Tensor:
        self.decoded += len(tokens)
        return self._read(tokens[:, None])

    def keep(self, rows: list[int]) -> None:
        if rows:
            self._select(torch.tensor(rows, device=self._network.device))

    def _read(self, tokens: Tensor) -> Tensor:
        """[B, T] the next tokens → [B, V] logits of the one after them."""
        self.passes += 1
        if self._whole:
            before = [] if self._tokens is None else [self._tokens]
            self._tokens = torch.cat([*before, tokens], 1)
            out = self._network.inner(input_ids=self._tokens, use_cache=False, logits_to_keep=1)
            return out.logits[:, -1]
        more: dict[str, Any] = {}
        if tokens.shape[1] > 1:
            more["logits_to_keep"] = 1
        if self._says_positions:
            places = torch.arange(self._length, self._length + tokens.shape[1])
            more["position_ids"] = places.to(tokens.device).expand(len(tokens), -1)
        self._length += tokens.shape[1]
        out = self._network.inner(
            input_ids=tokens, past_key_values=self._cache, use_cache=True, **more
        )
        return out.logits[:, -1]

    def _select(self, rows: Tensor) -> None:
        if self._whole:
            assert self._tokens is not None
            self._tokens = self._tokens[rows]
        else:
            # of a cache's ways to choose rows, the one that linear attention has too
            self._cache.reorder_cache(rows)
