"""Damage to what was made, or half made: it is noticed, said in one sentence, and made again, and
the result is that of an undisturbed run.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from posttrain.cli.main import main
from posttrain.core.errors import CheckpointError, DataError
from posttrain.core.events import Event, Note, Reporter
from posttrain.core.files import sha256_file, sha256_folder
from posttrain.engine import loop
from posttrain.pipeline.plan import plan
from posttrain.pipeline.recipe import load
from posttrain.pipeline.run import run_recipe
from posttrain.stages import sample_pairs
from tests import making
from tests.stages import toy

Damage = Callable[[Path], None]
SPEC = f"{Path(toy.__file__)}:count"
TRAIN = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(3) for b in range(4)]
PAIRS = [{"prompt": f"{a}+1=", "chosen": str(a + 1), "rejected": "no"} for a in range(6)]
LOOK = {"prompt": "x" * 20, "chosen": "a", "rejected": "b"}


# ------------------------------------------------------------------------------------------ damage


def flip(path: Path) -> None:
    """One bit in the middle; size and time of writing stay."""
    before, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def change(path: Path) -> None:
    """One bit in the middle, as whoever writes a file does it."""
    flip(path)
    os.utime(path, ns=(0, 0))


def cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 3])


def cut_lines(path: Path) -> None:
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[: len(lines) // 3]))


def add_line(path: Path) -> None:
    path.write_text(path.read_text() + path.read_text().splitlines()[0] + "\n")


def edit(path: Path) -> None:
    """Another number in a JSON file, which stays JSON."""
    text = path.read_text()
    digit = next(i for i in range(len(text) - 1, 0, -1) if text[i].isdigit())
    path.write_text(text[:digit] + str((int(text[digit]) + 1) % 10) + text[digit + 1 :])


def edit_rows(path: Path) -> None:
    path.write_text(path.read_text().replace('"rows": 1', '"rows": 2'))


def garbage(path: Path) -> None:
    path.write_bytes(b"\x00\xff{]")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def delete(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


# --------------------------------------------------------------------------------- what is damaged


@dataclass(frozen=True)
class Bench:
    """A model and rows, and one folder for each run that is copied and damaged.

    Attributes:
        commands: name of a run → its command, without --out. results: digests of its outputs.
    """

    folder: Path
    commands: dict[str, list[str]]
    results: dict[str, dict[str, str]]

    def argv(self, name: str, out: Path) -> list[str]:
        return [*self.commands[name], "--out", str(out), "--quiet"]


RESULTS = ("model", "adapter", "rows.jsonl", "long.jsonl", "samples.jsonl", "pairs.jsonl")


def results(run: Path) -> dict[str, str]:
    """Digests of what a finished run made, and its summary without what a clock measured."""
    found = {path.name: sha256_file(path) for path in run.glob("exact-*.jsonl")}
    for name in RESULTS:
        if (run / name).exists():
            found[name] = (sha256_folder if (run / name).is_dir() else sha256_file)(run / name)
    summary = json.loads((run / "summary.json").read_text())
    for name in ("seconds", "tokens_per_second"):
        summary.pop(name, None)
    found["summary"] = json.dumps(summary)
    if (run / "metrics.jsonl").exists():
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        found["metrics"] = json.dumps([(line["step"], line.get("loss")) for line in lines])
    return found


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("damage")
    model = str(making.model(folder / "base"))
    rows = {"train": TRAIN, "pairs": PAIRS, "asked": TRAIN, "look": [*PAIRS, LOOK]}
    data = {name: str(making.write(folder / f"{name}.jsonl", one)) for name, one in rows.items()}
    training = ["--device", "cpu", "--batch-size", "4", "--checkpoint-every", "2"]
    training += ["--prompt-template", "{prompt}", "--learning-rate", "1e-2", "--steps"]
    asking = ["--max-tokens", "3", "--device", "cpu", "--prompt-template", "{prompt}"]
    commands = {
        "count": [SPEC, "--data", data["look"]],
        "sft": ["sft", "--model", model, "--data", data["train"], *training, "4"],
        "preference": ["preference", "--model", model, "--data", data["pairs"], *training, "4"],
        "eval": ["eval", "--model", model, "--exact", data["asked"], *asking],
        "sample-pairs": [
            *("sample-pairs", "--model", model, "--data", data["asked"], "--scorer", "longest"),
            *("--n", "2", "--batch-size", "2", "--unfinished", "keep", *asking),
        ],
    }
    commands["half eval"] = [*commands["eval"], "--choice", data["train"]]
    bench = Bench(folder, commands, {})
    for name in ("count", "sft", "preference", "eval", "sample-pairs"):
        assert main(bench.argv(name, folder / name)) == 0
        bench.results[name] = results(folder / name)
    with pytest.MonkeyPatch.context() as patch:
        _stop_in_the_middle(bench, patch)
    return bench


def _stop_in_the_middle(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    """Kill runs half-way: training after three steps, of which two are in a checkpoint; sampling
    after three of six chunks; an evaluation when all is asked, and nothing summed up.
    """
    step, answers = loop.take_step, sample_pairs._answers

    def dies(run: loop.Run) -> None:
        if run.step == 3:
            raise KeyboardInterrupt
        step(run)

    def asks(*given: object) -> object:
        if given[4] == 6:
            raise KeyboardInterrupt
        return answers(*given)  # type: ignore[arg-type]

    def stops(*given: object) -> object:
        raise KeyboardInterrupt

    patch.setattr(loop, "take_step", dies)
    patch.setattr(sample_pairs, "_answers", asks)
    patch.setattr("posttrain.stages.evaluate._results", stops)
    for name in ("sft", "preference", "sample-pairs", "eval"):
        out = bench.folder / f"half {name}"
        assert main(bench.argv(name, out)) == 130
        bench.commands[f"half {name}"] = bench.commands[name]
        bench.results[f"half {name}"] = bench.results[name]


# ------------------------------------------------------------------------------------------- tables

WEIGHTS, TOKENS = "model/model.safetensors", "tokens/data 0/tokens"
FINISHED: list[tuple[str, str, Damage, str]] = [
    ("sft", WEIGHTS, change, f"{WEIGHTS} was changed: set aside as damaged-model, making it again"),
    ("sft", WEIGHTS, cut, f"{WEIGHTS} was cut: "),
    ("preference", WEIGHTS, delete, f"{WEIGHTS} is missing: set aside as damaged-model, making"),
    ("sft", "model", delete, "model is missing: making it again"),
    ("sft", "model/config.json", edit, "model/config.json was changed"),
    ("sft", "model/tokenizer.json", edit, "model/tokenizer.json was changed"),
    ("sft", "model/tokenizer_config.json", garbage, "model/tokenizer_config.json was cut: "),
    ("sft", "metrics.jsonl", cut_lines, "metrics.jsonl was cut: "),
    ("sft", "metrics.jsonl", edit, "metrics.jsonl was changed"),
    ("sft", "summary.json", edit, "summary.json was changed: set aside as damaged-summary.json"),
    ("sft", "manifest.json", cut, "manifest.json is damaged, so that nothing it names can be"),
    ("count", "rows.jsonl", cut_lines, "rows.jsonl was cut: "),
    ("count", "rows.jsonl", add_line, "rows.jsonl has grown from "),
    ("count", "long.jsonl", change, "long.jsonl was changed"),
    ("count", "summary.json", edit, "summary.json was changed"),
    ("count", "summary.json", garbage, "summary.json was cut"),
    ("count", "summary.json", delete, "summary.json is missing: making it again"),
    ("count", "manifest.json", garbage, "manifest.json is damaged"),
    ("count", "manifest.json", edit, "manifest.json is damaged"),
    ("eval", "exact-asked.jsonl", cut_lines, "exact-asked.jsonl was cut: "),
    ("eval", "exact-asked.jsonl", change, "exact-asked.jsonl was changed"),
    ("eval", "summary.json", edit, "summary.json was changed"),
    ("sample-pairs", "pairs.jsonl", cut_lines, "pairs.jsonl was cut: "),
    ("sample-pairs", "samples.jsonl", delete, "samples.jsonl is missing"),
]
HALF_DONE: list[tuple[str, str, Damage, str]] = [
    ("sft", TOKENS, flip, f"{TOKENS} was changed: preparing the rows again"),
    ("sft", TOKENS, cut, f"{TOKENS} was cut: "),
    ("sft", "tokens/data 0/trees", cut, "tokens/data 0/trees was cut"),
    ("sft", "tokens/data 0/account.json", edit, "tokens/data 0/account.json was changed"),
    ("sft", "tokens/key.json", edit, "tokens/key.json was changed"),
    ("sft", "tokens/key.json", delete, "tokens/key.json is missing"),
    ("sft", "tokens/manifest.json", garbage, "tokens/manifest.json is damaged"),
    ("sft", "metrics.jsonl", cut_lines, "metrics.jsonl was cut; its first 2 lines are the"),
    ("sft", "metrics.jsonl", delete, "metrics.jsonl is missing; its first 2 lines are the"),
    ("sft", "metrics.jsonl", edit, ""),  # the last line, which is written again
    ("sft", "metrics.jsonl", garbage, "metrics.jsonl was changed: what was there is kept as"),
    ("preference", "tokens/reference-*/arrays.bin", flip, "is damaged in record 1"),
    ("preference", "tokens/reference-*/records.jsonl", cut, "is damaged at its start"),
    ("sample-pairs", "chunks/records.jsonl", empty, "chunks is damaged at its start"),
    ("sample-pairs", "chunks/records.jsonl", change, "chunks is damaged in record 2"),
    ("eval", "exact-asked.jsonl", cut_lines, ""),  # which nothing reads before it is written
    ("eval", "items/exact-asked/records.jsonl", change, "the last record is not whole"),
]


def again(
    bench: Bench, name: str, out: Path, damage: Damage, file: str, capfd: pytest.CaptureFixture[str]
) -> str:
    """Damage a copy of a run, and run it again; returns what was said."""
    shutil.copytree(bench.folder / name, out)
    (path,) = out.glob(file)
    damage(path)
    capfd.readouterr()
    assert main(bench.argv(name, out)) == 0
    return capfd.readouterr().err


@pytest.mark.parametrize(("name", "file", "damage", "said"), FINISHED)
def test_damage_to_a_finished_run(
    bench: Bench,
    name: str,
    file: str,
    damage: Damage,
    said: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    shutil.copytree(bench.folder / name, tmp_path / "damaged")
    damage(tmp_path / "damaged" / file)
    assert f"{out}/{said}" in again(bench, name, out, damage, file, capfd)
    assert results(out) == bench.results[name]
    # nothing is deleted: what was there is beside it
    aside, top = out / f"damaged-{file.split('/')[0]}", tmp_path / "damaged" / file.split("/")[0]
    assert aside.exists() == top.exists()
    if top.is_file():
        assert aside.read_bytes() == top.read_bytes()
    # and now it is whole
    assert main([*bench.argv(name, out), "--verify"]) == 0
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("name", "file", "damage", "said"), HALF_DONE)
def test_damage_to_half_done_work(
    bench: Bench,
    name: str,
    file: str,
    damage: Damage,
    said: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    heard = again(bench, f"half {name}", out, damage, file, capfd)
    assert said in heard if said else "damaged" not in heard
    assert results(out) == bench.results[name]


# ---------------------------------------------------------------------------- what else is checked


def test_a_bit_that_flips_unseen_by_the_clock_is_found_with_verify(
    bench: Bench, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(bench.folder / "sft", tmp_path / "run")
    flip(out / WEIGHTS)
    argv = bench.argv("sft", out)
    assert main(argv) == 0 and capfd.readouterr().err == ""
    assert main(["show", str(out)]) == 0 and "damaged" not in capfd.readouterr().out
    assert main(["show", str(out), "--verify"]) == 0
    assert f"damaged   {out}/{WEIGHTS} was changed\n" in capfd.readouterr().out
    assert main([*argv, "--verify"]) == 0
    assert f"{out}/{WEIGHTS} was changed: set aside" in capfd.readouterr().err
    assert results(out) == bench.results["sft"]


def test_another_time_of_writing_alone_and_added_files_are_no_damage(
    bench: Bench, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(bench.folder / "sft", tmp_path / "run", copy_function=shutil.copy)
    (out / "model" / "README.md").write_text("mine")
    (out / "LICENSE").write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != ".lock"}
    assert main(bench.argv("sft", out)) == 0 and capfd.readouterr().err == ""
    assert {path: path.stat().st_mtime_ns for path in before} == before
    edit(out / "summary.json")  # and what makes the model again loses none of them
    assert main(bench.argv("sft", out)) == 0
    assert f"{out}/model/README.md is not of this run" in capfd.readouterr().err
    assert (out / "damaged-model" / "README.md").read_text() == "mine"
    assert (out / "LICENSE").read_text() == "mine" and results(out) == bench.results["sft"]


def test_a_run_that_says_no_more_which_it_is_is_refused(bench: Bench, tmp_path: Path) -> None:
    """Its settings could be edited to those of the command."""
    out = tmp_path / "run"
    toy.count(data=bench.folder / "look.jsonl", out=out, longer=5, quiet=True)
    before = (out / "run.json").read_text()
    (out / "run.json").write_text(before.replace('"longer": 5', '"longer": 9'))
    with pytest.raises(CheckpointError, match=r"run\.json was changed: which run") as caught:
        toy.count(data=bench.folder / "look.jsonl", out=out, longer=9, quiet=True)
    assert "choose another --out" in caught.value.cure
    (out / "run.json").write_text("{")
    (out / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"run\.json:1: this file of a run"):
        toy.count(data=bench.folder / "look.jsonl", out=out, longer=5, quiet=True)
    (out / "run.json").write_text(before)
    toy.count(data=bench.folder / "look.jsonl", out=out, longer=5, quiet=True)


@pytest.mark.parametrize("damage", [None, change, delete])
def test_a_folder_of_an_earlier_version_is_compared_with_the_digests_it_has(
    bench: Bench, damage: Damage | None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(bench.folder / "count", tmp_path / "run")
    (out / "manifest.json").unlink()
    if damage:
        damage(out / "rows.jsonl")
    assert main(bench.argv("count", out)[:-1]) == 0
    said = capfd.readouterr().err
    assert ("had no manifest.json" in said) == (damage is None)
    assert (f"{out}/rows.jsonl" in said) == (damage is not None)
    assert results(out) == bench.results["count"] and (out / "manifest.json").is_file()


@pytest.mark.parametrize(
    ("file", "damage"), [("", cut), (".removed", change), (".summary", edit_rows)]
)
def test_files_beside_each_other_are_checked_like_a_folder(
    file: str, damage: Damage, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"q{i // 2}", "chosen": f"a{i}", "rejected": "b"} for i in range(8)]
    data = making.write(tmp_path / "rows.jsonl", [*rows, *rows[:3]])
    ending = "json" if "summary" in file else "jsonl"
    name, out = f"clean{file}.{ending}", tmp_path / "clean.jsonl"
    argv = ["data", "pairs", "--data", str(data), "--out", str(out), "--quiet"]
    assert main(argv) == 0
    before = (tmp_path / name).read_bytes()
    damage(tmp_path / name)
    capfd.readouterr()
    assert main(argv) == 0
    assert f"{tmp_path}/{name} was c" in capfd.readouterr().err
    assert (tmp_path / name).read_bytes() == before
    assert (tmp_path / f"damaged-{name}").is_file()
    assert main([*argv, "--verify"]) == 0 and capfd.readouterr().err == ""


# --------------------------------------------------------------------- inputs that change meanwhile


def test_a_stage_whose_input_changes_while_it_runs_files_nothing(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = shutil.copy(bench.folder / "look.jsonl", tmp_path / "rows.jsonl"), tmp_path / "run"
    read = toy.read

    def changes(*given: Any) -> Iterator[Any]:
        yield from read(*given)
        add_line(data)

    monkeypatch.setattr(toy, "read", changes)
    with pytest.raises(DataError, match=r"rows\.jsonl changed while the run was at work"):
        toy.count(data=data, out=out, quiet=True)
    assert not out.exists()
    monkeypatch.undo()
    assert toy.count(data=data, out=out, quiet=True).summary["n"] == len(PAIRS) + 2


def test_training_whose_rows_change_ends_when_they_are_put_back(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its checkpoints are of the rows that it began with."""
    data, step = bench.folder / "train.jsonl", loop.take_step
    before = data.read_text()
    monkeypatch.setattr(
        loop, "take_step", lambda run: (step(run), data.write_text(before + before))
    )
    argv = bench.argv("sft", tmp_path / "run")
    try:
        assert main(argv) == 2
        said = capfd.readouterr().err
        assert f"{data} changed while the run was at work" in said and "put it back" in said
        assert not (tmp_path / "run" / "summary.json").exists()
    finally:
        data.write_text(before)
    monkeypatch.setattr(loop, "take_step", None)  # no step is left to do
    assert main(argv) == 0 and results(tmp_path / "run") == bench.results["sft"]


