"""Experiment trackers as sinks: W&B, trackio, MLflow, TensorBoard.

A run has one id, kept in `tracking.json` in its folder, under which a resumed run continues in
every tracker. A step that runs twice is logged once: a tracker that can tell what it holds gets
what it lacks, from the run's own log; to another nothing is handed over again that an earlier
process handed over. A tracker opens with the first step; one that fails is dropped by the
`Reporter`, and the run goes on.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import sys
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Protocol

from pydantic import AfterValidator, Field

from posttrain.core.errors import nearest
from posttrain.core.events import TRAIN, Alarm, Done, Event, Held, Progress, Step
from posttrain.core.extras import require
from posttrain.core.files import read_state, write_json
from posttrain.core.settings import Needs, Settings

FILE = "tracking.json"
FOLDER = "tensorboard"
DAMAGED = "delete the file; the trackers then show the rest as a run of its own"


def _known(name: str) -> str:
    if name not in TRACKERS:
        raise ValueError(f"there is no tracker {name!r}; {nearest(name, TRACKERS)}")
    return name


class TrackingSettings(Settings):
    """Where a run's numbers go besides its own folder."""

    track: tuple[Annotated[str, AfterValidator(_known)], ...] = Field(
        (), description="also log to wandb, trackio, mlflow or tensorboard; may be given again"
    )
    run_name: Annotated[str, Needs("track")] = Field(
        "", description="the run's name there; unset: its folder's name"
    )


@dataclass
class Tracked:
    """The facts of a run that a tracker receives.

    Attributes:
        folder: of the run. id: random, the same for every process of the run.
        name: for people, not unique. config: the run's settings.
        ids: what trackers call the run where they choose the name themselves.
        last: the position of the last event that an earlier process handed over.
        log: the steps and validations that earlier processes have logged.
    """

    folder: Path
    id: str
    name: str
    config: dict[str, Any]
    ids: dict[str, str] = field(default_factory=dict)
    last: int = -1
    log: Many[Step | Held] = ()

    def save(self) -> None:
        """Write `tracking.json`."""
        kept = {"id": self.id, "name": self.name, "ids": self.ids, "last": self.last}
        write_json(self.folder / FILE, kept)


class Backend(Protocol):
    """One library. It is made when the first numbers come, by `Backend(run)`.

    It may have `has`: the position of the last event that the library holds.
    """

    def log(self, values: dict[str, float], step: int) -> None: ...
    def alarm(self, text: str, step: int) -> None: ...
    def close(self, summary: dict[str, float] | None) -> None:
        """Called once; without a summary, the run did not end well."""
        ...


class Wandb:
    """Weights & Biases. `WANDB_PROJECT`, `WANDB_ENTITY`, `WANDB_MODE` are read by wandb.

    A killed process may lose what wandb had not sent; the server says where to go on. Offline there
    is no server: every process writes the whole run, and the newest folder is the one to sync.
    """

    module = "wandb"

    def __init__(self, run: Tracked) -> None:
        self.run = require("wandb", extra="wandb", purpose="--track wandb").init(
            project=os.environ.get("WANDB_PROJECT", "posttrain"),
            dir=os.environ.get("WANDB_DIR", str(run.folder)),
            id=run.id,
            name=run.name,
            config=run.config,
            allow_val_change=True,
            resume="allow",
            reinit="create_new",
        )
        self.has = -1 if self.run.offline else 2 * self.run.starting_step - 1

    def log(self, values: dict[str, float], step: int) -> None:
        self.run.log(values, step=step)

    def alarm(self, text: str, step: int) -> None:
        self.run.alert(title=f"step {step}", text=text)

    def close(self, summary: dict[str, float] | None) -> None:
        self.run.summary.update(summary or {})
        self.run.finish(exit_code=1 if summary is None else 0)


class Trackio:
    """trackio, which finds a run again by its name. It prints; standard output is for results."""

    module = "trackio"

    def __init__(self, run: Tracked) -> None:
        self.trackio = require("trackio", extra="trackio", purpose="--track trackio")
        with contextlib.redirect_stdout(sys.stderr):
            self.run = self.trackio.init(
                project=os.environ.get("TRACKIO_PROJECT", "posttrain"),
                name=f"{run.name}-{run.id}",
                config=run.config,
                resume="allow",
                embed=False,
            )

    def log(self, values: dict[str, float], step: int) -> None:
        self.run.log(values, step=step)

    def alarm(self, text: str, step: int) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self.run.alert(title=f"step {step}", text=text)

    def close(self, summary: dict[str, float] | None) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self.trackio.finish()


