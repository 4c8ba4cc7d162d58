"""`posttrain eval`: what a model can do, and what changed since another."""

from __future__ import annotations

from typing import Any

from posttrain.core.console import Table, console, estimate
from posttrain.stages.stage import Outcome


def show(outcome: Outcome) -> None:
    """The result, and where it is."""
    results(outcome.summary)
    console().print_line(f"summary  {outcome.summary_file}")


def results(summary: dict[str, Any]) -> None:
    """Every metric with its interval, and paired differences."""
    compared = summary["against"] is not None
    table = Table(title="95 % intervals")
    values = ("before", "after", "difference, paired") if compared else ("value",)
    table.add_columns("task", "metric", "n", *values, text=("task", "metric"))
    for name, task in summary["tasks"].items():
        label = name.replace("-", " ", 1)  # in its first line alone
        for metric, value in task["metrics"].items():
            cells, label = [label, _named(task, metric), f"{value['n']:,}"], ""
            if compared:
                difference = task["difference"].get(metric)
                cells += [
                    estimate(task["against"][metric]) if metric in task["against"] else "–",
                    estimate(value),
                    estimate(difference, "+.3f") if difference else "not comparable",
                ]
            else:
                cells.append(estimate(value))
            table.add_row(*cells)
        for metric, value in task.get("difference", {}).items():
            if metric not in task["metrics"]:  # which only a comparison has
                table.add_row(
                    "", _named(task, metric), f"{value['n']:,}", "–", "–", estimate(value)
                )
    console().print(table)


def _named(task: dict[str, Any], metric: str) -> str:
    """The label of a metric, and what guessing would come to."""
    chance = task.get("chance", {}).get(metric)
    return task["labels"][metric] + ("" if chance is None else f" (chance {chance:.2f})")
