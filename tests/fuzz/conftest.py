"""The bench of the small fuzz and of the table of damaged files; the long fuzz makes all runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import bench, forks

RUNS = ("runs/stopped", "runs/sampled", "clean.jsonl", "runs/small")


@pytest.fixture(scope="package")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, rows and runs; nobody changes them."""
    forks.everything()
    return bench.make(tmp_path_factory.mktemp("fuzz") / "bench", RUNS)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
