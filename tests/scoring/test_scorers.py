"""Scorers by name."""

from __future__ import annotations

from pathlib import Path

import pytest

import posttrain
from posttrain.core.errors import ConfigError, DataError
from posttrain.core.files import sha256_file
from posttrain.scoring.score import Response, Score
from posttrain.scoring.scorers import (
    SCORERS,
    check_scorer,
    choose_scorer,
    open_scorer,
    reasons,
    refuse_failures,
    scorer_digest,
)

TOY = Path(__file__).with_name("toy_scorer.py")


def test_known_names_are_the_scorers_and_others_are_refused() -> None:
    assert set(SCORERS) == {"exact", "contains", "number", "longest", "shortest"}
    assert open_scorer("longest") is SCORERS["longest"]
    assert posttrain.open_scorer is open_scorer
    for name in ("longst", "reward:", "reward", "toy.txt:shout"):
        with pytest.raises(ConfigError, match="there is no scorer") as caught:
            check_scorer(name)
        assert "reward:FOLDER" in caught.value.cure and "FILE.py:FUNCTION" in caught.value.cure
    with pytest.raises(ConfigError) as caught:
        open_scorer("longst")
    assert "did you mean 'longest'?" in caught.value.cure


def test_a_function_of_a_file_is_a_scorer() -> None:
    (score,) = open_scorer(f"{TOY}:shout")([Response("?", "OK")])
    assert score.value == 1.0
    with pytest.raises(ConfigError, match="has no 'shouts'") as caught:
        check_scorer(f"{TOY}:shouts")
    assert "did you mean 'shout'?" in caught.value.cure
    with pytest.raises(ConfigError, match="there is no file"):
        check_scorer("no/such/file.py:shout")
    with pytest.raises(ConfigError, match="is no function"):
        check_scorer(f"{TOY}:__doc__")


def test_what_a_scorer_depends_on_is_its_file() -> None:
    assert scorer_digest(f"{TOY}:shout") == sha256_file(TOY)
    assert scorer_digest("exact") == ""


def test_two_settings_name_one_scorer() -> None:
    assert choose_scorer("exact", None) == "exact"
    assert choose_scorer("", "runs/rm") == "reward:runs/rm"
    assert choose_scorer("", None) == ""


def test_a_batch_that_failed_altogether_ends_the_run() -> None:
    failed, silent = Score(None, why="KeyError: 1", failed=True), Score(None, why="no answer")
    for scores in ([], [silent, silent], [failed, Score(1.0)], [failed, silent]):
        refuse_failures("toy", scores)
    with pytest.raises(DataError, match="the scorer toy failed on all of 2 responses; 2: KeyErr"):
        refuse_failures("toy", [failed, failed])
    assert reasons([failed, silent, silent, Score(1.0)]) == "2: no answer; 1: KeyError: 1"
