"""The policy's verbs: what a batch gives does not depend on how it is cut, ordered, padded or
recomputed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Many
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from posttrain.core.errors import ConfigError, DataError, ModelError
from posttrain.core.types import Columns, Counts, Facts, Loss, Read
from posttrain.data.forest import Sequence, TokenForest, Tree, collate, forests
from posttrain.engine.policy import Policy
from posttrain.engine.settings import OptimiserSettings
from posttrain.methods.supervised import METHODS, neftune, nll
from tests.tiny import (
    V,
    alone,
    distance,
    folder,
    network,
    parameter_gradients,
    policy,
    random_trees,
    seq,
    tree_of,
)


def by_sequence(columns: Columns, facts: Facts, counts: Counts, statistics: Any) -> Tensor:
    """Not additive over targets: the square of every sequence's log-probability."""
    return facts.sums(columns.logprob).square().sum() / counts["sequences"]


def count_sequences(facts: Facts) -> dict[str, float]:
    return {"sequences": facts.L}


def centred(columns: Columns, facts: Facts, counts: Counts, mean: float) -> Tensor:
    """Couples the batch: every target weighs as much as it is above the mean of the whole global
    batch.
    """
    weights = (columns.logprob.detach() - mean).sigmoid()
    return (weights * columns.logprob).sum() / counts["targets"]


def mean_of_all(columns: list[Columns], facts: list[Facts]) -> float:
    assert not any(c.logprob.requires_grad for c in columns)
    return float(torch.cat([c.logprob for c in columns]).mean())


LOSSES = {
    "nll": METHODS["nll"],
    "dft": METHODS["dft"],
    "nll in two passes": Loss(nll),
    "by sequence": Loss(by_sequence, counts=count_sequences),
    "centred": Loss(centred, prepare=mean_of_all),
    "centred in one pass": Loss(centred, prepare=mean_of_all, additive=True),
}


def run(
    one: Policy, batch: Many[TokenForest], loss: Loss = METHODS["nll"], **more: Any
) -> tuple[float, dict[str, Tensor]]:
    """The loss of a batch and the gradient it leaves."""
    value = one.forward_backward(batch, loss, **more).loss
    return value, parameter_gradients(one.network.inner)


# ------------------------------------------------------------------------------- how a batch is cut


@pytest.mark.parametrize(
    ("architecture", "dtype", "tolerance"),
    [
        ("gpt2", torch.float64, 1e-12),
        ("gemma2", torch.float32, 2e-6),
        ("qwen3_5", torch.float32, 2e-6),
    ],
)
@pytest.mark.parametrize("name", LOSSES)
def test_micro_batches_add_up_to_one_big_batch(
    name: str, architecture: str, dtype: torch.dtype, tolerance: float
) -> None:
    """One forest, and the same sequences cut into many: equal loss and gradient, also where
    statistics couple the batch.

    In float64 nothing is left of the difference, so in float32 it is rounding.
    """
    one = policy(architecture, dtype=dtype)
    planted = random_trees(1, trees=8)
    whole, expected = run(one, [collate(planted)], LOSSES[name])
    longest = max(len(s.tokens) for tree in planted for s in tree)
    cuts = [one.pack(planted, budget) for budget in (longest, longest + 9, 60)]
    assert len({len(batch) for batch in cuts}) == 3 and len(cuts[0]) >= 8
    for batch in cuts:
        found, gradient = run(one, batch, LOSSES[name])
        assert found == pytest.approx(whole, rel=min(tolerance, 1e-6))
        assert distance(gradient, expected) < tolerance


def test_the_loss_of_a_batch_by_plain_transformers() -> None:
    """Mean −log p over all targets, and its gradient, from the model's own logits."""
    one, stock = policy(), network("llama", attention="eager")
    planted = random_trees(2, trees=4)
    value, gradient = run(one, forests(planted, 30))
    expected = -alone(stock, planted).mean()
    expected.backward()
    assert value == pytest.approx(float(expected.detach()), rel=1e-6)
    assert distance(gradient, parameter_gradients(stock)) < 1e-5


