"""A small fuzz, the same at every run. The long one: `make proof`."""

from __future__ import annotations

from pathlib import Path

from tests.fuzz import forks
from tests.fuzz.cases import TROUBLE, cases
from tests.fuzz.conftest import RUNS


def test_bad_luck_ends_with_a_sentence(made: Path, tmp_path: Path) -> None:
    drawn = list(cases(40, 0, made, RUNS))
    failed = [
        f"{forks.describe(case)}\n{wrong}"
        for case, wrong in forks.run(drawn, made, tmp_path)
        if wrong
    ]
    assert not failed, "\n\n".join(failed)


def test_the_fuzz_sees_what_it_looks_for(made: Path, tmp_path: Path) -> None:
    """A traceback, a wrong exit code, a hang and an error without its place are failures."""

    def boom() -> None:
        raise ZeroDivisionError

    def die() -> None:
        import os

        os._exit(7)

    argv = ["sft", "--model", "nowhere/x", "--data", "rows.jsonl", "--out", "out"]
    bad = [
        forks.Case("boom", argv, prepare=boom),
        forks.Case("die", argv, prepare=die),
        forks.Case("names", argv, names="another.json"),
        forks.Case("good", argv, names="nowhere/x"),
    ]
    wrong = {case.name: wrong for case, wrong in forks.run(bad, made, tmp_path)}
    assert "a traceback" in wrong["boom"] and wrong["die"].startswith("code 7")
    assert "does not name another.json" in wrong["names"] and wrong["good"] == ""


def test_every_kind_of_trouble_is_drawn(made: Path) -> None:
    names = {case.name.partition(" ")[2] for case in cases(4000, 0, made, RUNS)}
    assert TROUBLE.keys() <= names
