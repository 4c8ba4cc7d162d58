"""What is trained on forests: a language model or a reward model, and the verbs they share.

    forward_backward(forests, loss)     adds to the gradients
    measure(forests, loss)              the same numbers, without gradients
    step(factor)                        one optimiser update

There is one copy of the weights. On a CPU they are float32; on a GPU bfloat16, and the float32
master belongs to the optimiser.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from collections.abc import Sequence as Many
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posttrain.core.errors import ConfigError, DataError
from posttrain.core.seeds import derive
from posttrain.core.types import Denominators, Facts, Loss, Measured
from posttrain.data.forest import TokenForest
from posttrain.engine import lora as adapters
from posttrain.engine.checkpoint import system_errors
from posttrain.engine.model import Model, Noise, quiet
from posttrain.engine.optimiser import Optimiser
from posttrain.engine.settings import OptimiserSettings

Probes = tuple[Many[TokenForest], Many[Facts]]


def _moved(facts: Facts, device: torch.device) -> Facts:
    return {name: tensor.to(device) for name, tensor in facts.items()}


def count(forests: Many[TokenForest], facts: Many[Facts]) -> Denominators:
    """What the losses of a global batch are divided by."""
    pairs, trained = 0, {"chosen": 0, "gold": 0}
    for forest, fact in zip(forests, facts, strict=True):
        pairs += len(fact.get("chosen", ()))
        for name in trained:
            if name in fact:
                trained[name] += int(
                    torch.bincount(forest.leaf, minlength=forest.L)[
                        fact[name].to(forest.leaf.device)
                    ].sum()
                )
    return Denominators(
        sum(f.N for f in forests),
        sum(f.L for f in forests),
        pairs,
        trained["chosen"],
        trained["gold"],
    )


class Learner(ABC):
    """A network that can be scored and trained.

    Attributes:
        model: how the network is run.
        tokenizer: the Hugging Face tokenizer.
        adapter: the PeftModel around the network, or None.
        source: where the model came from; digest: SHA-256 of its files.
        optimiser: set by `train_with`.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Any,
        *,
        source: str = "",
        digest: str = "",
        adapter: Any = None,
    ) -> None:
        self.model, self.tokenizer, self.adapter = model, tokenizer, adapter
        self.source, self.digest = source, digest
        self.optimiser: Optimiser | None = None

    # ------------------------------------------------------------------ verbs

    def forward_backward(
        self,
        forests: Many[TokenForest],
        loss: Loss,
        facts: Many[Facts] | None = None,
        *,
        probes: Probes | None = None,
        seed: int = 0,
        noise: Noise | None = None,
    ) -> Measured:
        """Add the gradient of a loss over one global batch, forest by forest.

        Args:
            forests: the whole global batch; how it is cut into forests changes the result by
                rounding only.
            loss: the method.
            facts: what the method knows about each forest: tensors by name, moved to the model's
                device. A per-target loss gets the slice of each that belongs to its targets, so
                they are [N] there.
            probes: forests, and facts of them, that are scored for `loss.prepare` and not trained
                on.
            seed: of dropout and noise.
            noise: applied to the input embeddings.
        Returns: the loss of the global batch, and what the method reports.
        """
        return self._measured(forests, loss, facts, probes, train=True, seed=seed, noise=noise)

    @torch.no_grad()
    def measure(
        self,
        forests: Many[TokenForest],
        loss: Loss,
        facts: Many[Facts] | None = None,
        *,
        probes: Probes | None = None,
    ) -> Measured:
        """What `forward_backward` would return, without gradients and without dropout."""
        return self._measured(forests, loss, facts, probes, train=False)

    def _measured(
        self,
        forests: Many[TokenForest],
        loss: Loss,
        facts: Many[Facts] | None,
        probes: Probes | None,
        *,
        train: bool,
        seed: int = 0,
        noise: Noise | None = None,
    ) -> Measured:
        device = self.model.device
        facts = [_moved(f, device) for f in facts] if facts is not None else [{} for _ in forests]
        denominators = count(forests, facts)
        if denominators.targets == 0:
            raise DataError(
                "the batch has no trained token", cure="look at the masks: every sequence needs one"
            )
        statistics = None
        if loss.prepare:
            about = (
                (probes[0], [_moved(f, device) for f in probes[1]]) if probes else (forests, facts)
            )
            with torch.no_grad():
                self.model.network.eval()
                scores = [self._scored(forest.to(device), Loss(loss.loss)) for forest in about[0]]
                statistics = loss.prepare(scores, list(about[1]))
        self.model.network.train(train)
        total, values = 0.0, list[dict[str, Tensor]]()
        for i, (forest, fact) in enumerate(zip(forests, facts, strict=True)):
            with self._seeded(derive(seed, "forward", i)):
                value, reported = self._one(
                    forest.to(device), loss, fact, statistics, denominators, noise
                )
                if train:
                    value.backward()
            total += float(value.detach())
            values.append(reported)
        return Measured(
            total, {name: torch.cat([one[name].cpu() for one in values]) for name in values[0]}
        )

    def _one(
        self,
        forest: TokenForest,
        loss: Loss,
        fact: Facts,
        statistics: Any,
        denominators: Denominators,
        noise: Noise | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one forest, with gradients, and what the method reports of it."""
        scores = self._scored(forest, loss, noise)
        value = loss.loss(scores, fact, statistics, denominators)
        with torch.no_grad():
            return value, loss.report(scores, fact, statistics) if loss.report else {}

    @abstractmethod
    def _scored(self, forest: TokenForest, loss: Loss, noise: Noise | None = None) -> Any:
        """Scores of a forest on the device, with what the loss needs, and with gradients where they
        are on.
        """

    @contextlib.contextmanager
    def _seeded(self, seed: int) -> Iterator[None]:
        with torch.random.fork_rng(
            devices=[self.model.device] if self.model.device.type == "cuda" else []
        ):
            torch.manual_seed(seed)
            yield

    def train_with(
        self, settings: OptimiserSettings, *, activation_checkpointing: bool = False
    ) -> Optimiser:
        """Make the optimiser that `step` uses. An unset learning rate becomes the settings' own
        default.
        """
        if settings.learning_rate is None:
            rate = settings.unset_rate.of(lora=self.adapter is not None)
            settings = settings.model_copy(update={"learning_rate": rate})
        if activation_checkpointing:
            network = self.model.network
            if not network.supports_gradient_checkpointing:
                raise ConfigError(
                    f"{type(network).__name__} cannot compute its activations twice",
                    cure="leave --activation-checkpointing out; a lower --budget saves memory, too",
                )
            # older transformers know only the second name, newer ones warn of it
            enable = (
                getattr(network, "activation_checkpointing_enable", None)
                or network.gradient_checkpointing_enable
            )
            enable({"use_reentrant": False})
        self.optimiser = Optimiser(self.model.network.named_parameters(), settings)
        return self.optimiser

    def step(self, factor: float = 1.0) -> float:
        """One update from the gradients added up so far, then clear them.

        Args:
            factor: on the peak learning rate.
        Returns: the gradient norm before clipping; nothing is updated where it is not finite.
        """
        assert self.optimiser is not None, "call train_with first"
        return self.optimiser.step(factor)

    def save(self, folder: Path) -> None:
        """Write a Hugging Face folder: exactly the parameters the policy computes with, adapters
        merged.
        """
        network = self.model.network
        state = adapters.merged(network) if self.adapter is not None else None
        with quiet(), system_errors():
            network.save_pretrained(folder, state_dict=state)
        self.tokenizer.save_pretrained(folder)

    @property
    def _generation(self) -> Any:
        """Where the model says what ends an answer: its generation config, or its config where it
        does not generate.
        """
        network = self.model.network
        return getattr(network, "generation_config", None) or network.config.get_text_config()

    @property
    def stops(self) -> tuple[int, ...]:
        """The tokens that end an answer: the tokenizer's end token, and those of the model's
        generation config.
        """
        known = self._generation.eos_token_id
        own = self.tokenizer.eos_token_id if self.tokenizer is not None else None
        return tuple(
            dict.fromkeys(
                i for i in (own, *(known if isinstance(known, list) else [known])) if i is not None
            )
        )

    def converse(self, template: str | dict[str, str], stop: str) -> None:
        """Say how the model is talked to, so that it is saved with it.

        Args:
            template: Jinja chat template.
            stop: the token that ends an answer; generation stops there, besides where it did
                before.
        """
        self.tokenizer.chat_template = template
        stops = list(dict.fromkeys([*self.stops, self.tokenizer.convert_tokens_to_ids(stop)]))
        self._generation.eos_token_id = stops if len(stops) > 1 else stops[0]

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter in peft's format with the digest of the model it belongs to."""
        assert self.adapter is not None, "the policy has no adapter"
        adapters.save_adapter(self.adapter, folder, self.source, self.digest)