def test_statistics_are_those_of_the_whole_batch() -> None:
    """`prepare` sees every forest before any loss runs, with each forest's facts beside it."""
    one = policy()
    batch = forests(random_trees(1, trees=6), 30)
    seen: list[Any] = []

    def prepare(columns: list[Columns], facts: list[Facts]) -> float:
        seen.append(
            [(len(c.logprob), f.leaf.tolist()) for c, f in zip(columns, facts, strict=True)]
        )
        return 0.25

    def loss(columns: Columns, facts: Facts, counts: Counts, statistics: float) -> Tensor:
        seen.append((statistics, facts.leaf.tolist()))
        return statistics * columns.logprob.sum() / counts["targets"]

    value = one.forward_backward(batch, Loss(loss, prepare=prepare)).loss
    leaves = [forest.leaf.tolist() for forest in batch]
    assert len(batch) > 1
    assert seen == [[(len(leaf), leaf) for leaf in leaves], *((0.25, leaf) for leaf in leaves)]
    total = sum(float(c.logprob.sum()) for c in one.score(batch))
    targets = sum(forest.N for forest in batch)
    assert value == pytest.approx(0.25 * total / targets, rel=1e-6)


def test_probes_are_prepared_from_and_not_trained_on() -> None:
    """Where the batch has probes `prepare` gets those, and nothing of them is in the loss."""
    one = policy()
    batch, probes = [collate(random_trees(1))], [collate(random_trees(2)), collate(random_trees(3))]
    seen: list[int] = []

    def prepare(columns: list[Columns], facts: list[Facts]) -> float:
        seen.extend(f.N for f in facts)
        return mean_of_all(columns, facts)

    value, gradient = run(one, batch, Loss(centred, prepare=prepare), probes=probes)
    assert seen == [forest.N for forest in probes]
    mean = float(torch.cat([c.logprob for c in one.score(probes)]).mean())
    found, other = run(one, batch, Loss(centred, prepare=lambda columns, facts: mean))
    assert value == found and distance(gradient, other) == 0.0


def test_facts_reach_their_own_targets() -> None:
    """A weight for every target, one for every sequence, however the batch is cut into forests,
    and forests into the chunks that the head takes.
    """
    one = policy(vocab_size=70_000)  # so many that a chunk is 64 targets
    planted = []
    for i, tree in enumerate(random_trees(3, trees=9)):
        sequences = []
        for k, s in enumerate(tree):
            weight = np.sin(10 * i + k + 0.1 * np.arange(len(s.tokens)))
            whole = {"label": float(np.cos(3 * i + k))}
            sequences.append(replace(s, targets={"weight": weight}, whole=whole))
        planted.append(Tree(tuple(sequences)))
    assert collate(planted).N > 2 * one.network.head.chunk == 128

    def weighted(columns: Columns, facts: Facts, counts: Counts, statistics: Any) -> Tensor:
        weights = facts.targets["weight"] * facts.sequences["label"][facts.leaf]
        return (weights * columns.logprob).sum() / counts["targets"]

    total, targets = 0.0, 0
    for forest in forests(planted, 10_000):  # by hand, from the sequences themselves
        (columns,) = one.score([forest])
        parts = columns.logprob.split(forest.facts.lengths.tolist())
        for number, part in zip(forest.sequence.tolist(), parts, strict=True):
            s = [s for tree in planted for s in tree][number]
            weights = torch.from_numpy(s.targets["weight"][1:][s.trained[1:]]) * s.whole["label"]
            total += float((weights * part).sum())
            targets += len(part)
    expected = None
    for batch in ([collate(planted)], forests(planted, 40)):
        for additive in (True, False):
            value, gradient = run(one, batch, Loss(weighted, additive=additive))
            assert value == pytest.approx(total / targets, rel=1e-5)
            expected = expected or gradient
            assert distance(gradient, expected) < 2e-6


