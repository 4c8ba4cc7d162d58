"""`posttrain reward-model` and `posttrain judge` end to end, on the embedded model and on one of
thirty thousand parameters; checked with plain transformers and by hand.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence as Many
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

import posttrain
from posttrain.cli.main import main
from posttrain.core.files import sha256_file
from posttrain.engine.reward import RewardModel
from posttrain.evals import stats
from posttrain.evals.records import read_records
from posttrain.pipeline.run import run_recipe
from tests import making
from tests.engine.test_shared_models import SHARED, given
from tests.scoring.toy_scorer import shout

KIND = ("I hope this helps.", "Happy to help!")
CURT = ("Everybody knows that.", "Do not bother me.")
PAIRS = [
    {
        "prompt": f"Please add {a} and {b}.",
        "chosen": f"{a + b}\n{KIND[(a + b) % 2]}",
        "rejected": f"{a + b}\n{CURT[a % 2]}",
        "category": "even" if a % 2 == 0 else "odd",
        "margin": 0.5 * b,
    }
    for a in range(10)
    for b in range(1, 7)
]
TRAIN, HELD = PAIRS[:40], PAIRS[40:]
STEPS = [
    {
        "prompt": f"{a} + 1 + 1?",
        "completions": [f"{a} + 1 = {a + 1}", f"{a + 1} + 1 = {a + 2 + wrong}"],
        "labels": [True, not wrong],
    }
    for a in range(12)
    for wrong in (0, 1)
]


def run(capfd: pytest.CaptureFixture[str], *argv: Any) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    code = main([str(a) for a in argv])
    said = capfd.readouterr()
    return code, said.out, said.err


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def written(words: Any, row: dict[str, Any], side: str) -> str:
    """The row's question and one of its answers, up to the token that ends it."""
    messages = [
        {"role": "user", "content": row["prompt"]},
        {"role": "assistant", "content": row[side]},
    ]
    return words.apply_chat_template(messages, tokenize=False).rstrip("\n")


