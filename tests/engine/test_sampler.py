"""Sampling: greedy as transformers does it, drawn by numbers a pencil can follow, and scored as the
trainer scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from posttrain.core.errors import ConfigError, ModelError
from posttrain.core.types import Read
from posttrain.data.forest import Tree, collate
from posttrain.engine import sampler
from posttrain.engine.admission import admitted
from posttrain.engine.policy import Policy
from posttrain.engine.sampler import (
    ROWS,
    Completion,
    Request,
    Sampling,
    Scheduler,
    Slots,
    draw,
    sample,
    stopping_at_texts,
)
from tests import making
from tests.tiny import V, folder, network, policy, seq, tree_of

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14], [20, 21, 22], [30], [5, 6, 7, 8, 9, 10, 12]]
ARCHITECTURES = (
    "llama",
    "mistral",
    "gemma2",
    "gemma3",
    "gpt2",
    "cohere",
    "granite",
    "gpt_oss",
    "deepseek_v3",
    "qwen3_5",
    "llama4",
    "falcon",
    "bloom",
    "bamba",
    "longrope",
)


def scored(
    one: Policy, prompts: list[list[int]], completions: list[Completion], temperature: float
) -> list[float]:
    """The trainer's log-probabilities of what was drawn: a tree for every prompt, its completions
    the leaves.
    """
    groups: dict[int, list[Completion]] = {}
    for completion in completions:
        groups.setdefault(completion.prompt, []).append(completion)
    trees = []
    for i, group in groups.items():
        answers = []
        for c in group:
            trained = [0] * len(prompts[i]) + [1] * len(c.tokens)
            answers.append(seq([*prompts[i], *c.tokens], trained))
        trees.append(Tree(tuple(answers)))
    read = Read(temperature=temperature)
    return one.score([collate(trees)], read)[0].logprob.tolist()


# ----------------------------------------------------------------------------- against transformers


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_is_transformers_greedy(architecture: str) -> None:
    """Token for token, prompts of several lengths at once: through windows shorter than the prompt,
    chunks, states and ALiBi.
    """
    one, stock = policy(architecture), network(architecture)
    found = one.sample(PROMPTS, Sampling(max_tokens=12, temperature=0, stop=()))
    assert [c.prompt for c in found] == [0, 1, 2, 3, 4]
    for completion in found:
        ids = torch.tensor([PROMPTS[completion.prompt]])
        expected = stock.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert completion.tokens == expected[0, ids.shape[1] :].tolist()
        assert not completion.finished


def test_with_seeds_of_their_own_prompts_are_answered_the_same_anywhere() -> None:
    one, params = policy(), Sampling(max_tokens=8, n=3, stop=())
    seeds = [11, 12, 13, 14, 15]
    found = [c.tokens for c in one.sample(PROMPTS, params, seeds)]
    order = [3, 0, 4]
    again = [
        c.tokens for c in one.sample([PROMPTS[i] for i in order], params, [seeds[i] for i in order])
    ]
    assert again == [found[3 * i + j] for i in order for j in range(3)]
    other = [c.tokens for c in one.sample(PROMPTS, params, [9, 12, 13, 14, 15])]
    assert [a == b for a, b in zip(found, other, strict=True)] == [False] * 3 + [True] * 12


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_drawn_is_scored_alike(architecture: str) -> None:
    """The sampler's log-probabilities are the trainer's: a cache on one side, a forest or paths on
    the other.

    Completions end at different times, so rows leave the batch and the cache must drop the right
    ones. (longrope stays below its threshold here; beyond it, see `test_sampling_probe`.)
    """
    one = policy(architecture)
    params = Sampling(max_tokens=10, temperature=0.8, n=6, seed=3, stop=tuple(range(0, V, 7)))
    found = one.sample(PROMPTS, params)
    assert len(found) == 30
    assert len({len(c.tokens) for c in found}) > 3, "completions should end at different times"
    drawn = [lp for c in found for lp in c.logprobs]
    assert drawn == pytest.approx(scored(one, PROMPTS, found, 0.8), abs=1e-4)
    for c in found:
        assert c.finished == (c.tokens[-1] in params.stop)
        assert not any(token in params.stop for token in c.tokens[:-1])
        assert c.finished or len(c.tokens) == 10


def test_a_model_that_takes_no_cache_is_refused() -> None:
    """Mamba ignores a key-value cache without a word: every token would be drawn as if it were the
    first.
    """
    one = policy("mamba")
    assert one.network.mode == "padded"
    with pytest.raises(ModelError, match="MambaForCausalLM cannot be sampled"):
        one.sample(PROMPTS, Sampling(max_tokens=2))


def test_completions_end_at_the_last_position() -> None:
    """A learned position that is not there would be an IndexError, and one that was never trained
    is no better: prompt and completion have 32 tokens together, and that is said once.
    """
    one, told = policy("gpt2", n_positions=32), list[str]()
    one.tell = told.append
    prompts = [list(range(3, 26)), list(range(3, 35)), [30]]
    found = one.sample(prompts, Sampling(max_tokens=12, n=2, stop=()))
    assert [len(c.tokens) for c in found] == [9, 9, 0, 0, 12, 12]
    assert not any(c.finished for c in found)
    one.sample(prompts, Sampling(max_tokens=12, stop=()))
    (sentence,) = told
    assert "knows 32 positions: 4 of 6 answers" in sentence and "2 of them before" in sentence
    with pytest.warns(UserWarning, match="knows 32 positions"):
        policy("gpt2", n_positions=32).sample(prompts, Sampling(max_tokens=12))


def test_a_completion_that_ends_by_itself_at_the_last_position_is_finished() -> None:
    one = policy("llama", max_position_embeddings=24)
    one.tell = pytest.fail
    params = Sampling(max_tokens=2, stop=tuple(range(V)))
    (completion,) = one.sample([list(range(3, 26))], params)
    assert completion.finished and len(completion.tokens) == 1


def test_greedy_logprobs_are_the_models_own() -> None:
    """Temperature 0 is no distribution: what is told is the model's log-probability at temperature
    1.
    """
    one = policy()
    found = one.sample(PROMPTS, Sampling(max_tokens=8, temperature=0))
    assert [lp for c in found for lp in c.logprobs] == pytest.approx(
        scored(one, PROMPTS, found, 1.0), abs=1e-4
    )


# ------------------------------------------------------------------------------ what runs beside it


def same(a: Completion, b: Completion) -> bool:
    return (
        a.tokens == b.tokens
        and a.logprobs == pytest.approx(b.logprobs, abs=1e-5)
        and a.finished == b.finished
    )


@pytest.mark.parametrize("architecture", ["llama", "qwen3_5"])
def test_a_sample_does_not_depend_on_what_runs_beside_it(architecture: str) -> None:
    """Prompt 2 with and without neighbours of its own length, and neighbours that stop early."""
    one = policy(architecture)
    params = Sampling(max_tokens=12, temperature=1.0, n=2, seed=1, stop=tuple(range(0, V, 5)))
    mine = PROMPTS[2]
    crowds = [
        [[12, 13, 14], [15, 16, 17], mine, [18, 19, 20]],
        [[12], [15, 16, 17, 18], mine],
        [[3, 4, 5], [4, 5, 6], mine],
    ]
    found = [[c for c in one.sample(crowd, params) if c.prompt == 2] for crowd in crowds]
    assert all(len(pair) == 2 for pair in found)
    for other in found[1:]:
        assert all(same(a, b) for a, b in zip(found[0], other, strict=True))
    # and it does depend on the seed
    assert found[0] != [c for c in one.sample(crowds[0], replace(params, seed=2)) if c.prompt == 2]


def test_more_sequences_than_run_together() -> None:
    """Over 64 rows the work is cut; nothing changes for those that come first."""
    one = policy()
    params = Sampling(max_tokens=3, seed=5)
    prompts = [[3 + i % 50, 4, 5] for i in range(ROWS + 6)]
    found = one.sample(prompts, params)
    assert [c.prompt for c in found] == list(range(ROWS + 6))
    for i in (0, ROWS - 1):
        assert same(found[i], one.sample(prompts[: i + 1], params)[i])
    assert len({tuple(c.tokens) for c in found}) > ROWS / 2


def test_equal_prompts_draw_from_streams_of_their_own() -> None:
    """The same prompt given eight times, or once for eight samples: eight different completions,
    from one seed.
    """
    one = policy()
    params = Sampling(max_tokens=8, seed=2)
    for found in (
        one.sample(PROMPTS[:1] * 8, params),
        one.sample(PROMPTS[:1], replace(params, n=8)),
    ):
        assert len({tuple(c.tokens) for c in found}) == 8


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen3_5"])
def test_a_fork_equals_separate_prompts(architecture: str) -> None:
    """The prompt computed once and forked four ways: the first sample is that of n = 1, the first
    two those of n = 2.

    Greedy, all four are what the prompt gives four times alone.
    """
    one = policy(architecture)
    params = Sampling(max_tokens=8, seed=7)
    prompts = PROMPTS[:2]
    four, two, single = (one.sample(prompts, replace(params, n=n)) for n in (4, 2, 1))
    for i in range(len(prompts)):
        assert same(four[4 * i], single[i])
        assert all(
            same(a, b) for a, b in zip(four[4 * i : 4 * i + 2], two[2 * i : 2 * i + 2], strict=True)
        )
        assert len({tuple(c.tokens) for c in four[4 * i : 4 * i + 4]}) == 4
    greedy = replace(params, temperature=0.0)
    forked, separate = (
        one.sample(prompts[:1], replace(greedy, n=4)),
        one.sample(prompts[:1] * 4, greedy),
    )
    assert [c.prompt for c in forked] == [0] * 4
    assert all(same(a, b) for a, b in zip(forked, separate, strict=True))


def test_sampling_leaves_the_policy_as_it_was() -> None:
    """Training mode, dropout off while sampling, and the forest afterwards."""
    one, still = policy("gpt2", resid_pdrop=0.5), policy("gpt2")
    forest = collate([tree_of(seq([5, 6, 7]), seq([5, 8]))])
    before = one.score([forest])[0].logprob
    one.network.train()
    params = Sampling(max_tokens=6, seed=1)
    assert one.sample(PROMPTS, params) == still.sample(PROMPTS, params)
    assert one.network.training
    assert torch.equal(one.score([forest])[0].logprob, before)


# --------------------------------------------------------------------------------------------- stop


def test_a_stop_token_ends_a_completion_and_is_part_of_it() -> None:
    """Greedy, with the third token of the first completion as stop: it ends there, as transformers
    does with that eos.
    """
    one, stock = policy(), network("llama")
    free = one.sample(PROMPTS[:1], Sampling(max_tokens=12, temperature=0))[0].tokens
    stop = free[2]
    assert stop not in free[:2] and len(free) == 12
    (found,) = one.sample(PROMPTS[:1], Sampling(max_tokens=12, temperature=0, stop=(stop, 999)))
    assert (found.tokens, found.finished, len(found.logprobs)) == (free[:3], True, 3)
    ids = torch.tensor(PROMPTS[:1])
    expected = stock.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=12,
        eos_token_id=stop,
        pad_token_id=0,
    )
    assert found.tokens == expected[0, ids.shape[1] :].tolist()


def test_a_stop_token_at_the_last_place_counts_as_finished() -> None:
    one = policy()
    free = one.sample(PROMPTS[:1], Sampling(max_tokens=3, temperature=0))[0]
    assert not free.finished
    (found,) = one.sample(
        PROMPTS[:1], Sampling(max_tokens=3, temperature=0, stop=(free.tokens[2],))
    )
    assert found.tokens == free.tokens and found.finished


# --------------------------------------------------------------------------------------------- draw

# token 2 is the likeliest: p = 0.15, 0.3, 0.5, 0.05, out of order as they come from a model. Where
# nothing is cut off they stay in that order; else the likeliest comes first
P = torch.tensor([[0.15, 0.3, 0.5, 0.05]], dtype=torch.float64)


def drawn(uniform: float, **params: Any) -> tuple[int, float]:
    token, logprob = draw(P.log(), torch.tensor([uniform], dtype=torch.float64), Sampling(**params))
    return int(token), math.exp(float(logprob))


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        ({}, {0: 0.15, 1: 0.3, 2: 0.5, 3: 0.05}),
        ({"top_k": 2}, {2: 5 / 8, 1: 3 / 8}),
        ({"top_k": 1}, {2: 1.0}),
        ({"top_k": 9}, {2: 0.5, 1: 0.3, 0: 0.15, 3: 0.05}),
        ({"top_p": 0.4}, {2: 1.0}),
        ({"top_p": 0.7}, {2: 5 / 8, 1: 3 / 8}),
        ({"top_p": 0.9}, {2: 0.5 / 0.95, 1: 0.3 / 0.95, 0: 0.15 / 0.95}),
        ({"top_p": 0.0}, {2: 1.0}),
        # of the three that are kept, 0.5 / 0.95 is 0.53: two of them make 0.6
        ({"top_k": 3, "top_p": 0.6}, {2: 5 / 8, 1: 3 / 8}),
        # squares: 0.25, 0.09, 0.0225, 0.0025 of 0.365
        (
            {"temperature": 0.5},
            {0: 0.0225 / 0.365, 1: 0.09 / 0.365, 2: 0.25 / 0.365, 3: 0.0025 / 0.365},
        ),
        ({"temperature": 0.5, "top_p": 0.8}, {2: 25 / 34, 1: 9 / 34}),
    ],
)
def test_draw_by_hand(params: dict[str, Any], kept: dict[int, float]) -> None:
    """Just below and above every edge of the cumulative distribution, and at both ends of
    [0, 1).
    """
    edge = 0.0
    for token, p in kept.items():
        for uniform in (edge + 1e-9, edge + p - 1e-9):
            assert drawn(uniform, **params) == (token, pytest.approx(p, rel=1e-9))
        edge += p
    # [0, 1) is closed below: an uniform on an edge belongs to the token above it
    assert drawn(0.0, **params)[0] == next(iter(kept))
    assert drawn(math.nextafter(1.0, 0.0), **params)[0] == list(kept)[-1]


def test_top_p_stops_where_the_kept_tokens_have_exactly_that_share() -> None:
    """p = ½, ¼, ¼: ½ alone has a share of ½, so top-p ½ keeps it alone, and ¾ keeps two."""
    logits = torch.tensor([[2.0, 1.0, 1.0]], dtype=torch.float64) * math.log(2)
    last = torch.tensor([math.nextafter(1.0, 0.0)], dtype=torch.float64)
    for top_p, expected in ((0.5, 1.0), (math.nextafter(0.5, 1.0), 1 / 3), (0.75, 1 / 3)):
        _, logprob = draw(logits, last, Sampling(top_p=top_p))
        assert math.exp(float(logprob)) == pytest.approx(expected, rel=1e-12)


def test_an_edge_belongs_to_the_token_above_it() -> None:
    """Two tokens of exactly ½: uniforms in [0, ½) draw the first, those in [½, 1) the second; ½
    itself is the second's.
    """
    uniform = torch.tensor([0.0, 0.499, 0.5, 0.999], dtype=torch.float64)
    token, _ = draw(torch.tensor([[1.0, 1.0]]).expand(4, 2), uniform, Sampling())
    assert token.tolist() == [token[0], token[0], 1 - token[0], 1 - token[0]]


def test_rounding_never_reaches_a_token_that_was_cut_off() -> None:
    """Sums of many rounded shares end a little below 1 or above it; the last kept token takes what
    is left.
    """
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(3000, 50, generator=rng)
    token, logprob = draw(
        logits,
        torch.full((3000,), math.nextafter(1.0, 0.0), dtype=torch.float64),
        Sampling(top_k=7),
    )
    seventh = logits.topk(7).indices[:, -1]
    assert torch.equal(token, seventh)
    assert torch.isfinite(logprob).all()


def test_temperature_zero_takes_the_likeliest_whatever_the_uniform() -> None:
    assert [drawn(u, temperature=0) for u in (0.0, 0.5, 0.999)] == [(2, pytest.approx(0.5))] * 3


def test_uniforms_spread_evenly_give_every_token_its_share() -> None:
    """Of a thousand evenly spread uniforms, each token gets its probability to within one draw, in
    every row of a batch.
    """
    n = 1000
    logits = torch.randn(2, 30, generator=torch.Generator().manual_seed(0)).repeat_interleave(n, 0)
    uniform = ((torch.arange(n) + 0.5) / n).double().repeat(2)
    token, logprob = draw(logits, uniform, Sampling())
    for row in (0, 1):
        share = torch.bincount(token[row * n : (row + 1) * n], minlength=30) / n
        p: Tensor = logits[row * n].double().softmax(-1)
        assert float((share - p).abs().max()) <= 1 / n + 1e-9
        torch.testing.assert_close(
            logprob[row * n : (row + 1) * n], p.log().float()[token[row * n : (row + 1) * n]]
        )


def test_frequencies_of_samples_are_the_models_probabilities() -> None:
    """4000 first tokens from 4000 streams: χ² over the vocabulary stays below its 99.9 % bound, and
    the streams are even.
    """
    one, n = policy(), 4000
    found = one.sample([[5, 6, 7]], Sampling(max_tokens=1, n=n, seed=11))
    with torch.no_grad():
        p = (
            network("llama")(input_ids=torch.tensor([[5, 6, 7]]))
            .logits[0, -1]
            .double()
            .softmax(-1)
            .numpy()
        )
    counts = np.bincount([c.tokens[0] for c in found], minlength=V)
    rare = n * p < 5  # pooled, as the test asks
    observed, expected = (
        np.append(counts[~rare], counts[rare].sum()),
        np.append(n * p[~rare], n * p[rare].sum()),
    )
    chi2, degrees = float(((observed - expected) ** 2 / expected).sum()), len(observed) - 1
    assert degrees > 20
    # Wilson-Hilferty: the 99.9 % point of χ²
    assert chi2 < degrees * (1 - 2 / (9 * degrees) + 3.09 * math.sqrt(2 / (9 * degrees))) ** 3


@pytest.mark.parametrize(
    "wrong", [{"max_tokens": 0}, {"temperature": -0.1}, {"top_k": -1}, {"top_p": 1.5}, {"n": 0}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_completions_end_with_the_tokenizers_end_token_unless_told_otherwise(tmp_path: Any) -> None:
    """An empty `stop` runs to max_tokens; None stops where the model was taught to."""
    one = Policy.load(folder(tmp_path), device="cpu")
    prompts = [[3, 4], [5, 6, 7]]
    to_the_end = one.sample(prompts, Sampling(max_tokens=200, seed=2, stop=()))
    assert [len(c.tokens) for c in to_the_end] == [200, 200]
    end = one.tokenizer.eos_token_id
    for free, ended in zip(
        to_the_end, one.sample(prompts, Sampling(max_tokens=200, seed=2)), strict=True
    ):
        assert ended.finished
        assert ended.tokens == free.tokens[: free.tokens.index(end) + 1]


# ---------------------------------------------------------------------------------------- streaming


def test_every_token_is_told_as_it_is_drawn_and_changes_nothing() -> None:
    """Two lengths, three samples each, some of which stop early: told one by one they are the
    completions without it.
    """
    one = policy()
    params = Sampling(max_tokens=10, n=3, seed=3, stop=tuple(range(0, V, 7)))
    told: dict[tuple[int, int], list[int]] = {}
    found = one.sample(PROMPTS, params)
    assert (
        sample(
            one.network,
            PROMPTS,
            params,
            lambda i, j, token: told.setdefault((i, j), []).append(token),
        )
        == found
    )
    assert [told[i, j] for i in range(len(PROMPTS)) for j in range(3)] == [c.tokens for c in found]


def test_what_hears_the_tokens_can_end_the_sampling() -> None:
    """After the third token; the model trains on as before."""
    one, told = policy(), []
    one.network.train()

    def hear(_prompt: int, _sample: int, token: int) -> None:
        told.append(token)
        if len(told) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(one.network, PROMPTS[:1], Sampling(max_tokens=10, seed=1), hear)
    assert told == one.sample(PROMPTS[:1], Sampling(max_tokens=10, seed=1))[0].tokens[:3]
    assert one.network.training and one.network.config._attn_implementation == "posttrain_forest"


def test_a_tiny_temperature_takes_the_most_likely_token() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [0.0, -5.0, -1.0]])
    params = Sampling(temperature=5e-324)
    token, logprob = draw(logits, torch.tensor([0.99, 0.0]), params)
    assert (token.tolist(), logprob.tolist()) == ([1, 0], [0.0, 0.0])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused(value: float) -> None:
    logits = torch.tensor([[1.0, value, 2.0]])
    with pytest.raises(ModelError, match="not finite"):
        draw(logits, torch.tensor([0.5]), Sampling())


# -------------------------------------------------------------------------------------- stop texts


def completions(words: Any, told: str, stops: tuple[str, ...]) -> list[Completion]:
    """What is drawn where the network writes one text and goes on with its last token."""
    ids = words(told, add_special_tokens=False)["input_ids"]

    class Writer:
        """A cache whose network writes the text, by how many tokens were read."""

        joins, read = False, 0

        def start(self, prompts: Any) -> Tensor:
            return self.step(torch.zeros(1))

        def step(self, tokens: Tensor) -> Tensor:
            at = min(self.read, len(ids) - 1)
            self.read += 1
            return torch.nn.functional.one_hot(torch.tensor([ids[at]]), len(words)).float() * 50

        def keep(self, rows: list[int]) -> None:
            assert not rows

    params = Sampling(40, temperature=0, stop=(words.eos_token_id,), stop_texts=stops)
    request = Request(0, [0, 0], stopping_at_texts(params, words), (0,))
    scheduler = Scheduler(Writer(), 1)  # type: ignore[arg-type]
    return list(scheduler.run([request], torch.device("cpu")))


@pytest.mark.parametrize(
    ("stops", "upto"),
    [
        (("\n\n",), "Li\n\n"),  # each line break is a token of its own
        (("\n\nQ:", "."), "Li\n\nQ:"),
        (("i\n",), "Li\n"),  # it begins within a token
        (("é",), "Li\n\nQ: é"),  # two bytes, two tokens
        (("<|start|>",), "Li\n\nQ: é<|start|>"),  # a token, which text does not show
        (("nowhere",), None),
        (("",), None),
    ],
)
def test_a_completion_ends_where_a_stop_text_is_complete(
    stops: tuple[str, ...], upto: str | None
) -> None:
    words = making.tokenizer([("L", "i")])
    told = "Li\n\nQ: é<|start|>x"
    (found,) = completions(words, told, stops)
    assert found.finished is (upto is not None)
    expected = words(upto if upto is not None else told, add_special_tokens=False)["input_ids"]
    assert found.tokens[: len(expected)] == expected
    assert len(found.tokens) == (len(expected) if upto is not None else 40)


# -------------------------------------------------------------------------- continuous batching


def requests(prompts: list[list[int]], params: Sampling) -> list[Request]:
    return [Request(i, p, params) for i, p in enumerate(prompts)]


@pytest.mark.parametrize("rows", [1, 4, 64])
def test_every_prompt_is_read_once_and_every_token_but_the_last(rows: int) -> None:
    """Prefilled are the tokens of the prompts, each once: for all its samples, though some enter
    later, and for all requests of it that follow each other. Decoded is every token that was drawn,
    but the last of each completion.
    """
    params = Sampling(9, n=3, stop=tuple(range(0, V, 9)))
    prompts = [PROMPTS[0], *PROMPTS, PROMPTS[4]]
    cache = Slots(admitted(network("llama")))
    found = list(Scheduler(cache, rows).run(requests(prompts, params), torch.device("cpu")))
    assert len(found) == 21
    assert cache.prefilled == sum(map(len, PROMPTS))
    assert cache.decoded == sum(len(c.tokens) - 1 for c in found)
    if rows == 64:
        assert cache.passes == max(len(c.tokens) for c in found)


@pytest.mark.parametrize("architecture", ["llama", "bloom"])
def test_equal_prompts_are_read_once_wherever_they_stand(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches: list[Any] = []

    def recorded(kind: Any) -> Any:
        return lambda *args: caches.append(kind(*args)) or caches[-1]

    monkeypatch.setattr(sampler, "Slots", recorded(sampler.Slots))
    monkeypatch.setattr(sampler, "Grouped", recorded(sampler.Grouped))
    if architecture == "llama":  # few enough rows that equal prompts do not start together
        few = lambda cache, progress: Scheduler(cache, 3, progress=progress)  # noqa: E731
        monkeypatch.setattr(sampler, "Scheduler", few)
    one = policy(architecture)
    one.admit_sampling()
    caches.clear()
    found = one.sample([*PROMPTS, *PROMPTS[::-1]], Sampling(4, n=2, stop=()))
    assert sum(cache.prefilled for cache in caches) == sum(map(len, PROMPTS))
    assert sum(cache.decoded for cache in caches) == sum(len(c.tokens) - 1 for c in found)
    assert len(caches) == (1 if architecture == "llama" else 3)  # of prompts of three lengths


def test_a_group_that_enters_in_parts_is_drawn_as_one_that_enters_at_once() -> None:
    """Three by three: the second prompt's keys are copied over those of the first."""
    one, params = admitted(network("llama")), Sampling(7, n=5, stop=())
    drawn = []
    for rows in (3, 64):
        found = Scheduler(Slots(one), rows).run(requests(PROMPTS, params), torch.device("cpu"))
        drawn.append({(c.prompt, c.sample): c for c in found})
    assert all(same(drawn[0][key], drawn[1][key]) for key in drawn[1])


