"""A tiny model with dropout, and pairs, for tests of what is learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from tests import making

PAIRS = [
    {"prompt": f"{a}+{b}=", "chosen": str(a + b), "rejected": str(9 - a - b)}
    for a in range(2)
    for b in range(4)
]


def gpt2(folder: Path, dropout: float, seed: int = 0) -> Path:
    """Write a random two-layer GPT-2; the same seed gives the same weights at any dropout."""
    words = making.tokenizer()
    words.save_pretrained(folder)
    torch.manual_seed(seed)
    GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(words),
            n_positions=64,
            n_embd=32,
            n_layer=2,
            n_head=4,
            bos_token_id=None,
            eos_token_id=0,
            resid_pdrop=dropout,
            embd_pdrop=dropout,
            attn_pdrop=dropout,
        )
    ).save_pretrained(folder)
    return folder


def losses(run: Path) -> list[float]:
    """The loss of every step."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if "validation" not in record]


def settings(folder: Path, model: Path, **more: Any) -> dict[str, Any]:
    """Arguments of a training stage on the pairs, eight a step."""
    data = making.write(folder / "pairs.jsonl", PAIRS)
    common = {"batch_size": 8, "learning_rate": 1e-3, "device": "cpu", "quiet": True}
    return {
        "model": model,
        "data": data,
        "prompt_template": "{prompt}",
        "steps": 3,
        **common,
        **more,
    }
