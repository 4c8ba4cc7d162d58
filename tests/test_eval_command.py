"""`posttrain eval` end to end on models of thirty thousand parameters."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from scipy import stats as scipy

import posttrain
from posttrain.cli.main import main
from posttrain.evals import stats
from posttrain.evals import task as registry
from posttrain.evals.records import Record, read_records
from posttrain.evals.tasks import find_task
from tests import making

TEXTS = [
    {"text": text}
    for text in ("one two three", "a bird in the hand", "xyz", "the end of the story is near")
]
QUESTIONS = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(3) for b in range(2)]
QUIZ = [
    {"question": f"{a}+1?", "choices": ["no", str(a + 1), "seventeen"], "answer_index": a % 3}
    for a in range(8)
]


@dataclass(frozen=True)
class Bench:
    """Two models, three kinds of items, and a way to evaluate."""

    folder: Path
    capfd: pytest.CaptureFixture[str]

    def eval(
        self, out: Path, *more: str | Path, model: str = "a", all_tasks: bool = True
    ) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        argv = ["eval", "--model", self.folder / model, "--out", out, "--device", "cpu"]
        if all_tasks or {"--exact", "--task"} & set(more):
            argv += ["--max-tokens", "5"]
        if all_tasks:
            argv += [
                "--perplexity",
                self.folder / "texts.jsonl",
                "--exact",
                self.folder / "questions.jsonl",
                "--choice",
                self.folder / "quiz.jsonl",
            ]
        code = main([str(a) for a in (*argv, *more)])
        said = self.capfd.readouterr()
        return code, said.out, said.err


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    for seed, name in enumerate("ab"):
        making.model(folder / name, seed=seed)
    for name, rows in (("texts", TEXTS), ("questions", QUESTIONS), ("quiz", QUIZ)):
        making.write(folder / f"{name}.jsonl", rows)
    return folder


@pytest.fixture
def bench(folder: Path, capfd: pytest.CaptureFixture[str]) -> Bench:
    return Bench(folder, capfd)


def records(path: Path) -> list[dict[str, Any]]:
    """The values of every record, and its item."""
    return [{"item": record.item, **record.values} for record in read_records(path)]


def replaced(patch: pytest.MonkeyPatch, name: str, ask: Any) -> None:
    """Let a task ask in another way, and pass for the same."""
    patch.setattr("posttrain.evals.tasks.task_digest", lambda task: "")
    patch.setitem(registry.REGISTRY, name, replace(find_task(name), ask=ask))


def summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def test_files_and_summary(bench: Bench, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, out, err = bench.eval(run)
    assert code == 0, err
    names = ["choice-quiz", "exact-questions", "perplexity-texts"]
    assert sorted(p.name for p in run.iterdir()) == [
        ".lock",
        *(f"{n}.jsonl" for n in names[:2]),
        "manifest.json",
        f"{names[2]}.jsonl",
        "run.json",
        "summary.json",
    ]
    found = summary(run)
    assert sorted(found["tasks"]) == names and found["against"] is None
    for name, rows in zip(names, (QUIZ, QUESTIONS, TEXTS), strict=True):
        items = records(run / f"{name}.jsonl")
        source = bench.folder / f"{name.split('-')[1]}.jsonl"
        assert [r["item"] for r in items] == [f"{source}:{i}" for i in range(1, len(rows) + 1)]
        assert found["tasks"][name]["file"] == str(source)
        assert "against" not in found["tasks"][name]
    texts = records(run / "perplexity-texts.jsonl")
    metric = found["tasks"]["perplexity-texts"]["metrics"]["nats_per_token"]
    assert metric["mean"] == pytest.approx(
        sum(r["nats"] for r in texts) / sum(r["tokens"] for r in texts)
    )
    assert 4.5 < metric["mean"] < 6.5  # a random model knows nothing of 258 tokens: ln 258 = 5.55
    hits = sum(int(r["acc"]) for r in records(run / "choice-quiz.jsonl"))
    wilson = scipy.binomtest(hits, len(QUIZ)).proportion_ci(0.95, "wilson")
    correct = found["tasks"]["choice-quiz"]["metrics"]["acc"]
    assert (correct["low"], correct["high"]) == pytest.approx((wilson.low, wilson.high))
    assert (correct["mean"], correct["n"]) == (hits / len(QUIZ), len(QUIZ))
    guessing = sum(1 / len(row["choices"]) for row in QUIZ) / len(QUIZ)
    chances = found["tasks"]["choice-quiz"]["chance"]
    assert chances == pytest.approx(dict.fromkeys(("acc", "acc_norm", "acc_bytes"), guessing))
    assert f"(chance {guessing:.2f})" in " ".join(out.replace("│", " ").split())
    assert f", chance {guessing:.3f}" in err
    assert f"{metric['mean']:.3f}" in out and f"summary  {run / 'summary.json'}\n" in out
    assert "measured  model perplexity-texts, nats a token: " in err


def test_against_another_model_the_difference_is_paired(bench: Bench, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, out, err = bench.eval(run, "--against", bench.folder / "b")
    assert code == 0, err
    for name, role in (("a", ""), ("b", ".against")):  # each is what it is alone
        bench.eval(tmp_path / name, model=name)
        for task in ("perplexity-texts", "exact-questions", "choice-quiz"):
            assert (run / f"{task}{role}.jsonl").read_text() == (
                tmp_path / name / f"{task}.jsonl"
            ).read_text()
    found = summary(run)["tasks"]
    assert (
        found["choice-quiz"]["against"]
        == summary(tmp_path / "b")["tasks"]["choice-quiz"]["metrics"]
    )
    quiz = [
        [float(r["acc"]) for r in records(tmp_path / name / "choice-quiz.jsonl")] for name in "ab"
    ]
    gap = found["choice-quiz"]["difference"]["acc"]
    assert gap["mean"] == pytest.approx(sum(a - b for a, b in zip(*quiz, strict=True)) / len(QUIZ))
    assert gap == stats.share_difference(*quiz).json()
    mine, theirs = (records(tmp_path / name / "perplexity-texts.jsonl") for name in "ab")
    nats = sum(a["nats"] - b["nats"] for a, b in zip(mine, theirs, strict=True))
    gap = found["perplexity-texts"]["difference"]
    assert gap["nats_per_token"]["mean"] == pytest.approx(nats / sum(r["tokens"] for r in mine))
    assert gap["bits_per_byte"]["mean"] == pytest.approx(
        nats / math.log(2) / sum(len(r["text"].encode()) for r in TEXTS)
    )
    assert f"{gap['nats_per_token']['mean']:+.3f}" in out


def test_against_itself_nothing_differs(bench: Bench, tmp_path: Path) -> None:
    """And what that excludes depends on how many items there are; of text it is not known."""
    code, out, _ = bench.eval(tmp_path / "run", "--against", bench.folder / "a")
    assert code == 0
    tasks = summary(tmp_path / "run")["tasks"]
    for task in tasks.values():
        assert {one["mean"] for one in task["difference"].values()} == {0}
    n = len(QUIZ)
    most = scipy.norm.ppf(0.975) ** 2 / (n + scipy.norm.ppf(0.975) ** 2)
    gap = tasks["choice-quiz"]["difference"]["acc"]
    assert (gap["low"], gap["high"]) == pytest.approx((-most, most))
    gap = tasks["perplexity-texts"]["difference"]["nats_per_token"]
    assert (gap["low"], gap["high"], gap["method"]) == (None, None, "no spread")
    assert "+0.000 (no" in out and "spread)" in out


def test_tasks_that_are_done_are_read_back(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    bench.eval(whole)
    with monkeypatch.context() as patch:
        replaced(patch, "choice", lambda subject, rows: (_ for _ in ()).throw(KeyboardInterrupt()))
        assert bench.eval(run)[0] == 130
    assert sorted(p.name for p in run.glob("*.jsonl")) == [
        "exact-questions.jsonl",
        "perplexity-texts.jsonl",
    ]
    with monkeypatch.context() as patch:
        replaced(patch, "perplexity", None)  # they are not called
        replaced(patch, "exact", None)
        assert bench.eval(run)[0] == 0
    assert summary(run) == summary(whole)
    with monkeypatch.context() as patch:
        for task in ("perplexity", "exact", "choice"):
            replaced(patch, task, None)
        # which is not part of what an evaluation is
        code, _, err = bench.eval(run, "--budget", "100")
        done = f"finished {run} already holds this run; nothing to do; it ignores --budget 100"
        assert (code, " ".join(err.split())) == (0, done)


def test_another_evaluation_in_the_same_folder_is_refused(bench: Bench, tmp_path: Path) -> None:
    run = tmp_path / "run"
    bench.eval(run)
    before = (run / "summary.json").read_bytes()
    code, out, err = bench.eval(run, model="b")
    assert (code, out) == (2, "") and "models_sha256.model was" in err
    code, _, err = bench.eval(run, "--match", "contains")
    assert code == 2 and "match was exact, is contains" in err
    assert (run / "summary.json").read_bytes() == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "summary.json").write_text("mine")
    code, _, err = bench.eval(tmp_path / "mine")
    assert code == 2 and "holds summary.json, which no run of ours wrote" in err


def test_a_row_that_was_corrected_can_be_evaluated(bench: Bench, tmp_path: Path) -> None:
    run, quiz = (
        tmp_path / "run",
        making.write(tmp_path / "quiz.jsonl", [QUIZ[0], {**QUIZ[1], "answer_index": 9}]),
    )
    code, out, err = bench.eval(run, "--choice", quiz, all_tasks=False)
    assert (code, out) == (
        2,
        "",
    ) and f"{quiz}:2: answer_index is 9, not the place of one of 3 choices" in err
    assert not run.exists()
    making.write(quiz, QUIZ[:2])
    assert bench.eval(run, "--choice", quiz, all_tasks=False)[0] == 0


def test_rows_of_every_task_are_read_before_anything_runs(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad file of the last task costs none of the work of the first."""
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a"}\n{"prompt"')
    monkeypatch.setattr("posttrain.engine.policy.Policy.load", None)  # it is not called
    code, out, err = bench.eval(tmp_path / "run", "--exact", str(bad))
    assert (code, out) == (2, "") and f"{bad}:2: " in err
    assert not (tmp_path / "run").exists()


