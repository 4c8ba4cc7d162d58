"""What is shown and what is trained in 126 templates."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from posttrain.data.forest import Sequence, Tree, collate
from tests.data.chats import docs, served


def test_the_page_is_up_to_date(swept: Any) -> None:
    assert docs().PAGE.read_text() == docs().page(swept), "run docs/templates.py"


def test_the_page_counts_every_template_once() -> None:
    page, _, reading = docs().PAGE.read_text().partition("## Reading answers back")
    read = re.findall(r"^\| ([a-z ]+) \| (\d+) \| (\d+) \| (\d+) \|$", reading, re.MULTILINE)
    assert [name for name, *_ in read] == ["content", "reasoning", "tool calls"]
    assert {int(a) + int(b) + int(c) for _, a, b, c in read} == {124}
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
                # it does not prompt after a result, and marks what history has there
                ours = ours.removeprefix("<|turn>model\n")
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
