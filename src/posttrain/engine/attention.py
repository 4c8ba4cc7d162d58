"""Forest attention: one function behind transformers' attention interface, for every model that goes through it.

`subtree_end` is the whole rule. A tree of one sequence is plain causal attention; a tree with branches runs under its own
small mask; trees never see each other. Windows count positions, not places in the forest; soft caps and sinks are honoured;
an argument this function does not know is an error, because ignoring it would be silently wrong.

On a GPU in half precision, documents without branches run in one call of PyTorch's variable-length kernel. Left out: a kernel
for branches (FlexAttention); there, and in float32, CUDA runs the same SDPA calls as the CPU.
"""

from __future__ import annotations

import contextlib
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface

from posttrain.data.forest import TokenForest

NAME = "posttrain_forest"

# Arguments that models pass through to the attention function and that say nothing about a forest without a cache.
_IRRELEVANT = {"position_ids", "use_cache", "output_attentions", "output_hidden_states", "output_router_logits",
               "return_dict", "num_items_in_batch", "is_causal", "logits_to_keep", "cache_position"}


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
    def documents(self) -> tuple[Tensor, int] | None:
        """Where each tree begins and ends, [trees + 1] int32, and the longest; None where one of them branches."""
        if any(self._forest.shared):
            return None
        return torch.tensor(self._forest.trees, dtype=torch.int32, device=self._forest.tokens.device), max(self.sizes)

    def mask(self, tree: int, window: int | None) -> Tensor | None:
        """[n, n] bool, True where the query (row) sees the key; None where plain causal attention is the same."""
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
                seen = (index[None] <= index[:, None]) & (index[:, None] < forest.subtree_end[None, a:b])
                if window is not None:
                    at = forest.positions[a:b]
                    seen &= at[:, None] - at[None] < window
                self._made[key] = seen
        return self._made[key]


def forest_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
                     scaling: float | None = None, dropout: float = 0.0, *, forest: ForestMask | None = None,
                     sliding_window: int | None = None, softcap: float | None = None, s_aux: Tensor | None = None,
                     **unknown: Any) -> tuple[Tensor, None]:
    """Attention over a forest, as transformers' attention interface calls it.

    Args:
        query: [1, H, T, D]; key and value: [1, H_kv, T, D].
        attention_mask: must be None; the forest is the mask.
        scaling: factor on the scores, 1/√D where None.
        forest: the mask; given to the model's forward call, which hands it down.
        sliding_window: a query sees keys fewer than this many positions back.
        softcap: scores become softcap·tanh(scores/softcap).
        s_aux: [H] one logit a head that takes part in the softmax and is then dropped (attention sink).
    Returns: [1, T, H, D] and no weights.
    Raises:
        TypeError: an argument that is not understood, or no forest.
    """
    if forest is None or attention_mask is not None:
        raise TypeError("forest attention needs forest= and no attention mask")
    if extra := sorted(k for k, v in unknown.items() if v is not None and k not in _IRRELEVANT):
        raise TypeError(f"forest attention does not understand the arguments {extra} of {type(module).__name__}")
    if query.is_cuda and softcap is None and s_aux is None and not dropout and forest.documents is not None \
            and query.dtype in (torch.bfloat16, torch.float16):
        return _documents(query, key, value, forest, scaling, sliding_window), None
    outputs = []
    # split, not slices: its backward writes the gradient once instead of once a tree
    parts = zip(query.split(forest.sizes, 2), key.split(forest.sizes, 2), value.split(forest.sizes, 2), strict=True)
    # cuDNN plans anew for every length it has not seen, which takes far longer than the attention
    with sdpa_kernel(_KERNELS) if query.is_cuda else contextlib.nullcontext():
        for tree, (q, k, v) in enumerate(parts):
            mask = forest.mask(tree, sliding_window)
            if softcap is None and s_aux is None:
                outputs.append(_sdpa(q, k, v, mask, scaling, dropout))
            else:
                outputs.append(_explicit(q, k, v, mask, scaling, dropout, softcap, s_aux))
    return torch.cat(outputs, 2).transpose(1, 2), None


def _documents(query: Tensor, key: Tensor, value: Tensor, forest: ForestMask, scaling: float | None,
               window: int | None) -> Tensor:
    """Causal attention inside each document, all documents in one call; see `forest_attention`."""
    from torch.nn.attention.varlen import varlen_attn

    assert forest.documents is not None
    ends, longest = forest.documents
    q, k, v = (x[0].transpose(0, 1) for x in (query, _repeat(key, query.shape[1]), _repeat(value, query.shape[1])))
    # a window counts the query itself, and without branches positions differ as places do
    left = -1 if window is None else window - 1
    out: Any = varlen_attn(q, k, v, ends, ends, longest, longest, scale=scaling, window_size=(left, 0))
    return out[None]


_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float | None, dropout: float) -> Tensor:
    grouped = mask is None and q.shape[1] != k.shape[1]
    if not grouped:
        k, v = _repeat(k, q.shape[1]), _repeat(v, q.shape[1])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling,
                                          dropout_p=dropout, enable_gqa=grouped)


def _repeat(x: Tensor, heads: int) -> Tensor:
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], 1)


def _explicit(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float | None, dropout: float,
              softcap: float | None, sinks: Tensor | None) -> Tensor:
    """Attention written out, for what SDPA cannot do: soft caps and sinks. Softmax in float32 or better."""
    n = q.shape[2]
    if mask is None:
        mask = torch.ones(n, n, dtype=torch.bool, device=q.device).tril()
    scores = q @ _repeat(k, q.shape[1]).transpose(2, 3) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).masked_fill(~mask, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)], -1)
    weights = scores.softmax(-1)[..., :n].to(q.dtype)
    return F.dropout(weights, dropout) @ _repeat(v, q.shape[1])


AttentionInterface.register(NAME, forest_attention)
