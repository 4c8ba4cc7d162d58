"""Real rows of the shared data folder beside the checkout; skipped, with the reason, where there is
none.

A mix of instructions, shell commands and medical questions; the target is questions of medical
textbooks. Precision is the share of the chosen rows that come from the medical set; a third would
be chance.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrain.cli.main import main
from tests.engine.test_shared_models import SHARED, given

pytestmark = pytest.mark.skipif(
    not SHARED.is_dir(), reason=f"there is no shared data folder {SHARED}"
)
MIX = (
    "demonstrations/dolly_train.jsonl.gz",
    "demonstrations/tldr_commands.jsonl.gz",
    "domain/medquad_train.jsonl.gz",
)


def precision(out: Path, rows: int, target: str, keep: int, *more: str) -> float:
    data = [f"{given(name)},limit={rows}" for name in MIX]
    argv = [
        "data",
        "select",
        "--data",
        *data,
        "--target",
        target,
        "--keep",
        str(keep),
        "--out",
        str(out),
        "--quiet",
        *more,
    ]
    assert main(argv) == 0
    scores = [
        json.loads(line)
        for line in out.with_name(f"{out.stem}.scores.jsonl").read_text().splitlines()
    ]
    assert len(scores) == keep
    return sum("medquad" in one["where"] for one in scores) / keep


def test_medical_rows_are_chosen_by_words(tmp_path: Path) -> None:
    """Measured: 0.925, 370 of n = 400, 95 % interval 0.895 to 0.947."""
    target = str(given("domain/medical_textbook_qa.jsonl.gz"))
    assert precision(tmp_path / "c.jsonl", 1500, target, 400) > 0.89


def test_medical_rows_are_chosen_by_embedding(tmp_path: Path) -> None:
    """Of few rows and few tokens, so that it takes seconds. Measured: 0.825, 33 of n = 40, 95 %
    interval 0.680 to 0.913.
    """
    target = f"{given('domain/medical_textbook_qa.jsonl.gz')},limit=100"
    model = str(given("models/base-28m"))
    # a third would be chance
    assert (
        precision(
            tmp_path / "c.jsonl",
            100,
            target,
            40,
            "--by",
            "embedding",
            "--model",
            model,
            "--embed-tokens",
            "32",
            "--device",
            "cpu",
        )
        > 0.7
    )


def test_a_real_set_is_split_without_leaks(tmp_path: Path) -> None:
    """Medical answers from templates: no text of one side is a near-duplicate of one of the other,
    by brute force.
    """
    from posttrain.data.curate.near_duplicates import jaccard, shingles

    out = tmp_path / "out"
    data = f"{given('domain/medquad_train.jsonl.gz')},limit=1500"
    assert (
        main(
            [
                "data",
                "split",
                "--data",
                data,
                "--out",
                str(out),
                "--parts",
                "train=0.9",
                "test=0.1",
                "--quiet",
            ]
        )
        == 0
    )
    train, test = (
        [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "test")
    )
    assert len(train) + len(test) == 1500 and abs(len(test) - 150) <= 1
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in test}
    sets = [
        [shingles(f"{row['prompt']}\n{row['completion']}") for row in rows]
        for rows in (train, test)
    ]
    worst = max(
        jaccard(a, b) for b in sets[1] for a in sets[0] if 0.8 * len(b) <= len(a) <= len(b) / 0.8
    )
    assert 0.5 < worst < 0.8
