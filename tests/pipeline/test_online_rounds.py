"""Online DPO as a recipe: answers sampled, judged and learned from, twice; the second round's first
loss by hand.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from posttrain.cli.main import main
from tests import making
from tests.test_preference_command import answers, log_sigmoid, mean, steps


def test_two_rounds_held_against_the_model_it_began_with(tmp_path: Path) -> None:
    base = making.model(tmp_path / "base")
    making.write(
        tmp_path / "prompts.jsonl", [{"prompt": f"{a}+{b}="} for a in range(4) for b in range(4)]
    )
    asked = {
        "stage": "sample_pairs",
        "data": str(tmp_path / "prompts.jsonl"),
        "scorer": "longest",
        "n": 4,
        "max_tokens": 8,
        "unfinished": "keep",
        "prompt_template": "{prompt}",
        "device": "cpu",
    }
    learn = {
        "stage": "preference",
        "steps": 3,
        "batch_size": 64,
        "learning_rate": 1e-2,
        "prompt_template": "{prompt}",
        "keep_best": False,
        "device": "cpu",
    }
    recipe = {
        "name": "online",
        "stages": {
            "pairs-1": {**asked, "model": str(base)},
            "dpo-1": {**learn, "model": str(base), "data": "pairs-1"},
            "pairs-2": {**asked, "model": "dpo-1", "seed": 1},
            "dpo-2": {**learn, "model": "dpo-1", "reference_model": str(base), "data": "pairs-2"},
        },
    }
    (tmp_path / "online.yaml").write_text(json.dumps(recipe))
    assert (
        main(["run", str(tmp_path / "online.yaml"), "--out", str(tmp_path / "run"), "--quiet"]) == 0
    )
    folder = {name: tmp_path / "run" / name for name in recipe["stages"]}
    first, second = (
        [
            json.loads(line)
            for line in (folder[f"pairs-{k}"] / "pairs.jsonl").read_text().splitlines()
        ]
        for k in (1, 2)
    )
    assert len(first) > 8 and len(second) > 8 and first != second
    # the policy is its reference
    assert steps(folder["dpo-1"])[0]["loss"] == pytest.approx(math.log(2))
    now, then = (
        {side: answers(model, second, side) for side in ("chosen", "rejected")}
        for model in (folder["dpo-1"] / "model", base)
    )
    gained = [
        [sum(a) - sum(b) for a, b in zip(now[side], then[side], strict=True)]
        for side in ("chosen", "rejected")
    ]
    expected = mean([-log_sigmoid(0.1 * (good - bad)) for good, bad in zip(*gained, strict=True)])
    assert steps(folder["dpo-2"])[0]["loss"] == pytest.approx(expected, rel=1e-3)
    assert expected != pytest.approx(math.log(2), rel=1e-3)
