"""A reward model scores what it was trained on as transformers does, one response or many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from posttrain.core.errors import ModelError
from posttrain.data.prompting import Prompting
from posttrain.engine.reward import RewardModel
from posttrain.scoring.score import Response
from posttrain.scoring.scorers import open_scorer
from tests import making

RESPONSES = [
    Response("1+1?", "2"),
    Response("1+1?", "eleven"),
    Response(({"role": "user", "content": "Hi."},), "Hello!"),
    Response("1+1?", "3"),
    Response(
        ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}),
        "Because.",
    ),
    Response("1+1?", ""),
]


def made(
    folder: Path,
    *,
    process: bool = False,
    heads: int = 2,
    prompting: Prompting | None = None,
    **notes: Any,
) -> Path:
    """An untrained reward model that knows how it is talked to."""
    model = RewardModel.load(
        making.model(folder / "base", positions=64), device="cpu", process=process, heads=heads
    )
    from posttrain.data.chat import Chat

    chat = Chat(model.tokenizer)
    model.set_chat(chat.template.source, chat.stop)
    model.set_written(notes)
    model.prompting = prompting or Prompting()
    model.save(folder / "rm")
    return folder / "rm"


@torch.no_grad()
def rewards(folder: Path, text: str) -> torch.Tensor:
    """[K] what each head of a folder says of a text: transformers alone."""
    words, network = (
        AutoTokenizer.from_pretrained(folder),
        AutoModelForSequenceClassification.from_pretrained(folder).eval(),
    )
    ids = torch.tensor([words(text, add_special_tokens=False)["input_ids"]])
    return network(input_ids=ids).logits[0]


def reward(folder: Path, text: str) -> float:
    return float(rewards(folder, text).mean())


def values(folder: Path, responses: list[Response]) -> list[float | None]:
    return [score.value for score in open_scorer(f"reward:{folder}", "cpu")(responses)]


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
    found = scorer(RESPONSES)
    for response, score in zip(RESPONSES, found, strict=True):
        messages = (
            [{"role": "user", "content": response.prompt}]
            if isinstance(response.prompt, str)
            else list(response.prompt)
        )
        prompt = words.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        heads = rewards(folder, prompt + response.completion + making.END)
        assert score.value == pytest.approx(float(heads.mean()), abs=1e-5), response
        assert score.parts["uncertainty"] == pytest.approx(float(heads.std()), abs=1e-5)
    alone = [scorer([response])[0].value for response in RESPONSES]
    assert alone == pytest.approx([score.value for score in found], abs=1e-5)
    assert scorer([]) == []


def test_a_prompt_template_is_remembered(tmp_path: Path) -> None:
    folder = made(tmp_path, prompting=Prompting("Q: {prompt}\nA: "))
    (found,) = values(folder, [Response("1+1?", "2")])
    assert found == pytest.approx(reward(folder, f"Q: 1+1?\nA: 2{making.END}"), abs=1e-5)


THOUGHT = {"role": "assistant", "content": "2", "reasoning_content": "1 and 1."}


def test_thinking_is_read_where_the_template_has_a_place_for_it(tmp_path: Path) -> None:
    """The default template has one; one without reads the answer alone, and so does plain text. Of
    thinking without an answer nothing is read.
    """
    folder = made(tmp_path)
    question, thought = "### User:\n1+1?\n\n### Assistant:\n", "<think>\n1 and 1.\n</think>\n\n"
    for prompt in ("1+1?", ({"role": "user", "content": "1+1?"},)):
        (score,) = values(folder, [Response(prompt, "2", message=THOUGHT)])
        assert score == pytest.approx(reward(folder, f"{question}{thought}2{making.END}"), abs=1e-5)
    alone = {**THOUGHT, "content": ""}
    (score,) = values(folder, [Response("1+1?", "", message=alone)])
    assert score == pytest.approx(reward(folder, f"{question}{making.END}"), abs=1e-5)
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}"
    )
    (score,) = values(folder, [Response("1+1?", "2", message=THOUGHT)])
    assert score == pytest.approx(reward(folder, f"1+1?{making.END}2{making.END}"), abs=1e-5)
    Prompting("Q: {prompt}\nA:").write(folder)
    (score,) = values(folder, [Response("1+1?", "2", message=THOUGHT)])
    assert score == pytest.approx(reward(folder, f"Q: 1+1?\nA:2{making.END}"), abs=1e-5)


def test_what_does_not_fit_has_no_score(tmp_path: Path) -> None:
    """64 positions: an answer of 100 bytes is beyond them, and that is no 0."""
    short, long = open_scorer(f"reward:{made(tmp_path)}", "cpu")(
        [Response("a", "b"), Response("a", "b" * 100)]
    )
    assert short.value is not None and short.why == ""
    assert long.value is None and "longer than 64 tokens" in long.why and not long.failed


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
    (found,) = values(folder, [Response("q", "ab;c;d e")])
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
    (found,) = values(folder, [Response("1+1?", "2")])
    assert (
        found
        == pytest.approx(reward(folder, bare), abs=1e-5)
        == pytest.approx(reward(folder, bare + making.END), abs=1e-5)
    )
