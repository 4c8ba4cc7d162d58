"""A prepared row from inside: the text of every token, what the token is, and why it is trained or
not.

Which tokens are trained is read from what training reads: the spans of `Encoded` and the windows of
`posttrain.data.prepare`. What the other tokens are is found in `posttrain.data.labels`.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from operator import itemgetter
from typing import Any

import numpy as np

from posttrain.core.terminal import escape
from posttrain.data.chat import Turn
from posttrain.data.formats import Example
from posttrain.data.labels import Kind, Labelled, label
from posttrain.data.prepare import Preparation, Prepared, windows

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
CUT_SHOWN = 60  # pieces of a stretch that was cut


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens that are shown together: one, or the several that make one character.

    Attributes:
        ids: their ids.
        text: what they decode to.
        kind: see `LEGEND`.
        message: the number of the message they belong to; 0 for none, or if it is not known.
    """

    ids: tuple[int, ...]
    text: str
    kind: Kind
    message: int = 0


@dataclass(frozen=True, slots=True)
class Message:
    """A message of a row, and what becomes of it, in words.

    Plain text has the messages `prompt` (1) and `completion` or `text` (0).
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
    """A sequence to train on: a heading, and its tokens without those that an earlier branch has
    shown.
    """

    heading: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Anatomy:
    """A row from inside.

    Attributes:
        where: where the row stands.
        dropped: why it is not trained on; empty if it is.
        messages, passages: its messages and its sequences.
    """

    where: str
    dropped: str
    messages: tuple[Message, ...]
    passages: tuple[Passage, ...]

    def why(self, piece: Piece) -> str:
        """Why tokens are trained or not, in a few words."""
        names = {message.number: message.name for message in self.messages}
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


@dataclass(frozen=True)
class _Window:
    """A sequence to train on: its branch, and its tokens' positions there.

    Attributes:
        branch: index of the branch.
        labelled: the branch.
        positions: [n] of its tokens in the branch. A sequence that is left out as too long has
            none.
    """

    branch: int
    labelled: Labelled
    positions: np.ndarray

    @property
    def ids(self) -> list[int]:
        return [self.labelled.encoded.ids[position] for position in self.positions]

    @property
    def targets(self) -> np.ndarray:
        """The positions of trained tokens; nothing predicts a first one."""
        later = self.positions[1:]
        return later[self.labelled.mask[later]]


def anatomies(prepared: Prepared, dropped: str, preparation: Preparation) -> list[Anatomy]:
    """Take a row apart: a demonstration, or each of the answers that are compared.

    Args: see `anatomy`.
    """
    example, learned = prepared.example, preparation.learned
    if learned == "demonstrations":
        return [anatomy(prepared, dropped, preparation)]
    names = ("chosen", "rejected", "reference")
    if learned == "labels":
        names = ("good", "bad") if example.label is not False else ("bad",)
    policy = "left" if preparation.policy(example) == "left" else "right"
    lost = max(0, prepared.longest - preparation.max_length) if policy == "left" else 0
    shown = []
    for name, answer, encoded in zip(names, example.answers, prepared.encoded, strict=False):
        side = replace(
            prepared, example=replace(example, answers=(answer,)), encoded=[encoded], numbers=()
        )
        limit = len(encoded.ids) - lost if lost else preparation.max_length
        apart = anatomy(side, dropped, replace(preparation, truncate=policy, max_length=limit))
        shown.append(replace(apart, where=f"{apart.where}, {name}"))
    return shown


def anatomy(prepared: Prepared, dropped: str, preparation: Preparation) -> Anatomy:
    """Take one answer of a row apart.

    Args:
        prepared: the row as it was tokenised.
        dropped: why it is not trained on; empty if it is.
        preparation: how it was prepared.
    """
    example, chat = prepared.example, preparation.chat
    turns = chat.turns(example, example.answers[0])
    branches = label(prepared, turns, chat)
    row_windows = _windows(branches, example, preparation)
    trained = Counter[int]()  # number of a message → its trained tokens
    passages = []
    for k, window in enumerate(row_windows):
        if not dropped:
            trained.update(window.labelled.numbers[window.targets].tolist())
        repeated, source = _repeated(row_windows, k, len(branches))
        heading = _heading(row_windows, k, len(branches), dropped)
        if repeated:
            note = f"its first {repeated:,} tokens are those of branch {source + 1}"
            heading.insert(1, f"{note} and not repeated here")
        pieces = _pieces(window, repeated, preparation.policy(example), chat.tokenizer)
        passages.append(Passage("; ".join(heading), pieces))
    messages = _messages(example, turns, branches, trained, preparation.max_length)
    return Anatomy(prepared.row.where, dropped, messages, tuple(passages))


def _windows(branches: list[Labelled], example: Example, preparation: Preparation) -> list[_Window]:
    """The sequences to train on, one or more of each branch."""
    policy = preparation.policy(example)
    row_windows = []
    for number, branch in enumerate(branches):
        every = np.arange(len(branch.encoded.ids))
        kept = windows(branch.encoded, preparation.max_length, policy, preparation.begin)
        for window in kept or [slice(0, 0)]:
            row_windows.append(_Window(number, branch, every[window]))
    return row_windows


# ------------------------------------------------------------------------------------ what is shown


def _pieces(window: _Window, repeated: int, policy: str, tokenizer: Any) -> tuple[Piece, ...]:
    """The tokens of a window without its first `repeated`, and around them those that were cut,
    with the middle of long cuts left out.
    """
    branch, positions = window.labelled, window.positions
    ids, low, high = branch.encoded.ids, 0, len(branch.encoded.ids)
    if policy == "split":  # one of many windows of a long text: the others are not looked at
        low, high = (int(positions[0]), int(positions[-1]) + 1) if len(positions) else (0, 0)
    kinds = branch.kinds[low:high].copy()
    inside = np.zeros(high - low, bool)
    inside[positions - low] = True
    kinds[~inside] = "cut"
    if len(positions) and kinds[positions[0] - low] in ("trained", "end"):
        kinds[positions[0] - low] = "first"
    shown = np.ones(high - low, bool) if policy != "split" else inside.copy()
    shown[positions[:repeated] - low] = False

    def look(i: int) -> tuple[Kind, int]:
        return kinds[i - low], int(branch.numbers[i])

    pieces: list[Piece] = []
    first = bisect_right(branch.groups, low, key=itemgetter(1))
    for start, end, text in islice(branch.groups, first, None):
        if start >= high:
            break
        within = range(max(start, low), min(end, high))
        for run in _runs([i for i in within if shown[i - low]], look):
            run_ids = tuple(ids[i] for i in run)
            whole = len(run) == end - start
            words = text if whole else tokenizer.decode(run_ids, skip_special_tokens=False)
            pieces.append(Piece(run_ids, words, *look(run[0])))
    return elided(tuple(pieces), CUT_SHOWN, only="cut")


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
    """Pieces with the middle of long stretches left out.

    A stretch is all trained, all cut or all given, so that the borders between these stay visible.

    Args:
        most: pieces of a stretch that stay, half at each end.
        only: shorten only stretches of this kind; None: of every kind.
    """
    families = {"end": "trained", "trained": "trained", "cut": "cut"}
    half = most // 2
    shortened: list[Piece] = []
    for run in _runs(list(range(len(pieces))), lambda i: families.get(pieces[i].kind, "given")):
        stretch = pieces[run[0] : run[-1] + 1]
        if len(stretch) > most + 1 and only in (None, stretch[0].kind):
            hidden = sum(len(piece.ids) for piece in stretch[half:-half])
            gap = Piece((), f"… {hidden:,} tokens …", "gap")
            stretch = (*stretch[:half], gap, *stretch[-half:])
        shortened += stretch
    return tuple(shortened)


def _heading(row_windows: list[_Window], k: int, branches: int, dropped: str) -> list[str]:
    """What window k of a row is, in words."""
    window, words = row_windows[k], []
    if branches > 1:
        name = f"branch {window.branch + 1} of {branches}"
        if window.branch:
            name += ": the template shows earlier turns otherwise here"
        words.append(name)
    parts = [i for i, other in enumerate(row_windows) if other.branch == window.branch]
    if len(parts) > 1:
        words.append(f"part {k - parts[0] + 1} of {len(parts)}")
    size, targets = len(window.positions), len(window.targets)
    counts = f"{size:,} tokens, {targets:,} trained"
    lost = len(window.labelled.encoded.ids) - size
    if lost and len(parts) == 1:
        counts += f", {lost:,} cut"
    words.append(counts)
    if not targets and not dropped:
        words.append("left out: nothing in it is trained")
    return words


def _repeated(row_windows: list[_Window], k: int, branches: int) -> tuple[int, int]:
    """How many of window k's first tokens an earlier branch has shown, and which branch.

    None where branches were split, and never a trained token.
    """
    if k == 0 or len(row_windows) != branches:
        return 0, 0
    window, ids = row_windows[k], row_windows[k].ids
    common = [_common(ids, earlier.ids) for earlier in row_windows[:k]]
    targets = window.targets
    until = int(np.searchsorted(window.positions, targets[0])) if len(targets) else len(ids)
    return min(max(common), until), common.index(max(common))


def _common(a: list[int], b: list[int]) -> int:
    """How many tokens two sequences begin with in common."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))


