"""Batches that the policy makes itself: it samples, is scored, and gets credit.

    sample → score → credit → train, step after step

What was sampled and what it was worth stands in a journal before it is used, so that a run that was
killed goes on with the same rollouts and the same scores, whatever the scorer would say now. The
journal holds, for every round of every step,

    {"kind": "rollouts", "step": 3, "round": 0, "prompts": […], "texts": […], …}    and as arrays
        tokens, drawn, logprobs      of all rollouts, one after another
        weights                      a checksum of every tensor of the policy that drew them
    {"kind": "scores", "step": 3, "round": 0, "scores": […], "gold": […]}

Everything else is arithmetic on these numbers and the weights.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from posttrain.core.errors import CheckpointError
from posttrain.core.events import Alarm, Held, Step
from posttrain.core.journal import Entry, Journal
from posttrain.core.seeds import derive, generator
from posttrain.core.types import Columns, Read, Truncation
from posttrain.data.forest import Sequence, Tree, Unit, by_tree
from posttrain.data.plan import Plan
from posttrain.data.prompts import Prompt
from posttrain.engine.numbers import checksums
from posttrain.engine.source import Batch
from posttrain.environments.environment import Environment, Rollout, scored
from posttrain.methods import kl
from posttrain.methods.credit import Algorithm, Credit, Samples, divergence, same
from posttrain.methods.rl_options import RlOptions
from posttrain.methods.value import explained_variance
from posttrain.scoring.score import Score, Scorer
from posttrain.scoring.scorers import missing, refuse_failures, refuse_unscored

if TYPE_CHECKING:
    from posttrain.engine.policy import LogProbs, Policy
    from posttrain.engine.sampler import Sampling


@dataclass(frozen=True)
class Group:
    """A prompt, what was drawn for it, and what it was worth.

    Attributes:
        number: of the prompt.
        gold: scores of a scorer that is never trained on; None for those that it was not asked of.
        greedy: reward of the most likely answer, for algorithms that compare with it.
    """

    number: int
    prompt: Prompt
    rollouts: list[Rollout]
    scores: list[Score]
    gold: list[Score | None]
    greedy: float | None = None

    @property
    def rewards(self) -> np.ndarray:
        """[G] float64, NaN where the score is missing."""
        values = [math.nan if s.value is None else s.value for s in self.scores]
        return np.array(values, np.float64)

    @property
    def varied(self) -> bool:
        """Whether there is anything to learn from: two rewards that differ."""
        return not same(self.rewards)

    def tree(self) -> Tree:
        """Prompt and rollouts, which stay together."""
        ids = np.array(self.prompt.ids, np.int64)
        sequences = []
        for rollout in self.rollouts:
            tokens = np.concatenate([ids, rollout.tokens])
            trained = np.concatenate([np.zeros(len(ids), bool), rollout.drawn])
            sequences.append(Sequence(tokens, trained))
        return Tree(tuple(sequences), (Unit(tuple(range(len(sequences)))),))

    def split(self, values: np.ndarray) -> list[np.ndarray]:
        """[N] values of the tree's targets, by rollout."""
        ends = np.cumsum([int(rollout.drawn.sum()) for rollout in self.rollouts])
        return np.split(values, ends[:-1])


@dataclass(frozen=True)
class Gold:
    """A scorer that is never trained on, and asked now and then.

    Attributes:
        scorer: what it says.
        most: completions of a step that it is asked of.
    """

    scorer: Scorer
    most: int


# called with a step, its groups, and the batch's numbers; returns numbers to log beside them
Watch = Callable[[int, list[Group], dict[str, float]], dict[str, float]]


