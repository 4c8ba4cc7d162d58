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
    summary.json    results, with counts and intervals
    manifest.json   digests of what is kept; written last
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import Field

from posttrain.core.defaults import UNSET_BUDGET, Device, check_budget
from posttrain.core.errors import ConfigError
from posttrain.core.events import Reporter
from posttrain.core.files import atomic_folder
from posttrain.core.settings import WIDEST, Destination, ExecutionOnly, ReadsModel, Settings, Unless
from posttrain.core.trackers import FILE, FOLDER, TrackingSettings, trackers
from posttrain.core.trackers import check as check_trackers
from posttrain.data.settings import DataSettings, Source
from posttrain.engine.settings import (
    CheckpointSettings,
    LoraSettings,
    OptimiserSettings,
    ValidationSettings,
)
from posttrain.stages import dataset, longer
from posttrain.stages.dataset import Dataset
from posttrain.stages.folders import Files
from posttrain.stages.objectives.objective import Objective, Setup
from posttrain.stages.stage import Context

if TYPE_CHECKING:
    from posttrain.engine.learner import Learner
    from posttrain.engine.loop import Run


class LearnerSettings(Settings):
    """Settings of every stage that trains a model step by step."""

    model: Annotated[str, ReadsModel()] = Field(
        description="Hugging Face folder or hub id of the model to start from"
    )
    out: Annotated[Path, Destination()] = Field(
        description="the run's folder; the same command continues what is there"
    )
    epochs: Annotated[float, Unless("steps")] = Field(3.0, gt=0, description="passes over the data")
    steps: int | None = Field(None, ge=1, description="optimiser steps; replaces --epochs")
    batch_size: int = Field(8, ge=1, description="sequences an optimiser step")
    budget: Annotated[int | None, ExecutionOnly(rounding=True)] = Field(
        None, ge=2, description=f"tokens a forward pass; bounds memory. {UNSET_BUDGET}"
    )
    activation_checkpointing: bool = Field(
        False, description="compute activations twice and store them once"
    )
    device: Device = ""
    seed: int = Field(0, ge=0, description="of data order, noise and adapters")
    optimiser: OptimiserSettings = OptimiserSettings()  # type: ignore[call-arg]
    lora: LoraSettings | None = Field(
        None, description="train low-rank adapters instead of all weights"
    )
    validation: ValidationSettings = ValidationSettings()  # type: ignore[call-arg]
    checkpoint: Annotated[CheckpointSettings, ExecutionOnly()] = CheckpointSettings()  # type: ignore[call-arg]
    tracking: Annotated[TrackingSettings, ExecutionOnly()] = TrackingSettings()  # type: ignore[call-arg]

    def resolved(self) -> Self:
        """With the learning rate that suits the weights that are trained."""
        if self.optimiser.learning_rate is not None:
            return self
        rate = self.optimiser.unset_rate.of(lora=self.lora is not None)
        chosen = self.optimiser.model_copy(update={"learning_rate": rate})
        return self.model_copy(update={"optimiser": chosen})


class TrainingSettings(LearnerSettings):
    """Settings of every stage that trains on given answers."""

    length: ClassVar = ("steps", "epochs")

    data: DataSettings

    @property
    def sources(self) -> tuple[Source, ...]:
        """What is trained on."""
        return self.data.data

    def check(self) -> None:
        dataset.peek(self.data)
        check_trackers(self.tracking.track)

    def check_longer(self, before: Mapping[str, Any]) -> None:
        longer.check_settings(self, before)


MAKES = {"model": "model/"}
FILES = Files(
    others=("metrics.jsonl", "adapter", "rejects.jsonl"),
    scratch=(dataset.FOLDER,),
    live=("checkpoints", FILE, FOLDER),  # which know themselves whether they are whole
)


def train(settings: Any, context: Context, objective: Objective) -> dict[str, Any]:
    """Train, or go on with training; returns the summary."""
    # The engine, and with it torch, is imported here: help and mistakes are answered at once.
    from posttrain.engine.load import resolve

    reporter = context.reporter
    tokens = dataset.prepare(
        settings.data, resolve(settings.model), context, objective.learned, objective.separator
    )
    learner = objective.load(settings)
    introduce(learner, settings, reporter)
    if tokens.chat.used:  # leave in the exported model how it was talked to
        learner.set_chat(tokens.chat.template.source, tokens.chat.stop)
    learner.prompting = tokens.prompting
    training, setup = _prepare(settings, learner, tokens.sets, reporter, objective)
    rehearse(learner, context)
    if context.place.before is not None:
        longer.check_run(training, settings, context.place.before)
    context.claim()
    tokens.keep()
    if setup.begin:
        setup.begin(training)
    exported = carry_out(training, settings, context)
    return {
        **progress_summary(training, exported),
        **_rows_summary(tokens.sets["data"]),
        **tokens.soundness,
        **objective.summary(training),
    }


