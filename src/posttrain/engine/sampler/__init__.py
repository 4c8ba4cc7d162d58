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
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Many
from dataclasses import replace

import torch

from posttrain.core.errors import ModelError
from posttrain.engine.modes import Decoding, Way
from posttrain.engine.network import Network, known_positions
from posttrain.engine.sampler.cache import Cache, Grouped, Slots
from posttrain.engine.sampler.draw import Sampling, draw, stopping_at_texts
from posttrain.engine.sampler.scheduler import ROWS, Completion, Request, Scheduler, TokenProgress

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

GROUPED = 64, 2**15  # rows and tokens of rows that start together: all are read in one pass


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
    order: dict[tuple[int, ...], list[int]] = {}  # equal prompts after each other: one is read
    for i, prompt in enumerate(prompts):
        order.setdefault(tuple(prompt), []).append(i)
    requests = []
    for numbers in order.values():
        for i in numbers:
            seed = (params.seed, i) if seeds is None else (seeds[i],)
            requests.append(Request(i, prompts[i], params, seed))
    done = {(one.prompt, one.sample): one for one in stream(network, requests, progress)}
    return [done[i, j] for i in range(len(prompts)) for j in range(params.n)]


@torch.no_grad()
def stream(
    network: Network, requests: Iterable[Request], progress: TokenProgress | None = None
) -> Iterator[Completion]:
    """Completions of requests, each as it ends.

    Requests of a model whose keys and values are in slots are taken one by one, as there is room
    for them, so that those to come may depend on what was drawn; of another model, all at once.
    The cache lives as long as this call. Between completions the network may be used, but not
    changed.

    Raises:
        ModelError: see `sample`; or the weights have changed since the first token.
    """
    if "past_key_values" not in inspect.signature(network.inner.forward).parameters:
        raise own_cache(type(network.inner).__name__)
    completions = _stream(network, requests, progress)
    while True:
        was_training = network.inner.training
        if was_training:
            network.inner.eval()
        try:
            completion = next(completions, None)
        finally:
            if was_training:
                network.inner.train()
        if completion is None:
            return
        yield completion


def _stream(
    network: Network, requests: Iterable[Request], progress: TokenProgress | None
) -> Iterator[Completion]:
    decoding = network.decoding or Decoding()
    positions = known_positions(network.config)
    full: list[Completion] = []  # of prompts that leave no room

    def with_room() -> Iterator[Request]:
        for request in requests:
            room = request.most_tokens
            if positions is not None:
                room = min(room, positions - len(request.tokens))
            if room > 0:
                yield replace(request, room=room)
                continue
            for j in range(request.params.n):
                full.append(Completion(request.number, [], [], False, j))

    if decoding.way == "slots":
        scheduler = Scheduler(Slots(network), progress=progress)
        yield from scheduler.run(with_room(), network.device)
    else:
        for group, way in _groups(with_room(), decoding):
            # whoever takes completions may use the network meanwhile, with its own attention
            with network.stock_attention():
                scheduler = Scheduler(Grouped(network, way), *GROUPED, progress)
                found = list(scheduler.run(group, network.device))
            yield from found
    yield from full


def _groups(requests: Iterable[Request], decoding: Decoding) -> Iterator[tuple[list[Request], Way]]:
    """Requests of equal length and equal room, and the way to draw them."""
    groups: dict[tuple[int, int], list[Request]] = {}
    for request in requests:
        groups.setdefault((len(request.tokens), request.most_tokens), []).append(request)
    for (length, room), group in groups.items():
        yield group, decoding.over(length, room)
