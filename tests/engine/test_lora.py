"""Adapters: nothing at first, alone in being trained, and the same model merged, saved, or loaded
by plain peft.
"""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from posttrain.core.errors import ConfigError, ModelError
from posttrain.data.forest import collate
from posttrain.engine.load import digest
from posttrain.engine.lora import attach, merged
from posttrain.engine.policy import Policy
from posttrain.engine.settings import LoraSettings, OptimiserSettings
from posttrain.methods.supervised import METHODS, neftune
from tests.tiny import distance, folder, network, parameter_gradients, random_trees

LORA = LoraSettings(rank=4, alpha=6)
BATCH = [collate(random_trees(8))]


@pytest.fixture(params=["llama", "gpt2"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A model folder. GPT-2 keeps its matrices the other way round and ties its head to its
    embedding.
    """
    return folder(tmp_path / "base", request.param)


def adapted(base: Path, **more: Any) -> Policy:
    return Policy.load(base, device="cpu", lora=LORA, **more)


def trained(base: Path) -> Policy:
    """A policy whose adapters have moved far enough to matter."""
    one = adapted(base)
    one.train_with(OptimiserSettings(learning_rate=0.03))
    for _ in range(3):
        one.forward_backward(BATCH, METHODS["nll"])
        one.step()
    return one


@torch.no_grad()
def logits(network: Any) -> Tensor:
    return network(input_ids=torch.arange(3, 20)[None], use_cache=False).logits


def test_fresh_adapters_change_nothing(base: Path) -> None:
    """B is zero, so the first scores are the base's, bit for bit: the policy's own reference."""
    (plain,), (fresh,) = Policy.load(base, device="cpu").score(BATCH), adapted(base).score(BATCH)
    assert torch.equal(fresh.logprob, plain.logprob)


def test_adapters_follow_their_seed(base: Path) -> None:
    def a(seed: int) -> dict[str, Tensor]:
        return {
            k: v
            for k, v in adapted(base, seed=seed).network.inner.state_dict().items()
            if "lora_A" in k
        }

    torch.manual_seed(5)
    first = a(1)
    torch.manual_seed(6)
    again, other = a(1), a(2)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not any(torch.equal(first[k], other[k]) for k in first)


def test_only_adapters_train(base: Path) -> None:
    """Every other tensor keeps its bits through three steps; all adapters move, and the head gets
    none.
    """
    one = adapted(base)
    before = {k: v.clone() for k, v in one.network.inner.state_dict().items()}
    optimiser = one.train_with(OptimiserSettings(learning_rate=0.03))
    assert optimiser.settings.learning_rate == 0.03
    for _ in range(3):
        one.forward_backward(BATCH, METHODS["nll"])
        one.step()
    after = one.network.inner.state_dict()
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    assert moved == {k for k in before if ".lora_" in k}
    assert moved == set(optimiser.weights())
    assert moved and not any("lm_head" in k for k in moved)


def test_the_rate_of_adapters_is_ten_times_that_of_whole_models(base: Path) -> None:
    assert adapted(base).train_with(OptimiserSettings()).settings.learning_rate == 2e-4
    assert (
        Policy.load(base, device="cpu").train_with(OptimiserSettings()).settings.learning_rate
        == 2e-5
    )


def test_a_saved_policy_is_the_merged_model_in_plain_transformers(
    base: Path, tmp_path: Path
) -> None:
    """W + (α/r)·B·A in every adapted matrix: the folder needs neither peft nor us, and the policy
    itself keeps its adapters.
    """
    one = trained(base)
    scores = one.score(BATCH)[0].logprob
    one.save(tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    untouched = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with one.network.stock_attention():
        expected = logits(one.network.inner.eval())
    torch.testing.assert_close(logits(plain.eval()), expected, rtol=0, atol=1e-5)
    assert float((logits(untouched.eval()) - expected).abs().max()) > 0.1
    assert plain.state_dict().keys() == untouched.state_dict().keys()
    assert torch.equal(one.score(BATCH)[0].logprob, scores)
    again = Policy.load(tmp_path / "merged", device="cpu").score(BATCH)[0].logprob
    torch.testing.assert_close(again, scores, rtol=0, atol=1e-5)


def test_merging_by_hand(base: Path) -> None:
    """One matrix, its adapters set to numbers: W + 6/4 · B·A, transposed where the layer keeps its
    matrix so.
    """
    one = adapted(base)
    name, layer = next((n, m) for n, m in one.network.inner.named_modules() if hasattr(m, "lora_A"))
    with torch.no_grad():
        for p in (layer.lora_A["default"].weight, layer.lora_B["default"].weight):
            p.copy_(torch.linspace(-1, 1, p.numel()).view_as(p))
    delta = 1.5 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    weight = layer.base_layer.weight
    expected = weight + (delta.T if "attn.c_attn" in name else delta)
    torch.testing.assert_close(merged(one.network.inner)[f"{name}.weight"], expected)


# peft asks transformers by its old name
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_the_adapter_folder_belongs_to_plain_peft(base: Path, tmp_path: Path) -> None:
    """peft loads it on the base by itself, and `base.json` says by digest which base that is."""
    one = trained(base)
    one.save_adapter(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "base.json").read_text()) == {
        "base": str(base),
        "base_sha256": digest(base),
    }
    plain = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), tmp_path / "adapter"
    )
    with one.network.stock_attention():
        torch.testing.assert_close(
            logits(plain.eval()), logits(one.network.inner.eval()), rtol=0, atol=1e-6
        )


def test_a_target_that_is_no_module_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--lora-targets q_prj: ") as caught:
        Policy.load(folder(tmp_path), device="cpu", lora=LoraSettings(targets=("q_prj",)))
    assert "q_proj" in caught.value.cure


def test_named_targets_alone_are_adapted(tmp_path: Path) -> None:
    one = Policy.load(
        folder(tmp_path), device="cpu", lora=LoraSettings(rank=2, targets=("q_proj", "v_proj"))
    )
    found = {n.split(".")[-1] for n, m in one.network.inner.named_modules() if hasattr(m, "lora_A")}
    assert found == {"q_proj", "v_proj"}


@pytest.mark.parametrize("architecture", ["llama", "qwen3_5"])
def test_adapters_under_micro_batches_noise_and_checkpointing(
    architecture: str, tmp_path: Path
) -> None:
    """What holds for whole models holds for adapters: cut batches, recomputed activations, adapter
    dropout by seed.
    """
    base = folder(tmp_path, architecture)
    lora = LoraSettings(rank=4, dropout=0.2)
    planted = random_trees(9, trees=4)

    def gradient(
        lora: LoraSettings, budget: int, checkpointing: bool = False, **more: Any
    ) -> tuple[float, dict[str, Tensor]]:
        one = Policy.load(base, device="cpu", lora=lora)
        one.train_with(OptimiserSettings(), activation_checkpointing=checkpointing)
        with torch.no_grad():
            for name, p in one.network.inner.named_parameters():
                if "lora_B" in name:
                    p.copy_(torch.linspace(-0.3, 0.3, p.numel()).view_as(p))
        batch = one.pack(planted, budget)
        return one.forward_backward(batch, METHODS["nll"], **more).loss, parameter_gradients(
            one.network.inner
        )

    (value, whole), (again, cut) = (gradient(LORA, budget) for budget in (10_000, 40))
    assert again == pytest.approx(value, rel=1e-6)
    assert distance(cut, whole) < 5e-6
    more: dict[str, Any] = {"seed": 3, "noise": partial(neftune, alpha=5.0)}
    (value, kept), (again, recomputed) = (
        gradient(lora, 60, checkpointing, **more) for checkpointing in (False, True)
    )
    assert again == value
    assert distance(recomputed, kept) < 1e-6
    assert abs(gradient(lora, 60, **{**more, "seed": 4})[0] - value) > 1e-4


def test_adapter_dropout_is_off_in_scores(tmp_path: Path) -> None:
    base = folder(tmp_path)
    one, still = (
        Policy.load(base, device="cpu", lora=LoraSettings(rank=4, dropout=p)) for p in (0.5, 0.0)
    )
    for each in (one, still):
        with torch.no_grad():
            for name, p in each.network.inner.named_parameters():
                if "lora_B" in name:
                    p.fill_(0.1)
    assert torch.equal(one.score(BATCH)[0].logprob, still.score(BATCH)[0].logprob)
    assert (
        abs(
            one.forward_backward(BATCH, METHODS["nll"]).loss
            - still.forward_backward(BATCH, METHODS["nll"]).loss
        )
        > 1e-3
    )


def test_what_cannot_be_merged_is_refused() -> None:
    """The head is computed from its own matrix, and experts are many matrices in one."""
    with pytest.raises(ConfigError, match="output head"):
        attach(network("llama"), LoraSettings(targets=("q_proj", "lm_head")), 0)
    with pytest.raises(ConfigError, match="not one matrix"):
        attach(network("qwen3_moe"), LoraSettings(), 0)


def test_an_adapter_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    one = adapted(folder(tmp_path / "base", "llama"))
    name, weight = next((n, p) for n, p in one.adapter.named_parameters() if "lora_B" in n)
    weight.data[0, 0] = torch.nan
    with pytest.raises(ModelError, match=re.escape(name)):
        one.save_adapter(tmp_path / "adapter")
    with pytest.raises(ModelError, match="not finite"):
        one.save(tmp_path / "model")
    assert not (tmp_path / "adapter").exists() and not (tmp_path / "model").exists()
