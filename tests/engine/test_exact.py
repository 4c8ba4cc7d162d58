"""Exact mode: the sampler's log-probabilities are the trainer's to the bit; attention in blocks is
attention.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import posttrain
from posttrain.core.seeds import generator
from posttrain.core.types import Columns, Counts, Facts, Loss, Read
from posttrain.data.forest import Sequence, Tree, collate
from posttrain.engine import exact
from posttrain.engine.admission import admitted
from posttrain.engine.attention import Scoring, dense_trees
from posttrain.engine.exact import KEYS, ROWS, fixed_blocks, in_blocks, padded, repeats
from posttrain.engine.policy import Policy
from posttrain.engine.sampler import Sampling
from posttrain.engine.sampling_exact import why_not
from posttrain.engine.settings import OptimiserSettings
from tests.tiny import FORESTS, V, network, policy, seq, tree_of

BASE = Path(posttrain.__file__).parent / "assets" / "base"

# an expert gets as many rows as are sent to it, whatever they are beside: some machines add alike
MIXTURES = ("gpt_oss", "qwen3_moe", "deepseek_v3")


@pytest.mark.parametrize("architecture", FORESTS)
def test_models_without_experts_that_run_as_forests_can_be_exact(architecture: str) -> None:
    one = admitted(network(architecture))
    why = why_not(one)
    assert one.exact == (why == "")
    if architecture not in MIXTURES:
        assert one.exact
    elif why:
        assert "differ from the trainer's" in why


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2", "phi"])
def test_drawn_beside_whatever_it_is_scored_the_same_beside_whatever(architecture: str) -> None:
    """Batches of other sizes and orders, in sampling and in scoring."""
    one = policy(architecture)
    assert one.use_exact() == ""
    rng = generator(0, "prompts")
    prompts = [rng.integers(3, V, n).tolist() for n in (4, 17, 1, 60, 33, KEYS)]
    params = Sampling(9, temperature=0.7, n=3, stop=tuple(range(0, V, 11)))
    seeds = list(range(len(prompts)))
    found = one.sample(prompts, params, seeds)
    for chosen in ([5, 0, 3], [2], [4, 1]):
        again = one.sample([prompts[i] for i in chosen], params, [seeds[i] for i in chosen])
        for completion in again:
            number = chosen[completion.prompt]
            (first,) = [c for c in found if (c.prompt, c.sample) == (number, completion.sample)]
            assert first.tokens == completion.tokens and first.logprobs == completion.logprobs
    read = Read(temperature=0.7)
    for members in (range(len(found)), [2, 11, 7], [0, 1, 2], [16]):
        trees = []
        for i in members:
            prompt, tokens = prompts[found[i].prompt], found[i].tokens
            trees.append(tree_of(seq([*prompt, *tokens], [0] * len(prompt) + [1] * len(tokens))))
        scored = one.score([collate(trees)], read)[0].logprob
        drawn = [lp for i in members for lp in found[i].logprobs]
        assert torch.equal(scored, torch.tensor(drawn))


def test_groups_of_completions_are_scored_as_they_were_drawn() -> None:
    one = policy("qwen3")
    assert one.use_exact() == ""
    prompts = [[5, 6, 7, 8], [9, 10]]
    found = one.sample(prompts, Sampling(20, n=4, stop=(3,)))
    trees = []
    for i, prompt in enumerate(prompts):
        group = [c for c in found if c.prompt == i]
        answers = [
            seq([*prompt, *c.tokens], [0] * len(prompt) + [1] * len(c.tokens)) for c in group
        ]
        trees.append(Tree(tuple(answers)))
    scored = one.score([collate(trees)])[0].logprob
    assert torch.equal(scored, torch.tensor([lp for c in found for lp in c.logprobs]))


def gaps_in_training(one: Policy, batches: int, additive: bool) -> list[tuple[float, float, float]]:
    """Batch after batch, by how much a log-probability in the loss differs from the sampler's:
    before a step of learning rate 0; after it, in other forests; and after one that changes the
    weights.
    """
    one.train_with(OptimiserSettings(learning_rate=1e-3))
    gaps: list[torch.Tensor] = []

    def reinforce(columns: Columns, facts: Facts, counts: Counts, statistics: Any) -> torch.Tensor:
        gaps.append((columns.logprob.detach() - facts.targets["drawn"]).abs())
        return -columns.logprob.sum() / counts["targets"]

    loss = Loss(reinforce, Read(temperature=0.8), additive=additive)
    rng = generator(0, "prompts")
    found = []
    for batch in range(batches):
        prompts = [rng.integers(9, 4000, n).tolist() for n in (3, KEYS - 4)]
        params = Sampling(8, temperature=0.8, n=2, seed=batch, stop=tuple(range(0, 4096, 31)))
        drawn = one.sample(prompts, params)
        groups: list[list[Sequence]] = [[] for _ in prompts]
        for completion in drawn:
            prompt = prompts[completion.prompt]
            logprobs = np.array([0.0] * len(prompt) + completion.logprobs, np.float32)
            tokens = np.array([*prompt, *completion.tokens], np.int64)
            trained = np.arange(len(tokens)) >= len(prompt)
            groups[completion.prompt].append(Sequence(tokens, trained, {"drawn": logprobs}))
        trees = [Tree(tuple(group)) for group in groups]
        largest = []
        for budget, factor in ((4096, 0.0), (140, 1.0), (4096, 0.0)):
            gaps.clear()
            one.forward_backward(one.pack(trees, budget), loss)
            one.step(factor)
            assert sum(map(len, gaps)) == sum(len(c.tokens) for c in drawn)
            largest.append(float(torch.cat(gaps).max()))
        found.append((largest[0], largest[1], largest[2]))
    return found


def test_what_training_reads_is_what_was_drawn() -> None:
    """The embedded model; and the weights that a step has changed are seen to be others."""
    one = Policy.load(BASE, device="cpu")
    assert one.use_exact() == ""
    for before, after, moved in gaps_in_training(one, 2, additive=True):
        assert before == after == 0.0 < moved


def test_two_threads_are_as_exact_as_one() -> None:
    """And a loss that takes two passes over the vocabulary as one that takes one."""
    one, threads = Policy.load(BASE, device="cpu"), torch.get_num_threads()
    one.network.exact = True  # its own test would take most of the time
    torch.set_num_threads(2)
    try:
        ((before, after, moved),) = gaps_in_training(one, 1, additive=False)
    finally:
        torch.set_num_threads(threads)
    assert before == after == 0.0 < moved


def test_what_is_not_exact_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that end elsewhere in the sampler: the self-test says so, and exact mode is off."""
    from posttrain.engine.sampler import cache

    def shifted(query: Any, key: Any, value: Any, positions: Any, scoring: Any) -> Any:
        monkeypatch.setattr(exact, "KEYS", 64)
        try:
            return in_blocks(query, key, value, positions, scoring)
        finally:
            monkeypatch.setattr(exact, "KEYS", KEYS)

    monkeypatch.setattr(cache, "in_blocks", shifted)
    one = admitted(network("llama"))
    monkeypatch.delenv("MKL_CBWR", raising=False)
    why = why_not(one)
    assert "log-probabilities differ from the trainer's" in why and not one.exact
    assert "set MKL_CBWR=AUTO,STRICT in the environment" in why
    monkeypatch.setenv("MKL_CBWR", "AUTO,STRICT")
    assert "MKL_CBWR" not in why_not(one)


