"""A model is admitted by a probe, not by hope.

transformers accepts a custom attention function on models that do not go through it, without an
error. So at load

1.  a small copy of the config (one layer of each kind, in order; a small vocabulary; random
    weights, whose matrices are five times as large as the config draws them) scores a random forest
    in every mode, and each mode is compared with the forest's paths run alone through the model's
    own eager attention. What a config says does not change, so the verdict is kept.
2.  the loaded weights score one forest, in the type they have, and are compared with their paths
    alone: what is particular to them, a head for example, shows here.

At the scale of first weights a leak can hide under the tolerance: LFM2 was off by 7.7e-4 nats and
passed. Five times as large it is off by 0.38. A model that fails runs every path alone, and says
so, or is refused with the reason.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from posttrain.core.errors import ModelError
from posttrain.core.files import sha256_json
from posttrain.core.seeds import generator
from posttrain.core.types import Read
from posttrain.data.forest import Sequence, TokenForest, Tree, collate
from posttrain.engine.modes import MODES, TOLERANCE, Admission, Mode
from posttrain.engine.network import Network, quiet, trunk_of
from posttrain.engine.router import Router, agrees, asked_router

NOISE = 1e-2  # nats by which a model's own calls may differ, at the scale its config draws
LOW_MEAN, LOW_MOST = 0.05, 1.0  # nats, mean and largest, in half precision or less
LONGEST_PROBE = 1024  # tokens; a threshold beyond this is not probed
SMALL_VOCABULARY = 128
LOUD = 100.0  # size of logits at which a soft cap shows
SCALE = 5.0  # of the matrices of the small copy


def admitted(inner: PreTrainedModel, notes: tuple[str, ...] = ()) -> Network:
    """A loaded transformers model, run as well as it can be.

    Args:
        notes: what the user should know of it, besides what the probe says.
    Raises:
        ModelError: no mode agrees with the paths alone, or its head is not h·Wᵀ with a known scale,
            bias and soft cap.
    """
    verdict = _verdict(inner)
    training = inner.training
    inner.eval()
    try:
        with quiet():
            network = _verified(inner, verdict)
    finally:
        inner.train(training)
    reasons = (*notes, *network.admission.reasons, *_modality(inner))
    network.admission = replace(network.admission, reasons=reasons)
    network.train(training)
    return network


def _modality(inner: PreTrainedModel) -> tuple[str, ...]:
    """What of a model of several modalities was probed."""
    if inner.config.get_text_config() is inner.config:
        return ()
    return (f"{type(inner).__name__} takes more than text; only its text was probed",)


# ------------------------------------------------------------------------------- the loaded weights


@torch.no_grad()
def _verified(inner: PreTrainedModel, verdict: Admission) -> Network:
    """The network, if it agrees with its paths alone on one forest."""
    name = type(inner).__name__
    network = Network(inner, verdict)
    forest = probe_forest(network.vocabulary).to(network.device)
    try:
        off = (_scores(network, forest) - _paths_alone(network, forest)).abs()
    except Exception as error:
        raise ModelError(
            f"{name} cannot be run as a causal language model with these weights "
            f"({network.dtype} on {network.device.type}): {type(error).__name__}: {error}",
            cure="use a decoder-only language model with one output head; or give another device",
        ) from error
    exact = torch.finfo(network.dtype).bits >= 32
    close = (
        off.max() < verdict.tolerance if exact else off.mean() < LOW_MEAN and off.max() < LOW_MOST
    )
    if not bool(close):
        raise ModelError(
            f"{name} is refused: with these weights {MODES[verdict.mode]} is off by "
            f"{float(off.max()):.2g} nats (its output head is not a matrix with a known bias, "
            "scale and soft cap, or its weights are not finite)",
            cure="use another model of its family",
        )
    network.admission = replace(verdict, deviation=float(off.max()))
    network.router = _router(network, forest)
    return network


def _router(network: Network, forest: TokenForest) -> Router | None:
    """The router whose load-balancing loss the config asks for, if we compute it as the model
    does.
    """
    router, inner = asked_router(network.inner), network.inner
    if router is None or inner.get_output_embeddings() is None:
        return None
    ids = forest.tokens[forest.path][: int(forest.lengths[0])]
    alone = collate([Tree((Sequence(ids.cpu().numpy(), np.ones(len(ids), bool)),))])
    network.router = router
    try:
        usage = network(alone, Read(logprob=False, experts=True)).experts
    except Exception:  # its layers do not say what their routers do
        return None
    with network.stock_attention():
        return router if agrees(inner, router, ids, usage) else None


def _scores(network: Network, forest: TokenForest) -> Tensor:
    """[N] log-probabilities of the targets, as the network is set now."""
    return network(forest, Read()).logprob


@torch.no_grad()
def _paths_alone(network: Network, forest: TokenForest, *, backwards: bool = False) -> Tensor:
    """[N] log-probabilities from the model's own logits, one sequence at a time: the truth.

    Of a network that is no language model, its trunk's hidden states through the network's head.
    """
    inner, order = network.inner, 1 - 2 * backwards
    speaks = inner.get_output_embeddings() is not None
    out = []
    with network.stock_attention():
        for ids in forest.tokens[forest.path].split(forest.lengths.tolist())[::order]:
            if speaks:
                logits = inner(input_ids=ids[None], use_cache=False).logits[0, :-1].float()
            else:
                hidden = trunk_of(inner)(input_ids=ids[None], use_cache=False).last_hidden_state
                logits = network.head.logits(hidden[0, :-1])
            out.append(logits.log_softmax(-1).gather(1, ids[1:, None])[:, 0])
    return torch.cat(out[::order])


def probe_forest(vocabulary: int, longest: int = 0) -> TokenForest:
    """A small random forest: a tree three levels deep with five leaves, a plain document, and one
    of `longest` tokens.
    """
    rng = generator(0, "probe")

    def draw(n: int) -> np.ndarray:
        return rng.integers(0, vocabulary, n)

    root = draw(7)
    left, right = np.concatenate([root, draw(5)]), np.concatenate([root, draw(9)])
    stems = ((left, 4), (left, 11), (right, 6), (right, 3), (root, 8))
    documents = [[np.concatenate([stem, draw(n)]) for stem, n in stems], [draw(13)]]
    if longest:
        documents += [[draw(longest)], [np.concatenate([root, draw(longest)])]]
    trees = []
    for paths in documents:
        trees.append(Tree(tuple(Sequence(path, np.ones(len(path), bool)) for path in paths)))
    return collate(trees)


# ----------------------------------------------------------------------------------- the small copy

_VERDICTS: dict[str, Admission] = {}  # by class, config and versions


def _verdict(inner: PreTrainedModel) -> Admission:
    """What the small copy says; asked once for every config."""
    key = sha256_json([config_key(inner), inner.config._attn_implementation])
    if key not in _VERDICTS:
        with quiet():
            _VERDICTS[key] = _probe(inner)
    return _VERDICTS[key]


def config_key(inner: PreTrainedModel) -> str:
    """Digest of all that a small copy is made from: class, config and versions."""
    config = inner.config.to_dict()
    for name in ("dtype", "_name_or_path"):  # say nothing of what the layers do
        config.pop(name, None)
    described = json.loads(json.dumps(config, default=str, sort_keys=True))
    versions = [torch.__version__, transformers.__version__]
    return sha256_json([type(inner).__module__, type(inner).__name__, described, versions])


def _probe(inner: PreTrainedModel) -> Admission:
    """Try a small copy with large matrices; at the config's own scale where that is chaotic."""
    name = type(inner).__name__
    _refuse_dynamic(inner)
    own = str(inner.config._attn_implementation)
    error: ModelError | None = None
    for scale in (SCALE, 1.0):
        copied = small_copy(inner, scale)
        if copied is None:  # its class cannot be made from its config alone: the model itself
            return _compared(name, inner, own, NOISE)
        try:
            return _compared(name, copied, own, TOLERANCE if scale != 1.0 else NOISE)
        except _Chaotic as chaotic:
            error = chaotic
    assert error is not None
    raise error


