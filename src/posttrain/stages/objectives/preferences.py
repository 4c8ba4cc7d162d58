"""Learn which of two answers is better, or that an answer is good or bad.

The reference is the model that training starts from, or another. Its log-probabilities are

    stored     computed once before the first step and kept: no second model in memory
    copy       computed in every step by a frozen copy
    adapters   computed in every step by the model itself, its adapters off
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from posttrain.core.errors import ConfigError, PosttrainError
from posttrain.core.events import Reporter
from posttrain.core.files import sha256_json
from posttrain.evals import judging, stats
from posttrain.stages import dataset
from posttrain.stages.alarms import Alarms, hardly_moved, hardly_moved_in_steps
from posttrain.stages.dataset import Dataset
from posttrain.stages.objectives.objective import (
    Setup,
    exported_validation,
    extra_characters,
    last_means,
)

if TYPE_CHECKING:
    from torch import Tensor

    from posttrain.data.examples import Kind
    from posttrain.data.forest import Sequence
    from posttrain.engine.loop import Run
    from posttrain.engine.policy import LogProbs, Policy
    from posttrain.engine.source import Offline, Rows, TreeScores

ANSWER = 64  # tokens of an answer that is written to see how long answers are


@dataclass(frozen=True)
class Agreement:
    """How far the reference may be from the model that training starts from, nats a token."""

    mean: float
    percentile: float  # the 99th
    most: float

    def allows(self, gaps: Tensor) -> bool:
        """Whether differences of log-probabilities [N], nats, are within all three limits."""
        mean, percentile, most = float(gaps.mean()), float(gaps.quantile(0.99)), float(gaps.max())
        return mean <= self.mean and percentile <= self.percentile and most <= self.most


# in float32, and in bfloat16, where rare tokens are off by rounding alone
AGREEMENT = {"cpu": Agreement(1e-5, 1e-4, 1e-4), "cuda": Agreement(0.02, 0.2, 1.0)}


class Preferences:
    """Preference optimisation of a policy.

    Args:
        settings: of the stage `preference`.
        reference_sha256: of the reference model, where it is not the one that is trained.
    """

    separator = "\n"

    def __init__(self, settings: Any, reference_sha256: str | None = None) -> None:
        from posttrain.methods.preference import METHODS, preference

        self.reference_sha256 = reference_sha256
        self.loss = preference(settings.mixture, settings.options)
        # without WPO's weights, which fall as the policy moves, and the loss with them, however
        # little is learned
        unweighted = settings.options.model_copy(update={"weighting": None})
        self.held_loss = preference(settings.mixture, unweighted)
        methods = [METHODS[name] for name in settings.mixture]
        self.learned: Kind = methods[0].rows
        self.needs_reference = any(method.reference for method in methods)
        self.relative = methods[0].reference  # whose rewards are reported
        self.needs_probes = any(method.probes for method in methods)
        self.held: Offline | None = None
        self.alarms = Alarms()
        self._check(settings)

    def _check(self, settings: Any) -> None:
        """Raise where settings contradict each other."""
        if not self.needs_reference and (settings.reference or settings.reference_model):
            raise ConfigError(
                f"{' and '.join(settings.mixture)} needs no reference",
                cure="leave --reference and --reference-model out",
            )
        if settings.reference_cache and not (self.needs_reference and _is_stored(settings)):
            cure = "leave it out, or give --reference stored"
            raise ConfigError(
                "--reference-cache, and nothing of the reference is stored",
                cure=cure if self.needs_reference else "leave it out",
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
        cache = settings.reference_cache
        if cache and cache.exists() and not cache.is_dir():
            raise ConfigError(
                f"--reference-cache {cache} is no folder", cure="give a folder, or a new name"
            )
        if settings.data.truncate == "split":
            raise ConfigError(
                "--truncate split would compare parts of answers with each other",
                cure="use right, left or drop",
            )

    def load(self, settings: Any) -> Policy:
        from posttrain.engine.policy import Policy

        return Policy.load(
            settings.model, device=settings.device, lora=settings.lora, seed=settings.seed
        )

    def setup(
        self,
        settings: Any,
        learner: Policy,
        data: dict[str, Dataset],
        budget: int,
        reporter: Reporter,
    ) -> Setup:
        # what scores at random is not what the reference is held against
        learner.without_dropout()
        self._warn_of_one_label(data["data"], reporter)
        train = self._rows(data["data"], settings)
        held_out = None
        if "held out" in data:
            self.held = self._rows(data["held out"], settings)
            held_out = partial(self._held_out, learner, budget, settings.answered)
        return Setup(
            self.loss,
            train.rows,
            probes=train.probes,
            watch=self.alarms,
            held_out=held_out,
            begin=partial(self._refer, settings, reporter) if self.needs_reference else None,
        )

    def _warn_of_one_label(self, data: Dataset, reporter: Reporter) -> None:
        if self.learned != "labels":
            return
        labels = {float(label) for row in data.numbers or () for label in row}
        if len(labels) < 2:
            kind = "good" if 1.0 in labels else "bad"
            reporter.message(
                f"all answers are labelled {kind}: there is nothing to compare them with"
            )

    def _rows(self, data: Dataset, settings: Any) -> Offline:
        """Rows with their facts, in the order they have; the probes of every row."""
        from posttrain.data.examples import Examples, Mismatched
        from posttrain.data.plan import Plan
        from posttrain.engine.source import Offline, Rows

        examples = Examples(data.trees, self.learned, data.numbers)
        probes = None
        if self.needs_probes:
            if len(data.trees) < 2:
                raise ConfigError(
                    "KTO needs at least two rows: it sets answers beside the prompts of others",
                    cure="give more data",
                )
            probes = Rows(Mismatched(data.trees, settings.seed, data.longest))
        return Offline(Rows(examples), Plan(len(examples), len(examples), 0), probes)

    # ------------------------------------------------------------------------------ the reference

    def _refer(self, settings: Any, reporter: Reporter, run: Run) -> None:
        """Give the rows their reference, while the policy still is the model that training starts
        from.
        """
        from posttrain.engine.source import tree_scores

        learner: Any = run.policy
        scores = tree_scores(
            learner, _log_probs(settings, learner, self.reference_sha256), run.budget
        )
        source: Any = run.source
        if _is_stored(settings):
            self._store(settings, reporter, run, scores)
        else:
            for offline in (source, self.held):
                if offline is not None:
                    offline.rows = replace(offline.rows, reference=scores)
                    offline.probes = offline.probes and replace(offline.probes, reference=scores)
        if settings.reference_model is None:
            _check_agreement(run, reporter)

    def _store(self, settings: Any, reporter: Reporter, run: Run, scores: TreeScores) -> None:
        """Score the rows that will be read, once, and read them from the disk from then on."""
        from posttrain.core.journal import Journal
        from posttrain.engine.reference import store

        model = self.reference_sha256 or run.policy.digest
        folder = settings.reference_cache or settings.out / dataset.FOLDER

        def stored(rows: Rows, tokens: Any, taken: list[int], probes: list[int]) -> Rows:
            # the tokens themselves: two models may write the same rows in different chat templates
            key = {
                "reference": model,
                "dtype": str(run.policy.network.dtype),
                "tokens": tokens.digest(),
                "rows": sha256_json([taken, probes]),
            }
            place = folder / f"reference-{sha256_json(key)[:16]}"
            journal = Journal(place, key, wait=True, message=reporter.message)

            def score(block: Many[int]) -> list[Any]:
                return scores([rows.trees[i] for i in block])

            with reporter.working("reference", len(taken)) as progress:
                return replace(rows, reference=store(journal, taken, score, progress))

        source: Any = run.source
        todo = [(source, _taken(run, source))]
        if self.held is not None:
            todo.append((self.held, list(range(len(self.held.rows)))))
        for offline, taken in todo:
            tokens = offline.rows.trees.trees
            offline.rows = stored(offline.rows, tokens, taken, [])
            if offline.probes is not None:
                drawn = [settings.seed, offline.probes.trees.longest]
                offline.probes = stored(offline.probes, tokens, taken, drawn)

    # ------------------------------------------------------------------------------- held-out rows

    def _held_out(
        self,
        learner: Policy,
        budget: int,
        answered: int,
        progress: Callable[[int, int], None],
        before: list[float] | None,
    ) -> tuple[dict[str, Any], list[float]]:
        """The method's loss on the held-out rows as one batch, how often the better answer has the
        higher reward, and what else the method reports.

        Returns: and of every pair its margin, or of every labelled answer whether it is right.
        """
        assert self.held is not None
        n = len(self.held.rows)
        progress(0, n)
        batch = self.held.take(range(n))
        forests = learner.pack(batch.trees, budget)
        probes = None
        if batch.probes is not None:
            probes = [forest for forest in learner.pack(batch.probes, budget) if forest.N]
        measured = learner.measure(forests, self.held_loss, probes=probes)
        progress(n, n)
        numbers = self._numbers(forests)  # the rows' own order, whatever the budget
        right = _ordered(measured.values["rewards/accuracies"], numbers)
        clusters = self._clusters()
        accuracy = stats.share(right, clusters)
        out: dict[str, Any] = {
            "loss": measured.loss,
            "interval": None,
            "accuracy": accuracy.mean,
            "accuracy_low": accuracy.low,
            "accuracy_high": accuracy.high,
            "sequences": len(right),
            **measured.means(),
        }
        rows = right
        if self.learned != "labels":
            rows = _ordered(measured.values["rewards/margins"], numbers)
            assert self.held is not None
            examples: Any = self.held.rows.trees
            longer = extra_characters(examples.trees, len(examples))
            out |= {"chance": judging.CHANCE, **judging.margins(rows, before, clusters)}
            out |= judging.by_length(right, longer, clusters)
            out["length_correlation"] = judging.correlation(rows, longer)
        elif before is not None:
            change = stats.share_difference(right, before, clusters)
            out["difference"] = {"accuracy": change.json()}
        if answered:
            first = [batch.trees[i][0] for i in range(min(answered, n))]
            out["answer_tokens"] = _mean_answer(learner, first)
        return out, rows

    def _numbers(self, forests: Many[Any]) -> list[int]:
        """The number of every pair, or of every labelled answer, in the order of the forests."""
        if self.learned != "labels":
            return [number for forest in forests for number in forest.facts.numbers.tolist()]
        return [number for forest in forests for number in forest.sequence.tolist()]

    def _clusters(self) -> list[Any]:
        """The prompt of every pair, or of every labelled answer."""
        assert self.held is not None
        examples: Any = self.held.rows.trees
        prompts = examples.prompts()
        if self.learned != "labels":
            return prompts
        # answers are numbered by sequence, of which a row that was a pair has two
        owners = []
        for prompt, tree in zip(prompts, examples.trees, strict=True):
            owners += [prompt] * len(tree)
        return owners

    def summary(self, run: Run) -> dict[str, Any]:
        """The last steps' means of what the method reports, and every alarm."""
        means = last_means(run, ("kl", "entropy"))
        alarms = [str(alarm) for alarm in self.alarms.raised]
        step, held = exported_validation(run)
        warning = ""
        if held is not None:
            warning = hardly_moved(held, self.relative)
        elif self.relative:
            warning = hardly_moved_in_steps(means)
        if warning:
            alarms.append(f"after step {step}: {warning}")
        return {"last_steps": means, "alarms": alarms}


