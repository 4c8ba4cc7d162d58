"""From sources to trees of tokens on the disk, with an account of every row.

    source → Row → Example → turns → tokens and mask → tree

What a row's tree is depends on what is learned from:

    demonstrations   one answer; where the template rewrites history, a branch for each turn
    pairs            the chosen answer and the rejected one; the margin goes beside it
    triples          chosen, rejected, and one to imitate
    labels           one answer and whether it is good; a pair is one of each
    steps            one answer, of which the last token of every step is trained; whether each step
                     is right goes beside it

Rows read = trees' rows + dropped + rejected; it is asserted, and a run shows it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from posttrain.core.errors import DataError
from posttrain.data.chat import Chat, Turn
from posttrain.data.forest import Sequence, Tree
from posttrain.data.formats import Example, Format
from posttrain.data.messages import Text
from posttrain.data.readers import Told
from posttrain.data.rows import Rejects, Row
from posttrain.data.settings import Source
from posttrain.data.sources import read
from posttrain.data.store import NumberWriter, TreeWriter
from posttrain.data.tokens import Encoded, Encoder, stepped

CHUNK_ROWS, CHUNK_CHARACTERS = 500, 4_000_000  # tokenised at a time; bounds memory
Learned = Literal["demonstrations", "pairs", "triples", "labels", "steps"]
FOUND = 4_000_000  # hashes compared at a time


@dataclass
class Account:
    """What became of a source's rows: read = used + dropped + rejected.

    Attributes:
        format: how the rows were read.
        read, used, rejected: rows.
        dropped: rows of which nothing trainable was left, by reason.
        truncated: rows that lost tokens to the length limit. divided: rows cut into several
            sequences; every trained token is in one of them, but an answer's later parts stand
            without its question.
        duplicates: rows whose tokens another row before has, too. branched: conversations whose
            template rewrites history.
        special: rows with the text of a special token inside.
        sequences, tokens, targets: what is trained on. longest: tokens of the longest sequence.
        example: the first row: what is shown to the model, and what it learns to write.
    """

    format: str = ""
    read: int = 0
    used: int = 0
    rejected: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    truncated: int = 0
    divided: int = 0
    duplicates: int = 0
    branched: int = 0
    special: int = 0
    sequences: int = 0
    tokens: int = 0
    targets: int = 0
    longest: int = 0
    example: tuple[str, str] = ("", "")

    def summary(self) -> str:
        parts = [
            f"{self.read:,} rows → {self.sequences:,} sequences, {self.tokens:,} tokens,"
            f" {self.targets:,} trained"
        ]
        parts += [
            f"{n:,} {what}"
            for n, what in (
                (self.truncated, "cut to the length limit"),
                (self.divided, "divided"),
                (self.branched, "in branches"),
                (self.duplicates, "duplicates"),
                (self.rejected, "rejected"),
            )
            if n
        ]
        return ", ".join(parts + [f"{n:,} dropped: {why}" for why, n in self.dropped.items()])

    def json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Prepared:
    """One row on its way: the example and its sequences, before the length limit, and the numbers
    that go beside them.
    """

    row: Row
    example: Example
    encoded: list[Encoded]
    numbers: tuple[float, ...] = ()


Chunk = list[tuple[Row, Example, list[list[Turn]]]]


def encoded(
    rows: Iterable[Row],
    chat: Chat,
    encoder: Encoder,
    form: Format,
    rejects: Rejects,
    learned: Learned = "demonstrations",
) -> Iterator[Prepared]:
    """Read, render and tokenise rows, in order and in chunks.

    What cannot be used goes to `rejects`.

    While one chunk is tokenised, which needs no Python, the next one is rendered.
    """
    with ThreadPoolExecutor(1) as beside:
        waiting: tuple[Chunk, Future[list[list[Encoded] | DataError]]] | None = None
        for chunk in _rendered(rows, chat, form, rejects, learned):
            begun = beside.submit(
                encoder.steps if learned == "steps" else encoder.encode,
                [turns for _, _, answers in chunk for turns in answers],
            )
            if waiting:
                yield from _tokenised(*waiting, rejects, learned)
            waiting = chunk, begun
        if waiting:
            yield from _tokenised(*waiting, rejects, learned)


def _rendered(
    rows: Iterable[Row], chat: Chat, form: Format, rejects: Rejects, learned: Learned
) -> Iterator[Chunk]:
    chunk: Chunk = []
    size = 0
    for row in rows:
        try:
            example = form.read(row)
            wanted = _answers(example, learned)
            answers = (
                [stepped(chat, example)]
                if learned == "steps"
                else [chat.turns(example, answer) for answer in wanted]
            )
        except DataError as error:
            rejects.add(error, row)
            continue
        chunk.append((row, example, answers))
        size += sum(len(turn.before) + len(turn.after) for turns in answers for turn in turns)
        if len(chunk) >= CHUNK_ROWS or size >= CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _tokenised(
    chunk: Chunk, begun: Future[list[list[Encoded] | DataError]], rejects: Rejects, learned: Learned
) -> Iterator[Prepared]:
    every = iter(begun.result())
    for row, example, answers in chunk:
        found = [_whole(next(every), learned) for _ in answers]
        if error := next((one for one in found if isinstance(one, DataError)), None):
            error.where = row.where
            rejects.add(error, row)
        else:
            yield Prepared(
                row,
                example,
                [e for one in found if not isinstance(one, DataError) for e in one],
                _numbers(example, learned),
            )


def _whole(found: list[Encoded] | DataError, learned: Learned) -> list[Encoded] | DataError:
    """An answer's sequences. Answers that are compared must be one sequence each."""
    if learned == "demonstrations" or isinstance(found, DataError) or len(found) == 1:
        return found
    return DataError(
        "the chat template rewrites what was said before between the turns of this answer, so that"
        " it is no one sequence that could be compared",
        cure="compare its last turn alone: --train-on last; or use another --chat-template",
    )


