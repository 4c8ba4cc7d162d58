"""A task of a user: how loud a model's answers are."""

from __future__ import annotations

from posttrain.data.rows import Row
from posttrain.evals.subject import Subject
from posttrain.evals.tasks import Mean, Record, Share, Wins, cluster_of, task


@task("loudness", loud=Share("loud"), signs=Mean("signs", "signs an answer"), louder=Wins("signs"))
def loudness(subject: Subject, rows: list[Row]) -> list[Record]:
    """Whether an answer is longer than the row allows; rows without a limit are left out."""
    rows = [row for row in rows if "limit" in row.fields]
    prompts = [row.text("prompt") for row in rows]
    return [
        Record(
            row.where,
            cluster_of(prompt),
            {"loud": float(len(answer.text) > row.fields["limit"]), "signs": len(answer.text)},
            output=answer.text,
        )
        for row, prompt, answer in zip(rows, prompts, subject.ask(prompts), strict=True)
    ]


not_a_task = loudness.ask
