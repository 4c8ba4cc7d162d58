"""Reasoning in messages and in chat templates: where it stands, and how it is opened and closed."""

from __future__ import annotations

import re
from typing import Any

from posttrain.data.messages import REASONING

_OPEN = (
    r"<(?:think|thinking|reasoning|thought|seed:think)>|\[THINK\]"
    r"|<\|START_THINKING\|>|<\|channel>thought"
)
_CLOSE = (
    r"</(?:think|thinking|reasoning|thought|seed:think)>|\[/THINK\]|<\|END_THINKING\|>|<channel\|>"
)
OPENING = re.compile(_OPEN)
TAGS = re.compile(f"{_OPEN}|{_CLOSE}")
# thinking that a prompt begins, or says is over
PROMPTED = re.compile(rf"(?:({_OPEN})\s*)?((?:{_CLOSE})\s*)?\Z")
# what history shows of an answer without reasoning
EMPTY = re.compile(rf"\s*({_OPEN})?(\s*)({_CLOSE})")
# thinking that is closed again, or begun again, after it was closed
TWICE = re.compile(rf"\s*(?:{_OPEN})?\s*(?:{_CLOSE})\s*(?:{_OPEN}|{_CLOSE})")
_BEGINS = re.compile(rf"\s*({_OPEN})")
_INLINE = re.compile(rf"\s*(?:{_OPEN})(.*?)(?:{_CLOSE})(\s*)(.*)", re.DOTALL)


def reasoning(message: dict[str, Any]) -> str:
    """The reasoning that a message has as a field of its own."""
    for key in REASONING:
        if isinstance(message.get(key), str):
            return message[key]
    return ""


def thought(message: dict[str, Any]) -> tuple[str | None, str, str]:
    """The reasoning of an answer, what stands between it and the rest, and the rest; None and all
    of it where it has none.
    """
    if own := reasoning(message):
        return own.strip() + "\n", "\n\n", message["content"]
    if inline := _INLINE.match(message["content"]):
        return inline[1].lstrip("\n"), inline[2], inline[3]
    return None, "", message["content"]


def without_thinking(text: str) -> str:
    """An answer without the thinking that it begins with."""
    return thought({"content": text})[2]


def closing(opening: str) -> str:
    """The tag that closes another."""
    if opening.startswith("<|channel>"):
        return "<channel|>"
    return opening.replace("START", "END") if "START" in opening else opening[0] + "/" + opening[1:]


def foreign_reasoning(message: dict[str, Any], *known: str) -> dict[str, Any] | None:
    """An answer with the reasoning at the start of its content as a field of its own, where it
    stands in tags that are not among the known ones; None where it does not.
    """
    if message["role"] != "assistant" or reasoning(message):
        return None
    opening = _BEGINS.match(message["content"])
    if opening is None or opening[1] in known:
        return None
    inside, closed, rest = message["content"][opening.end() :].partition(closing(opening[1]))
    if not closed or not inside.strip():
        return None
    return {**message, "reasoning_content": inside.strip(), "content": rest.lstrip()}
