"""Recipes: a graph of stages in strict YAML.

    name: support
    stages:
      adapt: {model: models/base, data: manual.txt, replay: general.jsonl}
      sft:   {model: adapt, data: train.jsonl, learning_rate: 1e-4}
      check: {stage: eval, model: sft, against: adapt, exact: held-out.jsonl}

A stage is of the kind it is named after, or of `stage:`. What follows are its options, as on the
command line, with underscores.
`model: adapt` is what the stage of that name made; any other text is a folder or hub id. `data:
    pairs` are the rows that the
stage of that name made. `${NAME}` is an environment variable.
Paths are relative to where the command is run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import TypeAdapter

from posttrain.core.errors import ConfigError, nearest
from posttrain.core.settings import Leaf, Settings, assemble, leaves
from posttrain.data.settings import Source
from posttrain.pipeline.kinds import KINDS, Kind, kind

_NAME = re.compile(r"[A-Za-z0-9][\w-]*", re.ASCII)
_VARIABLE = re.compile(r"\$\{(\w+)\}")
HERE = "a recipe"  # where a recipe is that no file holds
PENDING = "pending"  # stands for the folder of a stage until it is known


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe.

    Attributes:
        name: unique in the recipe. kind: what it does.
        settings: checked; `out` is not known yet, and models made by other stages are named by
            their stage.
        parents: setting → the earlier stage whose model it is.
        rows: setting → the earlier stages whose rows it reads; the path of such a source is the
            stage's name.
        where: `file:line`.
    """

    name: str
    kind_name: str
    settings: Settings
    parents: dict[str, str]
    where: str
    rows: dict[str, tuple[str, ...]]

    @property
    def kind(self) -> Kind:
        return KINDS[self.kind_name]

    @property
    def feeds(self) -> tuple[str, ...]:
        """The stages whose rows it reads."""
        return tuple(dict.fromkeys(name for some in self.rows.values() for name in some))

    @property
    def lineage(self) -> dict[str, str]:
        """Setting → the stage, or the stages, that it is of."""
        return {**self.parents, **{setting: ", ".join(some) for setting, some in self.rows.items()}}


@dataclass(frozen=True)
class Recipe:
    """Stages in an order in which they can run."""

    name: str
    stages: tuple[Stage, ...]


class _Loader(yaml.SafeLoader):
    """Safe YAML; a key that stands twice is an error, and every mapping remembers its lines."""


class _Mapping(dict[Any, Any]):
    lines: dict[Any, int]


def _mapping(loader: _Loader, node: yaml.MappingNode) -> _Mapping:
    out = _Mapping()
    out.lines = {}
    for key_node, value_node in node.value:
        key: Any = loader.construct_object(key_node, deep=True)
        if not isinstance(key, Hashable):
            raise yaml.constructor.ConstructorError(
                None, None, "a key is text", key_node.start_mark
            )
        if key in out:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} stands twice", key_node.start_mark
            )
        out[key] = loader.construct_object(value_node, deep=True)
        out.lines[key] = key_node.start_mark.line + 1
    return out


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
# YAML 1.1 reads 1e-4 as text, and on and off as true and false
_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in some
        if tag not in ("tag:yaml.org,2002:float", "tag:yaml.org,2002:bool")
    ]
    for first, some in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?((\d+\.\d*|\.\d+)([eE][-+]?\d+)?|\d+[eE][-+]?\d+)$"),
    list("-+.0123456789"),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|false|True|False)$"), list("tTfF")
)


