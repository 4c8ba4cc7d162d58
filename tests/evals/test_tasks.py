"""Every task on a model of thirty thousand parameters, against transformers alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.core.errors import DataError
from posttrain.data.chat import Chat
from posttrain.data.rows import Row
from posttrain.data.settings import Source
from posttrain.engine.policy import Policy
from posttrain.evals import tasks
from posttrain.evals.tasks import Subject
from tests import making

TEXTS = [
    "one two three",
    "Grüße, 世界",
    "a" * 3,
    "the quick brown fox jumps over the lazy dog " * 4,
]
QUIZ = [
    ("2+2?", ["4", "five", "1234"], 0),
    ("capital of France?", ["Rome", "Paris"], 1),
    ("x", ["yes, it is so", "no"], 1),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return making.model(tmp_path_factory.mktemp("evals") / "base", positions=128)


@pytest.fixture(scope="module")
def policy(folder: Path) -> Policy:
    return Policy.load(folder, device="cpu")


def subject(policy: Policy, *, budget: int = 4096, longest: int = 128, **chat: Any) -> Subject:
    return Subject(
        policy, Chat(policy.tokenizer, **chat), budget, longest, lambda done, total: None
    )


def items(*fields: dict[str, Any]) -> list[Row]:
    return [Row(one, f"a.jsonl:{i}") for i, one in enumerate(fields, 1)]


def plain(folder: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(
        folder
    )


@torch.no_grad()
def nll(network: Any, ids: list[int]) -> float:
    """Summed nats of all tokens but the first: transformers' own loss."""
    one = torch.tensor([ids])
    return float(network(input_ids=one, labels=one).loss) * (len(ids) - 1)


def test_perplexity_is_transformers_loss(folder: Path, policy: Policy) -> None:
    network, words = plain(folder)
    found = tasks.perplexity(subject(policy, longest=1024), items(*({"text": t} for t in TEXTS)))
    ids = [words(text)["input_ids"] for text in TEXTS]
    assert [r["where"] for r in found] == [f"a.jsonl:{i}" for i in (1, 2, 3, 4)]
    assert [r["tokens"] for r in found] == [len(one) - 1 for one in ids]
    assert [r["bytes"] for r in found] == [len(text.encode()) for text in TEXTS]
    assert [r["nats"] for r in found] == pytest.approx([nll(network, one) for one in ids], rel=1e-4)
    said = tasks.metrics("perplexity", found)
    total = sum(nll(network, one) for one in ids)
    assert said["nats_per_token"].mean == pytest.approx(
        total / sum(len(one) - 1 for one in ids), rel=1e-4
    )
    assert said["bits_per_byte"].mean == pytest.approx(
        total / math.log(2) / sum(len(t.encode()) for t in TEXTS), rel=1e-4
    )


def test_long_text_is_scored_in_windows_and_every_token_once(folder: Path, policy: Policy) -> None:
    network, words = plain(folder)
    text = TEXTS[3]
    ids = words(text)["input_ids"]
    (found,) = tasks.perplexity(subject(policy, longest=50), items({"text": text}))
    # windows overlap by the token that predicts the next one's first
    windows = [ids[a : a + 50] for a in range(0, len(ids) - 1, 49)]
    assert sum(len(one) - 1 for one in windows) == len(ids) - 1 == found["tokens"] == 175
    assert found["nats"] == pytest.approx(sum(nll(network, one) for one in windows), rel=1e-4)


