"""Recipes that run: what is made once, what is made again, and what is left after a crash."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from posttrain.cli.main import main
from posttrain.core.files import lock, sha256_file
from posttrain.engine import loop
from posttrain.engine.load import digest
from posttrain.pipeline.run import run_recipe
from tests import making
from tests.pipeline import small


@dataclass(frozen=True)
class Bench:
    """A recipe that has run once, in a folder of this test's own, and a way to call commands."""

    recipe: Path
    out: Path
    capfd: pytest.CaptureFixture[str]

    def call(self, command: str, *more: str | Path) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        self.capfd.readouterr()
        code = main([command, *(str(a) for a in more)])
        said = self.capfd.readouterr()
        return code, said.out, said.err

    def run(self, *more: str | Path, command: str = "run") -> tuple[int, str, str]:
        return self.call(command, self.recipe, "--out", self.out, *more)

    def states(self, *more: str) -> list[tuple[str, str]]:
        code, out, _ = self.run("--json", *more, command="plan")
        assert code == 0
        return [(one["state"], one["why"]) for one in json.loads(out)]


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The recipe, and a folder in which it has run."""
    folder = tmp_path_factory.mktemp("pipeline")
    recipe = small.bench(folder)
    assert main(["run", str(recipe), "--out", str(folder / "run"), "--quiet"]) == 0
    return recipe, folder / "run"


@pytest.fixture
def bench(ready: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Bench:
    shutil.copytree(ready[1], tmp_path / "run", symlinks=True)
    return Bench(ready[0], tmp_path / "run", capfd)


def weights(folder: Path) -> str:
    return sha256_file(folder / "model" / "model.safetensors")


def test_what_a_run_leaves(ready: tuple[Path, Path]) -> None:
    recipe, run = ready
    summary = json.loads((run / "summary.json").read_text())
    assert sorted(p.name for p in run.iterdir()) == [
        ".lock",
        "adapt",
        "artifacts",
        "check",
        "manifest.json",
        "recipe.json",
        "sft",
        "summary.json",
    ]
    assert (summary["recipe"], list(summary["stages"])) == ("small", ["adapt", "sft", "check"])
    for name, stage in summary["stages"].items():
        folder = run / "artifacts" / f"{name}-{stage['digest'][:12]}"
        about = json.loads((folder / "artifact.json").read_text())
        assert (run / name).is_symlink() and (run / name).resolve() == folder.resolve()
        assert not (run / name).readlink().is_absolute()  # the folder can be moved
        assert (stage["folder"], about["digest"], about["stage"]) == (
            str(folder),
            stage["digest"],
            name,
        )
        assert stage["result"] == json.loads((folder / "summary.json").read_text())
        assert (stage["parents"], stage["seconds"]) == (
            about["parents"],
            about["seconds"],
        ) and 0 <= stage["seconds"] < 60
    stages = summary["stages"]
    assert stages["check"]["parents"] == {"model": "sft", "against": "adapt"}
    made = json.loads((run / "check" / "artifact.json").read_text())["inputs"]
    assert made["models"] == {
        "model": stages["sft"]["digest"],
        "against": stages["adapt"]["digest"],
    }
    assert made["data"] == {"exact.jsonl": sha256_file(recipe.parent / "questions.jsonl")}
    assert made["paths"] == {"exact.jsonl": str(recipe.parent / "questions.jsonl")}
    # each stage began with what the one before had made
    base = json.loads((run / "sft" / "run.json").read_text())["identity"]
    assert base["models_sha256"]["model"] == digest(
        run / "artifacts" / f"adapt-{stages['adapt']['digest'][:12]}" / "model"
    )
    told = json.loads((run / "recipe.json").read_text())
    assert {name: (one["stage"], one["model"]) for name, one in told.items()} == {
        "adapt": ("adapt", str(recipe.parent / "base")),
        "sft": ("sft", "adapt"),
        "check": ("eval", "sft"),
    }
    assert (told["check"]["against"], told["sft"]["optimiser"]["learning_rate"]) == ("adapt", 0.01)


def test_the_second_run_makes_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    small.forbid(monkeypatch, "adapt", "sft", "eval")
    before = {p: p.stat().st_mtime_ns for p in (bench.out / "artifacts").rglob("*") if p.is_file()}
    code, out, err = bench.run()
    assert code == 0
    assert [line.split(":")[0].strip() for line in err.splitlines()] == [
        "1/3 adapt made before",
        "2/3 sft   made before",
        "3/3 check made before",
        "done      3 stages, 0 s",
    ]
    assert "+0.000" in out and f"summary  {bench.out / 'summary.json'}\n" in out
    assert {
        p: p.stat().st_mtime_ns for p in (bench.out / "artifacts").rglob("*") if p.is_file()
    } == before
    assert bench.states() == [("made", "")] * 3


def test_a_changed_stage_is_made_again_with_its_children(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.forbid(monkeypatch, "adapt")
    before = json.loads((bench.out / "summary.json").read_text())["stages"]
    change = ("--set", "sft.learning_rate=2e-2", "sft.seed=5")
    reasons = ["optimiser.learning_rate was 0.01, is 0.02", "seed was 0, is 5"]
    (adapted, _), (trained, why), checked = bench.states(*change)
    assert (adapted, trained, sorted(why.split("; ")), checked) == (
        "made",
        "new",
        reasons,
        ("new", "sft changed"),
    )
    code, _, err = bench.run(*change)
    assert code == 0
    assert f"2/3 sft   {why}" in err and "3/3 check eval, sft changed" in err
    after = json.loads((bench.out / "summary.json").read_text())["stages"]
    assert after["adapt"] == {**before["adapt"], "folder": after["adapt"]["folder"]}
    assert (bench.out / "sft").resolve().name == f"sft-{after['sft']['digest'][:12]}"
    assert after["sft"]["result"]["sha256"]["model"] != before["sft"]["result"]["sha256"]["model"]
    # and back: what was made is still there
    small.forbid(monkeypatch, "sft", "eval")
    assert bench.run()[0] == 0
    assert (bench.out / "sft").resolve().name == f"sft-{before['sft']['digest'][:12]}"


def test_changed_rows_and_code_are_named_as_the_reason(
    ready: tuple[Path, Path], bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from posttrain.pipeline import code

    data = ready[0].parent / "questions.jsonl"
    try:
        making.write(data, small.QUESTIONS[:2])
        assert [state for state, _ in bench.states()] == ["made", "made", "new"]
        assert bench.states()[2][1] == f"{data} changed"
    finally:
        making.write(data, small.QUESTIONS)
    source = code._source
    monkeypatch.setattr(
        code, "_source", lambda one: source(one) + b"#" * (one == "posttrain.evals.subject")
    )
    assert bench.states() == [("made", ""), ("made", ""), ("new", "posttrain's own code changed")]


def test_an_interrupted_stage_goes_on_to_the_same_weights(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = weights(bench.out / "sft")
    killed = Bench(bench.recipe, tmp_path / "killed", bench.capfd)
    step, taken = loop.take_step, []

    def dies(run: Any) -> None:
        if run.steps == 6 and run.step == 5:
            raise KeyboardInterrupt
        taken.append(run.step)
        step(run)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "take_step", dies)
        assert killed.run()[0] == 130
    assert taken == [0, 1, 0, 1, 2, 3, 4]
    assert killed.states() == [("made", ""), ("interrupted", ""), ("new", "not made yet")]
    assert not (killed.out / "summary.json").exists() and not (killed.out / "sft").exists()
    taken.clear()
    small.forbid(monkeypatch, "adapt")
    monkeypatch.setattr(loop, "take_step", lambda run: (taken.append(run.step), step(run)))
    code, _, err = killed.run()
    assert code == 0
    assert taken == [4, 5]  # the last checkpoint was after four steps
    assert "2/3 sft   goes on" in err and "resuming after step 4 of 6" in err
    assert weights(killed.out / "sft") == whole


def test_a_run_folder_that_was_moved_goes_on(
    ready: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    data = tmp_path / "data"
    shutil.copytree(ready[0].parent / "base", data / "base")
    making.write(data / "all.jsonl", small.TRAIN)
    recipe = data / "rows.yaml"
    stages = """
  rows: {{stage: data_split, data: {0}/all.jsonl, parts: {{train: 1}}, near: 1}}
  sft: {{model: {0}/base, data: rows, steps: 4, batch_size: 6, checkpoint_every: 2, device: cpu}}
