"""Run a recipe: make what is not made yet, go on with what was interrupted, and write down where
everything lies.

A run folder holds
    artifacts/STAGE-DIGEST/   what a stage made, and artifact.json: what it was made of
    STAGE                     link to the newest artifact of that stage
    recipe.json               the recipe that ran last
    summary.json              every stage's result, with digests
    manifest.json             digests of these two; written last
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from posttrain.core import manifest
from posttrain.core.console import open_reporter
from posttrain.core.errors import ConfigError, DataError
from posttrain.core.events import Reporter
from posttrain.core.files import PARTIAL, explained_writes, lock, read_state, set_aside, write_json
from posttrain.core.identity import RUN
from posttrain.core.manifest import MANIFEST
from posttrain.core.settings import identifying
from posttrain.core.version import __version__
from posttrain.pipeline.plan import ARTIFACT, Planned, inputs_of, plan, read_artifact
from posttrain.pipeline.recipe import Recipe, load
from posttrain.stages import inputs
from posttrain.stages.folders import DAMAGED
from posttrain.stages.stage import Verdict


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        folder: the run's. artifacts: stage → its folder.
        summary: what `summary.json` says.
        verdicts: of the stages that decide something, by stage.
    """

    folder: Path
    artifacts: dict[str, Path]
    summary: dict[str, Any]
    verdicts: dict[str, Verdict]

    @property
    def exit_code(self) -> int:
        """The worst verdict's; 0 where all are good."""
        return max((verdict.exit_code for verdict in self.verdicts.values()), default=0)


def run_recipe(
    recipe: Path | str | Mapping[str, Any],
    *,
    out: Path | str | None = None,
    changes: Iterable[str] = (),
    reporter: Reporter | None = None,
    verify: bool = False,
) -> Result:
    """Run a recipe, or go on with it.

    Args:
        recipe: a YAML file, or what it would hold.
        out: the run's folder; runs/NAME where None.
        changes: `stage.option=value`.
        verify: see `posttrain.pipeline.plan.plan`.
    Raises:
        PosttrainError: with what is wrong and the cure.
    """
    read = load(Path(recipe) if isinstance(recipe, str) else recipe, changes)
    folder = Path(out) if out else Path("runs") / read.name
    return execute(read, folder, reporter or open_reporter(), verify=verify)


def execute(recipe: Recipe, folder: Path, reporter: Reporter, *, verify: bool = False) -> Result:
    """Make every stage of a recipe in a folder."""
    with lock(folder) as check_held, explained_writes(folder):
        stages = plan(recipe, folder, verify=verify)
        by_name = {planned.stage.name: planned for planned in stages}
        begun = time.monotonic()
        for number, planned in enumerate(stages, 1):
            check_held()
            label = f"{number}/{len(stages)} {planned.stage.name}"
            if planned.made:
                reporter.note(label, f"made before: {planned.folder}")
            else:
                doing = "goes on" if planned.state == "interrupted" else planned.why
                if planned.state == "damaged":
                    doing = f"damaged: {planned.why}; making it again"
                stage = planned.stage
                kind = "" if stage.spec == stage.name else f"{stage.spec}, "
                reporter.note(label, f"{kind}{doing}")
                _make(planned, by_name, reporter, damaged=planned.state == "damaged")
            _link(folder / planned.stage.name, planned.folder)
        check_held()
        summary = {
            "posttrain": __version__,
            "recipe": recipe.name,
            "stages": {planned.stage.name: _artifact(planned) for planned in stages},
        }
        write_json(
            folder / "recipe.json", {planned.stage.name: _given(planned) for planned in stages}
        )
        write_json(folder / "summary.json", summary)
        made = manifest.entries(folder, ("recipe.json", "summary.json"))
        manifest.write(folder / MANIFEST, made)
        check_held()
        reporter.note("done", f"{len(stages)} stages, {time.monotonic() - begun:.0f} s: {folder}")
    artifacts = {planned.stage.name: planned.folder for planned in stages}
    return Result(folder, artifacts, summary, _verdicts(summary))


