"""The quickstart: the embedded model is what its card says, and the whole loop runs, fast the
second time.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.cli.main import main
from posttrain.engine.load import EMBEDDED, resolve
from posttrain.pipeline import quickstart
from posttrain.stages.index import entries
from tests.pipeline import small


def test_the_embedded_model_is_what_its_card_says() -> None:
    assert resolve("embedded") == EMBEDDED
    network, words = (
        AutoModelForCausalLM.from_pretrained(EMBEDDED),
        AutoTokenizer.from_pretrained(EMBEDDED),
    )
    assert round(network.num_parameters() / 1e6, 2) == 4.74
    assert (len(words), words.eos_token) == (4096, "<|end|>")
    # digits are split
    assert all(len(words.tokenize(text)) == len(text) for text in ("7", "1234567890"))
    assert sum(p.stat().st_size for p in EMBEDDED.iterdir()) < 12e6
    card = (EMBEDDED / "MODEL_CARD.md").read_text()
    made = json.loads((EMBEDDED / "made.json").read_text())
    assert (
        f"{made['tokens']:,} tokens" in card
        and f"{made['steps']:,} steps" in card
        and f"{made['seconds']} seconds" in card
    )
    prompt = words.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert prompt == "<|user|>\nHi<|end|>\n<|assistant|>\n"


def test_its_data_are_the_same_every_time_and_nothing_leaks(tmp_path: Path) -> None:
    files = quickstart.write_data(tmp_path / "a")
    again = quickstart.write_data(tmp_path / "b")
    read = {name: Path(path).read_text() for name, path in files.items()}
    assert read == {name: Path(path).read_text() for name, path in again.items()}
    questions = [json.loads(line)["prompt"] for line in read["questions"].splitlines()]
    assert len(questions) == quickstart.QUESTIONS
    taught = {
        message["content"]
        for line in read["demonstrations"].splitlines()
        for message in json.loads(line)["messages"]
    }
    assert not taught.intersection(questions)
    assert not set(read["held-text"].splitlines()) & set(read["text"].splitlines())
    pairs = {
        name: {json.loads(line)["prompt"][-1]["content"] for line in read[name].splitlines()}
        for name in ("reward-pairs", "polite-pairs", "polite-held")
    }
    assert (
        len(pairs["polite-held"]) == quickstart.HELD_PAIRS
        and not pairs["reward-pairs"] & pairs["polite-pairs"]
    )
    assert not pairs["polite-held"] & (pairs["reward-pairs"] | pairs["polite-pairs"] | taught)


@pytest.mark.slow
def test_the_whole_loop_runs_and_is_found_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in {
        "ADAPT": 16,
        "SFT": 160,
        "HELD_OUT": 8,
        "QUESTIONS": 24,
        "CHOICES": 8,
        "REWARD": 32,
        "PAIRS": 24,
        "HELD_PAIRS": 12,
        "ASKED": 32,
        "STEPS": 2,
    }.items():
        monkeypatch.setattr(quickstart, name, size)
    out = tmp_path / "run"
    assert main(["quickstart", "--out", str(out)]) == 0
    said = capfd.readouterr()
    assert (
        "held-out questions" in said.out and "difference, paired" in said.out.replace("\n", " ")
    ) or "paired" in said.out
    assert "1/8 adapt" in said.err and "8/8 improved" in said.err
    summary = json.loads((out / "summary.json").read_text())
    stages = ["adapt", "sft", "check", "reward", "preference", "compare", "rl", "improved"]
    assert list(summary["stages"]) == stages
    assert summary["stages"]["rl"]["result"]["exact"]  # though other stages ran in this process
    sft, check = summary["stages"]["sft"], summary["stages"]["check"]
    assert (
        sft["result"]["tokens_per_second"] > 0 and sft["seconds"] > 0 and len(sft["digest"]) == 64
    )
    assert sft["result"]["held_out"]["loss"] < sft["result"]["held_out_before"]["loss"]
    exact: dict[str, Any] = check["result"]["tasks"]["exact-questions"]
    assert exact["metrics"]["correct"]["n"] == 24
    assert set(exact["difference"]["correct"]) == {"mean", "low", "high", "n", "method"}
    assert summary["stages"]["reward"]["result"]["held_out"]["sequences"] == 12
    compared = summary["stages"]["compare"]["result"]["tasks"]
    assert compared["prefer-polite-held"]["difference"]["rewarded"]["mean"] > 0.9
    assert compared["win-polite-held"]["difference"]["win_rate"]["n"] == 12
    assert (out / "sft").resolve() == Path(sft["folder"]).resolve()

    small.forbid(monkeypatch, *entries())  # nothing runs again
    assert main(["quickstart", "--out", str(out), "--quiet"]) == 0
    assert capfd.readouterr().err == ""
