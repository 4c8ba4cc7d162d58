"""Sources that are read more than once, and must be what they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from posttrain.core.errors import DataError
from posttrain.core.events import Reporter
from posttrain.data.curate.corpus import Corpus
from posttrain.data.settings import Source
from tests.making import write


@pytest.mark.parametrize(
    "later",
    [
        [{"text": "a"}, {"text": "b"}, "no json", {"text": "c"}],  # a row more
        [{"text": "a"}, {"text": ""}, "no json"],  # as many rows, of which another is unusable
    ],
)
def test_data_that_changes_between_two_passes_is_an_error(later: list[Any], tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"text": "a"}, {"text": "b"}, "no json"])
    source, reporter = Source(path=str(path)), Reporter()
    corpus = Corpus([source], tmp_path, reporter, rejects="rejects.jsonl")
    for purpose in ("first", "again"):
        assert len(list(corpus.rows(purpose))) == 2
    assert (corpus.read, corpus.usable, corpus.rejected) == (3, 2, 1)
    write(path, later)
    with pytest.raises(DataError, match="the data changed while it was read: 3 rows"):
        list(corpus.rows("third"))