def _is_stored(settings: Any) -> bool:
    """Whether the reference's log-probabilities are kept on the disk."""
    return settings.reference == "stored" or not (settings.reference or settings.lora)


def _ordered(values: Tensor, numbers: Many[int]) -> list[float]:
    """Values by the numbers that they have."""
    out = [0.0] * len(numbers)
    for number, value in zip(numbers, values.tolist(), strict=True):
        out[number] = value
    return out


def _taken(run: Run, source: Offline) -> list[int]:
    """The rows that some step will take; the others need no reference."""
    plan = copy.copy(source.plan)
    plan.restore({"epoch": 0, "row": 0})
    rows = len(source.rows)
    if run.steps * plan.batch >= rows:
        return list(range(rows))
    steps = min(run.steps, math.ceil(rows / plan.batch))
    return sorted({row for _ in range(steps) for row in plan.next()})


def _mean_answer(policy: Policy, sequences: list[Sequence]) -> float:
    """Mean tokens of the policy's own answers to some prompts, always the most likely token, ANSWER
    at most.
    """
    from posttrain.data.examples import answer_start
    from posttrain.engine.sampler import Sampling

    prompts = [sequence.tokens[: answer_start(sequence)].tolist() for sequence in sequences]
    completions = policy.sample(prompts, Sampling(max_tokens=ANSWER, temperature=0))
    return math.fsum(len(completion.tokens) for completion in completions) / len(completions)


