"""Training on rows: what the stages share that train a model on given answers.

What is special to one is its `Objective`.

A run folder holds
    run.json        what the run is: settings, digests of model and data, versions
    metrics.jsonl   one line a step and a validation
    checkpoints/    what a resumed run needs
    tokens/         the data as token ids, and the reference's log-probabilities, while the run
                    lasts
    rejects.jsonl   rows that could not be used, with the reasons, where that was asked for
    model/          the result, a Hugging Face folder (adapters merged)
    adapter/        with LoRA: the adapter alone, and the digest of its base
    summary.json    results, with counts and intervals; written last
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from posttrain.core.console import ConsoleObserver
from posttrain.core.errors import ConfigError
from posttrain.core.files import (
    atomic_folder,
    explained_writes,
    lock,
    remove_partial,
    sha256_folder,
    write_json,
)
from posttrain.core.identity import check, claim
from posttrain.core.settings import Settings
from posttrain.core.trackers import FILE, FOLDER, TrackingSettings, trackers
from posttrain.core.trackers import check as check_trackers
from posttrain.core.version import __version__
from posttrain.data.settings import DataSettings, Source
from posttrain.engine.settings import (
    CheckpointSettings,
    LoraSettings,
    OptimiserSettings,
    ValidationSettings,
)
from posttrain.stages import dataset
from posttrain.stages.dataset import Dataset
from posttrain.stages.objectives.objective import Objective, Setup

if TYPE_CHECKING:
    from posttrain.engine.learner import Learner
    from posttrain.engine.loop import Run


class TrainingSettings(Settings):
    """Settings of every stage that trains on given answers."""

    elsewhere: ClassVar[frozenset[str]] = frozenset()  # settings that do not change what a run is

    model: str = Field(description="Hugging Face folder or hub id of the model to start from")
    out: Path = Field(description="the run's folder; the same command continues what is there")
    epochs: float = Field(3.0, gt=0, description="passes over the data")
    steps: int | None = Field(None, ge=1, description="optimiser steps; replaces --epochs")
    batch_size: int = Field(8, ge=1, description="sequences an optimiser step")
    budget: int | None = Field(
        None,
        ge=2,
        description="tokens a forward pass; bounds memory. Unset: 4096 on a CPU, 16384 on a GPU",
    )
    activation_checkpointing: bool = Field(
        False, description="compute activations twice and store them once"
    )
    device: Literal["", "cpu", "cuda"] = Field("", description="unset: the GPU where there is one")
    seed: int = Field(0, ge=0, description="of data order, noise and adapters")
    data: DataSettings
    optimiser: OptimiserSettings = OptimiserSettings()  # type: ignore[call-arg]
    lora: LoraSettings | None = Field(
        None, description="train low-rank adapters instead of all weights"
    )
    validation: ValidationSettings = ValidationSettings()  # type: ignore[call-arg]
    checkpoint: CheckpointSettings = CheckpointSettings()  # type: ignore[call-arg]
    tracking: TrackingSettings = TrackingSettings()  # type: ignore[call-arg]


@dataclass(frozen=True)
class Outcome:
    """A finished run: its folder, the model in it, and what `summary.json` says."""

    folder: Path
    model: Path
    summary: dict[str, Any]


def flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Keywords as `assemble` takes them: one source or tracker stands for a list of one, and a
    model may be a path.
    """
    for name in ("data", "validation", "replay"):
        if isinstance(settings.get(name), (str, Path, Source)):
            settings[name] = (settings[name],)
    if isinstance(settings.get("model"), Path):
        settings["model"] = str(settings["model"])
    if isinstance(settings.get("track"), str):
        settings["track"] = (settings["track"],)
    return settings


WRITES = (
    "metrics.jsonl",
    "checkpoints",
    "model",
    "adapter",
    "tokens",
    "rejects.jsonl",
    "summary.json",
    FILE,
    FOLDER,
)  # and run.json


def run(settings: TrainingSettings, observer: ConsoleObserver, objective: Objective) -> Outcome:
    """Run the stage, or continue it, or report that it is finished."""
    dataset.peek(
        settings.data
    )  # what is wrong with the files is told before anything is loaded or written
    check_trackers(settings.tracking.track)
    # The engine, and with it torch, is imported here: help and mistakes are answered at once.
    from posttrain.engine import loop
    from posttrain.engine.load import digest, load_tokenizer, longest_position, resolve

    folder, base = settings.out, resolve(settings.model)
    if base.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(
            f"--model {settings.model} lies in --out {folder}, where the run writes",
            cure="choose another --out",
        )
    fixed = settings.model_dump(
        mode="json",
        exclude={"out", "checkpoint", "device", "model", "tracking"} | settings.elsewhere,
    )
    identity = {
        "settings": fixed,
        "model_sha256": digest(base),
        "data_sha256": dataset.digests(settings.data),
        "chat_template": dataset.chat_template(settings.data),
        **objective.identity(settings),
    }
    with lock(folder), explained_writes(folder):
        check(folder, identity, WRITES)
        if done := _finished(folder, observer):
            return done
        remove_partial(folder)
        try:
            chat = dataset.chat_of(settings.data, load_tokenizer(base))
            chat.separator = objective.separator
            longest = dataset.max_length(settings.data, longest_position(base))
            found = dataset.load(
                settings.data, chat, folder, identity, longest, observer, objective.learned
            )
            learner = objective.load(settings)
            for reason in learner.notes:
                observer.message(reason)
            observer.note("model", _describe(learner, settings))
            if chat.used:  # leave in the exported model how it was talked to
                learner.set_chat(chat.template.source, chat.stop)
            training, setup = _prepare(settings, learner, found, observer, objective)
            claim(folder, identity, __version__)
        except BaseException:
            remove_partial(folder)
            raise
        dataset.keep(folder)
        if setup.begin:
            setup.begin(training)
        config = settings.model_dump(mode="json", exclude={"tracking"})
        more = trackers(settings.tracking, folder, config, training.log.events())
        with observer.also(more) as training.observer:
            exported = loop.train(training)
            with atomic_folder(folder / "model") as target:
                learner.save(target)
            if learner.adapter is not None:
                with atomic_folder(folder / "adapter") as target:
                    learner.save_adapter(target)
            summary = {**_summary(training, found["data"], exported), **objective.summary(training)}
            summary["base_sha256"] = identity["model_sha256"]
            summary["model_sha256"] = _weights_digest(folder)
            write_json(folder / "summary.json", summary)
            shutil.rmtree(folder / dataset.FOLDER, ignore_errors=True)  # nothing reads it any more
            training.observer.done(folder, summary, training.log.events())
    return Outcome(folder, folder / "model", summary)


