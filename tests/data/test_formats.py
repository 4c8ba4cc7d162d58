"""Every format by hand: the row as a file has it, and the one shape in which it goes on; faults by
message number.
"""

from __future__ import annotations

import json
from datetime import datetime
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest

from posttrain.core.errors import DataError
from posttrain.data.formats import FORMATS, Example, Format, detect
from posttrain.data.rows import Rejects, Row
from posttrain.data.settings import Source
from posttrain.data.sources import read

SHARED = (Path(__file__).parents[2] / ".." / "shared" / "data").resolve()
WHERE = "a.jsonl:7"


def system(content: str) -> dict[str, Any]:
    return {"role": "system", "content": content}


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def answer(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def called(name: str, arguments: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **more}


def one(fields: dict[str, Any], name: str = "") -> Example:
    return Format(name).read(Row(fields, WHERE))


def chat(*messages: Any) -> tuple[Any, ...]:
    """The conversation that becomes of these messages."""
    example = one({"messages": list(messages)}, "messages")
    assert (example.prompt, len(example.answers)) == ((), 1)
    return tuple(example.answers[0])


def refusal(fields: dict[str, Any], name: str = "") -> DataError:
    with pytest.raises(DataError) as caught:
        one(fields, name)
    assert caught.value.where == WHERE and caught.value.cure
    return caught.value


TURNS = [user("a"), answer("b")]
TOOL = {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "number"}}}}


# ------------------------------------------------------------------ by hand


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"messages": TURNS}, Example(WHERE, (), (tuple(TURNS),))),
        (
            {
                "messages": json.dumps(TURNS),
                "tools": json.dumps([TOOL]),
                "chat_template_kwargs": '{"enable_thinking": false}',
                "id": 3,
            },
            Example(
                WHERE,
                (),
                (tuple(TURNS),),
                None,
                ({"type": "function", "function": TOOL},),
                {"enable_thinking": False},
            ),
        ),
        (
            {
                "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
                "system": "s",
            },
            Example(WHERE, (), ((system("s"), *TURNS),)),
        ),
        (
            {
                "conversations": [{"role": "user", "content": "a"}, {"from": "gpt", "value": "b"}],
                "system": "",
            },
            Example(WHERE, (), (tuple(TURNS),)),
        ),
        ({"instruction": "a", "output": "b"}, Example(WHERE, (user("a"),), ((answer("b"),),))),
        (
            {"instruction": "a", "input": "", "output": "b", "system": None, "history": []},
            Example(WHERE, (user("a"),), ((answer("b"),),)),
        ),
        (
            {
                "instruction": "a",
                "input": "x",
                "output": "b",
                "system": "s",
                "history": [["q1", "a1"], ["q2", "a2"]],
            },
            Example(
                WHERE,
                (system("s"), user("q1"), answer("a1"), user("q2"), answer("a2"), user("a\nx")),
                ((answer("b"),),),
            ),
        ),
        (
            {"instruction": "a", "output": "b", "history": '[["q", "r"]]'},
            Example(WHERE, (user("q"), answer("r"), user("a")), ((answer("b"),),)),
        ),
        ({"prompt": "a", "completion": "b"}, Example(WHERE, "a", ("b",))),
        ({"prompt": "", "completion": " b"}, Example(WHERE, "", (" b",))),
        (
            {"prompt": [user("a")], "completion": "b"},
            Example(WHERE, (user("a"),), ((answer("b"),),)),
        ),
        (
            {"prompt": "a", "completion": [answer("b")]},
            Example(WHERE, (user("a"),), ((answer("b"),),)),
        ),
        (
            {"prompt": user("a"), "completion": answer("b")},
            Example(WHERE, (user("a"),), ((answer("b"),),)),
        ),
        ({"prompt": "a", "completion": "b", "label": True}, Example(WHERE, "a", ("b",), True)),
        ({"prompt": "a", "completion": "b", "label": 0}, Example(WHERE, "a", ("b",), False)),
        ({"prompt": "a", "completion": "b", "label": "False"}, Example(WHERE, "a", ("b",), False)),
        ({"prompt": "a", "completion": "b", "label": 1.0}, Example(WHERE, "a", ("b",), True)),
        (
            {"messages": [user("a"), answer("b")], "label": False},
            Example(WHERE, (user("a"),), ((answer("b"),),), False),
        ),
        (
            {"messages": [user("a"), answer("b")], "system": "s"},
            Example(WHERE, (), ((system("s"), user("a"), answer("b")),)),
        ),
        (
            {"prompt": "a", "completion": "b", "system": "s"},
            Example(WHERE, (system("s"), user("a")), ((answer("b"),),)),
        ),
        (
            {"messages": [user("a"), answer("b")], "label": 3},
            Example(WHERE, (), ((user("a"), answer("b")),)),
        ),
        (
            {"prompt": [user("a")], "completion": [answer("b")], "label": False, "tools": [TOOL]},
            Example(
                WHERE,
                (user("a"),),
                ((answer("b"),),),
                False,
                ({"type": "function", "function": TOOL},),
            ),
        ),
        ({"text": " a\u2028<|end|>\n"}, Example(WHERE, "", (" a\u2028<|end|>\n",))),
        ({"prompt": "a"}, Example(WHERE, "a")),
        ({"prompt": [user("a")]}, Example(WHERE, (user("a"),))),
    ],
)
def test_every_format_by_hand(fields: dict[str, Any], expected: Example) -> None:
    assert one(fields) == expected


