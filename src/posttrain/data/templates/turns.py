"""The turns of a conversation: the text that the model is shown before an answer, and the answer as
the model writes it.

`before` is the template's rendering of the messages ahead of an answer with the generation prompt,
exactly what a server would prompt with. `after` is the rest of the rendering with the answer, up to
and with the token that ends it. Where history shows an answer otherwise than the model is prompted
for it, `after` is put together from the message.

A system prompt, tool or part of an answer that the template drops is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from posttrain.core.errors import DataError
from posttrain.data.messages import Message
from posttrain.data.templates.endings import Ending
from posttrain.data.templates.jinja import STAND_IN, Jinja, Transcript, refused
from posttrain.data.templates.thinking import (
    EMPTY,
    OPENING,
    PROMPTED,
    TAGS,
    TWICE,
    closing,
    reasoning,
    thought,
)


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn to learn: the text before it and the text the model writes.

    Attributes:
        before: what the model is shown.
        after: what it writes, with the text of the token that ends the turn if the template has
            one.
        plain: whether this is plain text, to which the tokenizer adds its own begin token;
            templates write theirs.
        number: which message of the conversation it is, from 1; 0 for plain text.
    """

    before: str
    after: str
    plain: bool
    number: int = 0


@dataclass(frozen=True, slots=True)
class _Prompt:
    """The prompt for an answer, taken apart.

    Attributes:
        stem: the prompt without thinking at its end.
        opened: the tag of thinking that the prompt begins; empty where it begins none.
        over: the prompt says that thinking is over.
    """

    stem: str
    opened: str
    over: bool


@dataclass(frozen=True, slots=True)
class _Pieces:
    """An answer in history: what the template writes before it, the answer, and what follows."""

    head: str
    content: str
    tail: str


def prompt(jinja: Jinja, transcript: Transcript) -> str:
    """The text that prompts for the answer to a conversation.

    Raises:
        DataError: the template refuses the conversation or drops a part of it.
    """
    text = jinja.render(transcript, prompt=True)
    _check_all_is_shown(transcript, text)
    return text


def turn(jinja: Jinja, ending: Ending, transcript: Transcript, i: int) -> Turn:
    """Message i of a conversation as a turn.

    Raises:
        DataError: the template refuses the conversation or drops a part of it.
    """
    messages = transcript.messages
    if not i:
        raise DataError(
            "the conversation begins with an answer, so there is nothing to prompt with",
            where=transcript.where,
            cure="put a user turn before it, or give it weight 0",
        )
    until = transcript.with_messages(messages[: i + 1])
    before = prompt(jinja, transcript.with_messages(messages[:i]))
    whole = jinja.render(until, prompt=False)
    thinking = PROMPTED.search(before, max(0, len(before) - 100))
    assert thinking is not None  # it matches nothing, too
    after = whole[len(before) :]
    if (
        not whole.startswith(before)
        or not _complete(messages[i], after)
        or (TWICE.match(thinking[0] + after) and not _begins_unclosed(messages[i]))
    ):
        opened = "" if thinking[2] else thinking[1] or ""
        parts = _Prompt(before[: thinking.start()], opened, bool(thinking[2]))
        after = _as_written(jinja, ending, until, parts, whole)
    called = bool(messages[i].get("tool_calls"))
    return Turn(before, ending.cut(after, called=called), False, i + 1)


def _begins_unclosed(message: Message) -> bool:
    """Whether an answer begins with a tag of thinking that it never closes: that is its text."""
    return thought(message)[0] is None and bool(OPENING.match(message["content"].lstrip()))


