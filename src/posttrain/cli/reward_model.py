"""What `posttrain reward-model` shows."""

from __future__ import annotations

from typing import Any

from posttrain.cli.sft import where
from posttrain.core.console import Table, console
from posttrain.stages.stage import Outcome


def show(outcome: Outcome) -> None:
    """The result: accuracy on held-out rows and that of content-blind baselines, calibration,
    alarms, and where everything is.
    """
    out = console()
    summary = outcome.summary
    accuracy_table(summary)
    last_steps = ", ".join(f"{name} {value:.3f}" for name, value in summary["last_steps"].items())
    out.print_line(f"last steps: {last_steps}")
    for alarm in summary["alarms"]:
        out.print_line(alarm, style="yellow")
    where(outcome)


def sides(held: dict[str, Any]) -> None:
    """Accuracy where the chosen answer is the longer, and where it is the shorter."""
    for side in ("longer", "shorter"):
        if value := held.get(f"where_{side}_chosen"):
            console().print_line(
                f"where the chosen answer is the {side}: {estimate(value)}, n = {value['n']:,}"
            )


def accuracy_table(summary: dict[str, Any]) -> None:
    """Accuracy on held-out rows, that of content-blind baselines, and how far the model's
    confidence can be believed.
    """
    out = console()
    before, after = summary["held_out_before"], summary["held_out"]
    if before and after:
        table = Table(title="held-out rows (95 % interval)")
        for column in ("", "loss", "accuracy", "n", "the model's less this, paired"):
            table.add_column(column, justify="left" if not column else "right", overflow="fold")
        for name, held in (("before", before), (f"step {after['step']}", after)):
            accuracy = {
                "mean": held["accuracy"],
                "low": held["accuracy_low"],
                "high": held["accuracy_high"],
            }
            table.add_row(
                name, f"{held['loss']:.4f}", estimate(accuracy), f"{held['judged']:,}", ""
            )
        for name, baseline in after["baselines"].items():
            table.add_row(
                name,
                "",
                estimate(baseline),
                f"{baseline['n']:,}",
                estimate(baseline["difference"], "+.3f"),
            )
        out.print(table)
        sides(after)
        out.print_line(calibrated(after["calibration"]))


def estimate(value: dict[str, Any], form: str = ".3f") -> str:
    """`0.512 [0.468, 0.556]`"""
    interval = "" if value["low"] is None else f" [{value['low']:{form}}, {value['high']:{form}}]"
    return f"{value['mean']:{form}}{interval}"


def calibrated(calibration: dict[str, Any]) -> str:
    """How far its confidence can be believed, in a sentence."""
    temperature, mended = calibration["temperature"], ""
    if temperature is not None:
        error = calibration["error_calibrated"]
        mended = f"; {error:.3f} with rewards divided by {temperature:.2f}"
    return (
        f"calibration: expected error of the probability {calibration['error']:.3f}, n = "
        f"{calibration['n']:,}{mended}"
    )
