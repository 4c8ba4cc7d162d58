"""A Hugging Face causal model behind one function: hidden states of a forest's targets, or of its
sequences' ends.

A model is admitted by a probe, not by hope. transformers accepts a custom attention function on
models that do not go through it, without an error; so at load a small random forest is scored and
compared with its paths run alone through the model's own eager attention. A model that fails runs
every path alone, and says so, or is refused with the reason.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from posttrain.core.errors import ModelError
from posttrain.core.seeds import generator
from posttrain.data.forest import Sequence, TokenForest, plant
from posttrain.engine import attention
from posttrain.engine.attention import ForestMask
from posttrain.engine.head import Head, logprobs

Mode = Literal["forest", "padded", "equal"]
MODES: dict[Mode, str] = {
    "forest": "packed, prefixes shared",
    "padded": "every path alone, in batches of similar length",
    "equal": "every path alone, in batches of exactly equal length",
}
TOLERANCE = (
    1e-3  # nats; models that agree do so within 1e-5, models that do not are off by 0.1 and more
)
LONGEST_PROBE = 1024  # tokens; a threshold beyond this is not probed

Read = Literal["before", "targets", "ends"]
Noise = Callable[
    [Tensor, Tensor], Tensor
]  # (embeddings [..., T, d], sequence lengths [..., T]) -> embeddings


@dataclass(frozen=True)
class Admission:
    """How a model may be run, and why not better.

    Attributes:
        mode: see MODES.
        deviation: largest difference of a log-probability from the path alone, nats.
        reasons: what ruled the better modes out, and what else the user should know; one sentence
            each.
    """

    mode: Mode
    deviation: float
    reasons: tuple[str, ...] = ()


class Model:
    """A causal language model, or its decoder with another head, and how it is run.

    Args:
        network: the transformers model.
        notes: what the user should know of it, besides what the probe finds.

    Attributes:
        network: the one copy of the weights.
        admission: what the probe found.
    """

    def __init__(self, network: PreTrainedModel, notes: tuple[str, ...] = ()) -> None:
        self.network: Any = network  # Any: transformers' own types do not survive a type checker
        self.config = network.config
        self._stock = str(network.config._attn_implementation)
        self.head_scale, self.head_softcap = _head_constants(network)
        found = admit(self)
        self.admission = replace(found, reasons=(*notes, *found.reasons))
        self.mode = self.admission.mode

    @property
    def device(self) -> torch.device:
        return self.network.device

    @property
    def head(self) -> Head:
        """Of a language model. A network without one is looked at through its input embeddings, for
        the probe.
        """
        layer = self.network.get_output_embeddings()
        if layer is None:
            return Head(self.network.get_input_embeddings().weight)
        return Head(layer.weight, getattr(layer, "bias", None), self.head_scale, self.head_softcap)

    @property
    def mode(self) -> Mode:
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        self._mode: Mode = mode
        self.network.set_attn_implementation(attention.NAME if mode == "forest" else self._stock)

    def around(self, network: Any) -> Model:
        """The same way of running it, for a network of the same kind: a copy needs no probe."""
        out = copy.copy(self)
        out.network, out.config = network, network.config
        out.mode = self._mode
        return out

    @contextlib.contextmanager
    def stock_attention(self) -> Iterator[None]:
        """The model's own attention, with a cache: for sampling."""
        self.network.set_attn_implementation(self._stock)
        try:
            yield
        finally:
            self.mode = self._mode

    def hidden(
        self, forest: TokenForest, noise: Noise | None = None, at: Read = "before"
    ) -> Tensor:
        """Hidden states of a forest.

        Args:
            forest: on the model's device.
            noise: applied to the input embeddings (NEFTune).
            at: which: `before`, those that predict the targets; `targets`, those of the targets
                themselves; `ends`, those of the last token of every sequence.
        Returns: [N, d], for `ends` [L, d].
        """
        decoder = _decoder(self.network)
        starts = forest.lengths.cumsum(0) - forest.lengths
        if at == "ends":
            leaf, step = torch.arange(forest.L, device=self.device), forest.lengths - 1
        else:
            leaf, step = forest.leaf, forest.positions[forest.predictor] + (at == "targets")
        if self.mode == "forest":
            with self._noise(noise, forest.token_lengths):
                out = decoder(
                    input_ids=forest.tokens[None],
                    position_ids=forest.positions[None],
                    use_cache=False,
                    forest=ForestMask(forest),
                ).last_hidden_state[0]
            # not out[...]: its backward adds the gradients of one token from several threads, in
            # any order
            return out.index_select(
                0, forest.predictor if at == "before" else forest.path[starts[leaf] + step]
            )
        found, order = [], []
        for group in _length_groups(forest.lengths.tolist(), equal=self.mode == "equal"):
            longest = int(forest.lengths[group].max())
            inside = torch.arange(longest, device=self.device) < forest.lengths[group][:, None]
            index = (starts[group][:, None] + torch.arange(longest, device=self.device)).clamp_(
                max=len(forest.path) - 1
            )
            ids = torch.where(
                inside, forest.tokens[forest.path[index]], 0
            )  # causal: padding on the right is never seen
            with self._noise(noise, forest.lengths[group][:, None].expand(-1, longest)):
                out = decoder(input_ids=ids, use_cache=False).last_hidden_state
            row = torch.full((forest.L,), -1, device=self.device)
            row[group] = torch.arange(len(group), device=self.device)
            mine = torch.nonzero(row[leaf] >= 0)[:, 0]
            found.append(out[row[leaf[mine]], step[mine]])
            order.append(mine)
        return torch.cat(found)[torch.cat(order).argsort()]

    @contextlib.contextmanager
    def _noise(self, noise: Noise | None, lengths: Tensor) -> Iterator[None]:
        if noise is None:
            yield
            return
        hook = self.network.get_input_embeddings().register_forward_hook(
            lambda _m, _i, out: noise(out, lengths)
        )
        try:
            yield
        finally:
            hook.remove()


