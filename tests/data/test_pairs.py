"""Preferences: every finding on cases made by hand, the searches against brute force, and nothing
lost on any data.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posttrain.core.errors import DataError
from posttrain.data.curate import convert
from posttrain.data.curate.bias import balanced, compare, looks
from posttrain.data.curate.cycles import components
from posttrain.data.curate.near_pairs import NearPairs
from posttrain.data.curate.pair_table import Places, Table, loose, votes
from posttrain.data.curate.pairs import (
    AGAINST,
    BELOW,
    CONTRADICTION,
    CYCLE,
    DISGUISE,
    DUPLICATE,
    NEAR,
    NEAR_CONTRADICTION,
    NEGATIVE,
    NO_MARGIN,
    SAME_WORDS,
    SPLIT_VOTE,
    TIE,
    UNCLEAR,
    Check,
    Fates,
    Rules,
    clean,
)
from posttrain.data.formats import Format
from posttrain.data.rows import Row
from posttrain.evals.preferences import length_warning, measure, share
from posttrain.stages.pairs import data_pairs
from tests.making import write

Given = dict[str, Any]


def pair(prompt: Any, chosen: Any, rejected: Any, **more: Any) -> Given:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def label(prompt: Any, completion: Any, good: bool, **more: Any) -> Given:
    return {"prompt": prompt, "completion": completion, "label": good, **more}


def table(rows: list[Given], near: NearPairs | None = None) -> Table:
    out, reader = Table(near), Format()
    for i, fields in enumerate(rows, 1):
        row = Row(fields, f"f.jsonl:{i}")
        out.add(row, reader.read(row))
    return out


def fates(rows: list[Given], **rules: Any) -> Fates:
    return clean(table(rows), Rules(**rules))


def reasons(found: Fates) -> list[str]:
    return [found.reasons[i] for i in found.reason]


# -------------------------------------------------------------------------------- findings, by hand


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([pair("p", "a", "a"), pair("p", " a\n", "a"), pair("p", "A", "a")], [TIE, TIE, ""]),
        (
            [
                pair("p", "a", "b", margin=0),
                pair("p", "a", "b", margin="0.0"),
                pair("p", "a", "b", margin=0.1),
            ],
            [NO_MARGIN] * 2 + [""],
        ),
        (
            [
                pair("p", "a", "b", votes={"chosen": 2, "rejected": 2}),
                pair("p", "a", "b", votes=["x", "y"]),
                pair("p", "a", "b", votes=[1, 2, 2]),
                pair("p", "a", "c", votes=[3, 3]),
            ],
            [SPLIT_VOTE, SPLIT_VOTE, "", ""],
        ),
        (
            [
                pair("p", "a", "b"),
                pair("p", "a  ", "b\n"),
                pair("q", "a", "b"),
                pair("p", "a", "c"),
            ],
            ["", DUPLICATE, "", ""],
        ),
        (
            [pair("p", "a", "b"), pair("p", "b", "a"), pair("p", "a", "b"), pair("q", "b", "a")],
            [CONTRADICTION] * 3 + [""],
        ),
        (
            [
                pair("Who?", "Yes, it is.", "no"),
                pair("who", "No!", "yes it is"),
                pair("why", "No!", "yes it is"),
            ],
            [DISGUISE, DISGUISE, ""],
        ),
        (
            [pair("p", "a", "b"), pair("p", "b", "a"), pair("P", "A", "b")],
            [CONTRADICTION, CONTRADICTION, DISGUISE],
        ),
        (
            [
                pair("p", "5 - 3", "5 + 3"),
                pair("p", "5 + 3", "5 / 3"),
                pair("p", "\U0001f44d", "\U0001f44e"),
            ],
            ["", "", ""],
        ),
        (
            [
                pair("p", "a", "b"),
                pair("p", "b", "c"),
                pair("p", "c", "a"),
                pair("p", "c", "d"),
                pair("q", "c", "a"),
            ],
            [CYCLE, CYCLE, CYCLE, "", ""],
        ),
        # a circle in disguise
        ([pair("p", "a", "b"), pair("p", "B.", "c"), pair("p", "c", "A")], [CYCLE] * 3),
        (
            [pair("p", "a", "b"), pair("p", "b", "a"), pair("p", "b", "c"), pair("p", "c", "a")],
            [CONTRADICTION, CONTRADICTION, "", ""],
        ),
        (
            [
                label("p", "a", True),
                label("p", "a ", False),
                label("p", "b", True),
                label("p", "b", True),
                label("q", "a", True),
            ],
            [CONTRADICTION, CONTRADICTION, "", DUPLICATE, ""],
        ),
        (
            [label("p", "A.", True), label("p", "a", False), label("p", "c", False)],
            [DISGUISE, DISGUISE, ""],
        ),
    ],
    ids=lambda value: "" if isinstance(value[0], str) else None,
)
def test_each_finding(rows: list[Given], expected: list[str]) -> None:
    assert reasons(fates(rows)) == expected


def test_text_is_what_its_role_says() -> None:
    """The same pair as text, as messages, and as two whole conversations."""
    user, said = (
        {"role": "user", "content": "p"},
        [{"role": "assistant", "content": one} for one in "ab"],
    )
    rows = [
        pair("p", "a", "b"),
        pair([user], said[:1], said[1:]),
        {"chosen": [user, said[0]], "rejected": [user, said[1]]},
    ]
    assert reasons(fates(rows)) == ["", DUPLICATE, DUPLICATE]
    other = pair([{"role": "system", "content": "s"}, user], said[:1], said[1:])
    tools = pair([user], said[:1], said[1:], tools=[{"name": "f"}])
    # with more around it, it is another prompt
    assert reasons(fates([rows[0], other, tools])) == ["", "", ""]


def test_an_answer_to_imitate_is_not_compared() -> None:
    rows = [
        pair("p", "a", "b", reference="b"),
        pair("p", "b", "c", reference="a"),
        pair("p", "a", "b", reference="d"),
    ]
    assert reasons(fates(rows)) == ["", "", DUPLICATE]


def test_keep_keeps_and_still_counts() -> None:
    rows = [
        pair("p", "a", "a"),
        pair("p", "a", "b"),
        pair("p", "b", "a"),
        pair("p", "a", "b"),
        pair("p", "B", "A!"),
        pair("q", "a", "b"),
        pair("q", "b", "c"),
        pair("q", "c", "a"),
    ]
    keep = {
        f"on_{name}": "keep" for name in ("tie", "duplicate", "contradiction", "disguise", "cycle")
    }
    found = fates(rows, **keep)
    assert found.stays.all() and found.removed() == {}
    assert {k: n for k, n in found.found.items() if n} == {
        TIE: 1,
        SAME_WORDS: 1,
        CONTRADICTION: 3,
        DISGUISE: 1,
        CYCLE: 3,
        DUPLICATE: 1,
    }
    assert reasons(fates(rows, on_cycle="keep"))[5:] == ["", "", ""]
    assert reasons(fates(rows, on_contradiction="keep"))[:5] == [TIE, "", "", DUPLICATE, DISGUISE]


def test_a_row_names_the_one_it_repeats_or_contradicts() -> None:
    found = fates(
        [pair("p", "a", "b"), pair("p", "a", "b"), pair("q", "a", "b"), pair("q", "b", "a")]
    )
    assert found.of.tolist() == [-1, 0, 3, 2]


def test_margins_and_votes() -> None:
    rows = [
        pair("p", "a", "b", margin=-1, votes={"chosen": 1, "rejected": 3}),
        pair("q", "a", "b", margin=0.5, votes="?"),
        pair("r", "a", "A!", margin=2),
        pair("s", "a", "b", margin=0.4),
    ]
    found = fates(rows, min_margin=0.5)
    assert reasons(found) == [BELOW, "", "", BELOW]
    assert [fates(rows).found[name] for name in (AGAINST, NEGATIVE, UNCLEAR, SAME_WORDS)] == [
        1,
        1,
        1,
        1,
    ]
    assert math.isnan(table(rows).agreement[1]) and table(rows).agreement[0] == 0.75
    low = [pair("p", "a", "b", margin=1), pair("p", "b", "a", margin=0.1)]
    assert reasons(fates(low)) == [CONTRADICTION] * 2
    # what is not trusted contradicts nothing
    assert reasons(fates(low, min_margin=0.5)) == ["", BELOW]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([2, 2, 1], {"2": 2, "1": 1}),
        ('["a", "b", "a"]', {"a": 2, "b": 1}),
        ({"a": 3, "b": 0}, {"a": 3, "b": 0}),
        ([3, 1], None),
        ([0.5, 0.2, 0.1], None),
        ({"a": "x"}, None),
        ({"a": 0}, None),
        (None, None),
        ([], None),
        ([[1], [2]], None),
        ("{", None),
        (7, None),
        ([True, True, False], None),
    ],
)
def test_votes_are_ballots_or_counts_and_else_nothing(
    value: Any, expected: dict[str, int] | None
) -> None:
    assert votes(value) == expected


@pytest.mark.parametrize(
    ("fields", "margins", "what"),
    [
        (
            {"prompt": "p", "completion": "c"},
            False,
            "the row is neither a pair nor a labelled answer",
        ),
        (pair("p", "a", "b"), True, "there is no margin, which --min-margin compares"),
        (pair("p", "a", "b", margin=[1]), False, "the margin is a list, not a number"),
        (pair("p", "a", "b", margin=10**400), False, "the margin is too large"),
    ],
)
def test_rows_that_cannot_be_used(fields: Given, margins: bool, what: str) -> None:
    row = Row(fields, "f.jsonl:7")
    with pytest.raises(DataError) as error:
        Check(margins)(row, Format().read(row))
    assert error.value.what == what
    assert error.value.where == "f.jsonl:7" and error.value.cure


def test_the_two_kinds_do_not_mix() -> None:
    check = Check(False)
    for i, fields in enumerate((pair("p", "a", "b"), label("p", "a", True)), 1):
        row = Row(fields, f"f:{i}")
        if i == 2:
            with pytest.raises(
                DataError, match=r"the row is of labels, and the data began as pairs \(f:1\)"
            ):
                check(row, Format().read(row))
        else:
            check(row, Format().read(row))


def test_places_say_where_in_little_memory() -> None:
    names = [
        "a.jsonl:1",
        "a.jsonl:20",
        "hub/set[train]:row 3",
        "b:007",
        "no number",
        "b:0",
        "a.jsonl:2",
    ]
    places = Places()
    for name in names:
        places.add(name)
    assert [places[i] for i in range(len(names))] == names


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("Yes, it is.", "yes it is", True),
        ("C++", "C", False),
        ("a  b", "A\nB", True),
        ("?", "!", False),
        ("ok \U0001f44d", "ok", False),
        ("\u0915\u093f", "\u0915\u0940", False),
        ("e\u0301t", "\u00e9T", True),
        ("3.5", "35", False),
    ],
)
def test_loosely_the_same(a: str, b: str, same: bool) -> None:
    assert (loose(a) == loose(b)) is same


# ---------------------------------------------------------------------------------- near-duplicates

LONG = " ".join(f"w{i}" for i in range(60))


def test_near_means_prompt_and_both_sides(tmp_path: Path) -> None:
    other = LONG.replace("w30", "x")
    upside = " ".join(f"v{i}" for i in range(60))
    # sides near each other, too
    rows = [
        pair(LONG, upside, "short"),
        pair(other, upside.replace("v9", "y"), "short"),
        pair(LONG, "yes", "no"),
        pair(LONG, "maybe", "no"),  # a long prompt in common makes no near-duplicate
        pair("p", LONG, upside),
        pair("p", upside, other),
        pair("p", LONG.replace("w8", "z"), upside),
        pair("q", LONG, other),
        pair("q", other, LONG.replace("w30", "x y")),
    ]
    with NearPairs(tmp_path) as near:
        found = clean(table(rows, near), Rules(near=0.8))
    assert reasons(found) == ["", NEAR, "", "", *[NEAR_CONTRADICTION] * 5]
    assert found.of[1] == 0 and found.of[5] == 4


def test_near_rows_whose_two_sides_are_alike_repeat_and_do_not_contradict(tmp_path: Path) -> None:
    """Crossed, the four similarities are as large as straight: nothing says that they disagree."""
    with NearPairs(tmp_path) as near:
        for better, worse in ((LONG, LONG.upper()), (LONG + "!", LONG.upper() + "?")):
            near.add("p", better, worse)
        against, repeated = near.find(np.ones(2, bool), 0.8)
    assert (against.tolist(), repeated.tolist()) == ([-1, -1], [-1, 0])


def test_a_row_that_is_contradicted_repeats_nothing(tmp_path: Path) -> None:
    """The third row says the opposite of the first two, which say the same."""
    with NearPairs(tmp_path) as near:
        for better, worse in ((LONG, "no"), (LONG + " x", "no"), ("no", LONG)):
            near.add("p", better, worse)
        against, repeated = near.find(np.ones(3, bool), 0.8)
    assert (against.tolist(), repeated.tolist()) == ([2, 2, 0], [-1, -1, -1])


def test_near_labels(tmp_path: Path) -> None:
    rows = [
        label("p", LONG, True),
        label("p", LONG.replace("w9", "x"), True),
        label("q", LONG, True),
        label("q", LONG.replace("w9", "x"), False),
    ]
    with NearPairs(tmp_path) as near:
        assert reasons(clean(table(rows, near), Rules(near=0.8))) == [
            "",
            NEAR,
            NEAR_CONTRADICTION,
            NEAR_CONTRADICTION,
        ]


# ------------------------------------------------------------------------------------------- cycles


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=24))
def test_components_are_what_reaching_each_other_means(edges: list[tuple[int, int]]) -> None:
    reach = np.eye(8, dtype=bool)
    for a, b in edges:
        reach[a, b] = True
    for k, a in itertools.product(range(8), range(8)):
        reach[a] |= reach[a, k] & reach[k]
    found = components(np.array(edges, np.int64).reshape(-1, 2))
    for (a, b), one in zip(edges, found, strict=True):
        assert (one >= 0) == (a != b and reach[b, a])
    for (i, (a, _)), (j, (c, _)) in itertools.combinations(enumerate(edges), 2):
        if found[i] >= 0 and found[j] >= 0:
            assert (found[i] == found[j]) == (reach[a, c] and reach[c, a])
    assert [n for n in dict.fromkeys(found.tolist()) if n >= 0] == list(
        range(found.max(initial=-1) + 1)
    )


def test_a_long_circle_needs_no_recursion() -> None:
    n = 50_000
    ring = np.stack([np.arange(n), (np.arange(n) + 1) % n], axis=1)
    chain = ring[:-1] + n
    found = components(np.concatenate([ring, chain]))
    assert (found[:n] == 0).all() and (found[n:] == -1).all()


# -------------------------------------------------------------------------------------------- looks


def test_looks_counts_what_is_there() -> None:
    text = "# Head\n\n- one\n* two\n3. three\n\n**bold** and `code`\n```py\nx\n```\n__init__ a*b"
    assert looks(text) == [len(text), len(text.split()), 1, 3, 1, 3]
    assert looks("") == [0] * 6


def test_shares_and_ratios_by_hand() -> None:
    chosen, rejected = ["aaaa", "bb bb", "c", "- dd"], ["a", "b", "cc", "d dd"]
    sides = compare(np.array([looks(x) for x in chosen]), np.array([looks(x) for x in rejected]))
    assert sides.signs["characters"].tolist() == [1, 1, -1, 0]
    assert sides.signs["words"].tolist() == [0, 1, 0, 0]
    assert sides.signs["bullets"].tolist() == sides.signs["markdown"].tolist() == [0, 0, 0, 1]
    assert np.allclose(sides.log_ratio, [math.log(4), math.log(5), -math.log(2), 0])
    found = measure(sides, np.arange(4))
    longer = found["longer"]["characters"]
    assert (longer["mean"], longer["n"], longer["equal"]) == (2 / 3, 3, 1)
    assert found["more_markdown"]["headings"] == {
        "mean": None,
        "low": None,
        "high": None,
        "n": 0,
        "equal": 4,
    }
    assert found["log_length_ratio"]["mean"] == pytest.approx(math.log(10) / 4)
    assert (found["pairs"], found["prompts"]) == (4, 4)


def test_pairs_of_one_prompt_are_one_witness() -> None:
    signs = np.array([1] * 90 + [-1] * 10)
    apart, together = share(signs, np.arange(100)), share(signs, np.arange(100) // 10)
    assert (apart["low"], apart["high"]) == pytest.approx((0.8256, 0.9448), abs=1e-4)  # Wilson
    # ten prompts, one against
    assert together["low"] < apart["low"] - 0.1 and together["high"] > apart["high"] + 0.02


@pytest.mark.parametrize(
    ("hits", "n", "words"),
    [(70, 100, "“longest”"), (30, 100, "“shortest”"), (66, 100, ""), (1, 1, ""), (0, 0, "")],
)
def test_a_warning_where_length_tells(hits: int, n: int, words: str) -> None:
    """0.70 of 100 is 0.604 to 0.781; 0.66 is 0.563 to 0.745."""
    found = {
        "longer": {"characters": share(np.array([1] * hits + [-1] * (n - hits)), np.arange(n))}
    }
    assert (words in length_warning(found)) if words else length_warning(found) == ""


@given(st.lists(st.sampled_from([-1, 0, 1]), max_size=60), st.integers(0, 99))
def test_balance_is_exact_and_takes_no_more_than_it_must(signs: list[int], seed: int) -> None:
    sign = np.array(signs, int)
    take = balanced(sign, np.random.default_rng(seed))
    fewest = min(signs.count(1), signs.count(-1))
    assert Counter(sign[take].tolist()) == +Counter({1: fewest, -1: fewest, 0: signs.count(0)})


# --------------------------------------------------------------------------------------- conversion


def test_answers_of_pairs() -> None:
    answers = np.array([[0, 1], [0, 2], [2, 3], [4, 5], [9, 8]])
    stays = np.array([True, True, True, True, False])
    found = convert.labelled(answers, stays, keep_ambiguous=False)
    assert found.tolist() == [
        ["", ""],
        [convert.REPEATED, convert.AMBIGUOUS],
        [convert.AMBIGUOUS, ""],
        ["", ""],
        ["", ""],
    ]
    kept = convert.labelled(answers, stays, keep_ambiguous=True)
    assert kept.tolist() == [["", ""], [convert.REPEATED, ""], ["", ""], ["", ""], ["", ""]]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.booleans()), max_size=40),
    st.integers(1, 8),
    st.integers(0, 5),
)
def test_pairs_of_answers(rows: list[tuple[int, int, bool]], most: int, seed: int) -> None:
    # as they are once duplicates are gone; an answer may still be both good and bad
    rows = list(dict.fromkeys(rows))
    prompts = np.array([p for p, _, _ in rows], int)
    answers = np.array([10 * p + a for p, a, _ in rows], int)
    good = np.array([g for _, _, g in rows], bool)
    pairs, why, possible = convert.paired(
        convert.Labelled(prompts, answers, good, np.ones(len(rows), bool)),
        most,
        seed,
        lambda i: str(prompts[i]),
    )
    assert len({tuple(p) for p in pairs.tolist()}) == len(pairs)
    for a, b in pairs:
        assert good[a] and not good[b] and prompts[a] == prompts[b] and answers[a] != answers[b]
    all_pairs = 0
    for prompt in set(prompts.tolist()):
        there = [
            sum(
                answers[a] != answers[b]
                for a, b in itertools.product(
                    np.flatnonzero((prompts == prompt) & good),
                    np.flatnonzero((prompts == prompt) & ~good),
                )
            )
        ]
        all_pairs += there[0]
        assert (prompts[pairs[:, 0]] == prompt).sum() == min(most, there[0])
    assert possible == all_pairs
    used = set(pairs.ravel().tolist())
    assert all((why[i] == "") == (i in used) for i in range(len(rows)))


def test_all_answers_are_used_before_one_is_used_again() -> None:
    n = 6
    pairs, why, _ = convert.paired(
        convert.Labelled(
            prompts=np.zeros(2 * n, int),
            answers=np.arange(2 * n),
            good=np.arange(2 * n) < n,
            stays=np.ones(2 * n, bool),
        ),
        n,
        0,
        lambda i: "p",
    )
    assert sorted(pairs.ravel().tolist()) == list(range(2 * n)) and not any(why)


# -------------------------------------------------------------------------------------------- whole

SPELLED = st.sampled_from(
    ["a", "b", "c", "d", "A.", " b", "long answer - with - signs", "# c\n- d"]
)
PAIRS = st.lists(
    st.builds(pair, st.sampled_from(["p", "q", "Q?"]), SPELLED, SPELLED), min_size=1, max_size=14
)


def read(path: Path) -> list[Given]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(PAIRS, st.booleans(), st.sampled_from(["", "labels"]), st.integers(0, 3))
def test_nothing_is_lost_and_no_contradiction_survives(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Given], balance: bool, to: Any, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("pairs")
    write(folder / "in.jsonl", rows)
    summary: Given = {}
    with contextlib.suppress(DataError):  # where nothing is left
        summary = data_pairs(
            quiet=True,
            data=folder / "in.jsonl",
            out=folder / "out.jsonl",
            balance_length=balance,
            to=to,
            seed=seed,
        ).summary
    if not summary:
        assert not (folder / "out.jsonl").exists()
        return
    written, removed = read(folder / "out.jsonl"), read(folder / "out.removed.jsonl")
    whole = [one for one in removed if "side" not in one]
    assert summary["rows"] == len(rows) == summary["used"] + len(whole) + summary["rejected"]
    assert Counter(one["reason"] for one in whole) == summary["removed"]
    assert all(one["row"] == rows[int(one["where"].rpartition(":")[2]) - 1] for one in whole)
    if to == "labels":
        assert len(written) + len(removed) - len(whole) == 2 * summary["used"]
        said = [(one["prompt"], one["completion"].strip()) for one in written]
        assert len(set(said)) == len(said)
        return
    assert sorted(map(str, written + [one["row"] for one in whole])) == sorted(map(str, rows))
    edges = {tuple(map(loose, (one["prompt"], one["chosen"], one["rejected"]))) for one in written}
    assert not any((p, b, a) in edges for p, a, b in edges if a != b)
    nodes = sorted({(p, x) for p, a, b in edges for x in (a, b)})
    graph = np.array([(nodes.index((p, a)), nodes.index((p, b))) for p, a, b in edges]).reshape(
        -1, 2
    )
    assert (components(graph) == -1).all()
    if balance:
        gaps = [len(one["chosen"]) - len(one["rejected"]) for one in written]
        assert sum(gap > 0 for gap in gaps) == sum(gap < 0 for gap in gaps)


def test_there_and_back(tmp_path: Path) -> None:
    """Pairs without a shared answer become labels, and these pairs again: the same ones."""
    rows = [pair(f"p{i}", f"good {i}", f"bad {i}") for i in range(5)]
    rows += [
        pair(
            [{"role": "user", "content": f"q{i}"}],
            [{"role": "assistant", "content": f"good {i}"}],
            [{"role": "assistant", "content": f"bad {i}"}],
            tools=[{"type": "function", "function": {"name": "f"}}],
        )
        for i in range(5)
    ]
    write(tmp_path / "in.jsonl", rows)
    for name, source, to in (("labels", "in", "labels"), ("back", "labels", "pairs")):
        data_pairs(
            quiet=True, data=tmp_path / f"{source}.jsonl", out=tmp_path / f"{name}.jsonl", to=to
        )
    labels = read(tmp_path / "labels.jsonl")
    assert (
        labels[:2] == [label("p0", "good 0", True), label("p0", "bad 0", False)]
        and len(labels) == 20
    )
    assert read(tmp_path / "back.jsonl") == rows
