"""Settings: flat names outside, nested models inside, and no name that is not known."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, ValidationError

from posttrain.core.errors import ConfigError
from posttrain.core.settings import Settings, assemble, leaves


class Wheels(Settings):
    size: int = Field(28, ge=10, description="inches")
    kind: Literal["road", "gravel"] = "road"


class Motor(Settings):
    power: float = 250.0


class Bike(Settings):
    name: str
    wheels: Wheels = Wheels()
    motor: Motor | None = None
    bags: tuple[Path, ...] = ()
    load: dict[str, float] = Field(default_factory=dict)


def test_every_leaf_has_one_flat_name() -> None:
    found = [(leaf.name, leaf.path, leaf.switch) for leaf in leaves(Bike)]
    assert found == [
        ("name", ("name",), False),
        ("size", ("wheels", "size"), False),
        ("kind", ("wheels", "kind"), False),
        # a group that may be absent is a switch, and prefixes its fields
        ("motor", ("motor",), True),
        ("motor_power", ("motor", "power"), False),
        ("bags", ("bags",), False),
        ("load", ("load",), False),
    ]


def test_flat_values_reach_their_groups_and_are_converted() -> None:
    bike = assemble(
        Bike,
        {"name": "a", "size": "20", "kind": "gravel", "bags": ["x", "y"], "load": {"left": "1.5"}},
    )
    assert bike == Bike(
        name="a",
        wheels=Wheels(size=20, kind="gravel"),
        motor=None,
        bags=(Path("x"), Path("y")),
        load={"left": 1.5},
    )


@pytest.mark.parametrize(
    ("given", "power"),
    [
        ({}, None),
        ({"motor": False}, None),
        ({"motor": None}, None),
        ({"motor": True}, 250.0),
        ({"motor_power": 80}, 80.0),
        ({"motor": True, "motor_power": 80}, 80.0),
        ({"motor_power": 80, "motor": True}, 80.0),
    ],
)
def test_a_group_comes_with_its_switch_or_any_of_its_fields(
    given: dict[str, object], power: float | None
) -> None:
    motor = assemble(Bike, {"name": "a", **given}).motor
    assert (motor.power if motor else None) == power


@pytest.mark.parametrize(
    ("given", "what", "cure"),
    [
        ({"name": "a", "sise": 3}, "unknown setting 'sise'", "did you mean 'size'?"),
        (
            {"name": "a", "motor_pover": 3},
            "unknown setting 'motor_pover'",
            "did you mean 'motor_power'?",
        ),
        (
            {"name": "a", "wheels": {}},
            "unknown setting 'wheels'",
            "known: bags, kind, load, motor, motor_power, name, size",
        ),
        ({}, "name is missing", "give --name"),
        (
            {"name": "a", "size": 9},
            "size = 9: Input should be greater than or equal to 10",
            "inches",
        ),
        ({"name": "a", "size": "big"}, "size = 'big': Input should be a valid integer", "inches"),
        (
            {"name": "a", "kind": "raod"},
            "kind = 'raod': Input should be 'road' or 'gravel'",
            "did you mean 'road'?",
        ),
        (
            {"name": "a", "kind": "xyz"},
            "kind = 'xyz': Input should be 'road' or 'gravel'",
            "known: gravel, road",
        ),
        ({"name": "a", "kind": 3}, "kind = 3: Input should be 'road' or 'gravel'", "see --help"),
        (
            {"name": "a", "load": {"left": "much"}},
            "load = 'much': Input should be a valid number",
            "see --help",
        ),
    ],
)
def test_what_does_not_fit_is_named_with_a_cure(
    given: dict[str, object], what: str, cure: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        assemble(Bike, given)
    assert caught.value.what.startswith(what)
    assert caught.value.cure == cure
    assert caught.value.exit_code == 2


def test_settings_are_frozen_and_closed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Wheels().size = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="Extra inputs"):
        Wheels(sice=3)  # type: ignore[call-arg]

    class Wrong(Settings):
        size: int = Field(3, ge=10)

    with pytest.raises(ValidationError, match="greater than or equal"):
        Wrong()  # a default is checked like any value
