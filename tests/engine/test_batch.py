"""Rows as global batches: facts reach their own sequences, and nothing depends on how a batch is
laid out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from posttrain.engine.batch import Mismatched, Rows, by_tree
from posttrain.engine.model import without_dropout

from posttrain.data.forest import Tree, forests
from posttrain.data.store import Numbers, NumberWriter
from posttrain.methods.preference import Options, preference
from tests.tiny import V, alone, distance, network, parameter_gradients, policy, seq

MIXES = [
    ({"dpo": 1.0, "sft": 0.3}, {}),
    ({"aot": 1.0}, {}),
    ({"aot_unpaired": 1.0}, {}),
    ({"orpo": 1.0}, {}),
    ({"dpo": 1.0}, {"weighting": True, "ld_alpha": 0.4}),
    ({"kto": 1.0}, {"undesirable": 0.5}),
    ({"bco": 1.0}, {}),
    ({"tpo": 1.0}, {}),
]


def answers(seed: int, rows: int, each: int = 2, prompt: int = 12) -> list[Tree]:
    """Rows of a prompt with some answers of different lengths, no two of a row the same."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(rows):
        stem = rng.integers(0, V, rng.integers(2, prompt)).tolist()
        said = [[*rng.integers(0, V, rng.integers(1, 9)).tolist(), k] for k in range(each)]
        out.append(tuple(seq(stem + one, [0] * len(stem) + [1] * len(one)) for one in said))
    return out


def rows_of(trees: list[Tree], loss: Any, mix: dict[str, float], stored: list[np.ndarray]) -> Rows:
    labelled = loss.together == 1
    numbers = [np.array([1.0, 0.0], np.float32)] * len(trees) if labelled else None
    probes = Mismatched(trees, 0, 64) if "kto" in mix else None
    return Rows(
        trees,
        loss.together,
        numbers,
        labelled,
        reference=stored,
        probes=probes,
        probe_reference=(
            [np.zeros(sum(s.targets for s in tree), np.float32) for tree in probes]
            if probes
            else None
        ),
    )


@pytest.mark.parametrize(("mix", "options"), MIXES)
def test_a_batch_gives_the_same_however_it_is_laid_out(
    mix: dict[str, float], options: dict[str, Any]
) -> None:
    """One forest, many forests, and every answer alone with nothing shared: equal loss, gradient
    and reported values.
    """
    one, loss = policy("gpt2", dtype=torch.float64), preference(mix, Options(**options))
    trees = answers(3, 7, 3 if loss.together == 3 else 2)
    rng = np.random.default_rng(0)
    stored = [
        np.log(rng.uniform(0.01, 0.9, sum(s.targets for s in tree))).astype(np.float32)
        for tree in trees
    ]
    rows, which = rows_of(trees, loss, mix, stored), [4, 0, 6, 2, 5]
    found = []
    for budget, mode in ((10_000, "forest"), (70, "forest"), (64, "equal"), (90, "padded")):
        one.model.mode = mode
        batch = rows.batch(which, budget, shared=mode == "forest")
        measured = one.forward_backward(batch.forests, loss, batch.facts, probes=batch.probes)
        found.append((measured, parameter_gradients(one.model.network), len(batch.forests)))
    assert found[0][2] == 1 and min(n for *_, n in found[1:]) > 1
    for measured, gradient, _ in found[1:]:
        assert measured.loss == pytest.approx(found[0][0].loss, rel=1e-10)
        assert distance(gradient, found[0][1]) < 1e-9
        assert measured.means() == pytest.approx(found[0][0].means(), rel=1e-9)
    again = one.measure(batch.forests, loss, batch.facts, probes=batch.probes)
    assert again.loss == pytest.approx(found[0][0].loss, rel=1e-10)
    assert all(not p.grad for p in one.model.network.parameters() if p.grad is not None)


def test_dpo_by_plain_transformers() -> None:
    """−log σ(β((log π − log π_ref)(chosen) − (…)(rejected))), and its gradient, every
    answer alone.
    """
    one, stock = policy(), network("llama", attention="eager")
    trees = answers(5, 4)
    stored = [np.full(sum(s.targets for s in tree), -2.0, np.float32) for tree in trees]
    loss = preference({"dpo": 1}, Options(beta=0.3))
    batch = rows_of(trees, loss, {}, stored).batch(range(4), 50, shared=True)
    measured = one.forward_backward(batch.forests, loss, batch.facts)
    each = [
        (alone(stock, [(tree[0],)]) + 2).sum() - (alone(stock, [(tree[1],)]) + 2).sum()
        for tree in trees
    ]
    expected = -torch.nn.functional.logsigmoid(0.3 * torch.stack(each)).mean()
    expected.backward()
    assert measured.loss == pytest.approx(float(expected.detach()), rel=1e-5)
    assert distance(parameter_gradients(one.model.network), parameter_gradients(stock)) < 1e-4


