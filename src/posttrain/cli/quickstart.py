"""`posttrain quickstart`: the whole loop on a small real model, offline, in about a minute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from posttrain.cli.options import Parser
from posttrain.cli.pipeline import results
from posttrain.core.console import ConsoleObserver, console
from posttrain.pipeline.run import Result

SAMPLES = 8


def main(argv: list[str]) -> int:
    parser = Parser(prog="posttrain quickstart", allow_abbrev=False, description="From the embedded base model to an instruct "
                    "model that has learned from comparisons: adapt, fine-tune, evaluate, train a reward model, optimise "
                    "preferences, compare. Offline, on a processor. The same command goes on.")
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), metavar="PATH", help="folder [runs/quickstart]")
    parser.add_argument("--quiet", action="store_true", help="show nothing but trouble and the result")
    arguments = parser.parse(argv)
    from posttrain.pipeline.quickstart import quickstart

    result = quickstart(arguments.out, ConsoleObserver(quiet=arguments.quiet))
    samples(result)
    results(result.summary)
    out = console()
    for label, path in (("model", result.artifacts["preference"] / "model"), ("summary", result.folder / "summary.json"),
                        ("data", result.folder / "data")):
        out.print(f"{label:<8} {path}", soft_wrap=True, markup=False)
    after, before = result.folder / "preference", result.folder / "sft"
    out.print(f"[bold]next[/bold]     posttrain chat --model {after} --vs {before}", soft_wrap=True)
    return 0


def samples(result: Result) -> None:
    """Answers side by side: one question of each of some skills, right and wrong as they come."""
    def lines(path: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]

    asked = {(row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]): row
             for row in lines(result.folder / "data" / "polite-asked.jsonl")}
    compared = result.artifacts["compare"]
    before, after = (lines(compared / f"exact-polite-asked{end}.jsonl") for end in (".against", ""))
    table = Table(title="held-out questions: after fine-tuning, and after learning from comparisons", title_justify="left")
    for column, width in (("question", 36), ("wanted", 14), ("sft", 20), ("preference", 24)):
        table.add_column(column, overflow="fold", max_width=width)
    for question, old, new in list(zip(asked, before, after, strict=True))[:SAMPLES]:
        table.add_row(Text(question), Text(new["wanted"]), *(
            Text(_short(one["answer"]), style="green" if one["correct"] else "red") for one in (old, new)))
    console().print(table)


def _short(text: str, width: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[:width] + "…"
