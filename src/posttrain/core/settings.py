"""Settings: small frozen models, composed of groups; flat names for people, nested models for code.

A stage's settings are a pydantic model whose fields are values or groups. On the command line and
in Python every leaf has one flat name: `learning_rate` for `optimiser.learning_rate`. A group that
may be absent puts its own name in front: `lora_rank`; `lora=True`, or any of its fields, brings it
in.

A role in a field's annotation states what the field means:

    model: Annotated[str, ReadsModel()]
    budget: Annotated[int | None, ExecutionOnly(rounding=True)] = None

A setting that has an effect only beside another says so, and is refused without it:

    patience: Annotated[int | None, Needs("validation")] = None

Identity, plan, recipe, JSON schema and command line read the roles, and nothing else says it.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from posttrain.core import peers
from posttrain.core.errors import ConfigError, nearest

S = TypeVar("S", bound="Settings")
SHOWN = 400  # characters of a value in a message
DEEPEST = 100  # lists and mappings in each other
WIDEST = 63  # bits of a whole number, as arrays and files hold it

# -------------------------------------------------------------------------------------------- roles


@dataclass(frozen=True)
class Role:
    """What a field means to those that read the settings without knowing the stage."""


@dataclass(frozen=True)
class ReadsModel(Role):
    """The field names a model: a folder, a hub id, or an earlier stage of the recipe. Its content
    counts, not where it lies.

    Attributes:
        weights: they are read; not so where only the tokenizer and the configuration are.
    """

    weights: bool = True


@dataclass(frozen=True)
class ReadsRows(Role):
    """The field holds sources of rows: files, data sets, or earlier stages of the recipe."""


@dataclass(frozen=True)
class ReadsFile(Role):
    """The field names a file whose content counts, not where it lies."""


# before the folder of a reward model, in the name of a scorer
REWARD = "reward:"


@dataclass(frozen=True)
class ReadsScorer(Role):
    """The field names a scorer: a built-in one, `reward:FOLDER` (a model) or `FILE.py:NAME`."""


@dataclass(frozen=True)
class Positional(Role):
    """On the command line the field may stand first, without its option."""


@dataclass(frozen=True)
class ExecutionOnly(Role):
    """The field says where and how a stage runs, not what it makes: it is no part of the identity.

    Attributes:
        rounding: it changes results by rounding; a run that goes on with another value says so.
    """

    rounding: bool = False


@dataclass(frozen=True)
class Destination(Role):
    """The field says where results are written. A recipe places them itself."""


@dataclass(frozen=True, init=False)
class Needs(Role):
    """The field has an effect only where another setting is set; given without, it is an error.

    Attributes:
        others: names of settings, of which one is enough.
        value: what it must be; None: anything but off, none and empty.
    """

    others: tuple[str, ...]
    value: str | None

    def __init__(self, *others: str, value: str | None = None) -> None:
        object.__setattr__(self, "others", others)
        object.__setattr__(self, "value", value)


@dataclass(frozen=True)
class Unless(Role):
    """The field has no effect where another setting is set; given beside it, it is an error."""

    other: str


# ----------------------------------------------------------------------------------------- settings


class Settings(BaseModel):
    """Base of all settings: frozen, and an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )

    # names of those that say how long a run is; see `check_longer`
    length: ClassVar[tuple[str, ...]] = ()

    @field_validator("*", mode="before")
    @classmethod
    def _numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false where a number is asked for; pydantic reads them as 1 and 0."""
        annotation = cls.model_fields[info.field_name or ""].annotation
        types_in_it = set(_parts(annotation))
        if types_in_it & {int, float} and not types_in_it & {bool, Any} and _has_boolean(value):
            raise ValueError("true and false are no numbers")
        return value

    @model_validator(mode="after")
    def _effective(self) -> Self:
        """Refuse a setting that was given and has no effect beside the others."""
        known = {leaf.name: leaf for leaf in leaves(type(self))}
        for leaf in known.values():
            for role in leaf.roles:
                if isinstance(role, (Needs, Unless)) and leaf.is_given(self):
                    _check_effect(leaf, role, known, self)
        return self

    @property
    def folder(self) -> Path | None:
        """Where a stage keeps what it makes; None keeps nothing."""
        return getattr(self, "out", None)

    def resolved(self) -> Self:
        """The same settings with defaults filled in that depend on other fields."""
        return self

    def check(self) -> None:
        """Refuse what cannot work, before anything is loaded, hashed or written.

        Raises:
            PosttrainError: settings contradict each other, or name files that cannot be used.
        """

    def check_longer(self, before: Mapping[str, Any]) -> None:
        """Refuse to go on with a run that differs in its length alone.

        Args:
            before: the settings named in `length` that it has.
        Raises:
            PosttrainError: it cannot become a run of this length.
        """


def _parts(annotation: Any) -> Iterator[Any]:
    """The types that an annotation is made of."""
    yield annotation
    for part in typing.get_args(annotation):
        yield from _parts(part)


def _has_boolean(value: Any) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return any(_has_boolean(element) for element in value)
    return isinstance(value, bool)


@dataclass(frozen=True)
class Leaf:
    """One setting: its flat name, where it lives, its field, and its roles.

    Roles of a group are those of all its leaves. A `switch` turns an optional group on.
    """

    name: str
    path: tuple[str, ...]
    field: FieldInfo
    roles: tuple[Role, ...] = ()
    switch: bool = False

    @property
    def option(self) -> str:
        """As one types it on the command line."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def several(self) -> bool:
        """Whether it takes any number of values."""
        arguments = typing.get_args(self.field.annotation)
        return typing.get_origin(self.field.annotation) is tuple and arguments[-1] is Ellipsis

    def has(self, *kinds: type[Role]) -> bool:
        return any(isinstance(role, kinds) for role in self.roles)

    def value(self, settings: Settings) -> Any:
        """What the settings say; None where its group is absent."""
        value: Any = settings
        for part in self.path:
            value = getattr(value, part, None)
        return value

    def is_given(self, settings: Settings) -> bool:
        """Whether it was asked for: given, and neither none nor off."""
        value: Any = settings
        for part in self.path:
            if not isinstance(value, Settings) or part not in value.model_fields_set:
                return False
            value = getattr(value, part)
        return bool(value)

    @property
    def adapter(self) -> TypeAdapter[Any]:
        """Parses one value of this setting, and knows its JSON schema."""
        limited: Any = Annotated  # a type made from values: what a checker of types cannot follow
        annotation: Any = self.field.annotation
        metadata = self.field.metadata
        return TypeAdapter(limited[(annotation, *metadata)] if metadata else annotation)