def _verdicts(summary: dict[str, Any]) -> dict[str, Verdict]:
    verdicts: dict[str, Verdict] = {}
    for name, stage in summary["stages"].items():
        if stage["result"] and "verdict" in stage["result"]:
            verdicts[name] = Verdict(**stage["result"]["verdict"])
    return verdicts


def _make(
    planned: Planned, by_name: Mapping[str, Planned], reporter: Reporter, *, damaged: bool
) -> None:
    """Make an artifact, and before it those artifacts that it reads and that are damaged.

    Args:
        damaged: it was made, and something of it is not as it was.
    Raises:
        DataError: an input is no longer what the plan read.
    """
    begun = time.monotonic()
    stage = planned.stage
    for reference in (*stage.models.values(), *stage.feeds.values()):
        parent = by_name[reference.stage]
        # every byte: what is read now is handed on
        if found := manifest.damage(parent.folder / MANIFEST, content=True):
            reporter.message(f"{parent.folder}/{manifest.sentence(found)}: making it again")
            _make(parent, by_name, reporter, damaged=True)
    _check_unchanged(planned, by_name)
    if damaged:
        _make_room(planned, reporter)
    try:
        kind = replace(stage.kind, verify=damaged)
        outcome = kind.run(planned.settings, reporter)
    except ConfigError as error:
        error.where = error.where or stage.at(error.option)
        raise
    write_json(
        planned.folder / ARTIFACT,
        {
            "posttrain": __version__,
            "stage": stage.name,
            "digest": planned.digest,
            "inputs": planned.inputs,
            "parents": stage.lineage,
            "outputs": [path.name for path in outcome.outputs.values()],
            "seconds": time.monotonic() - begun,
            "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        },
    )
    _check_unchanged(planned, by_name)
    manifest.add(planned.folder / MANIFEST, [ARTIFACT])


def _check_unchanged(planned: Planned, by_name: Mapping[str, Planned]) -> None:
    """Refuse inputs that are no longer what the plan read: what is made of them would be filed as
    made of those.
    """
    stage = planned.stage
    now = inputs_of(stage, by_name)
    names = ("settings", "models", "data", "files", "paths")
    read, changed = (inputs.Inputs(*(one[name] for name in names)) for one in (planned.inputs, now))
    if found := inputs.changes(read, changed):
        raise DataError(
            f"{', '.join(found)} changed since the recipe began to run",
            where=stage.where,
            cure="run the same command again: it plans with what is there now",
        )


def _make_room(planned: Planned, reporter: Reporter) -> None:
    """Set a whole artifact aside where it does not say any more which run made it."""
    found = manifest.damage(planned.folder / MANIFEST, content=True, only=(RUN,))
    if any(one.name == RUN for one in found):
        aside = set_aside(planned.folder)
        reporter.message(f"{planned.folder}/{RUN} was changed: all is set aside as {aside.name}")


def _given(planned: Planned) -> dict[str, Any]:
    """What the recipe says of a stage, its models by their names."""
    stage = planned.stage
    models = {leaf.name: name for leaf, name in inputs.models(stage.settings)}
    return {"stage": stage.spec, **identifying(stage.settings.resolved()), **models}


def _artifact(planned: Planned) -> dict[str, Any]:
    """An artifact and the summary of the stage that made it."""
    about = read_artifact(planned.folder)
    summary = planned.folder / "summary.json"
    return {
        "folder": str(planned.folder),
        "kind": planned.stage.kind.name,
        "digest": planned.digest,
        "parents": planned.stage.lineage,
        "outputs": about["outputs"],
        "seconds": about["seconds"],
        "made": about["made"],
        "result": read_state(summary, DAMAGED) if summary.is_file() else None,
    }


def _link(name: Path, target: Path) -> None:
    """Point a link at an artifact; it is replaced in one step."""
    if name.exists() and not name.is_symlink():
        return  # something of the user's own
    partial = name.with_name(PARTIAL + name.name)
    partial.unlink(missing_ok=True)
    partial.symlink_to(os.path.relpath(target, name.parent))
    os.replace(partial, name)
