"""Credit: from the rewards of completions to an advantage for every token.

    credits = ALGORITHMS["grpo"].credit(groups, RlOptions())

An algorithm is how it assigns credit, the surrogate that its loss is made of, and its defaults; the
surrogates are in `posttrain.methods.policy_gradient`. All in float64, and without torch.

A completion whose score is missing gets no credit and is left out of every mean. Whether rewards
differ is told by exact equality: the standard deviation of equal floats is often not 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from posttrain.core.errors import ConfigError, nearest
from posttrain.methods.kl import ESTIMATORS
from posttrain.methods.rl_options import RlOptions

Values = Mapping[str, Any]  # an algorithm's options by name, none missing
Floats = np.ndarray
EPSILON = 1e-4  # added to standard deviations of rewards, as in TRL
WHITENING = 1e-8  # added to variances of advantages a token, as in TRL


@dataclass(frozen=True)
class Samples:
    """The completions of one prompt: a group of G.

    Attributes:
        rewards: [G] NaN where the score is missing.
        lengths: [G] tokens of each completion.
        finished: [G] bool: it ended by itself, not at the limit.
        logprobs: [n] of each completion, under the policy that is about to be updated, nats.
        reference: [n] of each, under the reference; None where no divergence is in the reward.
        values: [n] of each, the value head's where each token is predicted; None without one.
        greedy: reward of the greedy completion; None where the algorithm needs none, NaN where its
            score is missing.
        longest: tokens a completion may have; None where no penalty of long ones is asked for.
    """

    rewards: Floats
    lengths: Floats
    finished: Floats
    logprobs: list[Floats]
    reference: list[Floats] | None = None
    values: list[Floats] | None = None
    greedy: float | None = None
    longest: int | None = None


@dataclass(frozen=True)
class Credit:
    """What the completions of one prompt are worth.

    Attributes:
        advantages: [n] of each completion; 0 where the score is missing.
        returns: [n] of each: what the value head should say, NaN where the score is missing; None
            without a value head.
    """

    advantages: list[Floats]
    returns: list[Floats] | None = None


Assign = Callable[[Many[Samples], Values], list[Credit]]


def same(rewards: Floats) -> bool:
    """Whether nothing can be learned by comparison: the scores that are there are exactly equal, or
    fewer than two.
    """
    scores = np.asarray(rewards, np.float64)
    scores = scores[~np.isnan(scores)]
    return bool(len(scores) < 2 or (scores == scores[0]).all())


# ----------------------------------------------------------------------------- rewards of tokens


def _needed(value: Any, name: str) -> Any:
    """What an algorithm needs of the samples."""
    if value is None:
        raise ConfigError(
            f"the algorithm and its options need Samples.{name}, which is missing",
            cure=f"give {name}, or choose what does not read it",
        )
    return value


def _scores(samples: Samples, values: Values) -> Floats:
    """[G] rewards, less what a completion pays for coming near the limit.

    (buffer − (longest − length))/buffer within the last `overlong_buffer` tokens, 0 before them.

    Source: DAPO, arXiv 2503.14476, equation 13.
    """
    rewards = np.asarray(samples.rewards, np.float64)
    buffer = values["overlong_buffer"]
    if buffer is None:
        return rewards
    longest = _needed(samples.longest, "longest")
    inside = np.asarray(samples.lengths, np.float64) - (longest - buffer)
    return rewards - np.clip(inside / buffer, 0, 1)


def divergence(samples: Samples) -> Floats:
    """[G] of each completion, Σ k3 to the reference, nats: what `kl.check` and an adaptive β watch.

    Raises:
        ConfigError: there is no reference.
    """
    return np.array([tokens.sum() for tokens in _estimates(samples, "k3")])


def _estimates(samples: Samples, estimator: str) -> list[Floats]:
    """[n] of each completion: KL to the reference."""
    reference = _needed(samples.reference, "reference")
    pairs = zip(reference, samples.logprobs, strict=True)
    estimate = ESTIMATORS[estimator]
    return [estimate(np.asarray(r, np.float64) - logprob) for r, logprob in pairs]


def _penalties(samples: Samples, values: Values) -> list[Floats]:
    """[n] of each completion: β·k of every token where the divergence is in the reward, or 0."""
    if values["kl_in"] == "loss" or values["beta"] == 0:
        return [np.zeros(int(n)) for n in samples.lengths]
    return [values["beta"] * kl for kl in _estimates(samples, values["kl_estimator"])]


def _totals(samples: Samples, values: Values) -> Floats:
    """[G] what each completion earned as a whole: its score less its divergence."""
    return _scores(samples, values) - [p.sum() for p in _penalties(samples, values)]


def _token_rewards(samples: Samples, values: Values) -> list[Floats]:
    """[n] of each completion: the divergence where it arises, the score at the last token; NaN
    there where it is missing.
    """
    rewards = [-penalty for penalty in _penalties(samples, values)]
    for tokens, score in zip(rewards, _scores(samples, values), strict=True):
        tokens[-1:] += score
    return rewards


def _to_go(rewards: Floats, gamma: float) -> Floats:
    """[n] Σ_{k≥t} γ^(k−t)·r_k of every token t; NaN throughout where the score is missing."""
    returns, ahead = np.empty(len(rewards)), 0.0
    for t in reversed(range(len(rewards))):
        ahead = rewards[t] + gamma * ahead
        returns[t] = ahead
    return returns if not np.isnan(rewards).any() else np.full(len(rewards), np.nan)


# ------------------------------------------------------------------------------------- algorithms


def _deviation(values: Floats) -> float:
    """Standard deviation (n − 1) of those that are there; 0 of fewer than two."""
    present = values[~np.isnan(values)]
    return float(present.std(ddof=1)) if len(present) > 1 else 0.0


def _centred(totals: Floats, factor: bool = False) -> Floats:
    """[G] totals less their mean, or less the mean of the others; exactly 0 where all are equal."""
    if same(totals):
        return np.where(np.isnan(totals), np.nan, 0.0)
    scored = int((~np.isnan(totals)).sum())
    return (totals - np.nanmean(totals)) * (scored / (scored - 1) if factor else 1)


def _scaled(advantages: Many[Floats], spread: Many[Floats], scale: str) -> list[Floats]:
    """Advantages [G] of every group over the standard deviation of `spread`, of the group's own or
    of the batch's.
    """
    if scale == "none" or not advantages:
        return list(advantages)
    batch = _deviation(np.concatenate(spread))
    deviations = [batch if scale == "batch" else _deviation(group) for group in spread]
    pairs = zip(advantages, deviations, strict=True)
    return [advantage / (deviation + EPSILON) for advantage, deviation in pairs]


def _spread(batch: Many[Samples], advantages: Many[Floats]) -> list[Credit]:
    """The advantage of a completion for each of its tokens."""
    credits = []
    for samples, group in zip(batch, advantages, strict=True):
        known = np.nan_to_num(group, nan=0.0)
        pairs = zip(known, samples.lengths, strict=True)
        credits.append(Credit([np.full(int(n), advantage) for advantage, n in pairs]))
    return credits


def _whitened(batch: Many[list[Floats]], scale: str) -> list[list[Floats]]:
    """Advantages of tokens, of mean 0 and variance 1 over the batch unless scale is "none"; 0 where
    they are missing.
    """
    tokens = [advantages for group in batch for advantages in group]
    pooled = np.concatenate([np.empty(0), *tokens])
    mean, factor = 0.0, 1.0
    if scale == "batch":
        if same(pooled):
            return [[np.zeros(len(advantages)) for advantages in group] for group in batch]
        mean = float(np.nanmean(pooled))
        factor = (_deviation(pooled) ** 2 + WHITENING) ** -0.5
    return [
        [np.nan_to_num((advantages - mean) * factor, nan=0.0) for advantages in group]
        for group in batch
    ]


def _finished(samples: Samples, credit: Credit) -> Credit:
    """The same credit, but for completions that were cut off, which get none."""

    def kept(tokens: Many[Floats], otherwise: float) -> list[Floats]:
        pairs = zip(tokens, samples.finished, strict=True)
        return [t if whole else np.full(len(t), otherwise) for t, whole in pairs]

    returns = None if credit.returns is None else kept(credit.returns, np.nan)
    return Credit(kept(credit.advantages, 0.0), returns)


def group_relative(batch: Many[Samples], values: Values) -> list[Credit]:
    """How much better than the others of the group: (R − mean)/(std + 10⁻⁴), for every token.

    Of two completions it is ±1/√2: which is better counts, by how much does not.

    Source: Shao et al. 2024 (GRPO), arXiv 2402.03300; two: arXiv 2510.00977.
    """
    totals = [_totals(samples, values) for samples in batch]
    centred = [_centred(group) for group in totals]
    return _spread(batch, _scaled(centred, totals, values["scale"]))


def leave_one_out(batch: Many[Samples], values: Values) -> list[Credit]:
    """How much better than the mean of the others: (R − mean)·G/(G−1), for every token.

    Source: Ahmadian et al. 2024 (RLOO), arXiv 2402.14740.
    """
    centred = [_centred(_totals(samples, values), factor=True) for samples in batch]
    return _spread(batch, _scaled(centred, centred, values["scale"]))


def batch_baseline(batch: Many[Samples], values: Values) -> list[Credit]:
    """How much better than the batch: R − mean, for every token.

    Source: Williams 1992 with the batch's mean as the baseline.
    """
    totals = [_totals(samples, values) for samples in batch]
    pooled = _centred(np.concatenate([np.empty(0), *totals]))
    parts = np.split(pooled, np.cumsum([len(group) for group in totals])[:-1])
    return _spread(batch, _scaled(parts[: len(batch)], totals, values["scale"]))


def greedy_baseline(batch: Many[Samples], values: Values) -> list[Credit]:
    """How much better than the greedy completion: reward to go − R_greedy.

    Source: Li et al. 2023 (ReMax), arXiv 2310.10505.
    """
    advantages = []
    for samples in batch:
        greedy = _needed(samples.greedy, "greedy")
        rewards = _token_rewards(samples, values)
        advantages.append([_to_go(tokens, 1.0) - greedy for tokens in rewards])
    return [Credit(group) for group in _whitened(advantages, values["scale"])]


def reward_to_go(batch: Many[Samples], values: Values) -> list[Credit]:
    """What is still to come, whitened over the tokens of the batch.

    Source: Hu 2025 (REINFORCE++), arXiv 2501.03262.
    """
    rewards = [_token_rewards(samples, values) for samples in batch]
    advantages = [[_to_go(tokens, values["gamma"]) for tokens in group] for group in rewards]
    return [Credit(group) for group in _whitened(advantages, values["scale"])]


def generalised_advantage(batch: Many[Samples], values: Values) -> list[Credit]:
    """How much better than the value head expected, whitened over the tokens of the batch.

    A_t = Σ_k (γλ)^k·δ_{t+k},  δ_t = r_t + γ·V_{t+1} − V_t,  V = 0 after the last token;
    returns A_t + V_t, of A before it is whitened

    Source: Schulman et al. 2015, arXiv 1506.02438, equation 16.
    """
    advantages, returns = [], []
    for samples in batch:
        heads = [np.asarray(v, np.float64) for v in _needed(samples.values, "values")]
        group = []
        for tokens, head in zip(_token_rewards(samples, values), heads, strict=True):
            errors = tokens + values["gamma"] * np.append(head[1:], 0.0)[: len(head)] - head
            group.append(_to_go(errors, values["gamma"] * values["gae_lambda"]))
        advantages.append(group)
        returns.append([a + head for a, head in zip(group, heads, strict=True)])
    white = _whitened(advantages, values["scale"])
    return [Credit(*both) for both in zip(white, returns, strict=True)]


@dataclass(frozen=True)
class Algorithm:
    """A way to learn from reward.

    Attributes:
        name: of `ALGORITHMS`.
        assign: from rewards to advantages; its docstring has the formula.
        surrogate: name of the loss of a token, in `posttrain.methods.policy_gradient`.
        defaults: the options it reads, by name.
        paper: arXiv number; empty for BNPO, which is what TRL calls so and not what the paper does.
        value: whether it needs a value head.
        greedy: whether it needs the reward of the greedy completion.
    """

    name: str
    assign: Assign
    surrogate: Literal["clipped", "weighed", "soft", "geometric", "clip_cov", "kl_cov"]
    defaults: Mapping[str, Any]
    paper: str
    value: bool = False
    greedy: bool = False

    @property
    def grouped(self) -> bool:
        """Whether completions are compared with others of the same prompt."""
        return self.assign in (group_relative, leave_one_out)

    @property
    def group_min(self) -> int:
        """Completions of a prompt that it needs."""
        return 2 if self.grouped else 1

    def credit(self, batch: Many[Samples], options: RlOptions) -> list[Credit]:
        """The advantages of a whole batch, and not of a part of it, since some scale by the batch.

        Raises:
            ConfigError: an option it does not read, a group too small, or something it needs is
                missing.
        """
        values = self.values(options)
        if any(len(samples.rewards) < self.group_min for samples in batch):
            raise ConfigError(
                f"{self.name} compares the completions of a prompt, and there is one alone",
                cure="draw two or more; ppo, reinforce, reinforce_pp and remax take one",
            )
        credits = self.assign(batch, values)
        if values["mask_unfinished"]:
            return [_finished(*both) for both in zip(batch, credits, strict=True)]
        return credits

    def values(self, options: RlOptions) -> Values:
        """Its options by name, none missing.

        Raises:
            ConfigError: one that it does not read, or that contradicts another.
        """
        given = options.given()
        for option in sorted(given.keys() - self.defaults.keys()):
            readers = [name for name, other in ALGORITHMS.items() if option in other.defaults]
            cure = f"leave it out; it is read by {', '.join(readers)}"
            raise _fault(option, f"has no meaning for {self.name}", cure)
        values = {**self.defaults, **given}
        if values["kl_estimator"] is None:
            values["kl_estimator"] = "k1" if values["kl_in"] == "reward" else "k3"
        if "kl_weighted" not in given and values["kl_estimator"] == "k2":
            values["kl_weighted"] = False  # its gradient is right without
        _check(self, given, values)
        return MappingProxyType(values)


def _fault(option: str, what: str, cure: str) -> ConfigError:
    return ConfigError(f"{option} {what}", cure=cure, option=option)


def _check(algorithm: Algorithm, given: Values, values: Values) -> None:
    """Raise where an option is without effect, or does what nobody means."""
    in_loss, estimator = values["kl_in"] == "loss", values["kl_estimator"]
    if "kl_horizon" in given and values["kl_target"] is None:
        raise _fault("kl_horizon", "has no effect without kl_target", "set both, or none")
    if "correction_cap" in given and values["correction"] == "none":
        raise _fault("correction_cap", "has no effect without a correction", "leave one out")
    if "kl_weighted" in given and not in_loss:
        raise _fault("kl_weighted", "is of a divergence in the loss", "set kl_in to loss")
    if in_loss and values["kl_target"] is not None:
        raise _fault("kl_target", "is of a divergence in the reward", "set kl_in to reward")
    if estimator == "k2" and values["kl_weighted"] and in_loss:
        raise _fault("kl_weighted", "would bias the gradient of k2", "take k3, or leave it out")
    if estimator == "k1" and in_loss and not values["kl_weighted"]:
        raise _fault("kl_estimator", "k1 has no gradient in the loss on average", "take k2 or k3")
    if values["scale"] == "group" and not algorithm.grouped:
        raise _fault("scale", f"of {algorithm.name} knows no groups", "set it to batch or none")
    if algorithm.surrogate == "weighed" and values["clip_high"] < 1:
        what = f"is the largest ratio of {algorithm.name} itself, and below 1 it stops every token"
        raise _fault("clip_high", what, "give it 1 or more, such as 5")
    if values.get("cov_low", 0.0) >= values.get("cov_high", 1.0):
        raise _fault("cov_low", "is not below cov_high", "give it the smaller number")


SHARED: dict[str, Any] = {
    "aggregate": "token",
    "beta": 0.02,
    "kl_in": "loss",
    "kl_estimator": None,  # by kl_in
    "kl_weighted": True,
    "kl_target": None,
    "kl_horizon": 10_000.0,
    "max_kl": None,
    "entropy_weight": 0.0,
    "overlong_buffer": None,
    "mask_unfinished": False,
    "correction": "token",
    "correction_cap": 3.0,
    "scale": "group",
}
RATIO = {"importance": "token"}
CLIP = {"clip_low": 0.2, "clip_high": 0.2}
CLIPPED = SHARED | RATIO | CLIP | {"clip_largest": None}
IN_REWARD = {"beta": 0.05, "kl_in": "reward", "scale": "none"}
PLAIN = SHARED | RATIO | IN_REWARD | {"aggregate": "sum", "clip_high": 5.0}
MEAN = {"aggregate": "sequence"}
WHITE = CLIPPED | IN_REWARD | {"scale": "batch", "gamma": 1.0}
PPO = WHITE | {"gae_lambda": 0.95, "value_weight": 0.1, "clip_value": 0.2}
RLOO = CLIPPED | IN_REWARD | MEAN | {"importance": "product"}
DR_GRPO = CLIPPED | {"aggregate": "fixed", "scale": "none"}
GSPO = CLIPPED | MEAN | {"clip_low": 3e-4, "clip_high": 4e-4, "importance": "sequence"}
SAPO = SHARED | RATIO | MEAN | {"sapo_positive": 1.0, "sapo_negative": 1.05}
GMPO = SHARED | MEAN | {"clip_low": 0.4, "clip_high": 0.4, "kl_weighted": False}
CLIP_COV = SHARED | CLIP | {"cov_share": 2e-4, "cov_low": 1.0, "cov_high": 5.0}
KL_COV = SHARED | {"cov_share": 2e-4, "cov_weight": 1.0}

ALGORITHMS: dict[str, Algorithm] = {
    algorithm.name: algorithm
    for algorithm in (
        Algorithm("ppo", generalised_advantage, "clipped", PPO, "1707.06347", value=True),
        Algorithm("reinforce", batch_baseline, "weighed", PLAIN, "2402.14740"),
        Algorithm("rloo", leave_one_out, "clipped", RLOO, "2402.14740"),
        Algorithm("reinforce_pp", reward_to_go, "clipped", WHITE, "2501.03262"),
        Algorithm("remax", greedy_baseline, "weighed", PLAIN, "2310.10505", greedy=True),
        Algorithm("grpo", group_relative, "clipped", CLIPPED | MEAN, "2402.03300"),
        Algorithm("dr_grpo", group_relative, "clipped", DR_GRPO, "2503.20783"),
        Algorithm("dapo", group_relative, "clipped", CLIPPED | {"clip_high": 0.28}, "2503.14476"),
        Algorithm("bnpo", group_relative, "clipped", CLIPPED, ""),
        Algorithm("gspo", group_relative, "clipped", GSPO, "2507.18071"),
        Algorithm(
            "cispo", group_relative, "weighed", SHARED | RATIO | {"clip_high": 5.0}, "2506.13585"
        ),
        Algorithm("sapo", group_relative, "soft", SAPO, "2511.20347"),
        Algorithm("gmpo", group_relative, "geometric", GMPO, "2507.20673"),
        Algorithm("clip_cov", group_relative, "clip_cov", CLIP_COV, "2505.22617"),
        Algorithm("kl_cov", group_relative, "kl_cov", KL_COV, "2505.22617"),
    )
}


def algorithm(name: str) -> Algorithm:
    """An algorithm by name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in ALGORITHMS:
        raise ConfigError(f"unknown algorithm {name!r}", cure=nearest(name, ALGORITHMS))
    return ALGORITHMS[name]
