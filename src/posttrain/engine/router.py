"""The load-balancing loss of a mixture of experts, over packed forests and whole global batches.

    loss = E · Σ_e f_e · P_e

f_e is the share of (layer, token) rows that choose expert e, P_e the mean probability that the
router gives it. Rows are the tokens of every sequence: a prefix that sequences share counts once
for each, as it would if they ran alone. f_e has no gradient, and it is that of the whole global
batch; so the parts of a batch add up to the loss of the whole, however it is cut into forests.

Source: Fedus et al. 2021, arXiv 2101.03961, eq. 4 to 6; transformers' `load_balancing_loss_func`.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_coef")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
CHOSEN = ("num_experts_per_tok", "moe_k", "moe_top_k")
AGREES = 1e-4  # relative difference from the loss that the model itself computes


@dataclass(frozen=True)
class Router:
    """What the loss needs to know of a mixture.

    Attributes:
        experts: E, of a layer. chosen: of them for each token.
        coefficient: of the loss.
    """

    experts: int
    chosen: int
    coefficient: float

    def usage(self, logits: Many[Tensor], weights: Tensor) -> Tensor:
        """[2, E] how often each expert is chosen, and the sum of its probabilities.

        Args:
            logits: [T, E] of every layer. weights: [T] how many sequences a token is in.
        """
        out = []
        for layer in logits:
            p = torch.softmax(layer.reshape(len(weights), -1), -1)
            best = torch.topk(p, self.chosen, -1).indices
            counts = p.new_zeros(self.experts, dtype=torch.float32)
            counts.index_add_(0, best.flatten(), weights.float().repeat_interleave(self.chosen))
            out.append(torch.stack([counts, weights.float() @ p.float()]))
        return torch.stack(out).sum(0)

    def loss(self, usage: Tensor, counts: Tensor) -> Tensor:
        """The loss of a part of the batch; those of all parts add up to that of the whole.

        Args:
            usage: [2, E] of the part. counts: [E] how often each expert is chosen in the whole.
        """
        rows = counts.sum() / self.chosen
        return self.experts * ((counts / rows) * (usage[1] / rows)).sum()


def asked_router(inner: PreTrainedModel) -> Router | None:
    """The router whose loss a model's config asks for; None where it asks for none."""
    config: Any = inner.config.get_text_config()
    wants = getattr(config, "output_router_logits", False)
    wants = wants or getattr(inner.config, "output_router_logits", False)
    coefficient = _first(COEFFICIENTS, inner.config, config)
    if not wants or not coefficient:
        return None
    experts, chosen = (_first(names, inner, config) for names in (EXPERTS, CHOSEN))
    return Router(int(experts or 0), int(chosen or 0), float(coefficient))


def _first(names: Many[str], *holders: Any) -> Any:
    found = (getattr(holder, name, None) for name in names for holder in holders)
    return next((value for value in found if isinstance(value, (int, float)) and value), None)


@torch.no_grad()
def agrees(inner: PreTrainedModel, router: Router, ids: Tensor, usage: Tensor) -> bool:
    """Whether the loss is the one that the model itself computes.

    Args:
        ids: [T] a sequence. usage: [2, E] of it.
    """
    try:
        own = inner(input_ids=ids[None], use_cache=False, output_router_logits=True).aux_loss
        ours = router.loss(usage, usage[0])
        return bool((ours - own).abs() <= AGREES * own.abs())
    except Exception:  # of whatever kind: its own loss cannot be asked for
        return False