@torch.no_grad()
def rewards(model: Path, rows: Many[dict[str, Any]]) -> list[tuple[float, float]]:
    """Of the chosen and the rejected answer of every row: transformers alone, everything in one
    padded batch.
    """
    words, network = (
        AutoTokenizer.from_pretrained(model),
        AutoModelForSequenceClassification.from_pretrained(model).eval(),
    )
    texts = [written(words, row, side) for row in rows for side in ("chosen", "rejected")]
    batch = words(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    found = (
        network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        .logits.mean(1)
        .tolist()
    )
    return list(zip(found[0::2], found[1::2], strict=True))


def loss(pairs: Many[tuple[float, float]], center: float = 0.01) -> float:
    return sum(math.log1p(math.exp(b - a)) + center * (a + b) ** 2 for a, b in pairs) / len(pairs)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, rows in (
        ("train", TRAIN),
        ("held", HELD),
        ("steps", STEPS[:16]),
        ("held-steps", STEPS[16:]),
    ):
        making.write(folder / f"{name}.jsonl", rows)
    making.model(folder / "tiny", positions=256)
    return folder


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps of all forty pairs, on the embedded model."""
    out = tmp_path_factory.mktemp("run") / "rm"
    code = main(
        [
            str(a)
            for a in (
                "reward-model",
                "--model",
                "embedded",
                "--data",
                data / "train.jsonl",
                "--validation",
                data / "held.jsonl",
                "--out",
                out,
                "--batch-size",
                40,
                "--steps",
                3,
                "--learning-rate",
                1e-4,
                "--warmup",
                0,
                "--schedule",
                "constant",
                "--validate-every",
                3,
                "--device",
                "cpu",
                "--quiet",
            )
        ]
    )
    assert code == 0
    return out


# -------------------------------------------------------------------------------- the whole command


def test_the_numbers_of_a_run_are_those_of_plain_transformers(
    trained: Path, data: Path, tmp_path: Path
) -> None:
    """The first loss is that of the drawn head on all pairs, by hand; the last held-out numbers are
    those of the exported folder in one padded batch.
    """
    start = RewardModel.load("embedded", device="cpu", seed=0)
    start.set_chat(AutoTokenizer.from_pretrained(trained / "model").chat_template, "<|end|>")
    start.save(tmp_path / "start")
    records, found = log(trained), summary(trained)
    first = next(one for one in records if one["step"] == 1)
    before = rewards(tmp_path / "start", TRAIN)
    assert first["loss"] == pytest.approx(loss(before), rel=1e-4)
    assert first["rewards/chosen"] == pytest.approx(
        sum(a for a, _ in before) / 40, rel=1e-3, abs=1e-5
    )
    assert first["rewards/margins"] == pytest.approx(
        first["rewards/chosen"] - first["rewards/rejected"], abs=1e-6
    )
    assert first["learning_rate"] == 1e-4

    after = rewards(trained / "model", HELD)
    held = found["held_out"]
    assert found["held_out_before"]["loss"] == pytest.approx(
        loss(rewards(tmp_path / "start", HELD)), rel=1e-4
    )
    assert held["step"] == 3 and held["loss"] == pytest.approx(loss(after), rel=1e-4)
    assert held["accuracy"] == sum(a > b for a, b in after) / len(HELD)
    assert held["loss"] < found["held_out_before"]["loss"] - 0.1
    assert (held["sequences"], held["judged"]) == (20, 20)
    assert (found["rows"], found["sequences"], found["learning_rate"]) == (40, 80, 1e-4)
    gaps = [len(row["chosen"]) - len(row["rejected"]) for row in HELD]
    longest = sum((gap > 0) + 0.5 * (gap == 0) for gap in gaps) / 20
    assert held["baselines"]["longest"]["mean"] == pytest.approx(longest)
    assert held["baselines"]["shortest"]["mean"] == pytest.approx(1 - longest)
    assert held["baselines"]["longest"]["difference"]["mean"] == pytest.approx(
        held["accuracy"] - longest
    )
    shorter = [i for i, gap in enumerate(gaps) if gap < 0]
    assert held["shorter_chosen"] == len(shorter)
    if shorter:
        assert held["accuracy_shorter_chosen"] == sum(
            after[i][0] > after[i][1] for i in shorter
        ) / len(shorter)
    config = json.loads((trained / "model" / "config.json").read_text())
    assert (
        config["architectures"] == ["LlamaForSequenceClassification"]
        and config["pad_token_id"] == 1
    )
    assert config["id2label"] == {"0": "LABEL_0"} and config["posttrain"]["heads"] == 1


def test_the_rate_of_the_head_is_ten_times_the_trunks(data: Path, tmp_path: Path) -> None:
    """One step of Adam moves every weight that has a gradient by its rate: 1e-5, and of the head
    1e-4.
    """
    start = RewardModel.load(data / "tiny", device="cpu", seed=0).network.inner.state_dict()
    outcome = posttrain.reward_model(
        model=data / "tiny",
        data=data / "train.jsonl",
        out=tmp_path / "rm",
        steps=1,
        batch_size=40,
        warmup=0,
        device="cpu",
        quiet=True,
        clip=0,
    )
    after = AutoModelForSequenceClassification.from_pretrained(outcome.model).state_dict()
    moved = {name: float((after[name] - start[name]).abs().max()) for name in start}
    assert moved["score.weight"] == pytest.approx(1e-4, rel=1e-2)
    assert moved["model.layers.0.mlp.up_proj.weight"] == pytest.approx(1e-5, rel=1e-2)


def test_margins_heads_and_center_are_in_the_loss(data: Path, tmp_path: Path) -> None:
    out = posttrain.reward_model(
        model=data / "tiny",
        data=data / "train.jsonl",
        out=tmp_path / "rm",
        steps=1,
        batch_size=40,
        heads=2,
        center=0.3,
        use_margins=True,
        device="cpu",
        quiet=True,
    )
    model = RewardModel.load(data / "tiny", device="cpu", heads=2)
    model.set_chat(AutoTokenizer.from_pretrained(out.model).chat_template, "<|end|>")
    model.save(tmp_path / "start")
    words, total = AutoTokenizer.from_pretrained(out.model), 0.0
    network = AutoModelForSequenceClassification.from_pretrained(tmp_path / "start")
    for row in TRAIN:
        a, b = (
            network(
                input_ids=words(
                    written(words, row, side), add_special_tokens=False, return_tensors="pt"
                )["input_ids"]
            )
            .logits[0]
            .tolist()
            for side in ("chosen", "rejected")
        )
        total += (
            sum(
                math.log1p(math.exp(row["margin"] - (x - y))) + 0.3 * (x + y) ** 2
                for x, y in zip(a, b, strict=True)
            )
            / 2
        )
    (first,) = (one for one in log(out.folder) if "loss" in one)
    assert first["loss"] == pytest.approx(total / 40, rel=1e-4)
    assert first["uncertainty"] > 0


def test_lora_ends_as_a_plain_folder_and_an_adapter(data: Path, tmp_path: Path) -> None:
    out = posttrain.reward_model(
        model=data / "tiny",
        data=data / "train.jsonl",
        validation=data / "held.jsonl",
        lora=True,
        out=tmp_path / "rm",
        steps=2,
        batch_size=40,
        learning_rate=0.01,
        device="cpu",
        quiet=True,
    )
    held = out.summary["held_out"]
    assert held["loss"] == pytest.approx(loss(rewards(out.model, HELD)), rel=1e-4)
    assert (out.folder / "adapter" / "base.json").is_file() and out.summary["learning_rate"] == 0.01


def test_steps_end_as_a_token_classification_folder(data: Path, tmp_path: Path) -> None:
    """Held-out accuracy from transformers' logits at the line breaks, which end the steps."""
    out = posttrain.reward_model(
        model=data / "tiny",
        data=data / "steps.jsonl",
        validation=data / "held-steps.jsonl",
        steps=2,
        out=tmp_path / "prm",
        batch_size=16,
        method="process",
        learning_rate=1e-3,
        device="cpu",
        quiet=True,
    )
    words, network = (
        AutoTokenizer.from_pretrained(out.model),
        AutoModelForTokenClassification.from_pretrained(out.model).eval(),
    )
    held, right, total = out.summary["held_out"], 0, 0.0
    for row in STEPS[16:]:
        text = words.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}], tokenize=False, add_generation_prompt=True
        )
        ids = words(text, add_special_tokens=False)["input_ids"]
        ends = []
        for step in row["completions"]:
            ids += words(step + "\n", add_special_tokens=False)["input_ids"]
            ends.append(len(ids) - 1)
        logits = network(input_ids=torch.tensor([ids])).logits[0, ends, 0].tolist()
        right += sum((z > 0) == y for z, y in zip(logits, row["labels"], strict=True))
        total += sum(
            math.log1p(math.exp(-z if y else z)) for z, y in zip(logits, row["labels"], strict=True)
        )
    assert (held["accuracy"], held["loss"]) == pytest.approx((right / 16, total / 16), rel=1e-4)
    assert held["baselines"]["always right"]["mean"] == 12 / 16 and (
        held["sequences"],
        held["judged"],
    ) == (8, 16)
    assert out.summary["targets"] == 2 * 32


