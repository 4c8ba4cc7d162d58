"""Chat rendering: what is shown and what is trained, turn by turn, in 126 templates and by hand."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import transformers.utils.chat_template_utils as theirs

from posttrain.core.errors import DataError, ModelError
from posttrain.data.chat import Chat
from posttrain.data.forest import Sequence, Tree, collate
from posttrain.data.formats import Example, Format
from posttrain.data.rows import Row
from posttrain.data.tokens import Encoder
from tests.data.chats import (
    CHATML,
    FOLDER,
    SHARED,
    Pinned,
    answer,
    call,
    docs,
    encode,
    example,
    pairs,
    runs,
    sequences,
    served,
    turns,
    user,
    words,
)

PLAIN = words()
TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "",
        "parameters": {"type": "object", "properties": {}},
    },
}


# ----------------------------------------------------------------------------------- many templates


@pytest.fixture(scope="session")
def swept() -> Any:
    """Every template with every conversation of the reference page."""
    if not FOLDER.is_dir():
        pytest.skip(f"there is no folder of chat templates {FOLDER}")
    return docs().rows(FOLDER)


@pytest.fixture(scope="session")
def taken(swept: Any) -> list[tuple[Any, str, Any]]:
    """(template, conversation, verdict) of all that is not refused."""
    return [
        (row, name, one)
        for row in swept
        for name, one in row.verdicts.items()
        if one.word != "refused"
    ]


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Today, for transformers, is the day that we pin."""
    monkeypatch.setattr(theirs, "datetime", Pinned)


def test_the_page_is_up_to_date(swept: Any) -> None:
    assert docs().PAGE.read_text() == docs().page(swept), "run docs/templates.py"


def test_the_page_counts_every_template_once() -> None:
    page = docs().PAGE.read_text()
    tables = [int(n) for n in re.findall(r"^\| (\d+) templates \|", page, re.MULTILINE)]
    assert sum(tables) == 126 and len(tables) == 3
    named = re.findall(
        r"^\| (.+?) \| (?:exact|branches|refused) ?[(|][^|]*[|a-z]", page, re.MULTILINE
    )
    counted = re.findall(r"^\| (\w+) \| (\d+) \| (\d+) \| (\d+) \|$", page, re.MULTILINE)
    assert [name for name, *_ in counted] == list(docs().CONVERSATIONS)
    assert all(int(a) + int(b) + int(c) == 126 for _, a, b, c in counted)
    assert (
        len([name for row in named for name in row.split("<br>") if name != "conversation"]) == 126
    )
    (rewriting,) = re.findall(r"^(\d+) of the 126 templates rewrite history", page, re.MULTILINE)
    assert int(rewriting) >= 50
    letters = set(re.findall(r"refused \((\w)\)", page))
    assert letters == set(re.findall(r"^- \*\*(\w)\*\*: ", page, re.MULTILINE))


def test_what_stands_before_an_answer_is_what_a_server_prompts_with(
    taken: Any, pinned: None
) -> None:
    checked = 0
    for row, name, one in taken:
        messages, tools = docs().CONVERSATIONS[name], docs().TOOLS if name == "tools" else None
        spans = {span.number: (e, span) for e in one.encoded for span in e.spans}
        assert sorted(spans) == [
            i for i, m in enumerate(messages, 1) if m["role"] == "assistant"
        ], (row.name, name)
        for number, (e, span) in spans.items():
            shown = served(
                row.words,
                row.template,
                messages[: number - 1],
                tools,
                add_generation_prompt=True,
                return_dict=False,
            )
            assert e.ids[: span.start] == shown, (row.name, name, number)
            checked += 1
    assert checked > 1000


def test_an_answer_is_trained_whole_and_up_to_its_end(taken: Any) -> None:
    for row, name, one in taken:
        messages, ends = docs().CONVERSATIONS[name], {row.stop, row.words.eos_token}
        added = {t.content for t in row.words.added_tokens_decoder.values()}
        for e in one.encoded:
            for span in e.spans:
                message, text = (
                    messages[span.number - 1],
                    row.words.decode(e.ids[span.start : span.end]),
                )
                where = (row.name, name, span.number, text)
                inside = [
                    *re.split(r"</?think>", message["content"]),
                    message.get("reasoning_content", ""),
                ]
                inside += [
                    part
                    for c in message.get("tool_calls", ())
                    for part in (c["function"]["name"], c["function"]["arguments"]["city"])
                ]
                assert all(part.strip() in text for part in inside), where
                last = row.words.decode([e.ids[span.end - 1]])
                assert last in ends or (message.get("tool_calls") and last in added), where
                # nothing that others say, and no prompt for the next turn
                assert not any(
                    m["content"] in text for m in messages if m["role"] != "assistant"
                ), where
                assert not re.search(r"Alpha|Gamma|Eta q|Zorblax|Weather in|And in", text), where
                after = text[max(text.rfind(part) for part in inside if part.strip()) :]
                assert not re.search(
                    r"<\|?(im_)?start(_of_turn|_header_id)?\|?>|START_OF_TURN|<｜User|<\|turn>",
                    after,
                ), where


