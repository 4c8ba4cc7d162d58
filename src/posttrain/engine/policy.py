"""The policy: a model, its tokenizer, and five verbs. Every method is a short program over them.

    score(forests)                      log-probabilities, no gradients
    forward_backward(forests, loss)     adds to the gradients
    step(factor)                        one optimiser update
    sample(prompts, params)             completions
    save(folder) / load(path)           a Hugging Face folder

There is one copy of the weights: training and sampling read the same parameters. On a CPU they are float32; on a GPU bfloat16,
and the float32 master belongs to the optimiser.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from collections.abc import Sequence as Many
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posttrain.core.errors import ConfigError, DataError, ModelError
from posttrain.core.seeds import derive
from posttrain.core.types import Denominators, Facts, Loss, Scores
from posttrain.data.forest import TokenForest
from posttrain.engine import lora as adapters
from posttrain.engine import sampler
from posttrain.engine.checkpoint import system_errors
from posttrain.engine.head import additive, assess, logprobs
from posttrain.engine.model import Model, Noise, digest, load_network, load_tokenizer, quiet, resolve, to_bfloat16
from posttrain.engine.optimiser import Optimiser
from posttrain.engine.settings import LoraSettings, OptimiserSettings


def _moved(facts: Facts, device: torch.device) -> Facts:
    return {name: tensor.to(device) for name, tensor in facts.items()}


class Policy:
    """A language model that can be scored, trained, sampled and saved.

    Attributes:
        model: how the network is run.
        tokenizer: the Hugging Face tokenizer.
        adapter: the PeftModel around the network, or None.
        source: where the model came from; digest: SHA-256 of its files.
        optimiser: set by `train_with`.
    """

    def __init__(self, model: Model, tokenizer: Any, *, source: str = "", digest: str = "", adapter: Any = None) -> None:
        self.model, self.tokenizer, self.adapter = model, tokenizer, adapter
        self.source, self.digest = source, digest
        self.optimiser: Optimiser | None = None

    @classmethod
    def load(cls, path: str | Path, *, device: str = "", lora: LoraSettings | None = None, seed: int = 0) -> Policy:
        """Load a Hugging Face folder or hub id and admit it.

        Args:
            path: local folder or hub id.
            device: cpu or cuda; the GPU where there is one if empty.
            lora: add adapters; only they are trained.
            seed: of the adapters' first weights.
        Raises:
            ModelError: it cannot be loaded, or the probe refused it.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        folder = resolve(str(path))
        tokenizer = load_tokenizer(folder)
        network, notes = load_network(folder, device)
        rows = network.get_input_embeddings().weight.shape[0]
        if len(tokenizer) > rows:
            raise ModelError(f"the tokenizer of {path} has {len(tokenizer)} tokens, the model only {rows}",
                             cure="use the tokenizer the model was trained with")
        model = Model(network, notes)  # probed in float32, whatever it will run in
        if network.device.type == "cuda":
            to_bfloat16(network)
        adapter = adapters.attach(network, lora, seed) if lora else None
        return cls(model, tokenizer, source=str(path), digest=digest(folder), adapter=adapter)

    # ------------------------------------------------------------------ verbs

    @torch.no_grad()
    def score(self, forests: Many[TokenForest], *, temperature: float = 1.0, details: bool = False) -> list[Scores]:
        """Log-probabilities of the targets of each forest, without gradients and without dropout.

        Args:
            forests: from `posttrain.data.forest.forests`.
            temperature: the logits are divided by it.
            details: also entropies and whether the target is the most likely token.
        """
        self.model.network.eval()
        out = []
        for forest in forests:
            forest = forest.to(self.model.device)
            hidden = self.model.hidden(forest)
            head = self.model.head
            if details:
                logprob, entropy, correct = assess(head, hidden, forest.target, temperature=temperature)
                out.append(Scores(logprob, forest.leaf, forest.L, entropy, correct))
            else:
                logprob, _ = logprobs(head, hidden, forest.target, temperature=temperature)
                out.append(Scores(logprob, forest.leaf, forest.L))
        return out

    def forward_backward(self, forests: Many[TokenForest], loss: Loss, facts: Many[Facts] | None = None, *, seed: int = 0,
                         noise: Noise | None = None) -> float:
        """Add the gradient of a loss over one global batch, forest by forest.

        Args:
            forests: the whole global batch; how it is cut into forests changes the result by rounding only.
            loss: the method.
            facts: what the method knows about each forest: tensors by name, moved to the model's device. A per-target loss
                gets the slice of each that belongs to its targets, so they are [N] there.
            seed: of dropout and noise.
            noise: applied to the input embeddings.
        Returns: the loss of the global batch.
        """
        facts = [_moved(f, self.model.device) for f in facts] if facts is not None else [{} for _ in forests]
        denominators = Denominators(targets=sum(f.N for f in forests), sequences=sum(f.L for f in forests))
        if denominators.targets == 0:
            raise DataError("the batch has no trained token", cure="look at the masks: every sequence needs one")
        statistics = loss.prepare(self.score(forests), list(facts)) if loss.prepare else None
        network = self.model.network
        network.train()
        total = 0.0
        for i, (forest, fact) in enumerate(zip(forests, facts, strict=True)):
            forest = forest.to(self.model.device)
            with self._seeded(derive(seed, "forward", i)):
                hidden = self.model.hidden(forest, noise)
                if loss.per_target:
                    def part_loss(logprob: Tensor, part: slice, forest: TokenForest = forest, fact: Facts = fact) -> Tensor:
                        scores = Scores(logprob, forest.leaf[part], forest.L)
                        return loss.loss(scores, {k: v[part] for k, v in fact.items()}, statistics, denominators)

                    value, _ = additive(self.model.head, hidden, forest.target, part_loss)
                else:
                    logprob, _ = logprobs(self.model.head, hidden, forest.target)
                    value = loss.loss(Scores(logprob, forest.leaf, forest.L), fact, statistics, denominators)
                value.backward()
            total += float(value.detach())
        return total

    @contextlib.contextmanager
    def _seeded(self, seed: int) -> Iterator[None]:
        with torch.random.fork_rng(devices=[self.model.device] if self.model.device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield

    def train_with(self, settings: OptimiserSettings, *, activation_checkpointing: bool = False) -> Optimiser:
        """Make the optimiser that `step` uses. An unset learning rate becomes 2e-5, with LoRA 2e-4."""
        if settings.learning_rate is None:
            settings = settings.model_copy(update={"learning_rate": 2e-4 if self.adapter is not None else 2e-5})
        if activation_checkpointing:
            network = self.model.network
            if not network.supports_gradient_checkpointing:
                raise ConfigError(f"{type(network).__name__} cannot compute its activations twice",
                                  cure="leave --activation-checkpointing out; a lower --budget saves memory, too")
            # older transformers know only the second name, newer ones warn of it
            enable = getattr(network, "activation_checkpointing_enable", None) or network.gradient_checkpointing_enable
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

    def sample(self, prompts: Many[Many[int]], params: sampler.Sampling) -> list[sampler.Completion]:
        """Draw completions, ended by the model's end tokens unless told otherwise; see `posttrain.engine.sampler.sample`."""
        if params.stop is None and (stops := self.stops):
            params = replace(params, stop=stops)
        return sampler.sample(self.model, prompts, params)

    def save(self, folder: Path) -> None:
        """Write a Hugging Face folder: exactly the parameters the policy computes with, adapters merged."""
        network = self.model.network
        state = adapters.merged(network) if self.adapter is not None else None
        with quiet(), system_errors():
            network.save_pretrained(folder, state_dict=state)
        self.tokenizer.save_pretrained(folder)

    @property
    def stops(self) -> tuple[int, ...]:
        """The tokens that end an answer: the tokenizer's end token, and those of the model's generation config."""
        known = self.model.network.generation_config.eos_token_id
        own = self.tokenizer.eos_token_id if self.tokenizer is not None else None
        return tuple(dict.fromkeys(i for i in (own, *(known if isinstance(known, list) else [known])) if i is not None))

    def converse(self, template: str | dict[str, str], stop: str) -> None:
        """Say how the model is talked to, so that it is saved with it.

        Args:
            template: Jinja chat template.
            stop: the token that ends an answer; generation stops there, besides where it did before.
        """
        self.tokenizer.chat_template = template
        stops = list(dict.fromkeys([*self.stops, self.tokenizer.convert_tokens_to_ids(stop)]))
        self.model.network.generation_config.eos_token_id = stops if len(stops) > 1 else stops[0]

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter in peft's format with the digest of the model it belongs to."""
        assert self.adapter is not None, "the policy has no adapter"
        adapters.save_adapter(self.adapter, folder, self.source, self.digest)
