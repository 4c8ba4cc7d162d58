"""Learned rewards: a reward model as a scorer.

A reward model reads a completion as it read the ones it was trained on: prompt and completion
through its chat template, or through the prompt template that it remembers (see
`posttrain.data.prompting`). Thinking that stands apart is shown where its template has a place for
it. The score is the mean over its heads, of a process model also the least over the completion's
steps (Lightman et al. 2023, arXiv 2305.20050, compare it with the product). A completion that is
longer than what the model can address has no score. Left out: tool calls in the completion.
"""

from __future__ import annotations

import json
from collections.abc import Sequence as Many
from dataclasses import replace

import numpy as np
import torch

from posttrain.core.errors import DataError
from posttrain.data.chat import Chat
from posttrain.data.forest import Sequence, TokenForest, Tree
from posttrain.data.formats import Example
from posttrain.data.messages import Message
from posttrain.data.prepare import fit
from posttrain.data.templates.thinking import reasoning
from posttrain.data.tokens import Encoded, Encoder
from posttrain.engine.load import longest_position, resolve
from posttrain.engine.reward import RewardModel
from posttrain.scoring.score import Response, Score

CHUNK = 512  # responses rendered and tokenised at a time; bounds memory


class RewardScorer:
    """A reward model as a scorer.

    Args:
        model: of whole completions or of steps.
        limit: tokens of a sequence at most; None where there is no limit.
        budget: tokens a forward pass; 0 takes what suits the device.
    """

    @classmethod
    def load(cls, path: str, device: str = "") -> RewardScorer:
        """The scorer of a trained reward model.

        Args:
            path: Hugging Face folder or hub id.
            device: cpu or cuda; the GPU where there is one if empty.
        Raises:
            ModelError: it cannot be loaded, or is no reward model.
        """
        model = RewardModel.load(path, device=device, trained=True)
        return cls(model, longest_position(resolve(path)))

    def __init__(self, model: RewardModel, limit: int | None = None, budget: int = 0) -> None:
        self.model, self.limit = model, limit
        self.budget = model.budget(budget)
        self.chat = Chat.of(model.tokenizer, model.prompting)
        self.chat.separator = model.written.get("separator", "\n")
        self._encoder = Encoder(model.tokenizer)

    def __call__(self, responses: Many[Response]) -> list[Score]:
        """The score of every response; with several heads its part `uncertainty` is the standard
        deviation over them.

        Raises:
            DataError: the chat template refuses a conversation; it names the row.
        """
        out: list[Score] = []
        for a in range(0, len(responses), CHUNK):
            out += self._chunk(responses[a : a + CHUNK])
        return out

    def _chunk(self, responses: Many[Response]) -> list[Score]:
        sequences = [
            self._sequence(encoded, response)
            for encoded, response in zip(self._encoded(responses), responses, strict=True)
        ]
        by_prompt: dict[str, list[int]] = {}  # completions of one prompt share it
        for i, response in enumerate(responses):
            if sequences[i] is not None:
                by_prompt.setdefault(json.dumps(response.prompt), []).append(i)
        order = [i for group in by_prompt.values() for i in group]
        trees: list[Tree] = [
            Tree(tuple(sequence for i in group if (sequence := sequences[i]) is not None))
            for group in by_prompt.values()
        ]
        scores = [Score(None, why=f"longer than {self.limit} tokens")] * len(responses)
        longest = max((len(one.tokens) for tree in trees for one in tree), default=0)
        for forest in self.model.pack(trees, max(self.budget, longest)):
            for number, score in zip(forest.sequence.tolist(), self._scores(forest), strict=True):
                scores[order[number]] = score
        return scores

    def _scores(self, forest: TokenForest) -> list[Score]:
        """The score of every sequence of a forest."""
        (rewards,) = self.model.score([forest])
        value = rewards.reward.double().mean(1).cpu()
        if self.model.process:
            least = torch.full((forest.L,), torch.inf, dtype=torch.float64)
            value = least.scatter_reduce(0, forest.leaf.cpu(), value, "amin")
        elif rewards.reward.shape[1] > 1:
            spread = rewards.reward.double().std(1).cpu()
            return [
                Score(one, {"uncertainty": uncertainty})
                for one, uncertainty in zip(value.tolist(), spread.tolist(), strict=True)
            ]
        return [Score(one) for one in value.tolist()]

    def _encoded(self, responses: Many[Response]) -> list[list[Encoded] | DataError]:
        examples = [self._example(response) for response in responses]
        if not self.model.process:
            return self._encoder.encode([self.chat.turns(one, one.answers[0]) for one in examples])
        turns = []
        for example, response in zip(examples, responses, strict=True):
            steps = [
                step for step in response.completion.split(self.chat.separator) if step.strip()
            ]
            labelled = tuple((step, 0.0) for step in steps or [""])
            turns.append(self.chat.step_turns(replace(example, steps=labelled)))
        return self._encoder.steps(turns)

    def _example(self, response: Response) -> Example:
        """A response as rows have it."""
        prompt, message = response.prompt, self._message(response)
        plain = self.chat.prompt_template is not None
        if isinstance(prompt, str) and (plain or not reasoning(message)):
            return Example(response.where, prompt, (message["content"],))
        if isinstance(prompt, str):
            prompt = ({"role": "user", "content": prompt},)
        return Example(response.where, tuple(prompt), ((message,),))

    def _message(self, response: Response) -> Message:
        """The answer as it was written; without thinking apart that the template cannot show, and
        of thinking alone nothing.
        """
        message = response.message or {"content": response.completion}
        shown = {"role": "assistant", "content": message["content"]}
        thinking = reasoning(message) if message["content"].strip() else ""
        if thinking and self.chat.template.reader.thinking is not None:
            shown["reasoning_content"] = thinking
        return shown

    def _sequence(self, encoded: list[Encoded] | DataError, response: Response) -> Sequence | None:
        """A response's tokens; None where they are too many."""
        if isinstance(encoded, DataError):
            encoded.where = encoded.where or response.where
            raise encoded
        (sequence,) = fit(encoded[-1], self.limit or len(encoded[-1].ids), "drop") or (None,)
        if sequence is None or self.model.process:
            return sequence
        # another's model may read past its padding token, as transformers does
        pad = self.model.pad
        kept = np.flatnonzero(sequence.tokens != pad)
        end = int(kept[-1]) + 1 if len(kept) else len(sequence.tokens)
        return Sequence(sequence.tokens[:end], sequence.trained[:end])
