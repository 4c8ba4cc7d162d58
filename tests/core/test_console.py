"""What a person sees: plain lines where there is no terminal, one live line where there is, nothing
but trouble when quiet.
"""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from posttrain.core import console
from posttrain.core.console import ConsoleObserver, print_error
from posttrain.core.errors import DataError

HELD = {
    "loss": 2.5,
    "interval": 0.125,
    "accuracy": 0.4,
    "entropy": 2.25,
    "sequences": 1200,
    "targets": 9000,
}


def record(step: int, loss: float = 1.5, rate: float = 2000.0) -> dict[str, Any]:
    return {"step": step, "loss": loss, "tokens_per_second": rate, "memory_gib": 0.5}


def observer(*, quiet: bool = False, terminal: bool = False) -> tuple[ConsoleObserver, io.StringIO]:
    out = io.StringIO()
    return (
        ConsoleObserver(
            Console(file=out, width=100, highlight=False, force_terminal=terminal), quiet=quiet
        ),
        out,
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def test_plain_lines_come_at_most_every_ten_seconds_and_at_the_end(clock: list[float]) -> None:
    watch, out = observer()
    watch.start(0, 4)
    for step, seconds in ((1, 1.0), (2, 5.0), (3, 6.0), (4, 1.0)):
        clock[0] += seconds
        watch.record(record(step, loss=4.0 / step))
    watch.stop()
    assert out.getvalue().splitlines() == [
        "step 1/4  loss 4.0000  2,000 tokens/s  0.50 GiB  ETA 0:00:03",
        "step 3/4  loss 1.3333  2,000 tokens/s  0.50 GiB  ETA 0:00:04",
        "step 4/4  loss 1.0000  2,000 tokens/s  0.50 GiB  ETA 0:00:00",
    ]


def test_the_time_left_of_a_resumed_run_counts_its_own_steps(clock: list[float]) -> None:
    watch, out = observer()
    watch.start(900, 1000)
    clock[0] += 36.0
    watch.record(record(901))
    assert out.getvalue().split("ETA ")[1].strip() == "0:59:24"  # 99 steps of 36 seconds


def test_speed_is_averaged(clock: list[float]) -> None:
    watch, out = observer()
    watch.start(0, 2)
    watch.record(record(1, rate=1000.0))
    watch.record(record(2, rate=2000.0))
    assert "1,100 tokens/s" in out.getvalue().splitlines()[-1]  # 0.9·1000 + 0.1·2000


def test_held_out_loss_comes_with_its_interval_and_count() -> None:
    watch, out = observer()
    watch.record({"step": 7, "validation": HELD})
    assert (
        out.getvalue()
        == "held out  step 7: loss 2.5000 ± 0.1250, accuracy 0.400, entropy 2.250 (n = 1,200"
        " sequences)\n"
    )


def test_quiet_says_nothing_but_trouble() -> None:
    watch, out = observer(quiet=True)
    watch.note("model", "llama")
    watch.start(0, 2)
    for step in (1, 2):
        watch.record(record(step))
    watch.record({"step": 2, "validation": HELD})
    watch.curve([record(1), record(2, loss=1.0)])
    watch.stop()
    assert out.getvalue() == ""
    watch.message("the disk is full")
    assert out.getvalue() == "the disk is full\n"


def test_names_with_brackets_are_shown_as_they_are() -> None:
    watch, out = observer()
    watch.note("data", "train[v2].jsonl: 3 rows")
    watch.message("lacks [lm_head] and [/tmp/x]")
    assert out.getvalue() == "data      train[v2].jsonl: 3 rows\nlacks [lm_head] and [/tmp/x]\n"


def test_a_terminal_gets_a_live_line() -> None:
    watch, out = observer(terminal=True)
    watch.start(0, 3)
    watch.record(record(2, loss=0.123456))
    watch.stop()
    watch.stop()  # twice is once
    last = out.getvalue()
    assert "2/3" in last and "0.1235" in last and "2,000 tokens/s" in last


def test_the_curve_has_the_loss_and_the_held_out_loss() -> None:
    watch, out = observer()
    watch.curve(
        [{"step": 0, "validation": {**HELD, "loss": 3.0}}, record(1, loss=2.0), record(2, loss=1.0)]
    )
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
