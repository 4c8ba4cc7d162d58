"""An environment: what a policy acts in, and what comes of it.

It has two verbs. `act` lets the policy go on from some prompts, each as often as it has seeds, and
returns what was drawn; `score` says what each of these rollouts is worth. They are apart because
both are journalled: what was sampled is not sampled again where a scorer fails.

    prompt, answer, score                       SingleTurn
    prompt, answer, reply, answer, …, score     an environment of more turns appends what it replies
                                                to the rollout, as tokens that were not drawn
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from posttrain.data.messages import Message
from posttrain.data.prompts import Prompt
from posttrain.scoring.score import Response, Score, Scorer

if TYPE_CHECKING:
    from posttrain.data.chat import Chat
    from posttrain.engine.policy import Policy
    from posttrain.engine.sampler import Sampling


@dataclass(frozen=True)
class Rollout:
    """What followed a prompt.

    Attributes:
        tokens: [n] int64 token ids after the prompt.
        drawn: [n] bool: the policy drew the token; what the environment replied it did not.
        logprobs: [n] float64: of each drawn token under the distribution it was drawn from, nats.
        finished: it ended by itself, not at the limit.
        text: the answer that is scored.
        message: the answer as the chat template has it; None after a plain-text prompt.
    """

    tokens: np.ndarray
    drawn: np.ndarray
    logprobs: np.ndarray
    finished: bool
    text: str
    message: Message | None = None


class Environment(Protocol):
    """See the module."""

    def act(
        self, policy: Policy, prompts: Many[Prompt], params: Sampling, seeds: Many[int]
    ) -> list[list[Rollout]]:
        """`params.n` rollouts of every prompt.

        Args:
            seeds: of each prompt's draws.
        """
        ...

    def score(self, prompts: Many[Prompt], rollouts: Many[Many[Rollout]]) -> list[list[Score]]:
        """What each rollout is worth."""
        ...


@dataclass(frozen=True)
class SingleTurn:
    """A prompt, an answer, a score.

    Attributes:
        chat: reads answers back.
        scorer: what they are worth.
        judge_thinking: score all that was written, not the answer without its thinking.
    """

    chat: Chat
    scorer: Scorer
    judge_thinking: bool = False

    def act(
        self, policy: Policy, prompts: Many[Prompt], params: Sampling, seeds: Many[int]
    ) -> list[list[Rollout]]:
        completions = policy.sample([prompt.ids for prompt in prompts], params, seeds)
        rollouts: list[list[Rollout]] = [[] for _ in prompts]
        for completion in completions:
            reply = self.chat.read(completion.tokens, prompts[completion.prompt].ids)
            rollouts[completion.prompt].append(
                Rollout(
                    tokens=np.array(completion.tokens, np.int64),
                    drawn=np.ones(len(completion.tokens), bool),
                    logprobs=np.array(completion.logprobs, np.float64),
                    finished=completion.finished,
                    text=reply.judged(self.judge_thinking),
                    message=reply.message,
                )
            )
        return rollouts

    def score(self, prompts: Many[Prompt], rollouts: Many[Many[Rollout]]) -> list[list[Score]]:
        return scored(self.scorer, prompts, rollouts)


def scored(
    scorer: Scorer, prompts: Many[Prompt], rollouts: Many[Many[Rollout]]
) -> list[list[Score]]:
    """What a scorer says of the answers to some prompts, in one call.

    Raises:
        ValueError: it returns another number of scores than there are answers.
    """
    responses = [
        Response(prompt.prompt, rollout.text, prompt.known, prompt.where, message=rollout.message)
        for prompt, group in zip(prompts, rollouts, strict=True)
        for rollout in group
    ]
    scores = iter(scorer(responses))
    return [[next(scores) for _ in group] for group in rollouts]
