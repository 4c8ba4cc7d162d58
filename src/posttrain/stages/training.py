"""Training on rows: what the stages share that train a model on given answers.

What is special to one is its `Course`.

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

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field

from posttrain.core.console import ConsoleObserver
from posttrain.core.defaults import UNSET_BUDGET, token_budget
from posttrain.core.errors import ConfigError
from posttrain.core.files import atomic_folder
from posttrain.core.settings import Destination, ExecutionOnly, ReadsModel, Settings
from posttrain.data.settings import DataSettings, Source
from posttrain.engine.settings import (
    CheckpointSettings,
    LoraSettings,
    OptimiserSettings,
    ValidationSettings,
)
from posttrain.stages import dataset
from posttrain.stages.dataset import Dataset
from posttrain.stages.folders import Files
from posttrain.stages.stage import Context

if TYPE_CHECKING:
    from posttrain.core.types import Loss
    from posttrain.data.prepare import Learned
    from posttrain.engine.batch import Rows
    from posttrain.engine.learner import Learner
    from posttrain.engine.loop import HeldOut, Run, Watch
    from posttrain.engine.model import Noise


class TrainingSettings(Settings):
    """Settings of every stage that trains on given answers."""

    model: Annotated[str, ReadsModel()] = Field(
        description="Hugging Face folder or hub id of the model to start from"
    )
    out: Annotated[Path, Destination()] = Field(
        description="the run's folder; the same command continues what is there"
    )
    epochs: float = Field(3.0, gt=0, description="passes over the data")
    steps: int | None = Field(None, ge=1, description="optimiser steps; replaces --epochs")
    batch_size: int = Field(8, ge=1, description="sequences an optimiser step")
    budget: Annotated[int | None, ExecutionOnly(rounding=True)] = Field(
        None, ge=2, description=f"tokens a forward pass; bounds memory. {UNSET_BUDGET}"
    )
    activation_checkpointing: bool = Field(
        False, description="compute activations twice and store them once"
    )
    device: Annotated[Literal["", "cpu", "cuda"], ExecutionOnly()] = Field(
        "", description="unset: the GPU where there is one"
    )
    seed: int = Field(0, ge=0, description="of data order, noise and adapters")
    data: DataSettings
    optimiser: OptimiserSettings = OptimiserSettings()  # type: ignore[call-arg]
    lora: LoraSettings | None = Field(
        None, description="train low-rank adapters instead of all weights"
    )
    validation: ValidationSettings = ValidationSettings()  # type: ignore[call-arg]
    checkpoint: Annotated[CheckpointSettings, ExecutionOnly()] = CheckpointSettings()  # type: ignore[call-arg]

    @property
    def sources(self) -> tuple[Source, ...]:
        """What is trained on."""
        return self.data.data

    def resolved(self) -> Self:
        """With the learning rate that suits the weights that are trained."""
        if self.optimiser.learning_rate is not None:
            return self
        rate = self.optimiser.unset_rate.of(lora=self.lora is not None)
        chosen = self.optimiser.model_copy(update={"learning_rate": rate})
        return self.model_copy(update={"optimiser": chosen})

    def check(self) -> None:
        dataset.peek(self.data)


MAKES = {"model": "model/"}
FILES = Files(
    others=("metrics.jsonl", "checkpoints", "adapter", "rejects.jsonl"), scratch=(dataset.FOLDER,)
)


@dataclass(frozen=True)
class Lesson:
    """What the loop is to do with the data.

    Attributes:
        loss: the method. rows: what it is taken over.
        held_out: the numbers of the held-out rows; None where there are none.
        noise: on the input embeddings.
        watch: see `posttrain.engine.loop`.
        begin: long work before the first step; it has the run's folder to itself, and may be
            killed.
    """

    loss: Loss
    rows: Rows
    held_out: HeldOut | None = None
    noise: Noise | None = None
    watch: Watch | None = None
    begin: Callable[[Run], None] | None = None


class Course:
    """What a stage teaches: which rows it reads, what learns, and what the loop does. This one:
    demonstrations.

    Args:
        method: of `posttrain.methods.supervised.METHODS`.
        noise: NEFTune's alpha.
    """

    learned: Learned = "demonstrations"
    separator = "\n"  # after every step of answers that have steps

    def __init__(self, method: str = "nll", noise: float = 0.0) -> None:
        self.method, self.noise = method, noise

    def load(self, settings: Any) -> Learner:
        """What learns."""
        from posttrain.engine.policy import Policy

        return Policy.load(
            settings.model, device=settings.device, lora=settings.lora, seed=settings.seed
        )

    def lesson(
        self,
        settings: Any,
        learner: Any,
        data: dict[str, Dataset],
        budget: int,
        observer: ConsoleObserver,
    ) -> Lesson:
        """What the loop does. What is wrong with the settings shows here, before the folder is
        claimed.
        """
        from posttrain.engine.batch import Rows
        from posttrain.engine.loop import validate
        from posttrain.methods.supervised import METHODS, neftune

        held = data["held out"].trees if "held out" in data else None
        return Lesson(
            METHODS[self.method],
            Rows(data["data"].trees),
            held_out=(
                (lambda told: vars(validate(learner, held, budget, told)))
                if held is not None
                else None
            ),
            noise=partial(neftune, alpha=self.noise) if self.noise else None,
        )

    def summary(self, run: Run) -> dict[str, Any]:
        """What else `summary.json` says."""
        return {}


def train(settings: Any, context: Context, course: Course) -> dict[str, Any]:
    """Train, or go on with training; returns the summary."""
    # The engine, and with it torch, is imported here: help and mistakes are answered at once.
    from posttrain.engine import loop
    from posttrain.engine.load import resolve

    folder, observer = context.folder, context.observer
    tokens = dataset.prepare(
        settings.data, resolve(settings.model), context, course.learned, course.separator
    )
    learner = course.load(settings)
    for reason in learner.model.admission.reasons:
        observer.message(reason)
    observer.note("model", _describe(learner, settings))
    if tokens.chat.used:  # leave in the exported model how it was talked to
        learner.converse(tokens.chat.template, tokens.chat.stop)
    training, lesson = _prepare(settings, learner, tokens.sets, observer, course)
    context.claim()
    tokens.keep()
    if lesson.begin:
        lesson.begin(training)
    exported = loop.train(training)
    with atomic_folder(folder / "model") as target:
        learner.save(target)
    if learner.adapter is not None:
        with atomic_folder(folder / "adapter") as target:
            learner.save_adapter(target)
    observer.curve(training.log.read())
    return {**_summary(training, tokens.sets["data"], exported), **course.summary(training)}


def _describe(learner: Learner, settings: TrainingSettings) -> str:
    from posttrain.engine.model import MODES

    network, admission = learner.model.network, learner.model.admission
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
    course: Course,
) -> tuple[Run, Lesson]:
    """Everything the loop needs. What is wrong with the settings shows here, before the folder is
    claimed.
    """
    from posttrain.data.plan import Plan, shares
    from posttrain.engine.loop import Run

    train = data["data"]
    longest = max(one.longest for one in data.values())
    budget = token_budget(settings.budget, learner.model.device.type, longest)
    if longest > budget:
        raise ConfigError(
            f"--budget {budget} is less than the {longest} tokens of the longest sequence",
            cure=f"give --budget {longest} or more, or --max-length {budget} or less",
        )
    plan = Plan(train.rows, settings.batch_size, settings.seed, shares(train.rows, train.sources))
    steps = settings.steps or math.ceil(
        settings.epochs * plan.steps_per_epoch - 1e-9
    )  # 1.1 · 100 is 110, not 111
    lesson = course.lesson(settings, learner, data, budget, observer)
    learner.train_with(
        settings.optimiser, activation_checkpointing=settings.activation_checkpointing
    )
    return (
        Run(
            policy=learner,
            loss=lesson.loss,
            rows=lesson.rows,
            plan=plan,
            steps=steps,
            budget=budget,
            seed=settings.seed,
            folder=settings.out,
            observer=observer,
            held_out=lesson.held_out,
            noise=lesson.noise,
            watch=lesson.watch,
            checkpoints=settings.checkpoint,
            validation=settings.validation,
        ),
        lesson,
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
