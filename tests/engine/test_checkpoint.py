"""Checkpoints under bad luck: a full disk, a read-only one, damaged files, two runs in one folder,
a polite stop.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from posttrain.cli.main import main
from posttrain.core.errors import CheckpointError
from posttrain.core.files import PARTIAL, lock
from posttrain.engine.checkpoint import Checkpoint, Store
from tests.children import child
from tests.engine.test_kill import base, command, ending  # noqa: F401 - base is a fixture


def saved(step: int, value: float = 0.0, numbers: int = 8) -> Checkpoint:
    return Checkpoint(
        step,
        {"weights": {"w": torch.full((numbers,), value)}, "empty": {}},
        {"step": step, "note": "π"},
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True
    ).returncode:
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    store = Store(tmp_path / "c")
    assert store.latest() is None
    store.save(saved(3, 1.5))
    back = store.latest()
    assert back is not None
    assert back.step == 3
    assert back.tensors["weights"]["w"].tolist() == [1.5] * 8
    assert back.tensors["empty"] == {}
    assert back.state == {"step": 3, "note": "π"}
    assert not list((tmp_path / "c").glob("**/*.pkl"))
    assert not list((tmp_path / "c").glob("**/*.pt"))


def test_retention_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    store = Store(tmp_path, keep=2)
    for step in (1, 2, 3, 4, 5):
        store.save(saved(step), best=2 if step >= 2 else None)
    assert store.steps() == [2, 4, 5]


@pytest.mark.parametrize("file", ["weights.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "missing"])
def test_a_damaged_checkpoint_is_named_and_passed_over(
    tmp_path: Path, file: str, damage: str
) -> None:
    told: list[str] = []
    store = Store(tmp_path, report=told.append)
    store.save(saved(1, 1.0))
    store.save(saved(2, 2.0))
    path = store.path(2) / file
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
    back = store.latest()
    assert back is not None
    assert (back.step, float(back.tensors["weights"]["w"][0])) == (1, 1.0)
    assert len(told) == 1
    assert "step-00000002" in told[0]


def test_only_damaged_checkpoints_is_an_error_not_a_new_start(tmp_path: Path) -> None:
    store = Store(tmp_path, report=lambda text: None)
    store.save(saved(1))
    (store.path(1) / "state.json").unlink()
    with pytest.raises(CheckpointError, match="none of the checkpoints") as caught:
        store.latest()
    assert "delete it to start again" in caught.value.cure


def test_an_interrupted_write_is_swept_away(tmp_path: Path) -> None:
    told: list[str] = []
    store = Store(tmp_path, report=told.append)
    store.save(saved(1))
    shutil.copytree(store.path(1), tmp_path / f"{PARTIAL}step-00000002")
    back = store.latest()
    assert back is not None
    assert back.step == 1
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    assert "interrupted" in told[0]


def test_a_full_disk_keeps_the_last_good_checkpoint(small_disk: Path) -> None:
    store = Store(small_disk, report=lambda text: None)
    store.save(saved(1, 1.0, numbers=150_000))  # 0.6 of 1 MiB: a second one does not fit beside it
    with pytest.raises(CheckpointError, match="the disk is full") as caught:
        store.save(saved(2, 2.0, numbers=150_000))
    assert "step 1 is good" in str(caught.value)
    assert store.steps() == [1]
    assert not list(small_disk.glob(PARTIAL + "*"))
    assert float(store.load(1).tensors["weights"]["w"][0]) == 1.0


def test_a_full_disk_gives_up_older_checkpoints_first(small_disk: Path) -> None:
    told: list[str] = []
    store = Store(small_disk, keep=2, report=told.append)
    for step in (1, 2, 3):  # 0.38 MiB each: three never lie side by side
        store.save(saved(step, float(step), numbers=100_000))
    assert store.steps() == [2, 3]
    assert len(told) == 1
    assert "removed the checkpoints of steps [1]" in told[0]


def test_a_run_on_a_full_disk_stops_with_the_cure_and_goes_on(
    base: Path,  # noqa: F811
    small_disk: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same command, with room again, ends like a run that always had it."""
    argv = command(base, "--steps", "12", "--quiet")
    assert main([*argv, "--out", str(tmp_path / "roomy")]) == 0
    with open(small_disk / "filler", "wb") as filler:
        filler.write(bytes(760_000))
    assert main([*argv, "--out", str(small_disk / "run")]) == 2
    said = capsys.readouterr().err
    assert "the disk is full" in said
    assert "run the same command again" in said
    (small_disk / "filler").unlink()
    assert main([*argv, "--out", str(small_disk / "run")]) == 0
    assert ending(small_disk / "run") == ending(tmp_path / "roomy")


