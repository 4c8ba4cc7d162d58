"""The law: a forest gives the log-probabilities and gradients of every root → leaf path run alone.

"Alone" is a second model with the same weights that never heard of forests: plain transformers,
eager attention, one sequence at a time. The networks are random and wide enough that a wrong mask,
window, cap or sink is off by a tenth of a nat and more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Many
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from posttrain.data.forest import TokenForest, Tree, plant
from posttrain.engine.attention import ForestMask, forest_attention
from posttrain.engine.head import logprobs
from posttrain.engine.model import Model
from tests.tiny import alone, distance, gradients, network, random_tree, random_trees, seq

trees = st.composite(lambda draw: random_tree(lambda n: draw(st.integers(0, n - 1))))

FORESTS = (
    "llama",
    "qwen3",
    "mistral",
    "gemma2",
    "gemma3",
    "phi3",
    "phi",
    "gpt2",
    "granite",
    "cohere",
    "gpt_oss",
    "qwen3_moe",
    "deepseek_v3",
)


@cache
def pair(architecture: str, dtype: torch.dtype = torch.float32) -> tuple[Model, Any]:
    """A model as posttrain runs it, and its double in plain transformers."""
    model = Model(network(architecture, dtype=dtype))
    assert model.mode == "forest", model.admission
    return model, network(architecture, dtype=dtype, attention="eager")


def errors(
    model: Model, stock: Any, planted: Many[Tree], forest: TokenForest | None = None
) -> tuple[float, float]:
    """How far the forest is from its paths alone: log-probabilities, nats; gradients, relative to
    their norm.

    The loss weighs every target differently, so that no two mistakes cancel.
    """
    forest = plant(planted) if forest is None else forest
    found, expected = (
        logprobs(model.head, model.hidden(forest), forest.target)[0],
        alone(stock, planted),
    )
    weights = torch.cos(torch.arange(len(expected), dtype=expected.dtype))
    off = (found - expected).detach().abs().max() if len(expected) else torch.tensor(0.0)
    return float(off), distance(
        gradients(model.network, weights @ found), gradients(stock, weights @ expected)
    )


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt_oss"])
def test_the_law_on_any_forest(architecture: str) -> None:
    """Hypothesis looks for a forest that breaks it; Gemma-2 adds a window and two soft caps,
    gpt-oss sinks and experts.
    """
    model, stock = pair(architecture)

    @settings(derandomize=True, deadline=None, max_examples=100)
    @given(st.lists(trees(), min_size=1, max_size=2))
    def law(planted: list[Tree]) -> None:
        off, gradient = errors(model, stock, planted)
        assert off < 1e-5
        assert gradient < 1e-5

    law()


@pytest.mark.parametrize("architecture", FORESTS)
def test_the_law_on_every_architecture(architecture: str) -> None:
    """Windows, soft caps, sinks, logit scales, learned positions, grouped heads, experts: each as
    its own model has it.
    """
    model, stock = pair(architecture)
    for seed in range(5):
        off, gradient = errors(model, stock, random_trees(seed))
        assert off < 1e-5
        assert gradient < 1e-5


def test_the_law_in_double_precision() -> None:
    """What is left in float32 is rounding: in float64 it shrinks with it.

    GPT-2 computes nothing in float32.
    """
    model, stock = pair("gpt2", torch.float64)
    for seed in range(5):
        off, gradient = errors(model, stock, random_trees(seed))
        assert off < 1e-10
        assert gradient < 1e-10


def test_the_law_sees_a_wrong_mask() -> None:
    """The same comparison, with an answer allowed to see its neighbour: what these tests would say
    of a wrong rule.
    """
    model, stock = pair("llama")
    planted = [(seq([5, 6, 7, 8, 9, 10]), seq([5, 6, 7, 11, 12, 13]))]
    forest = plant(planted)
    assert errors(model, stock, planted, forest)[0] < 1e-5
    everything = torch.full_like(forest.subtree_end, forest.T)
    off, gradient = errors(model, stock, planted, replace(forest, subtree_end=everything))
    assert off > 0.1
    assert gradient > 0.1


@pytest.mark.parametrize("architecture", ["mistral", "gemma3", "gpt_oss"])
def test_windows_count_positions_not_places(architecture: str) -> None:
    """The second answer lies behind the first, so its distance to the prompt in the forest is
    longer than on its path.

    With positions replaced by places, the window of 4 would cut the prompt off: the error is then
    far above rounding.
    """
    model, stock = pair(architecture)
    planted = [(seq([5, 6, 7, 20, 21, 22, 23, 24]), seq([5, 6, 7, 30, 31, 32]))]
    forest = plant(planted)
    assert errors(model, stock, planted, forest)[0] < 1e-5

    class Places(ForestMask):
        def mask(self, tree: int, window: int | None) -> Tensor | None:
            self._forest = replace(forest, positions=torch.arange(forest.T))
            return super().mask(tree, window)

    hidden = model.network.get_decoder()(
        input_ids=forest.tokens[None],
        position_ids=forest.positions[None],
        use_cache=False,
        forest=Places(forest),
    ).last_hidden_state[0][forest.predictor]
    wrong = logprobs(model.head, hidden, forest.target)[0] - alone(stock, planted)
    assert float(wrong.detach().abs().max()) > 0.1


def test_masks_by_hand() -> None:
    """Prompt 1 2, answers 3 4 and 5: the second answer skips the first; a window of 2 sees one key
    back along the path.
    """
    forest = plant([(seq([1, 2, 3, 4]), seq([1, 2, 5])), (seq([7, 8, 9]),)])
    masks = ForestMask(forest)
    assert masks.sizes == [5, 3]
    seen = masks.mask(0, None)
    assert seen is not None
    assert seen.int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]
    near = masks.mask(0, 2)
    assert near is not None
    assert near.int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 1, 0, 0, 1],
    ]
    near = masks.mask(1, 2)
    assert near is not None
    assert near.int().tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    assert masks.mask(1, None) is None  # plain causal attention, for which kernels need no mask
    assert masks.mask(1, 3) is None


def heads(tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of four heads over two, seven numbers each."""
    rng = torch.Generator().manual_seed(0)
    return (
        torch.randn(1, 4, tokens, 7, generator=rng),
        torch.randn(1, 2, tokens, 7, generator=rng),
        torch.randn(1, 2, tokens, 7, generator=rng),
    )


