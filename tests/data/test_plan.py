"""The order of the data: exact shares, replay, and a cursor of two numbers."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.core.errors import ConfigError
from posttrain.data.plan import Plan, shares
from posttrain.data.settings import Source


def source(**settings: float) -> Source:
    return Source(path="x", **settings)  # type: ignore[arg-type]


def epoch(plan: Plan) -> list[int]:
    return [i for _ in range(plan.steps_per_epoch) for i in plan.next()]


@pytest.mark.parametrize(
    ("rows", "sources", "expected"),
    [
        ([100, 10], [source(), source()], [100, 10]),
        ([100, 10], [source(), source(epochs=3)], [100, 30]),
        ([100, 10], [source(epochs=0.25), source()], [25, 10]),
        ([100, 10], [source(weight=1), source(weight=1)], [55, 55]),
        # 82.5 and 27.5: the first of equal remainders
        ([100, 10], [source(weight=3), source(weight=1)], [83, 27]),
        ([90, 5000], [source(), source(share=0.1)], [90, 10]),  # a tenth of the whole is replay
        ([60, 30, 8], [source(weight=1), source(weight=1), source(share=0.25)], [45, 45, 30]),
        # never none
        ([90, 10, 1], [source(weight=0.9), source(weight=0.1), source(weight=1e-9)], [91, 10, 1]),
    ],
)
def test_how_many_rows_an_epoch_takes(
    rows: list[int], sources: list[Source], expected: list[int]
) -> None:
    assert shares(rows, sources) == expected


def test_weights_are_for_all_or_none() -> None:
    with pytest.raises(ConfigError, match="x has no weight") as caught:
        shares([1, 2], [source(weight=1), source()])
    assert caught.value.cure == "give every source a weight, or none"


@pytest.mark.parametrize("source", [{"epochs": 1e12}, {"share": 1 - 1e-12}])
def test_an_epoch_that_no_memory_holds_is_refused(source: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"an epoch would have .* rows, more than 1e\+09"):
        shares(
            [40, 40],
            [Source.model_validate({"path": "a"}), Source.model_validate({"path": "b", **source})],
        )


def test_shares_leave_something() -> None:
    for sources in ([source(share=0.5), source(share=0.5), source()], [source(share=0.5)]):
        with pytest.raises(ConfigError, match="leave nothing for the others"):
            shares([1] * len(sources), sources)


def test_one_source_is_every_row_once_an_epoch_in_a_new_order() -> None:
    plan = Plan(103, 8, seed=1)
    first, second = epoch(plan), epoch(plan)
    assert sorted(first) == sorted(second) == list(range(103))
    assert first != second and first != sorted(first)


@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    batch=st.integers(1, 7),
    seed=st.integers(0, 9),
    data=st.data(),
)
def test_every_epoch_has_its_shares_and_sources_are_replayed_evenly(
    sizes: list[int], batch: int, seed: int, data: st.DataObject
) -> None:
    take = [data.draw(st.integers(1, 3 * n)) for n in sizes]
    plan = Plan(sizes, batch, seed, take)
    first = [sum(sizes[:s]) for s in range(len(sizes) + 1)]
    seen: Counter[int] = Counter()
    for done in range(1, 4):
        items = epoch(plan)
        for s, wanted in enumerate(take):
            assert sum(first[s] <= i < first[s + 1] for i in items) == wanted
        seen.update(items)
        for s in range(len(sizes)):  # no row is shown again before all others of its source were
            counts = [seen[i] for i in range(first[s], first[s + 1])]
            assert max(counts) - min(counts) <= 1 and sum(counts) == done * take[s]


def test_sources_are_mixed_within_an_epoch() -> None:
    items = epoch(Plan([500, 500], 10, seed=0, take=[500, 500]))
    halves = [sum(i >= 500 for i in items[a : a + 100]) for a in range(0, 1000, 100)]
    assert all(30 <= h <= 70 for h in halves)  # 50 ± 4 standard deviations


@given(stop=st.integers(0, 40))
def test_a_plan_goes_on_at_the_row_where_it_stood(stop: int) -> None:
    whole, broken = (Plan([17, 5], 4, seed=3, take=[20, 9]) for _ in range(2))
    expected = [whole.next() for _ in range(60)]
    found = [broken.next() for _ in range(stop)]
    resumed = Plan([17, 5], 4, seed=3, take=[20, 9])
    resumed.restore(json.loads(json.dumps(broken.state())))
    assert found + [resumed.next() for _ in range(60 - stop)] == expected
