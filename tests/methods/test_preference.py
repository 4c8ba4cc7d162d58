"""Preference losses with a pencil; what each option does; mixtures; what is reported.

L is ln 2. Most numbers come from one pair: the policy holds the chosen answer's two tokens for ½
and ¼, the rejected one's only token for 1/16; the reference holds them for ½ and ⅛, and for ½. So
log π(y⁺) = −3L, log π(y⁻) = −4L, r(y⁺) = L, r(y⁻) = −3L, Δ = 4L; a token: −1.5L and −4L, ½L and
−3L.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.core.errors import ConfigError
from posttrain.core.settings import assemble
from posttrain.core.types import Columns, Facts, Loss, Read
from posttrain.methods.preference import METHODS, Options, preference

L = math.log(2)
E = math.e
TOKEN = 1.5 * L  # negative log-likelihood a token of the chosen answer
ODDS = 15 * 2**-1.5 / (1 - 2**-1.5)  # ratio of the odds of 2^−1.5 and of 1/16


@dataclass(frozen=True)
class Batch:
    """What a policy says of a forest, and what is known of the forest."""

    columns: Columns
    facts: Facts


def logs(*probabilities: float) -> Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def a_pair(reference: Tensor | None = None) -> Batch:
    """The pair of the module's docstring, and a gold answer of one token of probability ¼."""
    columns = Columns(
        logs(1 / 2, 1 / 4, 1 / 16, 1 / 4).requires_grad_(), collision=logs(1 / 2, 1 / 2, 1 / 8, 1)
    )
    facts = Facts(
        torch.tensor([0, 0, 1, 2]),
        L=3,
        members=torch.tensor([[0, 1, 2]]),
        numbers=torch.tensor([0]),
        targets={"reference": logs(1 / 2, 1 / 8, 1 / 2, 1) if reference is None else reference},
    )
    return Batch(columns, facts)


def two_pairs(logprob: list[float], reference: list[float], numbers: list[int]) -> Batch:
    """Answers of one token, in units of L: chosen, rejected, chosen, rejected."""
    facts = Facts(
        torch.arange(4),
        L=4,
        members=torch.tensor([[0, 1], [2, 3]]),
        numbers=torch.tensor(numbers),
        targets={"reference": torch.tensor(reference, dtype=torch.float64) * L},
    )
    return Batch(Columns((torch.tensor(logprob, dtype=torch.float64) * L).requires_grad_()), facts)


def judged(*ratios: float, good: Sequence[int]) -> Batch:
    """Answers of one token by their log-ratios in units of L."""
    n = len(ratios)
    reference = torch.tensor([-9 * L - r * L for r in ratios], dtype=torch.float64)
    facts = Facts(
        torch.arange(n),
        L=n,
        members=torch.empty(0, 0, dtype=torch.int64),
        numbers=torch.empty(0, dtype=torch.int64),
        targets={"reference": reference},
        sequences={"label": torch.tensor(good, dtype=torch.float32)},
    )
    columns = Columns(torch.full((n,), -9.0 * L, dtype=torch.float64, requires_grad=True))
    return Batch(columns, facts)


def prepared(loss: Loss, batch: Batch) -> Any:
    """What a method that couples the batch computes of it, or of probes."""
    if loss.prepare is None:
        return None
    with torch.no_grad():
        return loss.prepare([batch.columns], [batch.facts])


def taken(loss: Loss, batch: Batch, probes: Batch | None = None) -> Tensor:
    """The loss of a batch of one forest."""
    counts = loss.counts(batch.facts)
    return loss.loss(batch.columns, batch.facts, counts, prepared(loss, probes or batch))


def value(loss: Loss, batch: Batch, probes: Batch | None = None) -> float:
    return float(taken(loss, batch, probes).detach())


# ----------------------------------------------------------------------------------------- formulas

