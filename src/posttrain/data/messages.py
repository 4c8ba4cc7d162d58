"""Messages: conversations as files have them, and the one shape in which they go on. Left out:
images and audio; a part of a message that is not learned.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from math import inf
from types import NoneType
from typing import Any

from posttrain.core.errors import DataError, nearest
from posttrain.data.rows import JSON, kind, text

Message = dict[str, Any]  # role, content, and what else the chat template may read
Text = str | tuple[Message, ...]  # plain text, or part of a conversation

REASONING = ("reasoning_content", "reasoning", "thinking")  # fields of a message with its thinking

DEEPEST = 100  # brackets within brackets of what a template prints as JSON

ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "ai": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "tool_response": "tool",
    "function_response": "tool",
    "observation": "tool",
    "ipython": "tool",
    "tool_call": "call",
    "function_call": "call",
}


def messages(value: Any, name: str, where: str) -> tuple[Message, ...]:
    """A conversation with our role names, tool calls as the chat templates expect them, and nothing
    that is null.

    Args:
        value: a list of messages, or that list as JSON text.
        name: the column, for errors.
        where: the row, for errors.
    Raises:
        DataError: it is no list of messages, or one of them lacks a role or content, or has an
            unknown role.
    """
    value = decoded(value, name, where)
    if not isinstance(value, (list, tuple)) or not value:
        raise DataError(
            f"{name} holds {'an empty list' if value == [] else kind(value)}, not a list of "
            "messages",
            where=where,
            cure='write [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]',
        )
    return tuple(
        _message(each, f"message {i} of {name}", where) for i, each in enumerate(_turns(value), 1)
    )


def _turns(value: list[Any] | tuple[Any, ...]) -> Iterator[Any]:
    """Messages one by one; {input, output} is a question and its answer."""
    for each in value:
        if (
            isinstance(each, dict)
            and {"input", "output"} <= each.keys()
            and not _written_role(each)
        ):
            yield {"role": "user", "content": each["input"]}
            yield {"role": "assistant", "content": each["output"]}
        else:
            yield each


# fields of a message that are read here; all else goes on as it is
_READ = ("role", "from", "content", "value", "tool_calls", "function_call")
# fields that say whether a message is learned: 1 or true, 0 or false
WEIGHTS = ("weight", "train", "training", "trainable", "train_on_turn", "loss", "loss_mask")
# a field that seems to say so, and is none of these
_SAYS_WEIGHT = re.compile(
    r"(?:^|_)(?:train|trained|training|trainable|loss|mask|masked|learn|learned|weight)(?:_|$)"
)


def _message(value: Any, name: str, where: str) -> Message:
    role = _role(value, name, where)
    content = _content(_first(value, "content", "value"), name, where)
    calls = _first(value, "tool_calls", "function_call")
    calls = decoded(None if calls == "" else calls, f"the tool call of {name}", where)
    if role == "call":  # the call itself is the content, as JSON
        calls = calls or decoded(content, f"the tool call of {name}", where) or {}
        role, content = "assistant", ""
    if content is None and calls in (None, []):
        raise DataError(
            f"{name} ({role}) has no content", where=where, cure="fill it in, or remove the message"
        )
    rest = {k: v for k, v in value.items() if v is not None and k not in _READ}
    out = {"role": role, "content": content or "", **rest}
    for key, held in out.items():
        if isinstance(held, str):
            text(held, f"{key} of {name}", where)
    _set_weight(out, name, where)
    if calls not in (None, []):
        out["tool_calls"] = _calls(calls, name, where)
    if trained(out) and empty(out):
        raise DataError(
            f"{name} (assistant) is empty",
            where=where,
            cure="fill it in, remove it, or give it weight 0",
        )
    return out


def _set_weight(message: Message, name: str, where: str) -> None:
    """Put what a message says of whether it is learned into its weight, 0 or 1.

    Raises:
        DataError: it says anything else, in a field that is not known, two things at once, or that
            another's message is learned.
    """
    weights: dict[str, int] = {}
    for key in [key for key in message if isinstance(key, str)]:
        if key in WEIGHTS:
            weights[key] = _weight(message.pop(key), key, name, where)
        elif _SAYS_WEIGHT.search(key.lower()):
            raise DataError(
                f"{name} has the field {key[:40]!r}, and which tokens it means to be learned is "
                "not known",
                where=where,
                cure='write "weight": 1 for a message that is learned, 0 for one that is not',
            )
    if not weights:
        return
    if len(set(weights.values())) > 1:
        raise DataError(
            f"{name} is learned by one of {' and '.join(weights)}, and not by another",
            where=where,
            cure="keep one of them",
        )
    (weight,) = set(weights.values())
    if message["role"] == "assistant":
        message["weight"] = weight
    elif weight:
        raise DataError(
            f"{name} ({message['role']}) is to be learned, and only the assistant's are",
            where=where,
            cure=f"leave {' and '.join(weights)} out there, or write 0",
        )


def _weight(value: Any, key: str, name: str, where: str) -> int:
    if isinstance(value, str) and key != "weight":
        value = {"true": 1, "false": 0}.get(value.strip().lower(), value)
    if not isinstance(value, (bool, int, float)) or value not in (0, 1):
        article = "an" if key[0] in "aeiou" else "a"
        raise DataError(
            f"{name} has {article} {key} that is not 0 or 1",
            where=where,
            cure="1 is learned, 0 is not",
        )
    return int(value)


def _written_role(value: dict[str, Any]) -> Any:
    """The role of a message as it is written; LangChain writes it as the type."""
    role = _first(value, "role", "from")
    if role is None and isinstance(type_ := value.get("type"), str):
        return type_ if type_.strip().lower() in ROLES else None
    return role


def _role(value: Any, name: str, where: str) -> str:
    """The role of a message by our name, or "call" for one that is a tool call itself."""
    if not isinstance(value, dict):
        raise DataError(
            f"{name} is {kind(value)}, not an object", where=where, cure="give role and content"
        )
    given = _written_role(value)
    if given is None:
        raise DataError(
            f"{name} has no role", where=where, cure="one of system, user, assistant, tool"
        )
    given = text(given, f"the role of {name}", where)
    role = ROLES.get(given.strip().lower())
    if role is None:
        raise DataError(
            f"{name} has the unknown role {given[:40]!r}",
            where=where,
            cure=nearest(given[:40], ROLES),
        )
    return role


def _first(value: dict[str, Any], *names: str) -> Any:
    """The first of several fields that is there; a table with one type a column fills those of
    other rows with nulls.
    """
    return next((value[name] for name in names if value.get(name) is not None), None)


def checked(value: Any, name: str, where: str) -> Any:
    """A value that a template may print as JSON.

    Raises:
        DataError: it holds text that UTF-8 cannot write, what JSON has no word for, or brackets too
            deep for any template.
    """
    level, depth = [value], 0
    while level:
        inside: list[Any] = []
        for held in level:
            if isinstance(held, str):
                text(held, name, where)
            elif isinstance(held, dict):
                inside += (*held, *held.values())
            elif isinstance(held, (list, tuple)):
                inside += held
            elif not _is_json(held):
                raise DataError(
                    f"{name} holds {kind(held)}, which JSON cannot write",
                    where=where,
                    cure="write it as text",
                )
        level, depth = inside, depth + 1
        if depth > DEEPEST:
            raise DataError(
                f"{name} is nested more than {DEEPEST} deep",
                where=where,
                cure="correct or remove the row",
            )
    return value


def _is_json(value: Any) -> bool:
    """Whether JSON has a word for a number, a truth value or nothing."""
    finite = value not in (inf, -inf) and value == value
    return isinstance(value, (bool, int, float, NoneType)) and finite


def _content(value: Any, name: str, where: str) -> str | None:
    """Content as text: OpenAI also allows a list of parts, of which ours must all be text."""
    if value is None:
        return None
    if isinstance(value, list):
        for part in value:
            named = part.get("type") if isinstance(part, dict) else kind(part)
            if (
                not isinstance(part, dict)
                or named not in (None, "text", "input_text", "output_text")
                or not isinstance(part.get("text"), str)
            ):
                named = named if isinstance(named, str) else kind(named)
                raise DataError(
                    f"{name} has a part of type {named[:40]!r}",
                    where=where,
                    cure='only text can be trained: {"type": "text", "text": "…"}',
                )
        value = "".join(part["text"] for part in value)
    return text(value, name, where)


def empty(message: Message) -> bool:
    """Whether a message says nothing."""
    texts = (message.get(key) for key in ("content", *REASONING))
    has_text = any(isinstance(text, str) and text.strip() for text in texts)
    return not message.get("tool_calls") and not has_text


def _calls(value: Any, name: str, where: str) -> list[dict[str, Any]]:
    """Tool calls as {type: function, function: {name, arguments: object}}, however they were
    nested.
    """
    out = []
    for call in value if isinstance(value, list) else [value]:
        function = (_first(call, "function") or call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise DataError(
                f"the tool call of {name} has no function name",
                where=where,
                cure='write {"name": "…", "arguments": {…}}',
            )
        given = _first(function, "arguments", "parameters")
        arguments = decoded(
            {} if given in (None, "") else given, f"the arguments of a tool call of {name}", where
        )
        if not isinstance(arguments, dict):
            raise DataError(
                f"the arguments of a tool call of {name} are {kind(arguments)}, not an object",
                where=where,
                cure="write them as an object, or as its JSON text",
            )
        # a null in JSON text was meant; elsewhere it may be what a table puts where other rows'
        # calls have an argument
        arguments = arguments if isinstance(given, str) else without_null(arguments)
        extra = {
            k: v
            for k, v in call.items()
            if k not in ("type", "function", "name", "arguments", "parameters") and v is not None
        }
        made = {
            "type": "function",
            "function": {"name": function["name"], "arguments": arguments},
            **extra,
        }
        out.append(checked(made, f"the tool call of {name}", where))
    if not out:
        raise DataError(
            f"{name} has an empty list of tool calls",
            where=where,
            cure="remove it, or name the function",
        )
    return out


def without_null(value: Any) -> Any:
    """An object without the fields that are null, at any depth; a null in a list has a place, and
    stays.
    """
    if isinstance(value, dict):
        return {k: without_null(v) for k, v in value.items() if v is not None}
    return [without_null(v) for v in value] if isinstance(value, list) else value


def decoded(value: Any, name: str, where: str) -> Any:
    """JSON that a file holds as text, as OpenAI writes arguments and many tables write lists."""
    if not isinstance(value, str):
        return value
    try:
        return JSON.decode(value)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{name} is text, and not JSON: {error}", where=where, cure="write it as JSON"
        ) from None


def trained(message: Message) -> bool:
    """Whether a message is learned."""
    return message["role"] == "assistant" and bool(message.get("weight", 1))


# --------------------------------------------------------------------------------------------- text


def as_text(part: Text) -> str:
    """A prompt or an answer as one text, messages on lines of their own."""
    return "\n".join(texts(part))


def texts(part: Text) -> list[str]:
    """The texts of a prompt or an answer, one a message."""
    return [part] if isinstance(part, str) else [_message_text(message) for message in part]


def _message_text(message: Message) -> str:
    """The content of a message, then its tool calls as JSON."""
    text, calls = message["content"], message.get("tool_calls")
    if calls:
        text += json.dumps(calls, ensure_ascii=False, default=str)
    return text


def answer_text(part: Text | None) -> str:
    """What the assistant says in an answer; nothing where there is none."""
    if part is None or isinstance(part, str):
        return part or ""
    return as_text(tuple(message for message in part if message["role"] == "assistant"))


def answer_length(part: Text | None) -> int:
    """How long an answer is: the characters of what the assistant says in it.

    The one measure behind “longest”, “shortest”, the longer and the shorter side, wherever they are
    named. Characters, not tokens: data, judges and models with different tokenizers then mean the
    same.
    """
    return len(answer_text(part))
