"""Prefer: whether a model finds the chosen answer of a pair likelier than the rejected one, summed
and a token; against another model also whether it has gained more, which is the reward that
preference training gives it.
"""

from __future__ import annotations

from posttrain.core.errors import DataError
from posttrain.core.ties import wins
from posttrain.data.forest import Tree
from posttrain.data.formats import Format
from posttrain.data.prepare import fit
from posttrain.data.rows import Row
from posttrain.evals.metrics import Share, Wins
from posttrain.evals.records import PAIR_COLUMNS, Record, cluster_of
from posttrain.evals.subject import Subject
from posttrain.evals.task import task


@task(
    "prefer",
    preferred=Share("preferred", "chosen likelier", chance=0.5),
    preferred_per_token=Share("preferred_per_token", "likelier a token", chance=0.5),
    rewarded=Wins("margin", "chosen gained more"),
)
def prefer(subject: Subject, rows: list[Row]) -> list[Record]:
    """Log-probabilities of both answers to every prompt, in nats, and their tokens.

    Pairs of more than `max_length` tokens give no record: cut, they would be other answers to other
    prompts.
    """
    form = Format("preference")
    examples = [form.read(row) for row in rows]
    turns = [
        subject.chat.turns(example, answer)
        for example in examples
        for answer in example.answers[:2]
    ]
    encoded = iter(subject.encoder.encode(turns))
    trees: list[Tree] = []
    kept: list[int] = []
    for i, row in enumerate(rows):
        sides = []
        for found in (next(encoded), next(encoded)):
            if isinstance(found, DataError):
                found.where = row.where
                raise found
            sides += fit(found[-1], subject.max_length, "drop")
        if len(sides) == 2:
            trees.append(Tree(tuple(sides)))
            kept.append(i)
    scores = iter(subject.score(trees))
    return [
        Record(
            rows[i].where,
            cluster_of(examples[i].prompt),  # empty where the answers are whole conversations
            _values(next(scores), next(scores), [side.N for side in tree]),
            meta={key: rows[i].fields[key] for key in PAIR_COLUMNS if key in rows[i].fields},
        )
        for i, tree in zip(kept, trees, strict=True)
    ]


def _values(chosen: float, rejected: float, tokens: list[int]) -> dict[str, float]:
    """Of log-probabilities and tokens of both answers."""
    return {
        "chosen": chosen,
        "rejected": rejected,
        "chosen_tokens": tokens[0],
        "rejected_tokens": tokens[1],
        "margin": chosen - rejected,
        "preferred": wins(chosen - rejected),
        "preferred_per_token": wins(chosen / tokens[0] - rejected / tokens[1]),
    }
