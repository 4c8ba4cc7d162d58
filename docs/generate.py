"""Writes docs/reference/cli.md from the parsers of the command line.

    python docs/generate.py          write the page
    python docs/generate.py --check  exit 1 where the page is out of date
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

from posttrain.cli.main import COMMANDS
from posttrain.cli.options import Parser

PAGE = Path(__file__).parent / "reference" / "cli.md"

HEAD = """# Command line

<!-- Made from the parsers by `make docs`; a test fails where it is out of date. -->

    posttrain COMMAND [options]

| command | what it does |
|---|---|
{commands}

`posttrain --help` lists the commands, `posttrain COMMAND --help` a command's options, `posttrain --version` the version.
Progress goes to standard error, results to standard output. What the exit codes mean:
[errors and exit codes](errors-and-exit-codes.md).

Every option is also a keyword of the Python function of the same name, with underscores for hyphens:
`--learning-rate 1e-4` is `learning_rate=1e-4`. An unknown option is an error that names the nearest known one. An option that
takes several values may also be given several times.
"""


class _Found(Exception):
    def __init__(self, parser: Parser) -> None:
        self.parser = parser


def parser_of(command: str) -> Parser:
    """The parser that a command makes: caught when it is about to read its arguments."""

    def catch(self: Parser, argv: list[str]) -> argparse.Namespace:
        raise _Found(self)

    parse, Parser.parse = Parser.parse, catch
    try:
        module, _, function = COMMANDS[command][0].partition(":")
        getattr(import_module(module), function or "main")([])
    except _Found as found:
        return found.parser
    finally:
        Parser.parse = parse
    raise RuntimeError(f"posttrain {command} does not use posttrain.cli.options.Parser")


def page() -> str:
    commands = "\n".join(f"| [`posttrain {name}`](#posttrain-{'-'.join(name.split())}) | {text} |"
                         for name, (_, text) in COMMANDS.items())
    return "\n".join([HEAD.format(commands=commands), *(section(name) for name in COMMANDS)])


def section(command: str) -> str:
    parser = parser_of(command)
    lines = [f"## posttrain {command}", "", parser.description or "", ""]
    for group in parser._action_groups:
        actions = [a for a in group._group_actions if a.option_strings != ["-h", "--help"]]
        if not actions:
            continue
        lines += ["" if group.title == "options" else f"### {group.title}\n", "| option | |", "|---|---|"]
        lines += [f"| {spelled(action)} | {cell(action.help or '')} |" for action in actions] + [""]
    return "\n".join(lines)


def spelled(action: argparse.Action) -> str:
    """The option as one types it."""
    names = "`, `".join(action.option_strings) or (action.metavar or action.dest).upper()
    value = f" {action.metavar}" if action.metavar and action.option_strings else ""
    return f"`{names}{value}{' …' if action.nargs == '+' else ''}`".replace("|", "\\|")


def cell(text: str) -> str:
    return text.replace("%%", "%").replace("|", "\\|").replace("{prompt}", "`{prompt}`")


def main(argv: list[str]) -> int:
    if "--check" in argv:
        return 0 if PAGE.is_file() and PAGE.read_text() == page() else 1
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