def test_a_mean_over_each_sequence_is_additive_at_any_number_of_targets() -> None:
    """GRPO's 1/|o|: the length is that of the whole sequence, not of its part in a chunk."""
    one = policy(vocab_size=70_000)  # so many that a chunk is 64 targets
    planted = [tree_of(*(seq(range(3, 60)) for _ in range(4)))]
    assert 3 * one.network.head.chunk < collate(planted).N

    def mean(columns: Columns, facts: Facts, counts: Counts, statistics: Any) -> Tensor:
        return -(columns.logprob / facts.lengths[facts.leaf]).sum() / counts["sequences"]

    def sequences(facts: Facts) -> dict[str, float]:
        return {"sequences": facts.L}

    found = []
    for additive in (True, False):
        loss = Loss(mean, counts=sequences, additive=additive)
        found.append(run(one, [collate(planted)], loss))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    assert distance(found[0][1], found[1][1]) < 2e-6


def test_a_sum_over_sequences_in_an_additive_loss_is_refused() -> None:
    one = policy()
    (forest,) = one.pack(random_trees(1), 10_000)

    def squared(columns: Columns, facts: Facts, counts: Counts, statistics: Any) -> Tensor:
        return facts.sums(columns.logprob).square().sum()

    with pytest.raises(ConfigError, match="not additive") as caught:
        one.forward_backward([forest], Loss(squared, additive=True))
    assert "additive=True" in str(caught.value.cure)


def test_a_fact_or_count_that_is_not_there_is_named() -> None:
    one = policy()
    (forest,) = one.pack(random_trees(1), 10_000)
    for read, known in (
        (lambda facts, counts: facts.targets["old"], "'old'"),
        (lambda facts, counts: counts["sequences"], "'sequences'.*\n.*known are: targets"),
    ):

        def loss(columns: Columns, facts: Facts, counts: Counts, statistics: Any) -> Tensor:
            return columns.logprob.sum() * read(facts, counts)  # noqa: B023

        with pytest.raises(ConfigError, match=known):
            one.forward_backward([forest], Loss(loss))


def test_counts_are_of_the_global_batch() -> None:
    """A loss's own denominators, summed over the forests; it gets no others."""
    one = policy()
    batch = forests(random_trees(4, trees=5), 30)
    found = []

    def loss(columns: Columns, facts: Facts, counts: Counts, statistics: Any) -> Tensor:
        found.append(dict(counts))
        return columns.logprob.sum()

    def count(facts: Facts) -> dict[str, float]:
        return {"forests": 1.0, "squares": float(facts.N**2), "sequences": facts.L}

    one.forward_backward(batch, Loss(loss, counts=count))
    assert len(batch) > 1
    squares, sequences = sum(f.N**2 for f in batch), sum(f.L for f in batch)
    expected = {"forests": len(batch), "squares": squares, "sequences": sequences}
    assert found == [expected] * len(batch)
    found.clear()
    one.forward_backward(batch, Loss(loss))
    assert found == [{"targets": sum(f.N for f in batch)}] * len(batch)


# ------------------------------------------------------------------------- rows of the vocabulary


def teacher_facts(trees: Many[Tree], k: int = 5) -> list[Tree]:
    """Every token with k tokens that a teacher knows, and their log-probabilities."""
    rng = np.random.default_rng(0)
    out = []
    for tree in trees:
        sequences = []
        for s in tree:
            n = len(s.tokens)
            ids = np.stack([rng.permutation(V)[:k] for _ in range(n)])
            logits = rng.normal(size=(n, k))
            logprobs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
            facts = {"teacher_ids": ids, "teacher_logprobs": logprobs.astype(np.float32)}
            sequences.append(replace(s, targets=facts))
        out.append(Tree(tuple(sequences)))
    return out


