"""What cannot be trained is refused in one sentence with its cure, before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from posttrain.core.errors import ModelError
from posttrain.engine.load import load_network, resolve
from posttrain.engine.policy import Policy
from tests.tiny import folder, random_trees


def described(path: Path, config: str, architecture: str, **more: Any) -> Path:
    """A folder with the default config of a class, and weights that nobody will read."""
    path.mkdir(exist_ok=True)
    known = getattr(transformers, config)(**more.pop("settings", {})).to_dict()
    whole = {**known, "architectures": [architecture], **more}
    (path / "config.json").write_text(json.dumps(whole, default=str))
    (path / "model.safetensors").touch()
    return path


def refusal(path: Path | str) -> tuple[str, str]:
    """What is said, and the cure: a sentence each."""
    with pytest.raises(ModelError) as caught:
        resolve(str(path))
    what, cure = caught.value.what, caught.value.cure
    assert "\n" not in what + cure and len(what) < 250
    return what, cure


@pytest.mark.parametrize("family", ["Qwen3VL", "Mistral3", "Llava", "Qwen2Audio", "Idefics3"])
def test_what_reads_more_than_text_and_has_no_class_for_text(family: str, tmp_path: Path) -> None:
    name = f"{family}ForConditionalGeneration"
    what, cure = refusal(described(tmp_path / "m", f"{family}Config", name))
    assert f"is a {name}, which reads more than text" in what and "text-only model" in cure


@pytest.mark.parametrize(
    ("config", "architecture", "says"),
    [
        ("BertConfig", "BertForMaskedLM", "an encoder, which reads text in both directions"),
        ("ModernBertConfig", "ModernBertForMaskedLM", "an encoder, which"),
        ("T5Config", "T5ForConditionalGeneration", "an encoder and a decoder"),
        ("BartConfig", "BartForConditionalGeneration", "an encoder and a decoder"),
        ("WhisperConfig", "WhisperForConditionalGeneration", "an encoder and a decoder"),
        ("ViTConfig", "ViTModel", "is no model of language"),
    ],
)
def test_what_is_no_decoder(config: str, architecture: str, says: str, tmp_path: Path) -> None:
    what, cure = refusal(described(tmp_path / "m", config, architecture))
    assert architecture in what and says in what and "decoder-only" in cure


@pytest.mark.parametrize(
    ("config", "architecture", "settings"),
    [
        ("BertConfig", "BertLMHeadModel", {"is_decoder": True}),
        ("Qwen3_5Config", "Qwen3_5ForConditionalGeneration", {}),
        ("Gemma3Config", "Gemma3ForConditionalGeneration", {}),
        ("LlamaConfig", "LlamaForSequenceClassification", {}),
    ],
)
def test_what_may_be_a_decoder_is_left_to_the_probe(
    config: str, architecture: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    path = described(tmp_path / "m", config, architecture, settings=settings)
    assert resolve(str(path)) == path


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_quantised_weights(method: str, tmp_path: Path) -> None:
    quantised = {"quantization_config": {"quant_method": method, "bits": 4}}
    what, cure = refusal(described(tmp_path / "m", "LlamaConfig", "LlamaForCausalLM", **quantised))
    assert f"quantised with {method}" in what and "16 or 32 bits" in cure


def test_an_adapter_a_run_and_a_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    what, cure = refusal(tmp_path)
    assert "is an adapter" in what and "merge_and_unload" in cure
    run = tmp_path / "run"
    folder(run / "model")
    assert refusal(run)[1] == f"give {run / 'model'}"
    gguf = tmp_path / "llama"
    gguf.mkdir()
    (gguf / "llama.gguf").touch()
    for path in (gguf, gguf / "llama.gguf", "no/such.gguf"):
        what, cure = refusal(path)
        assert "is a GGUF model" in what and "safetensors" in cure


@pytest.mark.parametrize("shards", [1, 2])
def test_pickled_weights_are_converted_by_the_command_in_the_message(
    shards: int, tmp_path: Path
) -> None:
    """Tied weights among them, which share their memory; then the model loads as it was."""
    base = folder(tmp_path / "m", tie_word_embeddings=True)
    weights = load_file(base / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    expected = Policy.load(base, device="cpu").score
    (base / "model.safetensors").unlink()
    names = sorted(weights)
    files = ["pytorch_model.bin"]
    if shards > 1:
        files = [f"pytorch_model-0000{i + 1}-of-00002.bin" for i in range(2)]
    owners = {name: files[i % shards] for i, name in enumerate(names)}
    for file in files:
        torch.save({n: weights[n] for n in names if owners[n] == file}, base / file)
    if shards > 1:
        index = {"metadata": {}, "weight_map": owners}
        (base / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    what, cure = refusal(base)
    assert "pytorch_model.bin alone" in what and "weights_only=True" in cure
    command = cure.partition("safetensors: ")[2]
    assert command.startswith('python -c "') and command.endswith('"')
    exec(command.removeprefix('python -c "').removesuffix('"'), {})
    again = Policy.load(base, device="cpu")
    forests = again.pack(random_trees(1), 1000)
    found, before = again.score(forests)[0].logprob, expected(forests)[0].logprob
    assert torch.equal(found, before)


def test_names_that_lead_nowhere_are_explained_without_class_names(tmp_path: Path) -> None:
    for name, says in (("base", "cannot be reached"), ("no such/na me", "no such names")):
        what, cure = refusal(name)
        assert f"no folder {name!r} here" in what and says in what
        assert "Error" not in what and cure
    (tmp_path / "config.json").write_text("{")
    assert "cannot read" in refusal(tmp_path)[0]


def test_what_transformers_says_at_length_is_cut(tmp_path: Path) -> None:
    base = folder(tmp_path / "m")
    (base / "model.safetensors").write_bytes(b"x" * 50)
    with pytest.raises(ModelError, match="cannot load") as caught:
        load_network(base, "cpu")
    assert len(caught.value.what) < 400 and "\n" not in caught.value.what
