"""Ten thousand malformed rows among good ones: none is lost, none altered, none counted twice, and
no reader falls over.
"""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posttrain.core.errors import DataError
from posttrain.data.formats import FORMATS, Example, Format
from posttrain.data.messages import ROLES
from posttrain.data.rows import Rejects, Row, text
from posttrain.data.settings import COLUMNS, Source
from posttrain.data.sources import read
from tests.data import malformed

BAD = 1112  # malformed rows of each of the nine formats


def used(path: Path, rejects: Rejects, format: Format) -> Iterator[Row]:
    """The rows of a file that can be used; the others are refused."""
    for row in read(Source.model_validate({"path": str(path)}), rejects):
        try:
            format.read(row)
        except DataError as error:
            rejects.add(error, row)
        else:
            yield row


def raw(entry: dict[str, Any]) -> bytes:
    return (
        entry["raw"].encode()
        if "raw" in entry
        else base64.b64decode(entry["raw_base64"], validate=True)
    )


def entries(path: Path) -> list[dict[str, Any]]:
    return (
        [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] if path.exists() else []
    )


def exact(fields: Any) -> str:
    """What tells every two values apart: types, order, NaN."""
    return json.dumps(fields)


def agree(found: list[dict[str, Any]], expected: list[tuple[str, str, bytes, str]]) -> None:
    """Every malformed row in its place, as it was, for the right reason."""
    assert [entry["where"] for entry in found] == [where for _, where, _, _ in expected]
    for entry, (name, where, line, pattern) in zip(found, expected, strict=True):
        assert raw(entry) == line, (name, where)
        assert re.search(pattern, entry["what"]), (name, where, entry["what"], pattern)
        assert entry["cure"] and set(entry) <= {"where", "what", "cure", "raw", "raw_base64"}


# ------------------------------------------------------------------ JSON lines


def test_there_are_many_kinds_and_ten_thousand_rows() -> None:
    assert len(malformed.KINDS) >= 100 and len(malformed.LINES) >= 60
    assert (
        set(malformed.FIELDS) == set(malformed.GOOD) == set(FORMATS)
        and len(FORMATS) * BAD >= 10_000
    )


@pytest.mark.parametrize("format", FORMATS)
def test_malformed_rows_among_good_ones(format: str, tmp_path: Path) -> None:
    random = Random(f"malformed {format}")
    bad: list[tuple[str, bytes, str]] = []
    while len(bad) < BAD:
        bad += malformed.malformed(format, random)
    plan: list[tuple[str, bytes, str] | None] = [*bad[:BAD], *[None] * 500]
    random.shuffle(plan)
    path = tmp_path / ("a.jsonl.gz" if len(format) % 2 else "a.jsonl")
    lines: list[bytes] = []
    good: list[tuple[str, str]] = []
    expected: list[tuple[str, str, bytes, str]] = []
    for one in [None, *plan]:
        lines += [random.choice([b"", b"  ", b"\t\r"])] * (random.random() < 0.02)
        if one is None:
            row = malformed.good(format, random)
            lines.append(malformed.written(row, random))
            if random.random() < 0.3:
                lines[-1] = random.choice(list(malformed.LEGAL.values()))(row, lines[-1], random)
                row = json.loads(lines[-1])
            good.append((exact(row), f"{path}:{len(lines)}"))
        else:
            name, line, pattern = one
            lines.append(line)
            expected.append((name, f"{path}:{len(lines)}", line, pattern))
    content = b"\xef\xbb\xbf" + b"\n".join(lines)
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)

    rejects = Rejects(tmp_path / "rejects.jsonl")
    found = [(exact(row.fields), row.where) for row in used(path, rejects, Format())]
    rejects.close()
    rejects.balance(len(found))
    assert found == good
    agree(entries(tmp_path / "rejects.jsonl"), expected)
    assert rejects.count == sum(rejects.reasons.values()) == BAD and len(rejects.reasons) < 150


