"""Tasks: what is asked of a model, item by item.

    perplexity   text: how surprised the model is, nats a token and bits a byte
    exact        a question: whether the answer it writes, always taking the most likely token, is
                 the wanted one
    choice       a question and choices: whether the right one is the most likely, summed over its
                 tokens, and per byte

Every task gives one record an item, and from records a metric with its interval and, against
another model's, a paired difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from posttrain.core.errors import DataError
from posttrain.data.chat import Chat
from posttrain.data.forest import Sequence, Tree
from posttrain.data.formats import Example, Format
from posttrain.data.prepare import fit
from posttrain.data.rows import Rejects, Row, kind
from posttrain.data.settings import Source
from posttrain.data.sources import read
from posttrain.data.tokens import Encoded, Encoder, Span
from posttrain.engine.policy import Policy
from posttrain.engine.sampler import Sampling
from posttrain.evals import stats
from posttrain.evals.stats import Estimate
from posttrain.scoring.match import MATCHES

Record = dict[str, Any]  # JSON; `where` says which item it is
Told = Callable[[int, int], None]  # hears how many items of how many are done


@dataclass(frozen=True)
class Subject:
    """A model to evaluate, and how it is talked to."""

    policy: Policy
    chat: Chat
    budget: int
    max_length: int
    told: Told

    @cached_property
    def encoder(self) -> Encoder:
        return Encoder(self.policy.tokenizer)

    def score(self, trees: Many[Tree]) -> list[float]:
        """Summed log-probability of the targets of every sequence, nats, in order."""
        found = [0.0] * sum(len(tree) for tree in trees)
        done = 0
        for forest in self.policy.pack(trees, self.budget):
            (columns,) = self.policy.score([forest])
            sums = forest.facts.sums(columns.logprob.double().cpu()).tolist()
            for number, value in zip(forest.sequence.tolist(), sums, strict=True):
                found[number] = value
            self.told(done := done + forest.L, len(found))
        return found


def rows(source: Source) -> list[Row]:
    """The rows of a source; evaluation stops at the first that cannot be used."""
    found = list(read(source, Rejects()))
    if not found:
        raise DataError(f"there are no rows in {source}", cure="check the file")
    return found


# --------------------------------------------------------------------------------------- perplexity


def perplexity(subject: Subject, items: Many[Row]) -> list[Record]:
    """Nats, tokens and bytes of every text. Long texts are cut into windows; no token is scored
    twice.
    """
    form = Format("text")
    texts = [str(form.read(row).answers[0]) for row in items]
    trees: list[Tree] = []
    owners: list[int] = []
    records = [
        {"where": row.where, "nats": 0.0, "tokens": 0, "bytes": len(text.encode())}
        for row, text in zip(items, texts, strict=True)
    ]
    for i, ids in enumerate(subject.encoder.prompts(texts, [True] * len(texts))):
        pieces = fit(Encoded(ids, (Span(1, len(ids), 0),)), subject.max_length, "split")
        trees += [Tree((piece,)) for piece in pieces]
        owners += [i] * len(pieces)
    for i, tree, logprob in zip(owners, trees, subject.score(trees), strict=True):
        records[i]["nats"] -= logprob
        records[i]["tokens"] += tree.N
    return [record for record in records if record["tokens"]]


# -------------------------------------------------------------------------------------- exact match


def exact(
    subject: Subject, items: Many[Row], *, match: str = "exact", max_tokens: int = 64
) -> list[Record]:
    """The answer to every question, and whether it is the wanted one."""
    form, wanted, asked, plain = Format(), [], [], []
    for row in items:
        example = form.read(row)
        question, answer = _question(example)
        text, bare = subject.chat.prompt(question)
        asked.append(text)
        plain.append(bare)
        wanted.append(answer)
    prompts = subject.encoder.prompts(asked, plain)
    drawn = []
    for a in range(0, len(prompts), 512):
        drawn += subject.policy.sample(
            prompts[a : a + 512], Sampling(max_tokens=max_tokens, temperature=0)
        )
        subject.told(len(drawn), len(prompts))
    decode = subject.policy.tokenizer.decode
    said = [decode(one.tokens, skip_special_tokens=True) for one in drawn]
    return [
        {
            "where": row.where,
            "answer": text,
            "wanted": want,
            "correct": MATCHES[match](text, want),
            "finished": one.finished,
            **{key: row.fields[key] for key in ("skill", "level", "category") if key in row.fields},
        }
        for row, text, want, one in zip(items, said, wanted, drawn, strict=True)
    ]


def _question(example: Example) -> tuple[Example, str]:
    """An example without its last answer, and that answer."""
    if len(example.answers) != 1:
        raise DataError(
            "an item needs a question and one answer",
            where=example.where,
            cure="say which columns they are: FILE,prompt=question,completion=answer",
        )
    answer = example.answers[0]
    if isinstance(answer, str):
        return example, answer
    if answer[-1]["role"] != "assistant":
        raise DataError(
            "the conversation does not end with an answer",
            where=example.where,
            cure="remove what follows it",
        )
    prompt = (*(example.prompt if not isinstance(example.prompt, str) else ()), *answer[:-1])
    return (
        Example(example.where, prompt, (), None, example.tools, example.kwargs),
        answer[-1]["content"],
    )


# ---------------------------------------------------------------------------------- multiple choice


def choice(subject: Subject, items: Many[Row]) -> list[Record]:
    """Which choice is the most likely answer to every question."""
    trees, records = choices(subject.chat, subject.encoder, subject.max_length, items)
    logprobs = iter(subject.score(trees))
    for record in records:
        record["logprobs"] = found = [next(logprobs) for _ in range(record["choices"])]
        per_byte = [p / max(1, b) for p, b in zip(found, record["bytes"], strict=True)]
        record["correct"] = int(np.argmax(found)) == record["right"]
        record["correct_per_byte"] = int(np.argmax(per_byte)) == record["right"]
    return records


def choices(
    chat: Chat, encoder: Encoder, limit: int, items: Many[Row]
) -> tuple[list[Tree], list[Record]]:
    """Every question with its choices as a tree, and a record that waits for the scores.

    Raises:
        DataError: a row that is no item, or of more than `limit` tokens: a part of it would be
            another question.
    """
    turns, owners, records = [], [], []
    for i, row in enumerate(items):
        question, some, right = _choices(row)
        records.append(
            {
                "where": row.where,
                "right": right,
                "choices": len(some),
                "bytes": [len(c.encode()) for c in some],
            }
        )
        for one in some:
            turns.append(chat.turns(Example(row.where, question, (one,)), one))
            owners.append(i)
    together: dict[int, list[Sequence]] = {}
    for i, found in zip(owners, encoder.encode(turns), strict=True):
        if isinstance(found, DataError):
            found.where = records[i]["where"]
            raise found
        together.setdefault(i, []).append(_answer(found[0], limit, records[i]["where"]))
    return [Tree(tuple(together[i])) for i in range(len(records))], records


def _answer(one: Encoded, limit: int, where: str) -> Sequence:
    """A choice after its question, without the token that ends it."""
    span = one.spans[-1]
    if (n := span.end - 1) > limit:
        raise DataError(
            f"the question and a choice are {n:,} tokens, and {limit:,} fit",
            where=where,
            cure=(
                f"shorten or remove the row; or give --max-length {n}, if the model can address as"
                " many"
            ),
        )
    kept = fit(Encoded(one.ids[:n], (Span(span.start, n, 0),)), limit, "drop")
    if not kept:
        raise DataError(
            "a choice is a single token that ends the answer",
            where=where,
            cure="give every choice a text",
        )
    return kept[0]


def _choices(row: Row) -> tuple[str, list[str], int]:
    question, choices, right = (
        row.text("question"),
        row.fields.get("choices"),
        row.fields.get("answer_index"),
    )
    if (
        not isinstance(choices, list)
        or len(choices) < 2
        or not all(isinstance(c, str) and c for c in choices)
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
    return question, choices, right


# ------------------------------------------------------------------------------------------ metrics


def metrics(task: str, records: Many[Record]) -> dict[str, Estimate]:
    """What the records of a task come to, by metric."""
    if task == "perplexity":
        nats: list[float] = [r["nats"] for r in records]
        return {
            "nats_per_token": stats.ratio(nats, [r["tokens"] for r in records]),
            "bits_per_byte": stats.ratio(
                [x / math.log(2) for x in nats], [r["bytes"] for r in records]
            ),
        }
    names = ("correct",) if task == "exact" else ("correct", "correct_per_byte")
    return {name: stats.share(sum(r[name] for r in records), len(records)) for name in names}


def differences(task: str, after: Many[Record], before: Many[Record]) -> dict[str, Estimate]:
    """Metric by metric, after − before on the same items."""
    if task == "perplexity":  # a text that is one token to one of the models has no record there
        both = {r["where"] for r in after} & {r["where"] for r in before}
        after, before = ([r for r in some if r["where"] in both] for some in (after, before))
    assert after and [r["where"] for r in after] == [r["where"] for r in before], (
        "records of other items"
    )
    if task == "perplexity":
        now, then = ([r["nats"] for r in some] for some in (after, before))
        found = {}
        if [r["tokens"] for r in after] == [r["tokens"] for r in before]:
            found["nats_per_token"] = stats.difference(now, then, [r["tokens"] for r in after])
        bits = stats.difference(
            [x / math.log(2) for x in now],
            [x / math.log(2) for x in then],
            [r["bytes"] for r in after],
        )
        return {**found, "bits_per_byte": bits}
    names = ("correct",) if task == "exact" else ("correct", "correct_per_byte")
    return {
        name: stats.difference([float(r[name]) for r in after], [float(r[name]) for r in before])
        for name in names
    }
