"""The network as one module: layers compile, a value head is trained and kept, passes are one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from posttrain.core.errors import ConfigError
from posttrain.core.types import Columns, Counts, Facts, Loss, Read
from posttrain.engine import attention
from posttrain.engine.network import trunk_of
from posttrain.engine.policy import Policy
from posttrain.engine.settings import OptimiserSettings
from tests.tiny import distance, folder, parameter_gradients, policy, random_trees


@pytest.mark.filterwarnings("ignore")  # the compiler's own, of what it looks at on its way
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_a_layer_compiles_without_a_graph_break(architecture: str) -> None:
    """Seven forests of different lengths and shapes: two graphs at most, no break, and the numbers
    and gradients of the layer as it is.
    """
    torch.compiler.reset()
    one = policy(architecture)
    network, counter = one.network, CompileCounterWithBackend("aot_eager")
    trunk = trunk_of(network.inner)
    trees = [random_trees(seed, trees=1 + seed % 3) for seed in range(7)]
    expected = []
    for some in trees:
        (forest,) = one.pack(some, 10_000)
        loss = network(forest).logprob.sum()
        loss.backward()
        expected.append((loss.detach(), parameter_gradients(network.inner)))
    layers: Any = trunk.layers
    layers[0] = torch.compile(layers[0], backend=counter, fullgraph=True, dynamic=True)
    for some, (value, gradients) in zip(trees, expected, strict=True):
        (forest,) = one.pack(some, 10_000)
        loss = network(forest).logprob.sum()
        loss.backward()
        torch.testing.assert_close(loss.detach(), value, rtol=1e-5, atol=1e-4)
        found = {
            k.replace("_orig_mod.", ""): v for k, v in parameter_gradients(network.inner).items()
        }
        assert distance(found, gradients) < 1e-5
    assert 1 <= counter.frame_count <= 2


def test_the_compiled_operation_is_the_eager_one() -> None:
    """Windows, caps and sinks go through the operation that a compiler sees, gradients too."""
    one = policy("llama")
    (forest,) = one.pack(random_trees(4), 10_000)
    trees = attention.dense_trees(forest)
    rng = torch.Generator().manual_seed(0)
    shapes = ((1, 4, forest.T, 8), (1, 2, forest.T, 8), (1, 2, forest.T, 8), (4,))
    inputs = [torch.randn(s, generator=rng).requires_grad_() for s in shapes]
    query, key, value, sinks = inputs
    scoring = attention.Scoring(0.3, 0.0, 4, 1.5, sinks)
    eager = trees(query, key, value, scoring)
    compiled = attention._compiled_trees(
        query, key, value, trees.subtree_end, trees.positions, trees.starts, trees.branched, sinks,
        0.3, 4, 1.5,
    )  # fmt: skip
    torch.testing.assert_close(compiled, eager)
    weights = torch.randn(eager.shape, generator=rng)
    ours = torch.autograd.grad((compiled * weights).sum(), inputs)
    theirs = torch.autograd.grad((eager * weights).sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


# --------------------------------------------------------------------------------------- value head


def towards(columns: Columns, facts: Facts, counts: Counts, statistics: Any) -> Tensor:
    """Values towards 2, beside the likelihood: what an actor with a critic learns."""
    error = (columns.value - 2.0).square().sum()
    return (error - columns.logprob.sum()) / counts["targets"]


@pytest.mark.parametrize("additive", [True, False])
def test_a_value_head_is_trained_and_saved(additive: bool, tmp_path: Path) -> None:
    """Its gradients are the same in one pass over the vocabulary and in two; a step moves it, and
    what is saved is what is loaded.
    """
    source = folder(tmp_path / "base")
    one = Policy.load(source, device="cpu")
    one.add_value_head(seed=3)
    loss = Loss(towards, read=Read(value=True), additive=additive)
    forests = one.pack(random_trees(2, trees=6), 40)
    assert len(forests) > 1
    before = one.measure(forests, loss).loss
    one.train_with(OptimiserSettings(learning_rate=1e-2))
    assert "value_head.weight" in dict(one.network.weights())
    for _ in range(3):
        one.forward_backward(forests, loss)
        one.step()
    assert one.measure(forests, loss).loss < before - 0.5
    one.save(tmp_path / "out")
    again = Policy.load(tmp_path / "out", device="cpu")
    for ours, theirs in zip(
        one.score(forests, Read(value=True)), again.score(forests, Read(value=True)), strict=True
    ):
        torch.testing.assert_close(ours.value, theirs.value)
        torch.testing.assert_close(ours.logprob, theirs.logprob)


def test_one_pass_and_two_give_the_value_head_the_same_gradient() -> None:
    one = policy("llama")
    one.add_value_head()
    forests = one.pack(random_trees(2, trees=6), 40)
    found = []
    for additive in (True, False):
        loss = Loss(towards, read=Read(value=True), additive=additive)
        value = one.forward_backward(forests, loss).loss
        found.append((value, parameter_gradients(one.network)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    assert distance(found[0][1], found[1][1]) < 2e-6
    assert float(found[0][1]["value_head.weight"].norm()) > 0


def test_the_value_head_is_in_a_checkpoint() -> None:
    """Weights and moments have its names, so that a resumed run goes on with it."""
    one = policy("llama")
    one.add_value_head()
    optimiser = one.train_with(OptimiserSettings(learning_rate=1e-2))
    forests = one.pack(random_trees(2, trees=6), 40)
    one.forward_backward(forests, Loss(towards, read=Read(value=True)))
    one.step()
    for group in (optimiser.weights(), optimiser.moments("exp_avg")):
        assert {"value_head.weight", "value_head.bias"} <= group.keys()


def test_a_network_without_a_value_head_says_so() -> None:
    one = policy("llama")
    with pytest.raises(ConfigError, match="no value head") as error:
        one.score(one.pack(random_trees(1), 400), Read(value=True))
    assert "add_value_head()" in str(error.value.cure)


def test_a_value_head_comes_before_the_optimiser() -> None:
    """One that came later would never move."""
    one = policy("llama")
    one.train_with(OptimiserSettings(learning_rate=1e-2))
    with pytest.raises(ConfigError, match="does not know of a value head"):
        one.add_value_head()


def test_a_value_head_of_another_model_does_not_stay(tmp_path: Path) -> None:
    """Saving over a folder leaves nothing that the next load would take up."""
    source, out = folder(tmp_path / "base"), tmp_path / "out"
    one = Policy.load(source, device="cpu")
    one.add_value_head()
    one.save(out)
    Policy.load(source, device="cpu").save(out)
    assert Policy.load(out, device="cpu").network.value_head is None


def test_one_call_reads_everything() -> None:
    """Log-probabilities, entropy, values and hidden states come from one run of the trunk."""
    one = policy("llama")
    one.add_value_head()
    calls: list[int] = []
    trunk_of(one.network.inner).register_forward_hook(lambda *_: calls.append(1))
    (forest,) = one.pack(random_trees(1), 10_000)
    read = Read(entropy="value", correct=True, collision=True, value=True, hidden="ends")
    (columns,) = one.score([forest], read)
    assert len(calls) == 1
    assert columns.logprob.shape == columns.entropy.shape == columns.value.shape == (forest.N,)
    assert columns.hidden.shape == (forest.L, 32)
