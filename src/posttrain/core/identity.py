"""Which run a folder holds. The same command continues it; another is refused, with what
differs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from posttrain.core.errors import ConfigError
from posttrain.core.files import read_state, state_of, write_json

RUN = "run.json"
DAMAGED = (
    "restore it from a backup, or choose another --out; deleting the folder begins the run again"
)


def check(folder: Path, identity: dict[str, Any], writes: Iterable[str] = ()) -> None:
    """Accept a folder that holds this run, or nothing that a run would write over.

    Args:
        identity: JSON; everything the result depends on (settings, digests of models and data).
        writes: names of the files and folders that the run writes.
    Raises:
        ConfigError: the folder holds another run, or files of somebody else; the message names
            them.
        CheckpointError: `run.json` is damaged.
    """
    path = folder / RUN
    if os.path.lexists(path):
        with state_of(path, DAMAGED):
            before = read_state(path, DAMAGED, identity=dict)
            compare(before["identity"], identity, f"{folder} holds another run")
        return
    if foreign := [name for name in writes if (folder / name).exists()]:
        raise ConfigError(
            f"{folder} holds {', '.join(foreign)}, which no run of ours wrote",
            cure="choose another --out; nothing there was touched",
        )


def compare(before: dict[str, Any], now: dict[str, Any], what: str) -> None:
    """Refuse an identity that differs.

    Args:
        what: beginning of the message, which goes on with what differs.
    """
    # through JSON, so that a tuple equals the list it was written as
    changed = sorted(differences(before, json.loads(json.dumps(now))))
    if changed:
        raise ConfigError(
            f"{what}; different: {'; '.join(changed[:4])}",
            cure="choose another --out, or delete the folder, or give the settings it began with",
        )


def claim(
    folder: Path, identity: dict[str, Any], version: str, execution: dict[str, Any] | None = None
) -> list[str]:
    """Write down that the folder holds this run.

    Args:
        execution: settings that are no part of the identity and change results by rounding.
    Returns: those of them that differ from the ones the run began with, as sentences.
    """
    path = folder / RUN
    if not path.is_file():
        record = {"identity": identity, "execution": execution or {}, "posttrain": version}
        write_json(path, record)
        return []
    began = read_state(path, DAMAGED).get("execution", {})
    return sorted(differences(began, json.loads(json.dumps(execution or {}))))


def differences(a: Any, b: Any, name: str = "") -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        keys = a.keys() | b.keys()
        return list(
            chain.from_iterable(
                differences(a.get(k), b.get(k), f"{name}.{k}" if name else k) for k in keys
            )
        )
    return [] if a == b else [f"{name.removeprefix('settings.')} was {_short(a)}, is {_short(b)}"]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:21] + "…"