def _check_effect(
    leaf: Leaf, role: Needs | Unless, known: Mapping[str, Leaf], settings: Settings
) -> None:
    """Raise where a given setting has no effect. What a group does not know, the whole will."""
    if isinstance(role, Unless):
        other = known.get(role.other)
        if other is None or not other.value(settings):
            return
        what, cure = f"beside {other.option}", f"leave {leaf.option} or {other.option} out"
    else:
        others = [known[name] for name in role.others if name in known]
        values = [other.value(settings) for other in others]
        if not others or any(v if role.value is None else v == role.value for v in values):
            return
        asked = " or ".join(other.option for other in others)
        asked += f" {role.value}" if role.value else ""
        what, cure = f"without {asked}", f"give {asked}, or leave {leaf.option} out"
    raise ConfigError(f"{leaf.option} has no effect {what}", cure=cure, option=leaf.name)


def _group(annotation: Any) -> tuple[type[Settings] | None, bool]:
    """The settings class of a field that is a group, and whether the group may be absent."""
    options = (
        typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    )
    for option in options:
        if isinstance(option, type) and issubclass(option, Settings):
            return option, type(None) in options
    return None, False


def _roles(field: FieldInfo) -> tuple[Role, ...]:
    return tuple(item for item in field.metadata if isinstance(item, Role))


