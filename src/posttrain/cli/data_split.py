"""What `posttrain data split` shows."""

from __future__ import annotations

from posttrain.core.console import Table, console
from posttrain.stages.stage import Outcome


def show(outcome: Outcome) -> None:
    """What became of the rows, how they hang together, and where everything is."""
    out, summary = console(), outcome.summary
    table = Table(title="rows", show_footer=True)
    table.add_column("", footer="read")
    table.add_column("n", justify="right", footer=f"{summary['rows']:,}")
    table.add_column("share", justify="right")
    table.add_column("asked", justify="right")
    total = sum(summary["parts"].values())
    for name, count in summary["parts"].items():
        table.add_row(name, f"{count:,}", f"{count / total:.4f}", f"{summary['shares'][name]:g}")
    for name, count in (*summary["left_out"].items(), ("rejected", summary["rejected"])):
        table.add_row(name, f"{count:,}")
    out.print(table)
    largest = summary["largest_cluster"]
    out.print_line(
        f"clusters  {summary['clusters']:,}; the largest has {largest['rows']:,} rows, in "
        f"{largest['part']}: {', '.join(one['where'] for one in largest['first'])}"
    )
    out.print_line(f"summary   {outcome.summary_file}")
