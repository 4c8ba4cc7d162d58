"""The options are a promise: every one, its type and its default are written down in
tests/golden/options.txt.
"""

from __future__ import annotations

import types
import typing
from pathlib import Path
from typing import Any

import pytest

from posttrain.cli.main import OTHERS, commands
from posttrain.core.errors import ConfigError
from posttrain.core.settings import Needs, Settings, Unless, assemble, leaves
from posttrain.engine.settings import ValidationSettings
from posttrain.serve.settings import ChatSettings
from posttrain.stages.index import entries
from posttrain.stages.registry import find
from posttrain.stages.sft import SftSettings

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


# command, options, the setting that has no effect, what else would do
IDLE = [
    ("sft", {"patience": 2}, "--validation"),
    ("adapt", {"validate_every": 5}, "--validation"),
    ("reward-model", {"keep_best": True}, "--validation"),
    ("preference", {"answered": 4}, "--validation"),
    ("preference", {"method": "ipo", "mix": {"dpo": 1.0}}, "--mix"),
    ("adapt", {"replay_share": 0.2}, "--replay"),
    ("sft", {"epochs": 2, "steps": 3}, "--steps"),
    ("sft", {"run_name": "x"}, "--track"),
    ("sft", {"template_kwargs": {"a": 1}, "prompt_template": "{prompt}"}, "--prompt-template"),
    ("sft", {"chat_template": "t.jinja", "prompt_template": "{prompt}"}, "--prompt-template"),
    ("eval", {"match": "number", "win": "w"}, "--exact or --task"),
    ("eval", {"max_tokens": 9, "choice": "c"}, "--exact or --win or --task"),
    ("eval", {"judge_thinking": True, "prefer": "p"}, "--exact or --win or --task"),
    ("eval", {"choice_delimiter": " ", "exact": "e"}, "--choice or --task"),
    ("data select", {"embed_tokens": 9}, "--by embedding"),
    ("data select", {"near": 0.5, "dedupe": False, "against_target": False}, "--dedupe"),
    ("data select", {"min_words": 2, "quality": "off"}, "--quality on"),
    ("data pairs", {"pairs_per_prompt": 2}, "--to pairs"),
    ("data pairs", {"keep_ambiguous": True, "to": "pairs"}, "--to labels"),
    ("data inspect", {"rows": ("spread",), "examples": 0}, "--examples"),
]


def required(settings: type[Settings]) -> dict[str, Any]:
    """Values of what must be given."""
    given = {"keep": 3}
    return {
        leaf.name: given.get(leaf.name, "x")
        for leaf in leaves(settings)
        if leaf.field.is_required() and not leaf.switch and "lora" not in leaf.path
    }


@pytest.mark.parametrize(("command", "given", "other"), IDLE, ids=lambda v: str(v)[:40])
def test_a_given_option_without_effect_is_refused(
    command: str, given: dict[str, Any], other: str
) -> None:
    settings = every_settings()[command]
    with pytest.raises(ConfigError, match=f"has no effect (without|beside) {other}") as caught:
        assemble(settings, {**required(settings), **given})
    assert caught.value.option == next(iter(given))
    assert next(iter(given)).replace("_", "-") in caught.value.cure


def test_defaults_and_what_is_off_are_never_refused() -> None:
    for settings in every_settings().values():
        assemble(settings, required(settings))
    given = {**required(SftSettings), "patience": None, "keep_best": False}
    assemble(SftSettings, given)
    assemble(SftSettings, {**given, "validation": "v", "patience": 2, "keep_best": True})


def test_settings_made_from_groups_refuse_it_too() -> None:
    data: Any = {"data": ("d",)}
    with pytest.raises(ConfigError, match="--patience has no effect without --validation"):
        SftSettings(model="m", out=Path("o"), data=data, validation=ValidationSettings(patience=2))


def test_what_an_option_needs_is_an_option_of_its_command() -> None:
    for command, settings in every_settings().items():
        known = {leaf.name for leaf in leaves(settings)}
        for leaf in leaves(settings):
            for role in leaf.roles:
                if isinstance(role, Needs):
                    assert set(role.others) <= known, (command, leaf.name)
                if isinstance(role, Unless):
                    assert role.other in known, (command, leaf.name)
