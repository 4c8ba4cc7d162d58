"""The journal: what was appended is read back, whatever happened to the process or the file."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from posttrain.core.errors import CheckpointError, PosttrainError
from posttrain.core.journal import ARRAYS, RECORDS, Journal

KEY = {"model": "m", "rows": [1, 2]}


def value(i: int) -> dict[str, Any]:
    return {"item": i, "text": f"Zürich\n\u2028 {i}" * (i % 3)}


def numbers(i: int) -> np.ndarray:
    return np.arange(i % 7, dtype=np.float32) + i


def fill(journal: Journal, n: int, *, arrays: bool = True) -> list[int]:
    """Append records up to n; returns the numbers of those that had to be made."""
    made = list(range(len(journal), n))
    for i in made:
        more = {"x": numbers(i), "y": np.array(i)} if arrays and i % 2 else {}
        journal.append(value(i), **more)
    return made


def right(journal: Journal, n: int, *, arrays: bool = True) -> bool:
    """Whether the journal holds the first n records and nothing else."""
    for i, entry in enumerate(journal):
        if entry.value != value(i):
            return False
        if arrays and i % 2:
            x, y = entry.arrays["x"], entry.arrays["y"]
            if x.tolist() != numbers(i).tolist() or x.dtype != np.float32:
                return False
            if y.shape != () or int(y) != i:
                return False
        elif entry.arrays:
            return False
    return len(journal) == n


def whole(folder: Path, n: int, *, arrays: bool = True, seal: bool = True) -> None:
    with Journal(folder, KEY) as journal:
        fill(journal, n, arrays=arrays)
        if seal:
            journal.seal()


# ---------------------------------------------------------------------------------- as it should be


def test_records_come_back_in_a_later_process_and_after_it_is_closed(tmp_path: Path) -> None:
    whole(tmp_path / "j", 5, seal=False)
    said: list[str] = []
    with Journal(tmp_path / "j", KEY, message=said.append) as journal:
        assert not journal.sealed and right(journal, 5)
        assert fill(journal, 9) == [5, 6, 7, 8]
        journal.seal()
    assert right(journal, 9) and journal[8].value == value(8)
    with pytest.raises(IndexError):
        journal[9]
    with Journal(tmp_path / "j", {**KEY, "rows": (1, 2)}, message=said.append) as journal:
        assert journal.sealed and right(journal, 9)
    assert said == []


def test_every_line_is_json_that_a_person_can_read(tmp_path: Path) -> None:
    whole(tmp_path, 2)
    lines = [json.loads(line) for line in (tmp_path / RECORDS).read_text().split("\n") if line]
    assert [{*line} - {"digest"} for line in lines] == [
        {"header"}, {"record"}, {"record"}, {"sealed"},
    ]  # fmt: skip
    assert lines[0]["header"] == KEY and lines[3]["sealed"] == 2
    assert lines[2]["record"]["arrays"] == {"x": ["<f4", [1]], "y": ["<i8", []]}


def test_what_is_complete_takes_no_more(tmp_path: Path) -> None:
    whole(tmp_path, 2)
    with Journal(tmp_path, KEY) as journal, pytest.raises(CheckpointError, match="complete"):
        journal.append(1)
    with pytest.raises(CheckpointError, match="not open"):
        Journal(tmp_path, KEY).append(1)


def test_records_can_be_taken_back(tmp_path: Path) -> None:
    whole(tmp_path, 9)
    with Journal(tmp_path, KEY) as journal:
        journal.truncate(4)
        assert not journal.sealed and right(journal, 4)
        assert fill(journal, 6) == [4, 5]
        journal.truncate(100)
        assert right(journal, 6)
    with Journal(tmp_path, KEY) as journal:
        assert right(journal, 6)


def test_records_are_flushed_in_blocks_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (flushed.append(handle), real(handle))[1])
    with Journal(tmp_path, KEY, block=4) as journal:
        before = len(flushed)
        counts = [len(flushed) - before for i in range(9) if journal.append(i) is None]
    assert counts == [0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert len(flushed) - before == 3


# ---------------------------------------------------------------------------------- another key


def test_the_records_of_another_key_are_refused_and_kept(tmp_path: Path) -> None:
    whole(tmp_path, 3)
    with pytest.raises(CheckpointError, match="model was m, is other") as error:
        Journal(tmp_path, {**KEY, "model": "other"}).__enter__()
    assert str(tmp_path) in str(error.value)
    with Journal(tmp_path, KEY) as journal:
        assert right(journal, 3)


# ---------------------------------------------------------------------------------- two writers

WRITER = """
    import sys, time
    from pathlib import Path
    from posttrain.core.journal import Journal
    sys.path.insert(0, {tests!r})
    from test_journal import KEY, fill
    with Journal(Path({folder!r}), KEY) as journal:
        {work}
