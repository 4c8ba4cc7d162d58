"""Tasks about which answer is better.

    prefer   pairs: whether the model finds the chosen answer likelier than the rejected one, as a
             sum and a token; against another model also whether it has gained more, which is the
             reward that preference training gives it
    win      prompts: the score of the answer that the model writes; against another model's, how
             often it wins

Where prompts repeat, intervals are clustered by prompt, as in `posttrain.evals.judging`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from collections.abc import Sequence as Many
from typing import Any

from posttrain.core.errors import DataError
from posttrain.core.files import sha256_json
from posttrain.data.forest import Tree
from posttrain.data.formats import Format
from posttrain.data.prepare import fit
from posttrain.data.prompts import read_prompts
from posttrain.data.rows import Rejects, Row
from posttrain.data.settings import Source
from posttrain.engine.sampler import Sampling
from posttrain.evals import judging, stats
from posttrain.evals.stats import Estimate
from posttrain.evals.tasks import Record, Subject
from posttrain.scoring.scorers import Item, Scorer

KEPT = ("category", "subset", "rule", "skill", "level")  # columns that stay in a record


def prefer(subject: Subject, items: Many[Row]) -> list[Record]:
    """Log-probabilities of both answers to every prompt, and their tokens.

    Pairs of more than `max_length` tokens are left out: cut, they would be other answers to other
    prompts.
    """
    form, trees, records = Format("preference"), list[Tree](), list[Record]()
    turns = []
    for row in items:
        example = form.read(row)
        turns += [subject.chat.turns(example, answer) for answer in example.answers[:2]]
    encoded = iter(subject.encoder.encode(turns))
    for row in items:
        sides = []
        for side in (next(encoded), next(encoded)):
            if isinstance(side, DataError):
                side.where = row.where
                raise side
            sides.append(fit(side[-1], subject.max_length, "drop"))
        if not all(sides):
            continue
        trees.append(Tree((sides[0][0], sides[1][0])))
        prompt = form.read(row).prompt  # empty where the answers are whole conversations
        records.append(
            {
                "where": row.where,
                "prompt": sha256_json(prompt) if prompt else row.where,
                "tokens": [sides[0][0].N, sides[1][0].N],
                **{key: row.fields[key] for key in KEPT if key in row.fields},
            }
        )
    scored = iter(subject.score(trees))
    for record in records:
        record["logprobs"] = [next(scored), next(scored)]
    return records


def win(subject: Subject, source: Source, scorer: Scorer, *, max_tokens: int = 64) -> list[Record]:
    """The answer to every prompt, always the most likely token, and its score.

    Prompts that leave no room for `max_tokens` are left out.
    """
    prompts = [
        one
        for one in read_prompts([source], subject.chat, Rejects())
        if len(one.ids) + max_tokens <= subject.max_length
    ]
    drawn = []
    for a in range(0, len(prompts), 512):
        drawn += subject.policy.sample(
            [one.ids for one in prompts[a : a + 512]],
            Sampling(max_tokens=max_tokens, temperature=0),
        )
        subject.told(len(drawn), len(prompts))
    decode = subject.policy.tokenizer.decode
    said = [decode(one.tokens, skip_special_tokens=True) for one in drawn]
    scores = scorer(
        [
            Item(one.prompt, text, one.known, one.where)
            for one, text in zip(prompts, said, strict=True)
        ]
    )
    if scores and (missing := sum(score is None for score in scores)) > len(scores) / 2:
        raise DataError(
            f"the scorer can judge only {len(scores) - missing} of {len(scores)} answers",
            where=source.path,
            cure="a verifier needs the wanted answer: a column completion or answer",
        )
    return [
        {
            "where": one.where,
            "prompt": sha256_json(one.prompt),
            "answer": text,
            "score": score,
            "tokens": len(got.tokens),
            "finished": got.finished,
            **{key: one.known[key] for key in KEPT if key in one.known},
        }
        for one, text, score, got in zip(prompts, said, scores, drawn, strict=True)
    ]


def _sign(value: float) -> float:
    """1 where it is above 0, a half for a tie."""
    return 0.5 if value == 0 else float(value > 0)


def _each(record: Mapping[str, Any]) -> tuple[float, float]:
    """By how much the chosen answer is likelier: nats, and nats a token."""
    (good, bad), (n, m) = record["logprobs"], record["tokens"]
    return good - bad, good / n - bad / m


def metrics(task: str, records: Many[Record]) -> dict[str, Estimate]:
    """What the records come to, by metric."""
    if task == "prefer":
        gaps, of = [_each(r) for r in records], _prompts(records)
        return {
            "preferred": judging.rate([_sign(a) for a, _ in gaps], of),
            "preferred_per_token": judging.rate([_sign(b) for _, b in gaps], of),
        }
    some = [r for r in records if r["score"] is not None]
    return {
        "score": stats.mean([r["score"] for r in some], _prompts(some)),
        "tokens": stats.mean([float(r["tokens"]) for r in records], _prompts(records)),
    }


def _prompts(records: Many[Record]) -> list[Hashable]:
    """What tells prompts apart: answers to one prompt are not independent."""
    return [r.get("prompt", r["where"]) for r in records]


def differences(task: str, after: Many[Record], before: Many[Record]) -> dict[str, Estimate]:
    """Metric by metric, after − before on the same items; and what only a comparison has."""
    common = {r["where"] for r in after} & {
        r["where"] for r in before
    }  # what is too long may be so for one of them
    after, before = ([r for r in some if r["where"] in common] for some in (after, before))
    of = _prompts(after)
    if task == "prefer":
        now, then = [_each(r) for r in after], [_each(r) for r in before]
        found = {
            name: _paired([_sign(one[k]) for one in now], [_sign(one[k]) for one in then], of)
            for k, name in enumerate(("preferred", "preferred_per_token"))
        }
        return {
            **found,
            "rewarded": judging.rate(
                [_sign(a[0] - b[0]) for a, b in zip(now, then, strict=True)], of
            ),
        }
    both = [
        (a, b)
        for a, b in zip(after, before, strict=True)
        if a["score"] is not None and b["score"] is not None
    ]
    some = _prompts([a for a, _ in both])
    return {
        "score": _paired([a["score"] for a, _ in both], [b["score"] for _, b in both], some),
        "tokens": _paired(
            [float(a["tokens"]) for a in after], [float(b["tokens"]) for b in before], of
        ),
        "win_rate": judging.rate([_sign(a["score"] - b["score"]) for a, b in both], some),
    }


def _paired(after: Many[float], before: Many[float], of: Many[Hashable]) -> Estimate:
    return stats.mean([a - b for a, b in zip(after, before, strict=True)], of)