def test_branches_share_what_they_share(taken: Any) -> None:
    branched = 0
    for row, name, one in taken:
        tree = Tree(tuple(Sequence(np.array(e.ids), e.mask()) for e in one.encoded))
        forest = collate([tree])
        total = sum(len(e.ids) for e in one.encoded)
        assert sum(span.end - span.start for e in one.encoded for span in e.spans) == forest.N, (
            row.name,
            name,
        )
        at = 0
        for e, length in zip(one.encoded, forest.lengths.tolist(), strict=True):
            assert forest.tokens[forest.path[at : at + length]].tolist() == e.ids
            at += length
        if one.word == "branches":
            branched += 1
            shared = [
                next(
                    (i for i, (x, y) in enumerate(zip(a.ids, b.ids, strict=False)) if x != y),
                    min(len(a.ids), len(b.ids)),
                )
                for a, b in zip(one.encoded, one.encoded[1:], strict=False)
            ]
            assert total - max(shared) >= forest.T and max(shared) > 0, (row.name, name)
        else:
            assert total == forest.T
    assert branched > 150


# What the marks of TRL's templates train beside: a part of the prompt, and what follows the end. A
# server has the first in its prompt, and has stopped before the second.
MARKED = {
    "qwen2_5_training": "\n",
    "qwen3_5_nothink_training": "<think>\n\n</think>\n\n",
    "qwen3_5_think_training": "<think>\n",
    "qwen3_6_training": "<think>\n",
    "gptoss_training": "<|start|>assistant",
}


def test_the_mask_is_that_of_generation_marks(taken: Any, pinned: None) -> None:
    compared = set()
    for row, name, one in taken:
        if one.word != "exact" or not re.search(r"\{%-?\s*generation", row.template):
            continue
        messages, tools = docs().CONVERSATIONS[name], docs().TOOLS if name == "tools" else None
        their = served(
            row.words,
            row.template,
            messages,
            tools,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        (e,) = one.encoded
        ids, mask = their["input_ids"], their["assistant_masks"]
        assert ids[: len(e.ids)] == e.ids, (row.name, name)
        edges = np.flatnonzero(np.diff(mask, prepend=0, append=0)).reshape(-1, 2).tolist()
        assert len(edges) == len(e.spans)
        for (a, b), span in zip(edges, e.spans, strict=True):
            ours = row.words.decode(e.ids[span.start : span.end])
            if (
                row.name == "diffusion_gemma_training"
                and messages[span.number - 2]["role"] == "tool"
            ):
                ours = ours.removeprefix(
                    "<|turn>model\n"
                )  # it does not prompt after a result, and marks what history has there
            text = row.words.decode(ids[a:b])
            prompt, found, after = text.partition(ours)
            assert found and prompt == MARKED.get(row.name, ""), (row.name, name, text)
            assert after in ("", "\n", " ", "\n</s>"), (row.name, name, text)
        compared.add(row.name)
    assert len(compared) >= 20


def test_a_template_of_the_sweep_never_doubles_the_begin(taken: Any) -> None:
    for row, name, one in taken:
        assert all(e.ids[:2].count(row.words.bos_token_id) <= 1 for e in one.encoded), (
            row.name,
            name,
        )


# -------------------------------------------------------------------------------- thinking, by hand

THOUGHT = [
    user("Q1"),
    answer("A1", reasoning_content="R1"),
    user("Q2"),
    answer("A2", reasoning_content="R2"),
]


def shared_template(name: str) -> tuple[str, Any]:
    path = FOLDER / f"{name}.jinja"
    if not path.is_file():
        pytest.skip(f"there is no chat template {path}")
    return path.read_text(), docs().tokenizer(path.read_text())


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
        "<|start|>system<|message|>You are ChatGPT, a large language model trained by"
        " OpenAI.\nKnowledge cutoff: 2024-06\nCurrent date: 2026-01-01\n\nReasoning: medium\n\n#"
        " Valid channels: analysis, commentary, final. Channel must be included for every"
        " message.<|end|>"
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
        "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}{% for m in messages"
        " %}<|im_start|>{% if m.role == 'assistant' %}A:<think>{{ m.reasoning_content }}</think>{%"
        " endif %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}{{"
        " c.function.arguments | tojson }}{% endfor %}<|im_end|>{% endfor %}{% if"
        " add_generation_prompt %}<|im_start|>A:<think>\n{% endif %}"
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
        "{% for m in messages %}<|im_start|>{{ m.content }}{% for c in m.tool_calls or [] %}ONLY{{"
        " c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}<|im_end|>{% endfor %}{%"
        " for t in tools or [] %}{{ t.function.name }}{% endfor %}{% if add_generation_prompt"
        " %}<|im_start|>{% endif %}"
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
        "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}{% for m in messages"
        " %}<|im_start|>{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}{{"
        " c.function.arguments }}{% endfor %}<|im_end|>{% endfor %}{% if add_generation_prompt"
        " %}<|im_start|>{% endif %}"
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
        "{% if messages[-1].role == 'assistant' and messages|length > 1 %}{{ messages[-2].content"
        " }}<|im_end|><|im_start|>{% endif %}" + last
    )
    good = [user("what is elephants"), answer("grey")]
    assert turns(PLAIN, last, good)[0].before == "what is elephants<|im_end|><|im_start|>"
    with pytest.raises(DataError, match=r"drops the user message 'like elephants\?'"):
        turns(PLAIN, last, [user("like elephants?"), answer("yes", weight=0), *good])


