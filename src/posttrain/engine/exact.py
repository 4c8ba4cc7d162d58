"""Exact mode: on a CPU in float32, a sampled token's log-probability is the trainer's to the bit,
whatever ran beside it in either.

Rounding depends on the order in which numbers are added, and that on the shape of a product. So all
shapes are fixed that a sequence's neighbours could change:

    rows        of every product: a multiple of ROWS, padded
    attention   every query sees its own path's keys in blocks of KEYS, one after another, at least
                ROWS query rows a product. A dense mask over a tree could never do it: a sibling
                between two keys changes the sum
    products    MKL adds in one order whatever the number of rows, where it is told so before
                its first product (`core.products`)

Whether that is enough is tried on the model's own shapes (`posttrain.engine.sampling_exact`).
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.data.forest import TokenForest
from posttrain.engine.attention import Scoring, segment_paths

KEYS, ROWS = 128, 16
LOWEST = -1e30  # the maximum of no scores


def padded(rows: Tensor) -> Tensor:
    """[n, …] → the same with zeros up to a multiple of ROWS."""
    missing = -len(rows) % ROWS
    if not missing:
        return rows
    return torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])])


def in_blocks(
    query: Tensor, key: Tensor, value: Tensor, positions: Tensor, scoring: Scoring
) -> Tensor:
    """Attention of paths to their own keys, block by block.

    m_b = max(m, max s_b),  l = l·e^(m − m_b) + Σ e^(s_b − m_b),  o likewise;  a block that nothing
    is seen of changes no bit.

    Args:
        query: [R, H, m, D], H·m / H_kv a multiple of ROWS.
        key, value: [R, H_kv, c, D], c a multiple of KEYS; place along the path is position.
        positions: [R, m] of the queries.
    Returns: [R, H, m, D].
    Source: Milakov and Gimelshein 2018, arXiv 1805.02867.
    """
    R, H, m, D = query.shape
    groups = key.shape[1]
    share = H // groups
    rows = query.reshape(R * groups, share * m, D)
    scale = D**-0.5 if scoring.scale is None else scoring.scale
    at = positions[:, None, None, :].expand(R, groups, share, m).reshape(R * groups, share * m, 1)
    most = query.new_full((R * groups, share * m, 1), LOWEST)
    total = torch.zeros_like(most)
    out = query.new_zeros(R * groups, share * m, value.shape[3])
    for a in range(0, key.shape[2], KEYS):
        k, v = (x[:, :, a : a + KEYS].reshape(R * groups, KEYS, -1) for x in (key, value))
        scores = torch.bmm(rows, k.transpose(1, 2)) * scale
        if scoring.softcap is not None:
            scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
        place = torch.arange(a, a + KEYS)
        hidden = place > at
        if scoring.window is not None:
            hidden |= place <= at - scoring.window
        scores = scores.masked_fill(hidden, -torch.inf)
        higher = torch.maximum(most, scores.amax(-1, keepdim=True))
        before, weights = torch.exp(most - higher), torch.exp(scores - higher)
        total = total * before + weights.sum(-1, keepdim=True)
        out = out * before + torch.bmm(weights, v)
        most = higher
    if scoring.sinks is not None:
        sinks = scoring.sinks.view(1, groups, share, 1, 1).expand(R, -1, -1, m, 1)
        sinks = sinks.reshape(R * groups, share * m, 1)
        higher = torch.maximum(most, sinks)
        before = torch.exp(most - higher)
        total = total * before + torch.exp(sinks - higher)
        out = out * before
    return (out / total).reshape(R, H, m, -1)


@dataclass(frozen=True)
class _Group:
    """Segments of a forest whose paths have as many blocks of keys.

    Attributes:
        queries: [S, m] the tokens of each segment, padded with its last. keys: [S, c] the tokens of
            each one's path, padded with its first. positions: [S, m] of the queries.
    """

    queries: Tensor
    keys: Tensor
    positions: Tensor


@dataclass(frozen=True)
class FixedBlocks:
    """Attention over a forest, every segment to the keys of its own path.

    Attributes:
        groups: the segments.
        order: [T] where each token's row lies in the groups' rows, one group after another.
    """

    groups: tuple[_Group, ...]
    order: Tensor

    def to(self, device: torch.device) -> FixedBlocks:
        return self

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        outputs = []
        for group in self.groups:
            q, k, v = (
                x[0].index_select(1, index.flatten()).unflatten(1, index.shape).transpose(0, 1)
                for x, index in ((query, group.queries), (key, group.keys), (value, group.keys))
            )
            out = in_blocks(q, k, v, group.positions, scoring)
            outputs.append(out.transpose(1, 2).flatten(0, 1))  # [S·m, H, D]
        rows = torch.cat(outputs).index_select(0, self.order)
        return F.pad(rows, (0, 0, 0, 0, 0, query.shape[2] - len(rows)))[None]


def fixed_blocks(forest: TokenForest) -> FixedBlocks:
    """Attention over the paths of a forest in fixed blocks."""
    by_blocks: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    for a, b, path in segment_paths(forest.subtree_end.tolist(), forest.trees):
        keys = np.concatenate([np.arange(start, end) for start, end in path])
        by_blocks.setdefault(-(-len(keys) // KEYS), []).append((np.arange(a, b), keys))
    groups, tokens, places, first = [], [], [], 0
    for blocks, segments in sorted(by_blocks.items()):
        m = _up(max(len(queries) for queries, _ in segments), ROWS)
        groups.append(_group(segments, m, blocks * KEYS))
        for s, (queries, _) in enumerate(segments):
            tokens.append(queries)
            places.append(first + s * m + np.arange(len(queries)))
        first += len(segments) * m
    order = np.empty(forest.T, np.int64)
    order[np.concatenate(tokens)] = np.concatenate(places)
    return FixedBlocks(tuple(groups), torch.from_numpy(order))


def _group(segments: Many[tuple[np.ndarray, np.ndarray]], m: int, c: int) -> _Group:
    queries = np.stack([np.pad(q, (0, m - len(q)), "edge") for q, _ in segments])
    keys = np.stack([np.pad(k, (0, c - len(k)), constant_values=k[0]) for _, k in segments])
    positions = np.stack(
        [np.pad(len(k) - len(q) + np.arange(len(q)), (0, m - len(q)), "edge") for q, k in segments]
    )
    return _Group(*map(torch.from_numpy, (queries, keys, positions)))


def _up(n: int, to: int) -> int:
    return -(-n // to) * to


def repeats(heads: int, groups: int) -> int:
    """Copies of one query a head that make the rows of a product a multiple of ROWS."""
    share = heads // groups
    return ROWS // int(np.gcd(share, ROWS))