def leaves(
    model: type[Settings],
    path: tuple[str, ...] = (),
    prefix: str = "",
    roles: tuple[Role, ...] = (),
) -> Iterator[Leaf]:
    """Every setting of a model, groups opened."""
    for name, field in model.model_fields.items():
        group, optional = _group(field.annotation)
        every = (*roles, *_roles(field))
        if group is None:
            yield Leaf(prefix + name, (*path, name), field, every)
            continue
        if optional:
            yield Leaf(prefix + name, (*path, name), field, every, switch=True)
        inner = f"{prefix}{name}_" if optional else prefix
        yield from leaves(group, (*path, name), inner, every)


def with_role(model: type[Settings], *kinds: type[Role]) -> list[Leaf]:
    """The settings that have one of these roles."""
    return [leaf for leaf in leaves(model) if leaf.has(*kinds) and not leaf.switch]


def options(model: type[Settings]) -> dict[str, Leaf]:
    """The settings that a recipe may give, by name: all but where results are written."""
    return {leaf.name: leaf for leaf in leaves(model) if not leaf.has(Destination)}


NOT_IDENTITY = (ExecutionOnly, Destination, ReadsModel, ReadsFile)


def identifying(settings: Settings) -> dict[str, Any]:
    """The settings that the result depends on, as JSON. Models and files are left out: their
    content is the identity, and not their names.
    """
    return settings.model_dump(mode="json", exclude=_unidentifying(type(settings)))


def _unidentifying(model: type[Settings]) -> dict[str, Any]:
    """Fields to leave out, as pydantic's `exclude` takes them."""
    exclude: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        group, _ = _group(field.annotation)
        if any(isinstance(role, NOT_IDENTITY) for role in _roles(field)):
            exclude[name] = True
        elif group is not None and (inner := _unidentifying(group)):
            exclude[name] = inner
    return exclude


def choices(annotation: Any) -> list[str]:
    """The texts that a `Literal`, or a union with one, allows."""
    if typing.get_origin(annotation) is typing.Literal:
        return [value for value in typing.get_args(annotation) if value]
    return [text for part in typing.get_args(annotation) for text in choices(part)]


# --------------------------------------------------------------------------------------- flat names


def assemble(model: type[S], flat: Mapping[str, Any]) -> S:
    """Build settings from flat names. One value stands for a list of one, and a path for the name
    of a model.

    Raises:
        ConfigError: an unknown name (the nearest known one is named), a missing or an unfit value;
            its `option` is the name.
    """
    known = {leaf.name: leaf for leaf in leaves(model)}
    given: dict[str, Any] = {}
    for name, value in flat.items():
        if name not in known:
            cure = peers.cure(name, known)
            raise ConfigError(f"unknown setting {name!r}", cure=cure, option=name)
        leaf = known[name]
        if too_deep(value):
            raise ConfigError(
                f"{name} holds brackets in brackets, more than {DEEPEST} deep",
                cure="write it flat",
                option=name,
            )
        _check_plain(leaf, value)
        if leaf.several and not isinstance(value, (list, tuple)):
            value = (value,)
        if leaf.has(ReadsModel) and isinstance(value, Path):
            value = str(value)
        given[name] = value
    try:
        settings = model.model_validate(_nested(known, given))
    except ValidationError as error:
        raise _explained(known, error) from None
    except ConfigError as error:
        error.option = _refused(known, given, error) or error.option
        raise
    for leaf in known.values():
        if isinstance(number := leaf.value(settings), int):
            _check_whole(leaf, number)
    return settings


def too_deep(value: Any, left: int = DEEPEST) -> bool:
    """Whether lists and mappings stand in each other more than `DEEPEST` deep, or in themselves."""
    if not isinstance(value, list | tuple | Mapping):
        return False
    parts = value.values() if isinstance(value, Mapping) else value
    return left == 0 or any(too_deep(part, left - 1) for part in parts)


