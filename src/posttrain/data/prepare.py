"""From sources to trees of tokens on the disk, with an account of every row.

    source → Row → Example → turns → tokens and mask → tree

What a row's tree is depends on what is learned:

    demonstrations   one answer; if the template rewrites history, a branch for each turn
    pairs            the chosen answer and the rejected one; the margin is stored beside the tree
    triples          chosen, rejected, and one to imitate
    labels           one answer and whether it is good; a pair counts as one of each
    steps            one answer whose steps' last tokens are trained; whether each step is right
                     is stored beside the tree

Rows read = rows used + dropped + rejected; see `posttrain.data.account`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.core.errors import DataError
from posttrain.data.account import Account, check, count_repeats
from posttrain.data.chat import Chat, Turn
from posttrain.data.examples import Kind
from posttrain.data.forest import Sequence, Tree
from posttrain.data.formats import Example, Format
from posttrain.data.messages import Text, answer_length
from posttrain.data.rows import ProgressCallback, Rejects, Row
from posttrain.data.settings import Source
from posttrain.data.sources import read
from posttrain.data.store import NumberWriter, TreeWriter
from posttrain.data.tokens import Encoded, Encoder

CHUNK_ROWS, CHUNK_CHARACTERS = 500, 4_000_000  # tokenised at a time; bounds memory
PREFERENCES = ("pairs", "triples", "labels")  # of rows that say which answer is better


@dataclass(frozen=True)
class Preparation:
    """How rows become trees.

    Attributes:
        chat: renders rows; it brings the tokenizer.
        max_length: tokens of a sequence at most.
        truncate: what becomes of longer ones, see `fit`; empty: text is split, all else cut at the
            end.
        format: name of the rows' format; empty: found from the first row.
        learned: what is learned from a row.
    """

    chat: Chat
    max_length: int
    truncate: str = ""
    format: str = ""
    learned: Kind = "demonstrations"

    @cached_property
    def encoder(self) -> Encoder:
        return Encoder(self.chat.tokenizer)

    @cached_property
    def begin(self) -> int | None:
        """Id of the token that begins a sequence."""
        return self.encoder.tokenizer.bos_token_id

    def policy(self, example: Example) -> str:
        """What becomes of this row over the length limit; see `fit`."""
        if self.truncate:
            return self.truncate
        is_text = isinstance(example.answers[0], str) and not example.prompt
        return "split" if is_text else "right"


@dataclass(frozen=True, slots=True)
class Prepared:
    """One tokenised row, before the length limit.

    Attributes:
        encoded: its sequences.
        numbers: what is stored beside its tree: labels, a margin or the steps' labels.
    """

    row: Row
    example: Example
    encoded: list[Encoded]
    numbers: tuple[float, ...] = ()

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(len(encoded.ids) for encoded in self.encoded)


# ------------------------------------------------------------------------ rows to tokens, in chunks

Rendered = tuple[Row, Example, list[list[Turn]]]  # a row and the turns of each of its answers
Tokenised = list[list[Encoded] | DataError]  # the sequences of each answer of a chunk


def tokenise(
    rows: Iterable[Row], preparation: Preparation, form: Format, rejects: Rejects
) -> Iterator[Prepared]:
    """Read, render and tokenise rows, in order and in chunks.

    Rows that cannot be used go to `rejects`. While one chunk is tokenised, which does not hold the
    interpreter, the next one is rendered.
    """
    encode = (
        preparation.encoder.steps if preparation.learned == "steps" else preparation.encoder.encode
    )
    with ThreadPoolExecutor(1) as background:
        pending: tuple[list[Rendered], Future[Tokenised]] | None = None
        for chunk in _rendered(rows, preparation, form, rejects):
            conversations = [turns for _, _, answers in chunk for turns in answers]
            tokenised = background.submit(encode, conversations)
            if pending:
                yield from _collect(*pending, preparation.learned, rejects)
            pending = chunk, tokenised
        if pending:
            yield from _collect(*pending, preparation.learned, rejects)


def _rendered(
    rows: Iterable[Row], preparation: Preparation, form: Format, rejects: Rejects
) -> Iterator[list[Rendered]]:
    chunk: list[Rendered] = []
    characters = 0
    for row in rows:
        try:
            example = form.read(row)
            answers = _render(example, preparation)
        except DataError as error:
            rejects.add(error, row)
            continue
        chunk.append((row, example, answers))
        for turns in answers:
            characters += sum(len(turn.before) + len(turn.after) for turn in turns)
        if len(chunk) >= CHUNK_ROWS or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _render(example: Example, preparation: Preparation) -> list[list[Turn]]:
    """The turns of each answer that is learned from."""
    answers = learned_answers(example, preparation.learned)
    if preparation.learned == "steps":
        return [preparation.chat.step_turns(example)]
    return [preparation.chat.turns(example, answer) for answer in answers]


def _collect(
    chunk: list[Rendered], tokenised: Future[Tokenised], learned: Kind, rejects: Rejects
) -> Iterator[Prepared]:
    results = iter(tokenised.result())
    for row, example, answers in chunk:
        sequences: list[Encoded] = []
        first_error: DataError | None = None
        for _ in answers:
            result = next(results)  # every answer's, even after an error
            error = result if isinstance(result, DataError) else _comparable(result, learned)
            if error is not None:
                first_error = first_error or error
            elif not isinstance(result, DataError):
                sequences += result
        if first_error is not None:
            first_error.where = row.where
            rejects.add(first_error, row)
        else:
            yield Prepared(row, example, sequences, _numbers(example, learned))


def _comparable(sequences: list[Encoded], learned: Kind) -> DataError | None:
    """Why an answer cannot be compared with others: it must be one sequence."""
    if learned == "demonstrations" or len(sequences) == 1:
        return None
    return DataError(
        "the chat template rewrites what was said before between the turns of this answer, so that "
        "it is no one sequence that could be compared",
        cure="compare its last turn alone: --train-on last; or use another --chat-template",
    )


# -------------------------------------------------------------------------------- what is learned


def learned_answers(example: Example, learned: Kind) -> tuple[Text, ...]:
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
        what = "no steps with labels"
        if example.steps:
            what = f"steps with labels, where a {wanted} is wanted"
        raise DataError(
            what,
            where=where,
            cure=(
                "rows with prompt, completions and labels are for posttrain reward-model --method "
                "process, which reads no others"
            ),
        )
    match learned:
        case "demonstrations":
            _check_demonstration(example)
            return answers
        case "labels":
            if len(answers) == 1 and example.label is None:
                raise DataError(
                    "the row does not say whether its answer is good",
                    where=where,
                    cure=(
                        "give a column label that is true or false, or rows with chosen and "
                        "rejected"
                    ),
                )
            return answers[:2]
        case "pairs" | "triples":
            _check_compared(example, learned)
            return answers[: 3 if learned == "triples" else 2]
    return answers


def _check_demonstration(example: Example) -> None:
    if example.label is False:
        raise DataError(
            "an answer that is labelled bad, where a demonstration is wanted",
            where=example.where,
            cure="remove the row",
        )
    if len(example.answers) > 1:
        raise DataError(
            "a row of preferences, where a demonstration is wanted",
            where=example.where,
            cure="train on the chosen answers with --data FILE,completion=chosen",
        )


def _check_compared(example: Example, learned: Kind) -> None:
    if len(example.answers) == 1:
        what, cure = "a demonstration", "give rows with chosen and rejected"
        if example.label is not None:
            what = "an answer with a label"
            cure += "; or use --method kto; or make pairs with posttrain data pairs"
        raise DataError(
            f"{what}, where a {learned.removesuffix('s')} of answers is wanted",
            where=example.where,
            cure=cure,
        )
    if learned == "triples" and len(example.answers) < 3:
        raise DataError(
            "there is no answer to imitate beside chosen and rejected",
            where=example.where,
            cure="say which column it is: --data FILE,reference=…",
        )


def _numbers(example: Example, learned: Kind) -> tuple[float, ...]:
    """What is stored beside a row's tree: a label for every sequence, the margin of a pair, or a
    label for every step.
    """
    if learned == "steps":
        return tuple(label for _, label in example.steps)
    if learned == "labels":
        return (1.0, 0.0) if example.label is None else (float(example.label),)
    if learned in ("pairs", "triples") and example.margin is not None:
        return (example.margin,)
    return ()


# ------------------------------------------------------------------------------- the length limit


def fit(encoded: Encoded, limit: int, policy: str, begin: int | None = None) -> list[Sequence]:
    """A sequence within a length limit.

    Args:
        encoded: its tokens.
        limit: tokens at most.
        policy: `right` cuts the end, `left` the start, `split` makes several that overlap by the
            one token that predicts the next one's first, `drop` gives none.
        begin: id of the begin token, which stays when the start is cut.
    Returns: sequences; those without a trained token are left out.
    """
    ids, mask = np.array(encoded.ids, np.int64), encoded.mask()
    sequences = []
    for window in windows(encoded, limit, policy, begin):
        trained = np.append(False, mask[window][1:])  # nothing predicts a first token
        sequences.append(Sequence(ids[window], trained))
    return [sequence for sequence in sequences if sequence.N]


def windows(
    encoded: Encoded, limit: int, policy: str, begin: int | None = None
) -> list[slice | np.ndarray]:
    """The positions of the tokens that stay, for each sequence that `fit` makes."""
    n = len(encoded.ids)
    if n <= limit:
        return [slice(0, n)]
    match policy:
        case "right":
            return [slice(0, limit)]
        case "left" if encoded.ids[0] == begin:
            return [np.append(0, np.arange(n - limit + 1, n))]
        case "left":
            return [slice(n - limit, n)]
        case "split":
            return [slice(start, min(start + limit, n)) for start in range(0, n - 1, limit - 1)]
    return []


def _trees(prepared: Prepared, preparation: Preparation) -> tuple[list[Tree], str, bool]:
    """A row's trees within the limit; why there are none; whether tokens were lost."""
    limit, policy = preparation.max_length, preparation.policy(prepared.example)
    over = prepared.longest > limit
    if over and policy == "drop":
        return [], f"longer than {limit} tokens", False
    if preparation.learned != "demonstrations":
        return *_compared(prepared, preparation), over
    sequences: list[Sequence] = []
    for encoded in prepared.encoded:
        sequences += fit(encoded, limit, policy, preparation.begin)
    if sequences and over and policy == "split":  # each window is a tree of its own
        return [Tree((sequence,)) for sequence in sequences], "", False
    if sequences:
        return [Tree(tuple(sequences))], "", over
    if not over:
        return [], "one token is no sequence: nothing predicts it", False
    return [], f"the prompt alone fills {limit} tokens", False


