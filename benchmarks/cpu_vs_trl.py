"""`posttrain sft` against TRL's SFTTrainer on a CPU: real tokens a second, peak memory, and the
same losses.

    python benchmarks/cpu_vs_trl.py            measure; refuses unless the machine is quiet
    python benchmarks/cpu_vs_trl.py --tiny     a smoke test whose numbers mean nothing

A 5 M-parameter Qwen3 with random weights learns texts of invented words: log-normal lengths, median
70 tokens, 95th percentile 300, at most 512. Every contestant trains every token but the first of
the same texts. At batch 8, TRL and posttrain take the same batches in the same order; packing picks
its own.

Each measurement is a fresh process, so its peak memory is its own, and contestants take turns
within a round, so that a slow minute of the machine hits all of them. This process stays small and
imports no torch: the system counts a parent's size into its child's peak. Tokens are real ones, no
padding; time runs from the end of one step to the end of the next, everything in it.

Left out: GPUs, LoRA, other sizes.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import resource
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import record

HERE = Path(__file__).resolve()
MODELS = {  # hidden, intermediate, layers, heads, key-value heads, head dimension
    "5m": (256, 768, 4, 8, 4, 32),
    "tiny": (64, 128, 2, 4, 2, 16),
}
VOCABULARY, LONGEST, BATCH = 8192, 512, 8
PAD, END = "<|endoftext|>", "<|im_end|>"

# kind, then what differs from the kind's defaults
CONTESTANTS: dict[str, tuple[str, dict[str, Any]]] = {
    # what a newcomer gets: padded batches of 8, bfloat16 autocast, gradient checkpointing
    "trl default": ("trl", {}),
    # the fastest of TRL's settings on a CPU: documents packed into 2 × 512 tokens, float32, nothing
    # computed twice
    "trl packed fp32": (
        "trl",
        {
            "packing": True,
            "per_device_train_batch_size": 2,
            "max_length": LONGEST,
            "bf16": False,
            "gradient_checkpointing": False,
            "optim": "adamw_torch_fused",
        },
    ),
    "posttrain": ("posttrain", {}),
    # as many tokens a step as two packed rows hold
    "posttrain, 10 a step": ("posttrain", {"batch_size": 10}),
}
LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    "trl losses": ("trl", {"bf16": False, "gradient_checkpointing": False, "learning_rate": 1e-3}),
    "posttrain losses": ("posttrain", {"learning_rate": 1e-3, "warmup": 0.0}),
}
# and the speed-up to reach
PAIRS = [("posttrain", "trl default", 4.5), ("posttrain, 10 a step", "trl packed fp32", 1.7)]
LOSS_TARGET = 1e-5
QUIET = 0.5  # one-minute load average


# ---------------------------------------------------------------------------------- in the children


def prepare(job: dict[str, Any]) -> dict[str, Any]:
    """Make model, tokenizer and texts: `rows.jsonl`, and `ordered.jsonl` in the order posttrain
    takes them at batch 8.
    """
    import numpy as np
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    from posttrain.data.plan import Plan

    work, rng, draw = Path(job["work"]), random.Random(7), np.random.default_rng(0)
    parts = [c + v for c in "bcdfghjklmnprstvwxyz" for v in "aeiou"] + [
        "ing",
        "er",
        "ion",
        "al",
        "ous",
        "ent",
        "ist",
        "ly",
    ]
    words = list(
        dict.fromkeys("".join(rng.choices(parts, k=rng.choice((1, 2, 2, 3)))) for _ in range(8000))
    )[:6000]

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    share = 1.0 / np.arange(1, len(words) + 1)
    corpus = [" ".join(words)] + [
        " ".join(draw.choice(words, size=200, p=share / share.sum())) for _ in range(300)
    ]
    bpe.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[PAD, END],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token=PAD, eos_token=END)
    tokenizer.save_pretrained(work / "model")

    hidden, inner, layers, heads, kv, head = MODELS[job["model"]]
    torch.manual_seed(0)
    network = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=hidden,
            intermediate_size=inner,
            num_hidden_layers=layers,
            head_dim=head,
            num_attention_heads=heads,
            num_key_value_heads=kv,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    network.save_pretrained(work / "model")

    lengths = (
        draw.lognormal(math.log(70), math.log(300 / 70) / 1.6449, job["rows"])
        .clip(24, LONGEST - 1)
        .round()
        .astype(int)
    )
    spaced = [" " + w for w in words]
    costs = np.array([len(ids) for ids in tokenizer(spaced)["input_ids"]])
    texts, share = [], share**0.8 / (share**0.8).sum()
    for length in lengths:
        chosen = draw.choice(len(words), size=length, p=share)
        texts.append(
            "".join(
                spaced[i]
                for i in chosen[: int(np.searchsorted(np.cumsum(costs[chosen]), length, "right"))]
            )
        )
    plan, order = Plan(len(texts), BATCH, 0), []
    while plan.epoch == 0:
        order += plan.next()
    for name, chosen in (("rows", texts), ("ordered", [texts[i] for i in order])):
        (work / f"{name}.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in chosen))
    real = [len(ids) + 1 for ids in tokenizer(texts)["input_ids"]]
    return {
        "parameters": network.num_parameters(),
        "rows": len(texts),
        "tokens": sum(real),
        "longest": max(real),
        "median_length": statistics.median(real),
        "p95_length": float(np.percentile(real, 95)),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def run_trl(job: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """TRL's trainer as given; a callback and a wrapped `training_step` watch it."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    work, ends, tokens, padded, losses = Path(job["work"]), [], [], [], []

    class Clock(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

    rows = [json.loads(line) for line in (work / "ordered.jsonl").read_text().splitlines()]
    order = {} if settings.get("packing") else {"train_sampling_strategy": "sequential"}
    args = SFTConfig(
        output_dir=str(work / "trl"),
        max_steps=job["steps"],
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **order,
        **settings,
    )
    trainer = SFTTrainer(
        model=str(work / "model"),
        args=args,
        train_dataset=Dataset.from_list(rows),
        callbacks=[Clock()],
    )
    step = trainer.training_step

    def training_step(model: Any, inputs: dict[str, Any], *rest: Any, **more: Any) -> Any:
        padded.append(inputs["input_ids"].numel())
        tokens.append(
            int(inputs["attention_mask"].sum()) if "attention_mask" in inputs else padded[-1]
        )
        loss = step(model, inputs, *rest, **more)
        losses.append(float(loss))
        return loss

    trainer.training_step = training_step
    trainer.train()
    return {"ends": ends, "tokens": tokens, "padded": padded, "losses": losses}


def run_posttrain(job: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """`posttrain sft` itself, run folder and all; a sink is the clock."""
    from posttrain.core.events import Event, Progress, Reporter, Step
    from posttrain.core.settings import assemble
    from posttrain.stages.sft import SftSettings, sft

    work, ends, tokens, losses = Path(job["work"]), [], [], []

    def clock(event: Event) -> None:
        match event:
            case Progress(label="train", over=False):
                ends.append(time.perf_counter())
            case Step(_, values):
                ends.append(time.perf_counter())
                tokens.append(values["tokens"])
                losses.append(values["loss"])

    with tempfile.TemporaryDirectory(dir=work) as folder:
        sft.run(
            assemble(
                SftSettings,
                {
                    "model": str(work / "model"),
                    "data": (work / "rows.jsonl",),
                    "out": Path(folder),
                    "device": "cpu",
                    "steps": job["steps"],
                    "batch_size": BATCH,
                    **settings,
                },
            ),
            Reporter(clock),
        )
    return {"ends": ends, "tokens": tokens, "padded": tokens, "losses": losses}


def child(job: dict[str, Any]) -> None:
    """One job in this process; its result goes to a file, because trainers print."""
    if job["name"] == "prepare":
        out = prepare(job)
    else:
        kind, settings = {**CONTESTANTS, **LOSSES}[job["name"]]
        out = (run_trl if kind == "trl" else run_posttrain)(job, settings)
        out["seconds"] = record.durations(out.pop("ends"))
        assert len(out["seconds"]) == len(out["tokens"]) == job["steps"], "a step was not seen"
        unit = 1 if sys.platform == "darwin" else 1024
        out["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    Path(job["result"]).write_text(json.dumps(out))


# ---------------------------------------------------------------------------------- in this process


def speed(measured: dict[str, Any], warmup: int) -> dict[str, float]:
    """Tokens a second after warm-up: over all steps together, and the median step's."""
    tokens, seconds = measured["tokens"][warmup:], measured["seconds"][warmup:]
    return {
        "tokens_per_second": sum(tokens) / sum(seconds),
        "tokens_per_second_median_step": statistics.median(
            t / s for t, s in zip(tokens, seconds, strict=True)
        ),
        "tokens_per_step": sum(tokens) / len(tokens),
        "pad_share": 1 - sum(tokens) / sum(measured["padded"][warmup:]),
    }


def compare(measurements: list[dict[str, Any]], losses: dict[str, list[float]]) -> dict[str, Any]:
    """Speed-ups round by round, memory, and the largest difference of a loss."""

    def of(name: str, key: str) -> list[float]:
        return [m[key] for m in measurements if m["contestant"] == name]

    pairs = []
    for name, peer, target in PAIRS:
        ratios = [
            a / b
            for a, b in zip(
                of(name, "tokens_per_second"), of(peer, "tokens_per_second"), strict=True
            )
        ]
        steps = [
            a / b
            for a, b in zip(
                of(name, "tokens_per_second_median_step"),
                of(peer, "tokens_per_second_median_step"),
                strict=True,
            )
        ]
        pairs.append(
            {
                "contestant": name,
                "peer": peer,
                "speedup": statistics.median(ratios),
                "speedup_rounds": ratios,
                "speedup_median_step": statistics.median(steps),
                "target": target,
                "memory_ratio": max(of(name, "peak_gib")) / max(of(peer, "peak_gib")),
            }
        )
    mine, theirs = losses["posttrain losses"], losses["trl losses"]
    return {
        "pairs": pairs,
        "loss": {
            "steps": len(mine),
            "first": mine[0],
            "last": mine[-1],
            "target": LOSS_TARGET,
            "largest_difference": max(abs(a - b) for a, b in zip(mine, theirs, strict=True)),
        },
    }


def show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=110 if not sys.stdout.isatty() else None)
    table = Table(
        title=f"real tokens/s, {result['settings']['rounds']} rounds, median (range)",
        title_justify="left",
    )
    for column in ("", "tokens/s", "median step's", "tokens a step", "padding", "peak memory"):
        table.add_column(column, justify="left" if not column else "right")
    for name in CONTESTANTS:
        mine = [m for m in result["measurements"] if m["contestant"] == name]
        rates = [m["tokens_per_second"] for m in mine]
        table.add_row(
            name,
            f"{statistics.median(rates):,.0f} ({min(rates):,.0f}–{max(rates):,.0f})",
            f"{statistics.median(m['tokens_per_second_median_step'] for m in mine):,.0f}",
            f"{mine[0]['tokens_per_step']:,.0f}",
            f"{mine[0]['pad_share']:.0%}",
            f"{max(m['peak_gib'] for m in mine):.2f} GiB",
        )
    console.print(table)

    def line(what: str, got: str, target: str, reached: bool) -> None:
        console.print(
            f"{what:<52} {got:>22}   target {target:<8} "
            f"{'reached' if reached else '[red]missed[/red]'}"
        )

    for pair in result["comparison"]["pairs"]:
        rounds = pair["speedup_rounds"]
        both = f"{pair['contestant']} / {pair['peer']}"
        line(
            f"{both}: speed",
            f"{pair['speedup']:.2f} × ({min(rounds):.2f}–{max(rounds):.2f})",
            f"≥ {pair['target']} ×",
            pair["speedup"] >= pair["target"],
        )
        line(f"{both}: memory", f"{pair['memory_ratio']:.2f} ×", "≤ 1 ×", pair["memory_ratio"] <= 1)
    loss = result["comparison"]["loss"]
    line(
        f"losses of {loss['steps']} steps in float32, {loss['first']:.3f} → {loss['last']:.3f}",
        f"{loss['largest_difference']:.1e} apart",
        f"≤ {loss['target']:.0e}",
        loss["largest_difference"] <= loss["target"],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each contestant [3]")
    parser.add_argument("--steps", type=int, default=15, help="timed optimiser steps of each [15]")
    parser.add_argument("--warmup", type=int, default=3, help="steps before those [3]")
    parser.add_argument(
        "--tiny",
        action="store_true",
        help="a smoke test: tiny model, one round, two steps, no result file",
    )
    parser.add_argument(
        "--out", type=Path, help="result file [benchmarks/results/DATE-cpu-vs-trl.json]"
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
    }
    fresh = partial(record.fresh, HERE)
    with tempfile.TemporaryDirectory() as folder:
        work, steps = Path(folder), a.warmup + a.steps
        compared = 3 if a.tiny else 20
        # two packed rows hold about ten texts; nobody may begin a second epoch, whose order is each
        # one's own
        rows = max(steps, compared) * 14 + 16
        result["data"] = fresh(
            work, "prepare", model="tiny" if a.tiny else "5m", rows=rows, tiny=a.tiny
        )
        losses = {name: fresh(work, name, steps=compared, tiny=a.tiny)["losses"] for name in LOSSES}
        for turn in range(a.rounds):
            names = list(CONTESTANTS)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                measured = fresh(work, name, steps=steps, tiny=a.tiny)
                measured = {
                    "contestant": name,
                    "round": turn,
                    **speed(measured, a.warmup),
                    **measured,
                }
                result["measurements"].append(measured)
                print(
                    f"round {turn + 1}/{a.rounds}  {name:<22} "
                    f"{measured['tokens_per_second']:>8,.0f} tokens/s  "
                    f"{measured['peak_gib']:.2f} GiB",
                    flush=True,
                )
    result["losses"], result["comparison"] = losses, compare(result["measurements"], losses)
    show(result)
    if a.out or not a.tiny:
        record.write(result, a.out or record.RESULTS / f"{result['date']}-cpu-vs-trl.json")


if __name__ == "__main__":
    main()
