"""Supervised fine-tuning: learn from demonstrations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from posttrain.core.types import Columns, Counts, Facts, Loss


def nll(columns: Columns, facts: Facts, counts: Counts, statistics: Any) -> Tensor:
    """Negative log-likelihood of the demonstrations.

    loss = Σ_n −log p_n / (targets of the global batch)

    Every target weighs the same, whatever micro-batch or sequence it is in: averaging means of
    micro-batches instead gives short answers more weight than long ones.

    Returns: scalar, nats per target.

    >>> import math, torch
    >>> columns = Columns(logprob=torch.tensor([0.5, 0.25]).log())
    >>> loss = nll(columns, None, {"targets": 2}, None)
    >>> math.isclose(float(loss), 1.5 * math.log(2), rel_tol=1e-6)
    True
    """
    return -columns.logprob.sum() / counts["targets"]


def dft(columns: Columns, facts: Facts, counts: Counts, statistics: Any) -> Tensor:
    """Dynamic fine-tuning: the likelihood's gradient, rescaled by the token's own probability.

    loss = Σ_n −sg(p_n)·log p_n / (targets of the global batch)

    The rescaling undoes the 1/p weight that makes plain likelihood chase improbable tokens.

    Returns: scalar, nats per target (weighted).
    Source: Wu et al. 2025, arXiv 2508.05629, equation 9.
    """
    return -(columns.logprob.detach().exp() * columns.logprob).sum() / counts["targets"]


METHODS: dict[str, Loss] = {"nll": Loss(nll, additive=True), "dft": Loss(dft, additive=True)}


def neftune(
    embeddings: Tensor, lengths: Tensor, alpha: float, generator: torch.Generator | None = None
) -> Tensor:
    """NEFTune: uniform noise on the input embeddings, so that the model does not learn the
    demonstrations by heart.

    e + U(−1, 1)·α/√(n·d), n the length of the sequence the token is in, d the width of the
    embedding.

    Args:
        embeddings: [..., T, d].
        lengths: [..., T] tokens in each token's sequence (the longest one where several share the
            token).
        alpha: strength; the paper's values are 5, 10 and 15.
        generator: where the noise comes from.
    Returns: [..., T, d].
    Source: Jain et al. 2023, arXiv 2310.05914, algorithm 1.
    """
    magnitude = alpha / (lengths * embeddings.shape[-1]).to(embeddings.dtype).sqrt()
    noise = torch.empty_like(embeddings).uniform_(-1, 1, generator=generator)
    return embeddings + noise * magnitude[..., None]
