"""`posttrain data pairs` as it is typed: what it writes, says and refuses."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from posttrain.cli.main import main
from tests.engine.test_shared_models import SHARED, given
from tests.making import write

Given = dict[str, Any]


def pair(prompt: Any, chosen: Any, rejected: Any, **more: Any) -> Given:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


ROWS = [
    pair("Capital of France?", "Paris.", "Rome."),
    pair("Capital of France?", "Paris. ", "Rome."),
    pair("2 + 2", "4", "5", margin=0.9, votes=["chosen", "chosen", "rejected"], annotator="x"),
    pair("2 + 2", "5", "4"),
    pair("Best?", "A", "B"),
    pair("Best?", "B", "C"),
    pair("Best?", "C", "A"),
    pair("Best?", "A", "D"),
    pair("Hi", "Hello!", "hello"),
    pair("Hi", "same", "same"),
    pair("Why?", "# Because\n- it is", "No idea at all", margin=0.25),
]


def said(argv: list[Any], capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main(["data", "pairs", *map(str, argv)])
    out, err = capfd.readouterr()
    return code, out, err


def read(path: Path) -> list[Given]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def counts(table: str) -> dict[str, int]:
    """The first table's rows."""
    found = re.findall(r"│ (.+?) │ +([\d,]+) │\n", table.split("the chosen side")[0])
    return {name.strip(): int(n.replace(",", "")) for name, n in found}


