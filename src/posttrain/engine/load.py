"""Models as they lie on the disk: where a name leads, what its files are, and the network and
tokenizer in them.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from posttrain.core.errors import ConfigError, ModelError, nearest
from posttrain.core.files import LOCK, sha256_input, sha256_json
from posttrain.engine.export import weight_files
from posttrain.engine.kinds import UNQUANTISED, gguf, quantisation, refuse_unusable
from posttrain.engine.network import known_positions, quiet

EMBEDDED = Path(__file__).resolve().parents[1] / "assets" / "base"  # `--model embedded`


def resolve(path: str) -> Path:
    """The local folder of a model: the folder itself, the snapshot of a hub id, or the base model
    that the package holds.

    Raises:
        ModelError: there is none, or it is of a kind that is not trained here; with the cure.
    """
    folder = EMBEDDED if path == "embedded" else Path(path)
    if os.path.isdir(folder):  # unlike Path's method, it takes text of any length
        refuse_unusable(folder)
        return folder
    if folder.suffix == ".gguf":
        raise gguf(path)
    if os.path.exists(folder) or path.startswith(("/", ".", "~")):
        raise ModelError(
            f"{path} is not a model folder",
            cure="point --model at a Hugging Face model folder or a hub id",
        )
    snapshot = _from_hub(path)
    refuse_unusable(snapshot)
    return snapshot


@cache
def _from_hub(name: str) -> Path:
    """The snapshot of a hub id; one process uses one, whatever becomes of the hub's.

    Raises:
        ModelError: the hub does not give it.
    """
    from huggingface_hub import errors, snapshot_download

    patterns = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt", "LICENSE*", "NOTICE*"]
    cure = "check the name and the connection, or download the model and give its folder"
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except errors.GatedRepoError as error:
        why = "the hub gives it only to those who accepted its terms"
        cure = f"accept them on https://huggingface.co/{name}, then `hf auth login`"
        cause: Exception = error
    except errors.RepositoryNotFoundError as error:
        why, cause = "the hub knows no public model of that name", error
        cure = "check the name; for a private model `hf auth login` first"
    except errors.HFValidationError as error:
        why, cause = "the hub has no such names", error
        cure = "give the folder of a model, or a hub id such as owner/name"
    except errors.LocalEntryNotFoundError as error:
        why, cause = "the hub cannot be reached, and no copy of it was kept", error
    except Exception as error:
        why, cause = f"the hub did not give it ({_first_line(error)})", error
    raise ModelError(f"there is no folder {name!r} here, and {why}", cure=cure) from cause


def _first_line(error: Exception, longest: int = 200) -> str:
    """What an error says, on one line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= longest else lines[0][:longest] + "…"


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
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
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
            f"cannot read {folder}/config.json: {_first_line(error)}", cure="get the complete model"
        ) from error
    return known_positions(config)


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
            f"cannot load the tokenizer of {folder}: {_first_line(error)}",
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
    _check_generation(folder)
    _check_depth(folder)
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
        raise _not_loaded(folder, error) from error
    network, info = loaded
    _check_dropout(folder, network.config.get_text_config().to_dict())
    notes = _checked(folder, info, fresh)
    return network if placement else network.to(device), notes


def _check_depth(folder: Path) -> None:
    """Refuse more layers than there are tensors: transformers builds them all before it looks.

    Raises:
        ModelError: config.json says so.
    """
    try:
        with quiet():
            text = AutoConfig.from_pretrained(folder).get_text_config()
        tensors = 0
        for path in weight_files(folder):
            with safe_open(path, "pt") as file:
                tensors += len(file.keys())
    except Exception:  # loading says what is wrong
        return
    layers = getattr(text, "num_hidden_layers", None)
    if isinstance(layers, int) and layers > tensors > 0:
        raise ModelError(
            f"{folder}/config.json has {layers:,} layers, and the folder holds {tensors:,} tensors",
            cure="correct the number, or get the complete model",
        )


def _check_generation(folder: Path) -> None:
    """Refuse a generation config that transformers passes over, or blames on the model.

    Raises:
        ModelError: it cannot be read.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        return
    try:
        with quiet():
            GenerationConfig(**json.loads(path.read_text(encoding="utf-8")))
    except Exception as error:
        raise ModelError(
            f"{path} cannot be used: {_first_line(error)}", cure="correct that file, or delete it"
        ) from error


def _not_loaded(folder: Path, error: Exception) -> ModelError:
    """Why transformers did not load a model, and what to do."""
    method = quantisation(folder)
    if method:
        return ModelError(
            f"{folder} holds weights quantised with {method}, which cannot be read here: "
            f"{_first_line(error)}",
            cure=UNQUANTISED,
        )
    if not any(folder.glob("*.safetensors")):
        return ModelError(
            f"cannot load {folder}: it has no weights, no *.safetensors",
            cure="get the complete model; weights in other files must be converted to safetensors",
        )
    return ModelError(
        f"cannot load {folder}: {_first_line(error)}",
        cure="check that the folder is complete and its config.json names a causal language model",
    )


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
    note = f"{folder} has weights that its config.json does not use: {extra[:3]}{more}"
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