# ----------------------------------------------------------------------------------------- recipes


def toy_recipe(bench: Bench, folder: Path) -> dict[str, Any]:
    """Two stages that count, and one that counts what they made; with copies of the rows."""
    data = str(shutil.copy(bench.folder / "look.jsonl", folder / "rows.jsonl"))
    other = str(shutil.copy(bench.folder / "train.jsonl", folder / "other.jsonl"))
    stages = {
        "first": {"stage": SPEC, "data": data},
        "other": {"stage": SPEC, "data": other},
        "last": {"stage": SPEC, "data": ["first", "other"]},
    }
    return {"name": "toy", "stages": stages}


@pytest.fixture(scope="module")
def ready(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A recipe, and a folder in which it has run."""
    folder = tmp_path_factory.mktemp("recipe")
    recipe = toy_recipe(bench, folder)
    run(recipe, folder / "run")
    return recipe, folder / "run"


def states(recipe: dict[str, Any], out: Path, *, verify: bool = False) -> list[str]:
    planned = plan(load(recipe), out, verify=verify)
    return [f"{one.state} {one.why}".strip() for one in planned]


def run(recipe: dict[str, Any], out: Path, *sinks: Any) -> list[str]:
    """Runs a recipe; returns what was said."""
    heard: list[str] = []

    def sink(event: Event) -> None:
        if isinstance(event, Note):
            heard.append(f"{event.label} {event.text}")

    run_recipe(recipe, out=out, reporter=Reporter(sink, *sinks))
    return heard


ROWS_CUT = "rows.jsonl was cut: 0 of 312 bytes are left"
ARTIFACTS: list[tuple[str, Damage, str]] = [
    ("rows.jsonl", empty, ROWS_CUT),
    ("long.jsonl", change, "long.jsonl was changed"),
    ("rows.jsonl", delete, "rows.jsonl is missing"),
    ("summary.json", edit, "summary.json was changed"),
    ("artifact.json", edit, "artifact.json was changed"),
    ("artifact.json", garbage, "artifact.json was cut: "),
    ("manifest.json", delete, "manifest.json is missing"),
    ("manifest.json", cut, "manifest.json is damaged"),
    ("run.json", edit, "run.json was changed"),
]


@pytest.mark.parametrize(("file", "damage", "said"), ARTIFACTS)
def test_a_damaged_artifact_is_made_again(
    ready: tuple[dict[str, Any], Path], file: str, damage: Damage, said: str, tmp_path: Path
) -> None:
    recipe, out = ready[0], shutil.copytree(ready[1], tmp_path / "run", symlinks=True)
    folder = (out / "first").resolve()
    before = results(folder)
    damage(folder / file)
    found, *others = states(recipe, out)
    assert found.startswith(f"damaged {said}") and others == ["made", "made"]
    heard = run(recipe, out)
    assert any(f"damaged: {said}" in line and "making it again" in line for line in heard)
    assert results(folder) == before
    assert states(recipe, out, verify=True) == ["made"] * 3


def test_nothing_is_made_of_a_damaged_artifact(bench: Bench, tmp_path: Path) -> None:
    """One bit, unseen by the clock: what reads the artifact reads it whole."""
    recipe, out = toy_recipe(bench, tmp_path), tmp_path / "run"
    last = recipe["stages"].pop("last")
    run(recipe, out)
    folder = (out / "first").resolve()
    before = results(folder)
    flip(folder / "rows.jsonl")
    assert states(recipe, out) == ["made", "made"]
    assert states(recipe, out, verify=True) == ["damaged rows.jsonl was changed", "made"]
    recipe["stages"]["last"] = last
    heard = run(recipe, out)
    assert f" {folder}/rows.jsonl was changed: making it again" in heard
    assert results(folder) == before


def test_rows_that_change_during_an_earlier_stage_are_filed_under_no_digest(
    bench: Bench, tmp_path: Path
) -> None:
    recipe, out = toy_recipe(bench, tmp_path), tmp_path / "run"
    data = tmp_path / "other.jsonl"
    before = data.read_text()

    def changes(event: Event) -> None:
        if isinstance(event, Note) and event.label == "1/3 first":
            making.write(data, TRAIN[:2])

    with pytest.raises(DataError, match=r"other\.jsonl changed since the recipe began to run"):
        run(recipe, out, changes)
    assert [state.split()[0] for state in states(recipe, out)] == ["made", "new", "new"]
    run(recipe, out)
    assert json.loads((out / "other" / "summary.json").read_text())["n"] == 2
    data.write_text(before)
    run(recipe, out)
    assert json.loads((out / "other" / "summary.json").read_text())["n"] == len(TRAIN)


def test_show_and_runs_say_what_is_damaged(
    ready: tuple[dict[str, Any], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(ready[1], tmp_path / "runs" / "toy", symlinks=True)

    def shown(command: str, folder: Path) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main([command, str(folder)])
        return code, *capfd.readouterr()

    assert "damaged" not in shown("show", out)[1] + shown("runs", out.parent)[1]
    empty((out / "first" / "rows.jsonl").resolve())
    code, said, _ = shown("show", out)
    assert code == 0 and f"/rows.jsonl {ROWS_CUT.removeprefix('rows.jsonl ')}\n" in said
    assert ROWS_CUT in shown("show", out / "first")[1]
    assert "damaged" in shown("runs", out.parent)[1]
    for folder, file in ((out, "summary.json"), (out / "last", "summary.json")):
        edit(folder / file)
        code, said, error = shown("show", folder)
        assert (code, said) == (2, "") and f"{folder}/{file} was changed" in error
    garbage(out / "summary.json")
    assert "damaged" in shown("runs", out.parent)[1] and shown("show", out)[0] == 2