def test_a_choice_that_a_model_cannot_take_is_told_before_anything_runs(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the others know 64
    run, small = (tmp_path / "run", making.model(tmp_path / "small", positions=40))
    quiz = making.write(
        tmp_path / "quiz.jsonl",
        [QUIZ[0], {"question": "q" * 30, "choices": ["a" * 12, "b"], "answer_index": 0}],
    )
    plain = ["--choice", quiz, "--prompt-template", "{prompt}"]
    with monkeypatch.context() as patch:
        patch.setattr("posttrain.engine.policy.Policy.load", None)  # it is not called
        for more, n in ((["--against", small], 40), (["--max-length", "42"], 42)):
            code, out, err = bench.eval(run, *plain, *more)
            assert (code, out) == (2, "")
            assert (
                f"error: {quiz}:2: the question and a choice are 43 tokens, and {n} fit\ncure: "
                in err
            )
            assert not run.exists()
    assert bench.eval(run, *plain, "--max-length", "43", all_tasks=False)[0] == 0
    assert summary(run)["tasks"]["choice-quiz"]["metrics"]["acc"]["n"] == 2


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "there is nothing to evaluate on"),
        (["--exact", "none.jsonl"], "there is no file none.jsonl"),
        (["--exact", "texts.jsonl,limit=0"], "greater than or equal to 1"),
        (["--match", "fuzzy"], "match"),
        (["--exat", "a"], "unknown option --exat"),
    ],
    ids=str,
)
def test_what_cannot_be_evaluated_ends_with_code_2(
    bench: Bench, tmp_path: Path, more: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bench.folder)
    code, out, err = bench.eval(tmp_path / "run", *more, all_tasks=False)
    assert (code, out) == (2, "")
    assert said in err and "cure:" in err
    assert not (tmp_path / "run").exists()


