"""Reward models: a decoder with a head of K numbers instead of a vocabulary, and the verbs of every
learner.

    score(forests)                      rewards, no gradients
    forward_backward(forests, loss)     adds to the gradients; `measure` is the same without
    save(folder) / load(path)           a Hugging Face folder

An outcome model is a sequence-classification network: it gives K rewards to a sequence, read at its
last token. A process model
is a token-classification network: it gives K rewards to every step of an answer, read at the step's
    last token, which is its
target. K heads are an ensemble on one trunk. The head multiplies in float32, whatever the trunk
runs in.

transformers finds the last token of a padded sequence as the last that is not `pad_token_id`. So
padding must be a token that no sequence ends with; `pad_unlike` sees to it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from collections.abc import Sequence as Many
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from posttrain.core.errors import ConfigError, ModelError
from posttrain.core.seeds import derive
from posttrain.core.types import Loss, Rewards
from posttrain.data.forest import Sequence, TokenForest, plant
from posttrain.engine import lora as adapters
from posttrain.engine.learner import Learner
from posttrain.engine.load import digest, load_network, load_tokenizer, resolve, to_bfloat16
from posttrain.engine.model import TOLERANCE, Model, Noise, quiet
from posttrain.engine.settings import LoraSettings

HEADS = ("score", "classifier")  # what transformers calls the module
KINDS = {False: AutoModelForSequenceClassification, True: AutoModelForTokenClassification}
PAD = "<|pad|>"  # added to a tokenizer that has nothing to pad with
NOTE = (  # key of config.json: how the sequences were written that the model was trained on
    "posttrain"
)


class RewardModel(Learner):
    """A reward model that can be scored, trained and saved; see `Learner` for what it has."""

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str = "",
        heads: int | None = None,
        process: bool | None = None,
        lora: LoraSettings | None = None,
        seed: int = 0,
        trained: bool = False,
    ) -> RewardModel:
        """Load a Hugging Face folder or hub id and admit it.

        Args:
            path: a reward model, whoever trained it; or a causal language model, which gets a new
                head.
            device: cpu or cuda; the GPU where there is one if empty.
            heads: K of a new head; None is 1. Of a reward model: what it must have.
            process: rewards for steps, or for whole sequences. None: as the reward model has it,
                and sequences for a new head.
            lora: add adapters; they and the head are trained, and nothing else.
            seed: of the head and the adapters.
            trained: it must be a reward model; a new head would judge at random.
        Raises:
            ModelError: it cannot be loaded, the probe refused it, or it is no reward model and must
                be.
            ConfigError: the reward model has other heads, or is of the other kind.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        folder = resolve(str(path))
        tokenizer = load_tokenizer(folder)
        steps, given = _trained(folder, heads, process)
        kind = KINDS[steps]
        if given is None and trained:
            raise ModelError(
                f"{path} is a language model, and no reward model",
                cure="train one: posttrain reward-model",
            )
        if given is None:
            network, notes = load_network(
                folder, device, kind=kind, fresh=_head_name(folder, kind), num_labels=heads or 1
            )
            _draw(head_of(network), seed)
        else:
            network, notes = load_network(folder, device, kind=kind)
        rows = network.get_input_embeddings().weight.shape[0]
        if len(tokenizer) > rows:
            raise ModelError(
                f"the tokenizer of {path} has {len(tokenizer)} tokens, the model only {rows}",
                cure="use the tokenizer the model was trained with",
            )
        model = Model(network, notes)  # probed in float32, whatever it will run in
        out = cls(model, tokenizer, source=str(path), digest=digest(folder))
        if given is None:
            out.pad_unlike(())
        out._check()
        if network.device.type == "cuda":
            halve(network)
        if lora:
            out.adapter = adapters.attach(network, lora, seed, "SEQ_CLS")
        return out

    @property
    def process(self) -> bool:
        """Whether it is steps that have rewards, and not whole sequences."""
        return "TokenClassification" in type(self.model.network).__name__

    @property
    def heads(self) -> int:
        """K."""
        return int(self.model.network.config.num_labels)

    # ------------------------------------------------------------------ verbs

    @torch.no_grad()
    def score(self, forests: Many[TokenForest]) -> list[Rewards]:
        """Rewards of each forest, without gradients and without dropout: [L, K], of a process model
        [N, K].
        """
        self.model.network.eval()
        return [self._rewards(forest.to(self.model.device)) for forest in forests]

    def _scored(self, forest: TokenForest, loss: Loss, noise: Noise | None = None) -> Rewards:
        return self._rewards(forest, noise)

    def _rewards(self, forest: TokenForest, noise: Noise | None = None) -> Rewards:
        hidden = self.model.hidden(forest, noise, at="targets" if self.process else "ends")
        return Rewards(
            head_of(self.model.network)(
                hidden.to(torch.promote_types(hidden.dtype, torch.float32))
            ),
            forest.leaf,
            forest.L,
        )

    def _check(self) -> None:
        """Compare with the network's own forward pass.

        Raises:
            ModelError: its head is not a linear map of the last token's hidden state.
        """
        network, rng = self.model.network, np.random.default_rng(0)
        pad = network.config.get_text_config().pad_token_id
        ids = rng.permutation(
            np.setdiff1d(np.arange(network.get_input_embeddings().weight.shape[0]), [pad or 0])
        )[:12]
        forest = plant([(Sequence(ids.astype(np.int64), np.arange(len(ids)) % 4 == 3),)])
        found = self.score([forest])[0].reward
        with quiet(), torch.no_grad(), self.model.stock_attention():
            said = network(
                input_ids=forest.tokens[None].to(self.model.device), use_cache=False
            ).logits
        expected = (
            said[0][torch.from_numpy(np.flatnonzero(forest.tokens.numpy() >= 0)[3::4])]
            if self.process
            else said
        )
        if not bool(
            (found - expected).abs().max() <= TOLERANCE * max(1.0, float(expected.abs().max()))
        ):
            raise ModelError(
                f"{type(network).__name__} is refused: its reward is not a linear map of the last"
                " hidden state",
                cure="use a reward model of another family",
            )

    # ------------------------------------------------------------------ how sequences are written

    @property
    def notes(self) -> dict[str, Any]:
        """How the sequences were written that the model was trained on; kept in its config.json."""
        return dict(getattr(self.model.network.config, NOTE, None) or {})

    def remember(self, notes: Mapping[str, Any]) -> None:
        """Keep with the model how sequences are written."""
        setattr(self.model.network.config, NOTE, {**self.notes, **notes, "heads": self.heads})

    def pad_unlike(self, ends: Collection[int]) -> None:
        """Choose a padding token that no sequence ends with: the tokenizer's own, one that is
        reserved, or the begin token. Where there is none, a new one with an embedding of zeros;
        nothing ever reads what it says.

        Args:
            ends: tokens that sequences end with, besides those that end an answer.
        """
        words, network = self.tokenizer, self.model.network
        taken = {*ends, *self.stops}
        added = sorted(
            (i, token.content) for i, token in words.added_tokens_decoder.items() if token.special
        )
        order = [
            words.pad_token_id,
            *(
                i
                for name in ("pad", "reserved", "unused")
                for i, text in added
                if name in text.lower()
            ),
            words.bos_token_id,
            words.unk_token_id,
        ]
        pad = next((i for i in order if i is not None and i not in taken), None)
        if pad is None:
            words.add_special_tokens({"pad_token": PAD})
            pad, embeddings = words.pad_token_id, network.get_input_embeddings().weight
            if pad >= len(embeddings):
                with quiet():
                    network.resize_token_embeddings(pad + 1, mean_resizing=False)
                network.get_input_embeddings().weight.requires_grad_(embeddings.requires_grad)
            with torch.no_grad():
                network.get_input_embeddings().weight[pad] = 0
        words.pad_token = words.convert_ids_to_tokens(pad)
        for config in (network.config, network.config.get_text_config()):
            config.pad_token_id = pad


