"""A transformers network behind one call: a forest goes in, columns come out.

    columns = network(forest, Read(entropy="value"))

Trunk and heads are one module. It is the only thing that is called, sharded, optimised, counted and
saved; nothing outside the engine reaches into it. The head may be a vocabulary, K rewards, or, in
addition, one value for every token.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from posttrain.core.errors import ConfigError, ModelError
from posttrain.core.seeds import derive
from posttrain.core.types import Columns, Facts, Read
from posttrain.data.forest import TokenForest
from posttrain.engine import attention
from posttrain.engine.exact import fixed_blocks, padded
from posttrain.engine.head import Head, additive, columns
from posttrain.engine.modes import Admission, Decoding, Mode
from posttrain.engine.router import Router

PADDED_TOKENS = 4096  # of a batch of paths run alone
REWARD_HEADS = ("score", "classifier")  # what transformers calls the module

Noise = Callable[[Tensor, Tensor], Tensor]  # (embeddings [..., T, d], lengths [..., T]) -> same
PartLoss = Callable[[Columns, Facts], Tensor]  # of some targets' columns and facts


class Network(nn.Module):
    """A causal language model, or its trunk with another head, and how it is run.

    Args:
        inner: the transformers model.
        admission: how it may be run; see `posttrain.engine.admission`.

    Attributes:
        inner: the one copy of the weights.
        stock: transformers' own attention, for sampling with a cache and for paths run alone.
        decoding: how completions may be drawn; None until it is probed.
        exact: see `posttrain.engine.exact`; on a CPU in float32.
        router: of a mixture whose config asks for the load-balancing loss, where admission found
            that we compute it as the model does; else None.
        value_head: [1, d] in float32, or None; see `add_value_head`.
    """

    def __init__(self, inner: PreTrainedModel, admission: Admission) -> None:
        super().__init__()
        self.inner: Any = inner  # Any: transformers' own types do not survive a type checker
        self.value_head: nn.Linear | None = None
        self.admission = admission
        self.stock = admission.stock
        self.decoding: Decoding | None = None
        self.router: Router | None = None
        self.exact = False
        self.head_scale, self.head_softcap = _head_constants(inner)
        self.run_as(admission.mode)
        self.train(inner.training)

    # ------------------------------------------------------------------------------------- facts

    @property
    def config(self) -> Any:
        return self.inner.config

    @property
    def device(self) -> torch.device:
        return self.inner.device

    @property
    def dtype(self) -> torch.dtype:
        return self.inner.dtype

    @property
    def head(self) -> Head:
        """Of a language model. A network without one is read through its input embeddings, for the
        probe.
        """
        layer = self.inner.get_output_embeddings()
        if layer is None:
            return Head(self.inner.get_input_embeddings().weight)
        bias = getattr(layer, "bias", None)
        return Head(layer.weight, bias, self.head_scale, self.head_softcap, exact=self.exact)

    @property
    def reward_head(self) -> Any:
        """The module that maps hidden states to rewards.

        Raises:
            ModelError: it has none that we know.
        """
        for name in REWARD_HEADS:
            if hasattr(self.inner, name):
                return getattr(self.inner, name)
        raise ModelError(
            f"{type(self.inner).__name__} has no head named {' or '.join(REWARD_HEADS)}",
            cure="use a model of another family",
        )

    @property
    def vocabulary(self) -> int:
        """Rows of the input embeddings."""
        return int(self.inner.get_input_embeddings().weight.shape[0])

    def weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters; those of the transformers model have the names it gives them."""
        for name, parameter in self.named_parameters():
            yield name.removeprefix("inner."), parameter

    # ------------------------------------------------------------------------------------- modes

    def run_as(self, mode: Mode) -> None:
        """Run forests packed, or every path alone."""
        self.mode: Mode = mode
        self.inner.set_attn_implementation(attention.NAME if mode == "forest" else self.stock)

    @contextlib.contextmanager
    def stock_attention(self) -> Iterator[None]:
        """The network's own attention, with a cache: for sampling."""
        self.inner.set_attn_implementation(self.stock)
        try:
            yield
        finally:
            self.run_as(self.mode)

    def add_value_head(self, seed: int = 0) -> None:
        """A linear map from hidden states to one value, in float32 or better, where there is none
        yet.

        Its first weights are normal with standard deviation 1/√(d + 1); the bias is 0. Source:
        Huang et al. 2024, arXiv 2403.17031.
        """
        if self.value_head is not None:
            return
        width = self.config.get_text_config().hidden_size
        stream = torch.Generator().manual_seed(derive(seed, "value head"))
        dtype = torch.promote_types(self.dtype, torch.float32)
        self.value_head = nn.Linear(width, 1, device=self.device, dtype=dtype)
        with torch.no_grad():
            drawn = torch.randn(1, width, generator=stream) / (width + 1) ** 0.5
            self.value_head.weight.copy_(drawn)
            self.value_head.bias.zero_()

    # ----------------------------------------------------------------------------------- the call

    def forward(
        self,
        forest: TokenForest,
        read: Read = Read(),
        loss: PartLoss | None = None,
        *,
        noise: Noise | None = None,
    ) -> Columns:
        """Run a forest once and read what is asked.

        Args:
            forest: on any device.
            read: what.
            loss: of a chunk of targets; the chunks' losses add up. It is taken in the same pass
                over the vocabulary. The columns have no gradients then.
            noise: applied to the input embeddings (NEFTune).
        """
        attend = None
        if self.mode == "forest":
            attend = self.attend_to(forest)
        forest = forest.to(self.device)
        usage: list[Tensor] | None = [] if read.experts else None
        states = self._hidden(forest, attend, noise, _places(read), usage)
        before = states.get("before")
        extra: dict[str, Any] = {}
        if usage is not None:
            extra["experts"] = torch.stack(usage).sum(0)
        if read.value:
            if self.value_head is None:
                raise ConfigError(
                    "the network has no value head",
                    cure="call add_value_head() before train_with()",
                )
            extra["value"] = self.value_head(_real(states["before"]))[:, 0]
        if read.reward:
            place = "ends" if read.reward == "sequences" else "targets"
            extra["reward"] = self.reward_head(_real(states[place]))
        if read.hidden:
            extra["hidden"] = states[read.hidden]
        if not read.vocabulary:
            return Columns(**extra)
        assert before is not None
        if loss is not None:
            read_off = additive(
                self.head, before, forest.target, forest.facts, read, loss, extra.pop("value", None)
            )
        else:
            read_off = columns(self.head, before, forest.target, forest.facts, read)
        return Columns(**{**_set(read_off), **extra})

    def attend_to(self, forest: TokenForest) -> attention.Attend:
        """The attention that suits a forest here."""
        if self.exact:
            return fixed_blocks(forest)
        return attention.attend_to(forest, self.device, self.dtype)

    def read(self, tokens: Tensor, positions: Tensor, attend: attention.Attend) -> Tensor:
        """[T] tokens at their positions → [T, d] hidden states; in exact mode with rows of zeros
        after them.
        """
        return self._read(None, lambda: torch.ones_like(tokens), tokens, positions, attend)

    def _read(
        self,
        usage: list[Tensor] | None,
        weights: Callable[[], Tensor],
        tokens: Tensor,
        positions: Tensor,
        attend: attention.Attend,
    ) -> Tensor:
        if self.exact:
            tokens, positions = padded(tokens), padded(positions)
        return self._trunk(
            usage,
            weights,
            input_ids=tokens[None],
            position_ids=positions[None],
            use_cache=False,
            attend=attend,
        )[0]

    def _hidden(
        self,
        forest: TokenForest,
        attend: attention.Attend | None,
        noise: Noise | None,
        places: list[str],
        usage: list[Tensor] | None,
    ) -> dict[str, Tensor]:
        """Hidden states [N, d] `before` the targets and at the `targets`, [L, d] at the `ends`.

        Args:
            usage: gets how the experts of a mixture were used; see `posttrain.engine.router`.
        """
        starts = forest.lengths.cumsum(0) - forest.lengths
        before = forest.positions[forest.predictor]
        leaves = torch.arange(forest.L, device=forest.tokens.device)
        steps = {
            "before": (forest.leaf, before),
            "targets": (forest.leaf, before + 1),
            "ends": (leaves, forest.lengths - 1),
        }
        if attend is None:
            return self._paths(forest, noise, {place: steps[place] for place in places}, usage)
        with self._noise(noise, forest.token_lengths):
            out = self._read(
                usage,
                lambda: forest.path.bincount(minlength=forest.T),
                forest.tokens,
                forest.positions,
                attend,
            )
        states = {}
        for place in places:
            leaf, step = steps[place]
            at = forest.predictor if place == "before" else forest.path[starts[leaf] + step]
            # not out[at]: its backward adds the gradients of one token from several threads, in any
            # order
            states[place] = out.index_select(0, at)
        return states

    def _paths(
        self,
        forest: TokenForest,
        noise: Noise | None,
        steps: dict[str, tuple[Tensor, Tensor]],
        usage: list[Tensor] | None,
    ) -> dict[str, Tensor]:
        """Every path alone, in batches: hidden states at steps of leaves, by place."""
        device = forest.tokens.device
        starts = forest.lengths.cumsum(0) - forest.lengths
        states: dict[str, list[Tensor]] = {place: [] for place in steps}
        order: dict[str, list[Tensor]] = {place: [] for place in steps}
        for group in _length_groups(forest.lengths.tolist(), equal=self.mode == "equal"):
            lengths = forest.lengths[group]
            place = torch.arange(int(lengths.max()), device=device)
            index = (starts[group][:, None] + place).clamp_(max=len(forest.path) - 1)
            tokens = forest.tokens[forest.path[index]]
            # causal: padding on the right is never seen
            real = place < lengths[:, None]
            ids = torch.where(real, tokens, 0)
            with self._noise(noise, lengths[:, None].expand(-1, len(place))):
                out = self._trunk(usage, real.flatten, input_ids=ids, use_cache=False)
            row = torch.full((forest.L,), -1, device=device)
            row[group] = torch.arange(len(group), device=device)
            for name, (leaf, step) in steps.items():
                inside = torch.nonzero(row[leaf] >= 0)[:, 0]
                states[name].append(out[row[leaf[inside]], step[inside]])
                order[name].append(inside)
        return {name: torch.cat(states[name])[torch.cat(order[name]).argsort()] for name in steps}

    def _trunk(
        self, usage: list[Tensor] | None, weights: Callable[[], Tensor], **inputs: Any
    ) -> Tensor:
        """Hidden states; adds to `usage` how the experts were used by rows of these weights."""
        if usage is None:
            return trunk_of(self.inner)(**inputs).last_hidden_state
        assert self.router is not None, "only a mixture has experts"
        out = trunk_of(self.inner)(output_router_logits=True, **inputs)
        usage.append(self.router.usage(out.router_logits, weights()))
        return out.last_hidden_state

    @contextlib.contextmanager
    def _noise(self, noise: Noise | None, lengths: Tensor) -> Iterator[None]:
        if noise is None:
            yield
            return
        embeddings = self.inner.get_input_embeddings()
        hook = embeddings.register_forward_hook(lambda _m, _i, out: noise(out, lengths))
        try:
            yield
        finally:
            hook.remove()


