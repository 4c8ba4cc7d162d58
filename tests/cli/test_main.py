"""The command line: help, and what it says to a wrong word."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import posttrain
from posttrain.cli.main import commands, main
from posttrain.core.errors import DataError
from posttrain.data.settings import Source
from posttrain.stages.sft import SftSettings
from posttrain.stages.stage import Stage
from tests.children import child

NEEDED = ["sft", "--model", "m", "--data", "d.jsonl", "--out", "o"]


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> list[SftSettings]:
    """Catches the settings that `posttrain sft` would run with, and runs nothing."""
    caught: list[SftSettings] = []

    def catch(stage: Any, settings: SftSettings, reporter: Any) -> Any:
        caught.append(settings)
        raise DataError("caught", cure="none")

    monkeypatch.setattr(Stage, "run", catch)
    return caught


def said(argv: list[str], capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, the error and its cure."""
    code = main(argv)
    out, err = capfd.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 2 and lines[0].startswith("error: ") and lines[1].startswith("cure:  "), (
        err
    )
    return code, lines[0][7:], lines[1][7:]


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]], ids=str)
def test_help_lists_every_command(
    argv: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(argv) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert out.startswith("usage: posttrain COMMAND [options]\n")
    assert max(map(len, out.splitlines())) <= 80
    for name, text in commands().items():
        assert f" {name} {text} " in " ".join(out.split())


def test_help_whose_reader_has_gone_is_no_error() -> None:
    """As with `posttrain --help | head`."""
    argv = [sys.executable, "-m", "posttrain", "--help"]
    with child(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout is not None and run.stderr is not None
        run.stdout.close()
        assert (run.stderr.read(), run.wait(60)) == (b"", 0)


@pytest.mark.parametrize("argv", [["--version"], ["-V"], ["version"]], ids=str)
def test_version(argv: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 0
    assert capfd.readouterr().out == f"posttrain {posttrain.__version__}\n"


@pytest.mark.parametrize("name", commands())
def test_every_command_has_help(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([name, "--help"])
    assert left.value.code == 0
    assert capfd.readouterr().out.startswith(f"usage: posttrain {name} ")


@pytest.mark.parametrize(
    ("argv", "what", "cure"),
    [
        (["sfd"], "there is no command 'sfd'", "did you mean 'sft'?"),
        (["xyzzy"], "there is no command 'xyzzy'", None),
        (
            [*NEEDED, "--learning-rat", "1"],
            "unknown option --learning-rat",
            "did you mean '--learning-rate'?",
        ),
        ([*NEEDED, "--lora_rank=4"], "unknown option --lora_rank=4", "did you mean '--lora-rank'?"),
        ([*NEEDED, "e.jsonl"], "unknown option e.jsonl", None),  # a word too many
        (
            [*NEEDED, "--epochs"],
            "argument --epochs: expected one argument",
            "posttrain sft --help lists the options",
        ),
        (
            [*NEEDED, "--groups"],
            "argument --groups: expected at least one argument",
            "posttrain sft --help lists the options",
        ),
        (
            [*NEEDED, "--epochs", "some"],
            "epochs = 'some': Input should be a valid number, unable to parse string as a number",
            "passes over the data",
        ),
        (
            [*NEEDED, "--epochs", "0"],
            "epochs = '0': Input should be greater than 0",
            "passes over the data",
        ),
        (
            [*NEEDED, "--method", "ntl"],
            "method = 'ntl': Input should be 'nll' or 'dft'",
            "did you mean 'nll'?",
        ),
        (
            [*NEEDED, "--format", "mesages"],
            (
                "format = 'mesages': Input should be '', 'messages', 'sharegpt', 'alpaca', "
                "'preference', 'label', 'steps', 'prompt-completion', 'text' or 'prompt'"
            ),
            "did you mean 'messages'?",
        ),
        (
            [*NEEDED[:3], "--out", "o", "--data", "d.jsonl", "e.jsonl,limit=0"],
            "'e.jsonl,limit=0': limit = '0': Input should be greater than or equal to 1",
            "rows at most: the first ones",
        ),
        (
            [*NEEDED, "--groups", "embed=0", "norm"],
            "--groups 'norm' is not KEY=VALUE",
            "write --groups key=value",
        ),
        (
            [*NEEDED, "--groups", "embed=much"],
            "groups = 'much': Input should be a valid number, unable to parse string as a number",
            "PATTERN=FACTOR on the rate of parameters whose name matches; 0 freezes them",
        ),
        (["sft"], "model is missing", "give --model"),
        (["sft", "--model", "m", "--out", "o"], "data is missing", "give --data"),
        (["sft", "--model", "m", "--data", "d.jsonl"], "out is missing", "give --out"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_a_wrong_word_is_named_with_its_cure(
    argv: list[str],
    what: str,
    cure: str | None,
    settings: list[SftSettings],
    capfd: pytest.CaptureFixture[str],
) -> None:
    code, found, how = said(argv, capfd)
    assert (code, found) == (2, what)
    assert how == cure or cure is None
    assert settings == []


def test_values_become_settings(
    settings: list[SftSettings], capfd: pytest.CaptureFixture[str]
) -> None:
    argv = [
        "sft",
        "--model",
        "m",
        "--out",
        "o",
        "--data",
        "d.jsonl,prompt=question,completion=the=answer,weight=2",
        "e.jsonl.gz",
        "--template-kwargs",
        "enable_thinking=false",
        "budget=3",
        "date=today",
        "--betas",
        "0.8",
        "0.95",
        "--groups",
        "embed=0",
        "norm=2.5",
        "--no-keep-best",
        "--activation-checkpointing",
        "--lora-rank",
        "4",
        "--epochs",
        "1.5",
    ]
    assert said(argv, capfd) == (2, "caught", "none")
    (one,) = settings
    assert one.data.data == (
        Source(
            path="d.jsonl", weight=2, columns={"prompt": "question", "completion": "the=answer"}
        ),
        Source(path="e.jsonl.gz"),
    )
    kwargs = {"enable_thinking": False, "budget": 3, "date": "today"}
    assert one.data.prompting.template_kwargs == kwargs
    assert one.optimiser.betas == (0.8, 0.95)
    assert one.optimiser.groups == {"embed": 0.0, "norm": 2.5}
    assert (one.validation.keep_best, one.activation_checkpointing, one.epochs) == (
        False,
        True,
        1.5,
    )
    assert one.lora is not None
    assert (one.lora.rank, one.lora.alpha) == (4, 32)


def test_an_option_given_twice_loses_nothing(
    settings: list[SftSettings], capfd: pytest.CaptureFixture[str]
) -> None:
    said(
        [*NEEDED, "--data", "e.jsonl", "f.jsonl", "--groups", "embed=0", "--groups", "norm=2"],
        capfd,
    )
    (one,) = settings
    assert [source.path for source in one.data.data] == ["d.jsonl", "e.jsonl", "f.jsonl"]
    assert one.optimiser.groups == {"embed": 0, "norm": 2}


def test_an_interrupt_is_130(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Stage, "run", interrupt)
    assert main(NEEDED) == 130
    assert capfd.readouterr().err == "interrupted\n"


def test_a_reader_that_leaves_is_no_error() -> None:
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} -m posttrain schema | head -c 10"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("{") and done.stderr == "" and done.returncode == 0


STREAMS = """
p="{python} -m posttrain"
$p --version >&-                        ; echo closed $?
$p --version 2>&-                       ; echo open $?
$p --version > /dev/full 2> full        ; echo full $?
$p sft --help > /dev/full 2> long       ; echo long $?
$p nope > /dev/null 2> /dev/full        ; echo unheard $?
{python} -u -m posttrain schema > /dev/full 2> raw ; echo raw $?
$p nope 2>&1 >&- <&- | head -c 6        ; echo ${{PIPESTATUS[0]}}
"""


def test_streams_that_are_closed_or_full(tmp_path: Path) -> None:
    script = STREAMS.format(python=sys.executable)
    done = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
    )
    version = f"posttrain {posttrain.__version__}"
    codes = ["closed 0", version, "open 0", "full 2", "long 2", "unheard 2", "raw 2", "error:2"]
    assert done.stdout.splitlines() == codes and done.stderr == ""
    for name in ("full", "long", "raw"):
        said = (tmp_path / name).read_text().splitlines()
        assert said[0] == "error: standard output cannot be written: No space left on device"
        assert len(said) == 2 and said[1].startswith("cure:  ")


@pytest.mark.parametrize(
    ("error", "what", "cure"),
    [
        (OSError(errno.EIO, "Input/output error", "a.bin"), "a.bin: Input/output error", "reason"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x"), "the name is too long", "shorter"),
        (MemoryError(), "there is not enough memory", "lower --budget"),
    ],
)
def test_what_the_system_says_is_an_error_with_a_cure(
    error: Exception,
    what: str,
    cure: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Stage, "run", fail)
    code, found, how = said(NEEDED, capfd)
    assert code == 2 and what in found and cure in how
    code, found, how = said(["run", "a\0b"], capfd)
    assert (code, found) == (2, "'a\\x00b' holds a NUL character")