def _compared(prepared: Prepared, preparation: Preparation) -> tuple[list[Tree], str]:
    """The tree of answers that are compared, all of them within the limit; why there is none.

    Where the start is cut, all lose as many tokens, so that they still share one prompt.
    """
    limit = preparation.max_length
    policy = "left" if preparation.policy(prepared.example) == "left" else "right"
    lost = max(0, prepared.longest - limit) if policy == "left" else 0
    sequences: list[Sequence] = []
    for encoded in prepared.encoded:
        own_limit = len(encoded.ids) - lost if lost else limit
        if own_limit > 1:
            sequences += fit(encoded, own_limit, policy, preparation.begin)
    if len(sequences) < len(prepared.encoded):
        return [], f"the prompt alone fills {limit} tokens"
    if preparation.learned in ("pairs", "triples"):
        chosen, rejected = sequences[:2]
        if np.array_equal(chosen.tokens, rejected.tokens):
            cut = prepared.encoded[0].ids != prepared.encoded[1].ids
            where = f" in the first {limit} tokens" if cut else ""
            return [], f"chosen and rejected are the same{where}"
    return [Tree(tuple(sequences))], ""


# ------------------------------------------------------------------------------- sources to trees


def prepare(
    source: Source,
    preparation: Preparation,
    folder: Path,
    *,
    rejects: Rejects | None = None,
    progress: ProgressCallback = lambda bytes_read: None,
    observe: Callable[[Example], None] = lambda example: None,
) -> Account:
    """Write a source's trees into a folder, and beside them the numbers that belong to them.

    Beside them also `hashes`, 8 bytes for the tokens of every used row, and of preferences `edges`;
    see `_edge`.

    Args:
        source: the rows.
        preparation: how they become trees.
        folder: see `posttrain.data.store`.
        rejects: takes rows that cannot be used; None raises at the first.
        progress: called with the bytes read so far.
        observe: called with every row that is used.
    Raises:
        DataError: a row cannot be used, there is no row, or nothing trainable is left of more than
            half of them.
    """
    account, learned = Account(), preparation.learned
    with (
        TreeWriter(folder) as tree_writer,
        NumberWriter(folder) if learned != "demonstrations" else nullcontext() as numbers,
        open(folder / "edges", "wb") if learned in PREFERENCES else nullcontext() as edges,
    ):
        rows = accounted(source, preparation, folder, account, rejects or Rejects(), progress)
        for prepared, trees, dropped in rows:
            if not dropped:
                observe(prepared.example)
            for tree in trees:
                tree_writer.add(tree, prepared.encoded[0].prompt, _characters(prepared, learned))
                if numbers:
                    # steps may be cut off, and their labels with them
                    count = tree[0].N if learned == "steps" else None
                    numbers.add(prepared.numbers[:count])
                if edges:
                    edges.write(_edge(tree, prepared, learned))
    check(account, source)
    return account


