"""What has to be held at once is limited, whatever a file's size: each bomb ends in an error that
says where and how to allow more; large files of ordinary rows are streamed.
"""

from __future__ import annotations

import gzip
import json
import re
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from posttrain.core import limits
from posttrain.core.errors import ConfigError, DataError
from posttrain.core.limits import limit, megabytes
from posttrain.data import parquet
from posttrain.data.readers import PART, read_file
from posttrain.data.rows import Rejects, Row
from posttrain.data.settings import Source
from posttrain.data.sources import read


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits of a hundredth: bombs of a hundredth are as good."""
    monkeypatch.setenv(limits.VARIABLE, "0.01")


def rows(path: Path) -> list[Row]:
    return list(read(Source(path=str(path)), Rejects()))


def packed(path: Path, *parts: bytes) -> Path:
    with gzip.open(path, "wb", compresslevel=1) as file:
        for part in parts:
            file.write(part)
    return path


MUCH = 2**22  # bytes that are more than twenty rows, with limits of a hundredth
BOMBS: dict[str, tuple[str, tuple[bytes, ...], str]] = {
    "an endless line": ("a.jsonl.gz", (b'{"text": "', b"x" * MUCH), r":1: a line of more than"),
    "a row of 60 MB": (
        "a.jsonl.gz",
        (b'{"a": 1}\n', json.dumps({"text": "x" * MUCH}).encode()),
        r":2: a line of more than",
    ),
    "blank lines": ("a.jsonl.gz", (b"\n" * MUCH,), r":\d+: .* blank lines or more"),
    "a cell without an end": (
        "a.csv.gz",
        (b'text\n"', b"x\n" * MUCH),
        r":2: .* a row of more than",
    ),
    "a cell of empty lines": (
        "a.csv.gz",
        (b'text\n"', b"\n" * MUCH),
        r"a row of more|blank lines or more",
    ),
    "a line of commas": ("a.csv.gz", (b"text\n", b"," * MUCH), r":2: a line of more than"),
    "an element without an end": (
        "a.json.gz",
        (b'[{"a": 1},\n{"text": "', b"x" * MUCH),
        r":2: an element of more than",
    ),
    "an array of spaces": ("a.json.gz", (b"[", b" \n" * MUCH), r":\d+: more than .* of spaces"),
    "spaces": ("a.json.gz", (b" " * MUCH,), r":1: a line of more than"),
    "a text": ("a.txt.gz", (b"x " * MUCH,), r" is one text of more than"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_has_no_end_is_an_error(tmp_path: Path, small: None, name: str) -> None:
    file, parts, what = BOMBS[name]
    path = packed(tmp_path / file, *parts)
    with pytest.raises(DataError, match=what) as caught:
        rows(path)
    assert "POSTTRAIN_LIMITS=4" in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("open_", ["[", '{"a":', '[{"a":'])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_what_is_nested_too_deep_is_a_bad_row(tmp_path: Path, open_: str, name: str) -> None:
    def nested(depth: int) -> str:
        closing = "".join({"[": "]", "{": "}"}[sign] for sign in reversed(open_) if sign in "[{")
        return '{"a": ' + open_ * depth + "1" + closing * depth + "}"

    levels = open_.count("[") + open_.count("{")
    ends = ("[", "]") if name == "a.json" else ("", "")
    path = tmp_path / name
    path.write_text(nested((limits.DEPTH - 1) // levels).join(ends))
    assert len(rows(path)) == 1
    path.write_text(nested(limits.DEPTH // levels + 1).join(ends))
    with pytest.raises(DataError, match=r":1: objects and lists are nested more than 256 deep"):
        rows(path)


def table(**columns: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        pq.write_table(pa.table(columns), path, compression="zstd")

    return write


def zeros(count: int) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array([0, count], pa.int32()), pa.array([0] * count))


def shared(text: str, count: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array([text]))


PARQUET = {
    "one text in every row": table(text=["".join(map(chr, range(33, 120))) * 100] * 2000),
    "one text, kept once": table(text=shared("y" * 100_000, 200)),
    "a text of many pages": table(text=["z" * 100_000] * 100),
    "a value of 500 MB": table(text=["z" * 5_000_000]),
    "a list in a row": table(ids=zeros(1_000_000), text=["x"]),
}


@pytest.mark.parametrize("name", PARQUET)
def test_a_parquet_file_that_expands_without_measure(
    tmp_path: Path, small: None, name: str
) -> None:
    """Nothing of it is used before that is known."""
    path = tmp_path / "a.parquet"
    PARQUET[name](path)
    assert path.stat().st_size < 12_000
    with pytest.raises(DataError, match=r"has \d+ kB and expands to .* or more") as caught:
        next(iter(read_file(path, lambda bytes_read: None)))
    assert "POSTTRAIN_LIMITS=4" in caught.value.cure
    if name in ("a value of 500 MB", "a list in a row"):  # Arrow would unpack it as a whole
        with pytest.raises(DataError, match="expands to"):
            parquet._check_pages(pq.read_metadata(path), path)


def test_a_parquet_row_has_a_limit_and_its_place(tmp_path: Path, small: None) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a"] * 300 + ["b" * 200_000] + ["c"]}), path)
    with pytest.raises(DataError, match=r":row 301: a row of more than 164 kB"):
        rows(path)


@pytest.mark.parametrize("form", ["dictionary", "plain"])
def test_parquet_rows_stay_what_they_are(tmp_path: Path, form: str) -> None:
    texts = [f"text {i % 7}" for i in range(1000)]
    column = pa.array(texts).dictionary_encode() if form == "dictionary" else pa.array(texts)
    pq.write_table(
        pa.table({"text": column, "n": range(1000)}), tmp_path / "a.parquet", row_group_size=300
    )
    found = rows(tmp_path / "a.parquet")
    assert [row.fields for row in found] == [{"text": t, "n": n} for n, t in enumerate(texts)]
    assert found[-1].where.endswith(":row 1000")


def test_an_archive_in_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with zipfile.ZipFile(tmp_path / "data" / "train.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("train.jsonl", '{"text": "' + "x" * MUCH)
    with pytest.raises(DataError, match=r"train\.zip is an archive") as caught:
        rows(tmp_path / "data")
    assert "unpack it" in caught.value.cure


# ----------------------------------------------------------------------------- what is streamed


def lines(count: int) -> Iterator[bytes]:
    for number in range(count):
        yield json.dumps({"text": f"row {number}, é " + "word " * 100, "n": number}).encode()


def _held(path: Path) -> int:
    """Bytes that reading a file takes at most, as Python counts them."""
    tracemalloc.start()
    for _ in islice(read_file(path, lambda bytes_read: None), 4000):
        pass
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json", "a.json.gz"])
def test_a_large_file_of_ordinary_rows_is_streamed(tmp_path: Path, name: str) -> None:
    """A file of 22 MB is held in parts, over the borders of the parts it is read in."""
    count, path = 40_000, tmp_path / name
    array = ".json" in path.suffixes
    made = list(lines(count))
    content = b"[\n" + b",\n".join(made) + b"\n]\n" if array else b"\n".join(made)
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    del made, content
    number = 0
    for number, row in enumerate(read_file(path, lambda bytes_read: None), 1):
        assert isinstance(row, Row) and row.fields["n"] == number - 1
        assert row.where == f"{path}:{number + array}"
    assert number == count
    assert _held(path) < 8_000_000  # of 22


@pytest.mark.parametrize("shift", [0, 1, 2, 3, 7])
def test_an_element_over_the_border_of_two_parts(tmp_path: Path, shift: int) -> None:
    """Letters, numbers and escapes that are cut in the middle; errors behind the border."""
    path = tmp_path / "a.json"
    head = '[{"a": "' + "x" * (PART - 40 - shift) + '"},\n'
    wanted = [{"é": '日本 \\ " 👩'}, {"n": -12.5e3, "t": True, "none": None}, {"a": [1, {}]}]
    path.write_text(head + ",\n".join(json.dumps(w, ensure_ascii=False) for w in wanted) + "]")
    found = rows(path)
    assert [row.fields for row in found][1:] == wanted
    assert [row.where.rpartition(":")[2] for row in found] == ["1", "2", "3", "4"]
    path.write_text(head + '{"a": 1},\n{"b": nul}]')
    with pytest.raises(DataError, match=re.escape(f"{path}:3: not JSON: Expecting value")):
        rows(path)
    path.write_bytes(head.encode() + b'{"a": 1},\n{"b": "\xff"}]')
    with pytest.raises(DataError, match=r":3: byte 8 of the line is not UTF-8"):
        rows(path)
    path.write_bytes(head[:-2].encode() + b'  "\xff"]')
    with pytest.raises(DataError, match=rf":1: byte {len(head) + 2} of the line is not UTF-8"):
        rows(path)


def test_limits_are_raised_by_one_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "x" * 200_000}) + "\n")
    monkeypatch.setenv(limits.VARIABLE, "0.01")
    with pytest.raises(DataError, match="a line of more than 164 kB"):
        rows(path)
    monkeypatch.setenv(limits.VARIABLE, "0.04")
    assert len(rows(path)) == 1
    assert limit(100) == 4 and megabytes(3 * 2**20) == "3 MB"
    for wrong in ("much", "0", "-1", "nan", "inf"):
        monkeypatch.setenv(limits.VARIABLE, wrong)
        with pytest.raises(ConfigError, match=f"POSTTRAIN_LIMITS='{wrong}'"):
            limit(100)