def test_a_small_budget_changes_nothing(policy: Policy) -> None:
    rows = items(*({"text": t} for t in TEXTS))
    large, small = (
        tasks.perplexity(subject(policy, budget=budget), rows) for budget in (4096, 200)
    )
    assert [r["nats"] for r in small] == pytest.approx([r["nats"] for r in large], rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("template", [None, "Q: {prompt}\nA: "])
def test_choices_are_scored_without_the_token_that_ends_them(
    folder: Path, policy: Policy, template: str | None
) -> None:
    network, words = plain(folder)
    about = subject(policy, prompt_template=template)
    found = tasks.choice(
        about, items(*({"question": q, "choices": c, "answer_index": i} for q, c, i in QUIZ))
    )
    for record, (question, choices, right) in zip(found, QUIZ, strict=True):
        if template is None:
            before = words.apply_chat_template(
                [{"role": "user", "content": question}],
                chat_template=about.chat.template.source,
                add_generation_prompt=True,
                tokenize=False,
            )
        else:
            before = template.replace("{prompt}", question)
        start = len(words(before)["input_ids"])
        expected = []
        for one in choices:
            ids = torch.tensor([words(before + one)["input_ids"]])
            scored = (
                network(input_ids=ids)
                .logits[0, :-1]
                .log_softmax(-1)
                .gather(1, ids[0, 1:, None])[:, 0]
            )
            assert len(scored[start - 1 :]) == len(
                one.encode()
            )  # the tokenizer is of bytes: no end token among them
            expected.append(float(scored[start - 1 :].sum()))
        assert record["logprobs"] == pytest.approx(expected, abs=1e-3)
        assert record["correct"] is (max(range(len(choices)), key=expected.__getitem__) == right)
        each = [p / len(c.encode()) for p, c in zip(expected, choices, strict=True)]
        assert record["correct_per_byte"] is (
            max(range(len(choices)), key=each.__getitem__) == right
        )
    # summed, the short choice wins with a random model
    assert [r["correct"] for r in found] == [True, False, True]


@torch.no_grad()
def test_answers_are_transformers_greedy_generate(folder: Path, policy: Policy) -> None:
    network, words = plain(folder)
    questions = ["2+2?", "What is the capital of France?", "x", "Say something long about nothing."]
    rows = items(
        *({"prompt": q, "completion": "4"} for q in questions[:2]),
        *(
            {
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": q},
                    {"role": "assistant", "content": "4"},
                ]
            }
            for q in questions[2:]
        ),
    )
    about = subject(policy)
    found = [
        *tasks.exact(about, rows[:2], max_tokens=12),
        *tasks.exact(about, rows[2:], max_tokens=12),
    ]
    for i, (record, question) in enumerate(zip(found, questions, strict=True)):
        system = [{"role": "system", "content": "Be brief."}] * (i > 1)
        prompt = words.apply_chat_template(
            [*system, {"role": "user", "content": question}],
            chat_template=about.chat.template.source,
            add_generation_prompt=True,
            tokenize=False,
        )
        ids = words(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        drawn = network.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=12,
            pad_token_id=0,
        )
        answer = words.decode(drawn[0, ids.shape[1] :], skip_special_tokens=True)
        assert (record["answer"], record["wanted"], record["where"]) == (answer, "4", rows[i].where)
        assert record["correct"] is False and len(answer) > 0
    # the wanted answer is what it writes
    (again,) = tasks.exact(
        about,
        items({"prompt": "2+2?", "completion": found[0]["answer"], "skill": "sums", "other": 1}),
        max_tokens=12,
    )
    assert (again["correct"], again["skill"], "other" in again) == (True, "sums", False)


