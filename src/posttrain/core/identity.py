"""Which run a folder holds. The same command continues it; another is refused, with what
differs.
"""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

from posttrain.core.errors import ConfigError
from posttrain.core.files import write_json


def check(folder: Path, identity: dict[str, Any], writes: tuple[str, ...] = ()) -> None:
    """Accept a folder that holds this run, or nothing that a run would write over.

    Args:
        identity: JSON; everything the result depends on (settings, digests of model and data).
        writes: names of the files and folders that the run writes.
    Raises:
        ConfigError: the folder holds another run, or files of somebody else; the message names
            them.
    """
    path = folder / "run.json"
    if not path.is_file():
        if foreign := [name for name in writes if (folder / name).exists()]:
            raise ConfigError(
                f"{folder} holds {', '.join(foreign)}, which no run of ours wrote",
                cure="choose another --out; nothing there was touched",
            )
        return
    # through JSON, so that a tuple equals the list it was written as
    if changed := sorted(
        differences(json.loads(path.read_text())["identity"], json.loads(json.dumps(identity)))
    ):
        raise ConfigError(
            f"{folder} holds another run; different: {'; '.join(changed[:4])}",
            cure="choose another --out, or delete the folder, or give the settings it began with",
        )


def claim(folder: Path, identity: dict[str, Any], version: str) -> None:
    """Write down that the folder holds this run."""
    if not (folder / "run.json").is_file():
        write_json(folder / "run.json", {"identity": identity, "posttrain": version})


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