def _log_probs(settings: Any, learner: Policy, sha256: str | None) -> LogProbs:
    """The reference: forests → log-probabilities.

    Args:
        sha256: of the reference model when the run began.
    Raises:
        ConfigError: another model reads other tokens, or it changed since.
    """
    from posttrain.engine.policy import Policy

    path = settings.reference_model
    if path is None:
        return learner.logprobs if _is_stored(settings) else learner.reference(settings.reference)
    other = Policy.load(path, device=settings.device)
    if sha256 and other.digest != sha256:
        raise ConfigError(
            f"--reference-model {path} changed while the run began",
            cure="put it back as it was, and the same command goes on; or give another --out",
        )
    if other.tokenizer.get_vocab() != learner.tokenizer.get_vocab():
        raise ConfigError(
            f"--reference-model {path} has another tokenizer than the model that is trained",
            cure="use a reference with the same tokenizer",
        )
    return other.logprobs


def _check_agreement(run: Run, reporter: Reporter) -> None:
    """Check, on the first batch, that the reference is the model that training starts from.

    Raises:
        PosttrainError: it is not.
    """
    import torch

    source: Any = run.source
    batch = source.take(copy.copy(source.plan).next())
    learner: Any = run.policy
    forests = learner.pack(batch.trees, run.budget)
    gaps = []
    for forest, logprob in zip(forests, learner.logprobs(forests), strict=True):
        gaps.append((logprob.float().cpu() - forest.facts.targets["reference"]).abs())
    off = torch.cat(gaps)
    mean, most = float(off.mean()), float(off.max())
    if not AGREEMENT[learner.device.type].allows(off):
        raise PosttrainError(
            "the reference is not the model that training starts from: log-probabilities differ by "
            f"{mean:.2g} nats a token on average and {most:.2g} at most",
            cure="remove --reference-cache, or give --reference copy",
        )
    reporter.note(
        "reference",
        f"agrees with the model that training starts from within {most:.1g} nats a token",
    )
