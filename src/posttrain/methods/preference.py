"""Preference methods and their mixtures: learn from which answer is better.

    loss = preference({"dpo": 1}, Options(beta=0.05))

The formulas are in `posttrain.methods.pairwise` and `posttrain.methods.unpaired`. Here: which
method needs what, denominators, and what is reported. Left out:
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
from posttrain.core.ties import wins
from posttrain.core.types import Columns, Counts, Facts, Loss, Read
from posttrain.methods import answers, pairwise, unpaired
from posttrain.methods.answers import CHOSEN, GOLD, REJECTED, Answers, Labelled, Pairs
from posttrain.methods.options import Options

UNSET = Options()  # type: ignore[call-arg]
Values = Mapping[str, Any]  # a method's options by name, none missing
IMITATED = {"chosen": CHOSEN, "gold": GOLD}  # the member of a unit whose likelihood may be added


def _beta(values: Values) -> float:
    return values.get("beta", 1.0)


def ratio_reward(scored: Answers, values: Values) -> Tensor:
    """[A] β·log π/π_ref."""
    return _beta(values) * scored.ratio


def sum_reward(scored: Answers, values: Values) -> Tensor:
    """[A] β·log π."""
    return _beta(values) * scored.logprob


def mean_reward(scored: Answers, values: Values) -> Tensor:
    """[A] β·log π a token."""
    return _beta(values) * scored.mean


def shaped_reward(scored: Answers, values: Values) -> Tensor:
    """[A] AlphaPO's."""
    return _beta(values) * pairwise.shaped(scored.mean, values["alpha"])


# Options besides those of the formula: of sums of log-probabilities, of losses of single pairs, of
# methods that imitate.
EXTRA_OPTIONS: dict[str, Any] = {"ld_alpha": 1.0, "weighting": False, "nll": 1.0}
SUMS = ("ld_alpha", "weighting")


@dataclass(frozen=True)
class Method:
    """A formula and what it needs.

    Attributes:
        function: `(Pairs or Labelled, **options) -> [P] or [L]`; its docstring has the formula and
            the paper.
        extra: options it reads besides those of its function; names of `EXTRA_OPTIONS`.
        rows: "pairs", "labels" or "triples".
        reference: whether it needs a reference's log-probabilities.
        probes: whether it needs probes: mismatched answers that are scored and not trained on.
        reward: `(answers, values) -> [A]`: the reward that is reported.
        imitates: name of `IMITATED`: the answer whose likelihood is added; "" for none.
        couple: `(the whole batch or the probes) -> tensor`, for methods that couple the batch.
    """

    function: Callable[..., Tensor]
    extra: tuple[str, ...] = ()
    rows: Literal["pairs", "triples", "labels"] = "pairs"
    reference: bool = True
    probes: bool = False
    reward: Callable[[Answers, Values], Tensor] = ratio_reward
    imitates: Literal["", "chosen", "gold"] = ""
    couple: Callable[[Any], Tensor] | None = None

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Its options by name, with their default values.

        A `gamma` of None is β/2.
        """
        own = list(inspect.signature(self.function).parameters.values())[1:]
        return MappingProxyType(
            {p.name: p.default for p in own} | {name: EXTRA_OPTIONS[name] for name in self.extra}
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

    def view(self, columns: Columns, facts: Facts) -> Pairs | Labelled:
        """What the method sees of a forest."""
        reference = self.method.reference
        if self.method.rows == "labels":
            return answers.labelled(columns, facts, reference=reference)
        tail = self.values.get("ld_alpha", 1.0)
        return answers.pairs(columns, facts, reference=reference, tail=tail)

    def coupled_view(self, columns: Columns, facts: Facts, statistics: Any) -> Pairs | Labelled:
        """The same, with what a method that couples the batch computed over all of it."""
        view = self.view(columns, facts)
        if self.method.couple is None:
            return view
        return answers.with_coupled(view, statistics[self.name], facts)

    def losses(self, view: Pairs | Labelled) -> Tensor:
        """[U] or [L] by the formula."""
        return self.method.function(
            view, **{name: v for name, v in self.values.items() if name not in self.method.extra}
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
            f"{' and '.join(mix)} cannot be mixed: one is tied to probes, the other to the batch "
            "itself",
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
            "f_alpha is of the alpha_divergence alone",
            cure="set f_divergence to alpha_divergence",
            option="f_alpha",
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

    Facts: units of two members (chosen, rejected), of triples a third (gold); of labelled answers
    the fact `label` of every sequence. Of targets `reference`, where a method needs it.

    Args:
        mix: weights by name of `METHODS`: {"dpo": 1}; RPO is {"dpo": 1, "sft": α}.
        options: each goes to every method that reads it.
    Returns: the loss. It reports the rewards of the mixture's first method.
    Raises:
        ConfigError: see `parts`.

    >>> import torch
    >>> leaf, units = torch.tensor([0, 1]), torch.tensor([[0, 1]])
    >>> facts = Facts(leaf, L=2, members=units, numbers=torch.tensor([0]))
    >>> columns = Columns(logprob=torch.tensor([0.5, 0.25]).log())
    >>> simpo = preference({"simpo": 1}, Options(beta=1, gamma=0))
    >>> loss = simpo.loss(columns, facts, simpo.counts(facts), None)
    >>> round(float(loss), 4)  # −log σ(log 2) = log 3/2
    0.4055
    """
    mixed = parts(mix, options)
    rows = mixed[0].method.rows
    weighted = any(part.values.get("weighting") for part in mixed)
    imitated = {part.method.imitates for part in mixed if part.method.imitates}

    def counts(facts: Facts) -> dict[str, float]:
        """The rows, and the targets of imitated answers, one that is in two units counted twice."""
        count: dict[str, float] = {"rows": facts.L if rows == "labels" else facts.U}
        for name in imitated:
            count[name] = float(facts.lengths[facts.members[:, IMITATED[name]]].sum())
        return count

    def loss(columns: Columns, facts: Facts, counts: Counts, statistics: Any) -> Tensor:
        total = columns.logprob.new_zeros(())
        weights = answers.policy_weights(columns, facts) if weighted else None
        for part in mixed:
            losses = part.losses(part.coupled_view(columns, facts, statistics))
            if weights is not None and part.values.get("weighting"):
                losses = losses * weights
            total = total + part.weight * losses.sum() / counts["rows"]
            if part.method.imitates:
                factor = part.weight * part.values.get("nll", 1.0)
                total = total + factor * _likelihood(part, columns, facts, counts)
        return total

    @torch.no_grad()
    def prepare(columns: list[Columns], facts: list[Facts]) -> dict[str, Tensor]:
        coupled: dict[str, Tensor] = {}
        for part in mixed:
            if part.method.couple:
                views = [part.view(c, f) for c, f in zip(columns, facts, strict=True)]
                # none of the probes may have room for an answer
                zero = torch.zeros(())
                whole = answers.joined(views, facts) if views else None
                coupled[part.name] = zero if whole is None else part.method.couple(whole)
        return coupled

    @torch.no_grad()
    def report(columns: Columns, facts: Facts, statistics: Any) -> dict[str, Tensor]:
        return _report(mixed[0], columns, facts, statistics)

    return Loss(
        loss,
        read=Read(entropy="value", collision=weighted),
        counts=counts,
        prepare=prepare if any(part.method.couple for part in mixed) else None,
        report=report,
    )


