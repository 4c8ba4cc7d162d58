"""The columns of published data sets: what is read from which, what is known not to be text, and
text that nothing reads.
"""

from __future__ import annotations

from typing import Any

import pytest

from posttrain.core.errors import DataError
from posttrain.data.formats import Example, Format
from posttrain.data.rows import Row

LIMA = "Which city is the capital of Peru?"
PAIR = {"chosen": "It is Lima.", "rejected": "I would rather not say."}
SAID = [{"role": "user", "content": LIMA}]


def said(answer: str) -> dict[str, str]:
    return {"role": "assistant", "content": answer}


CHOSEN, REJECTED = said(PAIR["chosen"]), said(PAIR["rejected"])
WHOLE = {"chosen": [*SAID, CHOSEN], "rejected": [*SAID, REJECTED]}


def one(fields: dict[str, Any], name: str = "") -> tuple[Example, Format]:
    form = Format(name)
    return form.read(Row(fields, "a.jsonl:1")), form


def refusal(fields: dict[str, Any], name: str = "") -> DataError:
    with pytest.raises(DataError) as caught:
        one(fields, name)
    assert caught.value.where == "a.jsonl:1" and caught.value.cure
    return caught.value


# ------------------------------------------------------------------------------------- preferences

PROMPTS: dict[str, tuple[dict[str, Any], Any]] = {
    "orca_dpo_pairs": (
        {"system": "You are brief.", "question": LIMA, **PAIR},
        ({"role": "system", "content": "You are brief."}, *SAID),
    ),
    "an empty system prompt": ({"system": "", "question": LIMA, **PAIR}, LIMA),
    "query": ({"query": LIMA, **PAIR}, LIMA),
    "capitals": ({"Question": LIMA, "Chosen": PAIR["chosen"], "Rejected": "No."}, LIMA),
    "alpaca": ({"instruction": "Name it.", "input": "Peru", **PAIR}, "Name it.\nPeru"),
    "alpaca without input": ({"instruction": LIMA, "input": "", **PAIR}, LIMA),
    "alpaca with history": (
        {"instruction": LIMA, "history": [["Hi", "Hello"]], **PAIR},
        ({"role": "user", "content": "Hi"}, said("Hello"), *SAID),
    ),
    "LLaMA-Factory": (
        {
            "conversations": [{"from": "human", "value": LIMA}],
            "chosen": {"from": "gpt", "value": "It is Lima."},
            "rejected": {"from": "gpt", "value": "No."},
        },
        tuple(SAID),
    ),
    "messages": ({"messages": SAID, **PAIR}, tuple(SAID)),
    "messages up to the chosen answer": ({"messages": [*SAID, CHOSEN], **PAIR}, tuple(SAID)),
    "messages that are the chosen conversation": (
        {"messages": [*SAID, CHOSEN], **WHOLE},
        tuple(SAID),
    ),
    "UltraInteract": (
        {
            "task": "Coding",
            "dataset": "codecontest",
            "trajectory": [{"from": "user", "value": LIMA}],
            **PAIR,
            "id": "0",
            "parent_id": "1",
        },
        tuple(SAID),
    ),
    "UltraFeedback, binarized": (
        {
            "prompt": LIMA,
            "prompt_id": "1f0c",
            **WHOLE,
            "messages": WHOLE["chosen"],
            "score_chosen": 8.5,
            "score_rejected": 6.0,
        },
        tuple(SAID),
    ),
    "UltraFeedback, Argilla": (
        {
            "source": "evol_instruct",
            "instruction": LIMA,
            "chosen_response": "It is Lima.",
            "rejected_response": "No.",
            "chosen_avg_rating": 4.5,
            "chosen_model": "gpt-4",
        },
        LIMA,
    ),
    "distilabel orca": (
        {
            "system": "",
            "input": LIMA,
            **PAIR,
            "generations": ["It is Lima.", "Something that neither answer says."],
            "order": ["chosen", "rejected"],
            "labelling_model": "gpt-4-1106-preview",
            "labelling_prompt": [
                {"role": "system", "content": "You are a fair and helpful judge."}
            ],
            "raw_labelling_response": "9 and 7. The first answer is the better of the two.",
            "rating": [9.0, 7.0],
            "rationale": "The first answer is the better of the two.",
            "status": "unchanged",
            "original_chosen": "An older answer that was replaced.",
            "chosen_score": 9.0,
            "in_gsm8k_train": False,
        },
        LIMA,
    ),
    "Skywork": ({**WHOLE, "source": "magpie_pro_llama3.1"}, tuple(SAID)),
    "Tulu 3": ({"id": "x_1", "source": "off-policy mix", "prompt": LIMA, **WHOLE}, tuple(SAID)),
    "a prompt that differs in white space": ({"prompt": f"{LIMA}\n", **WHOLE}, tuple(SAID)),
    "OpenAI": (
        {
            "input": {"messages": SAID, "tools": [], "parallel_tool_calls": True},
            "preferred_output": [CHOSEN],
            "non_preferred_output": [REJECTED],
        },
        tuple(SAID),
    ),
}


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("format", ["", "preference"])
def test_the_prompt_of_published_pairs(name: str, format: str) -> None:
    fields, prompt = PROMPTS[name]
    example, form = one(fields, format)
    assert (example.prompt, form.name) == (prompt, "preference")
    texts = [
        answer if isinstance(answer, str) else answer[-1]["content"] for answer in example.answers
    ]
    assert texts[0] == "It is Lima." and len(texts) == 2 and texts[1] in (PAIR["rejected"], "No.")


