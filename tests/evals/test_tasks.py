"""Every task on a model of thirty thousand parameters, against transformers alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.core.errors import ConfigError, DataError
from posttrain.core.files import sha256_file
from posttrain.data.chat import Chat
from posttrain.data.formats import Example
from posttrain.data.rows import Row
from posttrain.data.settings import Source
from posttrain.data.tokens import Encoder
from posttrain.engine.policy import Policy
from posttrain.evals import task as registry
from posttrain.evals.records import Record
from posttrain.evals.settings import OWN
from posttrain.evals.subject import Options, Subject
from posttrain.evals.task import Task, read_rows
from posttrain.evals.tasks import choice, find_task, perplexity, task_digest
from tests import making

TEXTS = [
    "one two three",
    "Grüße, 世界",
    "a" * 3,
    "the quick brown fox jumps over the lazy dog " * 4,
]
TWELVE = Options(max_tokens=12)
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
    chatting = Chat(policy.tokenizer, **chat)
    return Subject(policy, chatting, budget, longest, lambda done, total: None, TWELVE)


def asked(name: str, about: Subject, rows: list[Row]) -> list[Record]:
    return find_task(name).ask(about, rows)


def value(records: list[Record], name: str) -> list[float]:
    return [record.value(name) for record in records]


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
    """The tokenizer has no begin token: the first byte is predicted after the end token."""
    network, words = plain(folder)
    found = asked("perplexity", subject(policy, longest=1024), items(*({"text": t} for t in TEXTS)))
    ids = [words(text)["input_ids"] for text in TEXTS]
    expected = [nll(network, [words.eos_token_id, *one]) for one in ids]
    assert [r.item for r in found] == [f"a.jsonl:{i}" for i in (1, 2, 3, 4)]
    assert value(found, "tokens") == value(found, "bytes") == [len(one) for one in ids]
    assert value(found, "bytes") == [len(text.encode()) for text in TEXTS]
    assert value(found, "words") == [3, 2, 1, 37]  # a text that ends in a space ends in a word
    assert value(found, "nats") == pytest.approx(expected, rel=1e-4)
    said = find_task("perplexity").estimates(found)
    a_byte = sum(expected) / sum(len(t.encode()) for t in TEXTS)
    assert said["nats_per_token"].mean == pytest.approx(a_byte, rel=1e-4)
    assert said["bits_per_byte"].mean == pytest.approx(a_byte / math.log(2), rel=1e-4)
    assert said["byte_perplexity"].mean == pytest.approx(math.exp(a_byte), rel=1e-3)
    assert said["word_perplexity"].mean == pytest.approx(math.exp(sum(expected) / 43), rel=1e-3)


@pytest.mark.parametrize("starts", [False, True])
def test_a_begin_token_is_what_comes_first_and_is_not_scored(starts: bool) -> None:
    """Whether the tokenizer puts it there or only knows it; its own end token is no text."""
    words = making.tokenizer(start=starts, ends=True)
    words.bos_token = "<|start|>"
    assert perplexity._encoded(Encoder(words), ["ab"]) == [
        ([1], words("ab", add_special_tokens=False)["input_ids"])
    ]


def test_windows_predict_every_token_once_with_all_that_fits_before_it() -> None:
    """lm-eval's own example: ten tokens after a prefix, four at a time."""
    assert list(perplexity.windows([-1], range(10), 4)) == [
        ([-1, 0, 1, 2, 3], 4),
        ([3, 4, 5, 6, 7], 4),
        ([5, 6, 7, 8, 9], 2),
    ]
    assert list(perplexity.windows([-1], [7], 4)) == [([-1, 7], 1)]
    assert list(perplexity.windows([-1], range(4), 4)) == [([-1, 0, 1, 2, 3], 4)]


def test_long_text_is_scored_in_windows_and_every_token_once(folder: Path, policy: Policy) -> None:
    network, words = plain(folder)
    ids = words(TEXTS[3])["input_ids"]
    (found,) = asked("perplexity", subject(policy, longest=50), items({"text": TEXTS[3]}))
    expected = 0.0
    for window, scored in perplexity.windows([words.eos_token_id], ids, 50):
        assert len(window) == 51
        before = window[: len(window) - scored]
        expected += nll(network, window) - (nll(network, before) if len(before) > 1 else 0)
    assert found.value("tokens") == len(ids) == 176
    assert found.value("nats") == pytest.approx(expected, rel=1e-4)


def test_a_small_budget_changes_nothing(policy: Policy) -> None:
    rows = items(*({"text": t} for t in TEXTS))
    large, small = (
        asked("perplexity", subject(policy, budget=budget), rows) for budget in (4096, 200)
    )
    assert value(small, "nats") == pytest.approx(value(large, "nats"), rel=1e-5)