def _as_written(
    jinja: Jinja, ending: Ending, transcript: Transcript, prompt: _Prompt, whole: str
) -> str:
    """What the model writes in a turn that the template shows otherwise once it is history.

    Reasoning models are prompted with an opened thinking tag, and their templates drop the
    thinking from history.

    Args:
        transcript: up to the turn.
        whole: its text, as history.
    """
    message = transcript.messages[-1]
    thinking, _, answer = thought(message)
    if prompt.over and (thinking or "").strip():
        raise DataError(
            "the chat template prompts for an answer without reasoning, and this one has some",
            where=transcript.where,
            cure=(
                "turn reasoning on where the template can, often with --template-kwargs "
                "enable_thinking=true; or remove it; or use another --chat-template"
            ),
        )
    if message.get("tool_calls"):
        pieces, answer = _Pieces(_calls_in_history(transcript, prompt, whole), "", ""), ""
    else:
        pieces = _around(jinja, ending, transcript, prompt, whole)
        answer = answer if thinking is not None else pieces.content
    if prompt.opened:
        return _after_opened_thinking(transcript, prompt.opened, pieces, answer)
    empty = EMPTY.match(pieces.head)
    lead = pieces.head[empty.end() :] if empty else pieces.head
    visible = pieces.head if reasoning(message) else pieces.head + pieces.content
    if thinking is not None and thinking.strip() not in visible:
        if not empty or not empty[1]:
            raise DataError(
                "the chat template drops the reasoning of an answer",
                where=transcript.where,
                cure=(
                    "write it into content the way the model should, remove it, or use another "
                    "--chat-template"
                ),
            )
        space = "\n" if empty[2] else ""
        thinks = f"{empty[1]}{space}{thinking.strip()}{space}{empty[3]}"
        return f"{thinks}{lead}{pieces.content}{pieces.tail}"
    if prompt.over:
        return lead + answer + pieces.tail
    return (pieces.head if thinking is None else lead) + pieces.content + pieces.tail


def _calls_in_history(transcript: Transcript, prompt: _Prompt, whole: str) -> str:
    """The text of an answer with tool calls; without its thinking where the prompt opens that.
    History must show every part of it.
    """
    message = transcript.messages[-1]
    head = whole[len(prompt.stem) :]
    shown = {**message, "content": thought(message)[2]}
    if not whole.startswith(prompt.stem) or not _complete(shown, head, thinks=False):
        raise refused(
            transcript.where,
            "the chat template does not show this tool call, and what is said with it, "
            "where it prompts for it",
        )
    return thought({"content": head})[2] if prompt.opened else head


def _after_opened_thinking(
    transcript: Transcript, opened: str, pieces: _Pieces, answer: str
) -> str:
    """What the model writes after a prompt that opens its thinking."""
    thinking, gap, _ = thought(transcript.messages[-1])
    empty = EMPTY.match(pieces.head)
    lead = pieces.head[empty.end() :] if empty else pieces.head
    if thinking is not None:
        return f"{thinking}{closing(opened)}{gap}{(lead + answer).lstrip()}{pieces.tail}"
    if closing(opened) in pieces.content:
        return lead + pieces.content + pieces.tail
    raise DataError(
        f"the chat template begins every answer with {opened}, and this one has no reasoning",
        where=transcript.where,
        cure=(
            "give it as reasoning_content, or use --template-kwargs enable_thinking=false "
            "where the template knows that, or another --chat-template"
        ),
    )


