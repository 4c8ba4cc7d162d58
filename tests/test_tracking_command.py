"""Sinks end to end: a function of the user's, and a tracker over an interrupted run. Neither
changes the identity of the run.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

import posttrain
from posttrain.cli.main import main
from posttrain.core.errors import ConfigError
from posttrain.core.events import Done, Event, Held, Note, Progress, Step
from posttrain.engine import loop
from tests import making

ROWS = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(4) for b in range(5)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    making.model(folder / "base")
    making.write(folder / "train.jsonl", ROWS)
    making.write(folder / "held.jsonl", ROWS[:5])
    return folder


def settings(folder: Path, out: Path, **more: Any) -> dict[str, Any]:
    return {
        "model": folder / "base",
        "data": folder / "train.jsonl",
        "validation": folder / "held.jsonl",
        "out": out,
        "steps": 6,
        "batch_size": 4,
        "validate_every": 3,
        "checkpoint_every": 2,
        "device": "cpu",
        "prompt_template": "{prompt}",
        **more,
    }


def shout(lines: list[str], event: Event) -> None:
    """A user's sink, whole."""
    match event:
        case Step(step, values):
            lines.append(f"{step}: {values['loss']:.3f}")
        case Held(step, values):
            lines.append(f"HELD {step}: {values['loss']:.3f}")


def test_a_users_function_gets_every_event(folder: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    lines: list[str] = []

    def sink(event: Event) -> None:
        events.append(event)
        shout(lines, event)

    outcome = posttrain.sft(quiet=True, sinks=[sink], **settings(folder, tmp_path / "run"))
    log = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    happened = [event for event in events if isinstance(event, Step | Held)]
    assert [event.record() for event in happened] == log
    assert [line.split(":")[0] for line in lines] == [
        *("HELD 0", "1", "2", "3", "HELD 3", "4", "5", "6", "HELD 6")
    ]
    assert any(isinstance(event, Note) and event.label == "model" for event in events)
    train = [event for event in events if isinstance(event, Progress) and event.label == "train"]
    assert [(event.done, event.over) for event in train] == [(0, False), (6, True)]
    done = events[-1]
    assert isinstance(done, Done) and done.summary == outcome.summary and done.log == happened


def test_a_users_function_that_fails_ends_nothing(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(event: Event) -> None:
        raise ValueError("oops")

    outcome = posttrain.sft(quiet=True, sinks=[broken], **settings(folder, tmp_path / "run"))
    assert outcome.summary["steps"] == 6
    assert capfd.readouterr().err.count("broken failed") == 1


class Wandb:
    """What is called of wandb."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.steps: list[tuple[int, str]] = []
        self.codes: list[int] = []
        self.summary: dict[str, float] = {}
        self.offline = False

    @property
    def starting_step(self) -> int:
        return max((step + 1 for step, _ in self.steps), default=0)

    def init(self, *, id: str, resume: str, **given: Any) -> Wandb:
        assert resume == "allow"
        self.ids.append(id)
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.steps.append((step, next(iter(values)).split("/")[0]))

    def finish(self, exit_code: int) -> None:
        self.codes.append(exit_code)


def test_a_resumed_run_is_one_run_and_logs_no_step_twice(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb: Any = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    given = settings(folder, tmp_path / "run", track="wandb", quiet=True)
    real = loop._log

    def die_after(step: int) -> None:
        def log(run: Any, event: Any) -> None:
            real(run, event)
            if isinstance(event, Step) and event.step == step:
                raise MemoryError  # with no checkpoint of this step

        monkeypatch.setattr(loop, "_log", log)

    for step in (5, 5):  # the second life runs step 5 again, and dies again
        die_after(step)
        with pytest.raises(MemoryError):
            posttrain.sft(**given)
    monkeypatch.setattr(loop, "_log", real)
    outcome = posttrain.sft(**given)
    assert wandb.steps == [
        *((0, "eval"), (1, "train"), (2, "train"), (3, "train"), (3, "eval"), (4, "train")),
        *((5, "train"), (6, "train"), (6, "eval")),
    ]
    assert len(set(wandb.ids)) == 1 and wandb.codes == [1, 1, 0]
    assert wandb.summary["summary/held_out/loss"] == outcome.summary["held_out"]["loss"]


def test_tracking_does_not_change_what_a_run_is(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A run begun without a tracker is continued with one, and is finished for both."""
    out = tmp_path / "run"
    posttrain.sft(quiet=True, **settings(folder, out))
    wandb: Any = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    capfd.readouterr()
    posttrain.sft(**settings(folder, out, track=("wandb",), run_name="other"))
    assert "nothing to do" in capfd.readouterr().err and wandb.ids == []
    run = json.loads((out / "run.json").read_text())
    assert run["execution"]["track"] == [] and "track" not in json.dumps(run["identity"])


def test_the_option_may_be_given_again(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = ["sft", "--out", str(tmp_path / "run"), "--track", "wandb", "--track", "tensorbord"]
    argv += ["--model", str(folder / "base"), "--data", str(folder / "train.jsonl")]
    assert main(argv) == 2
    assert "did you mean 'tensorboard'" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["wandb", "trackio", "mlflow", "tensorboard"])
def test_what_is_not_installed_is_said_before_anything_is_loaded(
    folder: Path,
    tmp_path: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    class Absent:
        """Finds nothing of that name, whatever is installed."""

        def find_spec(self, wanted: str, path: Any = None, target: Any = None) -> None:
            if wanted == name:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    argv = ["sft", "--out", str(tmp_path / "run"), "--track", name]
    argv += ["--model", str(folder / "base"), "--data", str(folder / "train.jsonl")]
    assert main(argv) == 2
    err = capfd.readouterr().err
    assert f"--track {name} needs" in err and f"pip install 'posttrain[{name}]'" in err
    assert not (tmp_path / "run").exists()


def test_interrupted_the_trackers_are_closed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb: Any = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)

    def stop(event: Event) -> None:
        if isinstance(event, Step) and event.step == 2:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(loop.Interrupted):
        posttrain.sft(sinks=[stop], quiet=True, **settings(folder, tmp_path / "run", track="wandb"))
    assert wandb.codes == [1] and wandb.steps[-1] == (2, "train")


def test_an_unknown_tracker_is_refused_in_our_words() -> None:
    """What a check of ours says stands without pydantic's prefix."""
    with pytest.raises(ConfigError) as refused:
        posttrain.sft(model="m", data="d", out="o", track=["nope"])
    assert "there is no tracker 'nope'; known: mlflow" in str(refused.value)
    assert "Value error" not in str(refused.value)
