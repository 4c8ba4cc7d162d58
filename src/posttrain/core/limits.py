"""What one input may cost at most, so that none fills the memory or goes on without an end.

Data, recipes and chat templates come from elsewhere. Files are streamed and may be of any size;
what is limited is what has to be held, or done, at once: a row, a page of a file, a rendering.
`POSTTRAIN_LIMITS=4` in the environment allows four times as much of all of it.
"""

from __future__ import annotations

import math
import os

from posttrain.core.errors import ConfigError

VARIABLE = "POSTTRAIN_LIMITS"
MB = 2**20

ROW = 16 * MB  # bytes of a row: a line, a record, an element of an array, a file that is one text
DEPTH = 256  # objects and lists inside one another in a row or a recipe
EXPANDED = 256 * MB  # bytes that a part of a compressed file may have, whatever its size
EXPANSION = 1000  # beyond that, how many times its size a file may have when it is read
RECIPE = MB // 4  # bytes of a recipe
RECIPE_VALUES = 100_000  # values of a recipe, those behind an alias counted wherever it stands
TEMPLATE = MB // 4  # characters of a chat template
# of rendering one, in about nanoseconds and characters: see `data.templates.sandbox`
RENDERING = 2**25
RENDERING_PER_CHARACTER = 2**12  # of the conversation
RENDERING_MOST = 2**28


def limit(base: int) -> int:
    """A limit as this environment has it.

    Raises:
        ConfigError: the variable holds no positive number.
    """
    text = os.environ.get(VARIABLE, "1")
    try:
        factor = float(text)
    except ValueError:
        factor = math.nan
    if not 0 < factor < math.inf:
        raise ConfigError(
            f"{VARIABLE}={text!r} in the environment is no positive number",
            cure=f"for example {VARIABLE}=4, which allows four times as much",
        )
    return max(1, int(base * factor))


def megabytes(size: int) -> str:
    """`16 MB`, `95 kB`"""
    return f"{size / MB:,.0f} MB" if size >= MB else f"{size / 1024:,.0f} kB"


RAISE = f"if it is meant, {VARIABLE}=4 in the environment allows four times as much"
