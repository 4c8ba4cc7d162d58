"""Low-rank adapters through peft: attach, save beside the digest of their base, merge on export."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from posttrain.core.errors import ConfigError
from posttrain.core.extras import require
from posttrain.core.files import write_json
from posttrain.core.seeds import derive
from posttrain.engine.settings import LoraSettings

# types that an adapter can be added to
REAL = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def attach(
    network: PreTrainedModel, settings: LoraSettings, seed: int, task: str = "CAUSAL_LM"
) -> Any:
    """Add adapters to a network in place and freeze everything else.

    At first they change nothing (B = 0).

    Args:
        settings: rank and targets. seed: of the first weights.
        task: peft's name of what the network is for. With SEQ_CLS its head is trained in full.
    Returns: the PeftModel around the network.
    Raises:
        ConfigError: a target names no module of the network, or one that adapters cannot be merged
            into.
    """
    peft = require("peft", extra="lora", purpose="--lora")
    # GPT-2 keeps its matrices so
    transposed = any(isinstance(module, Conv1D) for module in network.modules())
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        fan_in_fan_out=transposed,
        target_modules=list(settings.targets) or "all-linear",
        task_type=task,
    )
    devices = [network.device] if network.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
        # peft asks transformers by a name that transformers deprecates
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", RuntimeWarning)  # and speaks of patterns that it set itself
        torch.manual_seed(derive(seed, "lora"))
        try:
            adapter = peft.get_peft_model(network, config)
        except (RuntimeError, OverflowError) as error:  # there is no memory for it, or no such size
            raise ConfigError(
                f"--lora-rank {settings.rank}: {str(error).splitlines()[0]}",
                cure="give a smaller rank",
            ) from error
        except (ValueError, AttributeError, TypeError) as error:
            what = f"--lora-targets {' '.join(settings.targets)}" if settings.targets else "--lora"
            raise ConfigError(
                f"{what}: {str(error).splitlines()[0]}",
                cure="name modules as the model does, for example q_proj v_proj",
            ) from error
    _check_adapted(network)
    return adapter


def _check_adapted(network: PreTrainedModel) -> None:
    """Refuse adapters that would not be reached or could not be merged.

    Raises:
        ConfigError: with the layer's name and the cure.
    """
    for name, layer in _layers(network).items():
        tied = (
            network.config.get_text_config().tie_word_embeddings
            and layer is network.get_input_embeddings()
        )
        if tied or layer is network.get_output_embeddings():
            raise ConfigError(
                f"--lora-targets: {name} is the model's output head, which adapters would not "
                "reach",
                cure="leave it out; to train it, train all weights",
            )
        weight = getattr(layer.get_base_layer(), "weight", None)
        if weight is not None and weight.dtype not in REAL:
            raise ConfigError(
                f"{name} holds quantised weights, which adapters cannot be merged into",
                cure="give the model that it was made from, in 16 or 32 bits",
            )
        if getattr(weight, "ndim", 0) != 2:
            raise ConfigError(
                f"{name} is not one matrix (experts of a mixture are many in one); its adapters "
                "cannot be merged",
                cure="adapt the attention alone: --lora-targets q_proj k_proj v_proj o_proj",
            )


def _layers(network: PreTrainedModel) -> dict[str, Any]:
    """The adapted layers by name."""
    lora = require("peft.tuners.lora", extra="lora", purpose="LoRA")
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, lora.LoraLayer)
    }


def merged(network: PreTrainedModel) -> dict[str, Tensor]:
    """The state dict of the network as if it had been trained without adapters: W + (α/r)·B·A.

    Leaves the network alone.
    """
    layers, state = _layers(network), plain(network)
    for owner, layer in layers.items():
        weight = state[f"{owner}.weight"]
        state[f"{owner}.weight"] = weight + layer.get_delta_weight("default").to(weight.dtype)
    return state


def plain(network: PreTrainedModel) -> dict[str, Tensor]:
    """The state dict of the network without its adapters, by the names it had without them."""
    state: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        if ".lora_" in name or ".original_module." in name:
            continue
        state[name.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")] = tensor
    return state


def save_adapter(adapter: Any, folder: Path, base: str, base_digest: str) -> None:
    """Write the adapter in peft's format, and `base.json`: which model it belongs to, by name and
    digest.
    """
    adapter.peft_config["default"].base_model_name_or_path = base
    adapter.save_pretrained(folder, save_embedding_layers=False)  # they are the base's
    write_json(folder / "base.json", {"base": base, "base_sha256": base_digest})