@pytest.mark.parametrize(
    ("fields", "prompt", "chosen", "rejected"),
    [
        ({"prompt": "p", "chosen": "c", "rejected": "r"}, "p", "c", "r"),
        ({"chosen": "c", "rejected": "r"}, "", "c", "r"),
        ({"prompt": None, "chosen": "c", "rejected": "r"}, "", "c", "r"),
        # a prompt inside text ends at the mark of the answer
        (
            {"chosen": "\n\nHuman: p\n\nAssistant: c", "rejected": "\n\nHuman: p\n\nAssistant: r"},
            "\n\nHuman: p\n\nAssistant:",
            " c",
            " r",
        ),
        (
            {"prompt": [user("p")], "chosen": "c", "rejected": "r"},
            (user("p"),),
            (answer("c"),),
            (answer("r"),),
        ),
        (
            {"prompt": "p", "chosen": [answer("c")], "rejected": [answer("r")]},
            (user("p"),),
            (answer("c"),),
            (answer("r"),),
        ),
        (
            {"prompt": [user("p")], "chosen": [answer("c")], "rejected": [answer("r")]},
            (user("p"),),
            (answer("c"),),
            (answer("r"),),
        ),
        (
            {"prompt": [user("p")], "chosen": answer("c"), "rejected": answer("r")},
            (user("p"),),
            (answer("c"),),
            (answer("r"),),
        ),
        # implicit: what both share
        (
            {"chosen": [user("p"), answer("c")], "rejected": [user("p"), answer("r")]},
            (user("p"),),
            (answer("c"),),
            (answer("r"),),
        ),
        (
            {
                "prompt": "",
                "chosen": [user("p"), answer("c")],
                "rejected": [user("p"), answer("r")],
            },
            (user("p"),),
            (answer("c"),),
            (answer("r"),),
        ),
        ({"chosen": [answer("c")], "rejected": [answer("r")]}, (), (answer("c"),), (answer("r"),)),
        # the column and the answers both have it
        (
            {
                "prompt": "p",
                "chosen": [user("p"), answer("c")],
                "rejected": [user("p"), answer("r")],
            },
            (user("p"),),
            (answer("c"),),
            (answer("r"),),
        ),
        (
            {
                "prompt": "p",
                "chosen": [system("s"), user("p"), answer("c")],
                "rejected": [system("s"), user("p"), answer("r")],
            },
            (system("s"), user("p")),
            (answer("c"),),
            (answer("r"),),
        ),
        (
            {
                "prompt": [user("p")],
                "chosen": [user("p"), answer("x"), user("q"), answer("c")],
                "rejected": [user("p"), answer("x"), user("q"), answer("r")],
            },
            (user("p"), answer("x"), user("q")),
            (answer("c"),),
            (answer("r"),),
        ),
        # a question that comes again is no sign that the answers carry the prompt
        (
            {
                "prompt": [user("p")],
                "chosen": [answer("?"), user("p"), answer("c")],
                "rejected": [answer("!"), user("p"), answer("r")],
            },
            (user("p"),),
            (answer("?"), user("p"), answer("c")),
            (answer("!"), user("p"), answer("r")),
        ),
        # the same answer twice: one message at least remains of each
        (
            {"chosen": [user("p"), answer("c")], "rejected": [user("p"), answer("c")]},
            (user("p"),),
            (answer("c"),),
            (answer("c"),),
        ),
        (
            {
                "chosen": [user("p"), answer("c")],
                "rejected": [user("p"), answer("c"), user("q"), answer("r")],
            },
            (user("p"),),
            (answer("c"),),
            (answer("c"), user("q"), answer("r")),
        ),
    ],
)
def test_preference(fields: dict[str, Any], prompt: Any, chosen: Any, rejected: Any) -> None:
    assert one(fields) == Example(WHERE, prompt, (chosen, rejected))