def test_a_prompt_is_computed_once() -> None:
    trees = answers(1, 3, prompt=40)
    batch = Rows(trees, 2).batch(range(3), 10_000, shared=True)
    prompts = [int(np.flatnonzero(tree[0].trained)[0]) for tree in trees]
    assert sum(f.T for f in batch.forests) == sum(
        len(s.tokens) for tree in trees for s in tree
    ) - sum(prompts)


@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(60, 300))
@settings(max_examples=40, deadline=None)
def test_facts_are_those_of_their_own_rows(seed: int, n: int, budget: int) -> None:
    """Whatever is packed beside what: the side, the number, the margin and every target's reference
    are its own row's.
    """
    trees = answers(seed, n)
    rng = np.random.default_rng(seed)
    stored = [
        np.concatenate([1000 * i + s.tokens[s.trained] for s in tree]).astype(np.float32)
        for i, tree in enumerate(trees)
    ]
    margins = [np.array([i + 0.5] if i % 2 else [], np.float32) for i in range(n)]
    which = rng.permutation(n).tolist()
    batch = Rows(trees, 2, margins, reference=stored).batch(which, budget, shared=True)
    pairs = []
    for forest, facts in zip(batch.forests, batch.facts, strict=True):
        for c, r, number in zip(
            *(facts[name].tolist() for name in ("chosen", "rejected", "number")), strict=True
        ):
            for leaf, side in ((c, trees[which[number]][0]), (r, trees[which[number]][1])):
                at = forest.leaf == leaf
                assert forest.target[at].tolist() == side.tokens[side.trained].tolist()
                assert (
                    facts["reference"][at].tolist()
                    == (1000 * which[number] + side.tokens[side.trained]).tolist()
                )
            pairs.append(number)
        if "margin" in facts:
            assert facts["margin"].tolist() == [
                i + 0.5 if i % 2 else 0 for i in (which[k] for k in facts["number"].tolist())
            ]
    assert sorted(pairs) == list(range(n))


def test_mismatched_answers_belong_to_other_prompts() -> None:
    trees = answers(2, 6)
    found = Mismatched(trees, 1, 64)
    others = []
    for i, tree in enumerate(found):
        for k, one in enumerate(tree):
            begin = int(np.flatnonzero(trees[i][k].trained)[0])
            assert (
                one.tokens[:begin].tolist() == trees[i][k].tokens[:begin].tolist()
                and not one.trained[:begin].any()
            )
            said = one.tokens[begin:].tolist()
            (owner,) = [
                j
                for j, other in enumerate(trees)
                if other[k].tokens[other[k].trained].tolist() == said
            ]
            assert owner != i and one.trained[begin:].all()
            others.append(owner)
    assert sorted(others) == sorted([*range(6)] * 2)  # every answer once
    assert [s.tokens.tolist() for t in Mismatched(trees, 1, 64) for s in t] == [
        s.tokens.tolist() for t in found for s in t
    ]
    assert max(len(s.tokens) for t in Mismatched(trees, 1, 9) for s in t) == 9


def test_values_of_targets_go_back_to_their_trees() -> None:
    trees = answers(8, 6, 3)
    found = forests(trees, 80)
    values = [forest.target.float() for forest in found]
    expected = [np.concatenate([s.tokens[s.trained] for s in tree]) for tree in trees]
    assert [v.tolist() for v in by_tree(found, values, trees)] == [e.tolist() for e in expected]


def test_numbers_of_several_folders_are_numbered_through(tmp_path: Path) -> None:
    for name, some in (("a", [[1.0], [], [2.0, 3.0]]), ("b", [[4.0]])):
        with NumberWriter(tmp_path / name) as out:
            for one in some:
                out.add(one)
    assert [n.tolist() for n in Numbers(tmp_path / "a", tmp_path / "b")] == [
        [1.0],
        [],
        [2.0, 3.0],
        [4.0],
    ]
    with NumberWriter(tmp_path / "a", 2) as out:  # goes on after the second
        out.add([5.0])
    assert [n.tolist() for n in Numbers(tmp_path / "a")] == [[1.0], [], [5.0]]


def test_without_dropout_training_is_scoring() -> None:
    one = policy("gpt2", resid_pdrop=0.3, embd_pdrop=0.3, attn_pdrop=0.3)
    trees = answers(6, 4)
    loss = preference({"sft": 1}, Options())
    batch = Rows(trees, 2).batch(range(4), 400, shared=True)
    still = one.measure(batch.forests, loss, batch.facts).loss
    assert abs(one.forward_backward(batch.forests, loss, batch.facts, seed=1).loss - still) > 1e-3
    without_dropout(one.model.network)
    assert one.forward_backward(batch.forests, loss, batch.facts, seed=1).loss == pytest.approx(
        still, rel=1e-6
    )
