"""What can happen to a file: cut, flipped, swapped for something else, or edited by hand."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

DEEP = "[" * 100_000
# in the place of a value of JSON, or of a whole file
VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2**40,
    10**30,
    1e308,
    float("nan"),
    "",
    "x",
    "a\0b",
    "\ud800",
    "../../x",
    "[bold]",
    "y" * 5000,
    [],
    {},
    [[]],
    {"x": None},
)


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def cut(path: Path, random: Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: random.randrange(max(1, len(data)))])


def flip(path: Path, random: Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(random.choice((1, 1, 1, 8))):
        if data:
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    path.write_bytes(data)


def overwrite(path: Path, random: Random) -> None:
    data = bytearray(path.read_bytes())
    at = random.randrange(max(1, len(data)))
    data[at : at + 16] = random.choice((b"\0" * 16, b"\xff" * 16, b"", b"}" * 16, b"9" * 16))
    path.write_bytes(data)


def folder(path: Path, random: Random) -> None:
    remove(path)
    path.mkdir()


def dangling(path: Path, random: Random) -> None:
    remove(path)
    path.symlink_to("nowhere")


def looping(path: Path, random: Random) -> None:
    remove(path)
    path.symlink_to(path.name)


def missing(path: Path, random: Random) -> None:
    remove(path)


def edited(path: Path, random: Random) -> None:
    """One value of the JSON, or of one of its lines, is another, or is gone."""
    lines = path.read_text(errors="replace").split("\n") if path.suffix == ".jsonl" else None
    text = random.choice(lines[:-1] or [""]) if lines else path.read_text(errors="replace")
    try:
        value = json.loads(text)
    except ValueError:
        return cut(path, random)
    changed = json.dumps(_changed(value, random))
    if lines:
        lines[lines.index(text)] = changed
    path.write_text("\n".join(lines) if lines else changed)
    return None


def _changed(value: Any, random: Random) -> Any:
    """A JSON value with a hostile one somewhere in it."""
    if not isinstance(value, dict | list) or not value or random.random() < 0.15:
        return random.choice(VALUES)
    key = random.choice(list(value)) if isinstance(value, dict) else random.randrange(len(value))
    if random.random() < 0.1:
        del value[key]
    else:
        value[key] = _changed(value[key], random)
    return value


def _text(content: str) -> Callable[[Path, Random], None]:
    return lambda path, random: path.write_bytes(content.encode("utf-8", "surrogatepass")) and None


KINDS: dict[str, Callable[[Path, Random], None]] = {
    "cut": cut,
    "flipped": flip,
    "overwritten": overwrite,
    "edited": edited,
    "empty": _text(""),
    "null": _text("null"),
    "a list": _text("[]"),
    "an object": _text("{}"),
    "text": _text('"x"'),
    "deep": _text(DEEP),
    "deep objects": _text('{"a":' * 100_000),
    "no UTF-8": lambda path, random: path.write_bytes(b"\xff\xfe{") and None,
    "a folder": folder,
    "a dangling link": dangling,
    "a looping link": looping,
    "missing": missing,
}
USUAL = ("cut", "flipped", "overwritten", "edited")  # of which there are many kinds


def choose(random: Random) -> str:
    return random.choice(USUAL) if random.random() < 0.6 else random.choice(list(KINDS))


def files(root: Path) -> list[str]:
    """The files of a run, by their path in the bench."""
    found = [path for path in root.rglob("*") if path.is_file() and path.name != ".lock"]
    return sorted(os.path.relpath(path, root) for path in found)
