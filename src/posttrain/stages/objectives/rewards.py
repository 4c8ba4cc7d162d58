"""Learn what an answer is worth, from pairs or from the steps of answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from posttrain.core.errors import ConfigError
from posttrain.core.events import Reporter
from posttrain.core.ties import wins
from posttrain.evals import judging, stats
from posttrain.stages.alarms import Alarms, hardly_moved, hardly_moved_in_steps
from posttrain.stages.dataset import Dataset
from posttrain.stages.objectives.objective import (
    Setup,
    exported_validation,
    extra_characters,
    last_means,
)

if TYPE_CHECKING:
    from posttrain.core.types import Measured
    from posttrain.data.examples import Examples, Kind
    from posttrain.data.forest import TokenForest
    from posttrain.data.store import Trees
    from posttrain.engine.loop import Run
    from posttrain.engine.reward import RewardModel

Progress = Callable[[int, int], None]


class Rewards:
    """A reward model of whole answers, or of their steps."""

    def __init__(self, settings: Any) -> None:
        from posttrain.methods.reward import bradley_terry, process

        self.steps = settings.method == "process"
        self.learned: Kind = "steps" if self.steps else "pairs"
        self.separator = "\n" if settings.separator is None else settings.separator
        self.alarms = Alarms(policy=False)
        self._check(settings)
        center = 0.01 if settings.center is None else settings.center
        self.loss = process() if self.steps else bradley_terry(center)

    def _check(self, settings: Any) -> None:
        """Raise where settings contradict each other."""
        unread = {
            "--center": settings.center is not None and self.steps,
            "--use-margins": settings.use_margins and self.steps,
            "--separator": settings.separator is not None and not self.steps,
        }
        for option, given in unread.items():
            if given:
                raise ConfigError(
                    f"{settings.method} does not read {option}",
                    cure="leave it out",
                    option=option.removeprefix("--").replace("-", "_"),
                )
        truncate = settings.data.truncate
        if truncate == "split" or (self.steps and truncate == "left"):
            raise ConfigError(
                f"--truncate {truncate} would part answers from their questions",
                cure="use right or drop" if self.steps else "use right, left or drop",
            )

    def load(self, settings: Any) -> RewardModel:
        from posttrain.engine.reward import RewardModel

        return RewardModel.load(
            settings.model,
            device=settings.device,
            heads=settings.heads,
            process=self.steps,
            lora=settings.lora,
            seed=settings.seed,
        )

    def setup(
        self,
        settings: Any,
        learner: RewardModel,
        data: dict[str, Dataset],
        budget: int,
        reporter: Reporter,
    ) -> Setup:
        from posttrain.engine.source import Rows

        learner.without_dropout()
        if not self.steps:
            learner.pad_unlike({end for part in data.values() for end in part.trees.ends()})
        learner.set_written({"separator": self.separator} if self.steps else {})
        train = self._examples(data["data"], settings)
        held_out = None
        if "held out" in data:
            held = self._examples(data["held out"], settings)
            rows = _HeldRows(held, held.prompts(), data["held out"].trees, self.steps)
            held_out = partial(self._held_out, learner, rows, budget)
        return Setup(self.loss, Rows(train), watch=self.alarms, held_out=held_out)

    def _examples(self, data: Dataset, settings: Any) -> Examples:
        from posttrain.data.examples import Examples

        assert data.numbers is not None
        if settings.use_margins and not any(len(margin) for margin in data.numbers):
            raise ConfigError(
                "--use-margins, and no row has a margin",
                cure="give a column margin, or leave the option out",
            )
        return Examples(
            data.trees,
            self.learned,
            data.numbers,
            margins=settings.use_margins,
            prompt_lengths=data.trees.prompt_lengths(),
        )

    def _held_out(
        self,
        learner: RewardModel,
        held: _HeldRows,
        budget: int,
        progress: Progress,
        before: list[float] | None,
    ) -> tuple[dict[str, Any], list[float]]:
        """The loss on the held-out rows as one batch, and what the rewards get right.

        Returns: and of every pair its margin, or of every step whether it is classified rightly.
        """
        n = len(held.examples)
        forests = learner.pack(list(held.examples), budget)
        progress(0, n)
        measured = learner.measure(forests, self.loss)
        progress(n, n)
        out = {"loss": measured.loss, "interval": None, **measured.means()}
        score = _step_accuracy if self.steps else _pair_accuracy
        values, rows = score(forests, measured, held, before)
        return {**out, "sequences": n, **values}, rows

    def summary(self, run: Run) -> dict[str, Any]:
        """The last steps' means of what the method reports, and every alarm."""
        means = last_means(run, ("accuracy", "uncertainty"))
        alarms = [str(alarm) for alarm in self.alarms.raised]
        step, held = exported_validation(run)
        if held is None:
            warning = hardly_moved_in_steps(means)
        else:
            warning = hardly_moved(held, relative=True)
        if warning:
            alarms.append(f"after step {step}: {warning}")
        if held is not None:
            alarms += self._weak(held, step)
        return {"last_steps": means, "alarms": alarms}

    def _weak(self, held: dict[str, Any], step: int) -> list[str]:
        """What is to be said of a model that is no better than its content-blind baselines."""
        warning = judging.warning(
            {"mean": held["accuracy"], "n": held["judged"]},
            held["baselines"],
            "held-out steps" if self.steps else "held-out pairs",
        )
        if not warning:
            return []
        return [f"after step {step}: {warning}. More pairs, or pairs that tell more, may help"]