def _likelihood(part: Part, columns: Columns, facts: Facts, counts: Counts) -> Tensor:
    """Negative log-likelihood a token of the answers that a method imitates, nats."""
    imitated = facts.members[:, IMITATED[part.method.imitates]]
    return -facts.sums(columns.logprob)[imitated].sum() / counts[part.method.imitates]


def _report(part: Part, columns: Columns, facts: Facts, statistics: Any) -> dict[str, Tensor]:
    """Rewards, log-probabilities and lengths [U], or of the good and of the bad answers; kl and
    entropy [N].

    Of labels, an answer is judged rightly where its reward is on the right side of the method's
    reference point.
    """
    out: dict[str, Tensor] = {}
    view = part.coupled_view(columns, facts, statistics)
    reward = part.method.reward
    if isinstance(view, Labelled):
        assert view.good is not None
        sides = {"chosen": view.good, "rejected": ~view.good}
        rewards = {name: reward(view.answers, part.values)[side] for name, side in sides.items()}
        margin = view.advance
        if view.coupled is not None:
            out["rewards/baseline"] = _beta(part.values) * view.coupled.expand(facts.L)
    else:
        sides = {"chosen": facts.members[:, CHOSEN], "rejected": facts.members[:, REJECTED]}
        rewards = {
            "chosen": reward(view.chosen, part.values),
            "rejected": reward(view.rejected, part.values),
        }
        out["rewards/margins"] = rewards["chosen"] - rewards["rejected"]
        margin = out["rewards/margins"]
    out["rewards/accuracies"] = wins(margin)
    sums, length = facts.sums(columns.logprob), facts.lengths.to(columns.logprob.dtype)
    for name, side in sides.items():
        out[f"rewards/{name}"] = rewards[name]
        out[f"logps/{name}"] = sums[side]
        out[f"length/{name}"] = length[side]
    if "reference" in facts.targets:
        # k2: on answers the policy would not write, k3's eˣ is without bound
        log_ratio = facts.targets["reference"].to(columns.logprob.dtype) - columns.logprob
        out["kl"] = log_ratio.square() / 2
    if columns.entropy is not None:
        out["entropy"] = columns.entropy.detach()
    return out
