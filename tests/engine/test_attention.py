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

from posttrain.core.errors import ConfigError
from posttrain.core.types import Read
from posttrain.data.forest import TokenForest, Tree, collate
from posttrain.engine.admission import admitted
from posttrain.engine.attention import Scoring, dense_trees, forest_attention
from posttrain.engine.head import columns
from posttrain.engine.network import Network, trunk_of
from tests.tiny import (
    FORESTS,
    alone,
    distance,
    gradients,
    network,
    random_tree,
    random_trees,
    seq,
    tree_of,
)

trees = st.composite(lambda draw: random_tree(lambda n: draw(st.integers(0, n - 1))))


@cache
def pair(architecture: str, dtype: torch.dtype = torch.float32) -> tuple[Network, Any]:
    """A network as posttrain runs it, and its double in plain transformers."""
    ours = admitted(network(architecture, dtype=dtype))
    assert ours.mode == "forest", ours.admission
    return ours, network(architecture, dtype=dtype, attention="eager")


def errors(
    ours: Network, stock: Any, trees: Many[Tree], forest: TokenForest | None = None
) -> tuple[float, float]:
    """How far the forest is from its paths alone: log-probabilities, nats; gradients, relative to
    their norm.

    The loss weighs every target differently, so that no two mistakes cancel.
    """
    forest = collate(trees) if forest is None else forest
    found, expected = ours(forest, Read()).logprob, alone(stock, trees)
    weights = torch.cos(torch.arange(len(expected), dtype=expected.dtype))
    off = (found - expected).detach().abs().max() if len(expected) else torch.tensor(0.0)
    gradient = gradients(ours.inner, weights @ found)
    return float(off), distance(gradient, gradients(stock, weights @ expected))


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt_oss"])
def test_the_law_on_any_forest(architecture: str) -> None:
    """Hypothesis looks for a forest that breaks it; Gemma-2 adds a window and two soft caps,
    gpt-oss sinks and experts.
    """
    ours, stock = pair(architecture)

    @settings(derandomize=True, deadline=None, max_examples=100)
    @given(st.lists(trees(), min_size=1, max_size=2))
    def law(planted: list[Tree]) -> None:
        off, gradient = errors(ours, stock, planted)
        assert off < 1e-5
        # equal tokens have equal gradients, and the weights of their sum may nearly cancel
        assert gradient < 1e-4

    law()


@pytest.mark.parametrize("architecture", FORESTS)
def test_the_law_on_every_architecture(architecture: str) -> None:
    """Windows, soft caps, sinks, logit scales, learned positions, grouped heads, experts: each as
    its own model has it.
    """
    ours, stock = pair(architecture)
    for seed in range(5):
        off, gradient = errors(ours, stock, random_trees(seed))
        assert off < 1e-5
        assert gradient < 1e-5


def test_the_law_in_double_precision() -> None:
    """What is left in float32 is rounding: in float64 it shrinks with it.

    GPT-2 computes nothing in float32.
    """
    ours, stock = pair("gpt2", torch.float64)
    for seed in range(5):
        off, gradient = errors(ours, stock, random_trees(seed))
        assert off < 1e-10
        assert gradient < 1e-10


def test_the_law_sees_a_wrong_mask() -> None:
    """The same comparison, with an answer allowed to see its neighbour: what these tests would say
    of a wrong rule.
    """
    ours, stock = pair("llama")
    planted = [tree_of(seq([5, 6, 7, 8, 9, 10]), seq([5, 6, 7, 11, 12, 13]))]
    forest = collate(planted)
    assert errors(ours, stock, planted, forest)[0] < 1e-5
    everything = torch.full_like(forest.subtree_end, forest.T)
    off, gradient = errors(ours, stock, planted, replace(forest, subtree_end=everything))
    assert off > 0.1
    assert gradient > 0.1


@pytest.mark.parametrize("architecture", ["mistral", "gemma3", "gpt_oss"])
def test_windows_count_positions_not_places(architecture: str) -> None:
    """The second answer lies behind the first, so its distance to the prompt in the forest is
    longer than on its path.

    With positions replaced by places, the window of 4 would cut the prompt off: the error is then
    far above rounding.
    """
    ours, stock = pair(architecture)
    planted = [tree_of(seq([5, 6, 7, 20, 21, 22, 23, 24]), seq([5, 6, 7, 30, 31, 32]))]
    forest = collate(planted)
    assert errors(ours, stock, planted, forest)[0] < 1e-5
    hidden = trunk_of(ours.inner)(
        input_ids=forest.tokens[None],
        position_ids=forest.positions[None],
        use_cache=False,
        attend=dense_trees(replace(forest, positions=torch.arange(forest.T))),
    ).last_hidden_state[0][forest.predictor]
    found = columns(ours.head, hidden, forest.target, forest.facts, Read()).logprob
    assert float((found - alone(stock, planted)).detach().abs().max()) > 0.1


