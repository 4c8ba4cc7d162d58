"""Answers in steps: the last token of every step is trained, and the labels stay with their
steps.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from posttrain.core.errors import DataError
from posttrain.data.chat import Chat
from posttrain.data.examples import Examples
from posttrain.data.prepare import Preparation, prepare
from posttrain.data.settings import Source
from posttrain.data.store import Numbers, Trees
from tests import making

ROW = {"prompt": "2+3", "completions": ["ab", "c", "def"], "labels": [True, 0.25, False]}


def prepared(
    rows: list[Any], words: Any, *, separator: str = "\n", **more: Any
) -> tuple[list[Any], list[list[float]], Any]:
    """Sequences, the numbers beside them, and the account."""
    with tempfile.TemporaryDirectory() as name:
        chat = Chat(words, prompt_template=more.pop("prompt_template", None))
        chat.separator = separator
        path = making.write(Path(name) / "a.jsonl", rows)
        account = prepare(
            Source(path=str(path)),
            Preparation(chat, learned="steps", **{"max_length": 100, **more}),
            Path(name) / "out",
        )
        trees, numbers = Trees(Path(name) / "out"), Numbers(Path(name) / "out")
        return [tree[0] for tree in trees], [one.tolist() for one in numbers], account


def spelled(one: Any, words: Any) -> list[str]:
    """The text up to each trained token, and with it."""
    return [words.decode(one.tokens[: i + 1]) for i in np.flatnonzero(one.trained)]


@pytest.mark.parametrize("separator", ["\n", " ;; "])
def test_the_last_token_of_every_step_is_trained(separator: str) -> None:
    words = making.tokenizer()
    (one,), numbers, account = prepared([ROW], words, separator=separator)
    start = words.apply_chat_template(
        [{"role": "user", "content": "2+3"}],
        tokenize=False,
        add_generation_prompt=True,
        chat_template=Chat(words).template.source,
    )
    joined = [f"{separator}".join(["ab", "c", "def"][:k]) + separator for k in (1, 2, 3)]
    assert spelled(one, words) == [start + text for text in joined]
    assert numbers == [[1, 0.25, 0]] and account.targets == 3 and account.format == "steps"


def test_steps_that_a_merge_would_join_stay_apart() -> None:
    """Line break and d are one token of this tokenizer; between steps they must not be."""
    words = making.tokenizer([("Ċ", "d")])
    assert len(words("\nd", add_special_tokens=False)["input_ids"]) == 1
    (one,), _, _ = prepared([ROW], words, prompt_template="{prompt}")
    assert spelled(one, words) == ["2+3ab\n", "2+3ab\nc\n", "2+3ab\nc\ndef\n"]


def test_labels_are_lost_with_their_steps() -> None:
    """2+3ab⏎c⏎def⏎ is 11 bytes; of 9 the last step has no end."""
    words = making.tokenizer()
    (one,), numbers, account = prepared([ROW], words, prompt_template="{prompt}", max_length=9)
    assert (
        spelled(one, words) == ["2+3ab\n", "2+3ab\nc\n"]
        and numbers == [[1, 0.25]]
        and account.truncated == 1
    )
    with pytest.raises(DataError, match="more than half of the rows"):
        prepared([ROW], words, prompt_template="{prompt}", max_length=5)


def test_a_tokenizer_that_begins_texts_with_a_space_puts_none_between_steps() -> None:
    """As SentencePiece's do. The steps' text is what was given."""
    names = ["<end>", *"▁abcdef\n23+"]
    raw = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement="▁", prepend_scheme="always", split=False
    )
    raw.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always", split=False)
    raw.add_special_tokens(["<end>"])
    words = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>")
    (one,), _, _ = prepared([ROW], words, prompt_template="{prompt}")
    assert words.decode(one.tokens) == "2+3ab\nc\ndef\n"
    assert [len(text) for text in spelled(one, words)] == [6, 8, 12]


def test_the_prompt_ends_where_the_first_step_begins(tmp_path: Path) -> None:
    """2 bytes of prompt, and none; found again where the folder was renamed while it was open, and
    through two folders. Rows with one prompt are one cluster, those without one each their own.
    """
    words = making.tokenizer()
    rows = [{**ROW, "prompt": "ab"}, {**ROW, "prompt": "ab", "completions": ["x", "y", "z"]}]
    empty = [{**ROW, "prompt": ""}] * 2
    for name, some in (("a", rows), ("b", empty)):
        path = making.write(tmp_path / f"{name}.jsonl", some)
        chat = Chat(words, prompt_template="{prompt}")
        out = tmp_path / f"{name}-partial"
        prepare(Source(path=str(path)), Preparation(chat, 100, learned="steps"), out)
    trees = Trees(tmp_path / "a-partial", tmp_path / "b-partial")
    for name in "ab":
        (tmp_path / f"{name}-partial").rename(tmp_path / name)
    lengths = trees.prompt_lengths()
    assert lengths is not None and lengths.tolist() == [2, 2, 0, 0]
    first, second, third, fourth = Examples(trees, "steps", prompt_lengths=lengths).prompts()
    assert first == second and len({first, third, fourth}) == 3
    path = making.write(tmp_path / "c.jsonl", [{"prompt": "a", "completion": "b"}])
    prepare(Source(path=str(path)), Preparation(chat, 100), tmp_path / "c")
    assert Trees(tmp_path / "c").prompt_lengths() is None  # the mask shows it


def test_a_single_token_with_nothing_before_it_is_refused() -> None:
    """Nothing predicts it, so its label would be read at another step."""
    with pytest.raises(DataError, match="the first step is a single token with nothing before it"):
        prepared(
            [{**ROW, "prompt": "", "completions": ["a", "b", "c"]}], making.tokenizer([("a", "Ċ")])
        )


def test_other_rows_have_no_steps(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no steps with labels") as caught:
        prepared([{"prompt": "a", "completion": "b"}], making.tokenizer())
    assert "--method process" in caught.value.cure
    with pytest.raises(DataError, match="steps with labels, where a demonstration is wanted"):
        making.trees([ROW], making.tokenizer())
