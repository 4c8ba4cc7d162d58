"""What `posttrain data pairs` shows."""

from __future__ import annotations

from typing import Any

from posttrain.cli.summaries import WIDTH
from posttrain.core.console import Table, console, estimate
from posttrain.stages.stage import Outcome

NOUNS = {"pairs": "pairs", "labels": "labelled answers"}


def show(outcome: Outcome) -> None:
    """What became of the rows, what was found, and where everything is."""
    out, summary = console(), outcome.summary
    if not out.is_terminal:
        out.width = WIDTH
    out.print(_rows(summary))
    if summary["bias"]:
        out.print(_bias(summary["bias"], summary["bias_before_balance"]))
    stays = {
        name: n
        for name, n in summary["findings"].items()
        if n and summary["removed"].get(name) != n
    }
    for name, count in stays.items():
        out.print_line(f"found     {name}: {count:,}, not removed")
    for cycle in summary["cycles"]["first"][:3]:
        out.print_line(
            f"cycle {cycle['cycle']:<3} {cycle['answers']} answers, {cycle['rows']} rows: "
            f"{', '.join(cycle['first'][:4])}"
        )
    if summary["cycles"]["components"] > 3:
        out.print(
            f"          {summary['cycles']['components']:,} such components, "
            f"{summary['cycles']['rows']:,} rows"
        )
    if found := summary.get("margin"):
        out.print_line(
            f"margin    mean {number(found['mean'])}, {found['least']:g} to {found['most']:g}"
        )
    if found := summary.get("votes"):
        out.print_line(
            f"votes     agree {number(found['agreement'])}; unanimous {number(found['unanimous'])}"
        )
    for warning in summary["warnings"]:
        out.print_text(warning, style="yellow")
    out.print_line(
        f"written   {summary['written']:,} {NOUNS[summary['to']]}, {outcome.outputs['rows']}"
    )
    out.print_line(f"summary   {outcome.summary_file}")


def _rows(summary: dict[str, Any]) -> Table:
    """All rows, by what became of them; where pairs became labels, all their answers as well."""
    table = Table(title=NOUNS[summary["kind"]], show_footer=True)
    table.add_column("", footer="read")
    table.add_column("n", justify="right", footer=f"{summary['rows']:,}")
    same = summary["kind"] == summary["to"]
    for name, count in (
        ("written" if same else "used", summary["used"]),
        *summary["removed"].items(),
        ("rejected", summary["rejected"]),
    ):
        table.add_row(name, f"{count:,}")
    if summary["kind"] == "pairs" and not same:
        table.add_section()
        table.add_row(f"answers of the {summary['used']:,} pairs", f"{2 * summary['used']:,}")
        for name, count in (("written", summary["written"]), *summary["answers_left_out"].items()):
            table.add_row(f"  {name}", f"{count:,}")
    elif not same:
        table.add_section()
        table.add_row("pairs there could be", f"{summary['possible_pairs']:,}")
        table.add_row("  written", f"{summary['written']:,}")
    return table


def _bias(after: dict[str, Any], before: dict[str, Any] | None) -> Table:
    """How the chosen sides look, beside the rejected ones; where pairs were taken out for balance,
    before it, after it, and the difference.
    """
    table = Table(title="the chosen side, of pairs that differ")
    for column in ("", *(("",) if before else ()), "95 % interval"):
        table.add_column(column, overflow="fold")
    table.add_column("n", justify="right")

    def row(name: str, group: str, key: str = "") -> None:
        for when, one in (("before", before), ("balanced", after)):
            if one:
                found = one[group][key] if key else one[group]
                cells = (number(found, n=False), f"{found['n']:,}" if found else "0")
                table.add_row(name, *((when, *cells) if before else cells))
                name = ""
        change = after["change"].get(key or group) if before else None
        if change:
            table.add_row("", "difference", estimate(change, "+.3f"), "")

    for unit in after["longer"]:
        row(f"longer, {unit}", "longer", unit)
    row("mean ln(chosen / rejected)", "log_length_ratio")
    for kind in after["more_markdown"]:
        row(f"more {kind}", "more_markdown", kind)
    return table


def number(found: dict[str, Any] | None, n: bool = True) -> str:
    """A mean and its interval."""
    if not found or found["mean"] is None:
        return "none"
    return estimate(found) + (f", n = {found['n']:,}" if n else "")
