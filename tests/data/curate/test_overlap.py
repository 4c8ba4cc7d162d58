"""Overlap of training and held-out rows: sets by hand, against all pairs, and against MinHash."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.data.curate.near_duplicates import jaccard, shingles
from posttrain.data.curate.overlap import Sample, near, overlap
from posttrain.data.curate.pairs import contradicted
from posttrain.data.formats import Example, Format
from posttrain.data.rows import Rejects
from posttrain.data.settings import Source
from posttrain.data.sources import read

SHARED = (Path(__file__).parents[3] / ".." / "shared" / "data" / "domain").resolve()
WORDS = [
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
]


def sample(*rows: tuple[str, str], **more: int) -> Sample:
    found = Sample(**more)
    for prompt, answer in rows:
        found.add(Example("", prompt, (answer,)))
    return found


def keys(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.uint64)


def test_the_same_near_and_by_their_prompt_alone() -> None:
    """Row 1 is the same. Row 2 differs in its last word: 12 words have 10 shingles, of which 9 are
    shared, 9/11 ≥ 0.8. Row 3 has the prompt of a held-out row and another answer.
    """
    text = " ".join(WORDS)
    train = sample(
        ("", "What is the sum of four and five? nine"),
        ("", " ".join([*WORDS[:-1], "dozen"])),
        ("Who wrote the book about the sea?", "Not me, and nobody whom I know."),
        ("", "nothing like any of the others at all"),
    )
    held = sample(
        ("", "What is the sum of four and five? nine"),
        ("", text),
        ("Who wrote the book about the sea?", "A sailor did, a long time ago."),
    )
    found = overlap(train, held, keys(1, 2, 3, 4), keys(1, 5, 6))
    assert (found.training.rows, found.training.same) == (4, 1)
    assert (found.training.near, found.training.near_prompt) == (2, 1)
    assert (found.held_out.rows, found.held_out.same) == (3, 1)
    assert (found.held_out.near, found.held_out.near_prompt) == (2, 1)
    text = found.sentence()
    assert "1 of 3 held-out rows (33.3 %) are also training rows" in text
    assert "1 of 4 training rows (25.0 %) are also held-out rows, 3 (75.0 %)" in text
    assert "1 by the prompt alone" in text and "looked for" not in text


@given(
    st.lists(st.lists(st.sampled_from(WORDS), max_size=9), max_size=12),
    st.lists(st.lists(st.sampled_from(WORDS), max_size=9), max_size=12),
    st.sampled_from([0.3, 0.5, 0.8, 1.0]),
)
def test_nothing_is_missed(left: list[list[str]], right: list[list[str]], at: float) -> None:
    """As all pairs one by one."""
    a, b = ([shingles(" ".join(words)) for words in side] for side in (left, right))
    found = near(a, b, at)
    table = np.array([[jaccard(x, y) >= at for y in b] for x in a]).reshape(len(a), len(b))
    assert found.left.tolist() == table.any(1).tolist()
    assert found.right.tolist() == table.any(0).tolist()
    assert found.compared.all()


def test_of_a_long_stream_every_second_row_is_kept() -> None:
    rows = [("", f"row number {i} of many") for i in range(100)]
    found = sample(*rows, rows=30)
    assert found.seen == 100 and len(found.texts) == 25
    expected = [shingles(rows[i][1]) for i in range(0, 100, 4)]
    assert all(np.array_equal(a, b) for a, b in zip(found.texts, expected, strict=True))
    long = sample(*rows, shingles=60)  # of few words more rows than of many
    assert sum(map(len, [*long.texts, *long.prompts])) <= 60 and len(long.texts) < 25


def test_what_was_compared_is_said() -> None:
    """All rows are alike, so that each has all held-out rows as candidates: few can be compared."""
    rows = [("", f"{' '.join(WORDS)} {i}") for i in range(40)]
    sides = sample(*rows), sample(*rows[:10])
    found = overlap(*sides, keys(*range(40)), keys(*range(10)), most=200)
    assert found.training.compared < 40 and found.training.near == found.training.compared
    assert (found.training.rows, found.training.same) == (40, 10)
    assert f"looked for among {found.training.compared} training rows and 10" in found.sentence()


def test_preferences_that_also_stand_the_other_way_round() -> None:
    """A over B twice and B over A: three rows. A good answer that is bad elsewhere: two. A over A
    and a circle of three contradict nobody.
    """
    pairs = [(1, 2), (1, 2), (2, 1), (7, 0), (0, 7), (8, 0), (3, 3), (4, 5), (5, 6), (6, 4)]
    large = [[a and a + 2**60, b and b + 2**60] for a, b in pairs]
    assert contradicted(np.array(large, np.uint64)) == 5
    assert contradicted(np.zeros((0, 2), np.uint64)) == 0


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"there is no shared data folder {SHARED}")
def test_real_rows_overlap_as_a_split_finds_by_minhash() -> None:
    """What docs/how-to/split-without-leaks.md says: 807 near-duplicates, 44 by their prompt."""
    sides = []
    for name in ("medquad_train", "medquad_valid"):
        form, found = Format(), Sample()
        for row in read(Source(path=str(SHARED / f"{name}.jsonl.gz")), Rejects()):
            found.add(form.read(row))
        sides.append(found)
    train, held = (np.arange(found.seen, dtype=np.uint64) for found in sides)
    result = overlap(*sides, train, held + np.uint64(10**6))
    assert (result.training.rows, result.training.near, result.training.near_prompt) == (
        15_354,
        807,
        44,
    )
    assert "851 (5.5 %)" in result.sentence()
