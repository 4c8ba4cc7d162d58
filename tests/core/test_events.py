"""Progress as JSON lines."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from typing import Any

import pytest

from posttrain.core import events
from posttrain.core.events import JsonObserver


def said(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_every_call_is_a_line_with_its_time() -> None:
    out = io.StringIO()
    one = JsonObserver(out)
    before = time.time()
    one.note("model", "a\nb")
    one.message("Zürich")
    one.start(2, 9)
    one.record({"step": 3, "loss": 1.5})
    one.record({"step": 3, "validation": {"loss": 2.5}})
    one.stop()
    one.curve([{"step": 3, "loss": 1.5}])
    one.summary({"stages": {}})
    found = said(out)
    assert all(before - 0.01 <= event.pop("time") <= time.time() + 0.01 for event in found)
    assert found == [
        {"event": "note", "label": "model", "text": "a\nb"},
        {"event": "message", "text": "Zürich"},
        {"event": "start", "step": 2, "steps": 9},
        {"event": "record", "step": 3, "loss": 1.5},
        {"event": "record", "step": 3, "validation": {"loss": 2.5}},
        {"event": "stop"},
        {"event": "summary", "stages": {}},
    ]


def test_progress_comes_once_a_second_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(events.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    one = JsonObserver(out)
    for done in range(1, 11):
        now[0] += 0.4
        one.progress("read", done, 10)
    with one.working("write", 50) as told:
        told(50)
    assert [(e["label"], e["done"], e["total"]) for e in said(out)] == [
        ("read", 1, 10),
        ("read", 4, 10),
        ("read", 7, 10),
        ("read", 10, 10),
        ("write", 50, 50),
    ]


def test_a_reader_that_goes_away_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    monkeypatch.setattr(sys, "stdout", stream)
    one = JsonObserver()
    one.note("a", "b")
    one.note("a", "b")
    with pytest.raises(BrokenPipeError):  # it was one
        stream.close()
