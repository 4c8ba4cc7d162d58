"""A row gives text or says where it has none; a rejected row is written down whole, and every row
is counted.
"""

from __future__ import annotations

import base64
import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from posttrain.core.errors import DataError
from posttrain.data.rows import JSON, Rejects, Row, kind, text

NAN = float("nan")


def refused(where: str = "a.jsonl:7", what: str = "the text to learn is empty") -> DataError:
    return DataError(what, where=where, cure="fill it in")


def written(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


# ------------------------------------------------------------------ text of a row


def test_a_missing_column_names_the_nearest() -> None:
    row = Row({"promt": "x", "n": 3}, "a.jsonl:1")
    with pytest.raises(DataError) as caught:
        row.text("prompt")
    assert (caught.value.where, caught.value.what) == (
        "a.jsonl:1",
        "there is no column 'prompt'; did you mean 'promt'?",
    )
    assert caught.value.cure.endswith("--data FILE,prompt=question,completion=answer")
    assert row.text("promt") == "x"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "null"),
        (["a"], "a list"),
        ({"a": 1}, "an object"),
        (True, "true or false"),
        (3, "a number"),
        (0.5, "a number"),
        (NAN, "NaN"),
        (b"a", "bytes"),
        (date(2026, 1, 1), "date"),
    ],
)
def test_text_is_never_made_of_something_else(value: object, said: str) -> None:
    with pytest.raises(DataError) as caught:
        Row({"text": value}, "a:7").text("text")
    assert (caught.value.where, caught.value.what) == (
        "a:7",
        f"column 'text' holds {said}, not text",
    )
    assert kind(value) == said


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        "\u2028\x85",
        "e\u0301",
        "👩‍👩‍👧",
        "\U0010ffff",
        "\x01\x1b[0m\x7f",
        "<|end|>",
        "שלום \u202e",
    ],
)
def test_text_of_every_kind_stays_as_it_is(value: str) -> None:
    assert text(value, "x", "a:1") == value


@pytest.mark.parametrize(
    ("value", "what", "cure"),
    [
        (
            "ab\ud800",
            "x holds half a character, \\ud800",
            "write both halves of the surrogate pair, or remove it",
        ),
        (
            "\udfff",
            "x holds half a character, \\udfff",
            "write both halves of the surrogate pair, or remove it",
        ),
        (
            "ab\0",
            "x holds a NUL character (character 3)",
            "the file is binary or damaged there; remove the character or the row",
        ),
    ],
)
def test_text_that_no_text_should_hold(value: str, what: str, cure: str) -> None:
    with pytest.raises(DataError) as caught:
        text(value, "x", "a:1")
    assert (caught.value.where, caught.value.what, caught.value.cure) == ("a:1", what, cure)


def test_a_key_that_stands_twice_would_lose_a_value() -> None:
    assert JSON.decode('{"a": {"b": 1}, "b": 1}') == {"a": {"b": 1}, "b": 1}
    with pytest.raises(ValueError, match="the key 'b' stands twice"):
        JSON.decode('{"a": {"b": 1, "c": 2, "b": 3}}')


# ------------------------------------------------------------------ rejected rows


def test_without_a_file_the_first_one_stops() -> None:
    rejects = Rejects()
    with pytest.raises(DataError) as caught:
        rejects.add(refused(), Row({}, "a.jsonl:7"))
    assert (
        str(caught.value) == "a.jsonl:7: the text to learn is empty\n"
        "  cure: fill it in; --on-bad-row reject sets such rows aside and goes on"
    )
    assert rejects.count == 0
    rejects.close()


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a": 1}',
        b'{"a": "\xe2\x80\xa8 \xc2\x85 \\u0000"}\r',
        b"\0\x01\x1b",
        b"",
        b"\\ud800",
        b'"\\" \\n',
    ],
)
def test_a_line_is_kept_as_it_was(tmp_path: Path, raw: bytes) -> None:
    rejects = Rejects(tmp_path / "deep" / "rejects.jsonl")
    rejects.add(refused(), raw + b"\n")
    rejects.add(refused("a.jsonl:9"), Row({"a": "renamed"}, "a.jsonl:9", raw))
    assert not (tmp_path / "deep" / "rejects.jsonl").exists()  # not before it is whole
    rejects.close()
    reason = {"what": "the text to learn is empty", "cure": "fill it in", "raw": raw.decode()}
    assert written(tmp_path / "deep" / "rejects.jsonl") == [
        {"where": "a.jsonl:7", **reason},
        {"where": "a.jsonl:9", **reason},
    ]


def test_a_line_that_is_not_text_is_kept_too(tmp_path: Path) -> None:
    rejects = Rejects(tmp_path / "rejects.jsonl")
    rejects.add(refused(), b'{"a": "caf\xe9"}\n')
    rejects.close()
    (entry,) = written(tmp_path / "rejects.jsonl")
    assert base64.b64decode(entry["raw_base64"]) == b'{"a": "caf\xe9"}' and "raw" not in entry


def test_a_row_without_a_line_is_kept_by_its_fields(tmp_path: Path) -> None:
    rejects = Rejects(tmp_path / "rejects.jsonl")
    rejects.add(
        refused(what="\ud800 in a name"),
        Row({"a": b"\xff", "d": date(2026, 1, 2), "t": "\ud800", "n": None}, "a.parquet:row 1"),
    )
    rejects.close()
    (entry,) = written(tmp_path / "rejects.jsonl")
    assert entry["fields"] == {"a": {"base64": "/w=="}, "d": "2026-01-02", "t": "\ud800", "n": None}
    assert entry["what"] == "\ud800 in a name"


def test_without_rejects_there_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "rejects.jsonl").write_text("of an earlier attempt")
    Rejects(tmp_path / "rejects.jsonl").close()
    assert list(tmp_path.iterdir()) == []


def test_rows_in_are_rows_out_and_rejected(tmp_path: Path) -> None:
    rejects = Rejects(tmp_path / "rejects.jsonl")
    rejects.read = 3
    rejects.add(refused(), b"x")
    rejects.balance(2)
    with pytest.raises(AssertionError, match="3 rows read, 1 used and 1 rejected"):
        rejects.balance(1)
    rejects.close()


def test_reasons_are_counted_without_their_particulars(tmp_path: Path) -> None:
    rejects = Rejects(tmp_path / "rejects.jsonl")
    for what in (
        "message 3 of messages has no role",
        "message 12 of messages has no role",
        "byte 14 of the line is not UTF-8",
        "the key 'a' stands twice",
        f"the key '{'x' * 25}' stands twice",
        f"the key '{'y' * 99}' stands twice",
    ):
        rejects.add(refused(what=what), b"")
    rejects.close()
    assert rejects.reasons == {
        "message … of messages has no role": 2,
        "byte … of the line is not UTF-8": 1,
        "the key 'a' stands twice": 1,
        "the key '…' stands twice": 2,
    }