class _Chaotic(ModelError):
    """The model alone does not agree with itself."""


def _refuse_dynamic(inner: PreTrainedModel) -> None:
    """Position frequencies after a long sequence depend on the sequences before it, and a probe
    sees only one order.
    """
    if any(rope.get("rope_type") == "dynamic" for rope in _ropes(inner.config.get_text_config())):
        raise ModelError(
            f"{type(inner).__name__} is refused: its dynamic position frequencies depend on what "
            "ran before",
            cure='set rope_type to "default" in its config.json; up to max_position_embeddings'
            " tokens the model is the same",
        )


def small_copy(inner: PreTrainedModel, scale: float) -> PreTrainedModel | None:
    """A model of the same class with one layer of each kind, a small vocabulary and drawn weights,
    in float32; None where its class cannot be made from a config.
    """
    for shrink in (_few_layers, lambda config, inner: None):
        config: Any = copy.deepcopy(inner.config)
        text = config.get_text_config()
        _small_vocabulary(text)
        if text is not config:
            _small_vocabulary(config)
            _few_vision_layers(config)
        with contextlib.suppress(AttributeError):  # a list that follows from other settings
            shrink(text, inner)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        config.dtype = torch.float32
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                made = type(inner)(config).float().eval()
        except Exception:
            continue
        _draw(made, scale)
        return made
    return None


