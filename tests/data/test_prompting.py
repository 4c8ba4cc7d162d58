"""How a model is prompted is kept beside it, read back, and given way to what is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.core.errors import ConfigError, ModelError
from posttrain.core.settings import assemble
from posttrain.data.chat import Chat
from posttrain.data.formats import Example
from posttrain.data.prompting import FILE, Prompting, before_stop
from posttrain.data.settings import PromptingSettings
from tests import making
from tests.data.chats import CHATML, answer, user

PLAIN = Prompting("Q: {prompt}\nA:", stop=("\nQ:",))
KWARGS = Prompting(template_kwargs={"enable_thinking": False}, system="Be brief.")


def given(**settings: Any) -> PromptingSettings:
    return assemble(PromptingSettings, settings)


@pytest.mark.parametrize("prompting", [Prompting(), PLAIN, KWARGS])
def test_what_is_written_is_read_back(tmp_path: Path, prompting: Prompting) -> None:
    (tmp_path / FILE).write_text('{"system": "of another model that was here"}')
    prompting.write(tmp_path)
    assert (tmp_path / FILE).exists() is (prompting != Prompting())
    assert Prompting.read(tmp_path) == prompting


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"sistem": "a"}', '{"stop": "a"}', '{"stop": [1]}', '{"prompt_template": ""}'],
)
def test_a_file_that_nobody_of_ours_writes_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ModelError, match=FILE) as caught:
        Prompting.read(tmp_path)
    assert caught.value.cure


def test_what_is_given_goes_before_what_is_remembered() -> None:
    assert PLAIN.overridden(given()) == PLAIN and KWARGS.overridden(given()) == KWARGS
    # argument by argument
    both = KWARGS.overridden(given(template_kwargs={"enable_thinking": "true", "date": "today"}))
    assert both.template_kwargs == {"enable_thinking": True, "date": "today"}
    assert both.system == "Be brief." and KWARGS.overridden(given(system="")).system == ""
    # the chat template again: what ends plain text is not its own
    assert PLAIN.overridden(given(prompt_template="")) == Prompting()
    assert PLAIN.overridden(given(stop=["."])).stops == (".",)
    with pytest.raises(ConfigError, match="a system prompt, where prompts are plain text"):
        PLAIN.overridden(given(system="Be kind."))
    # one that is remembered has no place in plain text either, and is not missed
    assert KWARGS.overridden(given(prompt_template="{prompt}")).system == ""


def test_line_breaks_may_be_spelled_out() -> None:
    spelled = given(prompt_template=r"Q: {prompt}\nA:", stop=[r"\n\n", r"a\\n"])
    assert spelled.prompt_template == "Q: {prompt}\nA:" and spelled.stop == ("\n\n", r"a\n")
    with pytest.raises(ConfigError, match="does not contain"):
        given(prompt_template="Q:")


def test_plain_text_ends_at_a_blank_line_unless_something_else_is_said() -> None:
    assert Prompting("{prompt}").stops == ("\n\n",) and Prompting().stops == ()
    assert Prompting("{prompt}", stop=("",)).stops == () and Prompting(stop=("END",)).stops == (
        "END",
    )
    assert before_stop("a\n\nb.c", (".", "\n\n")) == "a" and before_stop("ab", ("\n",)) == "ab"


def test_it_is_told_in_one_line_and_whether_the_model_knows_it() -> None:
    assert str(Prompting()) == ""
    assert PLAIN.described(PLAIN) == (
        r'as trained: plain text "Q: {prompt}\nA:", answers end before "\nQ:"'
    )
    other = KWARGS.overridden(given(template_kwargs={"enable_thinking": "true"}, system=""))
    assert other.described(KWARGS) == (
        'enable_thinking=true (trained with enable_thinking=false, system prompt "Be brief.")'
    )
    assert Prompting().described(PLAIN).startswith("the chat template (trained with plain text")


# --------------------------------------------------------------------------------------- in a chat


def test_a_system_prompt_goes_before_conversations_that_have_none() -> None:
    chat = Chat(making.tokenizer(), template=CHATML, system="Be kind.")
    before = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n"
    assert chat.prompt(Example("", "Q"))[0].startswith(before)
    conversation = (user("Q"), answer("A"))
    (turn,) = chat.turns(Example("", "", (conversation,)), conversation)
    assert turn.before.startswith(before + "Q")
    own = ({"role": "system", "content": "Be brief."}, user("Q"))
    assert "Be kind." not in chat.prompt(Example("", own))[0]


def test_what_all_conversations_share_is_known() -> None:
    chat = Chat(making.tokenizer(), template=CHATML)
    system = {"role": "system", "content": "Be brief."}
    for question in ("a", "b"):
        chat.turns(Example("", (system, user(question)), (), kwargs={"k": 1}), (answer("c"),))
    (shared,) = chat.shared
    learned = Prompting(template_kwargs={"j": 2}).learned(*json.loads(shared))
    assert learned == Prompting(template_kwargs={"j": 2, "k": 1}, system="Be brief.")
    chat.turns(Example("", (user("a"),)), (answer("c"),))
    assert len(chat.shared) == 2


@pytest.mark.parametrize(
    ("written", "judged", "thinking", "whole"),
    [
        ("<think>\n\n</think>\n\nLima<|end|>", "Lima", "", "<think>\n\n</think>\n\nLima"),
        ("<think>\nHm.\n</think>\n\nLima", "Lima", "Hm.", "<think>\nHm.\n</think>\n\nLima"),
        ("<think>\nLima", "", "Lima", "<think>\nLima"),  # no answer yet
        ("Lima", "Lima", "", "Lima"),
        ("<think>\nHm.\n</think>\n\n<|start|>Li<|start|>ma", "Lima", "Hm.", None),
        # what looks like a call of a tool is text where no tool was offered
        ('<tool_call>{"name": "a", "arguments": {}}</tool_call>', None, "", None),
    ],
)
def test_the_answer_is_judged_without_its_thinking(
    written: str, judged: str | None, thinking: str, whole: str | None
) -> None:
    words = making.tokenizer()
    chat = Chat(words, template=making.THINKING)
    prompt = words(chat.prompt(Example("", "Q"))[0], add_special_tokens=False)["input_ids"]
    reply = chat.read(words(written, add_special_tokens=False)["input_ids"], prompt)
    assert reply.judged(False) == (written if judged is None else judged)
    assert reply.thinking == thinking and (whole is None or reply.judged(True) == whole)


def test_plain_text_is_cut_and_not_parsed() -> None:
    words = making.tokenizer()
    chat = Chat(words, template=making.THINKING, prompt_template="{prompt}", stops=("\n\n",))
    reply = chat.read(words("<think>a</think> b\n\nQ: c")["input_ids"], [0])
    assert (reply.judged(False), reply.judged(True)) == ("<think>a</think> b",) * 2
    assert reply.message is None
