"""Columns: under which names published data sets hold what a format reads, and which columns hold
text that nothing reads.

    preference      the pair under one of `PAIRS`; its prompt under one of `QUESTIONS`, or as a
                    conversation under one of `CONVERSATIONS`
    alpaca          instruction, and the answer under one of `ANSWERS`; input or context
    prompt and      a name of `QUESTIONS` and one of `ANSWERS`; with a label, they are labelled
    completion

Names are compared without case, and `-` is `_`. Where two names fit, the first of a list is read;
if the other holds text of its own, the row is refused, so that a wrong choice is never silent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

PAIRS = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("chosen_answer", "rejected_answer"),
    ("chosen_output", "rejected_output"),
    ("preferred_output", "non_preferred_output"),
    ("preferred", "dispreferred"),
    ("accepted", "rejected"),
)
CONVERSATIONS = ("messages", "conversations", "conversation", "trajectory")
QUESTIONS = (
    "prompt",
    "question",
    "query",
    "problem",
    "user_prompt",
    "user_query",
    "user_message",
    "user",
    "inputs",
    "input",
)
ANSWERS = (
    "completion",
    "response",
    "output",
    "solution",
    "generated_solution",
    "assistant_response",
    "assistant",
    "answer",
    "targets",
)
SYSTEMS = ("system", "system_prompt", "system_message", "system_instruction")
CONTEXTS = ("input", "context")  # beside an instruction
LABELS = ("label", "kto_tag")
TOOLS = ("tools", "functions")
_AROUND = {"system": SYSTEMS, "tools": TOOLS, "chat_template_kwargs": ("chat_template_kwargs",)}


class Names:
    """The columns of a row, found by their names without case.

    Args:
        fields: column → value. Null is absent; empty text is taken only where nothing else is.
    """

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._filled: dict[str, str] = {}
        self._empty: dict[str, str] = {}
        for column, value in fields.items():
            if value is None or not isinstance(column, str):
                continue
            known = self._empty if isinstance(value, str) and not value else self._filled
            normal = _normal(column)
            if normal not in known or column == normal:
                known[normal] = column

    def first(self, *options: str) -> str | None:
        """The column with the first of some names that is there."""
        for known in (self._filled, self._empty):
            for option in options:
                if option in known:
                    return known[option]
        return None

    def all(self, **options: tuple[str, ...]) -> dict[str, str] | None:
        """Our column → the file's, for each of ours; None where one is not there."""
        columns = {ours: self.first(*names) for ours, names in options.items()}
        present = {ours: theirs for ours, theirs in columns.items() if theirs is not None}
        different = len(set(present.values())) == len(options)
        return present if different else None

    def optional(self, **options: tuple[str, ...]) -> dict[str, str]:
        """Our column → the file's, for those that are there."""
        columns = {ours: self.first(*names) for ours, names in options.items()}
        return {ours: theirs for ours, theirs in columns.items() if theirs is not None}


def _normal(column: str) -> str:
    return re.sub(r"[\s\-.]+", "_", column.strip()).lower()