def forward_kl(logits: Tensor, target: Tensor, facts: Facts) -> Tensor:
    """[n] Σ_k q_k·(log q_k − log p_k) over the tokens that the teacher q knows."""
    q = facts.targets["teacher_logprobs"]
    p = logits.log_softmax(-1).gather(1, facts.targets["teacher_ids"])
    return (q.exp() * (q - p)).sum(-1)


def distil(columns: Columns, facts: Facts, counts: Counts, statistics: Any) -> Tensor:
    return columns.rows.sum() / counts["targets"]


def bonus(columns: Columns, facts: Facts, counts: Counts, statistics: Any) -> Tensor:
    """Likelihood with an entropy bonus."""
    return -(columns.logprob + 0.3 * columns.entropy).sum() / counts["targets"]


def target_logits(stock: Any, trees: Many[Tree]) -> Tensor:
    """[N, V] logits that predict every target, every sequence alone."""
    out = []
    for s in (s for tree in trees for s in tree):
        logits = stock(input_ids=torch.from_numpy(s.tokens)[None], use_cache=False).logits[0, :-1]
        out.append(logits[torch.from_numpy(s.trained[1:])])
    return torch.cat(out)


@pytest.mark.parametrize("additive", [True, False])
@pytest.mark.parametrize("budget", [30, 10_000])
def test_distillation_is_a_row_function(additive: bool, budget: int) -> None:
    """Forward KL to a teacher whose tokens ride on the sequences: loss and gradient are those of
    plain transformers, however the batch is cut.
    """
    one, stock = policy(), network("llama", attention="eager")
    trees = teacher_facts(random_trees(2, trees=4))
    loss = Loss(distil, read=Read(logprob=False, rows=forward_kl), additive=additive)
    value, gradient = run(one, one.pack(trees, budget), loss)
    facts = collate(trees).facts
    assert facts.targets["teacher_ids"].shape == (facts.N, 5)
    expected = forward_kl(target_logits(stock, trees), torch.empty(0), facts).mean()
    expected.backward()
    assert value == pytest.approx(float(expected.detach()), rel=1e-5)
    assert distance(gradient, parameter_gradients(stock)) < 1e-5


@pytest.mark.parametrize("additive", [True, False])
def test_entropy_with_gradients_reaches_a_loss(additive: bool) -> None:
    """An entropy bonus at temperature 0.7, in one pass over the vocabulary and in two, is
    autograd's.
    """
    one, stock = policy(), network("llama", attention="eager")
    trees = random_trees(2, trees=4)
    loss = Loss(bonus, read=Read(temperature=0.7, entropy="gradient"), additive=additive)
    value, gradient = run(one, one.pack(trees, 40), loss)
    logp = (target_logits(stock, trees) / 0.7).log_softmax(-1)
    entropy = -(logp.exp() * logp).sum(-1)
    expected = -(logp.gather(1, collate(trees).target[:, None])[:, 0] + 0.3 * entropy).mean()
    expected.backward()
    assert value == pytest.approx(float(expected.detach()), rel=1e-5)
    assert distance(gradient, parameter_gradients(stock)) < 1e-5


def test_entropy_without_gradients_has_none() -> None:
    """The same bonus of an entropy that was read as a value is a constant."""
    one = policy()
    batch = one.pack(random_trees(2, trees=4), 40)
    _, gradient = run(one, batch, Loss(bonus, read=Read(entropy="value")))
    _, expected = run(one, batch)
    assert distance(gradient, expected) < 1e-6


# ------------------------------------------------------------------------------- what is in a batch


def test_masked_is_removed() -> None:
    """Tokens after the last trained one change neither loss nor gradient: nothing is predicted from
    them.
    """
    one = policy()
    planted = random_trees(5, trees=4)
    rng = np.random.default_rng(0)

    def longer(s: Sequence) -> Sequence:
        tokens = np.concatenate([s.tokens, rng.integers(0, V, 4)])
        return Sequence(tokens, np.concatenate([s.trained, np.zeros(4, bool)]))

    padded = [Tree(tuple(longer(s) for s in tree)) for tree in planted]
    value, gradient = run(one, [collate(planted)])
    found, other = run(one, [collate(padded)])
    assert found == pytest.approx(value, rel=1e-6)
    assert distance(other, gradient) < 2e-6