@pytest.mark.parametrize(
    ("fields", "columns"),
    [
        ({"asked": LIMA, **PAIR}, ["asked"]),
        ({"asked": "capital of Peru", **PAIR}, ["asked"]),  # no sentence, but there is no prompt
        ({"asked": [LIMA], "id": 7, "source": "web", **PAIR}, ["asked"]),
        ({"asked": [{"speaker": "A", "text": LIMA}], **PAIR}, ["asked"]),
        ({"source": LIMA, **PAIR}, ["source"]),  # of a translation, say
        ({"title": "Capital of Peru?", "post": LIMA, **PAIR}, ["title", "post"]),
    ],
)
def test_a_pair_without_prompt_beside_text_is_refused(
    fields: dict[str, Any], columns: list[str]
) -> None:
    error = refusal(fields)
    assert error.what.startswith("chosen and rejected have no prompt, and the column")
    assert all(repr(column) in error.what for column in columns)
    assert f"FILE,prompt={columns[0]}" in error.cure and f",ignore={columns[-1]}" in error.cure


@pytest.mark.parametrize(
    "fields",
    [
        PAIR,
        {**PAIR, "id": "a7f-3", "source": "hh-rlhf", "category": "harm, legal", "lang": "en"},
        {**PAIR, "url": "https://example.org/what-is-it", "score_chosen": 3, "rating": "4 of 5"},
        {
            **PAIR,
            "meta": {"note": LIMA},
            "sha256": "ab cd ef gh",
            "created_at": "1 May 2024, 10 am.",
        },
        {**PAIR, "tags": ["south america", "capitals"], "model_name": "Some model of mine."},
    ],
)
def test_a_pair_without_prompt_may_have_data_beside_it(fields: dict[str, Any]) -> None:
    example, form = one(fields)
    assert example.prompt == "" and list(form.unread) == [c for c in fields if c not in PAIR]


def test_one_prompt_beside_another_is_refused_and_both_are_named() -> None:
    error = refusal({"question": LIMA, "query": "And of Chile", **PAIR})
    assert "'query'" in error.what and "prompt is taken from 'question'" in error.what
    assert one({"question": LIMA, "query": LIMA.lower(), **PAIR})[0].prompt == LIMA
    assert "'context'" in refusal({"question": LIMA, "context": "Andes", **PAIR}).what
    assert "begin otherwise than the prompt" in refusal({"prompt": "What of Chile?", **WHOLE}).what


