"""Formats: the shapes in which rows come, and the one shape, `Example`, in which they go on.

    messages            messages: [{role, content, …}], tools, chat_template_kwargs: the chat
                        format of OpenAI and TRL; with a label, the last answer is labelled
    sharegpt            conversations: [{from, value}], system, tools
    alpaca              instruction, input, output, system, history
    preference          prompt, chosen, rejected: text or messages; both answers may begin with the
                        prompt; margin, a number; reference, a third answer, to imitate
    label               prompt, completion, label (true or false): a good or a bad answer
    steps               prompt, completions: [text, …], labels: [true or false, …]: an answer in
                        steps, each right or wrong
    prompt-completion   prompt, completion: text or messages
    text                text
    prompt              prompt alone: text or messages

The first row of a source decides its format; a later row of another shape is an error that names
both lines. Left out: messages with images or audio.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import inf, isfinite
from types import NoneType
from typing import Any

from posttrain.core.errors import DataError, nearest
from posttrain.data.messages import (
    Message,
    Text,
    checked,
    decoded,
    empty,
    messages,
    trained,
    without_null,
)
from posttrain.data.rows import Row, kind, text


@dataclass(frozen=True, slots=True)
class Example:
    """One row in our terms: a prompt, and the answers to learn from or to compare.

    Attributes:
        where: where the row stands.
        prompt: text or messages; empty where there is none.
        answers: none (a prompt alone), one (a demonstration), two (chosen, rejected) or three
            (chosen, rejected, one to imitate). In an answer of messages, the assistant's are
            trained.
        label: whether the one answer is good; None if the row does not say.
        tools: JSON schemas of the tools that may be called.
        kwargs: arguments of the row for the chat template.
        margin: by how much the chosen answer is better; None if the row does not say.
        steps: the steps of the one answer, each with how right it is, 0 … 1; empty if it has none.
    """

    where: str
    prompt: Text
    answers: tuple[Text, ...] = ()
    label: bool | None = None
    tools: tuple[dict[str, Any], ...] | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    margin: float | None = None
    steps: tuple[tuple[str, float], ...] = ()


class Format:
    """Reads the rows of one source, all in one format.

    Args:
        name: of the format; empty: the first row decides.
    """

    def __init__(self, name: str = "") -> None:
        self.name, self._given = name, bool(name)
        self.first: Row | None = None  # the first usable row

    def read(self, row: Row) -> Example:
        """The row as an example.

        Raises:
            DataError: it has another shape than the rows before it, or a value that does not fit.
        """
        name = self.name or detect(row)
        columns, parse = FORMATS[name]
        self._check_shape(row, name, columns)
        try:
            example = parse(row)
        except RecursionError:
            raise DataError(
                "its values are nested too deep", where=row.where, cure="correct or remove the row"
            ) from None
        # only now: a row that cannot be used decides nothing
        self.name, self.first = name, self.first or row
        return example

    def _check_shape(self, row: Row, name: str, columns: tuple[str, ...]) -> None:
        missing = [column for column in columns if row.fields.get(column) is None]
        if self.first is None:
            if missing:
                raise DataError(
                    f"format {name} needs the column {missing[0]!r}; "
                    f"{nearest(missing[0], row.fields)}",
                    where=row.where,
                    cure=_CURE,
                )
            return
        if not missing and (self._given or detect(row) == name):
            return
        try:
            shape = f"this row is {detect(row)}"
        except DataError:
            shape = f"this row has no {' and '.join(map(repr, missing))}"
        raise DataError(
            f"{shape}; the source began as {name} ({self.first.where})",
            where=row.where,
            cure="give the two kinds as two --data sources, each in its own file",
        )


_CURE = (
    "say which of the file's columns are meant, for example "
    "FILE,prompt=question,completion=answer; or the format, with --format"
)


def detect(row: Row) -> str:
    """The format of a row: the first of `FORMATS` whose columns are all there.

    Raises:
        DataError: there is none.
    """
    present = {column for column, value in row.fields.items() if value is not None}
    for name, (needs, _) in FORMATS.items():
        if present.issuperset(needs):
            return name
    columns = ", ".join(map(str, list(row.fields)[:20])) or "none"
    raise DataError(f"no known format has these columns: {columns}", where=row.where, cure=_CURE)


# ------------------------------------------------------------------------------------------ parsing


def _messages_row(row: Row) -> Example:
    turns = _with_system(row, messages(row.fields["messages"], "messages", row.where))
    label = row.fields.get("label")
    if isinstance(label, bool):
        return replace(_example(row, turns[:-1], turns[-1:]), label=label)
    return _example(row, (), turns)


def _sharegpt(row: Row) -> Example:
    turns = messages(row.fields["conversations"], "conversations", row.where)
    return _example(row, (), _with_system(row, turns))


def _system(row: Row) -> tuple[Message, ...]:
    """The system prompt of a column of its own, as a message; empty if there is none."""
    if _given(row, "system") is None:
        return ()
    return ({"role": "system", "content": row.text("system")},)


def _with_system(row: Row, turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """A conversation that begins with the system prompt of a column of its own."""
    system = _system(row)
    if system and turns[0]["role"] in ("system", "developer"):
        raise DataError(
            "there is a system prompt in its own column and in the messages",
            where=row.where,
            cure="keep one of them",
        )
    return (*system, *turns)


def _user(content: str) -> tuple[Message, ...]:
    return ({"role": "user", "content": content},)


def _assistant(content: str) -> tuple[Message, ...]:
    return ({"role": "assistant", "content": content},)


def _given(row: Row, column: str) -> Any:
    """An optional value. Tables without nulls have empty text there, which counts as absent."""
    value = row.fields.get(column)
    return None if value == "" else value


def _alpaca(row: Row) -> Example:
    question = row.text("instruction")
    if _given(row, "input") is not None:
        question += "\n" + row.text("input")
    prompt = (*_system(row), *_history(row), *_user(question))
    return _example(row, prompt, _assistant(row.text("output")))


def _history(row: Row) -> list[Message]:
    """The column `history`, a list of [question, answer], as messages."""
    history = decoded(_given(row, "history"), "history", row.where)
    if history is None:
        return []
    turns: list[Message] = []
    for pair in history if isinstance(history, (list, tuple)) else [history]:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise DataError(
                "history is not a list of [question, answer]",
                where=row.where,
                cure="correct or remove the row",
            )
        question, answer = (text(part, "history", row.where) for part in pair)
        turns += [*_user(question), *_assistant(answer)]
    return turns


def _preference(row: Row) -> Example:
    prompt = _text_or_messages(row, "prompt") if row.fields.get("prompt") is not None else ""
    columns = ["chosen", "rejected"]
    if _given(row, "reference") is not None:
        columns.append("reference")
    answers = [_text_or_messages(row, column) for column in columns]
    if len({isinstance(answer, str) for answer in answers}) > 1:
        raise DataError(
            "of chosen and rejected one is text and one is messages",
            where=row.where,
            cure="write both the same way",
        )
    if isinstance(prompt, str) and all(isinstance(answer, str) for answer in answers):
        return replace(_example(row, prompt, *answers), margin=_margin(row))
    if isinstance(prompt, str):
        prompt = _user(prompt) if prompt else ()
    as_messages = [_assistant(a) if isinstance(a, str) else a for a in answers]
    if not prompt or all(_begins_with(answer, prompt) for answer in as_messages[:2]):
        prompt, as_messages = _split_shared(*as_messages)
    return replace(_example(row, prompt, *as_messages), margin=_margin(row))


def _begins_with(answer: tuple[Message, ...], prompt: tuple[Message, ...]) -> bool:
    """Whether an answer is a whole conversation that repeats the prompt."""
    return answer[0]["role"] != "assistant" and all(message in answer for message in prompt)


def _split_shared(
    chosen: tuple[Message, ...], rejected: tuple[Message, ...], *reference: tuple[Message, ...]
) -> tuple[tuple[Message, ...], list[tuple[Message, ...]]]:
    """Answers that are whole conversations, as the prompt that they share and what follows it.

    Each answer keeps at least one message.
    """
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    prompt = chosen[:shared]
    answers = [chosen[shared:], rejected[shared:]]
    for answer in reference:
        answers.append(answer[shared:] if answer[:shared] == prompt else answer)
    return prompt, answers


def _margin(row: Row) -> float | None:
    value = _given(row, "margin")
    if value is None:
        return None
    try:
        margin = inf if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        margin = inf
    if not isfinite(margin):
        what = kind(value)
        raise DataError(
            "the margin is too large"
            if what == "a number"
            else f"the margin is {what}, not a number",
            where=row.where,
            cure="write by how much the chosen answer is better, or leave it out",
        )
    return margin


_LABEL_TEXTS = {"true": True, "false": False, "1": True, "0": False}


def _label(row: Row) -> Example:
    label = row.fields["label"]
    if isinstance(label, str):  # tables without a boolean type write it as text
        label = _LABEL_TEXTS.get(label.lower(), label)
    if isinstance(label, (str, list, dict)) or label not in (0, 1):
        raise DataError(
            f"the label is {kind(label)}, not true or false",
            where=row.where,
            cure=(
                "write true for a good answer; if the column means something else, give --format "
                "prompt-completion"
            ),
        )
    return replace(_prompt_completion(row), label=bool(label))


def _steps(row: Row) -> Example:
    texts = _list(row, "completions")
    labels = _list(row, "labels")
    if len(texts) != len(labels) or not texts:
        raise DataError(
            f"{len(texts)} steps and {len(labels)} labels",
            where=row.where,
            cure="give one label for every step",
        )
    steps = []
    for i, (step, label) in enumerate(zip(texts, labels, strict=True), 1):
        if not text(step, f"step {i}", row.where).strip():
            raise DataError(
                f"step {i} is empty", where=row.where, cure="fill it in, or remove it and its label"
            )
        if not isinstance(label, (bool, int, float)) or not 0 <= label <= 1:
            raise DataError(
                f"the label of step {i} is {kind(label)}, not true or false",
                where=row.where,
                cure="write true for a step that is right; or a share from 0 to 1",
            )
        steps.append((step, float(label)))
    prompt = _text_or_messages(row, "prompt")
    answer = "\n".join(step for step, _ in steps)
    example = _example(row, prompt, answer if isinstance(prompt, str) else _assistant(answer))
    return replace(example, steps=tuple(steps))


def _list(row: Row, column: str) -> list[Any] | tuple[Any, ...]:
    value = decoded(row.fields[column], column, row.where)
    if not isinstance(value, (list, tuple)):
        raise DataError(
            f"{column} holds {kind(value)}, not a list",
            where=row.where,
            cure="give one for every step",
        )
    return value


def _prompt_completion(row: Row) -> Example:
    prompt, completion = _text_or_messages(row, "prompt"), _text_or_messages(row, "completion")
    has_system = bool(_system(row))
    both_text = isinstance(prompt, str) and isinstance(completion, str)
    if both_text and not has_system:
        return _example(row, prompt, completion)
    if isinstance(prompt, str):
        prompt = _user(prompt)
    if isinstance(completion, str):
        completion = _assistant(completion)
    return _example(row, _with_system(row, prompt) if has_system else prompt, completion)


def _text_row(row: Row) -> Example:
    return _example(row, "", row.text("text"))


def _prompt(row: Row) -> Example:
    return _example(row, _text_or_messages(row, "prompt"))


# name → (the columns it needs, its parser); `detect` takes the first that fits
FORMATS: Mapping[str, tuple[tuple[str, ...], Callable[[Row], Example]]] = {
    "preference": (("chosen", "rejected"), _preference),
    "label": (("prompt", "completion", "label"), _label),
    "steps": (("prompt", "completions", "labels"), _steps),
    "prompt-completion": (("prompt", "completion"), _prompt_completion),
    "messages": (("messages",), _messages_row),
    "sharegpt": (("conversations",), _sharegpt),
    "alpaca": (("instruction", "output"), _alpaca),
    "text": (("text",), _text_row),
    "prompt": (("prompt",), _prompt),
}


def _example(row: Row, prompt: Text, *answers: Text) -> Example:
    """The example of a row, once its answers are known to have something to learn."""
    for answer in answers:
        if isinstance(answer, tuple) and not any(trained(message) for message in answer):
            raise DataError(
                "the conversation has no assistant turn to learn from",
                where=row.where,
                cure="add one, or remove the row; a turn with weight 0 is not learned",
            )
        if _empty(answer):
            raise DataError(
                "the text to learn is empty", where=row.where, cure="fill it in, or remove the row"
            )
    kwargs = decoded(_given(row, "chat_template_kwargs"), "chat_template_kwargs", row.where)
    if not isinstance(kwargs, (dict, NoneType)):
        raise DataError(
            f"chat_template_kwargs holds {kind(kwargs)}, not an object",
            where=row.where,
            cure="write an object",
        )
    kwargs = checked(kwargs or {}, "chat_template_kwargs", row.where)
    return Example(row.where, prompt, answers, tools=_tools(row), kwargs=kwargs)


def _empty(answer: Text) -> bool:
    if isinstance(answer, str):
        return not answer.strip()
    return any(trained(message) and empty(message) for message in answer)


def _tools(row: Row) -> tuple[dict[str, Any], ...] | None:
    tools = checked(decoded(_given(row, "tools"), "tools", row.where), "tools", row.where)
    if tools is None or tools == []:
        return None
    tools = [tools] if isinstance(tools, dict) else tools
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise DataError(
            "tools is not a list of objects",
            where=row.where,
            cure="give each tool as a JSON schema",
        )
    schemas = []
    for tool in map(without_null, tools):
        # a bare schema, without {"type": "function", "function": …} around it, is common
        schemas.append(tool if "function" in tool else {"type": "function", "function": tool})
    return tuple(schemas)


def _text_or_messages(row: Row, column: str) -> Text:
    value = row.fields.get(column)
    if isinstance(value, (list, dict)):
        return messages([value] if isinstance(value, dict) else value, column, row.where)
    return row.text(column)
