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
from dataclasses import dataclass, replace
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


def _scores(samples: Samples, values: Values) -> Floats:
    """[G] rewards, less what a completion pays for coming near the limit.

    (buffer − (longest − length))/buffer within the last `overlong_buffer` tokens, 0 before them.

    Source: DAPO, arXiv 2503.14476, equation 13.
    """
    rewards = np.asarray(samples.rewards, np.float64)
    buffer = values["overlong_buffer"]
    if buffer is None:
        return rewards
    if samples.longest is None:
        raise ConfigError(
            "overlong_buffer counts from the longest length allowed, which is not known here",
            cure="give Samples.longest, or leave overlong_buffer out",
            option="overlong_buffer",
        )
    inside = np.asarray(samples.lengths, np.float64) - (samples.longest - buffer)
    return rewards - np.clip(inside / buffer, 0, 1)


def _penalties(samples: Samples, values: Values) -> list[Floats]:
    """[n] of each completion: β·k of every token where the divergence is in the reward, or 0."""
    if values["kl_in"] == "loss" or values["beta"] == 0:
        return [np.zeros(int(n)) for n in samples.lengths]
    if samples.reference is None:
        raise ConfigError(
            "the divergence is in the reward, and the reference's log-probabilities are missing",
            cure="give Samples.reference, or set beta to 0",
            option="beta",
        )
    estimate = ESTIMATORS[values["kl_estimator"]]
    pairs = zip(samples.reference, samples.logprobs, strict=True)
    return [
        values["beta"] * estimate(np.asarray(reference, np.float64) - logprob)
        for reference, logprob in pairs
    ]


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


def group_relative(batch: Many[Samples], values: Values) -> list[Credit]:
    """How much better than the others of the group: (R − mean)/(std + 10⁻⁴), for every token.

    Of two completions it is ±1/√2: which is better counts, by how much does not.

    Source: Shao et al. 2024 (GRPO), arXiv 2402.03300, section 4.1.2; two: arXiv 2510.00977.
    """
    totals = [_totals(samples, values) for samples in batch]
    centred = [_centred(group) for group in totals]
    return _spread(batch, _scaled(centred, totals, values["scale"]))


def leave_one_out(batch: Many[Samples], values: Values) -> list[Credit]:
    """How much better than the mean of the others: (R − mean)·G/(G−1), for every token.

    Source: Ahmadian et al. 2024 (RLOO), arXiv 2402.14740, equation 6.
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

    Source: Li et al. 2023 (ReMax), arXiv 2310.10505, algorithm 2.
    """
    advantages = []
    for samples in batch:
        if samples.greedy is None:
            raise ConfigError(
                "remax compares with the greedy completion, whose reward is missing",
                cure="give Samples.greedy",
            )
        rewards = _token_rewards(samples, values)
        advantages.append([_to_go(tokens, 1.0) - samples.greedy for tokens in rewards])
    return [Credit(group) for group in _whitened(advantages, values["scale"])]


