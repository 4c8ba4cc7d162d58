"""Preference methods and their mixtures: learn from which answer is better.

    loss = preference({"dpo": 1}, Options(beta=0.05))

The formulas are in `posttrain.methods.pairwise` and `posttrain.methods.unpaired`. Here: which
method needs what, the sums of targets into answers, denominators, and what is reported. Left out:
margins of pairs in the loss, which the reward models have.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from posttrain.core.errors import ConfigError, nearest
from posttrain.core.types import Denominators, Facts, Loss, Scores
from posttrain.methods import answers, pairwise, unpaired
from posttrain.methods.answers import Answers, Judged, Pairs
from posttrain.methods.options import Options

UNSET = Options()  # type: ignore[call-arg]
Values = Mapping[str, Any]  # a method's options by name, none missing
ALIKE = {
    "pairs": 2,
    "triples": 3,
    "labels": 1,
}  # kinds of rows, and how many consecutive sequences one row is


def _beta(values: Values) -> float:
    return values.get("beta", 1.0)


def ratio_reward(some: Answers, values: Values) -> Tensor:
    """[A] β·log π/π_ref."""
    return _beta(values) * some.ratio


def sum_reward(some: Answers, values: Values) -> Tensor:
    """[A] β·log π."""
    return _beta(values) * some.logprob


def mean_reward(some: Answers, values: Values) -> Tensor:
    """[A] β·log π a token."""
    return _beta(values) * some.mean


def shaped_reward(some: Answers, values: Values) -> Tensor:
    """[A] AlphaPO's."""
    return _beta(values) * pairwise.shaped(some.mean, values["alpha"])


# Options beside the formula's own: of sums of log-probabilities, of losses of single pairs, of
# methods that imitate.
BESIDE: dict[str, Any] = {"ld_alpha": 1.0, "weighting": False, "nll": 1.0}
SUMS = ("ld_alpha", "weighting")