@pytest.mark.parametrize(
    "fields",
    [
        {"chosen": [user("p"), answer("c")], "rejected": [user("p"), answer("r")]},
        {
            "chosen": [system("s"), user("p"), answer("x"), user("q"), answer("c")],
            "rejected": [system("s"), user("p"), answer("x"), user("q"), answer("r")],
        },
        {"prompt": "p", "chosen": [user("p"), answer("c")], "rejected": [user("p"), answer("r")]},
        {
            "prompt": "p",
            "chosen": [system("s"), user("p"), answer("c")],
            "rejected": [system("s"), user("p"), answer("r")],
        },
        {"prompt": [user("p")], "chosen": [answer("c")], "rejected": [answer("r")]},
        {
            "chosen": [user("p"), answer("x"), user("a"), answer("c")],
            "rejected": [user("p"), answer("x"), user("b"), answer("r")],
        },
        {"prompt": "p", "chosen": "c", "rejected": "r"},
    ],
)
def test_preference_as_trl_reads_it(fields: dict[str, Any]) -> None:
    from trl.data_utils import is_conversational, maybe_extract_prompt

    theirs = {"prompt": fields.get("prompt"), **maybe_extract_prompt(fields)}
    ours = one(fields)
    as_list = [
        list(part) if isinstance(part, tuple) else part for part in (ours.prompt, *ours.answers)
    ]
    assert as_list == [theirs["prompt"], theirs["chosen"], theirs["rejected"]]
    assert is_conversational({"chosen": fields["chosen"]}) is not isinstance(ours.answers[0], str)


# ------------------------------------------------------------------ which format


@pytest.mark.parametrize(
    ("columns", "name"),
    [
        ("chosen rejected", "preference"),
        ("prompt chosen rejected", "preference"),
        ("prompt completion chosen rejected label messages", "preference"),
        ("prompt completion label", "label"),
        ("prompt completion", "prompt-completion"),
        ("prompt completion text messages", "prompt-completion"),
        ("messages", "messages"),
        ("prompt messages text", "messages"),
        ("conversations system tools", "sharegpt"),
        ("messages conversations", "messages"),
        ("instruction output", "alpaca"),
        ("instruction input output text", "alpaca"),
        ("text", "text"),
        ("text prompt", "text"),
        ("prompt", "prompt"),
        ("prompt label id", "prompt"),
    ],
)
def test_the_columns_say_which_format(columns: str, name: str) -> None:
    assert detect(Row(dict.fromkeys(columns.split(), "x"), WHERE)) == name
    # columns of nulls say nothing
    assert (
        detect(
            Row(
                {
                    **dict.fromkeys(c for needs, _ in FORMATS.values() for c in needs),
                    **dict.fromkeys(columns.split(), "x"),
                },
                WHERE,
            )
        )
        == name
    )