def test_a_read_only_disk_is_an_error_with_a_cure(
    base: Path,  # noqa: F811
    small_disk: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert main([*command(base, "--steps", "2", "--quiet"), "--out", str(small_disk / "run")]) == 2
    said = capsys.readouterr().err
    assert "read-only" in said
    assert "choose another --out" in said


def test_two_runs_exclude_each_other(
    base: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hold = f"""
import time
from pathlib import Path
from posttrain.core.files import lock
with lock(Path({str(tmp_path)!r})):
    print("held", flush=True)
    time.sleep(60)
"""
    argv = [sys.executable, "-c", hold]
    with child(argv, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert main([*command(base, "--steps", "2", "--quiet"), "--out", str(tmp_path)]) == 2
        assert f"process {holder.pid}" in capsys.readouterr().err
    with lock(tmp_path):  # the system dropped it with the process
        pass


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_polite_stop_saves_first(base: Path, tmp_path: Path, signum: signal.Signals) -> None:  # noqa: F811
    """Ctrl-C: a checkpoint of the step just done, exit code 128 + signal, and the same command goes
    on from there.
    """
    argv = command(
        base,
        "--steps",
        "100000",
        "--checkpoint-every",
        "50000",
        "--validate-every",
        "50000",
        "--out",
        str(tmp_path),
    )
    log = tmp_path / "metrics.jsonl"
    with child(
        [sys.executable, "-m", "posttrain", *argv],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as run:
        while not log.exists() or log.read_text().count("\n") < 5:
            assert run.poll() is None
            time.sleep(0.02)
        run.send_signal(signum)
        _, said = run.communicate(timeout=300)
    assert run.returncode == 128 + signum
    step = max(json.loads(line)["step"] for line in log.read_text().splitlines())
    assert f"stopped by {signum.name} after step {step}" in said
    assert Store(tmp_path / "checkpoints").steps() == [step]


def test_damaged_checkpoints_cost_no_good_one(tmp_path: Path) -> None:
    """They step aside: counted as checkpoints, retention would delete the good ones for them."""
    store = Store(tmp_path, keep=2, report=lambda text: None)
    for step in (4, 10, 20):
        store.save(saved(step), best=4)
    for step in (10, 20):
        (store.path(step) / "weights.safetensors").write_bytes(b"damaged")
    back = store.latest()
    assert back is not None
    assert back.step == 4
    store.save(saved(5), best=4)
    assert store.steps() == [4, 5]
    assert sorted(p.name for p in tmp_path.glob("damaged-*")) == [
        "damaged-step-00000010",
        "damaged-step-00000020",
    ]


def test_folders_that_are_no_checkpoints_of_ours_are_left_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save(saved(3))
    for name in ("step-3", "step-٣", "step-00000x", "step-" + "9" * 30):
        (tmp_path / name).mkdir()
    assert store.steps() == [3]


@pytest.mark.parametrize("content", ["null", "[]", '{"files": 5}', '{"files": {}}', "[" * 100_000])
def test_a_manifest_of_another_shape_is_passed_over(tmp_path: Path, content: str) -> None:
    told: list[str] = []
    store = Store(tmp_path, report=told.append)
    store.save(saved(1))
    store.save(saved(2))
    (store.path(2) / "manifest.json").write_text(content)
    back = store.latest()
    assert back is not None and back.step == 1 and "step-00000002" in told[0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_neither_written_nor_believed(
    tmp_path: Path, bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    store = Store(tmp_path, keep=1, report=told.append)
    with pytest.raises(CheckpointError, match="There is no checkpoint yet"):
        store.save(saved(1, bad))
    store.save(saved(1, 1.0))
    with pytest.raises(CheckpointError, match=r"after step 2 w is not finite.* step 1 is good"):
        store.save(saved(2, bad))
    assert store.steps() == [1]
    averages = Checkpoint(2, {"exp_avg_sq": {"w": torch.tensor([0.0, bad])}}, {})
    with pytest.raises(CheckpointError, match="exp_avg_sq of w"):
        store.save(averages)
    with monkeypatch.context() as older:  # one that an older version wrote
        older.setattr(Checkpoint, "not_finite", lambda self: "")
        store.keep = 2
        store.save(saved(2, bad))
    back = store.latest()
    assert back is not None
    assert back.step == 1
    assert "w is not finite" in told[0]