def test_the_end_token_that_follows_at_once_is_the_end() -> None:
    """Command-R ends a response with a token of its own, and the turn with another."""
    tokenizer = words(special=["<resp>", "</resp>", "<|im_start|>"])
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}:<resp>{{ m.content }}</resp><|end|>\n{%"
        " endfor %}{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
    )
    assert Chat(tokenizer, template=template).stop == "<|end|>"
    assert turns(tokenizer, template, [user("Q"), answer("A")])[0].after == "<resp>A</resp><|end|>"
    apart = template.replace(
        "</resp><|end|>", "</resp>\n<|end|>"
    )  # Phi-3.5: the end of the turn, then of the text
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
    spaced = template.replace(
        "assistant\n{% endif %}", "assistant\n\n{% endif %}"
    )  # the prompt has a line more than history
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
        "{% for t in tools %}{% endfor %}{% if tools is none %}{{ raise_exception('no') }}{%"
        " endif %}" + CHATML
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
    shown = content.removeprefix(
        "\n"
    )  # a line break that begins an answer is the one that the prompt has more
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


def test_weights_and_the_last_turn() -> None:
    messages = [
        user("Q1"),
        answer("A1", weight=0),
        user("Q2"),
        answer("A2", weight=1),
        user("Q3"),
        answer("A3"),
        user("Q4"),
    ]
    assert [t.number for t in turns(PLAIN, CHATML, messages)] == [4, 6]
    assert [t.number for t in turns(PLAIN, CHATML, messages, train_on="last")] == [6]
    (one,) = sequences(PLAIN, CHATML, messages, train_on="last")
    assert one[1::2] == ["A3<|im_end|>"] and "A1" in one[0] and "A2" in one[0]


def test_what_is_given_before_the_answer_is_not_trained() -> None:
    given = Example("a:1", (user("Q1"), answer("A1"), user("Q2")), ((answer("A2"),),))
    (one,) = Chat(PLAIN, template=CHATML).turns(given, given.answers[0])
    assert one.after == "A2<|im_end|>" and one.number == 4
    assert Chat(PLAIN, template=CHATML).prompt(given) == (one.before, False)


def test_text_is_a_conversation_of_two_unless_a_prompt_template_says_otherwise() -> None:
    given = Example("a:1", "Q", ("A",))
    assert pairs(Chat(PLAIN, template=CHATML).turns(given, "A")) == [
        ("<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n", "A<|im_end|>")
    ]
    plain = Chat(PLAIN, template=CHATML, prompt_template="Q: {prompt}\nA:")
    assert pairs(plain.turns(given, "A")) == [("Q: Q\nA:", "A<|end|>")] and plain.prompt(given) == (
        "Q: Q\nA:",
        True,
    )
    with pytest.raises(
        DataError, match="a conversation, where --prompt-template asks for plain text"
    ):
        plain.turns(example([user("Q"), answer("A")]), (user("Q"), answer("A")))