def test_columns_of_no_format() -> None:
    assert (
        refusal({"question": "a", "answers": ["b"]}).what
        == "no known format has these columns: question, answers"
    )
    assert refusal({}).what == "no known format has these columns: none"
    assert "prompt=question,completion=answer" in refusal({"question": "a"}).cure
    assert len(refusal({f"c{i}": 0 for i in range(9999)}).what) < 200


def test_a_row_of_another_shape_names_both_lines() -> None:
    format = Format()
    format.read(Row({"prompt": "a", "completion": "b"}, "a.jsonl:1"))
    for fields, found in (
        ({"text": "a"}, "this row is text"),
        ({"prompt": "a", "completion": None}, "this row is prompt"),
        ({"x": 1}, "this row has no 'prompt' and 'completion'"),
        ({"prompt": "a", "completion": "b", "label": True}, "this row is label"),
    ):
        with pytest.raises(DataError) as caught:
            format.read(Row(fields, "a.jsonl:2"))
        assert (
            str(caught.value)
            == f"a.jsonl:2: {found}; the source began as prompt-completion (a.jsonl:1)\n"
            "  cure: give the two kinds as two --data sources, each in its own file"
        )
    assert format.read(
        Row({"prompt": "c", "completion": "d", "text": "x"}, "a.jsonl:3")
    ).answers == ("d",)


def test_a_row_that_cannot_be_used_does_not_decide_the_format() -> None:
    format = Format()
    with pytest.raises(DataError, match="the text to learn is empty"):
        format.read(Row({"text": " "}, "a.jsonl:1"))
    assert format.read(Row({"messages": TURNS}, "a.jsonl:2")).answers == (tuple(TURNS),)
    assert (format.name, format.first and format.first.where) == ("messages", "a.jsonl:2")


def test_a_format_that_was_told() -> None:
    row = {"prompt": "a", "completion": "b", "text": "c", "label": True}
    assert one(row, "text").answers == ("c",) and one(row, "prompt").answers == ()
    assert one(row, "prompt-completion") == Example(WHERE, "a", ("b",))
    error = refusal({"txt": "a"}, "text")
    assert error.what == "format text needs the column 'text'; did you mean 'txt'?"
    format = Format("prompt")
    format.read(Row({"prompt": "a"}, "a:1"))
    assert format.read(Row({"prompt": "a", "completion": "b"}, "a:2")).answers == ()
    with pytest.raises(
        DataError, match=r"a:3: this row is text; the source began as prompt \(a:1\)"
    ):
        format.read(Row({"text": "a"}, "a:3"))


# ------------------------------------------------------------------ messages


@pytest.mark.parametrize(
    ("given", "role"),
    [
        ("system", "system"),
        ("developer", "developer"),
        ("user", "user"),
        ("human", "user"),
        ("tool", "tool"),
        ("function", "tool"),
        ("observation", "tool"),
        ("function_response", "tool"),
        ("ipython", "tool"),
        ("assistant", "assistant"),
        ("gpt", "assistant"),
        ("model", "assistant"),
        (" User ", "user"),
        ("GPT", "assistant"),
    ],
)
def test_roles_become_ours(given: str, role: str) -> None:
    assert chat({"role": given, "content": "x"}, answer("y"))[0] == {"role": role, "content": "x"}
    assert chat({"role": None, "from": given, "content": None, "value": "x"}, answer("y"))[0] == {
        "role": role,
        "content": "x",
    }


def test_what_a_template_may_read_stays_and_nulls_go() -> None:
    message = {
        "role": "tool",
        "content": "x",
        "name": "f",
        "tool_call_id": "7",
        "tool_calls": None,
        "weight": None,
        "sent": datetime(2026, 1, 1),
    }
    assert chat(message, answer("y", reasoning_content="why", weight=1))[0] == {
        "role": "tool",
        "content": "x",
        "name": "f",
        "tool_call_id": "7",
        "sent": datetime(2026, 1, 1),
    }


