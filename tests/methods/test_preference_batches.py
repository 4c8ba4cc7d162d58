"""Every preference method over random batches: gradients by finite differences, micro-batches,
extremes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from posttrain.core.types import Columns, Facts, Loss
from posttrain.methods.preference import METHODS, Options, preference

ALIKE = {"pairs": 2, "triples": 3, "labels": 1}  # answers a row
VARIANTS: list[tuple[dict[str, float], dict[str, Any]]] = [
    *(({name: 1.0}, {}) for name in METHODS),
    (
        {"dpo": 1.0},
        {"beta": 0.5, "label_smoothing": 0.2, "ld_alpha": 0.3, "f_divergence": "js_divergence"},
    ),
    ({"dpo": 1.0}, {"f_divergence": "forward_kl"}),
    ({"dpo": 1.0}, {"f_divergence": "alpha_divergence", "f_alpha": 0.3}),
    ({"dpo": 1.0}, {"weighting": True}),
    ({"aot": 1.0}, {"ld_alpha": 0.4, "label_smoothing": 0.1}),
    ({"dpo": 0.8, "bco_pair": 0.2, "sft": 1.0}, {}),
    ({"aot": 0.5, "aot_unpaired": 0.3, "orpo": 0.2}, {"beta": 0.7}),
    ({"bco": 0.6, "apo_zero_unpaired": 0.4}, {"desirable": 1.5, "undesirable": 0.5}),
]
IDS = [" ".join([*mix, *(f"{k}={v}" for k, v in o.items())]) for mix, o in VARIANTS]


@dataclass
class Batch:
    """Rows of random answers; `logprob` [N] in the order of the rows' sequences, so that forests
    can be cut from it.
    """

    kind: str
    lengths: list[list[int]]
    logprob: Tensor
    reference: Tensor
    collision: Tensor
    labels: Tensor

    @classmethod
    def random(cls, kind: str, rows: int, seed: int, dtype: torch.dtype = torch.float64) -> Batch:
        rng = torch.Generator().manual_seed(seed)
        lengths = torch.randint(1, 5, (rows, ALIKE[kind]), generator=rng).tolist()
        n = sum(map(sum, lengths))
        logprob, reference, collision = (
            -3 * torch.rand(n, generator=rng, dtype=dtype) - 0.01 for _ in range(3)
        )
        return cls(
            kind,
            lengths,
            logprob.requires_grad_(),
            reference,
            collision,
            torch.randint(0, 2, (rows,), generator=rng),
        )

    def forest(self, rows: list[int], logprob: Tensor | None = None) -> tuple[Columns, Facts]:
        """Some rows, in the order given."""
        ends = torch.tensor([sum(one) for one in self.lengths]).cumsum(0).tolist()
        at = torch.cat([torch.arange(ends[r] - sum(self.lengths[r]), ends[r]) for r in rows])
        flat = torch.tensor([n for r in rows for n in self.lengths[r]])
        policy = self.logprob if logprob is None else logprob
        units = len(rows) if self.kind != "labels" else 0
        facts = Facts(
            torch.repeat_interleave(flat),
            L=len(flat),
            members=torch.arange(units * ALIKE[self.kind]).reshape(units, -1 if units else 0),
            numbers=torch.tensor(rows[:units], dtype=torch.int64),
            targets={"reference": self.reference[at]},
            sequences={} if units else {"label": self.labels[torch.tensor(rows)].float()},
        )
        return Columns(policy[at], collision=self.collision[at]), facts


def run(
    loss: Loss, batch: Batch, forests: list[list[int]], probes: Batch | None
) -> tuple[float, Tensor, dict[str, Tensor]]:
    """Value, gradient and what is reported, forest by forest."""
    cut = [batch.forest(rows) for rows in forests]
    before = cut if probes is None else [probes.forest(rows) for rows in forests]
    statistics = None
    if loss.prepare:
        statistics = loss.prepare([c for c, _ in before], [f for _, f in before])
    counts = dict[str, float]()
    for _, facts in cut:
        for name, count in loss.counts(facts).items():
            counts[name] = counts.get(name, 0) + count
    total, values = 0.0, []
    batch.logprob.grad = None
    assert loss.report is not None
    for columns, facts in cut:
        value = loss.loss(columns, facts, counts, statistics)
        value.backward()
        total += float(value.detach())
        values.append(loss.report(columns, facts, statistics))
    assert batch.logprob.grad is not None
    return (
        total,
        batch.logprob.grad.clone(),
        {name: torch.cat([v[name] for v in values]) for name in values[0]},
    )


def kind_of(mix: dict[str, float]) -> str:
    return METHODS[next(iter(mix))].rows


def probes_of(mix: dict[str, float], rows: int, seed: int) -> Batch | None:
    """Answers that the policy likes better than the reference, so that KTO's reference point is
    above 0.
    """
    if not any(METHODS[name].probes for name in mix):
        return None
    probes = Batch.random("labels", rows, seed + 1)
    probes.reference = probes.reference - 1.5
    return probes


@pytest.mark.parametrize(("mix", "options"), VARIANTS, ids=IDS)
@given(seed=st.integers(0, 10**6), data=st.data())
@settings(max_examples=15, deadline=None)
def test_micro_batches_add_up_to_the_whole(
    mix: dict[str, float], options: dict[str, Any], seed: int, data: st.DataObject
) -> None:
    """Rows in any order, in forests of any size: the same loss, gradients and values."""
    rows = data.draw(st.integers(1, 7))
    order = data.draw(st.permutations(range(rows)))
    cuts = sorted(data.draw(st.sets(st.integers(1, rows - 1)) if rows > 1 else st.just(set())))
    loss, batch = preference(mix, Options(**options)), Batch.random(kind_of(mix), rows, seed)
    probes = probes_of(mix, rows, seed)
    whole, gradient, values = run(loss, batch, [list(range(rows))], probes)
    added, gradients, reported = run(
        loss, batch, [order[a:b] for a, b in zip([0, *cuts], [*cuts, rows], strict=True)], probes
    )
    assert added == pytest.approx(whole, rel=1e-10, abs=1e-10)
    torch.testing.assert_close(gradients, gradient, rtol=1e-10, atol=1e-10)
    assert reported.keys() == values.keys()
    for name, value in reported.items():
        torch.testing.assert_close(
            value.sort().values, values[name].sort().values, rtol=1e-10, atol=1e-10
        )


@pytest.mark.parametrize(("mix", "options"), VARIANTS, ids=IDS)
def test_gradients_by_finite_differences(mix: dict[str, float], options: dict[str, Any]) -> None:
    """What is held fixed, KTO's z, BCO's δ and WPO's weights, is held fixed here too.

    AOT's partners are not: its gradient is that of the sorted batch.
    """
    loss, batch = preference(mix, Options(**options)), Batch.random(kind_of(mix), 5, 0)
    every = list(range(5))
    probes = probes_of(mix, 5, 0)
    fixed = (probes or batch).forest(every)
    statistics = loss.prepare([fixed[0]], [fixed[1]]) if loss.prepare else None

    def function(logprob: Tensor) -> Tensor:
        columns, facts = batch.forest(every, logprob)
        coupled = statistics
        if loss.prepare and {"aot", "aot_unpaired"} & mix.keys():
            coupled = loss.prepare([columns], [facts])
        if loss.read.collision:  # keeps log p − log Σp² at what it is
            moved = (logprob - batch.logprob).detach()
            columns = Columns(columns.logprob, collision=columns.collision + moved)
        return loss.loss(columns, facts, loss.counts(facts), coupled)

    assert torch.autograd.gradcheck(
        function, (batch.logprob.detach().clone().requires_grad_(),), atol=1e-8
    )
    assert float(function(batch.logprob).detach()) == pytest.approx(
        run(loss, batch, [every], probes)[0], rel=1e-12
    )


def test_aot_over_micro_batches_is_the_sorted_loss() -> None:
    """The formula itself, sorted over the whole batch, with its gradient; by the pair it would be
    another number.
    """
    batch = Batch.random("pairs", 6, 3)
    columns, facts = batch.forest(list(range(6)))
    total = torch.zeros(12, dtype=torch.float64).index_add(
        0, facts.leaf, columns.logprob - facts.targets["reference"]
    )
    chosen, rejected = total[0::2], total[1::2]
    for sort, expected in ((True, "aot_unpaired"), (False, "dpo")):
        c, r = (chosen.sort().values, rejected.sort().values) if sort else (chosen, rejected)
        value = torch.log1p(torch.exp(-0.1 * (c - r))).mean()
        (gradient,) = torch.autograd.grad(value, batch.logprob, retain_graph=True)
        found, gradients, _ = run(
            preference({expected: 1}, Options()), batch, [[4, 1], [0], [5, 2, 3]], None
        )
        assert found == pytest.approx(float(value.detach()), rel=1e-12)
        torch.testing.assert_close(gradients, gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("far", [3000.0, -3000.0, 0.0])
@pytest.mark.parametrize(("mix", "options"), VARIANTS, ids=IDS)
def test_extremes_are_finite(mix: dict[str, float], options: dict[str, Any], far: float) -> None:
    """float32, with answers thousands of nats from the reference in both directions, and with
    probabilities of 1.
    """
    batch = Batch.random(kind_of(mix), 4, 5, torch.float32)
    batch.logprob = torch.full_like(batch.logprob, -abs(far)).requires_grad_()
    batch.reference = batch.logprob.detach() - far * torch.where(
        torch.arange(len(batch.reference)) % 2 == 0, 1, -1
    )
    batch.collision = batch.logprob.detach()
    probes = probes_of(mix, 4, 5)
    value, gradient, reported = run(
        preference(mix, Options(**options)), batch, [[0, 1], [2, 3]], probes
    )
    assert torch.isfinite(torch.tensor(value)) and torch.isfinite(gradient).all()
    assert torch.isfinite(torch.cat([v for k, v in reported.items() if k != "kl"])).all()


@pytest.mark.parametrize(
    "name", [name for name, method in METHODS.items() if method.rows != "labels"]
)
def test_the_chosen_answer_rises_against_the_rejected(name: str) -> None:
    """One step against the gradient widens the margin: the sign of every loss.

    (IPO's and SPPO's margins are below their aim.)
    """
    batch = Batch.random(METHODS[name].rows, 6, 11)
    loss = preference({name: 1}, Options())
    every = [list(range(6))]
    _, gradient, before = run(loss, batch, every, None)
    batch.logprob = (batch.logprob.detach() - 0.1 * gradient).requires_grad_()
    after = run(loss, batch, every, None)[2]
    assert float(after["rewards/margins"].mean()) > float(before["rewards/margins"].mean())


@pytest.mark.parametrize("name", ["kto", "bco", "apo_zero_unpaired"])
def test_good_answers_rise_and_bad_ones_fall(name: str) -> None:
    batch = Batch.random("labels", 6, 11)
    _, gradient, _ = run(
        preference({name: 1}, Options()), batch, [list(range(6))], probes_of({name: 1}, 6, 11)
    )
    good = torch.repeat_interleave(
        batch.labels, torch.tensor([one[0] for one in batch.lengths])
    ).bool()
    assert (
        bool((gradient[good] < 0).all())
        and bool((gradient[~good] > 0).all())
        and 0 < int(good.sum()) < len(good)
    )
