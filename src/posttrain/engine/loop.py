"""The loop of every method: take a batch from a source, forward and backward, step, and now and
then validate and save.

It knows neither the method nor the model. Everything a resumed run needs is in `STATE`, one line an
item.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Many
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from posttrain.core.errors import CheckpointError, PosttrainError
from posttrain.core.events import TRAIN, Alarm, Held, Reporter, Step
from posttrain.core.files import state_of
from posttrain.core.seeds import derive, generator
from posttrain.core.types import Loss, Measured
from posttrain.data.forest import Tree
from posttrain.engine.checkpoint import CURE, DIVERGED, Checkpoint, Store
from posttrain.engine.learner import Learner
from posttrain.engine.metrics import MetricsLog
from posttrain.engine.network import Noise
from posttrain.engine.numbers import environment, not_finite, peak_memory
from posttrain.engine.optimiser import rate
from posttrain.engine.settings import CheckpointSettings, ValidationSettings
from posttrain.engine.source import Batch, Source

CHECKPOINT_SECONDS = 300.0


class Interrupted(PosttrainError):
    """The user or the system asked the run to stop; a checkpoint was written first."""

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(
            f"stopped by {signal.Signals(signum).name} after step {step}; everything up to there is"
            " saved",
            cure="run the same command to go on",
        )
        self.exit_code = 128 + signum


Values = dict[str, Any]
# called with a progress callback (rows done, rows in all), and with the numbers of every row before
# the first step, None before that; returns the values, `loss` among them, and numbers of every row,
# as JSON, of which the paired difference is made
HeldOut = Callable[[Callable[[int, int], None], Any], tuple[Values, Any]]
# called with every step and validation, in order; returns what is alarming about it
Watch = Callable[[Step | Held], Many[Alarm]]


@dataclass
class Run:
    """One training run: what is fixed, and where it stands."""

    policy: Learner
    loss: Loss
    source: Source
    steps: int
    budget: int
    seed: int
    folder: Path
    reporter: Reporter
    checkpoints: CheckpointSettings
    validation: ValidationSettings
    held_out: HeldOut | None = None
    noise: Noise | None = None
    watch: Watch | None = None
    check_folder: Callable[[], None] = lambda: None  # raises where it was taken away
    # called with its batch when an update has its gradient and the weights are still as they were
    before_update: Callable[[Batch], None] | None = None
    # where it stands
    step: int = 0
    totals: dict[str, float] = field(
        default_factory=lambda: {"tokens": 0, "targets": 0, "seconds": 0.0}
    )
    best: dict[str, Any] = field(default_factory=lambda: {"step": None})
    stale: int = 0
    first_held: dict[str, Any] | None = None
    first_rows: Any = None
    # the alarm that ended it
    stopped: Alarm | None = None
    # a tree of the last batch, to try the weights on before they are saved
    tree: Tree | None = None

    def __post_init__(self) -> None:
        assert self.policy.optimiser is not None, "call policy.train_with first"
        self.optimiser = self.policy.optimiser
        self.store = Store(
            self.folder / "checkpoints", self.checkpoints.checkpoint_keep, self.reporter.message
        )
        self.log = MetricsLog(self.folder / "metrics.jsonl")

    def check_there(self) -> None:
        """Refuse to go on where what was written before was taken away."""
        self.check_folder()
        self.log.check_there()


@dataclass(frozen=True)
class Item:
    """One item of a run's state: how it goes into a checkpoint and how it comes back.

    Attributes:
        save: the item, as named tensors or as JSON.
        restore: puts it back.
        tensors: whether it is named tensors.
    """

    save: Callable[[Run], Any]
    restore: Callable[[Run, Any], None]
    tensors: bool = False


def _moments(which: str) -> Item:
    return Item(
        lambda run: run.optimiser.moments(which),
        lambda run, saved: run.optimiser.load_moments(which, saved),
        True,
    )


def _attribute(name: str) -> Item:
    return Item(lambda run: getattr(run, name), lambda run, saved: setattr(run, name, saved))


# Everything that a step reads and an earlier step wrote. What is not here would be lost by a crash.
STATE: dict[str, Item] = {
    "weights": Item(
        lambda run: run.optimiser.weights(),
        lambda run, saved: run.optimiser.load_weights(saved),
        tensors=True,
    ),
    "exp_avg": _moments("exp_avg"),
    "exp_avg_sq": _moments("exp_avg_sq"),
    "adam_step": _moments("step"),
    "step": _attribute("step"),
    "source": Item(lambda run: run.source.state(), lambda run, saved: run.source.restore(saved)),
    "totals": _attribute("totals"),
    "best": _attribute("best"),
    "stale": _attribute("stale"),
    "first_held": _attribute("first_held"),
    "first_rows": _attribute("first_rows"),
    "log": Item(
        lambda run: run.log.text(), lambda run, saved: run.log.restore(saved, run.reporter.message)
    ),
}


def checkpoint(run: Run) -> Checkpoint:
    """The run as it stands."""
    state = {name: item.save(run) for name, item in STATE.items() if not item.tensors}
    state["environment"] = environment(run.policy.device)
    return Checkpoint(
        run.step, {name: item.save(run) for name, item in STATE.items() if item.tensors}, state
    )


def restore(run: Run, saved: Checkpoint) -> None:
    """Put a run where a checkpoint left it, and warn where bit-identity cannot be promised."""
    with state_of(run.store.path(saved.step), CURE):
        _restore(run, saved)


def _restore(run: Run, saved: Checkpoint) -> None:
    now = environment(run.policy.device)
    changed = [
        f"{k} {v} → {now.get(k)}" for k, v in saved.state["environment"].items() if now.get(k) != v
    ]
    if changed:
        run.reporter.message(
            f"this is not the machine or software the run began with ({', '.join(changed)}): "
            "it goes on, but the last bits may differ from an undisturbed run"
        )
    for name, item in STATE.items():
        item.restore(run, (saved.tensors if item.tensors else saved.state)[name])


def train(run: Run) -> int:
    """Run to the end, from the newest good checkpoint if there is one.

    Afterwards the policy holds the chosen weights.

    Returns: the step they are from.
    Raises:
        Interrupted: SIGINT, SIGTERM or SIGHUP; a checkpoint was written.
        PosttrainError: the loss, the gradient or the weights are not finite; a checkpoint could
            not be written.
    """
    saved = run.store.latest()
    if saved is not None:
        restore(run, saved)
        if run.watch:
            for event in run.log.events():
                _heed(run, run.watch(event))
        run.reporter.message(f"resuming after step {run.step} of {run.steps}")
    else:
        run.log.rewind(-1)  # there is no checkpoint: all steps are run again
    if run.step == 0 and run.held_out:
        run.first_held = _validate(run)
    every = run.validation.validate_every or run.source.steps_per_epoch
    last_save = time.monotonic()
    run.reporter.progress(TRAIN, run.step, run.steps)
    try:
        with _signals() as signals:
            while run.step < run.steps and not _over(run):
                take_step(run)
                better = False
                if run.held_out and (run.step % every == 0 or run.step == run.steps):
                    better = _compare(run, _validate(run)) and run.validation.keep_best
                by_step = run.checkpoints.checkpoint_every
                due = (
                    run.step % by_step == 0
                    if by_step
                    else time.monotonic() - last_save > CHECKPOINT_SECONDS
                )
                if better or due or signals or run.step == run.steps or _over(run):
                    run.check_there()
                    _check_outputs(run)
                    run.store.save(
                        checkpoint(run), run.best["step"] if run.validation.keep_best else None
                    )
                    last_save = time.monotonic()
                if signals:
                    raise Interrupted(signals[0], run.step)
        return _choose(run)
    finally:
        run.reporter.progress(TRAIN, run.step, run.steps, over=True)


def take_step(run: Run) -> None:
    """Take the batch of a step and learn from it: one update, or as many as the source asks for."""
    begin = time.perf_counter()
    batch = run.source.batch(run.step)
    settings = run.optimiser.settings
    factor = rate(settings.schedule, run.step, run.steps, settings.warmup)
    updates = [_update(run, part, factor, names) for part, names in _parts(run, batch)]
    seconds = max(time.perf_counter() - begin, 1e-9)  # some clocks stand still
    run.step += 1
    tokens = sum(update.tokens for update in updates)
    targets = sum(update.targets for update in updates)
    run.totals["tokens"] += tokens
    run.totals["targets"] += targets
    run.totals["seconds"] += seconds
    assert settings.learning_rate is not None
    values = {
        "epoch": round(run.step / run.source.steps_per_epoch, 4),
        "loss": math.fsum(update.measured.loss for update in updates) / len(updates),
        "learning_rate": settings.learning_rate * factor,
        "grad_norm": updates[-1].norm,
        "tokens": tokens,
        "targets": targets,
        "sequences": sum(update.sequences for update in updates),
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "memory_gib": peak_memory(run.policy.device),
        **updates[-1].measured.means(),
        **batch.values,
    }
    _log(run, Step(run.step, values))


@dataclass(frozen=True)
class _Update:
    """One optimiser update: what its batch came to, the gradient norm, and what it was made of."""

    measured: Measured
    norm: float
    tokens: int
    targets: int
    sequences: int


def _parts(run: Run, batch: Batch) -> Iterator[tuple[Batch, list[int]]]:
    """The batch of every update, and numbers that name it among those of the step.

    Several parts are drawn anew in every pass, from the seed of the run.
    """
    if batch.passes == batch.parts == 1:
        yield batch, []
        return
    for turn in range(batch.passes):
        order = generator(run.seed, "parts", run.step, turn).permutation(len(batch.trees))
        for part, chosen in enumerate(np.array_split(order, batch.parts)):
            trees = [batch.trees[i] for i in sorted(chosen.tolist())]
            yield replace(batch, trees=trees), [turn, part]


def _update(run: Run, batch: Batch, factor: float, names: list[int]) -> _Update:
    run.tree = batch.trees[0]
    forests = run.policy.pack(batch.trees, run.budget)
    probes = None
    if batch.probes is not None:
        probes = [forest for forest in run.policy.pack(batch.probes, run.budget) if forest.N]
    seed = derive(run.seed, "step", run.step, *names)
    measured = run.policy.forward_backward(
        forests, run.loss, probes=probes, noise=run.noise, seed=seed
    )
    if not math.isfinite(measured.loss):
        raise _diverged(run, f"step {run.step + 1}: the loss is {measured.loss}")
    if run.before_update:
        run.before_update(batch)
    norm = run.policy.step(factor)
    if not math.isfinite(norm):
        raise _diverged(run, f"step {run.step + 1}: the gradient norm is {norm}")
    sizes = [(forest.T, forest.N, forest.L) for forest in forests]
    tokens, targets, sequences = map(sum, zip(*sizes, strict=True))
    return _Update(measured, norm, tokens, targets, sequences)


def _diverged(run: Run, what: str) -> PosttrainError:
    return PosttrainError(f"{what}. {run.store.last_good()}", cure=DIVERGED)


def _check_outputs(run: Run) -> None:
    """Refuse to save weights that are finite, and so large that what is computed with them is not:
    the loss of the next step would show it, and the last has none.
    """
    if run.tree is None:
        return
    for columns in run.policy.score(run.policy.pack([run.tree], run.budget)):
        read = {name: value for name, value in vars(columns).items() if isinstance(value, Tensor)}
        if name := not_finite(read):
            broken = not_finite(run.optimiser.weights()) or f"the model's {name}"
            raise _diverged(run, f"after step {run.step} {broken} is not finite")


def _log(run: Run, event: Step | Held) -> None:
    run.check_there()
    run.log(event)
    run.reporter.emit(event)
    alarms = run.watch(event) if run.watch else ()
    _heed(run, alarms)
    for alarm in alarms:
        run.reporter.emit(alarm)


def _heed(run: Run, alarms: Many[Alarm]) -> None:
    """Remember the first alarm that ends the run."""
    for alarm in alarms:
        if alarm.good is not None and run.stopped is None:
            run.stopped = alarm


def _validate(run: Run) -> dict[str, Any]:
    assert run.held_out is not None
    held, rows = run.held_out(partial(run.reporter.progress, "held out"), run.first_rows)
    if run.step == 0:
        run.first_rows = rows
    if not math.isfinite(held["loss"]):
        raise _diverged(run, f"after step {run.step} the held-out loss is {held['loss']}")
    _log(run, Held(run.step, held))
    return held


def _compare(run: Run, held: dict[str, Any]) -> bool:
    """Keep count of the best; whether this one is."""
    if run.best["step"] is None or held["loss"] < run.best["loss"]:
        run.best, run.stale = {"step": run.step, **held}, 0
        return True
    run.stale += 1
    return False


def _over(run: Run) -> bool:
    """Whether it ends before its last step."""
    return run.stopped is not None or _exhausted(run)


def _exhausted(run: Run) -> bool:
    patience = run.validation.patience
    return patience is not None and run.stale >= patience


def _choose(run: Run) -> int:
    """Leave the policy with the weights to export, the best by held-out loss where that was asked
    for; returns their step.
    """
    best = run.best["step"]
    if run.stopped is not None:
        run.reporter.message(f"stopped by an alarm after step {run.step}")
        if best is None or not run.validation.keep_best:
            return _last_good(run, run.stopped)
    elif run.step < run.steps:
        run.reporter.message(f"stopped early: {run.stale} validations without a better one")
    if run.first_held and best is not None and run.best["loss"] > run.first_held["loss"]:
        run.reporter.message(
            f"held-out loss never fell below the start's: {run.first_held['loss']:.4f} before "
            f"training, {run.best['loss']:.4f} at best. Lower --learning-rate or train on other "
            "data"
        )
    if best is None or best == run.step or not run.validation.keep_best:
        return run.step
    if not _take_weights(run, best):
        run.reporter.message(
            f"it was the best by held-out loss; exporting step {run.step}, the last, instead"
        )
        return run.step
    run.reporter.message(f"exporting step {best}, the best by held-out loss")
    return best


def _last_good(run: Run, alarm: Alarm) -> int:
    """Leave the policy with the newest weights from before an alarm's cause; returns their step."""
    assert alarm.good is not None
    for step in reversed([step for step in run.store.steps() if step <= alarm.good]):
        if _take_weights(run, step):
            run.reporter.message(f"exporting step {step}, the last good checkpoint")
            return step
    run.reporter.message(
        f"no checkpoint is left from step {alarm.good} or before; exporting step {run.step}, the "
        "last. --checkpoint-every, --checkpoint-keep or --validation keep one"
    )
    return run.step


def _take_weights(run: Run, step: int) -> bool:
    """Give the policy the weights of a checkpoint; whether it can be read."""
    try:
        weights = run.store.load(step).tensors["weights"]
    except CheckpointError as error:
        run.reporter.message(error.what)
        return False
    run.optimiser.load_weights(weights)
    return True


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT, SIGTERM and SIGHUP instead of dying in the middle of a step.

    A second one is obeyed at once.
    """
    received: list[int] = []

    def note(signum: int, frame: Any) -> None:
        received.append(signum)
        for s, handler in before.items():
            signal.signal(s, handler)

    before: dict[signal.Signals, Any] = {}
    with suppress(ValueError):  # not in the main thread: there, signals are not ours to take
        for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(name) is not signal.SIG_IGN:  # nohup ignores SIGHUP, and means it
                before[name] = signal.signal(name, note)
    try:
        yield received
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
