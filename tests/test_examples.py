"""The examples run: what they claim is seen in a few steps."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_online_learning_makes_answers_shorter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GRPO on the loop: rewarded for short answers, the embedded model writes shorter ones, and the
    first loss is 0, since nothing has moved yet.
    """
    spec = importlib.util.spec_from_file_location("online", EXAMPLES / "online.py")
    assert spec is not None and spec.loader is not None
    online = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "online", online)  # where dataclasses look for it
    spec.loader.exec_module(online)
    online.main(str(tmp_path), steps=8)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    assert abs(steps[0]["loss"]) < 1e-5
    assert steps[-1]["answer_tokens"] < steps[0]["answer_tokens"] / 2
    assert steps[-1]["score"] > steps[0]["score"]
