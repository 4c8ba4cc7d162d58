"""`posttrain`: finds the command and runs it. Imports a command's code only when it is called."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Mapping
from functools import cache
from importlib import import_module

from posttrain.core.errors import lost
from posttrain.core.terminal import emit

# commands that are more than one stage: (module:function, one line of help)
OTHERS = {
    "quickstart": (
        "posttrain.cli.quickstart:main",
        "see the whole loop work on a small real model in two minutes",
    ),
    "run": ("posttrain.cli.pipeline:run", "run a recipe of stages"),
    "plan": ("posttrain.cli.pipeline:show_plan", "show what running a recipe would do"),
    "runs": ("posttrain.cli.pipeline:runs", "list runs"),
    "show": ("posttrain.cli.pipeline:show", "show a run or an artifact"),
    "replay": ("posttrain.cli.replay:main", "run one step of reinforcement learning again"),
    "schema": ("posttrain.cli.pipeline:print_schema", "print the JSON schema of recipes"),
    "chat": ("posttrain.cli.chat:main", "talk to a model in the terminal"),
}
_OWN_STAGE = re.compile(r"[^:\s]+:[A-Za-z_]\w*")  # FILE.py:NAME, package.module:NAME


@cache
def commands() -> dict[str, str]:
    """Every command, of one word or two, and what it does in one line."""
    from posttrain.stages.index import entries

    stages = {entry.command: entry.help for entry in entries().values()}
    others = {name: help for name, (_, help) in OTHERS.items()}
    data = {name: help for name, help in stages.items() if name.startswith("data ")}
    rest = {name: help for name, help in stages.items() if name not in data}
    chat = {"chat": others.pop("chat")}
    return {**others, **rest, **chat, **data}


def usage(table: Mapping[str, str]) -> str:
    """The help of all commands, or of those of a group."""
    columns = min(100, shutil.get_terminal_size().columns)
    indent = max(map(len, table)) + 4
    lines = []
    for name, help in table.items():
        head = f"  {name}".ljust(indent)
        lines.append(textwrap.fill(head + help, columns, subsequent_indent=" " * indent))
    claim = (
        "Turn a pretrained language model into one people can use, and prove that it may be"
        " released."
    )
    more = (
        "posttrain COMMAND --help shows a command's options; posttrain FILE.py:NAME runs a stage of"
        " your own. Exit codes: 0 done, 2 wrong input (with the cure), 130 interrupted (the same"
        " command goes on); a stage that gives a verdict ends with its code."
    )
    return "\n".join(
        [
            "usage: posttrain COMMAND [options]",
            "",
            textwrap.fill(claim, columns),
            "",
            "commands:",
            *lines,
            "",
            textwrap.fill(more, columns),
        ]
    )


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    _open_streams()
    lost.clear()
    try:
        code = _explained(argv)
    except SystemExit as done:  # help was shown
        _flush()
        if lost:
            return _say_lost()
        raise done from None
    _flush()
    return code or (_say_lost() if lost else 0)


def _explained(argv: list[str]) -> int:
    """Run one command; what a user or a disk can do ends with a sentence and the code 2."""
    from posttrain.core.errors import PosttrainError

    try:
        if odd := next((word for word in argv if "\0" in word), None):
            raise PosttrainError(f"{odd!r} holds a NUL character", cure="remove it")
        return _run(argv)
    except BrokenPipeError:  # `posttrain schema | head`: the reader has what it wanted
        return 0
    except KeyboardInterrupt:
        emit("interrupted", stderr=True)
        return 130
    except (PosttrainError, OSError, MemoryError) as error:
        return _say(error)


def _say(error: Exception) -> int:
    """Print an error; returns the exit code."""
    from posttrain.core.console import print_error
    from posttrain.core.errors import PosttrainError
    from posttrain.core.files import system_error

    if isinstance(error, MemoryError):
        error = PosttrainError(
            "there is not enough memory",
            cure="lower --budget, --max-length or --batch-size, or use a smaller model",
        )
    elif isinstance(error, OSError):
        error = system_error(error)
    assert isinstance(error, PosttrainError)
    print_error(error)
    return error.exit_code


# ------------------------------------------------------------------ standard input and output


def _open_streams() -> None:
    """Give every standard stream that was closed (`>&-`) a place to go to, or the next file that is
    opened would get its number, and what libraries print would be written into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is this one
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - as long as the process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a sign shows another


def _flush() -> None:
    """Write out what is left. What cannot be written goes nowhere, or the interpreter would try
    again at its end and complain; of standard output it is remembered, unless its reader has gone.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError) as error:
            is_reader_gone = isinstance(error, BrokenPipeError)
            if stream is sys.stdout and isinstance(error, OSError) and not is_reader_gone:
                lost.append(error)
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _say_lost() -> int:
    """Say that results could not be shown."""
    from posttrain.core.errors import PosttrainError

    why = lost[0].strerror or str(lost[0])
    return _say(
        PosttrainError(
            f"standard output cannot be written: {why}",
            cure="free space where it goes to; the same command shows what was made",
        )
    )


def _run(argv: list[str]) -> int:
    """Find the command and run it; returns the exit code."""
    from posttrain.core import peers
    from posttrain.core.errors import PosttrainError

    first = argv[0] if argv else "help"
    if first in ("-h", "--help", "help"):
        emit(usage(commands()))
        return 0
    if first in ("-V", "--version", "version"):
        from posttrain import __version__

        emit(f"posttrain {__version__}")
        return 0
    if first in OTHERS:
        module, _, function = OTHERS[first][0].partition(":")
        return getattr(import_module(module), function)(argv[1:])
    if _OWN_STAGE.fullmatch(first):
        return _run_stage(first, first, argv[1:])
    from posttrain.stages.index import entries

    stages = {entry.command: name for name, entry in entries().items()}
    words = 2 if " ".join(argv[:2]) in stages else 1
    command = " ".join(argv[:words])
    if command in stages:
        return _run_stage(stages[command], command, argv[words:])
    group = {name: help for name, help in commands().items() if name.startswith(f"{first} ")}
    if group and (not argv[1:] or argv[1] in ("-h", "--help")):
        emit(usage(group))
        return 0
    name = " ".join(argv[:2]) if group else first
    cure = peers.cure(name, commands(), commands=True, otherwise="posttrain --help lists them")
    raise PosttrainError(f"there is no command {name!r}", cure=cure)


def _run_stage(name: str, command: str, argv: list[str]) -> int:
    from posttrain.cli.stage import main as run_stage
    from posttrain.stages.registry import find

    return run_stage(find(name), command, argv)
