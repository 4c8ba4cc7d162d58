"""Memory while a file larger than one would like to hold is prepared for training.

    python benchmarks/data_memory.py --model FOLDER --gigabytes 5

Generates a JSON-lines file of questions and answers made of invented words, each with a column of
three times their size that is not used, as many data sets have; prepares it with the tokenizer of
FOLDER as `posttrain sft` would (read, checked, rendered, tokenised, counted, written as trees); and
notes the process's own memory (anonymous pages; what the system caches of files is not counted)
each time another twentieth has been read.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import record


def generate(path: Path, size: int) -> int:
    """Write about `size` bytes of rows; returns how many."""
    rng = random.Random(0)
    parts = [c + v for c in "bcdfghjklmnprstvwxyz" for v in "aeiou"]
    words = ["".join(rng.choices(parts, k=rng.choice((1, 2, 2, 3, 4)))) for _ in range(20_000)]
    written = rows = 0
    with open(path, "w", buffering=1 << 24) as file:
        while written < size:
            n, m = int(rng.lognormvariate(3.5, 0.8)) + 3, int(rng.lognormvariate(4.5, 0.8)) + 3
            text = rng.choices(words, k=n + m)
            line = json.dumps(
                {
                    "prompt": f"{rows} " + " ".join(text[:n]),
                    "completion": " ".join(text[n:]),
                    "document": " ".join(text * 3),
                }
            )
            written += file.write(line + "\n")
            rows += 1
    return rows


def child(job: dict[str, Any]) -> None:
    """Prepare; print bytes read, seconds and memory at every twentieth, then the account."""
    from transformers import AutoTokenizer

    from posttrain.data.chat import Chat
    from posttrain.data.prepare import Preparation, prepare
    from posttrain.data.settings import Source

    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    total, begin, seen = Path(job["file"]).stat().st_size, time.perf_counter(), [0]

    def progress(read: int) -> None:
        if read * 20 // total > seen[0]:
            seen[0] = read * 20 // total
            point = {
                "read_gb": read / 1e9,
                "seconds": time.perf_counter() - begin,
                "memory_mib": own_memory(),
            }
            print(json.dumps(point), flush=True)

    account = prepare(
        Source(path=job["file"]),
        Preparation(Chat(tokenizer), max_length=1024),
        Path(job["out"]),
        progress=progress,
    )
    print(
        json.dumps(
            {
                "rows": account.read,
                "sequences": account.sequences,
                "tokens": account.tokens,
                "duplicates": account.duplicates,
                "seconds": time.perf_counter() - begin,
                "memory_mib": own_memory(),
                "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )
    )


def own_memory() -> float:
    """Anonymous memory of this process, MiB."""
    line = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("RssAnon")
    )
    return int(line.split()[1]) / 1024


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model")
    parser.add_argument("--gigabytes", type=float, default=5.0)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        child(json.loads(args.job))
        return 0
    result = record.header("transformers", "tokenizers", "numpy")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        rows = generate(path, int(args.gigabytes * 1e9))
        print(f"{rows:,} rows, {path.stat().st_size / 1e9:.2f} GB", flush=True)
        job = json.dumps(
            {"file": str(path), "model": args.model, "out": str(Path(folder) / "trees")}
        )
        with subprocess.Popen(
            [sys.executable, __file__, "--job", job], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            lines = []
            for line in process.stdout:
                lines.append(json.loads(line))
                print(line.strip(), flush=True)
        if process.returncode:
            return process.returncode
    points, account = lines[:-1], lines[-1]
    first, last = points[0]["memory_mib"], max(p["memory_mib"] for p in points)
    print(
        f"memory: {first:.0f} MiB after a twentieth, {last:.0f} MiB at most; "
        f"{account['rows'] / account['seconds']:,.0f} rows/s"
    )
    record.write(
        {**result, "gigabytes": args.gigabytes, "points": points, "account": account},
        record.RESULTS / f"{result['date']}-data-memory.json",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
