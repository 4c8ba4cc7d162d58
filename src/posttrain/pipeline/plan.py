"""The plan of a recipe: for every stage its digest, whether it has been made, and what making it
will take.

A stage's digest covers its settings, what it reads (digests of files, of models, and of the stages
before it) and the code it runs. So it is known before anything runs, and what is unchanged is found
again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.core.errors import ConfigError, ModelError
from posttrain.core.files import sha256_file, sha256_json
from posttrain.core.identity import differences
from posttrain.core.settings import Settings
from posttrain.data.sources import digest as data_digest
from posttrain.pipeline import code
from posttrain.pipeline.kinds import moved, paths, sources
from posttrain.pipeline.recipe import Recipe, Stage

ARTIFACT = "artifact.json"
# settings that say where and on what a stage runs, not what it makes
ELSEWHERE = {"out", "device", "checkpoint", "tracking"}


@dataclass(frozen=True)
class Planned:
    """One stage of a plan.

    Attributes:
        stage: of the recipe. digest: of everything the result depends on; inputs: what it is made
            of.
        folder: where its artifact is, or will be.
        settings: with the folders of the stages before it in place.
        state: made, interrupted (it will go on), or new. why: what differs from the last artifact
            of that name.
    """

    stage: Stage
    digest: str
    inputs: dict[str, Any]
    folder: Path
    settings: Settings
    state: str
    why: str

    @property
    def made(self) -> bool:
        return self.state == "made"


def plan(recipe: Recipe, folder: Path) -> list[Planned]:
    """What running a recipe in a folder would do.

    Raises:
        PosttrainError: a file or model that a stage reads is not there.
    """
    found: dict[str, Planned] = {}
    for stage in recipe.stages:
        found[stage.name] = _planned(stage, folder, found)
    return list(found.values())


def _planned(stage: Stage, folder: Path, before: dict[str, Planned]) -> Planned:
    fixed = stage.settings.model_dump(mode="json", exclude=ELSEWHERE)
    models: dict[str, str] = {}
    for name in stage.kind.models:
        given = getattr(stage.settings, name)
        if given is None:
            continue
        models[name] = (
            before[stage.parents[name]].digest
            if name in stage.parents
            else _model_digest(given, stage)
        )
        fixed[name] = None  # which model it is, is in the digest; where it lies is not
    inputs = {
        "kind": stage.kind_name,
        "settings": fixed,
        "models": models,
        "data": {
            k: v
            for source in sources(stage.settings)
            if source.path not in stage.feeds
            for k, v in data_digest(source).items()
        },
        "files": {str(path): sha256_file(path) for path in paths(stage.settings) if path.is_file()},
        "code": code.digest(stage.kind.module),
    }
    if stage.feeds:
        inputs["rows"] = {name: before[name].digest for name in stage.feeds}
    digest = sha256_json(inputs)
    place = folder / "artifacts" / f"{stage.name}-{digest[:12]}"
    ready = {
        "out": place,
        **{name: str(before[parent].folder / "model") for name, parent in stage.parents.items()},
    }
    made = [
        *(["model"] if stage.kind.makes_model else []),
        *([stage.kind.makes_rows] if stage.kind.makes_rows else []),
    ]
    whole = (place / ARTIFACT).is_file() and all((place / name).exists() for name in made)
    state = "made" if whole else "interrupted" if (place / "run.json").is_file() else "new"
    why = "" if state != "new" else _why(inputs, folder, stage)
    files = {name: before[name].folder / before[name].stage.kind.makes_rows for name in stage.feeds}
    settings = moved(stage.settings, files) if files else stage.settings
    return Planned(stage, digest, inputs, place, settings.model_copy(update=ready), state, why)


def _model_digest(given: str, stage: Stage) -> str:
    from posttrain.engine.load import digest, resolve

    try:
        return digest(resolve(given))
    except ModelError as error:
        raise ConfigError(
            error.what, where=stage.where, cure=f"{error.cure}; or name an earlier stage"
        ) from None


def _why(inputs: dict[str, Any], folder: Path, stage: Stage) -> str:
    """What differs from the newest artifact of the same name."""
    same = (folder / "artifacts").glob(
        f"{stage.name}-{'[0-9a-f]' * 12}"
    )  # and not those of a stage NAME-2
    made = [path / ARTIFACT for path in same if (path / ARTIFACT).is_file()]
    if not made:
        return "not made yet"
    last = json.loads(max(made, key=lambda path: path.stat().st_mtime).read_text())
    changed = differences(last["inputs"], json.loads(json.dumps(inputs)))
    said = [one for one in changed if not one.startswith(("models.", "rows.", "rows ", "code "))]
    before, now = last["inputs"]["models"], inputs["models"]
    said += [
        f"{stage.parents.get(key, key)} changed"
        for key in sorted(before.keys() | now)
        if before.get(key) != now.get(key)
    ]
    before, now = last["inputs"].get("rows", {}), inputs.get("rows", {})
    said += [
        f"{key} changed" for key in sorted(before.keys() | now) if before.get(key) != now.get(key)
    ]
    said += ["posttrain's own code changed"] * any(one.startswith("code ") for one in changed)
    return "; ".join([*dict.fromkeys(said)][:3]) or "not made yet"
