"""What `posttrain audit-reward` shows: loopholes, an example of each, and the cure."""

from __future__ import annotations

import textwrap
from typing import Any

from posttrain.cli.summaries import where
from posttrain.core.console import Console, Table, console, estimate
from posttrain.core.terminal import one_line
from posttrain.stages.stage import Outcome

WIDTH, PART = 80, 60  # characters of a line, and of each part of an example


def show(outcome: Outcome) -> None:
    """What was found, and where everything is."""
    out, summary = console(), outcome.summary
    attacks = summary["attacks"]
    if not out.is_terminal:
        out.width = WIDTH
    for label, text in _control(summary):
        _wrapped(out, label, text)
    for title, key in (("loopholes", "loopholes"), ("defects, which pay for nothing", "defects")):
        if summary[key]:
            out.print(_table(title, {name: attacks[name] for name in summary[key]}))
            for name in summary[key]:
                _explain(out, name, attacks[name])
    silent = [n for n in attacks if n not in (*summary["loopholes"], *summary["defects"])]
    _wrapped(out, "without effect", ", ".join(silent))
    assert outcome.verdict is not None
    _wrapped(out, "verdict", f"{outcome.verdict.answer}: {outcome.verdict.why}")
    where(outcome)


def _wrapped(out: Console, label: str, text: str, indent: str = "") -> None:
    """A field behind its label, in as many lines as it takes."""
    head = f"{indent}{label:<8} "
    more = " " * len(indent) + " " * 9
    out.print(textwrap.fill(head + one_line(text), out.width - 1, subsequent_indent=more))


def _control(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """What right and wrong answers score, and in which forms they are told apart."""
    reads = [f"{form} {share:.0%}" for form, share in summary["reads"].items() if share]
    scores = []
    for name in ("right", "wrong"):
        mean = summary[name]
        scores.append(f"{name} answers {estimate(mean, '.3g') if mean else 'none'}")
    return [
        ("scorer", summary["scorer"]),
        ("tried", f"{summary['tries']:,} completions on {summary['rows']:,} rows"),
        ("scores", ", ".join(scores)),
        ("reads", f"{', '.join(reads) or 'no form'}; attacked in: {summary['form']}"),
    ]


def _table(title: str, found: dict[str, Any]) -> Table:
    table = Table(title=f"{title} (share of rows, exact 95 % interval)")
    table.add_column("", no_wrap=True)
    table.add_column("trick", overflow="fold")
    table.add_column("n", justify="right")
    table.add_column("succeeds", justify="right", no_wrap=True)
    for name, one in found.items():
        table.add_row(name, one["variant"], f"{one['share']['n']:,}", estimate(one["share"], ".2f"))
    return table


def _explain(out: Console, name: str, one: dict[str, Any]) -> None:
    """An example, and the cure."""
    example = one["example"]
    scores = f"{_score(example['score'])} (right {_score(example['right'])}, "
    scores += f"wrong {_score(example['wrong'])})"
    _wrapped(out, f"{name}:", one["shows"])
    for label, text in (
        ("asked", _short(example["question"])),
        ("wanted", _short(example["answer"])),
        ("written", _short(example["completion"])),
        ("scored", scores),
        ("why", _short(example["why"])),
        ("cure", one["cure"]),
    ):
        if text or label == "written":
            _wrapped(out, label, text, indent="  ")


def _score(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


def _short(text: str) -> str:
    """A text as one line; of a long one its ends."""
    text = one_line(text)
    half = PART // 2 - 1
    return text if len(text) <= PART else f"{text[:half]} … {text[-half:]}"
