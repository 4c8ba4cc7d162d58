"""A tokenizer's chat template, forwards and backwards: messages to tokens, an answer's tokens to a
message, and from a sample on to the next prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass, replace
from functools import cached_property
from inspect import signature
from typing import Any

from posttrain.core.errors import ConfigError, DataError
from posttrain.data.messages import REASONING, Message, trained
from posttrain.data.templates import reading, turns
from posttrain.data.templates.default import default_template
from posttrain.data.templates.endings import AddedTokens, Ending
from posttrain.data.templates.extending import Extended, bridge
from posttrain.data.templates.jinja import STAND_IN, Jinja, Tools, Transcript
from posttrain.data.templates.reading import Parsed, Reader
from posttrain.data.templates.thinking import OPENING, PROMPTED, foreign_reasoning
from posttrain.data.templates.turns import Turn
from posttrain.data.tokens import Encoded, Encoder


@dataclass(frozen=True, eq=False)
class Template:
    """The chat template of a tokenizer. Its facts are probed once, when they are first needed.

        template = Template.of(tokenizer)
        ids = template.prompt(messages)
        answer = template.parse(sampled, prompt=ids)
        messages += [answer.message, {"role": "tool", "content": "7"}]
        ids = template.extend(ids + sampled, messages).ids

    Attributes:
        tokenizer: a Hugging Face tokenizer.
        source: Jinja text, or several by name.
        origin: where it is from: "given", "the model's own" or "default".
        kwargs: handed to the template for every conversation; a conversation's own go first.
    """

    tokenizer: Any
    source: str | dict[str, str]
    origin: str
    kwargs: Mapping[str, Any]

    @classmethod
    def of(
        cls, tokenizer: Any, source: str | None = None, kwargs: Mapping[str, Any] | None = None
    ) -> Template:
        """The template of a tokenizer.

        Args:
            source: Jinja text to use instead of the tokenizer's own. Without either, a default: see
                `data.templates.default`.
        Raises:
            ConfigError: an argument for the template that is not for it to read.
            DataError: the tokenizer has no end-of-sequence token.
        """
        if tokenizer.eos_token_id is None:
            raise DataError(
                "the tokenizer has no end-of-sequence token, so the model would never learn to "
                "stop",
                cure="set eos_token in tokenizer_config.json",
            )
        taken = {*signature(tokenizer.apply_chat_template).parameters} - {"documents"}
        if refused := sorted(taken & {*(kwargs or {})}):
            raise ConfigError(
                f"--template-kwargs {refused[0]} is not for the template to read",
                cure="leave it out",
            )
        origin = "the model's own" if tokenizer.chat_template else "default"
        if source:
            origin = "given"
        own = tokenizer.chat_template or default_template(tokenizer)
        return cls(tokenizer, source or own, origin, dict(kwargs or {}))

    # ------------------------------------------------------------------------------------- facts

    @cached_property
    def jinja(self) -> Jinja:
        return Jinja(self.tokenizer, self.source, self.kwargs)

    @cached_property
    def encoder(self) -> Encoder:
        return Encoder(self.tokenizer)

    @cached_property
    def added(self) -> AddedTokens:
        """The tokenizer's added tokens."""
        return AddedTokens.of(self.tokenizer)

    @cached_property
    def ending(self) -> Ending:
        """How answers end."""
        return Ending.learn(self.jinja)

    @property
    def stop(self) -> str:
        """The token that ends an answer."""
        return self.ending.stop or self.tokenizer.eos_token

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of the template."""
        closing, next_turn = self.ending.closing.strip(), self.ending.next_turn.strip()
        if next_turn and not self.ending.stop:
            return (
                f"the chat template writes nothing after the last answer; "
                f"{self.tokenizer.eos_token} is trained there. {next_turn!r} stands between an "
                "answer and the next question: where the model stops by writing that, give a "
                "--chat-template that ends answers with it",
            )
        if self.ending.stop or not closing:
            return ()
        return (
            f"the chat template ends answers with {closing!r}, which is no token of this "
            f"tokenizer; {self.tokenizer.eos_token} is trained after it",
        )

    @cached_property
    def reader(self) -> Reader:
        """How reasoning, content and tool calls are written, and what of it can be read back."""
        return reading.learn(self.jinja, self.ending)

    @property
    def limits(self) -> tuple[str, ...]:
        """What `parse` cannot read back, in sentences."""
        return self.reader.limits

    @cached_property
    def thinking_tag(self) -> str | None:
        """The tag with which the template opens the reasoning of an answer: empty where it has
        another form, None where it writes none.
        """
        question = {"role": "user", "content": "Hello?"}
        answer = {"role": "assistant", "content": STAND_IN, "reasoning_content": f"{STAND_IN}r"}
        messages = (*self.jinja.dialect.preface, question, answer)
        try:
            turn = turns.turn(self.jinja, self.ending, Transcript(messages), len(messages) - 1)
        except DataError:
            return None
        before, shown, _ = (turn.before[-100:] + turn.after).partition(f"{STAND_IN}r")
        tags = OPENING.findall(before)
        return (tags[-1] if tags else "") if shown else None

    def with_own_reasoning(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """Messages whose reasoning is a field of its own where they have it inside the content, in
        tags that this template does not know. It writes the tags itself.

        What stands between <think> and </think> stays: templates look for that themselves.
        """
        if not any(foreign_reasoning(message, "<think>") for message in messages):
            return messages
        tag = self.thinking_tag
        if tag is None:
            return messages
        moved = (foreign_reasoning(message, "<think>", tag) for message in messages)
        return tuple(new or message for new, message in zip(moved, messages, strict=True))

    @cached_property
    def rewrites_history(self) -> bool:
        """Whether the template shows an earlier answer otherwise than it was prompted for and
        written: a plain one, or one with reasoning.
        """
        answers: list[Message] = [{"role": "assistant", "content": STAND_IN}]
        answers.append({**answers[0], "reasoning_content": STAND_IN})
        for answer in answers:
            question = {"role": "user", "content": "Hello?"}
            messages = (*self.jinja.dialect.preface, question, answer, question, answer)
            transcript, last = Transcript(messages), len(messages) - 1
            try:
                first, second = self.turn(transcript, last - 2), self.turn(transcript, last)
            except DataError:  # it takes no such answers
                continue
            if not second.before.startswith(first.before + first.after):
                return True
        return False

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """The tokens that end an answer, one with tool calls too."""
        texts = {self.stop, self.tokenizer.eos_token, *self.reader.stops}
        return frozenset(self.tokenizer.convert_tokens_to_ids([*texts]))

    # ------------------------------------------------------------------------------------- text

    def turn(self, transcript: Transcript, i: int) -> Turn:
        """Message i of a conversation: the text before it, and the text that the model writes.

        Raises:
            DataError: the template refuses the conversation or drops a part of it.
        """
        return turns.turn(self.jinja, self.ending, self._own(transcript), i)

    def prompt_text(self, transcript: Transcript) -> str:
        """The text that prompts for the answer to a conversation.

        Raises:
            DataError: the template refuses the conversation or drops a part of it.
        """
        return turns.prompt(self.jinja, self._own(transcript))

    def _own(self, transcript: Transcript) -> Transcript:
        return transcript.with_messages(self.with_own_reasoning(transcript.messages))

    def with_eos(self, text: str) -> str:
        """Text that ends with the end-of-sequence token, once."""
        return text.removesuffix(self.tokenizer.eos_token) + self.tokenizer.eos_token

    # ------------------------------------------------------------------------------------- tokens

    def render(self, messages: Many[Message], *, tools: Tools | None = None) -> list[Encoded]:
        """A conversation as it is trained: every answer, but those of weight 0, once.

        Returns: one sequence, or several branches where the template rewrites history.
        Raises:
            DataError: the template refuses the conversation or drops a part of it.
        """
        transcript = Transcript(tuple(messages), tools)
        answers = [i for i, message in enumerate(messages) if trained(message)]
        (encoded,) = self.encoder.encode([[self.turn(transcript, i) for i in answers]])
        if isinstance(encoded, DataError):
            raise encoded
        return encoded

    def prompt(self, messages: Many[Message], *, tools: Tools | None = None) -> list[int]:
        """The token ids that prompt for the answer to a conversation, as inference has them.

        Raises:
            DataError: the template refuses the conversation or drops a part of it.
        """
        text = self.prompt_text(Transcript(tuple(messages), tools))
        return self.encoder.prompts([text], [False])[0]

    def parse(
        self, ids: Many[int], *, prompt: Many[int] | None = None, tools: Tools | None = None
    ) -> Parsed:
        """The message that an answer is: content, reasoning and tool calls.

        The tokenizer's own response template is used where it has one and its own chat template is
        used; else the form is learned from the chat template: see `data.templates.reading`.

        Args:
            ids: tokens of the answer, as sampled; with or without the token that ended it.
            prompt: tokens before it, which may open its thinking; None: the template's usual ones.
            tools: the tools that might be called, which say of what type bare arguments are; none
                of them: calls stay in the content.
        """
        end = len(ids)
        finished = bool(end) and ids[-1] in self.stop_ids
        text = self.decode(ids[: end - finished])
        parsed = self._parsed_by_tokenizer(ids, prompt or [], finished, tools)
        if parsed is not None:
            return parsed
        opened = None
        if prompt is not None:
            thinking = PROMPTED.search(self.decode(prompt[-64:]))
            opened = bool(thinking and thinking[1] and not thinking[2])
        reader = self.reader if tools is None or tools else replace(self.reader, calls=None)
        return reader.read(text, finished=finished, opened=opened, tools=tools)

    def extend(
        self, ids: Many[int], messages: Many[Message], *, tools: Tools | None = None
    ) -> Extended:
        """Goes on after a sampled answer: the ids, the later messages, and the next prompt.

        What was sampled stays as it is: it is neither decoded nor tokenised again.

        Args:
            ids: tokens up to and with the last answer of the messages.
            messages: the whole conversation, with that answer and what came after it.
        Raises:
            DataError: the template refuses the conversation, drops a part of it, or does not show
                where the answer ends.
        """
        transcript = self._own(Transcript(tuple(messages), tools))
        closing, text = bridge(self.jinja, self.ending, transcript)
        closed = bool(len(ids)) and ids[-1] in self.stop_ids
        prefix = "" if closed else closing
        more = self._after_special(prefix + text, self.decode(ids[-1:]))
        return Extended.of([*ids, *more], self.prompt(messages, tools=tools))

    def decode(self, ids: Many[int]) -> str:
        """The text of tokens, nothing left out."""
        return self.tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def _after_special(self, text: str, before: str) -> list[int]:
        """The tokens of a text that follows a special token, which cuts it from what is before."""
        known = self.stop if not self.added.any.fullmatch(before) else before
        ids = self.tokenizer(known + text, add_special_tokens=False)["input_ids"]
        anchor = self.tokenizer.convert_tokens_to_ids(known)
        assert ids[0] == anchor
        return ids[1:]

    def _parsed_by_tokenizer(
        self, ids: Many[int], prompt: Many[int], finished: bool, tools: Tools | None
    ) -> Parsed | None:
        """The answer by the tokenizer's response template; None where it has none or that fails."""
        schema = getattr(self.tokenizer, "response_template", None)
        if schema is None or self.origin != "the model's own":
            return None
        given = list(tools) if tools else None
        try:
            found = self.tokenizer.parse_response(
                list(ids), schema, prefix=list(prompt), tools=given
            )
        except (ValueError, KeyError, TypeError):
            return None
        message: Message = {"role": "assistant", "content": found.get("content") or ""}
        reasoning = next((found[key] for key in REASONING if found.get(key)), None)
        if reasoning:
            message["reasoning_content"] = reasoning
        if calls := found.get("tool_calls"):
            if tools is not None and not tools:
                return None
            message["tool_calls"] = calls
        return Parsed(message, finished)
