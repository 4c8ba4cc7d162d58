"""`posttrain run`, `plan`, `runs`, `show` and `schema`: recipes and what they made."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD

from posttrain.cli.options import Parser, add_quiet, add_verify
from posttrain.core import manifest
from posttrain.core.console import JsonLines, Table, console, open_reporter
from posttrain.core.errors import CheckpointError, ConfigError
from posttrain.core.events import Reporter
from posttrain.core.files import read_state, state_of
from posttrain.core.manifest import MANIFEST
from posttrain.core.terminal import emit
from posttrain.pipeline.plan import ARTIFACT, NOT_MADE, Planned, plan, read_artifact
from posttrain.pipeline.recipe import Recipe, load
from posttrain.pipeline.schema import schema
from posttrain.stages import inputs
from posttrain.stages.folders import DAMAGED, SUMMARY

if TYPE_CHECKING:
    from posttrain.pipeline.estimate import Estimate


def _parser(command: str, text: str) -> Parser:
    return Parser(prog=f"posttrain {command}", description=text, allow_abbrev=False)


def _recipe_options(parser: Parser) -> None:
    parser.add_argument("recipe", type=Path, help="YAML file")
    parser.add_argument(
        "--set",
        dest="changes",
        nargs="+",
        action="extend",
        default=[],
        metavar="STAGE.OPTION=VALUE",
        help="change an option of a stage",
    )
    parser.add_argument("--out", type=Path, metavar="PATH", help="the run's folder [runs/NAME]")
    add_verify(parser)


def _read(arguments: Any) -> tuple[Recipe, Path]:
    recipe = load(arguments.recipe, arguments.changes)
    return recipe, arguments.out or Path("runs") / recipe.name


def run(argv: list[str]) -> int:
    parser = _parser(
        "run",
        "Run a recipe. What is unchanged is not run again; killed at any moment, the same command "
        "goes on.",
    )
    _recipe_options(parser)
    add_quiet(parser)
    parser.add_argument(
        "--json", action="store_true", help="progress as JSON lines on standard output"
    )
    arguments = parser.parse(argv)
    recipe, folder = _read(arguments)
    from posttrain.pipeline.run import execute

    reporter = Reporter(JsonLines()) if arguments.json else open_reporter(quiet=arguments.quiet)
    result = execute(recipe, folder, reporter, verify=arguments.verify)
    if arguments.json:
        reporter.done(folder, result.summary)
    else:
        results(result.summary)
        console().print_line(f"summary  {folder / 'summary.json'}")
    return result.exit_code


def results(summary: dict[str, Any]) -> None:
    """What the evaluations of a run came to, and where its artifacts lie."""
    from posttrain.cli.evaluate import results as show_evaluation
    from posttrain.cli.judge import results as show_trial
    from posttrain.cli.reward_model import accuracy_table

    shows = {"eval": show_evaluation, "judge": show_trial, "reward_model": accuracy_table}
    for name, stage in summary["stages"].items():
        if stage["kind"] in shows:
            console().print_line(name, style="bold")
            shows[stage["kind"]](stage["result"])
    for name, stage in summary["stages"].items():
        if stage["result"] and (verdict := stage["result"].get("verdict")):
            why = f": {verdict['why']}" if verdict["why"] else ""
            console().print_line(f"{name}: {verdict['answer']}{why}")
    table = Table(title="artifacts", box=None)
    table.add_columns("stage", "seconds", "folder", text=("stage", "folder"))
    for name, stage in summary["stages"].items():
        table.add_row(name, f"{stage['seconds']:.0f}", stage["folder"])
    console().print(table)


def show_plan(argv: list[str]) -> int:
    parser = _parser(
        "plan",
        "Show what running a recipe would do: what is made, what will run and why, and about what "
        "it takes.",
    )
    _recipe_options(parser)
    parser.add_argument("--json", action="store_true", help="as JSON")
    arguments = parser.parse(argv)
    recipe, folder = _read(arguments)
    stages = plan(recipe, folder, verify=arguments.verify)
    from posttrain.pipeline.estimate import estimates

    about = estimates(stages)
    if arguments.json:
        emit(json.dumps([_plan_json(planned, about) for planned in stages], indent=1) + "\n")
        return 0
    table = _plan_table(f"{recipe.name} → {folder}", stages, about)
    console().print(table)
    for planned in stages:
        if planned.why not in ("", NOT_MADE):  # which `will run` says
            why = f"{planned.stage.name}: {planned.why}"
            if planned.state == "damaged":
                why = f"{planned.stage.name}: damaged: {planned.why}; will be made again"
            console().print_text(why)
    if about:
        console().print("estimates, within a factor of two", style="dim")
    return 0


def _plan_json(planned: Planned, about: dict[str, Estimate]) -> dict[str, Any]:
    stage = planned.stage
    return {
        "stage": stage.name,
        "kind": stage.kind.name,
        "state": planned.state,
        "why": planned.why,
        "digest": planned.digest,
        "parents": stage.lineage,
        "folder": str(planned.folder),
        **(vars(about[stage.name]) if stage.name in about else {}),
    }


def _plan_table(title: str, stages: list[Planned], about: dict[str, Estimate]) -> Table:
    """A row a stage, readable at 80 columns."""
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("stage", overflow="fold")
    table.add_column("kind", overflow="fold")
    table.add_column("from", overflow="fold")
    table.add_column("state", no_wrap=True)
    for column in ("tokens", "time", "memory"):
        table.add_column(column, justify="right", no_wrap=True)
    for planned in stages:
        estimate = about.get(planned.stage.name)
        costs = ("", "", "") if estimate is None else _costs(estimate)
        state = {"interrupted": "goes on", "new": "will run"}.get(planned.state, planned.state)
        stage = planned.stage
        table.add_row(stage.name, stage.spec, _from(planned), state, *costs)
    return table


def _costs(estimate: Estimate) -> tuple[str, str, str]:
    """Tokens, time and memory, `?` where it cannot be said."""
    return (
        "?" if estimate.tokens is None else _millions(estimate.tokens),
        "?" if estimate.seconds is None else _time(estimate.seconds),
        "?" if estimate.memory is None else f"{estimate.memory:.1f} GiB",
    )


def _millions(tokens: int) -> str:
    return f"{tokens / 1e6:,.1f} M" if tokens >= 5e4 else "< 0.1 M"


def _from(planned: Planned) -> str:
    """The models and rows of earlier stages that a stage reads; of other models the name."""
    stage = planned.stage
    models = [
        stage.models[leaf.name].text if leaf.name in stage.models else Path(name).name
        for leaf, name in inputs.models(planned.settings)
    ]
    return ", ".join(dict.fromkeys([*models, *stage.feeds]))


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def runs(argv: list[str]) -> int:
    parser = _parser("runs", "List runs.")
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path("runs"), help="where to look [runs]"
    )
    folder = parser.parse(argv).folder
    made = [path for path in folder.glob("*") if _is_run(path)]
    if not made:
        raise ConfigError(f"there are no runs in {folder}", cure="posttrain run RECIPE makes one")
    table = Table()
    table.add_columns("run", "stages", "state", text=("run", "stages", "state"))
    for path in sorted(made, key=lambda path: path.stat().st_mtime):
        try:
            summary, damaged = _summary(path), _damage(path)
        except CheckpointError:
            summary, damaged = {}, [""]
        stages = ", ".join(summary.get("stages", {})) or "–"
        state = "damaged" if damaged else "finished" if summary else "not finished"
        table.add_row(str(path), stages, state)
    console().print(table)
    return 0


def _is_run(path: Path) -> bool:
    files = (path / "summary.json", path / "run.json")
    return (path / "artifacts").is_dir() or any(file.is_file() for file in files)


def show(argv: list[str]) -> int:
    parser = _parser("show", "Show a run or an artifact: results, and what it was made of.")
    parser.add_argument("folder", type=Path)
    add_verify(parser)
    arguments = parser.parse(argv)
    folder = arguments.folder
    _check_shown(folder)
    for line in _damage(folder, verify=arguments.verify):
        console().print_line(line, label="damaged")
    if os.path.lexists(folder / ARTIFACT):
        with state_of(folder / ARTIFACT, DAMAGED):
            _show_artifact(folder)
    elif summary := _summary(folder):
        with state_of(folder / SUMMARY, DAMAGED):
            results(summary) if "stages" in summary else console().print_json(json.dumps(summary))
    else:
        raise ConfigError(
            f"{folder} is no finished run and no artifact", cure="posttrain runs lists them"
        )
    return 0


def _show_artifact(folder: Path) -> None:
    about = read_artifact(folder)
    table = Table(box=None, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name in ("stage", "made", "seconds", "posttrain"):
        value = about[name]
        table.add_row(name, f"{value:.1f}" if name == "seconds" else value)
    table.add_row("digest", about["digest"])
    for name, value in about["inputs"]["models"].items():
        parent = about["parents"].get(name)
        table.add_row(name, value[:12] + (f"  (of {parent})" if parent else ""))
    for group in ("data", "rows"):
        for name, value in about["inputs"].get(group, {}).items():
            named = about["inputs"].get("paths", {}).get(name, name) if group == "data" else name
            table.add_row(group, f"{value[:12]}  {named}")
    table.add_row("code", about["inputs"]["code"][:12])
    console().print(table)
    if summary := _summary(folder):
        console().print_json(json.dumps(summary))


def _check_shown(folder: Path) -> None:
    """Refuse to show what is not as it was written.

    Raises:
        CheckpointError: the summary or the account of the artifact was changed.
    """
    if not (folder / MANIFEST).exists():
        return
    for damage in manifest.damage(folder / MANIFEST, content=True, only=(SUMMARY, ARTIFACT)):
        if (folder / damage.name).exists():
            raise CheckpointError(
                f"{folder}/{damage}", cure="run the command that made it again: it makes it anew"
            )


def _damage(folder: Path, *, verify: bool = False) -> list[str]:
    """What of a run or an artifact, or of a run's artifacts, is not as it was made."""
    lines: list[str] = []
    for place in (folder, *_artifacts(folder)):
        if not (place / MANIFEST).exists():
            if (place / ARTIFACT).exists():
                lines.append(f"{place / MANIFEST} is missing: nothing there can be checked")
            continue
        damages = manifest.damage(place / MANIFEST, content=verify)
        lines += [f"{place}/{damage}" for damage in damages]
    return lines


def _artifacts(folder: Path) -> list[Path]:
    """The artifacts that the summary of a recipe's run tells of."""
    stages = _summary(folder).get("stages", {})
    return [folder / "artifacts" / Path(stage["folder"]).name for stage in stages.values()]


def _summary(folder: Path) -> dict[str, Any]:
    """What a run came to; empty where it is not finished.

    Raises:
        CheckpointError: the file cannot be read.
    """
    path = folder / SUMMARY
    if not os.path.lexists(path):
        return {}
    with state_of(path, DAMAGED):
        summary = read_state(path, DAMAGED)
        for stage in dict(summary.get("stages", {})).values():
            Path(stage["folder"])
    return summary


def print_schema(argv: list[str]) -> int:
    _parser("schema", "Print the JSON schema of recipes, for editors.").parse(argv)
    emit(json.dumps(schema(), indent=1))
    return 0
