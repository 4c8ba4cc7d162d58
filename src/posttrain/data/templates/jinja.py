"""Rendering messages with a chat template, in the dialect that the template wants.

Templates differ in what they take: content as text or as a list of parts, the arguments of a tool
call as an object or as JSON text, no tools as nothing or as an empty list. A probe finds out which.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Any

from posttrain.core.errors import DataError, ModelError
from posttrain.data.messages import Message
from posttrain.data.templates import sandbox
from posttrain.data.templates.default import pinned

STAND_IN = "Zq7"  # stands for an answer, to see what the template writes around it

Tools = tuple[dict[str, Any], ...]  # JSON schemas


@dataclass(frozen=True, slots=True)
class Transcript:
    """A conversation as a chat template takes it.

    Attributes:
        messages: in order.
        tools: JSON schemas of the tools that may be called; None where there are none.
        kwargs: what else the template reads.
        where: the row it was, for errors.
    """

    messages: tuple[Message, ...]
    tools: Tools | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""

    def with_messages(self, messages: Iterable[Message]) -> Transcript:
        """The same tools and template arguments around other messages."""
        return replace(self, messages=tuple(messages))


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a probe found out about the shape of messages that a template takes.

    Attributes:
        parts: content is a list of parts, not text.
        no_tools: what stands for no tools.
        preface: messages without which it renders nothing.
        closing: the text that the template writes after an answer.
    """

    parts: bool
    no_tools: list[Any] | None
    preface: tuple[Message, ...] = ()
    closing: str = ""


class Jinja:
    """Renders messages as text.

    Args:
        tokenizer: a Hugging Face tokenizer.
        source: Jinja text, or several by name.
        kwargs: handed to the template for every conversation; a conversation's own go first.
    """

    def __init__(
        self, tokenizer: Any, source: str | dict[str, str], kwargs: Mapping[str, Any]
    ) -> None:
        self.tokenizer, self.source, self.kwargs = tokenizer, source, dict(kwargs)
        self._known: dict[str, tuple[str, str]] = {}  # source → pinned, its role for developers

    def render(self, transcript: Transcript, *, prompt: bool) -> str:
        """The text of a conversation.

        Args:
            prompt: whether it ends with what prompts the model for an answer.
        Raises:
            DataError: the template refuses the conversation.
            ModelError: the template cannot render the simplest conversation.
        """
        dialect = self.dialect
        called = any(message.get("tool_calls") for message in transcript.messages)
        try:
            quoted = called and self.quoted_arguments
            return self._apply(transcript, dialect, prompt=prompt, quoted=quoted)
        except Exception as error:
            what = f"the chat template refuses the conversation: {_first_line(error)}"
            raise refused(transcript.where, what) from None

    @cached_property
    def dialect(self) -> Dialect:
        """The first dialect in which the template renders a question and an answer.

        Raises:
            ModelError: there is none.
        """
        errors = []
        question = {"role": "user", "content": "Hello?"}
        answer = {"role": "assistant", "content": STAND_IN}
        # some want a system prompt, content as parts, or a list of tools even where there are none
        for system, parts, no_tools in product((False, True), (False, True), (None, [])):
            preface = ({"role": "system", "content": "Be kind."},) * system
            transcript = Transcript((*preface, question, answer))
            try:
                text = self._apply(transcript, Dialect(parts, no_tools), prompt=False)
            except sandbox.Exceeded as error:
                errors = [error.what]
                break
            except Exception as error:
                errors.append(_first_line(error))
                continue
            if STAND_IN in text:
                return Dialect(parts, no_tools, preface, text.rpartition(STAND_IN)[2])
            errors.append("it leaves the answer out")
        raise ModelError(
            f"the chat template cannot render a question and an answer: {errors[0]}",
            cure="give another with --chat-template",
        )

    @cached_property
    def quoted_arguments(self) -> bool:
        """Whether the template wants the arguments of a call as JSON text."""
        call = {
            "type": "function",
            "id": "abcdefghi",
            "function": {"name": "look", "arguments": {"at": "this"}},
        }
        messages = (
            {"role": "user", "content": "Hello?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        )
        transcript = Transcript(messages, (tool("look", at="string"),))

        def renders(quoted: bool) -> bool:
            try:
                text = self._apply(transcript, self.dialect, prompt=False, quoted=quoted)
            except Exception:
                return False
            return "{'at':" not in text  # that is Python, and no JSON

        return not renders(False) and renders(True)

    def _apply(
        self, transcript: Transcript, dialect: Dialect, *, prompt: bool, quoted: bool = False
    ) -> str:
        source = self.source
        if isinstance(source, dict):
            source = source.get("tool_use" if transcript.tools else "default") or source["default"]
        if source not in self._known:
            # templates that know no developer role know the system's, which means the same
            role = "developer" if re.search("""['"]developer['"]""", source) else "system"
            self._known[source] = (pinned(source), role)
        template, developer = self._known[source]
        messages = []
        for message in transcript.messages:
            shown = {k: v for k, v in message.items() if k != "weight"}
            if shown["role"] == "developer":
                shown["role"] = developer
            if dialect.parts:
                shown["content"] = [{"type": "text", "text": shown["content"]}]
            if quoted:
                shown["tool_calls"] = [_quoted(call) for call in shown.get("tool_calls", ())]
            messages.append(shown)
        variables = {
            **self.tokenizer.special_tokens_map,
            "tools": list(transcript.tools) if transcript.tools else dialect.no_tools,
            "add_generation_prompt": prompt,
            **self.kwargs,
            **transcript.kwargs,
        }
        return sandbox.render(template, messages, variables)


def tool(name: str, **parameters: str) -> dict[str, Any]:
    """The JSON schema of a tool, to probe with; each parameter with its type."""
    schema = {
        "type": "object",
        "properties": {
            key: {"type": kind, "description": "What."} for key, kind in parameters.items()
        },
        "required": [*parameters],
    }
    function = {"name": name, "description": "Looks.", "parameters": schema}
    return {"type": "function", "function": function}


def refused(where: str, what: str) -> DataError:
    """The error for a row that the template cannot show."""
    cure = "change the row, or use another --chat-template"
    if "system" in what.lower():
        cure = (
            "put the system prompt at the start of the first user message, or use another "
            "--chat-template"
        )
    return DataError(what, where=where, cure=cure)


def _quoted(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"])}}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0] or type(error).__name__
