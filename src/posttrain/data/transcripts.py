"""Transcripts: conversations that are written as one text, with a mark before every turn.

    Human: …            ### Instruction: …      USER: … ASSISTANT: …     <|im_start|>user
    Assistant: …        ### Response: …                                  <|im_start|>assistant

Where chosen and rejected are such texts, as in hh-rlhf, the prompt is what both share, up to and
with the mark of the last answer that both begin. It is never cut elsewhere: two answers may begin
with the same words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from posttrain.data.tokens import common_prefix

_USERS = "human|user|prompter|customer|question|instruction|query|q"
_ASSISTANTS = "assistant|ai|bot|chatbot|gpt|chatgpt|model|answer|response|a"
_MARK = re.compile(
    rf"""(?:\A|(?<=\n))[ \t]*(?:\#{{1,6}}[ \t]*|\*{{1,2}})?
        (?:(?P<user>{_USERS})|(?P<assistant>{_ASSISTANTS}))(?:\*{{1,2}})?[ \t]*:(?:\*{{1,2}})?
      | (?:\A|(?<=[\s>]))(?-i:(?P<user_1>USER)|(?P<assistant_1>ASSISTANT)):
      | <\|im_start\|>(?:(?P<user_2>user)|(?P<assistant_2>assistant))\n
      | <\|start_header_id\|>(?:(?P<user_3>user)|(?P<assistant_3>assistant))<\|end_header_id\|>\s*
      | <start_of_turn>(?:(?P<user_4>user)|(?P<assistant_4>model))\n
      | <[|｜](?:(?P<user_5>user)|(?P<assistant_5>assistant))[|｜]>\n?
      | (?P<user_6>\[INST\])|(?P<assistant_6>\[/INST\])""",
    re.IGNORECASE | re.VERBOSE,
)
# what may stand before the first turn of marks that prose may have, too: a system prompt
_OPENING = re.compile(r"\s*(?:system[ \t]*:.*)?", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Mark:
    """The mark before a turn: where it stands, how it is written, and whose turn begins there."""

    start: int
    end: int
    text: str
    assistant: bool


def marks(text: str) -> list[Mark]:
    """The marks of a transcript, all written like its first ones; empty where a text is none.

    A transcript begins with a user's mark, or with words before marks that no prose has, and has
    an assistant's after it.
    """
    every = list(_marks(text))
    user = next((mark for mark in every if not mark.assistant), None)
    if user is None:
        return []
    answers = (mark for mark in every if mark.assistant and mark.start >= user.end)
    assistant = next(answers, None)
    in_prose = user.text[:1] not in "#<[" and user.text != "USER:"
    if assistant is None or (in_prose and not _OPENING.fullmatch(text[: user.start])):
        return []
    return [mark for mark in every if mark.text in (user.text, assistant.text)]


def _marks(text: str) -> Iterator[Mark]:
    for match in _MARK.finditer(text):
        assistant = any(
            found for name, found in match.groupdict().items() if name.startswith("assistant")
        )
        yield Mark(match.start(), match.end(), match[0].strip(), assistant)


def shared_prompt(chosen: str, rejected: str) -> str:
    """What two transcripts share, up to and with the mark of the last answer that both begin; empty
    where they share no question, or are no transcripts.
    """
    shared = common_prefix(chosen, rejected)
    end, asked = 0, False
    for mark in marks(chosen):
        if mark.end > shared:
            break
        if mark.assistant and asked:
            end = mark.end
        asked = not mark.assistant
    return chosen[:end]


def asks_again(prompt: str, answer: str) -> str:
    """The user's mark in what follows a prompt; empty where none follows."""
    return next(
        (m.text for m in marks(prompt + answer) if m.start >= len(prompt) and not m.assistant), ""
    )