@dataclass(frozen=True)
class Method:
    """A formula and what it needs.

    Attributes:
        function: `(Pairs or Judged, **options) -> [P] or [L]`; its docstring has the formula and
            the paper.
        beside: options it reads beside those of its function; names of `BESIDE`.
        rows: "pairs", "labels" or "triples".
        reference: whether it needs a reference's log-probabilities.
        probes: whether it needs probes: mismatched answers that are scored and not trained on.
        reward: `(answers, values) -> [A]`: the reward that is reported.
        imitates: the fact that names the answers whose likelihood is added; "" for none.
        couple: `(the whole batch or the probes) -> tensor`, for methods that couple the batch.
    """

    function: Callable[..., Tensor]
    beside: tuple[str, ...] = ()
    rows: Literal["pairs", "triples", "labels"] = "pairs"
    reference: bool = True
    probes: bool = False
    reward: Callable[[Answers, Values], Tensor] = ratio_reward
    imitates: str = ""
    couple: Callable[[Any], Tensor] | None = None

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Its options by name, with the values they have unless told otherwise.

        A `gamma` of None is β/2.
        """
        own = list(inspect.signature(self.function).parameters.values())[1:]
        return MappingProxyType(
            {p.name: p.default for p in own} | {name: BESIDE[name] for name in self.beside}
        )

    @property
    def options(self) -> frozenset[str]:
        """Names of the options it reads."""
        return frozenset(self.defaults)


METHODS: dict[str, Method] = {
    "dpo": Method(pairwise.dpo, SUMS),
    "robust": Method(pairwise.robust, SUMS),
    "hinge": Method(pairwise.hinge, SUMS),
    "ipo": Method(pairwise.ipo, ("weighting",)),
    "exo_pair": Method(pairwise.exo_pair, SUMS),
    "nca_pair": Method(pairwise.nca_pair, SUMS),
    "bco_pair": Method(pairwise.bco_pair, SUMS),
    "sppo_hard": Method(pairwise.sppo_hard, SUMS),
    "aot": Method(pairwise.aot, ("ld_alpha",), couple=pairwise.match_reference),
    "aot_unpaired": Method(pairwise.aot_unpaired, ("ld_alpha",), couple=pairwise.match_answers),
    "apo_zero": Method(pairwise.apo_zero, SUMS),
    "apo_down": Method(pairwise.apo_down, SUMS),
    "discopop": Method(pairwise.discopop, SUMS),
    "sigmoid_norm": Method(pairwise.sigmoid_norm, ("weighting",)),
    "sft": Method(pairwise.sft, reference=False, reward=sum_reward, imitates="chosen"),
    "simpo": Method(pairwise.simpo, ("weighting",), reference=False, reward=mean_reward),
    "alphapo": Method(pairwise.alphapo, ("weighting",), reference=False, reward=shaped_reward),
    "cpo": Method(
        pairwise.cpo, (*SUMS, "nll"), reference=False, reward=sum_reward, imitates="chosen"
    ),
    "orpo": Method(
        pairwise.orpo, ("weighting", "nll"), reference=False, reward=mean_reward, imitates="chosen"
    ),
    "tpo": Method(
        pairwise.tpo, (*SUMS, "nll"), "triples", reference=False, reward=sum_reward, imitates="gold"
    ),
    "tpo_l": Method(
        pairwise.tpo_l,
        ("weighting", "nll"),
        "triples",
        reference=False,
        reward=mean_reward,
        imitates="gold",
    ),
    "kto": Method(unpaired.kto, (), "labels", probes=True, couple=unpaired.mismatched),
    "bco": Method(unpaired.bco, (), "labels", couple=unpaired.middle),
    "apo_zero_unpaired": Method(unpaired.apo_zero_unpaired, (), "labels"),
}


@dataclass(frozen=True)
class Part:
    """One method of a mixture: its name, its share, and all its options."""

    name: str
    method: Method
    weight: float
    values: Values

    def view(self, scores: Scores, facts: Facts) -> Pairs | Judged:
        """What the method sees of a forest."""
        if self.method.rows == "labels":
            return answers.judged(scores, facts, reference=self.method.reference)
        return answers.pairs(
            scores, facts, reference=self.method.reference, tail=self.values.get("ld_alpha", 1.0)
        )

    def losses(self, seen: Pairs | Judged) -> Tensor:
        """[P] or [L] by the formula."""
        return self.method.function(
            seen, **{name: v for name, v in self.values.items() if name not in self.method.beside}
        )


def parts(mix: Mapping[str, float], options: Options) -> list[Part]:
    """Check a mixture and its options, and give each method its own.

    Raises:
        ConfigError: an unknown method, rows of different kinds, a weight that is not above 0, or an
            option that none of the methods reads.
    """
    if not mix:
        raise ConfigError("no preference method is named", cure='name one, such as "dpo"')
    for name, weight in mix.items():
        if name not in METHODS:
            raise ConfigError(f"unknown preference method {name!r}", cure=nearest(name, METHODS))
        if not 0 < weight < math.inf:
            raise ConfigError(
                f"the weight of {name} is {weight}",
                cure=f"give it one above 0, or leave {name} out",
            )
    first = next(iter(mix))
    for name in mix:
        if METHODS[name].rows != METHODS[first].rows:
            raise ConfigError(
                f"{first} learns from {METHODS[first].rows} and {name} from {METHODS[name].rows}",
                cure="mix methods of the same rows, or train one after the other",
            )
    if any(METHODS[n].probes for n in mix) and any(
        METHODS[n].couple and not METHODS[n].probes for n in mix
    ):
        raise ConfigError(
            f"{' and '.join(mix)} cannot be mixed: one is tied to probes, the other to the batch"
            " itself",
            cure="leave one of them out",
        )
    given = options.given()
    _check(mix, given)
    return [
        Part(
            name,
            METHODS[name],
            weight,
            {k: given.get(k, default) for k, default in METHODS[name].defaults.items()},
        )
        for name, weight in mix.items()
    ]


def _check(mix: Mapping[str, float], given: Values) -> None:
    """Raise where an option is not read, or without effect."""
    for option, value in given.items():
        readers = [name for name, method in METHODS.items() if option in method.options]
        off = (option == "weighting" and not value) or (option == "ld_alpha" and value == 1)
        if not off and not set(readers) & mix.keys():
            raise ConfigError(
                f"{option} has no meaning for {' and '.join(mix)}",
                cure=f"leave it out; it is read by {', '.join(readers)}",
                option=option,
            )
    if "f_alpha" in given and given.get("f_divergence") != "alpha_divergence":
        raise ConfigError(
            "f_alpha is of the alpha_divergence alone", cure="set f_divergence to alpha_divergence"
        )
    if "exo_pair" in mix and given.get("label_smoothing") == 0:
        raise ConfigError(
            "exo_pair has no loss at a label_smoothing of 0", cure="leave it out, which is 0.001"
        )


# ----------------------------------------------------------------------------------------- the loss


def preference(mix: Mapping[str, float], options: Options = UNSET) -> Loss:
    """The weighted sum of preference methods on the same rows.

    loss = Σ_m w_m·(Σ_pairs l_m / pairs + nll_m·Σ −log p / targets of the imitated answers), of the
    global batch

    Facts: `chosen`, `rejected` [P] of pairs and triples, `gold` [P] of triples, `label` [L] of
        labels; `reference` [N] where a
    method needs it; `number` [P], the pair's place in the global batch from 0 on, where a method
    couples pairs (AOT).

    Args:
        mix: weights by name of `METHODS`: {"dpo": 1}; RPO is {"dpo": 1, "sft": α}.
        options: each goes to every method that reads it.
    Returns: the loss. It reports the rewards of the mixture's first method.
    Raises:
        ConfigError: see `parts`.

    >>> import torch
    >>> scores = Scores(torch.tensor([0.5, 0.25]).log(), torch.tensor([0, 1]), sequences=2)
    >>> facts = {"chosen": torch.tensor([0]), "rejected": torch.tensor([1])}
    >>> loss = preference({"simpo": 1}, Options(beta=1, gamma=0))
    >>> round(float(loss.loss(scores, facts, None, Denominators(targets=2, sequences=2, pairs=1))),
    4)  # −log σ(log 2) = log 3/2 0.4055
    """
    mixed = parts(mix, options)
    weighing = any(part.values.get("weighting") for part in mixed)

    def loss(scores: Scores, facts: Facts, statistics: Any, denominators: Denominators) -> Tensor:
        total = scores.logprob.new_zeros(())
        own = answers.weights(scores, facts) if weighing else None
        for part in mixed:
            seen = part.view(scores, facts)
            if part.method.couple:
                seen = answers.coupled(seen, statistics[part.name], facts)
            each = part.losses(seen)
            if own is not None and part.values.get("weighting"):
                each = each * own
            rows = denominators.sequences if part.method.rows == "labels" else denominators.pairs
            total = total + part.weight * each.sum() / rows
            if part.method.imitates:
                total = total + part.weight * part.values.get("nll", 1.0) * _likelihood(
                    part, scores, facts, denominators
                )
        return total

    @torch.no_grad()
    def prepare(scores: list[Scores], facts: list[Facts]) -> dict[str, Tensor]:
        found = {}
        for part in mixed:
            if part.method.couple:
                views = [part.view(s, f) for s, f in zip(scores, facts, strict=True)]
                # none of the probes may have room for an answer
                found[part.name] = (
                    part.method.couple(answers.joined(views, facts)) if views else torch.zeros(())
                )
        return found

    @torch.no_grad()
    def report(scores: Scores, facts: Facts, statistics: Any) -> dict[str, Tensor]:
        return _report(mixed[0], scores, facts, statistics)

    return Loss(
        loss,
        prepare=prepare if any(part.method.couple for part in mixed) else None,
        report=report,
        needs=frozenset({"entropy", "collision"} if weighing else {"entropy"}),
        together=ALIKE[mixed[0].method.rows],
    )


def _likelihood(part: Part, scores: Scores, facts: Facts, denominators: Denominators) -> Tensor:
    """Negative log-likelihood a token of the answers that a method imitates, nats."""
    targets = (
        denominators.gold_targets if part.method.imitates == "gold" else denominators.chosen_targets
    )
    return -answers.totals(scores.logprob, scores)[facts[part.method.imitates]].sum() / targets


def _report(part: Part, scores: Scores, facts: Facts, statistics: Any) -> dict[str, Tensor]:
    """Rewards, log-probabilities and lengths [P], or of the good and of the bad answers; kl and
    entropy [N].

    Of labels, an answer is judged rightly where its reward is on the right side of the method's
    reference point.
    """
    out: dict[str, Tensor] = {}
    seen = part.view(scores, facts)
    if part.method.couple:
        seen = answers.coupled(seen, statistics[part.name], facts)
    reward = part.method.reward
    if isinstance(seen, Judged):
        assert seen.good is not None
        which = {"chosen": seen.good, "rejected": ~seen.good}
        rewards = {name: reward(seen.answers, part.values)[kind] for name, kind in which.items()}
        right = seen.advance.sign()
        if seen.coupled is not None:
            out["rewards/baseline"] = _beta(part.values) * seen.coupled.expand(scores.sequences)
    else:
        which = {"chosen": facts["chosen"], "rejected": facts["rejected"]}
        rewards = {
            "chosen": reward(seen.chosen, part.values),
            "rejected": reward(seen.rejected, part.values),
        }
        out["rewards/margins"] = rewards["chosen"] - rewards["rejected"]
        right = out["rewards/margins"].sign()
    out["rewards/accuracies"] = (right + 1) / 2
    logps, length = (
        answers.totals(scores.logprob, scores),
        answers.lengths(scores).to(scores.logprob.dtype),
    )
    for name, index in which.items():
        out |= {
            f"rewards/{name}": rewards[name],
            f"logps/{name}": logps[index],
            f"length/{name}": length[index],
        }
    if "reference" in facts:
        x = facts["reference"].to(scores.logprob.dtype) - scores.logprob
        out["kl"] = (
            x.square() / 2
        )  # k2: on answers the policy would not write, k3's eˣ is without bound
    if scores.entropy is not None:
        out["entropy"] = scores.entropy.detach()
    return out