def test_two_files_of_one_name_and_python(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    other = making.write(tmp_path / "more" / "texts.jsonl", TEXTS[:2])
    found = posttrain.evaluate(
        quiet=True,
        model=bench.folder / "a",
        perplexity=[bench.folder / "texts.jsonl", other],
        out=tmp_path / "run",
        device="cpu",
    ).summary
    assert bench.capfd.readouterr() == ("", "")
    assert {name: one["metrics"]["bits_per_byte"]["n"] for name, one in found["tasks"].items()} == {
        "perplexity-texts": 4,
        "perplexity-texts-2": 2,
    }
    assert found == summary(tmp_path / "run")


# ------------------------------------------------------------------------------- tasks of one's own

TOY = Path(__file__).parent / "evals" / "toy_task.py"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Six prompts, of which one has no limit and so gives no record."""
    rows = [{"prompt": f"say {i}", "limit": i} for i in range(5)]
    return making.write(tmp_path / "prompts.jsonl", [*rows, {"prompt": "say more"}])


def test_a_task_of_a_file_runs_from_the_command_line(
    bench: Bench, prompts: Path, tmp_path: Path
) -> None:
    run, spec = tmp_path / "run", f"{TOY}:loudness={prompts}"
    argv = ("--task", spec, "--against", bench.folder / "b")
    code, out, err = bench.eval(run, *argv, all_tasks=False)
    assert code == 0, err
    assert "loudness-prompts: 1 of 6 rows are left out" in err
    after, before = (read_records(run / f"loudness-prompts{end}.jsonl") for end in ("", ".against"))
    found = summary(run)["tasks"]["loudness-prompts"]
    assert [one.item for one in after] == [f"{prompts}:{i}" for i in range(1, 6)]
    assert [one.values["signs"] for one in after] == [len(one.output) for one in after]
    loud = [one.value("loud") for one in after]
    assert found["metrics"]["loud"]["mean"] == sum(loud) / 5
    gaps = [a.value("signs") - b.value("signs") for a, b in zip(after, before, strict=True)]
    assert found["difference"]["signs"]["mean"] == pytest.approx(sum(gaps) / 5)
    assert found["difference"]["louder"]["mean"] == sum((g > 0) + (g == 0) / 2 for g in gaps) / 5
    assert found["labels"] == {"loud": "loud", "signs": "signs an answer", "louder": "louder"}
    assert "louder" in out and f"{found['difference']['signs']['mean']:+.3f}" in out
    code, _, err = bench.eval(run, *argv, all_tasks=False)
    assert code == 0 and "nothing to do" in err


def test_a_task_that_was_changed_is_another_evaluation(
    bench: Bench, prompts: Path, tmp_path: Path
) -> None:
    toy = tmp_path / "mine.py"
    toy.write_text(TOY.read_text())
    argv = ("--task", f"{toy}:loudness={prompts}")
    assert bench.eval(tmp_path / "run", *argv, all_tasks=False)[0] == 0
    toy.write_text(TOY.read_text() + "\n# louder\n")
    code, _, err = bench.eval(tmp_path / "run", *argv, all_tasks=False)
    assert code == 2 and "files_sha256" in err


def test_a_task_runs_through_python(bench: Bench, prompts: Path, tmp_path: Path) -> None:
    """Named by its file, as a mapping, or by the name that it was registered with."""
    find_task(f"{TOY}:loudness")
    shapes: list[Any] = [
        f"{TOY}:loudness={prompts},limit=2",
        {"task": f"{TOY}:loudness", "path": str(prompts), "limit": 2},
        [f"loudness={prompts},limit=2"],
    ]
    found = [
        posttrain.evaluate(
            model=bench.folder / "a", task=task, out=tmp_path / str(i), device="cpu", quiet=True
        ).summary["tasks"]
        for i, task in enumerate(shapes)
    ]
    assert found[0]["loudness-prompts"]["metrics"]["loud"]["n"] == 2
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("value", "what", "cure"),
    [
        ("rows.jsonl", "does not say which task and which file", "write TASK=FILE"),
        ("loudest=texts.jsonl", "there is no task 'loudest'", "FILE.py:NAME"),
        ("no.py:f=texts.jsonl", "there is no file no.py", "check the path"),
        (f"{TOY}:not_a_task=texts.jsonl", "is function, not a task", "@task"),
    ],
)
def test_what_is_no_task_is_refused(
    value: str, what: str, cure: str, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bench.folder)
    code, out, err = bench.eval(tmp_path / "run", "--task", value, all_tasks=False)
    assert (code, out) == (2, "") and what in err and cure in err
    assert not (tmp_path / "run").exists()


def test_two_records_of_one_item_are_refused(
    bench: Bench, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They could not be paired with those of another model."""
    find_task(f"{TOY}:loudness")
    with monkeypatch.context() as patch:
        replaced(patch, "loudness", lambda subject, rows: [Record(rows[0].where)] * 2)
        code, _, err = bench.eval(
            tmp_path / "run", "--task", f"loudness={prompts}", all_tasks=False
        )
    assert code == 2 and "several records of one item" in err