def test_the_cache_holds_no_more_than_it_may() -> None:
    """Rows times the longest one of them: 3 of 30 tokens fit into 100, and one of 150 alone."""
    cache = Slots(admitted(network("llama")))
    lengths = [20, 20, 20, 20, 140, 20]
    waiting = [
        Request(i, [3 + j % 50 for j in range(n)], Sampling(10, stop=()))
        for i, n in enumerate(lengths)
    ]
    running: list[int] = []
    real = cache.step
    cache.step = lambda tokens: running.append(len(tokens)) or real(tokens)  # type: ignore[method-assign]
    order = [c.prompt for c in Scheduler(cache, 64, 100).run(waiting, torch.device("cpu"))]
    assert order == [0, 1, 2, 3, 4, 5]
    assert running == [3] * 9 + [1] * 27


def test_who_has_finished_makes_room_at_once() -> None:
    """Two rows, and four prompts: a prompt enters in the step after one has left, so that no row is
    idle while one waits.
    """
    cache, order = Slots(admitted(network("llama"))), list[int]()
    params = [Sampling(n, stop=()) for n in (2, 6, 3, 4)]
    waiting = [Request(i, PROMPTS[i], p) for i, p in enumerate(params)]
    for completion in Scheduler(cache, 2).run(waiting, torch.device("cpu")):
        order.append(completion.prompt)
    assert order == [0, 2, 1, 3]
    assert cache.passes == 3 + 8  # two prompts at once, two later; nine tokens in the longer row


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2", "gpt_oss", "deepseek_v3"])
def test_what_is_drawn_does_not_depend_on_when_it_runs(architecture: str) -> None:
    one, params = admitted(network(architecture)), Sampling(12, n=2, stop=tuple(range(0, V, 13)))

    def drawn(rows: int, order: list[int]) -> dict[tuple[int, int], Completion]:
        every = requests(PROMPTS, params)
        scheduler = Scheduler(Slots(one), rows)
        found = scheduler.run([every[i] for i in order], torch.device("cpu"))
        return {(c.prompt, c.sample): c for c in found}

    at_once, in_turn = drawn(64, [0, 1, 2, 3, 4]), drawn(2, [4, 2, 0, 1, 3])
    for key, completion in at_once.items():
        assert in_turn[key].tokens == completion.tokens
        assert in_turn[key].logprobs == pytest.approx(completion.logprobs, abs=1e-5)


