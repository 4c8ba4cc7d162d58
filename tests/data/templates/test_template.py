"""Template: answers read back to the messages they were, and prompts that go on after a sample."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.core.errors import ConfigError, DataError, ModelError
from posttrain.data.messages import Message
from posttrain.data.templates.reading import comparable
from posttrain.data.templates.template import Template
from posttrain.data.templates.thinking import thought
from tests.data.chats import CHATML, answer, call, docs, metaspace, shared_template, user, words
from tests.making import tokenizer as bare

PLAIN = words()
MERGED = words([("a", "b"), ("ab", "c"), ("Ċ", "Ċ")])
DEFAULT = {
    "chatml": PLAIN,
    "roles": words(special=["<|user|>", "<|assistant|>", "<|system|>"]),
    "headings": bare(),
}


def tool(name: str, **types: str) -> dict[str, Any]:
    properties = {key: {"type": kind, "description": ""} for key, kind in types.items()}
    schema = {"type": "object", "properties": properties, "required": [*types]}
    return {
        "type": "function",
        "function": {"name": name, "description": "Does it.", "parameters": schema},
    }


TOOLS = (
    tool("get_weather", city="string", days="integer", exact="boolean"),
    tool("look-up", text="string"),
)
WEATHER = call("get_weather", city="Oslo, the old town", days=3, exact=True)
LOOKED = {**call("look-up", text='a "quoted" line\nand {another}: é'), "id": "b23456789"}
ANSWERS: dict[str, tuple[Message, str]] = {  # each with the limit that may excuse it
    "plain": (answer("Beta, with <b>tags</b> & 'quotes'.\n\n- a list\n- of two"), ""),
    "thinking": (answer("Beta.", reasoning_content="One step.\n\nThen {another}, <b>so</b>."), ""),
    "call": (answer("", tool_calls=[WEATHER]), ""),
    "two calls": (answer("", tool_calls=[WEATHER, call("get_weather", city="Rome")]), "several"),
    "no arguments": (answer("", tool_calls=[call("look-up")]), "without arguments"),
    "said beside": (answer("Let me see.", tool_calls=[WEATHER]), "beside a call"),
    "thinking, call": (
        answer("", reasoning_content="I must look.", tool_calls=[WEATHER]),
        "reasoning before a call",
    ),
}


MADE: dict[str, Template] = {}  # by name; what one has learned serves every test


def template_of(row: Any) -> Template:
    name = f"{row.source}/{row.name}"
    return MADE.setdefault(name, Template.of(row.words, row.template))


def templates(swept: Any) -> list[tuple[str, Template]]:
    return [(f"{row.source}/{row.name}", template_of(row)) for row in swept]


def rendered(template: Template, messages: list[Message], tools: Any = None) -> Any:
    """The tokens before the last answer and those of it; None where the template refuses it."""
    try:
        encoded = template.render(messages, tools=tools)
    except (DataError, ModelError):
        return None
    for one in encoded:
        for span in one.spans:
            if span.number == len(messages):
                return one.ids[: span.start], one.ids[span.start : span.end]
    raise AssertionError("the last answer is not trained")


# ---------------------------------------------------------------------------------------- the sweep


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_read_back_wherever_it_can_be_written(swept: Any, name: str) -> None:
    message, limit = ANSWERS[name]
    tools = TOOLS if "tool_calls" in message else None
    expressed = 0
    for where, template in templates(swept):
        tokens = rendered(template, [user("Alpha?"), message], tools)
        if tokens is None:
            continue
        before, ids = tokens
        expressed += 1
        for prompt in (before, None):
            read = template.parse(ids, prompt=prompt, tools=tools)
            same = comparable(read.message) == comparable(message) and not read.faults
            excused = limit and any(limit in one for one in template.limits)
            assert read.finished and (same or excused), (where, template.decode(ids), read)
            cut = template.parse(ids[:-1], prompt=prompt, tools=tools)
            content = cut.message["content"].strip()  # white space at its end may be the template's
            same = comparable({**cut.message, "content": content}) == comparable(message)
            assert not cut.finished and (same or excused), (where, cut)
    least = {"plain": 110, "thinking": 35, "call": 50, "two calls": 40}
    assert expressed >= least.get(name, 20)


def test_every_answer_of_the_page_is_read_back(taken: Any) -> None:
    for row, name, one in taken:
        messages, tools = docs().CONVERSATIONS[name], docs().TOOLS if name == "tools" else None
        template = template_of(row)
        for encoded in one.encoded:
            for span in encoded.spans:
                ids = encoded.ids[span.start : span.end]
                read = template.parse(ids, prompt=encoded.ids[: span.start], tools=tools)
                message, want = read.message, comparable(messages[span.number - 1])
                if name == "inline" and "reasoning_content" in message:
                    thinks, _, content = thought(want)  # the template has a place of its own for it
                    want |= {"content": content, "reasoning_content": (thinks or "").strip()}
                    message = {**message, "content": message["content"].lstrip("\n")}
                assert comparable(message) == want, (row.name, name, span.number, read)
                assert read.finished and not read.faults


def test_what_a_template_does_not_write_or_cannot_tell_apart_is_said(swept: Any) -> None:
    limits = {}
    for where, template in templates(swept):
        try:
            limits[where] = template.limits
        except ModelError:  # it renders nothing
            continue
        for part, says in (
            ({"reasoning_content": "R"}, "writes no reasoning"),
            ({"tool_calls": [WEATHER]}, "writes no tool calls"),
        ):
            message = answer("A" if "reasoning_content" in part else "", **part)
            if rendered(template, [user("Q"), message], TOOLS) is not None:
                assert not any(says in limit for limit in limits[where]), where
    assert len(limits) == 124
    rest = {
        where for where, found in limits.items() if any("writes no" not in limit for limit in found)
    }
    # what gpt-oss says beside a call stands where its thoughts stand
    assert rest == {"llamacpp/openai-gpt-oss-120b", "trl/gptoss", "trl/gptoss_training"}
    assert all("what is said beside a call cannot be read" in limits[where] for where in rest)


def test_whether_history_is_rewritten_is_known_without_a_conversation(swept: Any) -> None:
    for row, (where, template) in zip(swept, templates(swept), strict=True):
        words = {row.verdicts[name].word for name in ("turns", "reasoning")}
        if words != {"refused"}:
            assert template.rewrites_history == ("branches" in words), where


def test_a_conversation_is_gone_on_with_turn_by_turn(taken: Any) -> None:
    """From the first prompt to the last, with the answers as they were sampled: exactly the next
    prompt where history stays, a branch that keeps what was sampled where it is rewritten.
    """
    exact, branches = 0, 0
    for row, name, one in taken:
        messages, tools = docs().CONVERSATIONS[name], docs().TOOLS if name == "tools" else None
        template = template_of(row)
        found = {
            span.number: (encoded.ids[: span.start], encoded.ids[span.start : span.end])
            for encoded in one.encoded
            for span in encoded.spans
        }
        ids, stays = found[min(found)][0], True
        for turn, following in zip(one.turns, one.turns[1:], strict=False):
            ids = [*ids, *found[turn.number][1]]
            until = messages[: following.number - 1]
            extended = template.extend(ids, until, tools=tools)
            prompt = template.prompt(until, tools=tools)
            where = (row.name, name, turn.number)
            assert extended.ids[: len(ids)] == ids and len(extended.ids) > len(ids), where
            stays = stays and following.before.startswith(turn.before + turn.after)
            assert extended.exact == (extended.ids == prompt) == stays, where
            assert extended.ids[: extended.shared] == prompt[: extended.shared], where
            if not stays:
                assert extended.ids[extended.shared] != prompt[extended.shared], where
                more = template.decode(extended.ids[len(ids) :])
                later = " ".join(m["content"] for m in until[turn.number :])
                assert all(word in more for word in re.findall(r"\w+", later)), where
                assert following.before.endswith(more[-12:]), where
            exact, branches, ids = exact + stays, branches + (not stays), extended.ids
    assert exact > 400 and branches > 200


# ------------------------------------------------------------------------------------------ by hand


def tokens(text: str, tokenizer: Any = PLAIN) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_qwen3() -> None:
    source, tokenizer = shared_template("llamacpp/Qwen-Qwen3-0.6B")
    template = Template.of(tokenizer, source)
    said = "<think>\nR\n</think>\n\nLet me see.\n<tool_call>\n{}\n</tool_call><|im_end|>"
    called = said.format('{"name": "get_weather", "arguments": {"city": "Oslo", "days": 3}}')
    read = template.parse(tokens(called, tokenizer), tools=TOOLS)
    function = {"name": "get_weather", "arguments": {"city": "Oslo", "days": 3}}
    assert read.message == {
        "role": "assistant",
        "content": "Let me see.",
        "reasoning_content": "R",
        "tool_calls": [{"type": "function", "function": function}],
    }
    assert read.finished and not read.faults
    broken = template.parse(tokens(said.format('{"name": "get_weather", '), tokenizer))
    assert broken.faults == ("a tool call cannot be read",)
    assert '{"name": "get_weather", ' in broken.message["content"]
    assert "tool_calls" not in broken.message
    # models do not always keep to the line breaks of the template
    sloppy = template.parse(tokens("<think>R</think>A", tokenizer))
    assert (sloppy.message["reasoning_content"], sloppy.message["content"]) == ("R", "A")
    assert not sloppy.finished and template.limits == ()


def test_thinking_that_the_prompt_opened() -> None:
    source, tokenizer = shared_template("llamacpp/deepseek-ai-DeepSeek-R1-Distill-Llama-8B")
    template = Template.of(tokenizer, source)
    prompt = template.prompt([user("Q")])
    read = template.parse(tokens("R\n</think>\n\nA<｜end▁of▁sentence｜>", tokenizer), prompt=prompt)
    assert (read.message["reasoning_content"], read.message["content"]) == ("R", "A")
    cut = template.parse(tokens("R and", tokenizer), prompt=prompt)
    assert cut.message == {"role": "assistant", "content": "", "reasoning_content": "R and"}
    assert not cut.finished and not cut.faults
    ended = template.parse(tokens("R and<｜end▁of▁sentence｜>", tokenizer), prompt=prompt)
    assert ended.faults == ("the thinking does not end",)
    elsewhere = template.parse(tokens("A", tokenizer), prompt=tokens("<｜Assistant｜>", tokenizer))
    assert elsewhere.message == {"role": "assistant", "content": "A"}
    # history drops the thinking; what was sampled keeps it
    sampled = [*prompt, *tokens("R\n</think>\n\nA<｜end▁of▁sentence｜>", tokenizer)]
    extended = template.extend(sampled, [user("Q"), read.message, user("R")])
    assert template.decode(extended.ids[len(sampled) :]) == "<｜User｜>R<｜Assistant｜><think>\n"
    assert not extended.exact and extended.shared == len(prompt) - len(
        tokens("<think>\n", tokenizer)
    )


def test_gpt_oss_has_channels_for_thoughts_and_answers() -> None:
    source, tokenizer = shared_template("trl/gptoss")
    template = Template.of(tokenizer, source)
    written = (
        "<|channel|>analysis<|message|>R<|end|><|start|>assistant"
        "<|channel|>final<|message|>A<|return|>"
    )
    read = template.parse(tokens(written, tokenizer))
    assert read.message == answer("A", reasoning_content="R")
    plain = template.parse(tokens("<|channel|>final<|message|>A<|return|>", tokenizer))
    assert plain.message == answer("A")


def test_what_was_sampled_is_never_tokenised_again() -> None:
    """The sampler drew a, b, c; the tokenizer would write abc as one token."""
    template = Template.of(MERGED, CHATML)
    prompt, end = template.prompt([user("Q")]), MERGED.convert_tokens_to_ids("<|im_end|>")
    drawn = MERGED.convert_tokens_to_ids(["a", "b", "c"])
    sampled = [*prompt, *drawn, end]
    given_before = list(sampled)
    extended = template.extend(sampled, [user("Q"), answer("abc"), user("R")])
    assert sampled == given_before == extended.ids[: len(sampled)]
    assert extended.shared == len(prompt) and not extended.exact
    merged = [*prompt, *tokens("abc", MERGED), end]
    assert template.extend(merged, [user("Q"), answer("abc"), user("R")]).exact


def test_an_answer_that_was_cut_off_is_ended() -> None:
    template = Template.of(PLAIN, CHATML)
    messages = [user("Q"), answer("A"), user("R")]
    cut = [*template.prompt(messages[:1]), *tokens("A")]
    assert template.extend(cut, messages).ids == template.prompt(messages)
    ended = [*cut, PLAIN.convert_tokens_to_ids("<|im_end|>")]
    assert template.extend(ended, messages).ids == template.prompt(messages)


def test_there_must_be_an_answer_to_go_on_after() -> None:
    with pytest.raises(DataError, match="no answer to go on after"):
        Template.of(PLAIN, CHATML).extend([1], [user("Q")])


def test_an_answer_that_history_does_not_show_cannot_be_gone_on_after() -> None:
    last = (
        "{{ messages[-1].content }}<|im_end|>{% if add_generation_prompt %}<|im_start|>{% endif %}"
    )
    template = Template.of(PLAIN, "{% if messages|length < 3 %}Q{% endif %}" + last)
    with pytest.raises(DataError, match=r"drops|where the last answer ends"):
        template.extend(tokens("Q"), [user("Q"), answer("A"), user("R")])


@pytest.mark.parametrize("scheme", ["first", "always"])
def test_a_tokenizer_that_begins_with_a_space(scheme: str) -> None:
    tokenizer = metaspace(scheme)
    template = Template.of(tokenizer, CHATML)
    messages = [user("a b"), answer("bc"), user("a"), answer("a bc"), user("b")]
    (whole,) = template.render(messages[:4])
    extended = template.extend(whole.ids, messages)
    assert extended.exact and extended.ids == template.prompt(messages)
    assert template.parse(whole.ids[whole.spans[1].start :]).message["content"].strip() == "a bc"


# -------------------------------------------------------------------------------------- any content

TEXT = st.text("ab é\n{}\"'<>\\[]日🙂", min_size=1, max_size=20)
INSIDE = TEXT.map(str.strip).filter(bool)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)


@st.composite
def anything(draw: Any) -> Message:
    calls = draw(st.lists(st.dictionaries(TEXT, VALUE, max_size=3), max_size=2))
    message = answer(draw(TEXT.filter(str.strip)) if not calls or draw(st.booleans()) else "")
    if draw(st.booleans()):
        message["reasoning_content"] = draw(INSIDE)
    if calls:
        message["tool_calls"] = [call("look-up", **arguments) for arguments in calls]
    return message


@pytest.mark.parametrize("name", DEFAULT)
@settings(max_examples=60, deadline=None)
@given(st.lists(anything(), min_size=1, max_size=3))
def test_the_default_template_reads_back_and_goes_on_after_whatever_it_writes(
    name: str, answers: list[Message]
) -> None:
    template = Template.of(DEFAULT[name])
    assert template.limits == () and template.origin == "default"
    messages: list[Message] = [user("Q")]
    ids = template.prompt(messages, tools=TOOLS)
    for message in answers:
        before, written = rendered(template, [*messages, message], TOOLS)
        assert before == ids
        read = template.parse(written, prompt=before, tools=TOOLS)
        assert comparable(read.message) == comparable(message) and not read.faults
        messages += [message, {"role": "tool", "content": "7"}, user("And?")]
        extended = template.extend([*ids, *written], messages, tools=TOOLS)
        assert extended.exact
        ids = extended.ids


# ------------------------------------------------------------------------------- response templates

SCHEMA = {
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "content": {"repeats": True, "join": "", "close": "<|im_end|>"},
        "thinking": {"open": "<think>", "close": "</think>"},
        "tool_calls": {
            "open": "<call>",
            "close": "</call>",
            "content": "json",
            "repeats": True,
            "transform": {"type": "function", "function": "{content}"},
        },
    },
}


def test_a_tokenizers_own_response_template_is_used_with_its_own_chat_template() -> None:
    tokenizer = words()
    tokenizer.chat_template, tokenizer.response_template = CHATML, SCHEMA
    text = '<think>R</think>A<call>{"name": "go", "arguments": {"n": 1}}</call>'
    own = Template.of(tokenizer)
    read = own.parse(tokens(text + "<|im_end|>", tokenizer), prompt=own.prompt([user("Q")]))
    function = {"name": "go", "arguments": {"n": 1}}
    assert read.message == answer(
        "A", reasoning_content="R", tool_calls=[{"type": "function", "function": function}]
    )
    assert read.finished
    # a call that it cannot read is no reason to lose the answer
    broken = own.parse(tokens("A<call>{</call>", tokenizer), prompt=own.prompt([user("Q")]))
    assert broken.message["content"] == "A<call>{</call>"
    given_template = Template.of(tokenizer, CHATML)
    assert given_template.parse(tokens(text, tokenizer)).message == answer(text)


# -------------------------------------------------------------------------------------------- facts


def test_facts_are_those_of_the_source() -> None:
    template = Template.of(PLAIN, CHATML)
    assert (template.stop, template.origin, template.notes) == ("<|im_end|>", "given", ())
    assert template.stop_ids == {PLAIN.eos_token_id, PLAIN.convert_tokens_to_ids("<|im_end|>")}
    assert "the template writes no reasoning" in template.limits
    assert template.parse(tokens("<think>R</think>A")).message == answer("<think>R</think>A")


def test_what_the_template_cannot_be_given() -> None:
    with pytest.raises(ConfigError, match="tokenize is not for the template to read"):
        Template.of(PLAIN, CHATML, {"tokenize": True})
    without = words()
    without.eos_token = None
    with pytest.raises(DataError, match="no end-of-sequence token"):
        Template.of(without)
