"""What is shown and what is trained, turn by turn, by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from posttrain.core.errors import DataError, ModelError
from posttrain.data.chat import Chat
from posttrain.data.templates.template import Template
from tests.data.chats import (
    CHATML,
    TOOL,
    answer,
    call,
    encode,
    example,
    pairs,
    runs,
    sequences,
    shared_template,
    turns,
    user,
    words,
)

PLAIN = words()


# -------------------------------------------------------------------------------- thinking, by hand

THOUGHT = [
    user("Q1"),
    answer("A1", reasoning_content="R1"),
    user("Q2"),
    answer("A2", reasoning_content="R2"),
]


def thinking(name: str, **kwargs: Any) -> list[tuple[str, str]]:
    template, tokenizer = shared_template(name)
    return pairs(turns(tokenizer, template, THOUGHT, kwargs=kwargs))


def test_qwen3() -> None:
    ask, think = (
        "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
        "<think>\n{}\n</think>\n\n{}<|im_end|>",
    )
    assert (
        thinking("llamacpp/Qwen-Qwen3-0.6B")
        == thinking("trl/qwen3")
        == [
            (ask.format("Q1"), think.format("R1", "A1")),
            (ask.format("Q1") + "A1<|im_end|>\n" + ask.format("Q2"), think.format("R2", "A2")),
        ]
    )
    template, tokenizer = shared_template("llamacpp/Qwen-Qwen3-0.6B")
    plain = [user("Q1"), answer("A1"), user("Q2"), answer("A2")]
    closed = "<think>\n\n</think>\n\n"
    assert pairs(turns(tokenizer, template, plain, kwargs={"enable_thinking": False})) == [
        (ask.format("Q1") + closed, "A1<|im_end|>"),
        (ask.format("Q1") + "A1<|im_end|>\n" + ask.format("Q2") + closed, "A2<|im_end|>"),
    ]
    with pytest.raises(
        DataError, match="prompts for an answer without reasoning, and this one has some"
    ):
        thinking("llamacpp/Qwen-Qwen3-0.6B", enable_thinking=False)


def test_deepseek_r1() -> None:
    assert (
        thinking("llamacpp/deepseek-ai-DeepSeek-R1-Distill-Llama-8B")
        == thinking("trl/deepseekv3")
        == [
            ("<s><｜User｜>Q1<｜Assistant｜><think>\n", "R1\n</think>\n\nA1<｜end▁of▁sentence｜>"),
            (
                "<s><｜User｜>Q1<｜Assistant｜>A1<｜end▁of▁sentence｜><｜User｜>Q2<｜Assistant｜><think>\n",
                "R2\n</think>\n\nA2<｜end▁of▁sentence｜>",
            ),
        ]
    )


def test_qwq() -> None:
    ask = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    assert thinking("llamacpp/Qwen-QwQ-32B", enable_thinking=True) == [
        (ask.format("Q1") + "<think>\n", "R1\n</think>\n\nA1<|im_end|>"),
        (
            ask.format("Q1") + "A1<|im_end|>\n" + ask.format("Q2") + "<think>\n",
            "R2\n</think>\n\nA2<|im_end|>",
        ),
    ]


def test_gpt_oss() -> None:
    system = (
        "<|start|>system<|message|>You are ChatGPT, a large language model trained by "
        "OpenAI.\nKnowledge cutoff: 2024-06\nCurrent date: 2026-01-01\n\nReasoning: medium\n\n# "
        "Valid channels: analysis, commentary, final. Channel must be included for every "
        "message.<|end|>"
    )
    ask = "<|start|>user<|message|>{}<|end|><|start|>assistant"
    think = (
        "<|channel|>analysis<|message|>{}<|end|>"
        "<|start|>assistant<|channel|>final<|message|>{}<|return|>"
    )
    assert (
        thinking("trl/gptoss")
        == thinking("llamacpp/openai-gpt-oss-120b")
        == [
            (system + ask.format("Q1"), think.format("R1", "A1")),
            (
                system
                + ask.format("Q1")
                + "<|channel|>final<|message|>A1<|end|>"
                + ask.format("Q2"),
                think.format("R2", "A2"),
            ),
        ]
    )


def test_gpt_oss_thinks_before_it_calls_and_again_before_it_answers() -> None:
    """Once the answer is there, its template drops the thought that led to the call: what stands
    before it is another, too.
    """
    template, tokenizer = shared_template("trl/gptoss")
    messages = [
        user("Q"),
        answer("", reasoning_content="R1", tool_calls=[call(at="Oslo")]),
        {"role": "tool", "name": "look", "tool_call_id": "abcdefghi", "content": "7"},
    ]
    calls = (
        "<|channel|>analysis<|message|>R1<|end|><|start|>assistant"
        ' to=functions.look<|channel|>commentary json<|message|>{"at": "Oslo"}<|call|>'
    )
    final = "<|channel|>final<|message|>A<|return|>"
    for last, written in (
        (answer("A"), final),
        (
            answer("A", reasoning_content="R2"),
            "<|channel|>analysis<|message|>R2<|end|><|start|>assistant" + final,
        ),
    ):
        first, second = turns(tokenizer, template, [*messages, last], (TOOL,))
        assert (first.after, second.after) == (calls, written)
        assert (
            second.before == first.before + calls + "<|start|>functions.look"
            ' to=assistant<|channel|>commentary<|message|>"7"<|end|><|start|>assistant'
        )
        (one,) = encode(tokenizer, [first, second])
        assert runs(tokenizer, one)[1::2] == [calls, written]


def test_command_r7b_writes_the_start_of_its_response() -> None:
    """History shows the response between tokens of its own; the prompt ends with thinking that is
    over.
    """
    template, tokenizer = shared_template("llamacpp/CohereForAI-c4ai-command-r7b-12-2024-tool_use")
    first, second = turns(tokenizer, template, [user("Q1"), answer("A1"), user("Q2"), answer("A2")])
    assert first.before.endswith("<|CHATBOT_TOKEN|><|START_THINKING|><|END_THINKING|>")
    assert first.after == "<|START_RESPONSE|>A1<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"
    assert (
        "<|CHATBOT_TOKEN|><|START_RESPONSE|>A1<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"
        in second.before
    )


def test_deepseek_v3_does_not_close_its_thinking_twice() -> None:
    template, tokenizer = shared_template("llamacpp/deepseek-ai-DeepSeek-V3.2")
    (one,) = turns(
        tokenizer, template, [user("Q"), answer("", tool_calls=[call(at="Oslo")])], (TOOL,)
    )
    assert one.before.endswith("<｜Assistant｜><think></think>")
    assert one.after.startswith("\n\n<｜DSML｜function_calls>\n")


def test_kimi_thinks_where_its_template_shows_an_empty_thought() -> None:
    template, tokenizer = shared_template("llamacpp/Kimi-K2-Thinking")
    inline = [user("Q1"), answer("<think>R1</think>A1"), user("Q2"), answer("<think>R2</think>A2")]
    for messages in (THOUGHT, inline):
        found = turns(tokenizer, template, messages)
        assert [t.after for t in found] == [
            "<think>R1</think>A1<|im_end|>",
            "<think>R2</think>A2<|im_end|>",
        ]
        assert found[1].before.count("R1") == (messages is inline)


def test_what_a_template_shows_of_a_call_is_trained_or_the_row_refused() -> None:
    """Llama 3.1 drops what is said beside a call."""
    template, tokenizer = shared_template("llamacpp/meta-llama-Llama-3.1-8B-Instruct")
    silent = [user("Q"), answer("", tool_calls=[call(at="Oslo")])]
    assert (
        turns(tokenizer, template, silent, (TOOL,))[0].after
        == '{"name": "look", "parameters": {"at": "Oslo"}}<|eot_id|>'
    )
    with pytest.raises(DataError, match="does not show this tool call, and what is said with it"):
        turns(
            tokenizer,
            template,
            [user("Q"), answer("Let me see.", tool_calls=[call(at="Oslo")])],
            (TOOL,),
        )


# ------------------------------------------------------------------------- small templates, by hand

R1 = (
    "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>{{ m.content }}<think>"[:-7]
    + "{% else %}<|im_start|>A:{{ m.content.split('</think>')[-1].strip() }}<|im_end|>{% endif %}{%"
    " endfor %}{% if add_generation_prompt %}<|im_start|>A:<think>\n{% endif %}"
)
CLOSED = R1.replace("A:<think>\n", "A:<think>\n\n</think>\n\n")


def test_reasoning_is_written_after_an_opened_tag_and_gone_from_history() -> None:
    inline = [
        user("Q1"),
        answer("<think>\nR1\n</think>\n\nA1"),
        user("Q2"),
        answer("R2\n</think>\n\nA2"),
    ]
    for messages in (THOUGHT, inline):
        assert pairs(turns(PLAIN, R1, messages)) == [
            ("<|im_start|>Q1<|im_start|>A:<think>\n", "R1\n</think>\n\nA1<|im_end|>"),
            (
                "<|im_start|>Q1<|im_start|>A:A1<|im_end|><|im_start|>Q2<|im_start|>A:<think>\n",
                "R2\n</think>\n\nA2<|im_end|>",
            ),
        ]
    with pytest.raises(
        DataError, match="begins every answer with <think>, and this one has no reasoning"
    ) as caught:
        turns(PLAIN, R1, [user("Q"), answer("A")])
    assert "enable_thinking=false" in caught.value.cure


def test_a_thought_before_a_call_is_written_once() -> None:
    """The prompt opens the thought with a line break that history does not have."""
    template = (
        "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}{% for m in messages "
        "%}<|im_start|>{% if m.role == 'assistant' %}A:<think>{{ m.reasoning_content }}</think>{% "
        "endif %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ "
        "c.function.arguments | tojson }}{% endfor %}<|im_end|>{% endfor %}{% if "
        "add_generation_prompt %}<|im_start|>A:<think>\n{% endif %}"
    )
    for last, said in (
        (answer("", tool_calls=[call(at="Oslo")]), 'look{"at": "Oslo"}'),
        (answer("A"), "A"),
    ):
        found = turns(PLAIN, template, [user("Q"), {**last, "reasoning_content": "R1"}], (TOOL,))
        assert pairs(found) == [
            (
                "look<|im_start|>Q<|im_end|><|im_start|>A:<think>\n",
                f"R1\n</think>\n\n{said}<|im_end|>",
            )
        ]


def test_thinking_that_is_over_is_not_begun_again() -> None:
    assert pairs(turns(PLAIN, CLOSED, [user("Q1"), answer("A1")])) == [
        ("<|im_start|>Q1<|im_start|>A:<think>\n\n</think>\n\n", "A1<|im_end|>")
    ]
    for content in ("<think>\n\n</think>\n\nA1", "<think></think>A1"):  # no thought, written out
        assert turns(PLAIN, CLOSED, [user("Q1"), answer(content)])[0].after == "A1<|im_end|>"
    for message in (answer("A1", reasoning_content="R1"), answer("<think>R1</think>A1")):
        with pytest.raises(DataError, match="prompts for an answer without reasoning") as caught:
            turns(PLAIN, CLOSED, [user("Q1"), message])
        assert "enable_thinking=true" in caught.value.cure


def test_reasoning_that_a_template_does_not_know_is_an_error_even_where_the_answer_repeats_it() -> (
    None
):
    for content in ("A", "So it is R1."):
        with pytest.raises(DataError, match="drops the reasoning"):
            turns(PLAIN, CHATML, [user("Q"), answer(content, reasoning_content="R1")])


def test_two_calls_of_one_function_are_both_shown() -> None:
    first = (
        "{% for m in messages %}<|im_start|>{{ m.content }}{% for c in m.tool_calls or [] %}ONLY{{ "
        "c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}<|im_end|>{% endfor %}{% "
        "for t in tools or [] %}{{ t.function.name }}{% endfor %}{% if add_generation_prompt "
        "%}<|im_start|>{% endif %}"
    )
    tools_last = [user("Q"), answer("", tool_calls=[call(at="Oslo"), call(at="Rome")])]
    both = "{% for m in messages %}" + first.split("{% for m in messages %}")[1].replace("ONLY", "")
    both = (
        "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}"
        + both.split("{% for t in")[0]
        + "{% if add_generation_prompt %}<|im_start|>{% endif %}"
    )
    assert pairs(turns(PLAIN, both, tools_last, (TOOL,))) == [
        (
            "look<|im_start|>Q<|im_end|><|im_start|>",
            'look{"at": "Oslo"}look{"at": "Rome"}<|im_end|>',
        )
    ]
    one = both.replace("in m.tool_calls or []", "in (m.tool_calls or [])[:1]")
    with pytest.raises(DataError, match="does not show this tool call"):
        turns(PLAIN, one, tools_last, (TOOL,))


def test_arguments_are_json_where_the_template_would_print_python() -> None:
    template = (
        "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}{% for m in messages "
        "%}<|im_start|>{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ "
        "c.function.arguments }}{% endfor %}<|im_end|>{% endfor %}{% if add_generation_prompt "
        "%}<|im_start|>{% endif %}"
    )
    (one,) = turns(
        PLAIN, template, [user("Q"), answer("", tool_calls=[call(at="Oslo", deep=True)])], (TOOL,)
    )
    assert one.after == 'look{"at": "Oslo", "deep": true}<|im_end|>'


def test_a_dropped_message_is_an_error_even_where_its_longest_word_stands_elsewhere() -> None:
    last = (
        "{{ messages[-1].content }}<|im_end|>{% if add_generation_prompt %}<|im_start|>{% endif %}"
    )
    last = (
        "{% if messages[-1].role == 'assistant' and messages|length > 1 %}{{ messages[-2].content "
        "}}<|im_end|><|im_start|>{% endif %}" + last
    )
    good = [user("what is elephants"), answer("grey")]
    assert turns(PLAIN, last, good)[0].before == "what is elephants<|im_end|><|im_start|>"
    with pytest.raises(DataError, match=r"drops the user message 'like elephants\?'"):
        turns(PLAIN, last, [user("like elephants?"), answer("yes", weight=0), *good])


def test_the_end_token_that_follows_at_once_is_the_end() -> None:
    """Command-R ends a response with a token of its own, and the turn with another."""
    tokenizer = words(special=["<resp>", "</resp>", "<|im_start|>"])
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}:<resp>{{ m.content }}</resp><|end|>\n{% "
        "endfor %}{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
    )
    assert Chat(tokenizer, template=template).stop == "<|end|>"
    assert turns(tokenizer, template, [user("Q"), answer("A")])[0].after == "<resp>A</resp><|end|>"
    # Phi-3.5: the end of the turn, then of the text
    apart = template.replace("</resp><|end|>", "</resp>\n<|end|>")
    assert Chat(tokenizer, template=apart).stop == "</resp>"
    assert turns(tokenizer, apart, [user("Q"), answer("A")])[0].after == "<resp>A</resp>"


def test_a_template_that_always_prompts_does_not_teach_its_prompt() -> None:
    always = CHATML.replace("{% if add_generation_prompt %}", "").replace("{% endif %}", "{{ '' }}")
    assert pairs(turns(PLAIN, always, [user("Q"), answer("A")])) == [
        ("<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n", "A<|im_end|>")
    ]


def test_a_header_that_history_adds_is_written_by_the_model() -> None:
    header = "\n{% if message.role == 'assistant' %}all\n{% endif %}{{ message.content }}"
    template = CHATML.replace("\n{{ message.content }}", header)
    assert turns(PLAIN, template, [user("Q"), answer("A")])[0].after == "all\nA<|im_end|>"
    # the prompt has a line more than history
    spaced = template.replace("assistant\n{% endif %}", "assistant\n\n{% endif %}")
    assert turns(PLAIN, spaced, [user("Q"), answer("A")])[0].after == "all\nA<|im_end|>"


def test_words_in_the_mouth() -> None:
    template = CHATML.replace(
        "<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\nSteps: {% endif %}"
    )
    assert turns(PLAIN, template, [user("Q"), answer("Steps: A")])[0].after == "A<|im_end|>"
    with pytest.raises(DataError, match="begins every answer with 'Steps:', and this one does not"):
        turns(PLAIN, template, [user("Steps: what are they?"), answer("A")])


def test_a_template_without_an_end_token_learns_the_tokenizers() -> None:
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    assert pairs(turns(PLAIN, template, [user("Q"), answer("A"), user("R"), answer("B")])) == [
        ("user: Q\n\nassistant:", " A<|end|>"),
        ("user: Q\n\nassistant: A\n\nuser: R\n\nassistant:", " B<|end|>"),
    ]
    named = template.replace("{{ m.content }}\n\n", "{{ m.content }}[STOP]")
    chat = Chat(PLAIN, template=named)
    assert (
        chat.stop == "<|end|>" and "ends answers with '[STOP]', which is no token" in chat.notes[0]
    )
    assert turns(PLAIN, named, [user("Q"), answer("A")])[0].after == " A<|end|>"


def test_a_template_that_cannot_render_is_an_error_of_the_model() -> None:
    for template in ("{{ missing.role }}", "{{ messages[0].content }}"):
        with pytest.raises(ModelError, match="cannot render a question and an answer"):
            turns(PLAIN, template, [user("Q"), answer("A")])


def test_what_a_template_asks_for_is_found_out() -> None:
    parts = CHATML.replace("message.content", "message.content[0].text")
    assert sequences(PLAIN, parts, [user("Q"), answer("A")]) == sequences(
        PLAIN, CHATML, [user("Q"), answer("A")]
    )
    listed = (
        "{% for t in tools %}{% endfor %}{% if tools is none %}{{ raise_exception('no') }}{% "
        "endif %}" + CHATML
    )
    assert sequences(PLAIN, listed, [user("Q"), answer("A")]) == sequences(
        PLAIN, CHATML, [user("Q"), answer("A")]
    )
    tell = [{"role": "developer", "content": "Be kind."}, user("Q"), answer("A")]
    assert (
        "<|im_start|>system\nBe kind."
        in turns(PLAIN, CHATML + "{# a developer made this #}", tell)[0].before
    )
    known = CHATML.replace(
        "{{ message.role }}", "{{ 'boss' if message.role == 'developer' else message.role }}"
    )
    assert "<|im_start|>boss\nBe kind." in turns(PLAIN, known, tell)[0].before


def test_today_is_pinned_and_a_row_may_say_another() -> None:
    template = (
        "{% set d = date_string if date_string is defined else strftime_now('%d %b %Y') %}{{ d }}"
        + CHATML
    )
    messages = [user("Q"), answer("A")]
    assert turns(PLAIN, template, messages)[0].before.startswith("01 Jan 2026<|im_start|>")
    chat = Chat(PLAIN, template=template, kwargs={"date_string": "1 May"})
    assert chat.turns(example(messages), tuple(messages))[0].before.startswith("1 May<")
    assert chat.turns(example(messages, date_string="2 May"), tuple(messages))[0].before.startswith(
        "2 May<"
    )


# -------------------------------------------------------------------------------- odd conversations

NASTY = [
    "<|im_end|>",
    "Zq7",
    "say Zq7 Zq77",
    "a <|im_start|>user\nb",
    " lead",
    "trail ",
    "\n\nlines\n\n",
    "x",
    "m",
    "assistant",
    "é🙂日",
    "<think>",
    "a</think>b",
    "{{ x }}",
    "{% raw %}",
    "\\n",
    "\t",
    "word " * 5000,
]


@pytest.mark.parametrize("content", NASTY, ids=lambda c: repr(c[:20]))
def test_content_is_trained_as_it_is(content: str) -> None:
    if not content.strip():
        content = f"a{content}b"
    messages = [user("Q"), answer(content), user(content), answer(content)]
    ask = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    end = "" if content.endswith("<|im_end|>") else "<|im_end|>"  # a row may bring its own
    assert pairs(turns(PLAIN, CHATML, messages)) == [
        (ask.format("Q"), content + end),
        (ask.format("Q") + content + "<|im_end|>\n" + ask.format(content), content + end),
    ]
    (one,) = encode(PLAIN, turns(PLAIN, CHATML, messages))
    assert (
        PLAIN.decode(one.ids)
        == ask.format("Q") + content + "<|im_end|>\n" + ask.format(content) + content + end
    )
    assert runs(PLAIN, one)[1::2] == [content + end] * 2


@pytest.mark.parametrize("content", NASTY, ids=lambda c: repr(c[:20]))
def test_content_is_kept_where_the_prompt_is_spaced_otherwise(content: str) -> None:
    """The slow way: the prompt has a line break more than history, so a word takes the place of the
    answer.
    """
    spaced = CHATML.replace(
        "<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n\n{% endif %}"
    )
    if not content.strip():
        content = f"a{content}b"
    found = turns(PLAIN, spaced, [user(f"Zq7 {content}"), answer(content), user("R"), answer("B")])
    assert (
        found[0].before == f"<|im_start|>user\nZq7 {content}<|im_end|>\n<|im_start|>assistant\n\n"
    )
    # a line break that begins an answer is the one that the prompt has more
    shown = content.removeprefix("\n")
    assert found[0].after == shown + ("" if content.endswith("<|im_end|>") else "<|im_end|>")
    assert found[1].before.startswith(
        f"<|im_start|>user\nZq7 {content}<|im_end|>\n<|im_start|>assistant\n{content}<|im_end|>\n"
    )


def test_turns_that_follow_each_other_and_look_alike() -> None:
    messages = [user("A"), answer("A"), answer("A"), user("A "), answer("A")]
    head = "<|im_start|>assistant\n"
    assert sequences(PLAIN, CHATML, messages) == [
        [
            "<|im_start|>user\nA<|im_end|>\n" + head,
            "A<|im_end|>",
            "\n" + head,
            "A<|im_end|>",
            "\n<|im_start|>user\nA <|im_end|>\n" + head,
            "A<|im_end|>",
        ]
    ]


def test_a_conversation_that_begins_with_an_answer() -> None:
    with pytest.raises(
        DataError, match="begins with an answer, so there is nothing to prompt with"
    ) as caught:
        turns(PLAIN, CHATML, [answer("A"), user("Q"), answer("B")])
    assert caught.value.cure == "put a user turn before it, or give it weight 0"
    found = turns(PLAIN, CHATML, [answer("A", weight=0), user("Q"), answer("B")])
    assert pairs(found) == [
        (
            "<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n",
            "B<|im_end|>",
        )
    ]


# ------------------------------------------------ reasoning in foreign tags, answers without an end


@pytest.mark.parametrize(
    "inline",
    [
        "<reasoning>R{0}</reasoning>\nA{0}",
        "\n<thinking>\nR{0}\n</thinking>\n\nA{0}",
        "[THINK]R{0}[/THINK]A{0}",
        "<thought>R{0}</thought> A{0}",
    ],
)
def test_reasoning_in_foreign_tags_is_the_templates_own(inline: str) -> None:
    """Otherwise the model would learn to write its blank lines and foreign tags where neither
    generation nor history shows them.
    """
    inside = [user("Q1"), answer(inline.format(1)), user("Q2"), answer(inline.format(2))]
    for name in ("llamacpp/Qwen-Qwen3-0.6B", "trl/gptoss", "trl/glm4moe"):
        template, tokenizer = shared_template(name)
        chat = Chat(tokenizer, template=template)
        found = chat.turns(example(inside), tuple(inside))
        assert pairs(found) == pairs(turns(tokenizer, template, THOUGHT))
        assert any("reasoning in tags of another template" in note for note in chat.notes)
    template, tokenizer = shared_template("llamacpp/Qwen-Qwen3-0.6B")
    with pytest.raises(DataError, match="without reasoning, and this one has some"):
        turns(tokenizer, template, inside, kwargs={"enable_thinking": False})
    # a template without reasoning has no place for it: it is content
    template, tokenizer = shared_template("llamacpp/Qwen-Qwen2.5-7B-Instruct")
    assert turns(tokenizer, template, inside)[0].after == inline.format(1) + "<|im_end|>"


def test_a_foreign_tag_that_is_not_closed_is_content() -> None:
    template, tokenizer = shared_template("llamacpp/Qwen-Qwen3-0.6B")
    text, empty = "<reasoning>R1\nA1", "<think>\n\n</think>\n\n"
    (turn,) = turns(tokenizer, template, [user("Q1"), answer(text)])
    assert turn.after == f"{empty}{text}<|im_end|>"
    off = {"enable_thinking": False}
    (turn,) = turns(tokenizer, template, [user("Q1"), answer(text)], kwargs=off)
    assert turn.before.endswith(empty) and turn.after == f"{text}<|im_end|>"


@pytest.mark.parametrize(
    "name", ["trl/glm4moe", "llamacpp/GLM-4.6", "llamacpp/GLM-4.7-Flash", "llamacpp/GLM-5.2"]
)
def test_glm_ends_answers_with_the_token_of_the_next_turn(name: str) -> None:
    """As TRL's template for training does, and as the released models stop."""
    template, tokenizer = shared_template(name)
    messages = [
        user("Q1"),
        answer("", tool_calls=[call(at="Oslo")]),
        {"role": "tool", "content": "7"},
        answer("A1"),
        user("Q2"),
        answer("A2"),
    ]
    chat = Chat(tokenizer, template=template, kwargs={"enable_thinking": False})
    found = chat.turns(example(messages, (TOOL,)), tuple(messages))
    ends = [turn.after[turn.after.rindex("<|") :] for turn in found]
    assert ends == ["<|observation|>", "<|user|>", "<|user|>"]
    assert len(encode(tokenizer, found)) == 1  # the end of each is the start of the next
    assert chat.stop == "<|user|>" and chat.notes == ()
    ids = tokenizer.convert_tokens_to_ids(["<|user|>", "<|observation|>", tokenizer.eos_token])
    assert chat.template.stop_ids == frozenset(ids)


