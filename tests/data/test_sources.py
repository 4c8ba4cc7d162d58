"""Every reader gives exactly the rows of its file, each with the line it stands at; every fault is
named by file and line.
"""

from __future__ import annotations

import base64
import csv
import gzip
import hashlib
import io
import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter

from posttrain.core import limits
from posttrain.core.errors import ConfigError, DataError
from posttrain.data.rows import Rejects, Row
from posttrain.data.settings import Source, Sourced
from posttrain.data.sources import digest, files, read, size

GOOD = b'{"text": "one"}\n{"text": "two"}\n'
ONE_TWO = [({"text": "one"}, ":1"), ({"text": "two"}, ":2")]
LATIN = "convert the file: iconv -f LATIN1 -t UTF-8"


def source(path: Path | str, **options: Any) -> Source:
    return Source.model_validate({"path": str(path), **options})


def rows(path: Path | str, **options: Any) -> list[tuple[dict[str, Any], str]]:
    """Fields and place of every row; the first that cannot be read is an error."""
    return [
        (row.fields, row.where.removeprefix(str(path)))
        for row in read(source(path, **options), Rejects())
    ]


def put(path: Path, content: bytes | str) -> Path:
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def fault(path: Path, what: str, cure: str, at: str = ":1", **options: Any) -> None:
    """Reading it all must fail with exactly this."""
    with pytest.raises(DataError) as caught:
        rows(path, **options)
    assert (caught.value.what, caught.value.where) == (
        what.replace("PATH", str(path)),
        f"{path}{at}" if at else "",
    )
    assert (
        caught.value.cure.removesuffix("; --on-bad-row reject sets such rows aside and goes on")
        == cure
    )


