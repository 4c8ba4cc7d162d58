"""Perplexity: how surprised a model is by text, over its tokens, words and bytes.

    bits_per_byte    Σ nats / (Σ bytes · ln 2)
    byte_perplexity  exp(Σ nats / Σ bytes)
    word_perplexity  exp(Σ nats / Σ words)

as lm-eval has them: bytes of UTF-8, words as white space parts them. Every token of a text is
scored once: the first after the begin token, or where there is none after the end token.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from collections.abc import Sequence as Many

import numpy as np

from posttrain.data.forest import Sequence, Tree
from posttrain.data.formats import Format
from posttrain.data.rows import Row
from posttrain.data.tokens import Encoder
from posttrain.evals.metrics import Perplexity, Ratio
from posttrain.evals.records import Record
from posttrain.evals.subject import Subject
from posttrain.evals.task import task


@task(
    "perplexity",
    nats_per_token=Ratio("nats", "tokens", "nats a token"),
    bits_per_byte=Ratio("nats", "bytes", "bits a byte", scale=1 / math.log(2)),
    byte_perplexity=Perplexity("nats", "bytes", "byte perplexity"),
    word_perplexity=Perplexity("nats", "words", "word perplexity"),
)
def perplexity(subject: Subject, rows: list[Row]) -> list[Record]:
    """Nats, tokens, bytes and words of every text; see `windows` for long ones."""
    form = Format("text", all_read=True)
    texts = [str(form.read(row).answers[0]) for row in rows]
    encoded = _encoded(subject.encoder, texts)
    trees: list[Tree] = []
    after: list[int] = []
    owners: list[int] = []
    for i, (before, tokens) in enumerate(encoded):
        for ids, scored in windows(before, tokens, subject.max_length) if tokens else ():
            trained = np.arange(len(ids)) >= len(ids) - scored
            trees.append(Tree((Sequence(np.array(ids[:-1]), trained[:-1]),)))
            after.append(ids[-1])
            owners.append(i)
    nats = [0.0] * len(rows)
    for i, logprob in zip(owners, subject.score(trees, after), strict=True):
        nats[i] -= logprob
    records = []
    for i, (row, text) in enumerate(zip(rows, texts, strict=True)):
        if not encoded[i][1]:  # the tokenizer leaves nothing of it
            continue
        values = {
            "nats": nats[i],
            "tokens": len(encoded[i][1]),
            "bytes": len(text.encode()),
            "words": len(re.split(r"\s+", text)),
        }
        records.append(Record(row.where, values=values))
    return records


def windows(before: Many[int], tokens: Many[int], length: int) -> Iterator[tuple[list[int], int]]:
    """Windows that predict every token once, each with as much before it as fits: the last one
    overlaps the one before.

    Args:
        before: what stands before the text and is not scored.
        tokens: of the text.
        length: tokens of a window that the model reads at most; the one it predicts last is not
            read.
    Returns: a window's tokens, and how many of them are scored, the last ones.
    Source: lm-eval, `get_rolling_token_windows` with a context of one token.
    """
    ids = [*before, *tokens]
    end = min(len(ids), length + 1)
    yield ids[:end], end - len(before)
    while end < len(ids):
        start, end = end, min(len(ids), end + length)
        yield ids[max(0, end - length - 1) : end], end - start


def _encoded(encoder: Encoder, texts: list[str]) -> list[tuple[list[int], list[int]]]:
    """Of every text what the tokenizer puts before it, or else the token that ends texts; and its
    own tokens.
    """
    tokenizer = encoder.tokenizer
    begin = tokenizer.bos_token_id
    lone = [tokenizer.eos_token_id if begin is None else begin]
    pairs = []
    plain = encoder.prompts(texts, [True] * len(texts))
    for ids, own in zip(plain, encoder.bare(texts), strict=True):
        added = len(ids) - len(own)
        pairs.append((ids[:added], own) if added > 0 and ids[added:] == own else (lone, own))
    return pairs