def _length_groups(lengths: list[int], *, equal: bool, tokens: int = 4096) -> Iterator[list[int]]:
    """Sequence numbers in batches: of equal length, or of similar length and at most `tokens`
    padded tokens.
    """
    group: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        new = lengths[i] != lengths[group[0]] if equal and group else False
        if group and (new or lengths[i] * (len(group) + 1) > max(tokens, lengths[i])):
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def _head_constants(network: PreTrainedModel) -> tuple[float, float | None]:
    """Logit scale and soft cap, by the names configs give them; the probe proves them right or
    refuses the model.
    """
    config = network.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(
        getattr(config, "logits_scaling", None) or 1.0
    )
    return scale, getattr(config, "final_logit_softcapping", None)


# ---------------------------------------------------------------------------------------- admission


def _thresholds(config: Any) -> tuple[list[int], list[str]]:
    """Lengths beyond which a model behaves differently: those a probe can reach, and reasons for
    those it cannot.
    """
    config = config.get_text_config()
    reach: list[int] = []
    beyond: list[str] = []
    window = getattr(config, "sliding_window", None)
    if window and window <= LONGEST_PROBE:
        reach.append(
            window
        )  # longer windows follow the same rule; nothing about them is particular to the model
    chunk = getattr(config, "attention_chunk_size", None)
    if chunk:
        (
            reach.append(chunk)
            if chunk <= LONGEST_PROBE
            else beyond.append(f"its attention is chunked ({chunk} tokens)")
        )
    for one in _ropes(config):
        if one.get("rope_type") == "longrope":
            limit = (
                one.get("original_max_position_embeddings")
                or getattr(config, "original_max_position_embeddings", None)
                or config.max_position_embeddings
            )
            if limit <= LONGEST_PROBE:
                reach.append(limit)
            else:
                beyond.append(
                    "its longrope position frequencies depend on the longest sequence beside it"
                )
    return reach, beyond