BY_HAND: list[tuple[str, dict[str, Any], float]] = [
    ("dpo", {"beta": 1}, math.log(17 / 16)),
    ("dpo", {}, math.log(1 + 2**-0.4)),
    ("dpo", {"beta": 1, "label_smoothing": 0.25}, 0.75 * math.log(17 / 16) + 0.25 * math.log(17)),
    ("dpo", {"beta": 1, "f_divergence": "forward_kl"}, math.log(1 + E**-7.5)),  # (1 − ½) − (1 − 8)
    ("dpo", {"beta": 1, "f_divergence": "js_divergence"}, math.log(7 / 6)),  # log(4/3) − log(2/9)
    # −2(1/√2 − √8)
    (
        "dpo",
        {"beta": 1, "f_divergence": "alpha_divergence"},
        math.log(1 + E ** -(3 * math.sqrt(2))),
    ),
    ("dpo", {"beta": 1, "f_divergence": "alpha_divergence", "f_alpha": 1.0}, math.log(17 / 16)),
    (
        "dpo",
        {"beta": 1, "f_divergence": "alpha_divergence", "f_alpha": 3.0},
        math.log(1 + E ** -((4 - 1 / 64) / 2)),
    ),
    # the chosen answer's second token counts half
    ("dpo", {"beta": 1, "ld_alpha": 0.5}, math.log(1 + 2**-3.5)),
    ("dpo", {"beta": 1, "ld_alpha": 0.0}, math.log(1 + 2**-3)),
    ("dpo", {"beta": 1, "weighting": True}, 2**-1.5 * math.log(17 / 16)),  # √(1·½) and ½
    ("robust", {"beta": 1}, (0.9 * math.log(17 / 16) - 0.1 * math.log(17)) / 0.8),
    ("hinge", {}, 1 - 0.4 * L),
    ("hinge", {"beta": 1}, 0.0),
    ("ipo", {"beta": 1}, (3.5 * L - 0.5) ** 2),
    ("ipo", {}, (3.5 * L - 5) ** 2),
    (
        "exo_pair",
        {"beta": 1, "label_smoothing": 0.25},
        16 / 17 * math.log((16 / 17) / 0.75) + 1 / 17 * math.log((1 / 17) / 0.25),
    ),
    (
        "exo_pair",
        {"beta": 1},
        16 / 17 * math.log((16 / 17) / 0.999) + 1 / 17 * math.log((1 / 17) / 0.001),
    ),
    ("nca_pair", {"beta": 1}, math.log(3 / 2) + 0.5 * math.log(3) + 0.5 * math.log(9 / 8)),
    ("bco_pair", {"beta": 1}, math.log(3 / 2) + math.log(9 / 8)),
    ("sppo_hard", {"beta": 1}, (L - 0.5) ** 2 + (3 * L - 0.5) ** 2),
    ("sppo_hard", {}, (L - 5) ** 2 + (3 * L - 5) ** 2),
    ("apo_zero", {"beta": 1}, 1 / 3 + 1 / 9),
    ("apo_down", {"beta": 1}, 2 / 3 + 1 / 17),
    ("discopop", {"beta": 1, "tau": 1.0}, 1 / 17 * math.log(17 / 16) + 16 / 17 * 1 / 16),
    # z = 0.4 L, z/τ = 8 L
    ("discopop", {}, 1 / (1 + 2**8) * math.log(1 + 2**-0.4) + 2**8 / (1 + 2**8) * 2**-0.4),
    ("sigmoid_norm", {"beta": 2}, math.log(129 / 128)),
    ("sigmoid_norm", {}, math.log(1 + 2**-17.5)),
    (
        "sigmoid_norm",
        {"beta": 2, "label_smoothing": 0.25},
        0.75 * math.log(129 / 128) + 0.25 * math.log(129),
    ),
    ("sft", {}, TOKEN),
    ("simpo", {}, math.log(1 + E / 32)),  # 2·2.5 L − 1
    ("simpo", {"beta": 4}, math.log(1 + E**2 / 2**10)),  # the margin follows β
    ("simpo", {"beta": 4, "gamma": 0.0}, math.log(1 + 2**-10)),
    (
        "simpo",
        {"gamma": 0.0, "label_smoothing": 0.25},
        0.75 * math.log(33 / 32) + 0.25 * math.log(33),
    ),
    # (1 − 2^1.5) − (1 − 16)
    ("alphapo", {"beta": 1, "gamma": 0.0, "alpha": 1.0}, math.log(1 + E ** (2**1.5 - 16))),
    ("alphapo", {}, math.log(1 + E ** (0.1 - 2.5 * 4 * (2 - 2**0.375)))),
    ("alphapo", {"beta": 2, "gamma": 1.0, "alpha": 0.0}, math.log(1 + E / 32)),  # SimPO
    ("cpo", {"beta": 1}, math.log(3 / 2) + TOKEN),
    (
        "cpo",
        {"beta": 1, "nll": 0.5, "label_smoothing": 0.25},
        0.75 * math.log(3 / 2) + 0.25 * math.log(3) + TOKEN / 2,
    ),
    ("orpo", {}, 0.1 * math.log(1 + 1 / ODDS) + TOKEN),
    ("orpo", {"beta": 0.5, "nll": 0.0}, 0.5 * math.log(1 + 1 / ODDS)),
    ("tpo", {"beta": 1}, math.log(3 / 2) + 2 * L),
    ("tpo", {}, math.log(1 + 2**-0.01) + 2 * L),
    ("tpo_l", {"nll": 0.5}, math.log(1 + E / 32) + L),
    ("aot", {"beta": 1}, math.log(17 / 16)),  # of one pair, DPO
    ("aot", {"beta": 1, "label_smoothing": 0.25}, 0.75 * math.log(17 / 16) + 0.25 * math.log(17)),
    ("aot_unpaired", {"beta": 1}, math.log(17 / 16)),
    (
        "aot_unpaired",
        {"beta": 1, "label_smoothing": 0.25},
        0.75 * math.log(17 / 16) + 0.25 * math.log(17),
    ),
]


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    BY_HAND,
    ids=[f"{name} {' '.join(f'{k}={v}' for k, v in o.items())}" for name, o, _ in BY_HAND],
)
def test_a_pair_by_hand(name: str, options: dict[str, Any], expected: float) -> None:
    assert value(preference({name: 1}, Options(**options)), a_pair()) == pytest.approx(
        expected, rel=1e-9, abs=1e-12
    )