def _small_vocabulary(config: Any) -> None:
    if getattr(config, "vocab_size", None):
        config.vocab_size = min(config.vocab_size, SMALL_VOCABULARY)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"):
        token = getattr(config, name, None)
        if (isinstance(token, int) and token >= SMALL_VOCABULARY) or isinstance(token, list):
            setattr(config, name, 0)
    for name in ("vocab_size_per_layer_input", "embedding_vocab_size"):
        if getattr(config, name, None):
            setattr(config, name, min(getattr(config, name), SMALL_VOCABULARY))


def _few_vision_layers(config: Any) -> None:
    for name in ("vision_config", "audio_config"):
        part = getattr(config, name, None)
        for depth in ("num_hidden_layers", "depth", "encoder_layers"):
            if isinstance(getattr(part, depth, None), int):
                setattr(part, depth, 1)


def _few_layers(config: Any, inner: PreTrainedModel) -> None:
    """One layer of each kind, in the order they first appear; two where all are alike.

    A config that lists `layer_types` can say which. Where layers differ and it has no such list,
    the whole depth stays.
    """
    depth = getattr(config, "num_hidden_layers", None)
    if not isinstance(depth, int) or depth <= 2:
        return
    kinds = getattr(config, "layer_types", None)
    if kinds:
        first = sorted(kinds.index(kind) for kind in set(kinds))
        if len(first) < 2:
            first = [0, 1]
        config.layer_types = [kinds[i] for i in first]  # first: it may not be ours to set
        config.num_hidden_layers = len(first)
        for name in ("mlp_layer_types", "num_attention_heads_per_layer", "no_rope_layers"):
            listed = getattr(config, name, None)
            if isinstance(listed, list) and len(listed) == depth:
                setattr(config, name, [listed[i] for i in first])
        if getattr(config, "num_kv_shared_layers", 0):
            config.num_kv_shared_layers = 0  # the layer whose keys they read may not be there
        return
    if _alike(inner, depth):
        config.num_hidden_layers = 2


def _alike(inner: PreTrainedModel, depth: int) -> bool:
    """Whether all layers of a model have the same modules, of the same shapes and settings."""
    for module in trunk_of(inner).modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return len({_signature(layer) for layer in module}) == 1
    return False


