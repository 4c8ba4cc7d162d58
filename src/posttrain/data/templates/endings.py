"""The token that ends an answer, as a chat template writes it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

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
    """

    closing: str
    stop: str | None
    end: str
    eos: str
    added: AddedTokens = field(repr=False)

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

    def with_eos(self, text: str) -> str:
        """Text that ends with the end-of-sequence token, once: a row may bring its own."""
        return text.removesuffix(self.eos) + self.eos

    def cut(self, text: str) -> str:
        """The text of an answer up to and with the token that ends it.

        What the template writes after that is not learned: by then the model has stopped.
        """
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