def _check_whole(leaf: Leaf, number: int) -> None:
    if number.bit_length() > WIDEST:
        raise ConfigError(
            f"{leaf.name} is a whole number of {number.bit_length()} bits; the most is {WIDEST}",
            cure="give a smaller one",
            option=leaf.name,
        )


def _check_plain(leaf: Leaf, value: Any) -> None:
    """Refuse what is no text or number that could be written down: a NUL, which no name of a file
    can have, half a character, as the system hands on bytes that are not UTF-8, and numbers that no
    file holds; at any depth.
    """
    if isinstance(value, int):
        _check_whole(leaf, value)
    elif isinstance(value, str | Path):
        text = str(value)
        if "\0" in text:
            raise ConfigError(
                f"{leaf.name} = {text[:80]!r} holds a NUL character",
                cure="remove it",
                option=leaf.name,
            )
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ConfigError(
                f"{leaf.name} = {text[:80]!r} is not UTF-8",
                cure="rename the file, or write the option in UTF-8",
                option=leaf.name,
            ) from None
    elif isinstance(value, bytes | bytearray | set | frozenset):
        raise ConfigError(
            f"{leaf.name} holds {type(value).__name__}, which is no text, number, list or mapping",
            cure="write text",
            option=leaf.name,
        )
    elif isinstance(value, list | tuple):
        for part in value:
            _check_plain(leaf, part)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            _check_plain(leaf, key)
            _check_plain(leaf, part)


def _nested(known: dict[str, Leaf], flat: dict[str, Any]) -> dict[str, Any]:
    """Flat names as the mapping of groups that pydantic takes; switches open their groups."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        leaf = known[name]
        if leaf.switch:
            _check_switch(name, value, flat)
            if not value:
                continue
        *groups, last = leaf.path
        at = nested
        for group in groups:
            at = at.setdefault(group, {})
        if leaf.switch:
            at.setdefault(last, {})
        else:
            at[last] = value
    return nested


def _check_switch(name: str, value: Any, flat: dict[str, Any]) -> None:
    if value not in (None, True, False):
        raise ConfigError(
            f"{name} = {value!r}: it is True or False",
            cure=f"set its parts by name: {name}_…",
            option=name,
        )
    parts = [other for other in flat if other.startswith(f"{name}_")]
    if value is False and parts:
        raise ConfigError(
            f"{name} is off, but {parts[0]} is set", cure="remove one of them", option=name
        )


def _refused(known: dict[str, Leaf], flat: dict[str, Any], error: ConfigError) -> str:
    """The setting whose own validator raised an error; empty where none does alone."""
    for name, value in flat.items():
        try:
            if not known[name].switch:
                known[name].adapter.validate_python(value)
        except ConfigError as again:
            if again.what == error.what:
                return name
        except ValidationError:
            continue
    return ""


def _explained(known: dict[str, Leaf], error: ValidationError) -> ConfigError:
    """The first thing that pydantic found wrong, with the setting's name and a cure."""
    first = error.errors()[0]
    where = tuple(str(part) for part in first["loc"])
    leaf = next(
        (x for x in known.values() if where[: len(x.path)] == x.path and not x.switch), None
    )
    name = leaf.name if leaf else ".".join(where)
    if first["type"] == "missing" and (leaf is None or where == leaf.path):
        option = leaf.option if leaf else f"--{name}"
        return ConfigError(f"{name} is missing", cure=f"give {option}", option=name)
    what = f"{name} = {_shown(first['input'])}: {first['msg'].removeprefix('Value error, ')}"
    if first["type"] == "literal_error" and leaf and isinstance(first["input"], str):
        cure = nearest(first["input"], choices(leaf.field.annotation))
        return ConfigError(what, cure=cure, option=name)
    cure = leaf.field.description if leaf and leaf.field.description else "see --help"
    return ConfigError(what, cure=cure, option=name)


def _shown(value: Any) -> str:
    """A value as code, its middle left out where it is long."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]}…{text[-SHOWN // 2 :]}"