def _answers(example: Example, learned: Learned) -> tuple[Text, ...]:
    """The answers of a row that are learned from.

    Raises:
        DataError: the row is of another kind.
    """
    answers, wanted, where = example.answers, learned.removesuffix("s"), example.where
    if not answers:
        raise DataError(
            f"a prompt without an answer, where a {wanted} is wanted",
            where=where,
            cure="say which column is the answer: --data FILE,completion=…",
        )
    if bool(example.steps) != (learned == "steps"):
        raise DataError(
            (
                f"steps with labels, where a {wanted} is wanted"
                if example.steps
                else "no steps with labels"
            ),
            where=where,
            cure=(
                "rows with prompt, completions and labels are for posttrain reward-model --method "
                "process, which reads no others"
            ),
        )
    if learned == "steps":
        return answers
    if learned == "demonstrations":
        if example.label is False:
            raise DataError(
                "an answer that is labelled bad, where a demonstration is wanted",
                where=where,
                cure="remove the row",
            )
        if len(answers) > 1:
            raise DataError(
                "a row of preferences, where a demonstration is wanted",
                where=where,
                cure="train on the chosen answers with --data FILE,completion=chosen",
            )
        return answers
    if learned == "labels":
        if len(answers) == 1 and example.label is None:
            raise DataError(
                "an answer of which is not said whether it is good",
                where=where,
                cure="give a column label that is true or false, or rows with chosen and rejected",
            )
        return answers[:2]
    if len(answers) == 1:
        raise DataError(
            f"{'an answer with a label' if example.label is not None else 'a demonstration'}, where"
            f" a {wanted} of answers is wanted",
            where=where,
            cure="give rows with chosen and rejected"
            + (
                "; or use --method kto; or make pairs with posttrain data pairs"
                * (example.label is not None)
            ),
        )
    if learned == "triples" and len(answers) < 3:
        raise DataError(
            "there is no answer to imitate beside chosen and rejected",
            where=where,
            cure="say which column it is: --data FILE,reference=…",
        )
    return answers[: 3 if learned == "triples" else 2]


def _numbers(example: Example, learned: Learned) -> tuple[float, ...]:
    """What goes beside a row's tree: of labels one for every sequence, of pairs the margin, of
    steps one for each.
    """
    if learned == "steps":
        return tuple(label for _, label in example.steps)
    if learned == "labels":
        return (1.0, 0.0) if example.label is None else (float(example.label),)
    return (
        (example.margin,) if learned in ("pairs", "triples") and example.margin is not None else ()
    )


