"""Rows as trees of tokens: which tokens, which of them trained, and what became of every row."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from posttrain.core.errors import DataError
from posttrain.data import account
from posttrain.data.account import Account
from posttrain.data.forest import Sequence
from tests.making import END, tokenizer, trees

PLAIN = tokenizer()
IDS = {chr(b): PLAIN.convert_tokens_to_ids(PLAIN.tokenize(chr(b)))[0] for b in range(32, 127)}
STOP, START = 0, 1


@dataclass
class Done:
    """Rows prepared as plain text, without a chat template."""

    account: Account
    sequences: list[Sequence]


def tokenise(rows: Iterable[Any], words: Any, template: str = "{prompt}", **more: Any) -> Done:
    counts, made = trees(rows, words, prompt_template=template, **more)
    return Done(counts, [sequence for tree in made for sequence in tree])


def rows(*fields: Any) -> Iterable[Any]:
    return fields


def pair(prompt: str, completion: str) -> dict[str, str]:
    return {"prompt": prompt, "completion": completion}


def shown(done: Done, words: Any = PLAIN) -> list[list[str]]:
    """Each sequence as [untrained text, trained text], token by token joined."""
    return [
        [words.decode(s.tokens[~s.trained]), words.decode(s.tokens[s.trained])]
        for s in done.sequences
    ]


def ids(text: str) -> list[int]:
    return [IDS[c] for c in text]


# ---------------------------------------------------------------------------------- what is trained


def test_the_completion_and_the_end_are_trained() -> None:
    (one,) = tokenise(rows(pair("ab", "cd")), PLAIN).sequences
    assert one.tokens.tolist() == [*ids("abcd"), STOP]
    assert one.trained.tolist() == [False, False, True, True, True]
    assert one.N == 3


def test_text_is_trained_whole_but_for_the_first_token() -> None:
    (one,) = tokenise(rows({"text": "abc"}), PLAIN).sequences
    assert one.tokens.tolist() == [*ids("abc"), STOP]
    assert one.trained.tolist() == [False, True, True, True]  # nothing predicts the first


def test_an_empty_prompt_trains_like_text() -> None:
    (a,), (b,) = (tokenise(rows(f), PLAIN).sequences for f in (pair("", "abc"), {"text": "abc"}))
    assert (a.tokens.tolist(), a.trained.tolist()) == (b.tokens.tolist(), b.trained.tolist())


def test_the_template_surrounds_the_prompt_and_braces_are_only_braces() -> None:
    done = tokenise(rows(pair("{x} {prompt}", "y")), PLAIN, template="Q: {prompt} {}\nA: ")
    assert shown(done) == [["Q: {x} {prompt} {}\nA: ", "y" + END]]


def test_a_start_token_is_not_doubled_and_not_trained() -> None:
    words = tokenizer(start=True)
    for fields, trained in (
        (pair("ab", "c"), [False, False, False, True, True]),
        ({"text": "abc"}, [False, True, True, True, True]),
    ):
        (one,) = tokenise(rows(fields), words).sequences
        assert one.tokens.tolist() == [START, *ids("abc"), STOP]
        assert one.trained.tolist() == trained


def test_a_tokenizer_that_ends_every_text_does_not_end_twice_nor_within() -> None:
    words = tokenizer(start=True, ends=True)
    done = [tokenise(rows(row), words).sequences[0] for row in (pair("ab", "c"), {"text": "abc"})]
    assert [s.tokens.tolist() for s in done] == [[START, *ids("abc"), STOP]] * 2
    assert done[0].trained.tolist() == [False, False, False, True, True]


def test_a_row_that_writes_its_own_end_is_ended_once() -> None:
    (one,) = tokenise(rows(pair("ab", "c" + END)), PLAIN).sequences
    assert one.tokens.tolist() == [*ids("abc"), STOP]


def test_characters_that_would_merge_across_the_border_are_tokenised_apart() -> None:
    words = tokenizer([("b", "c"), ("c", "d")])  # b+c is one token, and so is c+d
    bc, cd = words.convert_tokens_to_ids(["bc", "cd"])
    # together, the border would lie inside a token
    assert words("abcd")["input_ids"] == [*ids("a"), bc, *ids("d")]
    done = tokenise(rows(pair("ab", "cd"), pair("a", "bcd")), words)
    # inference gives the model the prompt's own tokens; training must, too
    assert [s.tokens.tolist() for s in done.sequences] == [
        [*ids("ab"), cd, STOP],
        [*ids("a"), bc, *ids("d"), STOP],
    ]
    assert [s.trained.tolist() for s in done.sequences] == [
        [False, False, True, True],
        [False, True, True, True],
    ]
    for one, prompt in zip(done.sequences, ("ab", "a"), strict=True):
        assert one.tokens[~one.trained].tolist() == words(prompt)["input_ids"]


def test_merges_at_the_border_with_start_and_end_tokens() -> None:
    words = tokenizer([("b", "c")], start=True, ends=True)
    (one,) = tokenise(rows(pair("ab", "cd")), words).sequences
    assert one.tokens.tolist() == [START, *ids("abcd"), STOP]
    assert one.trained.tolist() == [False, False, False, True, True, True]


# ------------------------------------------------------------------------------------ which columns


def test_columns_are_renamed() -> None:
    fields = {"question": "ab", "answer": "c", "text": "other", "prompt": "not this"}
    done = tokenise(rows(fields), PLAIN, source=",prompt=question,completion=answer")
    assert shown(done) == [["ab", "c" + END]]
    assert shown(tokenise(rows(fields), PLAIN, source=",text=answer")) == [["c", END]]


def test_prompt_and_completion_win_over_text_that_is_beside_them() -> None:
    assert shown(tokenise(rows({"text": "other", **pair("ab", "c")}), PLAIN)) == [["ab", "c" + END]]


# -------------------------------------------------------------------- what is cut, dropped, refused


def test_long_rows_are_cut_at_the_end_and_counted() -> None:
    done = tokenise(
        rows(pair("ab", "cdef"), pair("ab", "cd"), pair("abcde", "f")), PLAIN, max_length=5
    )
    assert shown(done) == [["ab", "cde"], ["ab", "cd" + END]]  # what is cut has no end token
    assert (done.account.read, done.account.used, done.account.truncated) == (3, 2, 1)
    assert done.account.dropped == {"the prompt alone fills 5 tokens": 1}
    assert (done.account.tokens, done.account.targets, done.account.longest) == (10, 3 + 3, 5)
    assert (
        done.account.summary()
        == "3 rows → 2 sequences, 10 tokens, 6 trained, 1 cut to the length limit, "
        "1 dropped: the prompt alone fills 5 tokens"
    )


@pytest.mark.parametrize(
    ("policy", "expected", "truncated"),
    [
        ("right", [["ab", "cde"]], 1),
        ("left", [["d", "efg" + END]], 1),
        ("drop", [], 0),
        # windows overlap by the token that predicts the next one's first, so that every token is
        # trained once
        ("split", [["ab", "cde"], ["e", "fg" + END]], 0),
    ],
)
def test_what_becomes_of_a_long_answer_can_be_chosen(
    policy: str, expected: list[list[str]], truncated: int
) -> None:
    done = tokenise(rows(pair("ab", "cdefg"), pair("a", "b")), PLAIN, max_length=5, truncate=policy)
    assert shown(done)[:-1] == expected
    assert done.account.truncated == truncated
    assert done.account.divided == (policy == "split")
    assert done.account.dropped == ({"longer than 5 tokens": 1} if policy == "drop" else {})


def test_cutting_the_start_keeps_the_begin_token() -> None:
    done = tokenise(rows(pair("ab", "cdefg")), tokenizer(start=True), max_length=4, truncate="left")
    assert done.sequences[0].tokens.tolist() == [START, *ids("fg"), STOP]
    assert done.sequences[0].trained.tolist() == [False, True, True, True]


def test_long_text_is_divided_and_nothing_of_it_lost() -> None:
    done = tokenise(rows({"text": "abcdefghi"}), PLAIN, max_length=4)
    assert [s.tokens.tolist() for s in done.sequences] == [
        ids("abcd"),
        ids("defg"),
        [*ids("ghi"), STOP],
    ]
    targets = [t for s in done.sequences for t in s.tokens[1:][s.trained[1:]].tolist()]
    assert targets == [*ids("bcdefghi"), STOP]
    assert (done.account.truncated, done.account.divided, done.account.dropped) == (0, 1, {})


def test_answers_that_are_compared_lose_the_same_start() -> None:
    """The chosen answer has 11 tokens with its end, 3 over the limit; both lose the first 3, so
    that both still answer one prompt.
    """
    row = {"prompt": "abcdef", "chosen": "ghij", "rejected": "k"}
    done = tokenise([row], PLAIN, max_length=8, truncate="left", learned="pairs")
    assert shown(done) == [["def", "ghij" + END], ["def", "k" + END]]
    assert done.account.truncated == 1
    none_left = {"prompt": "ab", "chosen": "ghijklmn", "rejected": "k"}
    with pytest.raises(DataError, match="the prompt alone fills 5 tokens"):
        tokenise([none_left], PLAIN, max_length=5, truncate="left", learned="pairs")


def test_repeats_are_counted_a_class_of_hashes_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes = np.random.default_rng(0).integers(0, 40, 100).astype(np.uint64)
    hashes.tofile(tmp_path / "hashes")
    for compared in (100, 30, 7):
        monkeypatch.setattr(account, "COMPARED", compared)
        assert account.count_repeats(tmp_path / "hashes") == 100 - len(set(hashes.tolist()))
    (tmp_path / "empty").touch()
    assert account.count_repeats(tmp_path / "empty") == 0


def test_rows_with_the_same_tokens_are_counted() -> None:
    done = tokenise(
        rows(*[pair("ab", "c")] * 3, pair("a", "bc"), pair("ab", "d"), pair("ab", "d")), PLAIN
    )
    assert done.account.duplicates == 2 + 1 + 1  # the same tokens, whatever of them is trained
    assert done.account.sequences == 6  # they are counted, not removed


def test_rows_with_special_tokens_in_their_text_are_counted() -> None:
    done = tokenise(
        rows(pair("a" + END + "b", "c"), pair("ab", "c"), pair("ab", "c" + END + "d")), PLAIN
    )
    assert done.account.special == 2


def test_a_prompt_that_leaves_room_for_one_token_is_kept() -> None:
    done = tokenise(rows(pair("abcd", "ef"), pair("abcde", "f")), PLAIN, max_length=5)
    assert shown(done) == [["abcd", "e"]]


def test_a_row_of_just_the_right_length_is_not_cut() -> None:
    done = tokenise(rows(pair("ab", "cd")), PLAIN, max_length=5)
    assert (shown(done), done.account.truncated) == ([["ab", "cd" + END]], 0)


def test_nothing_left_to_train_is_an_error() -> None:
    with pytest.raises(
        DataError,
        match=r"more than half of the rows of .*a\.jsonl cannot be trained on: 1 rows → 0",
    ) as caught:
        tokenise(rows(pair("abcdef", "g")), PLAIN, max_length=5)
    assert caught.value.cure.startswith("raise --max-length")


def test_losing_more_than_half_of_the_rows_is_an_error_and_half_is_not() -> None:
    good, bad = pair("ab", "cd"), pair("abcdef", "g")
    assert tokenise(rows(good, bad), PLAIN, max_length=5).account.dropped == {
        "the prompt alone fills 5 tokens": 1
    }
    with pytest.raises(DataError, match="3 rows → 1 sequences, 5 tokens, 3 trained, 2 dropped"):
        tokenise(rows(good, bad, bad), PLAIN, max_length=5)


def test_a_row_of_one_token_is_dropped_and_counted() -> None:
    """Nothing predicts it, so it would be a sequence without a target."""
    done = tokenise(rows({"text": END}, {"text": "ab"}), PLAIN)
    assert [s.tokens.tolist() for s in done.sequences] == [[*ids("ab"), STOP]]
    assert done.account.dropped == {"one token is no sequence: nothing predicts it": 1}


def test_two_begin_tokens_are_an_error() -> None:
    start = tokenizer(start=True)
    with pytest.raises(DataError, match="two begin tokens"):
        tokenise(rows(pair("ab", "c")), start, template=start.bos_token + "{prompt}")


def test_a_tokenizer_that_begins_with_a_space_puts_none_inside() -> None:
    """Llama-2 style: tokenised apart as it is, `ab` and `cd` would read `ab cd`."""
    words = Tokenizer(
        models.BPE(
            vocab={c: i for i, c in enumerate(["</s>", "▁", "a", "b", "c", "d", "\n", "bc"])},
            merges=[("b", "c")],
        )
    )
    words.pre_tokenizer, words.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    spaced = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>")
    assert spaced("abcd")["input_ids"] == [1, 2, 7, 5]  # b and c merge across the border
    done = tokenise(rows(pair("ab", "cd")), spaced)
    assert done.sequences[0].tokens.tolist() == [1, 2, 3, 4, 5, 0]
    assert done.sequences[0].trained.tolist() == [False, False, False, True, True, True]


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (pair("ab", ""), "the text to learn is empty"),
        (pair("ab", " \n"), "the text to learn is empty"),
        (
            {"prompt": "ab", "completion": None},
            "this row is prompt; the source began as prompt-completion (a.jsonl:1)",
        ),
        (
            {"promt": "ab", "completion": "c"},
            "this row has no 'prompt'; the source began as prompt-completion (a.jsonl:1)",
        ),
        (
            {"prompt": "ab", "answers": "c"},
            "this row is prompt; the source began as prompt-completion (a.jsonl:1)",
        ),
        ({"prompt": "ab", "completion": ["c"]}, "message 1 of completion is text, not an object"),
        (
            {"messages": []},
            "this row is messages; the source began as prompt-completion (a.jsonl:1)",
        ),
        (
            {},
            (
                "this row has no 'prompt' and 'completion'; the source began as prompt-completion "
                "(a.jsonl:1)"
            ),
        ),
        (pair("ab", "c\ud800"), "column 'completion' holds half a character, \\ud800"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(bad: dict[str, Any], what: str) -> None:
    with pytest.raises(DataError) as caught:
        tokenise(rows(pair("ab", "c"), bad), PLAIN)
    where = caught.value.where.removesuffix(":2")
    assert (Path(where).name, caught.value.what.replace(where, "a.jsonl")) == ("a.jsonl", what)
    assert caught.value.cure


def test_no_rows_are_an_error() -> None:
    with pytest.raises(DataError, match="there are no rows"):
        tokenise([], PLAIN)


def test_a_tokenizer_without_an_end_is_refused_before_the_rows_are_read() -> None:
    with pytest.raises(DataError, match="the model would never learn to stop") as caught:
        tokenise(iter(()), tokenizer(end=None))
    assert caught.value.cure == "set eos_token in tokenizer_config.json"


def test_a_template_without_the_prompt_is_refused() -> None:
    with pytest.raises(DataError, match=r"does not contain \{prompt\}"):
        tokenise(rows(pair("a", "b")), PLAIN, template="Q: {}")
