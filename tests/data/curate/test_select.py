"""Choosing rows, by the whole command: planted rows are found, and every row is accounted for."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from posttrain.cli.main import main
from posttrain.engine.policy import Policy
from posttrain.stages.select import embedder
from tests import making
from tests.making import write

RNG = np.random.default_rng(0)
HEART = [
    "heart",
    "valve",
    "artery",
    "blood",
    "vessel",
    "pulse",
    "aorta",
    "vein",
    "pressure",
    "murmur",
    "clot",
    "stent",
]
OTHER = [
    f"{a}{b}"
    for a in ("ka", "lo", "mi", "nu", "se")
    for b in ("ra", "to", "vi", "du", "pe", "li", "ma", "so")
]
OTHER = [f"{a}{b}" for a in OTHER for b in OTHER[::4]]


def sentence(words: list[str], count: int) -> str:
    return " ".join(RNG.choice(words, count)) + "."


def mixed(share: float, count: int = 30) -> str:
    """A text of which this share of the words is about the heart."""
    n = round(share * count)
    return " ".join(RNG.permutation([*RNG.choice(HEART, n), *RNG.choice(OTHER, count - n)])) + "."


def said(argv: list[Any], capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main(["data", "select", *map(str, argv)])
    out, err = capfd.readouterr()
    return code, out, err


def loaded(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return write(
        tmp_path / "target.jsonl",
        [{"prompt": f"{mixed(0.6, 12)}", "completion": mixed(0.6)} for _ in range(40)],
    )


def test_planted_rows_are_found_best_first_and_with_their_bytes(
    tmp_path: Path, target: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """2,000 rows, 100 of them half about the heart, others a tenth or not at all."""
    lines = [
        json.dumps({"prompt": mixed(0.5, 10), "completion": mixed(0.5), "planted": True}).replace(
            '": ', '":   '
        )
        for _ in range(100)
    ]
    others = [
        json.dumps({"prompt": mixed(0.1 * (i % 2), 10), "completion": mixed(0.1 * (i % 2))})
        for i in range(1900)
    ]
    everything = [*lines, *others]
    order = RNG.permutation(2000)
    a = write(tmp_path / "a.jsonl", [everything[i] for i in order[:1000]])
    b = write(tmp_path / "b.jsonl.gz", [everything[i] for i in order[1000:]])
    out = tmp_path / "chosen.jsonl"
    code, table, err = said(
        ["--data", a, b, "--target", target, "--keep", 100, "--out", out], capfd
    )
    assert (code, err) == (0, "")
    chosen, scores = out.read_text().splitlines(), loaded(tmp_path / "chosen.scores.jsonl")
    assert set(chosen) == set(lines)
    cosines = [one["relevance"] for one in scores]
    assert cosines == sorted(cosines, reverse=True) and len(set(cosines)) > 90
    assert [one["rank"] for one in scores] == list(range(1, 101))
    for line, score in zip(chosen, scores, strict=True):  # the place is the row's
        place, _, number = score["where"].rpartition(":")
        assert everything[order[(0 if place == str(a) else 1000) + int(number) - 1]] == line
    assert {"words", "letters", "repeated_ngrams", "ends"} <= scores[0].keys()
    summary = json.loads((tmp_path / "chosen.summary.json").read_text())
    assert (summary["rows"], summary["chosen"], summary["left_out"]) == (
        2000,
        100,
        {"less relevant than the chosen": 1900},
    )
    assert "2,000" in table and "1,900" in table
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "a.jsonl",
        "b.jsonl.gz",
        "chosen.jsonl",
        "chosen.manifest.json",
        "chosen.scores.jsonl",
        "chosen.summary.json",
        "target.jsonl",
    ]


def test_every_row_is_under_one_reason(
    tmp_path: Path, target: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    goals = loaded(target)
    good = [{"prompt": mixed(0.5, 12), "completion": mixed(0.5)} for _ in range(20)]
    near = {
        **good[0],
        "completion": good[0]["completion"].replace(good[0]["completion"].split()[7], "changed", 1),
    }
    rows = [
        *good,
        good[1],
        good[1],
        near,
        goals[0],
        {"prompt": goals[1]["prompt"], "completion": mixed(0.5)},
        {"prompt": "heart", "completion": "vein"},
        {"prompt": "heart " * 30, "completion": "vein"},
        "no json",
        {"prompt": 3, "completion": "x"},
    ]
    data = write(tmp_path / "big.jsonl", rows)
    argv = [
        "--data",
        data,
        "--target",
        target,
        "--keep",
        50,
        "--out",
        tmp_path / "c.jsonl",
        "--on-bad-row",
        "reject",
    ]
    code, table, err = said(argv, capfd)
    assert code == 0, err
    summary = json.loads((tmp_path / "c.summary.json").read_text())
    assert summary["left_out"] == {
        "outside --min-words": 1,
        "outside --max-repeated-ngrams": 1,
        "the same as a better row": 2,
        "near-duplicate of a better row": 1,
        "near-duplicate of a target row": 1,
        "prompt of a target row": 1,
    }
    assert (summary["rows"], summary["chosen"], summary["rejected"]) == (29, 20, 2)
    assert "only 20 of 50 rows" in table
    assert [one["where"] for one in loaded(tmp_path / "c.rejects.jsonl")] == [
        f"{data}:28",
        f"{data}:29",
    ]
    # and with nothing left out
    code, _, _ = said(
        [
            *argv[:7],
            tmp_path / "all.jsonl",
            "--on-bad-row",
            "reject",
            "--quality",
            "off",
            "--no-dedupe",
            "--no-against-target",
        ],
        capfd,
    )
    assert code == 0
    summary = json.loads((tmp_path / "all.summary.json").read_text())
    assert (summary["chosen"], summary["left_out"], summary["rejected"]) == (27, {}, 2)


def test_a_second_window_is_fetched_where_the_first_holds_too_many_repeats(
    tmp_path: Path, target: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from posttrain.data.curate import select

    monkeypatch.setattr(select, "SLACK", 0)
    best = {"prompt": mixed(0.9, 12), "completion": mixed(0.9)}
    good = [{"prompt": mixed(0.3, 12), "completion": mixed(0.3)} for _ in range(12)]
    data = write(tmp_path / "big.jsonl", [*good[:6], *[best] * 50, *good[6:]])
    code, _, _ = said(
        ["--data", data, "--target", target, "--keep", 10, "--out", tmp_path / "c.jsonl"], capfd
    )
    assert code == 0
    chosen = loaded(tmp_path / "c.jsonl")
    assert chosen[0] == best and len(chosen) == 10 and all(one in good for one in chosen[1:])
    summary = json.loads((tmp_path / "c.summary.json").read_text())
    assert summary["left_out"] == {
        "the same as a better row": 49,
        "less relevant than the chosen": 3,
    }


def test_a_table_is_read_and_written_as_objects(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(
        pa.table(
            {"text": [mixed(0.5), mixed(0.0)], "data": [b"\x00\xff", b""], "n": [[1, 2], None]}
        ),
        tmp_path / "big.parquet",
    )
    goal = write(tmp_path / "t.jsonl", [{"text": mixed(0.6)} for _ in range(3)])
    code, _, _ = said(
        [
            "--data",
            tmp_path / "big.parquet",
            "--target",
            goal,
            "--keep",
            1,
            "--out",
            tmp_path / "c.jsonl",
        ],
        capfd,
    )
    assert code == 0
    (one,) = loaded(tmp_path / "c.jsonl")
    assert one["n"] == [1, 2] and one["data"] == {"base64": "AP8="}


def test_the_same_command_gives_the_same_and_another_is_refused(
    tmp_path: Path, target: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "big.jsonl", [{"text": mixed(0.1 * (i % 6))} for i in range(200)])
    argv = ["--data", data, "--target", target, "--out", tmp_path / "c.jsonl"]
    contents = []
    for _ in range(2):
        assert said([*argv, "--keep", 20], capfd)[0] == 0
        contents.append({path.name: path.read_bytes() for path in tmp_path.iterdir()})
    assert contents[0] == contents[1]
    code, _, err = said([*argv, "--keep", 30], capfd)
    assert code == 2 and "different: keep" in err and "choose another --out" in err
    (tmp_path / "c.summary.json").unlink()
    code, _, err = said([*argv, "--keep", 20], capfd)
    assert code == 2 and "c.jsonl is there, and no run of ours that finished wrote it" in err


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        (["--by", "embedding"], "--by embedding needs --model"),
        (["--model", "m"], "--by tfidf does not use --model"),
        (["--keep", "0"], "keep = '0'"),
        (["--out", "chosen.csv"], "chosen.csv does not end in .jsonl"),
        (["--min-words", "1000"], "no row is within the bounds of quality"),
        (["--data", "none.jsonl"], "there is no file none.jsonl"),
        (["--format", "alpaca"], "format alpaca needs the column 'instruction'"),
        (["--target", "empty.jsonl"], "no usable row"),
        (["--data", "empty.jsonl"], None),
        (["--qualty", "off"], "unknown option --qualty"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_is_left(
    argv: list[str],
    what: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("empty.jsonl"), [])
    write(Path("t.jsonl"), [{"text": mixed(0.5)}])
    given = {"--data": "t.jsonl", "--target": "t.jsonl", "--keep": "5", "--out": "c.jsonl"}
    given |= dict(zip(argv[::2], argv[1::2], strict=True))
    code, _, err = said([word for pair in given.items() for word in pair], capfd)
    assert code == 2 and "cure:" in err and (what or "there is no usable row") in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty.jsonl", "t.jsonl"]


def test_an_embedding_is_the_mean_of_the_final_states(tmp_path: Path) -> None:
    folder = making.model(tmp_path / "m", positions=64)
    policy = Policy.load(folder, device="cpu")
    texts = [
        "a",
        "hello there, world",
        "",
        "the same start, one end",
        "the same start, another end",
        "x" * 200,
    ]
    found = embedder(policy, 32)(texts)
    network = policy.network.inner
    with torch.no_grad(), policy.network.stock_attention():
        for text, one in zip(texts, found, strict=True):
            ids = torch.tensor([policy.tokenizer(text)["input_ids"][:32] or [0]])
            expected = network.model(input_ids=ids, use_cache=False).last_hidden_state[0].mean(0)
            np.testing.assert_allclose(one, expected.numpy(), atol=1e-5)


def test_rows_are_chosen_by_embedding(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Even the states of a random model tell letters from digits."""
    folder = making.model(tmp_path / "m")
    digits = [" ".join(map(str, RNG.integers(0, 10**6, 6))) for _ in range(60)]
    rows = [
        {"text": text}
        for text in [*digits[:30], *(sentence(OTHER[:1] + HEART, 8) for _ in range(150))]
    ]
    data = write(tmp_path / "big.jsonl", [rows[i] for i in RNG.permutation(180)])
    goal = write(tmp_path / "t.jsonl", [{"text": text} for text in digits[30:]])
    argv = [
        "--data",
        data,
        "--target",
        goal,
        "--keep",
        30,
        "--out",
        tmp_path / "c.jsonl",
        "--by",
        "embedding",
        "--model",
        folder,
        "--device",
        "cpu",
        "--quality",
        "off",
    ]
    assert said(argv, capfd)[0] == 0
    assert {one["text"] for one in loaded(tmp_path / "c.jsonl")} == set(digits[:30])
    summary = json.loads((tmp_path / "c.summary.json").read_text())
    assert set(summary["identity"]["models_sha256"]) == {"model"}


def test_memory_does_not_grow_with_the_rows(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    goal = write(tmp_path / "t.jsonl", [{"text": mixed(0.6)} for _ in range(20)])
    peaks, data = [], goal
    # the first also pays for imports and for what is cached
    for number, count in enumerate((150, 1500)):
        data = write(
            tmp_path / f"{count}.jsonl", ({"text": mixed(0.1 * (i % 3), 150)} for i in range(count))
        )
        tracemalloc.start()
        assert (
            said(
                [
                    "--data",
                    data,
                    "--target",
                    goal,
                    "--keep",
                    5,
                    "--out",
                    tmp_path / f"c{number}.jsonl",
                ],
                capfd,
            )[0]
            == 0
        )
        peaks.append(tracemalloc.get_traced_memory()[1] / 2**20)
        tracemalloc.stop()
    assert data.stat().st_size > 2**20 and peaks[1] < peaks[0] + 2  # MB: 1,010 rows fetched
