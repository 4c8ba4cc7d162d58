"""Default chat templates: for tokenizers with ChatML's tokens, with one token a role, and with none
of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from posttrain.core.errors import DataError
from posttrain.data.chat import Chat
from posttrain.data.templates.default import default_template
from tests.data.chats import answer, call, encode, pairs, runs, turns, user, words
from tests.making import END
from tests.making import tokenizer as bare

CHATML, ROLES, PLAIN = words(), words(special=["<|user|>", "<|assistant|>", "<|system|>"]), bare()
TOKENIZERS = {"chatml": CHATML, "roles": ROLES, "plain": PLAIN}
SYSTEM = {"role": "system", "content": "Be kind."}
TOOLS = tuple(
    {
        "type": "function",
        "function": {"name": name, "parameters": {"type": "object", "properties": {}}},
    }
    for name in ("look", "go")
)
LISTED = (
    'Functions you may call, one JSON schema a line:\n{"type": "function", "function": {"name":'
    ' "look", "parameters": {"type": "object", "properties": {}}}}\n{"type": "function",'
    ' "function": {"name": "go", "parameters": {"type": "object", "properties": {}}}}\nTo call one,'
    ' write <tool_call>{"name": …, "arguments": {…}}</tool_call>.'
)
LONG = [
    SYSTEM,
    user("Q1"),
    answer("", tool_calls=[call("look", at="é")]),
    {"role": "tool", "content": "7"},
    answer("A1", reasoning_content="R1"),
    user("Q2"),
    answer("So:", tool_calls=[call("look", n=1), call("go")]),
    {"role": "tool", "content": "8"},
    {"role": "tool", "content": "9"},
    answer("A2", reasoning_content="R2"),
]


def test_chatml() -> None:
    head = "<|im_start|>assistant\n"
    first = (
        "<|im_start|>system\nBe "
        f"kind.\n\n{LISTED}<|im_end|>\n<|im_start|>user\nQ1<|im_end|>\n{head}"
    )
    (one,) = encode(CHATML, turns(CHATML, None, LONG, TOOLS))
    assert runs(CHATML, one) == [
        first,
        '<tool_call>{"name": "look", "arguments": {"at": "é"}}</tool_call><|im_end|>',
        f"\n<|im_start|>user\n<tool_response>\n7\n</tool_response><|im_end|>\n{head}",
        "<think>\nR1\n</think>\n\nA1<|im_end|>",
        f"\n<|im_start|>user\nQ2<|im_end|>\n{head}",
        (
            'So:\n<tool_call>{"name": "look", "arguments": {"n": 1}}</tool_call>\n'
            '<tool_call>{"name": "go", "arguments": {}}</tool_call><|im_end|>'
        ),
        (
            "\n<|im_start|>user\n<tool_response>\n8\n</tool_response><|im_end|>\n<|im_start|>user\n<tool_response>\n9\n</tool_response>"
            f"<|im_end|>\n{head}"
        ),
        "<think>\nR2\n</think>\n\nA2<|im_end|>",
    ]


def test_role_tokens() -> None:
    """The end token of this tokenizer is <|end|>, which ends every turn."""
    assert pairs(
        turns(ROLES, None, [SYSTEM, user("Q1"), answer("A1"), user("Q2"), answer("A2")])
    ) == [
        ("<|system|>\nBe kind.<|end|>\n<|user|>\nQ1<|end|>\n<|assistant|>\n", "A1<|end|>"),
        (
            (
                "<|system|>\nBe "
                "kind.<|end|>\n<|user|>\nQ1<|end|>\n<|assistant|>\nA1<|end|>\n"
                "<|user|>\nQ2<|end|>\n"
                "<|assistant|>\n"
            ),
            "A2<|end|>",
        ),
    ]
    # no token for the system: its text stands in a user turn
    two = words(special=["<|user|>", "<|assistant|>"])
    assert (
        turns(two, None, [SYSTEM, user("Q"), answer("A")])[0].before
        == "<|user|>\nBe kind.<|end|>\n<|user|>\nQ<|end|>\n<|assistant|>\n"
    )


def test_role_tokens_without_an_end_of_turn() -> None:
    tokenizer = named("</s>", ["<|user|>", "<|assistant|>", "<|system|>"])
    assert pairs(
        turns(tokenizer, None, [SYSTEM, user("Q"), answer("A"), user("R"), answer("B")])
    ) == [
        ("<|system|>\nBe kind.\n<|user|>\nQ\n<|assistant|>\n", "A</s>"),
        (
            "<|system|>\nBe kind.\n<|user|>\nQ\n<|assistant|>\nA</s>\n<|user|>\nR\n<|assistant|>\n",
            "B</s>",
        ),
    ]


def test_plain() -> None:
    (one,) = encode(
        PLAIN, turns(PLAIN, None, [user("Q1"), answer("A1"), user("Q2"), answer("A2")], TOOLS)
    )
    assert runs(PLAIN, one) == [
        f"### System:\n{LISTED}\n\n### User:\nQ1\n\n### Assistant:\n",
        f"A1{END}",
        "\n\n### User:\nQ2\n\n### Assistant:\n",
        f"A2{END}",
    ]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_history_is_never_rewritten(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    (one,) = encode(tokenizer, turns(tokenizer, None, LONG, TOOLS))
    trained = runs(tokenizer, one)[1::2]
    assert len(trained) == 4 and all(text.endswith(Chat(tokenizer).stop) for text in trained)
    for part in ("R1", "A1", "R2", "A2", '"at": "é"', "So:"):
        assert sum(part in text for text in trained) == 1


@pytest.mark.parametrize("name", TOKENIZERS)
def test_no_tools_no_listing(name: str) -> None:
    (first,) = turns(TOKENIZERS[name], None, [SYSTEM, user("Q"), answer("A")])
    assert "Functions" not in first.before and "tool_call" not in first.before
    ((before, _),) = pairs(turns(TOKENIZERS[name], None, [user("Q"), answer("A")]))
    assert "ystem" not in before


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_developer_is_the_system(name: str) -> None:
    developer = [{**SYSTEM, "role": "developer"}, user("Q"), answer("A")]
    assert pairs(turns(TOKENIZERS[name], None, developer)) == pairs(
        turns(TOKENIZERS[name], None, [SYSTEM, *developer[1:]])
    )


def test_a_role_that_it_does_not_know_is_an_error() -> None:
    with pytest.raises(DataError, match="unknown role narrator"):
        turns(PLAIN, None, [user("Q"), {"role": "narrator", "content": "Meanwhile"}, answer("A")])


def named(eos: str, special: list[str], bos: str | None = None) -> Any:
    """A byte-level tokenizer with an end token of any name; with a begin token, it puts that before
    every text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(
        models.BPE(
            vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))},
            merges=[],
        )
    )
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([eos, *special, *([bos] if bos else [])])
    if bos:
        raw.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], special_tokens=[(bos, raw.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=eos, bos_token=bos)


@pytest.mark.parametrize(
    ("eos", "bos"),
    [
        ("<|END_OF_TURN_TOKEN|>", "<BOS_TOKEN>"),
        ("<END>", "<BOS>"),
        ("it's", "\\n"),
        ('a"b', "{{ x }}"),
        ("<｜end▁of▁sentence｜>", "<|OPEN_USER|>"),
        ("[EOS]", None),
    ],
)
def test_tokens_of_any_name(eos: str, bos: str | None) -> None:
    tokenizer = named(eos, [], bos)
    assert pairs(turns(tokenizer, None, [user("Q"), answer("A")])) == [
        (f"{bos or ''}### User:\nQ\n\n### Assistant:\n", f"A{eos}")
    ]
    (one,) = encode(tokenizer, turns(tokenizer, None, [user("Q"), answer("A")]))
    assert one.ids[-1] == tokenizer.eos_token_id and one.ids.count(tokenizer.bos_token_id) == bool(
        bos
    )


@pytest.mark.parametrize("name", TOKENIZERS)
def test_it_is_saved_with_the_model_and_rendered_the_same_after_reload(
    name: str, tmp_path: Path
) -> None:
    tokenizer = {
        "chatml": words,
        "roles": lambda: words(special=["<|user|>", "<|assistant|>"]),
        "plain": bare,
    }[name]()
    chat = Chat(tokenizer)
    assert chat.template.origin == "default"
    found = chat.turns(given := example_of(LONG), given.answers[0])
    tokenizer.chat_template = chat.template.source
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    messages = [{k: v for k, v in m.items() if k != "weight"} for m in LONG]
    for turn in found:
        assert turn.before == again.apply_chat_template(
            messages[: turn.number - 1],
            tools=list(TOOLS),
            add_generation_prompt=True,
            tokenize=False,
        )
    reloaded = Chat(again)
    assert reloaded.template.origin == "the model's own" and reloaded.stop == chat.stop
    assert reloaded.turns(given, given.answers[0]) == found


def example_of(messages: list[dict[str, Any]]) -> Any:
    from tests.data.chats import example

    return example(messages, TOOLS)


def test_the_text_is_jinja_that_names_what_it_knows() -> None:
    assert (
        "OPEN_" not in (text := default_template(CHATML))
        and "END" not in text
        and "BOS" not in text
    )
    assert text.startswith('{{- "" }}')