def test_end_to_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data, out = write(tmp_path / "prefs.jsonl", ROWS), tmp_path / "clean.jsonl"
    code, table, err = said(["--data", data, "--out", out], capfd)
    assert (code, err) == (0, "")
    lines = data.read_bytes().splitlines(keepends=True)
    assert out.read_bytes() == lines[0] + lines[7] + lines[8] + lines[10]  # byte for byte
    found = counts(table)
    assert found == {
        "written": 4,
        "both sides are the same": 1,
        "contradiction": 2,
        "in a cycle": 3,
        "duplicate": 1,
        "rejected": 0,
        "read": 11,
    }
    assert found.pop("read") == sum(found.values())
    assert f"cycle 1   3 answers, 3 rows: {data}:5, {data}:6, {data}:7" in table
    assert "sides differ in case, punctuation or spaces alone: 1, not removed" in table
    assert f"written   4 pairs, {out}" in table
    removed = read(tmp_path / "clean.removed.jsonl")
    assert [one["row"] for one in removed] == [ROWS[i] for i in (1, 2, 3, 4, 5, 6, 9)]
    assert {key: value for key, value in removed[0].items() if key != "row"} == {
        "where": f"{data}:2",
        "reason": "duplicate",
        "of": f"{data}:1",
    }
    assert (removed[1]["of"], removed[2]["of"], removed[3]["cycle"]) == (
        f"{data}:4",
        f"{data}:3",
        1,
    )
    summary = json.loads((tmp_path / "clean.summary.json").read_text())
    assert summary["identity"]["data_sha256"] == {
        "data.jsonl": hashlib.sha256(data.read_bytes()).hexdigest()
    }
    assert summary["sha256"]["rows.jsonl"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert summary["bias"]["longer"]["characters"]["n"] == 3 and summary["bias"]["pairs"] == 4
    assert summary["margin"]["mean"]["n"] == 2 and summary["votes"]["agreement"][
        "mean"
    ] == pytest.approx(2 / 3)
    assert summary["cycles"] == {
        "components": 1,
        "rows": 3,
        "first": [
            {"cycle": 1, "answers": 3, "rows": 3, "first": [f"{data}:{i}" for i in (5, 6, 7)]}
        ],
    }
    assert {p.name for p in tmp_path.iterdir()} == {
        "clean.jsonl",
        "clean.manifest.json",
        "clean.removed.jsonl",
        "clean.summary.json",
        "prefs.jsonl",
    }


def test_the_same_command_twice(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data, out = write(tmp_path / "prefs.jsonl", ROWS), tmp_path / "clean.jsonl"
    _, first, _ = said(["--data", data, "--out", out], capfd)
    times = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    code, again, err = said(["--data", data, "--out", out], capfd)
    assert (code, again) == (0, first) and f"{out} already holds this run" in err
    assert {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == times
    code, _, err = said(["--data", data, "--out", out, "--on-cycle", "keep"], capfd)
    assert code == 2 and "different: rules.on_cycle" in err and "choose another --out" in err
    assert {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == times
    whole = out.read_bytes()
    out.write_bytes(whole[:20])  # as a killed copy leaves it: written again
    assert said(["--data", data, "--out", out], capfd)[0] == 0 and out.read_bytes() == whole
    write(data, [*ROWS, pair("new", "a", "b")])
    code, _, err = said(["--data", data, "--out", out], capfd)
    assert code == 2 and "different: data_sha256.data.jsonl" in err


def test_to_labels_and_back(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    apart = [
        [{"role": "user", "content": one}, {"role": "assistant", "content": "a"}] for one in "12"
    ]
    data = write(
        tmp_path / "prefs.jsonl",
        [
            pair("p", "A", "B", margin=2),
            pair("p", "B", "C"),
            pair("q", "x", "y"),
            {"chosen": apart[0], "rejected": apart[1]},
        ],
    )
    code, table, _ = said(
        ["--data", data, "--out", tmp_path / "labels.jsonl", "--to", "labels"], capfd
    )
    assert code == 0
    assert read(tmp_path / "labels.jsonl") == [
        {"prompt": "p", "completion": "A", "label": True, "margin": 2},
        {"prompt": "p", "completion": "C", "label": False},
        {"prompt": "q", "completion": "x", "label": True},
        {"prompt": "q", "completion": "y", "label": False},
    ]
    assert counts(table) == {
        "used": 3,
        "no prompt to share": 1,
        "rejected": 0,
        "answers of the 3 pairs": 6,
        "written": 4,
        "ambiguous: chosen in one pair, rejected in another": 2,
        "read": 4,
    }
    removed = read(tmp_path / "labels.removed.jsonl")
    assert [one.get("side") for one in removed] == ["rejected", "chosen", None]
    assert removed[0]["row"] == {"prompt": "p", "completion": "B", "label": False, "margin": 2}
    said(
        ["--data", data, "--out", tmp_path / "all.jsonl", "--to", "labels", "--keep-ambiguous"],
        capfd,
    )
    assert sum(one["completion"] == "B" for one in read(tmp_path / "all.jsonl")) == 2
    rows = [
        *read(tmp_path / "labels.jsonl"),
        {"prompt": "r", "completion": "alone", "label": True},
        {"prompt": "s", "completion": "alone", "label": False},
        *(
            {"prompt": "t", "completion": f"{'good' if i % 2 else 'bad'} {i}", "label": i % 2 == 1}
            for i in range(8)
        ),
    ]
    labels = write(tmp_path / "more.jsonl", rows)
    code, table, _ = said(
        [
            "--data",
            labels,
            "--out",
            tmp_path / "back.jsonl",
            "--to",
            "pairs",
            "--pairs-per-prompt",
            3,
        ],
        capfd,
    )
    assert code == 0
    back = read(tmp_path / "back.jsonl")
    assert (
        back[:2] == [pair("p", "A", "C"), pair("q", "x", "y")]
        and [one["prompt"] for one in back[2:]] == ["t"] * 3
    )
    assert counts(table) == {
        "used": 10,
        "its prompt has no bad answer": 1,
        "its prompt has no good answer": 1,
        "in none of its prompt's pairs (--pairs-per-prompt)": 2,
        "rejected": 0,
        "pairs there could be": 18,
        "written": 5,
        "read": 14,
    }
    said(
        [
            "--data",
            labels,
            "--out",
            tmp_path / "seed.jsonl",
            "--to",
            "pairs",
            "--pairs-per-prompt",
            3,
            "--seed",
            1,
        ],
        capfd,
    )
    assert read(tmp_path / "seed.jsonl") != back


def test_balance_and_the_warning(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = [
        pair(f"p{i}", "long answer", "short") if i % 5 else pair(f"p{i}", "short", "long answer")
        for i in range(100)
    ]
    data = write(tmp_path / "prefs.jsonl", rows)
    _, table, _ = said(["--data", data, "--out", tmp_path / "a.jsonl"], capfd)
    assert (
        "predicts the choice: the longer answer, in characters, is the chosen one in 0.800 [0.711, "
        "0.867] of n = 100" in table
    )
    _, table, _ = said(["--data", data, "--out", tmp_path / "b.jsonl", "--balance-length"], capfd)
    assert "length alone" not in table and "│ taken out by --balance-length │  60 │" in table
    # from 0.8 to 0.5, over the same pairs
    change = json.loads((tmp_path / "b.summary.json").read_text())["bias"]["change"]["characters"]
    assert change["mean"] == pytest.approx(-0.3) and change["low"] < -0.35 < -0.25 < change["high"]
    assert f"difference │ -0.300 [{change['low']:+.3f}, {change['high']:+.3f}]" in table
    kept = [one["chosen"] for one in read(tmp_path / "b.jsonl")]
    assert kept.count("short") == kept.count("long answer") == 20
    _, _, _ = said(["--data", data, "--out", tmp_path / "c.jsonl", "--balance-length"], capfd)
    assert (tmp_path / "c.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_tables_and_column_names(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prefs.csv").write_text("question,better,worse,gap\np,a,b,0.5\np,c,d,0.1\n")
    data = f"{tmp_path / 'prefs.csv'},prompt=question,chosen=better,rejected=worse,margin=gap"
    assert said(["--data", data, "--out", tmp_path / "o.jsonl", "--min-margin", 0.3], capfd)[0] == 0
    assert read(tmp_path / "o.jsonl") == [pair("p", "a", "b", margin="0.5")]


GOOD = pair("p", "a", "b")


@pytest.mark.parametrize(
    ("rows", "options", "what", "cure"),
    [
        (
            [GOOD, pair("p", "", "b")],
            [],
            "{data}:2: the text to learn is empty",
            "--on-bad-row reject",
        ),
        (
            [GOOD],
            ["--min-margin", "0.5"],
            "{data}:1: there is no margin, which --min-margin compares",
            "leave --min-margin out",
        ),
        (
            [pair("p", "a", "b", margin="x")],
            [],
            "{data}:1: the margin is text, not a number",
            "leave it out",
        ),
        (
            [{"text": "t"}],
            [],
            "{data}:1: the row is neither a pair nor a labelled answer",
            "give chosen and rejected",
        ),
        (
            [pair("p", "a", "a")],
            [],
            "{data}: nothing is left of 1 usable rows; both sides are the same: 1",
            "--on-tie keep",
        ),
        (
            [{"prompt": "p", "completion": "a", "label": True}],
            ["--balance-length"],
            "--balance-length compares the two sides of pairs",
            "add --to pairs",
        ),
        (
            [GOOD],
            ["--on-cycle", "majority"],
            "on_cycle = 'majority': Input should be 'drop' or 'keep'",
            "",
        ),
        (
            [GOOD],
            ["--on-cycles", "keep"],
            "unknown option --on-cycles",
            "did you mean '--on-cycle'?",
        ),
        (
            [GOOD],
            ["--near", "2"],
            "near = '2': Input should be less than or equal to 1",
            "near-duplicates",
        ),
        ([], [], "{data}: there is no usable row", "give other --data"),
    ],
)
def test_what_is_refused(
    rows: list[Given],
    options: list[str],
    what: str,
    cure: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    data = write(tmp_path / "prefs.jsonl", rows)
    code, out, err = said(["--data", data, "--out", tmp_path / "clean.jsonl", *options], capfd)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {what.format(data=data)}") and cure in err
    # nothing was made, nothing left behind
    assert [p.name for p in tmp_path.iterdir()] == ["prefs.jsonl"]


def test_an_output_that_is_not_ours(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "prefs.jsonl", [GOOD])
    code, _, err = said(["--data", data, "--out", data], capfd)
    assert code == 2 and "no run of ours that finished wrote it" in err and read(data) == [GOOD]
    code, _, err = said(["--data", data, "--out", tmp_path / "clean.csv"], capfd)
    assert code == 2 and "does not end in .jsonl" in err


def test_bad_rows_are_set_aside(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    label = {"prompt": "p", "completion": "a", "label": True}
    one = write(
        tmp_path / "one.jsonl",
        [GOOD, pair("p", " ", "b"), pair("p", "c", "d", margin="high"), pair("q", "a", "b")],
    )
    two = write(tmp_path / "two.jsonl", [label, label])
    code, table, _ = said(
        ["--data", one, two, "--out", tmp_path / "clean.jsonl", "--on-bad-row", "reject"], capfd
    )
    assert code == 0 and counts(table) == {"written": 2, "rejected": 4, "read": 6}
    rejects = read(tmp_path / "clean.rejects.jsonl")
    assert [one["where"].rpartition("/")[2] for one in rejects] == [
        "one.jsonl:2",
        "one.jsonl:3",
        "two.jsonl:1",
        "two.jsonl:2",
    ]
    assert "the row is of labels, and the data began as pairs" in rejects[2]["what"]
    assert (tmp_path / "clean.removed.jsonl").read_bytes() == b""


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"there is no shared data folder {SHARED}")
def test_real_preferences(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Human votes on answers of five small models: what the how-to page says of them."""
    data = given("preferences/pandalm_human.jsonl.gz")
    code, table, _ = said(
        ["--data", data, "--out", tmp_path / "c.jsonl", "--on-bad-row", "reject"], capfd
    )
    assert code == 0
    assert counts(table) == {
        "written": 757,
        "in a cycle": 3,
        "duplicate": 76,
        "rejected": 58,
        "read": 894,
    }
    assert "0.659 [0.603, 0.711] of n = 751" in table
    code, table, _ = said(
        ["--data", tmp_path / "c.jsonl", "--out", tmp_path / "l.jsonl", "--to", "labels"], capfd
    )
    assert code == 0 and counts(table)["answers of the 757 pairs"] == 1514