def parquet(path: Path, columns: dict[str, Any]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


# ------------------------------------------------------------------ JSON lines


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (GOOD, ONE_TWO),
        (GOOD.rstrip(), ONE_TWO),  # no newline at the end
        (GOOD.replace(b"\n", b"\r\n"), ONE_TWO),
        # blank lines count
        (
            b"\n  \n" + GOOD.replace(b"\n", b"\n\n"),
            [({"text": "one"}, ":3"), ({"text": "two"}, ":5")],
        ),
        (b"\xef\xbb\xbf" + GOOD, ONE_TWO),  # a byte-order mark
        (b"", []),
        (b"\n\n", []),
        (b"\xef\xbb\xbf", []),
        (b"\xef\xbb\xbf\n", []),
        (
            '{"text": "\u2028 a line in Unicode, not in a file \x85 \x0b\x0c"}\n'.replace(
                "\x0b\x0c", "\\u000b\\f"
            ).encode(),
            [({"text": "\u2028 a line in Unicode, not in a file \x85 \x0b\x0c"}, ":1")],
        ),
        (
            b'{"text": "a\\u0000\\u001b\\n\\u00e9\\ud83d\\ude00\\/"}',
            [({"text": "a\0\x1b\né😀/"}, ":1")],
        ),
        # escaped control characters
        # types stay what they are
        (
            b'{"text": null, "n": 7, "s": "7", "x": [1, {"y": null}], "big": 1' + b"0" * 400 + b"}",
            [({"text": None, "n": 7, "s": "7", "x": [1, {"y": None}], "big": 10**400}, ":1")],
        ),
        (
            b'{"n": ' + b"[" * 200 + b"]" * 200 + b"}",
            [({"n": json.loads("[" * 200 + "]" * 200)}, ":1")],
        ),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.ndjson", "a.json", "a b,c.JSONL"])
def test_json_lines(tmp_path: Path, content: bytes, found: list[Any], name: str) -> None:
    assert rows(put(tmp_path / name, content)) == found


def test_what_python_reads_beyond_json_stays_a_number(tmp_path: Path) -> None:
    """NaN and Infinity in a column that is not used do no harm; where text is read they are
    refused.
    """
    ((fields, _),) = rows(
        put(tmp_path / "a.jsonl", b'{"text": "x", "a": NaN, "b": Infinity, "c": -Infinity}')
    )
    assert str(fields) == "{'text': 'x', 'a': nan, 'b': inf, 'c': -inf}"


@pytest.mark.parametrize(
    ("third", "what", "cure"),
    [
        (
            b'{"text": "x"',
            "not JSON: Expecting ',' delimiter at character 13",
            "one JSON object a line",
        ),
        (
            b'{"text": "x',
            "not JSON: Unterminated string starting at at character 10",
            "one JSON object a line",
        ),
        (b"text", "not JSON: Expecting value at character 1", "one JSON object a line"),
        # two objects
        (
            b'{"text": 1} {"text": 2}',
            "not JSON: Extra data at character 13",
            "one JSON object a line",
        ),
        (
            b'{"text": "x",}',
            "not JSON: Expecting property name enclosed in double quotes at character 14",
            "one JSON object a line",
        ),
        # trailing commas
        (
            b'{"text": ["x",]}',
            "not JSON: Expecting value at character 15",
            "one JSON object a line",
        ),
        (
            b"{'text': 'x'}",
            "not JSON: Expecting property name enclosed in double quotes at character 2",
            "one JSON object a line",
        ),
        (b'["text"]', "a list, not an object", "one JSON object a line"),
        (b'"text"', "text, not an object", "one JSON object a line"),
        (b"null", "null, not an object", "one JSON object a line"),
        (b"NaN", "NaN, not an object", "one JSON object a line"),
        (b"12", "a number, not an object", "one JSON object a line"),
        (b'{"text": "caf\xe9"}', "byte 14 of the line is not UTF-8", LATIN),
        # half a character, as CESU-8 writes it
        (b'{"text": "\xed\xa0\x80"}', "byte 11 of the line is not UTF-8", LATIN),
        (
            b'{"text": "a\x01b"}',
            "not JSON: Invalid control character at at character 12",
            "one JSON object a line",
        ),
        (
            b'{"text": "a\tb"}',
            "not JSON: Invalid control character at at character 12",
            "one JSON object a line",
        ),
        (
            b'{"text": "a\0b"}',
            "not JSON: Invalid control character at at character 12",
            "one JSON object a line",
        ),
        (b"\0" * 40, "not JSON: Expecting value at character 1", "one JSON object a line"),
        (
            b'{"text": "\\x41"}',
            "not JSON: Invalid \\escape at character 11",
            "one JSON object a line",
        ),
        (
            b'{"a": 1, "a": 2}',
            "not readable JSON: the key 'a' stands twice",
            "correct or remove the row",
        ),
        (
            b'{"x": [{"a": 1, "b": 3, "b": 2}]}',
            "not readable JSON: the key 'b' stands twice",
            "correct or remove the row",
        ),
        (
            b'{"a": ' + b"[" * 9999 + b"]" * 9999 + b"}",
            (
                "not readable JSON: maximum recursion depth exceeded while decoding a JSON array "
                "from a unicode string"
            ),
            "correct or remove the row",
        ),
        (
            b'{"a": ' + b"9" * 5000 + b"}",
            (
                "not readable JSON: Exceeds the limit (4300 digits) for integer string conversion: "
                "value has 5000 digits; use sys.set_int_max_str_digits() to increase the limit"
            ),
            "correct or remove the row",
        ),
        # a mark in the middle
        (b"\xef\xbb\xbf{}", "not JSON: Expecting value at character 1", "one JSON object a line"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_line_that_cannot_be_read_is_named(
    tmp_path: Path, third: bytes, what: str, cure: str, name: str
) -> None:
    path = put(tmp_path / name, GOOD + third + b"\n" + GOOD)
    found = read(source(path), Rejects())
    # what is before it is good
    assert [next(found).fields["text"] for _ in range(2)] == ["one", "two"]
    fault(path, what, cure, ":3")
    rejects = Rejects(tmp_path / "rejects.jsonl")
    assert [row.where.rsplit(":")[-1] for row in read(source(path), rejects)] == [
        "1",
        "2",
        "4",
        "5",
    ]
    rejects.close()
    rejects.balance(4)
    entry = json.loads((tmp_path / "rejects.jsonl").read_bytes())
    assert (entry["where"], entry["what"], entry["cure"]) == (f"{path}:3", what, cure)
    assert (
        entry["raw"].encode() if "raw" in entry else base64.b64decode(entry["raw_base64"])
    ) == third


def test_half_a_character_is_found_when_it_is_read(tmp_path: Path) -> None:
    (row,) = read(source(str(put(tmp_path / "a.jsonl", b'{"text": "a\\ud83d"}'))), Rejects())
    with pytest.raises(
        DataError, match=r"a\.jsonl:1: column 'text' holds half a character, \\ud83d"
    ):
        row.text("text")


def test_ten_megabytes_in_a_line_are_read_whole(tmp_path: Path) -> None:
    long = "é\u2028x" * 2_000_000
    path = put(
        tmp_path / "a.jsonl", json.dumps({"text": long}, ensure_ascii=False) + "\n" + GOOD.decode()
    )
    assert path.stat().st_size > 10 * 2**20
    first, second, _ = rows(path)
    assert first[0]["text"] == long and (first[1], second) == (":1", ({"text": "one"}, ":2"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv"])
def test_a_line_over_the_limit_is_no_row(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ROW", 2**20)
    start = "text\n" if name == "a.csv" else '{"t": 1}\n'
    assert len(
        rows(put(tmp_path / name, start + json.dumps({"text": "x" * (2**20 - 13)}) + "\n"))
    ) == 2 - (name == "a.csv")
    fault(
        put(tmp_path / name, start + json.dumps({"text": "x" * (2**20 - 12)}) + "\n"),
        "a line of more than 1 MB",
        f"put one row on a line; a JSON array belongs in a file that ends in .json; {limits.RAISE}",
        ":2",
    )


def test_a_file_that_is_too_large_to_be_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ROW", 2**20)
    fault(
        put(tmp_path / "a.txt", "x" * (2**20 + 1)),
        "PATH is one text of more than 1 MB",
        f'split it, or write JSON lines (.jsonl), one {{"text": …}} a line; {limits.RAISE}',
        "",
    )


# ------------------------------------------------------------------ encodings and gzip


@pytest.mark.parametrize(
    ("codec", "name"),
    [("utf-16", "UTF-16"), ("utf-16-be", "UTF-16"), ("utf-32", "UTF-32"), ("utf-32-be", "UTF-32")],
)
@pytest.mark.parametrize("file", ["a.jsonl", "a.json", "a.csv", "a.txt", "a.jsonl.gz"])
def test_other_unicode_is_named(tmp_path: Path, codec: str, name: str, file: str) -> None:
    text = ("\ufeff" if codec.endswith("be") else "") + GOOD.decode()
    fault(
        put(tmp_path / file, text.encode(codec)),
        f"the file is {name}, not UTF-8 text",
        f"convert it: iconv -f {name} -t UTF-8",
    )


@pytest.mark.parametrize(
    ("name", "at", "what"),
    [
        ("a.jsonl", ":2", "byte 5 of the line is not UTF-8"),
        ("a.json", ":2", "byte 5 of the line is not UTF-8"),
        ("a.csv", ":2", "byte 5 of the row is not UTF-8"),
        ("a.txt", ":2", "byte 5 of the line is not UTF-8"),
    ],
)
def test_latin_1_is_named_by_line_and_byte(tmp_path: Path, name: str, at: str, what: str) -> None:
    first = {"a.jsonl": '{"t": 1}\n', "a.json": "[\n", "a.csv": "text\n", "a.txt": "é\n"}[name]
    fault(put(tmp_path / name, first.encode() + b'" ca\xe9"\n'), what, LATIN, at)


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.jsonl", gzip.compress(GOOD), "gzip"),
        ("a.jsonl.gz", gzip.compress(GOOD), "gzip"),
        ("a.csv", b"PAR1 and so on", "Parquet"),
    ],
)
def test_a_file_under_a_wrong_name(tmp_path: Path, name: str, content: bytes, what: str) -> None:
    fault(
        put(tmp_path / name, content),
        f"the file is {what}, not UTF-8 text",
        "give it the ending it should have",
    )


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[:-9],
        lambda whole: whole[:-8] + b"\0\0\0\0" + whole[-4:],
        lambda whole: whole[:15] + b"\xff\xff\xff" + whole[18:],
        lambda whole: b"plain text",
    ],
    ids=["cut off", "wrong checksum", "damaged", "not gzip"],
)
def test_a_damaged_gz_file_is_an_error(tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(damage(gzip.compress(GOOD * 1000)))
    with pytest.raises(DataError, match="the compressed file is damaged or cut off") as caught:
        rows(path)
    assert caught.value.where.startswith(f"{path}:")
    assert caught.value.cure == "get the file again"


def test_a_cut_off_gz_file_names_the_line_it_ends_in(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wb") as file:
        file.write(GOOD)
        file.flush()
        whole = path.read_bytes()
    path.write_bytes(whole)  # flushed, never closed
    found = read(source(path), Rejects())
    assert [row.fields["text"] for row in (next(found), next(found))] == ["one", "two"]
    with pytest.raises(DataError) as caught:
        next(found)
    assert caught.value.where == f"{path}:3"


# ------------------------------------------------------------------ JSON arrays


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b'[{"text": "one"}, {"text": "two"}]', [({"text": "one"}, ":1"), ({"text": "two"}, ":1")]),
        (
            b'\xef\xbb\xbf \n[\r\n  {"text":\r\n "one"},\n\n  {"text": "two"}\n]\n',
            [({"text": "one"}, ":3"), ({"text": "two"}, ":6")],
        ),
        (b"[]", []),
        (b" [\n] ", []),
        (
            '[\n{"text": "\u2028\x85"},\n{"text": "x"}]'.encode(),
            [({"text": "\u2028\x85"}, ":2"), ({"text": "x"}, ":3")],
        ),
    ],
)
@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_json_arrays(tmp_path: Path, content: bytes, found: list[Any], name: str) -> None:
    assert rows(put(tmp_path / name, content)) == found


@pytest.mark.parametrize(
    ("content", "what", "at", "cure"),
    [
        (b'[\n{"a": 1},\n7]', "a number, not an object", ":3", "an array of objects"),
        (
            b'[\n{"a": 1},\n]',
            "not JSON: Expecting value",
            ":3",
            "correct the file: nothing after here can be read",
        ),
        (
            b'[\n{"a": 1}\n{"a": 2}]',
            "the array is cut off, or a comma is missing",
            ":3",
            "correct the file: nothing after here can be read",
        ),
        (
            b'[\n{"a": 1}',
            "the array is cut off, or a comma is missing",
            ":2",
            "correct the file: nothing after here can be read",
        ),
        (
            b'[\n{"a": 1},\n{"a":\n "b}',
            "not JSON: Unterminated string starting at",
            ":4",
            "correct the file: nothing after here can be read",
        ),
        (
            b'[{"a": 1,\n "a": 2}]',
            "not JSON: the key 'a' stands twice",
            ":1",
            "correct the file: nothing after here can be read",
        ),
        (
            b'[{"a": 1}]\n[]',
            "there is something after the array's end",
            ":2",
            "one array in a file",
        ),
    ],
)
def test_a_json_array_that_cannot_be_read(
    tmp_path: Path, content: bytes, what: str, at: str, cure: str
) -> None:
    fault(put(tmp_path / "a.json", content), what, cure, at)


def test_what_is_no_object_in_an_array_can_be_set_aside(tmp_path: Path) -> None:
    path, rejects = (
        put(tmp_path / "a.json", '[{"a": 1}, "é", null, {"a": 2}]'),
        Rejects(tmp_path / "rejects.jsonl"),
    )
    assert [row.fields for row in read(source(path), rejects)] == [{"a": 1}, {"a": 2}]
    rejects.close()
    assert [
        json.loads(line)["raw"] for line in (tmp_path / "rejects.jsonl").read_text().splitlines()
    ] == ['"é"', "null"]


# ------------------------------------------------------------------ CSV


@pytest.mark.parametrize(
    ("name", "separator"), [("a.csv", ","), ("a.tsv", "\t"), ("a.csv.gz", ",")]
)
def test_csv_rows_know_their_first_line(tmp_path: Path, name: str, separator: str) -> None:
    table = [
        ["prompt", "completion"],
        ["a, b\tc", 'say "x"'],
        ["two\nlines\r\n\n", "é\u2028\x85😀"],
        ["", "5"],
        ["last", " x "],
    ]
    out = io.StringIO()
    csv.writer(out, delimiter=separator).writerows(table)
    found = rows(put(tmp_path / name, "\ufeff\r\n" + out.getvalue().replace("last", "\r\nlast")))
    assert [list(fields.values()) for fields, _ in found] == table[1:]
    assert [where for _, where in found] == [":3", ":4", ":8", ":10"]
    assert all(list(fields) == table[0] for fields, _ in found)


@pytest.mark.parametrize(
    ("content", "what", "at", "cure"),
    [
        (
            'a,b\n1,2\n"x\ny",2\n1,2,3\n',
            "3 cells, where the header has 2",
            ":5",
            "put text with commas, quotes or line breaks into double quotes",
        ),
        (
            "a,b\n1,2\n1\n",
            "1 cells, where the header has 2",
            ":3",
            "put text with commas, quotes or line breaks into double quotes",
        ),
        (
            'a,b\n"x\ny",2\n1,"2\n3,4\n5,6\n',
            "not CSV: unexpected end of data",
            ":4",
            "double the quotes inside quoted text, and close them",
        ),
        (
            'a,b\n1,2\n"1"x,2\n',
            "not CSV: ',' expected after '\"'",
            ":3",
            "double the quotes inside quoted text, and close them",
        ),
        (
            "a,b,a\n",
            "the header names a column twice or not at all: a, b, a",
            ":1",
            "the first line names every column once",
        ),
        (
            "a,,b\n1,2,3",
            "the header names a column twice or not at all: a, , b",
            ":1",
            "the first line names every column once",
        ),
        (
            "a;b\n1;2\n",
            "the header is one column, 'a;b'",
            ":1",
            "separate columns by commas (.csv) or tabs (.tsv)",
        ),
        (
            "\n\na|b\n",
            "the header is one column, 'a|b'",
            ":1",
            "separate columns by commas (.csv) or tabs (.tsv)",
        ),
    ],
)
def test_csv_that_cannot_be_read(
    tmp_path: Path, content: str, what: str, at: str, cure: str
) -> None:
    at = ":3" if content.startswith("\n") else at
    fault(put(tmp_path / "a.csv", content), what, cure, at)


def test_a_tsv_with_commas(tmp_path: Path) -> None:
    fault(
        put(tmp_path / "a.tsv", "a,b\n1,2\n"),
        "the header is one column, 'a,b'",
        "separate columns by commas (.csv) or tabs (.tsv)",
    )
    assert rows(put(tmp_path / "b.tsv", "")) == rows(put(tmp_path / "c.csv", "a,b\n")) == []


# ------------------------------------------------------------------ Parquet


def test_parquet_keeps_types_and_nulls(tmp_path: Path) -> None:
    table = {
        "text": ["a", None, "é\0"],
        "n": [1, 2, None],
        "b": [b"\xff", None, b""],
        "x": [[1, 2], None, []],
        "m": [
            [{"role": "user", "content": "a", "tool_calls": None}],
            [{"role": "tool", "content": None, "tool_calls": [{"id": 1}]}],
            None,
        ],
    }
    path = parquet(tmp_path / "a.parquet", table)
    expected = [dict(zip(table, cells, strict=True)) for cells in zip(*table.values(), strict=True)]
    assert rows(path) == [(fields, f":row {i + 1}") for i, fields in enumerate(expected)]


def test_parquet_as_datasets_writes_it(tmp_path: Path) -> None:
    """Structs of one type a column: each row has the fields of all, filled with nulls."""
    from datasets import Dataset

    Dataset.from_list(
        [
            {"messages": [{"role": "user", "content": "a"}]},
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}],
                    }
                ]
            },
            {"messages": None},
        ]
    ).to_parquet(tmp_path / "a.parquet")
    first, second, third = (fields["messages"] for fields, _ in rows(tmp_path / "a.parquet"))
    assert first == [{"role": "user", "content": "a", "tool_calls": None}] and third is None
    assert second == [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}],
        }
    ]


