"""What `posttrain rl` shows."""

from __future__ import annotations

from posttrain.cli.sft import where
from posttrain.core.console import Table, console, estimate
from posttrain.stages.stage import Outcome

# of the steps' numbers those that are shown: by name, and what they are called
SHOWN = {
    "reward": "reward",
    "gold": "gold",
    "rollout/length": "tokens an answer",
    "rollout/finished": "share finished",
    "rollout/same_reward": "share of prompts whose answers are all worth the same",
    "policy/entropy": "entropy, nats a token",
    "rollout/kl": "KL to the reference, nats an answer",
}


def show(outcome: Outcome) -> None:
    """The result: what held-out answers are worth before and after, how the first and the last
    steps differ, alarms, and where everything is.
    """
    out, summary = console(), outcome.summary
    before, after = summary["held_out_before"], summary["held_out"]
    if before and after:
        table = Table(title="reward of held-out prompts, most likely answer (95 % interval)")
        for column in ("", "reward", "n"):
            table.add_column(column, justify="left" if not column else "right", overflow="fold")
        for name, held in (("before", before), (f"step {after['step']}", after)):
            table.add_row(name, estimate(held["reward"]), f"{held['sequences']:,}")
        if change := after.get("difference"):
            table.add_row("difference, paired", estimate(change["reward"], "+.3f"), "")
        out.print(table)
    first, last = summary["first_steps"], summary["last_steps"]
    table = Table(title="mean of the first and the last steps, 20 at most")
    for column in ("", "first", "last"):
        table.add_column(column, justify="left" if not column else "right", overflow="fold")
    for name, label in SHOWN.items():
        if name in first and name in last:
            table.add_row(label, f"{first[name]:.3f}", f"{last[name]:.3f}")
    out.print(table)
    for alarm in summary.get("alarms", ()):
        out.print_line(alarm, style="yellow")
    where(outcome)