def _signature(layer: nn.Module) -> tuple[Any, ...]:
    """Names and classes of a layer's modules, shapes of its parameters, and its plain settings."""
    modules = tuple((name, type(module).__name__) for name, module in layer.named_modules())
    shapes = tuple((name, tuple(p.shape)) for name, p in layer.named_parameters())
    settings = []
    for name, module in layer.named_modules():
        for key, value in sorted(vars(module).items()):
            plain = isinstance(value, (bool, int, float, str)) or value is None
            if plain and key not in ("layer_idx", "layer_id", "training"):
                settings.append((name, key, value))
    return modules, shapes, tuple(settings)


@torch.no_grad()
def _draw(model: nn.Module, scale: float) -> None:
    """Larger matrices, and vectors that are not zero, so that every part of the model matters."""
    rng = torch.Generator().manual_seed(0)
    for name, parameter in sorted(model.named_parameters()):
        if parameter.ndim >= 2:
            parameter.mul_(scale)
        elif scale != 1.0 and name.endswith(("bias", "sinks")):
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=rng))


# ----------------------------------------------------------------------------------- the comparison


@torch.no_grad()
def _compared(name: str, inner: PreTrainedModel, own: str, noise: float) -> Admission:
    """Score a random forest in every mode, best first, and take the first that agrees with every
    path run alone.

    Args:
        name: of the class.
        own: transformers' attention that the model came with.
        noise: nats by which a path among others may differ from the same path alone.
    Raises:
        ModelError: none agrees.
    """
    inner.eval()
    reach, beyond = thresholds(inner.config)
    embeddings: Any = inner.get_input_embeddings()
    rows = int(embeddings.weight.shape[0])
    forest = probe_forest(rows, max(reach) + 8 if reach else 0).to(inner.device)
    network, truth, off = _truth(name, inner, forest, noise)
    verdict = Admission(noise=off)

    def deviation() -> float:
        return float((_scores(network, forest) - truth).abs().max())

    reasons = [f"{name}: {reason}" for reason in beyond]
    # transformers' faster attention, for sampling, if it agrees: some versions drop a soft cap
    # without an error
    network.stock = own
    try:
        network.run_as("equal")
        off = deviation()
    except Exception:
        off = math.inf
    if not off < verdict.tolerance:
        reasons.append(
            f"{name}: transformers' {own} attention is off by {off:.2g} nats; sampling uses eager"
        )
        network.stock = "eager"
    for mode in _possible(beyond):
        try:
            network.run_as(mode)
            off = deviation()
        except Exception as error:
            first = str(error).splitlines()[0] if str(error) else ""
            reasons.append(f"{name} {MODES[mode]}: {type(error).__name__}: {first}")
            continue
        if off < verdict.tolerance:
            return replace(
                verdict, mode=mode, stock=network.stock, deviation=off, reasons=tuple(reasons)
            )
        reasons.append(f"{name} {MODES[mode]}: log-probabilities off by {off:.2g} nats")
    raise ModelError(
        f"{name} is refused: " + "; ".join(reasons), cure="use another model, or report this one"
    )


def _truth(
    name: str, inner: PreTrainedModel, forest: TokenForest, noise: float
) -> tuple[Network, Tensor, float]:
    """A network that runs paths alone in eager attention, what each of them says, and by how much
    a path among others differs from it.

    Raises:
        ModelError: it cannot be run, or does not agree with itself.
    """
    try:
        network = Network(inner, Admission("equal", "eager"))
        truth = _paths_alone(network, forest)
        off = float((_scores(network, forest) - truth).abs().max())
    except Exception as error:
        raise ModelError(
            f"{name} cannot be run as a causal language model: {type(error).__name__}: {error}",
            cure="use a decoder-only language model with one output head",
        ) from error
    if off < noise:
        _refuse_bent(name, network, forest)
        return network, truth, off
    changed = float((_paths_alone(network, forest, backwards=True) - truth).abs().max())
    if changed > TOLERANCE:  # at any scale: no way of running it is right
        raise ModelError(
            f"{name} is refused: its answers depend on what ran before, by {changed:.2g} nats "
            "(stateful position frequencies, or dropout outside training)",
            cure="use another model of its family",
        )
    raise _Chaotic(
        f"{name} is refused: its output head is not a matrix with a known bias, scale and soft cap "
        f"(log-probabilities off by {off:.2g} nats)",
        cure="use another model of its family",
    )


