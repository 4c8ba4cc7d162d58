"""The quickstart: its world is what it says, its intervals are right, and the whole of it runs, and runs again."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import posttrain

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(EXAMPLES)
    import world

    return world


@pytest.fixture
def quickstart(world: Any) -> Any:
    import quickstart

    return quickstart


def test_no_held_out_prompt_is_a_demonstration(world: Any) -> None:
    train, held_out = world.demonstrations(train=600, held_out=60)
    prompts = [row["prompt"] for row in (*train, *held_out)]
    assert len(set(prompts)) == len(prompts)
    assert len(held_out) >= 300
    assert {row["skill"] for row in train} == {row["skill"] for row in held_out} == set(world.SKILLS)
    assert Counter(row["skill"] for row in held_out)["sum"] == 60
    assert world.demonstrations(train=600, held_out=60) == (train, held_out)


def test_the_answers_are_right(world: Any) -> None:
    """Each skill's answer, worked out another way."""
    order = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday", "Monday"]
    for row in (row for rows in world.demonstrations(train=600, held_out=60) for row in rows):
        prompt, answer = row["prompt"], row["completion"]
        words = re.findall(r"\w+", prompt)
        if row["skill"] == "sum":
            assert sum(int(w) for w in words if w.isdigit()) == int(answer)
        elif row["skill"] == "sort":
            assert answer.split() == sorted(words[1:])
        elif row["skill"] == "reverse":
            assert answer.split()[::-1] == words[1:]
        elif row["skill"] == "calendar" and answer in order:
            pair = [answer, words[-1]] if any(w.lower() in ("before", "precedes") for w in words) else [words[-1], answer]
            assert pair in [order[i:i + 2] for i in range(7)], row
        elif row["skill"] in ("capital", "opposite"):
            pairs = world.CAPITALS if row["skill"] == "capital" else world.OPPOSITES
            (pair,) = [p for p in pairs if answer in p]
            other = pair[0] if answer == pair[1] else pair[1]
            assert other in words
            assert answer == pair[1] or row["skill"] == "opposite"


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (1, 10), (5, 10), (10, 10), (247, 318)])
def test_wilsons_interval(quickstart: Any, hits: int, n: int) -> None:
    """Its ends are the shares from which what was seen lies exactly 1.96 standard errors away."""
    for end in quickstart.wilson(hits, n):
        assert (hits / n - end) ** 2 == pytest.approx(1.96**2 * end * (1 - end) / n, abs=1e-12)
    assert quickstart.wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)


def test_the_whole_runs_and_runs_again(quickstart: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                       capfd: pytest.CaptureFixture[str]) -> None:
    sft = posttrain.sft
    monkeypatch.setattr(posttrain, "sft", lambda **settings: sft(**{**settings, "steps": 40}))
    for attempt in ("first", "second"):
        quickstart.main(tmp_path / "quickstart")
        out, err = capfd.readouterr()
        assert ("already holds this run" in err) == (attempt == "second")
        assert "held-out prompts answered exactly right (95 % interval)" in out
    summary = json.loads((tmp_path / "quickstart" / "summary.json").read_text())
    everything = summary["exact_match"].pop("all")
    assert everything["n"] == sum(skill["n"] for skill in summary["exact_match"].values()) >= 300
    assert everything["before"] == 0.0
    hits = sum(round(skill["after"] * skill["n"]) for skill in summary["exact_match"].values())
    assert everything["after"] == hits / everything["n"]
    assert everything["after_low"] <= everything["after"] <= everything["after_high"]
    assert summary["sft"]["held_out"]["loss"] < summary["sft"]["held_out_before"]["loss"] - 2
