"""Reward models: what an answer is worth, learned from pairs of answers, or from labels of an
answer's steps. The run folder: `posttrain.stages.training`; `model/` is a sequence-classification
folder, of a process model a token-classification folder.

A reward model is measured on held-out rows beside judges that read nothing, and its confidence
against how often it is right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field

from posttrain.core.console import ConsoleObserver
from posttrain.core.errors import ConfigError
from posttrain.engine.settings import OptimiserSettings, Pattern, UnsetRate
from posttrain.evals import judging
from posttrain.stages import training
from posttrain.stages.alarms import Alarms
from posttrain.stages.dataset import Dataset
from posttrain.stages.stage import Context, stage
from posttrain.stages.training import FILES, MAKES, Course, Lesson, TrainingSettings

if TYPE_CHECKING:
    from posttrain.data.prepare import Learned
    from posttrain.engine.batch import Batch, Rows
    from posttrain.engine.loop import Run
    from posttrain.engine.reward import RewardModel

HEAD = r"^(score|classifier)\."  # the head's parameters by name
HEAD_FACTOR = 10.0  # on the learning rate: the head is new, the trunk is not


class RewardOptimiser(OptimiserSettings):
    """AdamW, with what suits reward models."""

    unset_rate: ClassVar = UnsetRate(1e-5, lora=1e-4)

    learning_rate: float | None = Field(None, gt=0, description=f"peak learning rate; {unset_rate}")
    groups: dict[Pattern, float] = Field(
        default_factory=dict,
        description=(
            "PATTERN=FACTOR on the rate of parameters whose name matches; 0 freezes them. "
            "Unset: 10 for the head, with LoRA 1"
        ),
    )


class RewardModelSettings(TrainingSettings):
    """Settings of a reward model."""

    epochs: float = Field(1.0, gt=0, description="passes over the data")
    batch_size: int = Field(
        8, ge=1, description="rows an optimiser step: pairs, or answers in steps"
    )
    method: Literal["bradley_terry", "process"] = Field(
        "bradley_terry",
        description="learn which of two answers is better, or which steps of an answer are right",
    )
    center: float | None = Field(
        None, ge=0, description="weight of what keeps rewards around 0, of pairs; unset: 0.01"
    )
    heads: int | None = Field(
        None,
        ge=1,
        description=(
            "rewards on one trunk, an ensemble: where they disagree it is uncertain; unset: 1"
        ),
    )
    use_margins: bool = Field(
        False, description="ask for at least the margin that the rows' column of that name says"
    )
    separator: str | None = Field(
        None, min_length=1, description="put after every step of an answer; unset: a line break"
    )
    optimiser: RewardOptimiser = RewardOptimiser()  # type: ignore[call-arg]

    def resolved(self) -> Self:
        """With a faster head, which is new, over a trunk whose weights are all trained."""
        settings = super().resolved()
        if settings.optimiser.groups or settings.lora:
            return settings
        faster = settings.optimiser.model_copy(update={"groups": {HEAD: HEAD_FACTOR}})
        return settings.model_copy(update={"optimiser": faster})

    def check(self) -> None:
        super().check()
        RewardCourse(self)


@stage(
    "reward_model",
    RewardModelSettings,
    help="train a model that says what an answer is worth",
    makes=MAKES,
    files=FILES,
)
def reward_model(settings: RewardModelSettings, context: Context) -> dict[str, Any]:
    """Train a model that says what an answer is worth, from pairs of answers (Bradley–Terry) or
    from labels of steps. Killed at any moment, the same command goes on where it was and ends with
    the same weights.
    """
    return training.train(settings, context, RewardCourse(settings))


class RewardCourse(Course):
    """What the loop does with a reward model."""

    def __init__(self, settings: RewardModelSettings) -> None:
        from posttrain.methods.reward import bradley_terry, process

        self.steps = settings.method == "process"
        self.learned: Learned = "steps" if self.steps else "pairs"
        self.separator = "\n" if settings.separator is None else settings.separator
        self.held: Rows | None = None
        self.alarms = Alarms(policy=False)
        alien = {
            "center": settings.center is not None and self.steps,
            "use_margins": settings.use_margins and self.steps,
            "separator": settings.separator is not None and not self.steps,
        }
        if wrong := [name for name, given in alien.items() if given]:
            raise ConfigError(
                f"{settings.method} does not read --{wrong[0].replace('_', '-')}",
                cure="leave it out",
                option=wrong[0],
            )
        if settings.data.truncate == "split" or (self.steps and settings.data.truncate == "left"):
            raise ConfigError(
                f"--truncate {settings.data.truncate} would part answers from their questions",
                cure="use right or drop" if self.steps else "use right, left or drop",
            )
        self.loss = (
            process()
            if self.steps
            else bradley_terry(0.01 if settings.center is None else settings.center)
        )

    def load(self, settings: RewardModelSettings) -> RewardModel:
        from posttrain.engine.reward import RewardModel

        return RewardModel.load(
            settings.model,
            device=settings.device,
            heads=settings.heads,
            process=self.steps,
            lora=settings.lora,
            seed=settings.seed,
        )

    def lesson(
        self,
        settings: RewardModelSettings,
        learner: RewardModel,
        data: dict[str, Dataset],
        budget: int,
        observer: ConsoleObserver,
    ) -> Lesson:
        from posttrain.engine.model import without_dropout

        without_dropout(learner.model.network)
        if not self.steps:
            learner.pad_unlike({end for one in data.values() for end in one.trees.ends()})
        learner.remember(
            {
                "prompt_template": settings.data.prompt_template,
                "template_kwargs": settings.data.template_kwargs,
                **({"separator": self.separator} if self.steps else {}),
            }
        )
        rows = {label: self._rows(one, settings) for label, one in data.items()}
        self.held = rows.get("held out")
        held = None
        if self.held is not None:
            measure = _held_steps if self.steps else _held_pairs
            held = partial(measure, learner, self.loss, self.held, self.held.prompts(), budget)
        return Lesson(self.loss, rows["data"], watch=self.alarms, held_out=held)

    def _rows(self, data: Dataset, settings: RewardModelSettings) -> Rows:
        from posttrain.engine.batch import Rows

        assert data.numbers is not None
        if settings.use_margins and not any(len(one) for one in data.numbers):
            raise ConfigError(
                "--use-margins, and no row has a margin",
                cure="give a column margin, or leave the option out",
            )
        numbers = data.numbers if self.steps or settings.use_margins else None
        return Rows(data.trees, self.loss.together, numbers, stepped=self.steps)

    def summary(self, run: Run) -> dict[str, Any]:
        """The last steps' means of what the method reports, and every alarm."""
        records = run.log.read()
        last = [one for one in records if "loss" in one][-20:]
        names = [name for name in last[-1] if "/" in name or name in ("accuracy", "uncertainty")]
        again = Alarms(policy=False)
        alarms = [alarm for one in records for alarm in again(one)]
        exported = (
            run.best["step"]
            if run.validation.keep_best and run.best["step"] is not None
            else run.step
        )
        for one in records:
            if one["step"] == exported and (held := one.get("validation")):
                said = judging.warning(
                    {"mean": held["accuracy"], "n": held["judged"]},
                    held["baselines"],
                    "held-out steps" if self.steps else "held-out pairs",
                )
                alarms += (
                    [
                        f"after step {exported}: {said}. More pairs, or pairs that tell more, may"
                        " help"
                    ]
                    if said
                    else []
                )
        return {
            "last_steps": {
                name: math.fsum(one[name] for one in last if name in one) / len(last)
                for name in names
            },
            "alarms": alarms,
        }


