"""Settings: small frozen models, composed of groups; flat names for people, nested models for code.

A stage's settings are a pydantic model whose fields are values or groups. On the command line and
in Python every leaf has
one flat name: `learning_rate` for `optimiser.learning_rate`. A group that may be absent puts its
    own name in front:
`lora_rank`; `lora=True`, or any of its fields, brings it in.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from posttrain.core.errors import ConfigError, nearest

S = TypeVar("S", bound="Settings")


class Settings(BaseModel):
    """Base of all settings: frozen, and an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )


@dataclass(frozen=True)
class Leaf:
    """One setting: its flat name, where it lives, and its field.

    A `switch` turns an optional group on.
    """

    name: str
    path: tuple[str, ...]
    field: FieldInfo
    switch: bool = False


def _group(annotation: Any) -> tuple[type[Settings] | None, bool]:
    """The settings class of a field that is a group, and whether the group may be absent."""
    options = (
        typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    )
    for option in options:
        if isinstance(option, type) and issubclass(option, Settings):
            return option, type(None) in options
    return None, False


def leaves(model: type[Settings], path: tuple[str, ...] = (), prefix: str = "") -> Iterator[Leaf]:
    """Every setting of a model, groups opened."""
    for name, field in model.model_fields.items():
        group, optional = _group(field.annotation)
        if group is None:
            yield Leaf(prefix + name, (*path, name), field)
            continue
        if optional:
            yield Leaf(prefix + name, (*path, name), field, switch=True)
        yield from leaves(group, (*path, name), f"{prefix}{name}_" if optional else prefix)


def assemble(model: type[S], flat: Mapping[str, Any]) -> S:
    """Build settings from flat names.

    Raises:
        ConfigError: an unknown name (the nearest known one is named), a missing or an unfit value.
    """
    known = {leaf.name: leaf for leaf in leaves(model)}
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        if name not in known:
            raise ConfigError(f"unknown setting {name!r}", cure=nearest(name, known))
        leaf = known[name]
        if leaf.switch and value not in (None, True, False):
            raise ConfigError(
                f"{name} = {value!r}: it is True or False", cure=f"set its parts by name: {name}_…"
            )
        if (
            leaf.switch
            and value is False
            and (parts := [n for n in flat if n.startswith(f"{name}_")])
        ):
            raise ConfigError(f"{name} is off, but {parts[0]} is set", cure="remove one of them")
        if leaf.switch and not value:
            continue
        *groups, last = leaf.path
        at = nested
        for group in groups:
            at = at.setdefault(group, {})
        if leaf.switch:
            at.setdefault(last, {})
        else:
            at[last] = value
    try:
        return model.model_validate(nested)
    except ValidationError as error:
        first = error.errors()[0]
        where = tuple(str(p) for p in first["loc"])
        leaf = next(
            (x for x in known.values() if where[: len(x.path)] == x.path and not x.switch), None
        )
        name = leaf.name if leaf else ".".join(where)
        if first["type"] == "literal_error" and leaf and isinstance(first["input"], str):
            cure = nearest(first["input"], filter(None, typing.get_args(leaf.field.annotation)))
            raise ConfigError(f"{name} = {first['input']!r}: {first['msg']}", cure=cure) from None
        if first["type"] == "missing" and (leaf is None or where == leaf.path):
            raise ConfigError(
                f"{name} is missing", cure=f"give --{name.replace('_', '-')}"
            ) from None
        raise ConfigError(
            f"{name} = {first['input']!r}: {first['msg']}",
            cure=leaf.field.description if leaf and leaf.field.description else "see --help",
        ) from None
