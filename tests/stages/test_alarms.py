"""Alarms of preference training, fed records by hand."""

from __future__ import annotations

from typing import Any

from posttrain.core.events import Held, Step
from posttrain.stages.alarms import FALLEN, FEWEST, WINDOW, Alarms


def steps(alarms: Alarms, *nats: float, first: int = 1) -> list[str]:
    """Records whose chosen answers have 10 tokens of these nats each."""
    records = [
        Step(i, {"logps/chosen": 10 * each, "length/chosen": 10})
        for i, each in enumerate(nats, first)
    ]
    return [str(alarm) for record in records for alarm in alarms(record)]


def held(step: int = 40, **more: Any) -> Held:
    return Held(step, {"accuracy": 0.7, "sequences": 100, **more})


def test_chosen_answers_that_become_unlikely_are_said_once() -> None:
    alarms = Alarms()
    assert steps(alarms, *[-1.0] * WINDOW, *[-1.0 - FALLEN + 0.01] * WINDOW) == []
    (said,) = steps(alarms, *[-1.0 - FALLEN - 0.01] * (2 * WINDOW), first=2 * WINDOW + 1)
    assert said.startswith("after step") and "less likely, too, by 0.5" in said and "--beta" in said


def test_a_single_bad_batch_is_no_alarm() -> None:
    alarms = Alarms()
    assert steps(alarms, *[-1.0] * WINDOW, -6.0, *[-1.0] * WINDOW) == []


def test_rewards_that_are_lengths_are_said() -> None:
    for side, other in (("shorter", "longer"), ("longer", "shorter")):
        (said,) = Alarms()(held(**{f"{side}_chosen": 50, f"accuracy_{side}_chosen": 0.2}))
        assert (
            f"only on 20% of the 50 whose chosen answer is the {side}: they say which is {other}"
            in said.text
        )
        # might be chance
        assert Alarms()(held(**{f"{side}_chosen": 50, f"accuracy_{side}_chosen": 0.45})) == []
        assert (
            Alarms()(held(**{f"{side}_chosen": FEWEST - 1, f"accuracy_{side}_chosen": 0.0})) == []
        )
    # not right at all
    assert Alarms()(held(accuracy=0.4, shorter_chosen=50, accuracy_shorter_chosen=0.1)) == []
    assert Alarms()(Held(1, {"accuracy": 0.9, "sequences": 3})) == []  # labels have no lengths


def test_answers_that_grow_or_shrink_are_said() -> None:
    for now, way in ((31.0, "longer"), (13.0, "shorter")):
        alarms = Alarms()
        assert alarms(held(0, answer_tokens=20.0)) == []
        assert alarms(held(answer_tokens=25.0)) == []
        (said,) = alarms(held(answer_tokens=now))
        assert f"have become {way}: 20 tokens before training, {now:.0f} now" in said.text
        assert alarms(held(answer_tokens=now)) == []  # once
        assert alarms.raised == [said]


def test_records_of_other_methods_are_heard_in_silence() -> None:
    assert Alarms()(Step(1, {"loss": 1.0})) == []
