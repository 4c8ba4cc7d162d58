"""What a stage shows that has no presentation of its own: its summary, and where everything is."""

from __future__ import annotations

from posttrain.core.console import console
from posttrain.stages.stage import Outcome

WIDTH = 160  # of tables, where the output is no terminal


def show(outcome: Outcome) -> None:
    """Numbers and texts of the summary, the verdict, and where everything is."""
    out = console()
    for name, value in outcome.summary.items():
        if name != "posttrain" and isinstance(value, (bool, int, float, str)):
            out.print_line(f"{name:<9} {value}")
    if outcome.verdict is not None:
        why = f": {outcome.verdict.why}" if outcome.verdict.why else ""
        out.print_line(f"verdict   {outcome.verdict.answer}{why}")
    for name, path in outcome.outputs.items():
        out.print_line(f"{name:<9} {path}")
    where(outcome)


def where(outcome: Outcome) -> None:
    """Where the summary is."""
    if outcome.summary_file.is_file():
        console().print_line(f"summary   {outcome.summary_file}")
