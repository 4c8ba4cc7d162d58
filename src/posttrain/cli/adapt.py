"""`posttrain adapt`: domain adaptation on raw text."""

from __future__ import annotations

from posttrain.cli.options import read
from posttrain.cli.sft import show
from posttrain.stages.adapt import AdaptSettings, run


def main(argv: list[str]) -> int:
    settings, observer = read(
        "adapt",
        "Adapt a model to the text of a domain, with replay against forgetting. Killed at any"
        " moment, the same command goes on where it was.",
        AdaptSettings,
        argv,
    )
    outcome = run(settings, observer)
    show(outcome)
    return 0
