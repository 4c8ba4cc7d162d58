"""The plan of a recipe: for every stage its digest, whether it has been made, and what making it
will take.

A stage's digest covers its settings, what it reads (digests of files, of models, and of the stages
before it) and the code it runs. So it is known before anything runs, and what is unchanged is found
again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from posttrain.core import manifest
from posttrain.core.errors import CheckpointError, ConfigError, DataError, ModelError
from posttrain.core.files import read_state, sha256_json
from posttrain.core.identity import RUN, differences
from posttrain.core.manifest import MANIFEST
from posttrain.core.settings import Settings
from posttrain.data.settings import Source
from posttrain.pipeline import code
from posttrain.pipeline.recipe import Recipe, Reference, Stage
from posttrain.stages import inputs

ARTIFACT = "artifact.json"
DAMAGED = "delete the file and run the recipe again, which writes it anew"
NOT_MADE = "not made yet"


@dataclass(frozen=True)
class Planned:
    """One stage of a plan.

    Attributes:
        stage: of the recipe. digest: of everything the result depends on; inputs: what it is made
            of.
        folder: where its artifact is, or will be.
        settings: with the folders of the stages before it in place.
        state: made, damaged (it will be made again), interrupted (it will go on), or new. why: what
            is damaged, or what differs from the last artifact of that name.
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


def plan(recipe: Recipe, folder: Path, *, verify: bool = False) -> list[Planned]:
    """What running a recipe in a folder would do.

    Args:
        verify: read all artifacts to see whether they are as they were made; else what has another
            size or time of writing than it had.
    Raises:
        PosttrainError: a file or model that a stage reads is not there.
    """
    planned: dict[str, Planned] = {}
    for stage in recipe.stages:
        planned[stage.name] = _planned(stage, folder, planned, verify)
    return list(planned.values())


def _planned(stage: Stage, folder: Path, before: dict[str, Planned], verify: bool) -> Planned:
    read = inputs_of(stage, before)
    digest = sha256_json({key: value for key, value in read.items() if key != "paths"})
    place = folder / "artifacts" / f"{stage.name}-{digest[:12]}"
    state, why = _state(place, verify)
    if state == "new":
        why = _why(read, folder, stage)
    return Planned(stage, digest, read, place, _placed(stage, place, before), state, why)


def inputs_of(stage: Stage, before: Mapping[str, Planned]) -> dict[str, Any]:
    """What a stage's artifact depends on, as JSON; and under `paths`, on which nothing depends,
    where its data were read.
    """

    def digest_of(output: Reference) -> str:
        made = before[output.stage]
        first = next(iter(made.stage.outputs))
        return made.digest if output.output == first else f"{made.digest}/{output.output}"

    models = {setting: digest_of(output) for setting, output in stage.models.items()}
    try:
        read = inputs.describe(stage.settings.resolved(), models, frozenset(stage.feeds))
    except ConfigError as error:
        error.where = error.where or stage.at(error.option)
        raise
    except DataError as error:
        error.where = error.where or stage.at("data")
        raise
    except ModelError as error:
        raise ConfigError(
            error.what, where=stage.where, cure=f"{error.cure}; or name an earlier stage"
        ) from None
    out = {"kind": stage.kind.name, **asdict(read), "code": code.of_stage(stage.kind)}
    if stage.feeds:
        out["rows"] = {text: digest_of(output) for text, output in stage.feeds.items()}
    return out


def _state(place: Path, verify: bool) -> tuple[str, str]:
    """How far an artifact is, and what of it is damaged."""
    made = manifest.read(place / MANIFEST)
    filed = (place / ARTIFACT).exists() if made is None else ARTIFACT in made
    if filed or (made is None and (place / MANIFEST).exists()):
        found = manifest.damage(place / MANIFEST, content=verify)
        return ("damaged", manifest.sentence(found)) if found else ("made", "")
    return ("interrupted" if (place / RUN).is_file() else "new"), ""


def read_artifact(place: Path) -> dict[str, Any]:
    """What an artifact was made of.

    Raises:
        CheckpointError: the file is damaged.
    """
    fields = {"inputs": dict, "parents": dict, "outputs": list, "seconds": float, "made": str}
    return read_state(place / ARTIFACT, DAMAGED, **fields)


def _placed(stage: Stage, place: Path, before: dict[str, Planned]) -> Settings:
    """A stage's settings with the folders and files of the stages before it."""

    def path_of(output: Reference) -> str:
        return str(before[output.stage].folder / output.path.rstrip("/"))

    rows = {text: path_of(output) for text, output in stage.feeds.items()}
    settings = moved(stage.settings, rows) if rows else stage.settings
    models = {setting: path_of(output) for setting, output in stage.models.items()}
    return settings.model_copy(update={**models, "out": place})


def moved(settings: Settings, places: Mapping[str, str]) -> Settings:
    """The settings with files in the place of references.

    Args:
        places: text of a reference → its file.
    """
    changed: dict[str, Any] = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, Source):
            changed[name] = _moved(value, places)
        elif isinstance(value, Settings):
            changed[name] = moved(value, places)
        elif isinstance(value, tuple):
            changed[name] = tuple(
                _moved(item, places) if isinstance(item, Source) else item for item in value
            )
    return settings.model_copy(update=changed)


def _moved(source: Source, places: Mapping[str, str]) -> Source:
    if source.path not in places:
        return source
    return source.model_copy(update={"path": places[source.path]})


def _why(read: dict[str, Any], folder: Path, stage: Stage) -> str:
    """What differs from the newest artifact of the same name."""
    # and not those of a stage NAME-2
    same = (folder / "artifacts").glob(f"{stage.name}-{'[0-9a-f]' * 12}")
    made = [path / ARTIFACT for path in same if (path / ARTIFACT).is_file()]
    if not made:
        return NOT_MADE
    try:
        last = read_artifact(max(made, key=lambda path: path.stat().st_mtime).parent)["inputs"]
    except CheckpointError:  # it is damaged, and there is nothing to compare with
        return NOT_MADE
    reasons: list[str] = []
    code_changed = False
    for difference in differences(last, json.loads(json.dumps(read))):
        code_changed |= difference.startswith("code ")
        if not difference.startswith(("models.", "rows.", "rows ", "code ", "data.", "paths")):
            reasons.append(difference)
    lineage = stage.lineage
    for setting in _changed(last["models"], read["models"]):
        reasons.append(f"{lineage.get(setting, setting)} changed")
    for name in _changed(last["data"], read["data"]):
        reasons.append(f"{read['paths'].get(name, name)} changed")
    for text in _changed(last.get("rows", {}), read.get("rows", {})):
        reasons.append(f"{text} changed")
    if code_changed:
        reasons.append("posttrain's own code changed")
    return "; ".join([*dict.fromkeys(reasons)][:3]) or NOT_MADE


def _changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
