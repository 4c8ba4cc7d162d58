"""Run a recipe: make what is not made yet, go on with what was interrupted, and write down where
everything lies.

A run folder holds
    artifacts/STAGE-DIGEST/   what a stage made, and artifact.json: what it was made of
    STAGE                     link to the newest artifact of that stage
    recipe.json               the recipe that ran last
    summary.json              every stage's result, with digests; written last
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.core.console import ConsoleObserver, open_reporter
from posttrain.core.files import PARTIAL, explained_writes, lock, write_json
from posttrain.core.version import __version__
from posttrain.pipeline.plan import ARTIFACT, Planned, plan
from posttrain.pipeline.recipe import Recipe, load


@dataclass(frozen=True)
class Result:
    """A finished run: its folder, its artifacts by stage, and what `summary.json` says."""

    folder: Path
    artifacts: dict[str, Path]
    summary: dict[str, Any]


def run_recipe(
    recipe: Path | str | Mapping[str, Any],
    *,
    out: Path | str | None = None,
    changes: Iterable[str] = (),
    observer: ConsoleObserver | None = None,
) -> Result:
    """Run a recipe, or go on with it.

    Args:
        recipe: a YAML file, or what it would hold.
        out: the run's folder; runs/NAME where None.
        changes: `stage.option=value`.
    Raises:
        PosttrainError: with what is wrong and the cure.
    """
    read = load(Path(recipe) if isinstance(recipe, str) else recipe, changes)
    return execute(
        read, Path(out) if out else Path("runs") / read.name, observer or open_reporter()
    )


def execute(recipe: Recipe, folder: Path, observer: ConsoleObserver) -> Result:
    """Make every stage of a recipe in a folder."""
    with lock(folder), explained_writes(folder):
        stages = plan(recipe, folder)
        begun = time.monotonic()
        for number, one in enumerate(stages, 1):
            label = f"{number}/{len(stages)} {one.stage.name}"
            if one.made:
                observer.note(label, f"made before: {one.folder}")
            else:
                observer.note(
                    label,
                    f"{one.stage.kind_name},"
                    f" {'goes on' if one.state == 'interrupted' else one.why}",
                )
                _make(one, observer)
            _link(folder / one.stage.name, one.folder)
        summary = {
            "posttrain": __version__,
            "recipe": recipe.name,
            "stages": {one.stage.name: _artifact(one) for one in stages},
        }
        write_json(folder / "recipe.json", {one.stage.name: _given(one) for one in stages})
        write_json(folder / "summary.json", summary)
        observer.note("done", f"{len(stages)} stages, {time.monotonic() - begun:.0f} s: {folder}")
    return Result(folder, {one.stage.name: one.folder for one in stages}, summary)


def _make(one: Planned, observer: ConsoleObserver) -> None:
    begun = time.monotonic()
    one.stage.kind.run(one.settings, observer)
    write_json(
        one.folder / ARTIFACT,
        {
            "posttrain": __version__,
            "stage": one.stage.name,
            "digest": one.digest,
            "inputs": one.inputs,
            "parents": one.stage.lineage,
            "seconds": time.monotonic() - begun,
            "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        },
    )


def _given(one: Planned) -> dict[str, Any]:
    """What the recipe says of a stage, its models by their names."""
    models = {name: getattr(one.stage.settings, name) for name in one.stage.kind.models}
    return {"stage": one.stage.kind_name, **one.inputs["settings"], **models, **one.stage.parents}


def _artifact(one: Planned) -> dict[str, Any]:
    """An artifact and the summary of the stage that made it."""
    about = json.loads((one.folder / ARTIFACT).read_text())
    summary = one.folder / "summary.json"
    return {
        "folder": str(one.folder),
        "kind": one.stage.kind_name,
        "digest": one.digest,
        "parents": one.stage.lineage,
        "seconds": about["seconds"],
        "made": about["made"],
        "result": json.loads(summary.read_text()) if summary.is_file() else None,
    }


def _link(name: Path, target: Path) -> None:
    """Point a link at an artifact; it is replaced in one step."""
    if name.exists() and not name.is_symlink():
        return  # something of the user's own
    partial = name.with_name(PARTIAL + name.name)
    partial.unlink(missing_ok=True)
    partial.symlink_to(os.path.relpath(target, name.parent))
    os.replace(partial, name)
