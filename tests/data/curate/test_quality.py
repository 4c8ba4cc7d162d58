"""Quality signals, by hand, and the rows that the bounds leave out and keep."""

from __future__ import annotations

import pytest

from posttrain.data.curate.quality import BOUNDS, QualitySettings, faults, signals

DEFAULT = QualitySettings()  # type: ignore[call-arg]


def test_signals_by_hand() -> None:
    found = signals(["What is # 1?", "Ten words … no.\nTen words … no."])
    # pieces: what is # 1 | ten words no ten words no: 10 words; 4+2+1+1 and twice 3+5+2 characters
    assert found["words"] == 10
    assert found["word_length"] == pytest.approx(28 / 10)
    # letters: What is (6), Ten words no (10) twice; not spaces: # 1 ? (3) … . (2) twice
    assert found["letters"] == pytest.approx(26 / 33)
    assert found["symbols"] == pytest.approx(3 / 10)
    assert found["repeated_lines"] == 0.5
    assert found["repeated_ngrams"] == 0.0  # runs of five: t w n t w, w n t w n
    assert found["ends"] == 1.0
    assert found.keys() == BOUNDS.keys()


def test_repetition_is_that_of_the_worst_piece() -> None:
    line = "one two three four five six"
    assert signals([line, line])["repeated_ngrams"] == 0.0  # an answer that quotes its prompt
    # 12 words, 8 runs of five, of which 6 begin anew: two stood before
    assert signals(["short", f"{line} {line}"])["repeated_ngrams"] == pytest.approx(2 / 8)
    assert signals([])["words"] == signals([""])["letters"] == 0


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["What is the capital of Peru?", "Lima"], []),
        (["List the files.", "ls -la <path> | sort --reverse"], []),
        (["Was ist 12 + 30?", "12 + 30 = 42"], []),
        (["秘鲁的首都是哪里?", "利马"], []),
        (["def f(x):\n    return x[0] + 1  # first\n"], []),
        (["hi"], ["min_words"]),
        (["1 2 3 4 5 6 7 8 9 10 11"], ["min_letters"]),
        (["# # # # a b c"], ["max_symbols"]),
        (
            [
                "class A {\n  void f() {\n    g();\n  }\n  void h() {\n    i();\n  }\n  void j() "
                "{\n    k();\n  }\n}\n"
            ],
            [],
        ),
        (["so long and thanks\n" * 2 + "for all the fish"], ["max_repeated_lines"]),
        (["it goes on and on and " * 8], ["max_repeated_ngrams"]),
        (
            [
                "aGVsbG8gd29ybGQhIGhvdyBhcmUgeW91 ZG9pbmcgdG9kYXkgbXkgZnJpZW5k "
                "aGVsbG8gd29ybGQhIGhvdyBhcmU"
            ],
            ["max_word_length"],
        ),
    ],
)
def test_the_bounds_take_out_what_is_broken(pieces: list[str], expected: list[str]) -> None:
    assert list(faults(signals(pieces), DEFAULT)) == expected


def test_a_bound_can_be_moved_and_all_be_lifted() -> None:
    found = signals(["hi"])
    assert list(faults(found, QualitySettings(min_words=1))) == []  # type: ignore[call-arg]
    assert list(faults(found, QualitySettings(quality="off"))) == []  # type: ignore[call-arg]
    assert {
        name for limits in BOUNDS.values() for name, _ in limits
    } == QualitySettings.model_fields.keys() - {"quality"}
