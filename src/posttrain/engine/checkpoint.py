"""Checkpoints: whole or absent, without pickle, and verified before they are believed.

A checkpoint is a folder `step-00000120`: one safetensors file for each group of tensors,
`state.json` for the rest, and `manifest.json` with the SHA-256 of them all. It is written under
another name, flushed, and renamed; what was interrupted is swept away at the next start. A damaged
checkpoint is named and passed over for the one before it. Tensors that are not finite are neither
written nor believed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from posttrain.core.errors import CheckpointError
from posttrain.core.files import (
    atomic_folder,
    read_state,
    remove_partial,
    sha256_file,
    write_error,
    write_json,
)
from posttrain.engine.numbers import not_finite

# the cure of a run whose numbers left what floating point can hold
DIVERGED = (
    "lower --learning-rate and give another --out, or look for broken rows in the data; the same "
    "command as it is goes on from the last good checkpoint"
)


@contextlib.contextmanager
def system_errors() -> Iterator[None]:
    """safetensors wraps the system's error in its text; this brings the OSError back."""
    try:
        yield
    except SafetensorError as error:
        code = (
            int(match[1])
            if (match := re.search(r"(?:code: |os error )(\d+)", str(error)))
            else errno.EIO
        )
        raise OSError(code, os.strerror(code)) from error


@dataclass(frozen=True)
class Checkpoint:
    """What was saved at a step: groups of named tensors, and JSON state."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]

    def not_finite(self) -> str:
        """The first tensor that holds a NaN or an infinity; empty where none does."""
        for group, tensors in self.tensors.items():
            if name := not_finite(tensors):
                return name if group == "weights" else f"{group} of {name}"
        return ""


CURE = "delete that folder; the one before it will be used"


class Store:
    """The checkpoints of one run.

    Args:
        folder: where they are; made when the first is written.
        keep: how many of the newest stay, besides the best.
        report: called with a sentence when something is not as it should be.
    """

    def __init__(self, folder: Path, keep: int = 2, report: Callable[[str], None] = print) -> None:
        self.folder, self.keep, self.report = folder, keep, report

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, oldest first."""
        names = (path.name.removeprefix("step-") for path in self.folder.glob("step-*"))
        return sorted(int(n) for n in names if n.isascii() and n.isdigit() and self._is_ours(n))

    def _is_ours(self, number: str) -> bool:
        return len(number) < 20 and self.path(int(number)).name == f"step-{number}"

    def save(self, checkpoint: Checkpoint, best: int | None = None) -> None:
        """Write a checkpoint, then drop what retention no longer keeps.

        Where the disk is full, older checkpoints that retention would drop anyway make room first.

        Raises:
            CheckpointError: it could not be written, or is not finite; every earlier checkpoint is
                still good.
        """
        if name := checkpoint.not_finite():
            raise CheckpointError(
                f"after step {checkpoint.step} {name} is not finite, and was not saved. "
                f"{self.last_good()}",
                cure=DIVERGED,
            )
        try:
            self._write(checkpoint)
        except OSError as error:
            spare = [s for s in self.steps() if s not in (best, max(self.steps()))]
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not spare:
                raise self._explained(error, checkpoint.step) from error
            for step in spare:
                shutil.rmtree(self.path(step))
            self.report(f"the disk is full; removed the checkpoints of steps {spare} to make room")
            try:
                self._write(checkpoint)
            except OSError as again:
                raise self._explained(again, checkpoint.step) from again
        steps = self.steps()
        for step in steps:
            if step not in steps[-self.keep :] and step != best:
                shutil.rmtree(self.path(step))

    def _explained(self, error: OSError, step: int) -> CheckpointError:
        return write_error(error, self.path(step), self.last_good())

    def last_good(self) -> str:
        """Which checkpoint a run would go on from, as a sentence."""
        steps = self.steps()
        if not steps:
            return "There is no checkpoint yet"
        return f"The checkpoint of step {steps[-1]} is good"

    def _write(self, checkpoint: Checkpoint) -> None:
        with atomic_folder(self.path(checkpoint.step)) as folder:
            for group, tensors in checkpoint.tensors.items():
                with system_errors():
                    save_file(
                        {k: v.detach().cpu().contiguous() for k, v in tensors.items()},
                        folder / f"{group}.safetensors",
                    )
            write_json(folder / "state.json", checkpoint.state)
            files = {p.name: sha256_file(p) for p in sorted(folder.iterdir())}
            write_json(folder / "manifest.json", {"step": checkpoint.step, "files": files})

    def load(self, step: int) -> Checkpoint:
        """Read one checkpoint and check every byte of it.

        Raises:
            CheckpointError: a file is missing or differs from the manifest, or a tensor is not
                finite.
        """
        folder = self.path(step)
        try:
            files = read_state(folder / "manifest.json", CURE, files=dict)["files"]
            if "state.json" not in files:
                raise ValueError("its manifest does not name state.json")
            for name, sha in files.items():
                if sha256_file(folder / name) != sha:
                    raise ValueError(f"{name} is damaged")
            tensors = {
                Path(name).stem: load_file(folder / name)
                for name in sorted(files)
                if name.endswith(".safetensors")
            }
            checkpoint = Checkpoint(step, tensors, read_state(folder / "state.json", CURE))
            if name := checkpoint.not_finite():
                raise ValueError(f"{name} is not finite")
            return checkpoint
        except (OSError, ValueError, TypeError, SafetensorError, CheckpointError) as error:
            raise CheckpointError(
                f"the checkpoint {folder} cannot be used: {_first_line(error)}", cure=CURE
            ) from error

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; says which ones are not.

        None where none was ever written.

        Raises:
            CheckpointError: there are checkpoints, and all are damaged.
        """
        for name in remove_partial(self.folder):
            self.report(f"removed {name}: an interrupted write")
        steps = self.steps()
        damaged: list[Path] = []
        for step in reversed(steps):
            try:
                found = self.load(step)
            except CheckpointError as error:
                self.report(f"{error.what}; trying the one before it")
                damaged.append(self.path(step))
                continue
            for (
                path
            ) in damaged:  # out of the way, or retention would count them and delete good ones
                shutil.rmtree(path.with_name(f"damaged-{path.name}"), ignore_errors=True)
                path.rename(path.with_name(f"damaged-{path.name}"))
            return found
        if steps:
            raise CheckpointError(
                f"none of the checkpoints in {self.folder} can be used (steps {steps})",
                cure="restore the folder from a backup, or delete it to start again from step 0",
            )
        return None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
