"""Forest attention: one function behind transformers' attention interface, for every model that
goes through it.

`subtree_end` is the whole rule. A tree of one sequence is plain causal attention; a tree with
branches runs under its own small mask; trees never see each other. Windows count positions, not
places in the forest; soft caps and sinks are honoured; an argument this function does not know is
an error, because ignoring it would be silently wrong.

On a GPU in half precision the whole forest runs in one call of PyTorch's variable-length kernel:
the tokens of a segment are queries over the keys of their path. A prefix's keys are copied for
every branch there, and computed once. In float32 CUDA runs the same SDPA calls as the CPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence as Many
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface

from posttrain.data.forest import TokenForest

NAME = "posttrain_forest"

# Arguments that models pass through to the attention function and that say nothing about a forest
# without a cache.
_IRRELEVANT = {
    "position_ids",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "return_dict",
    "num_items_in_batch",
    "is_causal",
    "logits_to_keep",
    "cache_position",
}


@dataclass(frozen=True)
class Ragged:
    """Segments as queries, each over its own keys; the last query of a segment sees all of them,
    the one before all but one, …

    Attributes:
        queries, keys: [segments + 1] int32, where each segment's queries and keys begin, and the
            end.
        longest_query, longest_key: of a segment.
        index: which token each key is; None where they are the tokens in order.
    """

    queries: Tensor
    keys: Tensor
    longest_query: int
    longest_key: int
    index: Tensor | None


def ragged(ends: Many[int], trees: Many[int]) -> list[tuple[int, int, list[tuple[int, int]]]]:
    """The segments of a forest, in order.

    Args:
        ends: [T] subtree ends. trees: where each tree begins, and T.
    Returns: of each segment its first token, its end, and the stretches of tokens that its last
        token sees, itself the last.
    """
    out: list[tuple[int, int, list[tuple[int, int]]]] = []
    for first, last in zip(trees, trees[1:], strict=False):
        path: list[tuple[int, int]] = []
        a = first
        while a < last:
            b = a + 1
            while b < last and ends[b] == ends[a]:
                b += 1
            while path and ends[path[-1][0]] <= a:  # subtrees that are over
                path.pop()
            path.append((a, b))
            out.append((a, b, list(path)))
            a = b
    return out


class ForestMask:
    """What attention needs of a forest, made once and shared by all layers.

    Attributes:
        sizes: tokens in each tree.
    """

    def __init__(self, forest: TokenForest) -> None:
        self.sizes = [b - a for a, b in zip(forest.trees, forest.trees[1:], strict=False)]
        self._forest = forest
        self._made: dict[tuple[int, int | None], Tensor | None] = {}

    @cached_property
    def ragged(self) -> Ragged:
        """The forest for a variable-length kernel, on the forest's device."""
        segments = ragged(self._forest.subtree_end.tolist(), self._forest.trees)
        queries, keys = [0], [0]
        for _, end, path in segments:
            queries.append(end)
            keys.append(keys[-1] + sum(b - a for a, b in path))
        device = self._forest.tokens.device
        branched = any(len(path) > 1 for *_, path in segments)
        index = (
            np.concatenate([np.arange(a, b) for *_, path in segments for a, b in path])
            if branched
            else None
        )
        a, b = (torch.tensor(one, dtype=torch.int32, device=device) for one in (queries, keys))
        n, m = (
            max((y - x for x, y in zip(one, one[1:], strict=False)), default=0)
            for one in (queries, keys)
        )
        return Ragged(a, b, n, m, None if index is None else torch.from_numpy(index).to(device))

    def mask(self, tree: int, window: int | None) -> Tensor | None:
        """[n, n] bool, True where the query (row) sees the key; None where plain causal attention
        is the same.
        """
        if window is not None and window >= self.sizes[tree]:
            window = None
        key = (tree, window)
        if key not in self._made:
            forest = self._forest
            if window is None and not forest.shared[tree]:
                self._made[key] = None
            else:
                a, b = forest.trees[tree], forest.trees[tree + 1]
                index = torch.arange(a, b, device=forest.tokens.device)
                seen = (index[None] <= index[:, None]) & (
                    index[:, None] < forest.subtree_end[None, a:b]
                )
                if window is not None:
                    at = forest.positions[a:b]
                    seen &= at[:, None] - at[None] < window
                self._made[key] = seen
        return self._made[key]


