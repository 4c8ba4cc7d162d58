"""Models as they lie on the disk: where a name leads, what its files are, and the network and
tokenizer in them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from posttrain.core.errors import ConfigError, ModelError, nearest
from posttrain.core.files import LOCK, sha256_input, sha256_json
from posttrain.engine.network import quiet

EMBEDDED = Path(__file__).resolve().parents[1] / "assets" / "base"  # `--model embedded`


def resolve(path: str) -> Path:
    """The local folder of a model: the folder itself, the snapshot of a hub id, or the base model
    that the package holds.
    """
    folder = EMBEDDED if path == "embedded" else Path(path)
    if os.path.isdir(folder):  # unlike Path's method, it takes text of any length
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"{folder} has no config.json", cure="point --model at a Hugging Face model folder"
            )
        return folder
    if os.path.exists(folder) or path.startswith(("/", ".", "~")):
        raise ModelError(
            f"{path} is not a model folder",
            cure="point --model at a Hugging Face model folder or a hub id",
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                path, allow_patterns=["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
            )
        )
    except Exception as error:
        raise ModelError(
            f"no folder {path!r} here, and the hub did not give it: {type(error).__name__}",
            cure="check the name and the connection, or download the model and give its folder",
        ) from error


SUFFIXES = (".safetensors", ".json", ".model", ".jinja", ".txt")
INDEX = "*.safetensors.index.json"


def digest(folder: Path, *, weights: bool = True) -> str:
    """SHA-256 over the files that make a model what it is: weights, config, tokenizer; those in
    subfolders, and those that an index names, among them. A link stands for the file it leads to.
    Not part of the model are hidden folders, and runs that somebody keeps inside it.

    Args:
        weights: they count; not so where only the tokenizer and the configuration are read.
    Raises:
        ModelError: an index names weights that are not there, or lie outside the folder.
    """
    files = set(check_shards(folder)) if weights else set[Path]()
    for at, inner, names in os.walk(folder):
        inner[:] = [name for name in inner if not (name[0] == "." or _is_run(Path(at, name)))]
        for path in (Path(at, name) for name in names):
            known = path.suffix in SUFFIXES and (weights or path.suffix != ".safetensors")
            if known and path.is_file():
                files.add(path)
    return sha256_json({p.relative_to(folder).as_posix(): sha256_input(p) for p in sorted(files)})


def _is_run(folder: Path) -> bool:
    return (folder / LOCK).exists()


def check_shards(folder: Path) -> list[Path]:
    """The files of weights that the folder's indices name.

    Raises:
        ModelError: one is not there, or lies outside the folder; or an index cannot be read.
    """
    shards: dict[Path, None] = {}
    for index in sorted(folder.glob(INDEX)):
        try:
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            places = [PurePosixPath(name) for name in dict.fromkeys(names)]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ModelError(
                f"{index} is no index of weights: {type(error).__name__}: {error}",
                cure="get the complete model",
            ) from None
        for place in places:
            if place.is_absolute() or ".." in place.parts:
                raise ModelError(
                    f"{index} names {place}, which lies outside the folder",
                    cure=f"move it into {folder}, and write its new name into the index",
                )
            if not (folder / place).is_file():
                raise ModelError(
                    f"{index} names {place}, which is not there", cure="get the complete model"
                )
            shards[folder / place] = None
    return list(shards)


def longest_position(folder: Path) -> int | None:
    """How many tokens a sequence of the model in `folder` may have; None where its config does not
    say.
    """
    try:
        config = AutoConfig.from_pretrained(folder)
    except Exception as error:
        raise ModelError(
            f"cannot read {folder}/config.json: {error}", cure="get the complete model"
        ) from error
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def architecture(folder: Path) -> str:
    """The class that wrote a folder, as its config.json has it; empty where it does not say."""
    try:
        names = json.loads((folder / "config.json").read_bytes()).get("architectures") or [""]
        return str(names[0])
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return ""  # loading it will say what is wrong


def load_tokenizer(folder: Path) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        # what its files say that cannot be meant shows when it is used
        tokenizer.decode(tokenizer("a", verbose=False)["input_ids"])
        return tokenizer
    except Exception as error:
        raise ModelError(
            f"cannot load the tokenizer of {folder}: {type(error).__name__}: {error}",
            cure="the folder needs tokenizer.json and tokenizer_config.json",
        ) from error


def load_network(
    folder: Path,
    device: str,
    dtype: torch.dtype = torch.float32,
    *,
    kind: Any = AutoModelForCausalLM,
    fresh: str = "",
    **changes: Any,
) -> tuple[Any, tuple[str, ...]]:
    """Read a model's weights: those of a causal language model, or of another kind.

    Args:
        kind: the transformers class that loads it.
        fresh: name of a module that the folder need not have, since its first weights are drawn;
            the language model's head is then not missed either.
        changes: to the config.
    Returns: the network, and what the user should know of it.
    Raises:
        ModelError: no such device, unreadable files, or weights that are missing and would be made
            up at random.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            "there is no GPU here that torch can use",
            cure="leave --device out, or install torch with CUDA",
        )
    check_shards(folder)
    try:
        with quiet():
            placement = _placement(folder, device)
            loaded: Any = kind.from_pretrained(
                folder,
                dtype=dtype,
                output_loading_info=True,
                use_safetensors=True,
                **placement,
                **changes,
            )
    except Exception as error:
        raise ModelError(
            f"cannot load {folder}: {type(error).__name__}: {error}",
            cure=(
                "check that the folder is complete and its config.json names a causal language "
                "model"
            ),
        ) from error
    network, info = loaded
    _check_dropout(folder, network.config.get_text_config().to_dict())
    notes = _checked(folder, info, fresh)
    return network if placement else network.to(device), notes


