"""Continuous batching: requests wait, run and leave; where rows are free, others enter.

A prompt is read once for all its samples. Every sample draws from its own stream of random numbers,
so that what it draws does not depend on what runs beside it, but for rounding.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Many
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from posttrain.core.seeds import generator
from posttrain.engine.sampler.cache import Cache
from posttrain.engine.sampler.draw import Sampling, draw

DRAWS = 64  # random numbers that are taken from a stream at once

# called with every token as it is drawn: (number of the prompt, of its sample, token)
TokenProgress = Callable[[int, int, int], None]


@dataclass(frozen=True)
class Request:
    """A prompt to be continued `params.n` times.

    Attributes:
        number: of the prompt, for its completions.
        tokens: of the prompt, one at least.
        params: how to draw.
        seed: a whole number, and what tells the request from others with the same one.
        room: tokens that a completion may have: `params.max_tokens`, or what the model's positions
            leave.
    """

    number: int
    tokens: Many[int]
    params: Sampling
    seed: tuple[int, ...]
    room: int

    def stream(self, sample: int) -> np.random.Generator:
        """Random numbers of one of its samples."""
        return generator(self.seed[0], "sample", *self.seed[1:], sample)


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
        sample: its number among the completions of its prompt.
    """

    prompt: int
    tokens: list[int]
    logprobs: list[float]
    finished: bool
    sample: int = 0


class _Row:
    """A running sample."""

    def __init__(self, request: Request, sample: int) -> None:
        self.request, self.sample = request, sample
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self._stream = request.stream(sample)
        self._uniforms: list[float] = []

    def uniform(self) -> float:
        if not self._uniforms:
            self._uniforms = self._stream.random(DRAWS).tolist()[::-1]
        return self._uniforms.pop()

    def completion(self, finished: bool) -> Completion:
        return Completion(self.request.number, self.tokens, self.logprobs, finished, self.sample)


class Scheduler:
    """Runs requests in a cache.

    Args:
        cache: new.
        rows: sequences that run together, or one request's where it has more.
        progress: called with each token, the stop token included; what it raises ends the sampling.
    """

    def __init__(self, cache: Cache, rows: int, progress: TokenProgress | None = None) -> None:
        self.cache, self._most, self._progress = cache, rows, progress
        self._waiting: deque[Request] = deque()
        self._running: list[_Row] = []
        self._logits: Tensor | None = None

    def run(self, requests: Many[Request], device: torch.device) -> Iterator[Completion]:
        """Completions as they end."""
        self._waiting.extend(requests)
        while self._waiting or self._running:
            self._enter()
            drawn = self._draw(device)
            staying = []
            for i, row in enumerate(self._running):
                ended = self._ended(row)
                if ended is None:
                    staying.append(i)
                else:
                    yield row.completion(ended)
            if len(staying) < len(self._running):
                staying = _packed(staying)
                self.cache.keep(staying)
                self._running = [self._running[i] for i in staying]
                drawn = drawn[torch.tensor(staying, dtype=torch.int64, device=device)]
            self._logits = self.cache.step(drawn) if staying else None

    def _enter(self) -> None:
        """Let requests enter where there are rows for them."""
        entering: list[Request] = []
        free = self._most - len(self._running)
        if self._running and not self.cache.joins:
            return
        while self._waiting and (
            self._waiting[0].params.n <= free or not (self._running or entering)
        ):
            entering.append(self._waiting.popleft())
            free -= entering[-1].params.n
        if not entering:
            return
        copies = [request.params.n for request in entering]
        logits = self.cache.start([request.tokens for request in entering], copies)
        self._logits = logits if self._logits is None else torch.cat([self._logits, logits])
        for request in entering:
            self._running += [_Row(request, j) for j in range(request.params.n)]

    def _draw(self, device: torch.device) -> Tensor:
        """[B] the next token of every row."""
        assert self._logits is not None
        uniform = torch.tensor([row.uniform() for row in self._running], dtype=torch.float64)
        drawn, logprob = self._by_params(uniform.to(device))
        for row, token, lp in zip(self._running, drawn.tolist(), logprob.tolist(), strict=True):
            row.tokens.append(token)
            row.logprobs.append(lp)
            if self._progress:
                self._progress(row.request.number, row.sample, token)
        return drawn

    def _by_params(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """[B] tokens and log-probabilities, each row's by its own parameters."""
        assert self._logits is not None
        rows: dict[int, list[int]] = {}
        for i, row in enumerate(self._running):
            rows.setdefault(id(row.request.params), []).append(i)
        if len(rows) == 1:
            return draw(self._logits, uniform, self._running[0].request.params)
        drawn = torch.empty(len(uniform), dtype=torch.int64, device=uniform.device)
        logprob = torch.empty(len(uniform), dtype=torch.float64, device=uniform.device)
        for members in rows.values():
            index = torch.tensor(members, device=uniform.device)
            params = self._running[members[0]].request.params
            drawn[index], found = draw(self._logits[index], uniform[index], params)
            logprob[index] = found.double()
        return drawn, logprob

    def _ended(self, row: _Row) -> bool | None:
        """Whether a row that is over has finished by itself; None where it goes on."""
        params = row.request.params
        if row.tokens[-1] in (params.stop or ()):
            return True
        if params.ended is not None and params.ended(row.tokens):
            return True
        return False if len(row.tokens) >= row.request.room else None


def _packed(staying: list[int]) -> list[int]:
    """Rows in an order in which as few as possible move: the last ones into the gaps."""
    n = len(staying)
    order: list[int | None] = [None] * n
    for row in staying:
        if row < n:
            order[row] = row
    beyond = iter([row for row in staying if row >= n])
    return [next(beyond) if row is None else row for row in order]
