"""`posttrain replay RUN --step K`: one step again, and whether it comes to the same."""

from __future__ import annotations

from pathlib import Path

from posttrain.cli.options import Parser
from posttrain.core.console import console, open_reporter
from posttrain.core.errors import ConfigError

DIFFERS = 10  # the exit code where something differs


def main(argv: list[str]) -> int:
    parser = Parser(
        prog="posttrain replay",
        description=(
            "Run one step of reinforcement learning again, from the checkpoint before it and the "
            "journal of rollouts, and say what comes out differently: from what the run wrote "
            "down, or from the same step of another run. Nothing is written."
        ),
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, help="folder of a run of posttrain rl")
    parser.add_argument("--step", metavar="K", required=True, help="number of the step, from 1")
    parser.add_argument(
        "--against", type=Path, metavar="RUN", help="another run, whose step is run again, too"
    )
    parser.add_argument(
        "--quiet", action="store_true", help="show nothing but trouble and the result"
    )
    arguments = parser.parse(argv)
    if not arguments.step.isascii() or not arguments.step.isdigit():
        raise ConfigError(f"--step {arguments.step!r} is no number", cure="give a step, from 1")
    return _compare(arguments.run, int(arguments.step), arguments.against, quiet=arguments.quiet)


def _compare(folder: Path, step: int, against: Path | None, *, quiet: bool) -> int:
    """Replay and print; returns the exit code."""
    from posttrain.stages.replay import replay

    reporter, out = open_reporter(quiet=quiet), console()
    trace = replay(folder, step, reporter)
    others, name = trace.recorded, "what the run wrote down"
    if against is not None:
        others, name = replay(against, step, reporter).arrays, f"step {step} of {against}"
    compared = [array for array in trace.arrays if array in others]
    out.print_line(
        f"step {step} of {folder}, from "
        + (f"the checkpoint of step {trace.began}" if trace.began else "the run's start")
    )
    if differing := trace.differs_from(others):
        before = compared.index(differing)
        out.print_line(
            f"the first of {len(compared):,} arrays that differs from {name}: {differing} "
            f"({before:,} before it are the same)"
        )
        return DIFFERS
    out.print_line(f"{len(compared):,} arrays, all as {name}, to the bit")
    return 0
