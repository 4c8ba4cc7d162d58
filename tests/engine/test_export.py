"""What was in a model's folder is in the result, and what can fail in the end fails before the
first step.
"""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
)

from posttrain.core.errors import CheckpointError, ModelError, PosttrainError
from posttrain.data.forest import collate
from posttrain.engine import export
from posttrain.engine.policy import Policy
from posttrain.engine.reward import RewardModel
from posttrain.engine.settings import LoraSettings, OptimiserSettings
from posttrain.methods.supervised import METHODS
from tests.tiny import CONFIGS, folder, random_trees

BATCH = [collate(random_trees(8))]
LORA = LoraSettings(rank=2)


def trained(one: Policy) -> Policy:
    one.train_with(OptimiserSettings(learning_rate=0.03))
    one.forward_backward(BATCH, METHODS["nll"])
    one.step()
    return one


def every(path: Path) -> dict[str, Tensor]:
    """All tensors of a folder."""
    return {k: v for file in sorted(path.glob("*.safetensors")) for k, v in load_file(file).items()}


# -------------------------------------------------------------------------------- generation config

MINE = {"eos_token_id": [2, 5], "pad_token_id": 0}


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize(
    ("odd", "left"),
    [
        ({"do_sample": False, "temperature": 0.9, "top_p": 0.6}, {"temperature": None}),
        ({"top_k": 20, "min_p": 0.1}, {"min_p": None}),
        ({"length_penalty": 2.0, "early_stopping": True}, {"early_stopping": None}),
        ({"output_scores": True}, {"output_scores": None}),
    ],
)
def test_a_generation_config_that_contradicts_itself_is_mended_and_that_is_said(
    odd: dict[str, Any], left: dict[str, Any], lora: LoraSettings | None, tmp_path: Path
) -> None:
    base = folder(tmp_path / "base")
    (base / "generation_config.json").write_text(json.dumps({**MINE, **odd}))
    one, told = Policy.load(base, device="cpu", lora=lora), list[str]()
    one.tell = told.append
    one.set_chat("{{ messages }}", "w7")
    one.save(tmp_path / "result")
    (sentence,) = told
    for name, value in odd.items():
        assert (f"{name} {value}" in sentence) == (name != "do_sample")
    written = GenerationConfig.from_pretrained(tmp_path / "result")
    assert {name: getattr(written, name) for name in left} == left
    assert written.eos_token_id == [2, 5, 7] and written.pad_token_id == 0
    AutoModelForCausalLM.from_pretrained(tmp_path / "result").save_pretrained(tmp_path / "again")


def test_a_generation_config_that_goes_together_stays_and_nothing_is_said(tmp_path: Path) -> None:
    base = folder(tmp_path / "base")
    asked = {**MINE, "do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20}
    (base / "generation_config.json").write_text(json.dumps(asked))
    one = Policy.load(base, device="cpu")
    one.tell = pytest.fail
    assert one.rehearse(tmp_path) == []
    one.save(tmp_path / "result")
    written = GenerationConfig.from_pretrained(tmp_path / "result").to_diff_dict()
    assert asked.items() <= written.items()


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"num_return_sequences": 3}', '{"early_stopping": "x"}']
)
def test_a_generation_config_that_cannot_be_read_is_named(text: str, tmp_path: Path) -> None:
    """transformers passes over the first, and blames the others on the model."""
    base = folder(tmp_path)
    (base / "generation_config.json").write_text(text)
    with pytest.raises(ModelError, match=r"generation_config\.json cannot be used") as caught:
        Policy.load(base, device="cpu")
    assert caught.value.cure == "correct that file, or delete it"


# ----------------------------------------------------------------------------------- the rehearsal


def test_a_rehearsal_says_what_changes_and_leaves_nothing(tmp_path: Path) -> None:
    base, out = folder(tmp_path / "base"), tmp_path / "out"
    (base / "generation_config.json").write_text(json.dumps({**MINE, "temperature": 0.9}))
    out.mkdir()
    for one in (
        Policy.load(base, device="cpu", lora=LORA),
        RewardModel.load(base, device="cpu", lora=LORA),
    ):
        notes = one.rehearse(out)
        assert list(out.iterdir()) == []
        one.tell = pytest.fail  # it was said, and is mended
        one.save(out / "model")
        shutil.rmtree(out / "model")
        assert len(notes) == isinstance(one, Policy)  # a reward model generates nothing


def test_what_cannot_be_written_fails_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Policy.load(folder(tmp_path / "base"), device="cpu")
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(one.network.inner.config, "odd", object(), raising=False)
    with pytest.raises(ModelError, match="cannot be written") as caught:
        one.rehearse(out)
    assert "run the same command again" in caught.value.cure
    with pytest.raises(ModelError, match="cannot be written"):
        one.save(out / "model")
    monkeypatch.undo()
    one.tokenizer.init_kwargs["odd"] = object()
    with pytest.raises(ModelError, match="cannot be written"):
        one.rehearse(out)
    assert list(out.glob(".partial*")) == []


def test_a_disk_without_room_for_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Policy.load(folder(tmp_path / "base"), device="cpu")
    needed = sum(p.nbytes for p in one.network.inner.parameters())
    usage = namedtuple("usage", "free")
    for free, fits in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(export.shutil, "disk_usage", lambda path, free=free: usage(free))
        if fits:
            one.rehearse(tmp_path)
            continue
        with pytest.raises(CheckpointError, match="GiB left") as caught:
            one.rehearse(tmp_path)
        assert "run the same command again" in caught.value.cure


