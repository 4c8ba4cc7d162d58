"""Continuous batching: samples wait, run and leave; where there is room, others enter.

Samples enter in the order of their requests, each as soon as there is room for it. Every sample
draws from its own stream of random numbers, so that what it draws does not depend on what runs
beside it, but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Many
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from posttrain.core.seeds import generator
from posttrain.engine.sampler.cache import Cache
from posttrain.engine.sampler.draw import Sampling, draw

ROWS = 256  # samples that run together
CACHED = 2**17  # tokens that their cache may hold
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
        seed: a whole number, and what tells the request from others with the same one; None:
            `params.seed` and the request's number.
        room: tokens that a completion may have; None: `params.max_tokens`.
    """

    number: int
    tokens: Many[int]
    params: Sampling
    seed: tuple[int, ...] | None = None
    room: int | None = None

    @property
    def most_tokens(self) -> int:
        """Of a completion."""
        return self.params.max_tokens if self.room is None else self.room

    def stream(self, sample: int) -> np.random.Generator:
        """Random numbers of one of its samples."""
        first, *others = (self.params.seed, self.number) if self.seed is None else self.seed
        return generator(first, "sample", *others, sample)


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
    """A sample that waits or runs.

    Attributes:
        longest: tokens that prompt and completion may have together.
    """

    def __init__(self, request: Request, sample: int) -> None:
        self.request, self.sample = request, sample
        self.longest = len(request.tokens) + request.most_tokens
        self._stop = frozenset(request.params.stop or ())
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self._stream = request.stream(sample)
        self._uniforms: list[float] = []

    def uniform(self) -> float:
        if not self._uniforms:
            self._uniforms = self._stream.random(DRAWS).tolist()[::-1]
        return self._uniforms.pop()

    def ended(self) -> bool | None:
        """Whether a row that is over has finished by itself; None where it goes on."""
        at_text = self.request.params.ended
        if self.tokens[-1] in self._stop or (at_text is not None and at_text(self.tokens)):
            return True
        return False if len(self.tokens) >= self.request.most_tokens else None

    def completion(self, finished: bool) -> Completion:
        return Completion(self.request.number, self.tokens, self.logprobs, finished, self.sample)


class Scheduler:
    """Runs requests in a cache.

    Args:
        cache: new.
        rows: samples that run together at most.
        cached: tokens that the cache may hold: rows times the longest that one of them may become.
            A sample that would need more runs alone.
        progress: called with each token, the stop token included; what it raises ends the sampling.
    """

    def __init__(
        self,
        cache: Cache,
        rows: int = ROWS,
        cached: int = CACHED,
        progress: TokenProgress | None = None,
    ) -> None:
        self.cache, self._most, self._cached, self._progress = cache, rows, cached, progress
        self._running: list[_Row] = []
        self._next: _Row | None = None  # it was taken, and found no room
        self._logits: Tensor | None = None
        self._distributions: set[tuple[float, ...]] = set()  # that rows were drawn from

    def run(self, requests: Iterable[Request], device: torch.device) -> Iterator[Completion]:
        """Completions as they end. A request is taken when there is a row for it."""
        waiting = (_Row(request, j) for request in requests for j in range(request.params.n))
        room = True
        while True:
            if room:
                self._enter(waiting)
            if not self._running:
                return
            drawn = self._draw(device)
            staying = []
            for i, row in enumerate(self._running):
                ended = row.ended()
                if ended is None:
                    staying.append(i)
                else:
                    yield row.completion(ended)
            room = len(staying) < len(self._running)
            if room:
                staying = _packed(staying)
                self.cache.keep(staying)
                self._running = [self._running[i] for i in staying]
                drawn = drawn[torch.tensor(staying, dtype=torch.int64, device=device)]
            self._logits = self.cache.step(drawn) if staying else None

    def _enter(self, waiting: Iterator[_Row]) -> None:
        """Let samples enter, while there is room for the next."""
        if self._running and not self.cache.joins:
            return
        entering: list[_Row] = []
        longest = max((row.longest for row in self._running), default=0)
        while (rows := len(self._running) + len(entering) + 1) <= self._most:
            self._next = self._next or next(waiting, None)
            if self._next is None:
                break
            longest = max(longest, self._next.longest)
            if rows > 1 and rows * longest > self._cached:
                break
            entering.append(self._next)
            self._distributions.add(self._next.request.params.distribution)
            self._next = None
        if entering:
            logits = self.cache.start([row.request.tokens for row in entering])
            self._logits = logits if self._logits is None else torch.cat([self._logits, logits])
            self._running += entering

    def _draw(self, device: torch.device) -> Tensor:
        """[B] the next token of every row."""
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
        if len(self._distributions) == 1:
            return draw(self._logits, uniform, self._running[0].request.params)
        rows: dict[tuple[float, ...], list[int]] = {}
        for i, row in enumerate(self._running):
            rows.setdefault(row.request.params.distribution, []).append(i)
        drawn = torch.empty(len(uniform), dtype=torch.int64, device=uniform.device)
        logprob = torch.empty(len(uniform), dtype=torch.float64, device=uniform.device)
        for members in rows.values():
            index = torch.tensor(members, device=uniform.device)
            params = self._running[members[0]].request.params
            drawn[index], found = draw(self._logits[index], uniform[index], params)
            logprob[index] = found.double()
        return drawn, logprob


def _packed(staying: list[int]) -> list[int]:
    """Rows in an order in which as few as possible move: the last ones into the gaps."""
    n = len(staying)
    order: list[int | None] = [None] * n
    for row in staying:
        if row < n:
            order[row] = row
    beyond = iter([row for row in staying if row >= n])
    return [next(beyond) if row is None else row for row in order]
