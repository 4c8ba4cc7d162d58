"""What a stage will take, roughly, before it runs: tokens from the size of its files, time from a short measurement.

Four bytes of text are about a token, compressed text unpacks to about three times its size. A token takes 6 operations a
parameter to train (forward and backward) and 2 to score; this machine's rate is measured with a matrix product, of which training
reaches about a third. Within a factor of two where rows are not mostly cut.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import cache

from posttrain.core.settings import Settings
from posttrain.data.settings import Source
from posttrain.data.sources import files
from posttrain.pipeline.kinds import sources
from posttrain.pipeline.plan import Planned

REACHED = 0.3  # of the rate of a matrix product


@dataclass(frozen=True)
class Estimate:
    """Tokens, seconds and GiB that a stage will take; None where it cannot be said."""

    tokens: int | None
    seconds: float | None
    memory: float | None


def estimates(stages: list[Planned]) -> dict[str, Estimate]:
    """Of every stage that is still to be made, by name."""
    parameters: dict[str, int | None] = {}
    found = {}
    for one in stages:
        base = one.stage.parents.get("model")
        parameters[one.stage.name] = size = parameters.get(base) if base else _parameters(str(getattr(one.settings, "model", "")))
        if not one.made:
            found[one.stage.name] = _estimate(one, size)
    return found


def _estimate(one: Planned, parameters: int | None) -> Estimate:
    tokens = _tokens(one.settings)
    if parameters is None or tokens is None:
        return Estimate(tokens, None, None)
    trains = one.stage.kind.makes_model
    models = sum(getattr(one.settings, name) is not None for name in one.stage.kind.models)
    seconds = (6 if trains else 2) * models * parameters * tokens / (rate() * REACHED)
    # weights, gradients and two moments in float32, and activations of one forward pass
    memory = parameters * (16 if trains else 4) / 2**30 + 0.5
    return Estimate(tokens, seconds, memory)


def _tokens(settings: Settings) -> int | None:
    data = getattr(settings, "data", None)
    training = data.data if data is not None else tuple(sources(settings))
    sizes = [_bytes(source) for source in training]
    if None in sizes:
        return None
    total = sum(size * source.epochs for size, source in zip(sizes, training, strict=True) if size is not None) / 4
    steps = getattr(settings, "steps", None)
    if steps is not None and data is not None:
        return int(steps * getattr(settings, "batch_size", 1) * min(256, data.max_length or 256))
    return int(total * getattr(settings, "epochs", 1.0))


def _bytes(source: Source) -> int | None:
    found = files(source)
    if found is None:
        return None
    size = sum(path.stat().st_size * (3 if path.suffix == ".gz" else 1) for path in found)
    return min(size, source.limit * 1000) if source.limit else size


@cache
def _parameters(model: str) -> int | None:
    """Of a model, from the headers of its weights."""
    from posttrain.engine.model import resolve

    total = 0
    for path in resolve(model).glob("*.safetensors"):
        with open(path, "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, tensor in header.items():
            if name != "__metadata__":
                count = 1
                for n in tensor["shape"]:
                    count *= n
                total += count
    return total or None


@cache
def rate() -> float:
    """Operations a second of a matrix product on the device that training would take."""
    import torch

    device, kind = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    n = 8192 if device == "cuda" else 512
    a = torch.randn(n, n, device=device, dtype=kind)
    best = 0.0
    for _ in range(5):
        begin = time.perf_counter()
        float((a @ a)[0, 0])
        best = max(best, 2 * n**3 / (time.perf_counter() - begin))
    return best