@pytest.mark.parametrize("template", [None, "Q: {prompt}\nA:", "Q: {prompt}\nA: "])
def test_choices_are_scored_without_the_token_that_ends_them(
    folder: Path, policy: Policy, template: str | None
) -> None:
    """The tokenizer is of bytes: prompt and choice have the tokens they have alone."""
    network, words = plain(folder)
    about = subject(policy, prompt_template=template)
    rows = items(*({"question": q, "choices": c, "answer_index": i} for q, c, i in QUIZ))
    found = asked("choice", about, rows)
    for record, (question, choices, right) in zip(found, QUIZ, strict=True):
        context = about.chat.prompt(Example("", question))[0].rstrip()
        after = "\n" if template is None else " "  # the template's line break goes with the choice
        start = words(context)["input_ids"]
        expected = []
        for one in choices:
            whole = words(context + after + one)["input_ids"]
            expected.append(nll(network, start) - nll(network, whole))
        assert record.output["logprobs"] == pytest.approx(expected, abs=1e-3)
        assert record.meta["bytes"] == [len(c.encode()) for c in choices]
        best = max(range(len(choices)), key=expected.__getitem__)
        each = [p / len(c) for p, c in zip(expected, choices, strict=True)]
        assert record.value("acc") == (best == right)
        assert record.value("acc_norm") == (each.index(max(each)) == right)
    # summed, the short choice wins with a random model
    assert value(found, "acc") == [True, False, True]


@pytest.mark.parametrize(
    ("template", "choices", "scored"),
    [
        ("{prompt}", ["a", "b"], " a"),
        ("{prompt}", [" a", "\nb"], " a"),  # the data's own space is the delimiter
        ("{prompt} ", ["a", " b"], " a"),  # and so is the prompt's
        ("{prompt}\n", ["a", "b"], "\na"),
        ("{prompt}", [" ", "b"], "  "),  # white space is the choice
    ],
)
def test_one_delimiter_stands_before_a_choice_and_no_length_counts_it(
    policy: Policy, template: str, choices: list[str], scored: str
) -> None:
    question = choice.Question("", "q", tuple(choices), 0)
    chat = Chat(policy.tokenizer, prompt_template=template)
    known, pairs = choice._pairs(chat, question)
    assert (pairs[0].prompt, pairs[0].continuation, pairs[0].plain) == ("q", scored, True)
    assert known.choices[0] == (choices[0].strip() or " ")
    chat.delimiter = "__"
    known, pairs = choice._pairs(chat, question)
    assert (pairs[0].prompt + pairs[0].continuation) == f"q{template[8:]}__{choices[0]}"
    assert known.choices == tuple(choices)


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
    found = [*asked("exact", about, rows[:2]), *asked("exact", about, rows[2:])]
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
        assert (record.output, record.meta["wanted"], record.item) == (answer, "4", rows[i].where)
        assert record.value("correct") == 0 and len(answer) > 0
    # the wanted answer is what it writes
    (again,) = asked(
        "exact",
        about,
        items({"prompt": "2+2?", "completion": found[0].output, "skill": "sums", "other": 1}),
    )
    assert (
        again.value("correct") == 1 and again.meta["skill"] == "sums" and "other" not in again.meta
    )


@pytest.mark.parametrize(
    ("task", "row", "said"),
    [
        ("perplexity", {"txt": "a"}, "format text needs the column 'text'"),
        ("exact", {"prompt": "a"}, "an item needs a question and one answer"),
        (
            "exact",
            {"chosen": "a", "rejected": "b", "prompt": "c"},
            "an item needs a question and one answer",
        ),
        (
            "exact",
            {"messages": [{"role": r, "content": "-"} for r in ("user", "assistant", "user")]},
            "not end with an answer",
        ),
        ("exact", {"what": "a"}, "no known format has these columns: what"),
        ("choice", {"choices": ["a", "b"], "answer_index": 0}, "there is no column 'question'"),
        (
            "choice",
            {"question": "q", "choices": ["a"], "answer_index": 0},
            "choices holds a list, not a list of at least two",
        ),
        (
            "choice",
            {"question": "q", "choices": ["a", ""], "answer_index": 0},
            "not a list of at least two texts",
        ),
        (
            "choice",
            {"question": "q", "choices": "ab", "answer_index": 0},
            "not a list of at least two texts",
        ),
        (
            "choice",
            {"question": "q", "choices": ["a", "b"], "answer_index": 2},
            "answer_index is 2, not the place of one of 2",
        ),
        (
            "choice",
            {"question": "q", "choices": ["a", "b"], "answer_index": True},
            "answer_index is True",
        ),
        ("choice", {"question": "q", "choices": ["a", "b"]}, "answer_index is None"),
    ],
    ids=lambda one: getattr(one, "__name__", str(one)),
)
def test_what_is_no_item_is_named_with_its_line(
    policy: Policy, task: str, row: dict[str, Any], said: str
) -> None:
    with pytest.raises(DataError) as caught:
        asked(task, subject(policy), [Row(row, "a.jsonl:7")])
    assert caught.value.where == "a.jsonl:7"
    assert said in caught.value.what
    assert caught.value.cure


