"""A prepared row from inside: the text of every token, what the token is, and why it is trained or
not.

Which tokens are trained is read from what training reads: the spans of `Encoded` and the windows of
`prepare.kept`. Only where a given token comes from, a message or the template, is found here: the
row is rendered again with marks for its texts.

Left out: from which message a tool call or reasoning that is only given comes; it counts as written
    by the template.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from posttrain.core.errors import PosttrainError
from posttrain.data.chat import Chat, Turn
from posttrain.data.formats import Example, Text
from posttrain.data.prepare import Prepared, kept, policy_for
from posttrain.data.tokens import Encoded

Kind = Literal["trained", "end", "given", "template", "special", "first", "cut", "gap"]
LEGEND: dict[Kind, str] = {
    "trained": "trained: the model learns to write this",
    "end": "trained: the token that ends a turn, so that the model learns to stop",
    "given": "given: text of the row, shown to the model and not learned",
    "template": "given: written by the template",
    "special": "given: a special token",
    "first": "not learned: nothing comes before a first token",
    "cut": "not in the batch: over the length limit",
    "gap": "tokens that are not shown here",
}
_MARK = re.compile(r"Zq(\d+)qZ")  # stands for a text of the row in a rendering
CUT_SHOWN = 60  # tokens of a stretch that was cut


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens that are written together: one, or the several that make one character.

    Attributes:
        ids: their ids.
        text: what they say.
        kind: see `LEGEND`.
        message: the number of the message they are of; 0 for none, or where that is not known.
    """

    ids: tuple[int, ...]
    text: str
    kind: Kind
    message: int = 0


@dataclass(frozen=True, slots=True)
class Message:
    """A message of a row, and what becomes of it in words. Of plain text: `prompt` (1),
    `completion` or `text` (0).
    """

    number: int
    role: str
    what: str
    plain: bool = False

    @property
    def name(self) -> str:
        return self.role if self.plain else f"message {self.number}, {self.role}"


@dataclass(frozen=True, slots=True)
class Passage:
    """A sequence to train on: what it is, in words, and its tokens but for those that an earlier
    branch has shown.
    """

    heading: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Anatomy:
    """A row: where it stands, why it is not trained on (empty: it is), its messages and its
    sequences.
    """

    where: str
    dropped: str
    messages: tuple[Message, ...]
    passages: tuple[Passage, ...]

    def why(self, piece: Piece) -> str:
        """Why tokens are trained or not, in a few words."""
        names = {one.number: one.name for one in self.messages}
        name = names.get(piece.message, "") if piece.message or self.messages[0].plain else ""
        match piece.kind:
            case "trained":
                return f"trained: {name}"
            case "end":
                return f"trained: ends {name}"
            case "given" if name:
                return f"given: {name}"
            case "special" if name:
                return f"given: a special token inside {name}"
        return LEGEND[piece.kind]


@dataclass
class _Labelled:
    """A tokenised sequence with its labels.

    Attributes:
        encoded: token ids and spans. turn: the last turn in it, whose text is all of its text.
        groups: (first token, end, text) of every piece.
        kinds, numbers: of every token, what it is while no limit is set, and the message it is of.
    """

    encoded: Encoded
    turn: Turn
    groups: list[tuple[int, int, str]]
    kinds: np.ndarray
    numbers: np.ndarray


