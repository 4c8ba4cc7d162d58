"""Formats: the shapes in which rows come, and the one shape in which they go on.

    messages            messages: [{role, content, …}], tools, chat_template_kwargs        OpenAI
                        chat, TRL
    sharegpt            conversations: [{from, value}], system, tools
    alpaca              instruction, input, output, system, history
    preference          prompt, chosen, rejected: text or messages; the prompt may be inside both
                        answers; margin, a number; reference, an answer to imitate beside them
    label               prompt, completion, label (true or false): an answer that is good or bad;
                        messages may have one, too
    steps               prompt, completions: [text, …], labels: [true or false, …]: an answer in
                        steps that are right or wrong
    prompt-completion   prompt, completion: text or messages
    text                text
    prompt              prompt alone: text or messages

The first row of a source decides which one it is; a row of another shape is an error that names
both lines.
Left out: messages with images or audio.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import inf
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
    """One row in our terms: what is given, and the answers to learn from or to compare.

    Attributes:
        where: the row it was.
        prompt: what is given; empty where there is nothing.
        answers: none (a prompt alone), one (a demonstration), two (chosen, rejected) or three (and
            one to imitate). Of an answer that is messages the assistant's are trained.
        label: whether the one answer is good; None where that is not said.
        tools: JSON schemas of the tools that may be called.
        kwargs: what the row hands to the chat template.
        margin: by how much the chosen answer is better; None where that is not said.
        steps: of the one answer, each with how right it is, 0 … 1; none where it has no steps.
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
            raise DataError(
                f"format {name} needs the column {missing[0]!r}; {nearest(missing[0], row.fields)}",
                where=row.where,
                cure=_CURE,
            )
        if self.first is not None and (missing or (not self.told and detect(row) != name)):
            try:
                found = f"this row is {detect(row)}"
            except DataError:
                found = f"this row has no {' and '.join(map(repr, missing))}"
            raise DataError(
                f"{found}; the source began as {name} ({self.first.where})",
                where=row.where,
                cure="give the two kinds as two --data sources, each in its own file",
            )
        try:
            example = parse(row)
        except RecursionError:
            raise DataError(
                "its values are nested too deep", where=row.where, cure="correct or remove the row"
            ) from None
        self.name, self.first = name, self.first or row  # a row that cannot be used decides nothing
        return example


_CURE = (
    "say which of the file's columns are meant, for example --data"
    " FILE,prompt=question,completion=answer; or the format, with --format"
)


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


# ------------------------------------------------------------------------------------------ parsing


def _messages_row(row: Row) -> Example:
    turns = _with_system(row, messages(row.fields["messages"], "messages", row.where))
    if isinstance(row.fields.get("label"), bool):  # what is labelled is the last answer
        return replace(_example(row, turns[:-1], turns[-1:]), label=row.fields["label"])
    return _example(row, (), turns)


def _sharegpt(row: Row) -> Example:
    turns = messages(row.fields["conversations"], "conversations", row.where)
    return _example(row, (), _with_system(row, turns))


def _system(row: Row) -> tuple[Message, ...]:
    return (
        ({"role": "system", "content": row.text("system")},)
        if _given(row, "system") is not None
        else ()
    )


def _with_system(row: Row, turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """A conversation with the system prompt of a column of its own."""
    system = _system(row)
    if system and turns[0]["role"] in ("system", "developer"):
        raise DataError(
            "there is a system prompt in its own column and in the messages",
            where=row.where,
            cure="keep one of them",
        )
    return (*system, *turns)


def _given(row: Row, column: str) -> Any:
    """A value that may be absent; a table without nulls has empty text there."""
    value = row.fields.get(column)
    return None if value == "" else value


def _alpaca(row: Row) -> Example:
    before: list[Message] = [*_system(row)]
    history = decoded(_given(row, "history"), "history", row.where)
    for pair in (
        history if isinstance(history, (list, tuple)) else [] if history is None else [history]
    ):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise DataError(
                "history is not a list of [question, answer]",
                where=row.where,
                cure="correct or remove the row",
            )
        before += [
            {"role": "user", "content": text(pair[0], "history", row.where)},
            {"role": "assistant", "content": text(pair[1], "history", row.where)},
        ]
    question = row.text("instruction")
    if _given(row, "input") is not None:
        question += "\n" + row.text("input")
    return _example(
        row,
        (*before, {"role": "user", "content": question}),
        ({"role": "assistant", "content": row.text("output")},),
    )


def _preference(row: Row) -> Example:
    prompt = _text_or_messages(row, "prompt") if row.fields.get("prompt") is not None else ""
    chosen, rejected = _text_or_messages(row, "chosen"), _text_or_messages(row, "rejected")
    gold = (_text_or_messages(row, "reference"),) if _given(row, "reference") is not None else ()
    if len({isinstance(answer, str) for answer in (chosen, rejected, *gold)}) > 1:
        raise DataError(
            "of chosen and rejected one is text and one is messages",
            where=row.where,
            cure="write both the same way",
        )
    if isinstance(prompt, str) and not isinstance(chosen, str):
        prompt = ({"role": "user", "content": prompt},) if prompt else ()
    if not isinstance(prompt, str) and isinstance(chosen, str) and isinstance(rejected, str):
        chosen, rejected = (
            ({"role": "assistant", "content": chosen},),
            ({"role": "assistant", "content": rejected},),
        )
        gold = tuple(({"role": "assistant", "content": one},) for one in gold)
    if not isinstance(prompt, str):
        assert not isinstance(chosen, str) and not isinstance(rejected, str)
        if not prompt or all(
            a[0]["role"] != "assistant" and all(m in a for m in prompt) for a in (chosen, rejected)
        ):
            # both answers carry the whole conversation: what they share is the prompt
            shared = 0
            while (
                shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]
            ):
                shared += 1
            gold = tuple(one[shared:] if one[:shared] == chosen[:shared] else one for one in gold)
            prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    return replace(_example(row, prompt, chosen, rejected, *gold), margin=_margin(row))


