"""The long fuzz: `python -m tests.fuzz --cases 10000`. Ends with 1 where a case failed."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks import record
from tests.fuzz import bench, forks
from tests.fuzz.cases import cases

SHOWN = 20  # failures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--only", type=int, help="the number of one case")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="at a time")
    parser.add_argument("--result", type=Path, help="JSON file for what came out")
    arguments = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    result = record.header("torch", "transformers", "tokenizers", "safetensors", "pyyaml")
    forks.everything()
    failures: list[str] = []
    kinds, files = Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="posttrain-fuzz-") as name:
        made = bench.make(Path(name) / "bench")
        drawn = list(cases(arguments.cases, arguments.seed, made))
        if arguments.only is not None:
            drawn = drawn[arguments.only : arguments.only + 1]
        for case, wrong in forks.run(drawn, made, Path(name) / "work", arguments.jobs):
            kind, file = _kind(case)
            kinds[kind] += 1
            files[file] += bool(file)
            if wrong:
                failures.append(f"{forks.describe(case)}\n{wrong}")
                print(f"\n{failures[-1]}" if len(failures) <= SHOWN else "…", flush=True)
    print(f"{len(drawn):,} cases, {len(failures):,} failed")
    if arguments.result:
        result |= {"cases": len(drawn), "failed": len(failures)}
        result |= {"kinds": dict(kinds.most_common()), "files": dict((+files).most_common())}
        record.write(result, arguments.result)
    return 1 if failures else 0


def _kind(case: forks.Case) -> tuple[str, str]:
    """Which trouble there was, or how a file was damaged; and the name of the file."""
    name, comma, how = case.name.partition(" ")[2].partition(", ")
    return (f"file: {how}", name.split("/")[-1]) if comma else (name, "")


if __name__ == "__main__":
    sys.exit(main())