@dataclass(frozen=True)
class _HeldRows:
    """Held-out rows: with their facts, their prompts, their trees, and whether they are steps."""

    examples: Examples
    prompts: list[Any]
    trees: Trees
    steps: bool


def _pair_accuracy(
    forests: list[TokenForest], measured: Measured, held: _HeldRows, before: list[float] | None
) -> tuple[dict[str, Any], list[float]]:
    """How often the better answer has the higher reward, compared with content-blind baselines,
    and the calibration of margins.
    """
    prompts, longer = held.prompts, extra_characters(held.trees, len(held.prompts))
    margins = [0.0] * len(prompts)
    numbers = [number for forest in forests for number in forest.facts.numbers.tolist()]
    for number, margin in zip(numbers, measured.values["rewards/margins"].tolist(), strict=True):
        margins[number] = margin
    right = [wins(margin) for margin in margins]
    accuracy = stats.share(right, prompts)
    values = {
        "accuracy": accuracy.mean,
        "accuracy_low": accuracy.low,
        "accuracy_high": accuracy.high,
        "chance": judging.CHANCE,
        "judged": len(right),
        "baselines": judging.compare(right, judging.content_blind(longer), prompts),
        **judging.margins(margins, before, prompts),
        **judging.by_length(right, longer, prompts),
        "length_correlation": judging.correlation(margins, longer),
        "calibration": judging.of_margins(margins),
    }
    return values, margins


def _step_accuracy(
    forests: list[TokenForest], measured: Measured, held: _HeldRows, before: list[float] | None
) -> tuple[dict[str, Any], list[float]]:
    """How many steps are classified rightly, compared with one answer for all, and the calibration
    of σ(reward). Steps of one prompt are one cluster.
    """
    import torch

    rows = torch.cat([forest.sequence[forest.leaf].cpu() for forest in forests])
    order = rows.argsort(stable=True)  # that of the rows, whatever the budget
    reward = measured.values["reward"].double()[order]
    label = torch.cat([forest.facts.targets["step_label"] for forest in forests]).double()[order]
    owner = [held.prompts[number] for number in rows[order].tolist()]
    right: list[float] = wins(reward * (label - 0.5)).tolist()
    always: list[float] = wins(label - 0.5).tolist()
    accuracy = stats.share(right, owner)
    others = {"always right": always, "always wrong": [1 - hit for hit in always]}
    values: dict[str, Any] = {
        "accuracy": accuracy.mean,
        "accuracy_low": accuracy.low,
        "accuracy_high": accuracy.high,
        "judged": len(right),
        "baselines": judging.compare(right, others, owner),
        "calibration": judging.calibration(reward.numpy(), label.numpy()),
    }
    if before is not None:
        values["difference"] = {"accuracy": stats.share_difference(right, before, owner).json()}
    return values, right