@dataclass(frozen=True)
class Layout:
    """How the rows of a source are read.

    Attributes:
        format: name of the format.
        columns: our column → the file's, of all that is read.
    """

    format: str
    columns: dict[str, str]

    def fields(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """What is read of a row, by our names."""
        read = {ours: fields[theirs] for ours, theirs in self.columns.items()}
        prompt = read.get("prompt")
        if isinstance(prompt, dict) and "messages" in prompt:  # OpenAI's input of a pair
            read["prompt"] = prompt["messages"]
            if prompt.get("tools") is not None:
                read.setdefault("tools", prompt["tools"])
        return read


def layout(fields: Mapping[str, Any], *, prompts: bool = False) -> Layout | None:
    """How a row is read: by the first format that has its columns; None where there is none.

    Args:
        prompts: whether prompts are wanted, and columns beside them are a scorer's. Then an answer
            under another name belongs to a `prompt` no more than they do.
    """
    names = Names(fields)
    alone = prompts and names.first("prompt") is not None
    for format, exact in _ORDER:
        if alone and not exact and format in ("label", "prompt-completion"):
            continue
        if found := _layout(format, names, exact):
            return found
    return None


def layout_as(format: str, fields: Mapping[str, Any]) -> Layout | None:
    """How a row is read as one format; None where columns are missing."""
    names = Names(fields)
    return _layout(format, names, True) or _layout(format, names, False)


# formats in the order in which they are tried: with our own names, or with those of others too
_ORDER = (
    ("preference", False),
    ("label", True),
    ("steps", True),
    ("prompt-completion", True),
    ("messages", True),
    ("sharegpt", True),
    ("alpaca", False),
    ("steps", False),
    ("label", False),
    ("prompt-completion", False),
    ("messages", False),
    ("text", True),
    ("prompt", True),
)


def _layout(format: str, names: Names, exact: bool) -> Layout | None:
    needed = _needed(format, names, exact)
    if needed is None:
        return None
    around = {} if format == "text" else names.optional(**_AROUND)
    return Layout(format, {**around, **_optional(format, names, needed), **needed})


def _needed(format: str, names: Names, exact: bool) -> dict[str, str] | None:
    question, answer = QUESTIONS[: 1 if exact else None], ANSWERS[: 1 if exact else None]
    match format:
        case "preference":
            pairs = (names.all(chosen=(a,), rejected=(b,)) for a, b in PAIRS)
            return next(filter(None, pairs), None)
        case "label":
            return names.all(prompt=question, completion=answer, label=LABELS)
        case "steps":
            return names.all(prompt=question, completions=("completions",), labels=("labels",))
        case "prompt-completion":
            return names.all(prompt=question, completion=answer)
        case "messages":
            return names.all(messages=("messages",) if exact else ("messages", "conversation"))
        case "sharegpt":
            return names.all(conversations=("conversations",))
        case "alpaca":
            return names.all(instruction=("instruction",), output=ANSWERS)
    return names.all(**{format: (format,)})


def _optional(format: str, names: Names, needed: dict[str, str]) -> dict[str, str]:
    """What a format reads besides, where it is there."""
    if format == "preference":
        more = names.optional(reference=("reference",), margin=("margin",), votes=("votes",))
        free = {ours: theirs for ours, theirs in more.items() if theirs not in needed.values()}
        return {**free, **_prompt_of_pair(names)}
    if format == "alpaca":
        more = names.optional(input=CONTEXTS, history=("history",), label=LABELS)
        return {ours: theirs for ours, theirs in more.items() if theirs not in needed.values()}
    return names.optional(label=LABELS) if format in ("messages", "sharegpt") else {}


def _prompt_of_pair(names: Names) -> dict[str, str]:
    """Where the prompt of a pair stands: in one column, or in an instruction and what is beside."""
    column = names.first("prompt", *CONVERSATIONS)
    if column is None and names.first("instruction"):
        return names.optional(instruction=("instruction",), input=CONTEXTS, history=("history",))
    column = column or names.first(*QUESTIONS)
    return {"prompt": column} if column else {}


# ------------------------------------------------------------------------------ text that is unread

_WORD = re.compile(r"[^\W\d_]{2,}")
_ENDS = re.compile(r"[.?!…:][\"'”’»)*_\s]*\Z")  # a text ends like a sentence
_WITHOUT_SPACES = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]{2,}.*[。？！、，]", re.DOTALL)
_LOOKED_AT = 5000  # characters of a value that are looked at

# What a column is, by the last word of its name. Of these none ever holds what is to be learned:
_DATA = """
id ids uid uuid guid idx index hash md5 sha sha1 sha256 fingerprint digest url urls uri link links
href path file filename doi pmid isbn date datetime timestamp time created updated year version
model models engine checkpoint score scores rating ratings rank ranking reward margin votes logprob
logprobs confidence probability agreement count length tokens num number n config configs seconds
annotator annotators worker workers language languages lang locale meta metadata license licence
spans formula equation
"""
# and these hold names of things, which are short:
_NAMES = """
source sources title titles heading name category categories topic topics tag tags keyword keywords
domain subject genre type types kind task tasks skill skills level difficulty quality status origin
provenance dataset datasets subset split author authors book case focus area scenario role country
label labels
"""
_DATA_WORDS, _NAME_WORDS = frozenset(_DATA.split()), frozenset(_NAMES.split())
_TITLES = frozenset(["title", "titles", "heading", "name", "book", "author", "authors"])
# what judges and generators of published sets say about a row
_ABOUT = frozenset(["intent", "knowledge", "quality_explanation", "quality_assessment"])
_JUDGING = """
rationale rationales critique critiques feedback judgement judgment judgements judgments
justification justifications generations annotations
"""
_ABOUT_PAIRS = frozenset(_JUDGING.split())
_ABOUT_PAIRS_BEGIN = ("raw", "labelling", "labeling", "generation", "generations", "judge")
_SIDES = frozenset(["chosen", "rejected", "a", "b"])
# what is asked or shown; there a single word may be the question
_SHOWN = ("instruction", "instructions", "passage", "document", "article", "background", "history")
_ASKED = frozenset([*QUESTIONS, *CONVERSATIONS, *SYSTEMS, *CONTEXTS, *_SHOWN, "choices", "options"])


