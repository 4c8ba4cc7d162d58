"""What a person sees: plain lines where there is no terminal, one live line where there is, nothing
but trouble when quiet.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import time

import pytest

from posttrain.core import console
from posttrain.core.console import Console, JsonLines, Table, open_reporter, print_error
from posttrain.core.errors import DataError
from posttrain.core.events import Alarm, Held, Reporter, Step

HELD = {
    "loss": 2.5,
    "interval": 0.125,
    "accuracy": 0.4,
    "entropy": 2.25,
    "sequences": 1200,
    "targets": 9000,
}


def step(number: int, loss: float = 1.5, rate: float = 2000.0, **more: float) -> Step:
    return Step(number, {"loss": loss, "tokens_per_second": rate, "memory_gib": 0.5, **more})


def screen(
    *, quiet: bool = False, terminal: bool = False, width: int = 100
) -> tuple[Reporter, io.StringIO]:
    out = io.StringIO()
    to = Console(file=out, width=width, force_terminal=terminal)
    return open_reporter(to, quiet=quiet), out


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def test_plain_lines_come_at_most_every_ten_seconds_and_at_the_end(clock: list[float]) -> None:
    watch, out = screen()
    watch.progress("train", 0, 4)
    for number, seconds in ((1, 1.0), (2, 5.0), (3, 6.0), (4, 1.0)):
        clock[0] += seconds
        watch.emit(step(number, loss=4.0 / number))
    watch.progress("train", 0, 9, over=True)
    assert out.getvalue().splitlines() == [
        "step 1/4  loss 4.0000  2,000 tokens/s  0.50 GiB  ETA 0:00:03",
        "step 3/4  loss 1.3333  2,000 tokens/s  0.50 GiB  ETA 0:00:04",
        "step 4/4  loss 1.0000  2,000 tokens/s  0.50 GiB  ETA 0:00:00",
    ]


def test_the_time_left_of_a_resumed_run_counts_its_own_steps(clock: list[float]) -> None:
    watch, out = screen()
    watch.progress("train", 900, 1000)
    clock[0] += 36.0
    watch.emit(step(901))
    assert out.getvalue().split("ETA ")[1].strip() == "0:59:24"  # 99 steps of 36 seconds


def test_speed_is_averaged(clock: list[float]) -> None:
    watch, out = screen()
    watch.progress("train", 0, 2)
    watch.emit(step(1, rate=1000.0))
    watch.emit(step(2, rate=2000.0))
    assert "1,100 tokens/s" in out.getvalue().splitlines()[-1]  # 0.9·1000 + 0.1·2000


def test_held_out_loss_comes_with_its_interval_and_count() -> None:
    watch, out = screen()
    watch.emit(Held(7, HELD))
    assert (
        out.getvalue()
        == "held out  step 7: loss 2.5000 ± 0.1250, accuracy 0.400, entropy 2.250 (n = 1,200 "
        "sequences)\n"
    )


def test_quiet_says_nothing_but_trouble() -> None:
    watch, out = screen(quiet=True)
    watch.note("model", "llama")
    watch.progress("train", 0, 2)
    for number in (1, 2):
        watch.emit(step(number))
    watch.emit(Held(2, HELD))
    watch.done("runs/a", {}, [step(1), step(2, loss=1.0)])
    watch.progress("train", 0, 9, over=True)
    assert out.getvalue() == ""
    watch.message("the disk is full")
    assert out.getvalue() == "the disk is full\n"


def test_names_with_brackets_are_shown_as_they_are() -> None:
    watch, out = screen()
    watch.note("data", "train[v2].jsonl: 3 rows")
    watch.message("lacks [lm_head] and [/tmp/x]")
    assert out.getvalue() == "data      train[v2].jsonl: 3 rows\nlacks [lm_head] and [/tmp/x]\n"


def test_a_terminal_gets_a_live_line() -> None:
    watch, out = screen(terminal=True)
    watch.progress("train", 0, 3)
    watch.emit(step(2, loss=0.123456))
    watch.progress("train", 0, 9, over=True)
    watch.progress("train", 0, 9, over=True)  # twice is once
    last = out.getvalue()
    assert "2/3" in last and "0.1235" in last and "2,000 tokens/s" in last


def test_the_curve_has_the_loss_and_the_held_out_loss() -> None:
    watch, out = screen()
    log = [Held(0, {**HELD, "loss": 3.0}), step(1, loss=2.0), step(2, loss=1.0)]
    watch.done("runs/a", {}, log)
    lines = out.getvalue().splitlines()
    assert lines[0].split("  ")[-1].strip() == "● held-out loss"
    assert lines[1].startswith("3.000 ┤●")
    assert lines[-2].startswith("1.000 ┤")
    assert lines[-1].split() == ["0", "2"]


def test_errors_go_to_standard_error_with_their_cure(capfd: pytest.CaptureFixture[str]) -> None:
    print_error(DataError("not JSON: [red]", where="a[1].jsonl:3", cure="one [object] a line"))
    print_error(ValueError("plain"))
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "error: a[1].jsonl:3: not JSON: [red]",
        "cure:  one [object] a line",
        "error: plain",
    ]


def test_plain_lines_tell_of_other_work_that_takes_long(clock: list[float]) -> None:
    watch, out = screen()
    for done in range(0, 41, 4):
        watch.progress("sampling", done, 40)
        clock[0] += 4.0
    assert out.getvalue().splitlines() == [
        "sampling  30%  ETA 0:00:28",
        "sampling  60%  ETA 0:00:16",
        "sampling  90%  ETA 0:00:04",
    ]


def painted(text: str) -> list[str]:
    """Every line that a terminal has shown, without control sequences."""
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]", "", text))
    return [line for line in lines if line.strip()]


def test_a_terminal_of_80_columns_holds_the_live_line() -> None:
    watch, out = screen(terminal=True, width=80)
    watch.progress("train", 0, 1200)
    watch.emit(step(900, loss=0.123456, rate=12345.0))
    watch.progress("train", 900, 1200, over=True)
    last = painted(out.getvalue())[-1]
    assert len(last) <= 80
    for part in ("train", " 900/1200 ", "loss 0.1235 ", "12,345 tokens/s", "0.50 GiB", "ETA "):
        assert part in last


def test_where_figures_are_long_the_speed_makes_room_for_the_count_and_the_time_left() -> None:
    watch, out = screen(terminal=True, width=80)
    watch.progress("train", 0, 1200)
    rewards = {"rewards/accuracies": 0.875, "rewards/margins": 2.14}
    watch.emit(step(900, **rewards))
    watch.progress("train", 900, 1200, over=True)
    last = painted(out.getvalue())[-1]
    assert len(last) <= 80 and "tokens/s" not in last
    for part in (" 900/1200 ", "accuracy 0.88, margin +2.140  ETA ", ":"):
        assert part in last


def test_sentences_are_wrapped_at_words_and_titles_are_not() -> None:
    out = io.StringIO()
    to = Console(file=out, force_terminal=True, width=30, color_system=None)
    to.print_text("the margin is +2.093 and the mean of all is no more than that")
    table = Table(title="a title that is wide")
    table.add_row("x")
    to.print(table)
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert lines[:3] == ["the margin is +2.093 and the", "mean of all is no more than", "that"]
    assert lines[3] == "a title that is wide"


def test_a_terminal_shows_other_work_while_it_lasts() -> None:
    watch, out = screen(terminal=True)
    watch.progress("held out", 1, 4)
    watch.progress("read", 50, 100, unit="bytes")  # another piece of work takes its place
    watch.progress("read", 100, 100, unit="bytes")
    lines = painted(out.getvalue())
    assert "held out" in lines[0] and "%" in lines[0]
    assert "read" in lines[-1] and "100/100 bytes" in lines[-1]
    assert "\x1b[2K" in out.getvalue().split("100/100 bytes")[-1]  # and is wiped away at its end


def test_alarms_are_shown_where_quiet_is_asked_for() -> None:
    for quiet in (False, True):
        watch, out = screen(quiet=quiet)
        watch.emit(Alarm(7, "answers have become [longer]"))
        assert out.getvalue() == "after step 7: answers have become [longer]\n"


# ------------------------------------------------------------------------------------- JSON lines


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_every_event_is_a_line_with_its_time() -> None:
    out = io.StringIO()
    watch = Reporter(JsonLines(out))
    before = time.time()
    watch.note("model", "a\nb")
    watch.message("Zürich")
    watch.emit(Step(3, {"loss": 1.5}))
    watch.emit(Held(3, {"loss": 2.5}))
    watch.emit(Alarm(3, "too long"))
    watch.done("runs/a", {"stages": {}}, [Step(3, {"loss": 1.5})])
    found = lines(out)
    times = [event.pop("time") for event in found]
    assert all(isinstance(at, float) and before - 0.01 <= at <= time.time() + 0.01 for at in times)
    assert found == [
        {"event": "note", "label": "model", "text": "a\nb", "always": False},
        {"event": "note", "label": "", "text": "Zürich", "always": True},
        {"event": "step", "step": 3, "loss": 1.5},
        {"event": "held", "step": 3, "loss": 2.5},
        {"event": "alarm", "step": 3, "text": "too long"},
        {"event": "done", "folder": "runs/a", "summary": {"stages": {}}},
    ]


def test_json_progress_comes_once_a_second_and_at_the_end(clock: list[float]) -> None:
    out = io.StringIO()
    watch = Reporter(JsonLines(out))
    for done in range(1, 11):
        clock[0] += 0.4
        watch.progress("read", done, 10)
        watch.progress("write", done, 100)
    watch.progress("write", 10, 100, over=True)
    assert [(e["label"], e["done"], e["over"]) for e in lines(out)] == [
        ("read", 1, False),
        ("write", 1, False),
        ("read", 4, False),
        ("write", 4, False),
        ("read", 7, False),
        ("write", 7, False),
        ("read", 10, True),
        ("write", 10, False),
        ("write", 10, True),
    ]


def test_a_reader_that_goes_away_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    monkeypatch.setattr(sys, "stdout", stream)
    watch = Reporter(JsonLines())
    watch.note("a", "b")
    watch.note("a", "b")
    with pytest.raises(BrokenPipeError):  # it was one
        stream.close()


def test_a_held_out_number_comes_with_what_has_changed() -> None:
    watch, out = screen(width=300)
    change = {"mean": -0.7, "low": -0.75, "high": -0.65, "n": 9, "method": "Student's t"}
    watch.emit(Held(20, {**HELD, "chance": 0.5, "difference": {"loss": change}}))
    line = out.getvalue()
    assert "accuracy 0.400 (chance 0.5)" in line
    assert "loss since step 0, paired: -0.700 [-0.750, -0.650]" in line
    none = {**change, "low": None, "high": None, "method": "no spread"}
    assert console.estimate(none, "+.2f") == "-0.70 (no spread)"
