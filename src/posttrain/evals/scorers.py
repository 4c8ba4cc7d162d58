"""Scorers by name, learned ones among them: `reward:FOLDER` is a reward model, and every other name
one of `posttrain.scoring.scorers.SCORERS`.

A reward model reads an answer as it read the answers it was trained on: prompt and answer through
its chat template, or through the prompt template that its config.json remembers. The score is the
mean over its heads, of a process model also the least over the answer's steps (Lightman et al.
2023, arXiv 2305.20050, compare it with the product). An answer that is longer than what the
model can address has no score. Left out: calls of tools in the answer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence as Many
from dataclasses import replace

import numpy as np
import torch

from posttrain.core.defaults import token_budget
from posttrain.core.errors import ConfigError, DataError, nearest
from posttrain.data.chat import Chat
from posttrain.data.forest import Sequence, Tree, forests
from posttrain.data.formats import Example
from posttrain.data.prepare import fit
from posttrain.data.tokens import Encoded, Encoder, stepped
from posttrain.engine.load import longest_position, resolve
from posttrain.engine.reward import RewardModel
from posttrain.scoring.scorers import SCORERS, Item, Scorer

REWARD = "reward:"
CHUNK = 512  # items rendered and tokenised at a time; bounds memory


def open_scorer(spec: str, device: str = "") -> Scorer:
    """The scorer of a name.

    Args:
        spec: a name of `SCORERS`, or `reward:` and a Hugging Face folder or hub id.
        device: of a reward model: cpu or cuda; the GPU where there is one if empty.
    Raises:
        ConfigError: there is no scorer of that name.
        ModelError: the reward model cannot be loaded, or is none.
    """
    if spec in SCORERS:
        return SCORERS[spec]
    if spec.startswith(REWARD) and (path := spec.removeprefix(REWARD)):
        return Learned(
            RewardModel.load(path, device=device, trained=True), longest_position(resolve(path))
        )
    raise ConfigError(
        f"there is no scorer {spec!r}", cure=f"{nearest(spec, SCORERS)}; or reward:FOLDER"
    )


class Learned:
    """A reward model as a scorer.

    Args:
        model: of whole answers or of steps.
        limit: tokens of a sequence at most; None where there is no limit.
        budget: tokens a forward pass; 0 takes what suits the device.
    """

    def __init__(self, model: RewardModel, limit: int | None = None, budget: int = 0) -> None:
        self.model, self.limit = model, limit
        self.budget = token_budget(budget or None, model.model.device.type)
        notes = model.notes
        self.chat = Chat(
            model.tokenizer,
            kwargs=notes.get("template_kwargs"),
            prompt_template=notes.get("prompt_template"),
        )
        self.chat.separator = notes.get("separator", "\n")
        self._encoder = Encoder(model.tokenizer)

    def __call__(self, items: Many[Item]) -> list[float | None]:
        """The score of every item; None for one that is longer than the model can address.

        Raises:
            DataError: the chat template refuses a conversation; it names the item.
        """
        out: list[float | None] = []
        for a in range(0, len(items), CHUNK):
            out += self._some(items[a : a + CHUNK])
        return out

    def _some(self, items: Many[Item]) -> list[float | None]:
        sequences = [
            self._sequence(one, item) for one, item in zip(self._encoded(items), items, strict=True)
        ]
        together: dict[str, list[int]] = {}
        for i, item in enumerate(items):
            if sequences[i] is not None:  # answers to one prompt share it
                together.setdefault(json.dumps(item.prompt), []).append(i)
        order = [i for some in together.values() for i in some]
        trees: list[Tree] = [
            tuple(one for i in some if (one := sequences[i]) is not None)
            for some in together.values()
        ]
        longest = max((len(one.tokens) for tree in trees for one in tree), default=0)
        out: list[float | None] = [None] * len(items)
        for forest in forests(
            trees, max(self.budget, longest), shared=self.model.model.mode == "forest"
        ):
            (found,) = self.model.score([forest])
            reward = found.reward.double().mean(1).cpu()
            if self.model.process:
                least = torch.full((forest.L,), torch.inf, dtype=torch.float64)
                reward = least.scatter_reduce(0, forest.leaf.cpu(), reward, "amin")
            for number, value in zip(forest.sequence.tolist(), reward.tolist(), strict=True):
                out[order[number]] = value
        return out

    def _encoded(self, items: Many[Item]) -> list[list[Encoded] | DataError]:
        examples = [_example(item) for item in items]
        if self.model.process:
            split = [
                [(step, 0.0) for step in item.answer.split(self.chat.separator) if step.strip()]
                for item in items
            ]
            return self._encoder.steps(
                [
                    stepped(self.chat, replace(one, steps=tuple(steps or [("", 0.0)])))
                    for one, steps in zip(examples, split, strict=True)
                ]
            )
        return self._encoder.encode([self.chat.turns(one, one.answers[0]) for one in examples])

    def _sequence(self, found: list[Encoded] | DataError, item: Item) -> Sequence | None:
        """An item's tokens; None where they are too many."""
        if isinstance(found, DataError):
            found.where = found.where or item.where
            raise found
        (one,) = fit(found[-1], self.limit or len(found[-1].ids), "drop") or (None,)
        if one is None or self.model.process:
            return one
        # a model of another's may read past its padding token, as transformers does
        pad = self.model.model.network.config.get_text_config().pad_token_id
        kept = np.flatnonzero(one.tokens != pad)
        end = int(kept[-1]) + 1 if len(kept) else len(one.tokens)
        return Sequence(one.tokens[:end], one.trained[:end])


def _example(item: Item) -> Example:
    if isinstance(item.prompt, str):
        return Example(item.where, item.prompt, (item.answer,))
    return Example(
        item.where, tuple(item.prompt), (({"role": "assistant", "content": item.answer},),)
    )
