"""Preference pairs from the model's own answers: sample several a prompt, score them, let the
better be chosen over the worse.

The folder holds
    run.json         what was asked for: settings, digests of model, data and scorer, version
    chunks/          samples of so many prompts a file, while the run lasts: what a resumed run need
                     not sample again
    samples.jsonl    every answer: its score, whether the model ended it, tokens, log-probability
    pairs.jsonl      prompt, chosen, rejected, margin, and both scores
    best.jsonl       with --at-least: prompt and completion, the best answer of every prompt that
                     reaches the score
    rejects.jsonl    with --on-bad-row reject: rows that cannot be used, and why
    summary.json     all counts, and numbers with intervals; written last

Every prompt has a stream of random numbers of its own, named by the seed and the prompt's number;
what is sampled beside it changes the last bits of its log-probabilities at most. Prompts go in
chunks of `batch_size` by number, so that a run that was killed ends with the same files.

Left out: pairs made in another way from samples that are there; they are sampled again, in another
    folder. An answer is
handed on as text: trained on, it may be cut into other tokens than those that were drawn.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from collections.abc import Sequence as Many
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from posttrain.core.console import ConsoleObserver
from posttrain.core.errors import ConfigError, DataError, nearest
from posttrain.core.files import PARTIAL, fsync, write_atomic
from posttrain.core.seeds import derive
from posttrain.core.settings import Destination, ExecutionOnly, ReadsModel, ReadsScorer, Settings
from posttrain.data.asked import Asked, asked
from posttrain.data.rows import Rejects
from posttrain.data.settings import FormatName, Rows, json_values
from posttrain.scoring.ranking import Answer, How, Ranking, Rules, Unfinished, known, rank
from posttrain.scoring.scorers import SCORERS, Item, Scorer
from posttrain.stages.folders import Files
from posttrain.stages.stage import Context, stage

if TYPE_CHECKING:
    from posttrain.engine.policy import Policy

CHUNKS = "chunks"
FILES = ("samples.jsonl", "pairs.jsonl", "best.jsonl")


class SamplePairsSettings(Settings):
    """Settings of making pairs from a model's own answers."""

    model: Annotated[str, ReadsModel()] = Field(
        description="Hugging Face folder or hub id of the model that answers"
    )
    data: Rows = Field(
        min_length=1,
        description=(
            "the prompts, given like --data of posttrain sft: prompts alone, "
            "demonstrations (their last answer is the wanted one) or pairs"
        ),
    )
    out: Annotated[Path, Destination()] = Field(
        description="folder for the pairs; the same command continues what is there"
    )
    scorer: Annotated[str, ReadsScorer()] = Field(
        "",
        description=(
            "what an answer is worth: exact, contains, number, longest, shortest; or give "
            "--reward-model"
        ),
    )
    reward_model: Annotated[str | None, ReadsModel()] = Field(
        None, description="reward model that says what an answer is worth"
    )
    n: int = Field(8, ge=2, description="answers a prompt")
    pairs: How = Field(
        "best-worst",
        description=(
            "which answers are paired: the best with the worst, each with the next in the "
            "ranking, or all"
        ),
    )
    pairs_per_prompt: int | None = Field(
        None,
        ge=1,
        description=(
            "pairs of a prompt at most, the largest margins first. Unset: 1 "
            "with best-worst, else all there are"
        ),
    )
    min_margin: float = Field(
        0.0,
        ge=0,
        description="difference of the two scores at least; equal scores are never a pair",
    )
    unfinished: Unfinished = Field(
        "reject",
        description=(
            "answers cut off at --max-tokens: may be rejected and never chosen, are "
            "dropped, or kept as if they were whole"
        ),
    )
    at_least: float | None = Field(
        None,
        description=(
            "write best.jsonl, demonstrations: the best answer of every prompt, where "
            "its score is this or more"
        ),
    )
    max_tokens: int = Field(64, ge=1, description="tokens of an answer at most")
    temperature: float = Field(1.0, gt=0, description="the logits are divided by it")
    top_p: float = Field(
        1.0,
        gt=0,
        le=1,
        description="keep the most likely tokens that together have this probability",
    )
    seed: int = Field(0, ge=0, description="of the draws")
    batch_size: int = Field(64, ge=1, description="prompts sampled together, and written together")
    format: FormatName = Field(
        "", description="format of the rows of --data; unset: found from the first row's columns"
    )
    prompt_template: str | None = Field(
        None,
        description=(
            "ask in plain text, the prompt written like this; {prompt} stands for it. Unset: the"
            " chat template"
        ),
    )
    template_kwargs: Annotated[dict[str, Any], BeforeValidator(json_values)] = Field(
        default_factory=dict,
        description="KEY=VALUE handed to the chat template, for example enable_thinking=false",
    )
    on_bad_row: Literal["stop", "reject"] = Field(
        "stop",
        description=(
            "stop at a row that cannot be used, or write it to rejects.jsonl with the reason and"
            " go on"
        ),
    )
    device: Annotated[Literal["", "cpu", "cuda"], ExecutionOnly()] = Field(
        "", description="unset: the GPU where there is one"
    )

    def check(self) -> None:
        _check(self)

    @property
    def rules(self) -> Rules:
        """How answers become pairs."""
        return Rules(self.pairs, self.pairs_per_prompt, self.min_margin, self.unfinished)