def test_attention_by_hand() -> None:
    """One head, two keys with scores 0 and ln 3: weights ¼ and ¾; a sink of ln 4 takes half of it
    all: ⅛ and ⅜.

    A soft cap of c turns the score ln 3 into c·tanh(ln 3 / c).
    """
    mask = ForestMask(plant([(seq([1, 2]),)]))
    key = torch.tensor([0.0, 3.0]).log().clamp_min(0).view(1, 1, 2, 1)
    query, value = torch.ones(1, 1, 2, 1), torch.tensor([1.0, 5.0]).view(1, 1, 2, 1)
    module = torch.nn.Identity()

    def last(**more: Any) -> float:
        return float(
            forest_attention(module, query, key, value, None, 1.0, forest=mask, **more)[0][
                0, 1, 0, 0
            ]
        )

    assert last() == pytest.approx(0.25 * 1 + 0.75 * 5, abs=1e-6)
    assert last(s_aux=torch.tensor([4.0]).log()) == pytest.approx(0.125 * 1 + 0.375 * 5, abs=1e-6)
    capped = math.exp(2 * math.tanh(math.log(3) / 2))
    assert last(softcap=2.0) == pytest.approx((1 + 5 * capped) / (1 + capped), abs=1e-6)
    assert last(sliding_window=1) == pytest.approx(5.0, abs=1e-6)
    scaled = forest_attention(module, query, key, value, None, 2.0, forest=mask)[0][0, 1, 0, 0]
    assert float(scaled) == pytest.approx((1 + 5 * 9) / (1 + 9), abs=1e-6)


def test_an_unknown_argument_is_an_error() -> None:
    """A model that asks for something this function does not do must not get something else without
    a word.
    """
    query, key, value = heads(3)
    mask = ForestMask(plant([(seq([1, 2, 3]),)]))
    with pytest.raises(
        TypeError, match=r"does not understand the arguments \['alibi', 'bias'\] of Identity"
    ):
        forest_attention(
            torch.nn.Identity(),
            query,
            key,
            value,
            None,
            forest=mask,
            bias=torch.ones(3),
            alibi=torch.ones(3),
        )
    out, _ = forest_attention(
        torch.nn.Identity(),
        query,
        key,
        value,
        None,
        forest=mask,
        bias=None,
        position_ids=torch.arange(3),
    )
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, enable_gqa=True
    )
    torch.testing.assert_close(out, expected.transpose(1, 2))


def test_no_forest_or_a_foreign_mask_is_an_error() -> None:
    query, key, value = heads(3)
    mask = ForestMask(plant([(seq([1, 2, 3]),)]))
    with pytest.raises(TypeError, match="needs forest="):
        forest_attention(torch.nn.Identity(), query, key, value, None)
    with pytest.raises(TypeError, match="no attention mask"):
        forest_attention(
            torch.nn.Identity(), query, key, value, torch.zeros(1, 1, 3, 3), forest=mask
        )