def test_parquet_in_many_batches_counts_on(tmp_path: Path) -> None:
    heard: list[int] = []
    path = parquet(tmp_path / "a.parquet", {"n": list(range(600))})
    found = list(read(source(path), Rejects(), heard.append))
    assert [(row.fields["n"], row.where) for row in found] == [
        (i, f"{path}:row {i + 1}") for i in range(600)
    ]
    assert heard == sorted(heard) and heard[-1] == path.stat().st_size == size(source(path))


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:-9],
        lambda b: b[:300],
        lambda b: b"",
        lambda b: b"text",
        lambda b: b[:4] + b"\xff" * 9 + b[13:],
        lambda b: b[:-60] + b"\xff" * 40 + b[-20:],
    ],
    ids=["cut off", "half", "empty", "text", "page", "footer"],
)
def test_parquet_that_is_damaged(tmp_path: Path, damage: Any) -> None:
    path = parquet(tmp_path / "a.parquet", {"text": [f"row {i}" for i in range(500)]})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"not Parquet, damaged or cut off: .") as caught:
        rows(path)
    assert (caught.value.where, caught.value.cure) == (f"{path}:row 1", "get the file again")


def test_a_value_that_python_cannot_hold_spoils_its_own_row_only(tmp_path: Path) -> None:
    broken = pa.StringArray.from_buffers(
        3, pa.py_buffer(b"\0\0\0\0\2\0\0\0\4\0\0\0\6\0\0\0"), pa.py_buffer(b"ok\xff\xfeok")
    )
    path, rejects = (
        parquet(tmp_path / "a.parquet", {"text": broken, "n": [1, 2, 3]}),
        Rejects(tmp_path / "rejects.jsonl"),
    )
    assert [(row.fields["n"], row.where) for row in read(source(path), rejects)] == [
        (1, f"{path}:row 1"),
        (3, f"{path}:row 3"),
    ]
    rejects.close()
    rejects.balance(2)
    entry = json.loads((tmp_path / "rejects.jsonl").read_bytes())
    assert entry["where"] == f"{path}:row 2"
    assert entry["what"].startswith("a value cannot be read: 'utf-8' codec can't decode byte 0xff")
    assert b"\xff\xfe" in base64.b64decode(entry["raw_base64"])
    late = parquet(tmp_path / "b.parquet", {"d": pa.array([0, 10**14], pa.timestamp("s"))})
    found = read(source(late), Rejects())
    assert next(found).fields == {"d": datetime(1970, 1, 1)}
    with pytest.raises(DataError, match=r"row 2: a value cannot be read"):
        next(found)


