"""Writes docs/reference/cli.md from the parsers of the command line, docs/reference/recipes.md from
the schema of recipes, and docs/reference/coming-from.md from the table of others' names.

python docs/generate.py          write the pages
python docs/generate.py --check  exit 1 where one is out of date
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from posttrain.cli.main import OTHERS, commands
from posttrain.cli.options import Parser, stage_parser
from posttrain.core import peers
from posttrain.core.settings import Destination, ExecutionOnly, ReadsModel, leaves, with_role
from posttrain.data.settings import COLUMNS, Source
from posttrain.pipeline.schema import schema
from posttrain.stages.index import entries
from posttrain.stages.registry import find
from posttrain.stages.stage import kind_of

REFERENCE = Path(__file__).parent / "reference"

COMMAND_LINE = """# Command line

<!-- Made from the parsers by `make docs`; a test fails where it is out of date. -->

    posttrain COMMAND [options]

| command | what it does |
|---|---|
{commands}

`posttrain --help` lists the commands, `posttrain COMMAND --help` a command's options, `posttrain --version` the version.
Progress goes to standard error, results to standard output. What the exit codes mean:
[errors and exit codes](errors-and-exit-codes.md).

`posttrain FILE.py:NAME` runs a stage [of your own](../how-to/write-a-stage.md), with options made from its settings.

Every option is also a keyword of the Python function of the same name, with underscores for hyphens:
`--learning-rate 1e-4` is `learning_rate=1e-4`. An unknown option is an error that names the one that was meant: by spelling, or
[by meaning where it is another trainer's](coming-from.md). So is an option that has no effect beside the others (`--patience`
without `--validation`). An option that takes several values may also be given several times.
"""

RECIPES = """# Recipes

<!-- Made from the schema of recipes by `make docs`; a test fails where it is out of date. -->

The recipe file, key by key. How to use one: [run a recipe](../how-to/run-a-recipe.md).

```yaml
name: support
stages:
  adapt: {{model: models/base, data: manual.txt, replay: "${{TEXTS}}/general.jsonl"}}
  sft:
    model: adapt
    data: [train.jsonl, "small-talk.jsonl,share=0.1"]
    learning_rate: 1e-4
  check: {{stage: eval, model: sft, against: models/base, exact: questions.jsonl}}
```

## The file

Strict YAML 1.2 in UTF-8. An unknown key, a key that stands twice and a value that does not fit are errors with file, line and the
nearest known name; nothing is run.

| key | value | |
|---|---|---|
{keys}

Names, of recipes and of stages, are letters, digits, `-` and `_`; they begin with a letter or a digit.

## Stages

A stage is a mapping: `stage`, which says its kind, and the options of that kind. Without `stage` it is of the kind it is named
after. `out` is no option: a stage's artifact has its folder in the run's.

| kind | | settings that name a model | makes |
|---|---|---|---|
{kinds}

A setting that names a model takes the name of a stage that comes before it and makes a model, or a folder or hub id. The name of
a stage is always the stage; a folder of that name is `./NAME`. Where rows are read, the name of a stage that comes before it and
makes rows stands for these rows. A stage that makes several is `STAGE` for the first and `STAGE.OUTPUT` for the others.

`stage: FILE.py:NAME`, or `package.module:NAME`, is a stage [of your own](../how-to/write-a-stage.md).

## Values

| written | means |
|---|---|
| `1e-4`, `2.5`, `7` | numbers, as in YAML 1.2: `010` is 10; `0o17` and `0x1f`; `1:30:00` and `1_000` are text |
| `true`, `false` | these words alone; `on`, `off`, `yes` and `no` are text |
| `null` | unset, where an option may be (`steps: null`) |
| `[a.jsonl, b.jsonl]` | a list; where a list is wanted, one value stands for a list of one |
| `{{embed: 0}}` | a mapping: where the command line takes `KEY=VALUE` |
| `${{NAME}}` | an environment variable, inside any text of a stage's options; an error if it is not set. `$NAME` is text |

Paths are relative to where the command runs. A group that may be absent is turned on by its name (`lora: true`) or by any of its
options (`lora_rank: 8`).

## Data

Where rows are read, a value is a source: `FILE`, `FILE,option=value,…` or a mapping (`{{path: FILE, limit: 5}}`). `FILE` is a
file, a folder, a glob or the hub id of a data set ([which files and shapes](../how-to/use-your-own-data.md),
[formats](data-formats.md)).

| option | value | default | |
|---|---|---|---|
{sources}
| a column of ours | text | | the file's column that it is: `prompt=question`. In a mapping: `columns: {{prompt: question}}` |

Columns of ours: {columns}.