@pytest.mark.parametrize("format", FORMATS)
def test_every_kind_alone_stops_the_work(format: str, tmp_path: Path) -> None:
    random, path = Random(0), tmp_path / "a.jsonl"
    for name, line, pattern in malformed.malformed(format, random):
        row = malformed.good(format, random)
        path.write_bytes(
            malformed.written(row, random) + b"\n\n" + line + b"\n" + malformed.written(row, random)
        )
        rows = used(path, Rejects(), Format())
        assert exact(next(rows).fields) == exact(row)
        with pytest.raises(DataError) as caught:
            next(rows)
        assert caught.value.where == f"{path}:3", name
        assert re.search(pattern, caught.value.what), (name, caught.value.what)
        assert caught.value.cure.endswith(
            "; --on-bad-row reject sets such rows aside and goes on"
        ), name


@pytest.mark.parametrize("name", malformed.LEGAL)
def test_what_is_odd_and_accepted_is_not_altered(name: str, tmp_path: Path) -> None:
    random, path = Random(name), tmp_path / "a.jsonl"
    for format in FORMATS:
        row = malformed.good(format, random)
        line = malformed.LEGAL[name](row, malformed.written(row, random), random)
        path.write_bytes(line + b"\n")
        (found,) = used(path, Rejects(), Format())
        assert exact(found.fields) == exact(json.loads(line)) and found.raw == line + b"\n"


# ------------------------------------------------------------------ CSV and Parquet


@pytest.mark.parametrize(
    ("name", "separator", "end"),
    [("a.csv", ",", "\n"), ("a.tsv", "\t", "\r\n"), ("a.csv.gz", ",", "\r\n")],
)
def test_malformed_rows_of_tables(name: str, separator: str, end: str, tmp_path: Path) -> None:
    random, path = Random(name), tmp_path / name
    content, at = bytearray(), 1
    good: list[tuple[str, str]] = []
    expected: list[tuple[str, str, bytes, str]] = []

    def put(cells: list[str]) -> bytes:
        out = io.StringIO(newline="")
        csv.writer(out, delimiter=separator, lineterminator=end, quoting=csv.QUOTE_ALL).writerow(
            cells
        )
        return out.getvalue().encode("utf-8", "surrogateescape")

    for number in range(1500):
        cells = [malformed.nasty(random), malformed.nasty(random), str(number)]
        kinds: dict[str, tuple[list[str], str]] = {
            "too few": (cells[:2], "^2 cells, where the header has 3$"),
            "too many": ([*cells, "x"], "^4 cells, where the header has 3$"),
            "one": (cells[:1], "^1 cells, where the header has 3$"),
            "latin": (["\udce9", *cells[1:]], r"^byte \d+ of the row is not UTF-8$"),
            "cut letter": ([cells[0], "x\udce2\udc82", ""], r"^byte \d+ of the row is not UTF-8$"),
            "NUL": ([cells[0], "a\0", "1"], "holds a NUL"),
            "nothing": ([cells[0], " ", "1"], "^the text to learn is empty$"),
        }
        line = put(["prompt", "completion", "id"] if number == 0 else cells)
        if number and random.random() < 0.5:
            kind = random.choice(list(kinds))
            line = put(kinds[kind][0])
            expected.append((kind, f"{path}:{at}", line.removesuffix(b"\n"), kinds[kind][1]))
        elif number:
            good.append(
                (
                    exact(dict(zip(("prompt", "completion", "id"), cells, strict=True))),
                    f"{path}:{at}",
                )
            )
        line += end.encode() * (random.random() < 0.05)  # an empty line
        content += line
        at += line.count(b"\n")
    path.write_bytes(gzip.compress(bytes(content)) if name.endswith(".gz") else bytes(content))

    rejects = Rejects(tmp_path / "rejects.jsonl")
    found = [(exact(row.fields), row.where) for row in used(path, rejects, Format())]
    rejects.close()
    rejects.balance(len(found))
    assert found == good and len(good) > 500
    agree(entries(tmp_path / "rejects.jsonl"), expected)