@dataclass(frozen=True)
class Group:
    """The answers to one prompt, ranked. records: lines of `samples.jsonl`."""

    asked: Asked
    records: list[dict[str, Any]]
    ranking: Ranking


def _makes(settings: SamplePairsSettings) -> dict[str, str]:
    """rows: `pairs`, with `at_least` also `best`, and `samples`, all answers."""
    best = {} if settings.at_least is None else {"best": "best.jsonl"}
    return {"pairs": "pairs.jsonl", **best, "samples": "samples.jsonl"}


@stage(
    "sample_pairs",
    SamplePairsSettings,
    help="make preference pairs from a model's own answers",
    makes=_makes,
    files=Files(others=("best.jsonl", "rejects.jsonl"), scratch=(CHUNKS,)),
)
def sample_pairs(settings: SamplePairsSettings, context: Context) -> dict[str, Any]:
    """Sample several answers to every prompt, score them, and write preference pairs: the better
    answer chosen, the worse rejected. Killed at any moment, the same command goes on where it was
    and ends with the same files.
    """
    reject = settings.on_bad_row == "reject"
    rejects = Rejects(context.folder / "rejects.jsonl" if reject else None)
    prompts = _begin(settings, rejects, context.observer)
    context.claim()
    rejects.close()
    _sample(settings, prompts, context.observer)
    return {
        "model": settings.model,
        "scorer": settings.scorer or settings.reward_model,
        "n": settings.n,
        "rows": rejects.read,
        "rejected": rejects.count,
        **_write(settings, prompts),
    }


# ----------------------------------------------------------------------------- before anything runs


def _check(settings: SamplePairsSettings) -> None:
    for source in settings.data:
        if source.weight is not None or source.share is not None or source.epochs != 1:
            raise ConfigError(
                f"--data {source} has a weight, share or epochs, and every prompt is asked once",
                cure="leave them out; limit= takes fewer rows, --n more answers",
            )
    if bool(settings.scorer) == bool(settings.reward_model):
        raise ConfigError(
            "answers need something that scores them",
            cure="give --scorer or --reward-model, one of them",
        )
    if settings.scorer and settings.scorer not in SCORERS:
        raise ConfigError(
            f"there is no scorer {settings.scorer!r}",
            cure=(
                f"{nearest(settings.scorer, SCORERS)}; a reward model is given with --reward-model"
            ),
        )


