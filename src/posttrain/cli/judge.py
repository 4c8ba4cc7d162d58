"""`posttrain judge`: whether what judges answers prefers the better ones."""

from __future__ import annotations

from typing import Any

from posttrain.cli.reward_model import calibrated, sides
from posttrain.core.console import Table, console, estimate
from posttrain.stages.stage import Outcome


def show(outcome: Outcome) -> None:
    """The result, and where it is."""
    results(outcome.summary)
    console().print_line(f"summary  {outcome.summary_file}")


def results(summary: dict[str, Any]) -> None:
    """Accuracy with intervals, what it is held against, and calibration."""
    out = console()
    for name, result in summary["results"].items():
        title = f"{name}: accuracy (95 % interval; chance {result.get('chance', 0.5):g})"
        table = Table(title=title)
        table.add_columns("", "n", "accuracy", "scorer minus this, paired")
        table.add_row(summary["scorer"], f"{result['judged']:,}", estimate(result["accuracy"]), "")
        others = {
            **({summary["against"]: result["against"]} if "against" in result else {}),
            **result["baselines"],
        }
        for other, value in others.items():
            table.add_row(
                other, f"{value['n']:,}", estimate(value), estimate(value["difference"], "+.3f")
            )
        out.print(table)
        if "categories" in result:
            table = Table(title=f"{name}: accuracy by category")
            table.add_columns("category", "n", "accuracy", text=("category",))
            for category, value in result["categories"].items():
                table.add_row(category or "(none)", f"{value['n']:,}", estimate(value))
            table.add_row(
                "mean over categories",
                f"{result['mean_over_categories']['n']:,}",
                estimate(result["mean_over_categories"]),
            )
            out.print(table)
        sides(result)
        if unjudged := result["pairs"] - result["judged"]:
            out.print_text(
                f"without a score: {unjudged:,} of {result['pairs']:,} pairs; they are not counted"
            )
        if "calibration" in result:
            out.print_text(calibrated(result["calibration"]))
        if result["warning"]:
            out.print_text(result["warning"], style="yellow")