def test_each_request_is_drawn_by_its_own_parameters() -> None:
    one = admitted(network("llama"))
    kinds = [
        Sampling(8, temperature=0, stop=()),
        Sampling(8, stop=()),
        Sampling(8, top_k=1, stop=()),
    ]
    every = [Request(i, PROMPTS[0], kind, (0, 0)) for i, kind in enumerate(kinds)]
    together = {c.prompt: c for c in Scheduler(Slots(one), 8).run(every, torch.device("cpu"))}
    assert together[0].tokens == together[2].tokens != together[1].tokens
    for request in every:
        (alone,) = Scheduler(Slots(one), 8).run([request], torch.device("cpu"))
        assert alone.tokens == together[request.number].tokens


def test_requests_are_taken_when_there_is_room_and_may_follow_from_what_was_drawn() -> None:
    """Each prompt is the answer to the one before."""
    one, asked = policy(), list[list[int]]()
    answers: dict[int, list[int]] = {}

    def conversation() -> Iterator[Request]:
        for i in range(4):
            asked.append(answers[i - 1] if i else PROMPTS[0])
            yield Request(i, asked[-1], Sampling(5, temperature=0, stop=()))

    requests, whole = conversation(), Scheduler(Slots(one.network), rows=1)
    for completion in whole.run(requests, torch.device("cpu")):
        answers[completion.prompt] = completion.tokens
    for prompt, answer in zip(asked, answers.values(), strict=True):
        (alone,) = one.sample([prompt], Sampling(5, temperature=0, stop=()))
        assert alone.tokens == answer


