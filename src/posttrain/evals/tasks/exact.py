"""Exact: whether the answer that a model writes is the wanted one."""

from __future__ import annotations

from posttrain.core.errors import DataError
from posttrain.data.formats import Example, Format
from posttrain.data.prompts import without_answer
from posttrain.data.rows import Row
from posttrain.evals.metrics import Share
from posttrain.evals.records import Record, cluster_of
from posttrain.evals.subject import Subject
from posttrain.evals.task import task
from posttrain.scoring.verifiers import MATCHES, is_wanted

KEPT = ("skill", "level", "category")  # columns that stay in a record


@task("exact", correct=Share("correct", "correct"))
def exact(subject: Subject, rows: list[Row]) -> list[Record]:
    """The answer to every question, always the most likely token, and whether it matches the wanted
    one.
    """
    form, match = Format(), MATCHES[subject.options.match]
    questions = [_question(form.read(row)) for row in rows]
    answers = subject.ask([question for question, _ in questions])
    records = []
    for row, (question, wanted), answer in zip(rows, questions, answers, strict=True):
        correct = float(is_wanted(match, answer.text, wanted))
        columns = {key: row.fields[key] for key in KEPT if key in row.fields}
        records.append(
            Record(
                row.where,
                cluster_of(question.prompt),
                {"correct": correct, "tokens": answer.tokens},
                output=answer.text,
                meta={"wanted": wanted, **answer.meta, **columns},
            )
        )
    return records


def _question(example: Example) -> tuple[Example, str]:
    """An example without its last answer, and that answer.

    Raises:
        DataError: it has none, or several.
    """
    question, wanted = without_answer(example)
    if wanted is None:
        raise DataError(
            "an item needs a question and one answer",
            where=example.where,
            cure="say which columns they are: FILE,prompt=question,completion=answer",
        )
    return question, wanted