def fit(one: Encoded, limit: int, policy: str, begin: int | None = None) -> list[Sequence]:
    """A sequence within a length limit.

    Args:
        one: its tokens.
        limit: tokens at most.
        policy: `right` cuts the end, `left` the start, `split` makes several that overlap by the
            one token that predicts the next one's first, `drop` gives none.
        begin: id of the begin token, which stays where the start is cut.
    Returns: sequences; those without a trained token are left out.
    """
    ids, mask = np.array(one.ids, np.int64), one.mask()
    # nothing predicts a first token
    found = [
        Sequence(ids[at], np.append(False, mask[at][1:])) for at in kept(one, limit, policy, begin)
    ]
    return [s for s in found if s.targets]


def kept(
    one: Encoded, limit: int, policy: str, begin: int | None = None
) -> list[slice | np.ndarray]:
    """Which tokens of a sequence each of those that `fit` makes of it has: their positions."""
    n = len(one.ids)
    if n <= limit:
        return [slice(0, n)]
    if policy == "right":
        return [slice(0, limit)]
    if policy == "left":
        return [
            (
                np.append(0, np.arange(n - limit + 1, n))
                if one.ids[0] == begin
                else slice(n - limit, n)
            )
        ]
    if policy == "split":
        return [slice(a, min(a + limit, n)) for a in range(0, n - 1, limit - 1)]
    return []


def prepare(
    source: Source,
    chat: Chat,
    encoder: Encoder,
    folder: Path,
    *,
    max_length: int,
    truncate: str = "",
    form: str = "",
    learned: Learned = "demonstrations",
    rejects: Rejects | None = None,
    told: Told = lambda read: None,
) -> Account:
    """Write a source's trees into a folder, and beside them the numbers that belong to them.

    Args:
        source: the rows.
        chat: renders them. encoder: tokenises them.
        folder: see `posttrain.data.store`.
        max_length: tokens of a sequence at most.
        truncate: see `fit`; empty: text is split, all else cut at the end.
        form: name of the format; empty: found from the first row.
        learned: what is learned from.
        rejects: takes bad rows; None stops at the first.
        told: hears how many bytes have been read.
    Raises:
        DataError: a row cannot be used, there is no row, or nothing trainable is left of more than
            half of them.
    """
    account = Account()
    with (
        TreeWriter(folder) as out,
        NumberWriter(folder) if learned != "demonstrations" else nullcontext() as numbers,
    ):
        for one, trees, _ in accounted(
            source,
            chat,
            encoder,
            folder,
            account,
            max_length=max_length,
            truncate=truncate,
            form=form,
            learned=learned,
            rejects=rejects or Rejects(),
            told=told,
        ):
            for tree in trees:
                out.add(tree, one.encoded[0].prompt)
                if numbers:
                    numbers.add(
                        one.numbers[: tree[0].targets] if learned == "steps" else one.numbers
                    )  # steps may be cut off
    check(account, source)
    return account


def accounted(
    source: Source,
    chat: Chat,
    encoder: Encoder,
    scratch: Path,
    account: Account,
    *,
    max_length: int,
    truncate: str,
    form: str,
    rejects: Rejects,
    told: Told,
    learned: Learned = "demonstrations",
) -> Iterator[tuple[Prepared, list[Tree], str]]:
    """Every row of a source that can be read, its trees, and why there are none; the account is
    filled on the way.

    Args:
        scratch: a folder for a file of hashes, which is removed at the end; the others are those of
            `prepare`.
    """
    shape, dropped = Format(form), Counter[str]()
    read_before, rejected_before = rejects.read, rejects.count
    reasons_before = Counter(rejects.reasons)
    with open(scratch / "hashes", "wb") as hashes:
        for one in encoded(read(source, rejects, told), chat, encoder, shape, rejects, learned):
            if not account.example[1]:
                account.example = shown(one, chat, encoder)
            account.special += chat.holds_special(one.example)
            account.branched += learned == "demonstrations" and len(one.encoded) > 1
            trees, why, cut = _trees(
                one, max_length, truncate, encoder.tokenizer.bos_token_id, learned
            )
            if why:
                dropped[why] += 1
            else:
                account.used += 1
                account.truncated += cut
                account.divided += not cut and max(len(e.ids) for e in one.encoded) > max_length
                hashes.write(_hash(trees))
                for tree in trees:
                    account.sequences += len(tree)
                    account.tokens += sum(len(s.tokens) for s in tree)
                    account.targets += sum(s.targets for s in tree)
                    account.longest = max(account.longest, *(len(s.tokens) for s in tree))
            yield one, trees, why
    account.format, account.dropped = shape.name, dict(dropped)
    account.read, account.rejected = rejects.read - read_before, rejects.count - rejected_before
    account.reasons = dict(rejects.reasons - reasons_before)
    account.duplicates = _duplicates(scratch / "hashes")
    (scratch / "hashes").unlink()
    assert account.read == account.used + account.rejected + sum(dropped.values()), account