def seen(forest: TokenForest, window: int | None) -> list[list[int]]:
    """[T, T] whether the query (row) sees the key: every value is a direction of its own, so that
    the outputs are the weights.
    """
    T = forest.T
    query, key = torch.ones(1, 1, T, 3), torch.ones(1, 1, T, 3)
    out = dense_trees(forest)(query, key, torch.eye(T).view(1, 1, T, T), Scoring(window=window))
    return (out[0, :, 0] > 0).int().tolist()


def test_what_is_seen_by_hand() -> None:
    """Prompt 1 2, answers 3 4 and 5: the second answer skips the first; a window of 2 sees one key
    back along the path. The tree behind sees nothing of this one.
    """
    forest = collate([tree_of(seq([1, 2, 3, 4]), seq([1, 2, 5])), tree_of(seq([7, 8, 9]))])
    assert seen(forest, None) == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1, 1, 1],
    ]
    assert seen(forest, 2) == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0, 0, 0],
        [0, 0, 1, 1, 0, 0, 0, 0],
        [0, 1, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0, 1, 1],
    ]
    assert seen(forest, 4) == seen(forest, None)


def test_a_compiled_layer_refuses_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its operation has none, and leaving it out would be silently wrong."""
    attend = dense_trees(collate([tree_of(seq([1, 2, 3]))]))
    query = torch.zeros(1, 1, 3, 4)
    attend(query, query, query, Scoring(dropout=0.5))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with pytest.raises(ConfigError, match="no attention dropout"):
        attend(query, query, query, Scoring(dropout=0.5))


def test_kernels_get_no_mask_where_causal_attention_is_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A document without branches, and a window that is no shorter than it; a mask is made once and
    serves all layers.
    """
    masks: list[Tensor | None] = []
    real = torch.nn.functional.scaled_dot_product_attention

    def watched(*args: Any, **more: Any) -> Tensor:
        masks.append(more["attn_mask"])
        assert more["is_causal"] == (more["attn_mask"] is None)
        return real(*args, **more)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    attend = dense_trees(collate([tree_of(seq([1, 2]), seq([1, 3])), tree_of(seq([7, 8, 9]))]))
    for window in (None, None, 3, 2):
        attend(*heads(6), Scoring(window=window))
    assert [mask is None for mask in masks] == [False, True] * 3 + [False, False]
    assert masks[0] is masks[2] is masks[4]


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
    attend = dense_trees(collate([tree_of(seq([1, 2]))]))
    key = torch.tensor([0.0, 3.0]).log().clamp_min(0).view(1, 1, 2, 1)
    query, value = torch.ones(1, 1, 2, 1), torch.tensor([1.0, 5.0]).view(1, 1, 2, 1)
    module = torch.nn.Identity()

    def last(scale: float = 1.0, **more: Any) -> float:
        out, _ = forest_attention(module, query, key, value, None, scale, attend=attend, **more)
        return float(out[0, 1, 0, 0])

    assert last() == pytest.approx(0.25 * 1 + 0.75 * 5, abs=1e-6)
    assert last(s_aux=torch.tensor([4.0]).log()) == pytest.approx(0.125 * 1 + 0.375 * 5, abs=1e-6)
    capped = math.exp(2 * math.tanh(math.log(3) / 2))
    assert last(softcap=2.0) == pytest.approx((1 + 5 * capped) / (1 + capped), abs=1e-6)
    assert last(sliding_window=1) == pytest.approx(5.0, abs=1e-6)
    assert last(2.0) == pytest.approx((1 + 5 * 9) / (1 + 9), abs=1e-6)


def test_an_unknown_argument_is_an_error() -> None:
    """A model that asks for something this function does not do must not get something else without
    a word.
    """
    query, key, value = heads(3)
    attend, module = dense_trees(collate([tree_of(seq([1, 2, 3]))])), torch.nn.Identity()
    with pytest.raises(TypeError, match=r"does not understand the argument alibi of Identity"):
        forest_attention(module, query, key, value, None, attend=attend, alibi=torch.ones(3))
    known: dict[str, Any] = {"bias": None, "position_ids": torch.arange(3)}
    out, _ = forest_attention(module, query, key, value, None, attend=attend, **known)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, enable_gqa=True
    )
    torch.testing.assert_close(out, expected.transpose(1, 2))


def test_no_forest_or_a_foreign_mask_is_an_error() -> None:
    query, key, value = heads(3)
    attend, module = dense_trees(collate([tree_of(seq([1, 2, 3]))])), torch.nn.Identity()
    with pytest.raises(TypeError, match="needs attend="):
        forest_attention(module, query, key, value, None)
    mask = torch.zeros(1, 1, 3, 3)
    with pytest.raises(TypeError, match="no attention mask"):
        forest_attention(module, query, key, value, mask, attend=attend)
