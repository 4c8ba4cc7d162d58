"""Scorers by name. The same one scores in training, evaluation and red-teaming.

exact, contains, number   1 where the completion is the answer that the row wants, else 0; see
                          `posttrain.scoring.verifiers`
longest, shortest         its length in characters, or minus that: content-blind baselines
reward:FOLDER             a reward model; see `posttrain.scoring.learned`
FILE.py:FUNCTION          a function of yours; see `posttrain.scoring.functions`
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Many

from posttrain.core.errors import ConfigError, DataError, nearest
from posttrain.core.files import sha256_file
from posttrain.core.plugins import is_plugin, load_plugin, plugin_file
from posttrain.core.settings import REWARD
from posttrain.scoring.functions import from_function
from posttrain.scoring.score import Score, Scorer
from posttrain.scoring.verifiers import BASELINES, VERIFIERS

SCORERS: dict[str, Scorer] = {**VERIFIERS, **BASELINES}


def open_scorer(spec: str, device: str = "") -> Scorer:
    """The scorer of a name.

    Args:
        spec: a name of `SCORERS`; `reward:` and a Hugging Face folder or hub id; or `FILE.py:NAME`,
            a function with TRL's signature.
        device: of a reward model: cpu or cuda; the GPU where there is one if empty.
    Raises:
        ConfigError: there is no scorer of that name.
        ModelError: the reward model cannot be loaded, or is none.
    """
    check_scorer(spec)
    if spec in SCORERS:
        return SCORERS[spec]
    if is_plugin(spec):
        return from_function(load_plugin(spec))
    from posttrain.scoring.learned import RewardScorer  # imports torch

    return RewardScorer.load(spec.removeprefix(REWARD), device)


def check_scorer(spec: str) -> None:
    """Refuse a name that no scorer has, before anything is loaded.

    Raises:
        ConfigError: with the nearest known name, or what is wrong with the file.
    """
    if spec in SCORERS or spec.removeprefix(REWARD) not in ("", spec):
        return
    if is_plugin(spec):
        if not callable(load_plugin(spec)):
            raise ConfigError(
                f"{spec} is no function", cure="name a function f(prompts, completions, **columns)"
            )
        return
    raise ConfigError(
        f"there is no scorer {spec!r}",
        cure=f"{nearest(spec, SCORERS)}; or reward:FOLDER, or FILE.py:FUNCTION",
    )


def choose_scorer(scorer: str, reward_model: str | None) -> str:
    """The scorer's name from the two settings that can name one; empty where neither does."""
    return scorer or (f"{REWARD}{reward_model}" if reward_model else "")


def scorer_digest(spec: str) -> str:
    """SHA-256 of what a scorer depends on besides posttrain: a reward model's files, or the file of
    a function; empty for the others.
    """
    if is_plugin(spec):
        return sha256_file(plugin_file(spec))
    if not spec.startswith(REWARD):
        return ""
    from posttrain.engine.load import digest, resolve

    return digest(resolve(spec.removeprefix(REWARD)))


def reasons(scores: Many[Score], most: int = 3) -> str:
    """Why scores are missing, the commonest reasons first: `3: …; 1: …`."""
    counts = Counter(score.why for score in scores if score.value is None)
    return "; ".join(f"{n:,}: {why}" for why, n in counts.most_common(most))


def refuse_failures(spec: str, scores: Many[Score]) -> None:
    """Stop where a scorer has failed on every response of a batch: it would on the next ones.

    Raises:
        DataError: with the reason.
    """
    if scores and all(score.failed for score in scores):
        raise DataError(
            f"the scorer {spec} failed on all of {len(scores):,} responses; {reasons(scores)}",
            cure="mend it, and run the same command again",
        )


def refuse_unscored(
    spec: str, missing: Many[Score], n: int, what: str, where: str, cure: str
) -> None:
    """Stop where most scores are missing.

    Args:
        missing: those that are, of n.
        what: the scores are of. where: the rows. cure: of scorers that are not built in.
    Raises:
        DataError: more than half are missing.
    """
    if 2 * len(missing) <= n:
        return
    if spec in SCORERS:
        cure = (
            f"{spec} needs the wanted answer: a column completion or answer (--data "
            "FILE,completion=COLUMN)"
        )
    raise DataError(
        f"{spec or 'the reward model'} cannot judge {len(missing):,} of {n:,} {what}; "
        f"{reasons(missing)}",
        where=where,
        cure=cure,
    )


def missing(scores: Many[Score]) -> list[Score]:
    """Those that are missing."""
    return [score for score in scores if score.value is None]
