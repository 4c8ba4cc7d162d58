"""Recipes: a graph of stages in strict YAML 1.2.

    name: support
    stages:
      adapt: {model: models/base, data: manual.txt, replay: general.jsonl}
      sft:   {model: adapt, data: train.jsonl, learning_rate: 1e-4}
      check: {stage: eval, model: sft, against: adapt, exact: held-out.jsonl}

A stage is of the kind it is named after, or of `stage:`, which may also be a user's own
(`FILE.py:NAME`). What follows are its options, as on the command line, with underscores.
`model: adapt` is what the stage of that name made; any other text is a folder or hub id.
`data: pairs` are the rows that the stage of that name made, `data: pairs.best` those of its output
of that name. `${NAME}` is an environment variable. Paths are relative to where the command is run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from posttrain.core import limits, peers
from posttrain.core.errors import ConfigError, nearest
from posttrain.core.limits import RAISE, limit
from posttrain.core.settings import (
    DEEPEST,
    Destination,
    ReadsModel,
    Settings,
    assemble,
    options,
    too_deep,
    with_role,
)
from posttrain.data.readers import READERS, suffix_of
from posttrain.stages import inputs, registry
from posttrain.stages.stage import Stage as Kind
from posttrain.stages.stage import kind_of

NAME = re.compile(r"[A-Za-z0-9][\w-]*", re.ASCII)
_VARIABLE = re.compile(r"\$\{(\w+)\}")
NO_FILE = "a recipe"  # stands for the file of a recipe that was given as a mapping
PENDING = "pending"  # stands for the folder of a stage until it is known


@dataclass(frozen=True)
class Reference:
    """An output of an earlier stage: `pairs`, or `pairs.best`.

    Attributes:
        text: as the recipe has it. stage, output: names. path: in the stage's folder.
    """

    text: str
    stage: str
    output: str
    path: str


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe.

    Attributes:
        name: unique in the recipe. kind: what it does. spec: how the recipe names the kind.
        settings: checked; `out` is not known yet, and what other stages make is named as the recipe
            names it.
        models: setting → the earlier output that is its model.
        rows: setting → the earlier outputs whose rows it reads; the path of such a source is the
            reference's text.
        where: `file:line`. lines: option → `file:line`.
    """

    name: str
    kind: Kind[Any]
    spec: str
    settings: Settings
    models: dict[str, Reference]
    rows: dict[str, tuple[Reference, ...]]
    where: str
    lines: dict[str, str]

    @property
    def outputs(self) -> dict[str, str]:
        return self.kind.outputs(self.settings)

    @property
    def feeds(self) -> dict[str, Reference]:
        """The references whose rows it reads, by text."""
        return {reference.text: reference for group in self.rows.values() for reference in group}

    @property
    def lineage(self) -> dict[str, str]:
        """Setting → the output, or the outputs, that it is of."""
        models = {setting: reference.text for setting, reference in self.models.items()}
        rows = {
            setting: ", ".join(reference.text for reference in group)
            for setting, group in self.rows.items()
        }
        return {**models, **rows}

    def at(self, option: str) -> str:
        """`file:line` of an option, or of the stage."""
        return self.lines.get(option, self.where)


@dataclass(frozen=True)
class Recipe:
    """Stages in an order in which they can run."""

    name: str
    stages: tuple[Stage, ...]


class _Loader(yaml.SafeLoader):
    """Safe YAML; a key that stands twice is an error, and every mapping remembers its lines.

    What stands behind an alias counts wherever the alias stands: aliases of aliases are few bytes
    and more values than any memory holds.

    Attributes:
        at: the last key whose value was read.
    """

    at: Any = None

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _check_size(node, {})
        return node


def _check_size(node: yaml.Node, sizes: dict[int, int], depth: int = 0) -> int:
    """The values of a node, aliases resolved; a long text counts for one in a hundred characters.

    Args:
        sizes: those that are known, by the node's id; 0 while they are counted.
    """
    size = sizes.get(id(node))
    if size is None:
        sizes[id(node)] = 0
        inside: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            inside = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            inside = node.value
        long = len(node.value) // 100 if isinstance(node, yaml.ScalarNode) else 0
        size = 1 + long + sum(_check_size(part, sizes, depth + 1) for part in inside)
        sizes[id(node)] = size
    most, deepest = limit(limits.RECIPE_VALUES), limit(limits.DEPTH)
    problem = ""
    if size == 0:
        problem = "a value that holds itself"
    elif size > most:
        problem = f"more than {most:,} values, with what stands behind aliases ({RAISE})"
    elif depth > deepest:
        problem = f"values are nested more than {deepest} deep"
    if problem:
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    return size


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
        loader.at = key_node.start_mark
        out[key] = loader.construct_object(value_node, deep=True)
        out.lines[key] = key_node.start_mark.line + 1
    return out


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
# The core schema of YAML 1.2 (10.3.2): what plain text is, by its first letter. PyYAML's is that of
# YAML 1.1, where 010 is 8, 1:30:00 is 5400, 1e-4 is text, and on and off are true and false.
_CORE = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}


