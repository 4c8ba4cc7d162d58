"""The kinds of stages a recipe may have: their settings, what they read, and how they run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from posttrain.core.errors import ConfigError
from posttrain.core.plugins import is_plugin, plugin_file
from posttrain.core.settings import Settings
from posttrain.data.settings import Source


@dataclass(frozen=True)
class Kind:
    """One kind of stage.

    Attributes:
        module: where `run(settings, observer)` and the settings are.
        settings: name of the settings' class.
        makes_model: whether its folder holds `model/`, which a later stage can start from.
        models: settings that name a model, or an earlier stage that makes one.
        makes_rows: the file in its folder that a later stage can read as `data`; empty where it
            makes none.
    """

    module: str
    settings: str
    makes_model: bool
    models: tuple[str, ...] = ("model",)
    makes_rows: str = ""

    @property
    def model(self) -> type[Settings]:
        """The settings' class."""
        return getattr(import_module(self.module), self.settings)

    @property
    def run(self) -> Callable[[Any, Any], Any]:
        return import_module(self.module).run


KINDS = {
    "adapt": Kind("posttrain.stages.adapt", "AdaptSettings", makes_model=True),
    "sft": Kind("posttrain.stages.sft", "SftSettings", makes_model=True),
    "preference": Kind(
        "posttrain.stages.preference",
        "PreferenceSettings",
        makes_model=True,
        models=("model", "reference_model"),
    ),
    "sample_pairs": Kind(
        "posttrain.stages.sample_pairs",
        "SamplePairsSettings",
        makes_model=False,
        models=("model", "reward_model"),
        makes_rows="pairs.jsonl",
    ),
    "reward_model": Kind("posttrain.stages.reward_model", "RewardModelSettings", makes_model=True),
    "judge": Kind(
        "posttrain.stages.judge",
        "JudgeSettings",
        makes_model=False,
        models=("reward_model", "against_model"),
    ),
    "eval": Kind(
        "posttrain.stages.evaluate",
        "EvaluateSettings",
        makes_model=False,
        models=("model", "against", "reward_model"),
    ),
}


def kind(name: str, where: str = "") -> Kind:
    """The kind of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in KINDS:
        raise ConfigError(
            f"there is no stage {name!r}",
            where=where,
            cure=f"write stage: with one of {', '.join(KINDS)}",
        )
    return KINDS[name]


def sources(settings: Settings) -> list[Source]:
    """Every source of rows in the settings, groups opened."""
    found: list[Source] = []
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, Source):
            found.append(value)
        elif isinstance(value, Settings):
            found += sources(value)
        elif isinstance(value, tuple):
            found += [one for one in value if isinstance(one, Source)]
    return found


def moved(settings: Settings, places: Mapping[str, Path]) -> Settings:
    """The settings with the files of earlier stages where rows of these are named.

    Args:
        places: name of a stage → its file.
    """
    if isinstance(settings, Source):
        return (
            settings.model_copy(update={"path": str(places[settings.path])})
            if settings.path in places
            else settings
        )
    new: dict[str, Any] = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, Settings):
            new[name] = moved(value, places)
        elif isinstance(value, tuple):
            new[name] = tuple(
                moved(one, places) if isinstance(one, Source) else one for one in value
            )
    return settings.model_copy(update=new)


def paths(settings: Settings) -> list[Path]:
    """Files besides rows whose content the stage reads: chat templates, and users' own code."""
    found = []
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, Settings) and not isinstance(value, Source):
            found += paths(value)
        elif isinstance(value, Path) and name not in ("out", "reference_cache"):
            found.append(value)
        for one in value if isinstance(value, tuple) else (value,):
            spec = getattr(one, "task", one)
            if isinstance(spec, str) and is_plugin(spec):
                found.append(plugin_file(spec))
    return found
