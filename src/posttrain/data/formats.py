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

The names that other published data sets have for these columns are known; see
`posttrain.data.columns`. The first row of a source decides its format; a later row of another shape
is an error that names both lines, and so is a column with text that nothing reads. Left out:
messages with images or audio.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import inf, isfinite
from types import NoneType
from typing import Any

from posttrain.core.errors import DataError, nearest
from posttrain.data import transcripts
from posttrain.data.columns import Layout, Names, layout, layout_as, unread_text
from posttrain.data.messages import (
    ROLES,
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
        all_read: whether every column is read by someone, as a scorer reads those of a prompt. Then
            text beside what the format reads is no error.
    Attributes:
        first: the first usable row.
        columns: our column → the file's, of all that is read.
        unread: columns that nothing reads, in order; no text is among them.
        notes: what else the user should know of how the rows are read.
    """

    def __init__(self, name: str = "", *, all_read: bool = False) -> None:
        self.name, self._given, self._all_read = name, bool(name), all_read
        self.first: Row | None = None
        self.columns: dict[str, str] = {}
        self.unread: dict[str, None] = {}
        self.notes: dict[str, None] = {}
        self._prompted = False
        self._layouts: dict[tuple[tuple[str, bool], ...], Layout | None] = {}

    def read(self, row: Row) -> Example:
        """The row as an example.

        Raises:
            DataError: it has another shape than the rows before it, a value that does not fit, or
                text that nothing reads.
        """
        found = self._layout(row)
        try:
            example = FORMATS[found.format][1](Row(found.fields(row.fields), row.where))
        except RecursionError:
            raise DataError(
                "its values are nested too deep", where=row.where, cure="correct or remove the row"
            ) from None
        self._check_all_is_read(row, found, example)
        # only now: a row that cannot be used decides nothing
        self.name, self.first = found.format, self.first or row
        self.columns.update(found.columns)
        self._prompted = self._prompted or bool(example.prompt)
        self._observe(row, found, example)
        return example

    def _layout(self, row: Row) -> Layout:
        """How the row is read: like the first one."""
        key = tuple((name, value == "") for name, value in row.fields.items() if value is not None)
        if key not in self._layouts and len(self._layouts) < _MOST_LAYOUTS:
            self._layouts[key] = self._find_layout(row)
        found = self._layouts[key] if key in self._layouts else self._find_layout(row)
        if found is None and self.first is None:
            raise self._missing(row)
        if found is None or (self.name and found.format != self.name):
            raise self._another_shape(row, found or _detected(row))
        moved = [self.columns[ours] for ours in found.columns if ours in self.columns]
        if missing := [column for column in moved if column not in found.columns.values()]:
            raise self._another_shape(row, None, missing)
        return found

    def _find_layout(self, row: Row) -> Layout | None:
        return layout_as(self.name, row.fields) if self._given else _detected(row)

    def _missing(self, row: Row) -> DataError:
        """Why the first row cannot be read."""
        if not self._given:
            return _unknown(row)
        names = Names(row.fields)
        missing = next(column for column in FORMATS[self.name][0] if not names.first(column))
        return DataError(
            f"format {self.name} needs the column {missing!r}; {nearest(missing, row.fields)}",
            where=row.where,
            cure=_CURE,
        )

    def _another_shape(
        self, row: Row, found: Layout | None, missing: list[str] | None = None
    ) -> DataError:
        """Why a later row cannot be read like the first."""
        assert self.first is not None
        needed = [self.columns[column] for column in FORMATS[self.name][0]]
        missing = missing or [column for column in needed if row.fields.get(column) is None]
        shape = f"this row has no {' and '.join(map(repr, missing))}"
        if found is not None:
            shape = f"this row is {found.format}"
        return DataError(
            f"{shape}; the source began as {self.name} ({self.first.where})",
            where=row.where,
            cure="give the two kinds as two --data sources, each in its own file",
        )

    def _check_all_is_read(self, row: Row, found: Layout, example: Example) -> None:
        """Refuse a row with text that nothing reads: most often it is the question."""
        has_prompt = found.format != "preference" or bool(example.prompt)
        if self._prompted and not has_prompt:
            raise DataError(
                "this row has no prompt, and the rows before it have one",
                where=row.where,
                cure="fill it in, or remove the row",
            )
        if found.format == "prompt" or (self._all_read and has_prompt):
            return
        if found.format == "text" and row.fields.get("role") in ROLES and "text" in row.fields:
            raise DataError(
                "the row is one message of a conversation, whose others stand in other rows",
                where=row.where,
                cure=(
                    "write each conversation as one row with messages; to train the messages as "
                    "raw text, FILE,ignore=role"
                ),
            )
        fields = {name: value for name, value in row.fields.items() if value is not None}
        if len(fields) == len(found.columns):
            return
        columns = unread_text(
            fields, found, _all_text(example), has_prompt=has_prompt, told=self._given
        )
        if columns:
            raise _unread(row, found, columns, has_prompt)

    def _observe(self, row: Row, found: Layout, example: Example) -> None:
        """Note what the user should know."""
        read = found.columns.values()
        for name, value in row.fields.items():
            if name not in read and value is not None and len(self.unread) < _MOST_NAMED:
                self.unread[name] = None
        if len(self.notes) < _MOST_NAMED and (note := _note(row, found, example)):
            self.notes[note] = None


_MOST_LAYOUTS, _MOST_NAMED = 1000, 20
_CURE = (
    "say which of the file's columns are meant, for example "
    "FILE,prompt=question,completion=answer; or the format, with --format"
)


def detect(row: Row) -> str:
    """The format of a row: the first whose columns are all there; see `posttrain.data.columns`.

    Raises:
        DataError: there is none.
    """
    found = _detected(row)
    if found is None:
        raise _unknown(row)
    return found.format


def _detected(row: Row) -> Layout | None:
    return layout(row.fields)


def _unknown(row: Row) -> DataError:
    columns = ", ".join(map(str, list(row.fields)[:20])) or "none"
    return DataError(f"no known format has these columns: {columns}", where=row.where, cure=_CURE)


def _unread(row: Row, found: Layout, columns: list[str], has_prompt: bool) -> DataError:
    """The error for columns with text that nothing reads."""
    named = " and ".join(map(repr, columns[:5]))
    one = len(columns) == 1
    what = f"the column{'' if one else 's'} {named} hold{'s' if one else ''} text that is not read"
    taken = [
        f"{ours} is taken from {theirs!r}"
        for ours, theirs in found.columns.items()
        if ours in ("prompt", "instruction", "completion", "output") and ours != theirs
    ]
    what = "; ".join([what, *taken])
    ignore = "".join(f",ignore={column}" for column in columns)
    if not has_prompt:
        return DataError(
            f"chosen and rejected have no prompt, and {what}",
            where=row.where,
            cure=f"if it is the prompt: FILE,prompt={columns[0]}; if it is not: FILE{ignore}",
        )
    return DataError(
        what,
        where=row.where,
        cure=(
            f"if it is not needed: FILE{ignore}; if the model should see it, say what it is, as in "
            "FILE,prompt=question,completion=answer or FILE,instruction=question,input=context,"
            "output=answer, or write it into the prompt"
        ),
    )


def _note(row: Row, found: Layout, example: Example) -> str:
    """What the user should know of how a row is read; the same for rows of one kind."""
    if found.format == "preference" and "prompt" not in found.columns and example.prompt:
        if isinstance(example.prompt, str) and "instruction" not in found.columns:
            mark = transcripts.marks(example.prompt)[-1].text
            return (
                f"the prompt is inside chosen and rejected: what both share, up to {mark!r}; "
                "--prompt-template '{prompt}' shows it as it stands, without a chat template"
            )
        if not isinstance(example.prompt, str) and "instruction" not in found.columns:
            return "the prompt is inside chosen and rejected: the messages that both share"
    if found.format == "text" and (marks := transcripts.marks(str(example.answers[0])[:2000])):
        user = next(mark.text for mark in marks if not mark.assistant)
        return (
            f"the texts hold turns, as {user!r} says, and all of them are trained, the user's too; "
            "give conversations as messages to train the answers alone"
        )
    return ""


def _all_text(example: Example) -> str:
    """All texts of an example, in order."""
    texts: list[str] = []
    for part in (example.prompt, *example.answers):
        texts += [part] if isinstance(part, str) else [message["content"] for message in part]
    return "\n".join(texts)


# ------------------------------------------------------------------------------------------ parsing


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
