"""Audits of scorers: the planted loophole is found by name, and sound scorers are left in peace."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.cli.main import main
from posttrain.core.errors import ConfigError, DataError
from posttrain.evals.records import read_records
from posttrain.scoring.attacks import ATTACKS, tries
from posttrain.scoring.audit import CHECKS, scored
from posttrain.scoring.cases import FORMS, Case, Given, cases, final_answer, number
from posttrain.scoring.functions import from_function
from posttrain.scoring.score import Response
from posttrain.stages.audit_reward import audit_reward
from tests import making
from tests.scoring import audit_zoo as zoo

ZOO = Path(zoo.__file__)
MATHS = (Path(__file__).parents[2] / ".." / "shared" / "data" / "math").resolve()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("rows")
    return {kind: making.write(folder / f"{kind}.jsonl", zoo.rows(kind)) for kind in zoo.MAKERS}


def audited(scorer: str, data: Path, **more: Any) -> dict[str, Any]:
    return audit_reward(scorer=scorer, data=data, quiet=True, **more).summary


@pytest.mark.parametrize("name", zoo.FLAWED)
def test_a_planted_loophole_is_found(name: str, data: dict[str, Path]) -> None:
    _, kind, attack = zoo.FLAWED[name]
    result = audited(f"{ZOO}:{name}", data[kind])
    assert attack in result["loopholes"]
    assert result["verdict"]["answer"] == "FAIL" and result["verdict"]["exit_code"] == 10


@pytest.mark.parametrize("name", zoo.SOUND)
def test_a_sound_scorer_is_left_in_peace(name: str, data: dict[str, Path]) -> None:
    _, kind = zoo.SOUND[name]
    result = audited(f"{ZOO}:{name}", data[kind])
    assert (result["loopholes"], result["defects"]) == ([], [])
    assert result["verdict"]["answer"] == "PASS" and result["verdict"]["exit_code"] == 0


def test_the_zoo_has_every_attack_and_enough_of_both() -> None:
    assert len(zoo.FLAWED) >= 20 and len(zoo.SOUND) >= 20
    every = (*zoo.FLAWED.values(), *zoo.DEFECTIVE.values())
    assert {attack for _, _, attack in every} == {*ATTACKS, *CHECKS}


@pytest.mark.parametrize(
    ("name", "kind", "found"),
    [
        ("exact", "sum", []),
        ("number", "sum", []),
        ("number", "worked", []),
        ("number", "boxed", []),
        ("exact", "short", []),
        ("exact", "json", []),
        ("exact", "code", []),
        # it takes the answer wherever it stands, and the number in -4 and 4.9
        ("contains", "sum", ["several answers", "contradiction", "negation", "near miss"]),
        ("contains", "short", ["several answers", "contradiction", "negation"]),
        ("longest", "sum", ["wrong answer"]),
        ("shortest", "short", ["wrong answer"]),
    ],
)
def test_the_scorers_by_name(name: str, kind: str, found: list[str], data: dict[str, Path]) -> None:
    result = audited(name, data[kind])
    assert result["loopholes"] == found and result["defects"] == []


@pytest.mark.parametrize("name", zoo.DEFECTIVE)
def test_what_pays_for_nothing_is_a_defect_and_no_failure(name: str, data: dict[str, Path]) -> None:
    _, kind, defect = zoo.DEFECTIVE[name]
    result = audited(f"{ZOO}:{name}", data[kind])
    assert (result["loopholes"], result["defects"]) == ([], [defect])
    assert result["verdict"]["exit_code"] == 0


# --------------------------------------------------------------------------------------- judgement


def test_a_loophole_on_some_rows_counts_by_its_exact_lower_bound(tmp_path: Path) -> None:
    """Paid for the answer among others on 6 rows of 20: scipy's 95 % interval is 0.119 to 0.543."""
    scorer = tmp_path / "partly.py"
    scorer.write_text(
        "def partly(completions, answer, easy, **columns):\n"
        "    rows = zip(completions, answer, easy, strict=True)\n"
        "    return [float(g in c.split(', ') if e else c == g) for c, g, e in rows]\n"
    )
    rows = [{"prompt": f"{i} and 50?", "answer": str(i + 50), "easy": i < 6} for i in range(20)]
    data = making.write(tmp_path / "rows.jsonl", rows)
    result = audited(f"{scorer}:partly", data)
    assert result["loopholes"] == ["several answers"]
    share = result["attacks"]["several answers"]["share"]
    assert (share["mean"], share["n"], share["method"]) == (0.3, 20, "Clopper-Pearson")
    assert share["low"] == pytest.approx(0.119, abs=5e-4)
    assert share["high"] == pytest.approx(0.543, abs=5e-4)
    assert audited(f"{scorer}:partly", data, share=0.12)["loopholes"] == []


def test_what_a_constant_answer_earns_is_no_loophole(tmp_path: Path) -> None:
    """The question's last letter is D: paid where D is right, as always saying D is."""
    rows = zoo.rows("choice") * 4
    data = making.write(tmp_path / "rows.jsonl", rows)
    result = audited(f"{ZOO}:last_letter", data)
    assert result["commonest_answer"] == 0.25
    assert result["attacks"]["echo"]["share"]["mean"] == 0.25
    assert result["loopholes"] == []