def _around(
    jinja: Jinja, ending: Ending, transcript: Transcript, prompt: _Prompt, whole: str
) -> _Pieces:
    """The pieces of an answer in history, found with a stand-in in its place.

    A prompt may put words into the model's mouth that are gone once the answer is there. Turn
    tokens and spacing, which some templates write otherwise there, are none.
    """
    stem, messages = prompt.stem, transcript.messages
    content, ahead = messages[-1]["content"], transcript.with_messages(messages[:-1])
    thinks = "" if prompt.opened else reasoning(messages[-1]).strip()
    word = STAND_IN
    while word in stem:
        word += STAND_IN[-1]
    own = {"reasoning_content": f"{word}r"} if thinks else {}
    stand_in = {"role": "assistant", "content": word, **own}
    shown = jinja.render(transcript.with_messages((*messages[:-1], stand_in)), prompt=False)
    bare = jinja.render(ahead, prompt=False)
    cue = stem[len(bare) :] if stem.startswith(bare) else ""  # what prompts for an answer
    content = content if content in whole else content.strip()
    text, _, tail = shown.rpartition(word)
    text, thought_shown, between = text.partition(f"{word}r")
    rest = thinks + between if thought_shown else ""
    if text.startswith(stem):
        return _Pieces(text[len(stem) :] + rest, content, tail)
    # where the history before it is another, too, the answer stands after the cue
    _, found, head = text.rpartition(cue.strip() or STAND_IN)
    if found and (messages[-2]["content"].strip() or STAND_IN) not in head:
        gap = cue[len(cue.rstrip()) :]
        head = head.removeprefix(gap) if head.startswith(gap) else head.lstrip()
        return _Pieces(head + rest, content, tail)
    i, j = _alike(stem, text)
    lead = ending.added.any.sub("", stem[i:]).strip()
    if lead and "".join(stem.split())[-12:] != "".join(text.split())[-12:]:
        if lead not in ending.added.any.sub("", cue):
            raise refused(
                transcript.where,
                "the chat template shows what stands before this answer otherwise than it "
                "prompts for it",
            )
        content = _without_lead(transcript, content, lead)
        content = content.lstrip() if stem[-1].isspace() else content
    return _Pieces(("" if stem[i:].strip() else text[j:].lstrip()) + rest, content, tail)


def _without_lead(transcript: Transcript, content: str, lead: str) -> str:
    """An answer without the words with which the prompt begins it."""
    if content.startswith(lead):
        return content[len(lead) :]
    raise DataError(
        f"the chat template begins every answer with {lead!r}, and this one does not",
        where=transcript.where,
        cure=(
            "write the answer as the model should write it, with this at its start, or use "
            "another --chat-template"
        ),
    )


def _check_all_is_shown(transcript: Transcript, text: str) -> None:
    """Everything that is given must be shown. Earlier answers may be shortened: that is what
    branches are for.
    """
    for message in transcript.messages:
        role, content = message["role"], message["content"]
        if role != "assistant" and not _is_shown(content, text):
            what = "system prompt" if role in ("system", "developer") else f"{role} message"
            raise refused(transcript.where, f"the chat template drops the {what} {content[:40]!r}")
    for tool in transcript.tools or ():
        name = tool["function"].get("name", "")
        if name not in text:
            raise refused(transcript.where, f"the chat template drops the tool {name!r}")


def _complete(message: Message, after: str, *, thinks: bool = True) -> bool:
    """Whether the text of a turn has all of it: the reasoning, then every part of the content, and
    the calls.
    """
    at = 0
    for part in ([reasoning(message)] if thinks else []) + TAGS.split(message["content"]):
        at = after.find(part.strip(), at) + len(part.strip())
        if at < len(part.strip()):
            return False
    for call in message.get("tool_calls", ()):
        function = call["function"]
        shown = all(_is_shown(leaf, after) for leaf in _leaves(function["arguments"]))
        if function["name"] not in after or not shown:
            return False
    return True


def _leaves(value: Any) -> Iterator[str]:
    """The text and the numbers within a value."""
    if isinstance(value, (dict, list, tuple)):
        for inside in value.values() if isinstance(value, dict) else value:
            yield from _leaves(inside)
    elif value is not None and not isinstance(value, bool):
        yield str(value)


def _is_shown(content: str, text: str) -> bool:
    """Whether a message is in the text.

    Templates may quote it or change its spacing, so it is enough that its words are.
    """
    if content.strip() in text:
        return True
    words = re.findall(r"\w+", content)
    return all(word in text or json.dumps(word)[1:-1] in text for word in words)


def _alike(a: str, b: str) -> tuple[int, int]:
    """How far two texts are the same but for spacing: a place in each."""
    i = j = 0
    while i < len(a) and j < len(b):
        if a[i] == b[j]:
            i, j = i + 1, j + 1
        elif a[i].isspace():
            i += 1
        elif b[j].isspace():
            j += 1
        else:
            break
    return i, j
