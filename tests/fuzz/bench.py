"""What the fuzz damages: a tiny model, rows, and runs that are finished and runs that were stopped.

Everything is named relative to the folder, so that a copy of it is as good as the original.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import posttrain
from posttrain.cli.main import main
from posttrain.core.events import Event, Note, Progress, Step
from posttrain.engine.network import quiet
from posttrain.stages.stage import Stage
from tests import making

ROWS = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(3) for b in range(4)]
PAIRS = [
    {"prompt": f"{a}+{b}=", "chosen": str(a + b), "rejected": str(9 - a - b) * (1 + b % 3)}
    for a in range(2)
    for b in range(4)
]
TEXT = [{"text": f"valve {i} is open"} for i in range(6)]
RECIPE = """\
name: small
stages:
  sft: {model: base, data: rows.jsonl, steps: 1, batch_size: 4, learning_rate: 1e-3, device: cpu}
  check: {stage: eval, model: sft, exact: rows.jsonl, max_tokens: 2, device: cpu}
"""

# what every command needs; the fuzz adds to it
BASIC: dict[str, list[str]] = {
    "adapt": ["--model", "base", "--data", "text.jsonl", "--steps", "1", "--batch-size", "2"],
    "sft": ["--model", "base", "--data", "rows.jsonl", "--steps", "1", "--batch-size", "2"],
    "preference": ["--model", "base", "--data", "pairs.jsonl", "--steps", "1", "--answered", "0"],
    "sample-pairs": ["--model", "base", "--data", "rows.jsonl,limit=2", "--scorer", "longest"],
    "reward-model": ["--model", "base", "--data", "pairs.jsonl", "--steps", "1"],
    "judge": ["--data", "pairs.jsonl", "--scorer", "longest"],
    "audit-reward": ["exact", "--data", "rows.jsonl"],
    "eval": ["--model", "base", "--exact", "rows.jsonl,limit=2", "--max-tokens", "2"],
    "data inspect": ["--model", "base", "--data", "rows.jsonl"],
    "data pairs": ["--data", "pairs.jsonl"],
    "data select": ["--data", "rows.jsonl", "--target", "rows.jsonl,limit=2", "--keep", "3"],
    "data split": ["--data", "rows.jsonl", "--parts", "train=0.5", "test=0.5"],
    "chat": ["--model", "base", "--prompt", "1+1=", "--max-tokens", "2"],
}
BASIC["data select"] += ["--quality", "off"]
BASIC["sample-pairs"] += ["--n", "2", "--max-tokens", "2"]
FOLDERLESS = ("chat", "data inspect", "audit-reward")  # commands that need no --out


def argv_of(command: str) -> list[str]:
    """A command that works, and writes to `out`."""
    out = [] if command in FOLDERLESS else ["--out", "out"]
    return [*command.split(), *BASIC[command], *out]


# run → the command that made it and goes on with it; each is stopped or finished, see `make`
RUNS: dict[str, list[str]] = {
    "runs/sft": [*argv_of("sft")[:-1], "runs/sft", "--validation", "rows.jsonl,limit=2"],
    "runs/stopped": [*argv_of("sft")[:-1], "runs/stopped", "--checkpoint-every", "1"],
    "runs/pairs": [*argv_of("preference")[:-1], "runs/pairs", "--checkpoint-every", "1"],
    "runs/eval": [*argv_of("eval")[:-1], "runs/eval"],
    "runs/asked": [*argv_of("eval")[:-1], "runs/asked", "--perplexity", "text.jsonl"],
    "runs/sampled": [*argv_of("sample-pairs")[:-1], "runs/sampled", "--batch-size", "1"],
    "runs/split": [*argv_of("data split")[:-1], "runs/split"],
    "clean.jsonl": [*argv_of("data select")[:-1], "clean.jsonl"],
    "runs/small": ["run", "small.yaml", "--out", "runs/small"],
}
RUNS["runs/stopped"] += ["--steps", "3"]
RUNS["runs/pairs"] += ["--steps", "3"]


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work in a folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def make(folder: Path, runs: tuple[str, ...] = tuple(RUNS)) -> Path:
    """Write the model and the rows, and make the runs."""
    with quiet():
        making.model(folder / "base")
    for name, rows in (("rows", ROWS), ("pairs", PAIRS), ("text", TEXT)):
        making.write(folder / f"{name}.jsonl", rows)
    (folder / "small.yaml").write_text(RECIPE)
    (folder / "odd").mkdir()  # names that are no UTF-8 come with a pattern, or with their folder
    shutil.copy(folder / "rows.jsonl", os.fsencode(folder / "odd") + b"/caf\xe9.jsonl")
    stops: dict[str, tuple[Stage[Any], Callable[[Event], bool]]] = {
        "runs/stopped": (posttrain.sft, lambda event: _is_step(event, 2)),
        "runs/pairs": (posttrain.preference, lambda event: _is_step(event, 2)),
        "runs/asked": (posttrain.evaluate, lambda event: _is_note(event, "perplexity")),
        "runs/sampled": (posttrain.sample_pairs, lambda event: _is_progress(event, "sampling")),
    }
    with inside(folder), contextlib.redirect_stdout(io.StringIO()):
        for run in runs:
            if run not in stops:
                assert main([*RUNS[run], *([] if run == "runs/small" else ["--quiet"])]) == 0, run
                continue
            stage, when = stops[run]
            _stopped(stage, RUNS[run], when)
            assert (folder / run / "run.json").is_file(), run
            assert not (folder / run / "summary.json").exists(), run
    return folder


def _stopped(stage: Stage[Any], argv: list[str], when: Callable[[Event], bool]) -> None:
    """Run a stage, and leave it in the middle, as Ctrl-C does."""
    from posttrain.cli.options import flat, parser
    from posttrain.core.events import Reporter
    from posttrain.core.settings import assemble

    def stop(event: Event) -> None:
        if when(event):
            raise KeyboardInterrupt

    words = len(stage.command.split())
    arguments = parser("", "", stage.settings).parse(argv[words:])
    with contextlib.suppress(KeyboardInterrupt):
        stage.run(assemble(stage.settings, flat(arguments, stage.settings)), Reporter(stop))


def _is_step(event: Event, number: int) -> bool:
    return isinstance(event, Step) and event.step == number


def _is_note(event: Event, text: str) -> bool:
    return isinstance(event, Note) and event.label == "measured" and text in event.text


def _is_progress(event: Event, label: str) -> bool:
    return isinstance(event, Progress) and event.label == label and event.done > 0
