"""Sampling is admitted by a probe: what a cache gets wrong is drawn in another way, or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from posttrain.core.errors import ModelError
from posttrain.engine import sampling_probe
from posttrain.engine.admission import admitted
from posttrain.engine.modes import Decoding
from posttrain.engine.policy import Policy
from posttrain.engine.sampler import Sampling
from posttrain.engine.sampler.cache import Decode
from posttrain.engine.sampling_probe import decoding
from tests.engine.test_sampler import PROMPTS, scored
from tests.tiny import network, policy


def agreed(one: Policy, prompts: list[list[int]], tokens: int = 10) -> None:
    """What is drawn has the trainer's log-probabilities."""
    found = one.sample(prompts, Sampling(max_tokens=tokens, n=2, stop=()))
    drawn = [lp for completion in found for lp in completion.logprobs]
    assert drawn == pytest.approx(scored(one, prompts, found, 1.0), abs=1e-4)


def test_most_models_are_sampled_with_a_cache() -> None:
    """Those that run as forests in slots, the others with transformers' own cache."""
    for architecture in ("llama", "gpt2", "gpt_oss"):
        assert decoding(admitted(network(architecture))) == Decoding("slots")
    for architecture in ("qwen3_5", "bloom"):
        assert decoding(admitted(network(architecture))) == Decoding("cache")


def test_a_model_that_forgets_where_it_is_is_told() -> None:
    """Bamba begins at position 0 with every token unless its position is given."""
    one = policy("bamba")
    agreed(one, PROMPTS)
    assert one.network.decoding == Decoding("positions")
    one.network.decoding = Decoding("cache")
    with pytest.raises(AssertionError):
        agreed(one, PROMPTS)


def _is_cached(kwargs: dict[str, Any]) -> bool:
    return bool(kwargs.get("past_key_values")) or isinstance(kwargs.get("attend"), Decode)


class Forgetful(LlamaForCausalLM):
    """With a cache of either kind, its attention is a tenth weaker."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.self_attn.register_forward_hook(
                lambda module, args, kwargs, out: (
                    (0.9 * out[0], *out[1:]) if _is_cached(kwargs) else out
                ),
                with_kwargs=True,
            )


def test_a_cache_that_is_off_is_not_used() -> None:
    """And that is said once, with how far off it was."""
    net = network("llama", initializer_range=0.2)
    made = Forgetful(net.config).eval()
    made.load_state_dict(net.state_dict())
    one, told = Policy(admitted(made), None), list[str]()
    one.tell = told.append
    agreed(one, PROMPTS)
    agreed(one, PROMPTS[:1])
    (sentence,) = told
    assert one.network.decoding is not None and one.network.decoding.way == "whole"
    assert sentence.startswith("Forgetful: completions drawn with a key-value cache are off by")
    assert "without a cache" in sentence and "slow" in sentence


class Careless(LlamaForCausalLM):
    """With keys in slots, its attention is a tenth weaker; transformers' cache is right."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.self_attn.register_forward_hook(
                lambda module, args, kwargs, out: (
                    (0.9 * out[0], *out[1:]) if isinstance(kwargs.get("attend"), Decode) else out
                ),
                with_kwargs=True,
            )


def test_slots_that_are_off_are_not_used() -> None:
    """The next way is, and that is said."""
    net = network("llama", initializer_range=0.2)
    made = Careless(net.config).eval()
    made.load_state_dict(net.state_dict())
    one, told = Policy(admitted(made), None), list[str]()
    one.tell = told.append
    agreed(one, PROMPTS)
    (sentence,) = told
    assert one.network.mode == "forest" and one.network.decoding is not None
    assert one.network.decoding.way == "cache"
    assert sentence.startswith("Careless: completions drawn with keys and values in slots are off")
    assert "a key-value cache, those of one length together" in sentence


def test_beyond_a_switch_of_frequencies_a_cache_is_of_no_use() -> None:
    """longrope's keys from before its 24th token have other frequencies. A completion that passes
    it is drawn without a cache: every token has the log-probability that all before it, alone,
    give it. Those before and beyond it are drawn with a cache.
    """
    one = policy("longrope")
    assert one.admit_sampling() == ()
    assert one.network.decoding == Decoding("cache", turn=24)
    assert [one.network.decoding.over(n, 8) for n in (16, 17, 24, 25)] == [
        "cache",
        "whole",
        "whole",
        "cache",
    ]
    for length in (4, 30):
        agreed(one, [list(range(3, 3 + length))])
    prompt = list(range(3, 23))
    (completion,) = one.sample([prompt], Sampling(max_tokens=10, stop=()))
    stock = network("longrope", attention="eager")
    for i, (token, logprob) in enumerate(zip(completion.tokens, completion.logprobs, strict=True)):
        before = torch.tensor([[*prompt, *completion.tokens[:i]]])
        logits = stock(input_ids=before, use_cache=False).logits[0, -1].detach()
        assert logprob == pytest.approx(float(logits.log_softmax(-1)[token]), abs=1e-4)


@pytest.mark.parametrize("architecture", ["minimax", "mamba"])
def test_a_cache_of_its_own_kind_is_refused_with_a_cure(architecture: str) -> None:
    with pytest.raises(ModelError, match="cannot be sampled: it keeps its state") as caught:
        policy(architecture).sample(PROMPTS, Sampling(max_tokens=2))
    assert "another model" in caught.value.cure and "\n" not in caught.value.what


def test_a_config_is_probed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    probed: list[Any] = []
    real = sampling_probe._probe
    monkeypatch.setattr(sampling_probe, "_DECODINGS", {})
    monkeypatch.setattr(sampling_probe, "_probe", lambda net: probed.append(1) or real(net))
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    for seed in (0, 1):
        one = Policy(admitted(network("llama", seed=seed)), None)
        one.sample(PROMPTS[:1], Sampling(max_tokens=1))
        one.sample(PROMPTS[:1], Sampling(max_tokens=1))
    assert len(probed) == 1 and torch.equal(torch.rand(2), expected)
    one.score([])  # scoring needs no probe of sampling
    Policy(admitted(network("llama", num_key_value_heads=4)), None).score([])
    assert len(probed) == 1
