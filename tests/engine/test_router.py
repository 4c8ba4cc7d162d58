"""The router's load-balancing loss: transformers' own number, however a batch is cut."""

from __future__ import annotations

import math
from collections.abc import Sequence as Many
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.core.types import Loss
from posttrain.data.forest import Tree, collate, forests
from posttrain.engine.admission import admitted
from posttrain.engine.learner import Learner
from posttrain.engine.policy import Policy
from posttrain.engine.router import Router
from posttrain.engine.settings import OptimiserSettings
from posttrain.methods.supervised import METHODS, nll
from tests.tiny import distance, network, parameter_gradients, policy, random_trees, seq, tree_of

COEFFICIENT = 0.3  # large, so that it matters
ASKED: dict[str, Any] = {"output_router_logits": True, "router_aux_loss_coef": COEFFICIENT}
DOCUMENTS = [tree_of(seq(range(3, 3 + n))) for n in (9, 5, 14)]


def by_transformers(trees: Many[Tree], **changes: Any) -> tuple[Any, dict[str, Tensor]]:
    """Loss and gradients of plain transformers on one padded batch of all sequences."""
    stock = network("qwen3_moe", attention="eager", **ASKED, **changes)
    sequences = [sequence for tree in trees for sequence in tree]
    longest = max(len(sequence.tokens) for sequence in sequences)
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, sequence in enumerate(sequences):
        n = len(sequence.tokens)
        ids[row, :n], mask[row, :n] = torch.from_numpy(sequence.tokens), 1
        trained = torch.from_numpy(sequence.trained)
        labels[row, :n] = torch.where(trained, ids[row, :n], -100)
    out = stock(input_ids=ids, attention_mask=mask, labels=labels)
    out.loss.backward()
    out.loss, out.aux_loss = out.loss.detach(), out.aux_loss.detach()
    return out, parameter_gradients(stock)


def ours(one: Learner, batch: Any, loss: Loss = METHODS["nll"]) -> tuple[Any, dict[str, Tensor]]:
    measured = one.forward_backward(batch, loss)
    return measured, parameter_gradients(one.network.inner)


@pytest.mark.parametrize("mode", ["forest", "padded"])
@pytest.mark.parametrize("budget", [100, 20])
def test_loss_and_gradient_are_those_of_transformers(mode: Any, budget: int) -> None:
    """One forest, and forests that split the batch: f is that of the whole batch in both."""
    one = policy("qwen3_moe", **ASKED)
    one.network.run_as(mode)
    batch = forests(DOCUMENTS, budget)
    assert len(batch) == (1 if budget == 100 else 2)
    expected, by = by_transformers(DOCUMENTS)
    for loss in (METHODS["nll"], Loss(nll)):  # in one pass over the vocabulary, and in two
        measured, gradient = ours(one, batch, loss)
        assert measured.loss == pytest.approx(float(expected.loss), rel=1e-5)
        assert measured.router == pytest.approx(float(expected.aux_loss), rel=1e-5)
        assert measured.means() == {"router_loss": measured.router}
        assert distance(gradient, by) < 1e-5


def test_a_shared_prefix_counts_once_for_each_sequence() -> None:
    trees = random_trees(3, trees=2)
    one = policy("qwen3_moe", **ASKED)
    measured, gradient = ours(one, [collate(trees)])
    expected, by = by_transformers(trees)
    assert measured.router == pytest.approx(float(expected.aux_loss), rel=1e-5)
    assert measured.loss == pytest.approx(float(expected.loss), rel=1e-5)
    assert distance(gradient, by) < 1e-5


def test_activations_computed_twice_change_nothing() -> None:
    one = policy("qwen3_moe", **ASKED)
    one.train_with(OptimiserSettings(), activation_checkpointing=True)
    measured, gradient = ours(one, [collate(DOCUMENTS)])
    expected, by = by_transformers(DOCUMENTS)
    assert measured.loss == pytest.approx(float(expected.loss), rel=1e-5)
    assert distance(gradient, by) < 1e-5


def test_by_hand() -> None:
    """Two rows, two experts, one chosen: f = (3/4, 1/4) by weight, P from softmax; 2·Σ f·P."""
    router = Router(experts=2, chosen=1, coefficient=1.0)
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, math.log(4.0)]])
    usage = router.usage([logits], torch.tensor([3, 1]))
    p = [(3 * 3 / 4 + 1 / 5) / 4, (3 * 1 / 4 + 4 / 5) / 4]
    torch.testing.assert_close(usage, torch.tensor([[3.0, 1.0], [4 * p[0], 4 * p[1]]]))
    assert float(router.loss(usage, usage[0])) == pytest.approx(2 * (0.75 * p[0] + 0.25 * p[1]))


def test_a_model_that_is_not_asked_adds_nothing() -> None:
    for changes in ({}, {"output_router_logits": True, "router_aux_loss_coef": 0.0}):
        one = policy("qwen3_moe", **changes)
        measured, _ = ours(one, [collate(DOCUMENTS)])
        assert one.network.router is None and measured.router is None
        assert one._router_note() == ""
    asked = policy("qwen3_moe", **ASKED)
    assert asked.measure([collate(DOCUMENTS)], METHODS["nll"]).router is None
    assert "times 0.3, and logged as router_loss" in asked._router_note()


def test_a_loss_that_is_not_the_models_own_is_not_added_and_that_is_said() -> None:
    net = network("qwen3_moe", **ASKED)
    net.num_experts_per_tok = 1  # what its own loss counts; the layers choose two
    one = Policy(admitted(net), None)
    one.network.router = None
    assert "NOT added" in one._router_note()
