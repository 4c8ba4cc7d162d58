"""The tasks that come with the package, and how any task is found by its name. What one of your own
needs can be imported from here.
"""

from __future__ import annotations

import inspect
from pathlib import Path

from posttrain.core.errors import ConfigError, nearest
from posttrain.core.files import sha256_file
from posttrain.core.plugins import is_plugin, load_plugin
from posttrain.evals.metrics import Mean, Ratio, Share, Wins
from posttrain.evals.records import Record, cluster_of
from posttrain.evals.task import REGISTRY, Task, register, task

__all__ = [
    "Mean",
    "Ratio",
    "Record",
    "Share",
    "Task",
    "Wins",
    "cluster_of",
    "find_task",
    "register",
    "task",
    "task_digest",
]


def find_task(spec: str) -> Task:
    """The task of a name.

    Args:
        spec: a registered name, or `FILE.py:NAME`, a task of your own.
    Raises:
        ConfigError: there is none.
    """
    if is_plugin(spec):
        plugin = load_plugin(spec)
        if not isinstance(plugin, Task):
            raise ConfigError(
                f"{spec} is {type(plugin).__name__}, not a task",
                cure="write @task(NAME, …) above the function; see posttrain.evals.task",
            )
        return plugin
    _register_own()
    if spec not in REGISTRY:
        raise ConfigError(
            f"there is no task {spec!r}", cure=f"{nearest(spec, REGISTRY)}; or FILE.py:NAME"
        )
    return REGISTRY[spec]


def task_digest(found: Task) -> str:
    """SHA-256 of the file that defines a task; empty for the package's own."""
    try:
        path = Path(inspect.getsourcefile(found.ask) or "")
    except TypeError:  # not a function: an object that can be called
        path = Path(inspect.getsourcefile(type(found.ask)) or "")
    own = Path(__file__).parents[2]
    return "" if own in path.resolve().parents or not path.is_file() else sha256_file(path)


def _register_own() -> None:
    """Register the package's tasks, whose modules import torch."""
    from posttrain.evals.tasks import choice, exact, perplexity, prefer, win  # noqa: F401
