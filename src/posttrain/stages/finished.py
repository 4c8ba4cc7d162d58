"""Whether a run is finished, and what it made is still there as it was made.

What is damaged steps aside under `damaged-NAME`, and the stage makes it again: nothing is deleted
that a user may have put there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.core import manifest
from posttrain.core.errors import CheckpointError
from posttrain.core.events import Reporter
from posttrain.core.files import read_state, set_aside
from posttrain.core.identity import RUN
from posttrain.core.manifest import Damage
from posttrain.stages.folders import DAMAGED, SUMMARY, Place, output_digest


@dataclass(frozen=True)
class Found:
    """What an earlier process left of a run.

    Attributes:
        summary: of the finished run; None where there is something to do.
        intact: names of what a finished run made that is as it was, where other things are not.
    """

    summary: dict[str, Any] | None = None
    intact: frozenset[str] = frozenset()


def find(place: Place, reporter: Reporter, *, verify: bool = False) -> Found:
    """Check a finished run, and set aside what is damaged.

    Args:
        verify: read every file; else only those whose size or time of writing moved.
    """
    if place.manifest is None:
        return Found()
    if not place.manifest.exists():
        return _without_manifest(place, place.manifest, reporter)
    names = {path.name for path in (*place.files(), place.manifest)}
    found = manifest.damage(place.manifest, content=verify)
    found = [damage for damage in found if damage.top in names]
    if not found:
        return Found(read_state(place.path(SUMMARY), DAMAGED))
    made = manifest.read(place.manifest)
    if made is None:
        reporter.message(f"{place.folder / str(found[0])}; all of it is made again")
        _set_aside(place, [place.manifest, *place.files()])
        return Found()
    tops = dict.fromkeys(damage.top for damage in found)
    for top in tops:
        group = [damage for damage in found if damage.top == top]
        reporter.message(f"{place.folder}/{_sentence(place.folder / top, group)}")
    changed = [place.folder / top for top in tops]
    extended = list(_extended(place, made, reporter))
    _set_aside(place, [*changed, *extended])
    known = {name.partition("/")[0] for name in made}
    return Found(None, frozenset(known - {path.name for path in (*changed, *extended)}))


def _sentence(path: Path, group: list[Damage]) -> str:
    """What is wrong with a file or folder, and what becomes of it."""
    if not path.exists():
        return f"{path.name} is missing: making it again"
    return f"{manifest.sentence(group)}: set aside as damaged-{path.name}, making it again"


def _extended(place: Place, made: dict[str, Any], reporter: Reporter) -> Iterator[Path]:
    """Whole folders to which somebody added files, which making the folder again would delete."""
    for path in place.files():
        if not path.is_dir():
            continue
        inner = [file.relative_to(place.folder).as_posix() for file in path.rglob("*")]
        added = [name for name in inner if name not in made and (place.folder / name).is_file()]
        if added:
            reporter.message(
                f"{place.folder / added[0]} is not of this run: it is kept in damaged-{path.name}"
            )
            yield path


def _set_aside(place: Place, paths: list[Path]) -> None:
    for path in dict.fromkeys(paths):
        if path.exists() and path.name != RUN:
            # without a run.json, a place without a summary may be taken for somebody else's
            says_whose = path == place.path(SUMMARY) and not place.path(RUN).exists()
            set_aside(path, copy=says_whose)


def _without_manifest(place: Place, missing: Path, reporter: Reporter) -> Found:
    """A run that an earlier version finished, or a process that was killed before the manifest was
    written: believed where its outputs have the digests that the summary says.
    """
    path = place.path(SUMMARY)
    if not path.is_file():
        return Found()
    try:
        summary = read_state(path, "", sha256=dict)
    except CheckpointError:
        reporter.message(f"{path} is damaged: set aside as damaged-{path.name}, making it again")
        _set_aside(place, [path])
        return Found()
    whole = True
    for name, digest in summary["sha256"].items():
        output = place.path(name)
        if not output.exists():
            whole = False
            reporter.message(f"{output} is missing: making it again")
        elif output_digest(output) != digest:
            whole = False
            reporter.message(
                f"{output} was changed: set aside as damaged-{output.name}, making it again"
            )
            _set_aside(place, [output])
    if not whole:
        return Found()
    names = [file.name for file in place.files()]
    manifest.write(missing, manifest.entries(place.folder, names))
    reporter.note(
        "finished",
        f"{place.out} had no {missing.name}: its outputs are as {path.name} says, and it "
        "is written now",
    )
    return Found(summary)
