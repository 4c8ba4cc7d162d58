"""Conversations: what each model sees, and what is saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrain.core.errors import ConfigError
from posttrain.data.formats import Format
from posttrain.data.rows import Row
from posttrain.serve.conversation import Answer, Conversation, Turn


def said(text: str, *, finished: bool = True) -> Answer:
    return Answer(text, 3, 0.1, finished)


TALK = Conversation(
    "Be kind.", [Turn("One?", [said("1"), said("eins")]), Turn("Two?", [said("2", finished=False)])]
)


def test_every_model_sees_the_questions_and_its_own_answers() -> None:
    ours = [
        ("system", "Be kind."),
        ("user", "One?"),
        ("assistant", "1"),
        ("user", "Two?"),
        ("assistant", "2"),
    ]
    theirs = [("system", "Be kind."), ("user", "One?"), ("assistant", "eins"), ("user", "Two?")]
    assert [[tuple(m.values()) for m in TALK.messages(k)] for k in (0, 1)] == [ours, theirs]


def test_what_is_saved_can_be_trained_on(tmp_path: Path) -> None:
    """Rows are added to those that are there; an answer that was cut short, or is empty, is not
    learned.
    """
    path = tmp_path / "new" / "chats.jsonl"
    assert TALK.save(path) == 2
    path.write_text(path.read_text().rstrip("\n"))
    both = Conversation("", [Turn("Hm?", [said("ä"), said("")])])
    assert both.save(path) == 1  # from the second model there is nothing to learn
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    weights = [
        [m.get("weight") for m in row["messages"] if m["role"] == "assistant"] for row in rows
    ]
    assert weights == [[None, 0], [None], [None]]
    assert rows[2]["messages"] == [
        {"role": "user", "content": "Hm?"},
        {"role": "assistant", "content": "ä"},
    ]
    form = Format()
    for i, row in enumerate(rows):
        assert form.read(Row(row, f"chats.jsonl:{i + 1}")).answers[0] == tuple(row["messages"])
    assert form.name == "messages"


@pytest.mark.parametrize(
    ("talk", "name", "what"),
    [
        (Conversation(), "a.jsonl", "no finished answer"),
        (
            Conversation("", [Turn("Hm?", [said("half", finished=False)])]),
            "a.jsonl",
            "no finished answer",
        ),
        (TALK, "a.txt", "not a .jsonl file"),
        (TALK, "folder.jsonl", "cannot write"),
    ],
)
def test_what_cannot_be_saved(talk: Conversation, name: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(ConfigError, match=what):
        talk.save(tmp_path / name)
