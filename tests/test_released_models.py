"""Models as they are released, through whole commands: what is odd is said and survived."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoModelForCausalLM, GenerationConfig

from posttrain.cli.main import main
from posttrain.engine import export
from posttrain.engine.metrics import MetricsLog
from tests import making, tiny

ROWS = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(3) for b in range(3)]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    making.write(tmp_path / "rows.jsonl", ROWS)
    return making.model(tmp_path / "base")


def sft(base: Path, *more: str) -> int:
    rows, out = base.parent / "rows.jsonl", base.parent / "run"
    argv = ["sft", "--model", base, "--data", rows, "--out", out, "--steps", "1", "--device", "cpu"]
    return main([*map(str, argv), *more])


@pytest.mark.parametrize("more", [[], ["--lora"]])
def test_a_generation_config_that_transformers_would_not_write(
    base: Path, more: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    odd = {"eos_token_id": 0, "do_sample": False, "temperature": 0.9, "top_p": 0.6}
    (base / "generation_config.json").write_text(json.dumps(odd))
    assert sft(base, *more) == 0
    said = " ".join(capfd.readouterr().err.split())
    assert "left out of the result's: temperature 0.9, top_p 0.6" in said
    result = base.parent / "run" / "model"
    written = GenerationConfig.from_pretrained(result)
    assert (written.temperature, written.top_p, written.do_sample) == (None, None, False)
    AutoModelForCausalLM.from_pretrained(result)


def test_what_would_fail_in_the_end_fails_at_once_and_the_same_command_goes_on(
    base: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(export.shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    assert sft(base) == 2
    assert "0.00 GiB left" in capfd.readouterr().err
    run = base.parent / "run"
    assert not (run / "run.json").exists() and not (run / "metrics.jsonl").exists()
    monkeypatch.undo()
    assert sft(base) == 0 and (run / "model" / "model.safetensors").is_file()


def test_the_routers_loss_is_logged(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    asked = {"output_router_logits": True, "router_aux_loss_coef": 0.01}
    base = tiny.folder(tmp_path / "base", "qwen3_moe", **asked)
    making.write(tmp_path / "rows.jsonl", [{"prompt": "w3 w4", "completion": " w5 w6"}] * 3)
    assert sft(base, "--prompt-template", "{prompt}") == 0
    assert "load-balancing loss is added" in " ".join(capfd.readouterr().err.split())
    (step,) = MetricsLog(tmp_path / "run" / "metrics.jsonl").read()
    assert 0.5 < step["router_loss"] < 4 and step["loss"] > 0.01 * step["router_loss"]


def test_an_answer_ends_at_the_last_position_and_that_is_said(
    base: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    questions = [{"prompt": "x" * 50, "completion": "z"}, {"prompt": "x" * 70, "completion": "z"}]
    rows = making.write(base.parent / "q.jsonl", questions)
    out = base.parent / "eval"
    argv = ["eval", "--model", base, "--exact", rows, "--out", out, "--device", "cpu"]
    assert main([*map(str, argv), "--prompt-template", "{prompt}"]) == 0
    said = " ".join(capfd.readouterr().err.split())
    assert "the model knows 64 positions: 2 of 2 answers" in said and "1 of them before" in said
    records = [json.loads(line) for line in (out / "exact-q.jsonl").read_text().splitlines()]
    assert [record["values"]["tokens"] for record in records] == [14, 0]
