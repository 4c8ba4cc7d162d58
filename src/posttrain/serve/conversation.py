"""A conversation with one model or several: the questions are shared, every model sees its own
answers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.core.errors import ConfigError
from posttrain.core.files import write_atomic
from posttrain.data.messages import Message


@dataclass(frozen=True)
class Answer:
    """What a model wrote.

    Attributes:
        text: without special tokens, and without a character of which only a part was written.
        tokens: drawn, the stop token included.
        seconds: from the question to the last token.
        finished: ended by the model itself.
        interrupted: ended by the user.
        forgotten: turns at the start of the conversation that the model was not shown, to stay
            within its positions.
        message: the answer as history has it, with its reasoning apart where the chat template has
            a place for it; None: the text is the content.
    """

    text: str
    tokens: int
    seconds: float
    finished: bool
    interrupted: bool = False
    forgotten: int = 0
    message: Message | None = None


@dataclass
class Turn:
    """A question and each model's answer. `attempt` counts how often it was answered anew."""

    question: str
    answers: list[Answer] = field(default_factory=list)
    attempt: int = 0


@dataclass
class Conversation:
    """A system prompt and the turns so far."""

    system: str = ""
    turns: list[Turn] = field(default_factory=list)

    def messages(self, model: int) -> tuple[Message, ...]:
        """The conversation as one of the models sees it."""
        return tuple(
            {k: v for k, v in message.items() if k != "weight"} for message in self._row(model)
        )

    def _row(self, model: int) -> Iterator[dict[str, Any]]:
        if self.system:
            yield {"role": "system", "content": self.system}
        for turn in self.turns:
            yield {"role": "user", "content": turn.question}
            for answer in turn.answers[model : model + 1]:
                unfit = {} if answer.finished and answer.text.strip() else {"weight": 0}
                yield {**(answer.message or {"role": "assistant", "content": answer.text}), **unfit}

    def save(self, path: Path) -> int:
        """Append the conversation to a JSONL file, a row for each model, as `posttrain sft --data`
        reads it.

        An answer that was cut short or is empty gets weight 0: nobody should learn to end there. A
        model that finished none gets no row.

        Returns: the rows written.
        Raises:
            ConfigError: there is nothing to learn from, or the file cannot be written.
        """
        models = max((len(turn.answers) for turn in self.turns), default=0)
        rows = []
        for model in range(models):
            row = list(self._row(model))
            if any(message["role"] == "assistant" and "weight" not in message for message in row):
                rows.append(row)
        if not rows:
            raise ConfigError(
                "there is no finished answer to save",
                cure="let an answer come to its end: /retry, or a higher --max-tokens",
            )
        if path.suffix != ".jsonl":
            raise ConfigError(
                f"{path} is not a .jsonl file", cure="give it a name that ends in .jsonl"
            )
        text = "".join(json.dumps({"messages": row}, ensure_ascii=False) + "\n" for row in rows)
        try:
            before = path.read_bytes() if path.exists() else b""
            gap = b"\n" if before and not before.endswith(b"\n") else b""
            write_atomic(path, before + gap + text.encode())
        except OSError as error:
            raise ConfigError(
                f"cannot write {path}: {error.strerror}", cure="save somewhere else"
            ) from error
        return len(rows)
