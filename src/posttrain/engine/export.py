"""A trained model as a Hugging Face folder: what was in the folder it came from is in it.

Released folders hold more than a text model reads: vision towers, prediction heads for several
tokens, processors. transformers passes over such tensors without a word, and would write a folder
without them. Here they are copied bit by bit, and where the text model is a part of a larger one,
the larger one's config stays, so that its class loads the result.

What can fail when a model is written fails in `rehearse`, before the first step: generation configs
that transformers reads and does not write, tokenizers, conversions of weights, room on the disk.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from posttrain.core.errors import CheckpointError, ModelError, PosttrainError
from posttrain.core.files import write_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
VALUE_HEAD = "value_head.safetensors"  # beside the model's own weights
PREFIXES = ("", "language_model.", "model.", "model.language_model.", "thinker.")
OLD_NAMES = ((".weight", ".gamma"), (".bias", ".beta"))  # of normalisations, years ago
COMPANIONS = ("*processor_config.json", "LICENSE*", "NOTICE*", "USE_POLICY*")  # files that stay
WIDTHS = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}  # bytes; else 1


@dataclass(frozen=True)
class Kept:
    """What a model's folder holds besides what is trained, and the result holds as well.

    Attributes:
        folder: the model's.
        tensors: names of those that the text model does not take, by file.
        size: their bytes.
        larger: whether config.json is that of a larger model, and stays.
        note: what the user should know; empty where nothing is kept.
    """

    folder: Path
    tensors: dict[str, list[str]] = field(default_factory=dict)
    size: int = 0
    larger: bool = False
    note: str = ""


# ------------------------------------------------------------------------------- what is to be kept


def kept(folder: Path, inner: PreTrainedModel, saved: Mapping[str, Tensor]) -> Kept:
    """What of a folder is no part of the text model that was loaded from it.

    Args:
        saved: the text model's own tensors by their names in a folder; see `as_saved`.
    Raises:
        ModelError: the text model's tensors would have other names than in the folder, so that
            the larger model would not find them.
    """
    found = _tensors(folder)
    new = set(saved) - set(found)
    sources = {name: _source(name, inner.base_model_prefix, found) for name in new}
    rest = unread(inner, saved, found) - set(sources.values())
    larger = _is_larger(folder, inner)
    if larger and new:
        raise ModelError(
            f"{folder} is a {_config(folder)['architectures'][0]}, and its text model cannot be "
            "put back into it",
            cure="take the text model out first: transformers' AutoModelForCausalLM"
            f".from_pretrained({str(folder)!r}), then save_pretrained, and the tokenizer's",
        )
    unlisted = {path.name for path in folder.glob("*.safetensors")} - {VALUE_HEAD}
    unlisted -= {path.name for path in weight_files(folder)}
    note = ""
    if unlisted:
        note = (
            f"{', '.join(sorted(unlisted))} in {folder} is no part of the model, nor of the result"
        )
    unknown = sum(saved[name].numel() for name, source in sources.items() if source is None)
    if unknown == sum(found[name].numbers for name in rest):
        # what has another name in the result is no loss
        return Kept(folder, larger=larger, note=note)
    tensors: dict[str, list[str]] = {}
    for name in sorted(rest):
        tensors.setdefault(found[name].file, []).append(name)
    size = sum(found[name].size for name in rest)
    copied = (
        f"{folder} holds {len(rest):,} tensors that text does not touch ({named(rest)}); they are "
        "copied into the result as they are"
    )
    note = f"{copied}; {note}" if note else copied
    return Kept(folder, tensors, size, larger, note)


@dataclass(frozen=True)
class _Stored:
    """A tensor in a file: how many numbers it has, and bytes."""

    file: str
    numbers: int
    size: int


def _tensors(folder: Path) -> dict[str, _Stored]:
    """The tensors of a folder by name."""
    found: dict[str, _Stored] = {}
    for path in weight_files(folder):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dictionary
                part = file.get_slice(name)
                numbers = math.prod(part.get_shape())
                found[name] = _Stored(path.name, numbers, numbers * WIDTHS.get(part.get_dtype(), 1))
    return found


def weight_files(folder: Path) -> list[Path]:
    """The files that a model is loaded from. Others may lie beside them: the same weights in
    another layout, or an adapter.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        names = set(json.loads((folder / INDEX).read_text())["weight_map"].values())
        return sorted(folder / name for name in names)
    return sorted(path for path in folder.glob("*.safetensors") if path.name != VALUE_HEAD)


def unread(
    inner: PreTrainedModel, saved: Collection[str], found: Collection[str] | Path
) -> set[str]:
    """The names in a folder that are not among a network's own, nor tied to one of them."""
    names: Collection[str] = _tensors(found) if isinstance(found, Path) else found
    tied = getattr(inner, "all_tied_weights_keys", None) or ()
    return set(names) - set(saved) - {prefix + name for prefix in PREFIXES for name in tied}


def named(tensors: Collection[str]) -> str:
    """The parts of a model that tensors belong to, a few of them."""
    parts = sorted({".".join(name.split(".")[:2]) for name in tensors})
    return ", ".join(parts[:3]) + (" and more" if len(parts) > 3 else "")


def _source(name: str, base: str, found: Collection[str]) -> str | None:
    """What a tensor of the result was called in the folder: without the head's prefix, or by an old
    name; None where it cannot be told.
    """
    spellings = [name, name.removeprefix(f"{base}."), f"{base}.{name}"]
    for ending, old in OLD_NAMES:
        spellings += [s.removesuffix(ending) + old for s in spellings if s.endswith(ending)]
    return next((s for s in spellings if s in found), None)