def test_malformed_rows_of_parquet(tmp_path: Path) -> None:
    random, path = Random(0), tmp_path / "a.parquet"
    bad: list[tuple[Any, str]] = [
        ([{"role": "user", "content": "a"}], "no assistant turn"),
        ([], "holds an empty list"),
        (None, "^this row has no 'messages'"),
        ([{"role": None, "content": "a"}], "message 1 of messages has no role"),
        ([None], "message 1 of messages is null"),
        ([{"role": "assistant", "content": None}], "has no content"),
        ([{"role": "assistant", "content": "\0"}], "holds a NUL"),
        ([{"role": "assistant", "content": "a", "weight": 3}], "weight that is not 0 or 1"),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": None}}]}],
            "has no function name",
        ),
    ]
    kind = pa.list_(
        pa.struct(
            [
                ("role", pa.string()),
                ("content", pa.string()),
                ("weight", pa.int64()),
                (
                    "tool_calls",
                    pa.list_(
                        pa.struct(
                            [
                                (
                                    "function",
                                    pa.struct(
                                        [
                                            ("name", pa.string()),
                                            (
                                                "arguments",
                                                pa.struct([("x", pa.string()), ("y", pa.string())]),
                                            ),
                                        ]
                                    ),
                                )
                            ]
                        )
                    ),
                ),
            ]
        )
    )
    plan = [None, *random.choices([None, *bad], k=700)]
    rows = [
        {
            "id": i,
            "messages": malformed.GOOD["messages"](random)["messages"] if one is None else one[0],
        }
        for i, one in enumerate(plan)
    ]
    pq.write_table(
        pa.table(
            {
                "id": [row["id"] for row in rows],
                "messages": pa.array([row["messages"] for row in rows], kind),
            }
        ),
        path,
    )
    rows = pq.read_table(path).to_pylist()  # with the nulls that a table fills in

    rejects = Rejects(tmp_path / "rejects.jsonl")
    found = [(exact(row.fields), row.where) for row in used(path, rejects, Format())]
    rejects.close()
    rejects.balance(len(found))
    assert found == [
        (exact(row), f"{path}:row {row['id'] + 1}")
        for row, one in zip(rows, plan, strict=True)
        if one is None
    ]
    refused = [(row, one) for row, one in zip(rows, plan, strict=True) if one is not None]
    for entry, (row, (_, pattern)) in zip(
        entries(tmp_path / "rejects.jsonl"), refused, strict=True
    ):
        assert (entry["where"], exact(entry["fields"])) == (
            f"{path}:row {row['id'] + 1}",
            exact(row),
        )
        assert re.search(pattern, entry["what"]), entry["what"]


# ------------------------------------------------------------------ anything at all

SCRAPS = [
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b":",
    b",",
    b"\n",
    b"\r\n",
    b" ",
    b'"text"',
    b'"prompt"',
    b'"messages"',
    b"null",
    b"NaN",
    b"1e9",
    b"-",
    b"\xff",
    b"\xc3",
    b"\xef\xbb\xbf",
    b"\0",
    b"\\",
    b"\\u",
    b"d800",
    b'{"text": "a"}',
    b'{"prompt": "a", "completion": "b"}',
    b"PAR1",
    b"\x1f\x8b",
    b"\t",
    b"a,b",
    b";",
]
ANYTHING = st.binary(max_size=200) | st.lists(st.sampled_from(SCRAPS), max_size=40).map(b"".join)


