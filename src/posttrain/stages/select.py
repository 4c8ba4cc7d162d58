"""Select: from large sets and a small target to the large sets' rows that are most like it.

It writes, beside `--out chosen.jsonl`,
    chosen.jsonl           the rows, best first, as their files have them
    chosen.scores.jsonl    for each: rank, relevance, where it stood, quality signals
    chosen.summary.json    what became of all rows, settings, digests of the inputs
    chosen.rejects.jsonl   rows that could not be read, with --on-bad-row reject;
                           chosen.target-rejects.jsonl, those of the target
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from posttrain.core.console import ConsoleObserver
from posttrain.core.errors import ConfigError
from posttrain.core.files import explained_writes, fsync, sha256_file, write_json
from posttrain.core.settings import Settings
from posttrain.core.version import __version__
from posttrain.data.curate.corpus import Corpus, same, scratch
from posttrain.data.curate.quality import QualitySettings
from posttrain.data.settings import FormatName, Sourced

if TYPE_CHECKING:
    import numpy as np

    from posttrain.data.curate.relevance import Embed, Space
    from posttrain.engine.policy import Policy

BUDGET = {"cpu": 1024, "cuda": 16384}  # tokens a forward pass; a processor is slower with more


class SelectSettings(Settings):
    """Settings of choosing rows."""

    data: tuple[Sourced, ...] = Field(
        min_length=1, description="the large sets, given like --data of posttrain sft"
    )
    target: tuple[Sourced, ...] = Field(
        min_length=1, description="the rows to be like, given in the same way"
    )
    keep: int = Field(ge=1, description="rows to choose at most")
    out: Path = Field(
        description=(
            "file for the chosen rows; NAME.scores.jsonl and NAME.summary.json are written"
            " beside it"
        )
    )
    by: Literal["tfidf", "embedding"] = Field(
        "tfidf", description="rank by words, or by the embeddings of --model"
    )
    model: str = Field("", description="Hugging Face folder or hub id of the model that embeds")
    embed_tokens: int = Field(
        256, ge=1, description="tokens of a row that are embedded: the first ones"
    )
    nearest: int = Field(
        10, ge=1, description="relevance is the mean cosine to this many nearest target rows"
    )
    dedupe: bool = Field(True, description="of near-duplicates keep only the best")
    against_target: bool = Field(
        True,
        description=(
            "leave out near-duplicates of target rows and of their prompts, so that the "
            "target can serve as a validation set"
        ),
    )
    near: float = Field(
        0.8,
        gt=0,
        le=1,
        description="Jaccard similarity of 3-word shingles from which rows are near-duplicates",
    )
    format: FormatName = Field(
        "", description="format of the rows of --data; unset: found from the first row's columns"
    )
    on_bad_row: Literal["stop", "reject"] = Field(
        "stop",
        description=(
            "stop at a row that cannot be used, or write it to NAME.rejects.jsonl with the reason"
            " and go on"
        ),
    )
    device: Literal["", "cpu", "cuda"] = Field(
        "", description="of the model; unset: the GPU where there is one"
    )
    seed: int = Field(
        0, ge=0, description="of the sample from which the embeddings' mean is learned"
    )
    quality: QualitySettings = QualitySettings()  # type: ignore[call-arg]


def run(settings: SelectSettings, observer: ConsoleObserver) -> dict[str, Any]:
    """Choose and write the rows; returns what the summary says.

    Raises:
        PosttrainError: a file or row cannot be used, a setting contradicts another, or the outputs
            belong to another run.
    """
    from posttrain.data.curate.select import Criteria, select

    if (settings.by == "embedding") != bool(settings.model):
        raise ConfigError(
            f"--by {settings.by} {'needs' if not settings.model else 'does not use'} --model",
            cure=(
                "give --by embedding --model FOLDER" if not settings.model else "add --by embedding"
            ),
        )
    if settings.out.suffix != ".jsonl":
        raise ConfigError(
            f"--out {settings.out} does not end in .jsonl", cure=f"give --out {settings.out}.jsonl"
        )
    names = {
        name: settings.out.with_name(f"{settings.out.stem}{end}")
        for name, end in {
            "chosen.jsonl": ".jsonl",
            "scores.jsonl": ".scores.jsonl",
            "rejects.jsonl": ".rejects.jsonl",
            "target-rejects.jsonl": ".target-rejects.jsonl",
        }.items()
    }
    summary = settings.out.with_name(f"{settings.out.stem}.summary.json")
    with explained_writes(settings.out.parent), scratch(settings.out) as folder:
        reject = settings.on_bad_row == "reject"
        corpus = Corpus(
            settings.data,
            folder,
            observer,
            rejects="rejects.jsonl" if reject else "",
            format=settings.format,
        )
        target = Corpus(
            settings.target, folder, observer, rejects="target-rejects.jsonl" if reject else ""
        )
        identity = {
            "settings": settings.model_dump(mode="json", exclude={"out", "device"}),
            "inputs": {**corpus.digests(), **target.digests(), **_model_digest(settings)},
        }
        same(summary, identity, list(names.values()))
        found = select(
            corpus,
            target,
            _space(settings, observer),
            Criteria(
                settings.keep,
                settings.quality,
                settings.nearest,
                settings.near,
                settings.dedupe,
                settings.against_target,
            ),
            folder,
        )
        result = {
            "posttrain": __version__,
            "identity": identity,
            "rows": corpus.read,
            "chosen": found.rows,
            "left_out": found.left_out,
            "rejected": corpus.rejected,
            "rejected_reasons": corpus.reasons,
            "target_rows": target.usable,
            "target_rejected": target.rejected,
            "relevance": found.cosines,
            "sha256": sha256_file(folder / "chosen.jsonl"),
        }
        write_json(
            summary, result
        )  # first: were the power to fail now, the same command would be let write the rest
        for name, path in names.items():
            if (folder / name).exists():
                fsync(folder / name)
                (folder / name).replace(path)
        fsync(settings.out.parent)
    return result


def _model_digest(settings: SelectSettings) -> dict[str, str]:
    if not settings.model:
        return {}
    from posttrain.engine.load import digest, resolve

    return {settings.model: digest(resolve(settings.model))}


def _space(settings: SelectSettings, observer: ConsoleObserver) -> Space:
    from posttrain.data.curate.relevance import Embedding, Tfidf

    if settings.by == "tfidf":
        return Tfidf()
    from posttrain.engine.policy import Policy

    policy = Policy.load(settings.model, device=settings.device)
    for reason in policy.notes:
        observer.message(reason)
    return Embedding(embedder(policy, settings.embed_tokens), settings.seed)


def embedder(policy: Policy, tokens: int) -> Embed:
    """A function from texts to embeddings: the mean over the tokens of the final hidden states.

    Args:
        policy: whose model and tokenizer it uses.
        tokens: of a text at most, the first ones; and no more than the model can address.
    Returns: n texts → [n, d] float32.
    """
    import numpy as np

    from posttrain.core.types import Read
    from posttrain.data.forest import Sequence, Tree

    limit = policy.longest or tokens + 1
    tokens = min(tokens, limit - 1)
    read = Read(logprob=False, hidden="before")

    def embed(texts: list[str]) -> np.ndarray:
        ids = policy.tokenizer(texts, truncation=True, max_length=tokens)["input_ids"]
        # a state is read where a target is predicted: one token more, which no state sees, makes
        # every token predict one
        trees = []
        for text in ids:
            tokens_and_one = np.array([*(text or [0]), 0])
            trees.append(Tree((Sequence(tokens_and_one, np.ones(len(tokens_and_one), bool)),)))
        means: dict[int, np.ndarray] = {}
        for forest in policy.pack(trees, max(BUDGET[policy.device.type], tokens + 1)):
            (columns,) = policy.score([forest], read)
            states = columns.hidden.float().cpu().split(forest.facts.lengths.tolist())
            for number, state in zip(forest.sequence.tolist(), states, strict=True):
                means[number] = state.mean(0).numpy()
        return np.stack([means[i] for i in range(len(texts))])

    return embed
