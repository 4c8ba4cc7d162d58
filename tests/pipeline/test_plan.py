"""What a stage's digest depends on, what a plan says, and what it estimates."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from posttrain.cli.main import main
from posttrain.core.errors import PosttrainError
from posttrain.pipeline import code, estimate
from posttrain.pipeline.plan import plan
from posttrain.pipeline.recipe import load
from tests import making
from tests.pipeline import small


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return small.bench(tmp_path)


def digests(recipe: Path, *changes: str, out: str = "run") -> dict[str, str]:
    return {one.stage.name: one.digest for one in plan(load(recipe, changes), recipe.parent / out)}


def changed(before: dict[str, str], after: dict[str, str]) -> list[str]:
    return [name for name in before if before[name] != after[name]]


def test_the_digest_does_not_depend_on_the_process(recipe: Path) -> None:
    argv = [sys.executable, "-m", "posttrain", "plan", str(recipe), "--out", str(recipe.parent / "run"), "--json"]
    both = [subprocess.Popen(argv, stdout=subprocess.PIPE, env={**os.environ, "PYTHONHASHSEED": seed}) for seed in ("1", "2")]
    found = [json.loads(one.communicate(timeout=60)[0]) for one in both]
    for some in found:
        assert {one["stage"]: one["digest"] for one in some} == digests(recipe)


def test_the_digest_covers_what_a_stage_reads_and_no_more(recipe: Path) -> None:
    before = digests(recipe)
    assert len(set(before.values())) == 3
    assert changed(before, digests(recipe, "sft.device=''", "adapt.checkpoint_every=1",
                                   "sft.checkpoint_keep=9", out="other")) == []
    assert changed(before, digests(recipe, "adapt.seed=1")) == ["adapt", "sft", "check"]
    assert changed(before, digests(recipe, "sft.learning_rate=0.02")) == ["sft", "check"]
    assert changed(before, digests(recipe, "check.max_tokens=5")) == ["check"]
    assert changed(before, digests(recipe, "check.against=sft")) == ["check"]
    making.write(recipe.parent / "questions.jsonl", small.QUESTIONS[:3])
    assert changed(before, now := digests(recipe)) == ["check"]
    making.write(recipe.parent / "train.jsonl", [{"prompt": "0+0=", "completion": "1"}, *small.TRAIN[1:]])
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


def test_the_digest_covers_the_code(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digests(recipe)
    source = code._source

    def edited(module: str) -> Any:
        return lambda one: source(one) + (b"#" if one == module else b"")

    for module, stages in (("posttrain.stages.evaluate", ["check"]), ("posttrain.evals.stats", ["check"]),
                           ("posttrain.engine.loop", ["adapt", "sft", "check"]), ("posttrain.cli.chat", []),
                           ("posttrain.methods.supervised", ["adapt", "sft", "check"])):
        monkeypatch.setattr(code, "_source", edited(module))
        assert changed(before, digests(recipe)) == stages, module


def test_what_is_not_there_is_told_before_anything_is_made(recipe: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PosttrainError, match=r"there is no file none\.jsonl"):
        digests(recipe, "sft.data=none.jsonl")
    assert main(["run", str(recipe), "--set", "adapt.model=./none", "--out", str(recipe.parent / "run")]) == 2
    said = capfd.readouterr().err
    assert f"{recipe}:3: ./none is not a model folder" in said and "or name an earlier stage" in said
    assert not (recipe.parent / "run").exists()


def test_estimates_are_of_the_right_order(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "rate", lambda: 1e9)
    found = estimate.estimates(plan(load(recipe, ["sft.steps=null", "sft.epochs=3"]), recipe.parent / "run"))
    network = AutoModelForCausalLM.from_pretrained(recipe.parent / "base")
    parameters = sum(p.numel() for p in network.parameters())
    size = (recipe.parent / "train.jsonl").stat().st_size
    sft = found["sft"]
    assert sft.tokens == int(size / 4 * 3) and sft.seconds is not None and sft.memory is not None
    assert sft.seconds == pytest.approx(6 * parameters * size / 4 * 3 / (1e9 * estimate.REACHED), rel=0.01)
    assert sft.memory == pytest.approx(parameters * 16 / 2**30 + 0.5)
    check, size = found["check"], (recipe.parent / "questions.jsonl").stat().st_size
    # two models, forward alone
    assert check.seconds == pytest.approx(2 * 2 * parameters * (size // 4) / (1e9 * estimate.REACHED), rel=0.02)
    assert found["adapt"].tokens == 2 * 4 * 256


def test_the_rate_of_this_machine_is_no_fancy() -> None:
    assert 1e8 < estimate.rate() < 1e16
    assert estimate._parameters("embedded") == pytest.approx(15e6, rel=0.9)


def test_a_reason_is_of_the_stage_of_that_name(recipe: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """`sft-2` is no earlier `sft`."""
    run, two = recipe.parent / "run", recipe.parent / "two.yaml"
    body = f"{{stage: sft, model: {recipe.parent}/base, data: {recipe.parent}/train.jsonl, steps: 1, device: cpu}}"
    two.write_text(f"stages:\n  sft-2: {body}\n")
    assert main(["run", str(two), "--out", str(run), "--quiet"]) == 0
    two.write_text(f"stages:\n  sft-2: {body}\n  sft: {body}\n")
    assert [(one.state, one.why) for one in plan(load(two), run)] == [("made", ""), ("new", "not made yet")]
    assert [one.why for one in plan(load(two, ["sft-2.seed=4"]), run)] == ["seed was 0, is 4", "not made yet"]
    other = making.model(recipe.parent / "other", seed=5)
    assert [one.why for one in plan(load(two, [f"sft-2.model={other}"]), run)] == ["model changed", "not made yet"]
    capfd.readouterr()
