"""Tokens and the mask: the prompt's are those of inference, the answer's are trained, however
tokenizers merge and add.
"""

from __future__ import annotations

import gzip
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from posttrain.core.errors import DataError
from posttrain.data.chat import Chat, Turn
from posttrain.data.templates.default import default_template
from posttrain.data.tokens import Encoded, Encoder, Span
from tests.data.chats import CHATML, SHARED, answer, encode, metaspace, runs, turns, user, words

MERGES = [
    ("a", "b"),
    ("Ċ", "Ċ"),
    ("Ġ", "a"),
    ("ab", "c"),
    ("Ċ", "a"),
    (">", "a"),
    ("Ã", "©"),
    ("Ġ", "Ġ"),
    ("t", "Ċ"),
    ("b", "Ċ"),
]
PLAIN, MERGED = words(), words(MERGES)
SPACED = {scheme: metaspace(scheme) for scheme in ("first", "always")}
ROLES = words(MERGES, ["<|user|>", "<|assistant|>"])  # and <|end|>, its end token
BARE = words(MERGES, [], start=True)  # no turn tokens; puts a begin token before every text
NOTHING = words(MERGES, [])  # no turn tokens, no begin token

PIECES = [
    " ",
    "\n",
    "\n\n",
    "\t",
    "a",
    "b",
    "c",
    "ab",
    "abc",
    "é",
    "日",
    "🙂",
    "x" * 40,
    "<|im_end|>",
    "<|im_start|>",
    "<|end|>",
    "<think>",
    "</think>",
    "<|im_",
    "end|>",
    "Zq7",
    "{{",
    "%}",
    "'",
    "\\",
    "\r\n",
    "\u00a0",
    "assistant",
    "### User:\n",
]


def text(*more: str) -> st.SearchStrategy[str]:
    return (
        st.lists(st.sampled_from([*PIECES, *more]), min_size=1, max_size=6)
        .map("".join)
        .filter(str.strip)
    )


@st.composite
def conversations(draw: Any) -> list[dict[str, Any]]:
    """Any roles in any order, with at least one answer to learn that does not come first."""
    roles = [
        "user",
        *draw(st.lists(st.sampled_from(["user", "assistant", "tool", "system"]), max_size=5)),
        "assistant",
    ]
    if draw(st.booleans()):
        roles.insert(0, "system")
    made = [{"role": role, "content": draw(text())} for role in roles]
    for message in made[1:-1]:
        if message["role"] == "assistant" and draw(st.integers(0, 3)) == 0:
            message["weight"] = 0
    return made


def by_hand(messages: list[dict[str, Any]], tokenizer: Any) -> tuple[list[int], list[bool]]:
    """ChatML piece by piece, for a tokenizer that merges nothing."""
    ids: list[int] = []
    mask: list[bool] = []
    trained = [i for i, m in enumerate(messages) if m["role"] == "assistant" and m.get("weight", 1)]
    for i, message in enumerate(messages[: trained[-1] + 1]):
        # a row may bring its own end: the template's follows, untrained
        own = message["content"].endswith("<|im_end|>")
        said = message["content"] + "<|im_end|>" * (not own)
        parts = [(f"<|im_start|>{message['role']}\n", False), (said, i in trained)]
        parts += [("<|im_end|>" * own + "\n", False)] if i < trained[-1] else []
        for part, learned in parts:
            new = tokenizer(part, add_special_tokens=False)["input_ids"]
            ids, mask = ids + new, mask + [learned] * len(new)
    return ids, mask


@settings(max_examples=150, deadline=None)
@given(conversations())
@example([user("Q"), answer("<|im_end|>"), user("<|im_"), answer("end|><|im_end|>")])
def test_the_mask_is_that_by_hand(messages: list[dict[str, Any]]) -> None:
    (one,) = encode(PLAIN, turns(PLAIN, CHATML, messages))
    ids, mask = by_hand(messages, PLAIN)
    assert one.ids == ids and one.mask().tolist() == mask