def test_every_method_of_pairs_has_a_number_by_hand() -> None:
    assert {name for name, _, _ in BY_HAND} == {
        name for name, method in METHODS.items() if method.rows != "labels"
    }


@pytest.mark.parametrize(("name", "pull"), [("aot", 1 / 3), ("aot_unpaired", 1 / 3)])
def test_aot_by_hand(name: str, pull: float) -> None:
    """Two pairs. AOT: the policy's margins are 2L and 0, the reference's −L and L; by rank they
    differ by L each, though by pair by 3L and −L. Unpaired: chosen log-ratios 2L and 0, rejected −L
    and L: the same. So −log σ(L), and every pull is σ(−L)/2.
    """
    # margins −1 and 1; ratios 2, −1 and 0, 1
    reference = [-3.0, -2, -4, -5] if name == "aot" else [-5.0, -4, -4, -5]
    batch = two_pairs([-3.0, -5, -4, -4], reference, numbers=[1, 0])
    found = taken(preference({name: 1}, Options(beta=1)), batch)
    assert float(found.detach()) == pytest.approx(math.log(3 / 2))
    (gradient,) = torch.autograd.grad(found, batch.columns.logprob)
    assert gradient.tolist() == pytest.approx([-pull / 2, pull / 2, -pull / 2, pull / 2])


def test_ties_in_aot_go_by_number() -> None:
    """Equal margins: the pair that comes first in the batch gets the lower of the reference's
    margins.
    """
    loss = preference({"aot": 1}, Options())
    for numbers in ([0, 1], [1, 0]):
        statistics = prepared(loss, two_pairs([0.0] * 4, [7.0, 0, 3, 0], numbers))
        assert statistics["aot"].tolist() == [pytest.approx([3 * L, 7 * L])]


