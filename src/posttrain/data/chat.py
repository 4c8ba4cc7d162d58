"""Rows as turns: a conversation by the tokenizer's chat template, plain text as it stands or by a
prompt template.

For every trained turn, `before` is exactly what a server would prompt with, and `after` is what the
model should write then, up to and with the token that ends the turn; see `data.templates.turns`.
Where the next turn's `before` goes on from this turn's text, both become one sequence. Where the
template rewrites history (drops earlier reasoning, moves the tools), they become branches that
share what is really shared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Any

from posttrain.core.errors import DataError
from posttrain.data.formats import Example, Text
from posttrain.data.messages import Message, trained
from posttrain.data.prompting import Prompting, before_stop
from posttrain.data.templates.jinja import STAND_IN, Transcript
from posttrain.data.templates.template import Template
from posttrain.data.templates.turns import Turn

__all__ = ["Chat", "Reply", "Template", "Turn"]


@dataclass(frozen=True)
class Reply:
    """What a model wrote, read back.

    Attributes:
        answer: the answer alone: without thinking, special tokens and the text that ended it.
        whole: the same with its thinking.
        message: the answer as the chat template has it, its thinking apart as reasoning_content;
            None after a plain-text prompt.
    """

    answer: str
    whole: str
    message: Message | None = None

    @property
    def thinking(self) -> str:
        """The thinking alone; empty where there is none."""
        return self.message.get("reasoning_content", "") if self.message else ""

    def judged(self, whole: bool) -> str:
        """The text that is judged: the answer, or all of it."""
        return self.whole if whole else self.answer


class Chat:
    """Renders examples as a tokenizer's chat template does at inference.

    Args:
        tokenizer: a Hugging Face tokenizer.
        template: Jinja text to use instead of the tokenizer's own; see `Template`.
        kwargs: handed to the template for every row; a row's own go first.
        train_on: all answers of a conversation, or the last.
        prompt_template: write prompt and completion as plain text, the prompt like this.
        system: system prompt of conversations that have none.
        stops: texts that end a written answer.
    Attributes:
        template: the chat template.
        separator: stands after every step of an answer that has steps.
        delimiter: stands between a question and its choices; None: see
            `posttrain.evals.tasks.choice`.
        used: whether a conversation was rendered.
        shared: the system prompts and template arguments of the conversations that were rendered,
            as JSON; no more than two are kept.
    Raises:
        ConfigError: an argument for the template that is not for it to read.
        DataError: a prompt template without {prompt}, or a tokenizer without an end-of-sequence
            token.
        ModelError: the template cannot render the simplest conversation.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        template: str | None = None,
        kwargs: Mapping[str, Any] | None = None,
        train_on: str = "all",
        prompt_template: str | None = None,
        system: str = "",
        stops: Many[str] = (),
    ) -> None:
        if prompt_template is not None and "{prompt}" not in prompt_template:
            raise DataError(
                f"the prompt template {prompt_template!r} does not contain {{prompt}}",
                cure="write {prompt} where it goes",
            )
        self.template = Template.of(tokenizer, template, kwargs)
        self.tokenizer, self.train_on, self.prompt_template = tokenizer, train_on, prompt_template
        self.system, self.stops = system, tuple(stops)
        self.separator = "\n"
        self.delimiter: str | None = None
        self.used = False
        self.shared: set[str] = set()
        self._moved = False  # reasoning in tags that the template does not know

    @classmethod
    def of(cls, tokenizer: Any, prompting: Prompting, **more: Any) -> Chat:
        """One that prompts in a known way.

        Args:
            more: `template` and `train_on`.
        """
        return cls(
            tokenizer,
            kwargs=prompting.template_kwargs,
            prompt_template=prompting.prompt_template,
            system=prompting.system,
            stops=prompting.stops,
            **more,
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of the chat template, once it was used."""
        notes = self.template.notes if self.used else ()
        if self._moved:
            notes += (
                "reasoning in tags of another template is given to this one as reasoning, which "
                f"it opens with {self.template.thinking_tag or 'words of its own'}",
            )
        return notes

    @property
    def lead(self) -> str:
        """What the chat template begins an answer without thinking with, after the prompt."""
        question = {"role": "user", "content": "Hello?"}
        answer = {"role": "assistant", "content": STAND_IN}
        messages = (*self.template.jinja.dialect.preface, question, answer)
        try:
            turn = self.template.turn(Transcript(messages), len(messages) - 1)
        except DataError:  # it takes no answer without thinking
            return ""
        return turn.after.partition(STAND_IN)[0].strip()

    @property
    def stop(self) -> str:
        """The token that ends an answer: a model trained on conversations stops there."""
        self.used = True
        return self.template.stop

    def turns(self, example: Example, answer: Text) -> list[Turn]:
        """What the model is shown and should write, for every trained turn of one answer of an
        example.

        Raises:
            DataError: the template refuses the conversation or drops a part of it.
        """
        prompt, end = example.prompt, self.template.with_eos
        if isinstance(answer, str):
            if not prompt:
                return [Turn("", end(answer), plain=True)]
            if self.prompt_template is not None:
                return [Turn(self._plain(str(prompt)), end(answer), plain=True)]
            prompt = ({"role": "user", "content": prompt},)
            answer = ({"role": "assistant", "content": answer},)
        self._check_conversation(example)
        given: tuple[Message, ...] = () if isinstance(prompt, str) else prompt
        given = (*self._system_before((*given, *answer)), *given)
        transcript = self._transcript(example, (*given, *answer))
        answers = [
            i
            for i in range(len(given), len(transcript.messages))
            if trained(transcript.messages[i])
        ]
        if self.train_on == "last":
            answers = answers[-1:]
        return [self.template.turn(transcript, i) for i in answers]

    def prompt(self, example: Example) -> tuple[str, bool]:
        """The text to prompt with, and whether it is plain."""
        prompt = example.prompt
        if isinstance(prompt, str) and self.prompt_template is not None:
            return self._plain(prompt), True
        self._check_conversation(example)
        messages = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt
        messages = (*self._system_before(messages), *messages)
        return self.template.prompt_text(self._transcript(example, messages)), False

    def read(self, ids: Many[int], prompt: Many[int]) -> Reply:
        """What a model wrote.

        Args:
            ids: tokens of the answer, as sampled.
            prompt: tokens before it.
        """
        written = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        whole = before_stop(written, self.stops)
        if self.prompt_template is not None:
            return Reply(whole, whole)
        # calls of tools stay in the text: what is judged is all that is no thinking
        parsed = self.template.parse(ids, prompt=prompt, tools=()).message
        answer = before_stop(self.template.added.special.sub("", parsed["content"]), self.stops)
        return Reply(answer, whole, {**parsed, "content": answer})

    def step_turns(self, example: Example) -> list[Turn]:
        """The steps of an answer, each ended by the separator; the first one knows what the model
        is shown before it.
        """
        before, plain = self.prompt(example) if example.prompt else ("", True)
        return [
            Turn("" if i else before, step + self.separator, plain, i + 1)
            for i, (step, _) in enumerate(example.steps)
        ]

    def holds_special(self, example: Example) -> bool:
        """Whether a row's own text has a special token in it, which the model will read as one."""
        texts: list[str] = []
        for part in (example.prompt, *example.answers):
            if isinstance(part, str):
                texts.append(part)
            else:
                texts += [json.dumps(message, ensure_ascii=False) for message in part]
        return any(self.template.added.special.search(text) for text in texts)

    def _check_conversation(self, example: Example) -> None:
        """Refuse a conversation where prompts are plain text."""
        if self.prompt_template is not None:
            raise DataError(
                f"a conversation, where the prompt template {self.prompt_template!r} asks for "
                "plain text",
                where=example.where,
                cure="give --prompt-template '' to use the chat template, which writes "
                "conversations",
            )

    def _system_before(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """The system prompt, where the messages have none of their own."""
        if not self.system or (messages and messages[0]["role"] in ("system", "developer")):
            return ()
        return ({"role": "system", "content": self.system},)

    def _transcript(self, example: Example, messages: tuple[Message, ...]) -> Transcript:
        self.used = True
        own = self.template.with_own_reasoning(messages)
        self._moved = self._moved or own is not messages
        if len(self.shared) < 2:
            first = messages[0] if messages else {}
            system = first["content"] if first.get("role") in ("system", "developer") else ""
            self.shared.add(json.dumps([system, example.kwargs]))
        return Transcript(own, example.tools, example.kwargs, example.where)

    def _plain(self, prompt: str) -> str:
        assert self.prompt_template is not None
        return self.prompt_template.replace("{prompt}", prompt)