CASES = {
    "chatml": (MERGED, CHATML),
    "default chatml": (MERGED, None),
    "default roles": (ROLES, None),
    "default begun": (BARE, None),
    "default plain": (NOTHING, None),
    "default first": (SPACED["first"], None),
    "first": (SPACED["first"], CHATML),
    "always": (SPACED["always"], CHATML),
}


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_prompts_are_those_of_inference_and_text_is_whole(case: str, data: Any) -> None:
    tokenizer, template = CASES[case]
    messages = data.draw(conversations())
    found = turns(tokenizer, template, messages)
    encoded = encode(tokenizer, found)
    spans = {s.number: (e, s) for e in encoded for s in e.spans}
    shown = template or default_template(tokenizer)
    for turn in found:
        one, span = spans.pop(turn.number)
        prompt = tokenizer.apply_chat_template(
            [{k: v for k, v in m.items() if k != "weight"} for m in messages[: turn.number - 1]],
            chat_template=shown,
            add_generation_prompt=True,
            return_dict=False,
        )
        assert one.ids[: span.start] == prompt
        whole = tokenizer(turn.before + turn.after, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(one.ids[: span.end]) == tokenizer.decode(whole)
        if case.startswith(("chatml", "default")) and "first" not in case:
            # bytes lose nothing
            assert tokenizer.decode(one.ids[: span.end]) == turn.before + turn.after
    assert not spans
    if template is None:
        # never rewritten
        assert all(
            b.before.startswith(a.before + a.after) for a, b in zip(found, found[1:], strict=False)
        )


class Slow(Encoder):
    """Tokenises every prompt alone."""

    def _anchored(self, whole: Any, chain: Any, k: int = 0) -> int | None:
        return None


@settings(max_examples=60, deadline=None)
@given(
    st.lists(conversations(), min_size=1, max_size=4),
    st.sampled_from([MERGED, SPACED["first"], SPACED["always"]]),
)
def test_the_fast_way_is_the_slow_way_and_batches_change_nothing(
    rows: list[list[dict[str, Any]]], tokenizer: Any
) -> None:
    found = [turns(tokenizer, CHATML, messages) for messages in rows]
    fast, slow = Encoder(tokenizer), Slow(tokenizer)
    together = fast.encode(found)
    assert together == [Encoder(tokenizer).encode([one])[0] for one in found]
    for some, encoded in zip(found, together, strict=True):
        assert not isinstance(encoded, DataError)
        spans = {s.number: (e, s) for e in encoded for s in e.spans}
        for turn in some:
            (alone,) = slow.encode([[turn]])
            assert not isinstance(alone, DataError)
            (one,) = alone
            e, span = spans[turn.number]
            assert one.spans[0].start == span.start and one.ids == e.ids[: span.end]


def test_a_tokenizer_that_does_not_say_where_its_tokens_lie() -> None:
    """Then every turn stands for itself, with the same tokens."""
    for template, tokenizer in ((CHATML, MERGED), (None, NOTHING)):
        found = turns(tokenizer, template, [user("ab"), answer("abc"), user(" a"), answer("é")])
        fast, slow = Encoder(tokenizer), Encoder(tokenizer)
        slow._fast = None
        together, parts = fast.encode([found])[0], slow.encode([found])[0]
        assert isinstance(together, list) and isinstance(parts, list) and len(parts) == 2
        (whole,) = together
        assert [part.ids for part in parts] == [whole.ids[: span.end] for span in whole.spans]
        assert [part.spans[0] for part in parts] == list(whole.spans)


def test_several_turns_in_one_text_are_found_at_their_borders() -> None:
    (one,) = encode(
        MERGED, turns(MERGED, CHATML, [user("ab\n"), answer("abc"), user(" a"), answer("é\n\n")])
    )
    head = "<|im_start|>assistant\n"
    assert runs(MERGED, one) == [
        "<|im_start|>user\nab\n<|im_end|>\n" + head,
        "abc<|im_end|>",
        "\n<|im_start|>user\n a<|im_end|>\n" + head,
        "é\n\n<|im_end|>",
    ]
    assert [len(one.ids[s.start : s.end]) for s in one.spans] == [2, 3]


def test_an_answer_that_would_merge_with_the_prompt_is_tokenised_apart() -> None:
    """The prompt ends with a line break, and so does the answer begin: inference has them as two
    tokens.
    """
    tokenizer = words([("Ċ", "Ċ"), ("a", "b")])
    found = turns(tokenizer, CHATML, [user("Q"), answer("\nab"), user("R"), answer("b")])
    first, second = encode(tokenizer, found)
    (nl,), (nlnl,) = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in ("\n", "\n\n"))
    at = first.spans[0].start
    assert first.ids[at - 1 : at + 1] == [nl, nl] and nlnl not in first.ids
    assert tokenizer.decode(first.ids) == found[0].before + found[0].after
    # history is one text, so there the server merges them: another branch
    assert second.ids[: len(first.ids)] != first.ids and nlnl in second.ids
    assert tokenizer.decode(second.ids) == found[1].before + found[1].after
    assert [s.number for e in (first, second) for s in e.spans] == [2, 4]


@pytest.mark.parametrize("scheme", ["first", "always"])
def test_a_tokenizer_that_begins_with_a_space(scheme: str) -> None:
    tokenizer = SPACED[scheme]
    found = turns(tokenizer, CHATML, [user("a b"), answer(" a"), user("a"), answer("bc")])
    for e in encode(tokenizer, found):
        for span in e.spans:
            turn = next(t for t in found if t.number == span.number)
            assert (
                e.ids[: span.start] == tokenizer(turn.before, add_special_tokens=False)["input_ids"]
            )
            assert (
                e.ids[: span.end]
                == tokenizer(turn.before + turn.after, add_special_tokens=False)["input_ids"]
            )