def _margin(row: Row) -> float | None:
    value = _given(row, "margin")
    if value is None:
        return None
    try:
        found = float(value) if not isinstance(value, bool) else inf
    except (TypeError, ValueError):
        found = inf
    if not abs(found) < inf:
        raise DataError(
            f"the margin is {kind(value)}, not a number",
            where=row.where,
            cure="write by how much the chosen answer is better, or leave it out",
        )
    return found


def _label(row: Row) -> Example:
    label = row.fields["label"]
    # tables without a type for it write true and false as text or numbers
    label = (
        {"true": True, "false": False, "1": True, "0": False}.get(label.lower(), label)
        if isinstance(label, str)
        else label
    )
    if isinstance(label, (str, list, dict)) or label not in (0, 1):
        raise DataError(
            f"the label is {kind(label)}, not true or false",
            where=row.where,
            cure=(
                "write true for a good answer; if the column means something else, give --format"
                " prompt-completion"
            ),
        )
    return replace(_prompt_completion(row), label=bool(label))


def _steps(row: Row) -> Example:
    texts, labels = (
        decoded(row.fields[name], name, row.where) for name in ("completions", "labels")
    )
    for name, value in (("completions", texts), ("labels", labels)):
        if not isinstance(value, (list, tuple)):
            raise DataError(
                f"{name} holds {kind(value)}, not a list",
                where=row.where,
                cure="give one for every step",
            )
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
    prompt, answer = _text_or_messages(row, "prompt"), "\n".join(step for step, _ in steps)
    return replace(
        _example(
            row,
            prompt,
            answer if isinstance(prompt, str) else ({"role": "assistant", "content": answer},),
        ),
        steps=tuple(steps),
    )


def _prompt_completion(row: Row) -> Example:
    prompt, completion = _text_or_messages(row, "prompt"), _text_or_messages(row, "completion")
    if isinstance(prompt, str) and not isinstance(completion, str):
        prompt = ({"role": "user", "content": prompt},)
    elif isinstance(completion, str) and not isinstance(prompt, str):
        completion = ({"role": "assistant", "content": completion},)
    if _system(row):
        if isinstance(prompt, str) or isinstance(completion, str):
            prompt, completion = (
                ({"role": "user", "content": prompt},),
                ({"role": "assistant", "content": completion},),
            )
        prompt = _with_system(row, prompt)
    return _example(row, prompt, completion)


def _text_row(row: Row) -> Example:
    return _example(row, "", row.text("text"))


def _prompt(row: Row) -> Example:
    return _example(row, _text_or_messages(row, "prompt"))


FORMATS: Mapping[
    str, tuple[tuple[str, ...], Callable[[Row], Example]]
] = {  # name: (columns it needs, parser); first match
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
    for answer in answers:
        if isinstance(answer, tuple) and not any(trained(message) for message in answer):
            raise DataError(
                "the conversation has no assistant turn to learn from",
                where=row.where,
                cure="add one, or remove the row; a turn with weight 0 is not learned",
            )
        if (
            not answer.strip()
            if isinstance(answer, str)
            else any(trained(message) and empty(message) for message in answer)
        ):
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
    return Example(
        row.where,
        prompt,
        answers,
        None,
        _tools(row),
        checked(kwargs or {}, "chat_template_kwargs", row.where),
    )


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
    # the schema alone, without {"type": "function", "function": …} around it, is common and means
    # the same
    return tuple(
        tool if "function" in tool else {"type": "function", "function": tool}
        for tool in map(without_null, tools)
    )


def _text_or_messages(row: Row, column: str) -> Text:
    value = row.fields.get(column)
    if isinstance(value, (list, dict)):
        return messages([value] if isinstance(value, dict) else value, column, row.where)
    return row.text(column)
