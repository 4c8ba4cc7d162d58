"""The quickstart: from the embedded base model to an evaluated instruct model, offline, on a processor.

The data are drawn from the curriculum: new text of its world for `adapt`, instructions for `sft`, and for `eval` questions,
choices and text that were in neither. What the base model cannot do is answer in a chat; what it can do, it was taught in other
words. After `sft` it answers about half of the questions, so that there is something left to learn.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from posttrain.assets import curriculum
from posttrain.core.console import ConsoleObserver
from posttrain.core.files import write_atomic
from posttrain.pipeline.recipe import load
from posttrain.pipeline.run import Result, execute

LEVELS = {1: 60, 2: 28, 3: 8, 4: 3, 5: 1}  # of the instructions, and of the questions
ADAPT, SFT, HELD_OUT, QUESTIONS, CHOICES = 300, 3400, 100, 500, 120  # rows


def write_data(folder: Path) -> dict[str, str]:
    """Draw the data; the same every time. Returns the files by what they are for."""
    documents = islice(curriculum.pretraining(seed=1), ADAPT + HELD_OUT)
    texts = [{"text": text} for text in documents]
    questions = curriculum.held_out(QUESTIONS, "test", 0, levels=LEVELS)
    rows: dict[str, Iterable[dict[str, Any]]] = {
        "text": texts[:ADAPT], "held-out-text": texts[ADAPT:],
        "demonstrations": curriculum.demonstrations(SFT, "train", 0, levels=LEVELS),
        "validation": curriculum.demonstrations(100, "validation", 0, levels=LEVELS),
        "questions": ({"prompt": one["question"], "completion": one["answer"], "skill": one["skill"], "level": one["level"]}
                      for one in questions),
        "choices": curriculum.multiple_choice(CHOICES, "test", 0, levels=LEVELS)}
    found = {}
    for name, some in rows.items():
        path = folder / f"{name}.jsonl"
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in some)
        if not path.is_file() or path.read_text(encoding="utf-8") != content:
            write_atomic(path, content)
        found[name] = str(path)
    return found


def recipe(data: dict[str, str]) -> dict[str, Any]:
    """The recipe, as a file would hold it."""
    return {"name": "quickstart", "stages": {
        "adapt": {"model": "embedded", "data": data["text"], "batch_size": 16, "learning_rate": 3e-4, "device": "cpu"},
        # a tenth is text of the kind the model knows, against forgetting
        "sft": {"model": "adapt", "data": [data["demonstrations"], f"{data['text']},share=0.1"], "validation": data["validation"],
                "epochs": 1, "batch_size": 8, "learning_rate": 5e-4, "device": "cpu"},
        "check": {"stage": "eval", "model": "sft", "against": "embedded", "exact": data["questions"], "choice": data["choices"],
                  "perplexity": data["held-out-text"], "max_tokens": 24, "device": "cpu"}}}


def quickstart(folder: Path, observer: ConsoleObserver) -> Result:
    """Run it, or what of it is not done yet."""
    return execute(load(recipe(write_data(folder / "data"))), folder, observer)
