"""The loop of every offline method: take a batch, forward and backward, step, and now and then
validate and save.

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
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posttrain.core.errors import CheckpointError, PosttrainError
from posttrain.core.events import TRAIN, Alarm, Held, Reporter, Step
from posttrain.core.seeds import derive
from posttrain.core.types import Loss
from posttrain.data.forest import Tree, forests
from posttrain.data.plan import Plan
from posttrain.engine.batch import Rows
from posttrain.engine.checkpoint import Checkpoint, Store
from posttrain.engine.learner import Learner
from posttrain.engine.metrics import MetricsLog
from posttrain.engine.model import Noise
from posttrain.engine.numbers import environment, peak_memory
from posttrain.engine.optimiser import rate
from posttrain.engine.policy import Policy
from posttrain.engine.settings import CheckpointSettings, ValidationSettings

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


@dataclass
class HeldLoss:
    """Held-out loss: nats per target, over all targets, and how sure that is.

    Attributes:
        loss: mean over targets. interval: half width of its 95 % interval, sequences being the
            units; None for one sequence.
        accuracy: share of targets that are the most likely token. entropy: mean, nats.
        sequences, targets: how many.
    """

    loss: float
    interval: float | None
    accuracy: float
    entropy: float
    sequences: int
    targets: int


HeldOut = Callable[
    [Callable[[int, int], None]], dict[str, Any]
]  # told how far it is → the numbers, `loss` among them
# called with every step and validation, in order; returns what is alarming about it
Watch = Callable[[Step | Held], Many[Alarm]]


@dataclass
class Run:
    """One training run: what is fixed, and where it stands."""

    policy: Learner
    loss: Loss
    rows: Rows
    plan: Plan
    steps: int
    budget: int
    seed: int
    folder: Path
    observer: Reporter
    checkpoints: CheckpointSettings
    validation: ValidationSettings
    held_out: HeldOut | None = None
    noise: Noise | None = None
    watch: Watch | None = None
    # where it stands
    step: int = 0
    totals: dict[str, float] = field(
        default_factory=lambda: {"tokens": 0, "targets": 0, "seconds": 0.0}
    )
    best: dict[str, Any] = field(default_factory=lambda: {"step": None})
    stale: int = 0
    first_held: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        assert self.policy.optimiser is not None, "call policy.train_with first"
        self.optimiser = self.policy.optimiser
        self.store = Store(
            self.folder / "checkpoints", self.checkpoints.checkpoint_keep, self.observer.message
        )
        self.log = MetricsLog(self.folder / "metrics.jsonl")


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
    "plan": Item(lambda run: run.plan.state(), lambda run, saved: run.plan.restore(saved)),
    "totals": _attribute("totals"),
    "best": _attribute("best"),
    "stale": _attribute("stale"),
    "first_held": _attribute("first_held"),
    "log": Item(lambda run: run.step, lambda run, saved: run.log.rewind(saved)),
}


def checkpoint(run: Run) -> Checkpoint:
    """The run as it stands."""
    state = {name: item.save(run) for name, item in STATE.items() if not item.tensors}
    state["environment"] = environment(run.policy.model.device)
    return Checkpoint(
        run.step, {name: item.save(run) for name, item in STATE.items() if item.tensors}, state
    )


def restore(run: Run, saved: Checkpoint) -> None:
    """Put a run where a checkpoint left it, and warn where bit-identity cannot be promised."""
    now = environment(run.policy.model.device)
    changed = [
        f"{k} {v} → {now.get(k)}" for k, v in saved.state["environment"].items() if now.get(k) != v
    ]
    if changed:
        run.observer.message(
            f"this is not the machine or software the run began with ({', '.join(changed)}): "
            "it goes on, but the last bits may differ from an undisturbed run"
        )
    for name, item in STATE.items():
        item.restore(run, (saved.tensors if item.tensors else saved.state)[name])


def validate(
    policy: Policy,
    trees: Many[Tree],
    budget: int,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> HeldLoss:
    """Held-out loss with a 95 % interval; `told` hears how many sequences of how many are scored.

    The mean over targets is a ratio of sums over sequences, so its standard error is the delta
    method's: √(n/(n−1)·Σ_i (S_i − loss·N_i)²)/ΣN, S_i the summed loss and N_i the targets of
    sequence i.
    """
    sums: list[Tensor] = []
    counts: list[Tensor] = []
    correct = entropy = 0.0
    planted = forests(trees, budget, shared=policy.model.mode == "forest")
    done, total = 0, sum(f.L for f in planted)
    told(done, total)
    for forest in planted:
        (scores,) = policy.score([forest], details=True)
        assert scores.entropy is not None and scores.correct is not None
        zeros = torch.zeros(forest.L, dtype=torch.float64)
        sums.append(zeros.index_add(0, scores.leaf.cpu(), -scores.logprob.double().cpu()))
        counts.append(torch.bincount(scores.leaf.cpu(), minlength=forest.L).double())
        correct += float(scores.correct.sum())
        entropy += float(scores.entropy.sum())
        told(done := done + forest.L, total)
    s, n = torch.cat(sums), torch.cat(counts)
    targets, loss = float(n.sum()), float(s.sum() / n.sum())
    interval = None
    if len(s) > 1:
        interval = (
            1.96 * math.sqrt(float(((s - loss * n) ** 2).sum()) * len(s) / (len(s) - 1)) / targets
        )
    return HeldLoss(loss, interval, correct / targets, entropy / targets, len(s), int(targets))


def train(run: Run) -> int:
    """Run to the end, from the newest good checkpoint if there is one.

    Afterwards the policy holds the chosen weights.

    Returns: the step they are from.
    Raises:
        Interrupted: SIGINT, SIGTERM or SIGHUP; a checkpoint was written.
        PosttrainError: the loss or gradient is not finite; a checkpoint could not be written.
    """
    saved = run.store.latest()
    if saved is not None:
        restore(run, saved)
        if run.watch:
            for event in run.log.events():
                run.watch(event)
        run.observer.message(f"resuming after step {run.step} of {run.steps}")
    else:
        run.log.rewind(-1)
    if run.step == 0 and run.held_out:
        run.first_held = _validate(run)
    every = run.validation.validate_every or run.plan.steps_per_epoch
    last_save = time.monotonic()
    run.observer.progress(TRAIN, run.step, run.steps)
    try:
        with _signals() as asked:
            while run.step < run.steps and not _exhausted(run):
                _step(run)
                better = False
                if run.held_out and (run.step % every == 0 or run.step == run.steps):
                    better = _compare(run, _validate(run)) and run.validation.keep_best
                by_step = run.checkpoints.checkpoint_every
                due = (
                    run.step % by_step == 0
                    if by_step
                    else time.monotonic() - last_save > CHECKPOINT_SECONDS
                )
                if better or due or asked or run.step == run.steps or _exhausted(run):
                    run.store.save(
                        checkpoint(run), run.best["step"] if run.validation.keep_best else None
                    )
                    last_save = time.monotonic()
                if asked:
                    raise Interrupted(asked[0], run.step)
        return _choose(run)
    finally:
        run.observer.progress(TRAIN, run.step, run.steps, over=True)


def _step(run: Run) -> None:
    begin = time.perf_counter()
    made = run.rows.batch(run.plan.next(), run.budget, shared=run.policy.model.mode == "forest")
    batch = made.forests
    found = run.policy.forward_backward(
        batch,
        run.loss,
        made.facts,
        probes=made.probes,
        noise=run.noise,
        seed=derive(run.seed, "step", run.step),
    )
    if not math.isfinite(loss := found.loss):
        raise _not_finite(run, f"the loss is {loss}")
    factor = rate(
        run.optimiser.settings.schedule, run.step, run.steps, run.optimiser.settings.warmup
    )
    norm = run.policy.step(factor)
    if not math.isfinite(norm):
        raise _not_finite(run, f"the gradient norm is {norm}")
    seconds = max(time.perf_counter() - begin, 1e-9)  # some clocks stand still
    run.step += 1
    tokens, targets = sum(f.T for f in batch), sum(f.N for f in batch)
    run.totals["tokens"] += tokens
    run.totals["targets"] += targets
    run.totals["seconds"] += seconds
    assert run.optimiser.settings.learning_rate is not None
    values = {
        "epoch": round(run.step / run.plan.steps_per_epoch, 4),
        "loss": loss,
        "learning_rate": run.optimiser.settings.learning_rate * factor,
        "grad_norm": norm,
        "tokens": tokens,
        "targets": targets,
        "sequences": sum(f.L for f in batch),
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "memory_gib": peak_memory(run.policy.model.device),
        **found.means(),
    }
    _log(run, Step(run.step, values))


def _not_finite(run: Run, what: str) -> PosttrainError:
    return PosttrainError(
        f"step {run.step + 1}: {what}; this step did not change the weights",
        cure="lower --learning-rate, or look for broken rows in the data",
    )


def _log(run: Run, event: Step | Held) -> None:
    run.log(event)
    run.observer.emit(event)
    for alarm in run.watch(event) if run.watch else ():
        run.observer.emit(alarm)


def _validate(run: Run) -> dict[str, Any]:
    assert run.held_out is not None
    held = run.held_out(partial(run.observer.progress, "held out"))
    if not math.isfinite(held["loss"]):
        raise PosttrainError(
            f"after step {run.step} the held-out loss is {held['loss']}",
            cure="lower --learning-rate, or look for broken rows in the held-out data",
        )
    _log(run, Held(run.step, held))
    return held


def _compare(run: Run, held: dict[str, Any]) -> bool:
    """Keep count of the best; whether this one is."""
    if run.best["step"] is None or held["loss"] < run.best["loss"]:
        run.best, run.stale = {"step": run.step, **held}, 0
        return True
    run.stale += 1
    return False


def _exhausted(run: Run) -> bool:
    patience = run.validation.patience
    return patience is not None and run.stale >= patience


def _choose(run: Run) -> int:
    """Leave the policy with the weights to export, the best by held-out loss where that was asked
    for; returns their step.
    """
    best = run.best["step"]
    if run.step < run.steps:
        run.observer.message(f"stopped early: {run.stale} validations without a better one")
    if run.first_held and best is not None and run.best["loss"] > run.first_held["loss"]:
        run.observer.message(
            f"held-out loss never fell below the start's: {run.first_held['loss']:.4f} before"
            f" training, {run.best['loss']:.4f} at best. Lower --learning-rate or train on other"
            " data"
        )
    if best is None or best == run.step or not run.validation.keep_best:
        return run.step
    try:
        weights = run.store.load(best).tensors["weights"]
    except CheckpointError as error:
        run.observer.message(
            f"{error.what}. It was the best by held-out loss; exporting step {run.step}, the last,"
            " instead"
        )
        return run.step
    run.optimiser.load_weights(weights)
    run.observer.message(f"exporting step {best}, the best by held-out loss")
    return best


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT, SIGTERM and SIGHUP instead of dying in the middle of a step.

    A second one is obeyed at once.
    """
    asked: list[int] = []

    def note(signum: int, frame: Any) -> None:
        asked.append(signum)
        for s, handler in before.items():
            signal.signal(s, handler)

    before: dict[signal.Signals, Any] = {}
    with suppress(ValueError):  # not in the main thread: there, signals are not ours to take
        for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(one) is not signal.SIG_IGN:  # nohup ignores SIGHUP, and means it
                before[one] = signal.signal(one, note)
    try:
        yield asked
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