def _finished(folder: Path, observer: ConsoleObserver) -> Outcome | None:
    """The outcome of a run that is done, if what it exported is still there as it was."""
    path = folder / "summary.json"
    if not path.is_file():
        return None
    summary = json.loads(path.read_text())
    if (folder / "model").is_dir() and _weights_digest(folder) == summary["model_sha256"]:
        observer.note("finished", f"{folder} already holds this run; nothing to do")
        return Outcome(folder, folder / "model", summary)
    observer.message(
        f"{folder / 'model'} is missing or changed; exporting it again from the last checkpoint"
    )
    return None


def _weights_digest(folder: Path) -> str:
    return sha256_folder(folder / "model", lambda p: p.suffix == ".safetensors")


def _describe(learner: Learner, settings: TrainingSettings) -> str:
    from posttrain.engine.modes import MODES

    network, admission = learner.network, learner.network.admission
    total = sum(p.numel() for p in network.parameters())
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    share = "" if trained == total else f", {trained / 1e6:.2f} M trained"
    return (
        f"{settings.model}: {total / 1e6:.1f} M parameters{share},"
        f" {str(network.dtype).removeprefix('torch.')} on {network.device.type};"
        f" {MODES[admission.mode]} (agrees with paths run alone within {admission.deviation:.0e}"
        " nats)"
    )


def _prepare(
    settings: TrainingSettings,
    learner: Learner,
    data: dict[str, Dataset],
    observer: ConsoleObserver,
    objective: Objective,
) -> tuple[Run, Setup]:
    """Everything the loop needs. What is wrong with the settings shows here, before the folder is
    claimed.
    """
    from posttrain.data.plan import Plan, shares
    from posttrain.engine.loop import Run
    from posttrain.engine.source import Offline

    train = data["data"]
    longest = max(one.longest for one in data.values())
    budget = learner.budget(settings.budget, longest)
    if longest > budget:
        raise ConfigError(
            f"--budget {budget} is less than the {longest} tokens of the longest sequence",
            cure=f"give --budget {longest} or more, or --max-length {budget} or less",
        )
    plan = Plan(train.rows, settings.batch_size, settings.seed, shares(train.rows, train.sources))
    steps = settings.steps or math.ceil(
        settings.epochs * plan.steps_per_epoch - 1e-9
    )  # 1.1 · 100 is 110, not 111
    setup = objective.setup(settings, learner, data, budget, observer)
    learner.train_with(
        settings.optimiser, activation_checkpointing=settings.activation_checkpointing
    )
    return (
        Run(
            policy=learner,
            loss=setup.loss,
            source=Offline(setup.rows, plan, setup.probes),
            steps=steps,
            budget=budget,
            seed=settings.seed,
            folder=settings.out,
            observer=observer,
            held_out=setup.held_out,
            noise=setup.noise,
            watch=setup.watch,
            checkpoints=settings.checkpoint,
            validation=settings.validation,
        ),
        setup,
    )


def _summary(run: Run, data: Dataset, exported: int) -> dict[str, Any]:
    """What the run came to. Held-out numbers are those of the exported step, where it was
    validated.
    """
    held = next(
        (
            r["validation"]
            for r in reversed(run.log.read())
            if r["step"] == exported and "validation" in r
        ),
        None,
    )
    return {
        "posttrain": __version__,
        "steps": run.step,
        "exported_step": exported,
        "tokens": run.totals["tokens"],
        "targets": run.totals["targets"],
        "seconds": run.totals["seconds"],
        "tokens_per_second": run.totals["tokens"] / max(1e-9, run.totals["seconds"]),
        "learning_rate": run.optimiser.settings.learning_rate,
        "rows": data.total("read"),
        "sequences": data.total("sequences"),
        "truncated": data.total("truncated"),
        "duplicates": data.total("duplicates"),
        "rejected": data.total("rejected"),
        "dropped": data.dropped(),
        "held_out_before": run.first_held,
        "held_out": {"step": exported, **held} if held else None,
    }