def _begin(
    settings: SamplePairsSettings, rejects: Rejects, observer: ConsoleObserver
) -> list[Asked]:
    """The prompts, as the model will see them.

    What is wrong with them or the scorer shows here, before anything is sampled.
    """
    from posttrain.data.chat import Chat
    from posttrain.engine.load import load_tokenizer, longest_position, resolve

    base = resolve(settings.model)
    chat = Chat(
        load_tokenizer(base),
        kwargs=settings.template_kwargs,
        prompt_template=settings.prompt_template,
    )
    longest = longest_position(base)
    prompts = asked(
        settings.data,
        chat,
        rejects,
        format=settings.format,
        longest=None if longest is None else longest - settings.max_tokens,
    )
    if not prompts:
        raise DataError(
            "there is no prompt that can be used",
            where=str(settings.data[0]),
            cure="give other --data",
        )
    if settings.scorer in SCORERS:  # which cost nothing
        scores = SCORERS[settings.scorer](
            [Item(one.prompt, "", one.known, one.where) for one in prompts]
        )
        _scored(settings, sum(not known(score) for score in scores), len(scores), "prompts")
    observer.note(
        "prompts",
        f"{len(prompts):,}, {settings.n} answers each, in {settings.batch_size} at a time",
    )
    return prompts


def _scored(settings: SamplePairsSettings, unscored: int, n: int, what: str) -> None:
    """Refuse to go on where most answers have no score.

    Raises:
        DataError: more than half have none.
    """
    if 2 * unscored > n:
        cure = f"look at the answers, in {settings.out / CHUNKS}, or give another --scorer"
        if settings.scorer in SCORERS:
            cure = (
                f"{settings.scorer} needs the wanted answer: a column completion or answer (--data"
                " FILE,completion=COLUMN)"
            )
        raise DataError(
            f"{settings.scorer or 'the reward model'} cannot judge {unscored:,} of {n:,} {what}",
            where=str(settings.data[0]),
            cure=cure,
        )


# ----------------------------------------------------------------------------------------- sampling


def _sample(settings: SamplePairsSettings, prompts: Many[Asked], observer: ConsoleObserver) -> None:
    """Write the chunks that are not there yet."""
    starts = [
        a for a in range(0, len(prompts), settings.batch_size) if not _chunk(settings, a).is_file()
    ]
    if not starts:
        return
    from posttrain.engine.policy import Policy
    from posttrain.evals.scorers import open_scorer

    policy = Policy.load(settings.model, device=settings.device)
    for reason in policy.model.admission.reasons:
        observer.message(reason)
    if settings.prompt_template is None:
        from posttrain.data.chat import Chat

        chat = Chat(policy.tokenizer, kwargs=settings.template_kwargs)
        policy.converse(
            chat.template, chat.stop
        )  # so that answers end where the template ends them
    scorer = open_scorer(settings.scorer or f"reward:{settings.reward_model}", settings.device)
    with observer.working("sampling", len(starts) * settings.batch_size) as told:
        for number, start in enumerate(starts, 1):
            records = _answers(
                settings, policy, scorer, start, prompts[start : start + settings.batch_size]
            )
            write_atomic(_chunk(settings, start), "".join(_line(one) for one in records))
            told(number * settings.batch_size)


def _chunk(settings: SamplePairsSettings, start: int) -> Path:
    return settings.out / CHUNKS / f"{start:09d}.jsonl"


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _answers(
    settings: SamplePairsSettings, policy: Policy, scorer: Scorer, start: int, some: Many[Asked]
) -> list[dict[str, Any]]:
    """Answers to prompts number start, start + 1, …, scored."""
    from posttrain.engine.sampler import Sampling

    params = Sampling(
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        n=settings.n,
    )
    drawn = policy.sample(
        [one.ids for one in some],
        params,
        [derive(settings.seed, "sample-pairs", start + i) for i in range(len(some))],
    )
    texts = [policy.tokenizer.decode(one.tokens, skip_special_tokens=True) for one in drawn]
    items = [
        Item(some[one.prompt].prompt, text, some[one.prompt].known, some[one.prompt].where)
        for one, text in zip(drawn, texts, strict=True)
    ]
    return [
        {
            "prompt": start + one.prompt,
            "where": item.where,
            "sample": i % settings.n,
            "answer": item.answer,
            "score": float(score) if score is not None and known(score) else None,
            "finished": one.finished,
            "tokens": len(one.tokens),
            "logprob": sum(one.logprobs),
        }
        for i, (one, item, score) in enumerate(zip(drawn, items, scorer(items), strict=True))
    ]