"""


def process(folder: Path, work: str) -> subprocess.Popen[str]:
    code = textwrap.dedent(WRITER).format(
        tests=str(Path(__file__).parent), folder=str(folder), work=work
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_a_second_writer_is_refused_or_waits(tmp_path: Path) -> None:
    folder = tmp_path / "j"
    other = process(folder, "fill(journal, 3); print('ready', flush=True); time.sleep(1.5)")
    assert other.stdout is not None and other.stdout.readline() == "ready\n"
    with pytest.raises(PosttrainError, match=f"process {other.pid}"):
        Journal(folder, KEY).__enter__()
    with Journal(folder, KEY, wait=True) as journal:  # until the other one is done
        assert other.wait(5) == 0 and right(journal, 3)
    other.stdout.close()


# ---------------------------------------------------------------------------------- killed


def test_killed_at_random_moments_it_loses_nothing_that_was_appended(tmp_path: Path) -> None:
    rng = random.Random(0)
    reached = 0
    for _ in range(8):
        work = (
            "[(fill(journal, n + 1), print(n + 1, flush=True)) for n in range(len(journal), 10**6)]"
        )
        writer = process(tmp_path, work)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(rng.random() * 0.1)
        os.kill(writer.pid, signal.SIGKILL)
        told = writer.stdout.read().split()
        writer.stdout.close()
        writer.wait()
        said: list[str] = []
        with Journal(tmp_path, KEY, message=said.append) as journal:
            assert len(journal) >= max([reached, *map(int, told[:-1])])
            reached = len(journal)
            assert right(journal, reached)
        assert len(said) <= 1 and all("not whole" in one for one in said)
    assert reached > 50


# ---------------------------------------------------------------------------------- damaged


@pytest.mark.parametrize("seal", [False, True])
@pytest.mark.parametrize("arrays", [False, True])
def test_cut_anywhere_it_goes_on_after_the_last_whole_record(
    tmp_path: Path, arrays: bool, seal: bool
) -> None:
    whole(tmp_path, 12, arrays=arrays, seal=seal)
    files = [tmp_path / RECORDS, *([tmp_path / ARRAYS] if arrays else [])]
    rng = random.Random(1)
    for _ in range(60):
        path = rng.choice(files)
        size = rng.randrange(path.stat().st_size)
        os.truncate(path, size)
        said: list[str] = []
        with Journal(tmp_path, KEY, message=said.append) as journal:
            kept = len(journal)
            assert right(journal, kept, arrays=arrays) and not journal.sealed
            assert fill(journal, 12, arrays=arrays) == list(range(kept, 12))
            if seal:
                journal.seal()
        assert len(said) <= 1 and (kept == 12 or said or path.name == RECORDS)
        with Journal(tmp_path, KEY) as journal:
            assert right(journal, 12, arrays=arrays) and journal.sealed == seal


@pytest.mark.parametrize("arrays", [False, True])
def test_of_a_flipped_byte_and_what_follows_nothing_is_believed(
    tmp_path: Path, arrays: bool
) -> None:
    whole(tmp_path, 12, arrays=arrays)
    rng = random.Random(2)
    for _ in range(80):
        path = tmp_path / (ARRAYS if arrays and rng.random() < 0.3 else RECORDS)
        data = bytearray(path.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        said: list[str] = []
        with Journal(tmp_path, KEY, message=said.append) as journal:
            assert right(journal, len(journal), arrays=arrays) and not journal.sealed
            fill(journal, 12, arrays=arrays)
            journal.seal()
        assert len(said) == 1
        with Journal(tmp_path, KEY) as journal:
            assert right(journal, 12, arrays=arrays) and journal.sealed


def test_a_record_that_is_missing_moved_or_doubled_is_noticed(tmp_path: Path) -> None:
    whole(tmp_path / "j", 6, arrays=False, seal=False)
    path = tmp_path / "j" / RECORDS
    lines = path.read_bytes().splitlines(keepends=True)
    for damaged, kept in (
        ([*lines[:3], *lines[4:]], 2),
        ([*lines[:2], lines[3], lines[2], *lines[4:]], 1),
        ([*lines[:4], lines[3], *lines[4:]], 3),
        (lines[1:], 0),
        ([*lines, lines[0]], 6),
    ):
        path.write_bytes(b"".join(damaged))
        said: list[str] = []
        with Journal(tmp_path / "j", KEY, message=said.append) as journal:
            assert right(journal, kept, arrays=False)
        assert len(said) == 1


def test_a_full_disk_leaves_no_half_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Journal(tmp_path, KEY) as journal:
        fill(journal, 4)
        real, calls = os.pwrite, [0]

        def half(handle: int, data: Any, at: int) -> int:
            calls[0] += 1
            if calls[0] == 1:
                return real(handle, data[: len(data) // 2], at)
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "pwrite", half)
        with pytest.raises(OSError, match="space"):
            fill(journal, 5)  # a record without arrays
        monkeypatch.setattr(os, "pwrite", real)
    said: list[str] = []
    with Journal(tmp_path, KEY, message=said.append) as journal:
        assert right(journal, 4) and said == []
        fill(journal, 6)
    with Journal(tmp_path, KEY, message=said.append) as journal:
        assert right(journal, 6) and said == []


def test_what_was_dropped_is_gone(tmp_path: Path) -> None:
    whole(tmp_path, 6)
    data = bytearray((tmp_path / RECORDS).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / RECORDS).write_bytes(data)
    said: list[str] = []
    for _ in range(2):
        with Journal(tmp_path, KEY, message=said.append) as journal:
            assert 0 < len(journal) < 6 and right(journal, len(journal))
    assert len(said) == 1


def test_a_part_of_an_array_is_read_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole_array = np.arange(60, dtype=np.int32).reshape(20, 3)
    with Journal(tmp_path, KEY) as journal:
        journal.append(first=np.ones(5), x=whole_array)
    read: list[int] = []
    real = os.pread
    monkeypatch.setattr(
        os, "pread", lambda handle, size, at: (read.append(size), real(handle, size, at))[1]
    )
    assert journal.part(0, "x", 4, 6).tolist() == whole_array[4:6].tolist()
    assert read[-1] == 2 * 3 * 4 and len(read) == 2  # the line, and two rows


@pytest.mark.parametrize(
    "shape", ["[-8]", "[4611686018427387904]", "[" * 2000, "[1.5]", '"x"', "[1, 2, 3, 4000000000]"]
)
def test_a_shape_that_cannot_be_is_damage(tmp_path: Path, shape: str) -> None:
    with Journal(tmp_path / "j", "key") as journal:
        journal.append("a", x=np.zeros(8))
    path = tmp_path / "j" / RECORDS
    path.write_text(path.read_text().replace('["<f8", [8]]', f'["<f8", {shape}]'))
    told: list[str] = []
    with Journal(tmp_path / "j", "key", message=told.append) as journal:
        assert len(journal) == 0 and len(told) == 1
