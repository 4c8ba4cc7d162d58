"""Win: the score of the answer that a model writes; against another model's answer, how often it
wins.
"""

from __future__ import annotations

from typing import Any

from posttrain.core.errors import DataError
from posttrain.data.formats import Example, Format
from posttrain.data.prompts import without_answer
from posttrain.data.rows import Row
from posttrain.evals.metrics import Mean, Wins
from posttrain.evals.records import PAIR_COLUMNS, Record, cluster_of
from posttrain.evals.subject import Generation, Subject
from posttrain.evals.task import task
from posttrain.scoring.score import Response, Score
from posttrain.scoring.scorers import reasons, refuse_failures

BATCH = 256  # answers scored at a time


@task(
    "win",
    score=Mean("score", "score"),
    tokens=Mean("tokens", "tokens an answer"),
    win_rate=Wins("score", "wins"),
)
def win(subject: Subject, rows: list[Row]) -> list[Record]:
    """The answer to every prompt, always the most likely token, and its score.

    Prompts that leave no room for `max_tokens` give no record.

    Raises:
        DataError: more than half of the answers have no score, or the scorer failed.
    """
    form = Format(prompts=True)
    prompts = [_prompt(form, row) for row in rows]
    ids = subject.encode([example for example, _ in prompts])
    room = subject.max_length - subject.options.max_tokens
    kept = [i for i, tokens in enumerate(ids) if len(tokens) <= room]
    answers = subject.generate([ids[i] for i in kept])
    responses = []
    for i, answer in zip(kept, answers, strict=True):
        example, columns = prompts[i]
        responses.append(
            Response(example.prompt, answer.text, columns, rows[i].where, message=answer.message)
        )
    scores = _scores(subject, responses)
    return [
        _record(response, answer, score)
        for response, answer, score in zip(responses, answers, scores, strict=True)
    ]


def _prompt(form: Format, row: Row) -> tuple[Example, dict[str, Any]]:
    """A row's prompt, and its columns as scorers take them: `completion` is the wanted answer."""
    example, wanted = without_answer(form.read(row))
    columns = {key: value for key, value in row.fields.items() if key != "completion"}
    return example, columns if wanted is None else {**columns, "completion": wanted}


def _scores(subject: Subject, responses: list[Response]) -> list[Score]:
    scorer, spec = subject.options.scorer, subject.options.scorer_spec
    scores: list[Score] = []
    for a in range(0, len(responses), BATCH):
        batch = scorer(responses[a : a + BATCH])
        refuse_failures(spec, batch)
        scores += batch
    missing = sum(score.value is None for score in scores)
    if missing > len(scores) / 2:
        raise DataError(
            f"the scorer can judge only {len(scores) - missing} of {len(scores)} answers; "
            f"{reasons(scores)}",
            where=responses[0].where,
            cure="give rows or another scorer for which most answers have a score",
        )
    return scores


def _record(response: Response, answer: Generation, score: Score) -> Record:
    meta = {key: response.columns[key] for key in PAIR_COLUMNS if key in response.columns}
    if score.why:
        meta["why"] = score.why
    return Record(
        response.where,
        cluster_of(response.prompt),
        {"score": score.value, "tokens": answer.tokens, **score.parts},
        output=answer.text,
        meta={**answer.meta, **meta},
    )