def test_a_turn_with_weight_0_is_given_but_not_learned() -> None:
    assert chat(user("a"), answer("", weight=0), user("c"), answer("d", weight=1)) == (
        user("a"),
        answer("", weight=0),
        user("c"),
        answer("d", weight=1),
    )
    assert (
        "has no assistant turn to learn"
        in refusal({"messages": [user("a"), answer("b", weight=0)]}).what
    )
    for weight in (2, 0.5, "1", [1], nan):
        assert (
            refusal({"messages": [answer("b", weight=weight)]}).what
            == "message 1 of messages has a weight that is not 0 or 1"
        )


def test_content_in_parts() -> None:
    parts = [
        {"type": "text", "text": "a"},
        {"type": "input_text", "text": "b"},
        {"text": "c", "type": None, "image_url": None},
    ]
    assert chat({"role": "user", "content": parts}, answer("y"))[0] == user("abc")
    for part, named in (
        ({"type": "image_url", "image_url": {"url": "x"}}, "image_url"),
        ({"type": "image", "text": "alt"}, "image"),
        ({"type": "text", "text": None}, "text"),
        ("a", "text"),
        (7, "a number"),
        ({"type": {"a": 1}}, "an object"),
    ):
        error = refusal({"messages": [user("x"), {"role": "user", "content": [part]}, answer("y")]})
        assert error.what == f"message 2 of messages has a part of type {named!r}"
        assert error.cure.startswith("only text can be trained")


CALL = called("f", {"x": 1})


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "assistant", "content": None, "tool_calls": json.dumps([CALL])},
        {"role": "assistant", "content": None, "tool_calls": [called("f", '{"x": 1}')]},  # type: ignore[arg-type] - OpenAI's text
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"name": "f", "arguments": {"x": 1}}],
        },
        {
            "role": "assistant",
            "content": None,
            "tool_calls": {"name": "f", "parameters": '{"x": 1}'},
        },
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"function": None, "name": "f", "arguments": None, "parameters": {"x": 1}}
            ],
        },
        {
            "role": "assistant",
            "content": None,
            "function_call": {"name": "f", "arguments": '{"x": 1}'},
        },
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {**CALL, "id": None, "function": {"name": "f", "arguments": {"x": 1, "y": None}}}
            ],
        },
        {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
        {
            "role": "tool_call",
            "content": '[{"name": "f", "arguments": "{\\"x\\": 1}"}]',
            "weight": None,
        },
    ],
)
def test_tool_calls_however_they_were_nested(message: dict[str, Any]) -> None:
    assert chat(user("a"), message)[1] == answer("", tool_calls=[CALL])


def test_tool_calls_keep_what_matters() -> None:
    calls = [called("f", {}, id="1"), called("g", {"x": [None, {"y": 2}]}, id="2")]
    assert chat(answer("a", tool_calls=calls))[0] == answer("a", tool_calls=calls)
    assert chat(answer("a", tool_calls=[{"name": "f"}, {"name": "g", "arguments": ""}]))[0][
        "tool_calls"
    ] == [called("f", {}), called("g", {})]
    # what a table fills in goes
    table = [{"name": "f", "arguments": {"x": {"y": 1, "z": None}, "w": [{"a": None}]}}]
    assert chat(answer("a", tool_calls=table))[0]["tool_calls"] == [
        called("f", {"x": {"y": 1}, "w": [{}]})
    ]
    written = [{"name": "f", "arguments": '{"x": null}'}]  # what was written stays
    assert chat(answer("a", tool_calls=written))[0]["tool_calls"] == [called("f", {"x": None})]
    for none in (None, "", [], "[]", "null"):
        assert chat(answer("a", tool_calls=none))[0] == answer("a")


