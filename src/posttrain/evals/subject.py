"""The model that an evaluation asks, and how it is talked to."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from posttrain.data.chat import Chat
from posttrain.data.forest import Tree
from posttrain.data.formats import Example
from posttrain.data.messages import Message, Text
from posttrain.data.templates.thinking import reasoning
from posttrain.data.tokens import Encoder
from posttrain.engine.sampler import Sampling
from posttrain.scoring.score import Scorer
from posttrain.scoring.scorers import open_scorer, scorer_digest

if TYPE_CHECKING:
    from posttrain.engine.policy import Policy

BATCH = 512  # prompts answered between two reports of progress

Progress = Callable[[int, int], None]  # called with how many items of how many are done


@dataclass(frozen=True)
class Options:
    """Options of an evaluation, besides its rows.

    Attributes:
        max_tokens: tokens of a written answer at most.
        match: name of the function that checks a written answer; see
            `posttrain.scoring.verifiers.MATCHES`.
        scorer_spec: name of the scorer of written answers; see `posttrain.scoring.scorers`.
        judge_thinking: what is judged of a written answer is all of it, and not the answer alone.
        device: of a reward model.
    """

    max_tokens: int = 64
    match: str = "exact"
    scorer_spec: str = ""
    judge_thinking: bool = False
    device: str = ""

    @property
    def scorer(self) -> Scorer:
        """What scores written answers; a reward model is loaded once for all models."""
        return _opened(self.scorer_spec, self.device, scorer_digest(self.scorer_spec))


@lru_cache(maxsize=1)
def _opened(spec: str, device: str, digest: str) -> Scorer:
    return open_scorer(spec, device)


@dataclass(frozen=True)
class Generation:
    """What the model wrote.

    Attributes:
        text: what is judged: the answer without its thinking, or with `judge_thinking` all of it;
            without special tokens and without the text that ended it.
        tokens: how many were drawn, thinking and the end token included.
        finished: whether the model ended it, and not the limit.
        message: the answer with its thinking apart; None after a plain-text prompt.
    """

    text: str
    tokens: int
    finished: bool
    message: Message | None = None

    @property
    def meta(self) -> dict[str, Any]:
        """What a record keeps of it besides the text."""
        thinking = reasoning(self.message or {})
        apart = {"thinking": thinking} if thinking not in self.text else {}
        return {"finished": self.finished, **apart}


@dataclass(frozen=True)
class Subject:
    """A model to evaluate.

    Attributes:
        policy: the model.
        chat: how it is prompted.
        budget: tokens a forward pass.
        max_length: tokens of a sequence at most.
        progress: called with how many items of how many are done.
        options: see `Options`.
    """

    policy: Policy
    chat: Chat
    budget: int
    max_length: int
    progress: Progress
    options: Options = field(default_factory=Options)

    @cached_property
    def encoder(self) -> Encoder:
        return Encoder(self.policy.tokenizer)

    def ask(self, prompts: Many[Text | Example]) -> list[Generation]:
        """The model's answers to prompts, always the most likely token."""
        return self.generate(self.encode(prompts))

    def encode(self, prompts: Many[Text | Example]) -> list[list[int]]:
        """Token ids of prompts as the model is shown them.

        Args:
            prompts: texts, messages, or examples whose answers are left away.
        """
        texts, plain = [], []
        for prompt in prompts:
            example = prompt if isinstance(prompt, Example) else Example("", prompt)
            text, bare = self.chat.prompt(example)
            texts.append(text)
            plain.append(bare)
        return self.encoder.prompts(texts, plain)

    def generate(self, prompts: Many[Many[int]]) -> list[Generation]:
        """The model's answers to prompts of token ids, always the most likely token."""
        params = Sampling(
            max_tokens=self.options.max_tokens, temperature=0, stop_texts=self.chat.stops
        )
        answers: list[Generation] = []
        for a in range(0, len(prompts), BATCH):
            batch = prompts[a : a + BATCH]
            for completion in self._writer.sample(batch, params):
                reply = self.chat.read(completion.tokens, batch[completion.prompt])
                text = reply.judged(self.options.judge_thinking)
                drawn = len(completion.tokens)
                answers.append(Generation(text, drawn, completion.finished, reply.message))
            self.progress(len(answers), len(prompts))
        return answers

    @cached_property
    def _writer(self) -> Policy:
        """The policy, whose answers end where the chat template ends them."""
        if self.chat.prompt_template is None:
            self.policy.set_chat(self.chat.template.source, self.chat.stop)
        return self.policy

    def score(self, trees: Many[Tree], after: Many[int] | None = None) -> list[float]:
        """Summed log-probability of the targets of every sequence, nats, in order.

        Args:
            after: of every sequence the token that follows it, one more target.
        """
        sums = [0.0] * sum(len(tree) for tree in trees)
        done = 0
        for forest in self.policy.pack(trees, self.budget):
            if after is not None:
                forest = forest.followed_by([after[i] for i in forest.sequence.tolist()])
            (columns,) = self.policy.score([forest])
            of_forest = forest.facts.sums(columns.logprob.double().cpu()).tolist()
            for number, value in zip(forest.sequence.tolist(), of_forest, strict=True):
                sums[number] = value
            done += forest.L
            self.progress(done, len(sums))
        return sums
