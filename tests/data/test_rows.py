"""Rows of a file: every line that cannot be read is named by file and line."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from posttrain.core.errors import DataError
from posttrain.data.rows import Row, read
from tests.making import write

GOOD = b'{"text": "one"}\n{"text": "two"}\n'


def fields(path: Path) -> list[tuple[object, str]]:
    return [(row.fields["text"], row.where.removeprefix(str(path))) for row in read(path)]


@pytest.mark.parametrize(("content", "found"), [
    (GOOD, [("one", ":1"), ("two", ":2")]),
    (GOOD.rstrip(), [("one", ":1"), ("two", ":2")]),  # no newline at the end
    (GOOD.replace(b"\n", b"\r\n"), [("one", ":1"), ("two", ":2")]),
    (b"\n  \n" + GOOD.replace(b"\n", b"\n\n"), [("one", ":3"), ("two", ":5")]),  # blank lines count, and are passed over
    (b"\xef\xbb\xbf" + GOOD, [("one", ":1"), ("two", ":2")]),  # a byte-order mark
    ('{"text": "\u2028 a line in Unicode, not in a file \x85"}\n'.encode(),
     [("\u2028 a line in Unicode, not in a file \x85", ":1")]),
    (b"", []),
])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_rows_know_where_they_stand(tmp_path: Path, content: bytes, found: list[tuple[str, str]], name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert fields(path) == found


@pytest.mark.parametrize(("third", "what", "cure"), [
    (b'{"text": "x"', "not JSON: Expecting ',' delimiter at character 13", "one JSON object a line"),
    (b"text", "not JSON: Expecting value at character 1", "one JSON object a line"),
    (b'{"text": 1} {"text": 2}', "not JSON: Extra data at character 13", "one JSON object a line"),
    (b'["text"]', "a list, not an object", "one JSON object a line"),
    (b'"text"', "a str, not an object", "one JSON object a line"),
    (b"null", "a NoneType, not an object", "one JSON object a line"),
    (b'{"text": "caf\xe9"}', "byte 14 of the line is not UTF-8", "convert the file: iconv -f LATIN1 -t UTF-8"),
    (b"\xef\xbb\xbf{}", "not JSON: Unexpected UTF-8 BOM (decode using utf-8-sig) at character 1", "one JSON object a line"),
])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_line_that_cannot_be_read_is_named(tmp_path: Path, third: bytes, what: str, cure: str, name: str) -> None:
    path = tmp_path / name
    content = GOOD + third + b"\n" + GOOD
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    rows = read(path)
    assert [next(rows).fields["text"] for _ in range(2)] == ["one", "two"]  # what is before it is good
    with pytest.raises(DataError) as caught:
        next(rows)
    assert (caught.value.where, caught.value.what, caught.value.cure) == (f"{path}:3", what, cure)


@pytest.mark.parametrize("damage", [lambda whole: whole[:-9], lambda whole: whole[:-8] + b"\0\0\0\0" + whole[-4:],
                                    lambda whole: whole[:15] + b"\xff\xff\xff" + whole[18:], lambda whole: b"plain text"],
                         ids=["cut off", "wrong checksum", "damaged", "not gzip"])
def test_a_damaged_gz_file_is_an_error(tmp_path: Path, damage) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(damage(gzip.compress(GOOD * 1000)))
    with pytest.raises(DataError, match="the compressed file is damaged or cut off") as caught:
        list(read(path))
    assert caught.value.where.startswith(f"{path}:")
    assert caught.value.cure == "get the file again"


def test_a_cut_off_gz_file_names_the_line_it_ends_in(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wb") as file:
        file.write(GOOD)
        file.flush()
        whole = path.read_bytes()
    path.write_bytes(whole)  # flushed, never closed
    rows = read(path)
    assert [row.fields["text"] for row in (next(rows), next(rows))] == ["one", "two"]
    with pytest.raises(DataError) as caught:
        next(rows)
    assert caught.value.where == f"{path}:3"


def test_files_that_are_not_rows(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        list(read(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match="there is no file"):
        list(read(tmp_path))
    (tmp_path / "a.csv").write_text("prompt,completion\n")
    with pytest.raises(DataError, match=r"a\.csv is not a JSON-lines file") as caught:
        list(read(tmp_path / "a.csv"))
    assert caught.value.cure == "give a .jsonl or .jsonl.gz file, one object a line"


def test_a_file_that_the_system_does_not_give_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.symlink_to("/proc/self/mem")  # its first byte is not mapped: reading it fails
    with pytest.raises(DataError, match=r"cannot read .*: Input/output error"):
        list(read(path))


def test_a_missing_column_names_the_nearest(tmp_path: Path) -> None:
    (row,) = read(write(tmp_path / "a.jsonl", [{"promt": "x", "n": 3}]))
    with pytest.raises(DataError) as caught:
        row.text("prompt")
    assert caught.value.what == "there is no column 'prompt'; did you mean 'promt'?"
    assert caught.value.where == f"{tmp_path / 'a.jsonl'}:1"
    assert "--columns prompt=" in caught.value.cure
    with pytest.raises(DataError, match="column 'n' holds int, not text"):
        row.text("n")
    assert row.text("promt") == "x"


@pytest.mark.parametrize(("value", "kind"), [(None, "NoneType"), (["a"], "list"), ({"a": 1}, "dict"), (True, "bool")])
def test_text_is_never_made_of_something_else(value: object, kind: str) -> None:
    with pytest.raises(DataError, match=f"a:7: column 'text' holds {kind}, not text"):
        Row({"text": value}, "a:7").text("text")
