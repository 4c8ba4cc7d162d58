"""The same work in two checkouts of this project, in turns: what a change costs, with intervals.

    python benchmarks/two_checkouts.py OLD NEW --shared FOLDER
    python benchmarks/two_checkouts.py OLD NEW --shared FOLDER --rounds 2 --loud    a smoke test

Each checkout runs its own copies of the other benchmarks, this project's contestants only: `sft`,
`dpo` with a stored reference, and the preparation of Dolly (FOLDER as in `data_vs_trl.py`). Every
measurement is a fresh process. A round takes each piece of work once in both checkouts, one right
after the other, and the order changes from round to round. A ratio is NEW over OLD within a round,
above 1 where NEW is faster; its interval is Student's t on the logarithms, 95 %.

Beside the rates on the clock stands the work a processor second does, over the whole process with
its start: on a machine that others share it varies less.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import record
from data_vs_trl import write_rows

QUIET = 0.5  # one-minute load average
STEPS, WARMUP = {"cpu_vs_trl": 15, "cpu_dpo_vs_trl": 8}, 2
ELSEWHERE = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
Measure = Callable[[Path], dict[str, float]]


def trained(checkout: Path, script: str, work: Path) -> dict[str, float]:
    """Steps a second after warm-up, and the seconds of the whole process."""
    begin = time.perf_counter()
    found = record.fresh(
        checkout / "benchmarks" / f"{script}.py",
        work,
        "posttrain",
        steps=STEPS[script] + WARMUP,
        tiny=False,
        ratio=4.0,
    )
    steps = found["seconds"][WARMUP:]
    return {
        "steps a second": len(steps) / sum(steps),
        "processes a second": 1 / (time.perf_counter() - begin),
    }


def prepared(checkout: Path, job: dict[str, Any]) -> dict[str, float]:
    """Rows a second."""
    with tempfile.TemporaryDirectory() as work:
        done = subprocess.run(
            [
                sys.executable,
                str(checkout / "benchmarks/data_vs_trl.py"),
                "--job",
                json.dumps({**job, "work": work}),
            ],
            capture_output=True,
            text=True,
            check=True,
        )
    return {"rows a second": job["rows"] / json.loads(done.stdout.splitlines()[-1])["seconds"]}


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """Geometric mean of paired ratios, and its 95 % interval."""
    from scipy import stats

    logs = [math.log(ratio) for ratio in ratios]
    mean = statistics.fmean(logs)
    half = stats.t.ppf(0.975, len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def processor_seconds() -> float:
    """What all processes that this one started, and that have ended, have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def import_from(checkout: Path) -> None:
    """Processes started from here on import the sources of this checkout."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(checkout / "src"), *ELSEWHERE])


def summarise(rates: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    """The interval of each measurement's ratio, NEW over OLD."""
    out = {}
    for name, sides in rates.items():
        ratios = [new / old for old, new in zip(sides["old"], sides["new"], strict=True)]
        mean, low, high = interval(ratios)
        out[name] = {"mean": mean, "low": low, "high": high, "n": len(ratios)}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=10, help="pairs of each, at least 2 [10]")
    parser.add_argument("--loud", action="store_true", help="on a busy machine; writes no result")
    a = parser.parse_args()
    if not a.loud:
        record.refuse_busy(QUIET)
    checkouts = {"old": a.old.resolve(), "new": a.new.resolve()}
    result = record.header("torch", "transformers", "tokenizers", "numpy")
    rates: dict[str, dict[str, list[float]]] = {}
    path = record.RESULTS / f"{result['date']}-two-checkouts.json"
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        rows = write_rows(a.shared, work, None)
        job = {**rows, "model": str(a.shared.resolve() / "models/base-28m")}
        measures: dict[str, Measure] = {
            f"data, {shape}": lambda checkout, shape=shape: prepared(
                checkout, {**job, "contestant": f"posttrain, {shape}"}
            )
            for shape in ("text", "chat")
        }
        for script in STEPS:
            (work / script).mkdir()
            import_from(checkouts["old"])
            record.fresh(
                checkouts["old"] / "benchmarks" / f"{script}.py",
                work / script,
                "prepare",
                model="5m",
                rows=160,
                tiny=False,
                ratio=4.0,
            )
            measures[script] = lambda checkout, script=script: trained(
                checkout, script, work / script
            )
        for turn in range(a.rounds):
            for name, measure in measures.items():
                for side in ("old", "new") if turn % 2 else ("new", "old"):
                    import_from(checkouts[side])
                    before = processor_seconds()
                    measured = measure(checkouts[side])
                    measured["runs a processor second"] = 1 / (processor_seconds() - before)
                    for what, value in measured.items():
                        rates.setdefault(f"{name}, {what}", {}).setdefault(side, []).append(value)
            print(f"round {turn + 1}/{a.rounds}", flush=True)
            if turn and not a.loud:  # after every round: a machine may be taken away
                record.write({**result, "rates": rates, "ratios": summarise(rates)}, path)
    for name, ratio in summarise(rates).items():
        interval_text = f"[{ratio['low']:.3f}, {ratio['high']:.3f}]"
        print(f"{name:38} {ratio['mean']:.3f} × {interval_text}  n = {ratio['n']}")


if __name__ == "__main__":
    main()
