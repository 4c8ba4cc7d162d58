"""The command of a stage: its options, its run, what it shows, its exit code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any

from posttrain.cli import summaries
from posttrain.cli.options import read
from posttrain.stages.stage import Outcome, Stage

# stages whose outcome has a presentation of its own; the others show their summary
SHOWS = {
    "adapt": "posttrain.cli.sft",
    "sft": "posttrain.cli.sft",
    "preference": "posttrain.cli.preference",
    "sample_pairs": "posttrain.cli.sample_pairs",
    "reward_model": "posttrain.cli.reward_model",
    "rl": "posttrain.cli.rl",
    "judge": "posttrain.cli.judge",
    "audit_reward": "posttrain.cli.audit_reward",
    "eval": "posttrain.cli.evaluate",
    "data_inspect": "posttrain.cli.data_inspect",
    "data_pairs": "posttrain.cli.data_pairs",
    "data_select": "posttrain.cli.data_select",
    "data_split": "posttrain.cli.data_split",
}


def main(stage: Stage[Any], command: str, argv: list[str]) -> int:
    """Run a stage as a command.

    Args:
        command: as it was typed. argv: what followed.
    Returns: the exit code: of the stage's verdict, 0 where it gives none.
    """
    settings, reporter, verify = read(command, stage.description, stage.settings, argv)
    outcome = replace(stage, verify=verify).run(settings, reporter)
    presentation(stage)(outcome)
    return outcome.exit_code


def presentation(stage: Stage[Any]) -> Callable[[Outcome], None]:
    """The function that shows an outcome of the stage."""
    if stage.show is not None:
        return stage.show
    is_own = stage.function.__module__.startswith("posttrain.stages.")
    if is_own and stage.name in SHOWS:
        return import_module(SHOWS[stage.name]).show
    return summaries.show