def test_a_choice_that_does_not_fit_is_refused_not_cut(policy: Policy) -> None:
    """With this plain template, and a tokenizer of bytes, a question of 20 signs, a space and a
    choice of 9 are 30 tokens.
    """
    rows = items(
        {"question": "q", "choices": ["a", "b"], "answer_index": 0},
        {"question": "q" * 20, "choices": ["a", "b" * 9], "answer_index": 0},
    )
    assert len(asked("choice", subject(policy, longest=30, prompt_template="{prompt}"), rows)) == 2
    with pytest.raises(DataError) as caught:
        asked("choice", subject(policy, longest=29, prompt_template="{prompt}"), rows)
    assert caught.value.where == "a.jsonl:2"
    assert caught.value.what == "the question and a choice are 30 tokens, and 29 fit"
    assert "--max-length 30" in caught.value.cure


def test_a_source_without_rows_and_a_broken_line_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there are no rows in"):
        read_rows(Source(path=str(making.write(tmp_path / "empty.jsonl", []))))
    broken = making.write(tmp_path / "broken.jsonl", [{"text": "a"}, "{"])
    with pytest.raises(DataError) as caught:
        read_rows(Source(path=str(broken)))
    assert caught.value.where == f"{broken}:2"


def test_differences_are_of_the_same_items() -> None:
    task = find_task("perplexity")
    after = [
        Record(str(i), values={"nats": nats, "tokens": t, "bytes": 4})
        for i, (nats, t) in enumerate([(1.0, 2), (2.0, 2)])
    ]
    before = [
        Record(one.item, values={**one.values, "nats": one.value("nats") + gap})
        for one, gap in zip(after, (1.0, 3.0), strict=True)
    ]
    found = task.differences(after, before)
    assert found["nats_per_token"].mean == -4 / 4
    assert found["bits_per_byte"].mean == pytest.approx(-4 / math.log(2) / 8)
    # another tokenizer: tokens cannot be compared, bytes can; and a text of one token is no item of
    # that model
    other = [Record("0", values={**before[0].values, "tokens": 3})]
    found = task.differences(after, other)
    assert list(found) == ["bits_per_byte"]
    assert found["bits_per_byte"].n == 1
    assert found["bits_per_byte"].mean == pytest.approx(-1 / math.log(2) / 4)


def test_ties_count_a_half(policy: Policy) -> None:
    """Of a pair's answers, of a gain in margin, and of scores; what has no score is not counted."""
    (same,) = asked(
        "prefer", subject(policy), items({"prompt": "a", "chosen": "bc", "rejected": "bc"})
    )
    assert (same.value("preferred"), same.value("preferred_per_token")) == (0.5, 0.5)
    task = find_task("prefer")
    assert task.differences([same], [same])["rewarded"].mean == 0.5
    assert list(task.estimates([same])) == ["preferred", "preferred_per_token"]
    win = find_task("win")
    some = [
        Record("1", values={"score": 1.0, "tokens": 3}),
        Record("2", values={"score": None, "tokens": 1}),
    ]
    lower = [Record("1", values={"score": 0.0, "tokens": 3}), some[1]]
    assert win.estimates(some)["score"].n == 1 and win.estimates(some)["tokens"].n == 2
    found = win.differences(some, lower)
    assert (found["win_rate"].mean, found["win_rate"].n, found["tokens"].n) == (1, 1, 2)


def test_rows_that_ask_the_same_are_one_cluster(policy: Policy) -> None:
    """Of questions, with their choices, of pairs; texts are each their own."""
    shown = ("q", "q", "other")
    rows = {
        "exact": [{"prompt": q, "completion": str(i)} for i, q in enumerate(shown)],
        "choice": [
            {"question": q, "choices": ["a", str(i)], "answer_index": 0}
            for i, q in enumerate(shown)
        ],
        "prefer": [{"prompt": q, "chosen": "a", "rejected": str(i)} for i, q in enumerate(shown)],
        "perplexity": [{"text": "one two"}] * 3,
    }
    for name, some in rows.items():
        groups = [record.group for record in asked(name, subject(policy), items(*some))]
        assert len(set(groups)) == (3 if name == "perplexity" else 2), name
        assert (groups[0] == groups[1]) is (name != "perplexity"), name


def test_every_task_of_ours_has_a_setting_and_is_found() -> None:
    assert [find_task(name).name for name in OWN] == list(OWN)
    assert all(task_digest(find_task(name)) == "" for name in OWN)
    with pytest.raises(ConfigError, match="there is no task 'exakt'") as caught:
        find_task("exakt")
    assert "did you mean 'exact'?" in caught.value.cure and "FILE.py:NAME" in caught.value.cure


def test_a_task_of_a_file_and_a_registered_one() -> None:
    toy = Path(__file__).with_name("toy_task.py")
    found = find_task(f"{toy}:loudness")
    assert found.name == "loudness" and list(found.metrics) == ["loud", "signs", "louder"]
    assert task_digest(found) == sha256_file(toy)
    with pytest.raises(ConfigError, match="is function, not a task") as caught:
        find_task(f"{toy}:not_a_task")
    assert "@task" in caught.value.cure
    mine = registry.register(Task("mine", lambda subject, rows: [], {}))
    assert find_task("mine") is mine and task_digest(mine) == sha256_file(Path(__file__))
    del registry.REGISTRY["mine"]