def test_the_order_of_a_batch_does_not_matter() -> None:
    """Trees permuted, and the sequences within each: the same loss, the same gradient."""
    one = policy()
    planted = random_trees(6, trees=6)
    rng = np.random.default_rng(1)
    shuffled = []
    for i in rng.permutation(6):
        order = rng.permutation(len(planted[i]))
        shuffled.append(Tree(tuple(planted[i][j] for j in order)))
    for loss in (METHODS["nll"], LOSSES["by sequence"]):
        value, gradient = run(one, forests(planted, 30), loss)
        found, other = run(one, forests(shuffled, 30), loss)
        assert found == pytest.approx(value, rel=1e-6)
        assert distance(other, gradient) < 2e-6


@pytest.mark.parametrize("architecture", ["llama", "longrope"])
def test_a_forest_without_targets_adds_nothing(architecture: str) -> None:
    """Prompts only, in a batch that has targets elsewhere: no loss, no gradient, and no NaN."""
    one = policy(architecture)
    with_targets, without = (
        collate([tree_of(seq([5, 6, 7]), seq([5, 8]))]),
        collate([tree_of(seq([5, 6, 7], [0, 0, 0]), seq([9], [1]))]),
    )
    for loss in (METHODS["nll"], Loss(nll), LOSSES["centred"]):
        value, gradient = run(one, [with_targets], loss)
        found, other = run(one, [without, with_targets], loss)
        assert found == value
        assert distance(other, gradient) == 0.0
    assert one.score([without])[0].logprob.shape == (0,)


# -------------------------------------------------------------------------------------------- score


def test_scores_are_those_of_plain_transformers() -> None:
    """Log-probability, entropy and whether the target is the likeliest, at two temperatures, for
    every target of a forest.
    """
    one, stock = policy(), network("llama", attention="eager")
    planted = random_trees(7, trees=3)
    for temperature in (1.0, 0.6):
        rows = []
        for sequence in (s for tree in planted for s in tree):
            with torch.no_grad():
                logits = stock(
                    input_ids=torch.from_numpy(sequence.tokens)[None], use_cache=False
                ).logits[0, :-1]
            logp = (logits / temperature).log_softmax(-1)[torch.from_numpy(sequence.trained[1:])]
            rows += zip(logp, sequence.tokens[1:][sequence.trained[1:]].tolist(), strict=True)
        read = Read(temperature=temperature, entropy="value", correct=True)
        (scores,) = one.score([collate(planted)], read)
        assert scores.logprob.tolist() == pytest.approx(
            [float(row[token]) for row, token in rows], abs=1e-5
        )
        assert scores.entropy.tolist() == pytest.approx(
            [float(-(row.exp() * row).sum()) for row, _ in rows], abs=1e-5
        )
        assert scores.correct.tolist() == [int(row.argmax()) == token for row, token in rows]


def test_the_likeliest_token_is_marked_as_correct() -> None:
    """Greedy continuation: every target is the model's own choice; the second likeliest is not."""
    one = policy()
    tokens = [5, 6, 7]
    for _ in range(4):
        with torch.no_grad(), one.network.stock_attention():
            logits = one.network.inner(input_ids=torch.tensor([tokens])).logits[0, -1]
            best = logits.topk(2).indices.tolist()
        tokens.append(best[0])
    second = seq([*tokens[:-1], best[1]], [0, 0, 0, 0, 0, 0, 1])
    pair = tree_of(seq(tokens, [0, 0, 0, 1, 1, 1, 1]), second)
    (scores,) = one.score([collate([pair])], Read(correct=True))
    assert scores.correct.tolist() == [True, True, True, True, False]


