"""A stage is one file: from Python, from the command line, in a recipe; and its runner."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from posttrain.cli.main import main
from posttrain.core.errors import CheckpointError, ConfigError, PosttrainError
from posttrain.core.events import Reporter
from posttrain.core.files import PARTIAL, lock
from posttrain.core.settings import ReadsModel, leaves
from posttrain.pipeline.plan import plan
from posttrain.pipeline.recipe import load
from posttrain.pipeline.run import run_recipe
from posttrain.stages import index, registry
from posttrain.stages.folders import Folder
from posttrain.stages.stage import Context, Stage
from tests import making
from tests.stages import toy

SPEC = f"{Path(toy.__file__)}:count"
ROWS = [{"prompt": "p" * n, "completion": "c"} for n in (1, 2, 30)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return making.write(tmp_path / "rows.jsonl", ROWS)


def prompts(path: Path) -> list[int]:
    return [len(json.loads(line)["prompt"]) for line in path.read_text().splitlines()]


# ---------------------------------------------------------------------------------- three ways in


def test_from_python(data: Path, tmp_path: Path) -> None:
    outcome = toy.count(data=data, out=tmp_path / "run", quiet=True)
    assert outcome.summary["n"] == 3 and outcome.verdict is None and outcome.exit_code == 0
    assert outcome.outputs == {
        "rows": tmp_path / "run" / "rows.jsonl",
        "long": tmp_path / "run" / "long.jsonl",
    }
    assert prompts(outcome.outputs["rows"]) == [1, 2] and prompts(outcome.outputs["long"]) == [30]
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == outcome.summary
    assert set(outcome.summary["sha256"]) == {"rows.jsonl", "long.jsonl"}
    identity = json.loads((tmp_path / "run" / "run.json").read_text())["identity"]
    assert identity["settings"].keys() == {"data", "longer", "most"}
    assert identity["data_sha256"].keys() == {"data.jsonl"}
    with pytest.raises(KeyError):
        _ = outcome.model


def test_from_the_command_line(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = [SPEC, "--data", str(data), "--out", str(tmp_path / "run")]
    assert main(argv) == 0
    out = capfd.readouterr().out
    assert "n         3\n" in out and f"long      {tmp_path / 'run' / 'long.jsonl'}\n" in out
    assert main([*argv[:-1], str(tmp_path / "other"), "--most", "2"]) == 3
    assert "verdict   FAIL: 3 rows are too many\n" in capfd.readouterr().out
    assert main([*argv, "--longr", "1"]) == 2
    assert "did you mean '--longer'?" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        main([SPEC, "--help"])
    said = " ".join(capfd.readouterr().out.split())
    assert "Count rows, and write the long ones apart." in said
    assert "characters from which a prompt is long [10]" in said


def test_an_output_that_was_not_made_is_an_error(tmp_path: Path, data: Path) -> None:
    """A later stage would look for it, and a second run would find this one finished."""
    lazy = replace(toy.count, makes={"rows": "rows.jsonl", "page": "page.html"})
    for _ in range(2):
        with pytest.raises(ConfigError, match="count did not make its output 'page'"):
            lazy(data=data, out=tmp_path / "run", quiet=True)
        assert not (tmp_path / "run" / "summary.json").exists()


def test_in_a_recipe(data: Path, tmp_path: Path) -> None:
    recipe = {
        "name": "toy",
        "stages": {
            "first": {"stage": SPEC, "data": str(data)},
            "rest": {"stage": SPEC, "data": "first"},
            "long": {"stage": SPEC, "data": ["first.long", f"{data},limit=1"], "most": 1},
        },
    }
    result = run_recipe(recipe, out=tmp_path / "run", reporter=Reporter())
    ns = {name: stage["result"]["n"] for name, stage in result.summary["stages"].items()}
    assert ns == {"first": 3, "rest": 2, "long": 2}
    assert result.summary["stages"]["long"]["parents"] == {"data": "first.long"}
    # the run ends with the verdict's exit code, and so does the same run again, which makes nothing
    assert result.exit_code == 3 and result.verdicts["long"].answer == "FAIL"
    path = tmp_path / "toy.yaml"
    path.write_text(json.dumps(recipe))
    assert main(["run", str(path), "--out", str(tmp_path / "run"), "--quiet"]) == 3
    recipe["stages"]["long"]["most"] = 2  # type: ignore[index]
    assert run_recipe(recipe, out=tmp_path / "run").exit_code == 0


def test_the_code_of_a_users_stage_is_part_of_its_artifact(data: Path, tmp_path: Path) -> None:
    recipe = {"name": "toy", "stages": {"first": {"stage": SPEC, "data": str(data)}}}
    (before,) = plan(load(recipe), tmp_path / "run")
    other = tmp_path / "other.py"
    other.write_text(Path(toy.__file__).read_text() + "\n# changed\n")
    recipe["stages"]["first"]["stage"] = f"{other}:count"  # type: ignore[index]
    (after,) = plan(load(recipe), tmp_path / "run")
    assert before.inputs["code"] != after.inputs["code"]
    assert before.inputs["settings"] == after.inputs["settings"]


@pytest.mark.parametrize(
    ("spec", "what", "cure"),
    [
        ("none.py:count", "there is no file none.py", "check the path"),
        (f"{toy.__file__}:cuont", "has no stage 'cuont'", "did you mean 'count'?"),
        ("posttrain.nothing:count", "cannot import posttrain.nothing", "FILE.py:NAME"),
        ("broken.py:count", "the file cannot be run: ZeroDivisionError", "mend it"),
    ],
)
def test_a_stage_that_is_not_there(
    spec: str, what: str, cure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.py").write_text("1 / 0\n")
    with pytest.raises(ConfigError) as caught:
        registry.find(spec)
    assert what in caught.value.what and cure in caught.value.cure


# -------------------------------------------------------------------------------------- the runner


def test_the_same_run_is_found_and_another_is_refused(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    toy.count(data=data, out=out, most=1, quiet=True)
    before = (out / "summary.json").stat().st_mtime_ns
    capfd.readouterr()
    again = toy.count(data=data, out=out, most=1, threads=2)
    said = f"finished {out} already holds this run; nothing to do; it ignores --threads 2"
    assert " ".join(capfd.readouterr().err.split()) == said
    assert again.exit_code == 3 and (out / "summary.json").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="different: most was 1, is 2"):
        toy.count(data=data, out=out, most=2)
    (out / "long.jsonl").unlink()
    toy.count(data=data, out=out, most=1, quiet=True)
    assert prompts(out / "long.jsonl") == [30]


def test_two_at_a_time_and_foreign_files_are_refused(data: Path, tmp_path: Path) -> None:
    with lock(tmp_path / "run"), pytest.raises(PosttrainError, match="is writing to"):
        toy.count(data=data, out=tmp_path / "run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "long.jsonl").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds long\.jsonl, which no run of ours wrote"):
        toy.count(data=data, out=tmp_path / "mine")
    assert (tmp_path / "mine" / "long.jsonl").read_text() == "mine"


def test_an_error_before_the_claim_leaves_nothing(tmp_path: Path) -> None:
    broken = making.write(tmp_path / "broken.jsonl", ["{"])
    with pytest.raises(PosttrainError):
        toy.count(data=broken, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_half_written_before_the_claim_goes(data: Path, tmp_path: Path) -> None:
    def fails(settings: toy.CountSettings, context: Context) -> dict[str, Any]:
        (context.folder / f"{PARTIAL}rows.jsonl").write_text("half")
        raise ConfigError("no", cure="none")

    with pytest.raises(ConfigError):
        replace(toy.count, function=fails)(data=data, out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_run_that_goes_on_with_another_budget_says_so(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    toy.count(data=data, out=out, quiet=True)
    (out / "summary.json").unlink()  # as if it had been killed
    toy.count(data=data, out=out, quiet=True, threads=4)
    assert "goes on with another threads was 1, is 4" in capfd.readouterr().err


# ------------------------------------------------------------------------------------- the registry


def test_the_index_says_what_the_decorators_say() -> None:
    for name, entry in index.entries().items():
        stage = registry.find(name)
        assert isinstance(stage, Stage)
        assert (stage.name, stage.help, stage.command) == (name, entry.help, entry.command)
        assert stage.function.__module__ == entry.module
        assert len(stage.description) > 40


def test_every_setting_that_names_a_model_or_rows_says_so() -> None:
    """A new field `*model*` without its role would be no part of the identity."""
    for name in index.entries():
        for leaf in leaves(registry.find(name).settings):
            if leaf.name in ("model", "against_model") or leaf.name.endswith("_model"):
                assert leaf.has(ReadsModel), (name, leaf.name)
            if "Source" in str(leaf.field.annotation):
                assert leaf.roles, (name, leaf.name)


def test_data_commands_are_stages_of_a_recipe(tmp_path: Path) -> None:
    """Split, care, inspect; and what they make is read by name."""
    rows = [
        {"prompt": f"question {i} of many", "chosen": f"good {i}", "rejected": f"bad {i}"}
        for i in range(40)
    ]
    recipe: dict[str, Any] = {
        "name": "data",
        "stages": {
            "parts": {
                "stage": "data_split",
                "data": str(making.write(tmp_path / "a.jsonl", rows)),
                "parts": {"train": 0.5, "test": 0.5},
            },
            "clean": {"stage": "data_pairs", "data": "parts.train"},
            "look": {
                "stage": "data_inspect",
                "model": str(making.model(tmp_path / "m")),
                "data": ["clean,completion=chosen", "parts.test,completion=chosen"],
            },
        },
    }
    result = run_recipe(recipe, out=tmp_path / "run", reporter=Reporter())
    stages = result.summary["stages"]
    assert stages["parts"]["result"]["parts"] == {"train": 20, "test": 20}
    assert stages["clean"]["result"]["written"] == 20
    assert [one["read"] for one in stages["look"]["result"]["sources"]] == [20, 20]
    assert (result.artifacts["look"] / "page.html").is_file()
    assert sorted(p.name for p in result.artifacts["clean"].iterdir()) == [
        ".lock",
        "artifact.json",
        "manifest.json",
        "removed.jsonl",
        "rows.jsonl",
        "run.json",
        "summary.json",
    ]
    again = run_recipe(recipe, out=tmp_path / "run", reporter=Reporter())
    assert again.summary == result.summary


def test_training_enters_the_data_by_few_doors() -> None:
    """Whoever follows the settings of a training stage meets two functions of `dataset`."""
    stages = Path(registry.__file__).parent
    doors: set[str] = set()
    for name in ("training", "sft", "adapt", "preference", "reward_model"):
        text = (stages / f"{name}.py").read_text()
        doors.update(re.findall(r"\bdataset\.([a-z]\w*)", text))
    assert doors == {"peek", "prepare"}


# ------------------------------------------------------------------------------- what is taken away


def empty(folder: Path) -> None:
    """As `rm -r FOLDER/*` does: what begins with a dot stays."""
    for path in folder.glob("[!.]*"):
        path.unlink()


def replaced(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize("act", [shutil.rmtree, empty, replaced], ids=lambda act: act.__name__)
@pytest.mark.parametrize("early", [True, False])
def test_a_folder_that_is_taken_away_is_an_error(
    data: Path, tmp_path: Path, act: Callable[[Path], None], early: bool
) -> None:
    out = tmp_path / "run"

    def function(settings: toy.CountSettings, context: Context) -> Any:
        context.claim()
        if early:
            act(out)
        made = toy.count.function(settings, context)
        if not early:
            act(out)
        return made

    with pytest.raises(CheckpointError, match="while the run was at work"):
        replace(toy.count, function=function)(data=data, out=out, quiet=True)
    assert not (out / "summary.json").exists() and not (out / "manifest.json").exists()


def test_a_folder_that_is_taken_away_at_the_very_end_is_an_error(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = Folder.finish

    def finishes(place: Folder, *given: Any) -> Any:
        summary = finish(place, *given)
        shutil.rmtree(place.folder)
        return summary

    monkeypatch.setattr(Folder, "finish", finishes)
    with pytest.raises(CheckpointError, match="while the run was at work"):
        toy.count(data=data, out=tmp_path / "run", quiet=True)