def test_parquet_with_a_column_twice(tmp_path: Path) -> None:
    pq.write_table(
        pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]),
        tmp_path / "a.parquet",
    )
    fault(tmp_path / "a.parquet", "the file names a column twice: a, a", "rename one", ":row 1")


def test_parquet_inside_gzip(tmp_path: Path) -> None:
    fault(
        put(tmp_path / "a.parquet.gz", b"x"),
        "PATH: Parquet inside gzip cannot be read",
        "gunzip it",
        "",
    )


# ------------------------------------------------------------------ text, folders, globs, hub


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    assert rows(put(tmp_path / "a.txt", "\ufeffone\r\ntwo\n\x85")) == [
        ({"text": "one\ntwo\n\x85"}, ":1")
    ]
    assert rows(put(tmp_path / "a.md.gz", "# é\n")) == [({"text": "# é\n"}, ":1")]
    assert rows(put(tmp_path / "b.txt", " \n")) == []


def test_a_glob_reads_its_files_in_order(tmp_path: Path) -> None:
    put(tmp_path / "b.jsonl", GOOD)
    put(tmp_path / "a.csv", "text\nzero\n")
    (tmp_path / "c.jsonl").mkdir()
    heard: list[int] = []
    found = list(read(source(f"{tmp_path}/*.*"), Rejects(), heard.append))
    assert [(row.fields["text"], row.where) for row in found] == [
        ("zero", f"{tmp_path}/a.csv:2"),
        ("one", f"{tmp_path}/b.jsonl:1"),
        ("two", f"{tmp_path}/b.jsonl:2"),
    ]
    assert heard == sorted(heard) and heard[-1] == size(source(f"{tmp_path}/*.*")) == len(GOOD) + 10


