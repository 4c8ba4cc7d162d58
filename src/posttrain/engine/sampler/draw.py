"""How a token is drawn: the parameters, and the draw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from posttrain.core.errors import ConfigError, ModelError


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

    @property
    def distribution(self) -> tuple[float, ...]:
        """What makes a distribution of logits: rows that have it in common are drawn at once."""
        return self.temperature, self.top_k, self.top_p

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


MILD = 0.01  # temperatures from here on make no infinity of a logit
AT_ONCE = 2**23  # logits of a part: what is computed of them is in float64


def draw(logits: Tensor, uniform: Tensor, params: Sampling) -> tuple[Tensor, Tensor]:
    """Draw a token a row by inverting the cumulative distribution.

    Args:
        logits: [B, V].
        uniform: [B] in [0, 1).
    Returns: [B] tokens and [B] their log-probabilities under the distribution drawn from.
    """
    step = max(1, AT_ONCE // logits.shape[1])
    parts = []
    for i in range(0, len(logits), step):
        parts.append(_draw(logits[i : i + step], uniform[i : i + step], params))
    tokens, logprobs = zip(*parts, strict=True)
    return torch.cat(tokens), torch.cat(logprobs)


def _draw(logits: Tensor, uniform: Tensor, params: Sampling) -> tuple[Tensor, Tensor]:
    if params.top_k == 0 and params.top_p == 1 and params.temperature >= MILD:
        return _draw_from_all(logits, uniform, params.temperature)
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


def _draw_from_all(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The same where nothing is cut off: no token needs to be sorted. The log-probabilities are
    computed as the trainer does, step by step.
    """
    logp = torch.log_softmax(logits / temperature if temperature != 1.0 else logits, -1)
    reached = logp.to(torch.float64, copy=True).exp_().cumsum_(-1)
    total = reached[:, -1:]
    if not bool(total.isfinite().all()):
        raise ModelError(
            "the model's logits are not finite",
            cure="get the complete model, or give Policy.load another dtype",
        )
    # rounding must not reach beyond the last token that has any probability
    most = torch.nextafter(total, torch.zeros_like(total))
    token = torch.searchsorted(reached, torch.minimum(uniform[:, None] * total, most), right=True)
    return token[:, 0], logp.gather(1, token)[:, 0]
