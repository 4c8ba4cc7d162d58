"""Perplexity: how surprised a model is by text, in nats a token and bits a byte."""

from __future__ import annotations

import math

from posttrain.data.forest import Tree
from posttrain.data.formats import Format
from posttrain.data.prepare import fit
from posttrain.data.rows import Row
from posttrain.data.tokens import Encoded, Span
from posttrain.evals.metrics import Ratio
from posttrain.evals.records import Record
from posttrain.evals.subject import Subject
from posttrain.evals.task import task


@task(
    "perplexity",
    nats_per_token=Ratio("nats", "tokens", "nats a token"),
    bits_per_byte=Ratio("nats", "bytes", "bits a byte", scale=1 / math.log(2)),
)
def perplexity(subject: Subject, rows: list[Row]) -> list[Record]:
    """Nats, tokens and bytes of every text.

    Long texts are cut into windows; no token is scored twice. A text of a single token, which
    nothing predicts, gives no record.
    """
    form = Format("text", all_read=True)
    texts = [str(form.read(row).answers[0]) for row in rows]
    trees: list[Tree] = []
    owners: list[int] = []
    for i, ids in enumerate(subject.encoder.prompts(texts, [True] * len(texts))):
        pieces = fit(Encoded(ids, (Span(1, len(ids), 0),)), subject.max_length, "split")
        trees += [Tree((piece,)) for piece in pieces]
        owners += [i] * len(pieces)
    nats, tokens = [0.0] * len(rows), [0] * len(rows)
    for i, tree, logprob in zip(owners, trees, subject.score(trees), strict=True):
        nats[i] -= logprob
        tokens[i] += tree.N
    return [
        Record(
            row.where, values={"nats": nats[i], "tokens": tokens[i], "bytes": len(text.encode())}
        )
        for i, (row, text) in enumerate(zip(rows, texts, strict=True))
        if tokens[i]
    ]