KTO_PROBES = judged(3, -1, good=[1, 1])  # z = L


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("kto", {}, (1 - 1 / (1 + 2**0.0)) + 1 / (1 + 2**0.4)),  # β = .1: σ(.1·0), σ(.1·4L)
        ("kto", {"beta": 1}, 1 / 2 + 1 / 17),
        ("kto", {"beta": 1, "desirable": 3.0, "undesirable": 2.0}, 3 / 2 + 2 / 17),
        ("apo_zero_unpaired", {"beta": 1}, 1 / 3 + 1 / 9),
        ("apo_zero_unpaired", {"beta": 1, "desirable": 3.0, "undesirable": 2.0}, 3 / 3 + 2 / 9),
        ("bco", {"beta": 1}, 2 * math.log(5 / 4)),  # δ = (L − 3L)/2
        ("bco", {"beta": 1, "desirable": 3.0, "undesirable": 2.0}, 5 * math.log(5 / 4)),
    ],
)
def test_a_good_and_a_bad_answer_by_hand(
    name: str, options: dict[str, Any], expected: float
) -> None:
    """Log-ratios L and −3L, averaged over two answers."""
    probes = KTO_PROBES if METHODS[name].probes else None
    found = value(preference({name: 1}, Options(**options)), judged(1, -3, good=[1, 0]), probes)
    assert found == pytest.approx(expected / 2, rel=1e-9)


def test_ktos_reference_point_is_never_below_zero() -> None:
    found = value(
        preference({"kto": 1}, Options(beta=1)),
        judged(1, -3, good=[1, 0]),
        judged(1, -9, good=[1, 1]),
    )
    assert found == pytest.approx((1 / 3 + 1 / 9) / 2)


def test_probes_without_an_answer_do_not_move_ktos_reference_point() -> None:
    """Three sequences of which the last has no target: z is the mean of 3L and −L."""
    facts = replace(KTO_PROBES.facts, L=3, sequences={"label": torch.ones(3)})
    probes = Batch(KTO_PROBES.columns, facts)
    found = value(preference({"kto": 1}, Options(beta=1)), judged(1, -3, good=[1, 0]), probes)
    assert found == pytest.approx((1 / 2 + 1 / 17) / 2)
    loss = preference({"kto": 1}, Options(beta=1))
    assert loss.prepare is not None and float(loss.prepare([], [])["kto"]) == 0


def test_bcos_shift_by_hand() -> None:
    """Good answers at L and 3L, a bad one at −3L: δ = (2L − 3L)/2. Of one kind alone δ is
    its mean.
    """
    loss = preference({"bco": 1}, Options(beta=1))
    found = value(loss, judged(1, 3, -3, good=[1, 1, 0]))
    assert found == pytest.approx(
        (math.log(1 + 2**-1.5) + math.log(1 + 2**-3.5) + math.log(1 + 2**-2.5)) / 3
    )
    assert value(loss, judged(1, 3, good=[1, 1])) == pytest.approx(
        (math.log(3) + math.log(3 / 2)) / 2
    )
    assert value(loss, judged(1, 3, good=[0, 0])) == pytest.approx(
        (math.log(3) + math.log(3 / 2)) / 2
    )


# ----------------------------------------------------------------------------------------- mixtures


def test_mixtures_are_weighted_sums() -> None:
    """RPO and MPO, with the numbers above."""
    rpo = value(preference({"dpo": 1, "sft": 0.5}, Options(beta=1)), a_pair())
    assert rpo == pytest.approx(math.log(17 / 16) + 0.5 * TOKEN)
    mpo = value(preference({"dpo": 0.8, "bco_pair": 0.2, "sft": 1}, Options(beta=1)), a_pair())
    assert mpo == pytest.approx(
        0.8 * math.log(17 / 16) + 0.2 * (math.log(3 / 2) + math.log(9 / 8)) + TOKEN
    )
    coupled = value(
        preference({"aot": 0.5, "aot_unpaired": 0.25, "dpo": 0.25}, Options(beta=1)), a_pair()
    )
    assert coupled == pytest.approx(math.log(17 / 16))