def reward_to_go(batch: Many[Samples], values: Values) -> list[Credit]:
    """What is still to come, whitened over the tokens of the batch.

    Source: Hu 2025 (REINFORCE++), arXiv 2501.03262, equations 7 to 9.
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
        if samples.values is None:
            raise ConfigError(
                "ppo needs what the value head says of every token", cure="give Samples.values"
            )
        heads = [np.asarray(head, np.float64) for head in samples.values]
        group = []
        for tokens, head in zip(_token_rewards(samples, values), heads, strict=True):
            errors = tokens + values["gamma"] * np.append(head[1:], 0.0)[: len(head)] - head
            group.append(_to_go(errors, values["gamma"] * values["lambda_"]))
        advantages.append(group)
        returns.append([a + head for a, head in zip(group, heads, strict=True)])
    white = _whitened(advantages, values["scale"])
    return [Credit(*both) for both in zip(white, returns, strict=True)]


@dataclass(frozen=True)
class Algorithm:
    """A way to learn from reward.

    Attributes:
        assign: from rewards to advantages; its docstring has the formula.
        surrogate: name of the loss of a token, in `posttrain.methods.policy_gradient`.
        defaults: the options it reads, by name.
        paper: where it is from.
        value: whether it needs a value head.
        greedy: whether it needs the reward of the greedy completion.
        group_min: completions of a prompt it needs.
    """

    assign: Assign
    surrogate: Literal["clipped", "weighed", "soft", "geometric", "clip_cov", "kl_cov"]
    defaults: Mapping[str, Any]
    paper: str
    value: bool = False
    greedy: bool = False
    group_min: int = 1
    name: str = ""

    def credit(self, batch: Many[Samples], options: RlOptions) -> list[Credit]:
        """The advantages of a whole batch; where they are scaled by the batch, no part of it will
        do.

        Raises:
            ConfigError: an option it does not read, a group too small, or something it needs is
                missing.
        """
        values = self.values(options)
        for samples in batch:
            if len(samples.rewards) < self.group_min:
                raise ConfigError(
                    f"{self.name} compares the completions of a prompt, and there is"
                    f" {len(samples.rewards)}",
                    cure=f"draw {self.group_min} or more; reinforce and remax take one",
                )
        return self.assign(batch, values)

    def values(self, options: RlOptions) -> Values:
        """Its options by name, none missing.

        Raises:
            ConfigError: one that it does not read, or that contradicts another.
        """
        given = options.given()
        for option in given:
            if option not in self.defaults:
                readers = [n for n, other in ALGORITHMS.items() if option in other.defaults]
                raise ConfigError(
                    f"{option} has no meaning for {self.name}",
                    cure=f"leave it out; it is read by {', '.join(readers)}",
                    option=option,
                )
        values = {**self.defaults, **given}
        _check(self, given, values)
        if values["kl_estimator"] is None:
            values["kl_estimator"] = "k1" if values["kl_in"] == "reward" else "k3"
        return MappingProxyType(values)


def _check(algorithm: Algorithm, given: Values, values: Values) -> None:
    """Raise where an option is without effect or does what nobody means."""
    for option, switch, needed in (
        ("kl_horizon", "kl_target", "set kl_target, or leave it out"),
        ("correction_cap", "correction", "set correction to token or sequence, or leave it out"),
    ):
        if option in given and values[switch] in (None, "none"):
            raise ConfigError(f"{option} has no effect here", cure=needed, option=option)
    in_reward = values["kl_in"] == "reward"
    if in_reward and "kl_weighted" in given:
        raise ConfigError(
            "kl_weighted is of a divergence in the loss",
            cure="set kl_in to loss, or leave it out",
            option="kl_weighted",
        )
    if not in_reward and values["kl_target"] is not None:
        raise ConfigError(
            "an adaptive beta is of a divergence in the reward",
            cure="set kl_in to reward, or leave kl_target out",
            option="kl_target",
        )
    if not in_reward and values["kl_estimator"] == "k1" and not values["kl_weighted"]:
        raise ConfigError(
            "k1 in the loss has a gradient of 0 on average: nothing would hold the policy",
            cure="take k2 or k3, set kl_weighted, or set kl_in to reward",
            option="kl_estimator",
        )
    if algorithm.surrogate == "weighed" and values["clip_high"] < 1:
        raise ConfigError(
            f"clip_high is the largest ratio of {algorithm.name} itself, and"
            f" {values['clip_high']:g} would hold back every token",
            cure="give it 1 or more, such as 5",
            option="clip_high",
        )
    if values.get("cov_low", 0.0) >= values.get("cov_high", 1.0):
        raise ConfigError(
            "no covariance lies between cov_low and cov_high",
            cure="give cov_low the smaller one",
            option="cov_low",
        )


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
    "correction": "token",
    "correction_cap": 3.0,
    "importance": "token",
}
IN_REWARD = SHARED | {"beta": 0.05, "kl_in": "reward", "scale": "none"}
CLIP = {"clip_low": 0.2, "clip_high": 0.2, "clip_largest": None}
GROUP = SHARED | {"scale": "group"}
PLAIN = IN_REWARD | {"aggregate": "sum", "clip_high": 5.0}
COV = {"cov_share": 2e-4}


def _without(defaults: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in defaults.items() if name not in names}


_EVERY: dict[str, Algorithm] = {
    "ppo": Algorithm(
        generalised_advantage,
        "clipped",
        IN_REWARD
        | CLIP
        | {"scale": "batch", "gamma": 1.0, "lambda_": 0.95, "value_weight": 0.1, "clip_value": 0.2},
        "1707.06347",
        value=True,
    ),
    "reinforce": Algorithm(batch_baseline, "weighed", PLAIN, "2402.14740"),
    "rloo": Algorithm(
        leave_one_out,
        "clipped",
        IN_REWARD | CLIP | {"importance": "product", "aggregate": "sequence"},
        "2402.14740",
        group_min=2,
    ),
    "reinforce_pp": Algorithm(
        reward_to_go, "clipped", IN_REWARD | CLIP | {"scale": "batch", "gamma": 1.0}, "2501.03262"
    ),
    "remax": Algorithm(greedy_baseline, "weighed", PLAIN, "2310.10505", greedy=True),
    "grpo": Algorithm(
        group_relative, "clipped", GROUP | CLIP | {"aggregate": "sequence"}, "2402.03300"
    ),
    "dr_grpo": Algorithm(
        group_relative,
        "clipped",
        GROUP | CLIP | {"aggregate": "fixed", "scale": "none"},
        "2503.20783",
    ),
    "dapo": Algorithm(group_relative, "clipped", GROUP | CLIP | {"clip_high": 0.28}, "2503.14476"),
    "bnpo": Algorithm(group_relative, "clipped", GROUP | CLIP, "2506.02864"),
    "gspo": Algorithm(
        group_relative,
        "clipped",
        GROUP
        | CLIP
        | {"clip_low": 3e-4, "clip_high": 4e-4, "importance": "sequence", "aggregate": "sequence"},
        "2507.18071",
    ),
    "cispo": Algorithm(group_relative, "weighed", GROUP | {"clip_high": 5.0}, "2506.13585"),
    "sapo": Algorithm(
        group_relative,
        "soft",
        GROUP | {"aggregate": "sequence", "sapo_positive": 1.0, "sapo_negative": 1.05},
        "2511.20347",
    ),
    "gmpo": Algorithm(
        group_relative,
        "geometric",
        _without(GROUP, "importance")
        | {"aggregate": "sequence", "kl_weighted": False, "clip_low": 0.4, "clip_high": 0.4},
        "2507.20673",
    ),
    "clip_cov": Algorithm(
        group_relative,
        "clip_cov",
        _without(GROUP, "importance")
        | {"clip_low": 0.2, "clip_high": 0.2}
        | COV
        | {"cov_low": 1.0, "cov_high": 5.0},
        "2505.22617",
    ),
    "kl_cov": Algorithm(
        group_relative,
        "kl_cov",
        _without(GROUP, "importance") | COV | {"cov_weight": 1.0},
        "2505.22617",
    ),
}
ALGORITHMS: dict[str, Algorithm] = {
    name: replace(
        algorithm,
        name=name,
        group_min=2 if algorithm.assign is group_relative else algorithm.group_min,
    )
    for name, algorithm in _EVERY.items()
}


def algorithm(name: str) -> Algorithm:
    """An algorithm by name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in ALGORITHMS:
        raise ConfigError(f"unknown algorithm {name!r}", cure=nearest(name, ALGORITHMS))
    return ALGORITHMS[name]
