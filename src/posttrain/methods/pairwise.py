"""Losses of pairs: one answer is better than another.

Each takes the pairs of a forest and gives one number a pair.

Notation: π the policy, π_ref the reference, y⁺ and y⁻ the chosen and the rejected answer, |y| its
length in tokens, r(y) = log π(y|x) − log π_ref(y|x) the log-ratio, Δ = r(y⁺) − r(y⁻), β the
temperature, σ the logistic function.

The arguments of a function after the first are the options its method reads, with the method's
defaults. `posttrain.methods.preference` puts them together. Left out: odds that a judge gives to a
pair (SPPO and EXO with soft labels).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from posttrain.methods.answers import Pairs

LARGEST_EXPONENT = 80.0  # e^80 is still finite in float32; beyond it the slope is taken as 0
DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")


def _divergent(pairs: Pairs, f_divergence: str, f_alpha: float) -> Tensor:
    """[P] f′(π/π_ref)(y⁺) − f′(π/π_ref)(y⁻): Δ where the KL divergence to the reference is replaced
    by another.

    t = π/π_ref:  reverse_kl log t,  forward_kl 1 − 1/t,  js_divergence log 2t/(1+t),
    alpha_divergence (t^(α−1) − 1)/(α−1)

    Constants cancel. α is TRL's; the paper's is 1 − α, and at ½ they agree. α = 1 is reverse_kl, α
    = 0 forward_kl.
    Source: Wang et al. 2023 (f-DPO), arXiv 2309.16240, table 1.
    """
    return _derivative(pairs.chosen.ratio, f_divergence, f_alpha) - _derivative(
        pairs.rejected.ratio, f_divergence, f_alpha
    )


def _derivative(ratio: Tensor, f_divergence: str, f_alpha: float) -> Tensor:
    """f′ as a function of log t, up to a constant."""
    if f_divergence == "js_divergence":
        return logsigmoid(ratio)
    power = {"reverse_kl": 0.0, "forward_kl": -1.0, "alpha_divergence": f_alpha - 1}[f_divergence]
    return ratio if power == 0 else (power * ratio).clamp(max=LARGEST_EXPONENT).exp() / power


def _smoothed(logit: Tensor, label_smoothing: float) -> Tensor:
    """−(1−ε)·log σ(z) − ε·log σ(−z): the cross-entropy of labels that are wrong with
    probability ε.
    """
    return -(1 - label_smoothing) * logsigmoid(logit) - label_smoothing * logsigmoid(-logit)


# --------------------------------------------------------------------------------- with a reference


def dpo(
    pairs: Pairs,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    f_divergence: str = "reverse_kl",
    f_alpha: float = 0.5,
) -> Tensor:
    """Direct preference optimisation; with label smoothing conservative DPO.

    −(1−ε)·log σ(βΔ) − ε·log σ(−βΔ)

    Source: Rafailov et al. 2023, arXiv 2305.18290, equation 7; smoothing: its authors' note on
        noisy labels.
    """
    return _smoothed(beta * _divergent(pairs, f_divergence, f_alpha), label_smoothing)


def robust(
    pairs: Pairs,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.1,
    f_divergence: str = "reverse_kl",
    f_alpha: float = 0.5,
) -> Tensor:
    """Robust DPO: unbiased where a share ε of the labels is flipped.

    (−(1−ε)·log σ(βΔ) + ε·log σ(−βΔ)) / (1−2ε)

    Source: Chowdhury et al. 2024, arXiv 2403.00409.
    """
    logit = beta * _divergent(pairs, f_divergence, f_alpha)
    clean, flipped = -logsigmoid(logit), -logsigmoid(-logit)
    return ((1 - label_smoothing) * clean - label_smoothing * flipped) / (1 - 2 * label_smoothing)


def hinge(
    pairs: Pairs, *, beta: float = 0.1, f_divergence: str = "reverse_kl", f_alpha: float = 0.5
) -> Tensor:
    """Hinge loss: pairs apart by 1/β pull no more.

    max(0, 1 − βΔ)

    Source: Zhao et al. 2023 (SLiC), arXiv 2305.10425; with log-ratios: Liu et al. 2023 (RSO), arXiv
        2309.06657.
    """
    return (1 - beta * _divergent(pairs, f_divergence, f_alpha)).relu()


def ipo(pairs: Pairs, *, beta: float = 0.1) -> Tensor:
    """Identity preference optimisation: log-ratios a token should differ by 1/(2β), and not by
    more.

    (r(y⁺)/|y⁺| − r(y⁻)/|y⁻| − 1/(2β))²

    The paper writes sums. Its authors' experiments average over tokens (as TRL says), which keeps β
    apart from length.
    Source: Azar et al. 2023, arXiv 2310.12036, equation 17.
    """
    return (pairs.chosen.mean_ratio - pairs.rejected.mean_ratio - 1 / (2 * beta)).square()


def exo_pair(
    pairs: Pairs,
    *,
    beta: float = 0.1,
    label_smoothing: float = 1e-3,
    f_divergence: str = "reverse_kl",
    f_alpha: float = 0.5,
) -> Tensor:
    """Efficient exact optimisation: the reverse KL between the policy's choice and the smoothed
    label.

    q·log(q/(1−ε)) + (1−q)·log((1−q)/ε),  q = σ(βΔ)

    Source: Ji et al. 2024, arXiv 2402.00856, equation 16.
    """
    logit = beta * _divergent(pairs, f_divergence, f_alpha)
    smoothing = logit.new_tensor(label_smoothing)
    return logit.sigmoid() * (logsigmoid(logit) - torch.log1p(-smoothing)) + (-logit).sigmoid() * (
        logsigmoid(-logit) - smoothing.log()
    )


def nca_pair(pairs: Pairs, *, beta: float = 0.1) -> Tensor:
    """Noise contrastive alignment: the chosen answer's own likelihood must rise, too.

    −log σ(βr(y⁺)) − ½·log σ(−βr(y⁺)) − ½·log σ(−βr(y⁻))

    Source: Chen et al. 2024, arXiv 2402.05369.
    """
    chosen, rejected = beta * pairs.chosen.ratio, beta * pairs.rejected.ratio
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def bco_pair(pairs: Pairs, *, beta: float = 0.1) -> Tensor:
    """Binary classifier optimisation of pairs, without its shift.

    −log σ(βr(y⁺)) − log σ(−βr(y⁻))

    Source: Jung et al. 2024, arXiv 2404.04656; without the shift as in MPO, Wang et al. 2024, arXiv
        2411.10442.
    """
    return -logsigmoid(beta * pairs.chosen.ratio) - logsigmoid(-beta * pairs.rejected.ratio)


def sppo_hard(pairs: Pairs, *, beta: float = 0.1) -> Tensor:
    """Self-play preference optimisation where the winner wins for certain: log-ratios go to
    ±1/(2β).

    (r(y⁺) − 1/(2β))² + (r(y⁻) + 1/(2β))²

    Source: Wu et al. 2024, arXiv 2405.00675, equation 4.7 with probabilities 1 and 0; its η is 1/β.
    """
    return (pairs.chosen.ratio - 0.5 / beta).square() + (pairs.rejected.ratio + 0.5 / beta).square()


def apo_zero(pairs: Pairs, *, beta: float = 0.1) -> Tensor:
    """Anchored preference optimisation for chosen answers better than the model's own: chosen up,
    rejected down.

    1 − σ(βr(y⁺)) + σ(βr(y⁻))

    Source: D'Oosterlinck et al. 2024, arXiv 2408.06266, equation 7, plus 1.
    """
    return (-beta * pairs.chosen.ratio).sigmoid() + (beta * pairs.rejected.ratio).sigmoid()


def apo_down(pairs: Pairs, *, beta: float = 0.1) -> Tensor:
    """Anchored preference optimisation for chosen answers worse than the model's own: both down,
    rejected further.

    σ(βr(y⁺)) + 1 − σ(βΔ)

    Source: D'Oosterlinck et al. 2024, arXiv 2408.06266, equation 8, plus 1.
    """
    return (beta * pairs.chosen.ratio).sigmoid() + (-beta * pairs.delta).sigmoid()


def discopop(
    pairs: Pairs,
    *,
    beta: float = 0.1,
    tau: float = 0.05,
    f_divergence: str = "reverse_kl",
    f_alpha: float = 0.5,
) -> Tensor:
    """The loss a language model found: logistic where the pair is ordered wrongly, exponential
    where rightly.

    (1 − σ(z/τ))·(−log σ(z)) + σ(z/τ)·e^(−z),  z = βΔ

    Source: Lu et al. 2024 (DiscoPOP), arXiv 2406.08414, equation 5.
    """
    logit = beta * _divergent(pairs, f_divergence, f_alpha)
    right = (logit / tau).sigmoid()
    return (1 - right) * -logsigmoid(logit) + right * (-logit).clamp(max=LARGEST_EXPONENT).exp()


def sigmoid_norm(pairs: Pairs, *, beta: float = 5.0, label_smoothing: float = 0.0) -> Tensor:
    """Length-normalised DPO: log-ratios a token.

    −(1−ε)·log σ(z) − ε·log σ(−z),  z = β(r(y⁺)/|y⁺| − r(y⁻)/|y⁻|)

    Source: Lambert et al. 2024 (Tülu 3), arXiv 2411.15124, section 5; its β is 5.
    """
    return _smoothed(beta * (pairs.chosen.mean_ratio - pairs.rejected.mean_ratio), label_smoothing)


# ------------------------------------------------------------------------------- coupling the batch


def _rank(values: Tensor) -> Tensor:
    """[P] place of each value in ascending order; of equal ones the first in the batch
    comes first.
    """
    return values.argsort(stable=True).argsort()


def match_reference(pairs: Pairs) -> Tensor:
    """[1, P] of the reference's margins log π_ref(y⁺) − log π_ref(y⁻), the one with the rank of
    each pair's own.
    """
    assert pairs.chosen.reference is not None and pairs.rejected.reference is not None, (
        "aot needs the fact `reference`"
    )
    reference = pairs.chosen.reference - pairs.rejected.reference
    return reference.sort().values[_rank(pairs.chosen.logprob - pairs.rejected.logprob)][None]


def match_answers(pairs: Pairs) -> Tensor:
    """[2, P] the rejected log-ratio with the rank of each pair's chosen one, and the chosen with
    the rank of its rejected.
    """
    chosen, rejected = pairs.chosen.ratio, pairs.rejected.ratio
    return torch.stack(
        [rejected.sort().values[_rank(chosen)], chosen.sort().values[_rank(rejected)]]
    )


def aot(pairs: Pairs, *, beta: float = 0.1, label_smoothing: float = 0.0) -> Tensor:
    """Alignment via optimal transport: the distribution of the policy's margins dominates that of
    the reference's.

    Σ_k −log σ(β(u_(k) − v_(k))),  u = log π(y⁺)/π(y⁻) and v = log π_ref(y⁺)/π_ref(y⁻), sorted over
    the global batch

    v is constant, so each pair needs only the v of its own rank: exact whatever micro-batch it is
    in.
    Source: Melnyk et al. 2024, arXiv 2406.05882, paired.
    """
    assert pairs.coupled is not None
    return _smoothed(
        beta * (pairs.chosen.logprob - pairs.rejected.logprob - pairs.coupled[0]), label_smoothing
    )


def aot_unpaired(pairs: Pairs, *, beta: float = 0.1, label_smoothing: float = 0.0) -> Tensor:
    """Alignment via optimal transport: the distribution of the chosen log-ratios dominates that of
    the rejected.

    Σ_k l(c_(k) − r_(k)),  c = r(y⁺) and r = r(y⁻), each sorted over the global batch, l(x) = −log
    σ(βx)

    c_(k) and r_(k) may lie in different micro-batches. So each pair has l(c − sg r_match) + l(sg
    c_match − r), whose gradients are right and whose value counts everything twice; half of it is
    taken away again as a constant.
    Source: Melnyk et al. 2024, arXiv 2406.05882, unpaired.
    """
    assert pairs.coupled is not None
    twice = _smoothed(beta * (pairs.chosen.ratio - pairs.coupled[0]), label_smoothing) + _smoothed(
        beta * (pairs.coupled[1] - pairs.rejected.ratio), label_smoothing
    )
    return twice - twice.detach() / 2


# ------------------------------------------------------------------------------ without a reference


def sft(pairs: Pairs) -> Tensor:
    """The likelihood of the chosen answers and nothing else: −log π(y⁺) a token. 0 here; see
    `Method.imitates`.

    In a mixture: {"dpo": 1, "sft": α} is iterative RPO, arXiv 2404.19733, {"dpo": .8, "bco_pair":
        .2, "sft": 1} MPO, 2411.10442.
    """
    return torch.zeros_like(pairs.chosen.logprob)


def simpo(
    pairs: Pairs, *, beta: float = 2.0, gamma: float | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Simple preference optimisation: log-probabilities a token, apart by a margin.

    −(1−ε)·log σ(z) − ε·log σ(−z),  z = β(log π(y⁺)/|y⁺| − log π(y⁻)/|y⁻|) − γ;  γ is β/2 unless
    given

    Source: Meng et al. 2024, arXiv 2405.14734, equation 6.
    """
    return _smoothed(
        beta * (pairs.chosen.mean - pairs.rejected.mean) - (beta / 2 if gamma is None else gamma),
        label_smoothing,
    )