# -------------------------------------------------------------------- dropout, noise, recomputation

DROPOUT: dict[str, Any] = {"attn_pdrop": 0.3, "resid_pdrop": 0.3, "embd_pdrop": 0.3}


def test_score_has_no_dropout() -> None:
    """A model that drops a third of everything in training scores as the one that drops nothing,
    even between training steps.
    """
    noisy, still = policy("gpt2", **DROPOUT), policy("gpt2")
    batch = [collate(random_trees(8))]
    (expected,) = still.score(batch)
    assert torch.equal(noisy.score(batch)[0].logprob, expected.logprob)
    noisy.forward_backward(batch, METHODS["nll"])
    assert torch.equal(noisy.score(batch)[0].logprob, expected.logprob)


@pytest.mark.parametrize("kind", ["attn_pdrop", "resid_pdrop"])
def test_training_has_dropout_and_repeats_it_by_seed(kind: str) -> None:
    """Attention weights are dropped inside the forest's own attention, hidden states in the model:
    both follow the seed alone.
    """
    one = policy("gpt2", **{kind: 0.3})
    batch = [collate(random_trees(8)), collate(random_trees(9))]
    value, gradient = run(one, batch, seed=1)
    torch.rand(7)  # what else was drawn does not matter
    again, same = run(one, batch, seed=1)
    assert again == value and distance(same, gradient) == 0.0
    other, _ = run(one, batch, seed=2)
    without, _ = run(policy("gpt2"), batch, seed=1)
    assert abs(other - value) > 1e-3
    assert abs(without - value) > 1e-3


def test_training_draws_leave_the_callers_generator_alone() -> None:
    one = policy("gpt2", **DROPOUT)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    one.forward_backward([collate(random_trees(8))], METHODS["nll"], seed=1)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("architecture", ["gemma2", "gpt_oss", "longrope"])
def test_dropout_is_unbiased_where_attention_is_written_out(architecture: str) -> None:
    """Soft caps and sinks take another way through attention: its dropout too keeps 1 − p of the
    weights, scaled by 1/(1 − p).

    Over many seeds the mean loss lies near that without dropout, and single losses do not.
    """
    batch = [collate(random_trees(8, trees=1))]
    still, _ = run(policy(architecture), batch)
    one = policy(architecture, attention_dropout=0.05)
    values = [run(one, batch, seed=seed)[0] for seed in range(30)]
    assert np.std(values) > 1e-3
    assert abs(np.mean(values) - still) < 4 * np.std(values) / math.sqrt(30) + 0.02


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "longrope"])
def test_activation_checkpointing_gives_the_same_gradients(architecture: str) -> None:
    """Activations computed twice (every layer runs twice a forest) are the same activations,
    dropout included.
    """
    dropout = (
        {"attn_pdrop": 0.2, "resid_pdrop": 0.2}
        if architecture == "gpt2"
        else {"attention_dropout": 0.2}
    )
    batch = forests(random_trees(9, trees=4), 60)
    found = []
    for checkpointing in (False, True):
        one = policy(architecture, **dropout)
        one.train_with(OptimiserSettings(), activation_checkpointing=checkpointing)
        calls: list[str] = []
        for name, module in one.network.inner.named_modules():
            if name.endswith(".mlp"):
                module.register_forward_pre_hook(
                    lambda module, inputs, name=name, calls=calls: calls.append(name)
                )
        found.append((*run(one, batch, seed=5), len(calls)))
    (value, gradient, once), (again, other, twice) = found
    assert twice == 2 * once > 0
    assert again == value
    assert distance(other, gradient) < 1e-6


