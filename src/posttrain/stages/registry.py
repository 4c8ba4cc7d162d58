"""Finds a stage by its name, and imports it.

A user's own stage is named by where it is: `FILE.py:NAME` or `package.module:NAME`.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from posttrain.core.errors import ConfigError, nearest
from posttrain.core.plugins import load_file
from posttrain.stages.index import entries
from posttrain.stages.stage import Stage


def find(name: str, where: str = "") -> Stage[Any]:
    """The stage of that name, or at that place.

    Args:
        name: of a stage of this package, `FILE.py:NAME` or `package.module:NAME`.
        where: in a recipe, for the message.
    Raises:
        ConfigError: there is none.
    """
    if ":" in name:
        return _own(name, where)
    if name not in entries():
        known = name.replace("-", "_")  # as the command line writes it
        raise ConfigError(
            f"there is no stage {name!r}",
            where=where,
            cure=f"write stage: {known}"
            if known in entries()
            else f"write stage: with one of {', '.join(entries())}, or FILE.py:NAME of your own",
        )
    module = import_module(entries()[name].module)
    return next(stage for stage in vars(module).values() if _is_stage(stage, name))


def _is_stage(value: Any, name: str) -> bool:
    return isinstance(value, Stage) and value.name == name


def _own(spec: str, where: str) -> Stage[Any]:
    """A stage of the user's."""
    place, _, attribute = spec.rpartition(":")
    module = _file(place, where) if place.endswith(".py") else _module(place, where)
    stage = getattr(module, attribute, None)
    if not isinstance(stage, Stage):
        named = [name for name, value in vars(module).items() if isinstance(value, Stage)]
        cure = nearest(attribute, named) if named else "decorate a function with @stage"
        raise ConfigError(f"{place} has no stage {attribute!r}", where=where, cure=cure)
    return stage


def _module(name: str, where: str) -> ModuleType:
    try:
        return import_module(name)
    except Exception as error:  # its own code may do anything
        raise ConfigError(
            f"cannot import {name}: {type(error).__name__}: {error}",
            where=where,
            cure="install it, or name the file: FILE.py:NAME",
        ) from error


def _file(place: str, where: str) -> ModuleType:
    try:
        return load_file(Path(place))
    except ConfigError as error:
        error.where = error.where or where
        raise
