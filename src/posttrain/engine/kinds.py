"""Folders that look like models and cannot be trained here: each is refused in one sentence, with
what to do instead, before anything is loaded.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from posttrain.core.errors import ModelError

UNQUANTISED = "give the model that it was made from, in 16 or 32 bits"
# packages that run what a method quantised, one of which must be there
RUN_BY = {
    "gptq": ("gptqmodel", "auto_gptq"),
    "awq": ("gptqmodel", "awq"),
    "aqlm": ("aqlm",),
    "eetq": ("eetq",),
    "hqq": ("hqq",),
    "bitsandbytes": ("bitsandbytes",),
}
OTHER_SENSES = ("vision_config", "audio_config", "vision_tower_config", "speech_config")
TEXT_ONLY = "give a text-only model of its family; images and sound are not supported yet"
DECODER = "give a decoder-only language model, such as Llama, Qwen or Gemma"


def refuse_unusable(folder: Path) -> None:
    """Refuse a folder that holds something else than a model that can be trained or asked.

    Raises:
        ModelError: what it is, and the cure.
    """
    config = _read_config(folder)
    _refuse_files(folder)
    method = quantisation(folder)
    if method in RUN_BY and not any(map(find_spec, RUN_BY[method])):
        raise ModelError(
            f"{folder} holds weights quantised with {method}, which cannot be trained",
            cure=UNQUANTISED,
        )
    names = config.get("architectures") or [config.get("model_type", "")]
    _refuse_architecture(folder, str(names[0]), config)


def _read_config(folder: Path) -> dict[str, Any]:
    """The content of config.json.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise _no_config(folder)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"cannot read {path}: {error}", cure="get the complete model") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} holds no settings", cure="get the complete model")
    return config


def _no_config(folder: Path) -> ModelError:
    """What a folder without config.json is."""
    if (folder / "adapter_config.json").is_file():
        merged = f"{folder}-merged"
        return ModelError(
            f"{folder} is an adapter, and no whole model",
            cure=(
                "give the model/ folder beside it if posttrain made it; else merge it: python -c "
                f'"from peft import AutoPeftModelForCausalLM as P; from transformers import '
                f"AutoTokenizer as T; m = P.from_pretrained({str(folder)!r}).merge_and_unload(); "
                f"m.save_pretrained({merged!r}); "
                f'T.from_pretrained(m.config._name_or_path).save_pretrained({merged!r})"'
            ),
        )
    if any(folder.glob("*.gguf")):
        return gguf(str(folder))
    if (folder / "model" / "config.json").is_file():
        return ModelError(f"{folder} is a run, and no model", cure=f"give {folder / 'model'}")
    return ModelError(
        f"{folder} has no config.json", cure="point --model at a Hugging Face model folder"
    )


def gguf(path: str) -> ModelError:
    """The refusal of weights for llama.cpp."""
    return ModelError(
        f"{path} is a GGUF model, whose weights are made for running and cannot be trained",
        cure="give the model that it was made from: a folder with config.json and *.safetensors",
    )


def _refuse_files(folder: Path) -> None:
    """Refuse weights that are only in files of another kind."""
    if any(folder.glob("*.safetensors")):
        return
    if any(folder.glob("pytorch_model*.bin")):
        raise ModelError(
            f"{folder} has its weights in pytorch_model.bin alone, a pickle, which can run code",
            cure=f"convert them to safetensors: {_conversion(folder)}",
        )
    if any(folder.glob("*.gguf")):
        raise gguf(str(folder))


def _conversion(folder: Path) -> str:
    """The command that converts pickled weights and runs nothing that is in them."""
    if (folder / "pytorch_model.bin").is_file():
        source, target = str(folder / "pytorch_model.bin"), str(folder / "model.safetensors")
        return (
            'python -c "import torch; from safetensors.torch import save_file; '
            f"w = torch.load({source!r}, 'cpu', weights_only=True); "
            f"save_file({{k: v.clone().contiguous() for k, v in w.items()}}, {target!r}, "
            "{'format': 'pt'})\""
        )
    return (
        'python -c "import torch; from pathlib import Path; from safetensors.torch import '
        f"save_file; d = Path({str(folder)!r}); r = lambda s: "
        "s.replace('pytorch_model', 'model').replace('.bin', '.safetensors'); "
        "[save_file({k: v.clone().contiguous() for k, v in torch.load(f, 'cpu', "
        "weights_only=True).items()}, d / r(f.name), {'format': 'pt'}) "
        "for f in d.glob('pytorch_model-*.bin')]; "
        "i = (d / 'pytorch_model.bin.index.json').read_text(); "
        "(d / 'model.safetensors.index.json').write_text(r(i))\""
    )


def quantisation(folder: Path) -> str:
    """The method that a folder's weights are quantised with; empty where they are not."""
    config = _read_config(folder).get("quantization_config")
    return str(config.get("quant_method") or "a method unknown") if config else ""


def _refuse_architecture(folder: Path, name: str, raw: dict[str, Any]) -> None:
    """Refuse what is no decoder of text, by its config."""
    try:
        config: Any = AutoConfig.from_pretrained(folder)
    except Exception:
        return  # loading it will say what is wrong
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{folder} is a {name}, an encoder and a decoder", cure=DECODER)
    decoder = getattr(config, "is_decoder", None) or "CausalLM" in name or "LMHead" in name
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not decoder:
        raise ModelError(
            f"{folder} is a {name}, an encoder, which reads text in both directions and writes "
            "none",
            cure=DECODER,
        )
    if type(config) in AutoModelForCausalLM._model_mapping:
        return
    if any(sense in raw for sense in OTHER_SENSES):
        raise ModelError(
            f"{folder} is a {name}, which reads more than text, and there is no class for its "
            "text alone",
            cure=TEXT_ONLY,
        )
    raise ModelError(f"{folder} is a {name}, which is no model of language", cure=DECODER)