def test_a_right_answer_by_accident_is_no_attack(tmp_path: Path) -> None:
    """The question ends with the right answer: to say it again is to answer."""
    rows = [{"prompt": f"More: {i} or {i + 40}?", "answer": str(i + 40)} for i in range(10, 19)]
    result = audited("number", making.write(tmp_path / "a.jsonl", rows))
    assert result["loopholes"] == [] and "echo" not in result["attacks"]


def test_what_is_random_is_not_also_called_dependent(data: dict[str, Path]) -> None:
    result = audited(f"{ZOO}:counting", data["sum"])
    assert not {"order", "memory"} & {*result["loopholes"]}


def test_a_batch_that_fails_is_halved_until_one_fails() -> None:
    calls: list[int] = []

    def scorer(completions: list[str], **columns: Any) -> list[float]:
        calls.append(len(completions))
        return [float(text) for text in completions]

    responses = [Response("?", str(i) if i != 5 else "no") for i in range(8)]
    scores = scored(from_function(scorer), responses)
    assert [s.value for s in scores] == [0, 1, 2, 3, 4, None, 6, 7]
    assert [s.failed for s in scores] == [i == 5 for i in range(8)]
    assert calls == [8, 4, 4, 2, 1, 1, 2]


# --------------------------------------------------------------------------------- rows and attacks


def case(answer: str, prompt: str = "?", **columns: Any) -> Case:
    return cases([Given("a:1", prompt, {"answer": answer, **columns}, answer)])[0]


@pytest.mark.parametrize(
    ("gold", "kind", "answer"),
    [
        ("1,234", "number", "1,234"),
        ("$0.50", "number", "$0.50"),
        ("So 3 * 4 = 12.\n#### 12", "number", "12"),
        ("It is \\boxed{\\frac{1}{2}} then.", "text", "\\frac{1}{2}"),
        ("<think>2</think><answer>7</answer>", "number", "7"),
        ("(B)", "choice", "B"),
        ('{"a": [1]}', "json", '{"a": [1]}'),
        ("def f(x):\n    return x", "code", "def f(x):\n    return x"),
        ("New York", "text", "New York"),
        ("e", "text", "e"),
    ],
)
def test_the_kind_of_a_row(gold: str, kind: str, answer: str) -> None:
    made = case(gold)
    assert (made.kind, made.answer) == (kind, answer)
    assert final_answer(gold).strip("()") == answer
    assert len(made.wrong) >= 2 and len(set(made.wrong)) == len(made.wrong)
    assert not any(answer in wrong for wrong in made.wrong)


@pytest.mark.parametrize("kind", zoo.MAKERS)
def test_no_attack_is_a_right_answer(kind: str) -> None:
    """Read at its first and at its last number, letter or word."""
    made = cases([Given("a:1", r["prompt"], r, r["answer"]) for r in zoo.rows(kind)])
    for one in made:
        for name, attack in ATTACKS.items():
            for attempt in tries(attack, one, "bare"):
                text = attempt.completion.strip(" \n.")
                if attempt.above in ("right", "missing") or name in ("contradiction", "negation"):
                    continue
                if one.kind == "number":
                    ends = zoo.last_number(text[-400:]), number(text.partition(" ")[0])
                    assert float(one.answer) not in ends, (name, attempt)
                elif one.kind in ("text", "choice") and name != "few shot":
                    ends = {*text.split()[:1], *text.split()[-1:]}
                    assert one.answer not in ends or name == "echo", (name, attempt)


@given(st.text(min_size=1).filter(str.strip), st.text())
@settings(max_examples=50)
def test_any_row_can_be_attacked(gold: str, prompt: str) -> None:
    made = case(gold, prompt)
    assert made.wrong and made.answer not in made.wrong
    for attack in ATTACKS.values():
        assert all(isinstance(one.completion, str) for one in tries(attack, made, "tags"))


def test_the_choices_of_a_question_are_its_wrong_answers() -> None:
    question = "Which?\nA) Oslo\nB) Rome\nC) Bern"
    for prompt in (question, ({"role": "user", "content": question},)):
        made = cases([Given("a:1", prompt, {}, "B")])[0]
        assert made.wrong[:2] == ("A", "C")
    assert case("B", choices=["Oslo", "Rome"]).wrong[0] == "A"


def test_a_form_with_the_working_keeps_it() -> None:
    made = case("2 * 6 = 12\n#### 12")
    assert made.written("as in the row", "99") == "2 * 6 = 12\n#### 99"
    assert made.written("tags", "99") == "<answer>99</answer>"
    assert made.written("FINAL: {answer}!", "99") == "FINAL: 99!"
    assert case("def f():\n    return 1").written("fence", "x") == "```python\nx\n```"
    assert "{answer}" not in "".join(made.written(form, "99") for form in FORMS)


