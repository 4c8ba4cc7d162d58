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
    accuracy_table(outcome.summary)
    ending(outcome)


def ending(outcome: Outcome) -> None:
    """What the last steps were like, alarms, and where everything is."""
    out, summary = console(), outcome.summary
    last_steps = ", ".join(f"{name} {value:.3f}" for name, value in summary["last_steps"].items())
    out.print_text(f"last steps: {last_steps}")
    for alarm in summary["alarms"]:
        out.print_text(alarm, style="yellow")
    where(outcome)


def held_title(held: dict[str, Any]) -> str:
    chance = f"; chance {held['chance']:g}" if "chance" in held else ""
    return f"held-out rows (95 % interval{chance})"


def accuracy(held: dict[str, Any]) -> str:
    """`0.850 [0.794, 0.893]`"""
    low, high = held["accuracy_low"], held["accuracy_high"]
    return estimate({"mean": held["accuracy"], "low": low, "high": high})


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
        table = Table(title=held_title(after))
        table.add_columns("", "loss", "accuracy", "n", "model minus this, paired")
        for name, held in (("before", before), (f"step {after['step']}", after)):
            change = after.get("difference", {}).get("accuracy") if held is before else None
            table.add_row(
                name,
                f"{held['loss']:.4f}",
                accuracy(held),
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
