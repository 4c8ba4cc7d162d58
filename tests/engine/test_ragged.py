"""The forest as a variable-length kernel sees it: every segment over its path.

The kernel runs on a GPU; its rule, here.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data.forest import TokenForest, plant
from posttrain.engine.attention import ForestMask, _ragged, forest_attention
from tests.tiny import random_trees, seq


def seen(forest: TokenForest) -> np.ndarray:
    """[T, T] whether the query (row) sees the key, by the kernel's rule: a segment's last query is
    aligned with its last key.
    """
    segments = ForestMask(forest).ragged
    index = np.arange(forest.T) if segments.index is None else segments.index.numpy()
    out = np.zeros((forest.T, forest.T), int)
    bounds = [one.tolist() for one in (segments.queries, segments.keys)]
    for a, b, c, d in zip(bounds[0], bounds[0][1:], bounds[1], bounds[1][1:], strict=False):
        for i, query in enumerate(range(a, b)):
            for key in index[c : d - (b - a - 1 - i)]:
                out[query, key] += 1
    return out


@given(st.integers(0, 100_000), st.integers(1, 4))
@settings(max_examples=150, deadline=None)
def test_segments_over_their_paths_are_the_rule_of_subtree_ends(seed: int, trees: int) -> None:
    forest = plant(random_trees(seed, trees=trees))
    at = torch.arange(forest.T)
    rule = (at[None] <= at[:, None]) & (at[:, None] < forest.subtree_end[None])
    tree = torch.bucketize(at, torch.tensor(forest.trees[1:-1]), right=True)
    assert (seen(forest) == (rule & (tree[None] == tree[:, None])).int().numpy()).all()
    # along the keys of a segment positions are consecutive, so that a window may count places
    segments = ForestMask(forest).ragged
    if segments.index is not None:
        parts = forest.positions[segments.index].split(segments.keys.diff().tolist())
        assert all(part.tolist() == list(range(len(part))) for part in parts)
    lengths = segments.queries.diff(), segments.keys.diff()
    assert (int(lengths[0].max()), int(lengths[1].max())) == (
        segments.longest_query,
        segments.longest_key,
    )


def test_documents_need_no_copies() -> None:
    segments = ForestMask(plant([(seq([1, 2, 3]),), (seq([4, 5]),)])).ragged
    assert segments.index is None and segments.queries.tolist() == segments.keys.tolist() == [
        0,
        3,
        5,
    ]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernel runs on a GPU")
@pytest.mark.parametrize("window", [None, 4])
def test_the_kernel_agrees_with_the_reference(window: int | None) -> None:
    forest = plant(random_trees(5, trees=4)).to("cuda")
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(1, heads, forest.T, 32, device="cuda", requires_grad=True)
        for heads in (4, 2, 2)
    )
    mask = ForestMask(forest)
    expected, _ = forest_attention(
        torch.nn.Identity(), q, k, v, None, forest=mask, sliding_window=window
    )
    half = [x.detach().to(torch.bfloat16).requires_grad_() for x in (q, k, v)]
    found = _ragged(*half, mask.ragged, None, window)
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.03)
    weight = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * weight).sum(), (q, k, v))
    got = torch.autograd.grad((found.float() * weight).sum(), half)
    for a, b in zip(got, wanted, strict=True):
        assert float((a.float() - b).norm() / b.norm()) < 0.02
