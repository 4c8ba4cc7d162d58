"""The quickstart: make a small model that knows nothing, fine-tune it on demonstrations, and measure what it learned.

    python examples/quickstart.py [folder]

Offline, without a GPU, in about half a minute. Run it again and it says that it is finished; kill it and run it again, and
it goes on. Exits 0 whatever the numbers say: they are there to be read.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text
from world import SKILLS, demonstrations, make_model

TEMPLATE = "{prompt}\n"  # how a prompt is written for the model, in training and in scoring alike

console = Console(highlight=False)


def wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a share: it stays inside 0 … 1 and is honest near both ends (Wilson 1927)."""
    share, square = hits / n, z * z / n
    middle = (share + square / 2) / (1 + square)
    half = z / (1 + square) * math.sqrt(share * (1 - share) / n + square / (4 * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def answers(model: Path, prompts: Sequence[str]) -> list[str]:
    """What a model answers when it always takes the most likely token."""
    from posttrain import Policy
    from posttrain.engine.sampler import Sampling

    policy = Policy.load(model, device="cpu")
    ids = policy.tokenizer([TEMPLATE.replace("{prompt}", p) for p in prompts])["input_ids"]
    drawn = policy.sample(ids, Sampling(max_tokens=12, temperature=0))
    return [policy.tokenizer.decode(c.tokens, skip_special_tokens=True) for c in drawn]


def prepare(folder: Path) -> list[dict[str, str]]:
    """Write the data and, the first time, the model; returns the held-out rows."""
    train, held_out = demonstrations(train=600, held_out=60)
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train), ("held-out", held_out)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if not (folder / "base" / "config.json").is_file():
        make_model(folder / "base", [TEMPLATE.replace("{prompt}", r["prompt"]) + r["completion"] for r in train])
    console.print(f"[bold]world[/bold]     {len(train):,} demonstrations of {len(SKILLS)} skills, {len(held_out)} held-out "
                  "prompts that are not among them, and a model with random weights", soft_wrap=not console.is_terminal)
    return held_out


def compare(rows: list[dict[str, str]], before: list[str], after: list[str]) -> dict[str, dict[str, float]]:
    """Exact match by skill and overall, before and after, with intervals; printed and returned."""
    table = Table(title="held-out prompts answered exactly right (95 % interval)", title_justify="left")
    for column in ("skill", "n", "before", "after"):
        table.add_column(column, justify="left" if column == "skill" else "right")
    found: dict[str, dict[str, float]] = {}
    for skill in (*SKILLS, "all"):
        mine = [i for i, row in enumerate(rows) if skill in (row["skill"], "all")]
        found[skill] = {"n": len(mine)}
        cells = []
        for name, given in (("before", before), ("after", after)):
            hits = sum(given[i] == rows[i]["completion"] for i in mine)
            low, high = wilson(hits, len(mine))
            found[skill].update({name: hits / len(mine), f"{name}_low": low, f"{name}_high": high})
            cells.append(f"{hits / len(mine):6.1%}  ({low:5.1%} … {high:6.1%})")
        if skill == "all":
            table.add_section()
        table.add_row(skill, str(len(mine)), *cells, style="bold" if skill == "all" else "")
    console.print(table)
    return found


def show_answers(rows: list[dict[str, str]], before: list[str], after: list[str]) -> None:
    """The first two held-out prompts of every skill, right or wrong."""
    table = Table(title="the first two held-out prompts of every skill", title_justify="left")
    for column in ("prompt", "before", "after", ""):
        table.add_column(column, no_wrap=True)
    for skill in SKILLS:
        for i in [i for i, row in enumerate(rows) if row["skill"] == skill][:2]:
            right = after[i] == rows[i]["completion"]
            babble = "".join(c if c.isprintable() and c != "\ufffd" else "·" for c in before[i])
            table.add_row(rows[i]["prompt"], Text(babble[:10] + "…" if len(babble) > 11 else babble, "dim"),
                          Text(after[i]), Text("✓", "green") if right else Text(f"✗ {rows[i]['completion']}", "red"))
    console.print(table)


def main(folder: Path) -> None:
    held_out = prepare(folder)

    import torch

    import posttrain

    torch.set_num_threads(1)  # so small a model gains nothing from a second thread, and loses much on a busy machine
    outcome = posttrain.sft(
        model=str(folder / "base"), data=folder / "train.jsonl", validation=folder / "held-out.jsonl", out=folder / "sft",
        prompt_template=TEMPLATE, epochs=10, batch_size=32, learning_rate=3e-3, device="cpu")

    prompts = [row["prompt"] for row in held_out]
    before, after = answers(folder / "base", prompts), answers(outcome.model, prompts)
    show_answers(held_out, before, after)
    exact = compare(held_out, before, after)
    summary = {"exact_match": exact, "sft": outcome.summary}
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    for name, path, what in (
            ("data", "train.jsonl", "and held-out.jsonl: one JSON object a line"), ("base", "base", "the random model"),
            ("run", "sft", "metrics, checkpoints, summary"), ("model", "sft/model", "the result, a Hugging Face folder"),
            ("summary", "summary.json", "the numbers above")):
        console.print(f"[bold]{name:<9}[/bold] {folder / path}  [dim]{what}[/dim]", soft_wrap=True)


if __name__ == "__main__":
    from posttrain.core.console import print_error
    from posttrain.core.errors import PosttrainError

    try:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart"))
    except PosttrainError as error:
        print_error(error)
        sys.exit(error.exit_code)
