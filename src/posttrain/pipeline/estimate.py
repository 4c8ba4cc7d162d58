"""What a stage will take, roughly, before it runs: tokens from its rows, time from a short
measurement.

Four bytes of a row are about a token. Small files are read whole; of large ones the first rows say
how many there are and how long. A token takes 6 operations a parameter to train (forward and
backward) and 2 to score; this machine's rate is measured with a matrix product, of which training
reaches about a third. Within a factor of two where a row's columns are what is trained.

Left out: validation, and the answers that an evaluation writes.
"""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass
from functools import cache
from typing import Any

from safetensors import SafetensorError, safe_open

from posttrain.core.errors import DataError
from posttrain.data.formats import detect
from posttrain.data.plan import shares
from posttrain.data.rows import Rejects, Row
from posttrain.data.settings import Source
from posttrain.data.sources import files, read, size
from posttrain.pipeline.plan import Planned
from posttrain.pipeline.recipe import Stage
from posttrain.stages import dataset, inputs
from posttrain.stages.stage import kind_of
from posttrain.stages.training import TrainingSettings

REACHED = 0.3  # of the rate of a matrix product
SMALL = 4 * 2**20  # bytes of a source that is read whole
SAMPLE = 10_000  # rows of a larger one that are read


@dataclass(frozen=True)
class Estimate:
    """Tokens, seconds and GiB that a stage will take; None where it cannot be said."""

    tokens: int | None
    seconds: float | None
    memory: float | None


@dataclass(frozen=True)
class Size:
    """What a source comes to: sequences, and tokens of all of them."""

    sequences: int
    tokens: float


def estimates(stages: list[Planned]) -> dict[str, Estimate]:
    """Of every stage that is still to be made, by name."""
    bases: dict[str, str | None] = {}
    out: dict[str, Estimate] = {}
    for planned in stages:
        bases[planned.stage.name] = base = _base(planned.stage, bases)
        if not planned.made:
            out[planned.stage.name] = _estimate(planned, base)
    return out


def _base(stage: Stage, bases: dict[str, str | None]) -> str | None:
    """The model that a stage's chain of models begins with; None where it reads none."""
    for leaf, name in inputs.models(stage.settings):
        made = stage.models.get(leaf.name)
        return bases[made.stage] if made else name
    return None


def _estimate(planned: Planned, base: str | None) -> Estimate:
    tokens = _tokens(planned, base)
    parameters = _parameters(base) if base else None
    if parameters is None or tokens is None:
        return Estimate(tokens, None, None)
    trains = any(kind_of(path) == "model" for path in planned.stage.outputs.values())
    models = len(list(inputs.models(planned.settings)))
    seconds = (6 if trains else 2) * models * parameters * tokens / (rate() * REACHED)
    # weights, gradients and two moments in float32, and activations of one forward pass
    memory = parameters * (16 if trains else 4) / 2**30 + 0.5
    return Estimate(tokens, seconds, memory)


def _tokens(planned: Planned, base: str | None) -> int | None:
    """Tokens that a stage computes; None where it cannot be said."""
    settings: Any = planned.settings
    if isinstance(settings, TrainingSettings):
        return _trained_tokens(settings, base) if base else None
    drawn = getattr(settings, "n", 0) * getattr(settings, "max_tokens", 0)  # answers to every row
    total = 0.0
    for _, source in inputs.sources(settings):
        size = _size(source)
        if size is None:
            return None
        total += size.tokens + size.sequences * drawn
    return int(total)


def _trained_tokens(settings: TrainingSettings, base: str) -> int | None:
    """Tokens of all steps of a training run."""
    from posttrain.engine.load import longest_position, resolve

    data = settings.data
    longest = dataset.max_length(data, longest_position(resolve(base)))
    mixture = settings.sources
    sizes: list[Size] = []
    for source in mixture:
        found = _size(source, longest, data.truncate, data.format)
        if found is None:
            return None
        sizes.append(found)
    taken = shares([size.sequences for size in sizes], mixture)
    epoch = sum(n * size.tokens / size.sequences for n, size in zip(taken, sizes, strict=True))
    epochs = settings.epochs
    if settings.steps is not None:
        epochs = settings.steps / math.ceil(sum(taken) / settings.batch_size)
    return int(epoch * epochs)


def _size(
    source: Source, longest: int | None = None, truncate: str = "", form: str = ""
) -> Size | None:
    """What a source comes to; None where that cannot be said before it is read: a hub data set, a
    file that an earlier stage will make, or nothing that can be read.

    Args:
        longest: tokens of a sequence at most. truncate, form: as in `DataSettings`.
    """
    try:
        if files(source) is None:
            return None
    except DataError:  # the rows of a stage that has not run yet
        return None
    total, position = size(source), [0]
    small, lengths, first = total <= SMALL, list[float](), None
    try:
        for row in read(source, Rejects(), lambda at: position.__setitem__(0, at)):
            first = first or row
            lengths.append(_bytes(row) / 4)
            if not small and len(lengths) == SAMPLE:
                break
        form = form or (detect(first) if first and longest else "")
    except DataError:
        pass  # running the stage says what is wrong, and the cure
    if not lengths:
        return None
    rows = len(lengths)
    if not small and rows == SAMPLE:
        rows = min(source.limit or math.inf, rows * total / (position[0] or 4 * sum(lengths)))
    pieces = [
        _fitted(one, longest, truncate or ("split" if form == "text" else "right"))
        for one in lengths
    ]
    scale = rows / len(lengths)
    return Size(
        max(1, round(scale * sum(n for n, _ in pieces))),
        scale * sum(tokens for _, tokens in pieces),
    )


def _bytes(row: Row) -> int:
    if row.raw is not None:
        return len(row.raw)
    return sum(len(str(value).encode("utf-8", "replace")) for value in row.fields.values())


def _fitted(tokens: float, longest: int | None, policy: str) -> tuple[int, float]:
    """Sequences that are made of a row within the length limit, and their tokens."""
    if longest is None or tokens <= longest:
        return 1, tokens
    if policy == "split":
        return math.ceil((tokens - 1) / (longest - 1)), tokens
    return (0, 0.0) if policy == "drop" else (1, longest)


@cache
def _parameters(model: str) -> int | None:
    """Of a model, from the headers of its weights."""
    from posttrain.engine.load import resolve

    total = 0
    try:
        for path in resolve(model).glob("*.safetensors"):
            with safe_open(path, framework="numpy") as file:
                total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError):  # loading it will say what is wrong
        return None
    return total or None


@cache
def rate() -> float:
    """Operations a second of a matrix product on the device that training would take."""
    import torch

    device, kind = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    n = 8192 if device == "cuda" else 512
    a = torch.randn(n, n, device=device, dtype=kind)
    spent = []
    for _ in range(5):
        begin = time.perf_counter()
        float((a @ a)[0, 0])
        spent.append(time.perf_counter() - begin)
    # the median: a clock may stand still for one of them, or the machine be busy
    return 2 * n**3 / max(statistics.median(spent), 1e-6)
