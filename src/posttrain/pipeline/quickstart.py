"""The quickstart: from the embedded base model to an instruct model that has learned from
comparisons, offline, on a processor.

The data are drawn from the curriculum: new text of its world for `adapt`, instructions for `sft`,
pairs of answers for `reward` and `preference`, and for the evaluations questions, choices, pairs
and text that were in none of them. What the base model cannot do is answer in a chat; what it can
do, it was taught in other words. After `sft` it answers about half of the questions, and none of
them politely: which answers people like better is in the pairs. The reward model judges answers to
prompts it has not seen, and the policy was not trained with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from posttrain.assets import curriculum
from posttrain.core.events import Reporter
from posttrain.core.files import write_atomic
from posttrain.pipeline.recipe import load
from posttrain.pipeline.run import Result, execute

LEVELS = {1: 60, 2: 28, 3: 8, 4: 3, 5: 1}  # of the instructions, and of the questions
ADAPT, SFT, HELD_OUT, QUESTIONS, CHOICES = 300, 3400, 100, 500, 120  # rows
REWARD, PAIRS, HELD_PAIRS = 600, 400, 200
ASKED, STEPS = 1200, 40  # questions to learn from by reward, and steps


def write_data(folder: Path) -> dict[str, str]:
    """Draw the data; the same every time. Returns the files by what they are for."""
    documents = islice(curriculum.pretraining(seed=1), ADAPT + HELD_OUT)
    texts = [{"text": text} for text in documents]
    questions = curriculum.held_out(QUESTIONS, "test", 0, levels=LEVELS)
    rows: dict[str, Iterable[dict[str, Any]]] = {
        "text": texts[:ADAPT],
        "held-text": texts[ADAPT:],
        "demonstrations": curriculum.demonstrations(SFT, "train", 0, levels=LEVELS),
        "validation": curriculum.demonstrations(100, "validation", 0, levels=LEVELS),
        "questions": (
            {
                "prompt": one["question"],
                "completion": one["answer"],
                "skill": one["skill"],
                "level": one["level"],
            }
            for one in questions
        ),
        "reward-questions": (
            {"prompt": one["question"], "completion": one["answer"]}
            for one in curriculum.held_out(ASKED, "train", 5, levels=LEVELS)
        ),
        "choices": curriculum.multiple_choice(CHOICES, "test", 0, levels=LEVELS),
        **_pairs(),
    }
    paths = {}
    for name, examples in rows.items():
        path = folder / f"{name}.jsonl"
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in examples)
        if not path.is_file() or path.read_text(encoding="utf-8") != content:
            write_atomic(path, content)
        paths[name] = str(path)
    return paths


def _pairs() -> dict[str, list[dict[str, Any]]]:
    """Pairs of every rule for the reward model, other pairs of the rule `polite` for the policy,
    and held-out ones.
    """
    drawn = curriculum.preferences(REWARD + 5 * PAIRS, "train", 0, levels=LEVELS)
    polite = [row for row in drawn[REWARD:] if row["rule"] == "polite"][:PAIRS]
    held = [
        row
        for row in curriculum.preferences(5 * HELD_PAIRS, "test", 0, levels=LEVELS)
        if row["rule"] == "polite"
    ]
    validation = curriculum.preferences(HELD_PAIRS, "validation", 0, levels=LEVELS)
    return {
        "reward-pairs": drawn[:REWARD],
        "reward-validation": validation,
        "polite-pairs": polite,
        "polite-held": held[:HELD_PAIRS],
        "polite-asked": [
            {"prompt": row["prompt"], "completion": row["answer"]} for row in held[:HELD_PAIRS]
        ],
    }


def recipe(data: dict[str, str]) -> dict[str, Any]:
    """The recipe, as a file would hold it."""
    return {
        "name": "quickstart",
        "stages": {
            "adapt": {
                "model": "embedded",
                "data": data["text"],
                "batch_size": 16,
                "learning_rate": 3e-4,
                "device": "cpu",
            },
            # a tenth is text of the kind the model knows, against forgetting
            "sft": {
                "model": "adapt",
                "data": [data["demonstrations"], f"{data['text']},share=0.1"],
                "validation": data["validation"],
                "epochs": 1,
                "batch_size": 8,
                "learning_rate": 5e-4,
                "device": "cpu",
            },
            "check": {
                "stage": "eval",
                "model": "sft",
                "against": "embedded",
                "exact": data["questions"],
                "choice": data["choices"],
                "perplexity": data["held-text"],
                "max_tokens": 24,
                "device": "cpu",
            },
            "reward": {
                "stage": "reward_model",
                "model": "sft",
                "data": data["reward-pairs"],
                "validation": data["reward-validation"],
                "epochs": 1,
                "batch_size": 16,
                "learning_rate": 1e-4,
                "device": "cpu",
            },
            # besides the margin, the likelihood of the chosen answers: the model never wrote such
            # answers before
            "preference": {
                "model": "sft",
                "data": data["polite-pairs"],
                "mix": {"dpo": 1, "sft": 1},
                "epochs": 1,
                "batch_size": 8,
                "learning_rate": 1e-4,
                "device": "cpu",
            },
            "compare": {
                "stage": "eval",
                "model": "preference",
                "against": "sft",
                "prefer": data["polite-held"],
                "win": data["polite-held"],
                "reward_model": "reward",
                "exact": data["polite-asked"],
                "match": "contains",
                "max_tokens": 24,
                "device": "cpu",
            },
            # nobody shows it an answer: it tries, and is told whether it was right
            "rl": {
                "model": "sft",
                "data": data["reward-questions"],
                "scorer": "exact",
                "steps": STEPS,
                "batch_size": 16,
                "n": 8,
                "max_tokens": 16,
                "learning_rate": 4e-5,
                "device": "cpu",
            },
            "improved": {
                "stage": "eval",
                "model": "rl",
                "against": "sft",
                "exact": data["questions"],
                "max_tokens": 24,
                "device": "cpu",
            },
        },
    }


def quickstart(folder: Path, reporter: Reporter) -> Result:
    """Run it, or what of it is not done yet."""
    return execute(load(recipe(write_data(folder / "data"))), folder, reporter)