@pytest.mark.parametrize("architecture", ["bloom", "qwen3_5"])
def test_models_that_run_path_by_path_are_not_exact(architecture: str) -> None:
    assert "path by path" in why_not(admitted(network(architecture)))


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2", "gpt_oss"])
def test_gradients_are_those_of_the_dense_mask(architecture: str) -> None:
    one = admitted(network(architecture))
    prompt = list(range(3, 40))
    answers = [[5, 6, 7], [5, 9], list(range(10, 58))]
    tree = Tree(tuple(seq([*prompt, *a], [0] * len(prompt) + [1] * len(a)) for a in answers))
    found = []
    for mode in (False, True):
        one.exact = mode
        one.zero_grad()
        logprob = one(collate([tree])).logprob
        (logprob * torch.arange(1, len(logprob) + 1)).sum().backward()
        gradients = [p.grad.clone() for p in one.parameters() if p.grad is not None]
        found.append((logprob.detach(), gradients))
    (dense, dense_grads), (blocks, block_grads) = found
    assert torch.allclose(dense, blocks, atol=2e-5)
    largest = max(float(g.abs().max()) for g in dense_grads)
    for a, b in zip(dense_grads, block_grads, strict=True):
        assert float((a - b).abs().max()) < 1e-4 * largest


@pytest.mark.parametrize(
    "scoring",
    [
        Scoring(),
        Scoring(scale=0.3),
        Scoring(window=7),
        Scoring(window=150),
        Scoring(softcap=2.0),
        Scoring(sinks=torch.tensor([0.5, -1.0, 2.0, 0.0])),
    ],
)
def test_blocks_are_attention(scoring: Scoring) -> None:
    """Over a forest of branches that end in different blocks."""
    torch.manual_seed(0)
    stem = list(range(3, 50)) * 3
    trees = [
        Tree((seq([*stem, 1, 2, 3]), seq([*stem, 1, 9]), seq(stem[:100]), seq([*stem, *stem]))),
        tree_of(seq([4, 5, 6])),
    ]
    forest = collate(trees)
    q = torch.randn(1, 4, forest.T, 8, dtype=torch.float64)
    k, v = torch.randn(2, 1, 2, forest.T, 8, dtype=torch.float64)
    if scoring.sinks is not None:
        scoring = scoring._replace(sinks=scoring.sinks.double())
    expected = dense_trees(forest)(q, k, v, scoring)
    assert torch.allclose(fixed_blocks(forest)(q, k, v, scoring), expected, atol=1e-12)


def test_a_block_that_nothing_is_seen_of_changes_no_bit() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 2, ROWS, 8), torch.randn(1, 2, KEYS, 8), torch.randn(1, 2, KEYS, 8)
    positions = torch.arange(ROWS)[None] + 20
    short = in_blocks(q, k, v, positions, Scoring())
    more = torch.randn(1, 2, 2 * KEYS, 8)
    long = in_blocks(q, torch.cat([k, more], 2), torch.cat([v, more], 2), positions, Scoring())
    assert torch.equal(short, long)


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (9, 3), (8, 1), (32, 1), (5, 1)])
def test_rows_of_a_product_are_a_multiple(heads: int, groups: int) -> None:
    assert heads // groups * repeats(heads, groups) % ROWS == 0


def test_padding_adds_rows_of_zeros_and_nothing_where_there_is_none_to_add() -> None:
    rows = torch.ones(ROWS + 1, 2)
    assert padded(rows).shape == (2 * ROWS, 2) and padded(rows)[ROWS + 1 :].eq(0).all()
    assert padded(rows[:ROWS]) is not None and len(padded(rows[:ROWS])) == ROWS
    assert np.isclose(math.fsum(padded(rows).flatten().tolist()), 2 * (ROWS + 1))


def test_a_policy_says_why_not() -> None:
    one = Policy(admitted(network("llama").to(torch.bfloat16)), None)
    assert "float32" in one.use_exact()