def accounted(
    source: Source,
    preparation: Preparation,
    scratch: Path,
    account: Account,
    rejects: Rejects,
    progress: ProgressCallback,
) -> Iterator[tuple[Prepared, list[Tree], str]]:
    """Every row of a source that can be read, its trees, and why there are none.

    Args:
        scratch: a folder for the file `hashes`, 8 bytes for the tokens of every used row.
        account: filled on the way. The other arguments are those of `prepare`.
    """
    form, dropped = Format(preparation.format), Counter[str]()
    read_before, rejected_before = rejects.read, rejects.count
    reasons_before = Counter(rejects.reasons)
    with open(scratch / "hashes", "wb") as hashes:
        for prepared in tokenise(read(source, rejects, progress), preparation, form, rejects):
            if not account.example[1]:
                account.example = shown(prepared, preparation.encoder.tokenizer)
            account.special += preparation.chat.holds_special(prepared.example)
            account.branched += (
                preparation.learned == "demonstrations" and len(prepared.encoded) > 1
            )
            trees, reason, lost_tokens = _trees(prepared, preparation)
            if reason:
                dropped[reason] += 1
            else:
                account.used += 1
                account.truncated += lost_tokens
                account.divided += not lost_tokens and prepared.longest > preparation.max_length
                hashes.write(_hash(trees))
                _add_trees(account, trees)
            yield prepared, trees, reason
    account.format, account.dropped = form.name, dict(dropped)
    account.columns, account.unread, account.notes = form.columns, [*form.unread], [*form.notes]
    account.read, account.rejected = rejects.read - read_before, rejects.count - rejected_before
    account.reasons = dict(rejects.reasons - reasons_before)
    account.duplicates = count_repeats(scratch / "hashes")
    assert account.read == account.used + account.rejected + sum(dropped.values()), account


