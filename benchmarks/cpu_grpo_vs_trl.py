"""`posttrain rl` against TRL's GRPOTrainer on a CPU: seconds of a whole step, sampling, scoring and
training.

    python benchmarks/cpu_grpo_vs_trl.py            measure; refuses unless the machine is quiet
    python benchmarks/cpu_grpo_vs_trl.py --tiny     a smoke test whose numbers mean nothing

The model and its invented words are those of `cpu_vs_trl.py`: 5 M parameters with random weights.
A step is 4 prompts of 20 to 40 tokens, 8 completions each, at most 64 tokens. A share of the
vocabulary ends a completion, so that lengths differ as they do in practice. The reward is a
function of the text that differs within a group. No divergence from a reference (TRL's default).

Each measurement is a fresh process, and contestants take turns within a round. Draws differ from
one contestant to the other, so lengths are reported beside the seconds.

Left out: GPUs, LoRA, other sizes, vLLM, which TRL uses on GPUs.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import cpu_vs_trl
import record

HERE = Path(__file__).resolve()
PROMPTS, GROUP, NEW = 4, 8, 64
ENDS = 0.01  # share of the vocabulary that ends a completion
FAST = {"bf16": False, "gradient_checkpointing": False, "optim": "adamw_torch_fused"}
CONTINUOUS = {"num_blocks": 512, "max_batch_tokens": 512, "block_size": 32}
CONTESTANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "trl fp32": ("trl", FAST),
    "trl fp32, continuous batching": (
        "trl",
        {
            **FAST,
            "use_transformers_continuous_batching": True,
            "transformers_continuous_batching_config": CONTINUOUS,
        },
    ),
    "posttrain, exact": ("posttrain", {}),
    "posttrain, fast": ("posttrain", {"exact": False}),
}
TARGET, QUIET = 4.0, 0.5


def reward(completions: list[str], **columns: Any) -> list[float]:
    """A reward that differs within a group."""
    return [float(len(set(text.split())) % 7) for text in completions]


# ---------------------------------------------------------------------------------- in the children


def prepare(job: dict[str, Any]) -> dict[str, Any]:
    """The model, which ends completions at many tokens, and the prompts."""
    from transformers import AutoTokenizer, GenerationConfig

    made = cpu_vs_trl.prepare({**job, "rows": 16})
    work, rng = Path(job["work"]), random.Random(3)
    tokenizer = AutoTokenizer.from_pretrained(work / "model")
    ends = rng.sample(range(len(tokenizer)), max(1, int(ENDS * len(tokenizer))))
    own = [tokenizer.eos_token_id, *ends]
    GenerationConfig(eos_token_id=own, pad_token_id=tokenizer.pad_token_id).save_pretrained(
        work / "model"
    )
    words = [
        word
        for line in (work / "rows.jsonl").read_text().splitlines()
        for word in json.loads(line)["text"].split()
    ]
    rows = []
    while len(rows) < 256:
        text = " ".join(rng.choices(words, k=rng.randint(8, 30)))
        if 20 <= len(tokenizer(text)["input_ids"]) <= 40:
            rows.append(json.dumps({"prompt": text}) + "\n")
    (work / "prompts.jsonl").write_text("".join(rows))
    return {"parameters": made["parameters"], "threads": made["threads"]}


def run_trl(job: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    work, ends, lengths = Path(job["work"]), [], []

    class Clock(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

    def scored(completions: list[str], completion_ids: Any = None, **columns: Any) -> list[float]:
        lengths.append(sum(map(len, completion_ids)) / len(completion_ids))
        return reward(completions)

    rows = [json.loads(line) for line in (work / "prompts.jsonl").read_text().splitlines()]
    args = GRPOConfig(
        output_dir=str(work / "trl"),
        max_steps=job["steps"],
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        per_device_train_batch_size=PROMPTS * GROUP,
        num_generations=GROUP,
        max_completion_length=NEW,
        temperature=1.0,
        beta=0.0,
        logging_steps=1000,
        **settings,
    )
    trainer = GRPOTrainer(
        model=str(work / "model"),
        reward_funcs=scored,
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(work / "model"),
        callbacks=[Clock()],
    )
    trainer.train()
    return {"ends": ends, "lengths": lengths}


def run_posttrain(job: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    from posttrain.core.events import Event, Progress, Reporter, Step
    from posttrain.core.settings import assemble
    from posttrain.stages.rl import RlSettings, rl

    work, ends, lengths = Path(job["work"]), [], []

    def clock(event: Event) -> None:
        match event:
            case Progress(label="train", over=False) if not ends:
                ends.append(time.perf_counter())
            case Step(_, values):
                ends.append(time.perf_counter())
                lengths.append(values["rollout/length"])

    with tempfile.TemporaryDirectory(dir=work) as folder:
        given = {
            "model": str(work / "model"),
            "data": (str(work / "prompts.jsonl"),),
            "out": Path(folder) / "run",
            "device": "cpu",
            "steps": job["steps"],
            "batch_size": PROMPTS,
            "n": GROUP,
            "max_tokens": NEW,
            "beta": 0.0,
            "prompt_template": "{prompt}",
            "scorer": f"{HERE}:reward",
            **settings,
        }
        rl.run(assemble(RlSettings, given), Reporter(clock))
    return {"ends": ends, "lengths": lengths}


def child(job: dict[str, Any]) -> None:
    """One job in this process; its result goes to a file, because trainers print."""
    if job["name"] == "prepare":
        out = prepare(job)
    else:
        kind, settings = CONTESTANTS[job["name"]]
        out = (run_trl if kind == "trl" else run_posttrain)(job, settings)
        out["seconds"] = record.durations(out.pop("ends"))
        assert len(out["seconds"]) == job["steps"], "a step was not seen"
    Path(job["result"]).write_text(json.dumps(out))


# ---------------------------------------------------------------------------------- in this process


def compare(result: dict[str, Any]) -> dict[str, Any]:
    """Round by round against TRL's best."""
    out: dict[str, Any] = {}
    for name in (name for name in CONTESTANTS if name.startswith("posttrain")):
        ratios = []
        for turn in range(result["settings"]["rounds"]):
            here = {
                m["contestant"]: m["seconds_a_step"]
                for m in result["measurements"]
                if m["round"] == turn
            }
            best = min(seconds for other, seconds in here.items() if other.startswith("trl"))
            ratios.append(best / here[name])
        out[name] = {"speedup": statistics.median(ratios), "rounds": ratios, "target": TARGET}
    return out


