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


def other_length(
    folder: Path, identity: dict[str, Any], length: Iterable[str]
) -> dict[str, Any] | None:
    """The settings named in `length` of the run that a folder holds, where these alone differ."""
    path = folder / RUN
    names = list(length)
    if not names or not path.is_file():
        return None
    with state_of(path, DAMAGED):
        before = read_state(path, DAMAGED, identity=dict)["identity"]
        values = {name: before["settings"].get(name) for name in names}
    now = json.loads(json.dumps(identity))
    if not differences(before, now):
        return None
    same = {**now, "settings": {**now["settings"], **values}}
    return None if differences(before, same) else values


def lengthen(folder: Path, identity: dict[str, Any]) -> None:
    """Write down that the folder holds this run, which is a longer one."""
    record = read_state(folder / RUN, DAMAGED)
    write_json(folder / RUN, {**record, "identity": identity})


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
    folder: Path,
    identity: dict[str, Any],
    version: str,
    execution: dict[str, Any] | None = None,
    paths: dict[str, str] | None = None,
) -> list[str]:
    """Write down that the folder holds this run.

    Args:
        execution: settings that are no part of the identity.
        paths: where the data were read when the run began, for people: it is never compared.
    Returns: those of them that differ from the ones the run began with, as sentences.
    """
    path = folder / RUN
    if not path.is_file():
        record = {"identity": identity, "paths": paths or {}, "execution": execution or {}}
        write_json(path, {**record, "posttrain": version})
        return []
    now = json.loads(json.dumps(execution or {}))
    return sorted(differences(execution_of(path), now))


def execution_of(path: Path) -> dict[str, Any]:
    """How the run that a `run.json` tells of was executed when it began, as `claim` was told."""
    return read_state(path, DAMAGED).get("execution", {}) if path.is_file() else {}


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