# ------------------------------------------------------------------------------------ held-out rows


def _scored(
    learner: RewardModel, loss: Any, held: Rows, budget: int, told: Callable[[int, int], None]
) -> tuple[Batch, list[Any], dict[str, Any]]:
    """The held-out rows as one batch, their rewards, and the loss and means of what the method
    reports.
    """
    import torch

    from posttrain.engine.learner import count

    batch = held.batch(range(len(held)), budget, shared=learner.model.mode == "forest")
    denominators = count(batch.forests, batch.facts)
    total, rewards, reports = 0.0, [], []
    told(0, len(batch.forests))
    for i, (forest, fact) in enumerate(zip(batch.forests, batch.facts, strict=True), 1):
        (found,) = learner.score([forest])
        found = type(found)(found.reward.cpu(), forest.leaf, forest.L)
        total += float(loss.loss(found, fact, None, denominators))
        rewards.append(found.reward.double().mean(1))
        reports.append(loss.report(found, fact, None))
        told(i, len(batch.forests))
    means = {
        name: float(torch.cat([one[name] for one in reports]).double().mean())
        for name in reports[0]
    }
    return batch, rewards, {"loss": total, "interval": None, **means}


def _held_pairs(
    learner: RewardModel,
    loss: Any,
    held: Rows,
    prompts: list[Hashable],
    budget: int,
    told: Callable[[int, int], None],
) -> dict[str, Any]:
    """The loss on the held-out pairs, how often the better answer has the higher reward, beside
    what lengths alone would tell, and how far margins can be believed.
    """
    batch, rewards, out = _scored(learner, loss, held, budget, told)
    margins, longer = [0.0] * len(held), [0.0] * len(held)
    for forest, fact, reward in zip(batch.forests, batch.facts, rewards, strict=True):
        gaps, lengths = (
            one[fact["chosen"]] - one[fact["rejected"]] for one in (reward, forest.lengths)
        )
        for number, gap, more in zip(
            fact["number"].tolist(), gaps.tolist(), lengths.tolist(), strict=True
        ):
            margins[number], longer[number] = gap, float(more)
    right = judging.hits(margins)
    accuracy = judging.rate(right, prompts)
    return {
        **out,
        "accuracy": accuracy.mean,
        "accuracy_low": accuracy.low,
        "accuracy_high": accuracy.high,
        "sequences": len(right),
        "judged": len(right),
        "baselines": judging.beside(right, judging.content_blind(longer), prompts),
        **judging.by_length(right, longer, prompts),
        "length_correlation": judging.correlation(margins, longer),
        "calibration": judging.of_margins(margins),
    }


def _held_steps(
    learner: RewardModel,
    loss: Any,
    held: Rows,
    prompts: list[Hashable],
    budget: int,
    told: Callable[[int, int], None],
) -> dict[str, Any]:
    """The loss on the held-out steps, how many of them are told right from wrong, beside always
    saying the same, and how far σ(reward) can be believed. Steps of one prompt go together.
    """
    import torch

    batch, rewards, out = _scored(learner, loss, held, budget, told)
    reward = torch.cat(rewards)
    label = torch.cat([fact["step_label"] for fact in batch.facts]).double()
    owner = [
        prompts[int(forest.sequence[leaf])]
        for forest in batch.forests
        for leaf in forest.leaf.tolist()
    ]
    right = judging.hits((reward * (label - 0.5).sign()).numpy())
    always = judging.hits((label - 0.5).numpy())
    accuracy = judging.rate(right, owner)
    others = {"always right": always, "always wrong": [1 - one for one in always]}
    return {
        **out,
        "accuracy": accuracy.mean,
        "accuracy_low": accuracy.low,
        "accuracy_high": accuracy.high,
        "sequences": len(held),
        "judged": len(right),
        "baselines": judging.beside(right, others, owner),
        "calibration": judging.calibration(reward.numpy(), label.numpy()),
    }
