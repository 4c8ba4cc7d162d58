"""The token that ends an answer, as a chat template writes it.

Some templates write nothing after an answer: the next turn's first token stands there, and models
that were released with them stop by writing it. GLM's do so with `<|user|>`, and with
`<|observation|>` after a call of a tool.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from posttrain.core.errors import DataError
from posttrain.data.messages import Message
from posttrain.data.templates.jinja import STAND_IN, Jinja, Transcript, tool

# closes a part of an answer, not the answer
_PART_END = re.compile(r"</(?!s>)|\[/|<[^<>]*_end\|>$")


@dataclass(frozen=True)
class AddedTokens:
    """The added tokens of a tokenizer, which cut a text wherever they stand in it.

    Attributes:
        any: one of them. run: one or more without anything between.
        closing: those at the end of a text, with white space between.
        special: one of those that are special.
    """

    any: re.Pattern[str]
    run: re.Pattern[str]
    closing: re.Pattern[str]
    special: re.Pattern[str]

    @classmethod
    def of(cls, tokenizer: Any) -> AddedTokens:
        added = tokenizer.added_tokens_decoder.values()
        contents = (t.content for t in added if t.content.strip())
        longest_first = sorted(contents, key=len, reverse=True)
        names = "|".join(map(re.escape, longest_first)) or "(?!)"
        special = "|".join(re.escape(t.content) for t in added if t.special) or "(?!)"
        return cls(
            re.compile(names),
            re.compile(rf"(?:{names})+"),
            re.compile(rf"(?:\s*(?:{names}))+\s*$"),
            re.compile(special),
        )


@dataclass(frozen=True)
class Ending:
    """How answers end.

    Attributes:
        closing: all that the template writes after an answer.
        stop: the token in it that ends the answer; None where it has none.
        end: `closing` up to and with that token.
        eos: the tokenizer's end-of-sequence token.
        added: the tokenizer's added tokens.
        next_turn: what the template writes between an answer and the next question, up to and with
            its first token, where it writes no closing; empty otherwise.
        after_call: the same between a call of a tool and its result, where answers end with
            `next_turn`; empty otherwise.
    """

    closing: str
    stop: str | None
    end: str
    eos: str
    added: AddedTokens = field(repr=False)
    next_turn: str = ""
    after_call: str = ""

    @classmethod
    def of(cls, closing: str, tokenizer: Any) -> Ending:
        """The end-of-sequence token where the closing has it; else the first added token in it."""
        added, eos = AddedTokens.of(tokenizer), tokenizer.eos_token
        run = added.run.search(closing)
        if run is None:
            return cls(closing, None, "", eos, added)
        tokens = added.any.findall(run[0])
        stop = eos if eos in tokens else tokens[0]
        return cls(closing, stop, closing[: closing.index(stop) + len(stop)], eos, added)

    @classmethod
    def learn(cls, jinja: Jinja) -> Ending:
        """How answers end in a template. Where it writes nothing after them, they end with the
        token that begins the next turn if the model is known to stop there, and with the
        end-of-sequence token if not.
        """
        ending = cls.of(jinja.dialect.closing, jinja.tokenizer)
        if ending.closing.strip():
            return ending
        next_turn = _after(jinja, ending, {"role": "assistant", "content": STAND_IN})
        stop = next_turn.strip()
        if stop in ("", ending.eos):
            return ending
        if stop not in _released_stops(jinja.tokenizer) and not _is_glm(jinja.source):
            return replace(ending, next_turn=next_turn)
        function = {"name": "look", "arguments": {"at": STAND_IN}}
        call = {"type": "function", "id": "abcdefghi", "function": function}
        called = {"role": "assistant", "content": "", "tool_calls": [call]}
        after_call = _after(jinja, ending, called) or next_turn
        return replace(ending, stop=stop, end=next_turn, next_turn=next_turn, after_call=after_call)

    def with_eos(self, text: str) -> str:
        """Text that ends with the end-of-sequence token, once: a row may bring its own."""
        return text.removesuffix(self.eos) + self.eos

    def cut(self, text: str, *, called: bool = False) -> str:
        """The text of an answer up to and with the token that ends it.

        What the template writes after that is not learned: by then the model has stopped.

        Args:
            called: whether the answer calls tools.
        """
        if self.after_call:
            end = self.after_call if called else self.next_turn
            return text.removesuffix(self.closing).removesuffix(end) + end
        if self.stop and self.closing and text.endswith(self.closing):
            answer = text.removesuffix(self.closing)
            return answer if answer.endswith(self.stop) else answer + self.end  # a row's own end
        if end := self.last_token(text):
            return text[:end]
        return self.with_eos(text.removesuffix(self.closing).rstrip())

    def last_token(self, text: str) -> int | None:
        """Where the token that ends an answer ends, among the added tokens that end a text; None
        where there is none.
        """
        run = self.added.closing.search(text)
        if run is None:
            return None
        tokens = list(self.added.any.finditer(text, run.start()))
        for token in tokens:
            if token[0] in (self.stop, self.eos):
                return token.end()
        if self.stop:
            for token in tokens:  # some end a tool call with a token of its own
                if not _PART_END.match(token[0]):
                    return token.end()
        return None

    def final(self, text: str) -> str:
        """The added token at the very end of a text; empty where there is none."""
        tokens = list(self.added.any.finditer(text))
        return tokens[-1][0] if tokens and tokens[-1].end() == len(text) else ""


def _after(jinja: Jinja, ending: Ending, answer: Message) -> str:
    """What a template writes between an answer and what comes next, up to and with an added token
    that begins that; empty where no such token does.
    """
    called = "tool_calls" in answer
    reply: Message = {"role": "user", "content": "Hello again?"}
    if called:
        reply = {"role": "tool", "name": "look", "tool_call_id": "abcdefghi", "content": "Seven."}
    messages = (*jinja.dialect.preface, {"role": "user", "content": "Hello?"}, answer)
    transcript = Transcript(messages, (tool("look", at="string"),) if called else None)
    try:
        until = jinja.render(transcript, prompt=False)
        text = jinja.render(transcript.with_messages((*messages, reply)), prompt=False)
    except DataError:
        return ""
    # what comes after the answer where it is the last one, its closing apart
    rest = until.rpartition(STAND_IN)[2].removesuffix(ending.closing)
    _, _, after = text.rpartition(STAND_IN)
    if not after.startswith(rest):
        return ""
    found = re.compile(rf"\s*(?:{ending.added.any.pattern})").match(after, len(rest))
    return found[0] if found else ""


def _released_stops(tokenizer: Any) -> set[str]:
    """The tokens at which the model stops by its generation config, where it has one beside the
    tokenizer.
    """
    try:
        path = Path(tokenizer.name_or_path) / "generation_config.json"
        stops = json.loads(path.read_bytes()).get("eos_token_id")
        ids = stops if isinstance(stops, list) else [stops]
        return set(tokenizer.convert_ids_to_tokens([i for i in ids if isinstance(i, int)]))
    except (OSError, TypeError, ValueError, AttributeError, IndexError, RecursionError):
        return set()


def _is_glm(source: str | dict[str, str]) -> bool:
    texts = [source] if isinstance(source, str) else source.values()
    return any("[gMASK]" in text and "<|observation|>" in text for text in texts)