def anatomy(one: Prepared, dropped: str, chat: Chat, *, max_length: int, truncate: str) -> Anatomy:
    """Take a row apart.

    Args:
        one: the row as it was tokenised. dropped: why it is not trained on; empty where it is.
        chat, max_length, truncate: what it was prepared with.
    """
    answer, policy = one.example.answers[0], policy_for(one.example, truncate)
    turns = chat.turns(one.example, answer)
    marked, texts = _marked(one.example, turns[0].plain)
    try:
        marks = {turn.number: turn for turn in chat.turns(marked, marked.answers[0])}
    except PosttrainError:  # a template that asks for something in the text
        marks = {}
    labelled = []
    for encoded in one.encoded:
        turn = next(t for t in turns if t.number == encoded.spans[-1].number)
        labelled.append(_labelled(encoded, turn, marks.get(turn.number), texts, chat.tokenizer))
    windows = [
        (branch, at)
        for branch, some in enumerate(labelled)
        for at in _windows(some, max_length, policy, chat)
    ]
    trained: dict[int, int] = {}
    passages, before = [], []
    for branch, at in windows:
        some = labelled[branch]
        targets = [p for p in at[1:].tolist() if some.encoded.mask()[p]]
        for number in some.numbers[targets].tolist() if not dropped else ():
            trained[number] = trained.get(number, 0) + 1
        heading, skip = _heading(labelled, windows, len(passages), before, len(targets), dropped)
        passages.append(Passage(heading, _pieces(some, at, skip, policy, chat.tokenizer)))
        before.append([some.encoded.ids[p] for p in at.tolist()])
    return Anatomy(
        one.row.where,
        dropped,
        _messages(one.example, turns, labelled, trained, chat, max_length),
        tuple(passages),
    )


def _windows(some: _Labelled, limit: int, policy: str, chat: Chat) -> list[np.ndarray]:
    """Positions of the tokens of every sequence that is made; of one that is left out as too long,
    none.
    """
    every = np.arange(len(some.encoded.ids))
    return [every[at] for at in kept(some.encoded, limit, policy, chat.tokenizer.bos_token_id)] or [
        every[:0]
    ]


# ------------------------------------------------------------------------------------------- labels


