"""Sampling with a key-value cache: the prompt is computed once and forked; finished sequences leave
the batch.

Prompts of equal length run together, so there is no padding; and every sample draws from its own
stream, so that its random numbers do not depend on what runs beside it. Whether a model's cache
says what its whole sequences say is probed before it is used (`posttrain.engine.sampling_probe`).

Left out: paged caches and continuous batching.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from posttrain.core.errors import ConfigError, ModelError
from posttrain.core.seeds import generator
from posttrain.engine.modes import Decoding, Way
from posttrain.engine.network import Network, known_positions

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
        stop_texts: texts that end a completion; its tokens go up to the one that completes the
            text. They need a tokenizer: `Policy.sample` has one.
        ended: called with the tokens of a completion so far: whether it has come to such a text.
    """

    max_tokens: int = 256
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    n: int = 1
    seed: int = 0
    stop: tuple[int, ...] | None = None
    stop_texts: tuple[str, ...] = ()
    ended: Callable[[list[int]], bool] | None = None

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
        finished: ended with a stop token or text, not at max_tokens or at the model's last
            position.
    """

    prompt: int
    tokens: list[int]
    logprobs: list[float]
    finished: bool


def own_cache(name: str) -> ModelError:
    """The refusal of a class of models whose state no common key-value cache holds."""
    return ModelError(
        f"{name} cannot be sampled: it keeps its state in a cache of its own kind",
        cure="use another model, or sample from the saved one with transformers' generate",
    )


def stopping_at_texts(params: Sampling, tokenizer: Any) -> Sampling:
    """The same, which can tell where a stop text is complete.

    A text may arise across tokens, so it is looked for in the text of the last ones: as many as it
    has bytes, and some more, since the first of a text may lose its space. The text of a special
    token is a stop token.
    """
    special = {
        token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    texts = [text for text in params.stop_texts if text and text not in special]
    ids = tuple(special[text] for text in params.stop_texts if text in special)
    window = 8 + max((len(text.encode()) for text in texts), default=0)

    def ended(tokens: list[int]) -> bool:
        tail = tokenizer.decode(tokens[-window:], skip_special_tokens=True)
        return any(text in tail for text in texts)

    return replace(params, stop=(*(params.stop or ()), *ids), ended=ended if texts else None)


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
    Returns: completions ordered by prompt, n of each. One that reaches the last position that the
        model knows ends there, unfinished; that of a prompt which fills them all is empty.
    Raises:
        ModelError: the model takes no key-value cache; it would ignore one, and everything before
            the last token with it.
    """
    if "past_key_values" not in inspect.signature(network.inner.forward).parameters:
        raise own_cache(type(network.inner).__name__)
    decoding, positions = network.decoding or Decoding(), known_positions(network.config)
    out: dict[tuple[int, int], Completion] = {}
    by_length: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(i)

    def stream(i: int, j: int) -> np.random.Generator:
        """Random numbers of sample j of prompt i."""
        if seeds is None:
            return generator(params.seed, "sample", i, j)
        return generator(seeds[i], "sample", j)

    samples = range(params.n)
    was_training = network.inner.training
    network.inner.eval()
    try:
        with network.stock_attention():
            for length, group in by_length.items():
                room = params.max_tokens
                if positions is not None:
                    room = min(room, positions - length)
                if room <= 0:
                    empty = {(i, j): Completion(i, [], [], False) for i in group for j in samples}
                    out |= empty
                    continue
                fitting = replace(params, max_tokens=room)
                way = decoding.over(length, room)
                step = max(1, ROWS // params.n)
                for i in range(0, len(group), step):
                    part = group[i : i + step]
                    out |= _sample_group(network, prompts, part, fitting, stream, progress, way)
    finally:
        network.inner.train(was_training)
    return [out[i, j] for i in range(len(prompts)) for j in samples]


def _sample_group(
    network: Network,
    prompts: Many[Many[int]],
    group: list[int],
    params: Sampling,
    stream: Callable[[int, int], np.random.Generator],
    progress: TokenProgress | None,
    way: Way,
) -> dict[tuple[int, int], Completion]:
    """Completions of prompts of equal length, by number of prompt and sample."""
    out: dict[tuple[int, int], Completion] = {}
    sequences = _Whole(network) if way == "whole" else _Cached(network, way)
    ids = torch.tensor([list(prompts[i]) for i in group], device=network.device)
    logits = sequences.read(ids)
    alive = [(i, j) for i in group for j in range(params.n)]
    if params.n > 1:
        forked = torch.arange(len(group), device=network.device).repeat_interleave(params.n)
        sequences.select(forked)
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
            finished = finished or (params.ended is not None and params.ended(tokens[key]))
            if finished or at + 1 == params.max_tokens:
                out[key] = Completion(key[0], tokens[key], logprobs[key], finished)
            else:
                stay.append(row)
        if not stay:
            break
        if len(stay) < len(alive):
            index = torch.tensor(stay, device=network.device)
            sequences.select(index)
            drawn, alive = drawn[index], [alive[row] for row in stay]
        logits = sequences.read(drawn[:, None])
    return out


class _Cached:
    """Sequences of equal length that are read on from a key-value cache."""

    def __init__(self, network: Network, way: Way) -> None:
        self._network, self._says_positions = network, way == "positions"
        self._cache: Any = DynamicCache(config=network.config)
        self._length = 0

    def read(self, tokens: Tensor) -> Tensor:
        """[B, T] the next tokens → [B, V] logits of the one after them."""
        more: dict[str, Any] = {}
        if tokens.shape[1] > 1:
            more["logits_to_keep"] = 1
        if self._says_positions:
            places = torch.arange(self._length, self._length + tokens.shape[1])
            more["position_ids"] = places.to(tokens.device).expand(len(tokens), -1)
        self._length += tokens.shape[1]
        out = self._network.inner(
            input_ids=tokens, past_key_values=self._cache, use_cache=True, **more
        )
        return out.logits[:, -1]

    def select(self, rows: Tensor) -> None:
        """Go on with these rows."""
        # of a cache's ways to choose rows, the one that linear attention has too
        self._cache.reorder_cache(rows)


class _Whole:
    """Sequences of equal length that are read from their beginning every time."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._tokens: Tensor | None = None

    def read(self, tokens: Tensor) -> Tensor:
        """[B, T] the next tokens → [B, V] logits of the one after them."""
        before = [] if self._tokens is None else [self._tokens]
        self._tokens = torch.cat([*before, tokens], 1)
        out = self._network.inner(input_ids=self._tokens, use_cache=False, logits_to_keep=1)
        return out.logits[:, -1]

    def select(self, rows: Tensor) -> None:
        """Go on with these rows."""
        assert self._tokens is not None
        self._tokens = self._tokens[rows]


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
