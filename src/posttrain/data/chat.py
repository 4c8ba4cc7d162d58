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
from typing import Any

from posttrain.core.errors import DataError
from posttrain.data.formats import Example, Text
from posttrain.data.messages import Message, trained
from posttrain.data.templates.jinja import Transcript
from posttrain.data.templates.template import Template
from posttrain.data.templates.turns import Turn

__all__ = ["Chat", "Template", "Turn"]


class Chat:
    """Renders examples as a tokenizer's chat template does at inference.

    Args:
        tokenizer: a Hugging Face tokenizer.
        template: Jinja text to use instead of the tokenizer's own; see `Template`.
        kwargs: handed to the template for every row; a row's own go first.
        train_on: all answers of a conversation, or the last.
        prompt_template: write prompt and completion as plain text, the prompt like this.
    Attributes:
        template: the chat template.
        separator: stands after every step of an answer that has steps.
        used: whether a conversation was rendered.
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
    ) -> None:
        if prompt_template is not None and "{prompt}" not in prompt_template:
            raise DataError(
                f"the prompt template {prompt_template!r} does not contain {{prompt}}",
                cure="write {prompt} where it goes",
            )
        self.template = Template.of(tokenizer, template, kwargs)
        self.tokenizer, self.train_on, self.prompt_template = tokenizer, train_on, prompt_template
        self.separator = "\n"
        self.used = False
        self._moved = False  # reasoning in tags that the template does not know

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
        if self.prompt_template is not None:
            raise DataError(
                "a conversation, where --prompt-template asks for plain text",
                where=example.where,
                cure="leave --prompt-template out; the chat template writes conversations",
            )
        given: tuple[Message, ...] = () if isinstance(prompt, str) else prompt
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
        messages = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt
        return self.template.prompt_text(self._transcript(example, messages)), False

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

    def _transcript(self, example: Example, messages: tuple[Message, ...]) -> Transcript:
        self.used = True
        own = self.template.with_own_reasoning(messages)
        self._moved = self._moved or own is not messages
        return Transcript(own, example.tools, example.kwargs, example.where)

    def _plain(self, prompt: str) -> str:
        assert self.prompt_template is not None
        return self.prompt_template.replace("{prompt}", prompt)
