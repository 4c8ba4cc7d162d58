"""Sampling with a key-value cache: the prompt is computed once and forked; finished sequences leave
the batch.

Prompts of equal length run together, so there is no padding; and every sample draws from its own
stream, so that its random numbers do not depend on what runs beside it.

Left out: paged caches and continuous batching.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from posttrain.core.errors import ConfigError, ModelError
from posttrain.core.seeds import generator
from posttrain.engine.network import Network

ROWS = 64  # sequences that run together

# called with every token as it is drawn: (number of the prompt, of its sample, token)
TokenProgress = Callable[[int, int, int], None]


@dataclass(frozen=True)
class Sampling:
    """How to draw completions.

    Attributes:
        max_tokens: tokens of a completion at most.
        temperature: the logits are divided by it; 0 takes the most likely token.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the most likely tokens that together have this probability.
        n: completions a prompt.
        seed: of the draws.
        stop: token ids that end a completion, and are part of it; None takes the tokenizer's end
            token.
    """

    max_tokens: int = 256
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    n: int = 1
    seed: int = 0
    stop: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name, good in (
            ("max_tokens", self.max_tokens >= 1),
            ("temperature", self.temperature >= 0),
            ("top_k", self.top_k >= 0),
            ("top_p", 0 <= self.top_p <= 1),
            ("n", self.n >= 1),
        ):
            if not good:
                raise ConfigError(
                    f"sampling: {name} = {getattr(self, name)} is out of range",
                    cure=(
                        "max_tokens and n are 1 or more, temperature and top_k 0 or more, top_p in "
                        "[0, 1]"
                    ),
                )


@dataclass(frozen=True)
class Completion:
    """What was drawn for one prompt.

    Attributes:
        prompt: the prompt's number.
        tokens: token ids, the stop token included.
        logprobs: log-probability of each token under the distribution it was drawn from
            (temperature, top-k and top-p applied), nats; under temperature 0, under the model's
            own.
        finished: ended with a stop token, not at max_tokens.
    """

    prompt: int
    tokens: list[int]
    logprobs: list[float]
    finished: bool


@torch.no_grad()
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
    Returns: completions ordered by prompt, n of each.
    Raises:
        ModelError: the model takes no key-value cache; it would ignore one, and everything before
            the last token with it.
    """
    if "past_key_values" not in inspect.signature(network.inner.forward).parameters:
        raise ModelError(
            f"{type(network.inner).__name__} cannot be sampled: it keeps its state in a cache of "
            "its own kind",
            cure="use another model, or sample from the saved one with transformers' generate",
        )
    out: dict[tuple[int, int], Completion] = {}
    by_length: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(i)

    def stream(i: int, j: int) -> np.random.Generator:
        """Random numbers of sample j of prompt i."""
        if seeds is None:
            return generator(params.seed, "sample", i, j)
        return generator(seeds[i], "sample", j)

    was_training = network.inner.training
    network.inner.eval()
    try:
        with network.stock_attention():
            for group in by_length.values():
                step = max(1, ROWS // params.n)
                for i in range(0, len(group), step):
                    part = group[i : i + step]
                    out |= _sample_group(network, prompts, part, params, stream, progress)
    finally:
        network.inner.train(was_training)
    return [out[i, j] for i in range(len(prompts)) for j in range(params.n)]


def _sample_group(
    network: Network,
    prompts: Many[Many[int]],
    group: list[int],
    params: Sampling,
    stream: Callable[[int, int], np.random.Generator],
    progress: TokenProgress | None,
) -> dict[tuple[int, int], Completion]:
    """Completions of prompts of equal length, by number of prompt and sample."""
    out: dict[tuple[int, int], Completion] = {}
    cache: Any = DynamicCache(config=network.config)
    ids = torch.tensor([list(prompts[i]) for i in group], device=network.device)
    logits = network.inner(
        input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1
    ).logits[:, -1]
    alive = [(i, j) for i in group for j in range(params.n)]
    if params.n > 1:
        forked = torch.arange(len(group), device=network.device).repeat_interleave(params.n)
        # of a cache's ways to choose rows, the one that linear attention has too
        cache.reorder_cache(forked)
        logits = logits[forked]
    streams = {key: stream(*key) for key in alive}
    tokens: dict[tuple[int, int], list[int]] = {key: [] for key in alive}
    logprobs: dict[tuple[int, int], list[float]] = {key: [] for key in alive}
    for at in range(params.max_tokens):
        uniform = np.array([streams[key].random() for key in alive])
        drawn, logp = draw(logits, torch.from_numpy(uniform).to(network.device), params)
        stay = []
        for row, (key, token, lp) in enumerate(
            zip(alive, drawn.tolist(), logp.tolist(), strict=True)
        ):
            tokens[key].append(token)
            logprobs[key].append(lp)
            if progress:
                progress(*key, token)
            finished = token in (params.stop or ())
            if finished or at + 1 == params.max_tokens:
                out[key] = Completion(key[0], tokens[key], logprobs[key], finished)
            else:
                stay.append(row)
        if not stay:
            break
        if len(stay) < len(alive):
            index = torch.tensor(stay, device=network.device)
            cache.reorder_cache(index)
            drawn, alive = drawn[index], [alive[row] for row in stay]
        logits = network.inner(
            input_ids=drawn[:, None], past_key_values=cache, use_cache=True
        ).logits[:, -1]
    return out


def draw(logits: Tensor, uniform: Tensor, params: Sampling) -> tuple[Tensor, Tensor]:
    """Draw a token a row by inverting the cumulative distribution.

    Args:
        logits: [B, V].
        uniform: [B] in [0, 1).
    Returns: [B] tokens and [B] their log-probabilities under the distribution drawn from.
    """
    logits = logits.double()
    if params.temperature == 0:
        token = logits.argmax(-1)
        return token, logits.log_softmax(-1).gather(1, token[:, None])[:, 0]
    most = logits.amax(-1, keepdim=True)
    if not bool(most.isfinite().all()):
        raise ModelError(
            "the model's logits are not finite",
            cure="get the complete model, or give Policy.load another dtype",
        )
    # the largest is 0, so that no temperature, however small, makes an infinity of it
    ordered, index = ((logits - most) / params.temperature).sort(-1, descending=True)
    if params.top_k:
        ordered[:, params.top_k :] = -torch.inf
    p = ordered.softmax(-1)
    keep = p.cumsum(-1) - p < params.top_p
    keep[:, 0] = True
    p = torch.where(keep, p, 0.0)
    p /= p.sum(-1, keepdim=True)
    place = (p.cumsum(-1) <= uniform[:, None]).sum(-1, keepdim=True)
    # rounding must not reach a token that was cut off
    place = torch.minimum(place, (p > 0).sum(-1, keepdim=True) - 1)
    return index.gather(1, place)[:, 0], p.gather(1, place)[:, 0].log()
