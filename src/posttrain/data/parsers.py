"""Parsers: a row in one of the formats of `posttrain.data.formats` as an `Example`.

A row has our column names here, and only the columns that its format reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import inf, isfinite
from types import NoneType
from typing import Any

from posttrain.core.errors import DataError
from posttrain.data import transcripts
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


def _messages_row(row: Row) -> Example:
    turns = _with_system(row, messages(row.fields["messages"], "messages", row.where))
    return _labelled(row, turns)


def _sharegpt(row: Row) -> Example:
    turns = messages(row.fields["conversations"], "conversations", row.where)
    return _labelled(row, _with_system(row, turns))


def _labelled(row: Row, turns: tuple[Message, ...]) -> Example:
    """A conversation, whose last answer may be labelled good or bad."""
    label = _good(row.fields.get("label"))
    if label is None:
        return _example(row, (), turns)
    return replace(_example(row, turns[:-1], turns[-1:]), label=label)


def _system(row: Row) -> tuple[Message, ...]:
    """The system prompt of a column of its own, as a message; empty if there is none."""
    if _given(row, "system") is None:
        return ()
    return ({"role": "system", "content": row.text("system")},)


def _with_system(row: Row, turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """A conversation that begins with the system prompt of a column of its own."""
    system = _system(row)
    if system and turns and turns[0]["role"] in ("system", "developer"):
        if turns[0]["content"].strip() == system[0]["content"].strip():
            return turns
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
    prompt = (*_system(row), *_history(row), *_user(_instruction(row)))
    example = _example(row, prompt, _assistant(row.text("output")))
    return replace(example, label=_good(row.fields.get("label")))


def _instruction(row: Row) -> str:
    """An instruction with its input, or context, on the next line."""
    instruction = row.text("instruction")
    if _given(row, "input") is not None:
        instruction += "\n" + row.text("input")
    return instruction


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
    columns = ["chosen", "rejected"]
    if _given(row, "reference") is not None:
        columns.append("reference")
    answers = [_text_or_messages(row, column) for column in columns]
    prompt = _prompt_of_pair(row)
    if len({isinstance(answer, str) for answer in answers}) > 1:
        raise DataError(
            "of chosen and rejected one is text and one is messages",
            where=row.where,
            cure="write both the same way",
        )
    if isinstance(prompt, str) and all(isinstance(answer, str) for answer in answers):
        prompt, answers = _split_transcripts(row, prompt, [str(answer) for answer in answers])
        if not _system(row):
            return replace(_example(row, prompt, *answers), margin=_margin(row))
    if isinstance(prompt, str):
        prompt = _user(prompt) if prompt else ()
    as_messages = [_assistant(a) if isinstance(a, str) else a for a in answers]
    prompt, as_messages = _split_conversations(row, prompt, as_messages)
    return replace(_example(row, _with_system(row, prompt), *as_messages), margin=_margin(row))


def _prompt_of_pair(row: Row) -> Text:
    """The prompt in a column, or in an instruction and what belongs to it; empty without either."""
    if row.fields.get("prompt") is not None:
        return _text_or_messages(row, "prompt")
    if row.fields.get("instruction") is None:
        return ""
    history, instruction = _history(row), _instruction(row)
    return (*history, *_user(instruction)) if history else instruction


def _split_transcripts(row: Row, prompt: str, answers: list[str]) -> tuple[str, list[Text]]:
    """The prompt and the answers of texts in which the prompt may stand before both answers, with a
    mark before every turn; others as they are.

    Raises:
        DataError: what follows the prompt has turns of the user, who would be trained, too.
    """
    shared = transcripts.shared_prompt(*answers[:2])
    if not shared and not prompt.strip() and all(map(transcripts.marks, answers[:2])):
        raise DataError(
            "chosen and rejected are whole conversations that do not begin with the same question",
            where=row.where,
            cure="give the turns as messages, or remove the row",
        )
    if not shared or prompt.strip() not in shared:
        return prompt, [*answers]
    rest = [answer.removeprefix(shared) for answer in answers]
    for name, answer in zip(("chosen", "rejected"), rest, strict=False):
        if mark := transcripts.asks_again(shared, answer):
            raise DataError(
                f"{name} goes on with {mark!r} after what both share, so that the user's turns "
                "would be trained, too",
                where=row.where,
                cure="give the turns as messages, or remove the row",
            )
    return shared, [*rest]


def _split_conversations(
    row: Row, prompt: tuple[Message, ...], answers: list[tuple[Message, ...]]
) -> tuple[tuple[Message, ...], list[tuple[Message, ...]]]:
    """The prompt and the answers of conversations in which the prompt may stand, too.

    Raises:
        DataError: they begin with another question than the prompt.
    """
    if not prompt or all(_begins_with(answer, prompt) for answer in answers[:2]):
        return _split_shared(*answers)
    whole = all(answer[0]["role"] != "assistant" for answer in answers[:2])
    if not whole:  # the prompt may be a whole conversation that ends with the chosen answer
        return prompt[:-1] if _alike(prompt[-1], answers[0][-1]) else prompt, answers
    shared, rest = _split_shared(*answers)
    if shared and _says(prompt, shared):
        return shared, rest
    if prompt[-1]["role"] == "assistant":
        return prompt, answers
    raise DataError(
        "chosen and rejected are whole conversations that begin otherwise than the prompt",
        where=row.where,
        cure="leave one of them out: FILE,ignore=COLUMN does that with the column of the prompt",
    )


def _says(prompt: tuple[Message, ...], shared: tuple[Message, ...]) -> bool:
    """Whether a prompt says what conversations share: as messages, or as one text."""
    if all(any(_alike(message, other) for other in prompt) for message in shared):
        return True
    given, inside = (" ".join(_joined(part).split()) for part in (prompt, shared))
    each = all(" ".join(message["content"].split()) in given for message in shared)
    return given in inside or (len(prompt) == 1 and each)


def _joined(part: tuple[Message, ...]) -> str:
    return " ".join(message["content"] for message in part)


def _begins_with(answer: tuple[Message, ...], prompt: tuple[Message, ...]) -> bool:
    """Whether an answer is a whole conversation that repeats the prompt."""
    repeated = (any(_alike(message, other) for other in answer) for message in prompt)
    return answer[0]["role"] != "assistant" and all(repeated)


def _alike(message: Message, other: Message) -> bool:
    """Whether two messages say the same, but for white space around it."""
    if message["role"] != other["role"]:
        return False
    return message == other or message["content"].strip() == other["content"].strip() != ""


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


# tables without a boolean type write it as text; others have thumbs
_GOOD = ("true", "1", "up", "thumbs_up", "thumbs up", "good", "desirable", "👍")
_BAD = ("false", "0", "down", "thumbs_down", "thumbs down", "bad", "undesirable", "👎")


def _good(label: Any) -> bool | None:
    """Whether a label says good, or bad; None where it says neither."""
    if isinstance(label, str):
        word = label.strip().lower()
        return True if word in _GOOD else False if word in _BAD else None
    if isinstance(label, (bool, int, float)) and label in (0, 1):
        return bool(label)
    return None


def _label(row: Row) -> Example:
    label = _good(row.fields["label"])
    if label is None:
        raise DataError(
            f"the label is {kind(row.fields['label'])}, not true or false",
            where=row.where,
            cure=(
                "write true for a good answer; if the column means something else, give --format "
                "prompt-completion"
            ),
        )
    return replace(_prompt_completion(row), label=label)


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
    prompt = _text_or_messages(row, "prompt")
    if _system(row):
        prompt = _with_system(row, _user(prompt) if isinstance(prompt, str) else prompt)
    return _example(row, prompt)


# name → (the columns it needs, its parser)
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
