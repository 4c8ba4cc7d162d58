"""Tries on a model's own shapes whether sampling is exact; see `posttrain.engine.exact`."""

from __future__ import annotations

import os
from collections.abc import Sequence as Many

import numpy as np
import torch

from posttrain.core.errors import ModelError
from posttrain.core.products import IN_ONE_ORDER, SWITCH
from posttrain.core.seeds import generator
from posttrain.data.forest import Sequence, Tree, collate
from posttrain.engine.exact import KEYS
from posttrain.engine.network import Network, known_positions
from posttrain.engine.sampler import Completion, Request, Sampling, Scheduler, Slots

LENGTHS = (3, 40, KEYS - 2, KEYS + 1)  # tokens of the prompts; one crosses a block of keys
DRAWN = Sampling(max_tokens=5, n=2, stop=())


def why_not(network: Network) -> str:
    """Why a network's sampler cannot be exact; empty where it is. Leaves `network.exact` so."""
    network.exact = False
    if network.device.type != "cpu" or network.dtype != torch.float32:
        return "it is for models in float32 on a CPU"
    if network.mode != "forest":
        return "the model runs path by path"
    if network.decoding is not None and network.decoding.way != "slots":
        return "the model is sampled with transformers' own cache"
    network.exact = True
    try:
        off, most = _differing(network)
    except (ModelError, RuntimeError, ValueError) as error:
        network.exact = False
        return f"it cannot be tried: {(str(error).splitlines() or [''])[0]}"
    if off:
        network.exact = False
        return (
            f"{off:,} log-probabilities differ from the trainer's, by {most:.1g} nats at most"
            f"{_untold()}"
        )
    return ""


def _untold() -> str:
    """What may make products of few rows differ, where it does not stand in the environment."""
    if os.environ.get(SWITCH, "").endswith("STRICT"):
        return ""
    return f"; set {SWITCH}={IN_ONE_ORDER} in the environment before Python starts"


@torch.no_grad()
def _differing(network: Network) -> tuple[int, float]:
    """How many log-probabilities of the sampler are not the trainer's, whatever runs beside them;
    and by how much they differ at most, nats.
    """
    rng = generator(0, "exact")
    limit = (known_positions(network.config) or 10**9) - DRAWN.max_tokens
    lengths = [min(length, limit) for length in LENGTHS]
    prompts = [rng.integers(0, network.vocabulary, length).tolist() for length in lengths]
    requests = [Request(i, p, DRAWN) for i, p in enumerate(prompts)]
    was_training = network.training
    network.eval()
    try:
        together = _sampled(network, requests, rows=64)
        in_turn = _sampled(network, requests[::-1], rows=4)
        at_once = _scored(network, prompts, together)
        one_by_one = [_scored(network, prompts, [completion])[0] for completion in together]
    finally:
        network.train(was_training)
    off, most = 0, 0.0
    for i, completion in enumerate(together):
        drawn = torch.tensor(completion.logprobs)
        same = in_turn[i].tokens == completion.tokens
        others = [at_once[i], one_by_one[i], *([torch.tensor(in_turn[i].logprobs)] if same else [])]
        for other in others:
            gap = (drawn - other).abs()
            off += int((gap != 0).sum())
            most = max(most, float(gap.max()))
    return off, most


def _sampled(network: Network, requests: Many[Request], rows: int) -> list[Completion]:
    """Completions in order of their prompts."""
    found = Scheduler(Slots(network), rows).run(requests, network.device)
    return sorted(found, key=lambda completion: (completion.prompt, completion.sample))


def _scored(
    network: Network, prompts: Many[Many[int]], completions: Many[Completion]
) -> list[torch.Tensor]:
    """The trainer's log-probabilities of completions, those of a prompt in one tree."""
    groups: dict[int, list[int]] = {}
    for i, completion in enumerate(completions):
        groups.setdefault(completion.prompt, []).append(i)
    trees = []
    for prompt, members in groups.items():
        answers = []
        for i in members:
            tokens = np.array([*prompts[prompt], *completions[i].tokens], np.int64)
            answers.append(Sequence(tokens, np.arange(len(tokens)) >= len(prompts[prompt])))
        trees.append(Tree(tuple(answers)))
    forest = collate(trees)
    logprobs = network(forest).logprob.split(forest.facts.lengths.tolist())
    order = [i for members in groups.values() for i in members]
    out: list[torch.Tensor] = [torch.empty(0)] * len(completions)
    for i, values in zip(order, logprobs, strict=True):
        out[i] = values
    return out
