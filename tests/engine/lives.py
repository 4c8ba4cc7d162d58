"""Runs `posttrain` many times in forked children that are killed by SIGKILL, each life going on
where the last one died.

Imported modules are shared by the fork, so that a life costs its own work and not the seconds that
importing torch takes. What kills is real: the child sends SIGKILL to itself in the middle of a
call, or the parent sends it at a moment of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import posttrain.core.files as files
import posttrain.engine.checkpoint as checkpoint
import posttrain.engine.loop as loop
import posttrain.engine.policy
import posttrain.stages.sft  # noqa: F401
from posttrain.cli.main import main
from posttrain.engine.metrics import MetricsLog


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def live(
    argv: list[str], prepare: Callable[[], None] | None = None, log: Path | None = None
) -> int:
    """Fork a child that runs the command; returns its process id."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        out = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        if prepare:
            prepare()
        code = main(argv)
    except SystemExit as done:  # help was shown
        code = int(done.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(
            OSError, ValueError, AttributeError
        ):  # a test may have closed them
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def wait(pid: int) -> int:
    """Exit code, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# -------------------------------------------------------- where in a checkpoint's write a life ends


def _after(module: Any, name: str, call: int, before: bool = False) -> Callable[[], None]:
    """Die at the `call`-th call of a function: when it has returned, or before it begins."""

    def prepare() -> None:
        real, count = getattr(module, name), 0

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if before and count == call:
                die()
            result = real(*args, **kwargs)
            if count == call:
                die()
            return result

        setattr(module, name, wrapped)

    return prepare


def _half_a_file() -> None:
    """Die with half of the weights on the disk."""
    real = checkpoint.save_file

    def half(tensors: Any, path: Path) -> None:
        real(tensors, path)
        os.truncate(path, path.stat().st_size // 2)
        die()

    checkpoint.save_file = half


def _in_retention(call: int) -> Callable[[], None]:
    """Die while an old checkpoint is being deleted: one of its files is gone, the others
    are not.
    """

    def prepare() -> None:
        real, count = checkpoint.shutil.rmtree, 0

        def part(path: Path, *args: Any, **kwargs: Any) -> None:
            nonlocal count
            if Path(path).name.startswith("step-"):
                count += 1
                if count == call:
                    next(iter(Path(path).glob("*.safetensors"))).unlink()
                    die()
            real(path, *args, **kwargs)

        checkpoint.shutil.rmtree = part

    return prepare


# A checkpoint is four tensor files, state.json and manifest.json; each JSON is itself flushed twice
# (file, folder).
WRITES: list[tuple[str, Callable[[], None]]] = [
    ("half of the weights written", _half_a_file),
    ("weights written, gradient averages not", _after(checkpoint, "save_file", 1)),
    ("all tensors written, state not", _after(checkpoint, "save_file", 4)),
    ("state written, manifest not", _after(checkpoint, "write_json", 1)),
    ("manifest written, nothing flushed", _after(checkpoint, "write_json", 2)),
    ("some files flushed, others not", _after(files, "fsync", 5)),
    ("everything flushed, not renamed", _after(files.os, "rename", 1, before=True)),
    ("renamed, an old checkpoint half deleted", _in_retention(1)),
]


# ---------------------------------------------------------------- a lineage


def steps_logged(folder: Path) -> int:
    return max((r["step"] for r in MetricsLog(folder / "metrics.jsonl").read()), default=0)


def lineage(
    argv: list[str], folder: Path, steps: int, seed: int, log: Path
) -> list[tuple[str, int]]:
    """Kill one run twenty times, eight times inside a checkpoint's write and twelve at a random
    moment, then let it finish.

    Returns: (where it was killed, the step its log had reached) for each life but the last.
    """
    rng = random.Random(seed)
    order = ["write"] * len(WRITES) + ["step"] * 12
    rng.shuffle(order)
    writes = iter(WRITES)
    kills: list[tuple[str, int]] = []
    for i, kind in enumerate(order):
        if kind == "write":
            name, prepare = next(writes)
            code = wait(live(argv, prepare, log))
        else:
            # later lives die later, so that the whole run is covered
            target = max(
                steps_logged(folder) + 1, int(steps * (i + rng.random()) / (len(order) + 2))
            )
            pid = live(argv, None, log)
            while steps_logged(folder) < target:
                assert os.waitpid(pid, os.WNOHANG)[0] == 0, (
                    f"life {i} ended before step {target}:\n{log.read_text()[-3000:]}"
                )
                time.sleep(0.001)
            time.sleep(rng.random() * 0.01)
            os.kill(pid, signal.SIGKILL)
            name, code = "at a random moment", wait(pid)
        assert code == -signal.SIGKILL, (
            f"life {i} ({name}) was not killed but ended with {code}:\n{log.read_text()[-3000:]}"
        )
        kills.append((name, steps_logged(folder)))
    code = wait(live(argv, None, log))
    assert code == 0, f"the last life ended with {code}:\n{log.read_text()[-3000:]}"
    return kills


def forget(item: str) -> Callable[[], None]:
    """A life that does not restore one item of state."""

    def prepare() -> None:
        loop.STATE[item] = replace(loop.STATE[item], restore=lambda run, saved: None)

    return prepare


def die_after_step(step: int) -> Callable[[], None]:
    def prepare() -> None:
        real = MetricsLog.write

        def write(self: MetricsLog, record: dict[str, Any]) -> None:
            real(self, record)
            if record["step"] == step and "loss" in record:
                die()

        MetricsLog.write = write

    return prepare


def without_each(argv: list[str], folder: Path, step: int, log: Path) -> list[str]:
    """Kill a run after a step, and finish it once as it should be and once without restoring each
    item of state.

    Returns: the names of the items; the runs lie beside `folder`, as `without-NAME`.
    """
    code = wait(live([*argv, "--out", str(folder)], die_after_step(step), log))
    assert code == -signal.SIGKILL, (
        f"not killed after step {step} but ended with {code}:\n{log.read_text()[-3000:]}"
    )
    for item in [None, *loop.STATE]:
        again = folder.with_name(f"without-{item}")
        shutil.copytree(folder, again)
        # may fail: that, too, is noticing
        wait(live([*argv, "--out", str(again)], forget(item) if item else None, log))
    return list(loop.STATE)


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    log = Path(job["log"])
    if job["do"] == "run":
        sys.exit(wait(live(job["argv"], None, log)))
    if job["do"] == "lineage":
        print(json.dumps(lineage(job["argv"], Path(job["folder"]), job["steps"], job["seed"], log)))
    if job["do"] == "items":
        print(json.dumps(without_each(job["argv"], Path(job["folder"]), job["step"], log)))