# ------------------------------------------------------------------------------------------ results


def _write(settings: SamplePairsSettings, prompts: Many[Asked]) -> dict[str, Any]:
    """The files, and what they come to."""
    from posttrain.evals.samples import Tally

    tally = Tally(settings.n)
    best = 0
    with contextlib.ExitStack() as stack:
        samples, pairs = (stack.enter_context(_whole(settings.out / name)) for name in FILES[:2])
        demonstrations = (
            stack.enter_context(_whole(settings.out / FILES[2]))
            if settings.at_least is not None
            else None
        )
        for group in _groups(settings, prompts):
            samples.writelines(map(_line, group.records))
            pairs.writelines(_line(_pair(group, i, j)) for i, j in group.ranking.pairs)
            tally.add(group.records, group.ranking)
            top = group.records[group.ranking.best] if group.ranking.best is not None else None
            if (
                demonstrations
                and top
                and settings.at_least is not None
                and top["score"] >= settings.at_least
            ):
                demonstrations.write(
                    _line(
                        {
                            **_head(group.asked),
                            "completion": top["answer"],
                            "score": top["score"],
                            **group.asked.around,
                        }
                    )
                )
                best += 1
        summary = {
            **tally.summary(),
            "best": {"at_least": settings.at_least, "rows": best} if demonstrations else None,
        }
        _scored(settings, tally.left_out["unscored"], tally.answers, "answers")
        if not tally.pairs and not best:
            reasons = ", ".join(f"{why}: {n:,}" for why, n in tally.without.items())
            raise DataError(
                f"of {len(prompts):,} prompts none gives a pair; {reasons}",
                where=str(settings.data[0]),
                cure=(
                    "into another --out, with more answers (--n), a higher --temperature, a lower"
                    " --min-margin, other prompts or another --scorer"
                ),
            )
    return summary


def _groups(settings: SamplePairsSettings, prompts: Many[Asked]) -> Iterator[Group]:
    for start in range(0, len(prompts), settings.batch_size):
        # not splitlines, which ends lines at signs that JSON may hold
        records = [
            json.loads(line)
            for line in _chunk(settings, start).read_text(encoding="utf-8").split("\n")
            if line
        ]
        for at in range(0, len(records), settings.n):
            some = records[at : at + settings.n]
            answers = [Answer(one["answer"], one["score"], one["finished"]) for one in some]
            yield Group(prompts[some[0]["prompt"]], some, rank(answers, settings.rules))


def _head(one: Asked) -> dict[str, Any]:
    return {"prompt": one.prompt if isinstance(one.prompt, str) else list(one.prompt)}


def _pair(group: Group, i: int, j: int) -> dict[str, Any]:
    """A row that `posttrain preference` reads."""
    chosen, rejected = group.records[i], group.records[j]
    return {
        **_head(group.asked),
        "chosen": chosen["answer"],
        "rejected": rejected["answer"],
        "margin": chosen["score"] - rejected["score"],
        "chosen_score": chosen["score"],
        "rejected_score": rejected["score"],
        **group.asked.around,
        "where": group.asked.where,
    }


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[IO[str]]:
    """A file that appears when all of it is written."""
    partial = path.with_name(PARTIAL + path.name)
    with open(partial, "w", encoding="utf-8") as file:
        yield file
        file.flush()
    fsync(partial)
    partial.replace(path)
    fsync(path.parent)
