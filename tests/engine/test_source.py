"""Rows as batches: facts reach their own sequences, nothing depends on how a batch is laid out, and
what a reference says is kept.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data.examples import MEMBERS, Examples, Kind, Mismatched
from posttrain.data.forest import Tree, Unit, collate, forests
from posttrain.data.plan import Plan
from posttrain.data.store import Numbers, NumberWriter
from posttrain.engine.policy import Policy
from posttrain.engine.source import Batch, Offline, Rows, tree_scores
from posttrain.methods.preference import Options, preference
from tests.tiny import V, alone, distance, network, parameter_gradients, policy, seq, tree_of

MIXES: list[tuple[dict[str, float], dict[str, Any], Kind]] = [
    ({"dpo": 1.0, "sft": 0.3}, {}, "pairs"),
    ({"aot": 1.0}, {}, "pairs"),
    ({"aot_unpaired": 1.0}, {}, "pairs"),
    ({"orpo": 1.0}, {}, "pairs"),
    ({"dpo": 1.0}, {"weighting": True, "ld_alpha": 0.4}, "pairs"),
    ({"kto": 1.0}, {"undesirable": 0.5}, "labels"),
    ({"bco": 1.0}, {}, "labels"),
    ({"tpo": 1.0}, {}, "triples"),
]


def answers(seed: int, rows: int, each: int = 2, prompt: int = 12) -> list[Tree]:
    """Rows of a prompt with some answers of different lengths, no two of a row the same."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(rows):
        stem = rng.integers(0, V, rng.integers(2, prompt)).tolist()
        said = [[*rng.integers(0, V, rng.integers(1, 9)).tolist(), k] for k in range(each)]
        trained = [[0] * len(stem) + [1] * len(answer) for answer in said]
        sequences = (seq(stem + a, t) for a, t in zip(said, trained, strict=True))
        out.append(tree_of(*sequences))
    return out


def rows_of(
    trees: list[Tree], kind: Kind, stored: list[np.ndarray], *, mismatched: bool = False
) -> Offline:
    """A source of rows of a kind, all of them in every batch."""
    labels = [np.array([1.0, 0.0], np.float32)] * len(trees) if kind == "labels" else None
    examples, probes = Examples(trees, kind, labels), None
    if mismatched:
        other = Mismatched(trees, 0, 64)
        probes = Rows(other, [np.zeros(tree.N, np.float32) for tree in other])
    return Offline(Rows(examples, stored), Plan(len(trees), len(trees), 0), probes)


def packed(one: Policy, batch: Batch, budget: int) -> tuple[Any, Any]:
    """Forests of a batch and of its probes."""
    probes = None if batch.probes is None else one.pack(batch.probes, budget)
    return one.pack(batch.trees, budget), probes


@pytest.mark.parametrize(("mix", "options", "kind"), MIXES)
def test_a_batch_gives_the_same_however_it_is_laid_out(
    mix: dict[str, float], options: dict[str, Any], kind: Kind
) -> None:
    """One forest, many forests, and every answer alone with nothing shared: equal loss, gradient
    and reported values.
    """
    one, loss = policy("gpt2", dtype=torch.float64), preference(mix, Options(**options))
    trees = answers(3, 7, 3 if kind == "triples" else 2)
    rng = np.random.default_rng(0)
    stored = [np.log(rng.uniform(0.01, 0.9, tree.N)).astype(np.float32) for tree in trees]
    batch = rows_of(trees, kind, stored, mismatched="kto" in mix).take([4, 0, 6, 2, 5])
    found = []
    for budget, mode in ((10_000, "forest"), (70, "forest"), (64, "equal"), (90, "padded")):
        one.network.run_as(mode)  # type: ignore[arg-type]
        packs, probes = packed(one, batch, budget)
        measured = one.forward_backward(packs, loss, probes=probes)
        found.append((measured, parameter_gradients(one.network.inner), len(packs)))
    assert found[0][2] == 1 and min(n for *_, n in found[1:]) > 1
    for measured, gradient, _ in found[1:]:
        assert measured.loss == pytest.approx(found[0][0].loss, rel=1e-10)
        assert distance(gradient, found[0][1]) < 1e-9
        assert measured.means() == pytest.approx(found[0][0].means(), rel=1e-9)
    packs, probes = packed(one, batch, 90)
    again = one.measure(packs, loss, probes=probes)
    assert again.loss == pytest.approx(found[0][0].loss, rel=1e-10)
    assert all(p.grad is None for p in one.network.parameters())


