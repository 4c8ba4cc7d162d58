"""Select: from large sets and a small target to the large sets' rows that are most like it.

It writes (where `--out` is a folder, without the first part of the names)
    chosen.jsonl           the rows, best first, as their files have them
    chosen.scores.jsonl    for each: rank, relevance, where it stood, quality signals
    chosen.summary.json    what became of all rows, settings, digests of the inputs
    chosen.rejects.jsonl   rows that could not be read, with --on-bad-row reject;
                           chosen.target-rejects.jsonl, those of the target
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from posttrain.core.defaults import TOKEN_BUDGET, Device
from posttrain.core.errors import ConfigError
from posttrain.core.events import Reporter
from posttrain.core.settings import Destination, Needs, ReadsModel, Settings
from posttrain.data.curate.corpus import Corpus
from posttrain.data.curate.quality import QualitySettings
from posttrain.data.settings import OnBadRow, RowFormat, Rows, Similarity
from posttrain.stages.folders import Files
from posttrain.stages.stage import Context, stage

if TYPE_CHECKING:
    import numpy as np

    from posttrain.data.curate.relevance import Embed, Space
    from posttrain.engine.policy import Policy

BUDGET = {**TOKEN_BUDGET, "cpu": 1024}  # tokens a forward pass; a processor is slower with more


class SelectSettings(Settings):
    """Settings of choosing rows."""

    data: Rows = Field(
        min_length=1, description="the large sets, given like --data of posttrain sft"
    )
    target: Rows = Field(min_length=1, description="the rows to be like, given in the same way")
    keep: int = Field(ge=1, description="rows to choose at most")
    out: Annotated[Path, Destination()] = Field(
        description=(
            "NAME.jsonl for the chosen rows, with NAME.scores.jsonl and NAME.summary.json beside "
            "it; or a folder for all of them"
        )
    )
    by: Literal["tfidf", "embedding"] = Field(
        "tfidf", description="rank by words, or by the embeddings of --model"
    )
    model: Annotated[str, ReadsModel()] = Field(
        "", description="Hugging Face folder or hub id of the model that embeds"
    )
    embed_tokens: Annotated[int, Needs("by", value="embedding")] = Field(
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
    near: Annotated[Similarity, Needs("dedupe", "against_target")] = 0.8
    format: RowFormat = ""
    on_bad_row: OnBadRow = "stop"
    device: Device = ""
    seed: int = Field(
        0, ge=0, description="of the sample from which the embeddings' mean is learned"
    )
    quality: QualitySettings = QualitySettings()  # type: ignore[call-arg]

    def check(self) -> None:
        if self.by == "embedding" and not self.model:
            raise ConfigError(
                "--by embedding needs --model",
                cure="give --by embedding --model FOLDER",
                option="by",
            )
        if self.model and self.by != "embedding":
            raise ConfigError(
                f"--by {self.by} does not use --model", cure="add --by embedding", option="by"
            )


@stage(
    "data_select",
    SelectSettings,
    help="take the rows of a large set that are most like a small one",
    makes={"rows": "rows.jsonl", "scores": "scores.jsonl"},
    files=Files(others=("rejects.jsonl", "target-rejects.jsonl"), at_once=True, single_file=True),
)
def data_select(settings: SelectSettings, context: Context) -> dict[str, Any]:
    """Take the rows of large sets that are most like the rows of a target, best first: ranked by
    relevance, without poor rows, near-duplicates, or rows of the target itself.
    """
    from posttrain.data.curate.select import Criteria, select

    folder, reporter, reject = context.folder, context.reporter, settings.on_bad_row == "reject"
    corpus = Corpus(
        settings.data,
        folder,
        reporter,
        rejects="rejects.jsonl" if reject else "",
        format=settings.format,
    )
    target = Corpus(
        settings.target, folder, reporter, rejects="target-rejects.jsonl" if reject else ""
    )
    chosen = select(
        corpus,
        target,
        _space(settings, reporter),
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
    (folder / "chosen.jsonl").rename(folder / "rows.jsonl")
    return {
        "rows": corpus.read,
        "keep": settings.keep,
        "chosen": chosen.rows,
        "left_out": chosen.left_out,
        "rejected": corpus.rejected,
        "rejected_reasons": corpus.reasons,
        "target_rows": target.usable,
        "target_rejected": target.rejected,
        "relevance": chosen.cosines,
    }


def _space(settings: SelectSettings, reporter: Reporter) -> Space:
    from posttrain.data.curate.relevance import Embedding, Tfidf

    if settings.by == "tfidf":
        return Tfidf()
    from posttrain.engine.policy import Policy

    policy = Policy.load(settings.model, device=settings.device)
    for reason in policy.notes:
        reporter.message(reason)
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