@pytest.mark.parametrize("architecture", ["llama", "qwen3_5"])
def test_neftune_noise_is_bounded_and_follows_the_seed(architecture: str) -> None:
    """|noise| ≤ α/√(n·d), n the longest sequence the token is in, d the width: measured at the
    first layer's input.
    """
    one = policy(architecture)
    planted = [
        tree_of(seq([3, 4, 5, 6])),
        tree_of(seq([7, 8, 9, 10, 11, 12, 13, 14, 15]), seq([7, 8, 20])),
    ]
    batch = [collate(planted)]
    inputs: list[Tensor] = []
    hook = one.network.inner.model.layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: inputs.append(
            (args[0] if args else kwargs["hidden_states"]).detach().clone()
        ),
        with_kwargs=True,
    )
    alpha = 5.0
    clean, quiet_gradient = run(one, batch)
    first, gradient = run(one, batch, seed=1, noise=partial(neftune, alpha=alpha))
    second, same = run(one, batch, seed=1, noise=partial(neftune, alpha=alpha))
    third, _ = run(one, batch, seed=2, noise=partial(neftune, alpha=alpha))
    hook.remove()
    assert first == second and distance(same, gradient) == 0.0
    assert (
        abs(first - clean) > 1e-3
        and abs(third - first) > 1e-3
        and distance(gradient, quiet_gradient) > 1e-2
    )
    each = len(inputs) // 4
    still, noisy = inputs[:each], inputs[each : 2 * each]
    for a, b in zip(still, noisy, strict=True):
        if architecture == "llama":
            # one forest: the prompt of the pair is in a sequence of 9 tokens, its last answer
            # alone in 3
            n = torch.tensor([4] * 4 + [9] * 9 + [3])
        else:  # every path alone, padded on the right to the longest of its batch
            n = torch.tensor([3, 4, 9])[:, None].expand(-1, 9)
        share = (b - a).abs() * torch.sqrt(n * a.shape[-1]).unsqueeze(-1) / alpha
        assert float(share.max()) <= 1.0 + 1e-4
        shares = share.view(-1, a.shape[-1])
        for length in (3, 4, 9):
            # the bound is nearly reached, each sequence its own
            assert float(shares[n.flatten() == length].max()) > 0.9


def test_noise_never_reaches_a_score() -> None:
    """`score` takes no noise, and what `forward_backward` added is gone after it."""
    one = policy()
    batch = [collate(random_trees(8))]
    before = one.score(batch)[0].logprob
    one.forward_backward(batch, METHODS["nll"], noise=partial(neftune, alpha=15.0))
    assert torch.equal(one.score(batch)[0].logprob, before)
    with_failure = partial(neftune, alpha=15.0)

    def failing(columns: Columns, *rest: Any) -> Tensor:
        raise RuntimeError("a loss that fails")

    with pytest.raises(RuntimeError, match="a loss that fails"):
        one.forward_backward(batch, Loss(failing), noise=with_failure)
    assert torch.equal(one.score(batch)[0].logprob, before)


# ------------------------------------------------------------------------------------ load and save


def test_saving_and_loading_keeps_every_bit(tmp_path: Any) -> None:
    one = Policy.load(folder(tmp_path / "base"), device="cpu")
    one.train_with(OptimiserSettings(learning_rate=1e-2))
    batch = [collate(random_trees(8))]
    one.forward_backward(batch, METHODS["nll"])
    one.step()
    one.save(tmp_path / "tuned")
    again = Policy.load(tmp_path / "tuned", device="cpu")
    assert torch.equal(again.score(batch)[0].logprob, one.score(batch)[0].logprob)
    assert again.digest != one.digest
    assert again.tokenizer("w5 w6 </s>").input_ids == [5, 6, 2]


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path: Any) -> None:
    """Its last ids would read past the embedding."""
    folder(tmp_path, vocab_size=40)
    with pytest.raises(ModelError, match="has 61 tokens, the model only 40"):
        Policy.load(tmp_path, device="cpu")