def _places(read: Read) -> list[str]:
    """Where hidden states are needed."""
    places = {read.hidden} if read.hidden else set()
    if read.vocabulary or read.value:
        places.add("before")
    if read.reward:
        places.add("ends" if read.reward == "sequences" else "targets")
    return sorted(places)


def _real(hidden: Tensor) -> Tensor:
    """In float32 or better: heads of few numbers cost nothing and must not round."""
    return hidden.to(torch.promote_types(hidden.dtype, torch.float32))


def _set(columns: Columns) -> dict[str, Any]:
    return {name: value for name, value in vars(columns).items() if value is not None}


def _length_groups(
    lengths: list[int], *, equal: bool, tokens: int = PADDED_TOKENS
) -> Iterator[list[int]]:
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


# how configs name what is done to the logits; the probe proves it right or refuses the model
SOFT_CAP = re.compile(r"(final_|output_)?logits?_soft_?cap(ping)?")
MULTIPLIED = ("logit_scale", "output_multiplier", "lm_head_multiplier")
DIVIDED = ("logits_scaling", "logits_mup_width_multiplier")


def _head_constants(inner: PreTrainedModel) -> tuple[float, float | None]:
    """Logit scale and soft cap, by the names configs give them."""
    config = inner.config.get_text_config()
    scale = 1.0
    for name in MULTIPLIED:
        scale *= float(getattr(config, name, None) or 1.0)
    for name in DIVIDED:
        factor = float(getattr(config, name, None) or 1.0)
        # HyperCLOVA X multiplies by what Granite and MiniCPM divide by
        scale = scale * factor if "hyperclova" in config.model_type else scale / factor
    caps = [value for name, value in sorted(vars(config).items()) if SOFT_CAP.fullmatch(name)]
    cap = next((float(value) for value in caps if value), None)
    return scale, cap


def known_positions(config: Any) -> int | None:
    """Tokens that a sequence may have; None where a model's config does not say."""
    text = config.get_text_config()
    known = (getattr(text, name, None) for name in ("max_position_embeddings", "max_seq_len"))
    return next((length for length in known if isinstance(length, int) and length > 0), None)


def trunk_of(inner: PreTrainedModel) -> nn.Module:
    """The part of a transformers model that maps token ids to final hidden states."""
    trunk = inner.get_decoder()
    if trunk is inner:  # some classes do not know their own decoder
        trunk = next(child for child in inner.children() if isinstance(child, PreTrainedModel))
    return trunk


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """transformers' warnings and bars off: the probe tries what may not work, and says what came of
    it.
    """
    logging = transformers.logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def without_dropout(network: nn.Module) -> None:
    """Switch off dropout for good, but for that of adapters, which somebody asked for."""
    for name, module in network.named_modules():
        if ".lora_" in name:
            continue
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        # rates that are handed to functions
        for attribute in ("attention_dropout", "dropout", "attn_dropout", "dropout_prob"):
            if isinstance(getattr(module, attribute, None), float):
                setattr(module, attribute, 0.0)
