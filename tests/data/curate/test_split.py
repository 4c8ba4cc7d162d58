"""Splitting: no leak, every byte, every row accounted for, sizes as asked, and the same again."""

from __future__ import annotations

import csv
import json
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.cli.main import main
from posttrain.data.curate.split import assign
from posttrain.data.formats import FORMATS
from posttrain.data.settings import FormatName
from tests.making import write

RNG = np.random.default_rng(0)


def prose(count: int) -> list[str]:
    return [f"w{i}" for i in RNG.integers(0, 900, count)]


def changed(text: list[str], places: int = 1) -> list[str]:
    text = list(text)
    for at in RNG.choice(len(text), places, replace=False):
        text[at] = f"n{RNG.integers(1_000_000)}"
    return text


def row(prompt: Any, completion: Any, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, **more}


def said(argv: list[Any], capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main(["data", "split", *map(str, argv)])
    out, err = capfd.readouterr()
    return code, out, err


def parts_of(
    folder: Path, names: tuple[str, ...] = ("train", "validation", "test")
) -> dict[str, list[dict[str, Any]]]:
    return {
        name: [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for name in names
    }


def planted(path: Path) -> Path:
    """2,000 rows: 120 groups of four near-duplicates (one word of 60 changed), 60 groups of five
    with the same prompt and other answers, and 1,220 rows of their own, in random order.
    """
    rows = []
    for group in range(120):
        base = prose(60)
        rows += [
            row(
                " ".join(prose(1)),
                " ".join(base if i == 0 else changed(base)),
                group=f"near {group}",
            )
            for i in range(4)
        ]
    for group in range(60):
        asked = " ".join(prose(12))
        rows += [row(asked, " ".join(prose(30)), group=f"prompt {group}") for _ in range(5)]
    rows += [row(" ".join(prose(10)), " ".join(prose(40)), group=f"own {i}") for i in range(1220)]
    for one in rows:
        if one["group"].startswith("near"):
            one["prompt"] += (
                f" of {RNG.integers(1_000_000)}"  # the prompts of near-duplicates differ
            )
    return write(path, [rows[i] for i in RNG.permutation(len(rows))])


def test_no_planted_group_stands_on_two_sides(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, out = planted(tmp_path / "rows.jsonl"), tmp_path / "out"
    code, table, err = said(
        ["--data", data, "--out", out, "--parts", "train=0.8", "validation=0.1", "test=0.1"], capfd
    )
    assert (code, err) == (0, "")
    found = parts_of(out)
    sides: dict[str, set[str]] = {}
    for name, rows in found.items():
        for one in rows:
            sides.setdefault(one["group"], set()).add(name)
    assert len(sides) == 1400 and all(len(side) == 1 for side in sides.values())
    assert {name: len(rows) for name, rows in found.items()} == {
        "train": 1600,
        "validation": 200,
        "test": 200,
    }
    summary = json.loads((out / "summary.json").read_text())
    assert summary["clusters"] == 1400 and summary["cluster_sizes"] == {
        "1": 1220,
        "4": 120,
        "5": 60,
    }
    assert summary["largest_cluster"]["rows"] == 5
    asked = {one["text"].split("\n")[0] for one in summary["largest_cluster"]["first"]}
    assert len(asked) == 1
    assert "2,000" in table and "0.8000" in table
    # groups of both kinds are found on every side: large clusters do not all go to train
    assert all(
        {"near", "prompt", "own"} == {one["group"].split()[0] for one in rows}
        for rows in found.values()
    )


def test_rows_keep_their_bytes_and_their_order(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Odd spacing, escapes, other columns, no end of the last line; blank lines are no rows."""
    lines = [
        f'{{"text":  "row {i} {" ".join(prose(6))} \\u00e9 é", "n": 1.50, "x": null}}\n'.encode()
        for i in range(50)
    ]
    lines[-1] = lines[-1].rstrip(b"\n")
    lines[7] = lines[7].replace(b"\n", b"\r\n")
    data = tmp_path / "rows.jsonl"
    data.write_bytes(b"\n".join([b"", *lines[:3]]) + b"".join(lines[3:]))
    code, _, _ = said(
        ["--data", data, "--out", tmp_path / "out", "--parts", "a=0.5", "b=0.5"], capfd
    )
    assert code == 0
    a, b = (
        (tmp_path / "out" / f"{name}.jsonl").read_bytes().splitlines(keepends=True) for name in "ab"
    )
    lines[-1] += b"\n"  # the one byte that is added
    assert sorted(a + b) == sorted(lines) and len(a) == len(b) == 25
    assert [lines.index(x) for x in a] == sorted(lines.index(x) for x in a)


def test_tables_become_objects_and_sources_may_be_mixed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with open(tmp_path / "rows.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows(
            [
                ["question", "answer"],
                ["one", "line"],
                *([f"q{i} {' '.join(prose(5))}", f"a{i}\nsecond line"] for i in range(9)),
            ]
        )
    (tmp_path / "rows.json").write_text(
        json.dumps([{"text": f"t{i} {' '.join(prose(9))}"} for i in range(10)], indent=1)
    )
    code, _, _ = said(
        [
            "--data",
            f"{tmp_path}/rows.csv,prompt=question,completion=answer",
            tmp_path / "rows.json",
            "--out",
            tmp_path / "out",
            "--parts",
            "a=0.5",
            "b=0.5",
        ],
        capfd,
    )
    assert code == 0
    rows = [one for part in parts_of(tmp_path / "out", ("a", "b")).values() for one in part]
    assert sorted(one["completion"] for one in rows if "prompt" in one) == [
        *(f"a{i}\nsecond line" for i in range(9)),
        "line",
    ]
    assert sum("text" in one for one in rows) == 10


def test_rows_like_those_to_keep_away_from_are_left_out(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As near-duplicates of the whole row, and as near-duplicates of the prompt with another
    answer.
    """
    asked, text = prose(30), prose(60)
    leaks = [
        row(" ".join(changed(asked)), " ".join(prose(90)), leak=1),
        {**row("x", " ".join(changed(text))), "leak": 1},
    ]
    own = [row(" ".join(prose(20)), " ".join(prose(20))) for _ in range(100)]
    data = write(tmp_path / "rows.jsonl", [*own[:50], *leaks, *own[50:]])
    evals = write(
        tmp_path / "eval.jsonl",
        [{"question": " ".join(asked), "key": 1}, {"question": "other words here", "key": 2}],
    )
    whole = write(tmp_path / "whole.jsonl", [row("x", " ".join(text))])
    code, table, _ = said(
        ["--data", data, "--out", tmp_path / "out", "--against", f"{evals},prompt=question", whole],
        capfd,
    )
    assert code == 0
    left = [
        json.loads(line) for line in (tmp_path / "out" / "against.jsonl").read_text().splitlines()
    ]
    assert left == leaks
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["left_out"] == {
        "near-duplicate of a prompt of --against": 1,
        "near-duplicate of a row of --against": 1,
    }
    assert (
        summary["rows"] == 102 == sum(summary["parts"].values()) + 2
        and summary["against_rows"] == 3
    )
    assert "near-duplicate of a prompt of --against" in table


def test_bad_rows_stop_the_work_or_are_set_aside(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    good = [row(f"question {i} {' '.join(prose(4))}", f"answer {i}") for i in range(40)]
    data = write(tmp_path / "rows.jsonl", [*good[:20], '{"prompt": "q"', row("p", 7), *good[20:]])
    out = tmp_path / "out"
    code, _, err = said(["--data", data, "--out", out], capfd)
    assert code == 2 and f"{data}:21: not JSON" in err and "--on-bad-row reject" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rows.jsonl"]
    code, _, err = said(["--data", data, "--out", out, "--on-bad-row", "reject"], capfd)
    assert code == 0, err
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["rows"], summary["rejected"], sum(summary["parts"].values())) == (42, 2, 40)
    rejects = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    assert [one["where"] for one in rejects] == [f"{data}:21", f"{data}:22"]
    assert rejects[0]["raw"] == '{"prompt": "q"'
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "rows.jsonl"]


def test_the_same_command_gives_the_same_and_another_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, out = planted(tmp_path / "rows.jsonl"), tmp_path / "out"
    argv = ["--data", data, "--out", out]
    contents = []
    for _ in range(2):
        assert said(argv, capfd)[0] == 0
        contents.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert contents[0] == contents[1]
    code, _, err = said([*argv, "--seed", 1], capfd)
    assert code == 2 and "different: seed" in err and "choose another --out" in err
    assert said(["--data", data, "--out", tmp_path / "other", "--seed", 1], capfd)[0] == 0
    assert (tmp_path / "other" / "test.jsonl").read_bytes() != contents[0]["test.jsonl"]
    (out / "notes.txt").write_text("mine")
    assert said(argv, capfd)[0] == 0 and (out / "notes.txt").read_text() == "mine"
    (out / "test.jsonl").unlink()  # what was removed is made again
    assert said(argv, capfd)[0] == 0
    assert (out / "test.jsonl").read_bytes() == contents[0]["test.jsonl"]
    with open(data, "a") as file:
        file.write(json.dumps(row("one more", "row")) + "\n")
    code, _, err = said(argv, capfd)
    assert code == 2 and "data_sha256" in err and "holds another run" in err
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "train.jsonl").write_text("mine")
    code, _, err = said(["--data", data, "--out", tmp_path / "foreign"], capfd)
    assert code == 2 and (tmp_path / "foreign" / "train.jsonl").read_text() == "mine"


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        (["--parts", "train=0.9", "test=0.2"], "add up to 1.1, not to 1"),
        (["--parts", "a/b=1"], "'a/b' cannot be the name of a part"),
        (["--parts", "against=1"], "'against' cannot be the name of a part"),
        (["--parts", "a=1.5", "b=-0.5"], "greater than 0"),
        (["--near", "0"], "near = '0'"),
        (
            ["--parts", "a=0.999", "b=0.001"],
            "the part 'b' would be empty: 30 rows in 1 clusters, the largest of 30",
        ),
    ],
)
def test_what_cannot_be_done_is_said(
    argv: list[str], what: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "rows.jsonl", [row("the same", f"answer {i}") for i in range(30)])
    code, _, err = said(["--data", data, "--out", tmp_path / "out", *argv], capfd)
    assert code == 2 and what in err and "cure:" in err
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=80),
    st.lists(st.integers(1, 20), min_size=1, max_size=5),
    st.integers(0, 5),
)
def test_parts_are_within_a_cluster_of_what_was_asked(
    sizes: list[int], weights: list[int], seed: int
) -> None:
    labels = np.repeat(np.arange(len(sizes)) * 3, sizes)
    shares = [w / sum(weights) for w in weights]
    part = assign(RNG.permutation(labels), shares, seed)
    assert len(part) == len(labels) and set(part) <= set(range(len(shares)))
    part = assign(labels, shares, seed)
    counts = np.bincount(part, minlength=len(shares))
    assert (np.abs(counts - np.array(shares) * len(labels)) < max(sizes)).all()
    sides = Counter(zip(labels.tolist(), part.tolist(), strict=True))
    assert len(sides) == len(sizes)


def test_memory_does_not_grow_with_the_rows_text(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Rows ten times as long do not take more memory, although they are 5 MB longer on the disk."""
    peaks, data = [], tmp_path
    for length in (500, 5000):
        data = write(
            tmp_path / f"{length}.jsonl", ({"text": " ".join(prose(length))} for _ in range(200))
        )
        tracemalloc.start()
        assert said(["--data", data, "--out", tmp_path / f"out{length}", "--quiet"], capfd)[0] == 0
        peaks.append(tracemalloc.get_traced_memory()[1] / 2**20)
        tracemalloc.stop()
    assert data.stat().st_size > 4 * 2**20
    assert peaks[1] < peaks[0] + 3  # MB: a few arrays of one row


def test_the_formats_are_those_that_are_read() -> None:
    assert {*FormatName.__args__} == {"", *FORMATS}


def test_clusters_larger_than_the_smallest_part_go_first() -> None:
    """60 of 100 rows are one cluster: put last, it would make a part of up to 80."""
    labels = np.array([0] * 60 + list(range(1, 41)))
    for seed in range(5):
        part = assign(labels, [0.5, 0.5], seed)
        assert sorted(np.bincount(part).tolist()) == [40, 60]