def _refuse_bent(name: str, network: Network, forest: TokenForest) -> None:
    """Refuse logits that are bent after the head in a way that is not ours.

    A soft cap changes small logits by less than any tolerance, and training makes them larger. So
    the model's own head is given hidden states that are so large that it shows.

    Raises:
        ModelError: its large logits are not those of our head.
    """
    inner, taken = network.inner, list[Tensor]()
    layer: Any = inner.get_output_embeddings()
    if layer is None:
        return

    def enlarge(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0]
        size = (hidden.flatten(0, -2) @ layer.weight.T).abs().max().clamp_min(1e-6)
        taken.append(hidden * (LOUD / size))
        return (taken[-1], *args[1:])

    hook = layer.register_forward_pre_hook(enlarge)
    try:
        ids = forest.tokens[forest.path][: int(forest.lengths[0])]
        with network.stock_attention():
            logits = inner(input_ids=ids[None], use_cache=False).logits[0].float()
    finally:
        hook.remove()
    if not taken:  # it computes its logits in another way; the comparison of small ones must do
        return
    # MiniCPM scales the hidden states, and not the logits
    heads = [network.head, replace(network.head, scale=1.0)]
    expected = [head.logits(taken[-1].flatten(0, -2)).log_softmax(-1) for head in heads]
    off = min(float((one - logits.log_softmax(-1)).abs().max()) for one in expected)
    if not off < TOLERANCE:
        raise ModelError(
            f"{name} is refused: its large logits are changed after the output head in a way that "
            f"its config does not name (log-probabilities off by {off:.2g} nats)",
            cure="use another model of its family, or report this one",
        )


def _possible(beyond: list[str]) -> list[Mode]:
    """The modes that are worth a try, best first."""
    if any("frequencies" in reason for reason in beyond):
        return ["equal"]
    return ["padded", "equal"] if beyond else ["forest", "padded", "equal"]


def thresholds(config: Any) -> tuple[list[int], list[str]]:
    """Lengths beyond which a model behaves differently: those a probe can reach, and reasons for
    those it cannot.
    """
    config = config.get_text_config()
    reach: list[int] = []
    beyond: list[str] = []
    window = getattr(config, "sliding_window", None)
    if window and window <= LONGEST_PROBE:
        # longer windows follow the same rule; nothing about them is particular to the model
        reach.append(window)
    chunk = getattr(config, "attention_chunk_size", None)
    if chunk and chunk <= LONGEST_PROBE:
        reach.append(chunk)
    elif chunk:
        beyond.append(f"its attention is chunked ({chunk} tokens)")
    for rope in _ropes(config):
        if rope.get("rope_type") == "longrope":
            limit = _longrope_limit(rope, config)
            if limit <= LONGEST_PROBE:
                reach.append(limit)
            else:
                beyond.append(
                    "its longrope position frequencies depend on the longest sequence beside it"
                )
    return reach, beyond


def turning_point(config: Any) -> int | None:
    """The length beyond which a model encodes all positions in another way, or None."""
    config = config.get_text_config()
    limits = [
        _longrope_limit(rope, config)
        for rope in _ropes(config)
        if rope.get("rope_type") == "longrope"
    ]
    return min(limits) if limits else None


def _longrope_limit(rope: dict[str, Any], config: Any) -> int:
    return (
        rope.get("original_max_position_embeddings")
        or getattr(config, "original_max_position_embeddings", None)
        or config.max_position_embeddings
    )


def _ropes(config: Any) -> list[dict[str, Any]]:
    """The position-frequency settings of a config: one for all layers, and one a layer type where
    it has them.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    return [rope, *(value for value in rope.values() if isinstance(value, dict))]