def introduce(learner: Learner, settings: LearnerSettings, reporter: Reporter) -> None:
    """Say what learns, and let it speak to the user."""
    learner.tell = reporter.message
    for note in learner.notes:
        reporter.message(note)
    reporter.note("model", _describe(learner, settings))


def rehearse(learner: Learner, context: Context) -> None:
    """Try to write the result before anything is trained: what fails in the end fails now."""
    for note in learner.rehearse(context.folder):
        context.reporter.message(note)


def carry_out(run: Run, settings: LearnerSettings, context: Context) -> int:
    """Run the loop to its end and save the result; returns the step that was exported.

    The folder has been claimed.
    """
    from posttrain.engine import loop

    folder, learner = context.folder, run.policy
    config = settings.model_dump(mode="json", exclude={"tracking"})
    context.report_to(trackers(settings.tracking, folder, config, run.log.events()))
    run.reporter, run.check_folder = context.reporter, context.place.check_there
    exported = loop.train(run)
    run.check_there()
    with atomic_folder(folder / "model") as target:
        learner.save(target)
    if learner.adapter is not None:
        with atomic_folder(folder / "adapter") as target:
            learner.save_adapter(target)
    context.log = run.log.events()
    return exported


def _describe(learner: Learner, settings: LearnerSettings) -> str:
    from posttrain.engine.modes import MODES

    network, admission = learner.network, learner.network.admission
    total = sum(p.numel() for p in network.parameters())
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    share = "" if trained == total else f", {trained / 1e6:.2f} M trained"
    return (
        f"{settings.model}: {total / 1e6:.1f} M parameters{share}, "
        f"{str(network.dtype).removeprefix('torch.')} on {network.device.type}; "
        f"{MODES[admission.mode]} (agrees with paths run alone within {admission.deviation:.0e} "
        "nats)"
    )


def _prepare(
    settings: TrainingSettings,
    learner: Learner,
    data: dict[str, Dataset],
    reporter: Reporter,
    objective: Objective,
) -> tuple[Run, Setup]:
    """Everything the loop needs. What is wrong with the settings shows here, before the folder is
    claimed.
    """
    from posttrain.data.plan import Plan, shares
    from posttrain.engine.loop import Run
    from posttrain.engine.source import Offline

    train = data["data"]
    longest = max(rows.longest for rows in data.values())
    budget = learner.budget(settings.budget, longest)
    check_budget(budget, longest)
    plan = Plan(train.rows, settings.batch_size, settings.seed, shares(train.rows, train.sources))
    # 1.1 · 100 is 110, not 111
    steps = settings.steps or whole_steps(settings.epochs * plan.steps_per_epoch)
    setup = objective.setup(settings, learner, data, budget, reporter)
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
            reporter=reporter,
            held_out=setup.held_out,
            noise=setup.noise,
            watch=setup.watch,
            checkpoints=settings.checkpoint,
            validation=settings.validation,
        ),
        setup,
    )


def whole_steps(steps: float) -> int:
    if steps >= 2**WIDEST:
        raise ConfigError(
            f"--epochs comes to {steps:.0e} steps", cure="give a smaller number", option="epochs"
        )
    return math.ceil(steps - 1e-9)


def progress_summary(run: Run, exported: int) -> dict[str, Any]:
    """How far a run came. Held-out numbers are those of the exported step, where it was
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
        "steps": run.step,
        "exported_step": exported,
        "tokens": run.totals["tokens"],
        "targets": run.totals["targets"],
        "seconds": run.totals["seconds"],
        "tokens_per_second": run.totals["tokens"] / max(1e-9, run.totals["seconds"]),
        "learning_rate": run.optimiser.settings.learning_rate,
        "held_out_before": run.first_held,
        "held_out": {"step": exported, **held} if held else None,
    }


def _rows_summary(data: Dataset) -> dict[str, Any]:
    """What became of the rows."""
    return {
        "rows": data.total("read"),
        "sequences": data.total("sequences"),
        "truncated": data.total("truncated"),
        "duplicates": data.total("duplicates"),
        "rejected": data.total("rejected"),
        "dropped": data.dropped(),
    }
