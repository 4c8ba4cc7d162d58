"""`posttrain data select`: the rows of large sets that are most like a small one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from posttrain.cli.options import read
from posttrain.core.console import console
from posttrain.stages.select import SelectSettings, run


def main(argv: list[str]) -> int:
    settings, observer = read(
        "data select",
        "Take the rows of large sets that are most like the rows of a target, best first: ranked by"
        " relevance, without poor rows, near-duplicates, or rows of the target itself.",
        SelectSettings,
        argv,
    )
    show(run(settings, observer), settings.out)
    return 0


def show(summary: dict[str, Any], chosen: Path) -> None:
    """What became of the rows, and where everything is."""
    out = console()
    table = Table(title="rows", title_justify="left", show_footer=True)
    table.add_column("", footer="read")
    table.add_column("n", justify="right", footer=f"{summary['rows']:,}")
    for name, count in (
        ("chosen", summary["chosen"]),
        *summary["left_out"].items(),
        ("rejected", summary["rejected"]),
    ):
        table.add_row(name, f"{count:,}")
    out.print(table)
    cosines = summary["relevance"]
    out.print(
        f"relevance  first {cosines['first']:.3f}, last {cosines['last']:.3f}, mean of all"
        f" {cosines['mean_of_all']:.3f} ({summary['target_rows']:,} target rows)"
    )
    out.print(f"rows       {chosen}", soft_wrap=True, markup=False)
    out.print(
        f"summary    {chosen.with_name(chosen.stem + '.summary.json')}",
        soft_wrap=True,
        markup=False,
    )
    if summary["chosen"] < (asked := summary["identity"]["settings"]["keep"]):
        out.print(
            f"[yellow]only {summary['chosen']:,} of {asked:,} rows: no others are left[/yellow]"
        )