def test_glm_goes_on_after_a_sampled_end() -> None:
    template, tokenizer = shared_template("llamacpp/GLM-5.2")
    facts = Template.of(tokenizer, template, {"enable_thinking": False})
    (asked,) = facts.render([user("Q1"), answer("A1")])
    for later in ([user("Q2")], [user("Q2"), answer("A2"), user("Q3")]):
        messages = [user("Q1"), answer("A1"), *later]
        if len(later) > 1:
            (asked,) = facts.render(messages[:4])
        extended = facts.extend(asked.ids, messages)
        assert extended.exact and extended.ids == facts.prompt(messages)


BARE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_an_end_that_the_template_does_not_write_is_the_models_or_said(tmp_path: Any) -> None:
    special = ["<|user|>", "<|assistant|>"]
    chat = Chat(words(special=special), template=BARE)
    messages = [user("Q1"), answer("A1")]
    assert chat.turns(example(messages), tuple(messages))[0].after == "A1<|end|>"
    assert "'<|user|>'" in chat.notes[0] and "writes nothing after" in chat.notes[0]
    released = words(special=special)
    released.name_or_path = str(tmp_path)
    stops = released.convert_tokens_to_ids(["<|end|>", "<|user|>"])
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
    chat = Chat(released, template=BARE)
    assert chat.turns(example(messages), tuple(messages))[0].after == "A1<|user|>"
    assert chat.notes == ()
