"""Which stages this package has, without importing them: the name and the line of help are read
from the decorator in each file. So a new stage is one file, and help is instant.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# in the order in which one uses them; others follow by name
WORKFLOW = (
    "adapt",
    "sft",
    "preference",
    "rl",
    "sample_pairs",
    "reward_model",
    "judge",
    "audit_reward",
    "eval",
)
_DECORATOR = re.compile(r'^@stage\(\s*"(\w+)",.*?\bhelp="([^"]+)"', re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Entry:
    """A stage of this package.

    Attributes:
        name: in recipes. module: where it is. help: one line.
    """

    name: str
    module: str
    help: str

    @property
    def command(self) -> str:
        return command_of(self.name)


@cache
def entries() -> dict[str, Entry]:
    """The stages of this package by name."""
    found: list[Entry] = []
    for path in Path(__file__).parent.glob("*.py"):
        for name, help in _DECORATOR.findall(path.read_text(encoding="utf-8")):
            found.append(Entry(name, f"posttrain.stages.{path.stem}", help))
    order = {name: i for i, name in enumerate(WORKFLOW)}
    found.sort(key=lambda entry: (order.get(entry.name, len(order)), entry.name))
    return {entry.name: entry for entry in found}


def command_of(name: str) -> str:
    """A stage on the command line: hyphens for underscores, and `data` is a word of its own."""
    group, _, rest = name.partition("_")
    return f"data {rest.replace('_', '-')}" if group == "data" else name.replace("_", "-")
