"""`posttrain preference` end to end, in this process, on a tiny model; checked with plain
transformers.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import posttrain
from posttrain.cli.main import main
from posttrain.core.errors import ConfigError
from posttrain.core.files import sha256_file
from posttrain.core.journal import Journal
from posttrain.engine import loop
from posttrain.methods.preference import METHODS
from posttrain.stages import alarms
from posttrain.stages.preference import MethodName
from tests import making
from tests.engine import lives

LOG2 = math.log(2)
# fair answers end in the right digit; the longer side is now the chosen one, now the rejected one
PAIRS = [
    {"prompt": f"{a}+{b}=", "chosen": str(a + b), "rejected": str(9 - a - b) * (1 + b % 3)}
    for a in range(2)
    for b in range(4)
]
TRIPLES = [{**row, "reference": row["chosen"] * 2} for row in PAIRS]
LABELS = [
    {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
    for row in PAIRS
    for side in ("chosen", "rejected")
]
HELD = [
    {"prompt": f"{a}+{b}=", "chosen": str(a + b), "rejected": str(9 - a - b)}
    for a in (2, 3)
    for b in range(3)
]

# where the policy still is its reference every log-ratio is 0, and the loss is a number one can
# write down
AT_START = {
    "dpo": LOG2,
    "robust": LOG2,
    "hinge": 1.0,
    "ipo": 25.0,
    "nca_pair": 2 * LOG2,
    "bco_pair": 2 * LOG2,
    "sppo_hard": 50.0,
    "exo_pair": 0.5 * (math.log(0.5) - math.log(0.999)) + 0.5 * (math.log(0.5) - math.log(0.001)),
    "aot": LOG2,
    "aot_unpaired": LOG2,
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "discopop": 0.5 * LOG2 + 0.5,
    "sigmoid_norm": LOG2,
    "kto": 0.5,
    "bco": LOG2,
    "apo_zero_unpaired": 0.5,
}


@dataclass(frozen=True)
class Bench:
    """A base model, its data, and a way to run the command on them."""

    folder: Path
    capfd: pytest.CaptureFixture[str]

    @property
    def base(self) -> Path:
        return self.folder / "base"

    def argv(self, out: Path, *more: str | Path, data: str = "pairs", steps: int = 3) -> list[str]:
        return [
            str(one)
            for one in (
                "preference",
                "--model",
                self.base,
                "--data",
                self.folder / f"{data}.jsonl",
                "--out",
                out,
                "--batch-size",
                "16",
                "--steps",
                steps,
                "--learning-rate",
                "0.001",
                "--device",
                "cpu",
                "--prompt-template",
                "{prompt}",
                *more,
            )
        ]

    def run(self, out: Path, *more: str | Path, **settings: Any) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        code = main(self.argv(out, *more, **settings))
        said = self.capfd.readouterr()
        return code, said.out, said.err


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    making.model(folder / "base")
    for name, rows in (("pairs", PAIRS), ("triples", TRIPLES), ("labels", LABELS), ("held", HELD)):
        making.write(folder / f"{name}.jsonl", rows)
    return folder


@pytest.fixture
def bench(folder: Path, capfd: pytest.CaptureFixture[str]) -> Bench:
    return Bench(folder, capfd)


@torch.no_grad()
def answers(model: Path, rows: list[dict[str, str]], column: str) -> list[list[float]]:
    """Log-probabilities of each answer's tokens and its end: transformers alone, one row at
    a time.
    """
    network, words = (
        AutoModelForCausalLM.from_pretrained(model).eval(),
        AutoTokenizer.from_pretrained(model),
    )
    out = []
    for row in rows:
        start, ids = (
            len(words(row["prompt"])["input_ids"]),
            words(row["prompt"] + row[column])["input_ids"],
        )
        ids = torch.tensor([[*ids, words.eos_token_id]])
        scored = (
            network(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        )
        out.append(scored[start - 1 :].tolist())
    return out


def steps(run: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [r for r in records if "validation" not in r]


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def by_hand(method: str, base: Path) -> float:
    """The loss of a method without a reference, over all rows, from log-probabilities that
    transformers gave.
    """
    good, bad, gold = (
        answers(base, TRIPLES, column) for column in ("chosen", "rejected", "reference")
    )
    nll = -mean([x for one in good for x in one])
    likeliest = -mean([x for one in gold for x in one])
    each: Callable[[list[float], list[float]], float] = {
        "sft": lambda c, r: 0.0,
        "simpo": lambda c, r: -log_sigmoid(2 * (mean(c) - mean(r)) - 1),
        "alphapo": lambda c, r: (
            -log_sigmoid(
                2.5 * ((1 - math.exp(-mean(c) / 4)) * 4 - (1 - math.exp(-mean(r) / 4)) * 4) - 0.1
            )
        ),
        "cpo": lambda c, r: -log_sigmoid(0.1 * (sum(c) - sum(r))),
        "orpo": lambda c, r: (
            -0.1
            * log_sigmoid(
                mean(c) - mean(r) - math.log1p(-math.exp(mean(c))) + math.log1p(-math.exp(mean(r)))
            )
        ),
        "tpo": lambda c, r: -log_sigmoid(0.01 * (sum(c) - sum(r))),
        "tpo_l": lambda c, r: -log_sigmoid(2 * (mean(c) - mean(r)) - 1),
    }[method]
    beside = {"sft": nll, "cpo": nll, "orpo": nll, "tpo": likeliest, "tpo_l": likeliest}.get(
        method, 0.0
    )
    return mean([each(c, r) for c, r in zip(good, bad, strict=True)]) + beside


# ------------------------------------------------------------------------------------- every method


def test_the_command_knows_every_method() -> None:
    assert list(get_args(MethodName)) == list(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_begins_at_the_number_by_hand(
    bench: Bench, tmp_path: Path, method: str
) -> None:
    code, _, err = bench.run(tmp_path / "run", "--method", method, data=METHODS[method].rows)
    assert code == 0, err
    found = steps(tmp_path / "run")
    expected = AT_START[method] if METHODS[method].reference else by_hand(method, bench.base)
    # the first batch is all the data, before any update
    assert found[0]["loss"] == pytest.approx(expected, rel=1e-4)
    assert len(found) == 3 and (tmp_path / "run" / "model" / "model.safetensors").is_file()
    assert found[2]["loss"] != found[0]["loss"]
    assert {
        "rewards/chosen",
        "rewards/rejected",
        "rewards/accuracies",
        "logps/chosen",
        "logps/rejected",
        "length/chosen",
        "length/rejected",
        "entropy",
    } <= found[0].keys()
    if METHODS[method].reference:
        assert found[0]["kl"] == 0 == found[0]["rewards/chosen"] == found[0]["rewards/rejected"]
        assert "agrees with the model that training starts from within 0 nats" in err
    said = answers(bench.base, PAIRS, "chosen")
    assert found[0]["logps/chosen"] == pytest.approx(mean([sum(one) for one in said]), rel=1e-4)
    assert found[0]["length/chosen"] == mean([len(one) for one in said])


def test_a_mixture_is_the_sum_of_its_parts(bench: Bench, tmp_path: Path) -> None:
    assert bench.run(tmp_path / "run", "--mix", "dpo=0.8", "bco_pair=0.2", "sft=1")[0] == 0
    assert steps(tmp_path / "run")[0]["loss"] == pytest.approx(
        0.8 * LOG2 + 0.2 * 2 * LOG2 + by_hand("sft", bench.base), rel=1e-4
    )


def of_pairs(each: Callable[..., float]) -> Callable[..., float]:
    """The mean over pairs of a function of the log-ratios of both answers."""
    return lambda c, r, rc, rr: mean(
        [each(sum(a) - sum(x), sum(b) - sum(y)) for a, b, x, y in zip(c, r, rc, rr, strict=True)]
    )


def likelihood(c: list[list[float]], *_: Any) -> float:
    return -mean([x for one in c for x in one])


def shared(one: list[float], other: list[float], tail: float) -> float:
    """A sum in which the tokens by which an answer is the longer count less."""
    n = min(len(one), len(other))
    return sum(one[:n]) + tail * sum(one[n:])


DPO = of_pairs(lambda c, r: -log_sigmoid(0.1 * (c - r)))
# options, and the loss from the log-probabilities of chosen and rejected answers under the policy
# and under the reference
OPTIONS: dict[str, tuple[list[str], Callable[..., float]]] = {
    "dpo": ([], DPO),
    "cDPO": (
        ["--label-smoothing", "0.2"],
        of_pairs(
            lambda c, r: -0.8 * log_sigmoid(0.1 * (c - r)) - 0.2 * log_sigmoid(-0.1 * (c - r))
        ),
    ),
    "forward KL": (
        ["--f-divergence", "forward_kl"],
        of_pairs(lambda c, r: -log_sigmoid(0.1 * (math.exp(-r) - math.exp(-c)))),
    ),
    "JS": (
        ["--f-divergence", "js_divergence"],
        of_pairs(lambda c, r: -log_sigmoid(0.1 * (log_sigmoid(c) - log_sigmoid(r)))),
    ),
    "alpha": (
        ["--f-divergence", "alpha_divergence", "--f-alpha", "0.3"],
        of_pairs(lambda c, r: -log_sigmoid(0.1 * (math.exp(-0.7 * c) - math.exp(-0.7 * r)) / -0.7)),
    ),
    "LD-DPO": (
        ["--ld-alpha", "0.5"],
        lambda c, r, rc, rr: mean(
            [
                -log_sigmoid(
                    0.1
                    * (
                        shared(a, b, 0.5)
                        - shared(x, y, 0.5)
                        - shared(b, a, 0.5)
                        + shared(y, x, 0.5)
                    )
                )
                for a, b, x, y in zip(c, r, rc, rr, strict=True)
            ]
        ),
    ),
    "RPO": (["--mix", "dpo=1", "sft=0.2"], lambda *all: DPO(*all) + 0.2 * likelihood(*all)),
    "MPO": (
        ["--mix", "dpo=0.8", "bco_pair=0.2", "sft=1"],
        lambda *all: (
            0.8 * DPO(*all)
            + likelihood(*all)
            + 0.2 * of_pairs(lambda c, r: -log_sigmoid(0.1 * c) - log_sigmoid(-0.1 * r))(*all)
        ),
    ),
    "IPO": (
        ["--method", "ipo"],
        lambda c, r, rc, rr: mean(
            [
                (mean(a) - mean(x) - mean(b) + mean(y) - 5) ** 2
                for a, b, x, y in zip(c, r, rc, rr, strict=True)
            ]
        ),
    ),
    "NCA": (
        ["--method", "nca_pair"],
        of_pairs(
            lambda c, r: (
                -log_sigmoid(0.1 * c) - 0.5 * log_sigmoid(-0.1 * c) - 0.5 * log_sigmoid(-0.1 * r)
            )
        ),
    ),
    "SPPO": (["--method", "sppo_hard"], of_pairs(lambda c, r: (c - 5) ** 2 + (r + 5) ** 2)),
    "APO-down": (
        ["--method", "apo_down"],
        of_pairs(
            lambda c, r: math.exp(log_sigmoid(0.1 * c)) + 1 - math.exp(log_sigmoid(0.1 * (c - r)))
        ),
    ),
    "DiscoPOP": (
        ["--method", "discopop"],
        of_pairs(
            lambda c, r: (lambda m, z: -(1 - m) * log_sigmoid(z) + m * math.exp(-z))(
                math.exp(log_sigmoid(2 * (c - r))), 0.1 * (c - r)
            )
        ),
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_and_mixtures_by_hand_away_from_the_start(
    bench: Bench, tmp_path: Path, name: str
) -> None:
    """Against another reference no log-ratio is 0, so that every part of a formula counts."""
    other = making.model(tmp_path / "other", seed=1)
    more, formula = OPTIONS[name]
    code, _, err = bench.run(tmp_path / "run", "--reference-model", other, *more)
    assert code == 0, err
    given = [
        answers(model, PAIRS, side)
        for model in (bench.base, other)
        for side in ("chosen", "rejected")
    ]
    found = steps(tmp_path / "run")
    assert len(found) == 3 and found[0]["loss"] == pytest.approx(formula(*given), rel=2e-4)
    assert abs(found[0]["loss"] - AT_START.get(name.lower(), LOG2)) > 1e-5


def test_wpo_weighs_pairs_by_how_likely_the_policy_would_write_them(
    bench: Bench, tmp_path: Path
) -> None:
    assert bench.run(tmp_path / "run", "--weighting")[0] == 0
    network, words = (
        AutoModelForCausalLM.from_pretrained(bench.base).eval(),
        AutoTokenizer.from_pretrained(bench.base),
    )
    weights = []
    for row in PAIRS:
        both = 1.0
        for side in ("chosen", "rejected"):
            start = len(words(row["prompt"])["input_ids"])
            ids = torch.tensor(
                [[*words(row["prompt"] + row[side])["input_ids"], words.eos_token_id]]
            )
            with torch.no_grad():
                logp = network(input_ids=ids).logits[0, :-1].log_softmax(-1)[start - 1 :]
            aligned = logp.gather(1, ids[0, start:, None])[:, 0] - (2 * logp).logsumexp(-1)
            both *= math.exp(float(aligned.mean()))
        weights.append(both)
    assert steps(tmp_path / "run")[0]["loss"] == pytest.approx(LOG2 * mean(weights), rel=1e-4)


def test_it_learns_and_says_so(bench: Bench, tmp_path: Path) -> None:
    code, out, err = bench.run(
        tmp_path / "run", "--validation", bench.folder / "held.jsonl", steps=40
    )
    assert code == 0, err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    before = summary["held_out_before"]
    assert before["loss"] == pytest.approx(LOG2) and before["accuracy"] == 0.5
    # six ties tell little: up to two in five of others may be none (1 − 0.6⁶ is 0.95), and right
    # or wrong that is 0.2 from ½
    assert 0.25 < before["accuracy_low"] < 0.3 and 0.7 < before["accuracy_high"] < 0.75
    held = summary["held_out"]
    assert held["loss"] < 0.66 and held["accuracy"] > 0.6 and held["sequences"] == len(HELD)
    assert held["accuracy_low"] < held["accuracy"] <= held["accuracy_high"]
    good, bad = (
        mean([sum(one) for one in answers(tmp_path / "run" / "model", HELD, side)])
        for side in ("chosen", "rejected")
    )
    good0, bad0 = (
        mean([sum(one) for one in answers(bench.base, HELD, side)])
        for side in ("chosen", "rejected")
    )
    assert held["rewards/margins"] == pytest.approx(0.1 * ((good - good0) - (bad - bad0)), rel=1e-3)
    assert 1 <= held["answer_tokens"] <= 64
    assert "rewards/margins" in summary["last_steps"] and "held-out rows" in out


def test_a_shared_prompt_counts_once_towards_the_budget(bench: Bench, tmp_path: Path) -> None:
    """A prompt of 41 tokens and two answers of 2 make 45, not 86: trained, held out and referenced
    within 46.
    """
    rows = [{"prompt": "1+" * 19 + f"{n}==", "chosen": f"{n}", "rejected": "9"} for n in range(4)]
    data = making.write(tmp_path / "long.jsonl", rows)
    code, _, err = bench.run(
        tmp_path / "run", "--budget", "46", "--validation", data, "--data", data
    )
    assert code == 0, err
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 3


def test_held_out_pairs_of_one_prompt_count_as_one_witness(bench: Bench, tmp_path: Path) -> None:
    """Eight pairs of a prompt that are all right and eight of another that are all wrong: Wilson's
    interval of 8 in 16 is [0.28, 0.72], that of two prompts is nearly all of [0, 1].
    """
    right = {"prompt": "8=", "chosen": "1", "rejected": "2"}
    wrong = {"prompt": "9=", "chosen": "2", "rejected": "1"}
    train = [{**right, "prompt": f"{n}="} for n in range(8)]
    code, _, err = bench.run(
        tmp_path / "run",
        "--data",
        making.write(tmp_path / "train.jsonl", train),
        "--validation",
        making.write(tmp_path / "held.jsonl", [*[right] * 8, *[wrong] * 8]),
    )
    assert code == 0, err
    held = json.loads((tmp_path / "run" / "summary.json").read_text())["held_out"]
    assert (held["accuracy"], held["sequences"]) == (0.5, 16)
    assert held["accuracy_low"] < 0.01 and held["accuracy_high"] > 0.99


def test_held_out_pairs_of_a_single_prompt_have_no_interval(bench: Bench, tmp_path: Path) -> None:
    """One prompt says nothing of how prompts vary: the run ends well and shows the mean alone."""
    held = [{"prompt": "8=", "chosen": "1", "rejected": str(n)} for n in range(2, 5)]
    data = making.write(tmp_path / "held.jsonl", held)
    code, out, err = bench.run(tmp_path / "run", "--validation", data)
    assert code == 0, err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())["held_out"]
    assert summary["accuracy_low"] is None and "held-out rows" in out


# ------------------------------------------------------------------------------------ the reference


def curve(run: Path) -> list[float]:
    return [one["loss"] for one in steps(run)]


def test_all_sources_of_the_reference_agree(bench: Bench, tmp_path: Path) -> None:
    for name, more in {
        "stored": [],
        "copy": ["--reference", "copy"],
        "named": ["--reference-model", str(bench.base)],
    }.items():
        assert bench.run(tmp_path / name, *more)[0] == 0
    assert curve(tmp_path / "copy") == pytest.approx(curve(tmp_path / "stored"), rel=1e-6)
    assert curve(tmp_path / "named") == pytest.approx(curve(tmp_path / "stored"), rel=1e-6)
    for name in ("adapters", "copy", "stored"):
        assert bench.run(tmp_path / f"lora-{name}", "--lora", "--reference", name)[0] == 0
        assert curve(tmp_path / f"lora-{name}") == pytest.approx(
            curve(tmp_path / "lora-adapters"), rel=1e-6
        )
    assert curve(tmp_path / "lora-adapters")[2] != curve(tmp_path / "stored")[2]


def test_stored_log_probabilities_are_found_again(bench: Bench, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert bench.run(tmp_path / "a", "--reference-cache", cache)[0] == 0
    (kept,) = cache.iterdir()
    before = os.stat(kept / "records.jsonl").st_mtime_ns
    assert bench.run(tmp_path / "b", "--reference-cache", cache, "--beta", "0.5")[0] == 0
    assert os.stat(kept / "records.jsonl").st_mtime_ns == before and list(cache.iterdir()) == [kept]
    assert (
        curve(tmp_path / "b")[0] == pytest.approx(LOG2)
        and curve(tmp_path / "b")[2] < curve(tmp_path / "a")[2]
    )


def test_a_damaged_store_is_computed_again(bench: Bench, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert bench.run(tmp_path / "a", "--reference-cache", cache)[0] == 0
    (kept,) = cache.iterdir()
    (kept / "arrays.bin").write_bytes(b"\0" * (kept / "arrays.bin").stat().st_size)
    code, _, err = bench.run(tmp_path / "b", "--reference-cache", cache, "--beta", "0.1")
    assert (code == 0 and "record" in err and "damaged" in err) or "not whole" in err
    assert curve(tmp_path / "b") == curve(tmp_path / "a")


def test_the_same_rows_in_another_chat_template_have_a_reference_of_their_own(
    bench: Bench, tmp_path: Path
) -> None:
    """Two policies near one reference, and the cache that both name: what is kept belongs to
    tokens, and not to files.
    """
    cache, template = tmp_path / "cache", tmp_path / "chat.jinja"
    for name, end in (("a", "+"), ("b", "="), ("c", "+")):
        ends = f"('{end}' if m.role == 'user' else eos_token)"
        template.write_text("{% for m in messages %}{{ m.content + " + ends + " }}{% endfor %}")
        argv = [
            one
            for one in bench.argv(
                tmp_path / name, "--reference-cache", cache, "--chat-template", template
            )
            if one not in ("--prompt-template", "{prompt}")
        ]
        assert main(argv) == 0, bench.capfd.readouterr().err
        assert curve(tmp_path / name)[0] == pytest.approx(LOG2, abs=1e-6)
    assert len(list(cache.iterdir())) == 2 and curve(tmp_path / "a") == curve(
        tmp_path / "c"
    ) != curve(tmp_path / "b")


def test_numbers_of_one_kind_of_answer_are_means_over_the_steps_that_had_it(
    bench: Bench, tmp_path: Path
) -> None:
    argv = [
        one.replace("pairs.jsonl", "labels.jsonl")
        for one in bench.argv(tmp_path / "run", "--method", "bco", "--batch-size", "1", steps=9)
    ]
    assert main(argv) == 0
    found = json.loads((tmp_path / "run" / "summary.json").read_text())["last_steps"]
    for side in ("chosen", "rejected"):
        some = [one[f"logps/{side}"] for one in steps(tmp_path / "run") if f"logps/{side}" in one]
        assert 0 < len(some) < 9 and found[f"logps/{side}"] == pytest.approx(mean(some))


def test_the_held_out_loss_is_without_weights(bench: Bench, tmp_path: Path) -> None:
    held = ("--validation", bench.folder / "held.jsonl", "--answered", "0")
    assert bench.run(tmp_path / "run", "--weighting", *held)[0] == 0
    assert steps(tmp_path / "run")[0]["loss"] < LOG2 - 0.01
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["held_out_before"][
        "loss"
    ] == pytest.approx(LOG2)


def test_a_reference_cache_that_is_a_file_is_refused(bench: Bench, tmp_path: Path) -> None:
    code, _, err = bench.run(tmp_path / "run", "--reference-cache", bench.folder / "held.jsonl")
    assert code == 2 and "is no folder" in err and not (tmp_path / "run").exists()


def test_a_reference_with_other_tokens_is_refused(bench: Bench, tmp_path: Path) -> None:
    code, _, err = bench.run(tmp_path / "run", "--reference-model", "embedded")
    assert code == 2 and "another tokenizer" in err


def test_alarms_of_an_earlier_process_are_raised_once_and_summed_up(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alarms, "WINDOW", 2)
    monkeypatch.setattr(alarms, "FALLEN", -math.inf)  # after two steps there is one
    real = loop._log

    def die(run: Any, event: Any) -> None:
        real(run, event)
        if event.step == 4:
            raise MemoryError

    argv = bench.argv(tmp_path / "run", "--checkpoint-every", "3", steps=6)
    monkeypatch.setattr(loop, "_log", die)
    assert main(argv) == 2
    monkeypatch.setattr(loop, "_log", real)
    assert "after step 2: the chosen answers" in bench.capfd.readouterr().err
    assert main(argv) == 0
    assert "less likely" not in bench.capfd.readouterr().err.split("alarm")[0]
    (alarm,) = json.loads((tmp_path / "run" / "summary.json").read_text())["alarms"]
    assert alarm.startswith("after step 2: ")


# ------------------------------------------------------------------------------------------- killed


@pytest.mark.parametrize("method", ["dpo", "kto", "simpo"])
def test_killed_at_any_step_it_ends_with_the_same_weights(
    bench: Bench, tmp_path: Path, method: str
) -> None:
    more = (
        "--method",
        method,
        "--checkpoint-every",
        "1",
        "--batch-size",
        "3",
        "--validation",
        bench.folder / "held.jsonl",
    )
    whole = bench.argv(tmp_path / "whole", *more, steps=6)
    if METHODS[method].rows == "labels":
        whole = [one.replace("pairs.jsonl", "labels.jsonl") for one in whole]
    assert lives.wait(lives.live(whole)) == 0
    broken = [one.replace("/whole", "/broken") for one in whole]
    import posttrain.engine.learner as learner

    deaths = [lives._after(learner.Learner, "step", n) for n in (2, 2)]
    deaths += [lives._after(Journal, "append", 1)] if METHODS[method].reference else []
    for death in reversed(deaths):
        assert lives.wait(lives.live(broken, death)) == -9
    assert lives.wait(lives.live(broken)) == 0
    assert sha256_file(tmp_path / "broken" / "model" / "model.safetensors") == sha256_file(
        tmp_path / "whole" / "model" / "model.safetensors"
    )
    assert curve(tmp_path / "broken") == curve(tmp_path / "whole")


# ------------------------------------------------------------------------- rows that cannot be used


def argv(
    bench: Bench, tmp_path: Path, *odd: dict[str, Any], more: tuple[str, ...] = ()
) -> list[str]:
    """The command on the pairs and odd rows after them."""
    making.write(tmp_path / "odd.jsonl", [*PAIRS, *odd])
    return [
        one.replace(str(bench.folder / "pairs.jsonl"), str(tmp_path / "odd.jsonl"))
        for one in bench.argv(tmp_path / "run", *more)
    ]


def test_an_empty_side_stops_or_is_set_aside(bench: Bench, tmp_path: Path) -> None:
    command = argv(bench, tmp_path, {"prompt": "1+1=", "chosen": "2", "rejected": ""})
    assert main(command) == 2
    assert (
        "odd.jsonl:9: the text to learn is empty" in bench.capfd.readouterr().err
        and not (tmp_path / "run").exists()
    )
    assert main([*command, "--on-bad-row", "reject"]) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["rejected"] == 1
    assert json.loads((tmp_path / "run" / "rejects.jsonl").read_text())["where"].endswith(
        "odd.jsonl:9"
    )


def test_pairs_without_a_difference_and_prompts_without_room_are_counted(
    bench: Bench, tmp_path: Path
) -> None:
    assert (
        main(
            argv(
                bench,
                tmp_path,
                {"prompt": "1+1=", "chosen": "2", "rejected": "2"},
                {"prompt": "1" * 30 + "=", "chosen": "2", "rejected": "3"},
                {"prompt": "1=", "chosen": "7" * 25 + "1", "rejected": "7" * 25 + "2"},
                more=("--max-length", "24"),
            )
        )
        == 0
    )
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["dropped"] == {
        "chosen and rejected are the same": 1,
        "the prompt alone fills 24 tokens": 1,
        "chosen and rejected are the same in the first 24 tokens": 1,
    }
    assert summary["rows"] == 11 and summary["sequences"] == 16


@pytest.mark.parametrize(
    ("row", "what"),
    [
        (
            {"prompt": "1+1=", "completion": "2"},
            "this row is prompt-completion; the source began as preference",
        ),
        (
            {"prompt": "1+1=", "chosen": "2", "rejected": [{"role": "assistant", "content": "3"}]},
            "one is text and one is messages",
        ),
        (
            {"prompt": "1+1=", "chosen": "2", "rejected": "3", "margin": "much"},
            "the margin is text, not a number",
        ),
    ],
)
def test_rows_of_another_kind_are_named(
    bench: Bench, tmp_path: Path, row: dict[str, Any], what: str
) -> None:
    assert main(argv(bench, tmp_path, row)) == 2
    err = bench.capfd.readouterr().err
    assert "odd.jsonl:9" in err and what in err, err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("method", "data", "what"),
    [
        ("dpo", "labels", "an answer with a label, where a pair of answers is wanted"),
        ("tpo", "pairs", "there is no answer to imitate beside chosen and rejected"),
    ],
)
def test_methods_say_which_rows_they_want(
    bench: Bench, tmp_path: Path, method: str, data: str, what: str
) -> None:
    code, _, err = bench.run(tmp_path / "run", "--method", method, data=data)
    assert code == 2 and what in err, err


def test_kto_takes_pairs_as_two_labels(bench: Bench, tmp_path: Path) -> None:
    assert bench.run(tmp_path / "run", "--method", "kto", data="pairs")[0] == 0
    found = steps(tmp_path / "run")[0]
    assert (
        found["loss"] == pytest.approx(0.5)
        and found["sequences"] == 16
        and found["length/chosen"] == 2.0
    )


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (["--method", "simpo", "--reference", "copy"], "simpo needs no reference"),
        (["--reference", "adapters"], "--reference adapters without --lora"),
        (
            ["--reference", "copy", "--reference-cache", "cache"],
            "--reference-cache, and nothing of the reference is stored",
        ),
        (
            ["--method", "orpo", "--reference-cache", "cache"],
            "--reference-cache, and nothing of the reference is stored",
        ),
        (["--label-smoothing", "0.7"], "label_smoothing = '0.7'"),
        (["--tau", "0.1"], "tau has no meaning for dpo"),
        (["--method", "dop"], "dpo"),
        (["--mix", "dpo=1", "kto=1"], "dpo learns from pairs and kto from labels"),
        (["--truncate", "split"], "compare parts of answers"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    bench: Bench, tmp_path: Path, more: list[str], what: str
) -> None:
    code, _, err = bench.run(tmp_path / "run", *more)
    assert code == 2 and what in err, err
    assert not (tmp_path / "run").exists()


def test_labels_of_one_kind_are_said(bench: Bench, tmp_path: Path) -> None:
    making.write(tmp_path / "good.jsonl", [row for row in LABELS if row["label"]])
    command = [
        one.replace(str(bench.folder / "labels.jsonl"), str(tmp_path / "good.jsonl"))
        for one in bench.argv(tmp_path / "run", "--method", "kto", data="labels", steps=1)
    ]
    assert main(command) == 0
    assert "all answers are labelled good" in bench.capfd.readouterr().err


def test_a_reward_model_is_no_policy(bench: Bench, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    AutoModelForSequenceClassification.from_pretrained(bench.base, num_labels=1).save_pretrained(
        tmp_path / "judge"
    )
    AutoTokenizer.from_pretrained(bench.base).save_pretrained(tmp_path / "judge")
    code, _, err = bench.run(tmp_path / "run", "--model", tmp_path / "judge")
    assert code == 2 and "writes no text" in err, err


def test_the_python_call_is_the_command(bench: Bench, tmp_path: Path) -> None:
    common: dict[str, Any] = {
        "model": bench.base,
        "data": str(bench.folder / "pairs.jsonl"),
        "device": "cpu",
        "quiet": True,
    }
    outcome = posttrain.preference(
        out=tmp_path / "run", steps=1, method="ipo", prompt_template="{prompt}", **common
    )
    assert outcome.summary["steps"] == 1 and outcome.summary["learning_rate"] == 1e-6
    with pytest.raises(ConfigError, match="beta = -1"):
        posttrain.preference(out=tmp_path / "other", beta=-1, **common)
