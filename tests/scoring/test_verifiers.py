"""What counts as the wanted answer."""

from __future__ import annotations

import pytest

from posttrain.scoring.score import Response, Score
from posttrain.scoring.verifiers import MATCHES, VERIFIERS, is_wanted, longest, shortest


@pytest.mark.parametrize(
    ("match", "answer", "wanted", "right"),
    [
        ("exact", " Paris\n", "Paris", True),
        ("exact", "new  york", "new york", True),
        ("exact", "paris", "Paris", False),
        ("exact", "Paris.", "Paris", False),
        ("exact", "", "Paris", False),
        ("contains", "It is paris, I think", "Paris", True),
        ("contains", "It is\n New   York.", "new york", True),
        ("contains", "Parisian", "Paris", False),
        ("contains", "a+b (x)", "(x)", True),
        ("contains", "142", "42", False),
        ("number", "6 times 7 is 42.", "42", True),
        ("number", "42, not 43", "42", False),
        ("number", "1,234.50", "1234.5", True),
        ("number", "it is -3", "-3", True),
        ("number", "it is -3", "3", False),
        ("number", "from 3-5", "5", True),
        ("number", "2, 3,5", "5", True),
        ("number", "1,2,3", "3", True),
        ("number", "so 5-3=2", "2", True),
        ("number", ".5", "0.5", True),
        ("number", "9007199254740993", "9007199254740992", False),
        ("number", "none", "3", False),
        ("number", "none", "none", False),
    ],
)
def test_matches(match: str, answer: str, wanted: str, right: bool) -> None:
    assert MATCHES[match](answer, wanted) is right


@pytest.mark.parametrize(
    ("answer", "wanted", "right"),
    [
        ("Lima", "<think>\nHm.\n</think>\n\nLima", True),
        ("<think>\nHm.\n</think>\n\nLima", "<think>\nHm.\n</think>\n\nLima", True),
        ("<think>\nHm.\n</think>\n\nLima", "Lima", False),  # where all of it is judged
        ("", "<think>\nHm.\n</think>\n\nLima", False),
        ("Hm.", "<think>\nHm.\n</think>\n\nLima", False),
    ],
)
def test_thinking_in_the_wanted_answer_need_not_be_met(
    answer: str, wanted: str, right: bool
) -> None:
    (score,) = VERIFIERS["exact"]([Response("q", answer, {"answer": wanted})])
    assert score.value == right
    assert not is_wanted(MATCHES["number"], "7", "<think>7</think>none")


def test_the_wanted_answer_is_the_first_column_that_holds_one() -> None:
    """`completion` before `answer`; a row that wants nothing has no score, which is no 0."""
    rows = ({"completion": "a", "answer": "b"}, {"answer": "b"}, {"answer": 3}, {})
    scores = VERIFIERS["exact"]([Response("?", "b", columns) for columns in rows])
    assert [score.value for score in scores] == [0, 1, None, None]
    assert "no wanted answer" in scores[2].why and not scores[2].failed


def test_baselines_count_characters() -> None:
    responses = [Response("?", "four"), Response("?", "")]
    assert longest(responses) == [Score(4.0), Score(0.0)]
    assert shortest(responses) == [Score(-4.0), Score(0.0)]
