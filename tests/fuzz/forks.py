"""Runs commands in forked children, each in a copy of the bench that was damaged for it, and judges
how they end.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from posttrain.core.files import remove_partial  # noqa: F401 - imported before the forks
from tests.engine.lives import live

HANG = 60.0  # seconds of a case; it takes a second
MEMORY = 8 * 2**30  # bytes of address space beyond which a child may not go
GOOD = (0, 2, 10)  # done, an error with a cure, or an audit that found something


@dataclass(frozen=True)
class Case:
    """One command under bad luck.

    Attributes:
        name: for people, and to run it again.
        argv: the command.
        runs: of the bench, which the command finds; the model and the rows are always there.
        damage: what is done in the copy before the command runs.
        prepare: what is done in the child, after its output was redirected.
        names: what an error must name; empty: anything.
        says: what must be in what it says.
        codes: exit codes that are right.
        silent: nothing of what it says can be read.
    """

    name: str
    argv: list[str]
    runs: tuple[str, ...] = ()
    damage: Callable[[Path], None] = lambda folder: None
    prepare: Callable[[], None] = lambda: None
    names: str = ""
    says: str = ""
    codes: tuple[int, ...] = GOOD
    silent: bool = False


@dataclass
class Child:
    """A case that runs."""

    case: Case
    folder: Path
    pid: int
    begun: float = field(default_factory=time.monotonic)

    @property
    def log(self) -> Path:
        return self.folder.with_suffix(".log")


def run(
    cases: Iterable[Case], bench: Path, work: Path, jobs: int = 1
) -> Iterator[tuple[Case, str]]:
    """Run cases; gives each with what is wrong with its end, empty where nothing is.

    Args:
        bench: made by `bench.make`. work: an empty folder for the copies.
    """
    waiting, children = enumerate(cases), list[Child]()
    over = False
    while children or not over:
        while not over and len(children) < jobs:
            number, case = next(waiting, (0, None))
            if case is None:
                over = True
            else:
                children.append(_start(case, bench, work / str(number) / "here"))
        time.sleep(0.001)
        for child in tuple(children):
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            late = time.monotonic() - child.begun > HANG
            if not pid and late:
                os.kill(child.pid, signal.SIGKILL)
                os.waitpid(child.pid, 0)
            if pid or late:
                children.remove(child)
                wrong = f"no end after {HANG:.0f} s" if not pid else _wrong(child, status)
                yield child.case, wrong
                shutil.rmtree(child.folder.parent, ignore_errors=True)


def _start(case: Case, bench: Path, folder: Path) -> Child:
    folder.mkdir(parents=True)
    # copies, not links: a command may be told to write anywhere, and the bench is everybody's
    inputs = [path.name for path in bench.iterdir() if path.name != "runs"]
    for name in (*inputs, *(run for run in case.runs if run.startswith("runs"))):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (bench / name).is_dir():
            shutil.copytree(bench / name, folder / name, symlinks=True)
        else:
            shutil.copy2(bench / name, folder / name)
    case.damage(folder)

    def prepare() -> None:
        os.chdir(folder)
        # what pytest captures is the parent's; SIM115: they are open as long as the child lives
        sys.stdin = open(os.devnull)  # noqa: SIM115
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (int(HANG), int(HANG)))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        case.prepare()

    log = folder.with_suffix(".log")
    return Child(case, folder, live(case.argv, prepare, log))


def _wrong(child: Child, status: int) -> str:
    """What is wrong with how a case ended."""
    case, code = child.case, os.waitstatus_to_exitcode(status)
    said = child.log.read_text(errors="replace") if child.log.exists() else ""
    if "Traceback (most recent call last)" in said or "Exception ignored" in said:
        return f"a traceback, code {code}:\n{said[-2500:]}"
    if code not in case.codes:
        return f"code {code}:\n{said[-1500:]}"
    if case.says not in said:
        return f"it does not say {case.says!r}:\n{said[-1500:]}"
    if case.silent or code != 2 or "\nFAIL" in said:
        return ""
    if "error: " not in said or "\ncure:  " not in said:
        return f"an error without a cure:\n{said[-1500:]}"
    if case.names and case.names not in said.partition("error: ")[2]:
        return f"the error does not name {case.names}:\n{said[-1500:]}"
    return ""


def describe(case: Case) -> str:
    """A case in a line."""
    return f"{case.name}: posttrain {' '.join(word[:80] for word in case.argv)}"


def everything() -> None:
    """Import what commands import, so that no child does."""
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import torch
    import transformers  # noqa: F401
    from rich.progress import Progress  # noqa: F401

    import posttrain.cli.chat
    import posttrain.cli.data_inspect
    import posttrain.cli.pipeline
    import posttrain.engine.reward
    import posttrain.scoring.learned
    import posttrain.serve.voice  # noqa: F401

    torch.set_num_threads(1)  # threads do not survive a fork
    sys.stdout.flush()
