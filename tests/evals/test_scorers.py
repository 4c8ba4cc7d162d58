"""Scorers by name: a reward model scores what it was trained on as transformers does, one item or
many.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from posttrain.evals.scorers import open_scorer
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from posttrain.core.errors import ConfigError, ModelError
from posttrain.engine.reward import RewardModel
from posttrain.scoring.scorers import SCORERS, Item
from tests import making

ITEMS = [
    Item("1+1?", "2"),
    Item("1+1?", "eleven"),
    Item(({"role": "user", "content": "Hi."},), "Hello!"),
    Item("1+1?", "3"),
    Item(
        ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}),
        "Because.",
    ),
    Item("1+1?", ""),
]


def made(folder: Path, *, process: bool = False, heads: int = 2, **notes: Any) -> Path:
    """An untrained reward model that knows how it is talked to."""
    model = RewardModel.load(
        making.model(folder / "base", positions=64), device="cpu", process=process, heads=heads
    )
    from posttrain.data.chat import Chat

    chat = Chat(model.tokenizer)
    model.converse(chat.template, chat.stop)
    model.remember(notes)
    model.save(folder / "rm")
    return folder / "rm"


@torch.no_grad()
def reward(folder: Path, text: str) -> float:
    words, network = (
        AutoTokenizer.from_pretrained(folder),
        AutoModelForSequenceClassification.from_pretrained(folder).eval(),
    )
    return float(
        network(
            input_ids=torch.tensor([words(text, add_special_tokens=False)["input_ids"]])
        ).logits.mean()
    )


def test_known_names_are_the_scorers_and_others_are_refused() -> None:
    assert open_scorer("longest") is SCORERS["longest"]
    for name in ("longst", "reward:", "reward"):
        with pytest.raises(ConfigError, match="there is no scorer") as caught:
            open_scorer(name)
        assert "reward:FOLDER" in caught.value.cure
    assert "did you mean 'longest'?" in caught.value.cure or "known:" in caught.value.cure


def test_a_language_model_does_not_judge_at_random(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is a language model, and no reward model"):
        open_scorer(f"reward:{making.model(tmp_path)}", "cpu")


def test_a_reward_model_scores_as_transformers_does(tmp_path: Path) -> None:
    """Text and messages as prompts, an empty answer, the mean of two heads; each item is rendered
    by the chat template.
    """
    folder = made(tmp_path)
    words = AutoTokenizer.from_pretrained(folder)
    scorer = open_scorer(f"reward:{folder}", "cpu")
    found = scorer(ITEMS)
    for item, score in zip(ITEMS, found, strict=True):
        messages = (
            [{"role": "user", "content": item.prompt}]
            if isinstance(item.prompt, str)
            else list(item.prompt)
        )
        prompt = words.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert score == pytest.approx(
            reward(folder, prompt + item.answer + making.END), abs=1e-5
        ), item
    assert [scorer([item])[0] for item in ITEMS] == pytest.approx(found, abs=1e-5)
    assert scorer([]) == []


def test_a_prompt_template_is_remembered(tmp_path: Path) -> None:
    folder = made(tmp_path, prompt_template="Q: {prompt}\nA: ")
    (found,) = open_scorer(f"reward:{folder}", "cpu")([Item("1+1?", "2")])
    assert found == pytest.approx(reward(folder, f"Q: 1+1?\nA: 2{making.END}"), abs=1e-5)


def test_what_does_not_fit_has_no_score(tmp_path: Path) -> None:
    """64 positions: an answer of 100 bytes is beyond them, and that is no 0."""
    short, long = open_scorer(f"reward:{made(tmp_path)}", "cpu")(
        [Item("a", "b"), Item("a", "b" * 100)]
    )
    assert short is not None and long is None


def test_a_process_model_scores_the_worst_step(tmp_path: Path) -> None:
    folder = made(tmp_path, process=True, heads=1, separator=";")
    words, network = (
        AutoTokenizer.from_pretrained(folder),
        AutoModelForTokenClassification.from_pretrained(folder).eval(),
    )
    ids = words(
        words.apply_chat_template(
            [{"role": "user", "content": "q"}], tokenize=False, add_generation_prompt=True
        ),
        add_special_tokens=False,
    )["input_ids"]
    ends = []
    for step in ("ab", "c", "d e"):
        ids += words(step + ";", add_special_tokens=False)["input_ids"]
        ends.append(len(ids) - 1)
    with torch.no_grad():
        logits = network(input_ids=torch.tensor([ids])).logits[0, :, 0]
    (found,) = open_scorer(f"reward:{folder}", "cpu")([Item("q", "ab;c;d e")])
    assert found == pytest.approx(float(logits[ends].min()), abs=1e-5)


def test_anothers_model_that_reads_before_its_padding_is_read_there(tmp_path: Path) -> None:
    """Trained where padding was the end token: transformers reads the token before it, and so does
    the scorer.
    """
    folder = made(tmp_path)
    network = AutoModelForSequenceClassification.from_pretrained(folder)
    network.config.pad_token_id = 0  # the end token
    network.save_pretrained(folder)
    words = AutoTokenizer.from_pretrained(folder)
    text = words.apply_chat_template(
        [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}], tokenize=False
    )
    bare = text.rstrip("\n").removesuffix(making.END)
    (found,) = open_scorer(f"reward:{folder}", "cpu")([Item("1+1?", "2")])
    assert (
        found
        == pytest.approx(reward(folder, bare), abs=1e-5)
        == pytest.approx(reward(folder, bare + making.END), abs=1e-5)
    )
