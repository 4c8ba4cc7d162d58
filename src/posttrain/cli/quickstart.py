"""`posttrain quickstart`: the whole loop on a small real model, offline, in two minutes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.text import Text

from posttrain.cli.options import Parser, add_quiet
from posttrain.cli.pipeline import results
from posttrain.core.console import Table, console, open_reporter
from posttrain.evals.records import read_records

SAMPLES = 6


def main(argv: list[str]) -> int:
    parser = Parser(
        prog="posttrain quickstart",
        allow_abbrev=False,
        description=(
            "From the embedded base model to instruct models that learned from comparisons and "
            "from reward: adapt, fine-tune, evaluate, train a reward model, optimise preferences, "
            "compare, reinforce, evaluate. Offline, on a processor. The same command goes on."
        ),
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/quickstart"),
        metavar="PATH",
        help="folder [runs/quickstart]",
    )
    add_quiet(parser)
    arguments = parser.parse(argv)
    from posttrain.pipeline.quickstart import quickstart

    result = quickstart(arguments.out, open_reporter(quiet=arguments.quiet))
    data = result.folder / "data"
    samples(result.artifacts["check"], data / "questions.jsonl", "exact-questions", "base", "sft")
    samples(
        result.artifacts["compare"],
        data / "polite-asked.jsonl",
        "exact-polite-asked",
        "sft",
        "preference",
    )
    results(result.summary)
    out = console()
    for label, path in (
        ("model", result.artifacts["rl"] / "model"),
        ("summary", result.folder / "summary.json"),
        ("data", data),
    ):
        out.print_line(f"{label:<8} {path}")
    after, before = result.folder / "rl", result.folder / "sft"
    out.print_line(f"posttrain chat --model {after} --vs {before}", label="next")
    return 0


def samples(folder: Path, questions: Path, task: str, before: str, after: str) -> None:
    """Answers side by side, right and wrong as they come: of each of some skills one question.

    Args:
        folder: of the evaluation. questions: what was asked. task: the evaluation's name for it.
        before, after: what the two models are called.
    """
    asked = _lines(questions)
    old = read_records(folder / f"{task}.against.jsonl")
    new = read_records(folder / f"{task}.jsonl")
    table = Table(title="held-out questions")
    for column, width in (("question", 36), ("wanted", 14), (before, 24), (after, 24)):
        table.add_column(column, overflow="fold", max_width=width)
    seen: set[str] = set()
    for row, *answers in zip(asked, old, new, strict=True):
        question = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]
        skill = row.get("skill", question)
        if skill in seen or "\n" in question:
            continue
        seen.add(skill)
        table.add_row(
            Text(question),
            Text(answers[0].meta["wanted"]),
            *(
                Text(_short(answer.output), style="green" if answer.values["correct"] else "red")
                for answer in answers
            ),
        )
        if len(seen) == SAMPLES:
            break
    console().print(table)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _short(text: str, width: int = 50) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[:width] + "…"
