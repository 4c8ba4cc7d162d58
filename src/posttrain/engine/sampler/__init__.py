"""Sampling: a prompt is read once and forked, sequences of any lengths run together, and who has
finished makes room for who waits.

    Request      a prompt, and how to continue it
    Scheduler    which of them run
    Cache        what the running ones keep

Whether a model's cache says what its whole sequences say is probed before it is used
(`posttrain.engine.sampling_probe`).

Left out: paged caches.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from collections.abc import Sequence as Many

import torch

from posttrain.core.errors import ModelError
from posttrain.engine.modes import Decoding, Way
from posttrain.engine.network import Network, known_positions
from posttrain.engine.sampler.cache import Cache, Grouped, Slots
from posttrain.engine.sampler.draw import Sampling, draw, stopping_at_texts
from posttrain.engine.sampler.scheduler import Completion, Request, Scheduler, TokenProgress

__all__ = [
    "ROWS",
    "Cache",
    "Completion",
    "Request",
    "Sampling",
    "Scheduler",
    "Slots",
    "TokenProgress",
    "draw",
    "own_cache",
    "sample",
    "stopping_at_texts",
    "stream",
]

ROWS = 64  # sequences that run together


def own_cache(name: str) -> ModelError:
    """The refusal of a class of models whose state no common key-value cache holds."""
    return ModelError(
        f"{name} cannot be sampled: it keeps its state in a cache of its own kind",
        cure="use another model, or sample from the saved one with transformers' generate",
    )


def sample(
    network: Network,
    prompts: Many[Many[int]],
    params: Sampling,
    progress: TokenProgress | None = None,
    seeds: Many[int] | None = None,
) -> list[Completion]:
    """Draw `params.n` completions of every prompt.

    Args:
        prompts: token ids, at least one each.
        progress: called with each token, the stop token included; what it raises ends the sampling.
        seeds: of each prompt's draws, so that they do not depend on its number; None: `params.seed`
            and the number.
    Returns: completions ordered by prompt, n of each. One that reaches the last position that the
        model knows ends there, unfinished; that of a prompt which fills them all is empty.
    Raises:
        ModelError: the model takes no key-value cache; it would ignore one, and everything before
            the last token with it.
    """
    positions = known_positions(network.config)
    requests = []
    for i, prompt in enumerate(prompts):
        room = params.max_tokens
        if positions is not None:
            room = min(room, positions - len(prompt))
        seed = (params.seed, i) if seeds is None else (seeds[i],)
        requests.append(Request(i, prompt, params, seed, room))
    done = {(one.prompt, one.sample): one for one in stream(network, requests, progress)}
    return [done[i, j] for i in range(len(prompts)) for j in range(params.n)]


@torch.no_grad()
def stream(
    network: Network, requests: Many[Request], progress: TokenProgress | None = None
) -> Iterator[Completion]:
    """Completions of requests, each as it ends. The cache lives as long as this call: weights that
    change afterwards meet a new one.

    Raises:
        ModelError: see `sample`.
    """
    if "past_key_values" not in inspect.signature(network.inner.forward).parameters:
        raise own_cache(type(network.inner).__name__)
    for request in requests:
        if request.room <= 0:
            for j in range(request.params.n):
                yield Completion(request.number, [], [], False, j)
    waiting = [request for request in requests if request.room > 0]
    was_training = network.inner.training
    network.inner.eval()
    try:
        for group, way in _together(waiting, network.decoding or Decoding()):
            if way == "slots":
                yield from Scheduler(Slots(network), ROWS, progress).run(group, network.device)
                continue
            with network.stock_attention():
                step = max(1, ROWS // max(request.params.n for request in group))
                for i in range(0, len(group), step):
                    scheduler = Scheduler(Grouped(network, way), ROWS, progress)
                    yield from scheduler.run(group[i : i + step], network.device)
    finally:
        network.inner.train(was_training)


def _together(requests: Many[Request], decoding: Decoding) -> Iterator[tuple[list[Request], Way]]:
    """Requests that one scheduler runs, and the way: all of them in slots, else those of equal
    length and equal room.
    """
    slots = [request for request in requests if decoding.way == "slots"]
    if slots:
        yield slots, "slots"
        return
    groups: dict[tuple[int, int], list[Request]] = {}
    for request in requests:
        groups.setdefault((len(request.tokens), request.room), []).append(request)
    for (length, room), group in groups.items():
        yield group, decoding.over(length, room)
