"""Several ranks that train one policy: sums over them, and how a network is sharded.

On one rank everything here does nothing. Each rank has forests of its own; counts are summed, and a
rank that has fewer forests runs empty ones, or the others would wait for it.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from posttrain.data.forest import Sequence, TokenForest, Tree, collate
from posttrain.engine.network import Network, trunk_of


def ranks() -> int:
    """How many there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def total(counts: dict[str, float]) -> dict[str, float]:
    """Counts summed over the ranks; all ranks have the same names."""
    if ranks() == 1:
        return counts
    names = sorted(counts)
    values = torch.tensor([counts[name] for name in names], dtype=torch.float64)
    dist.all_reduce(values)
    return dict(zip(names, values.tolist(), strict=True))


def most(count: int) -> int:
    """The largest count of any rank."""
    if ranks() == 1:
        return count
    value = torch.tensor(count)
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return int(value)


def gathered(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Values of all ranks, one rank's after another's."""
    if ranks() == 1:
        return values
    parts: list[Any] = [None] * ranks()
    dist.all_gather_object(parts, values)
    return {name: torch.cat([part[name] for part in parts if name in part]) for name in parts[0]}


def even(forests: Many[TokenForest]) -> list[TokenForest]:
    """The forests of this rank, and empty ones until every rank has as many."""
    return [*forests, *[_empty()] * (most(len(forests)) - len(forests))]


def _empty() -> TokenForest:
    """One token and no target: it costs nothing and keeps the ranks together."""
    return collate([Tree((Sequence(np.zeros(1, np.int64), np.zeros(1, bool)),))])


def shard(network: Network) -> None:
    """Shard a network over the ranks with FSDP2: every layer, then what is left of the whole.

    Gradients are summed, not averaged: losses have the denominators of the whole global batch.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard

    for layer in _layers(network):
        fully_shard(layer)
    fully_shard(network)
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other


def _layers(network: Network) -> list[nn.Module]:
    """The trunk's layers: its longest list of modules."""
    lists = [m for m in trunk_of(network.inner).modules() if isinstance(m, nn.ModuleList)]
    return list(max(lists, key=len, default=[]))
