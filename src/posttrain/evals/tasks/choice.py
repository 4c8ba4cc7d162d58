"""Choice: which of several given answers a model finds the most likely, as lm-eval's multiple
choice.

    acc        the choice with the greatest log-likelihood: summed over its tokens
    acc_norm   the same divided by the choice's characters
    acc_bytes  the same divided by its bytes in UTF-8

What is scored is the delimiter and the choice, after the prompt. The delimiter is a space after
plain text and nothing after a chat template. Where prompt or choices bring white space there, that
is the delimiter; no length counts it. A delimiter that is given stands between them as they are.

Prompt and choice are tokenised together and cut where the prompt's own tokens end; white space at
the end of the prompt goes with the choice.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, replace

import numpy as np

from posttrain.core.errors import DataError
from posttrain.data.chat import Chat
from posttrain.data.forest import Sequence, Tree
from posttrain.data.formats import Example
from posttrain.data.rows import Row, kind
from posttrain.data.tokens import Encoder
from posttrain.evals.metrics import Share
from posttrain.evals.records import Record, cluster_of
from posttrain.evals.subject import Subject
from posttrain.evals.task import task


@dataclass(frozen=True)
class Question:
    """A question with choices, of which one, number `right`, is right."""

    where: str
    text: str
    choices: tuple[str, ...]
    right: int


def question_of(row: Row) -> Question:
    """A row's question.

    Raises:
        DataError: the row has no question, fewer than two choices, or none that is right.
    """
    text, choices, right = (
        row.text("question"),
        row.fields.get("choices"),
        row.fields.get("answer_index"),
    )
    if (
        not isinstance(choices, list)
        or len(choices) < 2
        or not all(isinstance(choice, str) and choice for choice in choices)
    ):
        raise DataError(
            f"choices holds {kind(choices)}, not a list of at least two texts",
            where=row.where,
            cure="write choices as a list of texts",
        )
    if not isinstance(right, int) or isinstance(right, bool) or not 0 <= right < len(choices):
        raise DataError(
            f"answer_index is {right!r}, not the place of one of {len(choices)} choices",
            where=row.where,
            cure="the first choice is 0",
        )
    return Question(row.where, text, tuple(choices), right)


@dataclass(frozen=True)
class _Pair:
    """A prompt and one of its choices, as texts: all of `continuation` is scored."""

    prompt: str
    continuation: str
    plain: bool


def trees_of(
    chat: Chat, encoder: Encoder, max_length: int, rows: Many[Row]
) -> tuple[list[Question], list[Tree]]:
    """Every row's question, its choices as they are counted, and both as a tree.

    Raises:
        DataError: a row that is no question with choices, or of more tokens than fit; it names it.
    """
    questions, pairs = [], list[_Pair]()
    for row in rows:
        question, of_question = _pairs(chat, question_of(row))
        questions.append(question)
        pairs += of_question
    plain = [pair.plain for pair in pairs]
    prompts = encoder.prompts([pair.prompt for pair in pairs], plain)
    wholes = encoder.prompts([pair.prompt + pair.continuation for pair in pairs], plain)
    encoded = iter(zip(prompts, wholes, strict=True))
    trees = []
    for question in questions:
        sequences = [
            _sequence(*next(encoded), encoder, max_length, question.where) for _ in question.choices
        ]
        trees.append(Tree(tuple(sequences)))
    return questions, trees


@task(
    "choice",
    check=trees_of,
    acc=Share("acc", "acc, summed", chance="chance"),
    acc_norm=Share("acc_norm", "acc_norm, per character", chance="chance"),
    acc_bytes=Share("acc_bytes", "acc_bytes, per byte", chance="chance"),
)
def choice(subject: Subject, rows: list[Row]) -> list[Record]:
    """Which choice is the most likely answer to every question."""
    questions, trees = trees_of(subject.chat, subject.encoder, subject.max_length, rows)
    scores = iter(subject.score(trees))
    records = []
    for question in questions:
        logprobs = np.array([next(scores) for _ in question.choices])
        characters = [len(text) for text in question.choices]
        sizes = [len(text.encode()) for text in question.choices]

        def right(values: np.ndarray, question: Question = question) -> float:
            return float(np.argmax(values) == question.right)

        records.append(
            Record(
                question.where,
                cluster_of(question.text),
                {
                    "acc": right(logprobs),
                    "acc_norm": right(logprobs / characters),
                    "acc_bytes": right(logprobs / sizes),
                    "chance": 1 / len(question.choices),
                },
                output={"logprobs": logprobs.tolist()},
                meta={"right": question.right, "characters": characters, "bytes": sizes},
            )
        )
    return records


def _pairs(chat: Chat, question: Question) -> tuple[Question, list[_Pair]]:
    """A question with its choices as they are counted, and each with its prompt."""
    text, plain = chat.prompt(Example(question.where, question.text))
    choices, delimiters = question.choices, [chat.delimiter or ""] * len(question.choices)
    if chat.delimiter is None:
        choices, delimiters = _parted(choices, " " if plain else "")
        if plain and (not text or text[-1].isspace()):
            delimiters = [""] * len(choices)
    prompt = text.rstrip()
    space = text[len(prompt) :]
    pairs = []
    for delimiter, choice in zip(delimiters, choices, strict=True):
        pairs.append(_Pair(prompt, space + delimiter + choice, plain))
    return replace(question, choices=choices), pairs


def _parted(choices: tuple[str, ...], unset: str) -> tuple[tuple[str, ...], list[str]]:
    """Choices without the white space they begin with, and that, or else `unset`."""
    bare = tuple(choice.lstrip() for choice in choices)
    if not all(bare):  # white space is a choice
        return choices, [unset] * len(choices)
    spaces = [choice[: len(choice) - len(b)] for choice, b in zip(choices, bare, strict=True)]
    return bare, [space or unset for space in spaces]


def _sequence(
    prompt: list[int], whole: list[int], encoder: Encoder, max_length: int, where: str
) -> Sequence:
    """A choice after its question."""
    if not prompt:  # nothing would predict the first token
        begin = encoder.tokenizer.bos_token_id
        prompt = [encoder.tokenizer.eos_token_id if begin is None else begin]
        whole = [*prompt, *whole]
    ids = [*prompt, *whole[len(prompt) :]]
    if len(ids) > max_length:
        raise DataError(
            f"the question and a choice are {len(ids):,} tokens, and {max_length:,} fit",
            where=where,
            cure=(
                f"shorten or remove the row; or give --max-length {len(ids)}, if the model can "
                "address as many"
            ),
        )
    if len(ids) == len(prompt):
        raise DataError(
            "a choice has no token of its own after the question",
            where=where,
            cure="give every choice a text, or another --choice-delimiter",
        )
    return Sequence(np.array(ids, np.int64), np.arange(len(ids)) >= len(prompt))