def halve(network: Any) -> None:
    """Round the trunk to bfloat16, in place; the head stays in float32, and so do its rewards."""
    network._keep_in_fp32_modules = [*(network._keep_in_fp32_modules or ()), *HEADS]
    to_bfloat16(network)


def head_of(network: Any) -> Any:
    """The module that maps hidden states to rewards.

    Raises:
        ModelError: it is none that we know.
    """
    head = next((getattr(network, name) for name in HEADS if hasattr(network, name)), None)
    if head is None:
        raise ModelError(
            f"{type(network).__name__} has no head named {' or '.join(HEADS)}",
            cure="use a model of another family",
        )
    return head


def _trained(folder: Path, heads: int | None, process: bool | None) -> tuple[bool, int | None]:
    """Whether the model in a folder is, or is to be, a process model; and its heads, None where
    they are to be drawn.
    """
    try:
        config = AutoConfig.from_pretrained(folder)
    except Exception as error:
        raise ModelError(
            f"cannot read {folder}/config.json: {error}", cure="get the complete model"
        ) from error
    name = (getattr(config, "architectures", None) or [""])[0]
    if not name.endswith(("ForSequenceClassification", "ForTokenClassification")):
        return bool(process), None
    steps, known = name.endswith("ForTokenClassification"), int(config.num_labels or 1)
    if process is not None and process != steps:
        raise ConfigError(
            f"{folder} is a reward model of {'steps' if steps else 'whole answers'}",
            cure="start from a language model, or from a reward model of the same kind",
        )
    if heads is not None and heads != known:
        raise ConfigError(
            f"{folder} is a reward model with {known} heads, not {heads}", cure="leave --heads out"
        )
    if known > 1 and (getattr(config, NOTE, None) or {}).get("heads") != known:
        raise ModelError(
            f"{folder} classifies into {known} labels; a reward model has one number",
            cure="use a folder whose config.json has num_labels 1",
        )
    return steps, known


def _head_name(folder: Path, kind: Any) -> str:
    """What the head is called in the class that `kind` makes of a folder's config."""
    config = AutoConfig.from_pretrained(folder)
    try:
        with torch.device("meta"), quiet():
            network = kind.from_config(config)
    except Exception as error:
        raise ModelError(
            f"no reward model can be made of {folder}: {str(error).splitlines()[0]}",
            cure="use a model of another family",
        ) from error
    return next((name for name in HEADS if hasattr(network, name)), HEADS[0])


@torch.no_grad()
def _draw(head: Any, seed: int) -> None:
    """First weights, normal with standard deviation 1/√(d + 1), so that first rewards are around
    ±1; biases 0.

    Each head has a stream of its own. Source: Huang et al. 2024, arXiv 2403.17031.
    """
    weight: Tensor = head.weight
    for k in range(len(weight)):
        stream = torch.Generator().manual_seed(derive(seed, "score", k))
        drawn = torch.randn(weight.shape[1], generator=stream) / (weight.shape[1] + 1) ** 0.5
        weight[k] = drawn.to(weight)
    if head.bias is not None:
        head.bias.zero_()