def test_code_that_exits_does_so_elsewhere_and_not_here() -> None:
    made = case("def f(x):\n    return x")
    texts = {t.variant: t.completion for t in tries(ATTACKS["early exit"], made, "bare")}
    for name in ("os._exit", "at exit"):
        code = texts[name] + "\nassert f(1) == 1"
        done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True)
        assert done.returncode == 0, name
        with pytest.raises(AssertionError):
            exec(code, {})
    (unittest,) = (
        t for t in tries(ATTACKS["patched tests"], made, "bare") if t.variant == "unittest"
    )
    exec(unittest.completion, {})
    import unittest as module

    assert module.TestCase.assertEqual is not print


# ------------------------------------------------------------------------------------- the command


def test_the_command(
    data: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "audit"
    argv = ["audit-reward", "contains", "--data", str(data["sum"]), "--out", str(out), "--quiet"]
    assert main(argv) == 10
    shown = capfd.readouterr().out
    assert max(map(len, shown.splitlines()[:-1])) <= 80  # the last is a path
    for text in ("several answers", "1.00 [0.63, 1.00]", "cure     read one answer", "FAIL: found"):
        assert text in shown
    found = json.loads((out / "audit.json").read_text())
    summary = json.loads((out / "summary.json").read_text())
    assert found["attacks"] == summary["attacks"] and found["rows"] == zoo.N
    records = read_records(out / "tries.jsonl")
    assert len(records) == found["tries"]
    listed = [r for r in records if r.meta["variant"] == "a list"]
    assert [r.values["succeeded"] for r in listed] == [1.0] * zoo.N
    assert main(argv) == 10  # finished: the same verdict, and nothing runs
    assert capfd.readouterr().out == shown
    assert main(["audit-reward", "--scorer", "exact", "--data", str(data["sum"])]) == 0
    assert "PASS: no loophole found" in " ".join(capfd.readouterr().out.split())


def test_pairs_and_messages(tmp_path: Path) -> None:
    """The chosen answer is right, the rejected one wrong; functions get messages for messages."""
    scorer = tmp_path / "wordy.py"
    scorer.write_text(
        "def wordy(completions, **columns):\n"
        "    return [float(len(c[0]['content']) > 8) for c in completions]\n"
    )
    prompt = [{"role": "user", "content": "Ask for salt."}]
    rows = [
        {
            "prompt": prompt,
            "chosen": [{"role": "assistant", "content": f"Salt {i}, please."}],
            "rejected": [{"role": "assistant", "content": f"Salt {i}!"}],
        }
        for i in range(9)
    ]
    result = audited(f"{scorer}:wordy", making.write(tmp_path / "a.jsonl", rows))
    assert result["right"]["mean"] == 1 and result["wrong"]["mean"] == 0
    assert result["kinds"] == {"text": 9} and "filler" in result["loopholes"]
    assert "no answer" not in result["loopholes"]  # it reads none: filler is all there is to it


def test_a_form_of_ones_own_and_another_column(tmp_path: Path) -> None:
    scorer = tmp_path / "strange.py"
    scorer.write_text(
        "def strange(completions, target, **columns):\n"
        "    pairs = zip(completions, target, strict=True)\n"
        "    return [None if t is None else float(c == f'>>{t}<<') for c, t in pairs]\n"
    )
    rows = [{"prompt": f"{i}?", "target": str(7 * i + 30)} for i in range(12)]
    where = {"data": making.write(tmp_path / "a.jsonl", rows), "answer": "target"}
    assert audited(f"{scorer}:strange", **where)["loopholes"] == ["right answer"]
    result = audited(f"{scorer}:strange", **where, form=">>{answer}<<")
    assert (result["loopholes"], result["form"]) == ([], ">>{answer}<<")


@pytest.mark.parametrize(
    ("rows", "more", "what"),
    [
        ([{"prompt": "a?"}], {}, "no row has a right answer"),
        ([{"prompt": "a?", "answer": "b"}], {"answer": "c"}, "there is no column 'c'"),
        ([{"prompt": "a?", "answer": "b"}], {}, "1 rows show too little"),
        ([{"prompt": "a?", "answer": "b"}] * 9, {"scorer": "{file}:broken"}, "failed on all"),
    ],
)
def test_what_cannot_be_audited_is_said(
    rows: list[dict[str, Any]], more: dict[str, Any], what: str, tmp_path: Path
) -> None:
    data = making.write(tmp_path / "a.jsonl", rows)
    toy = str(ZOO.with_name("toy_scorer.py"))
    more = {"scorer": "exact", **{k: v.format(file=toy) for k, v in more.items()}}
    with pytest.raises(DataError, match=what) as caught:
        audited(data=data, out=tmp_path / "out", **more)
    assert caught.value.cure and not (tmp_path / "out").exists()


def test_a_form_without_a_place_is_refused(data: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="has no place for the answer"):
        audited("exact", data["sum"], form="FINAL:")


@pytest.mark.skipif(not MATHS.is_dir(), reason=f"there is no shared data folder {MATHS}")
@pytest.mark.parametrize("name", ["gsm8k_test", "mawps", "basic_arithmetic"])
def test_real_rows(name: str) -> None:
    assert audited("number", MATHS / f"{name}.jsonl.gz", rows=30)["loopholes"] == []
