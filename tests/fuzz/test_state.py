"""Every kind of file that a run leaves, cut and replaced: what the next command says of it, and
whether it goes on.
"""

from __future__ import annotations

import glob
from pathlib import Path
from random import Random

import pytest

from tests.fuzz import damage, forks
from tests.fuzz.bench import RUNS, argv_of

STOPPED, SAMPLED = RUNS["runs/stopped"], RUNS["runs/sampled"]
ARTIFACT = "runs/small/artifacts/sft-*"
EVAL = ["eval", "--exact", "rows.jsonl,limit=2", "--max-tokens", "2", "--out", "out", "--model"]
MODEL = "runs/small/sft/model"
NEWEST = "runs/stopped/checkpoints/step-00000001"  # the only one: nothing is before it
CANNOT = "this file of a run cannot be used: "

# (file of the bench, damage, the command that reads it, exit code, what it says)
TABLE: list[tuple[str, str, list[str], int, str]] = [
    *(
        ("runs/stopped/run.json", kind, STOPPED, 2, f"runs/stopped/run.json{says}")
        for kind, says in (
            ("cut", ":3"),  # and the line, which depends on where it was cut
            ("empty", f":1: {CANNOT}it is empty"),
            ("null", f": {CANNOT}it is not what a run writes there (NoneType, not an object)"),
            ("a list", f": {CANNOT}it is not what a run writes there (list, not an object)"),
            ("an object", f": {CANNOT}it has no 'identity'"),
            ("deep", f": {CANNOT}it is damaged: thousands of nested brackets"),
            ("no UTF-8", f": {CANNOT}"),
            ("a folder", f": {CANNOT}Is a directory"),
            ("a looping link", f": {CANNOT}Too many levels of symbolic links"),
            ("a dangling link", f": {CANNOT}No such file or directory"),
        )
    ),
    (f"{NEWEST}/manifest.json", "null", STOPPED, 2, "none of the checkpoints"),
    (f"{NEWEST}/manifest.json", "deep", STOPPED, 2, "none of the checkpoints"),
    (f"{NEWEST}/manifest.json", "an object", STOPPED, 2, "it has no 'files'"),
    (f"{NEWEST}/state.json", "a list", STOPPED, 2, "state.json is damaged"),
    (f"{NEWEST}/weights.safetensors", "a folder", STOPPED, 2, "none of the checkpoints"),
    ("runs/stopped/metrics.jsonl", "no UTF-8", STOPPED, 0, "metrics.jsonl was changed"),
    ("runs/stopped/tokens/key.json", "deep", STOPPED, 0, "preparing the rows again"),
    ("runs/stopped/tokens/data 0/tokens", "cut", STOPPED, 0, "preparing the rows again"),
    # and then all answers have one score
    ("runs/sampled/chunks/records.jsonl", "null", SAMPLED, 2, "is damaged at its start"),
    ("runs/sampled/chunks/records.jsonl", "a folder", SAMPLED, 2, "records.jsonl"),
    ("clean.summary.json", "a list", RUNS["clean.jsonl"], 2, "no run of ours that finished wrote"),
    (f"{ARTIFACT}/artifact.json", "cut", ["show", "runs/small/sft"], 2, "artifact.json"),
    (f"{ARTIFACT}/artifact.json", "null", RUNS["runs/small"], 0, "damaged: artifact.json"),
    ("runs/small/summary.json", "deep", ["show", "runs/small"], 2, "summary.json"),
    ("runs/small/summary.json", "text", ["runs", "runs"], 0, "damaged"),
    *(
        (f"{ARTIFACT}/model/{name}", kind, [*EVAL, MODEL], 2, MODEL)
        for name, kind in (
            ("config.json", "a list"),
            ("config.json", "deep"),
            ("tokenizer.json", "cut"),
            ("tokenizer.json", "deep"),
            ("tokenizer_config.json", "a list"),
            ("model.safetensors", "empty"),
            ("model.safetensors", "no UTF-8"),
        )
    ),
    *(
        ("text.jsonl", "missing", [*argv_of(command), "--data", "odd/*.jsonl"], 0, "")
        for command in ("sft", "data split", "data select", "data inspect")
    ),
    (f"{ARTIFACT}/model/config.json", "null", argv_of("sft"), 0, ""),  # which reads another model
]


@pytest.mark.parametrize("part", range(4))
def test_a_damaged_file_is_named(part: int, made: Path, tmp_path: Path) -> None:
    cases: list[forks.Case] = []
    for file, kind, argv, code, says in TABLE[part::4]:
        (found,) = glob.glob(str(made / file))
        name = str(Path(found).relative_to(made))

        def do(folder: Path, name: str = name, kind: str = kind) -> None:
            damage.KINDS[kind](folder / name, Random(0))

        run = "/".join(name.split("/")[:2])
        cases.append(forks.Case(f"{file}, {kind}", argv, (run,), do, says=says, codes=(code,)))
    failed = [f"{case.name}: {wrong}" for case, wrong in forks.run(cases, made, tmp_path) if wrong]
    assert not failed, "\n\n".join(failed)