def _check_dropout(folder: Path, config: dict[str, Any]) -> None:
    """Refuse probabilities that are none, which show in the first training step alone."""
    for name, value in config.items():
        is_rate = name.endswith(("dropout", "_pdrop", "dropout_prob")) and value is not None
        if is_rate and not (isinstance(value, int | float) and 0 <= value <= 1):
            raise ModelError(
                f"{folder}/config.json: {name} is {value!r}, which is no probability",
                cure="give it a number from 0 to 1",
            )


def _checked(folder: Path, info: dict[str, Any], fresh: str) -> tuple[str, ...]:
    """Refuse weights that are missing; a note about those that nothing uses."""
    missing = sorted(key for key in info["missing_keys"] if not fresh or key.split(".")[0] != fresh)
    if missing:
        raise ModelError(
            f"{folder} lacks the weights {missing[:3]}{' and more' if len(missing) > 3 else ''}",
            cure="they would be random; get the complete model",
        )
    extra = sorted(
        key for key in info["unexpected_keys"] if not fresh or key.split(".")[0] != "lm_head"
    )
    if not extra:
        return ()
    more = " and more" if len(extra) > 3 else ""
    note = (
        f"{folder} has weights that its config.json does not use, and that the result will lack: "
        f"{extra[:3]}{more}"
    )
    return (note,)


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def device_of(name: str) -> str:
    """A kind of device by name; the GPU where there is one if empty."""
    return name or ("cuda" if torch.cuda.is_available() else "cpu")


def default_dtype(device: str, name: str = "") -> torch.dtype:
    """The type of weights on a device, by name if there is one.

    Raises:
        ConfigError: an unknown name.
    """
    if not name:
        return torch.bfloat16 if device == "cuda" else torch.float32
    if name not in DTYPES:
        raise ConfigError(f"there is no dtype {name!r}", cure=nearest(name, DTYPES))
    return DTYPES[name]


def check_tokenizer(path: str | Path, tokenizer: Any, rows: int) -> None:
    """Raise where a tokenizer has tokens that the model has no embedding for."""
    if len(tokenizer) > rows:
        raise ModelError(
            f"the tokenizer of {path} has {len(tokenizer)} tokens, the model only {rows}",
            cure="use the tokenizer the model was trained with",
        )


def _placement(folder: Path, device: str) -> dict[str, Any]:
    """What from_pretrained needs to place quantised weights, which cannot be moved afterwards."""
    config = json.loads((folder / "config.json").read_text())
    return {"device_map": {"": device}} if config.get("quantization_config") else {}