@pytest.mark.parametrize(
    ("tools", "expected"),
    [
        (None, None),
        ("", None),
        ([], None),
        ("[]", None),
        ("null", None),
        ([TOOL], ({"type": "function", "function": TOOL},)),
        (TOOL, ({"type": "function", "function": TOOL},)),
        ([{"type": "function", "function": TOOL}], ({"type": "function", "function": TOOL},)),
        (
            [
                {
                    "name": "f",
                    "function": None,
                    "parameters": {
                        "properties": {"x": {"type": "number"}, "y": None},
                        "required": ["x"],
                    },
                }
            ],
            (
                {
                    "type": "function",
                    "function": {
                        "name": "f",
                        "parameters": {"properties": {"x": {"type": "number"}}, "required": ["x"]},
                    },
                },
            ),
        ),
    ],
)
def test_tools(tools: Any, expected: Any) -> None:
    assert one({"messages": TURNS, "tools": tools}).tools == expected


@pytest.mark.parametrize(
    ("messages", "what"),
    [
        ([], "messages holds an empty list, not a list of messages"),
        (7, "messages holds a number, not a list of messages"),
        ("null", "messages holds null, not a list of messages"),
        ({"role": "user"}, "messages holds an object, not a list of messages"),
        (
            "[{",
            (
                "messages is text, and not JSON: Expecting property name enclosed in double quotes:"
                " line 1 column 3 (char 2)"
            ),
        ),
        (
            '[{"role": "user", "role": "user"}]',
            "messages is text, and not JSON: the key 'role' stands twice",
        ),
        ("hello", "messages is text, and not JSON: Expecting value: line 1 column 1 (char 0)"),
        ([user("a"), "b"], "message 2 of messages is text, not an object"),
        ([user("a"), None], "message 2 of messages is null, not an object"),
        ([user("a"), {"content": "b"}], "message 2 of messages has no role"),
        ([{"role": "usr", "content": "b"}], "message 1 of messages has the unknown role 'usr'"),
        (
            [{"role": ["user"], "content": "b"}],
            "the role of message 1 of messages holds a list, not text",
        ),
        (
            [{"role": "\ud800" * 99, "content": "b"}],
            "the role of message 1 of messages holds half a character, \\ud800",
        ),
        (
            [{"role": "x" * 99, "content": "b"}],
            f"message 1 of messages has the unknown role '{'x' * 40}'",
        ),
        ([user("a"), {"role": "user"}], "message 2 of messages (user) has no content"),
        (
            [user("a"), {"role": "assistant", "content": None, "tool_calls": []}],
            "message 2 of messages (assistant) has no content",
        ),
        ([user("a"), answer(" \n")], "message 2 of messages (assistant) is empty"),
        ([{"role": "user", "content": 7}], "message 1 of messages holds a number, not text"),
        (
            [{"role": "user", "content": {"a": 1}}],
            "message 1 of messages holds an object, not text",
        ),
        ([user("a\ud800")], "message 1 of messages holds half a character, \\ud800"),
        ([user("a\0")], "message 1 of messages holds a NUL character (character 2)"),
        (
            [answer("a", name="\udc00")],
            "name of message 1 of messages holds half a character, \\udc00",
        ),
        ([user("a"), user("b")], "the conversation has no assistant turn to learn from"),
        (
            [answer("", tool_calls=[{"arguments": {}}])],
            "the tool call of message 1 of messages has no function name",
        ),
        (
            [answer("", tool_calls=[7])],
            "the tool call of message 1 of messages has no function name",
        ),
        (
            [answer("", tool_calls="f(x)")],
            (
                "the tool call of message 1 of messages is text, and not JSON: Expecting value: "
                "line 1 column 1 (char 0)"
            ),
        ),
        (
            [answer("", tool_calls=[{"name": "f", "arguments": "{x"}])],
            (
                "the arguments of a tool call of message 1 of messages is text, and not JSON: "
                "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"
            ),
        ),
        (
            [answer("", tool_calls=[{"name": "f", "arguments": [1]}])],
            "the arguments of a tool call of message 1 of messages are a list, not an object",
        ),
        (
            [answer("", tool_calls=[called("f", {"x": ["\ud800"]})])],
            "the tool call of message 1 of messages holds half a character, \\ud800",
        ),
        (
            [answer("", tool_calls=[called("f", {"x": nan})])],
            "the tool call of message 1 of messages holds NaN, which JSON cannot write",
        ),
        (
            [answer("", tool_calls=[called("f", {"x": -inf})])],
            "the tool call of message 1 of messages holds a number, which JSON cannot write",
        ),
        (
            [answer("", tool_calls=[called("f", {"x": b""})])],
            "the tool call of message 1 of messages holds bytes, which JSON cannot write",
        ),
        (
            [{"from": "function_call", "value": "f()"}],
            (
                "the tool call of message 1 of messages is text, and not JSON: Expecting value: "
                "line 1 column 1 (char 0)"
            ),
        ),
        (
            [{"role": "tool_call", "content": None}],
            "the tool call of message 1 of messages has no function name",
        ),
    ],
)
def test_a_conversation_that_cannot_be_used(messages: Any, what: str) -> None:
    assert refusal({"messages": messages}).what == what
    # the same in any other column
    if isinstance(messages, list) and messages and "assistant turn" not in what:
        assert refusal({"prompt": "a", "completion": messages}).what == what.replace(
            "messages", "completion"
        )


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"text": ""}, "the text to learn is empty"),
        ({"text": 7}, "column 'text' holds a number, not text"),
        ({"text": nan}, "column 'text' holds NaN, not text"),
        ({"text": b"x"}, "column 'text' holds bytes, not text"),
        ({"text": ["a"]}, "column 'text' holds a list, not text"),
        ({"text": "a\0"}, "column 'text' holds a NUL character (character 2)"),
        ({"prompt": 3, "completion": "b"}, "column 'prompt' holds a number, not text"),
        ({"prompt": "a", "completion": "\t"}, "the text to learn is empty"),
        (
            {"prompt": "a", "completion": [user("b")]},
            "the conversation has no assistant turn to learn from",
        ),
        (
            {"prompt": "a", "completion": "b", "label": "yes"},
            "the label is text, not true or false",
        ),
        (
            {"prompt": "a", "completion": "b", "label": 2},
            "the label is a number, not true or false",
        ),
        (
            {"prompt": "a", "completion": "b", "label": 0.5},
            "the label is a number, not true or false",
        ),
        (
            {"chosen": "a", "rejected": [answer("b")]},
            "of chosen and rejected one is text and one is messages",
        ),
        ({"chosen": "a", "rejected": ""}, "the text to learn is empty"),
        (
            {"chosen": [user("a"), answer("b")], "rejected": [user("a")]},
            "the conversation has no assistant turn to learn from",
        ),
        ({"prompt": [user("a")], "completion": " "}, "the text to learn is empty"),
        ({"prompt": [user("a")], "chosen": "b", "rejected": ""}, "the text to learn is empty"),
        ({"instruction": "a", "output": ""}, "the text to learn is empty"),
        ({"instruction": "a", "output": 5}, "column 'output' holds a number, not text"),
        (
            {"instruction": "a", "input": 0, "output": "b"},
            "column 'input' holds a number, not text",
        ),
        ({"instruction": "a", "input": [], "output": "b"}, "column 'input' holds a list, not text"),
        (
            {"instruction": "a", "output": "b", "system": False},
            "column 'system' holds true or false, not text",
        ),
        (
            {"instruction": "a", "output": "b", "history": 5},
            "history is not a list of [question, answer]",
        ),
        (
            {"instruction": "a", "output": "b", "history": [["q"]]},
            "history is not a list of [question, answer]",
        ),
        (
            {"instruction": "a", "output": "b", "history": {"q": "a"}},
            "history is not a list of [question, answer]",
        ),
        (
            {"instruction": "a", "output": "b", "history": [["q", None]]},
            "history holds null, not text",
        ),
        ({"messages": TURNS, "tools": 7}, "tools is not a list of objects"),
        ({"messages": TURNS, "tools": ["f"]}, "tools is not a list of objects"),
        (
            {"messages": TURNS, "tools": "[{"},
            (
                "tools is text, and not JSON: Expecting property name enclosed in double quotes: "
                "line 1 column 3 (char 2)"
            ),
        ),
        (
            {"messages": TURNS, "tools": [{"name": "\ud800"}]},
            "tools holds half a character, \\ud800",
        ),
        (
            {"messages": TURNS, "tools": [{"name": "f", "x": nan}]},
            "tools holds NaN, which JSON cannot write",
        ),
        (
            {"messages": TURNS, "chat_template_kwargs": [1]},
            "chat_template_kwargs holds a list, not an object",
        ),
        (
            {"messages": TURNS, "chat_template_kwargs": {"a": datetime(2026, 1, 1)}},
            "chat_template_kwargs holds datetime, which JSON cannot write",
        ),
        (
            {"messages": TURNS, "tools": json.loads('{"a": ' * 101 + "1" + "}" * 101)},
            "tools is nested more than 100 deep",
        ),
    ],
)
def test_a_row_that_cannot_be_used(fields: dict[str, Any], what: str) -> None:
    assert refusal(fields).what == what


