"""`posttrain`: finds the command and runs it. Imports a command's code only when it is called."""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Mapping
from functools import cache
from importlib import import_module

from posttrain.core.terminal import emit

# commands that are more than one stage: (module:function, one line of help)
OTHERS = {
    "quickstart": (
        "posttrain.cli.quickstart:main",
        "see the whole loop work on a small real model in 1.5 minutes",
    ),
    "run": ("posttrain.cli.pipeline:run", "run a recipe of stages"),
    "plan": ("posttrain.cli.pipeline:show_plan", "show what running a recipe would do"),
    "runs": ("posttrain.cli.pipeline:runs", "list runs"),
    "show": ("posttrain.cli.pipeline:show", "show a run or an artifact"),
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
        " command goes on); a stage that decides has its verdict's."
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
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a sign shows another
    from posttrain.core.errors import PosttrainError

    try:
        code = _run(argv)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `posttrain schema | head`: the reader has what it wanted
        # so that flushing at exit has somewhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except PosttrainError as error:
        from posttrain.core.console import print_error

        print_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        emit("interrupted", stderr=True)
        return 130


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
