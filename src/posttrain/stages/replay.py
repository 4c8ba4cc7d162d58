"""One step of a run again: from the checkpoint before it and the journal of rollouts.

A step is a list of named arrays in the order in which they come about:

    NAME before the step                a checksum of every tensor
    tokens, logprobs                    of the rollouts, drawn again
    update 1: old_logprobs, advantages, …   the facts that the loss reads
    update 1: gradient of NAME          a checksum of every tensor
    NAME after the step
    logged reward, loss, grad_norm

On a CPU they are the same to the bit, however often the step is run. The first that differs, from
what the run wrote down or from another run, is where the cause is.
"""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from posttrain.core.errors import ConfigError
from posttrain.core.events import Reporter
from posttrain.core.files import read_state
from posttrain.core.identity import RUN, compare
from posttrain.core.journal import Journal
from posttrain.engine.numbers import checksums
from posttrain.stages import inputs
from posttrain.stages.rl import COMMAND, ROLLOUTS, Job, RlSettings

if TYPE_CHECKING:
    from posttrain.engine.loop import Run
    from posttrain.engine.source import Batch
    from posttrain.stages.online import Online

CURE = "name the folder of a run of posttrain rl"


@dataclass(frozen=True)
class Trace:
    """A step that was run again.

    Attributes:
        arrays: what it came to, by name, in the order in which it came about.
        recorded: what the run wrote down of it, by the same names.
        began: the step after whose checkpoint the run was taken up; 0 is its start.
    """

    arrays: dict[str, np.ndarray]
    recorded: dict[str, np.ndarray]
    began: int

    def differs_from(self, others: dict[str, np.ndarray]) -> str:
        """The first array that others have with other values; empty where there is none."""
        for name, array in self.arrays.items():
            if name in others and not _equal(array, others[name]):
                return name
        return ""


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.tobytes() == b.astype(a.dtype).tobytes()


def replay(folder: Path, step: int, reporter: Reporter) -> Trace:
    """Run a step of a run again. Nothing is written into its folder.

    Args:
        step: its number, from 1.
    Raises:
        ConfigError: the folder holds no run of reinforcement learning, or what it read has changed.
        CheckpointError: what is needed of it is not there any more.
    """
    from posttrain.engine import loop

    path = folder / COMMAND
    if not path.is_file():
        raise ConfigError(f"{folder} has no {COMMAND}", cure=CURE)
    command = read_state(path, CURE, settings=dict, folder=str)
    folder = folder.resolve()
    with contextlib.chdir(command["folder"]), tempfile.TemporaryDirectory() as scratch:
        settings = RlSettings.model_validate(command["settings"])
        identity = inputs.describe(settings).identity()
        compare(
            read_state(folder / RUN, CURE, identity=dict)["identity"],
            identity,
            f"what {folder} read is not what it was",
        )
        job = Job(settings, reporter, None)
        with Journal(folder / ROLLOUTS, identity, message=reporter.message) as journal:
            run = job.run(journal, Path(scratch))
            source: Any = run.source
            source.frozen = True
            if not 1 <= step <= run.steps:
                raise ConfigError(
                    f"step {step} of a run of {run.steps} steps", cure="give one of them"
                )
            began = _restore(run, folder, step)
            run.reporter = Reporter()
            for _ in range(run.step, step - 1):
                loop.take_step(run)
            return _Recorder(run, folder, step).trace(began)


def _restore(run: Run, folder: Path, step: int) -> int:
    """Put a run where its last checkpoint before a step left it; returns the step of it."""
    from posttrain.engine.checkpoint import Store
    from posttrain.engine.loop import STATE

    store = Store(folder / "checkpoints", report=run.reporter.message)
    before = [saved for saved in store.steps() if saved < step]
    if not before:
        return 0
    checkpoint = store.load(before[-1])
    for name, item in STATE.items():
        if name != "log":
            item.restore(run, (checkpoint.tensors if item.tensors else checkpoint.state)[name])
    return before[-1]


class _Recorder:
    """Takes one step of a run, and writes down what it comes to."""

    def __init__(self, run: Run, folder: Path, step: int) -> None:
        source: Any = run.source
        self._online: Online = source
        self._run, self._folder, self._step = run, folder, step
        self._arrays: dict[str, np.ndarray] = {}
        self._updates = 0

    def trace(self, began: int) -> Trace:
        from posttrain.engine import loop

        online, step = self._online, self._step - 1
        recorded = self._weights("before", online.recorded_checksums(step))
        self._arrays |= self._weights("before", online.checksums())
        recorded |= online.recorded_rollouts(step)
        self._arrays |= online.drawn_again(step)
        self._run.before_update = self._update
        loop.take_step(self._run)
        self._arrays |= self._weights("after", online.checksums())
        recorded |= self._weights("after", online.recorded_checksums(step + 1))
        self._arrays |= _logged(self._run.folder, self._step)
        recorded |= _logged(self._folder, self._step)
        return Trace(self._arrays, recorded, began)

    def _weights(self, when: str, checksums: np.ndarray | None) -> dict[str, np.ndarray]:
        if checksums is None:
            return {}
        names = [name for name, _ in self._run.policy.network.weights()]
        parts = zip(names, checksums.reshape(-1, 1), strict=True)
        return {f"{name} {when} the step": part for name, part in parts}

    def _update(self, batch: Batch) -> None:
        """Called before every optimiser update of the step."""
        self._updates += 1
        head = f"update {self._updates}: "
        for name in batch.trees[0][0].targets:
            values = [s.targets[name][s.trained] for tree in batch.trees for s in tree]
            self._arrays[head + name] = np.concatenate(values)
        named = {n: p.grad for n, p in self._run.policy.network.weights() if p.grad is not None}
        for name, checksum in zip(named, checksums(named.values()), strict=True):
            self._arrays[f"{head}gradient of {name}"] = np.array([checksum])


def _logged(folder: Path, step: int) -> dict[str, np.ndarray]:
    """What metrics.jsonl says of a step, speed and memory apart."""
    from posttrain.engine.metrics import MetricsLog

    for record in MetricsLog(folder / "metrics.jsonl").read():
        if record["step"] == step and "loss" in record:
            return {f"logged {n}": np.array([record[n]]) for n in ("reward", "loss", "grad_norm")}
    return {}
