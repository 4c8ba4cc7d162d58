"""Reward models are trained without the dropout of the model they are made from."""

from __future__ import annotations

from pathlib import Path

import posttrain
from tests.stages.objectives.small import gpt2, losses, settings


def test_the_models_dropout_is_off(tmp_path: Path) -> None:
    """Two models that differ in dropout alone learn the same."""
    curves = {}
    for dropout in (0.0, 0.5):
        run, model = tmp_path / f"run-{dropout}", gpt2(tmp_path / f"model-{dropout}", dropout)
        posttrain.reward_model(**settings(tmp_path, model, out=run))
        curves[dropout] = losses(run)
    assert curves[0.5] == curves[0.0]
    assert len(set(curves[0.5])) == 3