def test_special_tokens_in_a_row_are_noticed() -> None:
    chat = Chat(PLAIN, template=CHATML)
    assert chat.holds_special(example([user("Q <|im_end|>"), answer("A")]))
    assert not chat.holds_special(example([user("Q <|im_en d|>"), answer("A")]))
    assert chat.holds_special(Example("a:1", "<|end|>", ("A",)))


# ---------------------------------------------------------------------------------------- real rows


def real(path: str, limit: int) -> Iterator[Row]:
    if not (SHARED / path).is_file():
        pytest.skip(f"there is no file {SHARED / path}")
    with gzip.open(SHARED / path, "rt") as lines:
        for i, line in zip(range(1, limit + 1), lines, strict=False):
            yield Row(json.loads(line), f"{path}:{i}")


def reasoned(rows: Iterator[Row]) -> Iterator[Row]:
    """Worked solutions as reasoning, and what they come to as the answer."""
    for row in rows:
        solution = next(
            str(row.fields[k]) for k in ("completion", "answer", "solution") if k in row.fields
        )
        question = next(str(row.fields[k]) for k in ("prompt", "question") if k in row.fields)
        final = solution.rpartition("####")[2].strip().splitlines()[-1]
        turn = answer(
            f"The answer is {final}.", reasoning_content=solution.partition("####")[0].strip()
        )
        more = [user("Are you sure?"), answer("Yes.", reasoning_content="I am.")]
        yield Row({"messages": [user(question), turn, *more]}, row.where)


@pytest.mark.parametrize(
    "template",
    ["chatml", "default", "llamacpp/Qwen-Qwen3-0.6B", "llamacpp/meta-llama-Llama-3.1-8B-Instruct"],
)
@pytest.mark.parametrize(
    ("path", "how"),
    [
        ("demonstrations/taskmaster4_coffee", ""),
        ("demonstrations/glaive_toolcall_demo", ""),
        ("math/gsm8k_train", "reasoned"),
    ],
)
def test_real_rows(path: str, how: str, template: str) -> None:
    own = {"chatml": (CHATML, PLAIN), "default": (None, PLAIN)}
    text, tokenizer = own[template] if template in own else shared_template(template)
    rows = real(f"{path}.jsonl.gz", 150)
    form, chat, encoder = Format(), Chat(tokenizer, template=text), Encoder(tokenizer)
    examples = [form.read(row) for row in (reasoned(rows) if how else rows)]
    used, refused = [], []
    for one in examples:
        try:
            used.append((one, chat.turns(one, one.answers[0])))
        except DataError as error:
            refused.append(error.what)
    assert len(used) + len(refused) == len(examples) > 100
    expect_none = (how and template in ("chatml", "llamacpp/meta-llama-Llama-3.1-8B-Instruct")) or (
        "glaive" in path and template == "chatml"
    )
    if expect_none:  # they know no reasoning, no tools
        assert not used or ("glaive" in path and all(not one.tools for one, _ in used)), set(
            refused
        )
        return
    assert len(used) > len(examples) * 0.75, set(refused)
    shares = []
    for (one, found), encoded in zip(
        used, encoder.encode([found for _, found in used]), strict=True
    ):
        assert not isinstance(encoded, DataError)
        spans = {
            s.number: tokenizer.decode(e.ids[s.start : s.end]) for e in encoded for s in e.spans
        }
        shares.append(
            sum(s.end - s.start for e in encoded for s in e.spans)
            / sum(len(e.ids) for e in encoded)
        )
        answers = {i: m for i, m in enumerate(one.answers[0], 1) if m["role"] == "assistant"}
        assert spans.keys() == answers.keys() and len(found) == len(answers)
        for i, message in answers.items():
            if not message.get("tool_calls") and not how and "Qwen3" not in template:
                content = message["content"]
                assert spans[i] in (content + chat.stop, content.strip() + chat.stop), one.where
            assert (
                message["content"].strip() in spans[i]
                and message.get("reasoning_content", "").strip() in spans[i]
            )
            assert spans[i].endswith(chat.stop)
    assert 0.02 < sum(shares) / len(shares) < 0.8