def test_an_option_goes_to_every_method_that_reads_it_and_to_no_other() -> None:
    mixed = value(
        preference(
            {"dpo": 1, "ipo": 1, "sft": 1}, Options(beta=1, ld_alpha=0.0, label_smoothing=0.25)
        ),
        a_pair(),
    )
    assert mixed == pytest.approx(
        0.75 * math.log(9 / 8) + 0.25 * math.log(9) + (3.5 * L - 0.5) ** 2 + TOKEN
    )
    weighed = value(preference({"dpo": 1, "sft": 1}, Options(beta=1, weighting=True)), a_pair())
    assert weighed == pytest.approx(2**-1.5 * math.log(17 / 16) + TOKEN)


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ({}, "no preference method is named"),
        ({"dop": 1}, "did you mean 'dpo'"),
        ({"simpoo": 1}, "did you mean 'simpo'"),
        ({"dpo": 1, "kto": 1}, "dpo learns from pairs and kto from labels"),
        ({"tpo": 1, "sft": 1}, "tpo learns from triples and sft from pairs"),
        ({"kto": 1, "bco": 1}, "one is tied to probes"),
        ({"dpo": 0}, "the weight of dpo is 0"),
        ({"dpo": -1}, "the weight of dpo is -1"),
        ({"dpo": math.nan}, "the weight of dpo is nan"),
        ({"dpo": math.inf}, "the weight of dpo is inf"),
    ],
)
def test_mixtures_that_are_refused(mix: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        preference(mix, Options())
    assert message in str(error.value)


def test_what_the_engine_must_know() -> None:
    """What is read, and what couples the batch."""
    assert preference({"dpo": 1}, Options()).read == Read(entropy="value")
    weighted = preference({"sft": 1, "dpo": 1}, Options(weighting=True))
    assert weighted.read == Read(entropy="value", collision=True)
    assert not any(preference({name: 1}, Options()).additive for name in METHODS)
    coupled = {name for name in METHODS if preference({name: 1}, Options()).prepare is not None}
    assert coupled == {"aot", "aot_unpaired", "kto", "bco"}
    assert {name for name, method in METHODS.items() if method.probes} == {"kto"}
    free = {name for name, method in METHODS.items() if not method.reference}
    assert free == {"sft", "simpo", "alphapo", "cpo", "orpo", "tpo", "tpo_l"}


def test_denominators_by_hand() -> None:
    """Rows, and the targets of the answers that a method imitates: of the pair two of the chosen
    answer and one of the gold one; an answer in two units counts twice, as its likelihood does.
    """
    facts = a_pair().facts
    for mix, expected in (
        ({"dpo": 1}, {"rows": 1}),
        ({"dpo": 1, "sft": 1}, {"rows": 1, "chosen": 2}),
        ({"tpo": 1}, {"rows": 1, "gold": 1}),
    ):
        assert preference(mix).counts(facts) == expected
    assert preference({"kto": 1}).counts(judged(1, -3, 0, good=[1, 0, 1]).facts) == {"rows": 3}
    twice = Facts(
        torch.tensor([0, 0, 1, 2]),
        L=3,
        members=torch.tensor([[0, 1], [0, 2]]),
        numbers=torch.arange(2),
    )
    assert preference({"sft": 1}).counts(twice) == {"rows": 2, "chosen": 4}
    columns = Columns(logs(1 / 2, 1 / 4, 1 / 16, 1 / 4))
    assert value(preference({"sft": 1}), Batch(columns, twice)) == pytest.approx(TOKEN)


# ------------------------------------------------------------------------------------------ options

# a value that no method has by default, with which the pair's loss is another one
OTHER: dict[str, Any] = {
    "beta": 0.7,
    "label_smoothing": 0.2,
    "f_divergence": "js_divergence",
    "gamma": 0.3,
    "alpha": 0.6,
    "nll": 0.4,
    "weighting": True,
    "ld_alpha": 0.3,
    "desirable": 1.7,
    "undesirable": 1.7,
    "tau": 1.3,
}
NAMES = list(Options.model_fields)


def test_every_option_is_tried() -> None:
    assert {*OTHER, "f_alpha"} == set(NAMES)


@pytest.mark.parametrize("option", NAMES)
@pytest.mark.parametrize("name", METHODS)
def test_an_option_changes_the_loss_or_is_refused(name: str, option: str) -> None:
    if option not in METHODS[name].options:
        with pytest.raises(ConfigError, match=rf"{option} has no meaning for {name}"):
            preference({name: 1}, Options(**{option: OTHER.get(option, 0.7)}))
        return
    before: dict[str, Any] = {"f_divergence": "alpha_divergence"} if option == "f_alpha" else {}
    labels = METHODS[name].rows == "labels"
    batch, probes = (judged(1, -3, good=[1, 0]), KTO_PROBES) if labels else (a_pair(), None)
    plain, other = (
        value(
            preference({name: 1}, Options(**before, **changed)),
            batch,
            probes if METHODS[name].probes else None,
        )
        for changed in ({}, {option: OTHER.get(option, 0.7)})
    )
    assert abs(plain - other) > 1e-6


@pytest.mark.parametrize("name", METHODS)
def test_a_methods_defaults_are_what_it_does_untold(name: str) -> None:
    """Giving every default changes nothing; those that depend on others, and those that have no
    effect, aside.
    """
    told = {k: v for k, v in METHODS[name].defaults.items() if v is not None and k != "f_alpha"}
    batch, probes = (
        (judged(1, -3, good=[1, 0]), KTO_PROBES)
        if METHODS[name].rows == "labels"
        else (a_pair(), None)
    )
    plain, given = (
        value(preference({name: 1}, Options(**o)), batch, probes if METHODS[name].probes else None)
        for o in ({}, told)
    )
    assert plain == given


def test_off_is_no_option() -> None:
    """What switches something off is allowed everywhere."""
    assert value(preference({"ipo": 1}, Options(beta=1, ld_alpha=1.0)), a_pair()) == pytest.approx(
        (3.5 * L - 0.5) ** 2
    )
    assert not preference({"kto": 1}, Options(weighting=False)).read.collision


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dpo", {"beta": 0.0}, "beta = 0.0"),
        ("dpo", {"beta": math.inf}, "beta = inf"),
        ("robust", {"label_smoothing": 0.5}, "label_smoothing = 0.5"),
        ("dpo", {"label_smoothing": -0.1}, "label_smoothing = -0.1"),
        ("dpo", {"f_divergence": "kl"}, "f_divergence = 'kl'"),
        ("dpo", {"f_alpha": 0.3}, "f_alpha is of the alpha_divergence alone"),
        (
            "dpo",
            {"f_alpha": 0.3, "f_divergence": "js_divergence"},
            "f_alpha is of the alpha_divergence alone",
        ),
        ("dpo", {"f_alpha": math.nan, "f_divergence": "alpha_divergence"}, "f_alpha = nan"),
        ("dpo", {"ld_alpha": 1.1}, "ld_alpha = 1.1"),
        ("dpo", {"weighting": 3}, "weighting = 3"),
        ("simpo", {"gamma": -1.0}, "gamma = -1.0"),
        ("alphapo", {"alpha": math.inf}, "alpha = inf"),
        ("cpo", {"nll": -1.0}, "nll = -1.0"),
        ("kto", {"desirable": -1.0}, "desirable = -1.0"),
        ("kto", {"undesirable": math.nan}, "undesirable = nan"),
        ("discopop", {"tau": 0.0}, "tau = 0.0"),
        ("exo_pair", {"label_smoothing": 0.0}, "exo_pair has no loss at a label_smoothing of 0"),
    ],
)
def test_options_out_of_range_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        preference({name: 1}, assemble(Options, options))