def test_dpo_by_plain_transformers() -> None:
    """−log σ(β((log π − log π_ref)(chosen) − (…)(rejected))), and its gradient, every
    answer alone.
    """
    one, stock = policy(), network("llama", attention="eager")
    trees = answers(5, 4)
    stored = [np.full(tree.N, -2.0, np.float32) for tree in trees]
    loss = preference({"dpo": 1}, Options(beta=0.3))
    packs, _ = packed(one, rows_of(trees, "pairs", stored).take(range(4)), 50)
    measured = one.forward_backward(packs, loss)
    each = []
    for tree in trees:
        chosen, rejected = (alone(stock, [tree_of(s)]) for s in tree)
        each.append((chosen + 2).sum() - (rejected + 2).sum())
    expected = -torch.nn.functional.logsigmoid(0.3 * torch.stack(each)).mean()
    expected.backward()
    assert measured.loss == pytest.approx(float(expected.detach()), rel=1e-5)
    assert distance(parameter_gradients(one.network.inner), parameter_gradients(stock)) < 1e-4


def test_a_prompt_is_computed_once() -> None:
    trees = answers(1, 3, prompt=40)
    found = forests(Rows(Examples(trees, "pairs")).take(range(3)), 10_000)
    prompts = [int(np.flatnonzero(tree[0].trained)[0]) for tree in trees]
    whole = sum(len(s.tokens) for tree in trees for s in tree)
    assert sum(forest.T for forest in found) == whole - sum(prompts)


@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(60, 300))
@settings(max_examples=40, deadline=None)
def test_facts_are_those_of_their_own_rows(seed: int, n: int, budget: int) -> None:
    """Whatever is packed beside what: the side, the number, the margin and every target's reference
    are its own row's. Rows without a margin have 0.
    """
    trees = answers(seed, n)
    rng = np.random.default_rng(seed)
    stored = []
    for i, tree in enumerate(trees):
        values = [1000 * i + s.tokens[s.trained] for s in tree]
        stored.append(np.concatenate(values).astype(np.float32))
    margins = [np.array([i + 0.5] if i % 2 else [], np.float32) for i in range(n)]
    which = rng.permutation(n).tolist()
    rows = Rows(Examples(trees, "pairs", margins, margins=True), stored)
    seen = []
    for forest in forests(rows.take(which), budget):
        facts = forest.facts
        for number, members in zip(facts.numbers.tolist(), facts.members.tolist(), strict=True):
            for leaf, side in zip(members, trees[which[number]], strict=True):
                at = forest.leaf == leaf
                trained = side.tokens[side.trained]
                assert forest.target[at].tolist() == trained.tolist()
                reference = facts.targets["reference"][at]
                assert reference.tolist() == (1000 * which[number] + trained).tolist()
            seen.append(number)
        expected = [which[k] + 0.5 if which[k] % 2 else 0 for k in facts.numbers.tolist()]
        assert facts.units["margin"].tolist() == expected
    assert sorted(seen) == list(range(n))


@pytest.mark.parametrize("kind", MEMBERS)
def test_members_are_in_the_order_of_the_method(kind: Kind) -> None:
    """Chosen, rejected, and gold last."""
    tree = answers(0, 1, len(MEMBERS[kind]))[0]
    assert Examples([tree], kind)[0].units == (Unit(MEMBERS[kind]),)
    assert Examples([tree], kind, [np.array([2.0])])[0].units == (Unit(MEMBERS[kind]),)


def test_labels_of_sequences_and_of_steps() -> None:
    """A label for each sequence; a label for each target, the end of a step."""
    trees = answers(7, 3)
    labels = [np.array([1, 0], np.float32), np.array([0, 0]), np.array([1, 1])]
    facts = collate([*Examples(trees, "labels", labels)]).facts
    assert facts.sequences["label"].tolist() == [1, 0, 0, 0, 1, 1]
    steps = [np.linspace(0, 1, tree.N).astype(np.float32) for tree in trees]
    facts = collate([*Examples(trees, "steps", steps)]).facts
    assert facts.targets["step_label"].tolist() == np.concatenate(steps).tolist()
    for kind in ("demonstrations", "labels"):
        plain = collate([*Examples(trees, kind)]).facts
        assert plain.targets == plain.sequences == plain.units == {}


