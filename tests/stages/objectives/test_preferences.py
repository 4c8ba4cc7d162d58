"""What preference training is held against: no dropout, and the right reference."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import posttrain
from posttrain.core.errors import PosttrainError
from posttrain.engine.policy import Policy
from posttrain.stages.objectives import preferences
from posttrain.stages.objectives.preferences import AGREEMENT
from tests.stages.objectives.small import gpt2, losses, settings


def test_the_models_dropout_is_off(tmp_path: Path) -> None:
    """Two models that differ in dropout alone learn the same, and DPO begins at log 2."""
    curves = {}
    for dropout in (0.0, 0.5):
        run, model = tmp_path / f"run-{dropout}", gpt2(tmp_path / f"model-{dropout}", dropout)
        posttrain.preference(**settings(tmp_path, model, out=run))
        curves[dropout] = losses(run)
    assert curves[0.5] == curves[0.0]
    assert curves[0.5][0] == pytest.approx(math.log(2), rel=1e-6)
    assert len(set(curves[0.5])) == 3


# ------------------------------------------------------------------------------- stored references


def test_a_cache_keeps_the_references_of_two_models_apart(tmp_path: Path) -> None:
    """The same rows and one cache: each model has a store of its own, and finds it again."""
    cache = tmp_path / "cache"
    models = [gpt2(tmp_path / f"model-{seed}", 0.0, seed) for seed in (0, 1)]
    more = {"reference_cache": cache, "steps": 1}
    for i, model in enumerate([*models, *models]):
        posttrain.preference(**settings(tmp_path, model, out=tmp_path / f"run-{i}", **more))
        assert len(list(cache.glob("reference-*"))) == min(i + 1, 2)
    stores = [(folder / "arrays.bin").read_bytes() for folder in cache.glob("reference-*")]
    assert stores[0] != stores[1]


def test_a_cache_keeps_the_references_of_two_dtypes_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One model in float32 and in bfloat16: what one says is not what the other is held against."""
    cache, model = tmp_path / "cache", gpt2(tmp_path / "model", 0.0)
    more = {"reference_cache": cache, "steps": 1}
    posttrain.preference(**settings(tmp_path, model, out=tmp_path / "float32", **more))
    loaded = lambda self, given: Policy.load(given.model, device="cpu", dtype="bfloat16")  # noqa: E731
    monkeypatch.setattr(preferences.Preferences, "load", loaded)
    posttrain.preference(**settings(tmp_path, model, out=tmp_path / "bfloat16", **more))
    assert len(list(cache.glob("reference-*"))) == 2


# ------------------------------------------------------------------ the reference and the start


def test_the_reference_of_another_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for as one's own it stops the run before a step; asked for by name it is wanted."""
    model, other = (gpt2(tmp_path / f"model-{seed}", 0.0, seed) for seed in (0, 1))
    wanted = settings(tmp_path, model, out=tmp_path / "named", reference_model=str(other))
    posttrain.preference(**wanted)
    scores = Policy.load(other, device="cpu").logprobs
    monkeypatch.setattr(preferences, "_log_probs", lambda *_: scores)
    with pytest.raises(PosttrainError, match="not the model that training starts from") as error:
        posttrain.preference(**settings(tmp_path, model, out=tmp_path / "run"))
    assert "--reference-cache" in str(error.value)
    log = tmp_path / "run" / "metrics.jsonl"
    assert not log.exists() or not losses(tmp_path / "run")


def gaps(bulk: float, n: int = 1000, **tail: Any) -> torch.Tensor:
    """n differences of `bulk` nats, of which the last `count` are `of` nats."""
    out = torch.full((n,), bulk)
    if tail:
        out[-tail["count"] :] = tail["of"]
    return out


@pytest.mark.parametrize(
    ("device", "off", "allowed"),
    [
        ("cpu", gaps(9e-6), True),
        ("cpu", gaps(9e-6, count=1, of=9e-5), True),
        ("cpu", gaps(2e-5), False),  # the mean
        ("cpu", gaps(0.0, count=1, of=2e-4), False),  # the largest
        # in bfloat16 rare tokens are off by far, and all of them by little
        ("cuda", gaps(0.01), True),
        ("cuda", gaps(0.01, count=5, of=0.9), True),
        ("cuda", gaps(0.03), False),  # the mean
        ("cuda", gaps(0.0, count=15, of=0.9), False),  # the 99th percentile; the mean is 0.0135
        ("cuda", gaps(0.0, count=1, of=1.1), False),  # the largest
        ("cpu", gaps(math.nan), False),
        ("cuda", gaps(0.0, count=1, of=math.nan), False),
    ],
)
def test_how_far_the_reference_may_be(device: str, off: torch.Tensor, allowed: bool) -> None:
    assert AGREEMENT[device].allows(off) is allowed
