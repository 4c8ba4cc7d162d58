"""A folder holds one run: the same one goes on, another is told what differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.core.errors import ConfigError
from posttrain.core.identity import check, claim

RUN: dict[str, Any] = {
    "settings": {"optimiser": {"rate": 0.1, "betas": (0.9, 0.999)}, "lora": None, "steps": 3},
    "data_sha256": {"a.jsonl": "0123456789abcdef0123456789abcdef"},
}


def changed(**settings: Any) -> dict[str, Any]:
    return {**RUN, "settings": {**RUN["settings"], **settings}}


def test_a_folder_without_a_run_takes_any(tmp_path: Path) -> None:
    check(tmp_path, RUN)
    assert list(tmp_path.iterdir()) == []


def test_the_same_run_is_accepted_although_json_has_no_tuples(tmp_path: Path) -> None:
    claim(tmp_path, RUN, "0.1.0")
    check(tmp_path, RUN)
    written = json.loads((tmp_path / "run.json").read_text())
    assert written["posttrain"] == "0.1.0"
    assert written["identity"]["settings"]["optimiser"]["betas"] == [0.9, 0.999]
    claim(tmp_path, RUN, "0.2.0")  # a later version that continues it does not take it over
    assert json.loads((tmp_path / "run.json").read_text()) == written


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (changed(steps=4), "steps was 3, is 4"),
        (
            changed(optimiser={"rate": 0.2, "betas": (0.9, 0.95)}),
            "optimiser.betas was [0.9, 0.999], is [0.9, 0.95]; optimiser.rate was 0.1, is 0.2",
        ),
        (changed(lora={"rank": 4}), "lora was None, is {'rank': 4}"),
        (changed(new=1), "new was None, is 1"),
        (
            {**RUN, "data_sha256": {"a.jsonl": "f" * 32}},
            "data_sha256.a.jsonl was 0123456789abcdef01234…, is fffffffffffffffffffff…",
        ),
        (
            changed(steps=4, a=1, b=2, c=3, d=4),
            "a was None, is 1; b was None, is 2; c was None, is 3; d was None, is 4",
        ),
    ],
)
def test_another_run_is_told_what_differs(tmp_path: Path, other: dict[str, Any], said: str) -> None:
    claim(tmp_path, RUN, "0.1.0")
    with pytest.raises(ConfigError) as caught:
        check(tmp_path, other)
    assert caught.value.what == f"{tmp_path} holds another run; different: {said}"
    assert "--out" in caught.value.cure
