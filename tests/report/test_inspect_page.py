"""The page of what would be trained: bars on the right side of the limit, no markup from rows."""

from __future__ import annotations

import re

from posttrain.data.account import Account
from posttrain.data.anatomy import Anatomy, Message, Passage, Piece
from posttrain.data.inspect import Lengths, Packing, Part, Report
from posttrain.data.settings import Source
from posttrain.report.inspect_page import page

MARKUP = '"><b>'


def report(lengths: Lengths, limit: int, *examples: Anatomy, path: str = "a.jsonl") -> Report:
    account = Account(format="text", read=3, used=3, sequences=3, tokens=14, targets=11)
    return Report(
        parts=(Part(Source(path=path), account),),
        examples=examples,
        missing=(),
        lengths=lengths,
        packing=Packing(64, 8, 3, 1.0, 14.0, 0.2, 0.6),
        max_length=limit,
        template="",
        rejects=None,
    )


def test_a_sequence_as_long_as_the_limit_is_within_it() -> None:
    html = page(report(Lengths((2, 4, 8), (1, 1, 1)), 4))
    kinds = re.findall(r"<rect class=(bar|over) .*?y=\"\d+\">([\d,]+)</text>", html)
    assert [kind for kind, count in kinds if count != "0"] == ["bar", "bar", "over"]
    assert "--max-length 4: 1 longer (33.3%)" in html
    assert html.index("class=mark") > html.rindex("class=bar ")
    assert html.index("class=mark") < html.index("class=over ")


def test_no_text_of_a_row_becomes_markup() -> None:
    message = Message(1, MARKUP, f"given {MARKUP}")
    piece = Piece((5,), MARKUP, "given", 1)
    anatomy = Anatomy(MARKUP, MARKUP, (message,), (Passage(MARKUP, (piece,)),))
    html = page(report(Lengths((2,), (3,)), 4, anatomy, path=MARKUP))
    assert MARKUP not in html and "<b>" not in html.replace("<div class=card><b>", "")
    assert html.count("&quot;&gt;&lt;b&gt;") >= 7
