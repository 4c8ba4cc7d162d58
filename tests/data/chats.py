"""What tests of chat rendering share: the templates' folder, tokenizers, an oracle of what a server
shows, and conversations.
"""

from __future__ import annotations

import datetime
import importlib.util
import json
import sys
from collections.abc import Sequence as Many
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from posttrain.core.errors import DataError
from posttrain.data.chat import Chat, Turn
from posttrain.data.formats import Example
from posttrain.data.tokens import Encoded, Encoder
from tests import making

ROOT = Path(__file__).parents[2]
SHARED = (ROOT / ".." / "shared" / "data").resolve()
FOLDER = SHARED / "tokenizers" / "chat_templates"

TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "",
        "parameters": {"type": "object", "properties": {}},
    },
}
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content "
    "}}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|im_start|>", "<|im_end|>", "<think>", "</think>"]


@cache
def docs() -> Any:
    """docs/templates.py, which makes the reference page."""
    spec = importlib.util.spec_from_file_location("docs_templates", ROOT / "docs" / "templates.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["docs_templates"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shared_template(name: str) -> tuple[str, Any]:
    path = FOLDER / f"{name}.jinja"
    if not path.is_file():
        pytest.skip(f"there is no chat template {path}")
    return path.read_text(), docs().tokenizer(path.read_text())


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def answer(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def call(name: str = "look", **arguments: Any) -> dict[str, Any]:
    return {
        "type": "function",
        "id": "abcdefghi",
        "function": {"name": name, "arguments": arguments},
    }


def words(merges: Many[tuple[str, str]] = (), special: Many[str] = SPECIAL, **more: Any) -> Any:
    """A byte-level tokenizer with ChatML's tokens."""
    made = making.tokenizer(merges, **more)
    made.add_special_tokens({"extra_special_tokens": list(special)})
    return made


def metaspace(scheme: str, merges: Many[tuple[str, str]] = (("▁", "a"), ("b", "c"))) -> Any:
    """A tokenizer that writes spaces as ▁ and puts one before every text (first) or piece between
    special tokens (always).
    """
    letters = ["▁", "\n", *map(chr, range(33, 127)), "é", "日"]
    names = ["<unk>", "<s>", "</s>", *letters, *(a + b for a, b in merges)]
    raw = Tokenizer(
        models.BPE(
            vocab={name: i for i, name in enumerate(names)}, merges=list(merges), unk_token="<unk>"
        )
    )
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    raw.decoder = decoders.Metaspace(prepend_scheme=scheme)
    raw.add_special_tokens(["<s>", "</s>"])
    made = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")
    made.add_special_tokens({"extra_special_tokens": SPECIAL})
    return made


def example(messages: Many[dict[str, Any]], tools: Any = None, **kwargs: Any) -> Example:
    return Example("a.jsonl:1", (), (tuple(messages),), None, tools, kwargs)


def turns(
    tokenizer: Any,
    template: str | None,
    messages: Many[dict[str, Any]],
    tools: Any = None,
    **more: Any,
) -> list[Turn]:
    one = example(messages, tools)
    return Chat(tokenizer, template=template, **more).turns(one, one.answers[0])


def pairs(found: Many[Turn]) -> list[tuple[str, str]]:
    return [(turn.before, turn.after) for turn in found]


def encode(tokenizer: Any, found: Many[Turn]) -> list[Encoded]:
    (one,) = Encoder(tokenizer).encode([found])
    if isinstance(one, DataError):
        raise one
    return one


def sequences(
    tokenizer: Any, template: str | None, messages: Many[dict[str, Any]], **more: Any
) -> list[list[str]]:
    """The text of each sequence in runs: not trained, trained, not trained, …"""
    return [
        runs(tokenizer, one)
        for one in encode(tokenizer, turns(tokenizer, template, messages, **more))
    ]


def runs(tokenizer: Any, one: Encoded) -> list[str]:
    edges = np.flatnonzero(np.diff(one.mask().astype(int), prepend=0)).tolist()
    return [
        tokenizer.decode(one.ids[a:b])
        for a, b in zip([0, *edges], [*edges, len(one.ids)], strict=True)
        if a < b or (a, b) == (0, 0)
    ]


# ------------------------------------------------------------------ what a server shows


class Pinned(datetime.datetime):
    @classmethod
    def now(cls, tz: Any = None) -> Pinned:
        return cls(2026, 1, 1)


def dialects(messages: Many[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The messages as they are, with content as parts, and with the arguments of calls as JSON
    text.
    """
    parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
    quoted = [
        (
            {
                **m,
                "tool_calls": [
                    {
                        **c,
                        "function": {
                            **c["function"],
                            "arguments": json.dumps(c["function"]["arguments"]),
                        },
                    }
                    for c in m["tool_calls"]
                ],
            }
            if "tool_calls" in m
            else m
        )
        for m in messages
    ]
    return [list(messages), parts, quoted]


def served(
    tokenizer: Any, template: str, messages: Many[dict[str, Any]], tools: Any = None, **more: Any
) -> Any:
    """What transformers makes of the messages, in the first dialect in which the template shows
    them.
    """
    errors = []
    for dialect in dialects(messages):
        for none in [None, []] if not tools else [list(tools)]:

            def apply(dialect: Any = dialect, none: Any = none, **how: Any) -> Any:
                return tokenizer.apply_chat_template(
                    dialect, tools=none, chat_template=template, **how
                )

            try:
                text = apply(tokenize=False, add_generation_prompt=True)
            except Exception as error:
                errors.append(error)
                continue
            if all(
                m["content"].split("</think>")[-1].strip() in text
                for m in messages
                if m["role"] in ("user", "assistant")
            ):
                return apply(tokenize=True, **more)
    raise AssertionError(errors)
