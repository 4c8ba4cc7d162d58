"""Supervised fine-tuning: from a base model and demonstrations to a model that follows them.

A run folder holds
    run.json        what the run is: settings, digests of model and data, versions
    metrics.jsonl   one line a step and a validation
    checkpoints/    what a resumed run needs
    model/          the result, a Hugging Face folder (adapters merged)
    adapter/        with LoRA: the adapter alone, and the digest of its base
    summary.json    results, with counts and intervals; written last
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from posttrain import __version__
from posttrain.core.console import ConsoleObserver
from posttrain.core.errors import ConfigError
from posttrain.core.files import atomic_folder, explained_writes, lock, remove_partial, sha256_file, sha256_folder, write_json
from posttrain.core.identity import check, claim
from posttrain.core.settings import Settings, assemble
from posttrain.engine.settings import (
    CheckpointSettings,
    DataSettings,
    LoraSettings,
    OptimiserSettings,
    ValidationSettings,
)

if TYPE_CHECKING:
    from posttrain.data.demonstrations import Demonstrations
    from posttrain.data.rows import Row
    from posttrain.engine.policy import Policy


class SftSettings(Settings):
    """Settings of supervised fine-tuning."""

    model: str = Field(description="Hugging Face folder or hub id of the model to start from")
    out: Path = Field(description="the run's folder; the same command continues what is there")
    method: Literal["nll", "dft"] = Field("nll", description="negative log-likelihood, or dynamic fine-tuning")
    neftune: float = Field(0.0, ge=0, description="NEFTune noise on the embeddings, alpha; 0 is none, 5 is usual")
    epochs: float = Field(3.0, gt=0, description="passes over the data")
    steps: int | None = Field(None, ge=1, description="optimiser steps; replaces --epochs")
    batch_size: int = Field(8, ge=1, description="sequences an optimiser step")
    budget: int | None = Field(
        None, ge=2, description="tokens a forward pass; bounds memory. Unset: 4096 on a CPU, 16384 on a GPU")
    activation_checkpointing: bool = Field(False, description="compute activations twice and store them once")
    device: Literal["", "cpu", "cuda"] = Field("", description="unset: the GPU where there is one")
    seed: int = Field(0, ge=0, description="of data order, noise and adapters")
    data: DataSettings
    optimiser: OptimiserSettings = OptimiserSettings()  # type: ignore[call-arg]
    lora: LoraSettings | None = Field(None, description="train low-rank adapters instead of all weights")
    validation: ValidationSettings = ValidationSettings()  # type: ignore[call-arg]
    checkpoint: CheckpointSettings = CheckpointSettings()  # type: ignore[call-arg]


@dataclass(frozen=True)
class Outcome:
    """A finished run: its folder, the model in it, and what `summary.json` says."""

    folder: Path
    model: Path
    summary: dict[str, Any]


def sft(*, quiet: bool = False, **settings: Any) -> Outcome:
    """Fine-tune a model on demonstrations, in one line.

    `posttrain.sft(model="path/to/base", data="train.jsonl", out="runs/first", learning_rate=1e-4)`

    Args:
        quiet: show nothing but trouble.
        settings: the command line's options, with underscores (`posttrain sft --help`).
    Returns: the finished run.
    Raises:
        PosttrainError: with what is wrong and the cure.
    """
    for name in ("data", "validation"):
        if isinstance(settings.get(name), (str, Path)):
            settings[name] = (settings[name],)
    if isinstance(settings.get("model"), Path):
        settings["model"] = str(settings["model"])
    return run(assemble(SftSettings, settings), ConsoleObserver(quiet=quiet))


def run(settings: SftSettings, observer: ConsoleObserver) -> Outcome:
    """Run the stage, or continue it, or report that it is finished."""
    rows = _read(settings)  # what is wrong with the files is told before anything is loaded or written
    # The engine, and with it torch, is imported here: help and mistakes are answered at once.
    from posttrain.engine.model import digest, resolve
    from posttrain.engine.policy import Policy

    files = (*settings.data.data, *settings.data.validation)
    fixed = settings.model_dump(mode="json", exclude={"out", "checkpoint", "device"})
    identity = {"settings": fixed, "model_sha256": digest(resolve(settings.model)),
                "data_sha256": {str(path): sha256_file(path) for path in files}}
    folder = settings.out
    with lock(folder), explained_writes(folder):
        check(folder, identity)
        if (folder / "summary.json").is_file():
            observer.note("finished", f"{folder} already holds this run; nothing to do")
            return Outcome(folder, folder / "model", json.loads((folder / "summary.json").read_text()))
        remove_partial(folder)
        policy = Policy.load(settings.model, device=settings.device, lora=settings.lora, seed=settings.seed)
        for reason in policy.model.admission.reasons:
            observer.message(reason)
        observer.note("model", _describe(policy, settings))
        train, held = _tokenise(settings, policy, rows, observer)
        claim(folder, identity, __version__)
        summary = _train(settings, policy, train, held, observer)
        with atomic_folder(folder / "model") as target:
            policy.save(target)
        if policy.adapter is not None:
            with atomic_folder(folder / "adapter") as target:
                policy.save_adapter(target)
        summary["model_sha256"] = sha256_folder(folder / "model", lambda p: p.suffix == ".safetensors")
        write_json(folder / "summary.json", summary)
    return Outcome(folder, folder / "model", summary)


def _describe(policy: Policy, settings: SftSettings) -> str:
    from posttrain.engine.model import MODES

    network, admission = policy.model.network, policy.model.admission
    total = sum(p.numel() for p in network.parameters())
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    share = "" if trained == total else f", {trained / 1e6:.2f} M trained"
    return (f"{settings.model}: {total / 1e6:.1f} M parameters{share}, {str(network.dtype).removeprefix('torch.')} on "
            f"{network.device.type}; {MODES[admission.mode]} (agrees with paths run alone within {admission.deviation:.0e} nats)")


def _read(settings: SftSettings) -> dict[str, list[Row]]:
    """The rows of the training files and of the held-out ones."""
    from posttrain.data.rows import read

    return {label: list(chain.from_iterable(read(path) for path in paths)) for label, paths in _sources(settings).items()}


def _sources(settings: SftSettings) -> dict[str, tuple[Path, ...]]:
    both = {"data": settings.data.data, "held out": settings.data.validation}
    return {label: paths for label, paths in both.items() if paths}


def _tokenise(settings: SftSettings, policy: Policy, rows: dict[str, list[Row]],
              observer: ConsoleObserver) -> tuple[Demonstrations, Demonstrations | None]:
    from posttrain.data.demonstrations import tokenise

    found = {}
    for label, paths in _sources(settings).items():
        found[label] = tokenise(rows[label], policy.tokenizer, columns=settings.data.columns,
                                template=settings.data.prompt_template, max_length=_max_length(settings, policy))
        names = ", ".join(path.name for path in paths)
        observer.note(label, f"{names}: {found[label].rows:,} rows → {found[label].summary()}")
    return found["data"], found.get("held out")


def _max_length(settings: SftSettings, policy: Policy) -> int:
    """The longest sequence to train on: what was asked for, or 1024, within what the model can address."""
    limit = getattr(policy.model.config.get_text_config(), "max_position_embeddings", None)
    asked = settings.data.max_length
    if asked and limit and asked > limit:
        raise ConfigError(f"--max-length {asked} is more than the {limit} positions the model knows",
                          cure=f"give --max-length {limit} or less")
    return asked or min(1024, limit or 1024)


def _train(settings: SftSettings, policy: Policy, data: Demonstrations, held: Demonstrations | None,
           observer: ConsoleObserver) -> dict[str, Any]:
    from functools import partial

    from posttrain.data.plan import Plan
    from posttrain.engine import loop
    from posttrain.methods.supervised import METHODS, neftune

    optimiser = policy.train_with(settings.optimiser, activation_checkpointing=settings.activation_checkpointing)
    plan = Plan(len(data.sequences), settings.batch_size, settings.seed)
    steps = settings.steps or math.ceil(settings.epochs * plan.steps_per_epoch)
    budget = settings.budget or max(4096 if policy.model.device.type == "cpu" else 16384, _max_length(settings, policy))
    run = loop.Run(
        policy=policy, loss=METHODS[settings.method], trees=[(s,) for s in data.sequences], plan=plan, steps=steps,
        budget=budget, seed=settings.seed, folder=settings.out, observer=observer,
        held_out=[(s,) for s in held.sequences] if held else [],
        noise=partial(neftune, alpha=settings.neftune) if settings.neftune else None,
        checkpoints=settings.checkpoint, validation=settings.validation)
    loop.train(run)
    observer.curve(run.log.read())
    return {
        "posttrain": __version__, "steps": run.step, "tokens": run.totals["tokens"], "targets": run.totals["targets"],
        "seconds": run.totals["seconds"], "tokens_per_second": run.totals["tokens"] / max(1e-9, run.totals["seconds"]),
        "learning_rate": optimiser.settings.learning_rate, "base_sha256": policy.digest,
        "rows": data.rows, "sequences": len(data.sequences), "truncated": data.truncated, "dropped": data.dropped,
        "held_out_before": run.first_held, "held_out": run.best if run.best["step"] is not None else None}
