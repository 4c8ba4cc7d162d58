"""Pairs of plain texts with a mark before every turn: where the prompt ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.core.errors import DataError
from posttrain.data.chat import Chat
from posttrain.data.formats import Format
from posttrain.data.prepare import Preparation, prepare
from posttrain.data.rows import Row
from posttrain.data.settings import Source
from posttrain.data.store import Trees
from posttrain.data.transcripts import marks, shared_prompt
from tests.making import tokenizer, write


def read(fields: dict[str, Any]) -> Any:
    form = Format()
    example = form.read(Row(fields, "a.jsonl:1"))
    return example.prompt, *example.answers, list(form.notes)


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [
        ("\n\nHuman: hi\n\nAssistant:", " Hello", " go away"),
        ("\n\nHuman: hi\n\nAssistant:", " I do not know it", " I do not care"),  # the same words
        ("\n\nHuman: hi\n\nAssistant:", " same", " same"),
        ("\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:", " d", " e"),
        ("### Human: hi\n### Assistant:", " Hello", " No"),
        ("### Instruction:\nhi\n\n### Response:", "\nHello", "\nNo"),
        ("Below is a task.\n\n### Instruction:\nhi\n\n### Response:", "\nHello", "\nNo"),
        ("User: hi\nAssistant:", " Hello", " Hello there"),
        ("Q: hi\nA:", " one", " two"),
        ("Question: 2 + 3?\nAnswer:", " Well, 5.\nAnswer: 5", " Well, 5.\nAnswer: 6"),
        ("A chat.\nUSER: hi ASSISTANT:", " Hello", " No"),
        (
            "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
            "Yes",
            "Yet",
        ),
        ("[INST] hi [/INST]", " Hello", " No"),
    ],
)
def test_the_prompt_ends_at_the_last_mark_that_both_share(
    prompt: str, chosen: str, rejected: str
) -> None:
    found = read({"chosen": prompt + chosen, "rejected": prompt + rejected})
    assert found[:3] == (prompt, chosen, rejected)
    assert "the prompt is inside chosen and rejected" in found[3][0]
    # the prompt may stand in a column of its own, too
    whole = {"prompt": prompt, "chosen": prompt + chosen, "rejected": prompt + rejected}
    assert read(whole)[:3] == (prompt, chosen, rejected)


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("I think that it is Lima.", "I think that it is Cusco."),
        ("Answer: 5", "Answer: 6"),
        ("He said:\nHuman: no\nAssistant: yes", "He said:\nHuman: no\nAssistant: never"),
    ],
)
def test_words_in_common_are_no_prompt(chosen: str, rejected: str) -> None:
    assert shared_prompt(chosen, rejected) == ""
    assert read({"chosen": chosen, "rejected": rejected})[:3] == ("", chosen, rejected)


def test_answers_that_are_dialogues_stay_answers() -> None:
    row = {"prompt": "Write a dialogue.", "chosen": "Q: a\nA: b", "rejected": "Q: a\nA: c"}
    assert read(row)[:3] == ("Write a dialogue.", "Q: a\nA: b", "Q: a\nA: c")


def test_pairs_whose_conversations_part_early_are_refused() -> None:
    start = "\n\nHuman: a\n\nAssistant:"
    later = {"chosen": f"{start} b\n\nHuman: c\n\nAssistant: d", "rejected": f"{start} e"}
    with pytest.raises(DataError, match="chosen goes on with 'Human:' after what both share"):
        read(later)
    other = {"chosen": f"{start} b", "rejected": "\n\nHuman: z\n\nAssistant: y"}
    with pytest.raises(DataError, match="do not begin with the same question"):
        read(other)


def test_texts_with_turns_are_said() -> None:
    (note,) = read({"text": "\n\nHuman: hi\n\nAssistant: Hello"})[-1]
    assert "'Human:'" in note and "the user's too" in note
    assert read({"text": "A human: being.\nAnswer: none."})[-1] == []


def test_a_system_prompt_may_stand_before_the_first_turn() -> None:
    assert [mark.text for mark in marks("System: be kind\nUser: hi\nAssistant: yo")] == [
        "User:",
        "Assistant:",
    ]
    assert marks("Be kind.\nUser: hi\nAssistant: yo") == []


def test_the_prompt_inside_both_and_beside_them_give_the_same_tokens(tmp_path: Path) -> None:
    start = "\n\nHuman: name a city\n\nAssistant:"
    inside = {"chosen": f"{start} Lima", "rejected": f"{start} I know none"}
    beside = {"prompt": start, "chosen": " Lima", "rejected": " I know none"}
    made = []
    for name, row in (("inside", inside), ("beside", beside)):
        path, folder = write(tmp_path / f"{name}.jsonl", [row]), tmp_path / name
        folder.mkdir()
        preparation = Preparation(Chat(tokenizer()), 200, learned="pairs")
        account = prepare(Source(path=str(path)), preparation, folder)
        made.append([[sequence.tokens.tolist() for sequence in tree] for tree in Trees(folder)])
        assert json.loads(json.dumps(account.json()))["notes"] == account.notes
    assert made[0] == made[1] and len(made[0][0]) == 2
