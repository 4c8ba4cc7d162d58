"""Nothing is lost: a run killed twenty times ends with the weights, the log and the results of one
that never was.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from posttrain.core.files import sha256_file

STEPS = 110
CLOCK = ("seconds", "tokens_per_second", "memory_gib")  # what may differ between runs


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2 with dropout, so that random numbers matter, and rows it can only learn by
    heart, so that it overfits.
    """
    folder = tmp_path_factory.mktemp("base")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(["<end>", *alphabet])}, merges=[])
    )
    words.pre_tokenizer, words.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>").save_pretrained(folder)
    torch.manual_seed(0)
    GPT2LMHeadModel(
        GPT2Config(
            vocab_size=257,
            n_positions=64,
            n_embd=16,
            n_layer=2,
            n_head=2,
            bos_token_id=0,
            eos_token_id=0,
            resid_pdrop=0.1,
            embd_pdrop=0.1,
            attn_pdrop=0.1,
        )
    ).save_pretrained(folder)
    rng = np.random.default_rng(0)
    for name, rows in (("train", 48), ("held", 12)):
        lines = [
            {"prompt": f"say {rng.integers(1e6)} ", "completion": f"{rng.integers(1e9)}"}
            for _ in range(rows)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return folder


def command(base: Path, *more: str) -> list[str]:
    return [
        "sft",
        "--model",
        str(base),
        "--data",
        str(base / "train.jsonl"),
        "--validation",
        str(base / "held.jsonl"),
        "--neftune",
        "5",
        "--learning-rate",
        "0.02",
        "--batch-size",
        "6",
        "--budget",
        "64",
        "--validate-every",
        "7",
        "--checkpoint-every",
        "4",
        "--weight-decay",
        "0.1",
        *more,
    ]


def lives(job: dict[str, Any]) -> str:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("lives.py")), json.dumps(job)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def ending(folder: Path) -> dict[str, Any]:
    """Everything a run leaves that does not come from the clock."""
    if not (folder / "summary.json").exists():
        return {"unfinished": True}
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "summary.json").read_text())
    return {
        "weights": sha256_file(folder / "model" / "model.safetensors"),
        "log": [{k: v for k, v in r.items() if k not in CLOCK} for r in log],
        "summary": {k: v for k, v in summary.items() if k not in CLOCK},
    }


@pytest.fixture(scope="module")
def undisturbed(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    argv = command(base, "--steps", str(STEPS), "--out", str(folder / "run"))
    lives({"do": "run", "argv": argv, "log": str(folder / "log")})
    return ending(folder / "run")


@pytest.mark.slow
def test_twenty_kills_change_nothing(
    base: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    """8 kills inside a checkpoint's write, 12 at random moments; weights, log and summary equal the
    undisturbed run's.
    """
    run = tmp_path / "run"
    argv = command(base, "--steps", str(STEPS), "--out", str(run))
    kills = json.loads(
        lives(
            {
                "do": "lineage",
                "argv": argv,
                "folder": str(run),
                "steps": STEPS,
                "seed": 1,
                "log": str(tmp_path / "log"),
            }
        )
    )
    for i, (where, step) in enumerate(kills, 1):
        print(f"kill {i:2}: step {step:3}, {where}")
    assert len(kills) == 20
    assert sum("random" not in where for where, _ in kills) == 8
    assert ending(run) == undisturbed
    print(f"weights {undisturbed['weights']}")


@pytest.mark.slow
def test_every_item_of_state_matters(base: Path, tmp_path: Path) -> None:
    """A run resumed without any one item ends differently: none is saved for nothing, and a loss
    would be noticed.
    """
    more = ("--steps", str(STEPS), "--patience", "3")
    whole = tmp_path / "whole"
    lives(
        {
            "do": "run",
            "argv": command(base, *more, "--out", str(whole)),
            "log": str(tmp_path / "log"),
        }
    )
    truth = ending(whole)
    best, last = truth["summary"]["held_out"]["step"], truth["summary"]["steps"]
    # the kill must come after the best step and before the early stop, or two items would make no
    # difference
    kill = last - 5
    assert 0 < best < kill - 7, (best, last)
    assert last < STEPS
    items = json.loads(
        lives(
            {
                "do": "items",
                "argv": command(base, *more),
                "folder": str(tmp_path / "killed"),
                "step": kill,
                "log": str(tmp_path / "log"),
            }
        )
    )
    assert ending(tmp_path / "without-None") == truth
    unnoticed = [item for item in items if ending(tmp_path / f"without-{item}") == truth]
    assert unnoticed == []
