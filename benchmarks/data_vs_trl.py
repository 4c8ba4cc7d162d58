"""Preparing Dolly for training: rows a second from the file to packed token sequences, beside TRL's
own preparation.

    python benchmarks/data_vs_trl.py --shared FOLDER    measure; refuses unless the machine is quiet
    python benchmarks/data_vs_trl.py --shared FOLDER --rows 300 --rounds 1 --loud    a smoke test

FOLDER holds `demonstrations/dolly_train.jsonl.gz` and `models/base-28m`, whose tokenizer both use.
Two shapes of the same rows: prompt and completion as plain text, and as a question and an answer in
a chat template. Both begin with the JSON-lines file and end with sequences of at most 1024 tokens
packed into bins of 1024. TRL runs its default (one process) and two processes, each time without
anything cached; we also write what we made to the disk and count duplicates. Imports and loading
the tokenizer are in neither time. Every measurement is a fresh process; contestants take turns.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import record

LIMIT, TARGET = 1024, 2.0
CONTESTANTS = {
    f"{name}, {shape}": (name, shape)
    for shape in ("text", "chat")
    for name in ("trl", "trl two processes", "posttrain")
}
QUIET = 0.5  # one-minute load average


def tokenizer_of(job: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    from posttrain.data.templates.default import default_template

    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    tokenizer.chat_template = default_template(tokenizer)
    return tokenizer


def run_trl(job: dict[str, Any], shape: str, processes: int | None) -> dict[str, Any]:
    """The time TRL's trainer spends in preparing its data set, and loading the rows."""
    import datasets
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    spent: dict[str, Any] = {}
    prepare = SFTTrainer._prepare_dataset

    def timed(self: Any, *args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        out = prepare(self, *args, **kwargs)
        spent["seconds"] = time.perf_counter() - begin
        spent["bins"] = len(out)
        spent["tokens"] = sum(len(ids) for ids in out["input_ids"])
        return out

    SFTTrainer._prepare_dataset = timed
    model = AutoModelForCausalLM.from_pretrained(job["model"])
    tokenizer = tokenizer_of(job)
    begin = time.perf_counter()
    rows = datasets.load_dataset("json", data_files=job[shape], split="train")
    loading = time.perf_counter() - begin
    args = SFTConfig(
        output_dir=job["work"],
        packing=True,
        max_length=LIMIT,
        report_to="none",
        use_cpu=True,
        bf16=False,
        dataset_num_proc=processes,
        disable_tqdm=True,
    )
    SFTTrainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer)
    return {"seconds": spent["seconds"] + loading, "bins": spent["bins"], "tokens": spent["tokens"]}


def run_posttrain(job: dict[str, Any], shape: str) -> dict[str, Any]:
    from posttrain.data.chat import Chat
    from posttrain.data.forest import pack
    from posttrain.data.prepare import Preparation, prepare
    from posttrain.data.settings import Source
    from posttrain.data.store import Trees

    tokenizer = tokenizer_of(job)
    begin = time.perf_counter()
    chat = Chat(tokenizer, prompt_template="{prompt}" if shape == "text" else None)
    folder = Path(job["work"]) / "trees"
    account = prepare(Source(path=job[shape]), Preparation(chat, LIMIT), folder)
    bins = pack(Trees(folder).lengths().tolist(), LIMIT)
    return {"seconds": time.perf_counter() - begin, "bins": len(bins), "tokens": account.tokens}


def child(job: dict[str, Any]) -> dict[str, Any]:
    name, shape = CONTESTANTS[job["contestant"]]
    if name == "posttrain":
        return run_posttrain(job, shape)
    return run_trl(job, shape, 2 if name.endswith("processes") else None)


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """One contestant in a process and a folder of its own."""
    with tempfile.TemporaryDirectory() as work:
        environment = {
            **os.environ,
            "HF_DATASETS_CACHE": work,
            "HF_HUB_OFFLINE": "1",
            "TRL_EXPERIMENTAL_SILENCE": "1",
        }
        command = [sys.executable, __file__, "--job", json.dumps({**job, "work": work})]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{job['contestant']} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def write_rows(shared: Path, folder: Path, limit: int | None) -> dict[str, Any]:
    """The rows in both shapes: what TRL takes as plain text, and as a conversation."""
    with gzip.open(shared / "demonstrations/dolly_train.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file][:limit]
    out: dict[str, Any] = {"rows": len(rows)}
    for shape in ("text", "chat"):
        path = folder / f"{shape}.jsonl"
        with open(path, "w") as file:
            for row in rows:
                one = {"prompt": row["prompt"], "completion": row["completion"]}
                if shape == "chat":
                    one = {
                        "prompt": [{"role": "user", "content": row["prompt"]}],
                        "completion": [{"role": "assistant", "content": row["completion"]}],
                    }
                file.write(json.dumps(one) + "\n")
        out[shape] = str(path)
    return out


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--loud", action="store_true", help="measure on a machine that is busy; writes no result"
    )
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        print(json.dumps(child(json.loads(args.job))))
        return 0
    if os.getloadavg()[0] > QUIET and not args.loud:
        print(
            f"the machine is busy (load {os.getloadavg()[0]:.2f}); wait until it is below {QUIET}",
            file=sys.stderr,
        )
        return 2
    result = record.header("torch", "transformers", "tokenizers", "trl", "datasets")
    with tempfile.TemporaryDirectory() as folder:
        job = {
            **write_rows(args.shared, Path(folder), args.rows),
            "model": str(args.shared / "models/base-28m"),
        }
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTESTANTS}
        for n in range(args.rounds):
            for name in CONTESTANTS:
                found = measure({**job, "contestant": name})
                runs[name].append(found)
                print(
                    f"round {n + 1}  {name:24} {job['rows'] / found['seconds']:8,.0f} rows/s  "
                    f"{found['seconds']:6.2f} s  {found['bins']:,} bins, {found['tokens']:,} "
                    "tokens",
                    flush=True,
                )
    rates = {
        name: statistics.median(job["rows"] / one["seconds"] for one in some)
        for name, some in runs.items()
    }
    ratios = {
        shape: {
            peer: rates[f"posttrain, {shape}"] / rates[f"{peer}, {shape}"]
            for peer in ("trl", "trl two processes")
        }
        for shape in ("text", "chat")
    }
    for shape, some in ratios.items():
        print(
            f"{shape}: {some['trl']:.2f} × TRL, {some['trl two processes']:.2f} × TRL with two "
            f"processes (target {TARGET})"
        )
    if not args.loud:
        record.write(
            {
                **result,
                "rows": job["rows"],
                "rows_per_second": rates,
                "ratios": ratios,
                "runs": runs,
            },
            record.RESULTS / f"{result['date']}-data-vs-trl.json",
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
