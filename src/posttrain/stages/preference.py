"""Preference optimisation: a model learns which of two answers is better, or that an answer is good
or bad. The run folder: `posttrain.stages.training`.

The reference is the model that training starts from, or another. Its log-probabilities are

    stored     computed once before the first step and kept: no second model in memory, and nothing
               to compute again
    copy       computed in every step by a frozen copy
    adapters   computed in every step by the model itself, its adapters off
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from posttrain.core.console import ConsoleObserver
from posttrain.core.errors import ConfigError, PosttrainError
from posttrain.core.files import sha256_json
from posttrain.core.settings import ExecutionOnly, ReadsModel
from posttrain.engine.settings import OptimiserSettings, UnsetRate
from posttrain.evals import judging
from posttrain.methods.options import Options
from posttrain.stages import dataset, training
from posttrain.stages.alarms import Alarms
from posttrain.stages.dataset import Dataset
from posttrain.stages.stage import Context, stage
from posttrain.stages.training import FILES, MAKES, Course, Lesson, TrainingSettings

if TYPE_CHECKING:
    from posttrain.data.forest import Sequence
    from posttrain.data.prepare import Learned
    from posttrain.engine.batch import LogProbs, Rows
    from posttrain.engine.loop import Run
    from posttrain.engine.policy import Policy

MethodName = Literal[
    "dpo",
    "robust",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sigmoid_norm",
    "sft",
    "simpo",
    "alphapo",
    "cpo",
    "orpo",
    "tpo",
    "tpo_l",
    "kto",
    "bco",
    "apo_zero_unpaired",
]
ANSWER = 64  # tokens of an answer that is written to see how long answers are
AGREES = {
    "cpu": 1e-4,
    "cuda": 0.5,
}  # nats a token by which reference and start may differ, in float32 and in bfloat16


class PreferenceOptimiser(OptimiserSettings):
    """AdamW, with what suits preferences."""

    unset_rate: ClassVar = UnsetRate(1e-6, lora=1e-5)

    learning_rate: float | None = Field(None, gt=0, description=f"peak learning rate; {unset_rate}")


class PreferenceSettings(TrainingSettings):
    """Settings of preference optimisation."""

    epochs: float = Field(1.0, gt=0, description="passes over the data")
    batch_size: int = Field(
        8, ge=1, description="rows an optimiser step: pairs, or answers with a label"
    )
    method: MethodName = Field(
        "dpo",
        description="what is optimised; docs/explanation/preference-losses.md has the formulas",
    )
    mix: dict[str, float] = Field(
        default_factory=dict,
        description=(
            "METHOD=WEIGHT of a weighted sum, in the place of --method: dpo=1 sft=0.2 is RPO"
        ),
    )
    options: Options = Options()  # type: ignore[call-arg]
    reference: Literal["", "stored", "copy", "adapters"] = Field(
        "",
        description=(
            "where the reference's log-probabilities come from; unset: adapters with --lora, else"
            " stored"
        ),
    )
    reference_model: Annotated[str | None, ReadsModel()] = Field(
        None, description="model to stay near to; unset: the one that training starts from"
    )
    reference_cache: Annotated[Path | None, ExecutionOnly()] = Field(
        None,
        description=(
            "folder where stored log-probabilities outlive the run; unset: in the run's folder"
            " while it lasts"
        ),
    )
    answered: int = Field(
        8,
        ge=0,
        description=(
            "held-out prompts that are answered at every validation, to see whether answers "
            "become longer or shorter; 0 is none"
        ),
    )
    optimiser: PreferenceOptimiser = PreferenceOptimiser()  # type: ignore[call-arg]

    @property
    def mixture(self) -> dict[str, float]:
        """Weights of methods by name."""
        return dict(self.mix) or {self.method: 1.0}

    def check(self) -> None:
        super().check()
        PreferenceCourse(self)


@stage(
    "preference",
    PreferenceSettings,
    help="let a model learn which answers are better: DPO and its family, KTO, ORPO, …",
    makes=MAKES,
    files=FILES,
)
def preference(settings: PreferenceSettings, context: Context) -> dict[str, Any]:
    """Let a model learn which of two answers is better (DPO and its family), or that an answer is
    good or bad (KTO, BCO). Killed at any moment, the same command goes on where it was and ends
    with the same weights.
    """
    course = PreferenceCourse(settings, context.inputs.models.get("reference_model"))
    return training.train(settings, context, course)


class PreferenceCourse(Course):
    """What the loop does with preferences.

    Args:
        reference_sha256: of the reference model, where it is not the one that is trained.
    """

    def __init__(self, settings: PreferenceSettings, reference_sha256: str | None = None) -> None:
        from posttrain.methods.preference import METHODS, preference

        self.reference_sha256 = reference_sha256
        self.loss = preference(settings.mixture, settings.options)
        # without WPO's weights, which fall as the policy moves, and the loss with them, however
        # little is learned
        unweighted = settings.options.model_copy(update={"weighting": None})
        self.held_loss = preference(settings.mixture, unweighted)
        named = [METHODS[name] for name in settings.mixture]
        self.learned: Learned = named[0].rows
        self.refers, self.probes = (
            any(one.reference for one in named),
            any(one.probes for one in named),
        )
        self.held: Rows | None = None
        self.alarms = Alarms()
        if not self.refers and (settings.reference or settings.reference_model):
            raise ConfigError(
                f"{' and '.join(settings.mixture)} needs no reference",
                cure="leave --reference and --reference-model out",
            )
        stored = self.refers and (
            settings.reference == "stored" or not (settings.reference or settings.lora)
        )
        if settings.reference_cache and not stored:
            raise ConfigError(
                "--reference-cache, and nothing of the reference is stored",
                cure="leave it out, or give --reference stored" if self.refers else "leave it out",
            )
        if settings.reference == "adapters" and not settings.lora:
            raise ConfigError(
                "--reference adapters without --lora", cure="add --lora, or leave --reference out"
            )
        if settings.reference == "adapters" and settings.reference_model:
            raise ConfigError(
                "--reference adapters is the model itself, --reference-model another",
                cure="leave one of them out",
            )
        if (
            settings.reference_cache
            and settings.reference_cache.exists()
            and not settings.reference_cache.is_dir()
        ):
            raise ConfigError(
                f"--reference-cache {settings.reference_cache} is no folder",
                cure="give a folder, or a new name",
            )
        if settings.data.truncate == "split":
            raise ConfigError(
                "--truncate split would compare parts of answers with each other",
                cure="use right, left or drop",
            )

    def lesson(
        self,
        settings: PreferenceSettings,
        learner: Policy,
        data: dict[str, Dataset],
        budget: int,
        observer: ConsoleObserver,
    ) -> Lesson:
        from posttrain.engine.model import without_dropout

        without_dropout(
            learner.model.network
        )  # what scores at random is not what the reference is held against
        kinds = (
            {float(x) for one in data["data"].numbers or () for x in one}
            if self.learned == "labels"
            else {0.0, 1.0}
        )
        if len(kinds) < 2:
            observer.message(
                f"all answers are labelled {'good' if 1.0 in kinds else 'bad'}: nothing tells it"
                " what differs"
            )
        rows = {label: self._rows(one, settings) for label, one in data.items()}
        self.held = rows.get("held out")
        return Lesson(
            self.loss,
            rows["data"],
            watch=self.alarms,
            held_out=(
                partial(self._held_out, learner, budget, settings.answered) if self.held else None
            ),
            begin=partial(self._refer, settings, observer) if self.refers else None,
        )

    def _rows(self, data: Dataset, settings: PreferenceSettings) -> Rows:
        from posttrain.engine.batch import Mismatched, Rows

        probes = Mismatched(data.trees, settings.seed, data.longest) if self.probes else None
        if self.probes and len(data.trees) < 2:
            raise ConfigError(
                "KTO needs at least two rows: it sets answers beside the prompts of others",
                cure="give more data",
            )
        return Rows(
            data.trees, self.loss.together, data.numbers, self.learned == "labels", probes=probes
        )

    # ------------------------------------------------------------------ the reference

    def _refer(self, settings: PreferenceSettings, observer: ConsoleObserver, run: Run) -> None:
        """Give the rows their reference, while the policy still is the model that training starts
        from.
        """
        learner: Any = run.policy
        if settings.reference_model is not None:
            scores = _other(settings.reference_model, learner, settings.device)
        elif (
            source := settings.reference or ("adapters" if settings.lora else "stored")
        ) == "stored":
            scores = _plain(learner)
        else:
            scores = learner.reference(source)
        if settings.reference == "stored" or not (settings.reference or settings.lora):
            self._store(settings, observer, run, scores)
        else:
            run.rows = replace(run.rows, reference=scores, probe_reference=scores)
            self.held = self.held and replace(self.held, reference=scores, probe_reference=scores)
        if settings.reference_model is None:
            _agree(run, observer)

    def _store(
        self, settings: PreferenceSettings, observer: ConsoleObserver, run: Run, scores: LogProbs
    ) -> None:
        from posttrain.data.plan import Plan
        from posttrain.engine.reference import store

        shared = run.policy.model.mode == "forest"
        model = self.reference_sha256 or run.policy.digest
        at = settings.reference_cache or settings.out / dataset.FOLDER
        plan = Plan(run.plan.sizes, run.plan.batch, run.plan.seed, run.plan.take)
        # rows that no step will take need no reference
        taken = sorted(
            {
                i
                for _ in range(min(run.steps, math.ceil(len(run.rows) / plan.batch)))
                for i in plan.next()
            }
            if run.steps * plan.batch < len(run.rows)
            else range(len(run.rows))
        )

        def kept(trees: Any, rows: list[int], of: Any, told_apart: list[int]) -> Any:
            # the tokens themselves: two models may write the same rows in different chat templates
            key = sha256_json(
                [model, str(run.policy.model.network.dtype), of.digest(), rows, told_apart]
            )
            with observer.working("reference", len(rows)) as told:
                return store(
                    scores,
                    trees,
                    rows,
                    at / f"reference-{key[:16]}",
                    run.budget,
                    shared=shared,
                    told=lambda done, total: told(done),
                )

        every = {
            "train": (run.rows, taken),
            "held out": (self.held, list(range(len(self.held))) if self.held else []),
        }
        found = {}
        for label, (rows, which) in every.items():
            if rows is not None:
                probes: Any = rows.probes
                found[label] = replace(
                    rows,
                    reference=kept(rows.trees, which, rows.trees, []),
                    probe_reference=(
                        kept(probes, which, rows.trees, [settings.seed, probes.longest])
                        if probes is not None
                        else None
                    ),
                )
        run.rows, self.held = found["train"], found.get("held out")

    # ------------------------------------------------------------------ held-out rows

    def _held_out(
        self, learner: Policy, budget: int, answered: int, told: Callable[[int, int], None]
    ) -> dict[str, Any]:
        """The method's loss on the held-out rows as one batch, how often the better answer has the
        higher reward, and what else the method reports.
        """
        assert self.held is not None
        n, labelled = len(self.held), self.learned == "labels"
        told(0, n)
        batch = self.held.batch(range(n), budget, shared=learner.model.mode == "forest")
        found = learner.measure(batch.forests, self.held_loss, batch.facts, probes=batch.probes)
        told(n, n)
        right = found.values["rewards/accuracies"].tolist()
        numbers = [i for fact in batch.facts for i in fact["number"].tolist()]
        prompts = self.held.prompts()
        # labels are numbered by sequence, of which a row that was a pair has two
        owners = (
            [one for one, tree in zip(prompts, self.held.trees, strict=True) for _ in tree]
            if labelled
            else prompts
        )
        clusters = [owners[i] for i in numbers]
        accuracy = judging.rate(right, clusters)
        out: dict[str, Any] = {
            "loss": found.loss,
            "interval": None,
            "accuracy": accuracy.mean,
            "accuracy_low": accuracy.low,
            "accuracy_high": accuracy.high,
            "sequences": len(right),
            **found.means(),
        }
        if not labelled:
            longer = found.values["length/chosen"] - found.values["length/rejected"]
            margins = found.values["rewards/margins"]
            out |= judging.by_length(right, longer.tolist(), clusters)
            out["length_correlation"] = judging.correlation(margins.tolist(), longer.tolist())
        if answered:
            out["answer_tokens"] = _answered(
                learner, [self.held.trees[i][0] for i in range(min(answered, n))]
            )
        return out

    def summary(self, run: Run) -> dict[str, Any]:
        """The last steps' means of what the method reports, and every alarm."""
        records = run.log.read()
        last = [one for one in records if "loss" in one][-20:]
        found: dict[str, list[float]] = {}  # a batch may have good answers alone, or bad ones
        for one in last:
            for name in one:
                if "/" in name or name in ("kl", "entropy"):
                    found.setdefault(name, []).append(one[name])
        again = Alarms()
        alarms = [alarm for one in records for alarm in again(one)]
        return {
            "last_steps": {name: math.fsum(some) / len(some) for name, some in found.items()},
            "alarms": alarms,
        }