def test_a_later_row_without_prompt_or_with_it_elsewhere_is_refused() -> None:
    form = Format()
    form.read(Row({"question": LIMA, **PAIR}, "a:1"))
    with pytest.raises(DataError, match="no prompt, and the rows before it have one"):
        form.read(Row({"question": None, **PAIR}, "a:2"))
    with pytest.raises(DataError, match=r"a:3: this row has no 'question'; .*preference \(a:1\)"):
        form.read(Row({"query": LIMA, **PAIR}, "a:3"))


# ---------------------------------------------------------------------------------- demonstrations

DEMONSTRATIONS: dict[str, tuple[dict[str, Any], str, str]] = {
    "question and answer": ({"question": LIMA, "answer": "Lima.", "final": "18"}, LIMA, "Lima."),
    "MetaMath": (
        {"type": "GSM_SV", "query": LIMA, "original_question": "It was another?", "response": "L"},
        LIMA,
        "L",
    ),
    "prompt and response": ({"prompt": LIMA, "response": "Lima.", "helpfulness": 4}, LIMA, "Lima."),
    "NuminaMath": (
        {
            "source": "olympiads",
            "problem": LIMA,
            "solution": "Lima.",
            "messages": [*SAID, said("Lima.")],
        },
        LIMA,
        "Lima.",
    ),
    "OpenOrca": ({"id": "1", "system_prompt": "", "question": LIMA, "response": "L"}, LIMA, "L"),
    "Aya": ({"inputs": LIMA, "targets": "Lima.", "language_code": "eng"}, LIMA, "Lima."),
    "dolly": (
        {"instruction": LIMA, "context": "", "response": "Lima.", "category": "open_qa"},
        LIMA,
        "Lima.",
    ),
    "dolly with context": (
        {"instruction": "Name it.", "context": "Peru", "response": "L", "category": "closed_qa"},
        "Name it.\nPeru",
        "L",
    ),
    "alpaca": (
        {
            "instruction": LIMA,
            "input": "",
            "output": "Lima.",
            "text": f"Below is an instruction.\n\n### Instruction:\n{LIMA}\n\n### Response:\nLima.",
        },
        LIMA,
        "Lima.",
    ),
    "no robots": (
        {"prompt": LIMA, "prompt_id": "7", "messages": [*SAID, said("L")], "category": "Open QA"},
        LIMA,
        "L",
    ),
    "Capybara": (
        {"source": "Airoboros", "conversation": [{"input": LIMA, "output": "Lima."}]},
        LIMA,
        "Lima.",
    ),
    "OpenHermes": (
        {
            "system_prompt": None,
            "title": "What is the capital of Peru, please?",
            "avatarUrl": "https://example.org/a b.png",
            "conversations": [{"from": "human", "value": LIMA}, {"from": "gpt", "value": "L"}],
        },
        LIMA,
        "L",
    ),
    "LangChain": (
        {"messages": [{"type": "human", "content": LIMA}, {"type": "ai", "content": "L"}]},
        LIMA,
        "L",
    ),
}


@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_the_columns_of_published_demonstrations(name: str) -> None:
    fields, question, answer = DEMONSTRATIONS[name]
    example, _ = one(fields)
    texts: list[str] = []
    for part in (example.prompt, *example.answers):
        texts += [part] if isinstance(part, str) else [message["content"] for message in part]
    assert [text for text in texts if text] == [question, answer]


