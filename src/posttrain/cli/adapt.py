"""`posttrain adapt`: domain adaptation on raw text."""

from __future__ import annotations

from posttrain.cli.options import flat, parser
from posttrain.cli.sft import show
from posttrain.core.console import ConsoleObserver
from posttrain.core.settings import assemble
from posttrain.stages.adapt import AdaptSettings, run


def main(argv: list[str]) -> int:
    options = parser("adapt", "Adapt a model to the text of a domain, with replay against forgetting. Killed at any moment, the "
                     "same command goes on where it was.", AdaptSettings)
    arguments = options.parse(argv)
    outcome = run(assemble(AdaptSettings, flat(arguments, AdaptSettings)), ConsoleObserver(quiet=arguments.quiet))
    show(outcome)
    return 0