def check(account: Account, source: Source) -> None:
    """Refuse a source of which nothing, or less than half, is left.

    Raises:
        DataError: with what became of its rows.
    """
    if not account.read:
        raise DataError(f"there are no rows in {source}", cure="check the file")
    if account.used < account.read / 2:
        raise DataError(
            f"more than half of the rows of {source} cannot be trained on: {account.summary()}",
            cure="raise --max-length, or look at the data and its columns",
        )


def policy_for(example: Example, asked: str) -> str:
    """What becomes of a row over the length limit; see `fit`."""
    return asked or (
        "split" if isinstance(example.answers[0], str) and not example.prompt else "right"
    )


def _trees(
    one: Prepared, limit: int, asked: str, begin: int | None, learned: Learned
) -> tuple[list[Tree], str, bool]:
    """A row's trees within the limit; why there are none; whether tokens were lost."""
    policy = policy_for(one.example, asked)
    over = max(len(e.ids) for e in one.encoded) > limit
    if over and policy == "drop":
        return [], f"longer than {limit} tokens", False
    if learned != "demonstrations":
        return *_compared(one, limit, "left" if policy == "left" else "right", begin, learned), over
    found = [fit(e, limit, policy, begin) for e in one.encoded]
    if over and policy == "split":  # each window stands for itself
        trees: list[Tree] = [(s,) for some in found for s in some]
    else:
        trees = [tuple(s for some in found for s in some)] if any(found) else []
    if trees:
        return trees, "", over and policy != "split"
    if not over:
        return [], "one token is no sequence: nothing predicts it", False
    return [], f"the prompt alone fills {limit} tokens", False


def _compared(
    one: Prepared, limit: int, policy: str, begin: int | None, learned: Learned
) -> tuple[list[Tree], str]:
    """The tree of answers that are compared, all of them within the limit, and why there is none.

    Where the start is cut, all lose as many tokens, so that they still go on from one prompt.
    """
    if policy == "left" and (lost := max(len(e.ids) for e in one.encoded) - limit) > 0:
        parts = [
            fit(e, len(e.ids) - lost, policy, begin) for e in one.encoded if len(e.ids) > lost + 1
        ]
    else:
        parts = [fit(e, limit, policy, begin) for e in one.encoded]
    found = tuple(s for some in parts for s in some)
    if len(found) < len(one.encoded):
        return [], f"the prompt alone fills {limit} tokens"
    if learned not in ("labels", "steps") and np.array_equal(found[0].tokens, found[1].tokens):
        same = one.encoded[0].ids == one.encoded[1].ids
        return (
            [],
            (
                "chosen and rejected are the same"
                if same
                else f"chosen and rejected are the same in the first {limit} tokens"
            ),
        )
    return [found], ""


def shown(one: Prepared, chat: Chat, encoder: Encoder) -> tuple[str, str]:
    """The first answer of a row: what the model is shown, and what it learns to write."""
    first = one.encoded[0]
    span = first.spans[0]
    decode = encoder.tokenizer.decode
    return decode(first.ids[: span.start]), decode(first.ids[span.start : span.end])


def _hash(trees: list[Tree]) -> bytes:
    hashed = hashlib.blake2b(digest_size=8)
    for tree in trees:
        for one in tree:
            hashed.update(one.tokens.tobytes())
    return hashed.digest()


def _duplicates(path: Path) -> int:
    """How many hashes stand there again. They are spread evenly, so a part at a time is
    compared.
    """
    if not path.stat().st_size:
        return 0
    hashes = np.memmap(path, np.uint64, "r")
    parts = -(-len(hashes) // FOUND)
    unique = (
        sum(len(np.unique(hashes[hashes % parts == k])) for k in range(parts))
        if parts > 1
        else len(np.unique(hashes))
    )
    return len(hashes) - unique
