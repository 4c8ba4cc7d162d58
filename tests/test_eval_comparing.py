"""`posttrain eval --prefer` and `--win` end to end, checked with plain transformers and by hand."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from scipy import stats as scipy
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.cli.main import main
from posttrain.evals import stats
from posttrain.evals.records import read_records
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
                    *(["--max-tokens", 6] if {"--exact", "--win", "--task"} & set(more) else []),
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
        items = read_records(tmp_path / "run" / file)
        assert [r.value("chosen") for r in items] == pytest.approx(good, rel=1e-4)
        assert [r.value("rejected") for r in items] == pytest.approx(bad, rel=1e-4)
        assert [(r.value("chosen_tokens"), r.value("rejected_tokens")) for r in items] == [
            (len(p["chosen"]) + 1, len(p["rejected"]) + 1) for p in PAIRS
        ]
        assert [r.meta["category"] for r in items] == [p["category"] for p in PAIRS]
        gaps[name] = [g - r for g, r in zip(good, bad, strict=True)]
    hits = sum(gap > 0 for gap in gaps["a"])
    wilson = scipy.binomtest(hits, len(PAIRS)).proportion_ci(0.95, "wilson")
    preferred = found["metrics"]["preferred"]
    assert (preferred["mean"], preferred["n"]) == (hits / len(PAIRS), len(PAIRS))
    assert (preferred["low"], preferred["high"]) == pytest.approx((wilson.low, wilson.high))
    assert set(found["chance"].values()) == {0.5} and "rewarded" in found["chance"]
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
        read_records(tmp_path / "run" / f"win-prompts{end}.jsonl") for end in ("", ".against")
    )
    assert all(r.value("score") == len(r.output) for r in mine + theirs)
    wins = [
        (a.value("score") > b.value("score")) + 0.5 * (a.value("score") == b.value("score"))
        for a, b in zip(mine, theirs, strict=True)
    ]
    assert (
        found["difference"]["win_rate"]["mean"] == pytest.approx(sum(wins) / 9)
        and found["difference"]["win_rate"]["n"] == 9
    )
    assert found["metrics"]["score"]["mean"] == pytest.approx(
        sum(r.value("score") for r in mine) / 9
    )


def test_what_cannot_be_compared_is_refused(bench: Bench, tmp_path: Path) -> None:
    code, _, err = bench.eval(tmp_path / "run", "--win", bench.folder / "prompts.jsonl")
    assert code == 2 and "--win needs a judge" in err
    making.write(
        tmp_path / "long.jsonl", [*PAIRS, {"prompt": "1" * 60, "chosen": "12345", "rejected": "1"}]
    )
    code, _, err = bench.eval(tmp_path / "run", "--prefer", tmp_path / "long.jsonl")
    assert code == 0 and "prefer-long: 1 of 13 rows are left out: they do not fit 64 tokens" in err
    code, _, err = bench.eval(
        tmp_path / "none", "--prefer", tmp_path / "long.jsonl", "--max-length", "3"
    )
    assert code == 2 and "nothing of" in err
    making.write(tmp_path / "bare.jsonl", [{"prompt": "1+1="}])
    code, _, err = bench.eval(
        tmp_path / "bare", "--win", tmp_path / "bare.jsonl", "--scorer", "exact"
    )
    assert code == 2 and "the scorer can judge only 0 of 1 answers" in err


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
    # so that half of the prompts are right
    sides = [("chosen", "rejected"), ("rejected", "chosen")]
    five = [
        {"prompt": row["prompt"], a: row["chosen"], b: row["rejected"] + " " * (k + 3)}
        for (a, b), row in zip(sides * 6, PAIRS, strict=True)
        for k in range(5)
    ]
    rows = making.write(tmp_path / "rows.jsonl", five)
    assert bench.eval(tmp_path / "run", "--against", bench.folder / "b", "--prefer", rows)[0] == 0
    found = json.loads((tmp_path / "run" / "summary.json").read_text())["tasks"]["prefer-rows"]
    known = read_records(tmp_path / "run" / "prefer-rows.jsonl")
    assert len({one.cluster for one in known}) == len(PAIRS) and len(known) == 5 * len(PAIRS)
    values = [float(one.value("chosen") > one.value("rejected")) for one in known]
    expected = stats.share(values, [one.cluster for one in known])
    alone = stats.share(values)
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


TOY = Path(__file__).parent / "scoring" / "toy_scorer.py"


def test_a_scorer_of_ones_own_judges_written_answers(bench: Bench, tmp_path: Path) -> None:
    prompts, toy = bench.folder / "prompts.jsonl", tmp_path / "mine.py"
    toy.write_text(
        "async def size(completions, **columns):\n    return [len(c) for c in completions]\n"
    )
    argv = ("--win", prompts, "--scorer", f"{toy}:size")
    assert bench.eval(tmp_path / "mine", *argv)[0] == 0
    found = read_records(tmp_path / "mine" / "win-prompts.jsonl")
    assert [one.value("score") for one in found] == [len(one.output) for one in found]
    toy.write_text(toy.read_text() + "\n")
    code, _, err = bench.eval(tmp_path / "mine", *argv)
    assert code == 2 and "files_sha256" in err  # another scorer


@pytest.mark.parametrize("name", ["broken", "hanging"])
def test_a_scorer_that_fails_ends_with_its_reason(bench: Bench, tmp_path: Path, name: str) -> None:
    code, _, err = bench.eval(
        tmp_path / "run", "--win", bench.folder / "prompts.jsonl", "--scorer", f"{TOY}:{name}"
    )
    reason = {"broken": "KeyError: 'no such thing'", "hanging": "no score within 0.1 seconds"}
    assert code == 2 and reason[name] in err and "failed on all of 9 responses" in err
    assert not (tmp_path / "run" / "summary.json").exists()