def _messages(
    example: Example, turns: list[Turn], branches: list[Labelled], trained: Counter[int], limit: int
) -> tuple[Message, ...]:
    """What becomes of every message."""
    totals = Counter[int]()
    for branch in branches:
        for span in branch.encoded.spans:
            totals[span.number] += span.end - span.start

    def learned(number: int) -> str:
        done, total = trained[number], totals[number]
        if done == total:
            return f"trained: {total:,} tokens"
        if not done:
            return f"not trained: over the limit of {limit:,} tokens"
        return f"trained: {done:,} of {total:,} tokens; the others are over the limit of {limit:,}"

    answer = example.answers[0]
    if turns[0].plain:
        if not example.prompt:
            return (Message(0, "text", learned(0), True),)
        return Message(1, "prompt", "given", True), Message(0, "completion", learned(0), True)
    if isinstance(answer, str):
        return Message(1, "user", "given"), Message(2, "assistant", learned(2))
    assert not isinstance(example.prompt, str) or not example.prompt
    messages = []
    for number, message in enumerate((*example.prompt, *answer), 1):
        assert isinstance(message, dict)
        if number in totals:
            what = learned(number)
        elif message["role"] != "assistant":
            what = "given"
        elif number <= len(example.prompt):
            what = "given: part of the prompt"
        elif message.get("weight", 1):
            what = "given: only the last answer is trained"
        else:
            what = "given: its weight is 0"
        messages.append(Message(number, message["role"], what))
    return tuple(messages)


def visible(text: str) -> str:
    """Text whose line breaks, tabs, control and format characters are seen and do nothing."""
    return "".join(map(_visible_character, escape(text)))


def _visible_character(character: str) -> str:
    if character == "\n":
        return "⏎\n"
    if character == "\t":
        return "⇥\t"
    joiner = character in "\u200c\u200d"  # letters need these
    if not joiner and unicodedata.category(character) == "Cf":
        return f"\\u{ord(character):04x}"
    return character
