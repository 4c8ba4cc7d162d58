"""The policy: a model, its tokenizer, and five verbs. Every method is a short program over them.

    score(forests)                      log-probabilities, no gradients
    forward_backward(forests, loss)     adds to the gradients; `measure` is the same without
    step(factor)                        one optimiser update
    sample(prompts, params)             completions
    save(folder) / load(path)           a Hugging Face folder

There is one copy of the weights: training and sampling read the same parameters. On a CPU they are
    float32; on a GPU bfloat16,
and the float32 master belongs to the optimiser.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posttrain.core.errors import ConfigError, ModelError
from posttrain.core.types import Denominators, Facts, Loss, Scores
from posttrain.data.forest import TokenForest
from posttrain.engine import lora as adapters
from posttrain.engine import sampler
from posttrain.engine.head import additive, assess, detailed, logprobs
from posttrain.engine.learner import Learner
from posttrain.engine.load import (
    architecture,
    digest,
    load_network,
    load_tokenizer,
    resolve,
    to_bfloat16,
)
from posttrain.engine.model import Model, Noise
from posttrain.engine.settings import LoraSettings

Reference = Callable[[Many[TokenForest]], list[Tensor]]  # forests → log-probabilities [N] of each


class Policy(Learner):
    """A language model that can be scored, trained, sampled and saved; see `Learner` for what it
    has.
    """

    @classmethod
    def load(
        cls, path: str | Path, *, device: str = "", lora: LoraSettings | None = None, seed: int = 0
    ) -> Policy:
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
        if (kind := architecture(folder)).endswith(
            ("ForSequenceClassification", "ForTokenClassification")
        ):
            raise ModelError(
                f"{path} is a {kind}, a reward model or classifier, and writes no text",
                cure=(
                    "give the language model that it was made from; posttrain judge puts a reward"
                    " model on trial"
                ),
            )
        tokenizer = load_tokenizer(folder)
        network, notes = load_network(folder, device)
        rows = network.get_input_embeddings().weight.shape[0]
        if len(tokenizer) > rows:
            raise ModelError(
                f"the tokenizer of {path} has {len(tokenizer)} tokens, the model only {rows}",
                cure="use the tokenizer the model was trained with",
            )
        model = Model(network, notes)  # probed in float32, whatever it will run in
        if network.device.type == "cuda":
            to_bfloat16(network)
        adapter = adapters.attach(network, lora, seed) if lora else None
        return cls(model, tokenizer, source=str(path), digest=digest(folder), adapter=adapter)

    # ------------------------------------------------------------------ verbs

    @torch.no_grad()
    def score(
        self, forests: Many[TokenForest], *, temperature: float = 1.0, details: bool = False
    ) -> list[Scores]:
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
                logprob, entropy, correct = assess(
                    head, hidden, forest.target, temperature=temperature
                )
                out.append(Scores(logprob, forest.leaf, forest.L, entropy, correct))
            else:
                logprob, _ = logprobs(head, hidden, forest.target, temperature=temperature)
                out.append(Scores(logprob, forest.leaf, forest.L))
        return out

    def reference(self, source: str = "") -> Reference:
        """The policy as it stands, kept as what training is held against.

        Args:
            source: `adapters`, the network without its adapters, which is exact and free; `copy`, a
                frozen copy of the network; empty: adapters where there are any.
        Returns: forests → the log-probabilities [N] of each one's targets.
        """
        if source not in ("", "adapters", "copy") or (
            source == "adapters" and self.adapter is None
        ):
            raise ConfigError(
                f"there is no reference {source!r}", cure="adapters (with --lora) or copy"
            )
        if self.adapter is not None and source != "copy":

            def without(forests: Many[TokenForest]) -> list[Tensor]:
                with self.adapter.disable_adapter():
                    return [scores.logprob for scores in self.score(forests)]

            return without
        network = copy.deepcopy(self.model.network).requires_grad_(False)
        frozen = Policy(
            self.model.around(network), self.tokenizer, source=self.source, digest=self.digest
        )
        return lambda forests: [scores.logprob for scores in frozen.score(forests)]

    def _scored(self, forest: TokenForest, loss: Loss, noise: Noise | None = None) -> Scores:
        hidden = self.model.hidden(forest, noise)
        logprob, details = detailed(self.model.head, hidden, forest.target, loss.needs)
        return Scores(
            logprob,
            forest.leaf,
            forest.L,
            entropy=details.get("entropy"),
            collision=details.get("collision"),
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
        if not loss.per_target or not torch.is_grad_enabled():
            return super()._one(forest, loss, fact, statistics, denominators, noise)

        def part_loss(logprob: Tensor, part: slice) -> Tensor:
            scores = Scores(logprob, forest.leaf[part], forest.L)
            return loss.loss(
                scores, {k: v[part] for k, v in fact.items()}, statistics, denominators
            )

        value, logprob = additive(
            self.model.head, self.model.hidden(forest, noise), forest.target, part_loss
        )
        return value, (
            loss.report(Scores(logprob, forest.leaf, forest.L), fact, statistics)
            if loss.report
            else {}
        )

    def sample(
        self, prompts: Many[Many[int]], params: sampler.Sampling, seeds: Many[int] | None = None
    ) -> list[sampler.Completion]:
        """Draw completions, ended by the model's end tokens unless told otherwise; see
        `posttrain.engine.sampler.sample`.
        """
        if params.stop is None and (stops := self.stops):
            params = replace(params, stop=stops)
        return sampler.sample(self.model, prompts, params, seeds=seeds)
