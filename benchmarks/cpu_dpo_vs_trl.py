"""`posttrain preference` against TRL's DPOTrainer on a CPU: pairs a second, and the same losses.

    python benchmarks/cpu_dpo_vs_trl.py            measure; refuses unless the machine is quiet
    python benchmarks/cpu_dpo_vs_trl.py --tiny     a smoke test whose numbers mean nothing

The model and its invented words are those of `cpu_vs_trl.py`. A pair is a prompt and two answers,
prompt and chosen answer together log-normal: median 70 tokens, 95th percentile 300, at most 512; a
quarter of it is prompt, and the rejected answer is 0.6 to 1.6 times as long as the chosen one.
Everybody takes the same batches of 8 in the same order.

Two rates: of the steps alone, and of one epoch with everything that comes before its steps, which
is where a stored reference costs. After that a curve: the same tokens, but prompts up to eight
times as long as an answer. Each measurement is a fresh process, and contestants take turns within a
round.

Left out: GPUs, LoRA, other sizes, and TRL's grouping by length, which changes the order.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import cpu_vs_trl
import record

HERE = Path(__file__).resolve()
BATCH, LONGEST, RATIOS = 8, 512, (0.33, 1.0, 2.0, 4.0, 8.0)
FAST = {"bf16": False, "gradient_checkpointing": False, "optim": "adamw_torch_fused"}
CONTESTANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "trl default": ("trl", {}),  # bfloat16 autocast, gradient checkpointing
    "trl fp32": ("trl", FAST),
    "trl fp32, precomputed": (
        "trl",
        {**FAST, "precompute_ref_log_probs": True, "precompute_ref_batch_size": BATCH},
    ),
    "posttrain": ("posttrain", {}),
    "posttrain, copy": ("posttrain", {"reference": "copy"}),
}
LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    "trl losses": (
        "trl",
        {
            "bf16": False,
            "gradient_checkpointing": False,
            "learning_rate": 3e-4,
            "lr_scheduler_type": "linear",
        },
    ),
    "posttrain losses": ("posttrain", {"learning_rate": 3e-4, "warmup": 0.0}),
}
TARGET, LOSS_TARGET, QUIET = 3.0, 1e-4, 0.5


# ---------------------------------------------------------------------------------- in the children


def prepare(job: dict[str, Any]) -> dict[str, Any]:
    """Model, tokenizer, and pairs of every ratio: `pairs-R.jsonl`, and `ordered-R.jsonl` in the
    order posttrain takes them.
    """
    import numpy as np
    from transformers import AutoTokenizer

    from posttrain.data.plan import Plan

    made = cpu_vs_trl.prepare({**job, "rows": 16})
    work, draw = Path(job["work"]), np.random.default_rng(1)
    tokenizer = AutoTokenizer.from_pretrained(work / "model")
    words = sorted(
        {
            w
            for line in (work / "rows.jsonl").read_text().splitlines()
            for w in json.loads(line)["text"].split()
        }
    )
    spaced = [" " + w for w in words]
    costs = np.array([len(ids) for ids in tokenizer(spaced)["input_ids"]])

    def text(tokens: int) -> str:
        chosen = draw.choice(len(words), size=max(1, tokens))
        return "".join(
            spaced[i]
            for i in chosen[
                : max(1, int(np.searchsorted(np.cumsum(costs[chosen]), tokens, "right")))
            ]
        )

    out = {}
    for ratio in RATIOS:
        lengths = (
            draw.lognormal(math.log(70), math.log(300 / 70) / 1.6449, job["rows"])
            .clip(24, LONGEST - 80)
            .round()
        )
        rows = []
        for length in lengths.astype(int):
            answer = max(4, int(length / (1 + ratio)))
            other = int(
                min(max(4, answer * draw.lognormal(0, 0.3)), LONGEST - 4 - (length - answer))
            )
            rows.append(
                {"prompt": text(length - answer), "chosen": text(answer), "rejected": text(other)}
            )
        plan, order = Plan(len(rows), BATCH, 0), []
        while plan.epoch == 0:
            order += plan.next()
        for name, some in (("pairs", rows), ("ordered", [rows[i] for i in order])):
            (work / f"{name}-{ratio}.jsonl").write_text(
                "".join(json.dumps(row) + "\n" for row in some)
            )
        count = {
            side: np.array(
                [len(ids) for ids in tokenizer([row[side] for row in rows])["input_ids"]]
            )
            for side in ("prompt", "chosen", "rejected")
        }
        out[str(ratio)] = {side: float(np.median(n)) for side, n in count.items()}
    return {
        "parameters": made["parameters"],
        "threads": made["threads"],
        "median_tokens": out,
        "rows": job["rows"],
    }


def run_trl(job: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    work, ends, losses = Path(job["work"]), [], []

    class Clock(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

    rows = [
        json.loads(line)
        for line in (work / f"ordered-{job['ratio']}.jsonl").read_text().splitlines()
    ]
    args = DPOConfig(
        output_dir=str(work / "trl"),
        max_steps=job["steps"],
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        per_device_train_batch_size=BATCH,
        max_length=LONGEST,
        train_sampling_strategy="sequential",
        **settings,
    )
    begin = time.perf_counter()
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(work / "model"),
        args=args,
        train_dataset=Dataset.from_list(rows[: job["steps"] * BATCH]),
        processing_class=AutoTokenizer.from_pretrained(work / "model"),
        callbacks=[Clock()],
    )
    loading = time.perf_counter() - begin
    step = trainer.training_step

    def training_step(*args: Any, **more: Any) -> Any:
        loss = step(*args, **more)
        losses.append(float(loss))
        return loss

    trainer.training_step = training_step
    trainer.train()
    return {
        "ends": ends,
        "losses": losses,
        "before": loading if settings.get("precompute_ref_log_probs") else 0.0,
    }


def run_posttrain(job: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    from posttrain.core.events import Event, Progress, Reporter, Step
    from posttrain.core.settings import assemble
    from posttrain.stages.preference import PreferenceSettings, preference

    work, ends, losses, before = Path(job["work"]), [], [], [0.0]

    class Clock(Reporter):
        @contextmanager
        def working(self, label: str, total: int, unit: str = "") -> Iterator[Any]:
            begin = time.perf_counter()
            with super().working(label, total, unit) as progress:
                yield progress
            if label == "reference":
                before[0] += time.perf_counter() - begin

    def clock(event: Event) -> None:
        match event:
            case Progress(label="train", over=False):
                ends.append(time.perf_counter())
            case Step(_, values):
                ends.append(time.perf_counter())
                losses.append(values["loss"])

    with tempfile.TemporaryDirectory(dir=work) as folder:
        preference.run(
            assemble(
                PreferenceSettings,
                {
                    "model": str(work / "model"),
                    "data": (work / f"pairs-{job['ratio']}.jsonl",),
                    "out": Path(folder),
                    "device": "cpu",
                    "steps": job["steps"],
                    "batch_size": BATCH,
                    "max_length": LONGEST,
                    "prompt_template": "{prompt}",
                    **settings,
                },
            ),
            Clock(clock),
        )
    return {"ends": ends, "losses": losses, "before": before[0]}


def child(job: dict[str, Any]) -> None:
    """One job in this process; its result goes to a file, because trainers print."""
    if job["name"] == "prepare":
        out = prepare(job)
    else:
        kind, settings = {**CONTESTANTS, **LOSSES}[job["name"]]
        out = (run_trl if kind == "trl" else run_posttrain)(job, settings)
        out["seconds"] = record.durations(out.pop("ends"))
        assert len(out["seconds"]) == job["steps"], "a step was not seen"
    Path(job["result"]).write_text(json.dumps(out))


# ---------------------------------------------------------------------------------- in this process


def rates(measured: dict[str, Any], warmup: int) -> dict[str, float]:
    """Pairs a second of the steps after warm-up, and of the whole: steps, and what came before them
    by its share.
    """
    seconds = measured["seconds"][warmup:]
    step = sum(seconds) / len(seconds)
    return {
        "pairs_per_second": BATCH / step,
        "pairs_per_second_epoch": BATCH / (step + measured["before"] / len(measured["seconds"])),
    }


def compare(result: dict[str, Any]) -> dict[str, Any]:
    """Round by round against TRL's best, steps and epoch; and the largest difference of a loss."""
    out: dict[str, Any] = {}
    for key in ("pairs_per_second", "pairs_per_second_epoch"):
        ratios = []
        for turn in range(result["settings"]["rounds"]):
            here = {m["contestant"]: m[key] for m in result["measurements"] if m["round"] == turn}
            ratios.append(
                here["posttrain"] / max(v for name, v in here.items() if name.startswith("trl"))
            )
        out[key] = {"speedup": statistics.median(ratios), "rounds": ratios, "target": TARGET}
    mine, theirs = (result["losses"][name] for name in ("posttrain losses", "trl losses"))
    out["loss"] = {
        "steps": len(mine),
        "first": mine[0],
        "last": mine[-1],
        "target": LOSS_TARGET,
        "largest_difference": max(abs(a - b) for a, b in zip(mine, theirs, strict=True)),
    }
    return out


