"""Going on after a sampled answer: the text between the answer and the next prompt's end."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass

from posttrain.core.errors import DataError
from posttrain.data.messages import Message
from posttrain.data.templates.endings import Ending
from posttrain.data.templates.jinja import STAND_IN, Jinja, Transcript, refused
from posttrain.data.templates.turns import prompt
from posttrain.data.tokens import common_prefix


@dataclass(frozen=True, slots=True)
class Extended:
    """Tokens that go on after what was sampled.

    Attributes:
        ids: the tokens that were given, and what follows them.
        shared: how many of them, from the start, are those of the prompt that the template renders
            for the whole conversation.
        exact: whether all are, and no more: the template does not rewrite this history. Otherwise
            the two are branches.
    """

    ids: list[int]
    shared: int
    exact: bool

    @classmethod
    def of(cls, ids: list[int], prompt: list[int]) -> Extended:
        """Compares extended ids with the prompt for the whole conversation."""
        shared = common_prefix(ids, prompt)
        return cls(ids, shared, shared == len(ids) == len(prompt))


def bridge(jinja: Jinja, ending: Ending, transcript: Transcript) -> tuple[str, str]:
    """The end of the last answer, for one that was cut off, and the text after it.

    Raises:
        DataError: the template refuses the conversation, drops a part of it, or does not show where
            the answer ends.
    """
    messages = transcript.messages
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        raise DataError(
            "the conversation has no answer to go on after",
            where=transcript.where,
            cure="prompt for its first answer",
        )
    last = answers[-1]
    whole = prompt(jinja, transcript)
    # the conversation itself first; then stand-ins for the answer, where its history is rewritten
    own = messages[last]
    for answer in (own, *_stand_ins(own)):
        shown = transcript.with_messages((*messages[:last], answer, *messages[last + 1 :]))
        until = transcript.with_messages((*messages[:last], answer))
        try:
            after = whole if answer is own else jinja.render(shown, prompt=True)
            history = jinja.render(until, prompt=False)
        except DataError:
            continue
        end = _end_of_answer(history, ending)
        if after.startswith(history[:end]):
            for borrowed in filter(None, (ending.after_call, ending.next_turn)):
                if ending.stop and after.startswith(borrowed, end):
                    return borrowed, after[end + len(borrowed) :]
            if not ending.stop and after.startswith(ending.eos, end):  # it ends all but the last
                end += len(ending.eos)
            return ending.end or ending.eos, after[end:]
        if answer is not own and STAND_IN in after:
            rest = after.rpartition(STAND_IN)[2]
            token = ending.added.any.search(rest)
            closing = rest[: token.end()] if token else ""
            if token and rest[: token.start()].strip() in ("", ending.end.strip()):
                return closing, rest[token.end() :]
    raise refused(transcript.where, "the chat template does not show where the last answer ends")


def _stand_ins(answer: Message) -> Many[Message]:
    """Answers whose end the template may show where it rewrites the real answer."""
    plain = {"role": "assistant", "content": STAND_IN}
    if answer.get("tool_calls"):
        bare = {key: answer[key] for key in ("role", "content", "tool_calls")}
        return bare, {**bare, "content": STAND_IN}
    return (plain,)


def _end_of_answer(history: str, ending: Ending) -> int:
    """Where the last answer of a history ends, the token that ends it included."""
    if ending.closing and history.endswith(ending.closing):
        return len(history) - len(ending.closing) + len(ending.end)
    return ending.last_token(history) or len(history)
