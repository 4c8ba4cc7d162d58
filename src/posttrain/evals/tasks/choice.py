"""Choice: which of several given answers a model finds the most likely, as lm-eval's multiple
choice: summed over the choice's tokens, and that per byte.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass

import numpy as np

from posttrain.core.errors import DataError
from posttrain.data.chat import Chat
from posttrain.data.forest import Sequence, Tree
from posttrain.data.formats import Example
from posttrain.data.prepare import fit
from posttrain.data.rows import Row, kind
from posttrain.data.tokens import Encoded, Encoder, Span
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


def trees_of(
    chat: Chat, encoder: Encoder, max_length: int, rows: Many[Row]
) -> tuple[list[Question], list[Tree]]:
    """Every row's question, and its choices as a tree.

    Raises:
        DataError: a row that is no question with choices, or of more tokens than fit; it names it.
    """
    questions = [question_of(row) for row in rows]
    turns = []
    for question in questions:
        for choice in question.choices:
            example = Example(question.where, question.text, (choice,))
            turns.append(chat.turns(example, choice))
    encoded = iter(encoder.encode(turns))
    trees: list[Tree] = []
    for question in questions:
        sequences = []
        for _ in question.choices:
            answer = next(encoded)
            if isinstance(answer, DataError):
                answer.where = question.where
                raise answer
            sequences.append(_without_end(answer[0], max_length, question.where))
        trees.append(Tree(tuple(sequences)))
    return questions, trees


@task(
    "choice",
    check=trees_of,
    correct=Share("correct", "correct", chance="chance"),
    correct_per_byte=Share("correct_per_byte", "correct, per byte", chance="chance"),
)
def choice(subject: Subject, rows: list[Row]) -> list[Record]:
    """Which choice is the most likely answer to every question."""
    questions, trees = trees_of(subject.chat, subject.encoder, subject.max_length, rows)
    scores = iter(subject.score(trees))
    records = []
    for question in questions:
        logprobs = [next(scores) for _ in question.choices]
        sizes = [len(choice.encode()) for choice in question.choices]
        per_byte = [logprob / size for logprob, size in zip(logprobs, sizes, strict=True)]
        records.append(
            Record(
                question.where,
                cluster_of(question.text),
                {
                    "correct": float(np.argmax(logprobs) == question.right),
                    "correct_per_byte": float(np.argmax(per_byte) == question.right),
                    "chance": 1 / len(question.choices),
                },
                output={"logprobs": logprobs},
                meta={"right": question.right, "bytes": sizes},
            )
        )
    return records


def _without_end(one: Encoded, max_length: int, where: str) -> Sequence:
    """A choice after its question, without the token that ends it."""
    span = one.spans[-1]
    if (n := span.end - 1) > max_length:
        raise DataError(
            f"the question and a choice are {n:,} tokens, and {max_length:,} fit",
            where=where,
            cure=(
                f"shorten or remove the row; or give --max-length {n}, if the model can address as "
                "many"
            ),
        )
    kept = fit(Encoded(one.ids[:n], (Span(span.start, n, 0),)), max_length, "drop")
    if not kept:
        raise DataError(
            "a choice is a single token that ends the answer",
            where=where,
            cure="give every choice a text",
        )
    return kept[0]