def shaped(mean: Tensor, alpha: float) -> Tensor:
    """(1 − p^(−α))/α of p = e^mean: AlphaPO's reward. α → 0 is the mean itself, SimPO's reward."""
    return mean if alpha == 0 else (1 - (-alpha * mean).clamp(max=LARGEST_EXPONENT).exp()) / alpha


def alphapo(
    pairs: Pairs,
    *,
    beta: float = 2.5,
    gamma: float = 0.1,
    alpha: float = 0.25,
    label_smoothing: float = 0.0,
) -> Tensor:
    """SimPO with another shape of reward, against likelihoods that fall together.

    −log σ(β(s(y⁺) − s(y⁻)) − γ),  s(y) = (1 − π(y)^(−α/|y|))/α

    Source: Gupta et al. 2025, arXiv 2501.03884; defaults of its Mistral model, as TRL quotes them.
    """
    difference = shaped(pairs.chosen.mean, alpha) - shaped(pairs.rejected.mean, alpha)
    return _smoothed(beta * difference - gamma, label_smoothing)


def cpo(pairs: Pairs, *, beta: float = 0.1, label_smoothing: float = 0.0) -> Tensor:
    """Contrastive preference optimisation: DPO with a uniform reference, and the likelihood of the
    chosen answers.

    −(1−ε)·log σ(z) − ε·log σ(−z) + nll·(−log π(y⁺) a token),  z = β(log π(y⁺) − log π(y⁻))

    Source: Xu et al. 2024, arXiv 2401.08417, equation 3 and its likelihood term.
    """
    return _smoothed(beta * (pairs.chosen.logprob - pairs.rejected.logprob), label_smoothing)


