"""What `posttrain data select` shows."""

from __future__ import annotations

from posttrain.core.console import Table, console
from posttrain.stages.stage import Outcome


def show(outcome: Outcome) -> None:
    """What became of the rows, and where everything is."""
    out, summary = console(), outcome.summary
    table = Table(title="rows", show_footer=True)
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
        f"relevance  first {cosines['first']:.3f}, last {cosines['last']:.3f}, mean of all "
        f"{cosines['mean_of_all']:.3f} ({summary['target_rows']:,} target rows)"
    )
    out.print_line(f"rows       {outcome.outputs['rows']}")
    out.print_line(f"summary    {outcome.summary_file}")
    if summary["chosen"] < (wanted := summary["keep"]):
        out.print_line(
            f"only {summary['chosen']:,} of {wanted:,} rows: no others are left", style="yellow"
        )
