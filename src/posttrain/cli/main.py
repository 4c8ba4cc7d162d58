"""`posttrain`: finds the command and runs it. Imports a command's code only when it is called."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable
from importlib import import_module

# command, of one word or two: (module with `main(argv) -> exit code`, or module:function; one line
# of help)
COMMANDS = {
    "quickstart": (
        "posttrain.cli.quickstart",
        "see the whole loop work on a small real model, in about a minute",
    ),
    "run": ("posttrain.cli.pipeline:run", "run a recipe of stages"),
    "plan": ("posttrain.cli.pipeline:show_plan", "show what running a recipe would do"),
    "runs": ("posttrain.cli.pipeline:runs", "list runs"),
    "show": ("posttrain.cli.pipeline:show", "show a run or an artifact"),
    "schema": ("posttrain.cli.pipeline:print_schema", "print the JSON schema of recipes"),
    "adapt": ("posttrain.cli.adapt", "let a model read the text of a domain"),
    "sft": ("posttrain.cli.sft", "fine-tune a model on demonstrations"),
    "preference": (
        "posttrain.cli.preference",
        "let a model learn which answers are better: DPO and its family, KTO, ORPO, …",
    ),
    "sample-pairs": (
        "posttrain.cli.sample_pairs",
        "make preference pairs from a model's own answers",
    ),
    "reward-model": (
        "posttrain.cli.reward_model",
        "train a model that says what an answer is worth",
    ),
    "judge": ("posttrain.cli.judge", "whether a reward model prefers the better answers"),
    "eval": ("posttrain.cli.evaluate", "what a model can do, and what changed since another"),
    "chat": ("posttrain.cli.chat", "talk to a model in the terminal"),
    "data inspect": (
        "posttrain.cli.data_inspect",
        "see what a model would be trained on, token by token",
    ),
    "data pairs": (
        "posttrain.cli.data_pairs",
        "care for preferences: contradictions, cycles, length bias; convert them",
    ),
    "data select": (
        "posttrain.cli.data_select",
        "take the rows of a large set that are most like a small one",
    ),
    "data split": (
        "posttrain.cli.data_split",
        "split rows so that near-duplicates stay on one side",
    ),
}


def usage(names: Iterable[str] = COMMANDS) -> str:
    width = max(map(len, names)) + 2
    lines = [f"  {name:<{width}}{COMMANDS[name][1]}" for name in names]
    return "\n".join(
        [
            "usage: posttrain COMMAND [options]",
            "",
            (
                "Turn a pretrained language model into one people can use, and prove that it may be"
                " released."
            ),
            "",
            "commands:",
            *lines,
            "",
            (
                "posttrain COMMAND --help shows a command's options. Exit codes: 0 done, 2 wrong"
                " input (with the cure),"
            ),
            "130 interrupted (the same command goes on).",
        ]
    )


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
        words = 2 if " ".join(argv[:2]) in COMMANDS else 1
        name = " ".join(argv[:words])
        if name not in COMMANDS:
            if group := [command for command in COMMANDS if command.startswith(f"{argv[0]} ")]:
                if not argv[1:] or argv[1] in ("-h", "--help"):
                    print(usage(group))
                    return 0
                name = " ".join(argv[:2])
            raise PosttrainError(f"there is no command {name!r}", cure=nearest(name, COMMANDS))
        module, _, function = COMMANDS[name][0].partition(":")
        code = getattr(import_module(module), function or "main")(argv[words:])
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `posttrain schema | head`: the reader has what it wanted
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # so that flushing at exit has somewhere to go
        return 0
    except PosttrainError as error:
        from posttrain.core.console import print_error

        print_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
