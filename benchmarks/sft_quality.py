"""Does `posttrain sft` teach a real base model? Held-out loss before and after, on Dolly and on
GSM8K.

    python benchmarks/sft_quality.py --shared PATH

The command line runs as a user would run it, once a corpus, from the 28 M-parameter base. Then base
and result are loaded from their folders and scored on the same held-out rows, so that the
difference is paired: its interval has the sequences as units, and is narrower than those of two
separate means. A result that scores what the run itself reported was exported faithfully.

GSM8K's test file is for evaluation only: the held-out rows are a seeded slice of its training file,
taken out of training. Both splits are written into the run's folder. Also here: a real small model
scored beside plain transformers.

Left out: whether answers are right. Lower loss on held-out demonstrations is what SFT promises;
accuracy is measured elsewhere.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import random
import shlex
import sys
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import record

ROOT = Path(__file__).resolve().parents[1]
HELD_OUT, SEED = 512, 0
BASE, SMALL, STORIES = "models/base-28m", "models/stories260K", "text/children_stories.jsonl.gz"


@dataclass(frozen=True)
class Corpus:
    """A data set and the options that read it; steps so that a run takes about six minutes on two
    cores.
    """

    train: str
    held_out: str | None  # None: a seeded slice of the training file
    template: str
    columns: dict[str, str]
    steps: int


CORPORA = {
    "dolly": Corpus(
        "demonstrations/dolly_train.jsonl.gz",
        "demonstrations/dolly_valid.jsonl.gz",
        "{prompt}\n\n",
        {},
        120,
    ),
    "gsm8k": Corpus(
        "math/gsm8k_train.jsonl.gz",
        None,
        "{prompt}\n",
        {"prompt": "question", "completion": "answer"},
        100,
    ),
}
# the base was pretrained with 512 tokens of context
OPTIONS = {
    "batch-size": 16,
    "learning-rate": 3e-4,
    "schedule": "cosine",
    "max-length": 512,
    "seed": SEED,
}


def split(source: Path, folder: Path) -> tuple[Path, Path]:
    """Take a seeded slice out of a file; write what stays and what was taken into `folder`."""
    with gzip.open(source, "rt") as file:
        # not splitlines(), which would also cut at a line separator inside a string
        lines = list(file)
    taken = set(random.Random(SEED).sample(range(len(lines)), HELD_OUT))
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "train.jsonl", folder / "held_out.jsonl"
    for path, held in zip(paths, (False, True), strict=True):
        path.write_text("".join(line for i, line in enumerate(lines) if (i in taken) == held))
    return paths


def score(model: Path, rows: Path, corpus: Corpus) -> tuple[list[float], list[int]]:
    """Summed loss (nats) and number of targets of every held-out sequence, in file order."""
    from posttrain.engine.policy import Policy

    policy = Policy.load(model)
    trees = record.trees(
        sourced(rows, corpus), policy.tokenizer, corpus.template, OPTIONS["max-length"]
    )
    sums, counts = [0.0] * len(trees), [tree.N for tree in trees]
    for forest in policy.pack(trees, 4096):
        (columns,) = policy.score([forest])
        losses = forest.facts.sums(-columns.logprob.double().cpu()).tolist()
        for number, loss in zip(forest.sequence.tolist(), losses, strict=True):
            sums[number] = loss
    return sums, counts


def per_target(sums: list[float], counts: list[int]) -> dict[str, float]:
    """Σ sums / Σ counts with the half width of its 95 % interval; sequences are the units (delta
    method for a ratio).
    """
    n, targets = len(sums), sum(counts)
    mean = sum(sums) / targets
    spread = sum((s - mean * c) ** 2 for s, c in zip(sums, counts, strict=True)) * n / (n - 1)
    return {"mean": mean, "interval": 1.96 * math.sqrt(spread) / targets}


def run(name: str, corpus: Corpus, shared: Path, folder: Path, steps: int | None) -> dict[str, Any]:
    """Train, then score base and result on the held-out rows."""
    from posttrain.cli.main import main as posttrain

    train, held = shared / corpus.train, shared / (corpus.held_out or "")
    if corpus.held_out is None:
        train, held = split(shared / corpus.train, folder / "data")
    argv = [
        "sft",
        "--model",
        path(shared / BASE),
        "--data",
        sourced(train, corpus),
        "--validation",
        sourced(held, corpus),
        "--out",
        path(folder),
        "--prompt-template",
        corpus.template,
        "--steps",
        str(steps or corpus.steps),
        "--validate-every",
        str(steps or corpus.steps),
    ]
    argv += [part for option, value in OPTIONS.items() for part in (f"--{option}", str(value))]
    print(f"\n$ posttrain {shlex.join(argv)}", flush=True)
    began = time.perf_counter()
    if code := posttrain(argv):
        raise SystemExit(f"posttrain sft ended with code {code}")
    seconds = time.perf_counter() - began
    summary = json.loads((folder / "summary.json").read_text())
    before, counts = score(shared / BASE, held, corpus)
    after, again = score(folder / "model", held, corpus)
    assert counts == again, "base and result must be scored on the same targets"
    losses = {
        "before": per_target(before, counts),
        "after": per_target(after, counts),
        "paired_difference": per_target(
            [a - b for a, b in zip(after, before, strict=True)], counts
        ),
    }
    reported = (summary["held_out"] or summary["held_out_before"])["loss"]
    return {
        "command": f"posttrain {shlex.join(argv)}",
        "sequences": len(counts),
        "targets": sum(counts),
        "losses": losses,
        "sequences_improved": sum(a < b for a, b in zip(after, before, strict=True)) / len(counts),
        "reported_minus_reloaded": reported - losses["after"]["mean"],
        "seconds": seconds,
        "summary": summary,
    }


def sourced(of: Path, corpus: Corpus) -> str:
    """A file, and what its columns are called."""
    return ",".join([path(of), *(f"{ours}={theirs}" for ours, theirs in corpus.columns.items())])


def path(of: Path) -> str:
    return os.path.relpath(of)


def small_model(shared: Path) -> dict[str, Any]:
    """A trained 260 k-parameter model: our log-probabilities of real text beside those of plain
    transformers, run eagerly text by text. In float32 both round, transformers too; float64 shows
    how much of the difference is only that.
    """
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from posttrain.data.forest import Sequence, Tree, forests
    from posttrain.engine.policy import Policy

    transformers.utils.logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(shared / SMALL)
    with gzip.open(shared / STORIES, "rt") as file:
        texts = [" ".join(json.loads(line)["text"].split())[:600] for line in islice(file, 20)]
    ids = [torch.tensor(tokenizer(text)["input_ids"]) for text in texts]
    sequences = [Sequence(i.numpy(), torch.ones(len(i), dtype=torch.bool).numpy()) for i in ids]
    packed = forests([Tree((sequence,)) for sequence in sequences], 2048)
    plain = AutoModelForCausalLM.from_pretrained(
        shared / SMALL, dtype=torch.float32, attn_implementation="eager"
    )
    policy = Policy.load(shared / SMALL, device="cpu")

    @torch.no_grad()
    def both() -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of all texts: ours, and plain transformers'."""
        ours, theirs = [], []
        for forest in packed:
            ours.append(policy.score([forest])[0].logprob)
            for number in forest.sequence.tolist():
                logprobs = plain(ids[number][None]).logits[0, :-1].log_softmax(-1)
                theirs.append(logprobs.gather(1, ids[number][1:, None])[:, 0])
        return torch.cat(ours), torch.cat(theirs)

    ours, theirs = both()
    plain.double()
    policy.network.double()
    exact_ours, exact_theirs = both()
    return {
        "text": STORIES,
        "texts": len(texts),
        "targets": len(ours),
        "loss": -float(exact_theirs.mean()),
        "largest_difference_float32": float((ours - theirs).abs().max()),
        "largest_difference_float64": float((exact_ours - exact_theirs).abs().max()),
        "transformers_float32_from_float64": float((theirs - exact_theirs).abs().max()),
        "ours_float32_from_float64": float((ours - exact_theirs).abs().max()),
    }


