"""Attention over a forest, as an object that is handed down to every layer.

    attend = dense_trees(forest)                  one SDPA call a tree: CPUs, float32
    attend = variable_length(forest)              all trees in one kernel call: GPUs, half precision
    network(input_ids, position_ids, attend=attend)

`subtree_end` is the whole rule. A tree of one sequence is plain causal attention; a tree with
branches runs under its own small mask; trees never see each other. Windows count positions, not
places in the forest; soft caps and sinks are honoured; an argument that is not understood is an
error, because ignoring it would be silently wrong.

An `Attend` is made with the forest on the CPU and holds tensors only, so that a layer that gets one
compiles without a graph break. Caches for sampling are further kinds of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface

from posttrain.core.errors import ConfigError
from posttrain.data.forest import TokenForest

NAME = "posttrain_forest"

# Arguments that models pass to the attention function and that say nothing about a forest without a
# cache.
_IRRELEVANT = frozenset(
    {
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
)


class Scoring(NamedTuple):
    """How one layer scores keys.

    Attributes:
        scale: factor on the scores, 1/√D where None.
        dropout: probability.
        window: a query sees keys fewer than this many positions back; None sees all.
        softcap: scores become softcap·tanh(scores/softcap).
        sinks: [H] one logit a head that takes part in the softmax and is then dropped.
        layer: which one it is, for a cache.
    """

    scale: float | None = None
    dropout: float = 0.0
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    layer: int = 0


class Attend(Protocol):
    """Attention over a forest."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        """Query [1, H, T, D], key and value [1, H_kv, T, D] → [1, T, H, D]."""
        ...

    def to(self, device: torch.device) -> Attend:
        """The same on another device."""
        ...


def forest_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    attend: Attend | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **unknown: Any,
) -> tuple[Tensor, None]:
    """What transformers' attention interface calls in every layer; the shapes are `Attend`'s.

    Raises:
        TypeError: an argument that is not understood, a mask, or no `attend`.
    """
    if attend is None or attention_mask is not None:
        raise TypeError("forest attention needs attend= and no attention mask")
    for name in unknown:
        if unknown[name] is not None and name not in _IRRELEVANT:
            raise TypeError(
                f"forest attention does not understand the argument {name} of "
                f"{type(module).__name__}"
            )
    layer = getattr(module, "layer_idx", None) or 0
    scoring = Scoring(scaling, dropout, sliding_window, softcap, s_aux, layer)
    return attend(query, key, value, scoring), None


AttentionInterface.register(NAME, forest_attention)


def attend_to(forest: TokenForest, device: torch.device, dtype: torch.dtype) -> Attend:
    """The attention that suits a forest on a device: `dense_trees` or `variable_length`."""
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        return variable_length(forest).to(device)
    return dense_trees(forest).to(device)


# ------------------------------------------------------------------------------------- dense trees


@dataclass(frozen=True)
class DenseTrees:
    """Every tree under its own mask.

    Attributes:
        subtree_end: [T]. positions: [T]. starts: [trees + 1] where each tree begins, and T.
        branched: [trees + 1] whether a tree has branches; where not, plain causal attention is the
            same. One more than trees, because a compiler takes a length of 1 for a constant.
        sizes: tokens in each tree. longest: of a tree.
    """

    subtree_end: Tensor
    positions: Tensor
    starts: Tensor
    branched: Tensor
    sizes: tuple[int, ...]
    _masks: dict[tuple[int, int | None], Tensor | None] = field(default_factory=dict)

    def to(self, device: torch.device) -> DenseTrees:
        moved = (self.subtree_end.to(device), self.positions.to(device))
        return DenseTrees(*moved, self.starts, self.branched, self.sizes)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        if torch.compiler.is_compiling():
            if scoring.dropout:
                raise ConfigError(
                    "compiled layers have no attention dropout",
                    cure="set the model's attention dropout to 0, or train it uncompiled",
                )
            return _compiled_trees(
                query,
                key,
                value,
                self.subtree_end,
                self.positions,
                self.starts,
                self.branched,
                scoring.sinks,
                query.shape[-1] ** -0.5 if scoring.scale is None else scoring.scale,
                scoring.window or 0,
                scoring.softcap or 0.0,
            )
        return self.one_by_one(query, key, value, scoring)

    def one_by_one(self, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        """What a call computes, as a compiler must not look into it: sizes are numbers here."""
        outputs = []
        # split, not slices: its backward writes the gradient once instead of once a tree
        parts = zip(
            query.split(self.sizes, 2),
            key.split(self.sizes, 2),
            value.split(self.sizes, 2),
            strict=True,
        )
        # cuDNN plans anew for every length it has not seen, which takes longer than the attention
        with sdpa_kernel(_KERNELS) if query.is_cuda else contextlib.nullcontext():
            for tree, (q, k, v) in enumerate(parts):
                outputs.append(_one_tree(q, k, v, self._mask(tree, scoring.window), scoring))
        return torch.cat(outputs, 2).transpose(1, 2)

    def _mask(self, tree: int, window: int | None) -> Tensor | None:
        """[n, n] bool, True where the query (row) sees the key; None where plain causal attention
        is the same. Made once and shared by all layers.
        """
        if window is not None and window >= self.sizes[tree]:
            window = None
        if (tree, window) not in self._masks:
            self._masks[tree, window] = self._new_mask(tree, window)
        return self._masks[tree, window]

    def _new_mask(self, tree: int, window: int | None) -> Tensor | None:
        if window is None and not self.branched[tree]:
            return None
        a = int(self.starts[tree])
        b = a + self.sizes[tree]
        index = torch.arange(a, b, device=self.subtree_end.device)
        seen = (index[None] <= index[:, None]) & (index[:, None] < self.subtree_end[None, a:b])
        if window is not None:
            position = self.positions[a:b]
            seen &= position[:, None] - position[None] < window
        return seen


def dense_trees(forest: TokenForest) -> DenseTrees:
    """Attention over the trees of a forest, one by one."""
    starts = torch.tensor(forest.trees)
    sizes = tuple(starts.diff().tolist())
    branched = torch.tensor([*forest.shared, False])
    return DenseTrees(forest.subtree_end, forest.positions, starts, branched, sizes)


def _one_tree(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scoring: Scoring) -> Tensor:
    if scoring.softcap is None and scoring.sinks is None:
        return _sdpa(q, k, v, mask, scoring)
    return _explicit(q, k, v, mask, scoring)


_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scoring: Scoring) -> Tensor:
    grouped = mask is None and q.shape[1] != k.shape[1]
    if not grouped:
        k, v = _repeat(k, q.shape[1]), _repeat(v, q.shape[1])
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scoring.scale,
        dropout_p=scoring.dropout,
        enable_gqa=grouped,
    )


def _repeat(x: Tensor, heads: int) -> Tensor:
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], 1)


def _explicit(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scoring: Scoring) -> Tensor:
    """Attention written out, for what SDPA cannot do: soft caps and sinks. Softmax in float32 or
    better.
    """
    weights = _weights(q, _repeat(k, q.shape[1]), mask, scoring)[0]
    weights = weights[..., : q.shape[2]].to(q.dtype)
    return F.dropout(weights, scoring.dropout) @ _repeat(v, q.shape[1])


def _weights(
    q: Tensor, k: Tensor, mask: Tensor | None, scoring: Scoring
) -> tuple[Tensor, Tensor | None]:
    """[1, H, n, n] attention weights in float32 or better, with a column for the sink where there
    is one; and tanh of the scores over the cap, where there is one.
    """
    n, tanh = q.shape[2], None
    if mask is None:
        mask = torch.ones(n, n, dtype=torch.bool, device=q.device).tril()
    scale = q.shape[-1] ** -0.5 if scoring.scale is None else scoring.scale
    scores = q @ k.transpose(2, 3) * scale
    if scoring.softcap is not None:
        tanh = torch.tanh(scores / scoring.softcap)
        scores = scoring.softcap * tanh
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    scores = scores.masked_fill(~mask, -torch.inf)
    if scoring.sinks is not None:
        sink = scoring.sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sink], -1)
    return scores.softmax(-1), tanh


def _one_tree_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scoring: Scoring
) -> list[Tensor]:
    """Gradients of one tree's query, key and value, and [H] of the sinks where there are any.

    dV = Wᵀ·dO,  dS = W∘(dO·Vᵀ − rowsum(dO·Vᵀ∘W)),  dQ = dS·K·scale,  dK = dSᵀ·Q·scale;  a cap
    multiplies dS by 1 − tanh².
    """
    heads, groups, n = q.shape[1], k.shape[1], q.shape[2]
    scale = q.shape[-1] ** -0.5 if scoring.scale is None else scoring.scale
    key, value = _repeat(k, heads), _repeat(v, heads)
    every, tanh = _weights(q, key, mask, scoring)
    weights = every[..., :n]
    by_weights = (grad @ value.transpose(2, 3)).to(weights.dtype)
    mean = (by_weights * weights).sum(-1, keepdim=True)
    by_scores = weights * (by_weights - mean)
    if tanh is not None:
        by_scores = by_scores * (1 - tanh.to(by_scores.dtype).square())
    low = by_scores.to(q.dtype) * scale

    def of_groups(x: Tensor) -> Tensor:
        return x.unflatten(1, (groups, heads // groups)).sum(2)

    out = [
        low @ key,
        of_groups(low.transpose(2, 3) @ q),
        of_groups(weights.to(q.dtype).transpose(2, 3) @ grad),
    ]
    if scoring.sinks is not None:
        out.append(-(every[..., n] * mean[..., 0]).sum((0, 2)))
    return out


# What a compiler sees of `DenseTrees`: one operation forwards and one backwards, whose sizes may
# differ from call to call. The backward pass runs the trees again, because a compiled graph cannot
# hold what autograd would keep.


@torch.library.custom_op("posttrain::dense_trees", mutates_args=())
def _compiled_trees(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    subtree_end: Tensor,
    positions: Tensor,
    starts: Tensor,
    branched: Tensor,
    sinks: Tensor | None,
    scale: float,
    window: int,
    softcap: float,
) -> Tensor:
    trees = _trees_of(subtree_end, positions, starts, branched)
    scoring = Scoring(scale, 0.0, window or None, softcap or None, sinks)
    return trees.one_by_one(query, key, value, scoring).contiguous()


@_compiled_trees.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> Tensor:
    shape = (1, query.shape[2], query.shape[1], value.shape[-1])
    return query.new_empty(shape)


@torch.library.custom_op("posttrain::dense_trees_backward", mutates_args=())
def _compiled_trees_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    subtree_end: Tensor,
    positions: Tensor,
    starts: Tensor,
    branched: Tensor,
    sinks: Tensor | None,
    scale: float,
    window: int,
    softcap: float,
) -> list[Tensor]:
    """Gradients of query, key, value, and of the sinks where there are any. By hand, because
    autograd is off inside an operation.
    """
    trees = _trees_of(subtree_end, positions, starts, branched)
    scoring = Scoring(scale, 0.0, window or None, softcap or None, sinks)
    sizes = trees.sizes
    parts = zip(
        grad.transpose(1, 2).split(sizes, 2),
        query.split(sizes, 2),
        key.split(sizes, 2),
        value.split(sizes, 2),
        strict=True,
    )
    by_tree = []
    for tree, (g, q, k, v) in enumerate(parts):
        mask = trees._mask(tree, scoring.window)
        by_tree.append(_one_tree_backward(g, q, k, v, mask, scoring))
    gradients = [torch.cat([part[i] for part in by_tree], 2) for i in range(3)]
    if sinks is not None:
        gradients.append(torch.stack([part[3] for part in by_tree]).sum(0).to(sinks))
    return gradients


@_compiled_trees_backward.register_fake
def _(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> list[Tensor]:
    sinks = rest[4]
    like = [query, key, value] + ([sinks] if sinks is not None else [])
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in like]


def _trees_of(
    subtree_end: Tensor, positions: Tensor, starts: Tensor, branched: Tensor
) -> DenseTrees:
    sizes = tuple(starts.diff().tolist())
    return DenseTrees(subtree_end, positions, starts, branched, sizes)


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:-3])
    ctx.scale, ctx.window, ctx.softcap = inputs[-3:]


def _run_trees_again(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    gradients = _compiled_trees_backward(grad, *saved, ctx.scale, ctx.window, ctx.softcap)
    sinks = gradients[3] if len(gradients) > 3 else None
    return gradients[0], gradients[1], gradients[2], None, None, None, None, sinks, None, None, None


_compiled_trees.register_autograd(_run_trees_again, setup_context=_keep_inputs)


# --------------------------------------------------------------------------------- variable length


class Kernel(Protocol):
    """Variable-length attention. The last query of a segment sees all of its keys, the one before
    all but one, and so on; a window of w reaches w keys back besides the query's own.
    """

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float | None, window: int
    ) -> Tensor:
        """q [T, H, D], k and v [keys, H, D]; window −1 is none. Returns [T, H, D]."""
        ...


@dataclass(frozen=True)
class Segments:
    """Segments as queries, each over the keys of its path.

    Attributes:
        queries, keys: [segments + 1] int32, where each segment's queries and keys begin, and the
            end.
        longest_query, longest_key: of a segment.
        index: [keys] which token each key is; None where they are the tokens in order.
    """

    queries: Tensor
    keys: Tensor
    longest_query: int
    longest_key: int
    index: Tensor | None

    def to(self, device: torch.device) -> Segments:
        index = self.index if self.index is None else self.index.to(device)
        return Segments(
            self.queries.to(device),
            self.keys.to(device),
            self.longest_query,
            self.longest_key,
            index,
        )


@dataclass(frozen=True)
class VariableLength:
    """The whole forest in one kernel call. A prefix's keys are copied for every branch, and
    computed once. Soft caps, sinks and dropout, which the kernel lacks, run tree by tree.
    """

    segments: Segments
    trees: DenseTrees
    kernel: Kernel

    def to(self, device: torch.device) -> VariableLength:
        return VariableLength(self.segments.to(device), self.trees.to(device), self.kernel)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        if scoring.softcap is not None or scoring.sinks is not None or scoring.dropout:
            return self.trees(query, key, value, scoring)
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        if self.segments.index is not None:
            k = k.index_select(0, self.segments.index)
            v = v.index_select(0, self.segments.index)
        if k.shape[1] != q.shape[1]:
            repeats = q.shape[1] // k.shape[1]
            k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        # places along a path are positions, and a window counts the query itself
        left = -1 if scoring.window is None else scoring.window - 1
        return self.kernel(q, k, v, self.segments, scoring.scale, left)[None]


def torch_varlen(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float | None, window: int
) -> Tensor:
    """PyTorch's variable-length kernel; see `Kernel`."""
    from torch.nn.attention.varlen import varlen_attn

    attention: Callable[..., Any] = varlen_attn
    return attention(
        q,
        k,
        v,
        segments.queries,
        segments.keys,
        segments.longest_query,
        segments.longest_key,
        scale=scale,
        window_size=(window, 0),
    )


def variable_length(forest: TokenForest, kernel: Kernel = torch_varlen) -> VariableLength:
    """Attention over a forest in one kernel call."""
    paths = segment_paths(forest.subtree_end.tolist(), forest.trees)
    queries, keys = [0], [0]
    for _, end, path in paths:
        queries.append(end)
        keys.append(keys[-1] + sum(b - a for a, b in path))
    index = None
    if any(len(path) > 1 for *_, path in paths):
        stretches = [np.arange(a, b) for *_, path in paths for a, b in path]
        index = torch.from_numpy(np.concatenate(stretches))
    segments = Segments(
        torch.tensor(queries, dtype=torch.int32),
        torch.tensor(keys, dtype=torch.int32),
        int(np.diff(queries).max(initial=0)),
        int(np.diff(keys).max(initial=0)),
        index,
    )
    return VariableLength(segments, dense_trees(forest), kernel)


def segment_paths(
    ends: Many[int], trees: Many[int]
) -> list[tuple[int, int, list[tuple[int, int]]]]:
    """The segments of a forest, in order.

    Args:
        ends: [T] subtree ends.
        trees: where each tree begins, and T.
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
