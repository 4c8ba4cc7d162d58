"""`posttrain`: finds the command and runs it. Imports a command's code only when it is called."""

from __future__ import annotations

import io
import sys
from importlib import import_module

# name: (module with `main(argv) -> exit code`, one line of help)
COMMANDS = {
    "sft": ("posttrain.cli.sft", "fine-tune a model on demonstrations"),
}


def usage() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join([
        "usage: posttrain COMMAND [options]", "",
        "Turn a pretrained language model into one people can use, and prove that it may be released.", "",
        "commands:", *lines, "",
        "posttrain COMMAND --help shows a command's options. Exit codes: 0 done, 2 wrong input (with the cure),",
        "130 interrupted (the same command goes on)."])


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a sign shows another
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if argv[0] in ("-V", "--version", "version"):
        from posttrain import __version__

        print(f"posttrain {__version__}")
        return 0
    from posttrain.core.errors import PosttrainError, nearest

    try:
        if argv[0] not in COMMANDS:
            raise PosttrainError(f"there is no command {argv[0]!r}", cure=nearest(argv[0], COMMANDS))
        return import_module(COMMANDS[argv[0]][0]).main(argv[1:])
    except PosttrainError as error:
        from posttrain.core.console import print_error

        print_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