def show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=110 if not sys.stdout.isatty() else None)
    table = Table(
        title="held-out loss of the 28 M base, nats a target (95 % interval)", title_justify="left"
    )
    for column in ("", "n", "before", "after", "paired difference", "improved"):
        table.add_column(column, justify="left" if not column else "right")
    for name, one in result["corpora"].items():
        cells = [f"{loss['mean']:+.4f} ± {loss['interval']:.4f}" for loss in one["losses"].values()]
        improved = f"{one['sequences_improved']:.0%}"
        table.add_row(
            name, str(one["sequences"]), *(c.lstrip("+") for c in cells[:2]), cells[2], improved
        )
    console.print(table)
    for name, one in result["corpora"].items():
        console.print(
            f"{name}: {one['summary']['steps']} steps, {one['seconds']:.0f} s with validation; the "
            "exported model's loss differs from the run's own report by "
            f"{abs(one['reported_minus_reloaded']):.1e}"
        )
    small = result["small_model"]
    console.print(
        f"stories260K, {small['targets']:,} real tokens, loss {small['loss']:.3f}: "
        "log-probabilities differ from plain transformers' by at most "
        f"{small['largest_difference_float32']:.1e} in float32 (transformers' own are "
        f"{small['transformers_float32_from_float64']:.1e} from float64, ours "
        f"{small['ours_float32_from_float64']:.1e}), {small['largest_difference_float64']:.1e} in "
        "float64"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--shared",
        type=Path,
        default=ROOT / ".." / "shared" / "data",
        help="the data folder [../shared/data]",
    )
    parser.add_argument(
        "--runs",
        type=Path,
        default=ROOT / "runs" / "sft-quality",
        help="run folders [runs/sft-quality]",
    )
    parser.add_argument(
        "--corpora", nargs="+", choices=CORPORA, default=list(CORPORA), help="which to run [all]"
    )
    parser.add_argument("--steps", type=int, help="optimiser steps, instead of each corpus's own")
    parser.add_argument(
        "--out", type=Path, help="result file [benchmarks/results/DATE-sft-quality.json]"
    )
    a = parser.parse_args()
    shared = a.shared.resolve()
    needed = [
        BASE,
        SMALL,
        STORIES,
        *(f for name in a.corpora for f in (CORPORA[name].train, CORPORA[name].held_out) if f),
    ]
    if missing := [name for name in needed if not (shared / name).exists()]:
        raise SystemExit(
            f"{path(shared)} has no {missing[0]}. Give the folder that holds models/, "
            "demonstrations/, math/ and text/ with --shared."
        )
    if finished := [name for name in a.corpora if (a.runs / name / "summary.json").exists()]:
        raise SystemExit(
            f"{path(a.runs / finished[0])} holds a finished run, maybe of older code. Delete it, or"
            " give --runs."
        )
    result = {
        **record.header("posttrain", "torch", "transformers", "tokenizers"),
        "corpora": {},
        "small_model": small_model(shared),
    }
    for name in a.corpora:
        result["corpora"][name] = run(name, CORPORA[name], shared, a.runs.resolve() / name, a.steps)
    show(result)
    record.write(result, a.out or record.RESULTS / f"{result['date']}-sft-quality.json")


if __name__ == "__main__":
    main()
