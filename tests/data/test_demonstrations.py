"""Demonstrations: which tokens, which of them trained, and what became of every row."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from posttrain.core.errors import DataError
from posttrain.data.demonstrations import Demonstrations, tokenise
from posttrain.data.rows import Row
from tests.making import END, tokenizer

PLAIN = tokenizer()
IDS = {chr(b): PLAIN.convert_tokens_to_ids(PLAIN.tokenize(chr(b)))[0] for b in range(32, 127)}
STOP, START = 0, 1


def rows(*fields: Any) -> Iterable[Row]:
    return [Row(f, f"a.jsonl:{i}") for i, f in enumerate(fields, 1)]


def pair(prompt: str, completion: str) -> dict[str, str]:
    return {"prompt": prompt, "completion": completion}


def shown(done: Demonstrations, words: Any = PLAIN) -> list[list[str]]:
    """Each sequence as [untrained text, trained text], token by token joined."""
    return [[words.decode(s.tokens[~s.trained]), words.decode(s.tokens[s.trained])] for s in done.sequences]


def ids(text: str) -> list[int]:
    return [IDS[c] for c in text]


# ---------------------------------------------------------------------------------------------- what is trained

def test_the_completion_and_the_end_are_trained() -> None:
    (one,) = tokenise(rows(pair("ab", "cd")), PLAIN).sequences
    assert one.tokens.tolist() == [*ids("abcd"), STOP]
    assert one.trained.tolist() == [False, False, True, True, True]
    assert one.targets == 3


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
    for fields, trained in ((pair("ab", "c"), [False, False, False, True, True]),
                            ({"text": "abc"}, [False, True, True, True, True])):
        (one,) = tokenise(rows(fields), words).sequences
        assert one.tokens.tolist() == [START, *ids("abc"), STOP]
        assert one.trained.tolist() == trained


def test_a_tokenizer_that_ends_every_text_does_not_end_twice_nor_within() -> None:
    words = tokenizer(start=True, ends=True)
    done = tokenise(rows(pair("ab", "c"), {"text": "abc"}), words)
    assert [s.tokens.tolist() for s in done.sequences] == [[START, *ids("abc"), STOP]] * 2
    assert done.sequences[0].trained.tolist() == [False, False, False, True, True]


def test_a_row_that_writes_its_own_end_is_ended_once() -> None:
    (one,) = tokenise(rows(pair("ab", "c" + END)), PLAIN).sequences
    assert one.tokens.tolist() == [*ids("abc"), STOP]


def test_characters_that_would_merge_across_the_border_are_tokenised_apart() -> None:
    words = tokenizer([("b", "c"), ("c", "d")])  # b+c is one token, and so is c+d
    bc, cd = words.convert_tokens_to_ids(["bc", "cd"])
    assert words("abcd")["input_ids"] == [*ids("a"), bc, *ids("d")]  # together, the border would lie inside a token
    done = tokenise(rows(pair("ab", "cd"), pair("a", "bcd")), words)
    # inference gives the model the prompt's own tokens; training must, too
    assert [s.tokens.tolist() for s in done.sequences] == [[*ids("ab"), cd, STOP], [*ids("a"), bc, *ids("d"), STOP]]
    assert [s.trained.tolist() for s in done.sequences] == [[False, False, True, True], [False, True, True, True]]
    for one, prompt in zip(done.sequences, ("ab", "a"), strict=True):
        assert one.tokens[~one.trained].tolist() == words(prompt)["input_ids"]


def test_merges_at_the_border_with_start_and_end_tokens() -> None:
    words = tokenizer([("b", "c")], start=True, ends=True)
    (one,) = tokenise(rows(pair("ab", "cd")), words).sequences
    assert one.tokens.tolist() == [START, *ids("abcd"), STOP]
    assert one.trained.tolist() == [False, False, False, True, True, True]


# ---------------------------------------------------------------------------------------------- which columns

def test_columns_are_renamed() -> None:
    fields = {"question": "ab", "answer": "c", "text": "other", "prompt": "not this"}
    done = tokenise(rows(fields), PLAIN, columns={"prompt": "question", "completion": "answer"})
    assert shown(done) == [["ab", "c" + END]]
    assert shown(tokenise(rows(fields), PLAIN, columns={"text": "answer"})) == [["c", END]]


def test_prompt_and_completion_win_over_text_that_is_beside_them() -> None:
    assert shown(tokenise(rows({"text": "other", **pair("ab", "c")}), PLAIN)) == [["ab", "c" + END]]


def test_a_column_of_ours_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(DataError) as caught:
        tokenise(rows({**pair("ab", "c"), "question": "x"}), PLAIN, columns={"promt": "question"})
    assert caught.value.what == "--columns: 'promt' is no column of ours"
    assert caught.value.cure == "did you mean 'prompt'?"


# ---------------------------------------------------------------------------------------------- what is cut, dropped, refused

def test_long_rows_are_cut_at_the_end_and_counted() -> None:
    done = tokenise(rows(pair("ab", "cdef"), pair("ab", "cd"), pair("abcde", "f"), {"text": "abcdefgh"}), PLAIN, max_length=5)
    assert shown(done) == [["ab", "cde"], ["ab", "cd" + END], ["a", "bcde"]]  # what is cut has no end token
    assert (done.rows, done.truncated) == (4, 2)
    assert done.dropped == {"the prompt alone fills 5 tokens": 1}
    assert (done.tokens, done.targets) == (15, 3 + 3 + 4)
    assert done.summary() == ("3 sequences, 15 tokens, 10 trained, 2 cut at the end, "
                              "1 dropped: the prompt alone fills 5 tokens")


def test_a_prompt_that_leaves_room_for_one_token_is_kept() -> None:
    done = tokenise(rows(pair("abcd", "ef"), pair("abcde", "f")), PLAIN, max_length=5)
    assert shown(done) == [["abcd", "e"]]


def test_a_row_of_just_the_right_length_is_not_cut() -> None:
    done = tokenise(rows(pair("ab", "cd")), PLAIN, max_length=5)
    assert (shown(done), done.truncated) == ([["ab", "cd" + END]], 0)


def test_nothing_left_to_train_is_an_error() -> None:
    with pytest.raises(DataError, match="more than half of the rows have nothing to train: 0 sequences") as caught:
        tokenise(rows(pair("abcdef", "g")), PLAIN, max_length=5)
    assert caught.value.cure.startswith("raise --max-length")


def test_losing_more_than_half_of_the_rows_is_an_error_and_half_is_not() -> None:
    good, bad = pair("ab", "cd"), pair("abcdef", "g")
    assert tokenise(rows(good, bad), PLAIN, max_length=5).dropped == {"the prompt alone fills 5 tokens": 1}
    with pytest.raises(DataError, match="1 sequences, 5 tokens, 3 trained, 2 dropped"):
        tokenise(rows(good, bad, bad), PLAIN, max_length=5)


def test_a_row_of_one_token_is_dropped_and_counted() -> None:
    """Nothing predicts it, so it would be a sequence without a target."""
    done = tokenise(rows({"text": END}, {"text": "ab"}), PLAIN)
    assert [s.tokens.tolist() for s in done.sequences] == [[*ids("ab"), STOP]]
    assert done.dropped == {"one token is no sequence: nothing predicts it": 1}


def test_two_begin_tokens_are_an_error() -> None:
    start = tokenizer(start=True)
    with pytest.raises(DataError, match="two begin tokens"):
        tokenise(rows(pair("ab", "c")), start, template=start.bos_token + "{prompt}")


def test_a_tokenizer_that_begins_with_a_space_puts_none_inside() -> None:
    """Llama-2 style: tokenised apart as it is, `ab` and `cd` would read `ab cd`."""
    words = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(["</s>", "▁", "a", "b", "c", "d", "\n", "bc"])},
                                 merges=[("b", "c")]))
    words.pre_tokenizer, words.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    spaced = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>")
    assert spaced("abcd")["input_ids"] == [1, 2, 7, 5]  # b and c merge across the border
    done = tokenise(rows(pair("ab", "cd")), spaced)
    assert done.sequences[0].tokens.tolist() == [1, 2, 3, 4, 5, 0]
    assert done.sequences[0].trained.tolist() == [False, False, False, True, True, True]


@pytest.mark.parametrize(("bad", "what"), [
    (pair("ab", ""), "the text to learn is empty"),
    (pair("ab", " \n"), "the text to learn is empty"),
    ({"text": ""}, "the text to learn is empty"),
    ({"promt": "ab", "completion": "c"}, "there is no column 'prompt'; did you mean 'promt'?"),
    ({"prompt": "ab", "answer": "c", "completions": "c"}, "there is no column 'completion'; did you mean 'completions'?"),
    ({"prompt": "ab", "completion": ["c"]}, "column 'completion' holds list, not text"),
    ({"messages": []}, "there is no column 'prompt'; known: messages"),
    ({}, "there is no column 'prompt'; known: "),
    (pair("ab", "c\ud800"), "column 'completion' holds half a character, \\ud800"),
])
def test_a_bad_row_is_named_by_file_and_line(bad: dict[str, Any], what: str) -> None:
    with pytest.raises(DataError) as caught:
        tokenise(rows(pair("ab", "c"), bad), PLAIN)
    assert (caught.value.where, caught.value.what) == ("a.jsonl:2", what)
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
