"""`posttrain eval --prefer` and `--win` end to end, checked with plain transformers and by hand."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats as scipy
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.cli.main import main
from posttrain.evals import comparing, judging
from tests import making

PAIRS = [
    {
        "prompt": f"{a}+{b}=",
        "chosen": str(a + b),
        "rejected": str(a) * (1 + b),
        "category": "even" if a % 2 == 0 else "odd",
    }
    for a in range(4)
    for b in range(1, 4)
]
PROMPTS = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(3) for b in range(3)]


@dataclass(frozen=True)
class Bench:
    folder: Path
    capfd: pytest.CaptureFixture[str]

    def eval(self, out: Path, *more: str | Path) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        code = main(
            [
                str(a)
                for a in (
                    "eval",
                    "--model",
                    self.folder / "a",
                    "--out",
                    out,
                    "--max-tokens",
                    "6",
                    "--device",
                    "cpu",
                    "--prompt-template",
                    "{prompt}",
                    *more,
                )
            ]
        )
        said = self.capfd.readouterr()
        return code, said.out, said.err


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    for seed, name in enumerate("ab"):
        making.model(folder / name, seed=seed)
    making.write(folder / "pairs.jsonl", PAIRS)
    making.write(folder / "prompts.jsonl", PROMPTS)
    return folder


@pytest.fixture
def bench(folder: Path, capfd: pytest.CaptureFixture[str]) -> Bench:
    return Bench(folder, capfd)


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@torch.no_grad()
def sums(model: Path, column: str) -> list[float]:
    """Summed log-probability of every answer and its end, one row at a time."""
    network, words = (
        AutoModelForCausalLM.from_pretrained(model).eval(),
        AutoTokenizer.from_pretrained(model),
    )
    out = []
    for row in PAIRS:
        start, ids = (
            len(words(row["prompt"])["input_ids"]),
            words(row["prompt"] + row[column])["input_ids"],
        )
        ids = torch.tensor([[*ids, words.eos_token_id]])
        out.append(
            float(
                network(input_ids=ids)
                .logits[0, :-1]
                .log_softmax(-1)
                .gather(1, ids[0, 1:, None])[start - 1 :]
                .sum()
            )
        )
    return out


def test_pairs_are_told_apart_by_likelihood(bench: Bench, tmp_path: Path) -> None:
    code, out, err = bench.eval(
        tmp_path / "run", "--against", bench.folder / "b", "--prefer", bench.folder / "pairs.jsonl"
    )
    assert code == 0, err
    found = json.loads((tmp_path / "run" / "summary.json").read_text())["tasks"]["prefer-pairs"]
    gaps = {}
    for name, file in (("a", "prefer-pairs.jsonl"), ("b", "prefer-pairs.against.jsonl")):
        good, bad = sums(bench.folder / name, "chosen"), sums(bench.folder / name, "rejected")
        items = records(tmp_path / "run" / file)
        assert [r["logprobs"][0] for r in items] == pytest.approx(good, rel=1e-4)
        assert [r["logprobs"][1] for r in items] == pytest.approx(bad, rel=1e-4)
        assert [r["tokens"] for r in items] == [
            [len(p["chosen"]) + 1, len(p["rejected"]) + 1] for p in PAIRS
        ]
        assert [r["category"] for r in items] == [p["category"] for p in PAIRS]
        gaps[name] = [g - r for g, r in zip(good, bad, strict=True)]
    hits = sum(gap > 0 for gap in gaps["a"])
    wilson = scipy.binomtest(hits, len(PAIRS)).proportion_ci(0.95, "wilson")
    assert found["metrics"]["preferred"] == pytest.approx(
        {"mean": hits / len(PAIRS), "low": wilson.low, "high": wilson.high, "n": len(PAIRS)}
    )
    gained = sum(a > b for a, b in zip(gaps["a"], gaps["b"], strict=True))
    assert found["difference"]["rewarded"]["mean"] == pytest.approx(gained / len(PAIRS))
    assert "gained more" in " ".join(out.replace("│", " ").split())


def test_written_answers_are_judged_and_win(bench: Bench, tmp_path: Path) -> None:
    code, _, err = bench.eval(
        tmp_path / "run",
        "--against",
        bench.folder / "b",
        "--win",
        bench.folder / "prompts.jsonl",
        "--scorer",
        "longest",
    )
    assert code == 0, err
    found = json.loads((tmp_path / "run" / "summary.json").read_text())["tasks"]["win-prompts"]
    mine, theirs = (
        records(tmp_path / "run" / f"win-prompts{end}.jsonl") for end in ("", ".against")
    )
    assert all(r["score"] == len(r["answer"]) for r in mine + theirs)
    wins = [
        (a["score"] > b["score"]) + 0.5 * (a["score"] == b["score"])
        for a, b in zip(mine, theirs, strict=True)
    ]
    assert (
        found["difference"]["win_rate"]["mean"] == pytest.approx(sum(wins) / 9)
        and found["difference"]["win_rate"]["n"] == 9
    )
    assert found["metrics"]["score"]["mean"] == pytest.approx(sum(r["score"] for r in mine) / 9)


def test_what_cannot_be_compared_is_refused(bench: Bench, tmp_path: Path) -> None:
    code, _, err = bench.eval(tmp_path / "run", "--win", bench.folder / "prompts.jsonl")
    assert code == 2 and "--win needs a judge" in err
    making.write(
        tmp_path / "long.jsonl", [*PAIRS, {"prompt": "1" * 60, "chosen": "12345", "rejected": "1"}]
    )
    code, _, err = bench.eval(tmp_path / "run", "--prefer", tmp_path / "long.jsonl")
    assert code == 0 and "prefer-long: 1 of 13 rows do not fit 64 tokens and are left out" in err
    code, _, err = bench.eval(
        tmp_path / "none", "--prefer", tmp_path / "long.jsonl", "--max-length", "3"
    )
    assert code == 2 and "nothing of" in err
    making.write(tmp_path / "bare.jsonl", [{"prompt": "1+1="}])
    code, _, err = bench.eval(
        tmp_path / "bare", "--win", tmp_path / "bare.jsonl", "--scorer", "exact"
    )
    assert code == 2 and "the scorer can judge only 0 of 1 answers" in err


def test_ties_count_a_half() -> None:
    one = {"where": "1", "logprobs": [-2.0, -2.0], "tokens": [1, 2]}
    assert comparing.metrics("prefer", [one])["preferred"].mean == 0.5
    assert comparing.metrics("prefer", [one])["preferred_per_token"].mean == 0.0  # −2 against −1
    assert (
        comparing.differences("prefer", [one], [{**one, "logprobs": [-3.0, -3.0]}])["rewarded"].mean
        == 0.5
    )
    unjudged = {"where": "1", "answer": "", "score": None, "tokens": 1}
    some = [{"where": "2", "answer": "", "score": 1.0, "tokens": 3}, unjudged]
    assert comparing.metrics("win", some)["score"].n == 1
    assert (
        comparing.differences("win", some, [{**some[0], "score": 0.0}, unjudged])["win_rate"].n == 1
    )


def test_records_with_any_sign_inside_are_read_back(bench: Bench, tmp_path: Path) -> None:
    """U+2028 ends a line for `splitlines`, and not in JSON lines."""
    rows = making.write(tmp_path / "rows.jsonl", [{**PAIRS[0], "category": "a\u2028b"}, PAIRS[1]])
    assert bench.eval(tmp_path / "run", "--prefer", rows)[0] == 0
    before = (tmp_path / "run" / "summary.json").read_text()
    (tmp_path / "run" / "summary.json").unlink()
    code, _, err = bench.eval(tmp_path / "run", "--prefer", rows)
    assert code == 0, err
    assert (tmp_path / "run" / "summary.json").read_text() == before


def test_pairs_of_one_prompt_are_not_independent(bench: Bench, tmp_path: Path) -> None:
    """Every pair five times over says nothing new: the intervals are no narrower for it, or
    hardly.
    """
    sides = [
        ("chosen", "rejected"),
        ("rejected", "chosen"),
    ]  # so that half of the prompts are right
    five = [
        {"prompt": row["prompt"], a: row["chosen"], b: row["rejected"] + " " * (k + 3)}
        for (a, b), row in zip(sides * 6, PAIRS, strict=True)
        for k in range(5)
    ]
    rows = making.write(tmp_path / "rows.jsonl", five)
    assert bench.eval(tmp_path / "run", "--against", bench.folder / "b", "--prefer", rows)[0] == 0
    found = json.loads((tmp_path / "run" / "summary.json").read_text())["tasks"]["prefer-rows"]
    known = records(tmp_path / "run" / "prefer-rows.jsonl")
    assert len({one["prompt"] for one in known}) == len(PAIRS) and len(known) == 5 * len(PAIRS)
    values = [float(one["logprobs"][0] > one["logprobs"][1]) for one in known]
    expected = judging.rate(values, [one["prompt"] for one in known])
    alone = judging.rate(values, range(len(values)))
    assert (
        found["metrics"]["preferred"]["low"] == expected.low
        and found["metrics"]["preferred"]["high"] == expected.high
    )
    assert (
        alone.high is not None
        and alone.low is not None
        and expected.high is not None
        and expected.low is not None
    )
    assert expected.high - expected.low > 1.2 * (alone.high - alone.low)
