"""Inspecting data: every number by hand, and every token's colour the one that training
gives it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from posttrain.core.errors import ConfigError, DataError
from posttrain.data.anatomy import Anatomy, Piece, elided, visible
from posttrain.data.chat import Chat
from posttrain.data.inspect import Lengths, Report, Reservoir, TreeSize, _packing, inspect, table
from posttrain.data.plan import Plan
from posttrain.data.settings import DataSettings
from tests.making import END, tokenizer, trees, write

PLAIN = tokenizer()
# shows reasoning in the last answer only: every answer is a branch
FORGETS = (
    "{% for m in messages %}<{{ m.role }}>"
    "{% if m.reasoning_content and loop.last %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
CONVERSATION = {
    "messages": [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "x", "reasoning_content": "r1"},
        {"role": "user", "content": "w"},
        {"role": "assistant", "content": "y", "reasoning_content": "r2"},
    ]
}


def look(
    tmp_path: Path,
    given: list[Any],
    *,
    words: Any = PLAIN,
    max_length: int = 1024,
    chat: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    **options: Any,
) -> Report:
    path = write(tmp_path / "a.jsonl", given)
    settings = TypeAdapter(DataSettings).validate_python({"data": (str(path),), **(data or {})})
    return inspect(settings, Chat(words, **(chat or {})), max_length=max_length, **options)


def pair(prompt: str, completion: str) -> dict[str, str]:
    return {"prompt": prompt, "completion": completion}


def stretches(one: Anatomy, passage: int = 0) -> list[tuple[str, str, int]]:
    """Neighbouring pieces of one kind and message, joined: (kind, text, message)."""
    out: list[tuple[str, str, int]] = []
    for piece in one.passages[passage].pieces:
        if out and out[-1][::2] == (piece.kind, piece.message):
            out[-1] = (piece.kind, out[-1][1] + piece.text, piece.message)
        else:
            out.append((piece.kind, piece.text, piece.message))
    return out


# ------------------------------------------------------------------------------------------- tokens


def test_every_token_of_a_chat_says_what_it_is(tmp_path: Path) -> None:
    rows = [
        {
            "messages": [
                {"role": "system", "content": "User"},
                {"role": "user", "content": "U"},
                {"role": "assistant", "content": "A", "weight": 0},
                {"role": "user", "content": f"V{END}"},
                {"role": "assistant", "content": "B"},
            ]
        }
    ]
    report = look(tmp_path, rows)
    (one,) = report.examples
    # the words of messages are also words of the template: what is in which is not guessed
    assert stretches(one) == [
        ("template", "### System:\n", 0),
        ("given", "User", 1),
        ("template", "\n\n### User:\n", 0),
        ("given", "U", 2),
        ("template", "\n\n### Assistant:\n", 0),
        ("given", "A", 3),
        ("special", END, 0),
        ("template", "\n\n### User:\n", 0),
        ("given", "V", 4),
        ("special", END, 4),
        ("template", "\n\n### Assistant:\n", 0),
        ("trained", "B", 5),
        ("end", END, 5),
    ]
    assert [f"{m.name}: {m.what}" for m in one.messages] == [
        "message 1, system: given",
        "message 2, user: given",
        "message 3, assistant: given: its weight is 0",
        "message 4, user: given",
        "message 5, assistant: trained: 2 tokens",
    ]
    whys = {(p.kind, p.message): one.why(p) for p in one.passages[0].pieces}
    assert whys == {
        ("trained", 5): "trained: message 5, assistant",
        ("end", 5): "trained: ends message 5, assistant",
        ("given", 1): "given: message 1, system",
        ("given", 2): "given: message 2, user",
        ("given", 3): "given: message 3, assistant",
        ("given", 4): "given: message 4, user",
        ("template", 0): "given: written by the template",
        ("special", 0): "given: a special token",
        ("special", 4): "given: a special token inside message 4, user",
    }
    assert report.total("special") == 1
    assert report.template == f"a default, as the model has none; answers end with {END}"


def test_only_the_last_answer(tmp_path: Path) -> None:
    rows = [
        {
            "messages": [
                {"role": r, "content": c}
                for r, c in (("user", "U"), ("assistant", "A"), ("user", "V"), ("assistant", "B"))
            ]
        }
    ]
    (one,) = look(tmp_path, rows, chat={"train_on": "last"}).examples
    assert [m.what for m in one.messages] == [
        "given",
        "given: only the last answer is trained",
        "given",
        "trained: 2 tokens",
    ]
    (one,) = look(tmp_path, rows).examples
    assert [m.what for m in one.messages] == [
        "given",
        "trained: 2 tokens",
        "given",
        "trained: 2 tokens",
    ]


@pytest.mark.parametrize("start", [False, True])
def test_plain_text_and_its_first_token(tmp_path: Path, start: bool) -> None:
    (one,) = look(tmp_path, [{"text": "abc"}], words=tokenizer(start=start)).examples
    first = (
        [("special", "<|start|>", 0), ("trained", "abc", 0)]
        if start
        else [("first", "a", 0), ("trained", "bc", 0)]
    )
    assert stretches(one) == [*first, ("end", END, 0)]
    assert [(m.name, m.what) for m in one.messages] == [
        ("text", f"trained: {4 if start else 3} tokens")
    ]


def test_a_prompt_template_is_the_templates_and_the_prompt_is_given(tmp_path: Path) -> None:
    (one,) = look(tmp_path, [pair("ab", "cd")], chat={"prompt_template": "Q {prompt}="}).examples
    assert stretches(one) == [
        ("template", "Q ", 0),
        ("given", "ab", 1),
        ("template", "=", 0),
        ("trained", "cd", 0),
        ("end", END, 0),
    ]
    assert [f"{m.name}: {m.what}" for m in one.messages] == [
        "prompt: given",
        "completion: trained: 3 tokens",
    ]
    assert one.why(one.passages[0].pieces[-2]) == "trained: completion"


def test_tokens_that_are_one_character_only_together_are_one_piece(tmp_path: Path) -> None:
    (one,) = look(
        tmp_path, [pair("é", "🙂\ufffdx")], chat={"prompt_template": "{prompt}="}
    ).examples
    pieces = one.passages[0].pieces
    assert [(len(p.ids), p.text) for p in pieces] == [
        (2, "é"),
        (1, "="),
        (4, "🙂"),
        (4, "\ufffdx"),
        (1, END),
    ]
    assert [p.kind for p in pieces] == ["given", "template", "trained", "trained", "end"]


def test_branches_show_what_they_share_and_each_its_own(tmp_path: Path) -> None:
    report = look(tmp_path, [CONVERSATION], chat={"template": FORGETS})
    (one,) = report.examples
    # <user>q END <assistant>: 6 + 1 + 1 + 11 = 19 tokens are shared
    assert stretches(one, 0) == [
        ("template", "<user>", 0),
        ("given", "q", 1),
        ("special", END, 0),
        ("template", "<assistant>", 0),
        ("trained", "<think>r1</think>x", 2),
        ("end", END, 2),
    ]
    assert stretches(one, 1) == [
        ("given", "x", 2),
        ("special", END, 0),
        ("template", "<user>", 0),
        ("given", "w", 3),
        ("special", END, 0),
        ("template", "<assistant>", 0),
        ("trained", "<think>r2</think>y", 4),
        ("end", END, 4),
    ]
    assert [p.heading for p in one.passages] == [
        "branch 1 of 2; 38 tokens, 19 trained",
        (
            "branch 2 of 2: the template shows earlier turns otherwise here; its first 19 tokens "
            "are those of branch 1 and not repeated here; 59 tokens, 19 trained"
        ),
    ]
    assert (report.total("branched"), report.total("sequences"), report.total("tokens")) == (
        1,
        2,
        97,
    )
    assert report.lengths == Lengths((38, 59), (1, 1))
    assert report.packing is not None
    assert report.packing.tokens == 97 - 19  # what is shared is computed once
    assert report.packing.padded == 78 / (2 * 59)


@pytest.mark.parametrize(
    ("truncate", "shown", "heading", "what"),
    [
        (
            "right",
            [
                ("template", "=", 0),
                ("given", "ab", 1),
                ("template", "=", 0),
                ("trained", "cd", 0),
                ("cut", "efg" + END, 0),
            ],
            "6 tokens, 2 trained, 4 cut",
            "trained: 2 of 6 tokens; the others are over the limit of 6",
        ),
        (
            "left",
            [("cut", "=ab=", 0), ("first", "c", 0), ("trained", "defg", 0), ("end", END, 0)],
            "6 tokens, 5 trained, 4 cut",
            "trained: 5 of 6 tokens; the others are over the limit of 6",
        ),
    ],
)
def test_what_is_cut_is_shown_as_cut(
    tmp_path: Path, truncate: str, shown: list[Any], heading: str, what: str
) -> None:
    report = look(
        tmp_path,
        [pair("ab", "cdefg")],
        max_length=6,
        chat={"prompt_template": "={prompt}="},
        data={"truncate": truncate},
    )
    (one,) = report.examples
    assert [(kind, text) for kind, text, _ in stretches(one) if kind != "cut"] == [
        (kind, text) for kind, text, _ in shown if kind != "cut"
    ]
    assert "".join(p.text for p in one.passages[0].pieces if p.kind == "cut") == "".join(
        t for k, t, _ in shown if k == "cut"
    )
    assert (one.passages[0].heading, one.messages[-1].what) == (heading, what)
    assert (report.total("truncated"), report.lengths) == (1, Lengths((10,), (1,)))


def test_divided_text_repeats_the_token_that_predicts(tmp_path: Path) -> None:
    report = look(tmp_path, [{"text": "abcdefg"}], max_length=4)
    (one,) = report.examples
    assert [stretches(one, i) for i in range(3)] == [
        [("first", "a", 0), ("trained", "bcd", 0)],
        [("first", "d", 0), ("trained", "efg", 0)],
        [("first", "g", 0), ("end", END, 0)],
    ]
    assert [p.heading for p in one.passages] == [
        "part 1 of 3; 4 tokens, 3 trained",
        "part 2 of 3; 4 tokens, 3 trained",
        "part 3 of 3; 2 tokens, 1 trained",
    ]
    assert one.messages[0].what == "trained: 7 tokens"
    assert (report.total("divided"), report.total("sequences"), report.total("tokens")) == (
        1,
        3,
        10,
    )


def test_a_dropped_row_is_shown_with_the_reason(tmp_path: Path) -> None:
    report = look(
        tmp_path,
        [pair("abcdef", "g"), pair("a", "b")],
        max_length=5,
        chat={"prompt_template": "{prompt}"},
    )
    dropped, used = report.examples
    assert dropped.dropped == "the prompt alone fills 5 tokens"
    assert dropped.messages[-1].what == "not trained: over the limit of 5 tokens"
    assert {p.kind for p in dropped.passages[0].pieces} == {"given", "cut"}
    assert used.dropped == ""


@pytest.mark.parametrize("truncate", ["", "right", "left", "split", "drop"])
@pytest.mark.parametrize("limit", [4, 5, 8, 30, 50, 1024])
def test_what_is_coloured_is_what_is_trained(tmp_path: Path, truncate: str, limit: int) -> None:
    """The trained pieces of every sequence are the targets of the trees that training gets,
    whatever the limit.
    """
    plain, short = (
        {"prompt_template": "{prompt}="},
        {"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": "z"}]},
    )
    cases: list[tuple[list[Any], dict[str, str]]] = [
        ([pair("ab", "cdefg🙂h"), pair("", "b"), pair("a", "b")], plain),
        ([{"text": "abé🙂defgh"}, {"text": "ab"}], {}),
    ]
    if limit >= 30:
        cases.append(([CONVERSATION, short], {"template": FORGETS}))
    for rows, chat in cases:
        _, found = trees(rows, PLAIN, max_length=limit, truncate=truncate, **chat)
        report = look(tmp_path, rows, max_length=limit, chat=chat, data={"truncate": truncate})
        shown = [
            [i for p in passage.pieces if p.kind in ("trained", "end") for i in p.ids]
            for one in report.examples
            if not one.dropped
            for passage in one.passages
        ]
        assert [ids for ids in shown if ids] == [
            s.tokens[s.trained].tolist() for tree in found for s in tree
        ]


# ------------------------------------------------------------------------------------------ numbers


def test_the_account_by_hand(tmp_path: Path) -> None:
    rows = [
        pair("ab", "cd"),
        pair("ab", "cd"),
        pair("ab", "cdefgh"),
        pair("abcdefgh", "i"),
        pair("ab", ""),
        "{",
        pair("x", END),
    ]
    report = look(
        tmp_path,
        rows,
        max_length=7,
        chat={"prompt_template": "{prompt}="},
        data={"on_bad_row": "reject"},
        rejects=tmp_path / "rejects.jsonl",
    )
    total = report.total
    assert (total("read"), total("used"), total("rejected")) == (7, 4, 2)
    # ab= cd END: 6 tokens, 3 trained, twice; ab= cdef: 7 tokens, 4 trained; x= END: 3 tokens, 1
    # trained
    assert (total("sequences"), total("tokens"), total("targets")) == (4, 22, 11)
    assert (total("truncated"), total("duplicates"), total("special")) == (1, 1, 1)
    assert report.reasons("dropped") == [("the prompt alone fills 7 tokens", 1)]
    assert dict(report.reasons("reasons")) == {
        "the text to learn is empty": 1,
        "not JSON: Expecting property name enclosed in double quotes at character …": 1,
    }
    assert report.lengths == Lengths((3, 6, 10, 11), (1, 2, 1, 1))  # also of what was dropped
    shown = dict(table(report))
    assert shown["trained tokens"] == "11 (50.0%)"
    assert shown["dropped: the prompt alone fills 7 tokens"] == "1 (14.3%)"
    assert report.rejects is not None and report.rejects.name == "rejects.jsonl"
    assert [json.loads(line)["where"] for line in report.rejects.read_text().splitlines()] == [
        f"{tmp_path}/a.jsonl:5",
        f"{tmp_path}/a.jsonl:6",
    ]


def test_the_same_numbers_as_training(tmp_path: Path) -> None:
    rows = [pair("ab" * i, "cd" * (i % 7 + 1)) for i in range(1, 30)]
    account, found = trees(rows, PLAIN, max_length=80)
    report = look(tmp_path, rows, max_length=80)
    assert report.training == [account]
    assert report.packing is not None
    assert report.packing.tokens == pytest.approx(
        sum(len(s.tokens) for tree in found for s in tree) / -(-len(found) // 8)
    )


def test_quantiles_and_bins() -> None:
    lengths = Lengths((1, 2, 3, 10, 100), (10, 40, 40, 9, 1))
    assert [lengths.quantile(q) for q in (0.1, 0.5, 0.500001, 0.9, 0.99, 1.0)] == [
        1,
        2,
        3,
        3,
        10,
        100,
    ]
    assert (lengths.n, lengths.over(10), lengths.over(9), lengths.over(100)) == (100, 1, 10, 0)
    bins = lengths.bins(12)
    assert sum(count for _, _, count in bins) == 100
    # one bin ends at the limit
    assert (9, 12, 9) not in bins and any(high == 12 for _, high, _ in bins)
    assert all(a[1] + 1 == b[0] for a, b in zip(bins, bins[1:], strict=False))
    assert Lengths((5,), (3,)).bins(1024) == [(4, 5, 3)]


def test_bins_are_few_and_whole_for_any_lengths() -> None:
    for seed in range(200):
        some = np.unique(np.random.default_rng(seed).integers(1, 10 ** (1 + seed % 6), 50)).tolist()
        lengths = Lengths(tuple(some), (1,) * len(some))
        limit = 1 + seed * 7
        bins = lengths.bins(limit)
        assert len(bins) <= 15
        assert sum(count for _, _, count in bins) == len(some)
        assert all(low <= high for low, high, _ in bins)
        assert not any(low <= limit < high for low, high, _ in bins)


def test_packing_by_hand() -> None:
    sizes = [TreeSize(n, n, 1) for n in (3, 5, 8, 2)]
    found = _packing(sizes, 4, 10)
    assert found is not None
    # 8 + 2 and 5 + 3: two passes of 10, 18 of 20 filled; padded: 4 rows of 8
    assert (found.passes, found.tokens, found.filled, found.padded) == (2, 18, 0.9, 18 / 32)
    found = _packing(sizes, 3, None)
    assert found is not None and found.budget == 4096
    order = Plan(4, 3, 0).next()  # the rows of the first of two steps
    rest = next(i for i in range(4) if i not in order)
    assert (found.passes, found.tokens, found.filled) == (1, 9, 18 / (2 * 4096))
    assert found.padded == 18 / (3 * max(sizes[i].tokens for i in order) + sizes[rest].tokens)
    assert _packing([], 8, None) is None
    with pytest.raises(
        ConfigError, match="--budget 7 is less than the 8 tokens of the longest sequence"
    ):
        _packing(sizes, 4, 7)


# ------------------------------------------------------------------------------ rows that are shown


def test_pairs_are_shown_answer_by_answer_with_their_columns(tmp_path: Path) -> None:
    pairs = [{"question": "ab", "chosen": "cd", "rejected": "efg", "id": 7, "note": "Not in use."}]
    report = look(
        tmp_path,
        pairs,
        chat={"prompt_template": "{prompt}:"},
        data={"data": (f"{tmp_path}/a.jsonl,ignore=note",)},
    )
    (account,) = report.training
    assert (account.format, account.used, account.targets) == ("preference", 1, 3 + 4)
    assert [one.where.rpartition(":")[2] for one in report.examples] == ["1, chosen", "1, rejected"]
    assert [stretches(one)[-2:] for one in report.examples] == [
        [("trained", answer, 0), ("end", END, 0)] for answer in ("cd", "efg")
    ]
    shown = dict(table(report))
    assert shown["format"] == "preference"
    assert shown["columns read"] == "prompt from question, chosen, rejected"
    assert shown["columns not read"] == "id, note"
    assert account.shape() == "preference; prompt from 'question'; not read: id"


@pytest.mark.parametrize(
    ("truncate", "kept"), [("", ["abcdef", "abcxef"]), ("left", ["efghi", "efg"])]
)
def test_pairs_over_the_limit_are_cut_as_in_training(
    tmp_path: Path, truncate: str, kept: list[str]
) -> None:
    pair = {"chosen": "abcdefghi", "rejected": "abcxefg"}
    report = look(tmp_path, [pair], max_length=6, data={"truncate": truncate})
    trained = 0
    for one, text in zip(report.examples, kept, strict=True):
        pieces = one.passages[0].pieces
        inside = [piece for piece in pieces if piece.kind not in ("cut", "gap", "end")]
        assert "".join(piece.text for piece in inside) == text
        trained += sum(piece.kind in ("trained", "end") for piece in pieces)
    assert trained == report.total("targets") > 0


def test_labelled_answers_are_shown(tmp_path: Path) -> None:
    rows = [{**pair("ab", "c"), "label": "up"}, {**pair("ab", "d"), "label": "down"}]
    report = look(tmp_path, rows)
    assert [one.where.rpartition(", ")[2] for one in report.examples] == ["good", "bad"]
    assert report.training[0].used == 2


def test_which_rows_are_shown(tmp_path: Path) -> None:
    rows = [pair(f"{i}", "b") for i in range(1, 101)]

    def numbers(**options: Any) -> list[int]:
        return [
            int(one.where.rpartition(":")[2]) for one in look(tmp_path, rows, **options).examples
        ]

    assert numbers() == [1, 2, 3]
    assert numbers(examples=0) == []
    assert numbers(rows=("7", "99")) == [7, 99]
    spread = numbers(rows=("spread",), examples=20)
    assert (
        len(set(spread)) == 20 and spread == sorted(spread) and max(spread) > 60 > 40 > min(spread)
    )
    assert spread == numbers(rows=("spread",), examples=20)
    assert look(tmp_path, rows, rows=("7", "101")).missing == (101,)


def test_a_reservoir_is_fair() -> None:
    hits = np.zeros(10)
    for i in range(3000):
        some = Reservoir[int](3, str(i))
        for item in range(10):
            some.add(item)
        hits[some.items] += 1
        assert some.items == sorted(some.items) and len(some.items) == 3
    assert abs(hits - 900).max() < 4.5 * (3000 * 0.3 * 0.7) ** 0.5


def test_held_out_sources_are_looked_at_and_not_added_in(tmp_path: Path) -> None:
    held = write(tmp_path / "b.jsonl", [{"text": "abcdef"}])
    report = look(tmp_path, [pair("a", "b")], data={"validation": (str(held),)}, chat={})
    assert [(p.name, p.account.read) for p in report.parts] == [
        ("a.jsonl", 1),
        ("b.jsonl (held out)", 1),
    ]
    assert report.total("read") == 1 and report.lengths.n == 1 and len(report.examples) == 2


# ------------------------------------------------------------------------------------------ trouble


def test_nothing_to_train_is_an_error_with_the_cure(tmp_path: Path) -> None:
    report = look(tmp_path, [pair("abcdef", "g")], max_length=4)
    assert report.packing is None and report.total("targets") == 0
    with pytest.raises(
        DataError, match=r"more than half of the rows of .* cannot be trained on"
    ) as caught:
        report.check()
    assert caught.value.cure == "raise --max-length, or look at the data and its columns"
    with pytest.raises(DataError, match="there are no rows"):
        look(tmp_path, []).check()


def test_a_bad_row_stops_with_its_place_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        look(tmp_path, [pair("a", "b"), pair("a", "")])
    assert caught.value.where == f"{tmp_path}/a.jsonl:2"
    with pytest.raises(ConfigError):  # after all rows were read
        look(
            tmp_path,
            ["{", pair("a", "b")],
            data={"on_bad_row": "reject"},
            rejects=tmp_path / "r.jsonl",
            budget=2,
        )
    assert not list(tmp_path.glob(".partial-*"))


def test_text_that_would_command_a_terminal_does_nothing() -> None:
    assert visible("a\nb\tc\x1b[2J\r\x07\x7f") == "a⏎\nb⇥\tc␛[2J␍␇\\u007f"
    assert visible("\u202eabc\x9b\u2028\ufeff") == "\\u202eabc\\u009b\\u2028\\ufeff"
    assert visible("héllo 日本 🙂 👩‍👩‍👧") == "héllo 日本 🙂 👩‍👩‍👧"


def test_long_stretches_lose_their_middle_and_keep_their_borders() -> None:
    pieces = tuple(Piece((i,), str(i), "trained" if 10 <= i < 110 else "given") for i in range(120))
    short = elided(pieces, 20)
    assert [p.text for p in short] == [
        *map(str, range(20)),
        "… 80 tokens …",
        *map(str, range(100, 120)),
    ]
    assert elided(pieces, 99) == pieces  # one piece is not worth leaving out