def unread_text(
    fields: Mapping[str, Any], layout: Layout, read: str, *, has_prompt: bool, named: bool = False
) -> list[str]:
    """The columns of a row that hold text which nothing reads.

    Ids, sources, scores, categories and the like are not text, nor is what says again what is read:
    a column inside `read`, or one that holds all of it.

    Args:
        fields: the row, as its file has it.
        layout: how it is read.
        read: all texts that are read, each on lines of its own.
        has_prompt: whether what is learned has a prompt. Where it has none, a few words count.
        named: whether the user named the format, and so left out what other formats read: there
            only
            sentences count.
    """
    columns = []
    squeezed = ""
    for column, value in fields.items():
        if column in layout.columns.values() or not isinstance(column, str):
            continue
        texts = [
            text
            for text in _texts(value)
            if _is_text(text[:_LOOKED_AT], column, layout.format, has_prompt, named)
        ]
        if texts:
            squeezed = squeezed or _squeezed(read)
            if not all(_repeats(_squeezed(text), squeezed, read) for text in texts):
                columns.append(column)
    return columns


def _texts(value: Any) -> Iterator[str]:
    """The texts in a value: it is one, or a list of them or of messages."""
    if isinstance(value, str):
        if value[:1] in ("[", "{") and value.rstrip()[-1:] in ("]", "}"):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                yield value
                return
            if isinstance(value, str):
                return
            yield from _texts(value)
        elif value.strip():
            yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            if isinstance(item, str) and item.strip():
                yield item
            elif isinstance(item, dict):
                yield from _of_message(item)
    elif isinstance(value, dict) and ("role" in value or "from" in value):
        yield from _of_message(value)


def _of_message(message: dict[str, Any]) -> Iterator[str]:
    for key in ("content", "value", "text", "input", "output"):
        if isinstance(message.get(key), str) and message[key].strip():
            yield message[key]


def _is_text(text: str, column: str, format: str, has_prompt: bool, named: bool) -> bool:
    """Whether a value is something to be learned or shown, by the name of its column and by how it
    is written.
    """
    parts = [part for part in re.split(r"[\W_]+|(?<=[a-z])(?=[A-Z])", column) if part]
    words = [part.lower() for part in parts]
    while len(words) > 1 and (words[-1] in _SIDES or words[-1].isdigit()):
        words.pop()
    normal, last = _normal(column), words[-1] if words else ""
    about_data = last in ("at", "name", "names") and words[-2:-1] and words[-2] in _DATA_WORDS
    if last in _DATA_WORDS or about_data or normal in _ABOUT or words[:1] == ["original"]:
        return False
    judging = last in _ABOUT_PAIRS or (len(words) > 1 and words[0] in _ABOUT_PAIRS_BEGIN)
    if judging and format == "preference" and has_prompt:
        return False
    count, ends = len(_WORD.findall(text)), bool(_ENDS.search(text))
    if _WITHOUT_SPACES.search(text):
        count, ends = max(count, 10), True
    elif not re.search(r"\s", text.strip()):  # the_name_of_something.
        count = min(count, 1)
    sentence = (ends and count >= 3) or count >= 10
    if format == "text":  # raw text comes with many things about it
        long = count >= 20 or (count >= 8 and text.count("\n") > 1)
        return sentence if normal in _ASKED else last not in _NAME_WORDS and long
    if normal in _ASKED and not named:
        return True
    if last in _NAME_WORDS:
        if has_prompt and last in _TITLES:
            return False
        return (ends and count >= 3) or count >= (12 if has_prompt else 6)
    return sentence or (count >= 2 and not has_prompt)


def _squeezed(text: str) -> str:
    """Text without what differs between two writings of the same: case, white space, punctuation
    around it.
    """
    return " ".join(text.casefold().split()).strip(" .?!:;,\"'")


def _repeats(text: str, squeezed: str, read: str) -> bool:
    """Whether a text says nothing that is not read: it is in what is read, or all of that is in it,
    in the same order.
    """
    if _find(text, squeezed, 0) >= 0:
        return True
    at = 0
    for part in filter(None, map(_squeezed, read.split("\n"))):
        at = _find(part, text, at)
        if at < 0:
            return False
    return True


def _find(part: str, text: str, start: int) -> int:
    """Where a part ends in a text, as whole words; -1 where it is not in it."""
    while (start := text.find(part, start)) >= 0:
        end = start + len(part)
        before, after = text[start - 1 : start], text[end : end + 1]
        if not (before.isalnum() and part[:1].isalnum()) and not (
            after.isalnum() and part[-1:].isalnum()
        ):
            return end
        start += 1
    return -1
