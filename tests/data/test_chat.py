"""Rows as turns: which answers are trained, plain text, special tokens, and real rows."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator

import pytest

from posttrain.core.errors import DataError
from posttrain.data.chat import Chat
from posttrain.data.formats import Example, Format
from posttrain.data.rows import Row
from posttrain.data.tokens import Encoder
from tests.data.chats import (
    CHATML,
    SHARED,
    answer,
    example,
    pairs,
    sequences,
    shared_template,
    turns,
    user,
    words,
)

PLAIN = words()


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
    for asked in (
        lambda: plain.turns(example([user("Q"), answer("A")]), (user("Q"), answer("A"))),
        lambda: plain.prompt(Example("a:1", (user("Q"),))),
    ):
        with pytest.raises(DataError, match="a conversation, where the prompt template") as caught:
            asked()
        assert "--prompt-template ''" in caught.value.cure


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