def _labelled(
    encoded: Encoded, turn: Turn, marked: Turn | None, texts: list[tuple[int, str]], tokenizer: Any
) -> _Labelled:
    def decode(ids: list[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    added = set(tokenizer.added_tokens_decoder)
    groups = _groups(encoded.ids, decode, added)
    n = len(encoded.ids)
    kinds, numbers = np.full(n, "given", object), np.zeros(n, np.int64)
    whole, text = "".join(text for _, _, text in groups), turn.before + turn.after
    # some tokenizers put spaces where the text has none: then only the other characters are counted
    size = len if text in whole else lambda s: len("".join(s.split()))
    start = (
        whole.find(text) if text in whole else "".join(whole.split()).find("".join(text.split()))
    )
    if marked is not None and start >= 0:
        origins, known = _origins(text, marked.before + marked.after, texts)
        origins, known = (
            [(size(text[:x]), size(text[:y]), number) for x, y, number in origins],
            size(text[:known]),
        )
        at = -start
        for a, b, piece in groups:
            mine = next(
                (number for x, y, number in origins if x < at + size(piece) and at < y), None
            )
            numbers[a:b] = mine or 0
            if mine is None and at < known:
                kinds[a:b] = "template"
            at += size(piece)
    if not turn.before:
        kinds[0] = "first"
    kinds[[i for i, token in enumerate(encoded.ids) if token in added]] = "special"
    for span in encoded.spans:
        kinds[span.start : span.end], numbers[span.start : span.end] = "trained", span.number
        if (end := encoded.ids[span.end - 1]) in added:  # a row may write it within its text, too
            kinds[[i for i in range(span.start, span.end) if encoded.ids[i] == end]] = "end"
    return _Labelled(encoded, turn, groups, kinds, numbers)


def _groups(
    ids: list[int], decode: Callable[[list[int]], str], added: set[int]
) -> list[tuple[int, int, str]]:
    """Tokens one by one, or together where only together they are a character, and their texts,
    which add up to the whole.
    """
    out: list[tuple[int, int, str]] = []
    before = start = 0
    for i, token in enumerate(ids):
        text = decode(ids[before : i + 1])[len(decode(ids[before:start])) if start else 0 :]
        last = (
            i + 1 == len(ids) or token in added or ids[i + 1] in added or i - start == 3
        )  # UTF-8 has four bytes at most
        if text.endswith("\ufffd") and not last:
            continue
        out.append((start, i + 1, text))
        before, start = start, i + 1
    return out


def _marked(example: Example, plain: bool) -> tuple[Example, list[tuple[int, str]]]:
    """The example with marks in the places of its texts; the number of the message and the text
    that each mark stands for.
    """
    texts: list[tuple[int, str]] = []

    def mark(text: str, number: int) -> str:
        if not text.strip():
            return text
        texts.append((number, text))
        return f"Zq{len(texts) - 1}qZ"

    def part(value: Text, first: int) -> Text:
        if isinstance(value, str):
            return mark(value, first)
        return tuple(
            {**message, "content": mark(message["content"], first + i)}
            for i, message in enumerate(value)
        )

    ahead = bool(example.prompt) if isinstance(example.prompt, str) else len(example.prompt)
    return (
        replace(
            example,
            prompt=part(example.prompt, 1),
            answers=(part(example.answers[0], 0 if plain else ahead + 1),),
        ),
        texts,
    )


def _origins(
    text: str, marked: str, texts: list[tuple[int, str]]
) -> tuple[list[tuple[int, int, int]], int]:
    """Where in a rendering the row's own texts stand, found from a rendering with marks in their
    places.

    Returns: (start, end, number of the message) of each, and up to which character this is certain.
    """
    parts = _MARK.split(marked)  # words of the template, number of a mark, words of the template, …
    found: list[tuple[int, int, int]] = []
    if not text.startswith(parts[0]):
        return [], 0
    at = len(parts[0])
    for mark, after in zip(parts[1::2], parts[2::2], strict=True):
        number, own = texts[int(mark)]
        form = next(
            (
                form
                for form in (own, own.strip(), own.rstrip(), own.lstrip())
                if text.startswith(form + after, at)
            ),
            None,
        )
        if form is None:  # the template does something else with this text than with a mark
            return found, at
        found.append((at, at + len(form), number))
        at += len(form) + len(after)
    return found, at


# ------------------------------------------------------------------------------------ what is shown


def _pieces(
    some: _Labelled, at: np.ndarray, skip: int, policy: str, tokenizer: Any
) -> tuple[Piece, ...]:
    """The tokens of a window but for its first `skip`, and around them those that were cut, in few
    words.
    """
    ids, kinds = some.encoded.ids, some.kinds.copy()
    inside = np.zeros(len(ids), bool)
    inside[at] = True
    kinds[~inside] = "cut"
    if len(at) and kinds[at[0]] in ("trained", "end"):
        kinds[at[0]] = "first"
    shown = np.ones(len(ids), bool) if policy != "split" else inside.copy()
    shown[at[:skip]] = False
    out: list[Piece] = []
    for a, b, text in some.groups:
        mine = [i for i in range(a, b) if shown[i]]
        for run in _runs(mine, lambda i: (kinds[i], int(some.numbers[i]))):
            own = tuple(ids[i] for i in run)
            words = text if len(run) == b - a else tokenizer.decode(own, skip_special_tokens=False)
            out.append(Piece(own, words, kinds[run[0]], int(some.numbers[run[0]])))
    return elided(tuple(out), CUT_SHOWN, only="cut")


def _runs(items: list[int], key: Callable[[int], Any]) -> Iterator[list[int]]:
    """Neighbours with the same key."""
    run: list[int] = []
    for item in items:
        if run and key(item) != key(run[0]):
            yield run
            run = []
        run.append(item)
    if run:
        yield run


def elided(pieces: tuple[Piece, ...], most: int, *, only: Kind | None = None) -> tuple[Piece, ...]:
    """Pieces with the middle of long stretches of one kind left out; what is trained and what is
    not keeps its borders.

    Args:
        most: pieces of a stretch that are kept, half at each end.
        only: of this kind; None: of every kind.
    """
    families = {"end": "trained", "trained": "trained", "cut": "cut"}
    out: list[Piece] = []
    for run in _runs(list(range(len(pieces))), lambda i: families.get(pieces[i].kind, "given")):
        some = pieces[run[0] : run[-1] + 1]
        half = most // 2
        if len(some) > most + 1 and only in (None, some[0].kind):
            left = sum(len(one.ids) for one in some[half:-half])
            some = (*some[:half], Piece((), f"… {left:,} tokens …", "gap"), *some[-half:])
        out += some
    return tuple(out)


def _heading(
    labelled: list[_Labelled],
    windows: list[tuple[int, np.ndarray]],
    k: int,
    before: list[list[int]],
    targets: int,
    dropped: str,
) -> tuple[str, int]:
    """What sequence k of a row is, in words, and how many of its first tokens an earlier branch has
    shown.
    """
    branch, at = windows[k]
    some, parts = labelled[branch], [i for i, (other, _) in enumerate(windows) if other == branch]
    words, skip = [], 0
    if len(labelled) > 1:
        words.append(
            f"branch {branch + 1} of {len(labelled)}: the template shows earlier turns otherwise"
            " here"
            if branch
            else f"branch 1 of {len(labelled)}"
        )
    if len(parts) > 1:
        words.append(f"part {k - parts[0] + 1} of {len(parts)}")
    elif before and len(windows) == len(labelled):
        ids = [some.encoded.ids[p] for p in at.tolist()]
        shared, other = max(
            ((_common(ids, earlier), -i) for i, earlier in enumerate(before)), default=(0, 0)
        )
        first = next(
            (i for i, p in enumerate(at.tolist()) if i and some.encoded.mask()[p]), len(ids)
        )
        if skip := min(shared, first):
            words.append(
                f"its first {skip:,} tokens are those of branch {windows[-other][0] + 1} and not"
                " repeated here"
            )
    lost = len(some.encoded.ids) - len(at) if len(parts) == 1 else 0
    words.append(f"{len(at):,} tokens, {targets:,} trained" + (f", {lost:,} cut" if lost else ""))
    if not targets and not dropped:
        words.append("left out: nothing in it is trained")
    return "; ".join(words), skip


def _common(a: list[int], b: list[int]) -> int:
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


def _messages(
    example: Example,
    turns: list[Turn],
    labelled: list[_Labelled],
    trained: dict[int, int],
    chat: Chat,
    limit: int,
) -> tuple[Message, ...]:
    """What becomes of every message."""
    totals: dict[int, int] = {}
    for some in labelled:
        for span in some.encoded.spans:
            totals[span.number] = totals.get(span.number, 0) + span.end - span.start

    def learned(number: int) -> str:
        done, total = trained.get(number, 0), totals[number]
        if done == total:
            return f"trained: {total:,} tokens"
        return (
            f"trained: {done:,} of {total:,} tokens; the others are over the limit of {limit:,}"
            if done
            else (f"not trained: over the limit of {limit:,} tokens")
        )

    answer = example.answers[0]
    if turns[0].plain:
        given = (Message(1, "prompt", "given", True),) if example.prompt else ()
        return (*given, Message(0, "completion" if given else "text", learned(0), True))
    if isinstance(answer, str):
        return Message(1, "user", "given"), Message(2, "assistant", learned(2))
    assert not isinstance(example.prompt, str) or not example.prompt
    out = []
    for number, message in enumerate((*example.prompt, *answer), 1):
        assert isinstance(message, dict)
        what = "given"
        if number in totals:
            what = learned(number)
        elif message["role"] == "assistant":
            why = (
                "part of the prompt"
                if number <= len(example.prompt)
                else (
                    "only the last answer is trained"
                    if message.get("weight", 1)
                    else "its weight is 0"
                )
            )
            what = f"given: {why}"
        out.append(Message(number, message["role"], what))
    return tuple(out)


def visible(text: str) -> str:
    """Text whose line breaks, tabs and control characters are seen and do nothing: a row must not
    command a terminal.
    """
    return "".join(map(_sign, text))


def _sign(c: str) -> str:
    if c == "\n":
        return "⏎\n"
    if c == "\t":
        return "⇥\t"
    if c < " " or c == "\x7f":
        return chr(0x2400 + ord(c)) if c < " " else "␡"
    return (
        f"\\u{ord(c):04x}"
        if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") and c not in "\u200c\u200d"
        else c
    )