def _add_trees(account: Account, trees: list[Tree]) -> None:
    for tree in trees:
        account.sequences += len(tree)
        for sequence in tree:
            account.tokens += len(sequence.tokens)
            account.targets += sequence.N
            account.longest = max(account.longest, len(sequence.tokens))


def shown(prepared: Prepared, tokenizer: Any) -> tuple[str, str]:
    """The first answer of a row: what the model is shown, and what it learns to write."""
    first = prepared.encoded[0]
    span = first.spans[0]
    before, answer = first.ids[: span.start], first.ids[span.start : span.end]
    return tokenizer.decode(before), tokenizer.decode(answer)


def _hash(trees: Iterable[Iterable[Sequence]]) -> bytes:
    """8 bytes that stand for a row's tokens."""
    digest = hashlib.blake2b(digest_size=8)
    for tree in trees:
        for sequence in tree:
            digest.update(sequence.tokens.tobytes())
    return digest.digest()


def _edge(tree: Tree, prepared: Prepared, learned: Kind) -> bytes:
    """Which answer is better than which: 16 bytes, 8 for the tokens of each answer after its
    prompt. A good answer is better than none, which is 0, and none is better than a bad one; a
    pair that counts as two labelled answers is a pair.
    """
    hashes = [_hash([[sequence]]) for sequence in tree][:2]
    if learned == "labels" and len(hashes) == 1:
        hashes.insert(1 if prepared.numbers[0] else 0, bytes(8))
    return b"".join(hashes)


def _characters(prepared: Prepared, learned: Kind) -> list[int] | None:
    """How long every compared answer is; None where none are compared."""
    if learned not in ("pairs", "triples"):
        return None
    return [answer_length(answer) for answer in learned_answers(prepared.example, learned)]