def test_rows_go_in_the_order_of_the_plan_and_on_where_they_stood() -> None:
    """Batches are the plan's, probes row by row beside them; a restored source goes on the same."""
    trees = answers(3, 11)

    def source() -> Offline:
        rows, other = Rows(Examples(trees, "pairs")), Rows(Mismatched(trees, 0, 64))
        return Offline(rows, Plan(11, 4, seed=5), other)

    def tokens(batch: list[Tree] | None) -> list[list[int]]:
        assert batch is not None
        return [s.tokens.tolist() for tree in batch for s in tree]

    ours, plan, mismatched = source(), Plan(11, 4, seed=5), Mismatched(trees, 0, 64)
    assert ours.steps_per_epoch == plan.steps_per_epoch
    for step in range(7):
        saved = ours.state()
        batch, rows = ours.batch(step), plan.next()
        assert tokens(batch.trees) == tokens([trees[i] for i in rows])
        assert tokens(batch.probes) == tokens([mismatched[i] for i in rows])
        assert (batch.passes, batch.parts) == (1, 1)
        again = source()
        again.restore(saved)
        assert tokens(again.batch(step).trees) == tokens(batch.trees)
    assert Offline(Rows(trees), Plan(11, 4, seed=5)).batch(0).probes is None


def test_a_reference_may_be_computed_when_a_batch_is_taken() -> None:
    """What it says is what is stored otherwise: the same facts."""
    one, trees = policy(), answers(4, 6)
    scores = tree_scores(one, one.logprobs, 60)
    stored = scores(trees)
    computed, kept = (Rows(trees, reference).take([3, 1]) for reference in (scores, stored))
    for a, b in zip(computed, kept, strict=True):
        for x, y in zip(a, b, strict=True):
            assert x.targets["reference"].dtype == np.float32
            np.testing.assert_allclose(x.targets["reference"], y.targets["reference"], atol=1e-5)
    stock = network("llama", attention="eager")
    for values, tree in zip(stored, trees, strict=True):
        np.testing.assert_allclose(values, alone(stock, [tree]).detach().numpy(), atol=1e-5)


def test_mismatched_answers_belong_to_other_prompts() -> None:
    trees = answers(2, 6)
    found = Mismatched(trees, 1, 64)
    others = []
    for i, tree in enumerate(found):
        for k, joined in enumerate(tree):
            begin = int(np.flatnonzero(trees[i][k].trained)[0])
            assert joined.tokens[:begin].tolist() == trees[i][k].tokens[:begin].tolist()
            assert not joined.trained[:begin].any() and joined.trained[begin:].all()
            answer = joined.tokens[begin:].tolist()
            owners = []
            for j, other in enumerate(trees):
                if other[k].tokens[other[k].trained].tolist() == answer:
                    owners.append(j)
            (owner,) = owners
            assert owner != i
            others.append(owner)
    assert sorted(others) == sorted([*range(6)] * 2)  # every answer once

    def tokens(trees: Many[Tree]) -> list[list[int]]:
        return [s.tokens.tolist() for tree in trees for s in tree]

    assert tokens(Mismatched(trees, 1, 64)) == tokens(found) != tokens(Mismatched(trees, 2, 64))
    assert max(map(len, tokens(Mismatched(trees, 1, 9)))) == 9


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


def test_without_dropout_training_is_scoring() -> None:
    one = policy("gpt2", resid_pdrop=0.3, embd_pdrop=0.3, attn_pdrop=0.3)
    loss = preference({"sft": 1}, Options())
    batch = one.pack(Rows(Examples(answers(6, 4), "pairs")).take(range(4)), 400)
    still = one.measure(batch, loss).loss
    assert abs(one.forward_backward(batch, loss, seed=1).loss - still) > 1e-3
    one.without_dropout()
    assert one.forward_backward(batch, loss, seed=1).loss == pytest.approx(still, rel=1e-6)