@pytest.mark.parametrize(
    ("task", "row", "said"),
    [
        (tasks.perplexity, {"txt": "a"}, "format text needs the column 'text'"),
        (tasks.exact, {"prompt": "a"}, "an item needs a question and one answer"),
        (
            tasks.exact,
            {"chosen": "a", "rejected": "b", "prompt": "c"},
            "an item needs a question and one answer",
        ),
        (
            tasks.exact,
            {"messages": [{"role": r, "content": "-"} for r in ("user", "assistant", "user")]},
            "not end with an answer",
        ),
        (tasks.exact, {"what": "a"}, "no known format has these columns: what"),
        (tasks.choice, {"choices": ["a", "b"], "answer_index": 0}, "there is no column 'question'"),
        (
            tasks.choice,
            {"question": "q", "choices": ["a"], "answer_index": 0},
            "choices holds a list, not a list of at least two",
        ),
        (
            tasks.choice,
            {"question": "q", "choices": ["a", ""], "answer_index": 0},
            "not a list of at least two texts",
        ),
        (
            tasks.choice,
            {"question": "q", "choices": "ab", "answer_index": 0},
            "not a list of at least two texts",
        ),
        (
            tasks.choice,
            {"question": "q", "choices": ["a", "b"], "answer_index": 2},
            "answer_index is 2, not the place of one of 2",
        ),
        (
            tasks.choice,
            {"question": "q", "choices": ["a", "b"], "answer_index": True},
            "answer_index is True",
        ),
        (tasks.choice, {"question": "q", "choices": ["a", "b"]}, "answer_index is None"),
    ],
    ids=lambda one: getattr(one, "__name__", str(one)),
)
def test_what_is_no_item_is_named_with_its_line(
    policy: Policy, task: Any, row: dict[str, Any], said: str
) -> None:
    with pytest.raises(DataError) as caught:
        task(subject(policy), [Row(row, "a.jsonl:7")])
    assert caught.value.where == "a.jsonl:7"
    assert said in caught.value.what
    assert caught.value.cure


def test_a_choice_that_does_not_fit_is_refused_not_cut(policy: Policy) -> None:
    """With this plain template, and a tokenizer of bytes, a question of 20 signs and a choice of 10
    are 30 tokens.
    """
    rows = items(
        {"question": "q", "choices": ["a", "b"], "answer_index": 0},
        {"question": "q" * 20, "choices": ["a", "b" * 10], "answer_index": 0},
    )
    assert len(tasks.choice(subject(policy, longest=30, prompt_template="{prompt}"), rows)) == 2
    with pytest.raises(DataError) as caught:
        tasks.choice(subject(policy, longest=29, prompt_template="{prompt}"), rows)
    assert caught.value.where == "a.jsonl:2"
    assert caught.value.what == "the question and a choice are 30 tokens, and 29 fit"
    assert "--max-length 30" in caught.value.cure


def test_a_source_without_rows_and_a_broken_line_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there are no rows in"):
        tasks.rows(Source(path=str(making.write(tmp_path / "empty.jsonl", []))))
    broken = making.write(tmp_path / "broken.jsonl", [{"text": "a"}, "{"])
    with pytest.raises(DataError) as caught:
        tasks.rows(Source(path=str(broken)))
    assert caught.value.where == f"{broken}:2"


def test_differences_are_of_the_same_items() -> None:
    after = [
        {"where": str(i), "nats": nats, "tokens": t, "bytes": 4}
        for i, (nats, t) in enumerate([(1.0, 2), (2.0, 2)])
    ]
    before = [
        {**one, "nats": one["nats"] + gap} for one, gap in zip(after, (1.0, 3.0), strict=True)
    ]
    found = tasks.differences("perplexity", after, before)
    assert found["nats_per_token"].mean == -4 / 4
    assert found["bits_per_byte"].mean == pytest.approx(-4 / math.log(2) / 8)
    # another tokenizer: tokens cannot be compared, bytes can; and a text of one token is no item of
    # that model
    other = [{**before[0], "tokens": 3}]
    found = tasks.differences("perplexity", after, other)
    assert list(found) == ["bits_per_byte"]
    assert (found["bits_per_byte"].n, found["bits_per_byte"].mean) == (
        1,
        pytest.approx(-1 / math.log(2) / 4),
    )
    right = [{"where": str(i), "correct": c} for i, c in enumerate((True, True, False))]
    wrong = [{"where": str(i), "correct": c} for i, c in enumerate((True, False, False))]
    assert tasks.differences("exact", right, wrong)["correct"].mean == pytest.approx(1 / 3)