def test_a_folder_is_read_through_datasets(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    put(folder / "train.jsonl", GOOD)
    put(folder / "test.jsonl", b'{"text": "three"}\n')
    # datasets says which file belongs to which split; our readers read them, so that file and line
    # are known
    assert rows(folder) == [
        ({"text": "one"}, "/train.jsonl:1"),
        ({"text": "two"}, "/train.jsonl:2"),
    ]
    assert rows(folder, split="test", columns={"prompt": "text"}) == [
        ({"prompt": "three"}, "/test.jsonl:1")
    ]
    assert digest(source(folder)) == {
        str(p): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in (folder / "test.jsonl", folder / "train.jsonl")
    }
    with pytest.raises(
        DataError, match=r"cannot load the data set .*: ValueError: .*other"
    ) as caught:
        rows(folder, split="other")
    assert (
        caught.value.cure
        == "check its name, split and subset, and the connection; or give a local file"
    )


def test_a_folder_in_which_a_file_belongs_to_no_split(tmp_path: Path) -> None:
    put(tmp_path / "support-train.jsonl", GOOD)
    put(tmp_path / "LICENSE.txt", b"free")
    put(tmp_path / ".hidden.jsonl", GOOD)
    assert len(rows(tmp_path)) == 2
    put(tmp_path / "faq.jsonl", GOOD)
    with pytest.raises(
        DataError,
        match=r"faq\.jsonl would be left out: by the names of the files it is in no split",
    ) as caught:
        rows(tmp_path)
    assert caught.value.cure == f"name the files themselves: --data '{tmp_path}/*.jsonl'"
    assert len(rows(f"{tmp_path}/*.jsonl")) == 4


def test_a_folder_without_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"cannot load the data set {tmp_path}: "):
        rows(tmp_path)