@pytest.mark.parametrize(
    ("fields", "column"),
    [
        (
            {"Question": LIMA, "Complex_CoT": "Let me think about it.", "Response": "L"},
            "Complex_CoT",
        ),
        ({"prompt": LIMA, "completion": "L", "context": "Andes"}, "context"),
        (
            {"prompt": "Translate.", "completion": "Hola a todos.", "source": "Hello to all."},
            "source",
        ),
        ({"question": LIMA, "choices": ["Lima", "Quito"], "answer": "A"}, "choices"),
        ({"question": LIMA, "response": "Lima.", "answer": "It is a city, namely L."}, "answer"),
        ({"messages": [*SAID, said("L")], "reasoning": "Peru is a country."}, "reasoning"),
        ({"instruction": LIMA, "output": "L", "thought": "秘鲁的首都是利马。"}, "thought"),
        (
            {
                "text": "Write a function.",
                "code": "def add(one, two):\n    both = one + two\n    return both",
            },
            "code",
        ),
        ({"text": "A page of text.", "prompt": "Write a page about Peru, please."}, "prompt"),
    ],
)
def test_text_beside_a_demonstration_is_refused(fields: dict[str, Any], column: str) -> None:
    error = refusal(fields)
    assert f"the column {column!r} holds text that is not read" in error.what
    assert f"FILE,ignore={column}" in error.cure
    assert one({k: v for k, v in fields.items() if k != column})[0]


def test_who_reads_all_columns_is_not_stopped() -> None:
    row = Row({"prompt": LIMA, "completion": "L", "rubric": "Is it the right city?"}, "a:1")
    assert Format(all_read=True).read(row).answers == ("L",)
    with pytest.raises(DataError, match="'asked'"):  # no prompt is no prompt
        Format(all_read=True).read(Row({"asked": LIMA, **PAIR}, "a:1"))


def test_an_answer_beside_a_prompt_is_the_scorers_where_prompts_are_wanted() -> None:
    form = Format(prompts=True)
    for fields in ({"prompt": LIMA, "answer": "Lima."}, {"prompt": LIMA}):
        assert form.read(Row(fields, "a:1")).answers == ()
    assert Format(prompts=True).read(Row({"question": LIMA, "answer": "L"}, "a:1")).answers == (
        "L",
    )


def test_a_message_a_row_is_no_text() -> None:
    row = {"message_id": "1", "parent_id": None, "role": "prompter", "text": LIMA, "lang": "en"}
    assert "one message of a conversation" in refusal(row).what


# ------------------------------------------------------------------------------------------ labels


@pytest.mark.parametrize(
    ("label", "good"),
    [("up", True), ("Thumbs_Down", False), ("good", True), ("bad", False), (1, True), ("0", False)],
)
def test_labels_in_words(label: Any, good: bool) -> None:
    for fields in (
        {"prompt": LIMA, "completion": "L", "label": label},
        {"question": LIMA, "answer": "L", "label": label},
        {"messages": [*SAID, said("L")], "label": label},
        {"conversations": [*SAID, said("L")], "kto_tag": label},
        {"instruction": LIMA, "output": "L", "label": label},
    ):
        assert one(fields)[0].label is good


# ----------------------------------------------------------------------------- what messages train


@pytest.mark.parametrize(
    "key", ["weight", "train", "training", "train_on_turn", "loss", "loss_mask"]
)
def test_flags_of_messages_are_honoured(key: str) -> None:
    first, last = said("a"), said("b")
    for no, yes in ((0, 1), (False, True), (0.0, 1.0)):
        turns = [{**SAID[0], key: no}, {**first, key: no}, *SAID, {**last, key: yes}]
        example, _ = one({"messages": turns})
        assert example.answers == ((*SAID, {**first, "weight": 0}, *SAID, {**last, "weight": 1}),)
    assert f"a {key} that is not 0 or 1" in refusal({"messages": [*SAID, {**last, key: 0.5}]}).what
    assert "only the assistant's" in refusal({"messages": [{**SAID[0], key: 1}, last]}).what


@pytest.mark.parametrize(
    "key", ["mask", "train_detail", "training_detail", "is_masked", "no_loss", "loss_weight"]
)
def test_flags_that_are_not_known_are_named(key: str) -> None:
    error = refusal({"messages": [*SAID, {**said("a"), key: [{"begin_offset": 0}]}]})
    assert f"message 2 of messages has the field {key!r}" in error.what and '"weight"' in error.cure


def test_flags_that_contradict_each_other_are_named() -> None:
    row = {"messages": [*SAID, {**said("a"), "weight": 1, "train": False}]}
    assert "learned by one of weight and train, and not by another" in refusal(row).what