# ------------------------------------------------------------------------------ what is not trained


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that reads images as well, in bfloat16 and several files, with a head that predicts
    several tokens, which no class of transformers takes, and a processor.
    """
    path = folder(tmp_path_factory.mktemp("larger"), "llama")  # the tokenizer is wanted
    text = CONFIGS["qwen3_5"](vocab_size=64).to_dict()  # its tokenizer adds a token
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": 32,
        "patch_size": 4,
        "num_position_embeddings": 16,
    }
    (path / "model.safetensors").unlink()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = Qwen3_5ForConditionalGeneration(
            Qwen3_5Config(text_config=text, vision_config=vision)
        )
    whole.to(torch.bfloat16).save_pretrained(path, max_shard_size="60KB")
    head = {"mtp.fc.weight": torch.randn(4, 4).bfloat16(), "mtp.lm_head.weight": torch.ones(3)}
    save_file(head, path / "mtp.safetensors", {"format": "pt"})
    index = json.loads((path / export.INDEX).read_text())
    index["weight_map"] |= dict.fromkeys(head, "mtp.safetensors")
    (path / export.INDEX).write_text(json.dumps(index))
    (path / "preprocessor_config.json").write_text('{"patch_size": 4}')
    (path / "LICENSE").write_text("as is")
    return path


@pytest.mark.parametrize("lora", [None, LORA])
def test_vision_and_prediction_heads_stay_as_they_are(
    larger: Path, lora: LoraSettings | None, tmp_path: Path
) -> None:
    """Every tensor of the folder is in the result, those that text does not touch bit by bit; the
    class of the whole loads it, and so do we, again.
    """
    before = every(larger)
    one, result = Policy.load(larger, device="cpu", lora=lora), tmp_path / "result"
    (note,) = one.rehearse(tmp_path)
    assert "23 tensors that text does not touch (model.visual, mtp.fc, mtp.lm_head)" in note
    trained(one).save(result)
    after = every(result)
    assert after.keys() == before.keys()
    kept = [name for name in before if name.startswith(("model.visual", "mtp"))]
    assert len(kept) == 23
    for name in kept:
        assert after[name].dtype == before[name].dtype and torch.equal(after[name], before[name])
    moved = [n for n in before if n not in kept and not torch.equal(after[n], before[n].float())]
    assert any("lm_head" in n or "q_proj" in n for n in moved)
    assert all(".language_model." in n or n == "lm_head.weight" for n in moved)
    config = json.loads((result / "config.json").read_text())
    was = json.loads((larger / "config.json").read_text())
    for part in (was, was["text_config"]):
        part |= {"dtype": "float32"} if "dtype" in part else {}
    assert config == was
    for name in ("preprocessor_config.json", "LICENSE"):
        assert (result / name).read_bytes() == (larger / name).read_bytes()
    found, info = Qwen3_5ForConditionalGeneration.from_pretrained(result, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        logits = found(input_ids=ids, use_cache=False).logits
    again = Policy.load(result, device="cpu")
    torch.testing.assert_close(
        again.network.inner(input_ids=ids, use_cache=False).logits.detach(), logits
    )
    again.save(tmp_path / "second")
    second = every(tmp_path / "second")
    assert all(torch.equal(second[name], after[name]) for name in after)


def test_a_reward_model_says_what_it_is_without(larger: Path, tmp_path: Path) -> None:
    (note,) = RewardModel.load(larger, device="cpu").rehearse(tmp_path)
    assert "2 tensors" in note and "(mtp.fc, mtp.lm_head)" in note
    assert "ForSequenceClassification, is without" in note


def test_a_tied_head_in_the_folder_is_no_loss_and_is_not_copied(tmp_path: Path) -> None:
    """It would be the head from before training."""
    base = folder(tmp_path / "base", tie_word_embeddings=True)
    weights = load_file(base / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    one = Policy.load(base, device="cpu")
    assert one.rehearse(tmp_path) == []
    trained(one).save(tmp_path / "result")
    assert "lm_head.weight" not in every(tmp_path / "result")


def test_tensors_with_other_names_in_the_result_are_no_loss(tmp_path: Path) -> None:
    """GPT-2 was published without the prefix of its trunk, and with the buffers of its masks."""
    base = folder(tmp_path / "base", "gpt2")
    weights = load_file(base / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    assert bare.keys().isdisjoint(weights)
    save_file(bare, base / "model.safetensors", {"format": "pt"})
    assert Policy.load(base, device="cpu").rehearse(tmp_path) == []
    bare["h.0.attn.bias"] = torch.ones(1, 1, 4, 4)
    save_file(bare, base / "model.safetensors", {"format": "pt"})
    one = Policy.load(base, device="cpu")
    one.save(tmp_path / "result")
    assert every(tmp_path / "result").keys() == {*weights, "h.0.attn.bias"}
    Policy.load(tmp_path / "result", device="cpu")


def test_the_same_weights_in_another_layout_are_left_out_and_that_is_said(tmp_path: Path) -> None:
    """Copied, they would be the model from before training."""
    base = folder(tmp_path / "base")
    save_file({"layers.0.wq": torch.ones(3)}, base / "consolidated.safetensors")
    one = Policy.load(base, device="cpu")
    (note,) = one.rehearse(tmp_path)
    assert note.startswith("consolidated.safetensors in") and "nor of the result" in note
    one.save(tmp_path / "result")
    assert "layers.0.wq" not in every(tmp_path / "result")


def test_a_part_whose_tensors_have_other_names_is_refused(larger: Path, tmp_path: Path) -> None:
    one = Policy.load(larger, device="cpu")
    one.network.inner._weight_conversions = []
    with pytest.raises(PosttrainError, match="cannot be put back into it") as caught:
        one.rehearse(tmp_path)
    assert "AutoModelForCausalLM" in caught.value.cure