def test_a_step_lowers_the_loss_it_was_taken_for() -> None:
    """A small step lowers the loss by rate · Σ|gradient|: Adam's first step is the
    gradient's sign.
    """
    one = policy()
    batch = [collate(random_trees(8))]
    one.train_with(OptimiserSettings(learning_rate=1e-5, clip=0))
    before = one.forward_backward(batch, METHODS["nll"]).loss
    slope = sum(float(p.grad.abs().sum()) for p in one.network.parameters())
    one.step()
    after = -float(one.score(batch)[0].logprob.mean())
    assert before - after == pytest.approx(1e-5 * slope, rel=0.02)


def test_a_batch_without_a_trained_token_is_an_error() -> None:
    """0/0 would be a silent NaN, or a silent zero."""
    one = policy("llama")
    with pytest.raises(DataError, match="no trained token"):
        one.forward_backward([collate([tree_of(seq([1, 2, 3], [0, 0, 0]))])], METHODS["nll"])


def test_activation_checkpointing_where_there_is_none_is_an_error_with_a_cure() -> None:
    one = policy("llama")
    one.network.inner.supports_gradient_checkpointing = False
    with pytest.raises(ConfigError, match="cannot compute its activations twice") as caught:
        one.train_with(OptimiserSettings(), activation_checkpointing=True)
    assert "--budget" in caught.value.cure


def test_a_part_without_targets_counts_the_same_however_it_is_cut() -> None:
    """A loss over whole sequences sees those without a target, alone in a forest or not."""
    first, second = seq([2, 3, 4, 5, 6]), seq([7, 8, 9, 5], [0, 0, 0, 0])
    trees = [Tree((replace(first, whole={"x": 1.0}),)), Tree((replace(second, whole={"x": 2.0}),))]

    def squares(columns: Columns, facts: Facts, counts: Counts, statistics: Any) -> Tensor:
        return (facts.sums(columns.logprob) - facts.sequences["x"]).square().sum()

    def report(columns: Columns, facts: Facts, statistics: Any) -> dict[str, Tensor]:
        return {"x": facts.sequences["x"]}

    model, loss = policy(), Loss(squares, report=report)
    apart, together = model.pack(trees, 5), model.pack(trees, 100)
    assert (len(apart), len(together)) == (2, 1)
    expected = model.measure(together, loss)
    for measured in (model.measure(apart, loss), model.forward_backward(apart, loss)):
        assert measured.loss == pytest.approx(expected.loss, rel=1e-6)
        assert sorted(measured.values["x"].tolist()) == [1.0, 2.0]


@pytest.mark.parametrize("additive", [True, False])
@pytest.mark.parametrize("double", [True, False])
def test_a_loss_of_values_alone(additive: bool, double: bool) -> None:
    """An additive loss that reads nothing off the vocabulary; in float64, too."""
    model = policy()
    if double:
        model.network.double()
    model.add_value_head()
    trees = [Tree((seq([2, 3, 4, 5, 6]),))]

    def regress(columns: Columns, facts: Facts, counts: Counts, statistics: Any) -> Tensor:
        return (columns.value - 1).square().sum() / counts["targets"]

    loss = Loss(regress, Read(logprob=False, value=True), additive=additive)
    measured = model.forward_backward(model.pack(trees, 100), loss)
    assert measured.loss == pytest.approx(model.measure(model.pack(trees, 100), loss).loss)
    assert model.network.value_head is not None
    assert model.network.value_head.weight.grad is not None


def test_a_value_head_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    model = Policy.load(folder(tmp_path / "base"), device="cpu")
    model.add_value_head()
    assert model.network.value_head is not None
    model.network.value_head.weight.data[0, 0] = torch.inf
    with pytest.raises(ModelError, match=r"\(weight\)"):
        model.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_model_that_is_not_finite_from_the_start_is_refused_before_the_first_step(
    tmp_path: Path,
) -> None:
    model = Policy.load(folder(tmp_path / "base"), device="cpu")
    model.network.inner.get_input_embeddings().weight.data[3, 0] = torch.nan
    with pytest.raises(ModelError, match=r"embed_tokens\.weight holds a NaN"):
        model.rehearse(tmp_path)
