"""`posttrain data split`: parts of a data set that share no near-duplicates and no prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from posttrain.cli.options import read
from posttrain.core.console import console
from posttrain.data.curate.split import SplitSettings, run


def main(argv: list[str]) -> int:
    settings, observer = read(
        "data split",
        "Split rows into parts without leaks: near-duplicates, and rows with the same prompt, stand"
        " on one side. Rows keep their order and their bytes.",
        SplitSettings,
        argv,
    )
    show(run(settings, observer), settings.out)
    return 0


def show(summary: dict[str, Any], folder: Path) -> None:
    """What became of the rows, how they hang together, and where everything is."""
    out = console()
    table = Table(title="rows", title_justify="left", show_footer=True)
    table.add_column("", footer="read")
    table.add_column("n", justify="right", footer=f"{summary['rows']:,}")
    table.add_column("share", justify="right")
    table.add_column("asked", justify="right")
    total = sum(summary["parts"].values())
    for name, count in summary["parts"].items():
        table.add_row(
            name,
            f"{count:,}",
            f"{count / total:.4f}",
            f"{summary['identity']['settings']['parts'][name]:g}",
        )
    for name, count in (*summary["left_out"].items(), ("rejected", summary["rejected"])):
        table.add_row(name, f"{count:,}")
    out.print(table)
    largest = summary["largest_cluster"]
    out.print(
        f"clusters  {summary['clusters']:,}; the largest has {largest['rows']:,} rows, in"
        f" {largest['part']}: {', '.join(one['where'] for one in largest['first'])}",
        soft_wrap=True,
        markup=False,
    )
    out.print(f"summary   {folder / 'split.json'}", soft_wrap=True, markup=False)
