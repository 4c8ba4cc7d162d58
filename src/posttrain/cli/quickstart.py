"""`posttrain quickstart`: the whole loop on a small real model, offline, in about a minute."""

from __future__ import annotations

import json
from pathlib import Path

from rich.table import Table
from rich.text import Text

from posttrain.cli.options import Parser
from posttrain.cli.pipeline import results
from posttrain.core.console import ConsoleObserver, console
from posttrain.pipeline.run import Result

SAMPLES = 8


def main(argv: list[str]) -> int:
    parser = Parser(prog="posttrain quickstart", allow_abbrev=False, description="From the embedded base model to an evaluated "
                    "instruct model: adapt, fine-tune, evaluate. Offline, on a processor. The same command goes on.")
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), metavar="PATH", help="folder [runs/quickstart]")
    parser.add_argument("--quiet", action="store_true", help="show nothing but trouble and the result")
    arguments = parser.parse(argv)
    from posttrain.pipeline.quickstart import quickstart

    result = quickstart(arguments.out, ConsoleObserver(quiet=arguments.quiet))
    samples(result)
    results(result.summary)
    out = console()
    for label, path in (("model", result.artifacts["sft"] / "model"), ("summary", result.folder / "summary.json"),
                        ("data", result.folder / "data")):
        out.print(f"{label:<8} {path}", soft_wrap=True, markup=False)
    out.print(f"[bold]next[/bold]     posttrain chat --model {result.folder / 'sft'} --vs embedded", soft_wrap=True)
    return 0


def samples(result: Result) -> None:
    """Answers side by side: one question of each of some skills, right and wrong as they come."""
    before, after = ([json.loads(line) for line in (result.artifacts["check"] / name).read_text().splitlines()]
                     for name in ("exact-questions.against.jsonl", "exact-questions.jsonl"))
    questions = [json.loads(line) for line in (result.folder / "data" / "questions.jsonl").read_text().splitlines()]
    table = Table(title="held-out questions", title_justify="left")
    for column in ("question", "wanted", "base", "after"):
        table.add_column(column, overflow="fold", max_width=40 if column in ("question", "base") else 24)
    seen: set[str] = set()
    for question, old, new in zip(questions, before, after, strict=True):
        if question["skill"] in seen or "\n" in question["prompt"]:
            continue
        seen.add(question["skill"])
        table.add_row(Text(question["prompt"]), Text(new["wanted"]), Text(_short(old["answer"]), style="dim"),
                      Text(_short(new["answer"]), style="green" if new["correct"] else "red"))
        if len(seen) == SAMPLES:
            break
    console().print(table)


def _short(text: str, width: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[:width] + "…"