@pytest.mark.parametrize("architecture", ["llama", "bloom"])
def test_a_stream_gives_each_completion_as_it_ends(architecture: str) -> None:
    """Short ones first, and between them the policy scores as it does alone, in training mode."""
    one, params = policy(architecture), Sampling(12, stop=())
    one.network.train()
    forest = collate([tree_of(seq([5, 6, 7]), seq([5, 8]))])
    expected = one.score([forest])[0].logprob
    sampled = one.sample(PROMPTS[:3], params)
    one.network.train()
    asked = [Request(i, PROMPTS[i], replace(params, max_tokens=12 - 4 * i)) for i in range(3)]
    found = []
    for completion in one.stream(asked):
        found.append(completion)
        assert one.network.training
        assert torch.equal(one.score([forest])[0].logprob, expected)
        one.network.train()
    if architecture == "llama":
        assert [c.prompt for c in found] == [2, 1, 0]
    for completion in found:
        length = 12 - 4 * completion.prompt
        assert completion.tokens == sampled[completion.prompt].tokens[:length]


def test_a_stream_ends_where_the_policy_was_taught_to(tmp_path: Any) -> None:
    """End tokens and the last position are found as `sample` finds them."""
    one = Policy.load(folder(tmp_path), device="cpu")
    params = Sampling(max_tokens=10**6, seed=2)
    expected = one.sample([[3, 4], [5, 6, 7]], params)
    found = one.stream(Request(i, p, params) for i, p in enumerate([[3, 4], [5, 6, 7]]))
    assert sorted(found, key=lambda c: c.prompt) == expected


def test_new_weights_never_meet_old_keys() -> None:
    """A new call reads with the new weights; one that goes on after a change is refused."""
    one, params = policy(), Sampling(6, temperature=0, stop=())
    before = one.sample(PROMPTS, params)
    going = one.stream(
        Request(i, p, replace(params, max_tokens=2 + i)) for i, p in enumerate(PROMPTS)
    )
    next(going)
    with torch.no_grad():
        for parameter in one.network.parameters():
            parameter.mul_(-1.5)
    changed = Policy(admitted(one.network.inner), None).sample(PROMPTS, params)
    assert one.sample(PROMPTS, params) == changed != before
    with pytest.raises(ModelError, match="the weights have changed"):
        list(going)
