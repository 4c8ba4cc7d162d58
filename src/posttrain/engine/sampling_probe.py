"""Sampling is admitted by a probe, as scoring is.

A cache is another way to compute the same numbers, and a model may compute others with it, without
an error: Bamba forgets where it is unless every token's position is said, and its completions go
wrong at the second token. So before a model is first sampled, the small copy of its config
(`posttrain.engine.admission`) draws completions of prompts of several lengths, forked and leaving
the batch one after another, and the log-probability of every token is compared with that of the
whole sequence run alone. Where they differ, the next way of `posttrain.engine.modes.WAYS` is tried.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Many

import torch

from posttrain.core.errors import ModelError
from posttrain.core.files import sha256_json
from posttrain.core.seeds import generator
from posttrain.engine import admission
from posttrain.engine.modes import WAYS, Admission, Decoding, Mode, Way
from posttrain.engine.network import Network, known_positions, quiet
from posttrain.engine.sampler import Completion, Sampling, own_cache, sample

LENGTHS = (5, 9, 5)  # tokens of the probe's prompts
DRAWN = Sampling(max_tokens=6, n=2, stop=tuple(range(0, admission.SMALL_VOCABULARY, 11)))

_DECODINGS: dict[str, Decoding] = {}  # by class, config, attention and versions


def decoding(network: Network) -> Decoding:
    """How completions of a network may be drawn; asked once for every config.

    Raises:
        ModelError: it takes no common key-value cache.
    """
    key = sha256_json([admission.config_key(network.inner), network.stock, DRAWN.max_tokens])
    if key not in _DECODINGS:
        with quiet():
            try:
                _DECODINGS[key] = _probe(network)
            finally:
                network.run_as(network.mode)  # a class without a small copy is probed itself
    return _DECODINGS[key]


@torch.no_grad()
def _probe(network: Network) -> Decoding:
    """Try the ways on a small copy with large matrices, fastest first; at the config's own scale
    where the copy's whole sequences, which run no cache, are off as well.
    """
    inner, name = network.inner, type(network.inner).__name__
    turn = admission.turning_point(inner.config)
    last = known_positions(inner.config) or math.inf
    reach = [length for length in admission.thresholds(inner.config)[0] if length != turn]
    reach = [length for length in reach if length + DRAWN.max_tokens <= last]
    rows = min(network.vocabulary, admission.SMALL_VOCABULARY)
    prompts = _prompts(rows, max(reach, default=0))
    found: dict[Way, float | Exception] = {}
    for scale in (admission.SCALE, 1.0):
        small = admission.small_copy(inner, scale)
        tolerance = network.admission.tolerance
        if scale == 1.0 or small is None:
            tolerance = admission.NOISE
        if small is None and torch.finfo(network.dtype).bits < 32:
            tolerance = admission.LOW_MOST
        found = {}
        for way in WAYS:
            # slots: of models that run as forests, whose positions always mean the same
            if way == "slots" and (network.mode != "forest" or turn is not None):
                continue
            mode: Mode = "forest" if way == "slots" else "equal"
            copied = Network(small or inner, Admission(mode, network.stock))
            copied.decoding = Decoding(way, turn)
            try:
                off = _deviation(copied, prompts, sample(copied, prompts, DRAWN))
            except ModelError:
                raise
            except Exception as error:
                found[way] = error
                continue
            found[way] = off
            if off < tolerance and way != "whole":
                return Decoding(way, turn, _without_slots(name, way, found, tolerance))
        whole = found["whole"]
        if isinstance(whole, Exception):
            what = (str(whole).splitlines() or [type(whole).__name__])[0]
            raise ModelError(
                f"{name} cannot be sampled: {what}",
                cure="use another model, or sample from the saved one with transformers' generate",
            ) from whole
        if isinstance(found["cache"], Exception) and isinstance(found["positions"], Exception):
            raise own_cache(name) from found["cache"]
        if whole < tolerance:
            break
    return Decoding("whole", turn, (_reason(name, found),))


def _without_slots(
    name: str, way: Way, found: dict[Way, float | Exception], tolerance: float
) -> tuple[str, ...]:
    """Why a model that runs as forests is not sampled in slots; nothing where it is."""
    off = found.get("slots", 0.0)
    if isinstance(off, Exception):
        what = f"cannot be drawn {WAYS['slots']} ({(str(off).splitlines() or [''])[0]})"
    elif off < tolerance:
        return ()
    else:
        what = f"drawn {WAYS['slots']} are off by {off:.2g} nats"
    return (
        f"{name}: completions {what}; they are drawn {WAYS[way]}, those of one length together, "
        "which is slower",
    )


def _reason(name: str, found: dict[Way, float | Exception]) -> str:
    """Why a model is sampled without a cache."""
    off = [value for way, value in found.items() if way != "whole" and isinstance(value, float)]
    return (
        f"{name}: completions drawn {WAYS['cache']} are off by {min(off):.2g} nats; they are drawn "
        f"{WAYS['whole']}, which is slow"
    )


def _prompts(vocabulary: int, reach: int) -> list[list[int]]:
    """Random prompts; of a model that changes at a length, one that its completions take there."""
    rng = generator(0, "sampling probe")
    lengths = [*LENGTHS, *([max(1, reach - 3)] if reach else [])]
    return [rng.integers(0, vocabulary, n).tolist() for n in lengths]


def _deviation(network: Network, prompts: Many[Many[int]], completions: Many[Completion]) -> float:
    """Largest difference of a log-probability from that of the whole sequence alone, nats."""
    most = 0.0
    with network.stock_attention():
        for completion in completions:
            if not completion.tokens:  # its prompt fills the model's positions
                continue
            prompt = prompts[completion.prompt]
            ids = torch.tensor([*prompt, *completion.tokens], device=network.device)
            logits = network.inner(input_ids=ids[None], use_cache=False).logits[0]
            logp = logits[len(prompt) - 1 : -1].double().log_softmax(-1)
            alone = logp.gather(1, ids[len(prompt) :, None])[:, 0].cpu()
            drawn = torch.tensor(completion.logprobs, dtype=alone.dtype)
            most = max(most, float((drawn - alone).abs().max().nan_to_num(math.inf)))
    return most
