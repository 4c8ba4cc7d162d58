"""What `posttrain reward-model` shows."""

from __future__ import annotations

from typing import Any

from posttrain.cli.sft import where
from posttrain.core.console import Table, console, estimate
from posttrain.stages.stage import Outcome


def show(outcome: Outcome) -> None:
    """The result: accuracy on held-out rows and that of content-blind baselines, calibration,
    alarms, and where everything is.
    """
    out = console()
    summary = outcome.summary
    accuracy_table(summary)
    last_steps = ", ".join(f"{name} {value:.3f}" for name, value in summary["last_steps"].items())
    out.print_text(f"last steps: {last_steps}")
    for alarm in summary["alarms"]:
        out.print_text(alarm, style="yellow")
    where(outcome)


def sides(held: dict[str, Any]) -> None:
    """Accuracy where the chosen answer is the longer, and where it is the shorter."""
    for side in ("longer", "shorter"):
        if value := held.get(f"where_{side}_chosen"):
            console().print_text(
                f"where the chosen answer is the {side}: {estimate(value)}, n = {value['n']:,}"
            )


def accuracy_table(summary: dict[str, Any]) -> None:
    """Accuracy on held-out rows, that of content-blind baselines, and how far the model's
    confidence can be believed.
    """
    out = console()
    before, after = summary["held_out_before"], summary["held_out"]
    if before and after:
        chance = f"; chance {after['chance']:g}" if "chance" in after else ""
        title = f"held-out rows (95 % interval{chance})"
        table = Table(title=title)
        for column in ("", "loss", "accuracy", "n", "model minus this, paired"):
            table.add_column(column, justify="left" if not column else "right", overflow="fold")
        for name, held in (("before", before), (f"step {after['step']}", after)):
            accuracy = {
                "mean": held["accuracy"],
                "low": held["accuracy_low"],
                "high": held["accuracy_high"],
            }
            change = after.get("difference", {}).get("accuracy") if held is before else None
            table.add_row(
                name,
                f"{held['loss']:.4f}",
                estimate(accuracy),
                f"{held['judged']:,}",
                estimate(change, "+.3f") if change else "",
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
        if "margin" in after:
            change = after.get("difference", {}).get("margin")
            since = f", {estimate(change, '+.3f')} since before, paired" if change else ""
            out.print_text(f"mean margin: {estimate(after['margin'], '+.3f')}{since}")
        sides(after)
        out.print_text(calibrated(after["calibration"]))


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
