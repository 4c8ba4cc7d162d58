"""Dropout and noise: what must differ differs, what must repeat repeats, and what compares
log-probabilities draws nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.core.events import Reporter
from posttrain.core.types import Columns, Loss
from posttrain.data.forest import Tree
from posttrain.engine.loop import Run, train
from posttrain.engine.network import Noise
from posttrain.engine.policy import Policy
from posttrain.engine.settings import CheckpointSettings, OptimiserSettings, ValidationSettings
from posttrain.engine.source import Batch
from posttrain.methods.supervised import neftune, nll
from tests.tiny import policy, seq

DROPOUT = {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5}
TREE, PROBE = (Tree((seq(tokens),)) for tokens in ([5, 9, 13, 7, 11, 21], [3, 4, 8, 30]))
NOISE: Noise = partial(neftune, alpha=10.0)


def recording(log: list[Tensor], **more: Any) -> Loss:
    """Negative log-likelihood that writes down the log-probabilities it is given."""

    def loss(columns: Columns, *rest: Any) -> Tensor:
        log.append(columns.logprob.detach().clone())
        return nll(columns, *rest)

    return Loss(loss, **more)


# ------------------------------------------------------------------------------- what must differ


@dataclass
class Same:
    """The same batch at every step, gone through twice, in two updates of two forests each."""

    trees: list[Tree] = field(default_factory=lambda: [TREE] * 4)
    steps_per_epoch: int = 1

    def batch(self, step: int) -> Batch:
        return Batch(self.trees, passes=2, parts=2)

    def state(self) -> Any:
        return None

    def restore(self, state: Any) -> None: ...


def trained(policy: Policy, folder: Path, noise: Noise | None, seed: int = 0) -> list[Tensor]:
    """Log-probabilities of the one tree in every forest of a run whose weights stay as they are:
    2 steps of 2 passes of 2 updates of 2 forests.
    """
    log: list[Tensor] = []
    policy.train_with(OptimiserSettings(learning_rate=1e-30, warmup=0, weight_decay=0))
    run = Run(
        policy=policy,
        loss=recording(log),
        source=Same(),
        steps=2,
        budget=len(TREE[0].tokens),
        seed=seed,
        folder=folder,
        reporter=Reporter(),
        checkpoints=CheckpointSettings(),
        validation=ValidationSettings(),
        noise=noise,
    )
    train(run)
    return log


@pytest.mark.parametrize("kind", ["dropout", "noise", "neither"])
def test_every_step_pass_update_and_forest_draws_anew_and_a_run_repeats(
    kind: str, tmp_path: Path
) -> None:
    given = DROPOUT if kind == "dropout" else {}
    noise = NOISE if kind == "noise" else None
    runs = [
        trained(policy("gpt2", **given), tmp_path / str(i), noise, seed)
        for i, seed in enumerate((0, 0, 1))
    ]
    first, again, other = (torch.stack(run) for run in runs)
    assert len(first) == 16
    assert torch.equal(first, again)
    different = {tuple(logprobs.tolist()) for logprobs in [*first, *other]}
    assert len(different) == (1 if kind == "neither" else 32)


# --------------------------------------------------------------------------- what must not draw


def test_prepare_runs_without_dropout_and_the_loss_with_it() -> None:
    """What a method computes before any gradient is what `score` says of the batch, and of the
    probes where there are some.
    """
    one = policy("gpt2", **DROPOUT)
    batch, probes = one.pack([TREE], 64), one.pack([PROBE], 64)
    (expected,), (expected_probes,) = one.logprobs(batch), one.logprobs(probes)
    prepared: list[Tensor] = []

    def prepare(columns: list[Columns], facts: Any) -> None:
        prepared.extend(column.logprob for column in columns)

    taken: list[Tensor] = []
    loss = recording(taken, prepare=prepare)
    one.forward_backward(batch, loss, seed=1)
    one.forward_backward(batch, loss, probes=probes, seed=1)
    assert torch.equal(prepared[0], expected) and torch.equal(prepared[1], expected_probes)
    assert all(float((logprob - expected).abs().max()) > 0.01 for logprob in taken)
    assert torch.equal(taken[0], taken[1])


def test_measuring_has_no_dropout() -> None:
    one = policy("gpt2", **DROPOUT)
    batch, taken = one.pack([TREE], 64), list[Tensor]()
    one.forward_backward(batch, recording(taken))  # leaves the network in training mode
    one.measure(batch, recording(taken))
    assert torch.equal(taken[1], one.logprobs(batch)[0]) and not torch.equal(taken[0], taken[1])
