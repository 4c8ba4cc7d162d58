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
    for name, one in summary["results"].items():
        title = f"{name}: accuracy (95 % interval; chance {one.get('chance', 0.5):g})"
        table = Table(title=title)
        for column in ("", "n", "accuracy", "scorer minus this, paired"):
            table.add_column(column, justify="left" if not column else "right", overflow="fold")
        table.add_row(summary["scorer"], f"{one['judged']:,}", estimate(one["accuracy"]), "")
        others = {
            **({summary["against"]: one["against"]} if "against" in one else {}),
            **one["baselines"],
        }
        for other, value in others.items():
            table.add_row(
                other, f"{value['n']:,}", estimate(value), estimate(value["difference"], "+.3f")
            )
        out.print(table)
        if "categories" in one:
            table = Table(title=f"{name}: accuracy by category")
            for column in ("category", "n", "accuracy"):
                table.add_column(
                    column, justify="left" if column == "category" else "right", overflow="fold"
                )
            for category, value in one["categories"].items():
                table.add_row(category or "(none)", f"{value['n']:,}", estimate(value))
            table.add_row(
                "mean over categories",
                f"{one['mean_over_categories']['n']:,}",
                estimate(one["mean_over_categories"]),
            )
            out.print(table)
        sides(one)
        if unjudged := one["pairs"] - one["judged"]:
            out.print_text(
                f"without a score: {unjudged:,} of {one['pairs']:,} pairs; they are not counted"
            )
        if "calibration" in one:
            out.print_text(calibrated(one["calibration"]))
        if one["warning"]:
            out.print_text(one["warning"], style="yellow")