"""
    recipe.write_text("name: rows\nstages:" + stages.format(data))
    step = loop.take_step

    def dies(run: Any) -> None:
        if run.step == 2:
            raise KeyboardInterrupt
        step(run)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "take_step", dies)
        assert Bench(recipe, tmp_path / "run", capfd).run()[0] == 130
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    shutil.move(data, tmp_path / "other")
    moved = tmp_path / "other" / "rows.yaml"
    moved.write_text("name: rows\nstages:" + stages.format("."))
    monkeypatch.chdir(tmp_path / "other")
    killed = Bench(moved, Path("../elsewhere"), capfd)
    assert killed.states() == [("made", ""), ("interrupted", "")]
    code, _, err = killed.run()
    assert code == 0 and "resuming after step 2 of 4" in err


def test_a_model_that_was_removed_is_exported_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = weights(bench.out / "sft")
    shutil.rmtree(bench.out / "sft" / "model")
    assert bench.states() == [("made", ""), ("damaged", "model is missing"), ("made", "")]
    monkeypatch.setattr(loop, "take_step", small.boom)
    assert bench.run()[0] == 0
    assert weights(bench.out / "sft") == whole


def test_two_runs_in_one_folder_exclude_each_other(bench: Bench) -> None:
    with lock(bench.out):
        code, out, err = bench.run()
        assert (code, out) == (2, "") and f"is writing to {bench.out}" in err
    assert bench.run()[0] == 0


def test_a_link_replaces_no_folder_of_the_users(bench: Bench) -> None:
    (bench.out / "sft").unlink()
    (bench.out / "sft").mkdir()
    (bench.out / "sft" / "mine").write_text("mine")
    assert bench.run()[0] == 0
    assert (bench.out / "sft" / "mine").read_text() == "mine" and not (
        bench.out / "sft"
    ).is_symlink()


def test_a_mapping_runs_from_python(bench: Bench, ready: tuple[Path, Path]) -> None:
    import yaml

    content = yaml.safe_load(
        bench.recipe.read_text().replace("1e-3", "0.001").replace("1e-2", "0.01")
    )
    result = run_recipe(content, out=bench.out)
    assert {name: path.name for name, path in result.artifacts.items()} == {
        name: (ready[1] / name).readlink().name for name in ("adapt", "sft", "check")
    }
    assert result.summary == json.loads((bench.out / "summary.json").read_text())


# ----------------------------------------------------------------------------------------- commands


def test_json_lines_are_all_of_standard_output_and_end_with_everything(bench: Bench) -> None:
    code, out, err = bench.run("--json", "--set", "sft.seed=1")
    assert (code, err) == (0, "")
    events = [json.loads(line) for line in out.splitlines()]
    assert all({"event", "time"} <= one.keys() for one in events)
    assert [one["time"] for one in events] == sorted(one["time"] for one in events)
    assert [one["step"] for one in events if one["event"] == "step"] == [1, 2, 3, 4, 5, 6]
    assert [one["label"] for one in events if one["event"] == "note" and "/3 " in one["label"]] == [
        "1/3 adapt",
        "2/3 sft",
        "3/3 check",
    ]
    assert [one["event"] for one in events].count("done") == 3  # two stages, and the recipe
    assert events[-1]["event"] == "done" and events[-1]["folder"] == str(bench.out)
    assert events[-1]["summary"] == json.loads((bench.out / "summary.json").read_text())


def test_plan_writes_nothing(bench: Bench, tmp_path: Path) -> None:
    new = Bench(bench.recipe, tmp_path / "new", bench.capfd)
    assert new.states() == [("new", "not made yet")] * 3
    code, out, err = new.run(command="plan")
    assert (code, err) == (0, "")
    assert f"small →{new.out}" in "".join(out.split()) or str(new.out) in out.replace("\n", "")
    assert "estimates, within a factor of two" in out
    assert not new.out.exists()
    made = bench.run("--json", command="plan")[1]
    assert all("tokens" not in one for one in json.loads(made))  # nothing is left to estimate
    planned = json.loads(new.run("--json", command="plan")[1])
    assert [(one["stage"], one["kind"], one["parents"]) for one in planned] == [
        ("adapt", "adapt", {}),
        ("sft", "sft", {"model": "adapt"}),
        ("check", "eval", {"model": "sft", "against": "adapt"}),
    ]
    assert all(
        one["tokens"] > 0 and one["seconds"] > 0 and 0.5 <= one["memory"] < 0.6 for one in planned
    )


def test_runs_lists_what_is_there(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "half" / "artifacts").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    code, out, _ = bench.call("runs", tmp_path)
    text = "".join(out.split())
    assert (
        code == 0
        and "adapt,sft,check│finished" in text
        and "–│notfinished" in text
        and text.count("finished") == 2
    )
    code, out, err = bench.call("runs", tmp_path / "other")
    assert (code, out) == (2, "") and f"there are no runs in {tmp_path / 'other'}" in err


def test_show_shows_runs_and_artifacts(bench: Bench, tmp_path: Path) -> None:
    code, out, _ = bench.call("show", bench.out)
    assert code == 0 and all(text in out for text in ("check\n", "correct", "artifacts", "sft"))
    code, out, _ = bench.call("show", bench.out / "sft")
    about = json.loads((bench.out / "sft" / "artifact.json").read_text())
    assert (
        code == 0
        and about["digest"] in "".join(out.split())
        and "(of adapt)" in out
        and '"models_sha256"' in out
    )
    code, out, err = bench.call("show", tmp_path)
    assert (code, out) == (2, "") and "is no finished run and no artifact" in err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["run"], "the following arguments are required: recipe"),
        (["run", "none.yaml"], "cannot read the recipe none.yaml"),
        (["plan", "RECIPE", "--jsn"], "unknown option --jsn"),
        (["run", "RECIPE", "--set", "sft.sed=1"], "sft has no option 'sed'"),
        (["schema", "x"], "unknown option x"),
        (["show"], "the following arguments are required: folder"),
    ],
    ids=str,
)
def test_wrong_input_ends_with_code_2(bench: Bench, argv: list[str], said: str) -> None:
    code, out, err = bench.call(
        argv[0], *(str(bench.recipe) if a == "RECIPE" else a for a in argv[1:])
    )
    assert (code, out) == (2, "")
    assert said in err and "cure:" in err