def show(result: dict[str, Any]) -> None:
    for name in CONTESTANTS:
        mine = [m for m in result["measurements"] if m["contestant"] == name]
        both = [
            f"{statistics.median(m[key] for m in mine):6.2f}"
            for key in ("pairs_per_second", "pairs_per_second_epoch")
        ]
        print(f"{name:<24} {both[0]} pairs/s, {both[1]} with what comes before")
    for key, one in result["comparison"].items():
        if key != "loss":
            print(
                f"{key}: {one['speedup']:.2f} × TRL's best "
                f"({min(one['rounds']):.2f}–{max(one['rounds']):.2f}), target ≥ {TARGET} × "
                f"{'reached' if one['speedup'] >= TARGET else 'missed'}"
            )
    loss = result["comparison"]["loss"]
    print(
        f"losses of {loss['steps']} steps, {loss['first']:.4f} → {loss['last']:.4f}: "
        f"{loss['largest_difference']:.1e} apart"
    )
    for one in result["curve"]:
        print(
            f"prompt / answer {one['ratio']:<5} {one['posttrain']:6.2f} against {one['trl']:6.2f} "
            f"pairs/s: {one['posttrain'] / one['trl']:.2f} ×"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each contestant [3]")
    parser.add_argument("--steps", type=int, default=10, help="timed optimiser steps of each [10]")
    parser.add_argument("--warmup", type=int, default=2, help="steps before those [2]")
    parser.add_argument(
        "--tiny",
        action="store_true",
        help="a smoke test: tiny model, one round, two steps, no result file",
    )
    parser.add_argument(
        "--out", type=Path, help="result file [benchmarks/results/DATE-cpu-dpo-vs-trl.json]"
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.child:
        child(json.loads(a.child))
        return
    if not a.tiny:
        record.refuse_busy(QUIET)
    if a.tiny:
        a.rounds, a.steps, a.warmup = 1, 2, 1
    result: dict[str, Any] = {
        **record.header(
            "posttrain",
            "torch",
            "transformers",
            "trl",
            "accelerate",
            "datasets",
            "tokenizers",
            "numpy",
        ),
        "settings": {
            "rounds": a.rounds,
            "steps": a.steps,
            "warmup": a.warmup,
            "tiny": a.tiny,
            "contestants": CONTESTANTS,
        },
        "measurements": [],
        "curve": [],
    }
    fresh = partial(record.fresh, HERE, ratio=RATIOS[0])
    with tempfile.TemporaryDirectory() as folder:
        work, steps = Path(folder), a.warmup + a.steps
        result["data"] = fresh(
            work,
            "prepare",
            model="tiny" if a.tiny else "5m",
            rows=max(steps, 12) * BATCH,
            tiny=a.tiny,
        )
        result["losses"] = {
            name: fresh(work, name, steps=3 if a.tiny else 12, tiny=a.tiny)["losses"]
            for name in LOSSES
        }
        for turn in range(a.rounds):
            names = list(CONTESTANTS)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                measured = fresh(work, name, steps=steps, tiny=a.tiny)
                measured = {
                    "contestant": name,
                    "round": turn,
                    **rates(measured, a.warmup),
                    **measured,
                }
                result["measurements"].append(measured)
                print(
                    f"round {turn + 1}/{a.rounds}  {name:<24} {measured['pairs_per_second']:6.2f} "
                    f"pairs/s, {measured['pairs_per_second_epoch']:6.2f} with what comes before",
                    flush=True,
                )
        for ratio in RATIOS:
            found = {
                short: rates(fresh(work, name, steps=steps, ratio=ratio, tiny=a.tiny), a.warmup)[
                    "pairs_per_second"
                ]
                for short, name in (("trl", "trl fp32, precomputed"), ("posttrain", "posttrain"))
            }
            result["curve"].append({"ratio": ratio, **found})
    result["comparison"] = compare(result)
    show(result)
    if a.out or not a.tiny:
        record.write(result, a.out or record.RESULTS / f"{result['date']}-cpu-dpo-vs-trl.json")


if __name__ == "__main__":
    main()