{stages}
## Changes from the command line

    posttrain run support.yaml --set sft.learning_rate=5e-5 check.max_tokens=24

`--set STAGE.OPTION=VALUE …` sets an option of a stage before the recipe is checked; the value is YAML, by the same rules:
`--set "sft.data=[a.jsonl, b.jsonl]"`. `posttrain plan` takes it, too.

## Identity

Stages that are what they were are not made again. {execution} do not count:
[what does](../how-to/run-a-recipe.md#what-makes-an-artifact-the-same).

## JSON schema

    posttrain schema > recipe.schema.json

prints what this page says as a JSON schema (draft 2020-12), for editors that check while one types:

    # yaml-language-server: $schema=recipe.schema.json

## Exit codes

Of `posttrain run`, `plan` and `schema`, as of every command: 0 done, 2 something you can mend (the message says file, line and
cure), 130 interrupted; the same command goes on. A run whose stages decide something ends with the code of the worst verdict.
[All of them](errors-and-exit-codes.md).
"""


class _Found(Exception):
    def __init__(self, parser: Parser) -> None:
        self.parser = parser


def parser_of(command: str) -> Parser:
    """The parser of a command: of a stage made from its settings, of another one caught when it is
    about to read its arguments.
    """
    stages = {entry.command: name for name, entry in entries().items()}
    if command in stages:
        stage = find(stages[command])
        return stage_parser(command, stage.description, stage.settings)

    def catch(self: Parser, argv: list[str]) -> argparse.Namespace:
        raise _Found(self)

    parse, Parser.parse = Parser.parse, catch
    try:
        module, _, function = OTHERS[command][0].partition(":")
        getattr(import_module(module), function)([])
    except _Found as found:
        return found.parser
    finally:
        Parser.parse = parse
    raise RuntimeError(f"posttrain {command} does not use posttrain.cli.options.Parser")


def command_line() -> str:
    table = "\n".join(
        f"| [`posttrain {name}`](#posttrain-{'-'.join(name.split())}) | {help} |"
        for name, help in commands().items()
    )
    return "\n".join([COMMAND_LINE.format(commands=table), *map(section, commands())])


def section(command: str) -> str:
    parsed = parser_of(command)
    lines = [f"## posttrain {command}", "", parsed.description or "", ""]
    for group in parsed._action_groups:
        actions = [a for a in group._group_actions if a.option_strings != ["-h", "--help"]]
        if not actions:
            continue
        lines += [
            "" if group.title == "options" else f"### {group.title}\n",
            "| option | |",
            "|---|---|",
        ]
        lines += [f"| {spelled(action)} | {cell(action.help or '')} |" for action in actions] + [""]
    return "\n".join(lines)


def spelled(action: argparse.Action) -> str:
    """The option as one types it."""
    names = "`, `".join(action.option_strings) or (action.metavar or action.dest).upper()
    value = f" {action.metavar}" if action.metavar and action.option_strings else ""
    return f"`{names}{value}{' …' if action.nargs == '+' else ''}`".replace("|", "\\|")


def cell(text: str) -> str:
    return text.replace("%%", "%").replace("|", "\\|").replace("{prompt}", "`{prompt}`")


# ------------------------------------------------------------------------------------------ recipes


def recipes() -> str:
    top = schema()
    stages = top["properties"]["stages"]["properties"]
    keys = [
        row(
            f"`{name}`",
            kind(one),
            one["description"] + (" (required)" if name in top["required"] else ""),
        )
        for name, one in top["properties"].items()
    ]
    kinds = [
        row(
            f"[`{name}`](#stage-{name})",
            entry.help,
            ", ".join(f"`{leaf.name}`" for leaf in with_role(find(name).settings, ReadsModel)),
            makes(name),
        )
        for name, entry in entries().items()
    ]
    found = Source.model_json_schema()["properties"]
    sources = [
        row(f"`{name}`", kind(one), default(one), one["description"])
        for name, one in found.items()
        if name not in ("path", "columns")
    ]
    execution = dict.fromkeys(
        f"`{leaf.name}`"
        for name in entries()
        for leaf in leaves(find(name).settings)
        if leaf.has(ExecutionOnly)
    )
    return RECIPES.format(
        keys="\n".join(keys),
        kinds="\n".join(kinds),
        sources="\n".join(sources),
        execution=", ".join(execution),
        columns=", ".join(f"`{name}`" for name in COLUMNS),
        stages="\n".join(stage(name, stages[name]) for name in stages),
    )


def makes(name: str) -> str:
    """What a kind of stage makes: outputs by name; of those that depend on the settings the rule."""
    kind = find(name)
    if callable(kind.makes):
        return (kind.makes.__doc__ or "").strip().rstrip(".")
    return ", ".join(f"`{output}`, {NOUNS[kind_of(path)]}" for output, path in kind.makes.items())


def stage(name: str, rule: dict[str, Any]) -> str:
    """The options of one kind of stage."""
    command = entries()[name].command
    hidden = ", ".join(f"`{leaf.name}`" for leaf in with_role(find(name).settings, Destination))
    same = (
        f"The options of [`posttrain {command}`](cli.md#posttrain-{command.replace(' ', '-')}) but "
        f"{hidden}. "
    )
    lines = [
        f"## stage: {name}",
        "",
        f"{same}Without a default an option is unset.",
        "",
        "| option | value | default | |",
        "|---|---|---|---|",
    ]
    for option, one in rule["properties"].items():
        if option != "stage":
            lines.append(
                row(
                    f"`{option}`",
                    kind(one),
                    "required" if option in rule["required"] else default(one),
                    one["description"],
                )
            )
    return "\n".join([*lines, ""])


def row(*cells: str) -> str:
    return f"| {' | '.join(cell(as_key(one)) for one in cells)} |"


def as_key(text: str) -> str:
    """`--max-length` of a help text as the key it is in a recipe."""
    return re.sub(r"--([a-z][a-z-]*)", lambda found: f"`{found[1].replace('-', '_')}`", text)


def default(one: dict[str, Any]) -> str:
    value = one.get("default")
    return (
        ""
        if value in (None, "", [], {})
        else f"`{value if isinstance(value, str) else json.dumps(value)}`"
    )


def kind(one: dict[str, Any]) -> str:
    """A JSON schema in a word or two."""
    if "anyOf" in one:
        some = [x for x in one["anyOf"] if x.get("type") != "null"]
        single = [kind(x) for x in some if x.get("type") != "array"]
        return " or ".join(single) + (", or a list" if len(single) < len(some) else "")
    if "enum" in one:
        return ", ".join(f"`{value}`" for value in one["enum"] if value)
    if "prefixItems" in one:
        return f"[{', '.join(kind(x) for x in one['prefixItems'])}]"
    if one.get("type") == "array":
        return f"list: {kind(one['items'])}"
    if one.get("type") == ["string", "object"]:
        return "source"
    word = {
        "string": "path" if one.get("format") == "path" else "text",
        "integer": "integer",
        "number": "number",
        "boolean": "`true`, `false`",
        "object": "mapping",
    }[one["type"]]
    bounds = [
        f"{sign} {one[name]:g}"
        for name, sign in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
            ("exclusiveMaximum", "<"),
        )
        if name in one
    ]
    return f"{word} {' and '.join(bounds)}".strip()


NOUNS = {"model": "a model", "rows": "rows", "file": "a file"}


# -------------------------------------------------------------------------------------- coming from


COMING_FROM = """# Coming from TRL, axolotl, LLaMA-Factory, Unsloth, torchtune

<!-- Made from posttrain.core.peers by `make docs`; a test fails where it is out of date. -->

What their options and commands are here. An option of theirs, on the command line, in a recipe or in Python, is an error that
says the same. Names are with underscores; on the command line ours have hyphens. Names of transformers' `TrainingArguments` stand
under TRL, and hold for LLaMA-Factory and Unsloth, too.

## Commands

{commands}

## Options

{options}
"""


def coming_from() -> str:
    return COMING_FROM.format(
        commands=peer_table(peers.COMMANDS, "posttrain "), options=peer_table(peers.OPTIONS, "")
    )


def peer_table(table: tuple[peers.Peer, ...], prefix: str) -> str:
    lines = ["| theirs | here |", "|---|---|"]
    for peer in table:
        theirs = "; ".join(
            f"{trainer}: " + ", ".join(f"`{name}`" for name in names)
            for trainer, names in peers.trainers(peer)
        )
        ours = ", ".join(f"`{prefix}{name}`" for name in peer.ours)
        note = f"`{peer.note}`" if peer.note.startswith("--") else peer.note
        lines.append(f"| {theirs} | {', '.join(filter(None, (ours, note)))} |")
    return "\n".join(lines)


PAGES = {
    REFERENCE / "cli.md": command_line,
    REFERENCE / "recipes.md": recipes,
    REFERENCE / "coming-from.md": coming_from,
}


def main(argv: list[str]) -> int:
    if "--check" in argv:
        return (
            0
            if all(path.is_file() and path.read_text() == page() for path, page in PAGES.items())
            else 1
        )
    REFERENCE.mkdir(exist_ok=True)
    for path, page in PAGES.items():
        path.write_text(page())
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
