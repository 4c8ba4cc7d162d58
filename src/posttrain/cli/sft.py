"""What `posttrain sft` and `posttrain adapt` show."""

from __future__ import annotations

from posttrain.core.console import Table, console, estimate, loss
from posttrain.stages.stage import Outcome


def show(outcome: Outcome) -> None:
    """The result: held-out loss before and after, speed, and where everything is."""
    out = console()
    summary = outcome.summary
    before, after = summary["held_out_before"], summary["held_out"]
    if before and after:
        table = Table(title="held-out loss, nats a token (95 % interval)")
        for column in ("", "loss", "accuracy", "entropy", "n"):
            table.add_column(column, justify="left" if not column else "right")
        for name, held in (("before", before), (f"step {after['step']}", after)):
            table.add_row(
                name,
                loss(held),
                f"{held['accuracy']:.3f}",
                f"{held['entropy']:.3f}",
                f"{held['sequences']:,}",
            )
        if change := after.get("difference"):
            table.add_row("difference, paired", estimate(change["loss"], "+.4f"), "", "", "")
        out.print(table)
    where(outcome)


def where(outcome: Outcome) -> None:
    """How much was trained, how fast, and where it lies."""
    out, summary = console(), outcome.summary
    out.print(
        f"{summary['steps']:,} steps, {summary['tokens']:,} tokens in {summary['seconds']:.0f} s "
        f"({summary['tokens_per_second']:,.0f} tokens/s)"
    )
    out.print_line(f"model    {outcome.model}")
    out.print_line(f"summary  {outcome.summary_file}")
