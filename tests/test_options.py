"""The options are a promise: every one, its type and its default are written down in
tests/golden/options.txt.
"""

from __future__ import annotations

import types
import typing
from pathlib import Path
from typing import Any

from posttrain.cli.main import OTHERS, commands
from posttrain.core.settings import Settings, leaves
from posttrain.serve.settings import ChatSettings
from posttrain.stages.index import entries
from posttrain.stages.registry import find

GOLDEN = Path(__file__).parent / "golden" / "options.txt"


def every_settings() -> dict[str, type[Settings]]:
    """Every command that has settings, and what its options are made from."""
    stages = {entry.command: find(name).settings for name, entry in entries().items()}
    known = {**stages, "chat": ChatSettings}
    return {command: known[command] for command in commands() if command in known}


def spelled(annotation: Any) -> str:
    """A type as one would write it."""
    arguments = typing.get_args(annotation)
    # the range is checked elsewhere; the type is its first argument
    if typing.get_origin(annotation) is typing.Annotated:
        return spelled(arguments[0])
    if isinstance(annotation, types.UnionType):
        return " | ".join(map(spelled, arguments))
    if typing.get_origin(annotation) is typing.Literal:
        return "{" + ",".join(map(str, arguments)) + "}"
    if arguments:
        inside = ", ".join("..." if a is ... else spelled(a) for a in arguments)
        return f"{typing.get_origin(annotation).__name__}[{inside}]"
    return "None" if annotation is type(None) else annotation.__name__


def table() -> str:
    """One line an option: command, option, type, default."""
    lines = []
    for command, settings in every_settings().items():
        for leaf in leaves(settings):
            option = f"--{leaf.name.replace('_', '-')}"
            default = (
                "required"
                if leaf.field.is_required()
                else repr(leaf.field.get_default(call_default_factory=True))
            )
            kind = "switch" if leaf.switch else spelled(leaf.field.annotation)
            lines.append(f"{command}  {option:<28}{kind:<36}{default}")
    return "\n".join(lines) + "\n"


def test_every_command_is_here() -> None:
    recipes = OTHERS.keys() - {"chat"}  # their options are a recipe's
    assert every_settings().keys() == commands().keys() - recipes


def test_the_options_are_what_was_promised() -> None:
    promised, now = GOLDEN.read_text().splitlines(), table().splitlines()
    gone, new = [x for x in promised if x not in now], [x for x in now if x not in promised]
    assert promised == now, "\n".join(
        [
            "the options are no longer those in tests/golden/options.txt",
            *(f"  - {x}" for x in gone),
            *(f"  + {x}" for x in new),
            "If that is what you want, write it down and say so in CHANGELOG.md:",
            "  python -m tests.test_options",
        ]
    )


def test_every_option_says_what_it_is() -> None:
    silent = [
        f"{command} {leaf.name}"
        for command, settings in every_settings().items()
        for leaf in leaves(settings)
        if not leaf.field.description
    ]
    assert silent == []


if __name__ == "__main__":
    GOLDEN.write_text(table())
    print(f"wrote {GOLDEN}")
