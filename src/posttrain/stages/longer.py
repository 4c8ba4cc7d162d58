"""A run that goes on to be a longer one: `--steps 60` in the folder of a run of 40 steps.

It may where its first steps are those that a run of that length would have taken from the start:
the learning rates are the same up to there, as a constant schedule has them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from posttrain.core.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from posttrain.engine.loop import Run


def check_settings(settings: Any, before: Mapping[str, Any]) -> None:
    """Refuse what the settings alone show to be impossible.

    Args:
        settings: of training. before: `steps` and `epochs` of the run that is there.
    """
    unit = _unit(settings, before)
    if unit and getattr(settings, unit) < before[unit]:
        raise ConfigError(
            f"{settings.out} holds a longer run: {_length(before)}, not {_length(vars(settings))}",
            cure="choose another --out, or give the settings it began with",
            option=unit,
        )
    schedule = settings.optimiser.schedule
    if schedule != "constant":
        raise _refusal(settings, before, f"its learning rate ({schedule}) fell to its end")


def check_run(run: Run, settings: Any, before: Mapping[str, Any]) -> None:
    """Refuse a run whose first steps would have been others; says what is done otherwise."""
    from posttrain.engine.optimiser import rate

    try:
        saved = run.store.latest()
    except CheckpointError as error:
        raise _refusal(settings, before, error.what) from error
    if saved is None:
        raise _refusal(settings, before, "its checkpoints are gone")
    per_epoch = run.source.steps_per_epoch
    steps = before["steps"] or math.ceil(before["epochs"] * per_epoch - 1e-9)
    if run.steps < saved.step:
        raise _refusal(settings, before, f"it has taken {saved.step} steps")
    chosen = run.optimiser.settings
    for step in range(saved.step):
        rates = {rate(chosen.schedule, step, n, chosen.warmup) for n in (steps, run.steps)}
        if len(rates) > 1:
            why = f"--warmup {chosen.warmup:g} is a share of the steps, and its rise another"
            raise _refusal(settings, before, why)
    run.reporter.message(
        f"the run of {steps} steps becomes one of {run.steps}: it goes on after step {saved.step} "
        f"with its optimiser's state and a {chosen.schedule} learning rate"
    )


def _unit(settings: Any, before: Mapping[str, Any]) -> str:
    """The setting that both lengths are given by; empty where one is in steps, one in epochs."""
    if bool(settings.steps) != bool(before["steps"]):
        return ""
    return "steps" if settings.steps else "epochs"


def _length(values: Mapping[str, Any]) -> str:
    steps = values["steps"]
    return f"{steps} steps" if steps else f"{values['epochs']:g} epochs"


def _refusal(settings: Any, before: Mapping[str, Any], why: str) -> ConfigError:
    """The error, with the two ways to get a longer run."""
    out, unit = settings.out, _unit(settings, before)
    name = unit or ("steps" if settings.steps else "epochs")
    asked = f"--{name} {getattr(settings, name):g}"
    more = getattr(settings, unit) - before[unit] if unit else 0
    rest = f"--{name} {more:g}" if more > 0 else f"--{name} N"
    return ConfigError(
        f"{out} holds a run of {_length(before)}, which cannot go on to {_length(vars(settings))}: "
        f"{why}",
        cure=(
            f"a run of its own: the same options with {asked} --out {out}-longer; or go on from "
            f"its model with a fresh optimiser and schedule: the same options with --model "
            f"{out}/model {rest} --out {out}-more"
        ),
        option=name,
    )