# ------------------------------------------------------------------------------------------ reports


def reported(loss: Loss, batch: Batch, probes: Batch | None = None) -> dict[str, Any]:
    assert loss.report is not None
    values = loss.report(batch.columns, batch.facts, prepared(loss, probes or batch))
    assert not any(v.requires_grad for v in values.values())
    return {name: pytest.approx(v.tolist()) for name, v in values.items()}


def test_a_pairs_report_by_hand() -> None:
    """β = 1. The KL estimate of a token is (log π/π_ref)²/2: of ratios 1, ½, 8 (and 4 of the gold
    answer).
    """
    batch = a_pair()
    columns = replace(batch.columns, entropy=torch.tensor([1.0, 2, 3, 4]))
    loss = preference({"dpo": 1, "sft": 1}, Options(beta=1))
    assert reported(loss, Batch(columns, batch.facts)) == {
        "rewards/chosen": [L],
        "rewards/rejected": [-3 * L],
        "rewards/margins": [4 * L],
        "rewards/accuracies": [1.0],
        "logps/chosen": [-3 * L],
        "logps/rejected": [-4 * L],
        "length/chosen": [2.0],
        "length/rejected": [1.0],
        "kl": [0.0, L**2 / 2, (3 * L) ** 2 / 2, (2 * L) ** 2 / 2],
        "entropy": [1.0, 2.0, 3.0, 4.0],
    }


