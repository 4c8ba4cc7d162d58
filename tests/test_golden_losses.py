"""Golden: the losses of a tiny recipe, step by step, are those written down in
tests/golden/losses.json.

    python -m tests.test_golden_losses     write them down anew

A change here means that training does something else than it did. If that is what you want, write
them down, look at the difference and say so in CHANGELOG.md. The tolerance leaves room for other
versions of torch, and for no other mathematics.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from posttrain.assets import curriculum
from posttrain.core.events import Reporter
from posttrain.pipeline.recipe import load
from posttrain.pipeline.run import execute
from tests import making

GOLDEN = Path(__file__).parent / "golden" / "losses.json"
TOLERANCE = 1e-4  # relative
STEPS = 8
STAGES: dict[str, dict[str, Any]] = {
    "sft": {"model": "embedded"},
    "dft": {"model": "embedded", "method": "dft", "steps": 3},
}


def curves(folder: Path) -> dict[str, dict[str, Any]]:
    """What the stages come to: losses in nats a target, tokens and targets of every step, held-out
    loss before and after.
    """
    rows = making.write(folder / "train.jsonl", curriculum.demonstrations(48, "train", 0))
    held_out = making.write(
        folder / "held-out.jsonl", curriculum.demonstrations(16, "validation", 0)
    )
    common = {
        "stage": "sft",
        "data": str(rows),
        "validation": str(held_out),
        "steps": STEPS,
        "batch_size": 8,
        "learning_rate": 1e-4,
        "seed": 0,
        "device": "cpu",
    }
    recipe = load(
        {"name": "golden", "stages": {name: {**common, **own} for name, own in STAGES.items()}}
    )
    result = execute(recipe, folder / "run", Reporter())
    found = {}
    for name, artifact in result.artifacts.items():
        lines = [json.loads(line) for line in (artifact / "metrics.jsonl").read_text().splitlines()]
        steps = [line for line in lines if "loss" in line]
        found[name] = {
            **{
                key: [line[key] for line in steps]
                for key in ("loss", "learning_rate", "tokens", "targets")
            },
            "held_out": [line["validation"]["loss"] for line in lines if "validation" in line],
        }
    return found


def test_the_losses_are_those_written_down(tmp_path: Path) -> None:
    golden, found = json.loads(GOLDEN.read_text()), curves(tmp_path)
    assert golden.keys() == found.keys() == STAGES.keys()
    assert (
        len(golden["sft"]["loss"]) == STEPS
        and golden["sft"]["held_out"][-1] < golden["sft"]["held_out"][0] - 0.1
    )
    for name, one in found.items():
        for key in ("tokens", "targets"):
            assert one[key] == golden[name][key], (
                f"{name}: {key} are no longer those in {GOLDEN.name}"
            )
        for key in ("loss", "learning_rate", "held_out"):
            assert one[key] == pytest.approx(golden[name][key], rel=TOLERANCE), (
                f"{name}: {key} is no longer that in {GOLDEN.name}; if that is what you want: "
                "python -m tests.test_golden_losses"
            )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        GOLDEN.write_text(json.dumps(curves(Path(scratch)), indent=1) + "\n")
    print(f"wrote {GOLDEN}")
