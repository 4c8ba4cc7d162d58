"""Preference pairs from the model's own answers: sample several a prompt, score them, let the
better be chosen over the worse.

The folder holds
    run.json         what was asked for: settings, digests of model, data and scorer, version
    chunks/          a journal of samples, so many prompts a record, while the run lasts: what a
                     resumed run need not sample again
    samples.jsonl    the record of every answer: its score, tokens, log-probability, and whether the
                     model ended it
    pairs.jsonl      prompt, chosen, rejected, margin, and both scores
    best.jsonl       with --at-least: prompt and completion, the best answer of every prompt that
                     reaches the score
    rejects.jsonl    with --on-bad-row reject: rows that cannot be used, and why
    summary.json     all counts, and numbers with intervals
    manifest.json    digests of what is kept; written last

Every prompt has a stream of random numbers of its own, named by the seed and the prompt's number;
what is sampled beside it changes the last bits of its log-probabilities at most. Prompts go in
chunks of `batch_size` by number, so that a run that was killed ends with the same files.

Left out: pairs made in another way from samples that are there; they are sampled again, in another
folder. An answer is handed on as text: trained on, it may be cut into other tokens than those that
were drawn.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from collections.abc import Sequence as Many
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

from pydantic import Field

from posttrain.core.defaults import Device
from posttrain.core.errors import ConfigError, DataError
from posttrain.core.events import Reporter
from posttrain.core.files import PARTIAL, fsync
from posttrain.core.journal import Journal
from posttrain.core.seeds import derive
from posttrain.core.settings import Destination, ReadsModel, ReadsScorer, Settings
from posttrain.data.prompts import Prompt, read_prompts
from posttrain.data.rows import Rejects
from posttrain.data.settings import OnBadRow, PromptingSettings, RowFormat, Rows
from posttrain.evals.pair_rows import Group
from posttrain.evals.records import Record, cluster_of
from posttrain.scoring.ranking import How, Rules, Unfinished
from posttrain.scoring.score import Response, Score, Scorer
from posttrain.scoring.scorers import (
    SCORERS,
    check_scorer,
    choose_scorer,
    missing,
    open_scorer,
    refuse_failures,
    refuse_unscored,
)
from posttrain.stages.folders import Files
from posttrain.stages.stage import Context, stage

if TYPE_CHECKING:
    from posttrain.data.chat import Chat
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
            "what an answer is worth: exact, contains, number, longest, shortest, "
            "FILE.py:FUNCTION; or give --reward-model"
        ),
    )
    reward_model: Annotated[str | None, ReadsModel()] = Field(
        None, description="reward model that says what an answer is worth"
    )
    n: int = Field(8, ge=2, le=65536, description="answers a prompt")
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
    format: RowFormat = ""
    prompting: PromptingSettings = PromptingSettings()  # type: ignore[call-arg]
    judge_thinking: bool = Field(
        False, description="score all that was written, not the answer without its thinking"
    )
    on_bad_row: OnBadRow = "stop"
    device: Device = ""

    def check(self) -> None:
        _check(self)

    @property
    def rules(self) -> Rules:
        """How answers become pairs."""
        return Rules(self.pairs, self.pairs_per_prompt, self.min_margin, self.unfinished)

    @property
    def scorer_spec(self) -> str:
        """The name of the scorer."""
        return choose_scorer(self.scorer, self.reward_model)


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
    reject, reporter = settings.on_bad_row == "reject", context.reporter
    rejects = Rejects(context.folder / "rejects.jsonl" if reject else None)
    prompts = _begin(settings, rejects, reporter)
    context.claim()
    rejects.close()
    key = context.inputs.identity()
    with Journal(context.folder / CHUNKS, key, message=reporter.message) as chunks:
        _sample(settings, prompts, context, chunks)
        results = _write(settings, prompts, chunks)
    return {
        "model": settings.model,
        "scorer": settings.scorer or settings.reward_model,
        "n": settings.n,
        "rows": rejects.read,
        "rejected": rejects.count,
        **results,
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
    check_scorer(settings.scorer_spec)


def _begin(settings: SamplePairsSettings, rejects: Rejects, reporter: Reporter) -> list[Prompt]:
    """The prompts, as the model will see them.

    What is wrong with them or the scorer shows here, before anything is sampled.
    """
    from posttrain.data.chat import Chat
    from posttrain.data.prompting import Prompting
    from posttrain.engine.load import load_tokenizer, longest_position, resolve

    base = resolve(settings.model)
    remembered = Prompting.read(base)
    prompting = remembered.overridden(settings.prompting)
    chat = Chat.of(load_tokenizer(base), prompting)
    longest = longest_position(base)
    prompts = read_prompts(
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
        responses = [Response(prompt.prompt, "", prompt.known, prompt.where) for prompt in prompts]
        scores = SCORERS[settings.scorer](responses)
        absent, where = missing(scores), str(settings.data[0])
        refuse_unscored(settings.scorer, absent, len(scores), "prompts", where, "")
    described = prompting.described(remembered)
    reporter.note(
        "prompts",
        f"{len(prompts):,}, {settings.n} answers each, {settings.batch_size} sampled at a time"
        + (f"; {described}" if described else ""),
    )
    return prompts


# ----------------------------------------------------------------------------------------- sampling


def _sample(
    settings: SamplePairsSettings, prompts: Many[Prompt], context: Context, chunks: Journal
) -> None:
    """Sample the chunks that are not there yet: the answers to `batch_size` prompts each."""
    starts = range(len(chunks) * settings.batch_size, len(prompts), settings.batch_size)
    if not starts:
        return
    from posttrain.data.chat import Chat
    from posttrain.engine.policy import Policy

    policy = Policy.load(settings.model, device=settings.device)
    policy.tell = context.reporter.message
    for reason in policy.notes:
        context.reporter.message(reason)
    chat = Chat.of(policy.tokenizer, policy.prompting.overridden(settings.prompting))
    if chat.prompt_template is None:
        # so that answers end where the template ends them
        policy.set_chat(chat.template.source, chat.stop)
    scorer = open_scorer(settings.scorer_spec, settings.device)
    with context.reporter.working("sampling", len(prompts) - starts[0]) as progress:
        for start in starts:
            batch = prompts[start : start + settings.batch_size]
            records = _answers(settings, policy, chat, scorer, start, batch)
            context.check_inputs()
            chunks.append([vars(record) for record in records])
            chunks.flush()
            progress(start + len(batch) - starts[0])


def _answers(
    settings: SamplePairsSettings,
    policy: Policy,
    chat: Chat,
    scorer: Scorer,
    start: int,
    batch: Many[Prompt],
) -> list[Record]:
    """Answers to prompts number start, start + 1, …, scored.

    Raises:
        DataError: the scorer failed on all of them.
    """
    from posttrain.engine.sampler import Sampling

    params = Sampling(
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        n=settings.n,
        stop_texts=chat.stops,
    )
    seeds = [derive(settings.seed, "sample-pairs", start + i) for i in range(len(batch))]
    completions = policy.sample([prompt.ids for prompt in batch], params, seeds)
    replies = [chat.read(done.tokens, batch[done.prompt].ids) for done in completions]
    responses = []
    for completion, reply in zip(completions, replies, strict=True):
        prompt, text = batch[completion.prompt], reply.judged(settings.judge_thinking)
        response = Response(prompt.prompt, text, prompt.known, prompt.where, message=reply.message)
        responses.append(response)
    scores = scorer(responses)
    refuse_failures(settings.scorer_spec, scores)
    records = []
    for i, (completion, reply, score) in enumerate(zip(completions, replies, scores, strict=True)):
        prompt, sample = batch[completion.prompt], i % settings.n
        records.append(
            Record(
                f"{prompt.where}#{sample}",
                cluster_of(prompt.prompt),
                {
                    "score": score.value,
                    "tokens": len(completion.tokens),
                    "logprob": sum(completion.logprobs),
                    **score.parts,
                },
                output=reply.answer,
                meta={
                    "prompt": start + completion.prompt,
                    "sample": sample,
                    "where": prompt.where,
                    "finished": completion.finished,
                    **({"thinking": reply.thinking} if reply.thinking else {}),
                    **({"why": score.why} if score.why else {}),
                },
            )
        )
    return records


# ------------------------------------------------------------------------------------------ results


def _write(settings: SamplePairsSettings, prompts: Many[Prompt], chunks: Journal) -> dict[str, Any]:
    """The files, and what they come to.

    Raises:
        DataError: most answers have no score, or no prompt gives a pair.
    """
    from posttrain.evals.samples import Tally

    tally, unscored, best = Tally(settings.n), list[Score](), 0
    wanted = settings.at_least
    with contextlib.ExitStack() as stack:
        files = [
            stack.enter_context(_whole(settings.out / name))
            for name in (FILES if wanted is not None else FILES[:2])
        ]
        for group in _groups(settings, prompts, chunks):
            files[0].writelines(record.line() for record in group.records)
            files[1].writelines(map(_line, group.pairs()))
            if wanted is not None and (row := group.demonstration(wanted)):
                files[2].write(_line(row))
                best += 1
            tally.add(group.records, group.ranking)
            for record in group.records:
                if record.values["score"] is None:
                    unscored.append(Score(None, why=record.meta["why"]))
        cure = f"look at the answers, in {settings.out / CHUNKS}, or give another --scorer"
        where = str(settings.data[0])
        refuse_unscored(settings.scorer, unscored, tally.answers, "answers", where, cure)
        if not tally.pairs and not best:
            counts = ", ".join(f"{why}: {n:,}" for why, n in tally.without.items())
            cut = any("unfinished" in why and n for why, n in tally.without.items())
            longer = "a higher --max-tokens, or --unfinished keep, or " if cut else ""
            raise DataError(
                f"of {len(prompts):,} prompts none gives a pair; {counts}",
                where=str(settings.data[0]),
                cure=(
                    f"into another --out, with {longer}more answers (--n), a higher --temperature, "
                    "a lower --min-margin, other prompts or another --scorer"
                ),
            )
    best_rows = None if wanted is None else {"at_least": wanted, "rows": best}
    return {**tally.summary(), "best": best_rows}


def _groups(
    settings: SamplePairsSettings, prompts: Many[Prompt], chunks: Journal
) -> Iterator[Group]:
    for chunk in chunks:
        records = [Record(**record) for record in chunk.value]
        for at in range(0, len(records), settings.n):
            group = records[at : at + settings.n]
            yield Group.ranked(prompts[group[0].meta["prompt"]], group, settings.rules)


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[IO[str]]:
    """A file that appears when all of it is written."""
    partial = path.with_name(PARTIAL + path.name)
    # names of files may hold bytes that are no text; JSON reads the escapes back
    with open(partial, "w", encoding="utf-8", errors="backslashreplace") as file:
        yield file
        file.flush()
    fsync(partial)
    partial.replace(path)
    fsync(path.parent)
