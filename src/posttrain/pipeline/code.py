"""The version of the code a stage runs: a digest of the package's own sources that it imports."""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def digest(module: str) -> str:
    """SHA-256 over the source of a module and of all modules of this package that it imports, at
    any depth.
    """
    seen: set[str] = set()
    todo = [module]
    while todo:
        one = todo.pop()
        if one not in seen and _file(one) is not None:
            seen.add(one)
            todo += _imports(one)
    hashed = hashlib.sha256()
    for one in sorted(seen):
        hashed.update(one.encode() + b"\0" + hashlib.sha256(_source(one)).digest())
    return hashed.hexdigest()


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
    found: set[str] = set()
    for node in ast.walk(ast.parse(_source(module))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return tuple(sorted(found))
