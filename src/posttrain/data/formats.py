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

from posttrain.core.errors import DataError, nearest
from posttrain.data import transcripts
from posttrain.data.columns import Layout, Names, layout, layout_as, unread_text
from posttrain.data.messages import ROLES, Message, Text
from posttrain.data.parsers import FORMATS, Example
from posttrain.data.rows import Row

__all__ = ["FORMATS", "Example", "Format", "Message", "Text", "detect"]


class Format:
    """Reads the rows of one source, all in one format.

    Args:
        name: of the format; empty: the first row decides.
        all_read: whether every column is read by someone. Then text beside what the format reads is
            no error.
        prompts: whether prompts are wanted, and a scorer reads what stands beside them.
    Attributes:
        first: the first usable row.
        columns: our column → the file's, of all that is read.
        unread: columns that nothing reads, in order; no text is among them.
        notes: what else the user should know of how the rows are read.
    """

    def __init__(self, name: str = "", *, all_read: bool = False, prompts: bool = False) -> None:
        self.name, self._given = name, bool(name)
        self._all_read, self._prompts = all_read or prompts, prompts
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
            raise self._another_shape(row, found or layout(row.fields))
        moved = [self.columns[ours] for ours in found.columns if ours in self.columns]
        if missing := [column for column in moved if column not in found.columns.values()]:
            raise self._another_shape(row, None, missing)
        return found

    def _find_layout(self, row: Row) -> Layout | None:
        if self._given:
            return layout_as(self.name, row.fields)
        return layout(row.fields, prompts=self._prompts)

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
        if self._prompted and not has_prompt and isinstance(example.answers[0], str):
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
            fields, found, _all_text(example), has_prompt=has_prompt, named=self._given
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
    found = layout(row.fields)
    if found is None:
        raise _unknown(row)
    return found.format


def _unknown(row: Row) -> DataError:
    columns = ", ".join(map(str, list(row.fields)[:20])) or "none"
    return DataError(f"no known format has these columns: {columns}", where=row.where, cure=_CURE)


def _unread(row: Row, found: Layout, columns: list[str], has_prompt: bool) -> DataError:
    """The error for columns with text that nothing reads."""
    named = " and ".join(map(repr, columns[:5]))
    subject = f"the column {named} holds" if len(columns) == 1 else f"the columns {named} hold"
    what = f"{subject} text that is not read"
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
        if len(user.strip()) <= len("Q:"):  # which stands in documents of many kinds
            return ""
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