def _number(text: str) -> int:
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text[2:] if base != 10 else text, base)


_VALUES: dict[str, Callable[[str], Any]] = {
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": _number,
    "float": lambda text: float(re.sub(r"\.(?=[inIN])", "", text)),
}


def _scalar(kind: str) -> Callable[[_Loader, yaml.ScalarNode], Any]:
    """What makes a value of one kind of the core schema, also where a tag such as !!int asks."""
    pattern = re.compile(_CORE[kind][0])

    def construct(loader: _Loader, node: yaml.ScalarNode) -> Any:
        text = str(loader.construct_scalar(node))
        try:
            if pattern.fullmatch(text):
                return _VALUES[kind](text)
        except ValueError:
            pass  # Python reads no number of thousands of digits
        problem = f"{text[:40]!r} is no {kind} of YAML 1.2"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)

    return construct


_Loader.yaml_implicit_resolvers = {}
for _kind, (_text, _first) in _CORE.items():
    _tag = f"tag:yaml.org,2002:{_kind}"
    _Loader.add_implicit_resolver(_tag, re.compile(f"^({_text})$"), _first)
    _Loader.add_constructor(_tag, _scalar(_kind))


def _parsed(text: str) -> Any:
    """The value that YAML says.

    Raises:
        yaml.YAMLError: it is no YAML, or holds what cannot be read; with the line.
    """
    loader = None
    try:
        loader = _Loader(text)  # which reads the first characters
        return loader.get_single_data()
    except RecursionError:
        raise yaml.constructor.ConstructorError(
            None, None, "values are nested too deep", loader and loader.get_mark()
        ) from None
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        # what PyYAML's own constructors say of what they cannot read
        raise yaml.constructor.ConstructorError(
            None, None, f"a value cannot be read: {error}", loader and loader.at
        ) from None


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
        content, file = recipe, NO_FILE
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
            cure=peers.cure(
                str(odd), ("name", "stages"), elsewhere="an option of a stage: see `stages`"
            ),
        )
    name = content.get("name", Path(file).stem if isinstance(recipe, Path) else None)
    if not isinstance(name, str) or not NAME.fullmatch(name):
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
    checked: dict[str, Stage] = {}
    for stage, body in given.items():
        checked[stage] = _stage(stage, body, checked, given, _where(file, stages, stage), file)
    return Recipe(name, tuple(checked.values()))


class _Copy(dict[Any, Any]):
    """A stage's mapping that may be changed, with the lines it had."""

    def __init__(self, body: Mapping[Any, Any]) -> None:
        super().__init__(body)
        self.lines = dict(getattr(body, "lines", {}))


