"""Formats: the shapes in which rows come, and the one shape in which they go on.

    messages            messages: [{role, content, …}], tools, chat_template_kwargs        OpenAI chat, TRL
    sharegpt            conversations: [{from, value}], system, tools
    alpaca              instruction, input, output, system, history
    preference          prompt, chosen, rejected: text or messages; the prompt may be inside both answers
    label               prompt, completion, label (true or false): an answer that is good or bad; messages may have one, too
    prompt-completion   prompt, completion: text or messages
    text                text
    prompt              prompt alone: text or messages

The first row of a source decides which one it is; a row of another shape is an error that names both lines.
Left out: messages with images or audio.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from types import NoneType
from typing import Any

from posttrain.core.errors import DataError, nearest
from posttrain.data.rows import JSON, Row, kind, text

Message = dict[str, Any]  # role, content, and what else the chat template may read
Text = str | tuple[Message, ...]  # plain text, or part of a conversation

DEEPEST = 100  # brackets within brackets of what a template prints as JSON

ROLES = {"system": "system", "developer": "developer", "user": "user", "human": "user", "assistant": "assistant",
         "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant", "model": "assistant",
         "tool": "tool", "function": "tool", "tool_response": "tool", "function_response": "tool", "observation": "tool",
         "ipython": "tool", "tool_call": "call", "function_call": "call"}


@dataclass(frozen=True, slots=True)
class Example:
    """One row in our terms: what is given, and the answers to learn from or to compare.

    Attributes:
        where: the row it was.
        prompt: what is given; empty where there is nothing.
        answers: none (a prompt alone), one (a demonstration) or two (chosen, rejected). Of an answer that is messages the
            assistant's are trained.
        label: whether the one answer is good; None where that is not said.
        tools: JSON schemas of the tools that may be called.
        kwargs: what the row hands to the chat template.
    """

    where: str
    prompt: Text
    answers: tuple[Text, ...] = ()
    label: bool | None = None
    tools: tuple[dict[str, Any], ...] | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)


class Format:
    """The format of one source: told, or found from its first row."""

    def __init__(self, name: str = "") -> None:
        self.name, self.told = name, bool(name)
        self.first: Row | None = None

    def read(self, row: Row) -> Example:
        """The row in our terms.

        Raises:
            DataError: it has another shape than the rows before it, or a value that does not fit.
        """
        name = self.name or detect(row)
        needs, parse = FORMATS[name]
        missing = [column for column in needs if row.fields.get(column) is None]
        if missing and self.first is None:
            raise DataError(f"format {name} needs the column {missing[0]!r}; {nearest(missing[0], row.fields)}",
                            where=row.where, cure=_CURE)
        if self.first is not None and (missing or (not self.told and detect(row) != name)):
            try:
                found = f"this row is {detect(row)}"
            except DataError:
                found = f"this row has no {' and '.join(map(repr, missing))}"
            raise DataError(f"{found}; the source began as {name} ({self.first.where})", where=row.where,
                            cure="give the two kinds as two --data sources, each in its own file")
        try:
            example = parse(row)
        except RecursionError:
            raise DataError("its values are nested too deep", where=row.where, cure="correct or remove the row") from None
        self.name, self.first = name, self.first or row  # a row that cannot be used decides nothing
        return example


_CURE = ("say which of the file's columns are meant, for example --data FILE,prompt=question,completion=answer; or the format, "
         "with --format")


def detect(row: Row) -> str:
    """The format of a row, by its columns: the first of `FORMATS` that finds all of its own.

    Raises:
        DataError: none does.
    """
    present = {column for column, value in row.fields.items() if value is not None}
    for name, (needs, _) in FORMATS.items():
        if present.issuperset(needs):
            return name
    columns = ", ".join(map(str, list(row.fields)[:20])) or "none"
    raise DataError(f"no known format has these columns: {columns}", where=row.where, cure=_CURE)


# ---------------------------------------------------------------------------------------------- parsing

def _messages_row(row: Row) -> Example:
    turns = _with_system(row, messages(row.fields["messages"], "messages", row.where))
    if isinstance(row.fields.get("label"), bool):  # what is labelled is the last answer
        return replace(_example(row, turns[:-1], turns[-1:]), label=row.fields["label"])
    return _example(row, (), turns)


def _sharegpt(row: Row) -> Example:
    turns = messages(row.fields["conversations"], "conversations", row.where)
    return _example(row, (), _with_system(row, turns))


def _system(row: Row) -> tuple[Message, ...]:
    return ({"role": "system", "content": row.text("system")},) if _given(row, "system") is not None else ()


def _with_system(row: Row, turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """A conversation with the system prompt of a column of its own."""
    system = _system(row)
    if system and turns[0]["role"] in ("system", "developer"):
        raise DataError("there is a system prompt in its own column and in the messages", where=row.where,
                        cure="keep one of them")
    return (*system, *turns)


def _given(row: Row, column: str) -> Any:
    """A value that may be absent; a table without nulls has empty text there."""
    value = row.fields.get(column)
    return None if value == "" else value


def _alpaca(row: Row) -> Example:
    before: list[Message] = [*_system(row)]
    history = _decoded(_given(row, "history"), "history", row.where)
    for pair in history if isinstance(history, (list, tuple)) else [] if history is None else [history]:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise DataError("history is not a list of [question, answer]", where=row.where, cure="correct or remove the row")
        before += [{"role": "user", "content": text(pair[0], "history", row.where)},
                   {"role": "assistant", "content": text(pair[1], "history", row.where)}]
    question = row.text("instruction")
    if _given(row, "input") is not None:
        question += "\n" + row.text("input")
    return _example(row, (*before, {"role": "user", "content": question}),
                    ({"role": "assistant", "content": row.text("output")},))


def _preference(row: Row) -> Example:
    prompt = _text_or_messages(row, "prompt") if row.fields.get("prompt") is not None else ""
    chosen, rejected = _text_or_messages(row, "chosen"), _text_or_messages(row, "rejected")
    if isinstance(chosen, str) is not isinstance(rejected, str):
        raise DataError("of chosen and rejected one is text and one is messages", where=row.where, cure="write both the same way")
    if isinstance(prompt, str) and not isinstance(chosen, str):
        prompt = ({"role": "user", "content": prompt},) if prompt else ()
    if not isinstance(prompt, str) and isinstance(chosen, str) and isinstance(rejected, str):
        chosen, rejected = ({"role": "assistant", "content": chosen},), ({"role": "assistant", "content": rejected},)
    if not isinstance(prompt, str):
        assert not isinstance(chosen, str) and not isinstance(rejected, str)
        if not prompt or all(a[0]["role"] != "assistant" and all(m in a for m in prompt) for a in (chosen, rejected)):
            # both answers carry the whole conversation: what they share is the prompt
            shared = 0
            while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
                shared += 1
            prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    return _example(row, prompt, chosen, rejected)


def _label(row: Row) -> Example:
    label = row.fields["label"]
    # tables without a type for it write true and false as text or numbers
    label = {"true": True, "false": False, "1": True, "0": False}.get(label.lower(), label) if isinstance(label, str) else label
    if isinstance(label, (str, list, dict)) or label not in (0, 1):
        raise DataError(f"the label is {kind(label)}, not true or false", where=row.where,
                        cure="write true for a good answer; if the column means something else, give --format prompt-completion")
    return replace(_prompt_completion(row), label=bool(label))


def _prompt_completion(row: Row) -> Example:
    prompt, completion = _text_or_messages(row, "prompt"), _text_or_messages(row, "completion")
    if isinstance(prompt, str) and not isinstance(completion, str):
        prompt = ({"role": "user", "content": prompt},)
    elif isinstance(completion, str) and not isinstance(prompt, str):
        completion = ({"role": "assistant", "content": completion},)
    if _system(row):
        if isinstance(prompt, str) or isinstance(completion, str):
            prompt, completion = ({"role": "user", "content": prompt},), ({"role": "assistant", "content": completion},)
        prompt = _with_system(row, prompt)
    return _example(row, prompt, completion)


def _text_row(row: Row) -> Example:
    return _example(row, "", row.text("text"))


def _prompt(row: Row) -> Example:
    return _example(row, _text_or_messages(row, "prompt"))


FORMATS: Mapping[str, tuple[tuple[str, ...], Callable[[Row], Example]]] = {  # name: (columns it needs, parser); first match
    "preference": (("chosen", "rejected"), _preference),
    "label": (("prompt", "completion", "label"), _label),
    "prompt-completion": (("prompt", "completion"), _prompt_completion),
    "messages": (("messages",), _messages_row),
    "sharegpt": (("conversations",), _sharegpt),
    "alpaca": (("instruction", "output"), _alpaca),
    "text": (("text",), _text_row),
    "prompt": (("prompt",), _prompt),
}


def _example(row: Row, prompt: Text, *answers: Text) -> Example:
    for answer in answers:
        if isinstance(answer, tuple) and not any(_trained(message) for message in answer):
            raise DataError("the conversation has no assistant turn to learn from", where=row.where,
                            cure="add one, or remove the row; a turn with weight 0 is not learned")
        if not answer.strip() if isinstance(answer, str) else any(_trained(message) and _empty(message) for message in answer):
            raise DataError("the text to learn is empty", where=row.where, cure="fill it in, or remove the row")
    kwargs = _decoded(_given(row, "chat_template_kwargs"), "chat_template_kwargs", row.where)
    if not isinstance(kwargs, (dict, NoneType)):
        raise DataError(f"chat_template_kwargs holds {kind(kwargs)}, not an object", where=row.where, cure="write an object")
    return Example(row.where, prompt, answers, None, _tools(row), _checked(kwargs or {}, "chat_template_kwargs", row.where))


def _trained(message: Message) -> bool:
    return message["role"] == "assistant" and bool(message.get("weight", 1))


def _tools(row: Row) -> tuple[dict[str, Any], ...] | None:
    tools = _checked(_decoded(_given(row, "tools"), "tools", row.where), "tools", row.where)
    if tools is None or tools == []:
        return None
    tools = [tools] if isinstance(tools, dict) else tools
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise DataError("tools is not a list of objects", where=row.where, cure="give each tool as a JSON schema")
    # the schema alone, without {"type": "function", "function": …} around it, is common and means the same
    return tuple(tool if "function" in tool else {"type": "function", "function": tool} for tool in map(_without_null, tools))


def _text_or_messages(row: Row, column: str) -> Text:
    value = row.fields.get(column)
    if isinstance(value, (list, dict)):
        return messages([value] if isinstance(value, dict) else value, column, row.where)
    return row.text(column)


def messages(value: Any, name: str, where: str) -> tuple[Message, ...]:
    """A conversation with our role names, tool calls as the chat templates expect them, and nothing that is null.

    Args:
        value: a list of messages, or that list as JSON text.
        name: the column, for errors.
        where: the row, for errors.
    Raises:
        DataError: it is no list of messages, or one of them lacks a role or content, or has an unknown role.
    """
    value = _decoded(value, name, where)
    if not isinstance(value, (list, tuple)) or not value:
        raise DataError(f"{name} holds {'an empty list' if value == [] else kind(value)}, not a list of messages", where=where,
                        cure='write [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]')
    return tuple(_message(one, f"message {i + 1} of {name}", where) for i, one in enumerate(value))


_READ = ("role", "from", "content", "value", "tool_calls", "function_call")  # of a message; all else goes on as it is


def _message(value: Any, name: str, where: str) -> Message:
    if not isinstance(value, dict):
        raise DataError(f"{name} is {kind(value)}, not an object", where=where, cure="give role and content")
    given = _first(value, "role", "from")
    if given is None:
        raise DataError(f"{name} has no role", where=where, cure="one of system, user, assistant, tool")
    given = text(given, f"the role of {name}", where)
    role = ROLES.get(given.strip().lower())
    if role is None:
        raise DataError(f"{name} has the unknown role {given[:40]!r}", where=where, cure=nearest(given[:40], ROLES))
    content = _content(_first(value, "content", "value"), name, where)
    calls = _first(value, "tool_calls", "function_call")
    calls = _decoded(None if calls == "" else calls, f"the tool call of {name}", where)
    if role == "call":  # the call itself is the content, as JSON
        role, content, calls = "assistant", "", calls or _decoded(content, f"the tool call of {name}", where) or {}
    if content is None and calls in (None, []):
        raise DataError(f"{name} ({role}) has no content", where=where, cure="fill it in, or remove the message")
    out = {"role": role, "content": content or "", **{k: v for k, v in value.items() if v is not None and k not in _READ}}
    for key, held in out.items():
        if isinstance(held, str):
            text(held, f"{key} of {name}", where)
    if "weight" in out and out["weight"] not in (0, 1):
        raise DataError(f"{name} has a weight that is not 0 or 1", where=where, cure="1 is learned, 0 is not")
    if calls not in (None, []):
        out["tool_calls"] = _calls(calls, name, where)
    if _trained(out) and _empty(out):
        raise DataError(f"{name} (assistant) is empty", where=where, cure="fill it in, remove it, or give it weight 0")
    return out


def _first(value: dict[str, Any], *names: str) -> Any:
    """The first of several fields that is there; a table with one type a column fills those of other rows with nulls."""
    return next((value[name] for name in names if value.get(name) is not None), None)


def _checked(value: Any, name: str, where: str) -> Any:
    """A value that a template may print as JSON.

    Raises:
        DataError: it holds text that UTF-8 cannot write, what JSON has no word for, or brackets too deep for any template.
    """
    level, depth = [value], 0
    while level:
        inside: list[Any] = []
        for one in level:
            if isinstance(one, str):
                text(one, name, where)
            elif isinstance(one, dict):
                inside += (*one, *one.values())
            elif isinstance(one, (list, tuple)):
                inside += one
            elif not isinstance(one, (bool, int, float, NoneType)) or one in (inf, -inf) or one != one:
                raise DataError(f"{name} holds {kind(one)}, which JSON cannot write", where=where, cure="write it as text")
        level, depth = inside, depth + 1
        if depth > DEEPEST:
            raise DataError(f"{name} is nested more than {DEEPEST} deep", where=where, cure="correct or remove the row")
    return value


def _content(value: Any, name: str, where: str) -> str | None:
    """Content as text: OpenAI also allows a list of parts, of which ours must all be text."""
    if value is None:
        return None
    if isinstance(value, list):
        for part in value:
            named = part.get("type") if isinstance(part, dict) else kind(part)
            if not isinstance(part, dict) or named not in (None, "text", "input_text", "output_text") or not isinstance(
                    part.get("text"), str):
                named = named if isinstance(named, str) else kind(named)
                raise DataError(f"{name} has a part of type {named[:40]!r}", where=where,
                                cure='only text can be trained: {"type": "text", "text": "…"}')
        value = "".join(part["text"] for part in value)
    return text(value, name, where)


def _empty(message: Message) -> bool:
    said = (message.get(key) for key in ("content", "reasoning_content", "reasoning", "thinking"))
    return not message.get("tool_calls") and not any(isinstance(one, str) and one.strip() for one in said)


def _calls(value: Any, name: str, where: str) -> list[dict[str, Any]]:
    """Tool calls as {type: function, function: {name, arguments: object}}, however they were nested."""
    out = []
    for call in value if isinstance(value, list) else [value]:
        function = (_first(call, "function") or call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise DataError(f"the tool call of {name} has no function name", where=where,
                            cure='write {"name": "…", "arguments": {…}}')
        given = _first(function, "arguments", "parameters")
        arguments = _decoded({} if given in (None, "") else given, f"the arguments of a tool call of {name}", where)
        if not isinstance(arguments, dict):
            raise DataError(f"the arguments of a tool call of {name} are {kind(arguments)}, not an object", where=where,
                            cure="write them as an object, or as its JSON text")
        # a null in JSON text was meant; elsewhere it may be what a table puts where other rows' calls have an argument
        arguments = arguments if isinstance(given, str) else _without_null(arguments)
        extra = {k: v for k, v in call.items() if k not in ("type", "function", "name", "arguments", "parameters")
                 and v is not None}
        made = {"type": "function", "function": {"name": function["name"], "arguments": arguments}, **extra}
        out.append(_checked(made, f"the tool call of {name}", where))
    if not out:
        raise DataError(f"{name} has an empty list of tool calls", where=where, cure="remove it, or name the function")
    return out


def _without_null(value: Any) -> Any:
    """An object without the fields that are null, at any depth; a null in a list has a place, and stays."""
    if isinstance(value, dict):
        return {k: _without_null(v) for k, v in value.items() if v is not None}
    return [_without_null(v) for v in value] if isinstance(value, list) else value


def _decoded(value: Any, name: str, where: str) -> Any:
    """JSON that a file holds as text, as OpenAI writes arguments and many tables write lists."""
    if not isinstance(value, str):
        return value
    try:
        return JSON.decode(value)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} is text, and not JSON: {error}", where=where, cure="write it as JSON") from None