@dataclass
class Online:
    """The source of batches.

    Attributes:
        policy: draws, and is trained.
        environment: what it acts in.
        prompts: numbered as `plan` numbers them.
        params: how rollouts are drawn, `n` of each prompt.
        algorithm, options: how they get credit.
        journal: open.
        seed: of the draws.
        budget: tokens a forward pass.
        reference: log-probabilities of the policy to stay near to; None where there is none.
        passes, parts: see `Batch`.
        rounds: times that prompts are drawn for a step at most, where those whose answers are all
            worth the same are left out; 0 leaves none out.
        exact: the sampler's log-probabilities are the trainer's to the bit.
        scorer_spec: for messages.
        gold: None where there is none.
        watch: hears of every step.
        frozen: nothing is added to the journal; what it lacks is an error.
        alarms: by step, from 1: that the policy has left its reference; the first one alone.
    """

    policy: Policy
    environment: Environment
    prompts: list[Prompt]
    plan: Plan
    params: Sampling
    algorithm: Algorithm
    options: RlOptions
    journal: Journal
    seed: int
    budget: int
    reference: LogProbs | None = None
    passes: int = 1
    parts: int = 1
    rounds: int = 0
    exact: bool = False
    scorer_spec: str = ""
    gold: Gold | None = None
    watch: Watch | None = None
    frozen: bool = False
    alarms: dict[int, str] = field(default_factory=dict)
    _records: dict[tuple[str, int, int], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        values = self.algorithm.values(self.options)
        self.control, self._max_kl = kl.control(values), values["max_kl"]
        for i, entry in enumerate(self.journal):
            value = entry.value
            self._records[value["kind"], value["step"], value["round"]] = i

    # -------------------------------------------------------------------------------- the source

    @property
    def steps_per_epoch(self) -> int:
        return self.plan.steps_per_epoch

    def state(self) -> Any:
        alarms = sorted(self.alarms.items())
        return {"plan": self.plan.state(), "kl": dict(self.control.state()), "alarms": alarms}

    def restore(self, state: Any) -> None:
        self.plan.restore(state["plan"])
        self.control.restore(state["kl"])
        self.alarms = dict(state["alarms"])

    def raised(self, event: Step | Held) -> list[Alarm]:
        """The alarm of a step, when it is logged."""
        text = self.alarms.get(event.step) if isinstance(event, Step) else None
        return [Alarm(event.step, text)] if text else []

    def batch(self, step: int) -> Batch:
        groups, drawn = self._groups(step)
        trees = [group.tree() for group in groups]
        columns = self._columns(trees)
        values = _measure(drawn, groups)
        trees, credited = self._credited(groups, trees, columns)
        self._check_divergence(step, credited)
        values |= credited
        if self.watch is not None:
            values |= self.watch(step, drawn, values)
        return Batch(trees, passes=self.passes, parts=self.parts, values=values)

    # ------------------------------------------------------------------------ sampling and scoring

    def _groups(self, step: int) -> tuple[list[Group], list[Group]]:
        """The groups to learn from, and all that were drawn."""
        most = max(1, self.rounds)
        drawn: list[Group] = []
        kept: list[Group] = []
        for turn in range(most):
            groups = self._round(step, turn)
            drawn += groups
            if not self.rounds:
                return groups, drawn
            kept += [group for group in groups if group.varied]
            if len(kept) >= self.plan.batch:
                break
        # where all are alike there is nothing to learn; the step is taken with what there is
        return kept[: self.plan.batch] or drawn[: self.plan.batch], drawn

    def _round(self, step: int, turn: int) -> list[Group]:
        numbers = self.plan.next()
        prompts = [self.prompts[number] for number in numbers]
        rollouts = self._drawn(step, turn, numbers, prompts)
        scores, gold = self._scored(step, turn, prompts, rollouts)
        greedy = self._greedy(step, turn, prompts)
        columns = zip(numbers, prompts, rollouts, scores, gold, greedy, strict=True)
        return [Group(*column) for column in columns]

    def _greedy(self, step: int, turn: int, prompts: list[Prompt]) -> Many[float | None]:
        """What the most likely answer to each prompt is worth, where the algorithm asks for it."""
        if not self.algorithm.greedy:
            return [None] * len(prompts)
        at = self._records.get(("greedy", step, turn))
        if at is None:
            params = replace(self.params, n=1, temperature=0.0, top_k=0, top_p=1.0)
            rollouts = self.environment.act(self.policy, prompts, params, [0] * len(prompts))
            scores = self.environment.score(prompts, rollouts)
            self._append("greedy", step, turn, {"scores": _as_json(scores)}, {})
            at = self._records["greedy", step, turn]
        return [score[0].value for score in _from_json(self.journal[at].value["scores"])]

    def _drawn(
        self, step: int, turn: int, numbers: list[int], prompts: list[Prompt]
    ) -> list[list[Rollout]]:
        """What follows the prompts: read back, or drawn and written down."""
        at = self._records.get(("rollouts", step, turn))
        if at is None:
            rollouts = self.draw(step, turn, prompts)
            record, arrays = _written(rollouts)
            arrays["weights"] = self.checksums()
            self._append("rollouts", step, turn, {"prompts": numbers, **record}, arrays)
            at = self._records["rollouts", step, turn]
        # always as it is read back, so that a resumed run sees the same numbers
        return _read_back(self.journal[at])

    def draw(self, step: int, turn: int, prompts: Many[Prompt]) -> list[list[Rollout]]:
        """Sample for a round of a step."""
        seeds = [derive(self.seed, "rollout", step, turn, i) for i in range(len(prompts))]
        return self.environment.act(self.policy, prompts, self.params, seeds)

    def drawn_again(self, step: int) -> dict[str, np.ndarray]:
        """What is drawn for the prompts of a step that is in the journal: `tokens` and `logprobs`.

        Raises:
            CheckpointError: it is not.
        """
        value = self._first_round(step).value
        rollouts = self.draw(step, 0, [self.prompts[number] for number in value["prompts"]])
        return _compared(_written(rollouts)[1])

    def recorded_rollouts(self, step: int) -> dict[str, np.ndarray]:
        """The same as the journal has it."""
        return _compared(self._first_round(step).arrays)

    def recorded_checksums(self, step: int) -> np.ndarray | None:
        """The journal's `checksums` of the policy at the beginning of a step; None where it has
        none.
        """
        at = self._records.get(("rollouts", step, 0))
        return None if at is None else self.journal[at].arrays["weights"]

    def _first_round(self, step: int) -> Entry:
        at = self._records.get(("rollouts", step, 0))
        if at is None:
            raise CheckpointError(
                f"{self.journal.folder} has no rollouts of step {step + 1}",
                cure="give another step",
            )
        return self.journal[at]

    def checksums(self) -> np.ndarray:
        """[tensors] uint64 of the policy as it stands, in the order of its parameters."""
        return checksums(parameter for _, parameter in self.policy.network.weights())

    def _scored(
        self, step: int, turn: int, prompts: list[Prompt], rollouts: list[list[Rollout]]
    ) -> tuple[list[list[Score]], list[list[Score | None]]]:
        """What they are worth, and what the gold scorer says of some: read back, or asked and
        written down.
        """
        at = self._records.get(("scores", step, turn))
        if at is None:
            scores = self.environment.score(prompts, rollouts)
            every = [score for group in scores for score in group]
            refuse_failures(self.scorer_spec, every)
            cure = "look at the answers, in rollouts/records.jsonl, or give another --scorer"
            absent, where = missing(every), f"step {step + 1}"
            refuse_unscored(self.scorer_spec, absent, len(every), "answers", where, cure)
            gold = self._gold(step, turn, prompts, rollouts)
            record = {"scores": _as_json(scores), "gold": _as_json(gold)}
            self._append("scores", step, turn, record, {})
            at = self._records["scores", step, turn]
        value = self.journal[at].value
        return _from_json(value["scores"]), _from_json(value["gold"])

    def _gold(
        self, step: int, turn: int, prompts: list[Prompt], rollouts: list[list[Rollout]]
    ) -> list[list[Score | None]]:
        """Gold scores of as many rollouts as it may be asked of, spread over the prompts."""
        out: list[list[Score | None]] = [[None] * len(group) for group in rollouts]
        if self.gold is None or turn:
            return out
        each = -(-self.gold.most // len(prompts))
        rng = generator(self.seed, "gold", step)
        chosen = [
            (i, int(j))
            for i, group in enumerate(rollouts)
            for j in sorted(rng.permutation(len(group))[:each])
        ][: self.gold.most]
        asked = [prompts[i] for i, _ in chosen]
        scores = scored(self.gold.scorer, asked, [[rollouts[i][j]] for i, j in chosen])
        for (i, j), score in zip(chosen, scores, strict=True):
            out[i][j] = score[0]
        return out

    def _append(
        self, kind: str, step: int, turn: int, record: dict[str, Any], arrays: dict[str, Any]
    ) -> None:
        if self.frozen:
            raise CheckpointError(
                f"{self.journal.folder} has no {kind} of step {step + 1}", cure="give another step"
            )
        self._records[kind, step, turn] = len(self.journal)
        self.journal.append({"kind": kind, "step": step, "round": turn, **record}, **arrays)
        self.journal.flush()

    # ---------------------------------------------------------------------------------- arithmetic

    @property
    def distribution(self) -> Read:
        """What is read off the policy: log-probabilities of the distribution it drew from."""
        cut = Truncation(self.params.top_k, self.params.top_p)
        return Read(
            temperature=self.params.temperature, truncation=None if cut == Truncation() else cut
        )

    def _columns(self, trees: list[Tree]) -> dict[str, list[np.ndarray]]:
        """What the policy, and its reference, say of the targets of each tree, before training."""
        packed = self.policy.pack(trees, self.budget)
        read = replace(self.distribution, value=self.algorithm.value)
        out: dict[str, list[np.ndarray]] = {}
        if not self.exact or self.algorithm.value:
            scores: list[Columns] = self.policy.score(packed, read)
            out["old_logprobs"] = by_tree(packed, [c.logprob for c in scores], trees)
            if self.algorithm.value:
                out["old_values"] = by_tree(packed, [c.value for c in scores], trees)
        if self.reference is not None:
            out["reference"] = by_tree(packed, self.reference(packed), trees)
        return out

    def _credited(
        self, groups: list[Group], trees: list[Tree], columns: dict[str, list[np.ndarray]]
    ) -> tuple[list[Tree], dict[str, float]]:
        """The trees with every fact that the loss reads; and how far the policy is from its
        reference.
        """
        drawn = [np.concatenate([r.logprobs[r.drawn] for r in g.rollouts]) for g in groups]
        columns.setdefault("old_logprobs", [values.astype(np.float32) for values in drawn])
        columns["sampled_logprobs"] = [values.astype(np.float32) for values in drawn]
        samples = []
        for i, group in enumerate(groups):
            split = {name: group.split(values[i]) for name, values in columns.items()}
            samples.append(
                Samples(
                    rewards=group.rewards,
                    lengths=np.array([int(r.drawn.sum()) for r in group.rollouts]),
                    finished=np.array([r.finished for r in group.rollouts]),
                    logprobs=split["old_logprobs"],
                    reference=split.get("reference"),
                    values=split.get("old_values"),
                    greedy=group.greedy,
                    longest=self.params.max_tokens,
                )
            )
        credits = self.algorithm.credit(samples, self._weighed_options())
        out = []
        for i, (tree, credit) in enumerate(zip(trees, credits, strict=True)):
            facts = {name: values[i] for name, values in columns.items()}
            facts |= _facts(credit)
            facts["staleness"] = np.zeros(tree.N, np.float32)
            for name, values in facts.items():
                tree = tree.with_targets(name, np.asarray(values, np.float32))
            out.append(tree)
        values = self._divergence(samples)
        if self.algorithm.value:
            values |= _explained(samples, credits)
        return out, values

    def _weighed_options(self) -> RlOptions:
        """The options with the weight that the divergence has by now."""
        if isinstance(self.control, kl.AdaptiveKL):
            return self.options.model_copy(update={"beta": self.control.beta})
        return self.options

    def _divergence(self, samples: Many[Samples]) -> dict[str, float]:
        """How far the policy is from its reference, nats a rollout; moves its weight."""
        if self.reference is None:
            return {}
        each = np.concatenate([divergence(group) for group in samples])
        mean = float(each.mean())
        values = {"rollout/kl": mean, "rollout/beta": self.control.beta}
        self.control.update(mean, len(each))
        return values

    def _check_divergence(self, step: int, values: dict[str, float]) -> None:
        """Raise an alarm, once, where the policy is far from its reference.

        Raises:
            PosttrainError: it is further than it may be.
        """
        if "rollout/kl" in values:
            text = kl.check(values["rollout/kl"], self._max_kl)
            if text and not self.alarms:
                self.alarms[step + 1] = text


def _facts(credit: Credit) -> dict[str, np.ndarray]:
    facts = {"advantages": np.concatenate(credit.advantages)}
    if credit.returns is not None:
        facts["returns"] = np.concatenate(credit.returns)
    return facts


def _explained(samples: Many[Samples], credits: Many[Credit]) -> dict[str, float]:
    """How much of what came the value head had expected."""
    values = [np.concatenate(group.values) for group in samples if group.values]
    returns = [np.concatenate(credit.returns) for credit in credits if credit.returns]
    share = explained_variance(*(torch.from_numpy(np.concatenate(x)) for x in (values, returns)))
    return {} if share is None else {"rollout/explained_variance": share}


def _measure(drawn: list[Group], groups: list[Group]) -> dict[str, float]:
    """Numbers of a step's rollouts."""
    rollouts = [rollout for group in drawn for rollout in group.rollouts]
    rewards = np.concatenate([group.rewards for group in drawn])
    known = rewards[np.isfinite(rewards)]
    distinct = [len({r.text for r in group.rollouts}) / len(group.rollouts) for group in drawn]
    gold = [s.value for g in drawn for s in g.gold if s is not None and s.value is not None]
    values = {
        "reward": float(known.mean()) if len(known) else math.nan,
        "rollout/reward_std": float(known.std()) if len(known) else math.nan,
        "rollout/length": float(np.mean([len(r.tokens) for r in rollouts])),
        "rollout/finished": float(np.mean([r.finished for r in rollouts])),
        "rollout/distinct": float(np.mean(distinct)),
        "rollout/same_reward": float(np.mean([not group.varied for group in drawn])),
        "rollout/unscored": 1 - len(known) / len(rewards),
        "rollout/groups": float(len(groups)),
    }
    if gold:
        values["gold"] = math.fsum(gold) / len(gold)
    return {name: value for name, value in values.items() if math.isfinite(value)}


# ----------------------------------------------------------------------------------- as records


def _written(rollouts: Many[Many[Rollout]]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Rollouts as JSON and arrays."""
    flat = [rollout for group in rollouts for rollout in group]
    record = {
        "groups": [len(group) for group in rollouts],
        "lengths": [len(rollout.tokens) for rollout in flat],
        "finished": [rollout.finished for rollout in flat],
        "texts": [rollout.text for rollout in flat],
        "messages": [rollout.message for rollout in flat],
    }
    arrays = {
        name: np.concatenate([getattr(rollout, name) for rollout in flat])
        for name in ("tokens", "drawn", "logprobs")
    }
    return record, arrays


def _compared(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: arrays[name] for name in ("tokens", "logprobs")}


def _read_back(entry: Entry) -> list[list[Rollout]]:
    value, arrays = entry.value, entry.arrays
    ends = np.cumsum(value["lengths"])[:-1]
    parts = [np.split(arrays[name], ends) for name in ("tokens", "drawn", "logprobs")]
    columns = zip(*parts, value["finished"], value["texts"], value["messages"], strict=True)
    flat = iter([Rollout(*column) for column in columns])
    return [[next(flat) for _ in range(size)] for size in value["groups"]]


def _as_json(scores: Iterable[Iterable[Score | None]]) -> list[list[dict[str, Any] | None]]:
    def one(score: Score | None) -> dict[str, Any] | None:
        if score is None:
            return None
        record: dict[str, Any] = {"value": score.value}
        if score.parts:
            record["parts"] = dict(score.parts)
        if score.why:
            record["why"] = score.why
        if score.failed:
            record["failed"] = True
        return record

    return [[one(score) for score in group] for group in scores]


def _from_json(groups: Any) -> Any:
    return [[None if s is None else Score(**s) for s in group] for group in groups]


def reasons(groups: Many[Group]) -> Counter[str]:
    """Why scores are missing."""
    return Counter(s.why for group in groups for s in group.scores if s.value is None)
