"""The forest as a variable-length kernel sees it: every segment over its path.

The kernel runs on a GPU; its rule, written out by hand, runs here.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from posttrain.data.forest import collate
from posttrain.engine.attention import (
    Scoring,
    Segments,
    dense_trees,
    segment_paths,
    variable_length,
)
from tests.tiny import random_trees, seq, tree_of


def by_hand(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float | None, window: int
) -> Tensor:
    """What the kernel promises, segment by segment: a segment's last query is aligned with its last
    key, and a window reaches so many keys back.
    """
    outputs = []
    bounds = segments.queries.tolist(), segments.keys.tolist()
    for i in range(len(bounds[0]) - 1):
        queries = slice(*bounds[0][i : i + 2])
        keys = slice(*bounds[1][i : i + 2])
        n, m = queries.stop - queries.start, keys.stop - keys.start
        back = torch.arange(m - n, m, device=q.device)[:, None] - torch.arange(m, device=q.device)
        seen = (back >= 0) & ((back <= window) if window >= 0 else True)
        scores = torch.einsum("qhd,khd->hqk", q[queries], k[keys])
        scores = scores * (q.shape[-1] ** -0.5 if scale is None else scale)
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        outputs.append(torch.einsum("hqk,khd->qhd", weights, v[keys]))
    return torch.cat(outputs)


def heads(tokens: int, seed: int = 0, **more: Any) -> list[Tensor]:
    """Query, key and value of four heads over two, which want gradients."""
    rng = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(1, n, tokens, 32, generator=rng, dtype=torch.float64) for n in (4, 2, 2)]
    return [x.to(**more).requires_grad_() for x in drawn]


@given(
    st.integers(0, 100_000),
    st.integers(1, 4),
    st.sampled_from([None, 1, 2, 4, 7, 100]),
    st.sampled_from([None, 0.3]),
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_segments_over_their_paths_are_the_rule_of_subtree_ends(
    seed: int, trees: int, window: int | None, scale: float | None
) -> None:
    """All trees in one call give what every tree gives under its own mask, gradients too; a window
    counts positions along the path, the query itself among them.
    """
    forest = collate(random_trees(seed, trees=trees))
    inputs, scoring = heads(forest.T, seed), Scoring(scale, window=window)
    found = variable_length(forest, by_hand)(*inputs, scoring)
    expected = dense_trees(forest)(*inputs, scoring)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    weights = torch.cos(torch.arange(found.numel(), dtype=found.dtype)).view_as(found)
    ours, theirs = (torch.autograd.grad((weights * x).sum(), inputs) for x in (found, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@given(st.integers(0, 100_000), st.integers(1, 4))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_keys_of_a_segment_are_its_path(seed: int, trees: int) -> None:
    """Along the keys of a segment positions are consecutive from 0, so that a window may count
    places; the longest are the longest there are.
    """
    forest = collate(random_trees(seed, trees=trees))
    segments = variable_length(forest, by_hand).segments
    positions = forest.positions if segments.index is None else forest.positions[segments.index]
    for part in positions.split(segments.keys.diff().tolist()):
        assert part.tolist() == list(range(len(part)))
    longest = segments.longest_query, segments.longest_key
    assert longest == (int(segments.queries.diff().max()), int(segments.keys.diff().max()))
    assert segments.queries.dtype == segments.keys.dtype == torch.int32


def test_segment_paths_by_hand() -> None:
    """Prompt of two; an answer of one token on which two go on; a second answer; a document."""
    tree = tree_of(seq([1, 2, 3, 4]), seq([1, 2, 3, 5, 6]), seq([1, 2, 7]))
    forest = collate([tree, tree_of(seq([8, 9]))])
    assert forest.tokens.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert segment_paths(forest.subtree_end.tolist(), forest.trees) == [
        (0, 2, [(0, 2)]),
        (2, 3, [(0, 2), (2, 3)]),
        (3, 4, [(0, 2), (2, 3), (3, 4)]),
        (4, 6, [(0, 2), (2, 3), (4, 6)]),
        (6, 7, [(0, 2), (6, 7)]),
        (7, 9, [(7, 9)]),
    ]


def test_documents_need_no_copies() -> None:
    segments = variable_length(
        collate([tree_of(seq([1, 2, 3])), tree_of(seq([4, 5]))]), by_hand
    ).segments
    assert segments.index is None
    assert segments.queries.tolist() == segments.keys.tolist() == [0, 3, 5]


@pytest.mark.parametrize(
    "scoring",
    [Scoring(softcap=1.5), Scoring(sinks=torch.tensor([0.1, -0.3, 2.0, 0.0]))],
    ids=["soft cap", "sinks"],
)
def test_what_the_kernel_lacks_runs_tree_by_tree(scoring: Scoring) -> None:
    forest = collate(random_trees(3))
    q, k, v = heads(forest.T)

    def forbidden(*args: Any) -> Tensor:
        raise AssertionError("the kernel knows neither soft caps nor sinks")

    found = variable_length(forest, forbidden)(q, k, v, scoring)
    assert torch.equal(found, dense_trees(forest)(q, k, v, scoring))


def test_attention_dropout_runs_tree_by_tree() -> None:
    forest = collate(random_trees(3))
    q, k, v = heads(forest.T)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = variable_length(forest, by_hand)(q, k, v, Scoring(dropout=0.5))
    assert not torch.allclose(found, dense_trees(forest)(q, k, v, Scoring()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernel runs on a GPU")
@pytest.mark.parametrize("window", [None, 4])
def test_the_kernel_agrees_with_the_reference(window: int | None) -> None:
    forest, cuda = collate(random_trees(5, trees=4)), torch.device("cuda")
    exact = heads(forest.T, device=cuda, dtype=torch.float32)
    expected = dense_trees(forest).to(cuda)(*exact, Scoring(window=window))
    half = [x.detach().to(torch.bfloat16).requires_grad_() for x in exact]
    found = variable_length(forest).to(cuda)(*half, Scoring(window=window))
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.03)
    weight = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * weight).sum(), exact)
    got = torch.autograd.grad((found.float() * weight).sum(), half)
    for a, b in zip(got, wanted, strict=True):
        assert float((a.float() - b).norm() / b.norm()) < 0.02