def forest_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    forest: ForestMask | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **unknown: Any,
) -> tuple[Tensor, None]:
    """Attention over a forest, as transformers' attention interface calls it.

    Args:
        query: [1, H, T, D]; key and value: [1, H_kv, T, D].
        attention_mask: must be None; the forest is the mask.
        scaling: factor on the scores, 1/√D where None.
        forest: the mask; given to the model's forward call, which hands it down.
        sliding_window: a query sees keys fewer than this many positions back.
        softcap: scores become softcap·tanh(scores/softcap).
        s_aux: [H] one logit a head that takes part in the softmax and is then dropped (attention
            sink).
    Returns: [1, T, H, D] and no weights.
    Raises:
        TypeError: an argument that is not understood, or no forest.
    """
    if forest is None or attention_mask is not None:
        raise TypeError("forest attention needs forest= and no attention mask")
    if extra := sorted(k for k, v in unknown.items() if v is not None and k not in _IRRELEVANT):
        raise TypeError(
            f"forest attention does not understand the arguments {extra} of {type(module).__name__}"
        )
    if (
        query.is_cuda
        and softcap is None
        and s_aux is None
        and not dropout
        and query.dtype in (torch.bfloat16, torch.float16)
    ):
        return _ragged(query, key, value, forest.ragged, scaling, sliding_window), None
    outputs = []
    # split, not slices: its backward writes the gradient once instead of once a tree
    parts = zip(
        query.split(forest.sizes, 2),
        key.split(forest.sizes, 2),
        value.split(forest.sizes, 2),
        strict=True,
    )
    # cuDNN plans anew for every length it has not seen, which takes far longer than the attention
    with sdpa_kernel(_KERNELS) if query.is_cuda else contextlib.nullcontext():
        for tree, (q, k, v) in enumerate(parts):
            mask = forest.mask(tree, sliding_window)
            if softcap is None and s_aux is None:
                outputs.append(_sdpa(q, k, v, mask, scaling, dropout))
            else:
                outputs.append(_explicit(q, k, v, mask, scaling, dropout, softcap, s_aux))
    return torch.cat(outputs, 2).transpose(1, 2), None


def _ragged(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Ragged,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """Every segment over its path, all in one call; see `forest_attention`."""
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    if segments.index is not None:
        k, v = k.index_select(0, segments.index), v.index_select(0, segments.index)
    k, v = (
        x if x.shape[1] == q.shape[1] else x.repeat_interleave(q.shape[1] // x.shape[1], 1)
        for x in (k, v)
    )
    # the kernel aligns the last query with the last key; along a path places are positions, and a
    # window counts the query itself
    left = -1 if window is None else window - 1
    out: Any = varlen_attn(
        q,
        k,
        v,
        segments.queries,
        segments.keys,
        segments.longest_query,
        segments.longest_key,
        scale=scaling,
        window_size=(left, 0),
    )
    return out[None]


_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def _sdpa(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float | None, dropout: float
) -> Tensor:
    grouped = mask is None and q.shape[1] != k.shape[1]
    if not grouped:
        k, v = _repeat(k, q.shape[1]), _repeat(v, q.shape[1])
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        dropout_p=dropout,
        enable_gqa=grouped,
    )


def _repeat(x: Tensor, heads: int) -> Tensor:
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], 1)


def _explicit(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention written out, for what SDPA cannot do: soft caps and sinks.

    Softmax in float32 or better.
    """
    n = q.shape[2]
    if mask is None:
        mask = torch.ones(n, n, dtype=torch.bool, device=q.device).tril()
    scores = (
        q
        @ _repeat(k, q.shape[1]).transpose(2, 3)
        * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    )
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).masked_fill(
        ~mask, -torch.inf
    )
    if sinks is not None:
        scores = torch.cat(
            [scores, sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)], -1
        )
    weights = scores.softmax(-1)[..., :n].to(q.dtype)
    return F.dropout(weights, dropout) @ _repeat(v, q.shape[1])


AttentionInterface.register(NAME, forest_attention)