@pytest.mark.parametrize(
    ("template", "tokenizer"),
    [
        (CHATML, words(start=True)),
        ("{{ bos_token }}" + CHATML, words(start=True)),
        (None, BARE),
        (None, words(start=True)),
    ],
    ids=["tokenizer", "template", "default plain", "default chatml"],
)
def test_a_begin_token_is_never_doubled(template: str | None, tokenizer: Any) -> None:
    messages = [user("Q"), answer("A"), user("R"), answer("B")]
    (one,) = encode(tokenizer, turns(tokenizer, template, messages))
    begun = template is None or "bos_token" in template
    assert (
        one.ids.count(tokenizer.bos_token_id) == begun
        and (one.ids[0] == tokenizer.bos_token_id) == begun
    )
    prompt = tokenizer.apply_chat_template(
        messages[:1],
        chat_template=template or default_template(tokenizer),
        add_generation_prompt=True,
        return_dict=False,
    )
    assert one.ids[: one.spans[0].start] == prompt


def test_two_begin_tokens_are_an_error() -> None:
    tokenizer = words(start=True)
    with pytest.raises(DataError, match="two begin tokens"):
        encode(
            tokenizer,
            turns(tokenizer, "{{ bos_token }}{{ bos_token }}" + CHATML, [user("Q"), answer("A")]),
        )


def test_plain_text_gets_the_tokens_that_the_tokenizer_adds() -> None:
    tokenizer = words(start=True, ends=True)
    found, begin, end = (
        [Turn("ab", "c<|end|>", True)],
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
    )
    (one,) = encode(tokenizer, found)
    ids = tokenizer("abc", add_special_tokens=False)["input_ids"]
    assert one.ids == [begin, *ids, end] and one.mask().tolist() == [False] * 3 + [True] * 2


def test_one_bad_row_spoils_only_itself() -> None:
    tokenizer = words(start=True)
    good = turns(tokenizer, CHATML, [user("Q"), answer("A")])
    bad = turns(tokenizer, "{{ bos_token * 2 }}" + CHATML, [user("Q"), answer("A")])
    first, second, third = Encoder(tokenizer).encode([good, bad, good])
    assert first == third and isinstance(first, list) and isinstance(second, DataError)
    assert Encoder(tokenizer).encode([]) == []


def test_prompts_for_sampling_are_those_of_training() -> None:
    chat, encoder = Chat(MERGED, template=CHATML), Encoder(MERGED)
    found = turns(MERGED, CHATML, [user("Q"), answer("\nab")])
    (one,) = encode(MERGED, found)
    assert (
        encoder.prompts([found[0].before], [False]) == [one.ids[: one.spans[0].start]]
        and chat.stop == "<|im_end|>"
    )


def test_the_mask_of_spans() -> None:
    assert Encoded([5, 6, 7, 8], (Span(1, 2, 1), Span(3, 4, 2))).mask().tolist() == [
        False,
        True,
        False,
        True,
    ]
    assert Encoded([5, 6], ()).mask().dtype == np.bool_


# ---------------------------------------------------------------------------------- real tokenizers


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox_20b", "dolma2_100k"])
@pytest.mark.parametrize("template", [CHATML, None], ids=["chatml", "default"])
def test_real_tokenizers(name: str, template: str | None) -> None:
    file = SHARED / "tokenizers" / name / "tokenizer.json.gz"
    if not file.is_file():
        pytest.skip(f"there is no tokenizer {file}")
    raw = Tokenizer.from_str(gzip.decompress(file.read_bytes()).decode())
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|endoftext|>", bos_token=None
    )
    rows = [
        [user(a), answer(b), user(c), answer(d)]
        for a in ("Hello", " two  spaces ", "日本語 🙂", "x\n\n")
        for b in ("World", "\n\nnew", " lead", "    indented\n\tcode")
        for c, d in (("<|im_end|>", "fin\n"), ("Zq7", "9 999.5"))
    ]
    found = [turns(tokenizer, template, messages) for messages in rows]
    for some, encoded in zip(found, Encoder(tokenizer).encode(found), strict=True):
        assert not isinstance(encoded, DataError)
        spans = {s.number: (e, s) for e in encoded for s in e.spans}
        for turn in some:
            e, span = spans[turn.number]
            assert (
                e.ids[: span.start] == tokenizer(turn.before, add_special_tokens=False)["input_ids"]
            )
            assert (
                tokenizer.decode(e.ids[: span.end], clean_up_tokenization_spaces=False)
                == turn.before + turn.after
            )
            assert (
                tokenizer.decode(e.ids[span.start : span.end], clean_up_tokenization_spaces=False)
                == turn.after
            )