def load(recipe: Path | Mapping[str, Any], changes: Iterable[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        recipe: a YAML file, or what it would hold.
        changes: `stage.option=value`, the value in YAML.
    Raises:
        ConfigError: with file and line, what is wrong, and the nearest known name.
    """
    if isinstance(recipe, Path):
        content, file = _read(recipe), str(recipe)
    else:
        content, file = recipe, HERE
    if not isinstance(content, Mapping):
        raise ConfigError(
            "a recipe is a mapping with name and stages",
            where=file,
            cure="see docs/reference/recipes.md",
        )
    if odd := next((key for key in content if key not in ("name", "stages")), None):
        raise ConfigError(
            f"unknown key {odd!r}",
            where=_where(file, content, odd),
            cure=nearest(str(odd), ("name", "stages")),
        )
    name = content.get("name", Path(file).stem if isinstance(recipe, Path) else None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(
            f"name = {name!r}: letters, digits, - and _", where=file, cure="name: my-recipe"
        )
    stages = content.get("stages")
    if not isinstance(stages, Mapping) or not stages:
        raise ConfigError(
            "the recipe has no stages", where=file, cure="stages: {sft: {model: …, data: …}}"
        )
    given = {
        stage: _Copy(body) if isinstance(body, Mapping) else body for stage, body in stages.items()
    }
    for change in changes:
        _change(given, change)
    found: dict[str, Stage] = {}
    for stage, body in given.items():
        found[stage] = _stage(stage, body, found, given, _where(file, stages, stage), file)
    return Recipe(name, tuple(found.values()))


class _Copy(dict[Any, Any]):
    """A stage's mapping that may be changed, with the lines it had."""

    def __init__(self, body: Mapping[Any, Any]) -> None:
        super().__init__(body)
        self.lines = dict(getattr(body, "lines", {}))


def _read(path: Path) -> Any:
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise ConfigError(
            f"cannot read the recipe {path}: {error.strerror}", cure="check the path"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"the recipe {path} is not UTF-8", cure="convert it") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        what = getattr(error, "problem", None) or "cannot be read"
        raise ConfigError(f"not YAML: {what}", where=where, cure="correct the line") from None


def _where(file: str, mapping: Mapping[Any, Any], key: Any) -> str:
    line = getattr(mapping, "lines", {}).get(key)
    return f"{file}:{line}" if line and file != HERE else file


def _change(stages: dict[str, Any], change: str) -> None:
    target, sign, value = change.partition("=")
    stage, dot, option = target.partition(".")
    if not sign or not dot:
        raise ConfigError(
            f"--set {change!r} is not STAGE.OPTION=VALUE", cure="write --set sft.learning_rate=1e-4"
        )
    if not isinstance(stages.get(stage), dict):
        raise ConfigError(
            f"--set {change!r}: there is no stage {stage!r}", cure=nearest(stage, stages)
        )
    try:
        stages[stage][option] = yaml.load(value, _Loader)
    except yaml.YAMLError:
        raise ConfigError(
            f"--set {change!r}: the value is not YAML", cure="put text with signs in quotes"
        ) from None


def _stage(
    name: Any, body: Any, before: dict[str, Stage], every: Mapping[Any, Any], where: str, file: str
) -> Stage:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(
            f"a stage cannot be named {name!r}", where=where, cure="letters, digits, - and _"
        )
    if not isinstance(body, dict):
        raise ConfigError(
            f"the stage {name!r} has no options", where=where, cure=f"{name}: {{model: …, data: …}}"
        )
    kind_name = body.get("stage", name)
    one = kind(str(kind_name), _where(file, body, "stage") if "stage" in body else where)
    known = {leaf.name: leaf for leaf in leaves(one.model) if leaf.name != "out"}
    flat: dict[str, Any] = {}
    parents: dict[str, str] = {}
    for key, value in body.items():
        if key == "stage":
            continue
        at = _where(file, body, key)
        if key not in known:
            raise ConfigError(
                f"{kind_name} has no option {key!r}", where=at, cure=nearest(str(key), known)
            )
        value = _expanded(value, at)
        if key in one.models and isinstance(value, str) and value in every:
            if value not in before:
                raise ConfigError(
                    f"{name} starts from the stage {value!r}, which does not come before it",
                    where=at,
                    cure="put that stage first; a folder of that name is ./NAME",
                )
            if not before[value].kind.makes_model:
                raise ConfigError(
                    f"the stage {value!r} makes no model",
                    where=at,
                    cure="name a stage that trains one",
                )
            parents[key] = value
        # one file may stand for a list of one
        several = "tuple" in str(known[key].field.annotation) and not isinstance(
            value, (list, tuple)
        )
        flat[key] = [value] if several else value
    try:
        settings = assemble(one.model, {**flat, "out": PENDING})
    except ConfigError as error:
        key = next((k for k, v in body.items() if _about(error.what, str(k), v)), None)
        error.where = error.where or (_where(file, body, key) if key else where)
        raise
    return Stage(
        name,
        str(kind_name),
        settings,
        parents,
        where,
        _rows(name, body, settings, before, every, file, where),
    )


def _rows(
    name: str,
    body: dict[str, Any],
    settings: Settings,
    before: dict[str, Stage],
    every: Mapping[Any, Any],
    file: str,
    where: str,
) -> dict[str, tuple[str, ...]]:
    """Setting → the earlier stages whose rows it reads.

    Raises:
        ConfigError: a stage that does not come before it, or makes no rows.
    """
    found: dict[str, tuple[str, ...]] = {}
    for leaf in leaves(type(settings)):
        given: Any = settings
        for part in leaf.path:
            given = getattr(given, part, None)
        some = (
            [one.path for one in given if isinstance(one, Source) and one.path in every]
            if isinstance(given, tuple)
            else []
        )
        at = _where(file, body, leaf.name) if leaf.name in body else where
        for named in dict.fromkeys(some):
            if named in before and before[named].kind.makes_rows:
                found[leaf.name] = (*found.get(leaf.name, ()), named)
            elif os.path.exists(named):  # a file or folder that happens to have a stage's name
                continue
            elif named in before:
                raise ConfigError(
                    f"the stage {named!r} makes no rows",
                    where=at,
                    cure=(
                        f"name one of {', '.join(n for n, one in KINDS.items() if one.makes_rows)},"
                        " or a file"
                    ),
                )
            else:
                raise ConfigError(
                    f"{name} reads the rows of the stage {named!r}, which does not come before it",
                    where=at,
                    cure="put that stage first; a file of that name is ./NAME",
                )
    return found


def _about(what: str, key: str, value: Any) -> bool:
    """Whether a message is of an option: it begins with its name, or with the file that it
    reads.
    """
    some = [
        one.get("path") if isinstance(one, dict) else one
        for one in (value if isinstance(value, list) else [value])
    ]
    return re.match(rf"{re.escape(key)}\b", what) is not None or any(
        isinstance(one, str) and one != "" and what.startswith((repr(one), one)) for one in some
    )


def _expanded(value: Any, where: str) -> Any:
    """Environment variables in texts, at any depth."""
    if isinstance(value, str):

        def replace(match: re.Match[str]) -> str:
            if match[1] not in os.environ:
                raise ConfigError(
                    f"the environment has no variable {match[1]}",
                    where=where,
                    cure=f"export {match[1]}=…",
                )
            return os.environ[match[1]]

        return _VARIABLE.sub(replace, value)
    if isinstance(value, list):
        return [_expanded(one, where) for one in value]
    if isinstance(value, dict):
        return {key: _expanded(one, where) for key, one in value.items()}
    return value


def schema() -> dict[str, Any]:
    """JSON schema of recipes, for editors."""
    kinds = []
    for name, one in KINDS.items():
        properties: dict[str, Any] = {"stage": {"const": name}}
        required = []
        for leaf in leaves(one.model):
            if leaf.name == "out":
                continue
            properties[leaf.name] = _property(leaf)
            if leaf.field.is_required() and not leaf.switch:
                required.append(leaf.name)
        kinds.append(
            {
                "title": name,
                "type": "object",
                "properties": properties,
                "required": required,
                "additionalProperties": False,
            }
        )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "posttrain recipe",
        "type": "object",
        "additionalProperties": False,
        "required": ["stages"],
        "properties": {
            "name": {
                "type": "string",
                "pattern": f"^{_NAME.pattern}$",
                "description": (
                    "the run's folder is runs/NAME; unset: the file's name without its ending"
                ),
            },
            "stages": {
                "type": "object",
                "minProperties": 1,
                "description": "name → stage, in an order in which they can run",
                "properties": {name: kinds[i] for i, name in enumerate(KINDS)},
                "additionalProperties": {"anyOf": kinds},
            },
        },
    }


def _property(leaf: Leaf) -> dict[str, Any]:
    """The schema of one option; a list of files may be one file, and a file is text or its
    parts.
    """
    field = leaf.field
    annotation: Any = field.annotation
    if leaf.switch:
        value: dict[str, Any] = {"type": "boolean"}
    elif "Source" in str(annotation):
        one = {"type": ["string", "object"]}
        value = {"anyOf": [one, {"type": "array", "items": one}]}
    else:
        limited: Any = Annotated  # a type made from values: what a checker of types cannot follow
        value = TypeAdapter(
            limited[(annotation, *field.metadata)] if field.metadata else annotation
        ).json_schema()
        if "items" in value:
            value = {"anyOf": [value, value["items"]]}
    unset = (
        leaf.switch
        or field.is_required()
        or field.get_default(call_default_factory=True) in (None, "", (), {})
    )
    default = {} if unset else {"default": field.get_default(call_default_factory=True)}
    return {**value, **default, "description": field.description or ""}
