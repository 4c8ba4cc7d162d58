"""Several ranks: a network sharded with FSDP2 gives what one process gives.

Every rank is a process of its own on the CPU (gloo) and has forests of its own, not equally many.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from posttrain.engine import distributed
from posttrain.engine.settings import OptimiserSettings
from posttrain.methods.supervised import METHODS
from tests.tiny import distance, parameter_gradients, policy, random_trees

LEARNING = OptimiserSettings(learning_rate=1e-3, weight_decay=0.1)


def whole(tensor: Any) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def rank_main(rank: int, ranks: int, meeting: str, out: str) -> None:
    """Score, forward and backward, and a step, on this rank's third or two thirds of the trees."""
    dist.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=ranks)
    torch.set_num_threads(1)
    one = policy("qwen3")
    one.network.eval()
    trees = random_trees(3, trees=6)
    mine = trees if ranks == 1 else [trees[:2], trees[2:]][rank]
    forests = one.pack(mine, max(len(s.tokens) for tree in mine for s in tree) + 8)
    with torch.no_grad():
        scores = torch.cat([one.network(forest).logprob for forest in forests])
    distributed.shard(one.network)
    sharded = torch.cat([columns.logprob for columns in one.score(forests)])
    measured = one.forward_backward(forests, METHODS["nll"], seed=1)
    gradients = {name: whole(parameter.grad).clone() for name, parameter in one.network.weights()}
    for parameter in one.network.parameters():
        parameter.grad = None
    one.train_with(LEARNING)
    one.forward_backward(forests, METHODS["nll"], seed=1)
    norm = one.step()
    weights = {name: whole(p.detach()).clone() for name, p in one.network.weights()}
    found = {
        "same scores": torch.equal(scores, sharded),
        "forests": len(forests),
        "loss": measured.loss,
        "gradients": gradients,
        "norm": norm,
        "weights": weights,
    }
    torch.save(found, f"{out}/{rank}.pt")
    dist.destroy_process_group()


def run(ranks: int, folder: Path) -> list[dict[str, Any]]:
    """Every rank's results; the children are ended whatever happens."""
    context = multiprocessing.get_context("spawn")
    meeting = str(folder / f"meeting-{ranks}")
    arguments = [(rank, ranks, meeting, str(folder)) for rank in range(ranks)]
    children = [context.Process(target=rank_main, args=one, daemon=True) for one in arguments]
    try:
        for child in children:
            child.start()
        for child in children:
            child.join(120)
            assert child.exitcode == 0
    finally:
        for child in children:
            child.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(ranks)]


@pytest.mark.skipif(sys.platform == "win32" or not dist.is_available(), reason="gloo is not here")
@pytest.mark.parametrize("ranks", [1, 2])
def test_fsdp2_scores_trains_and_steps_as_one_process(
    ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores to the bit, gradients and the updated weights within rounding, with 2 and 4 trees a
    rank, which are not equally many forests.
    """
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    found = run(ranks, tmp_path)
    one = policy("qwen3")
    trees = random_trees(3, trees=6)
    forests = one.pack(trees, 400)
    expected = one.forward_backward(forests, METHODS["nll"], seed=1)
    gradients = parameter_gradients(one.network.inner)
    one.train_with(LEARNING)
    one.forward_backward(forests, METHODS["nll"], seed=1)
    norm = one.step()
    weights = {name: p.detach() for name, p in one.network.weights()}
    if ranks == 2:
        assert found[0]["forests"] != found[1]["forests"]
    for rank in found:
        assert rank["same scores"]
        assert rank["loss"] == pytest.approx(expected.loss, rel=1e-6)
        assert rank["norm"] == pytest.approx(norm, rel=1e-5)
        assert distance(rank["gradients"], gradients) < 2e-6
        for name, weight in weights.items():
            torch.testing.assert_close(rank["weights"][name], weight, rtol=0, atol=3e-5)


def test_an_empty_forest_adds_nothing() -> None:
    """What a rank runs that has fewer forests than the others: zeros for every parameter."""
    one = policy("llama")
    forests = one.pack(random_trees(1), 400)
    alone = one.forward_backward(forests, METHODS["nll"]).loss
    expected = parameter_gradients(one.network.inner)
    beside = one.forward_backward([*forests, distributed._empty()], METHODS["nll"]).loss
    assert beside == alone
    assert distance(parameter_gradients(one.network.inner), expected) == 0.0


def test_one_rank_needs_no_process_group() -> None:
    assert distributed.ranks() == 1
    assert distributed.total({"a": 2.0}) == {"a": 2.0}
    assert distributed.most(3) == 3