@pytest.mark.parametrize(
    "name",
    [
        "a.jsonl",
        "a.json",
        "a.csv",
        "a.tsv",
        "a.txt",
        "a.parquet",
        "a.jsonl.gz",
        "packed.jsonl.gz",
        "framed.parquet",
    ],
)
def test_any_bytes_give_rows_or_one_error(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    path = folder / name

    @settings(
        max_examples=100,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(ANYTHING)
    def check(content: bytes) -> None:
        framed = b"PAR1" + content + len(content).to_bytes(4, "little") + b"PAR1"
        path.write_bytes(
            gzip.compress(content)
            if name.startswith("packed")
            else framed
            if name.startswith("framed")
            else content
        )
        rejects = Rejects(folder / "rejects.jsonl")
        count = 0
        failed = None
        try:
            count = sum(1 for _ in used(path, rejects, Format()))
        except DataError as error:
            failed = error
        assert failed is None or (failed.what and failed.cure and str(path) in str(failed))
        if failed is None:
            rejects.balance(count)
        if failed is None and name == "a.jsonl":
            lines = [
                line for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()
            ]
            assert rejects.read == len(lines)
        rejects.close()
        assert len(entries(folder / "rejects.jsonl")) == rejects.count

    check()


WORDS = st.sampled_from(
    [
        *COLUMNS,
        *ROLES,
        "role",
        "from",
        "content",
        "value",
        "tool_calls",
        "function_call",
        "function",
        "name",
        "arguments",
        "parameters",
        "weight",
        "type",
        "reasoning_content",
        "a",
    ]
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=4)
    | WORDS
    | st.binary(max_size=2)
    | st.sampled_from(
        [
            "\ud800",
            "\0",
            "",
            " ",
            "[]",
            "{}",
            "null",
            "5",
            '"a"',
            '[["a", "b"]]',
            '{"name": "f"}',
            '[{"name": "f"}]',
            '{"role": "user", "content": "a"}',
            '[{"role": "assistant", "content": "a"}]',
        ]
    )
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)
CALLS = st.fixed_dictionaries(
    {},
    optional={"function": VALUES, "name": st.just("f") | VALUES, "arguments": VALUES, "id": VALUES},
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(sorted(ROLES)) | VALUES, "content": st.text(max_size=3) | VALUES},
    optional={
        "tool_calls": st.lists(CALLS, max_size=2) | VALUES,
        "function_call": CALLS,
        "weight": VALUES,
        "name": VALUES,
    },
)
FAIR = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant"]), "content": st.sampled_from("ab")},
        optional={
            "tool_calls": st.lists(CALLS, max_size=1),
            "weight": st.sampled_from([0, 1]),
            "name": LEAVES,
        },
    ),
    min_size=1,
    max_size=2,
)
CELLS = (
    VALUES
    | FAIR
    | st.just("a")
    | st.lists(MESSAGE, max_size=3)
    | st.lists(MESSAGE, max_size=2).map(lambda value: json.dumps(value, default=str))
)
OBJECTS = st.dictionaries(st.sampled_from(COLUMNS), CELLS, min_size=1, max_size=6)


@pytest.mark.parametrize("format", ["", *FORMATS])
def test_any_object_is_an_example_or_an_error(format: str) -> None:
    needs = FORMATS[format][0] if format else ()
    special = {
        "label": st.booleans(),
        "completions": st.just(["a", "b"]),
        "labels": st.just([True, False]),
    }
    extra = st.just({}) | OBJECTS if needs else OBJECTS  # the needed columns alone, or among others

    @settings(
        max_examples=100,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(extra, st.tuples(*(special.get(c, FAIR | st.just("a")) | CELLS for c in needs)))
    def check(fields: dict[str, Any], needed: tuple[Any, ...]) -> None:
        row = Row({**fields, **dict(zip(needs, needed, strict=True))}, "a:1")
        try:
            sound(Format(format).read(row))
            outcomes.add("used")
        except DataError as error:
            outcomes.add(
                "refused" if error.where == "a:1" and error.what and error.cure else str(error)
            )

    outcomes: set[str] = set()
    check()
    assert outcomes == {"used", "refused"}


def sound(example: Example) -> None:
    """What later stages take for granted."""
    assert len(example.answers) <= 3 and example.label in (None, True, False)
    json.dumps([example.tools, example.kwargs], ensure_ascii=False, allow_nan=False).encode()
    for part in (example.prompt, *example.answers):
        for content in (
            [part] if isinstance(part, str) else [message["content"] for message in part]
        ):
            assert text(content, "", "") == content
        for message in () if isinstance(part, str) else part:
            assert message["role"] in {"system", "developer", "user", "assistant", "tool"}
            for call in message.get("tool_calls", ()):
                assert call["type"] == "function" and isinstance(
                    call["function"]["arguments"], dict
                )
                json.dumps(call, ensure_ascii=False, allow_nan=False).encode()
    assert all(
        answer if isinstance(answer, str) else any(m["role"] == "assistant" for m in answer)
        for answer in example.answers
    )
