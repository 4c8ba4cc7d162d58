"""Command-line options made from settings, so that they are written once."""

from __future__ import annotations

import argparse
import sys
import types
import typing
from pathlib import Path
from typing import Any, NoReturn

from posttrain.core import peers
from posttrain.core.console import open_reporter
from posttrain.core.errors import ConfigError
from posttrain.core.events import Reporter
from posttrain.core.settings import Leaf, Positional, S, Settings, assemble, leaves
from posttrain.core.terminal import emit

LONG_METAVAR = 50  # characters; longer lists of choices stand in the help, where they are wrapped


class Parser(argparse.ArgumentParser):
    """argparse, with the nearest known option named where one is wrong."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, cure=f"{self.prog} --help lists the options")

    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse's own drops what a full disk does not take
        emit(message, stderr=file is sys.stderr, end="")

    def parse(self, argv: list[str]) -> argparse.Namespace:
        known, unknown = self.parse_known_args(argv)
        if unknown:
            options = [o for action in self._actions for o in action.option_strings]
            cure = peers.cure(
                unknown[0],
                options,
                spelled=lambda name: f"--{name.replace('_', '-')}",
                otherwise=f"{self.prog} --help lists the options",
            )
            raise ConfigError(f"unknown option {unknown[0]}", cure=cure)
        return known


def parser(command: str, description: str, model: type[Settings]) -> Parser:
    """A parser with one option for every leaf of the settings."""
    out = Parser(
        prog=f"posttrain {command}",
        usage="%(prog)s [options]",  # which follow, each with its help
        description=description,
        allow_abbrev=False,
    )
    add_quiet(out)
    groups: dict[str, Any] = {}
    for leaf in leaves(model):
        title = "run" if len(leaf.path) == 1 and not leaf.switch else leaf.path[0]
        if title not in groups:
            groups[title] = out.add_argument_group(title)
        _add(groups[title], leaf)
    return out


def stage_parser(command: str, description: str, model: type[Settings]) -> Parser:
    """A parser of a stage's command."""
    out = parser(command, description, model)
    add_verify(out)
    return out


def read(
    command: str, description: str, model: type[S], argv: list[str]
) -> tuple[S, Reporter, bool]:
    """The settings of a stage's command from its arguments, the reporter it shows itself to, and
    whether to read all that a finished run made.
    """
    first = next((leaf for leaf in leaves(model) if leaf.has(Positional)), None)
    if first is not None and argv and not argv[0].startswith("-"):
        argv = [first.option, *argv]
    arguments = stage_parser(command, description, model).parse(argv)
    reporter = open_reporter(quiet=arguments.quiet)
    return assemble(model, flat(arguments, model)), reporter, arguments.verify


def add_quiet(parser: argparse.ArgumentParser) -> None:
    """The option --quiet."""
    parser.add_argument("--quiet", action="store_true", help="show only warnings and the result")


def add_verify(parser: argparse.ArgumentParser) -> None:
    """The option --verify."""
    parser.add_argument(
        "--verify",
        action="store_true",
        help=(
            "compare the contents of every file that was made with the manifest; unset: only of "
            "files whose size or time of writing changed"
        ),
    )


def flat(arguments: argparse.Namespace, model: type[Settings]) -> dict[str, Any]:
    """The settings that were given, by flat name."""
    given = {leaf.name: getattr(arguments, leaf.name) for leaf in leaves(model)}
    return {name: value for name, value in given.items() if value is not None}


def _add(group: Any, leaf: Leaf) -> None:
    option = leaf.option
    text = (leaf.field.description or "").replace("%", "%%")
    kinds = _kinds(leaf.field.annotation)
    if not leaf.switch and not leaf.field.is_required():
        default = leaf.field.get_default(call_default_factory=True)
        if default not in (None, "", (), {}):
            text += f" [{' '.join(map(str, default)) if isinstance(default, tuple) else default}]"
    elif not leaf.switch:
        text += " (required)"
    metavar = _metavar(kinds, leaf)
    if len(metavar) > LONG_METAVAR:
        choices = metavar.strip("{}").replace(",", ", ")
        metavar, text = leaf.name.upper(), f"{text} (one of: {choices})"
    common: dict[str, Any] = {"default": None, "dest": leaf.name, "help": text}
    if leaf.switch or bool in kinds:
        group.add_argument(
            option, action="store_true" if leaf.switch else argparse.BooleanOptionalAction, **common
        )
    elif dict in kinds:
        group.add_argument(option, nargs="+", action=_Pairs, metavar="KEY=VALUE", **common)
    elif tuple in kinds:
        group.add_argument(option, nargs="+", action="extend", metavar=metavar, **common)
    else:
        group.add_argument(option, metavar=metavar, **common)


def _kinds(annotation: Any) -> set[Any]:
    options: tuple[Any, ...] = (
        typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    )
    return {typing.get_origin(o) or o for o in options}


def _metavar(kinds: set[Any], leaf: Leaf) -> str:
    annotation = leaf.field.annotation
    if typing.Literal in kinds:
        return "{" + ",".join(str(c) for c in typing.get_args(annotation) if c) + "}"
    if tuple in kinds:
        inner = typing.get_args(annotation)[0]
        kinds = {
            typing.get_args(inner)[0] if typing.get_origin(inner) is typing.Annotated else inner
        }
    return next(
        (text for kind, text in ((Path, "PATH"), (int, "N"), (float, "X")) if kind in kinds), "TEXT"
    )


class _Pairs(argparse.Action):
    """KEY=VALUE … → a dict."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        pairs = [v.partition("=") for v in values]
        if bad := next(
            (v for v, (_, sign, _) in zip(values, pairs, strict=True) if not sign), None
        ):
            raise ConfigError(
                f"{option_string} {bad!r} is not KEY=VALUE", cure=f"write {option_string} key=value"
            )
        before = getattr(namespace, self.dest) or {}  # an option given twice adds to itself
        setattr(namespace, self.dest, {**before, **{key: value for key, _, value in pairs}})
