"""Records as JSON lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.evals.records import Record, cluster_of, read_records, write_records

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
RECORDS = st.builds(
    Record,
    item=st.text(),
    cluster=st.text(),
    values=st.dictionaries(st.text(), st.none() | st.floats(allow_nan=False), max_size=3),
    weight=st.floats(0.1, 10),
    output=JSON,
    meta=st.dictionaries(st.text(), JSON, max_size=3),
)


@given(st.lists(RECORDS, max_size=4))
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, records: list[Record]
) -> None:
    """Any sign inside, those that end a line for `splitlines` and not in JSON among them."""
    path = tmp_path_factory.mktemp("records") / "a.jsonl"
    write_records(path, records)
    assert read_records(path) == records


def test_a_line_has_every_field(tmp_path: Path) -> None:
    record = Record("a:1", "p", {"score": None}, 2.0, ["out\u2028"], {"why": "x"})
    assert json.loads(record.line()) == {
        "item": "a:1",
        "cluster": "p",
        "values": {"score": None},
        "weight": 2.0,
        "output": ["out\u2028"],
        "meta": {"why": "x"},
    }


def test_the_cluster_is_the_prompt_and_without_one_the_item() -> None:
    message = {"role": "user", "content": "Hi"}
    assert cluster_of("Hi") == cluster_of("Hi") != cluster_of("Hi ")
    assert cluster_of((message,)) == cluster_of((dict(message),)) != cluster_of("Hi")
    assert cluster_of("") == cluster_of(()) == ""
    assert Record("a:1").group == "a:1" and Record("a:1", "p").group == "p"