class Mlflow:
    """MLflow, which names runs itself. `MLFLOW_TRACKING_URI` and `MLFLOW_EXPERIMENT_NAME` are read
    by mlflow.
    """

    module = "mlflow"

    def __init__(self, run: Tracked) -> None:
        self.mlflow = require("mlflow", extra="mlflow", purpose="--track mlflow")
        known = run.ids.get("mlflow")
        nested = self.mlflow.active_run() is not None
        self.id = self.mlflow.start_run(known, run_name=run.name, nested=nested).info.run_id
        if known is None:
            run.ids["mlflow"] = self.id
            run.save()
            self.mlflow.log_params(_flat(run.config))

    def log(self, values: dict[str, float], step: int) -> None:
        self.mlflow.log_metrics(values, step=step, run_id=self.id, synchronous=False)

    def alarm(self, text: str, step: int) -> None:
        self.mlflow.set_tag(f"alarm.{step}", text)

    def close(self, summary: dict[str, float] | None) -> None:
        self.mlflow.log_metrics(summary or {}, run_id=self.id, synchronous=False)
        self.mlflow.flush_async_logging()
        self.mlflow.end_run("KILLED" if summary is None else "FINISHED")


class TensorBoard:
    """TensorBoard's files, in the run's folder. A killed process may lose what was not flushed, so
    a resumed run writes all of it again, and `purge_step` hides what earlier processes wrote.
    """

    module = "tensorboard"
    has = -1

    def __init__(self, run: Tracked) -> None:
        require("tensorboard", extra="tensorboard", purpose="--track tensorboard")
        writer = require("torch.utils.tensorboard", extra="tensorboard", purpose="tensorboard")
        self.writer = writer.SummaryWriter(
            str(run.folder / FOLDER), purge_step=0 if run.log else None, flush_secs=10
        )

    def log(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def alarm(self, text: str, step: int) -> None:
        self.writer.add_text("alarm", text, step)

    def close(self, summary: dict[str, float] | None) -> None:
        self.writer.close()


TRACKERS: dict[str, Any] = {
    "wandb": Wandb,
    "trackio": Trackio,
    "mlflow": Mlflow,
    "tensorboard": TensorBoard,
}


class Tracker:
    """The sink of one tracker.

    Args:
        name: for messages.
        open: makes the backend.
    """

    def __init__(self, name: str, open: Callable[[Tracked], Backend], run: Tracked) -> None:
        self.name, self._open, self._run = name, open, run
        self._last = run.last
        self._new = True
        self._backend: Backend | None = None
        self._summary: dict[str, float] | None = None

    def __call__(self, event: Event) -> None:
        match event:
            case Progress(label=label, over=False) if label == TRAIN:
                self._opened()
            case Step() | Held():
                self._new = position(event) > self._last
                if self._new:
                    self._log(self._opened(), event)
            case Alarm() if self._new:  # it comes after the event that raised it
                self._opened().alarm(event.text, event.step)
            case Done():
                self._summary = numbers(event.summary, "summary/")
            case _:
                pass

    def _opened(self) -> Backend:
        """The backend, opened where it is not, and given what it lacks."""
        if self._backend is None:
            self._backend = self._open(self._run)
            has = getattr(self._backend, "has", None)
            if has is not None:
                self._last = has
                for event in self._run.log:
                    if position(event) > self._last:
                        self._log(self._backend, event)
        return self._backend

    def _log(self, backend: Backend, event: Step | Held) -> None:
        kind = "train/" if isinstance(event, Step) else "eval/"
        backend.log(numbers(event.values, kind), event.step)
        self._last = position(event)

    def close(self) -> None:
        """End the run in the tracker, well if its end was reported."""
        if self._backend is not None:
            self._backend.close(self._summary)


def position(event: Step | Held) -> int:
    """Where an event stands in the order of a run's: a validation comes after its step."""
    return 2 * event.step + isinstance(event, Held)


def check(names: Iterable[str]) -> None:
    """Import what the trackers need.

    Raises:
        PosttrainError: one is not installed; the cure is the command that installs it.
    """
    for name in names:
        require(TRACKERS[name].module, extra=name, purpose=f"--track {name}")


def trackers(
    settings: TrackingSettings, folder: Path, config: dict[str, Any], log: Many[Step | Held]
) -> list[Tracker]:
    """The sinks of a run's trackers.

    Args:
        folder: of the run. config: its settings.
        log: what earlier processes of the run have logged, before any of it is taken back.
    """
    if not settings.track:
        return []
    path = folder / FILE
    kept = {"id": secrets.token_hex(4), "name": folder.resolve().name, "ids": {}, "last": -1}
    if os.path.lexists(path):
        kept = read_state(path, DAMAGED, id=str, name=str, ids=dict, last=int)
    run = Tracked(
        folder,
        kept["id"],
        settings.run_name or kept["name"],
        config,
        kept["ids"],
        max([kept["last"], *map(position, log)]),
        log,
    )
    run.save()
    return [Tracker(name, TRACKERS[name], run) for name in dict.fromkeys(settings.track)]


def numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The finite numbers among values, those of nested ones as `outer/inner`."""
    out: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            out |= numbers(value, f"{prefix}{name}/")
        elif (
            isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        ):
            out[prefix + name] = value
    return out


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Settings as text, those of groups as `group.name`."""
    out: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            out |= _flat(value, f"{prefix}{name}.")
        else:
            out[prefix + name] = str(value)
    return out