def test_nesting_beyond_pythons_stack() -> None:
    deep: Any = "x"
    for _ in range(5000):
        deep = [deep]
    assert refusal({"messages": TURNS, "tools": deep}).what == "tools is nested more than 100 deep"
    twin = json.loads(json.dumps("x"))
    for _ in range(5000):
        twin = [twin]
    pair = {
        "chosen": [{**user("a"), "x": deep}, answer("b")],
        "rejected": [{**user("a"), "x": twin}, answer("c")],
    }
    assert refusal(pair).what == "its values are nested too deep"
    text = "[" * 99999 + "]" * 99999
    assert refusal({"messages": text}).what.startswith(
        "messages is text, and not JSON: maximum recursion depth exceeded"
    )


# ------------------------------------------------------------------ the shared data

COUNTS = {  # file: (format, rows, rejected)
    "demonstrations/dolly_valid": ("prompt-completion", 512, 0),
    "demonstrations/glaive_toolcall_demo": ("messages", 300, 0),
    "demonstrations/taskmaster4_coffee": ("messages", 3000, 0),
    "demonstrations/self_instruct_seed": ("prompt-completion", 175, 0),
    "demonstrations/p3_t0_sample": ("prompt-completion", 8310, 0),
    "preferences/hh_harmless_a": ("preference", 1536, 0),
    "preferences/llamafactory_dpo_demo": ("preference", 300, 0),
    "preferences/pandalm_human": ("preference", 894, 58),
    "preferences/hhh_alignment": ("preference", 221, 0),
    "noncommercial/alpaca_eval_805": ("prompt", 803, 0),
    "unclear_licence/rm_bench": ("", 649, 649),
    "text/children_stories": ("text", 704, 0),
    "math/gsm8k_test": ("prompt-completion", 1319, 0),
}


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"there is no shared data folder {SHARED}")
def test_every_row_of_the_shared_data_is_used_or_refused(tmp_path: Path) -> None:
    found = {}
    for path in sorted(p for p in SHARED.glob("*/*.jsonl.gz") if p.stat().st_size < 2**19):
        rejects, format, used = Rejects(tmp_path / "rejects.jsonl"), Format(), 0
        for row in read(Source.model_validate({"path": str(path)}), rejects):
            try:
                format.read(row)
                used += 1
            except DataError as error:
                rejects.add(error, row)
        rejects.balance(used)
        rejects.close()
        found[str(path.relative_to(SHARED)).removesuffix(".jsonl.gz")] = (
            format.name,
            rejects.read,
            rejects.count,
        )
    assert {name: found.get(name) for name in COUNTS if name in found} == {
        k: v for k, v in COUNTS.items() if k in found
    }
    assert len(found) > 50
