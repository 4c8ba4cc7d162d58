"""What a stage reads: found by the roles of its settings, the same for a run's identity and for an
artifact's digest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.core.errors import ConfigError
from posttrain.core.files import sha256_input
from posttrain.core.plugins import is_plugin, plugin_file
from posttrain.core.settings import (
    REWARD,
    ExecutionOnly,
    Leaf,
    ReadsFile,
    ReadsModel,
    ReadsRows,
    ReadsScorer,
    Settings,
    identifying,
    with_role,
)
from posttrain.data.settings import Source
from posttrain.data.sources import digests, on_hub


@dataclass(frozen=True)
class Inputs:
    """Everything that a stage's result depends on, besides its code. All values are JSON.

    Content counts and not where it lies: the same files elsewhere, or under another spelling of
    their path, are the same inputs.

    Attributes:
        settings: those that count.
        models: setting → digest of the model, or of the stage that makes it.
        data: setting and name in its source, as `data.jsonl` → digest of the rows.
        files: setting → digest of the file.
        paths: key of `data` → path or hub id. To be read by people, no part of what is compared.
    """

    settings: dict[str, Any]
    models: dict[str, str]
    data: dict[str, str]
    files: dict[str, str]
    paths: dict[str, str] = field(default_factory=dict, compare=False)

    def identity(self) -> dict[str, Any]:
        """As `run.json` has it."""
        return {
            "settings": self.settings,
            "models_sha256": self.models,
            "data_sha256": self.data,
            "files_sha256": self.files,
        }


NOTHING = Inputs({}, {}, {}, {})


def models(settings: Settings) -> Iterator[tuple[Leaf, str]]:
    """Every model that the settings name, by its setting; scorers that are models among them."""
    for leaf in with_role(type(settings), ReadsModel, ReadsScorer):
        value = leaf.value(settings)
        if leaf.has(ReadsModel) and value:
            yield leaf, value
        elif leaf.has(ReadsScorer) and value and value.startswith(REWARD):
            yield leaf, value.removeprefix(REWARD)


def sources(settings: Settings) -> Iterator[tuple[Leaf, Source]]:
    """Every source of rows in the settings, by its setting."""
    for leaf in with_role(type(settings), ReadsRows):
        for source in leaf.value(settings) or ():
            yield leaf, source


def files(settings: Settings) -> Iterator[tuple[Leaf, Path]]:
    """Every other file that the settings name; the code of scorers among them."""
    for leaf in with_role(type(settings), ReadsFile, ReadsScorer):
        value = leaf.value(settings)
        if leaf.has(ReadsFile) and value is not None:
            yield leaf, Path(value)
        elif leaf.has(ReadsScorer) and value and is_plugin(value):
            yield leaf, plugin_file(value)


def describe(
    settings: Settings, made: Mapping[str, str] | None = None, feeds: frozenset[str] = frozenset()
) -> Inputs:
    """Inputs of a stage.

    Args:
        made: setting → digest of the earlier stage whose model it names.
        feeds: paths of sources that are rows of earlier stages; these are not read.
    Raises:
        PosttrainError: a model or file is not there; a ConfigError's `option` is the setting.
    """
    fixed = identifying(settings)
    made_by = dict(made or {})
    for leaf, name in models(settings):
        if leaf.has(ReadsScorer):
            fixed[leaf.name] = REWARD.removesuffix(":")
        if leaf.name not in made_by:
            made_by[leaf.name] = _model_digest(leaf, name)
    contents: dict[str, str] = {}
    for leaf, path in files(settings):
        contents[leaf.name] = _file_digest(leaf, path)
        if leaf.has(ReadsScorer):
            fixed[leaf.name] = _without_folder(leaf.value(settings))
    rows: dict[str, str] = {}
    paths: dict[str, str] = {}
    for leaf in with_role(type(settings), ReadsRows):
        for i, source in enumerate(leaf.value(settings) or ()):
            name = leaf.name if i == 0 else f"{leaf.name}-{i + 1}"
            entry = _at(fixed, leaf)[i]
            task = getattr(source, "task", "")
            if is_plugin(task):
                contents[name] = _file_digest(leaf, plugin_file(task))
                entry["task"] = _without_folder(task)
            if source.path in feeds:
                continue
            if not on_hub(source):
                del entry["path"]
            for inner, (path, digest) in digests(source).items():
                rows[name + inner], paths[name + inner] = digest, path
    return Inputs(fixed, made_by, rows, contents, paths)


def _at(fixed: Mapping[str, Any], leaf: Leaf) -> Any:
    """The value of a setting in settings that are JSON."""
    value: Any = fixed
    for part in leaf.path:
        value = value[part]
    return value


def _without_folder(spec: str) -> str:
    """`FILE.py:NAME` without where the file lies: its content is an input of its own."""
    return f"{plugin_file(spec).suffix}:{spec.rpartition(':')[2]}"


def changes(before: Inputs, now: Inputs) -> list[str]:
    """The inputs whose content differs: files by their path, models by their option."""

    def differing(a: Mapping[str, str], b: Mapping[str, str]) -> list[str]:
        return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))

    options = [
        f"what --{name.replace('_', '-')} names"
        for name in (*differing(before.models, now.models), *differing(before.files, now.files))
    ]
    paths = {**before.paths, **now.paths}
    return [*(paths.get(name, name) for name in differing(before.data, now.data)), *options]


def execution(settings: Settings) -> dict[str, Any]:
    """Settings that are no part of the identity, as JSON."""
    values = {leaf.name: leaf.value(settings) for leaf in _executing(settings)}
    return json.loads(json.dumps(values, default=str))


def rounding(settings: Settings) -> list[str]:
    """Names of those of them that change results by rounding."""
    return [
        leaf.name
        for leaf in _executing(settings)
        if any(isinstance(role, ExecutionOnly) and role.rounding for role in leaf.roles)
    ]


def ignored(settings: Settings, began: Mapping[str, Any]) -> list[str]:
    """Options that a finished run ignores: of how it is executed, those that differ.

    Args:
        began: `execution` of the run when it began.
    """
    options: list[str] = []
    now = execution(settings)
    for leaf in _executing(settings):
        value = now[leaf.name]
        if leaf.name in began and began[leaf.name] != value:
            shown = " ".join(map(str, value)) if isinstance(value, list) else value
            options.append(f"{leaf.option} {'unset' if shown in (None, '') else shown}")
    return options


def _executing(settings: Settings) -> list[Leaf]:
    return with_role(type(settings), ExecutionOnly)


def _model_digest(leaf: Leaf, name: str) -> str:
    from posttrain.engine.load import digest, resolve  # torch, which help does without

    unread = any(isinstance(role, ReadsModel) and not role.weights for role in leaf.roles)
    return digest(resolve(name), weights=not unread)


def _file_digest(leaf: Leaf, path: Path) -> str:
    try:
        return sha256_input(path)
    except OSError as error:
        raise ConfigError(
            f"cannot read {leaf.option} {path}: {error.strerror}",
            cure="check the path",
            option=leaf.name,
        ) from None
