"""Reward models: a decoder with a head of K numbers instead of a vocabulary, and the verbs of every
learner.

    score(forests)                      rewards, no gradients
    forward_backward(forests, loss)     adds to the gradients; `measure` is the same without
    save(folder) / load(path)           a Hugging Face folder

An outcome model is a sequence-classification network: it gives K rewards to a sequence, read at its
last token. A process model is a token-classification network: it gives K rewards to every step of
an answer, read at the step's last token, which is its target. K heads are an ensemble on one trunk.
The head multiplies in float32, whatever the trunk runs in.

transformers finds the last token of a padded sequence as the last that is not `pad_token_id`. So
padding must be a token that no sequence ends with; `pad_unlike` sees to it.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
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
from posttrain.core.types import Read
from posttrain.data.forest import Sequence, Tree, collate
from posttrain.data.prompting import Prompting
from posttrain.engine import lora as adapters
from posttrain.engine.admission import LOW_MEAN, TOLERANCE, admitted
from posttrain.engine.learner import Learner
from posttrain.engine.load import (
    check_tokenizer,
    default_dtype,
    device_of,
    digest,
    load_network,
    load_tokenizer,
    resolve,
)
from posttrain.engine.network import REWARD_HEADS, quiet
from posttrain.engine.settings import LoraSettings

KINDS = {False: AutoModelForSequenceClassification, True: AutoModelForTokenClassification}
PAD = "<|pad|>"  # added to a tokenizer that has nothing to pad with
NOTE = "posttrain"  # key of config.json: what else is known of the sequences it was trained on


class RewardModel(Learner):
    """A reward model that can be scored, trained and saved; see `Learner`. `score` gives rewards:
    [L, K], of a process model [N, K].
    """

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
        folder, device = resolve(str(path)), device_of(device)
        tokenizer = load_tokenizer(folder)
        steps, given = _trained(folder, heads, process)
        kind, dtype = KINDS[steps], default_dtype(device)
        if given is None and trained:
            raise ModelError(
                f"{path} is a language model, and no reward model",
                cure="train one: posttrain reward-model",
            )
        fresh: dict[str, Any] = {}
        if given is None:
            fresh = {"fresh": _head_name(folder, kind), "num_labels": heads or 1}
        inner, notes = load_network(folder, device, dtype, kind=kind, **fresh)
        network = admitted(inner, notes)
        network.reward_head.float()  # the head stays in float32, and so do its rewards
        if given is None:
            _draw(network.reward_head, seed)
        check_tokenizer(path, tokenizer, network.vocabulary)
        read = Read(logprob=False, reward="targets" if steps else "sequences")
        out = cls(
            network,
            tokenizer,
            source=str(path),
            digest=digest(folder),
            origin=folder,
            read=read,
            prompting=Prompting.read(folder),
        )
        if given is None:
            out.pad_unlike(())
        out._check()
        if lora:
            out.adapter = adapters.attach(inner, lora, seed, "SEQ_CLS")
        return out

    @property
    def process(self) -> bool:
        """Whether it is steps that have rewards, and not whole sequences."""
        return "TokenClassification" in type(self.network.inner).__name__

    @property
    def heads(self) -> int:
        """K."""
        return int(self.network.config.num_labels)

    @property
    def pad(self) -> int | None:
        """The padding token, which transformers does not read at the end of a sequence."""
        return self.network.config.get_text_config().pad_token_id

    def _check(self) -> None:
        """Compare with the network's own forward pass.

        Raises:
            ModelError: its head is not a linear map of the last token's hidden state.
        """
        inner, rng = self.network.inner, np.random.default_rng(0)
        pad = inner.config.get_text_config().pad_token_id
        ordinary = np.setdiff1d(np.arange(self.network.vocabulary), [pad or 0])
        ids = rng.permutation(ordinary)[:12].astype(np.int64)
        forest = collate([Tree((Sequence(ids, np.arange(len(ids)) % 4 == 3),))])
        reward = self.score([forest])[0].reward
        tokens = forest.tokens[None].to(self.device)
        head = self.network.reward_head
        weights = copy.deepcopy(head.state_dict())
        head.to(self.network.dtype)  # the network's own call knows one type only
        with quiet(), torch.no_grad(), self.network.stock_attention():
            logits = inner(input_ids=tokens, use_cache=False).logits
        head.float().load_state_dict(weights)
        expected = (logits[0][3::4] if self.process else logits).to(reward)
        exact = torch.finfo(self.network.dtype).bits >= 32
        tolerance = (TOLERANCE if exact else LOW_MEAN) * max(1.0, float(expected.abs().max()))
        if not bool((reward - expected).abs().max() <= tolerance):
            raise ModelError(
                f"{type(inner).__name__} is refused: its reward is not a linear map of the last "
                "hidden state",
                cure="use a reward model of another family",
            )

    # ------------------------------------------------------------------ how sequences are written

    @property
    def written(self) -> dict[str, Any]:
        """What parts the steps of answers, and how many heads there are; kept in config.json."""
        return dict(getattr(self.network.inner.config, NOTE, None) or {})

    def set_written(self, written: Mapping[str, Any]) -> None:
        """Keep with the model how sequences are written."""
        kept = {**self.written, **written, "heads": self.heads}
        setattr(self.network.inner.config, NOTE, kept)

    def pad_unlike(self, ends: Collection[int]) -> None:
        """Choose a padding token that no sequence ends with: the tokenizer's own, one that is
        reserved, or the begin token. Where there is none, a new one with an embedding of zeros;
        nothing ever reads what it says.

        Args:
            ends: tokens that sequences end with, besides those that end an answer.
        """
        words, network = self.tokenizer, self.network.inner
        taken = {*ends, *self.stops}
        added = sorted(
            (i, token.content) for i, token in words.added_tokens_decoder.items() if token.special
        )
        order = [words.pad_token_id]
        for name in ("pad", "reserved", "unused"):
            order += [i for i, text in added if name in text.lower()]
        order += [words.bos_token_id, words.unk_token_id]
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
    return next((name for name in REWARD_HEADS if hasattr(network, name)), REWARD_HEADS[0])


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