def _ropes(config: Any) -> list[dict[str, Any]]:
    """The position-frequency settings of a config: one for all layers, and one a layer type where
    it has them.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    return [rope, *(v for v in rope.values() if isinstance(v, dict))]


def probe_forest(vocabulary: int, longest: int = 0) -> TokenForest:
    """A small random forest: a tree three levels deep with five leaves, a plain document, and one
    of `longest` tokens.
    """
    rng = generator(0, "probe")
    draw = lambda n: rng.integers(0, vocabulary, n)  # noqa: E731
    root = draw(7)
    left, right = np.concatenate([root, draw(5)]), np.concatenate([root, draw(9)])
    tree = [
        np.concatenate([stem, draw(n)])
        for stem, n in ((left, 4), (left, 11), (right, 6), (right, 3), (root, 8))
    ]
    documents = [tree, [draw(13)]] + (
        [[draw(longest)], [np.concatenate([root, draw(longest)])]] if longest else []
    )
    return plant([tuple(Sequence(t, np.ones(len(t), bool)) for t in one) for one in documents])


@torch.no_grad()
def admit(model: Model) -> Admission:
    """Score a random forest in every mode, best first, and take the first that agrees with every
    path run alone.

    Raises:
        ModelError: no mode agrees, or the head is not h·Wᵀ with a known scale, bias and soft cap.
    """
    network = model.network
    was_training = network.training
    network.eval()
    try:
        with quiet():
            return _admit(model)
    finally:
        network.train(was_training)


def _admit(model: Model) -> Admission:
    network = model.network
    name = type(network).__name__
    if any(one.get("rope_type") == "dynamic" for one in _ropes(network.config.get_text_config())):
        # what they are after a long sequence depends on the sequences before it, and a probe sees
        # only one order
        raise ModelError(
            f"{name} is refused: its dynamic position frequencies depend on what ran before",
            cure=(
                'set rope_type to "default" in its config.json; up to max_position_embeddings'
                " tokens the model is the same"
            ),
        )
    reach, beyond = _thresholds(network.config)
    forest = probe_forest(
        network.get_input_embeddings().weight.shape[0], max(reach) + 8 if reach else 0
    ).to(model.device)

    def deviation() -> float:
        """Of the log-probabilities from the truth, as the model is set now, nats."""
        return float(
            (logprobs(model.head, model.hidden(forest), forest.target)[0] - truth).abs().max()
        )

    own, model._stock = model._stock, "eager"
    try:
        model.mode = "equal"
        truth = _paths_alone(model, forest)
        off = deviation()
    except Exception as error:
        raise ModelError(
            f"{name} cannot be run as a causal language model: {type(error).__name__}: {error}",
            cure="use a decoder-only language model with one output head",
        ) from error
    if not off < TOLERANCE:
        changed = float((_paths_alone(model, forest, backwards=True) - truth).abs().max())
        raise ModelError(
            f"{name} is refused: "
            + (
                f"its answers depend on what ran before, by {changed:.2g} nats (stateful position "
                "frequencies, or dropout outside training)"
                if changed > TOLERANCE
                else (
                    "its output head is not a matrix with "
                    f"a known bias, scale and soft cap (log-probabilities off by {off:.2g} nats)"
                )
            ),
            cure="use another model of its family",
        )
    reasons = [f"{name}: {reason}" for reason in beyond]
    # transformers' faster attention, for sampling, if it agrees: some versions drop a soft cap
    # without an error
    model._stock, model.mode = own, "equal"
    try:
        off = deviation()
    except Exception:
        off = math.inf
    if not off < TOLERANCE:
        reasons.append(
            f"{name}: transformers' {own} attention is off by {off:.2g} nats; sampling uses eager"
        )
        model._stock = "eager"
    modes: list[Mode] = (
        ["equal"] if any("frequencies" in r for r in beyond) else ["padded", "equal"]
    )
    if not beyond:
        modes.insert(0, "forest")
    for mode in modes:
        try:
            model.mode = mode
            if (off := deviation()) < TOLERANCE:
                return Admission(mode, off, tuple(reasons))
            reasons.append(f"{name} {MODES[mode]}: log-probabilities off by {off:.2g} nats")
        except Exception as error:
            first = str(error).splitlines()[0] if str(error) else ""
            reasons.append(f"{name} {MODES[mode]}: {type(error).__name__}: {first}")
    raise ModelError(
        f"{name} is refused: " + "; ".join(reasons), cure="use another model, or report this one"
    )


def _paths_alone(model: Model, forest: TokenForest, *, backwards: bool = False) -> Tensor:
    """[N] log-probabilities from `network(...).logits`, one sequence at a time: the truth the probe
    compares with.

    Of a network that is no language model, its decoder's hidden states through the model's head.
    """
    order = 1 - 2 * backwards
    speaks, decoder = model.network.get_output_embeddings() is not None, _decoder(model.network)
    out = []
    for ids in forest.tokens[forest.path].split(forest.lengths.tolist())[::order]:
        if speaks:
            logits = model.network(input_ids=ids[None], use_cache=False).logits[0, :-1]
        else:
            logits = model.head.logits(
                decoder(input_ids=ids[None], use_cache=False).last_hidden_state[0, :-1]
            )
        out.append(logits.log_softmax(-1).gather(1, ids[1:, None])[:, 0])
    return torch.cat(out[::order])


def _decoder(network: PreTrainedModel) -> torch.nn.Module:
    """The part that maps token ids to final hidden states."""
    decoder = network.get_decoder()
    if decoder is network:  # some classes do not know their own decoder
        decoder = next(child for child in network.children() if isinstance(child, PreTrainedModel))
    return decoder


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """transformers' warnings and bars off: the probe tries what may not work, and says what came of
    it.
    """
    before, bars = (
        transformers.logging.get_verbosity(),
        transformers.logging.is_progress_bar_enabled(),
    )
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)
        if bars:
            transformers.logging.enable_progress_bar()


def without_dropout(network: torch.nn.Module) -> None:
    """Switch off dropout for good, but for that of adapters, which somebody asked for."""
    for name, module in network.named_modules():
        if ".lora_" in name:
            continue
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for attribute in (
            "attention_dropout",
            "dropout",
            "attn_dropout",
            "dropout_prob",
        ):  # handed to functions
            if isinstance(getattr(module, attribute, None), float):
                setattr(module, attribute, 0.0)
