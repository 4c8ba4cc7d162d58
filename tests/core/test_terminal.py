"""Text for terminals: nothing that is printed commands the terminal, whatever printed it."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path

import pytest
from rich.live import Live
from rich.text import Text

from posttrain.cli import summaries
from posttrain.cli.main import main
from posttrain.core.console import Console, JsonLines, Table, open_reporter, print_error
from posttrain.core.errors import DataError
from posttrain.core.events import Alarm, Reporter
from posttrain.core.terminal import emit, escape, one_line
from posttrain.stages.stage import Outcome

# sets the title, clears the screen, rings, goes back, turns the direction of reading
HOSTILE = "a\x1b]0;owned\x07\x1b[2J\x9b2J\x9d\b\r\x00\x7f\u202e\u2066\u2028\udcffb [/] [red]x :x:"
HARMFUL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
STYLES = re.compile(r"\x1b\[[\d;]*[mK]|\x1b\[\?25[lh]|\x1b\[1A|\r")  # what rich itself writes


def screen(*, terminal: bool = True, width: int = 200) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=width, force_terminal=terminal, legacy_windows=False), out


def harmless(text: str) -> bool:
    return not HARMFUL.search(STYLES.sub("", text)) and "\x1b[2J" not in text


def test_every_control_character_is_seen_and_does_nothing() -> None:
    for code in range(0x110000):
        character = chr(code)
        harmful = bool(HARMFUL.match(character))
        assert (escape(character) == character) is not harmful, hex(code)
    assert escape("\x1b[0m\x07\x9b") == "␛[0m␇\\u009b"
    assert escape("\u202eab\u2069\x7f\ud800") == "\\u202eab\\u2069\\u007f\\ud800"
    assert escape("a\tb\nc é 日本 👩\u200d👧 \u200f") == "a\tb\nc é 日本 👩\u200d👧 \u200f"
    assert one_line("a\tb\r\nc") == "a␉b␍␊c"


def test_whatever_is_printed_reaches_the_terminal_as_text() -> None:
    """Texts, styled texts, cells, titles, live displays and JSON; markup is text, too."""
    out, shown = screen()
    out.print(HOSTILE)
    out.print(Text(HOSTILE, style="bold"), style="red")
    out.print_line(HOSTILE, label=HOSTILE, style="yellow")
    table = Table(title=HOSTILE)
    table.add_column(HOSTILE, footer=HOSTILE)
    table.add_row(HOSTILE)
    table.add_row(Text(HOSTILE))
    with Live(table, console=out, auto_refresh=False):
        pass
    out.print_json(json.dumps({HOSTILE: HOSTILE}))
    out.write(HOSTILE, dim=True)
    assert harmless(shown.getvalue()), repr(shown.getvalue())
    assert shown.getvalue().count("[/] [red]x :x:") >= 10


def test_a_stand_in_has_the_style_of_what_it_stands_for() -> None:
    out, shown = screen()
    out.print(Text.assemble("a", ("\x9b", "bold"), "c"))
    assert shown.getvalue() == "a\x1b[1m\\u009b\x1b[0mc\n"


def test_a_field_is_one_line_and_columns_stay_in_line() -> None:
    out, shown = screen(terminal=False)
    table = Table()
    table.add_column()
    table.add_column()
    table.add_row("a\nb\x1b\x9b", "|")
    table.add_row("plain", "|")
    out.print(table)
    out.print_line("x\ny", label="l")
    rows = [line for line in shown.getvalue().splitlines() if "|" in line]
    assert "a␊b␛\\u009b" in rows[0] and rows[0].index("|") == rows[1].index("|")
    assert shown.getvalue().splitlines()[-1] == "l         x␊y"
    out.print("rings\x07 and goes on\x0b")
    assert shown.getvalue().endswith("rings␇ and goes on␋\n")


@pytest.mark.parametrize("terminal", [True, False])
def test_events_and_errors(terminal: bool, capsys: pytest.CaptureFixture[str]) -> None:
    out, shown = screen(terminal=terminal)
    reporter = open_reporter(out)
    reporter.note(HOSTILE, HOSTILE)
    reporter.message(HOSTILE)
    reporter.emit(Alarm(1, HOSTILE))
    reporter.progress(HOSTILE, 1, 2)
    reporter.progress(HOSTILE, 2, 2)
    assert harmless(shown.getvalue()), repr(shown.getvalue())
    reporter.progress("two\nlines", 1, 2)
    reporter.progress("two\nlines", 2, 2)
    assert "two\nlines" not in shown.getvalue()
    print_error(DataError(HOSTILE + "\n  cure: none", where=HOSTILE + "\n", cure=HOSTILE))
    print_error(ValueError(HOSTILE))
    emit(HOSTILE, stderr=True)
    error = capsys.readouterr().err
    assert harmless(error), repr(error)
    assert [line for line in error.splitlines() if line.startswith("cure:")] == [
        f"cure:  {one_line(HOSTILE)}"
    ]


def test_json_lines_stay_the_same_json() -> None:
    out = io.StringIO()
    Reporter(JsonLines(out)).note("model", HOSTILE.replace("\udcff", ""))
    assert harmless(out.getvalue())
    assert json.loads(out.getvalue())["text"] == HOSTILE.replace("\udcff", "")


def test_categories_and_summaries_are_shown_as_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "[red]pairs.jsonl", tmp_path / "\x1b[2J"
    row = {"prompt": "a", "chosen": "b c", "rejected": "d"}
    data.write_text(
        "".join(
            json.dumps({**row, "category": category}) + "\n"
            for category in ("[/]", "[red]x", "two\nlines", "\x1b]0;owned\x07")
        )
    )
    argv = ["judge", "--scorer", "longest", "--data", str(data), "--out", str(out), "--quiet"]
    assert main(argv) == 0
    assert main(argv) == 0  # and again, from what was made
    summaries.show(Outcome(out, {"rows": out}, {"[/]\n": HOSTILE}, out / "summary.json"))
    shown = capsys.readouterr().out
    assert harmless(shown), repr(shown)
    for category in ("[/]", "[red]x", "two␊lines", "␛]0;owned␇"):
        assert shown.count(f"│ {category} ") == 2


def test_run_artifact_and_schema_commands_print_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders with hostile names, and a summary and an artifact that say hostile things."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "\x1b[2J\u202e\x9b"
    run.mkdir(parents=True)
    (run / "summary.json").write_text(json.dumps({HOSTILE: HOSTILE}))
    assert main(["runs"]) == 0
    assert main(["show", str(run)]) == 0
    artifact = {
        **dict.fromkeys(("stage", "digest", "made", "posttrain"), HOSTILE),
        "seconds": 1.0,
        "outputs": [],
        "inputs": {"models": {HOSTILE: HOSTILE}, "code": HOSTILE},
        "parents": {HOSTILE: HOSTILE},
    }
    (run / "artifact.json").write_text(json.dumps(artifact))
    assert main(["show", str(run)]) == 0
    assert main([HOSTILE.replace("\0", "")]) == 2
    assert main(["sft", f"--{HOSTILE}"]) == 2
    out, error = capsys.readouterr()
    assert harmless(out) and harmless(error), repr(out + error)
    assert "\\u202e" in out and "there is no command" in error


def test_a_real_terminal() -> None:
    """What arrives at a terminal's other end, with colours and all."""
    other, terminal = os.openpty()
    with os.fdopen(terminal, "w") as stream:
        out = Console(file=stream, width=300)
        assert out.is_terminal
        out.print_line(HOSTILE, style="bold")
        out.write(HOSTILE.replace("\udcff", ""), dim=True)
        out.write("the end")
        stream.flush()
        arrived = b""
        while not arrived.endswith(b"the end"):
            arrived += os.read(other, 65536)
    os.close(other)
    seen = arrived.decode()
    assert seen.count("␛]0;owned␇␛[2J\\u009b2J") == 2 and harmless(seen.replace("\r\n", "\n"))