def test_a_saved_data_set(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    one = Dataset.from_list([{"text": "one"}, {"text": "two"}])
    one.save_to_disk(tmp_path / "one")
    DatasetDict({"train": one, "test": one.select([1])}).save_to_disk(tmp_path / "both")
    assert rows(tmp_path / "one") == [
        ({"text": "one"}, "[train]:row 1"),
        ({"text": "two"}, "[train]:row 2"),
    ]
    assert rows(tmp_path / "both", split="test") == [({"text": "two"}, "[test]:row 1")]
    with pytest.raises(DataError, match="KeyError: 'valid'"):
        rows(tmp_path / "both", split="valid")


@pytest.mark.parametrize("name", ["nobody/nothing", "allenai/tulu-2.5-preference-data"])
def test_a_hub_data_set_without_a_connection(name: str) -> None:
    assert files(source(name)) is None
    for call in (lambda: rows(name), lambda: digest(source(name))):
        with pytest.raises(
            DataError,
            match=(
                f"no file '{name}' here, and the hub did not give a data set of that name: "
                "OfflineModeIsEnabled"
            ),
        ) as caught:
            call()
        assert caught.value.cure == "check the path, or the name and the connection"


@pytest.mark.parametrize(
    "path",
    [
        "none.jsonl",
        "data/none.jsonl",
        "data/none.csv.gz",
        "./a/b",
        "/a/b",
        "~/b",
        "a/b/c",
        "x*",
        "x" * 5000,
        "a\0b",
        "../a",
    ],
)
def test_a_file_that_is_not_there(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="there is no file") as caught:
        rows(path)
    assert caught.value.cure == "check the path"


@pytest.mark.parametrize("name", ["a.jsonl", "/dev/null", "-"])
def test_a_pipe_is_refused_before_it_is_read(name: str, tmp_path: Path) -> None:
    path = name if name[0] in "/-" else str(tmp_path / name)
    if name == "a.jsonl":
        os.mkfifo(path)  # opening it would wait for a writer
    for call in (lambda: rows(path), lambda: digest(source(path)), lambda: size(source(path))):
        with pytest.raises(DataError) as caught:
            call()
        assert caught.value.what.startswith(
            f"{path} is a pipe or a device, not a file: data are read more than once"
        )
        assert caught.value.cure.startswith("write it to a file first")


@pytest.mark.parametrize(
    ("name", "said"), [("a.xlsx", ".xlsx"), ("a", "a file without an ending"), ("a.tar.gz", ".tar")]
)
def test_a_file_without_a_reader(tmp_path: Path, name: str, said: str) -> None:
    fault(
        put(tmp_path / name, b"x"),
        f"PATH: no reader for {said}",
        "give one of .jsonl, .ndjson, .json, .csv, .tsv, .parquet, .txt, .md, or these with .gz",
        "",
    )


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.json", "a.csv"])
def test_a_file_that_the_system_does_not_give_is_an_error(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.symlink_to("/proc/self/mem")  # its first byte is not mapped: reading it fails
    with pytest.raises(DataError, match=r"cannot read .*: Input/output error"):
        rows(path)


# --------------------------------------------------------------- columns, limits, settings, digests


def test_columns_are_renamed(tmp_path: Path) -> None:
    path = put(
        tmp_path / "a.jsonl",
        b'{"question": "q", "answer": "a", "prompt": "x", "id": 1}\n{"answer": "b", "prompt": "c"}',
    )
    assert rows(path, columns={"prompt": "question", "completion": "answer"}) == [
        ({"id": 1, "prompt": "q", "completion": "a"}, ":1"),
        ({"completion": "b"}, ":2"),
    ]
    assert rows(path, columns={"prompt": "answer", "completion": "answer"})[1] == (
        {"prompt": "b", "completion": "b"},
        ":2",
    )
    row, _ = read(source(path, columns={"prompt": "question"}), Rejects())
    assert row.raw == path.read_bytes().split(b"\n")[0] + b"\n"


def test_a_column_that_no_row_has_is_named(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", b'{"text": "one"}\n{"text": "two", "persona": "kind"}\n')
    # it may be rare
    assert rows(path, columns={"system": "persona"})[1] == ({"text": "two", "system": "kind"}, ":2")
    with pytest.raises(
        DataError,
        match=r"no row of .* has the column 'persono', which --data names; did you mean 'persona'",
    ):
        rows(path, columns={"system": "persono"})


def test_columns_are_ignored(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", b'{"text": "one", "note": "A, b.", "odd name": 1, "id": 2}')
    given = TypeAdapter(Sourced).validate_python(f"{path},ignore=note,ignore=odd name,limit=1")
    assert given.ignore == ("note", "odd name")
    (row,) = read(given, Rejects())
    assert row.fields == {"text": "one", "id": 2} and row.raw == path.read_bytes()
    assert rows(path, ignore=["note"])[0][0] == {"text": "one", "odd name": 1, "id": 2}
    with pytest.raises(DataError, match=r"has the column 'nota', .*did you mean 'note'"):
        rows(path, ignore=["nota"])


def test_columns_can_change_places(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", b'{"prompt": "a", "completion": "b"}')
    assert rows(path, columns={"prompt": "completion", "completion": "prompt"}) == [
        ({"prompt": "b", "completion": "a"}, ":1")
    ]


def test_a_limit_counts_what_was_read(tmp_path: Path) -> None:
    path, rejects = (
        put(tmp_path / "a.jsonl", b'{"n": 1}\n\nbad\n{"n": 2}\n{"n": 3}\n'),
        Rejects(tmp_path / "rejects.jsonl"),
    )
    assert [row.fields["n"] for row in read(source(path, limit=3), rejects)] == [1, 2]
    assert (rejects.read, rejects.count) == (3, 1)
    rejects.close()


def parse(given: Any) -> Source:
    return TypeAdapter(Sourced).validate_python(given)


def test_a_source_in_one_string() -> None:
    assert parse(
        "train.jsonl,weight=2,limit=10,prompt=question,split=test,subset=en,epochs=0.5,"
        "completion=a b"
    ) == Source(
        path="train.jsonl",
        weight=2.0,
        limit=10,
        split="test",
        subset="en",
        epochs=0.5,
        columns={"prompt": "question", "completion": "a b"},
    )
    assert str(parse("org/name,limit=1")) == "org/name"
    assert parse("a.jsonl") == source("a.jsonl")


@pytest.mark.parametrize(
    ("text", "option", "cure"),
    [
        ("a.jsonl,wieght=2", "wieght=2", "did you mean 'weight'?"),
        ("a.jsonl,promt=q", "promt=q", "did you mean 'prompt'?"),
        ("a.jsonl,limit", "limit", "did you mean 'limit'?"),
        ("a.jsonl,path=b", "path=b", "did you mean 'epochs'?"),
        ("a.jsonl,", "", "known: answer_index, "),
    ],
)
def test_an_unknown_key_names_the_nearest(text: str, option: str, cure: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert caught.value.what == f"{text!r}: {option!r} is not KEY=VALUE with a known key"
    assert caught.value.cure.startswith(cure) or option == "path=b"


@pytest.mark.parametrize("text", ["a,limit=2,limit=3", "a,prompt=q,prompt=question"])
def test_a_key_that_is_given_twice(text: str) -> None:
    with pytest.raises(ConfigError, match=f"gives {text.split(',')[1].split('=')[0]} twice"):
        parse(text)


@pytest.mark.parametrize(
    ("given", "what", "cure"),
    [
        ("", "path = '': String should have at least 1 character", "file, folder, "),
        (",limit=2", "path = '': String should have at least 1 character", "file, folder, "),
        (
            "a,limit=0",
            "'a,limit=0': limit = '0': Input should be greater than or equal to 1",
            "rows at most: the first ones",
        ),
        (
            "a,limit=x",
            "'a,limit=x': limit = 'x': Input should be a valid integer",
            "rows at most: the first ones",
        ),
        (
            "a,weight=0",
            "'a,weight=0': weight = '0': Input should be greater than 0",
            "share of an epoch's rows, beside",
        ),
        (
            "a,epochs=-1",
            "'a,epochs=-1': epochs = '-1': Input should be greater than 0",
            "passes over this source",
        ),
        (
            "a,weight=nan",
            "'a,weight=nan': weight = 'nan': Input should be a finite number",
            "share of an epoch's rows, beside",
        ),
        (
            "a,share=0.1,weight=2",
            "a has a share, which leaves no room for a weight",
            "give share=, or weight= or epochs=",
        ),
        (
            {"path": "a", "limit": 0},
            "'a': limit = 0: Input should be greater than or equal to 1",
            "rows at most: the first ones",
        ),
        ({"path": "a", "limt": 0}, "'a': unknown setting 'limt'", "did you mean 'limit'?"),
        ({"limit": 1}, "{'limit': 1} does not say which file", "give path, "),
    ],
    ids=str,
)
def test_a_value_that_does_not_fit_is_named_with_its_source(
    given: Any, what: str, cure: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(given)
    assert caught.value.what.startswith(what)
    assert caught.value.cure.startswith(cure)


def test_a_path_with_a_comma_in_it(tmp_path: Path) -> None:
    path = put(tmp_path / "a,limit=1.jsonl", GOOD)
    assert parse(str(path)) == source(path) and rows(str(path)) == ONE_TWO


def test_a_digest_identifies_the_content(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", GOOD)
    assert digest(source(path)) == {str(path): hashlib.sha256(GOOD).hexdigest()}
    assert digest(source(f"{tmp_path}/*.jsonl")) == digest(source(path))
    with pytest.raises(DataError, match="there is no file"):
        digest(source(f"{path}x"))


def test_a_reader_that_is_left_closes_its_file(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl.gz", GOOD)
    before = len(os.listdir("/proc/self/fd"))
    found = read(source(path), Rejects())
    assert isinstance(next(found), Row)
    del found
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_pattern_longer_than_any_path_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file of 100,000 characters"):
        files(Source(path="[" * 100_000))
