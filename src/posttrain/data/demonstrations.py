"""Demonstrations: rows of text, or of prompt and completion, as token sequences with the completion trained.

Left out here: chat messages and templates.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from posttrain.core.errors import DataError, nearest
from posttrain.data.forest import Sequence
from posttrain.data.rows import Row

OURS = {"prompt", "completion", "text"}  # columns


@dataclass
class Demonstrations:
    """Tokenised demonstrations and what happened on the way: rows = sequences + dropped.

    Attributes:
        sequences: one a row.
        rows: rows read.
        truncated: sequences cut at the end to `max_length`.
        dropped: rows of which nothing trainable was left, by reason.
        tokens: tokens of all sequences; targets: those that are trained.
    """

    sequences: list[Sequence] = field(default_factory=list)
    rows: int = 0
    truncated: int = 0
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        return sum(len(s.tokens) for s in self.sequences)

    @property
    def targets(self) -> int:
        return sum(s.targets for s in self.sequences)

    def summary(self) -> str:
        parts = [f"{len(self.sequences):,} sequences", f"{self.tokens:,} tokens", f"{self.targets:,} trained"]
        if self.truncated:
            parts.append(f"{self.truncated:,} cut at the end")
        parts += [f"{n:,} dropped: {why}" for why, n in self.dropped.items()]
        return ", ".join(parts)


def tokenise(rows: Iterable[Row], tokenizer: Any, *, columns: Mapping[str, str] | None = None, template: str = "{prompt}",
             max_length: int = 1024) -> Demonstrations:
    """Turn rows into sequences that end with the end-of-sequence token.

    A row with a `text` column is trained whole. A row with `prompt` and `completion` is trained on the completion only. The
    prompt's tokens are those that inference will see: where tokenising prompt and completion together would merge characters
    across the border, they are tokenised apart.

    Args:
        rows: see `posttrain.data.rows.read`.
        tokenizer: a Hugging Face tokenizer.
        columns: our column name → the file's.
        template: how the prompt is written; `{prompt}` stands for the column.
        max_length: tokens of a sequence at most; longer ones are cut at the end.
    Raises:
        DataError: an unknown or missing column, an empty completion, no row at all, or a tokenizer without an end token.
    """
    columns = dict(columns or {})
    if unknown := sorted(columns.keys() - OURS):
        raise DataError(f"--columns: {unknown[0]!r} is no column of ours", cure=nearest(unknown[0], OURS))
    if tokenizer.eos_token_id is None:
        raise DataError("the tokenizer has no end-of-sequence token, so the model would never learn to stop",
                        cure="set eos_token in tokenizer_config.json")
    if "{prompt}" not in template:
        raise DataError(f"the prompt template {template!r} does not contain {{prompt}}", cure="write {prompt} where it goes")
    prompts: list[str] = []
    completions: list[str] = []
    out = Demonstrations()
    for row in rows:
        out.rows += 1
        if "text" in columns or ("text" in row.fields and "completion" not in row.fields and not columns):
            prompt, completion = "", row.text(columns.get("text", "text"))
        else:
            prompt = template.replace("{prompt}", row.text(columns.get("prompt", "prompt")))
            completion = row.text(columns.get("completion", "completion"))
        if not completion.strip():
            raise DataError("the text to learn is empty", where=row.where, cure="fill it in, or remove the row")
        prompts.append(prompt)
        completions.append(completion)
    if not out.rows:
        raise DataError("there are no rows", cure="check the file")
    for prompt, whole in zip(*_encode(prompts, completions, tokenizer), strict=True):
        tokens = np.array([*whole, tokenizer.eos_token_id])
        trained = np.arange(len(tokens)) >= max(1, prompt)
        cut = len(tokens) > max_length
        one = Sequence(tokens[:max_length], trained[:max_length])
        if not one.targets:
            why = f"the prompt alone fills {max_length} tokens" if cut else "one token is no sequence: nothing predicts it"
            out.dropped[why] = out.dropped.get(why, 0) + 1
            continue
        out.truncated += cut
        out.sequences.append(one)
    if len(out.sequences) < out.rows / 2:
        raise DataError(f"more than half of the rows have nothing to train: {out.summary()}",
                        cure="raise --max-length, or look at the data and its columns")
    assert out.rows == len(out.sequences) + sum(out.dropped.values())
    return out


def _apart(prompt: list[int], completion: str, text: str, tokenizer: Any) -> list[int]:
    """Tokens of a prompt, as they are, and then of a completion; together they must still be `text`.

    A tokenizer that begins every text with a space would put one between them. Then the completion is tokenised after a line
    break, whose tokens are taken off again.
    """
    anchor = tokenizer("\n", add_special_tokens=False)["input_ids"]
    after = tokenizer("\n" + completion, add_special_tokens=False, verbose=False)["input_ids"]
    plain = tokenizer(completion, add_special_tokens=False, verbose=False)["input_ids"]
    for tail in (plain, after[len(anchor):] if after[:len(anchor)] == anchor else plain):
        if tokenizer.decode([*prompt, *tail]) == text:
            return [*prompt, *tail]
    raise DataError(f"prompt and completion {completion[:40]!r} cannot be tokenised apart without changing the text",
                    cure="end the prompt template with a line break or a special token")


def _encode(prompts: list[str], completions: list[str], tokenizer: Any) -> tuple[list[int], list[list[int]]]:
    """Tokens of each prompt (a count) and of prompt and completion together."""
    quiet = {"verbose": False}  # too long is ours to handle, and to count
    joint = tokenizer([p + c for p, c in zip(prompts, completions, strict=True)], **quiet)["input_ids"]
    alone = tokenizer(prompts, **quiet)["input_ids"]
    end = tokenizer.eos_token_id
    if tokenizer("a", **quiet)["input_ids"][-1:] == [end]:  # it ends every text, prompts too; a sequence ends once
        joint, alone = [j[:-1] for j in joint], [a[:-1] for a in alone]
    apart = [i for i, (a, j) in enumerate(zip(alone, joint, strict=True)) if prompts[i] and j[:len(a)] != a]
    for i in apart:
        joint[i] = _apart(alone[i], completions[i], tokenizer.decode(joint[i]), tokenizer)
    begin = tokenizer.bos_token_id
    if begin is not None and any(j[:2] == [begin, begin] for j in joint):
        raise DataError("a sequence would begin with two begin tokens, which the model has never seen",
                        cure=f"leave {tokenizer.bos_token} out of the prompts and the template: the tokenizer adds it")
    # a row may hold its own end token; the one that ends the sequence is ours
    joint = [j[:-1] if j and j[-1] == end else j for j in joint]
    return [len(a) if p else 0 for a, p in zip(alone, prompts, strict=True)], joint