def _read(path: Path) -> Any:
    most = limit(limits.RECIPE)
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(most + 1)
        if len(text) > most:
            raise ConfigError(
                f"the recipe has more than {most:,} characters", where=f"{path}:1", cure=RAISE
            )
        return _parsed(text)
    except OSError as error:
        raise ConfigError(
            f"cannot read the recipe {path}: {error.strerror}", cure="check the path"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"the recipe {path} is not UTF-8", cure="convert it") from None
    except RecursionError:
        raise ConfigError(
            "not YAML: values are nested too deep", where=str(path), cure="write it flat"
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        what = getattr(error, "problem", None) or "cannot be read"
        raise ConfigError(f"not YAML: {what}", where=where, cure="correct the line") from None


def _where(file: str, mapping: Mapping[Any, Any], key: Any) -> str:
    line = getattr(mapping, "lines", {}).get(key)
    return f"{file}:{line}" if line and file != NO_FILE else file


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
        stages[stage][option] = _parsed(value)
    except yaml.YAMLError as error:
        why = getattr(error, "problem", None) or "it cannot be read"
        raise ConfigError(
            f"--set {target}: the value is not YAML: {why}", cure="put text with signs in quotes"
        ) from None


def _stage(
    name: Any, body: Any, before: dict[str, Stage], every: Mapping[Any, Any], where: str, file: str
) -> Stage:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ConfigError(
            f"a stage cannot be named {name!r}", where=where, cure="letters, digits, - and _"
        )
    if not isinstance(body, dict):
        raise ConfigError(
            f"the stage {name!r} has no options", where=where, cure=f"{name}: {{model: …, data: …}}"
        )
    lines = {str(key): _where(file, body, key) for key in body}
    spec = str(body.get("stage", name))
    kind = registry.find(spec, lines.get("stage", where))
    known = options(kind.settings)
    flat: dict[str, Any] = {}
    for key, value in body.items():
        if key == "stage":
            continue
        if key not in known:
            raise ConfigError(
                f"{spec} has no option {key!r}",
                where=lines[str(key)],
                cure=peers.cure(str(key), known, otherwise=f"it has {', '.join(known)}"),
            )
        if too_deep(value):  # a list that holds itself is, too
            raise ConfigError(
                f"{key} holds brackets in brackets, more than {DEEPEST} deep",
                where=lines[key],
                cure="write it flat",
            )
        flat[key] = _expanded(value, lines[key])
    scope = Scope(name, before, every)
    models: dict[str, Reference] = {}
    for leaf in with_role(kind.settings, ReadsModel):
        named = flat.get(leaf.name)
        if isinstance(named, str) and (found := scope.find(named, "model", lines[leaf.name])):
            models[leaf.name] = found
    try:
        settings = assemble(kind.settings, {**flat, **_places(kind.settings)})
    except ConfigError as error:
        error.where = error.where or lines.get(error.option, where)
        raise
    rows: dict[str, tuple[Reference, ...]] = {}
    for leaf, source in inputs.sources(settings):
        found = scope.find(source.path, "rows", lines.get(leaf.name, where))
        if found and found not in rows.get(leaf.name, ()):
            rows[leaf.name] = (*rows.get(leaf.name, ()), found)
    return Stage(name, kind, spec, settings, models, rows, where, lines)


def _places(settings: type[Settings]) -> dict[str, str]:
    """Where a stage of a recipe writes is not known yet."""
    return {leaf.name: PENDING for leaf in with_role(settings, Destination) if leaf.name == "out"}


@dataclass(frozen=True)
class Scope:
    """What a stage can refer to.

    Attributes:
        reader: the stage's name. before: the stages that come before it. every: all, by name.
    """

    reader: str
    before: dict[str, Stage]
    every: Mapping[Any, Any]

    def find(self, text: str, kind: str, where: str) -> Reference | None:
        """The output that a text names; None where it is a file, a folder or a hub id.

        Args:
            kind: "model" or "rows".
        Raises:
            ConfigError: a stage that does not come before the reader, or does not make that.
        """
        name, _, output = text.partition(".")
        if name not in self.every or (text not in self.every and self._is_file(name, output)):
            return None
        if name not in self.before:
            if kind == "rows" and os.path.exists(text):
                return None  # a file that happens to have a stage's name
            raise self._too_early(name, kind, where)
        made = {
            each: path for each, path in self.before[name].outputs.items() if kind_of(path) == kind
        }
        if not made and kind == "rows" and os.path.exists(text):
            return None
        if not made:
            raise self._makes_none(name, kind, where)
        chosen = output or next(iter(made))
        if chosen not in made:
            raise ConfigError(
                f"the stage {name!r} makes no {kind} named {chosen!r}",
                where=where,
                cure=nearest(chosen, made),
            )
        return Reference(text, name, chosen, made[chosen])

    def _is_file(self, name: str, output: str) -> bool:
        """Whether NAME.OUTPUT is a file's name: `train.jsonl` beside a stage `train`."""
        if name in self.before and output in self.before[name].outputs:
            return False
        path = Path(f"{name}.{output}")
        return path.exists() or suffix_of(path) in READERS

    def _too_early(self, name: str, kind: str, where: str) -> ConfigError:
        reads, place = (
            ("starts from", "folder") if kind == "model" else ("reads the rows of", "file")
        )
        return ConfigError(
            f"{self.reader} {reads} the stage {name!r}, which does not come before it",
            where=where,
            cure=f"put that stage first; a {place} of that name is ./NAME",
        )

    def _makes_none(self, name: str, kind: str, where: str) -> ConfigError:
        others = [
            other
            for other, stage in self.before.items()
            if any(kind_of(path) == kind for path in stage.outputs.values())
        ]
        known = f"name one of {', '.join(others)}, or " if others else "give "
        return ConfigError(
            f"the stage {name!r} makes no {kind}",
            where=where,
            cure=known + ("a folder or hub id" if kind == "model" else "a file"),
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