@pytest.mark.parametrize(
    ("name", "options", "chosen", "rejected"),
    [
        ("dpo", {}, 0.1 * L, -0.3 * L),
        ("dpo", {"ld_alpha": 0.5, "beta": 1}, 0.5 * L, -3 * L),
        ("ipo", {"beta": 1}, L, -3 * L),
        ("sft", {}, -3 * L, -4 * L),
        ("simpo", {}, -3 * L, -8 * L),
        ("orpo", {"beta": 1}, -1.5 * L, -4 * L),
        ("cpo", {"beta": 1}, -3 * L, -4 * L),
        ("tpo", {"beta": 1}, -3 * L, -4 * L),
        ("tpo_l", {"beta": 1}, -1.5 * L, -4 * L),
        ("alphapo", {"alpha": 1.0, "beta": 1}, 1 - 2**1.5, -15.0),
    ],
)
def test_rewards_by_hand(
    name: str, options: dict[str, Any], chosen: float, rejected: float
) -> None:
    found = reported(preference({name: 1}, Options(**options)), a_pair())
    assert found["rewards/chosen"] == [chosen] and found["rewards/rejected"] == [rejected]
    assert found["rewards/margins"] == [chosen - rejected]


def test_without_a_reference_no_kl_is_reported() -> None:
    batch = a_pair()
    alone = Batch(batch.columns, replace(batch.facts, targets={}))
    assert "kl" not in reported(preference({"simpo": 1}, Options()), alone)


def test_an_undecided_pair_is_half_right() -> None:
    """As at the first step, where policy and reference are one model."""
    batch = a_pair(reference=logs(1 / 2, 1 / 4, 1 / 16, 1 / 4))
    found = reported(preference({"dpo": 1}, Options()), batch)
    assert (
        found["rewards/accuracies"] == [0.5]
        and found["rewards/margins"] == [0.0]
        and found["kl"] == [0.0] * 4
    )


def test_a_report_of_single_answers_by_hand() -> None:
    """Log-ratios 0, 3L (good) and 2L (bad) around z = L, β = 1: wrong, right, wrong.

    Around 0 the first is undecided.
    """
    found = reported(
        preference({"kto": 1}, Options(beta=1)), judged(0, 3, 2, good=[1, 1, 0]), KTO_PROBES
    )
    assert found == {
        "rewards/chosen": [0.0, 3 * L],
        "rewards/rejected": [2 * L],
        "rewards/accuracies": [0.0, 1.0, 0.0],
        "rewards/baseline": [L] * 3,
        "logps/chosen": [-9 * L] * 2,
        "logps/rejected": [-9 * L],
        "length/chosen": [1.0] * 2,
        "length/rejected": [1.0],
        "kl": [0.0, (3 * L) ** 2 / 2, (2 * L) ** 2 / 2],
    }
    found = reported(
        preference({"apo_zero_unpaired": 1}, Options(beta=2)), judged(0, -1, good=[1, 1])
    )
    assert found["rewards/chosen"] == [0.0, -2 * L] and found["rewards/rejected"] == []
    assert found["rewards/accuracies"] == [0.5, 0.0] and "rewards/baseline" not in found