def _config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def _is_larger(folder: Path, inner: PreTrainedModel) -> bool:
    """Whether a network is the text part of what config.json describes."""
    known = _config(folder)
    return "text_config" in known and "text_config" not in inner.config.to_dict()


def as_saved(inner: PreTrainedModel, names: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A network's tensors as its folder will have them, without their numbers.

    Args:
        names: the state dict, adapters merged; its values may be without numbers, too.
    """
    from transformers.core_model_loading import revert_weight_conversion

    left_out = {*(inner._keys_to_ignore_on_save or ()), *_tied(inner)}
    state = {name: tensor.to("meta") for name, tensor in names.items() if name not in left_out}
    return revert_weight_conversion(inner, state)


def _tied(inner: PreTrainedModel) -> set[str]:
    """Tensors that are another's and not written."""
    return set(getattr(inner, "all_tied_weights_keys", None) or ())


# ------------------------------------------------------------------------------------------ writing


def write(
    folder: Path, inner: PreTrainedModel, state: dict[str, Tensor] | None, keep: Kept | None
) -> None:
    """Write a network's folder, and into it what is kept of the one it came from.

    Args:
        state: tensors in place of the network's own.
    """
    inner.save_pretrained(folder, state_dict=state)
    (folder / VALUE_HEAD).unlink(missing_ok=True)  # of another model that was here
    if keep is None:
        return
    if keep.tensors:
        _add_tensors(folder, keep)
    _add_companions(folder, keep)


def _add_tensors(folder: Path, keep: Kept) -> None:
    """Copy the kept tensors into files of their own, and write the index of all."""
    shards = sorted(path for path in folder.glob("model*.safetensors"))
    total = len(shards) + len(keep.tensors)
    owners: dict[str, str] = {}
    size = 0
    for i in range(total):
        name = f"model-{i + 1:05d}-of-{total:05d}.safetensors"
        if i < len(shards):
            shards[i].rename(folder / f".{name}")  # not yet: two shards might change places
        else:
            file, names = sorted(keep.tensors.items())[i - len(shards)]
            with safe_open(keep.folder / file, "pt") as source:
                tensors = {one: source.get_tensor(one) for one in names}
            save_file(tensors, folder / f".{name}", {"format": "pt"})
    for path in sorted(folder.glob(".model-*.safetensors")):
        whole = path.rename(folder / path.name.removeprefix("."))
        for name, stored in _tensors_of(whole).items():
            owners[name] = whole.name
            size += stored
    write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": owners})


def _tensors_of(path: Path) -> dict[str, int]:
    """Names and bytes of the tensors of a file."""
    with safe_open(path, "pt") as file:
        out = {}
        for name in file.keys():  # noqa: SIM118 - it is no dictionary
            part = file.get_slice(name)
            out[name] = math.prod(part.get_shape()) * WIDTHS.get(part.get_dtype(), 1)
    return out


def _add_companions(folder: Path, keep: Kept) -> None:
    """Copy what belongs to the folder and not to the text model: processors, licences, and the
    config of the larger model.
    """
    for pattern in COMPANIONS:
        for path in sorted(keep.folder.glob(pattern)):
            if not (folder / path.name).exists():
                shutil.copyfile(path, folder / path.name)
    if not keep.larger:
        return
    ours, larger = _config(folder), _config(keep.folder)
    for part in (larger, larger["text_config"]):
        for name in ("dtype", "torch_dtype"):
            if name in part:
                part[name] = ours["dtype"]
    write_json(folder / "config.json", larger)


# ---------------------------------------------------------------------------------------- rehearsal


def mend_generation(inner: PreTrainedModel) -> str:
    """Make a generation config one that transformers writes; it reads some that it refuses to
    write, such as a temperature beside `do_sample: false`.

    Returns: what was changed; empty where nothing was.
    """
    config = getattr(inner, "generation_config", None)
    if config is None or not inner.can_generate():
        return ""
    plain, changed = GenerationConfig(), dict[str, Any]()
    while (why := _refusal(config)) is not None:
        # it lists what does not go together, or names what has no such value
        listed = re.findall(r"^- `(\w+)`:", why, re.MULTILINE) or re.findall(r"`(\w+)`", why)
        odd = [name for name in listed if getattr(config, name, None) != getattr(plain, name, None)]
        if not odd:
            raise ModelError(
                f"the generation config of the model cannot be written: {why.splitlines()[0]}",
                cure="correct its generation_config.json",
            )
        for name in odd if why.count("\n- `") else odd[:1]:
            changed[name] = getattr(config, name)
            if hasattr(plain, name):
                setattr(config, name, getattr(plain, name))
            else:
                delattr(config, name)
    if not changed:
        return ""
    values = ", ".join(f"{name} {value}" for name, value in changed.items())
    return (
        "the model's generation config contradicts itself, and transformers would not write it; "
        f"left out of the result's: {values}"
    )


def _refusal(config: GenerationConfig) -> str | None:
    """Why transformers would not write a generation config; None where it would."""
    try:
        config.validate(strict=True)
    except (ValueError, TypeError) as error:
        return str(error)
    return None


def check_room(folder: Path, size: int) -> None:
    """Raise where the disk has no room for a model of so many bytes."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise CheckpointError(
            f"the disk of {folder} has {free / 2**30:.2f} GiB left, and the result needs "
            f"{size / 2**30:.2f}",
            cure="free some space, or choose another --out, and run the same command again",
        )


@contextlib.contextmanager
def explained(source: str) -> Iterator[None]:
    """Turn what transformers raises when it writes a model into an error with a cure."""
    try:
        yield
    except (PosttrainError, OSError):
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"the result of {source or 'the model'} cannot be written: {reason}",
            cure="correct the file of the model that it names, and run the same command again",
        ) from error
