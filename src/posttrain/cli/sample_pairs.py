"""What `posttrain sample-pairs` shows."""

from __future__ import annotations

from typing import Any

from posttrain.cli.data_pairs import number
from posttrain.cli.summaries import WIDTH
from posttrain.core.console import Table, console
from posttrain.stages.stage import Outcome


def show(outcome: Outcome) -> None:
    """What became of answers and prompts, how good the answers were, and where everything is."""
    out, summary = console(), outcome.summary
    if not out.is_terminal:
        out.width = WIDTH
    out.print(_account(summary))
    out.print(_numbers(summary))
    for warning in summary["warnings"]:
        out.print_text(warning, style="yellow")
    out.print_line(f"pairs     {summary['pairs']:,}, {outcome.outputs['pairs']}")
    if best := summary["best"]:
        out.print_line(
            f"best      {best['rows']:,} answers of {best['at_least']:g} or more, "
            f"{outcome.outputs['best']}"
        )
    out.print_line(f"summary   {outcome.summary_file}")


def _account(summary: dict[str, Any]) -> Table:
    """Prompts, answers, and all pairs that a prompt's answers could
    make, by what became of them."""
    table = Table(title=f"{summary['n']} answers a prompt, scored by {summary['scorer']}")
    table.add_column("")
    table.add_column("n", justify="right")
    parts = (
        (
            ("prompts", summary["prompts"]),
            ("with a pair", summary["prompts_with_pairs"]),
            summary["prompts_without"],
        ),
        (("answers", summary["answers"]), ("can be used", summary["usable"]), summary["left_out"]),
        (
            ("possible pairs of usable answers", summary["possible_pairs"]),
            ("written", summary["pairs"]),
            summary["not_pairs"],
        ),
    )
    for (title, count), (good, many), others in parts:
        table.add_row(title, f"{count:,}")
        table.add_row(f"  {good}", f"{many:,}")
        for why, n in others.items():
            if n:
                table.add_row(f"  {why}", f"{n:,}")
        table.add_section()
    return table


def _numbers(summary: dict[str, Any]) -> Table:
    """Every number with its interval."""
    table = Table(title="95 % intervals, clustered by prompt")
    table.add_column("")
    table.add_column("", no_wrap=True)
    table.add_column("n", justify="right")
    best = summary["best_of_n"]
    rows = [("score", summary["mean_score"])]
    if best:
        rows.append(
            (
                f"score of the best of {best['n']}, at most {best['kl_bound']:.2f} nats away",
                best["score"],
            )
        )
        rows.append(("gain over the mean of its prompt", best["gain"]))
    rows += [(f"pass@{k}", found) for k, found in (summary["pass_at"] or {}).items()]
    rows += [
        ("different answers a prompt", summary["distinct_answers"]),
        ("tokens an answer", summary["tokens"]),
    ]
    if bias := summary["bias"]:
        rows += [
            ("margin", summary["margin"]),
            ("tokens of the chosen", summary["chosen_tokens"]),
            ("tokens of the rejected", summary["rejected_tokens"]),
            ("difference", summary["tokens_difference"]),
            ("longer chosen, characters", bias["longer"]["characters"]),
        ]
    for name, found in rows:
        table.add_row(name, number(found, n=False), f"{found['n']:,}" if found else "0")
    return table
