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
    columns = (
        "task",
        "metric",
        "n",
        *(("before", "after", "difference, paired") if compared else ("value",)),
    )
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < 2 else "right", overflow="fold")
    for name, one in summary["tasks"].items():
        label = name.replace("-", " ", 1)  # in its first line alone
        for metric, value in one["metrics"].items():
            cells, label = [label, _named(one, metric), f"{value['n']:,}"], ""
            if compared:
                difference = one["difference"].get(metric)
                cells += [
                    estimate(one["against"][metric]) if metric in one["against"] else "–",
                    estimate(value),
                    estimate(difference, "+.3f") if difference else "not comparable",
                ]
            else:
                cells.append(estimate(value))
            table.add_row(*cells)
        for metric, value in one.get("difference", {}).items():
            if metric not in one["metrics"]:  # which only a comparison has
                table.add_row("", _named(one, metric), f"{value['n']:,}", "–", "–", estimate(value))
    console().print(table)


def _named(one: dict[str, Any], metric: str) -> str:
    """The label of a metric, and what guessing would come to."""
    chance = one.get("chance", {}).get(metric)
    return one["labels"][metric] + ("" if chance is None else f" (chance {chance:.2f})")