def show(result: dict[str, Any]) -> None:
    for name in CONTESTANTS:
        mine = [m for m in result["measurements"] if m["contestant"] == name]
        seconds = statistics.median(m["seconds_a_step"] for m in mine)
        tokens = statistics.median(m["tokens_an_answer"] for m in mine)
        print(f"{name:<30} {seconds:6.3f} s a step, {tokens:4.1f} tokens an answer")
    for name, one in result["comparison"].items():
        reached = "reached" if one["speedup"] >= TARGET else "missed"
        print(
            f"{name}: {one['speedup']:.2f} × TRL's best "
            f"({min(one['rounds']):.2f}–{max(one['rounds']):.2f}), target ≥ {TARGET} × {reached}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each contestant [3]")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each [10]")
    parser.add_argument("--warmup", type=int, default=2, help="steps before those [2]")
    parser.add_argument(
        "--tiny",
        action="store_true",
        help="a smoke test: tiny model, one round, two steps, no result file",
    )
    parser.add_argument(
        "--out", type=Path, help="result file [benchmarks/results/DATE-cpu-grpo-vs-trl.json]"
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.child:
        child(json.loads(a.child))
        return
    if not a.tiny:
        record.refuse_busy(QUIET)
    rounds, timed, warmup = (1, 2, 1) if a.tiny else (a.rounds, a.steps, a.warmup)
    result = record.header("torch", "transformers", "trl", "accelerate")
    result["settings"] = {"rounds": rounds, "steps": timed, "warmup": warmup, "tiny": a.tiny}
    result["measurements"] = []
    with tempfile.TemporaryDirectory() as folder:
        run = partial(
            record.fresh,
            HERE,
            Path(folder),
            tiny=a.tiny,
            model="tiny" if a.tiny else "5m",
            steps=timed + warmup,
        )
        result["data"] = run("prepare")
        for turn in range(rounds):
            names = list(CONTESTANTS)
            for name in names if turn % 2 else reversed(names):
                found = run(name)
                result["measurements"].append(
                    {
                        "contestant": name,
                        "round": turn,
                        "seconds_a_step": statistics.fmean(found["seconds"][warmup:]),
                        "tokens_an_answer": statistics.fmean(found["lengths"][warmup:]),
                        "seconds": found["seconds"],
                    }
                )
    result["comparison"] = compare(result)
    show(result)
    if not a.tiny:
        path = a.out or record.RESULTS / f"{result['date']}-cpu-grpo-vs-trl.json"
        record.write(result, path)


if __name__ == "__main__":
    main()
