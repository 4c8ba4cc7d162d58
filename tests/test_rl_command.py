"""`posttrain rl` and `posttrain replay` end to end on a tiny random model; killed anywhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import posttrain
from posttrain.cli.main import main
from posttrain.core.files import sha256_file
from posttrain.core.journal import Journal
from posttrain.engine import learner, loop
from posttrain.environments.environment import SingleTurn
from posttrain.methods import kl
from tests import making
from tests.engine import lives

PROMPTS = [{"prompt": f"say {i} ", "answer": "w"} for i in range(8)]
HELD = [{"prompt": f"tell {i} ", "answer": "w"} for i in range(5)]
# how many vowels there are: a reward that a random model has some of, and can learn
LETTERS = """
def letters(prompts, completions, **columns):
    return [float(sum(map(text.count, "aeiou"))) for text in completions]
"""
# a scorer whose answers depend on how often it was called: nobody can ask it again
MOODY = """
import pathlib
def moody(prompts, completions, **columns):
    log = pathlib.Path(__file__).with_suffix(".log")
    with open(log, "a") as file:
        file.write("x")
    return [len(text) + log.stat().st_size / 8 * (i % 3) for i, text in enumerate(completions)]
"""
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = making.model(tmp_path_factory.mktemp("tiny") / "model")
    making.write(folder.parent / "prompts.jsonl", PROMPTS)
    making.write(folder.parent / "held.jsonl", HELD)
    (folder.parent / "letters.py").write_text(LETTERS)
    return folder


def command(tiny: Path, out: Path, *more: str | Path, steps: int = 3) -> list[str]:
    values = {
        "--model": tiny,
        "--data": tiny.parent / "prompts.jsonl",
        "--prompt-template": "{prompt}",
        "--scorer": f"{tiny.parent / 'letters.py'}:letters",
        "--out": out,
        "--steps": steps,
        "--n": 4,
        "--batch-size": 2,
        "--max-tokens": 8,
        "--learning-rate": 1e-3,
        "--device": "cpu",
    }
    given = [str(part) for part in more]
    options = [str(p) for pair in values.items() if pair[0] not in given for p in pair]
    return ["rl", *options, *given]


@pytest.fixture
def call(tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Call:
    """Runs the command; exit code, standard output, standard error."""

    def run(*more: str | Path, steps: int = 3) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(command(tiny, tmp_path / "run", *more, steps=steps))
        said = capfd.readouterr()
        return code, said.out, said.err

    return run


def steps(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if "loss" in record]


def weights(folder: Path) -> str:
    return sha256_file(folder / "model" / "model.safetensors")


# -------------------------------------------------------------------------------------- end to end


def test_a_run_from_the_command_line(call: Call, tiny: Path, tmp_path: Path) -> None:
    code, out, err = call("--validation", tiny.parent / "held.jsonl", steps=4)
    assert code == 0, err
    assert "reward of held-out prompts" in out and "difference, paired" in out
    assert "── reward" in err  # the curve
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["prompts"] == 8 and summary["steps"] == 4
    assert summary["held_out"]["reward"]["n"] == 5
    for record in steps(tmp_path / "run"):
        assert record["rollout/groups"] == 2 and 0 < record["rollout/length"] <= 8
    assert posttrain.Policy.load(tmp_path / "run" / "model").device.type == "cpu"
    code, _, err = call("--validation", tiny.parent / "held.jsonl", steps=4)
    assert code == 0 and "nothing to do" in err


def test_reward_rises(call: Call, tmp_path: Path) -> None:
    assert call("--learning-rate", "1e-2", "--batch-size", "4", "--beta", "0", steps=30)[0] == 0
    rewards = [record["reward"] for record in steps(tmp_path / "run")]
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 1


def test_at_a_learning_rate_of_almost_0_nothing_moves(call: Call, tmp_path: Path) -> None:
    """In exact mode, so that the sampler, the trainer and the reference agree to the bit."""
    code, _, err = call("--learning-rate", "1e-30", "--passes", "2", "--parts", "2", steps=3)
    assert code == 0 and "exact" in err
    for record in steps(tmp_path / "run"):
        assert record["rollout/kl"] == 0
        assert record["policy/ratio"] == 1 and record["policy/mismatch"] == 0


def test_a_sampler_that_is_not_exact_is_said_and_corrected_for(call: Call, tmp_path: Path) -> None:
    code, _, err = call("--no-exact", "--top-p", "0.9", steps=2)
    assert code == 0 and "exact" not in err
    for record in steps(tmp_path / "run"):
        assert 0 < record["policy/mismatch"] < 1e-5
    code, _, err = call("--exact", "--top-p", "0.9", "--out", tmp_path / "other")
    assert code == 2 and "--exact" in err


def test_every_journalled_answer_has_its_score(call: Call, tiny: Path, tmp_path: Path) -> None:
    assert call("--gold", "shortest", "--gold-samples", "3", steps=2)[0] == 0
    lines = (tmp_path / "run" / "rollouts" / "records.jsonl").read_text().splitlines()
    records = [json.loads(line)["record"]["value"] for line in lines[1:]]
    kinds = [(record["kind"], record["step"]) for record in records]
    assert kinds == [("rollouts", 0), ("scores", 0), ("rollouts", 1), ("scores", 1)]
    for drawn, scored in zip(records[::2], records[1::2], strict=True):
        texts = iter(drawn["texts"])
        for group, gold in zip(scored["scores"], scored["gold"], strict=True):
            for score, other in zip(group, gold, strict=True):
                text = next(texts)
                assert score["value"] == sum(map(text.count, "aeiou"))
                assert other is None or other["value"] == -len(text)
        assert sum(g is not None for group in scored["gold"] for g in group) == 3
    assert "gold" in steps(tmp_path / "run")[0]


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (("--n", "1"), "--n is 1"),
        (("--gold", "longest", "--scorer", "longest"), "would notice nothing"),
        (("--gold-samples", "3"), "--gold"),
        (("--scorer", "nmber"), "number"),
        (("--clip-value", "0.5"), "grpo"),
        (("--reference", "adapters"), "--lora"),
        (("--beta", "0", "--reference", "copy"), "has no effect"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    call: Call, tmp_path: Path, more: tuple[str, ...], what: str
) -> None:
    code, _, err = call(*more)
    assert code == 2 and what in err and not (tmp_path / "run").exists()


def test_a_scorer_that_always_fails_ends_the_run(call: Call, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def bad(completions, **columns):\n    raise ValueError('no')")
    code, _, err = call("--scorer", f"{tmp_path / 'bad.py'}:bad")
    assert code == 2 and "ValueError: no" in err


def test_rows_that_a_verifier_cannot_judge_are_refused_before_anything_is_sampled(
    call: Call, tmp_path: Path
) -> None:
    making.write(tmp_path / "asked.jsonl", [{"prompt": f"say {i} "} for i in range(4)])
    for option in ("--data", "--validation"):
        code, _, err = call("--scorer", "exact", option, tmp_path / "asked.jsonl")
        assert code == 2 and "no wanted answer" in err and "asked.jsonl" in err
        assert not (tmp_path / "run").exists()


def test_a_function_that_mostly_says_nothing_ends_the_run(call: Call, tmp_path: Path) -> None:
    (tmp_path / "shy.py").write_text(
        "def shy(completions, **columns):\n    return [None] * len(completions)"
    )
    code, _, err = call("--scorer", f"{tmp_path / 'shy.py'}:shy")
    assert code == 2 and "cannot judge 8 of 8 answers" in err and "Traceback" not in err


def test_answers_without_a_score_are_no_zeros(call: Call, tmp_path: Path) -> None:
    source = "def half(completions, **columns):\n"
    source += "    return [None if i % 2 else 5.0 + i for i in range(len(completions))]\n"
    (tmp_path / "half.py").write_text(source)
    assert call("--scorer", f"{tmp_path / 'half.py'}:half", steps=1)[0] == 0
    (record,) = steps(tmp_path / "run")
    assert record["rollout/unscored"] == 0.5 and record["reward"] >= 5


def test_prompts_whose_answers_are_alike_are_left_out_and_others_drawn(
    call: Call, tiny: Path, tmp_path: Path
) -> None:
    source = "def even(prompts, completions, **columns):\n"
    source += "    return [float(len(c)) if int(p.split()[1]) % 2 else 1.0"
    source += " for p, c in zip(prompts, completions)]\n"
    (tmp_path / "even.py").write_text(source)
    scorer = f"{tmp_path / 'even.py'}:even"
    assert call("--scorer", scorer, "--rounds", "6", "--max-tokens", "16", steps=3)[0] == 0
    for record in steps(tmp_path / "run"):
        assert record["rollout/groups"] == 2
    assert max(record["rollout/same_reward"] for record in steps(tmp_path / "run")) > 0


def test_a_policy_that_leaves_its_reference_is_said_or_ends_the_run(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = ("--learning-rate", "1e-2", "--batch-size", "4", "--n", "8")
    monkeypatch.setattr(kl, "ALARM", 1e-6)
    code, out, err = call(*fast, steps=5)
    assert code == 0 and err.count("nats a completion from its reference") == 1
    (alarm,) = json.loads((tmp_path / "run" / "summary.json").read_text())["alarms"]
    assert "from its reference" in alarm and "from its reference" in out
    code, _, err = call(*fast, "--max-kl", "1e-6", "--out", tmp_path / "other", steps=5)
    assert code == 2 and "max_kl is 1e-06" in err and not (tmp_path / "other" / "model").exists()


# ------------------------------------------------------------------------------------------- killed


def deaths() -> list[Callable[[], None]]:
    """Where a life ends: after the first sampling, in the middle of scoring, with rollouts written
    and no scores, before an update, and in the loop between two steps.
    """
    return [
        lives._after(SingleTurn, "act", 1),
        lives._after(SingleTurn, "score", 1, before=True),
        lives._after(SingleTurn, "score", 2),
        lives._after(Journal, "append", 3),
        lives._after(Journal, "append", 4),
        lives._after(learner.Learner, "step", 2, before=True),
        lives._after(learner.Learner, "step", 3),
        lives._after(loop, "_log", 2),
    ]


@pytest.mark.parametrize("method", ["grpo", "ppo"])
def test_killed_anywhere_it_ends_with_the_same_weights(
    tiny: Path, tmp_path: Path, method: str
) -> None:
    whole, broken, log = tmp_path / "whole", tmp_path / "broken", tmp_path / "log"

    def argv(folder: Path) -> list[str]:
        return command(tiny, folder, "--method", method, "--checkpoint-every", "2", steps=7)

    assert lives.wait(lives.live(argv(whole), log=log)) == 0, log.read_text()
    # half of the deaths for each: lives cost seconds
    for death in deaths()[method == "ppo" :: 2]:
        assert lives.wait(lives.live(argv(broken), death, log)) == -9, log.read_text()
    assert lives.wait(lives.live(argv(broken), log=log)) == 0, log.read_text()
    assert weights(whole) == weights(broken)
    same = ("reward", "loss", "grad_norm", "rollout/length")
    assert [[r[n] for n in same] for r in steps(whole)] == [
        [r[n] for n in same] for r in steps(broken)
    ]


def test_a_scorer_is_not_asked_again_for_what_it_said(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "moody.py").write_text(MOODY)
    log = tmp_path / "log"
    argv = command(tiny, tmp_path / "run", "--scorer", f"{tmp_path / 'moody.py'}:moody", steps=5)
    for written in (2, 2, 4):  # its scores are written: of one more step, and of two
        assert lives.wait(lives.live(argv, lives._after(Journal, "append", written), log)) == -9
    assert lives.wait(lives.live(argv, log=log)) == 0, log.read_text()
    assert (tmp_path / "moody.log").stat().st_size == 5  # once a step


# -------------------------------------------------------------------------------------- run again


def test_a_step_run_again_is_the_same_to_the_bit(
    call: Call, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call("--checkpoint-every", "1", "--passes", "2", steps=4)[0] == 0
    for step in ("1", "3", "4"):
        assert main(["replay", str(tmp_path / "run"), "--step", step]) == 0
        assert "to the bit" in capfd.readouterr().out
    before = _times(tmp_path / "run")
    assert main(["replay", str(tmp_path / "run"), "--step", "2"]) == 0
    assert before == _times(tmp_path / "run")  # nothing was touched


def _times(folder: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.name != ".lock"}


def test_replay_names_the_first_tensor_that_differs(
    call: Call, tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    many = ("--batch-size", "4", "--n", "8")  # so that rewards differ in the first step
    assert call(*many, steps=3)[0] == 0
    run = str(tmp_path / "run")
    assert main(command(tiny, tmp_path / "other", "--learning-rate", "2e-3", *many)) == 0
    capfd.readouterr()
    assert main(["replay", run, "--step", "1", "--against", str(tmp_path / "other")]) == 10
    assert "after the step" in capfd.readouterr().out  # the rate is all that differs
    assert main(["replay", run, "--step", "2", "--against", str(tmp_path / "other")]) == 10
    assert "before the step" in capfd.readouterr().out
    assert main(command(tiny, tmp_path / "seed", "--seed", "1", *many)) == 0
    assert main(["replay", run, "--step", "1", "--against", str(tmp_path / "seed")]) == 10
    assert "tokens" in capfd.readouterr().out


def test_replay_refuses_what_is_no_run_and_no_step(
    call: Call, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(steps=2)[0] == 0
    for argv, what in (
        ([str(tmp_path / "run"), "--step", "3"], "of a run of 2 steps"),
        ([str(tmp_path / "run"), "--step", "x"], "no number"),
        ([str(tmp_path), "--step", "1"], "command.json"),
    ):
        capfd.readouterr()
        assert main(["replay", *argv]) == 2
        assert what in capfd.readouterr().err
    shutil.rmtree(tmp_path / "run" / "rollouts")
    assert main(["replay", str(tmp_path / "run"), "--step", "1"]) == 2
