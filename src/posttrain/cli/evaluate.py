"""`posttrain eval`: what a model can do, and what changed since another."""

from __future__ import annotations

from typing import Any

from posttrain.core.console import Table, console
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
            cells, label = [label, one["labels"][metric], f"{value['n']:,}"], ""
            if compared:
                difference = one["difference"].get(metric)
                cells += [
                    _cell(one["against"][metric]) if metric in one["against"] else "–",
                    _cell(value),
                    _cell(difference, sign=True) if difference else "–",
                ]
            else:
                cells.append(_cell(value))
            table.add_row(*cells)
        for metric, value in one.get("difference", {}).items():
            if metric not in one["metrics"]:  # which only a comparison has
                table.add_row("", one["labels"][metric], f"{value['n']:,}", "–", "–", _cell(value))
    console().print(table)


def _cell(estimate: dict[str, Any], *, sign: bool = False) -> str:
    number = "+.3f" if sign else ".3f"
    interval = (
        ""
        if estimate["low"] is None
        else f" [{estimate['low']:{number}}, {estimate['high']:{number}}]"
    )
    return f"{estimate['mean']:{number}}{interval}"
