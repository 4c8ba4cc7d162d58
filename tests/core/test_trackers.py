"""Trackers, against fakes of their libraries: one run over all processes, no step twice, no end of
the run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from posttrain.core import trackers as module
from posttrain.core.errors import CheckpointError, ConfigError, PosttrainError
from posttrain.core.events import Alarm, Event, Held, Note, Progress, Reporter, Step
from posttrain.core.settings import assemble
from posttrain.core.trackers import FILE, TRACKERS, TrackingSettings, check, numbers, trackers


class Library:
    """Stands for all four libraries; keeps what it was called with."""

    offline = False

    def __init__(self) -> None:
        self.opened: list[dict[str, Any]] = []
        self.logged: list[tuple[int | None, dict[str, float]]] = []
        self.alarms: list[str] = []
        self.closed: list[Any] = []
        self.params: dict[str, str] = {}
        self.summary: dict[str, float] = {}
        self.broken = False

    # wandb, trackio
    def init(self, **given: Any) -> Any:
        if self.broken:
            raise ConnectionError("no route")
        self.opened.append(given)
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values))

    @property
    def starting_step(self) -> int:
        return max((at + 1 for at, _ in self.logged if at is not None), default=0)

    def alert(self, title: str, text: str) -> None:
        self.alarms.append(text)

    def finish(self, exit_code: int = 0) -> None:
        self.closed.append(exit_code)

    # mlflow
    def active_run(self) -> None:
        return None

    def start_run(self, run_id: str | None, run_name: str, nested: bool) -> Any:
        self.opened.append({"run_id": run_id, "name": run_name})
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id or "made-by-mlflow"))

    def log_params(self, params: dict[str, str]) -> None:
        self.params = params

    def log_metrics(
        self, values: dict[str, float], run_id: str, synchronous: bool, step: int | None = None
    ) -> None:
        assert run_id == "made-by-mlflow" and not synchronous
        self.logged.append((step, values))

    def set_tag(self, key: str, text: str) -> None:
        self.alarms.append(text)

    def flush_async_logging(self) -> None:
        pass

    def end_run(self, status: str) -> None:
        self.closed.append(status)

    # torch.utils.tensorboard
    def SummaryWriter(self, folder: str, **given: Any) -> Any:
        self.opened.append({"folder": folder, **given})
        return SimpleNamespace(
            add_scalar=lambda name, value, step: self.logged.append((step, {name: value})),
            add_text=lambda name, text, step: self.alarms.append(text),
            close=lambda: self.closed.append("closed"),
        )


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    fake: Any = Library()
    for name in (*TRACKERS, "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, fake)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return fake


def life(
    folder: Path,
    tracker: str,
    events: list[Event],
    log: list[Step | Held],
    summary: dict[str, Any] | None = None,
) -> list[Event]:
    """One process of a run: what it reports, and what earlier ones had logged."""
    settings = TrackingSettings(track=(tracker,), run_name="")
    heard: list[Event] = []
    config = {"lr": 0.1, "lora": {"rank": 4}}
    with Reporter(heard.append).also(trackers(settings, folder, config, log)) as reporter:
        for event in events:
            reporter.emit(event)
        if summary is not None:
            reporter.done(folder, summary)
    return heard


def step(number: int) -> Step:
    return Step(number, {"loss": 1.0 / number, "rewards/margins": 0.5})


START = Progress("train", 0, 9)
HELD = Held(2, {"loss": 2.5, "interval": None, "baselines": {"longest": 0.5}, "bins": [1, 2]})


@pytest.mark.parametrize("name", [*TRACKERS])
def test_a_run_is_logged_step_by_step_and_ended(
    name: str, library: Library, tmp_path: Path
) -> None:
    folder = tmp_path / "first"
    life(folder, name, [START, step(1), step(2), HELD, Alarm(2, "odd")], [], {"steps": 2})
    (opened,) = library.opened
    assert str(folder) in str(opened) or "first" in opened["name"]
    steps = [at for at, _ in library.logged if at is not None]
    assert set(steps) == {1, 2} and steps == sorted(steps)
    every = {k: v for at, values in library.logged for k, v in values.items()}
    assert every["train/loss"] == 0.5 and every["train/rewards/margins"] == 0.5
    assert every["eval/loss"] == 2.5 and every["eval/baselines/longest"] == 0.5
    assert "eval/interval" not in every and "eval/bins" not in every
    assert library.alarms == ["odd"]
    assert library.closed == [{"mlflow": "FINISHED", "tensorboard": "closed"}.get(name, 0)]


@pytest.mark.parametrize("name", ["wandb", "trackio", "mlflow"])
def test_a_resumed_run_goes_on_in_the_same_and_logs_no_step_twice(
    name: str, library: Library, tmp_path: Path
) -> None:
    """Killed after step 3, resumed from a checkpoint of step 1, killed again before step 3, then
    finished."""
    first = [START, step(1), step(2), HELD, step(3)]
    life(tmp_path, name, list(first), [])
    life(tmp_path, name, [Progress("train", 1, 9), step(2), HELD], first[1:])  # type: ignore[arg-type]
    again = [Progress("train", 1, 9), step(2), HELD, step(3), Alarm(3, "seen"), step(4)]
    life(tmp_path, name, [*again, Held(4, {"loss": 2.0})], [step(1), step(2), HELD], {"steps": 4})
    steps = [(at, next(iter(values))) for at, values in library.logged if at is not None]
    assert steps == [
        (1, "train/loss"),
        (2, "train/loss"),
        (2, "eval/loss"),
        (3, "train/loss"),
        (4, "train/loss"),
        (4, "eval/loss"),
    ]
    names = {
        "wandb": lambda given: (given["id"], given["resume"]),
        "trackio": lambda given: (given["name"], given["resume"]),
        "mlflow": lambda given: given["run_id"] or "made-by-mlflow",
    }
    assert len(library.opened) == 3 and len({names[name](given) for given in library.opened}) == 1


def test_wandb_gets_what_a_kill_kept_from_it(library: Library, tmp_path: Path) -> None:
    """wandb had sent nothing after step 1 when the process was killed after step 3."""
    first = [step(1), step(2), HELD, step(3)]
    life(tmp_path, "wandb", [START, *first], [])
    del library.logged[1:]
    life(tmp_path, "wandb", [Progress("train", 2, 9), step(3), step(4)], first)  # type: ignore[arg-type]
    assert [(at, next(iter(values))) for at, values in library.logged] == [
        (1, "train/loss"),
        (2, "train/loss"),
        (2, "eval/loss"),
        (3, "train/loss"),
        (4, "train/loss"),
    ]


def test_wandb_offline_writes_the_whole_run_in_every_process(
    library: Library, tmp_path: Path
) -> None:
    library.offline = True
    life(tmp_path, "wandb", [START, step(1), step(2)], [])
    library.logged.clear()
    life(tmp_path, "wandb", [Progress("train", 1, 9), step(2), step(3)], [step(1), step(2)])
    assert [at for at, _ in library.logged] == [1, 2, 3]


def test_tensorboard_hides_what_an_earlier_process_wrote_and_writes_all_of_it_again(
    library: Library, tmp_path: Path
) -> None:
    life(tmp_path, "tensorboard", [Held(0, {"loss": 3.0}), START, step(1), step(2)], [])
    library.logged.clear()
    life(tmp_path, "tensorboard", [Progress("train", 1, 9), step(2), step(3)], [step(1), step(2)])
    assert [given["purge_step"] for given in library.opened] == [None, 0]
    assert [at for at, values in library.logged if "train/loss" in values] == [1, 2, 3]


def test_a_run_that_did_not_end_well_says_so(library: Library, tmp_path: Path) -> None:
    life(tmp_path / "a", "wandb", [START, step(1)], [])
    life(tmp_path / "b", "mlflow", [START, step(1)], [])
    assert library.closed == [1, "KILLED"]


def test_a_run_has_an_id_of_its_own(library: Library, tmp_path: Path) -> None:
    for name in ("a", "b"):
        life(tmp_path / name, "wandb", [START], [])
    ids = [json.loads((tmp_path / name / FILE).read_text())["id"] for name in ("a", "b")]
    assert ids[0] != ids[1] and [given["id"] for given in library.opened] == ids


def test_mlflow_gets_the_settings_once(library: Library, tmp_path: Path) -> None:
    life(tmp_path, "mlflow", [START], [])
    assert library.params == {"lr": "0.1", "lora.rank": "4"}
    library.params = {}
    life(tmp_path, "mlflow", [START], [])
    assert library.params == {}


def test_a_tracker_that_fails_ends_nothing(library: Library, tmp_path: Path) -> None:
    library.broken = True
    heard = life(tmp_path, "wandb", [START, step(1), step(2)], [], {"steps": 2})
    (said,) = [event for event in heard if isinstance(event, Note)]
    assert "wandb failed" in said.text and "no route" in said.text
    assert [event for event in heard if isinstance(event, Step)] == [step(1), step(2)]


def test_without_trackers_nothing_is_written(tmp_path: Path) -> None:
    assert trackers(TrackingSettings(track=(), run_name=""), tmp_path, {}, [step(1)]) == []
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_installed_is_said_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    real = module.require

    def missing(name: str, **more: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.delitem(sys.modules, name, raising=False)
            patch.setattr("importlib.import_module", absent)
            return real(name, **more)

    def absent(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(module, "require", missing)
    with pytest.raises(PosttrainError) as error:
        check(["wandb"])
    assert "'wandb'" in str(error.value) and "pip install 'posttrain[wandb]'" in str(error.value)


def test_an_unknown_tracker_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'tensorboard'"):
        assemble(TrackingSettings, {"track": ("tensorbord",)})


def test_numbers_are_the_finite_ones() -> None:
    values = {"a": 1, "b": {"c": 2.5, "d": "x"}, "e": True, "f": float("nan"), "g": None}
    assert numbers(values, "p/") == {"p/a": 1, "p/b/c": 2.5}


@pytest.mark.parametrize("content", ["", "[]", '{"id": 5, "name": "a", "ids": {}, "last": 0}'])
def test_a_damaged_id_is_named(library: Library, tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(CheckpointError) as caught:
        life(tmp_path, "wandb", [START], [])
    assert str(tmp_path / FILE) in caught.value.where and "delete the file" in caught.value.cure
