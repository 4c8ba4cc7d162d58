"""The version of the code a stage runs: a digest of the package's own sources that it imports.

Left out is what only shows: changing how a run looks makes no artifact again.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from functools import cache
from pathlib import Path
from typing import Any

from posttrain.stages.stage import Stage

ROOT = Path(__file__).resolve().parents[1]
# floors and modules that only show: results do not depend on them
SHOWS = ("cli", "report", "core.console", "core.curve", "core.events", "core.sinks")


def of_stage(stage: Stage[Any]) -> str:
    """Digest of the code of a stage, a user's own included."""
    module = stage.function.__module__
    if _file(module) is not None:
        return digest(module)
    source = Path(sys.modules[module].__file__ or "").read_bytes()
    hashed = hashlib.sha256(source)
    for name in _names(source):
        if _file(name) is not None and not _shows(name):
            hashed.update(digest(name).encode())
    return hashed.hexdigest()


def digest(module: str) -> str:
    """SHA-256 over the source of a module and of all modules of this package that it imports, at
    any depth, but for those that only show.
    """
    seen: set[str] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        if name not in seen and not _shows(name) and _file(name) is not None:
            seen.add(name)
            todo += _imports(name)
    hashed = hashlib.sha256()
    for name in sorted(seen):
        hashed.update(name.encode() + b"\0" + hashlib.sha256(_source(name)).digest())
    return hashed.hexdigest()


def _shows(module: str) -> bool:
    name = module.removeprefix(f"{ROOT.name}.")
    return any(name == shown or name.startswith(f"{shown}.") for shown in SHOWS)


def _file(module: str) -> Path | None:
    if module.split(".")[0] != ROOT.name:
        return None
    path = ROOT.joinpath(*module.split(".")[1:])
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


@cache
def _source(module: str) -> bytes:
    path = _file(module)
    assert path is not None
    return path.read_bytes()


@cache
def _imports(module: str) -> tuple[str, ...]:
    return _names(_source(module))


def _names(source: bytes) -> tuple[str, ...]:
    """Every module, and every name of one, that a source imports anywhere."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return tuple(sorted(names))
