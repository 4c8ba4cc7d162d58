"""Settings: flat names outside, nested models inside, and no name that is not known."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError, create_model

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


# --------------------------------------------------------------------------- values of any kind

DEEP: list[object] = []
for _ in range(200):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"name": "a\0b"}, "name = 'a\\x00b' holds a NUL character"),
        ({"name": "caf\udce9"}, "name = 'caf\\udce9' is not UTF-8"),
        ({"name": "a", "bags": ["x", "y\0"]}, "bags = 'y\\x00' holds a NUL character"),
        ({"name": "a", "bags": [Path("y\0")]}, "bags = 'y\\x00' holds a NUL character"),
        ({"name": "a", "load": {"left\0": 1}}, "load = 'left\\x00' holds a NUL character"),
        ({"name": "a", "bags": DEEP}, "bags holds brackets in brackets, more than 100 deep"),
        ({"name": b"a"}, "name holds bytes, which is no text, number, list or mapping"),
        ({"name": "a", "size": 2**63}, "size is a whole number of 64 bits; the most is 63"),
        ({"name": "a", "size": str(2**64)}, "size is a whole number of 65 bits; the most is 63"),
        ({"name": "a", "size": 10**5000}, "size is a whole number of 16610 bits; the most is 63"),
    ],
)
def test_what_no_file_could_hold_is_refused(given: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        assemble(Bike, given)
    assert caught.value.what == what and caught.value.option == what.split()[0]


def test_the_largest_number_and_the_deepest_list_pass() -> None:
    assert assemble(Bike, {"name": "a", "size": str(2**63 - 1)}).wheels.size == 2**63 - 1
    with pytest.raises(ConfigError) as caught:
        assemble(Bike, {"name": "a", "size": "9" * 5000})
    assert "Unable to parse input string" in caught.value.what and len(caught.value.what) < 600


@pytest.mark.parametrize("value", [True, [True], {"a": False}, ({"a": (1, True)},)])
@pytest.mark.parametrize(
    "annotation",
    [int, float, int | None, tuple[int, ...], dict[str, float], Annotated[int, Field(ge=0)]],
)
def test_a_boolean_is_no_number(annotation: Any, value: Any) -> None:
    one: Any = create_model("One", __base__=Settings, number=(annotation, ...))
    with pytest.raises(ValidationError):
        one(number=value)
    with pytest.raises(ConfigError) as caught:
        assemble(one, {"number": value})
    assert caught.value.option == "number"


def test_a_boolean_is_one_where_one_is_asked_for() -> None:
    one: Any = create_model(
        "One", __base__=Settings, both=(int | bool, 1), any=(dict[str, Any], {})
    )
    assert one(both=True, any={"a": True}).both is True
