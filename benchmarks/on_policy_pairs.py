"""Does a model get better at what it can already do now and then, from its own answers? Exact match
before and after, paired.

    posttrain quickstart
    python benchmarks/on_policy_pairs.py

The quickstart's fine-tuned model answers questions of the curriculum eight times each.
`sample-pairs` makes pairs of right and wrong answers, for DPO, and keeps a right answer of every
question that has one, for fine-tuning on it (rejection sampling). The learning rate of both is
chosen on 500 validation questions: the largest difference, of equal ones the smallest rate. Only
the chosen ones are put to the 500 test questions, with three seeds. All splits have different
questions.

Left out: other methods, more than two passes, a second round with the model that came out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import record

ROOT = Path(__file__).resolve().parents[1]
SIZES, RATES, SEEDS, N, QUESTIONS = (300, 1200), (1e-5, 2e-5, 5e-5), (0, 1, 2), 8, 500
SHARED: dict[str, Any] = {"device": "cpu", "quiet": True}


def write(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def questions(folder: Path, split: Any) -> Path:
    """Questions with their answers, of the levels that the quickstart asks."""
    from posttrain.assets import curriculum
    from posttrain.pipeline.quickstart import LEVELS

    return write(
        folder / f"{split}.jsonl",
        (
            {"prompt": one["question"], "completion": one["answer"]}
            for one in curriculum.held_out(QUESTIONS, split, 0, levels=LEVELS)
        ),
    )


def train(method: str, model: Path, pairs: Path, rate: float, seed: int, out: Path) -> Path:
    """The model after two passes over the pairs, or over the best answers."""
    import posttrain

    options = {
        **SHARED,
        "model": model,
        "learning_rate": rate,
        "epochs": 2,
        "batch_size": 8,
        "seed": seed,
        "out": out,
    }
    if method == "dpo":
        return posttrain.preference(data=pairs / "pairs.jsonl", **options).model
    return posttrain.sft(data=pairs / "best.jsonl", **options).model


def compare(model: Path, base: Path, asked: Path, out: Path) -> dict[str, Any]:
    """Exact match of a model and of the one that it began as, and the paired difference."""
    import posttrain

    (found,) = (
        posttrain.evaluate(model=model, against=base, exact=asked, max_tokens=24, out=out, **SHARED)
        .summary["tasks"]
        .values()
    )
    return {
        "before": found["against"]["correct"],
        "after": found["metrics"]["correct"],
        "difference": found["difference"]["correct"],
    }


def run(size: int, model: Path, folder: Path) -> dict[str, Any]:
    """Sample, choose the rates, and test."""
    import posttrain
    from posttrain.assets import curriculum
    from posttrain.pipeline.quickstart import LEVELS

    asked = write(folder / "prompts.jsonl", curriculum.prompts(size, "train", 7, levels=LEVELS))
    began = time.perf_counter()
    made = posttrain.sample_pairs(
        model=model,
        data=asked,
        scorer="exact",
        n=N,
        max_tokens=24,
        at_least=1,
        out=folder / "pairs",
        **SHARED,
    )
    result: dict[str, Any] = {
        "sampling_seconds": time.perf_counter() - began,
        "sample_pairs": made.summary,
        "methods": {},
    }
    validation, test = questions(folder, "validation"), questions(folder, "test")
    for method in ("dpo", "sft on the best"):
        name = method.split()[0]
        tried = {
            rate: compare(
                train(method, model, made.folder, rate, 0, folder / f"{name}-{rate}"),
                model,
                validation,
                folder / f"{name}-{rate}-validation",
            )
            for rate in RATES
        }
        chosen = max(RATES, key=lambda rate: (round(tried[rate]["difference"]["mean"], 9), -rate))
        tested = {
            seed: compare(
                train(
                    method,
                    model,
                    made.folder,
                    chosen,
                    seed,
                    folder / (f"{name}-{chosen}" if seed == 0 else f"{name}-{chosen}-seed-{seed}"),
                ),
                model,
                test,
                folder / f"{name}-test-{seed}",
            )
            for seed in SEEDS
        }
        result["methods"][method] = {"validation": tried, "chosen": chosen, "test": tested}
        for seed, one in tested.items():
            print(
                f"{size} prompts, {method}, rate {chosen:g}, seed {seed}: {shown(one['before'])} → "
                f"{shown(one['after'])}, difference {shown(one['difference'])}",
                flush=True,
            )
    return result


def shown(estimate: dict[str, Any]) -> str:
    return f"{estimate['mean']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model",
        type=Path,
        default=ROOT / "runs" / "quickstart" / "sft" / "model",
        help="what the quickstart fine-tuned [runs/quickstart/sft/model]",
    )
    parser.add_argument(
        "--runs",
        type=Path,
        default=ROOT / "runs" / "on-policy",
        help="run folders [runs/on-policy]",
    )
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=list(SIZES), help="prompts to sample from"
    )
    parser.add_argument(
        "--out", type=Path, help="the result [benchmarks/results/DATE-on-policy-pairs.json]"
    )
    arguments = parser.parse_args()
    result = record.header("posttrain", "torch", "transformers")
    result["sizes"] = {
        size: run(size, arguments.model, arguments.runs / str(size)) for size in arguments.sizes
    }
    record.write(result, arguments.out or record.RESULTS / f"{result['date']}-on-policy-pairs.json")


if __name__ == "__main__":
    main()
