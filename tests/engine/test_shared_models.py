"""Real models and tokenizers of the shared data folder beside the checkout; skipped, with the
reason, where there is none.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

import posttrain
from posttrain.data.forest import Sequence, Tree, forests
from posttrain.engine.policy import Policy

SHARED = (Path(__file__).parents[2] / ".." / "shared" / "data").resolve()
pytestmark = pytest.mark.skipif(
    not SHARED.is_dir(), reason=f"there is no shared data folder {SHARED}"
)

STORIES = [
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park.",
    "Once upon a time, there was a big dog. The dog was very happy.",
    "Tom and his mom went to the shop to buy a red ball.",
]


def given(path: str) -> Path:
    """A file or folder of the shared data, or a skip that names what is missing."""
    if not (SHARED / path).exists():
        pytest.skip(f"the shared data folder has no {path}")
    return SHARED / path


@torch.no_grad()
def plain_logprobs(network: Any, ids: list[int]) -> torch.Tensor:
    """What plain transformers says of each token after the first."""
    logits = network(torch.tensor([ids])).logits[0, :-1]
    return logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


def sequence(tokens: torch.Tensor) -> Sequence:
    return Sequence(tokens.numpy(), torch.ones(len(tokens), dtype=torch.bool).numpy())


def logprobs(policy: Policy, texts: list[list[int]]) -> torch.Tensor:
    """The same from the policy, everything packed into one forest."""
    (forest,) = forests([Tree((sequence(torch.tensor(ids)),)) for ids in texts], 4096)
    return policy.score([forest])[0].logprob


def test_stories260k_is_scored_as_plain_transformers_scores_it() -> None:
    folder = given("models/stories260K")
    policy = Policy.load(folder, device="cpu")
    assert policy.network.mode == "forest"
    plain = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    )
    texts = AutoTokenizer.from_pretrained(folder)(STORIES)["input_ids"]
    expected = torch.cat([plain_logprobs(plain, ids) for ids in texts])
    assert float(expected.mean()) > -2, (
        "the model must know its own stories; otherwise the weights were not read"
    )
    torch.testing.assert_close(logprobs(policy, texts), expected, rtol=0, atol=1e-5)


def test_base_28m_is_admitted_as_forest() -> None:
    """Sharded, tied, stored in bfloat16; loaded in float32 and scored as plain transformers scores
    it.
    """
    folder = given("models/base-28m")
    policy = Policy.load(folder, device="cpu")
    assert (policy.network.admission.mode, policy.network.admission.reasons) == ("forest", ())
    assert policy.network.admission.deviation < 1e-4
    network = policy.network.inner
    assert (
        sum(p.numel() for p in network.parameters())
        == json.loads((folder / "forge.json").read_text())["params"]
    )
    assert network.get_output_embeddings().weight is network.get_input_embeddings().weight
    plain = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    )
    texts = policy.tokenizer(STORIES)["input_ids"]
    expected = torch.cat([plain_logprobs(plain, ids) for ids in texts])
    torch.testing.assert_close(logprobs(policy, texts), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox_20b", "dolma2_100k"])
def test_a_step_with_a_known_tokenizer_is_exported_whole(name: str, tmp_path: Path) -> None:
    """A random model of that vocabulary, sharded, tied and in bfloat16: one step of sft, and plain
    transformers reads the weights the step left, and the same tokens.
    """
    base, out = tmp_path / "base", tmp_path / "run"
    with gzip.open(given(f"tokenizers/{name}/tokenizer.json.gz"), "rt") as file:
        fast = Tokenizer.from_str(file.read())
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=fast, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )
    torch.manual_seed(0)
    network = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            initializer_range=0.1,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=None,
            bos_token_id=None,
        )
    )
    network.to(torch.bfloat16).save_pretrained(base, max_shard_size="20KB")
    tokenizer.save_pretrained(base)
    assert len(list(base.glob("*.safetensors"))) > 2
    data = tmp_path / "rows.jsonl"
    data.write_text(
        "".join(json.dumps({"prompt": f"{text}\n", "completion": text}) + "\n" for text in STORIES)
    )

    outcome = posttrain.sft(
        model=base,
        data=data,
        out=out,
        steps=1,
        learning_rate=1e-2,
        warmup=0.0,
        device="cpu",
        quiet=True,
    )

    exported = AutoModelForCausalLM.from_pretrained(outcome.model, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(outcome.model)(STORIES[0])["input_ids"]
    assert ids == tokenizer(STORIES[0])["input_ids"]
    expected = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = plain_logprobs(expected, ids)
    trained = load_file(out / "checkpoints" / "step-00000001" / "weights.safetensors")
    missing, unexpected = expected.load_state_dict(trained, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], []), (
        "everything but the tied head was trained"
    )
    after = plain_logprobs(expected, ids)
    torch.testing.assert_close(plain_logprobs(exported, ids), after, rtol=0, atol=0)
    assert float((after - before).mean()) > 0.1, "one step must have made the text more likely"
    torch.testing.assert_close(
        logprobs(Policy.load(outcome.model, device="cpu"), [ids]), after, rtol=0, atol=1e-5
    )