def test_answers_to_one_question_are_one_cluster_whatever_their_first_step(
    data: Path, tmp_path: Path
) -> None:
    """Twelve answers to three questions, no two with the same first step: the interval of held-out
    accuracy is that of three clusters, read from transformers' logits.
    """
    rows = [
        {
            "prompt": f"{a} + 1 + 1?",
            "completions": [f"{a} + {'1' * k} = {a + k}", f"{a + k} + 1 = {a + 2}"],
            "labels": [k == 1, k < 3],
        }
        for a in range(3)
        for k in range(1, 5)
    ]
    out = posttrain.reward_model(
        model=data / "tiny",
        data=data / "steps.jsonl",
        validation=making.write(tmp_path / "held.jsonl", rows),
        steps=1,
        out=tmp_path / "prm",
        method="process",
        device="cpu",
        quiet=True,
    )
    network = AutoModelForTokenClassification.from_pretrained(out.model).eval()
    words = AutoTokenizer.from_pretrained(out.model)
    right: list[float] = []
    for row in rows:
        shown = [{"role": "user", "content": row["prompt"]}]
        text = words.apply_chat_template(shown, tokenize=False, add_generation_prompt=True)
        ids, ends = words(text, add_special_tokens=False)["input_ids"], []
        for step in row["completions"]:
            ids += words(step + "\n", add_special_tokens=False)["input_ids"]
            ends.append(len(ids) - 1)
        with torch.no_grad():
            logits = network(input_ids=torch.tensor([ids])).logits[0, ends, 0].tolist()
        right += [float((z > 0) == y) for z, y in zip(logits, row["labels"], strict=True)]
    expected = stats.share(right, [i // 8 for i in range(24)])
    held = out.summary["held_out"]
    assert held["accuracy"] == pytest.approx(expected.mean)
    assert (held["accuracy_low"], held["accuracy_high"]) == (expected.low, expected.high)
    assert stats.share(right, [i // 2 for i in range(24)]) != expected  # as it was by answer


@pytest.mark.parametrize("method", ["bradley_terry", "process"])
def test_a_killed_run_ends_with_the_same_weights(method: str, data: Path, tmp_path: Path) -> None:
    """SIGKILL after the second step; the same command goes on."""
    rows = "steps" if method == "process" else "train"
    argv = [
        "reward-model",
        "--model",
        str(data / "tiny"),
        "--data",
        str(data / f"{rows}.jsonl"),
        "--method",
        method,
        "--steps",
        "5",
        "--batch-size",
        "6",
        "--heads",
        "2",
        "--learning-rate",
        "1e-3",
        "--checkpoint-every",
        "1",
        "--device",
        "cpu",
        "--out",
    ]
    script = (
        "import json, sys; from pathlib import Path; from tests.engine.lives import die_after_step,"
        " live, wait\nargv, log = json.loads(sys.argv[1]), "
        "Path(sys.argv[2])\nprint([wait(live([*argv, out], die_after_step(2) if dies else None, "
        "log)) for out, dies in json.loads(sys.argv[3])])"
    )
    plan = [
        [str(tmp_path / "killed"), True],
        [str(tmp_path / "killed"), False],
        [str(tmp_path / "whole"), False],
    ]
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(argv), str(tmp_path / "log"), json.dumps(plan)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.stdout.strip() == "[-9, 0, 0]", (
        done.stdout + done.stderr + (tmp_path / "log").read_text()[-3000:]
    )
    assert "resuming after step" in (tmp_path / "log").read_text()
    assert sha256_file(tmp_path / "killed/model/model.safetensors") == sha256_file(
        tmp_path / "whole/model/model.safetensors"
    )


# ------------------------------------------------------------------------------------ what is wrong

BAD: dict[str, tuple[list[Any], str]] = {
    "an empty side": (
        [*TRAIN[:2], {**TRAIN[2], "rejected": " "}],
        r"rows.jsonl:3: the text to learn is empty",
    ),
    "the same twice": (
        [{**row, "rejected": row["chosen"]} for row in TRAIN],
        "more than half of the rows",
    ),
    "no pair": (
        [{"prompt": "a", "completion": "b"}],
        r"rows.jsonl:1: a demonstration, where a pair of answers is wanted",
    ),
    "two shapes": (
        [TRAIN[0], {"prompt": "a", "completion": "b", "label": True}],
        r"rows.jsonl:2: this row is label; the source",
    ),
    "text and messages": (
        [{**TRAIN[0], "chosen": [{"role": "assistant", "content": "a"}]}],
        "one is text and one is messages",
    ),
    "steps": ([STEPS[0]], r"rows.jsonl:1: steps with labels, where a pair is wanted"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_rows_are_named(
    what: str, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows, pattern = BAD[what]
    path = making.write(tmp_path / "rows.jsonl", rows)
    code, _, err = run(
        capfd, "reward-model", "--model", data / "tiny", "--data", path, "--out", tmp_path / "rm"
    )
    assert code == 2 and "cure:" in err
    assert pattern.replace("\\", "") in " ".join(err.split()) or pytest.fail(err)
    assert not (tmp_path / "rm" / "run.json").exists()


def test_some_pairs_that_are_the_same_are_left_out_and_counted(data: Path, tmp_path: Path) -> None:
    path = making.write(
        tmp_path / "rows.jsonl", [*TRAIN[:6], {**TRAIN[6], "rejected": TRAIN[6]["chosen"]}]
    )
    out = posttrain.reward_model(
        model=data / "tiny", data=path, out=tmp_path / "rm", steps=1, device="cpu", quiet=True
    )
    assert (
        out.summary["dropped"] == {"chosen and rejected are the same": 1}
        and out.summary["sequences"] == 12
    )


@pytest.mark.parametrize(
    ("more", "pattern"),
    [
        (("--use-margins",), "--use-margins, and no row has a margin"),
        (("--separator", "x"), "bradley_terry does not read --separator"),
        (("--method", "process", "--center", "1"), "process does not read --center"),
        (("--truncate", "split"), "--truncate split would part answers"),
        (("--centre", "1"), "unknown option --centre"),
    ],
)
def test_options_that_do_not_fit(
    more: tuple[str, ...],
    pattern: str,
    data: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = making.write(
        tmp_path / "rows.jsonl", [{k: v for k, v in row.items() if k != "margin"} for row in TRAIN]
    )
    rows = data / "steps.jsonl" if "process" in more else path
    code, _, err = run(
        capfd,
        "reward-model",
        "--model",
        data / "tiny",
        "--data",
        rows,
        "--out",
        tmp_path / "rm",
        *more,
    )
    assert code == 2 and pattern in " ".join(err.split())


# ------------------------------------------------------------------------------------------ judging


def test_a_reward_model_on_trial(
    trained: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Scores, accuracy by category and the paired difference, from transformers' rewards."""
    argv = [
        "judge",
        "--data",
        data / "held.jsonl",
        "--reward-model",
        trained / "model",
        "--against",
        "longest",
        "--out",
        tmp_path / "trial",
        "--device",
        "cpu",
    ]
    code, out, err = run(capfd, *argv)
    assert code == 0, err
    expected, (one,) = (
        rewards(trained / "model", HELD),
        summary(tmp_path / "trial")["results"].values(),
    )
    records = read_records(tmp_path / "trial" / "held.jsonl")
    assert [(r.value("chosen"), r.value("rejected")) for r in records] == [
        pytest.approx(pair, abs=1e-5) for pair in expected
    ]
    assert [r.meta["prompt"] for r in records] == [row["prompt"] for row in HELD]
    right = [float(a > b) for a, b in expected]
    longer = [len(row["chosen"]) - len(row["rejected"]) for row in HELD]
    longest = [1.0 if gap > 0 else 0.5 if gap == 0 else 0.0 for gap in longer]
    assert (
        one["accuracy"]["mean"] == sum(right) / 20 and one["accuracy"]["n"] == one["judged"] == 20
    )
    assert one["against"]["mean"] == one["baselines"]["longest"]["mean"] == sum(longest) / 20
    assert one["against"]["difference"]["mean"] == pytest.approx((sum(right) - sum(longest)) / 20)
    each = {
        name: [r for r, row in zip(right, HELD, strict=True) if row["category"] == name]
        for name in ("even", "odd")
    }
    assert {name: (c["mean"], c["n"]) for name, c in one["categories"].items()} == {
        name: (pytest.approx(sum(some) / len(some)), len(some)) for name, some in each.items()
    }
    assert one["mean_over_categories"]["mean"] == pytest.approx(
        sum(sum(some) / len(some) for some in each.values()) / 2
    )
    assert one["calibration"]["n"] == 20 and "mean over categories" in out and "longest" in out
    code, _, err = run(capfd, *argv)
    assert code == 0 and "nothing to do" in err


TOY = Path(__file__).parent / "scoring" / "toy_scorer.py"


def test_scorers_of_ones_own_on_trial(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A function and a coroutine, which says the opposite; one that is awaited scores the same."""
    argv = ("judge", "--data", data / "held.jsonl", "--scorer", f"{TOY}:shout")
    argv = (*argv, "--against", f"{TOY}:whisper", "--out", tmp_path / "trial")
    code, _, err = run(capfd, *argv)
    assert code == 0, err
    records = read_records(tmp_path / "trial" / "held.jsonl")
    loud = shout([], [row["chosen"] for row in HELD])
    assert [one.values["chosen"] for one in records] == loud
    assert [one.value("against_chosen") for one in records] == pytest.approx(
        [1 - one for one in loud if one is not None]
    )
    (found,) = summary(tmp_path / "trial")["results"].values()
    assert found["accuracy"]["mean"] + found["against"]["mean"] == pytest.approx(1)
    code, _, err = run(capfd, *argv)
    assert code == 0 and "nothing to do" in err


@pytest.mark.parametrize("name", ["broken", "hanging"])
def test_a_judge_that_fails_ends_the_trial_with_its_reason(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    argv = ("judge", "--data", data / "held.jsonl", "--scorer", f"{TOY}:{name}")
    code, _, err = run(capfd, *argv, "--out", tmp_path / "trial")
    reason = {"broken": "KeyError: 'no such thing'", "hanging": "no score within 0.1 seconds"}
    assert code == 2 and reason[name] in err
    assert not (tmp_path / "trial" / "summary.json").exists()


def test_two_files_are_counted_apart_and_together(data: Path, tmp_path: Path) -> None:
    a, b = (
        making.write(
            tmp_path / f"{name}.jsonl",
            [{k: v for k, v in row.items() if k != "category"} for row in rows],
        )
        for name, rows in (
            ("a", TRAIN[:4]),
            ("b", [*HELD[:2], {**HELD[2], "chosen": "x", "rejected": "y"}]),
        )
    )
    trial = posttrain.judge(data=[a, b], scorer="shortest", out=tmp_path / "trial", quiet=True)
    found = trial.summary["results"]
    assert {name: one["judged"] for name, one in found.items()} == {"all": 7, "a": 4, "b": 3}
    assert found["b"]["ties"] == 1 and found["all"]["accuracy"]["mean"] == pytest.approx(
        (4 * found["a"]["accuracy"]["mean"] + 3 * found["b"]["accuracy"]["mean"]) / 7
    )
    assert found["all"]["accuracy"] == {
        k: v for k, v in found["all"]["baselines"]["shortest"].items() if k != "difference"
    }
    assert "categories" not in found["all"] and "calibration" not in found["all"]


def test_pairs_of_one_prompt_are_one_cluster(tmp_path: Path) -> None:
    """Six pairs of two prompts, always right for one of them and never for the other."""
    rows = [
        {"prompt": p, "chosen": "a" * (5 + i if p == "x" else 1), "rejected": "b" * 4}
        for p in "xy"
        for i in range(3)
    ]
    rows = [{**row, "rejected": row["rejected"] + " " * i} for i, row in enumerate(rows)]
    for row in rows[:3]:
        row["chosen"] += "c" * 9
    data = making.write(tmp_path / "a.jsonl", rows)
    found = posttrain.judge(data=data, scorer="longest", out=tmp_path / "trial", quiet=True)
    accuracy = found.summary["results"]["a"]["accuracy"]
    assert accuracy == stats.share([1, 1, 1, 0, 0, 0], list("xxxyyy")).json()
    assert accuracy["low"] < 0.01 and accuracy["high"] > 0.99


def test_a_scorer_that_says_nothing_is_not_wrong(tmp_path: Path) -> None:
    """Of three pairs two know the wanted answer; the third is not counted, as a pair of the same
    answers is not.
    """
    rows = [
        {"prompt": "1+1?", "chosen": "2", "rejected": "3", "answer": "2"},
        {"prompt": "2+2?", "chosen": "5", "rejected": "4", "answer": "4"},
        {"prompt": "3+3?", "chosen": "6", "rejected": "7"},
        {"prompt": "?", "chosen": "a", "rejected": "a"},
    ]
    found = posttrain.judge(
        data=making.write(tmp_path / "a.jsonl", rows),
        scorer="exact",
        out=tmp_path / "trial",
        quiet=True,
    ).summary["results"]["a"]
    assert (found["pairs"], found["judged"], found["accuracy"]["mean"]) == (3, 2, 0.5)


@pytest.mark.parametrize(
    ("more", "pattern"),
    [
        ((), "there is no judge"),
        (
            ("--scorer", "longer"),
            "there is no scorer 'longer' cure: did you mean 'longest'?; or reward:FOLDER",
        ),
        (("--scorer", "longest", "--reward-model", "x"), "both say what judges"),
        (("--scorer", "exact"), "exact can judge none of 20 pairs"),
        (("--reward-model", "no/such/folder"), "no/such/folder"),
    ],
)
def test_what_cannot_be_tried(
    more: tuple[str, ...],
    pattern: str,
    data: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    code, _, err = run(
        capfd, "judge", "--data", data / "held.jsonl", "--out", tmp_path / "trial", *more
    )
    assert code == 2 and pattern in " ".join(err.split())
    assert not (tmp_path / "trial" / "summary.json").exists()


def test_a_row_that_is_no_pair_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = making.write(tmp_path / "a.jsonl", [HELD[0], {"prompt": "a", "chosen": "b"}])
    code, _, err = run(
        capfd, "judge", "--data", path, "--scorer", "longest", "--out", tmp_path / "trial"
    )
    assert code == 2 and "a.jsonl:2" in err and "cure:" in err


def test_a_recipe_trains_and_tries_a_reward_model(data: Path, tmp_path: Path) -> None:
    rows = str(
        making.write(
            tmp_path / "sft.jsonl",
            [{"prompt": row["prompt"], "completion": row["chosen"]} for row in TRAIN],
        )
    )
    recipe = {
        "name": "judged",
        "stages": {
            "sft": {"model": str(data / "tiny"), "data": rows, "steps": 1, "device": "cpu"},
            "reward_model": {
                "model": "sft",
                "data": str(data / "train.jsonl"),
                "steps": 1,
                "device": "cpu",
            },
            "judge": {
                "reward_model": "reward_model",
                "against": "shortest",
                "data": str(data / "held.jsonl"),
                "device": "cpu",
            },
        },
    }
    result = run_recipe(recipe, out=tmp_path / "run")
    found = result.summary["stages"]["judge"]["result"]["results"]["held"]
    expected = rewards(result.artifacts["reward_model"] / "model", HELD)
    assert found["accuracy"]["mean"] == sum((a > b) + 0.5 * (a == b) for a, b in expected) / 20


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"there is no shared data folder {SHARED}")
def test_what_length_is_worth_on_real_pairs_with_subsets(tmp_path: Path) -> None:
    """221 pairs in four subsets, as RewardBench has them: counted here by hand."""
    path = given("preferences/hhh_alignment.jsonl.gz")
    with gzip.open(path, "rt") as file:
        rows = [json.loads(line) for line in file]
    trial = posttrain.judge(data=path, scorer="longest", out=tmp_path / "trial", quiet=True)
    found = trial.summary["results"]["hhh_alignment"]
    right = [
        (len(row["chosen"]) > len(row["rejected"]))
        + 0.5 * (len(row["chosen"]) == len(row["rejected"]))
        for row in rows
    ]
    subsets: dict[str, list[float]] = {}
    for one, row in zip(right, rows, strict=True):
        subsets.setdefault(row["subset"], []).append(one)
    assert (
        found["accuracy"]["mean"] == pytest.approx(sum(right) / len(rows))
        and found["judged"] == len(rows) == 221
    )
    assert {name: (one["mean"], one["n"]) for name, one in found["categories"].items()} == {
        name: (pytest.approx(sum(some) / len(some)), len(some)) for name, some in subsets.items()
    }
    assert found["mean_over_categories"]["mean"] == pytest.approx(
        sum(sum(s) / len(s) for s in subsets.values()) / len(subsets)
    )


def test_a_reward_model_that_is_not_finite_is_not_exported(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rm"
    argv = ("reward-model", "--model", data / "tiny", "--data", data / "train.jsonl", "--out", out)
    code, _, err = run(capfd, *argv, "--learning-rate", 3e38, "--warmup", 0, "--steps", 1)
    assert code == 2 and "after step 1" in err and "not finite" in err
    assert not (out / "model").exists() and not list(out.glob("checkpoints/*"))
