"""What a stage's digest depends on, what a plan says, and what it estimates."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from posttrain.cli.main import main
from posttrain.core import files
from posttrain.core.errors import PosttrainError
from posttrain.pipeline import code, estimate
from posttrain.pipeline.plan import plan
from posttrain.pipeline.recipe import load
from tests import making
from tests.children import child
from tests.pipeline import small


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return small.bench(tmp_path)


def digests(recipe: Path, *changes: str, out: str = "run") -> dict[str, str]:
    return {one.stage.name: one.digest for one in plan(load(recipe, changes), recipe.parent / out)}


def changed(before: dict[str, str], after: dict[str, str]) -> list[str]:
    return [name for name in before if before[name] != after[name]]


def test_the_digest_does_not_depend_on_the_process(recipe: Path) -> None:
    argv = [
        sys.executable,
        "-m",
        "posttrain",
        "plan",
        str(recipe),
        "--out",
        str(recipe.parent / "run"),
        "--json",
    ]
    with ExitStack() as stack:
        runs = []
        for seed in ("1", "2"):
            environment = {**os.environ, "PYTHONHASHSEED": seed}
            runs.append(stack.enter_context(child(argv, stdout=subprocess.PIPE, env=environment)))
        printed = [json.loads(run.communicate(timeout=300)[0]) for run in runs]
    for stages in printed:
        assert {entry["stage"]: entry["digest"] for entry in stages} == digests(recipe)


def test_the_digest_covers_what_a_stage_reads_and_no_more(recipe: Path) -> None:
    before = digests(recipe)
    assert len(set(before.values())) == 3
    assert (
        changed(
            before,
            digests(
                recipe,
                "sft.device=''",
                "adapt.checkpoint_every=1",
                "sft.checkpoint_keep=9",
                out="other",
            ),
        )
        == []
    )
    budgets = ("adapt.budget=512", "sft.budget=256", "check.budget=2048")
    assert changed(before, digests(recipe, *budgets)) == []
    assert changed(before, digests(recipe, "adapt.seed=1")) == ["adapt", "sft", "check"]
    assert changed(before, digests(recipe, "sft.learning_rate=0.02")) == ["sft", "check"]
    assert changed(before, digests(recipe, "check.max_tokens=5")) == ["check"]
    assert changed(before, digests(recipe, "check.against=sft")) == ["check"]
    making.write(recipe.parent / "questions.jsonl", small.QUESTIONS[:3])
    assert changed(before, now := digests(recipe)) == ["check"]
    making.write(
        recipe.parent / "train.jsonl", [{"prompt": "0+0=", "completion": "1"}, *small.TRAIN[1:]]
    )
    assert changed(now, now := digests(recipe)) == ["sft", "check"]
    making.model(recipe.parent / "base", seed=3)
    assert changed(now, digests(recipe)) == ["adapt", "sft", "check"]
    # a model elsewhere with the same files is the same model
    now = digests(recipe)
    (recipe.parent / "base").rename(recipe.parent / "moved")
    assert changed(now, digests(recipe, f"adapt.model={recipe.parent / 'moved'}")) == []


def test_the_text_of_a_chat_template_is_part_of_it(recipe: Path) -> None:
    template = recipe.parent / "chat.jinja"
    template.write_text("{{ messages }}")
    before = digests(recipe, f"sft.chat_template={template}")
    template.write_text("{{ messages }} ")
    assert changed(before, digests(recipe, f"sft.chat_template={template}")) == ["sft", "check"]


def test_the_digest_covers_tasks_and_scorers_of_ones_own(recipe: Path) -> None:
    """What a file says of a task, and of a scorer, is part of the stage that reads it."""
    tests = Path(__file__).parents[1]
    toys = {"task": "evals/toy_task.py", "scorer": "scoring/toy_scorer.py"}
    for name, path in toys.items():
        (recipe.parent / f"{name}.py").write_text((tests / path).read_text())
    rows = recipe.parent / "questions.jsonl"
    changes = (
        f"check.task={recipe.parent}/task.py:loudness={rows}",
        f"check.scorer={recipe.parent}/scorer.py:shout",
        f"check.win={rows}",
    )
    before = digests(recipe, *changes)
    assert changed(digests(recipe), before) == ["check"]
    for name in toys:
        path = recipe.parent / f"{name}.py"
        path.write_text(path.read_text() + "\n")
        after = digests(recipe, *changes)
        assert changed(before, after) == ["check"], name
        before = after


def test_the_digest_covers_the_code(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digests(recipe)
    source = code._source

    def edited(module: str) -> Any:
        return lambda one: source(one) + (b"#" if one == module else b"")

    for module, stages in (
        ("posttrain.stages.evaluate", ["check"]),
        ("posttrain.evals.metrics", ["check"]),
        ("posttrain.evals.stats", ["adapt", "sft", "check"]),  # held-out loss has an interval
        ("posttrain.engine.loop", ["adapt", "sft", "check"]),
        ("posttrain.cli.chat", []),
        ("posttrain.core.console", []),
        ("posttrain.core.curve", []),
        ("posttrain.core.events", []),
        ("posttrain.methods.supervised", ["adapt", "sft", "check"]),
    ):
        monkeypatch.setattr(code, "_source", edited(module))
        assert changed(before, digests(recipe)) == stages, module


def test_what_is_not_there_is_told_before_anything_is_made(
    recipe: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(PosttrainError, match=r"there is no file none\.jsonl"):
        digests(recipe, "sft.data=none.jsonl")
    lost = recipe.with_name("train.jsonl").rename(recipe.with_name("moved.jsonl"))
    assert main(["plan", str(recipe)]) == 2
    assert f"error: {recipe}:4: there is no file " in capfd.readouterr().err
    lost.rename(recipe.with_name("train.jsonl"))
    assert (
        main(
            ["run", str(recipe), "--set", "adapt.model=./none", "--out", str(recipe.parent / "run")]
        )
        == 2
    )
    said = capfd.readouterr().err
    assert (
        f"{recipe}:3: ./none is not a model folder" in said and "or name an earlier stage" in said
    )
    assert not (recipe.parent / "run").exists()


def test_estimates_are_of_the_right_order(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "rate", lambda: 1e9)
    found = estimate.estimates(
        plan(load(recipe, ["sft.steps=null", "sft.epochs=3"]), recipe.parent / "run")
    )
    network = AutoModelForCausalLM.from_pretrained(recipe.parent / "base")
    parameters = sum(p.numel() for p in network.parameters())
    size = (recipe.parent / "train.jsonl").stat().st_size
    sft = found["sft"]
    assert sft.tokens == int(size / 4 * 3) and sft.seconds is not None and sft.memory is not None
    assert sft.seconds == pytest.approx(
        6 * parameters * size / 4 * 3 / (1e9 * estimate.REACHED), rel=0.01
    )
    assert sft.memory == pytest.approx(parameters * 16 / 2**30 + 0.5)
    check, size = found["check"], (recipe.parent / "questions.jsonl").stat().st_size
    # two models, forward alone
    assert check.seconds == pytest.approx(
        2 * 2 * parameters * (size // 4) / (1e9 * estimate.REACHED), rel=0.02
    )
    size = (recipe.parent / "domain.jsonl").stat().st_size
    assert found["adapt"].tokens == int(size / 4)  # 2 steps of 4 are its 8 rows


def tokens(recipe: Path, stage: str, *changes: str) -> int | None:
    return estimate.estimates(plan(load(recipe, changes), recipe.parent / "run"))[stage].tokens


def test_steps_are_estimated_from_the_rows_there_are(recipe: Path) -> None:
    size = (recipe.parent / "train.jsonl").stat().st_size / 4  # tokens of its 12 rows
    assert tokens(recipe, "sft") == int(size * 3)  # 6 steps of 6
    assert tokens(recipe, "sft", "sft.steps=7") == int(size * 3.5)
    # a batch is no more than an epoch
    assert tokens(recipe, "sft", "sft.batch_size=64", "sft.steps=2") == int(size * 2)
    assert tokens(
        recipe, "sft", f"sft.data=['{recipe.parent}/train.jsonl,limit=6']"
    ) == pytest.approx(size / 2 * 6, abs=6)


def test_replay_is_part_of_the_estimate(recipe: Path) -> None:
    """Half of an epoch is replay: as many rows as the domain has, each three times as long."""
    # 102 bytes with the line's end
    rows = making.write(recipe.parent / "general.jsonl", [{"text": "x" * 89}] * 100)
    alone = tokens(recipe, "adapt", "adapt.steps=4")
    assert rows.stat().st_size == 102 * 100 and alone is not None
    both = tokens(
        recipe, "adapt", f"adapt.replay={rows}", "adapt.replay_share=0.5", "adapt.steps=null"
    )
    assert both == pytest.approx(alone / 2 + 8 * 102 / 4, abs=1)
    assert (
        tokens(recipe, "adapt", f"adapt.replay={rows}", "adapt.replay_share=0.5", "adapt.steps=4")
        == both
    )


def test_an_estimate_knows_the_length_limit(recipe: Path) -> None:
    """Text of 1,000 tokens is 16 sequences of 64, of which a step takes four; an answer of as many
    is cut to 64.
    """
    (recipe.parent / "long.txt").write_text("x" * 4000)
    assert tokens(recipe, "adapt", f"adapt.data={recipe.parent}/long.txt") == 500
    assert (
        tokens(recipe, "adapt", f"adapt.data={recipe.parent}/long.txt", "adapt.truncate=right")
        == 2 * 64
    )
    rows = making.write(
        recipe.parent / "long.jsonl", [{"prompt": "x", "completion": "y" * 4000}] * 12
    )
    assert tokens(recipe, "sft", f"sft.data={rows}") == 36 * 64
    assert tokens(recipe, "sft", f"sft.data={rows}", "sft.max_length=32") == 36 * 32


@pytest.mark.parametrize("name", ["many.jsonl", "many.jsonl.gz", "many.json", "many.csv"])
def test_of_a_large_file_the_first_rows_tell(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    n, path = 60_000 if name.endswith("gz") else 9000, recipe.parent / name
    chance = random.Random(0)
    rows = [{"prompt": chance.randbytes(15).hex(), "completion": "y" * (i % 7)} for i in range(n)]
    if name.endswith(".csv"):
        path.write_text(
            "prompt,completion\n" + "".join(f"{r['prompt']},{r['completion']}\n" for r in rows)
        )
    elif name.endswith(".json"):
        path.write_text(json.dumps(rows))
    else:
        making.write(path, rows)
    whole = tokens(recipe, "sft", f"sft.data={path}", "sft.steps=null")
    monkeypatch.setattr(estimate, "SMALL", 1000)
    monkeypatch.setattr(estimate, "SAMPLE", n // 3)
    measured, seen = estimate._bytes, list[Any]()
    monkeypatch.setattr(estimate, "_bytes", lambda row: seen.append(row) or measured(row))
    found = tokens(recipe, "sft", f"sft.data={path}", "sft.steps=null")
    assert sum(row.where.startswith(str(path)) for row in seen) == n // 3
    assert found == pytest.approx(whole, rel=0.2 if name.endswith("gz") else 0.05)


def test_what_cannot_be_read_has_no_estimate(recipe: Path) -> None:
    rows = making.write(recipe.parent / "broken.jsonl", ["{"])
    assert tokens(recipe, "sft", f"sft.data={rows}") is None
    making.write(rows, [*small.TRAIN, "{"])  # what comes before the broken row will do
    assert tokens(recipe, "sft", f"sft.data={rows}") == tokens(recipe, "sft")


def test_the_estimate_is_near_what_a_run_computes(
    recipe: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run, general = (
        recipe.parent / "run",
        making.write(recipe.parent / "general.jsonl", [{"text": "a word and another"}] * 40),
    )
    changes = [f"adapt.replay={general}", "adapt.replay_share=0.3", "adapt.steps=12"]
    expected = tokens(recipe, "adapt", *changes)
    assert main(["run", str(recipe), "--out", str(run), "--quiet", "--set", *changes]) == 0
    found = json.loads((run / "summary.json").read_text())["stages"]["adapt"]["result"]["tokens"]
    # its tokens are bytes: four times as many, but for what is written around the text: {"text": …}
    assert expected is not None and 0.5 < 4 * expected / found < 2
    capfd.readouterr()


def test_the_rate_of_this_machine_is_no_fancy() -> None:
    assert 1e8 < estimate.rate() < 1e16
    assert estimate._parameters("embedded") == pytest.approx(15e6, rel=0.9)


def test_a_reason_is_of_the_stage_of_that_name(
    recipe: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """`sft-2` is no earlier `sft`."""
    run, two = recipe.parent / "run", recipe.parent / "two.yaml"
    body = (
        f"{{stage: sft, model: {recipe.parent}/base, data: {recipe.parent}/train.jsonl, steps: 1, "
        "device: cpu}"
    )
    two.write_text(f"stages:\n  sft-2: {body}\n")
    assert main(["run", str(two), "--out", str(run), "--quiet"]) == 0
    two.write_text(f"stages:\n  sft-2: {body}\n  sft: {body}\n")
    assert [(one.state, one.why) for one in plan(load(two), run)] == [
        ("made", ""),
        ("new", "not made yet"),
    ]
    assert [one.why for one in plan(load(two, ["sft-2.seed=4"]), run)] == [
        "seed was 0, is 4",
        "not made yet",
    ]
    other = making.model(recipe.parent / "other", seed=5)
    assert [one.why for one in plan(load(two, [f"sft-2.model={other}"]), run)] == [
        "model changed",
        "not made yet",
    ]
    capfd.readouterr()


def test_a_cache_may_move(recipe: Path) -> None:
    """Where stored log-probabilities are kept does not change what is learned from them."""
    pairs = making.write(
        recipe.parent / "pairs.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    )
    content = {
        "name": "dpo",
        "stages": {
            "dpo": {"stage": "preference", "model": f"{recipe.parent}/base", "data": str(pairs)}
        },
    }
    (before,) = plan(load(content), recipe.parent / "run")
    (after,) = plan(load(content, ["dpo.reference_cache=elsewhere"]), recipe.parent / "run")
    (other,) = plan(load(content, ["dpo.beta=0.3"]), recipe.parent / "run")
    assert before.digest == after.digest != other.digest


def test_weights_are_hashed_once(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = recipe.parent / "base" / "model.safetensors"
    os.utime(weights, (1e9, 1e9))  # long written: a file's clock is not fine enough for a new one
    hashed: list[Path] = []
    digest = files.sha256_file
    monkeypatch.setattr(files, "sha256_file", lambda path: hashed.append(path) or digest(path))
    assert main(["run", str(recipe), "--out", str(recipe.parent / "run"), "--quiet"]) == 0
    assert hashed.count(weights) == 1


def test_the_plan_is_readable_at_80_columns(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["plan", str(recipe), "--out", str(recipe.parent / "run")]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 or lines[0].startswith("small")
    for name in ("adapt", "sft", "check"):
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        assert "will run" in line and "GiB" in line
        assert "…" not in line
    assert not any("not made yet" in line for line in lines)  # "will run" says it