def _answered(policy: Policy, some: list[Sequence]) -> float:
    """Mean tokens of the policy's own answers to some prompts, always the most likely token, ANSWER
    at most.
    """
    from posttrain.engine.sampler import Sampling

    prompts = [one.tokens[: int(one.trained[1:].argmax()) + 1].tolist() for one in some]
    drawn = policy.sample(prompts, Sampling(max_tokens=ANSWER, temperature=0))
    return math.fsum(len(one.tokens) for one in drawn) / len(drawn)


def _plain(policy: Policy) -> LogProbs:
    return lambda forests: [scores.logprob for scores in policy.score(forests)]


def _other(path: str, learner: Policy, device: Any) -> LogProbs:
    """Another model as the reference.

    Raises:
        ConfigError: it reads other tokens.
    """
    from posttrain.engine.policy import Policy

    other = Policy.load(path, device=device)
    if other.tokenizer.get_vocab() != learner.tokenizer.get_vocab():
        raise ConfigError(
            f"--reference-model {path} has another tokenizer than the model that is trained",
            cure="use a reference with the same tokenizer",
        )
    return _plain(other)


def _agree(run: Run, observer: ConsoleObserver) -> None:
    """Check, on the first batch, that the reference is the model that training starts from.

    Raises:
        PosttrainError: it is not.
    """
    import copy

    batch = run.rows.batch(
        copy.copy(run.plan).next(), run.budget, shared=run.policy.model.mode == "forest"
    )
    learner: Any = run.policy
    found = zip(learner.score(batch.forests), batch.facts, strict=True)
    off = max(
        float((scores.logprob.cpu() - fact["reference"].cpu()).abs().max())
        for scores, fact in found
    )
    observer.note(
        "reference",
        f"agrees with the model that training starts from within {off:.0e} nats a token",
    )
    if not off <= AGREES[run.policy.model.device.type]:
        raise PosttrainError(
            "the reference is not the model that training starts from: a token's log-probability"
            f" differs by {off:.2g} nats",
            cure="remove --reference-cache, or give --reference copy",
        )
