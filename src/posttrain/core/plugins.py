"""Objects of users' own Python files, named `FILE.py:NAME` wherever a name of ours could stand."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from posttrain.core.errors import ConfigError, nearest
from posttrain.core.files import sha256_file


def is_plugin(spec: str) -> bool:
    """Whether a name is of the form `FILE.py:NAME`."""
    path, sign, name = spec.rpartition(":")
    return bool(sign) and path.endswith(".py") and name.isidentifier()


def plugin_file(spec: str) -> Path:
    """The file of `FILE.py:NAME`."""
    return Path(spec.rpartition(":")[0])


def load_plugin(spec: str) -> Any:
    """The object of `FILE.py:NAME`; see `load_file`.

    Raises:
        ConfigError: there is no such file, it cannot be run, or it has no such name.
    """
    path, name = plugin_file(spec), spec.rpartition(":")[2]
    module = load_file(path)
    if not hasattr(module, name):
        names = [known for known in vars(module) if not known.startswith("_")]
        cure = nearest(name, names) if names else "define it there"
        raise ConfigError(f"{path} has no {name!r}", cure=cure)
    return getattr(module, name)


def load_file(path: Path) -> ModuleType:
    """The module of a file, which is run once, and again where it has changed.

    Raises:
        ConfigError: there is no such file, or it cannot be run.
    """
    if not path.is_file():
        raise ConfigError(f"there is no file {path}", cure="check the path")
    return _module(path.resolve(), sha256_file(path))


@lru_cache
def _module(path: Path, digest: str) -> ModuleType:
    """The module of a file with that content."""
    name = f"posttrain_plugin_{digest[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up by its name
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(
            f"the file cannot be run: {type(error).__name__}: {error}",
            where=f"{path}:{_line(error, path)}",
            cure="mend it there",
        ) from error
    return module


def _line(error: Exception, path: Path) -> int:
    """The last line of the file that was running, or that cannot be read."""
    if isinstance(error, SyntaxError):
        return error.lineno or 1
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(path) and frame.lineno is not None
    ]
    return lines[-1] if lines else 1