def orpo(pairs: Pairs, *, beta: float = 0.1) -> Tensor:
    """Odds ratio preference optimisation: the likelihood of the chosen answers, and β times the
    log-odds ratio.

    nll·(−log π(y⁺) a token) − β·log σ(log(p⁺/(1−p⁺)) − log(p⁻/(1−p⁻))),  p = π(y)^(1/|y|)

    Source: Hong et al. 2024, arXiv 2403.07691, equations 6 and 7; its λ is β here, as in TRL.
    """
    return -beta * logsigmoid(_log_odds(pairs.chosen.mean) - _log_odds(pairs.rejected.mean))


def _log_odds(mean: Tensor) -> Tensor:
    """log p/(1−p) of p = e^mean; a p that rounds to 1 is taken for the largest below it."""
    mean = mean.clamp(max=-torch.finfo(mean.dtype).eps)
    return mean - (-torch.expm1(mean)).log()


def tpo(pairs: Pairs, *, beta: float = 0.01, label_smoothing: float = 0.0) -> Tensor:
    """Triple preference optimisation: CPO whose likelihood is that of a third answer, the gold one.

    −(1−ε)·log σ(z) − ε·log σ(−z) + nll·(−log π(gold) a token),  z = β(log π(y⁺) − log π(y⁻))

    Source: Saeidi et al. 2024, arXiv 2405.16681.
    """
    return cpo(pairs, beta=beta, label_smoothing=label_smoothing)


def tpo_l(
    pairs: Pairs, *, beta: float = 2.0, gamma: float | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Triple preference optimisation, length-controlled: SimPO and the likelihood of the gold
    answer.

    −(1−ε)·log σ(z) − ε·log σ(−z) + nll·(−log π(gold) a token),  z as in SimPO

    Source: Saeidi et al. 2024, arXiv 2405.16681, TPO-L.
    """
    return simpo(pairs, beta=beta, gamma=gamma, label_smoothing=label_smoothing)
