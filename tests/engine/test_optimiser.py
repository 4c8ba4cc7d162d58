"""AdamW and its schedule by hand, and what keeps small weights honest."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from posttrain.core.errors import ConfigError
from posttrain.engine.optimiser import Optimiser, rate
from posttrain.engine.settings import OptimiserSettings


def settings(**changes: object) -> OptimiserSettings:
    return OptimiserSettings(**{"learning_rate": 0.1, "clip": 0.0, **changes})  # type: ignore[arg-type]


def two(first: float = 1.0, second: float = -2.0) -> dict[str, nn.Parameter]:
    """A matrix of one number and a vector of one number, in float64 so that a pencil can follow."""
    return {
        "layer.weight": nn.Parameter(torch.tensor([[first]], dtype=torch.float64)),
        "layer.bias": nn.Parameter(torch.tensor([second], dtype=torch.float64)),
    }


def push(named: dict[str, nn.Parameter], *gradients: float) -> None:
    """Add gradients, as a backward pass would."""
    sum(p.sum() * g for p, g in zip(named.values(), gradients, strict=True)).backward()  # type: ignore[union-attr]


# ----------------------------------------------------------------------------------------- schedule


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # ten steps, two of them warm-up: 1/3, 2/3, then eight steps down from 1
        ("linear", [1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        (
            "cosine",
            [
                1 / 3,
                2 / 3,
                1,
                (1 + math.cos(math.pi / 8)) / 2,
                (1 + math.sqrt(0.5)) / 2,
                (1 + math.cos(3 * math.pi / 8)) / 2,
                0.5,
                (1 - math.cos(3 * math.pi / 8)) / 2,
                (1 - math.sqrt(0.5)) / 2,
                (1 - math.cos(math.pi / 8)) / 2,
            ],
        ),
        ("wsd", [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1, 1, 1 - math.sqrt(0.5)]),
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_rate_by_hand(schedule: str, expected: list[float]) -> None:
    assert [rate(schedule, step, 10, 0.2) for step in range(10)] == pytest.approx(
        expected, abs=1e-12
    )


def test_rate_without_warm_up_starts_at_the_peak() -> None:
    assert [rate(schedule, 0, 10, 0.0) for schedule in ("linear", "cosine", "wsd", "constant")] == [
        1.0
    ] * 4


@pytest.mark.parametrize(
    ("warmup", "steps", "rise"),
    [(0.03, 100, 3), (0.03, 101, 4), (0.03, 1, 1), (0.07, 100, 7), (0.14, 50, 7), (0.5, 3, 2)],
)
def test_warm_up_rounds_up_but_not_rounding_errors(warmup: float, steps: int, rise: int) -> None:
    """⌈0.07 · 100⌉ is 7, though 0.07 · 100 is 7.000000000000001."""
    factors = [rate("constant", step, steps, warmup) for step in range(steps)]
    assert factors[:rise] == pytest.approx([(i + 1) / (rise + 1) for i in range(rise)])
    assert factors[rise:] == [1.0] * (steps - rise)


def test_an_unknown_schedule_is_an_error() -> None:
    with pytest.raises(ConfigError, match="unknown schedule 'linaer'") as caught:
        rate("linaer", 0, 10, 0.0)
    assert "linear, cosine, wsd or constant" in caught.value.cure


# --------------------------------------------------------------------------------------- the update


def test_two_steps_of_adamw_by_hand() -> None:
    """Rate 0.1, betas 0.9 and 0.99, decay 0.01 on the matrix alone.

    Step 1, gradient g: m̂ = g and v̂ = g², so each number moves by 0.1 against its sign, the matrix
        first shrinking by 0.1 %.
    Step 2, gradients 0.1 then 0.3: m = 0.9·0.01 + 0.1·0.3 = 0.039, m̂ = 0.039/0.19;
        v = 0.99·0.0001 + 0.01·0.09 = 0.000999, v̂ = 0.000999/0.0199.
    """
    named = two()
    optimiser = Optimiser(named.items(), settings(betas=(0.9, 0.99), weight_decay=0.01))
    push(named, 0.1, 0.1)
    assert optimiser.step(1.0) == pytest.approx(math.sqrt(0.02))
    assert named["layer.weight"].item() == pytest.approx(1.0 * 0.999 - 0.1, abs=1e-7)
    assert named["layer.bias"].item() == pytest.approx(-2.0 - 0.1, abs=1e-7)
    push(named, 0.3, 0.3)
    optimiser.step(1.0)
    move = 0.1 * (0.039 / 0.19) / (math.sqrt(0.000999 / 0.0199) + 1e-8)
    assert named["layer.weight"].item() == pytest.approx(0.899 * 0.999 - move, abs=1e-7)
    assert named["layer.bias"].item() == pytest.approx(-2.1 - move, abs=1e-7)


def test_epsilon_is_a_hundred_millionth() -> None:
    """A gradient of 1e-8 moves half as far as a large one: g / (|g| + ε) = ½."""
    named = two()
    optimiser = Optimiser(named.items(), settings())
    push(named, 1e-8, 1.0)
    optimiser.step(1.0)
    assert named["layer.weight"].item() == pytest.approx(1.0 - 0.05, abs=1e-9)
    assert named["layer.bias"].item() == pytest.approx(-2.0 - 0.1, abs=1e-8)


def test_the_factor_scales_the_rate_and_the_decay_with_it() -> None:
    named = two()
    optimiser = Optimiser(named.items(), settings(weight_decay=0.5))
    push(named, 1.0, 1.0)
    optimiser.step(0.25)
    assert named["layer.weight"].item() == pytest.approx(1.0 * (1 - 0.025 * 0.5) - 0.025)
    assert named["layer.bias"].item() == pytest.approx(-2.025)


def test_gradients_add_up_until_the_step_and_are_then_gone() -> None:
    named = two()
    optimiser = Optimiser(named.items(), settings())
    push(named, 1.0, 2.0)
    push(named, 2.0, 2.0)
    assert optimiser.step(1.0) == pytest.approx(5.0)  # (3, 4)
    assert optimiser.step(1.0) == 0.0
    assert [p.grad for p in named.values()] == [None, None]


@pytest.mark.parametrize(
    ("clip", "expected"),
    [(1.0, (0.6, 0.8)), (0.0, (3.0, 4.0)), (6.0, (3.0, 4.0)), (2.5, (1.5, 2.0))],
)
def test_clipping_by_hand(clip: float, expected: tuple[float, float]) -> None:
    """Gradient (3, 4) has norm 5, and that is what is told; what Adam averages (a tenth of it, at
    first) shows what was left.
    """
    named = two()
    optimiser = Optimiser(named.items(), settings(clip=clip))
    push(named, 3.0, 4.0)
    assert optimiser.step(1.0) == pytest.approx(5.0)
    found = optimiser.moments("exp_avg")
    assert (10 * found["layer.weight"].item(), 10 * found["layer.bias"].item()) == pytest.approx(
        expected, rel=1e-6
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_changes_nothing(bad: float, clip: float) -> None:
    """The weights, Adam's averages and the count of steps stay; the caller sees the norm; the next
    step is a good one.
    """
    named, expected = two(), two()
    optimiser, other = (
        Optimiser(n.items(), settings(clip=clip, weight_decay=0.1)) for n in (named, expected)
    )
    for one, gradients in ((optimiser, named), (other, expected)):
        push(gradients, 1.0, -1.0)
        one.step(1.0)
    push(named, bad, 1.0)
    assert not math.isfinite(optimiser.step(1.0))
    for one, gradients in ((optimiser, named), (other, expected)):
        push(gradients, 0.5, 0.5)
        one.step(1.0)
    assert [p.item() for p in named.values()] == [p.item() for p in expected.values()]


# ------------------------------------------------------------------------------------------- groups


def test_a_group_has_its_own_rate() -> None:
    named = two()
    optimiser = Optimiser(named.items(), settings(groups={r"\.bias$": 0.5}))
    push(named, 1.0, 1.0)
    optimiser.step(1.0)
    assert named["layer.weight"].item() == pytest.approx(0.9)
    assert named["layer.bias"].item() == pytest.approx(-2.05)


def test_of_two_patterns_the_later_decides() -> None:
    named = two()
    optimiser = Optimiser(named.items(), settings(groups={"layer": 3.0, "bias": 0.5}))
    push(named, 1.0, 1.0)
    optimiser.step(1.0)
    assert named["layer.weight"].item() == pytest.approx(1.0 - 0.3)
    assert named["layer.bias"].item() == pytest.approx(-2.05)


def test_factor_zero_freezes() -> None:
    """A frozen parameter gets no gradient, no decay and no place among the weights that are
    saved.
    """
    named = two()
    optimiser = Optimiser(named.items(), settings(groups={"weight": 0.0}, weight_decay=0.5))
    push(named, 1.0, 1.0)
    assert named["layer.weight"].grad is None
    optimiser.step(1.0)
    assert named["layer.weight"].item() == 1.0
    assert named["layer.bias"].item() == pytest.approx(-2.1)
    assert list(optimiser.weights()) == ["layer.bias"]


def test_a_pattern_without_a_parameter_is_an_error() -> None:
    with pytest.raises(ConfigError, match="--groups: 'lm_head' matches no parameter"):
        Optimiser(two().items(), settings(groups={"lm_head": 0.1, "bias": 0.5}))


def test_nothing_left_to_train_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no parameter left to train"):
        Optimiser(two().items(), settings(groups={"layer": 0.0}))


# ----------------------------------------------------------------------------------------- bfloat16


def test_small_updates_add_up_in_the_master() -> None:
    """Beside 1.0, bf16 knows nothing nearer than 0.996: a step of 1e-4 alone would be lost for
    ever.

    A hundred of them make 0.99 in the master, and the parameter is its rounding.
    """
    p = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    optimiser = Optimiser([("p", p)], settings(learning_rate=1e-4))
    for _ in range(100):
        p.sum().backward()
        optimiser.step(1.0)
    assert optimiser.weights()["p"].dtype == torch.float32
    assert optimiser.weights()["p"].item() == pytest.approx(0.99, abs=1e-5)
    assert p.item() == torch.tensor(0.99).bfloat16().item() == pytest.approx(0.98828125)


def test_gradients_add_up_in_float32() -> None:
    """1 + 2⁻⁹ is 1 in bf16; 256 micro-batches of 2⁻⁹ after one of 1 make 1.5, and none is left on
    the parameter.
    """
    p = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    optimiser = Optimiser([("p", p)], settings())
    p.sum().backward()
    for _ in range(256):
        (p * 2.0**-9).sum().backward()
    assert p.grad is None
    assert optimiser.masters["p"].grad is not None
    assert optimiser.masters["p"].grad.item() == 1.5
    assert optimiser.step(1.0) == 1.5


def test_float32_parameters_are_their_own_master() -> None:
    """No second copy of the weights on a CPU."""
    p = nn.Parameter(torch.ones(3))
    assert Optimiser([("p", p)], settings()).masters["p"] is p


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_and_moments_carry_over(dtype: torch.dtype) -> None:
    """A second optimiser that is given the first one's weights and moments makes the same next
    step, bit for bit.
    """
    first, second = (nn.Parameter(torch.linspace(-1, 1, 7).to(dtype)) for _ in range(2))
    one, other = (Optimiser([("p", p)], settings(learning_rate=1e-3)) for p in (first, second))

    def train(p: nn.Parameter, optimiser: Optimiser) -> None:
        (p.float() - 0.3).square().sum().backward()
        optimiser.step(0.7)

    for _ in range(3):
        train(first, one)
    other.load_weights({k: v.clone() for k, v in one.weights().items()})
    for which in ("exp_avg", "exp_avg_sq", "step"):
        other.load_moments(which, {k: v.clone() for k, v in one.moments(which).items()})
    train(first, one)
    train(second, other)
    assert torch.equal(one.weights()["p"], other.weights()["p"])
    assert torch.equal(first, second)
    assert torch.equal(one.moments("step")["p"], torch.tensor(4.0))
