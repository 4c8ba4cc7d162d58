"""Events, the reporter that builds them, and what its sinks get."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

from posttrain.core import events
from posttrain.core.events import (
    Alarm,
    Done,
    Event,
    Held,
    Note,
    Progress,
    Reporter,
    Step,
    from_record,
)


class Heard(list[Event]):
    """A sink that keeps what it gets."""

    def __call__(self, event: Event) -> None:
        self.append(event)


class Broken:
    """A tracker whose server is gone."""

    name = "tracker"

    def __init__(self) -> None:
        self.calls = self.closed = 0

    def __call__(self, event: Event) -> None:
        self.calls += 1
        raise ConnectionError("no route")

    def close(self) -> None:
        self.closed += 1
        raise ConnectionError("no route")


def test_every_verb_is_an_event() -> None:
    heard = Heard()
    reporter = Reporter(heard)
    reporter.note("model", "llama")
    reporter.message("resuming")
    reporter.progress("read", 3, 9)
    reporter.progress("read", 9, 9)
    reporter.emit(Alarm(4, "it drifts"))
    reporter.done("runs/a", {"steps": 4}, [Step(4, {"loss": 1.0})])
    assert heard == [
        Note("model", "llama"),
        Note("", "resuming", always=True),
        Progress("read", 3, 9),
        Progress("read", 9, 9, over=True),
        Alarm(4, "it drifts"),
        Done("runs/a", {"steps": 4}, [Step(4, {"loss": 1.0})]),
    ]
    assert str(heard[4]) == "after step 4: it drifts"


@pytest.mark.parametrize("event", [Step(3, {"loss": 1.5}), Held(0, {"loss": 2.5, "n": 1})])
def test_steps_and_validations_go_through_the_metrics_file(event: Step | Held) -> None:
    assert from_record(event.record()) == event


def test_work_is_reported_now_and_then_and_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(events.time, "monotonic", lambda: now[0])
    heard = Heard()
    with Reporter(heard).working("read", 10, "bytes") as progress:
        for done in range(1, 11):
            now[0] += 0.04
            progress(done)
    assert heard == [
        Progress("read", 3, 10, "bytes"),
        Progress("read", 6, 10, "bytes"),
        Progress("read", 9, 10, "bytes"),
        Progress("read", 10, 10, "bytes", over=True),
    ]
    with suppress(KeyError), Reporter(heard).working("read", 10) as progress:
        progress(4)
        raise KeyError
    assert heard[-1] == Progress("read", 4, 10, over=True)  # it ended where it was


def test_work_of_unknown_size_is_over_when_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(events.time, "monotonic", lambda: now[0])
    heard = Heard()
    with Reporter(heard).working("read", 0) as progress:
        now[0] += 1
        progress(7)
    assert heard == [Progress("read", 7, 0), Progress("read", 7, 0, over=True)]


def test_a_sink_that_fails_is_reported_once_and_dropped() -> None:
    heard, broken, other = Heard(), Broken(), Heard()
    reporter = Reporter(heard, optional=[broken, other])
    for i in range(3):
        reporter.note("a", str(i))
    (said,) = [e for e in heard if isinstance(e, Note) and e.always]
    assert "tracker failed" in said.text and "ConnectionError: no route" in said.text
    assert broken.calls == 1
    assert sorted(map(str, other)) == sorted(map(str, heard))  # the others get everything


def test_sinks_that_all_fail_end_nothing() -> None:
    heard, sinks = Heard(), [Broken(), Broken()]
    reporter = Reporter(heard, optional=sinks)
    reporter.note("a", "b")
    reporter.note("c", "d")
    assert len([e for e in heard if isinstance(e, Note) and "failed" in e.text]) == 2
    assert all(sink.calls <= 2 for sink in sinks)


def test_what_shows_the_run_may_not_fail() -> None:
    with pytest.raises(ConnectionError):
        Reporter(Broken()).note("a", "b")


def test_more_sinks_for_a_while_are_closed_at_its_end_however_it_ends() -> None:
    heard, broken, more = Heard(), Broken(), Heard()
    outer = Reporter(heard)
    with suppress(KeyError), outer.also([broken, more]) as inner:
        inner.note("a", "b")
        raise KeyError
    outer.note("c", "d")
    assert broken.closed == 1 and Note("a", "b") in more and Note("c", "d") not in more
    assert [e for e in heard if isinstance(e, Note) and not e.always] == [
        Note("a", "b"),
        Note("c", "d"),
    ]


def test_interrupting_is_no_failure_of_a_sink() -> None:
    def stop(event: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Reporter(optional=[stop]).note("a", "b")


def test_events_cannot_be_changed() -> None:
    event: Any = Note("a", "b")
    with pytest.raises(AttributeError):
        event.text = "c"
