"""`posttrain adapt` end to end on a model of thirty thousand parameters."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import posttrain
from posttrain.cli.main import main
from posttrain.core.errors import ConfigError
from tests import making

DOMAIN = [{"text": f"valve {i} is open"} for i in range(18)]
GENERAL = [{"text": f"day {i}"} for i in range(5)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapt")
    making.model(folder / "base")
    making.write(folder / "domain.jsonl", DOMAIN)
    making.write(folder / "general.jsonl", GENERAL)
    return folder


def adapt(folder: Path, out: Path, *more: str) -> int:
    return main(
        [
            "adapt",
            "--model",
            str(folder / "base"),
            "--data",
            str(folder / "domain.jsonl"),
            "--out",
            str(out),
            "--device",
            "cpu",
            "--quiet",
            *more,
        ]
    )


def steps(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_replay_has_its_share_of_an_epoch(folder: Path, tmp_path: Path) -> None:
    assert (
        adapt(
            folder,
            tmp_path / "run",
            "--replay",
            str(folder / "general.jsonl"),
            "--replay-share",
            "0.25",
            "--epochs",
            "3",
            "--batch-size",
            "24",
        )
        == 0
    )
    # 18 rows are three quarters of 24; six of five rows of replay, so in three epochs some are read
    # four times
    found = steps(tmp_path / "run")
    assert [r["sequences"] for r in found] == [24] * 3
    domain, general = (sum(len(r["text"]) - 1 for r in rows) for rows in (DOMAIN, GENERAL))
    # all of a row but its first token is learned, and the end of the text
    assert general == 5 * 4
    assert [r["targets"] for r in found] == [domain + 18 + 6 * 5] * 3


def test_replay_shares_are_exact_over_several_sources(folder: Path, tmp_path: Path) -> None:
    assert (
        adapt(
            folder,
            tmp_path / "run",
            "--replay",
            f"{folder / 'general.jsonl'},limit=1",
            str(folder / "general.jsonl"),
            "--replay-share",
            "0.1",
            "--batch-size",
            "20",
        )
        == 0
    )
    (step,) = steps(tmp_path / "run")  # one row of each: 18 are nine tenths of 20
    assert (step["sequences"], step["targets"]) == (20, sum(len(r["text"]) for r in DOMAIN) + 2 * 5)


def test_the_rate_is_warmed_up_and_falls_as_a_cosine(folder: Path, tmp_path: Path) -> None:
    assert adapt(folder, tmp_path / "run", "--steps", "40", "--batch-size", "2") == 0
    # 0.05 · 40 = 2 steps of warm-up to 1e-4, then half a cosine
    expected = [
        1e-4 * (k + 1) / 3 if k < 2 else 0.5e-4 * (1 + math.cos(math.pi * (k - 2) / 38))
        for k in range(40)
    ]
    assert [r["learning_rate"] for r in steps(tmp_path / "run")] == pytest.approx(expected)


def test_long_text_is_divided_and_every_token_learned_once(folder: Path, tmp_path: Path) -> None:
    text = making.write(tmp_path / "long.jsonl", [{"text": "x" * 100}])
    assert (
        adapt(
            folder,
            tmp_path / "run",
            "--data",
            str(text),
            "--max-length",
            "32",
            "--batch-size",
            "100",
        )
        == 0
    )
    (step,) = steps(tmp_path / "run")
    # 101 tokens with the end, of which 100 are predicted, in windows that overlap by one: 31 + 31 +
    # 31 + 7
    targets = 100 + sum(len(r["text"]) for r in DOMAIN)
    assert (step["sequences"], step["targets"]) == (18 + 4, targets)
    found = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (found["rows"], found["sequences"], found["truncated"], found["steps"]) == (19, 22, 0, 1)


@pytest.mark.parametrize("own", ["weight=2", "share=0.5", "epochs=2"])
def test_replay_has_no_weight_of_its_own(
    folder: Path, tmp_path: Path, own: str, capfd: pytest.CaptureFixture[str]
) -> None:
    general = folder / "general.jsonl"
    assert adapt(folder, tmp_path / "run", "--replay", f"{general},{own}") == 2
    assert (
        capfd.readouterr().err
        == f"error: --replay {general} has a share, weight or epochs of its own\n"
        "cure:  give --replay-share\n"
    )
    assert not (tmp_path / "run").exists()


def test_python_is_the_same_run(folder: Path, tmp_path: Path) -> None:
    more = {
        "replay": folder / "general.jsonl",
        "replay_share": 0.3,
        "learning_rate": 1e-3,
        "batch_size": 8,
    }
    assert (
        adapt(
            folder,
            tmp_path / "a",
            "--replay",
            str(more["replay"]),
            "--replay-share",
            "0.3",
            "--learning-rate",
            "1e-3",
            "--batch-size",
            "8",
        )
        == 0
    )
    outcome = posttrain.adapt(
        quiet=True,
        model=folder / "base",
        data=folder / "domain.jsonl",
        out=tmp_path / "b",
        device="cpu",
        **more,
    )
    found = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert (
        outcome.summary["sha256"]["model"]
        == found["sha256"]["model"]
        != found["models_sha256"]["model"]
    )
    with pytest.raises(ConfigError, match="replay_share = 1"):
        posttrain.adapt(model="m", data="d", out="o", replay_share=1)
