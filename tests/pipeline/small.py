"""A recipe of three stages on a model of thirty thousand parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from posttrain.core.events import Reporter
from posttrain.stages.stage import Outcome, Stage
from tests import making

DOMAIN = [{"text": f"valve {i} is open"} for i in range(8)]
TRAIN = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(3) for b in range(4)]
QUESTIONS = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(2) for b in range(2)]

RECIPE = """\
name: small
stages:
  adapt: {{model: {0}/base, data: {0}/domain.jsonl, steps: 2, batch_size: 4, learning_rate: 1e-3, device: cpu}}
  sft: {{model: adapt, data: {0}/train.jsonl, steps: 6, batch_size: 6, learning_rate: 1e-2, checkpoint_every: 2, device: cpu}}
  check: {{stage: eval, model: sft, against: adapt, exact: {0}/questions.jsonl, max_tokens: 4, device: cpu}}
"""


def bench(folder: Path) -> Path:
    """Write the model and the data; returns the recipe."""
    making.model(folder / "base")
    for name, rows in (("domain", DOMAIN), ("train", TRAIN), ("questions", QUESTIONS)):
        making.write(folder / f"{name}.jsonl", rows)
    (folder / "small.yaml").write_text(RECIPE.format(folder))
    return folder / "small.yaml"


def boom(*given: Any, **named: Any) -> Any:
    raise AssertionError("it is not called")


def forbid(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let no stage of these kinds run."""
    run = Stage.run

    def guarded(stage: Stage[Any], settings: Any, reporter: Reporter) -> Outcome:
        assert stage.name not in names, f"{stage.name} runs"
        return run(stage, settings, reporter)

    monkeypatch.setattr(Stage, "run", guarded)
