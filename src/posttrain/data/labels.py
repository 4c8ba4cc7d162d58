"""Labels for the tokens of a row: what each token is, and which message it comes from.

Trained tokens are known from the spans of `Encoded`. To tell given text from what the template
writes, the row is rendered a second time with marks in place of its texts.

Left out: which message a given tool call or given reasoning comes from; it counts as written by the
template.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from posttrain.core.errors import PosttrainError
from posttrain.data.chat import Chat, Turn
from posttrain.data.formats import Example, Text
from posttrain.data.prepare import Prepared
from posttrain.data.tokens import Encoded

Kind = Literal["trained", "end", "given", "template", "special", "first", "cut", "gap"]
Group = tuple[int, int, str]  # first token, end, text: tokens that make characters together
Origin = tuple[int, int, int]  # start, end, number of the message: characters of a rendering
Decode = Callable[[list[int]], str]

_MARK = re.compile(r"Zq(\d+)qZ")  # stands for a text of the row in the marked rendering
LONGEST_CHARACTER = 4  # tokens: UTF-8 has four bytes at most


@dataclass
class Labelled:
    """A tokenised sequence with labels for its tokens.

    Attributes:
        encoded: token ids and spans.
        groups: the tokens that are shown together, and their texts.
        kinds: [n] what every token is while no limit is set.
        numbers: [n] the message that every token comes from; 0 for none, or if it is not known.
        mask: [n] which tokens are trained.
    """

    encoded: Encoded
    groups: list[Group]
    kinds: np.ndarray
    numbers: np.ndarray
    mask: np.ndarray


def label(prepared: Prepared, turns: list[Turn], chat: Chat) -> list[Labelled]:
    """The sequences of a row with labels for their tokens.

    Args:
        prepared: the row as it was tokenised.
        turns: the turns of its first answer.
        chat: renders it; it brings the tokenizer.
    """
    by_number = {turn.number: turn for turn in turns}
    marked_example, texts = _marked(prepared.example, turns[0].plain)
    try:
        marked_turns = chat.turns(marked_example, marked_example.answers[0])
    except PosttrainError:  # a template that checks what the text says
        marked_turns = []
    marked_by_number = {turn.number: turn for turn in marked_turns}
    branches = []
    for encoded in prepared.encoded:
        number = encoded.spans[-1].number  # the last turn's rendering is the whole text
        turn, marked = by_number[number], marked_by_number.get(number)
        rendering = turn.before + turn.after
        origins = None
        if marked is not None:
            origins = _origins(rendering, marked.before + marked.after, texts)
        branches.append(_label_sequence(encoded, turn, origins, chat.tokenizer))
    return branches


def _label_sequence(
    encoded: Encoded, turn: Turn, origins: tuple[list[Origin], int] | None, tokenizer: Any
) -> Labelled:
    def decode(ids: list[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    ids, n = encoded.ids, len(encoded.ids)
    special = set(tokenizer.added_tokens_decoder)
    groups = _groups(ids, decode, special)
    kinds, numbers = np.full(n, "given", object), np.zeros(n, np.int64)
    if origins is not None:
        _label_given(kinds, numbers, groups, turn.before + turn.after, *origins)
    if not turn.before:
        kinds[0] = "first"
    kinds[[i for i, token in enumerate(ids) if token in special]] = "special"
    for span in encoded.spans:
        inside = slice(span.start, span.end)
        kinds[inside], numbers[inside] = "trained", span.number
        end = ids[span.end - 1]
        if end in special:  # the row's own text may contain it, too
            kinds[[i for i in range(span.start, span.end) if ids[i] == end]] = "end"
    return Labelled(encoded, groups, kinds, numbers, encoded.mask())


def _label_given(
    kinds: np.ndarray,
    numbers: np.ndarray,
    groups: list[Group],
    rendering: str,
    origins: list[Origin],
    certain: int,
) -> None:
    """Label tokens by where their characters come from.

    Args:
        kinds, numbers: [n] labels, written to.
        groups: tokens and their texts.
        rendering: the text that was tokenised.
        origins: of its characters. certain: up to which character they are known.
    """
    decoded = "".join(text for _, _, text in groups)
    count: Callable[[str], int] = len
    start = decoded.find(rendering)
    if start < 0:  # some tokenizers add spaces: then only the other characters are counted
        count = _count_without_spaces
        start = "".join(decoded.split()).find("".join(rendering.split()))
    if start < 0:
        return
    counted = []
    for first, end, number in origins:
        counted.append((count(rendering[:first]), count(rendering[:end]), number))
    certain = count(rendering[:certain])
    position = -start
    for first_token, end_token, text in groups:
        end = position + count(text)
        origin = next((o for o in counted if o[0] < end and position < o[1]), None)
        numbers[first_token:end_token] = origin[2] if origin else 0
        if origin is None and position < certain:
            kinds[first_token:end_token] = "template"
        position = end


def _count_without_spaces(text: str) -> int:
    return len("".join(text.split()))


def _groups(ids: list[int], decode: Decode, special: set[int]) -> list[Group]:
    """The tokens one by one, or together where only together they make a character.

    The groups' texts add up to the whole text.
    """
    groups: list[Group] = []
    previous = start = 0
    for i, token in enumerate(ids):
        before = len(decode(ids[previous:start])) if start else 0
        text = decode(ids[previous : i + 1])[before:]
        complete = (
            i + 1 == len(ids)
            or token in special
            or ids[i + 1] in special
            or i - start == LONGEST_CHARACTER - 1
        )
        if text.endswith("\ufffd") and not complete:
            continue
        groups.append((start, i + 1, text))
        previous, start = start, i + 1
    return groups


def _marked(example: Example, plain: bool) -> tuple[Example, list[tuple[int, str]]]:
    """The example with marks in place of its texts; for each mark, the number of the message and
    the text that it stands for.
    """
    texts: list[tuple[int, str]] = []

    def mark(text: str, number: int) -> str:
        if not text.strip():
            return text
        texts.append((number, text))
        return f"Zq{len(texts) - 1}qZ"

    def mark_all(part: Text, first_number: int) -> Text:
        if isinstance(part, str):
            return mark(part, first_number)
        messages = []
        for number, message in enumerate(part, first_number):
            messages.append({**message, "content": mark(message["content"], number)})
        return tuple(messages)

    prompt = mark_all(example.prompt, 1)
    in_prompt = bool(prompt) if isinstance(prompt, str) else len(prompt)
    answer = mark_all(example.answers[0], 0 if plain else in_prompt + 1)
    return replace(example, prompt=prompt, answers=(answer,)), texts


def _origins(rendering: str, marked: str, texts: list[tuple[int, str]]) -> tuple[list[Origin], int]:
    """Where the row's own texts stand in a rendering, found from the rendering with marks.

    Returns: the origins, and up to which character they are certain.
    """
    # words of the template, a mark's number, words of the template, …
    parts = _MARK.split(marked)
    if not rendering.startswith(parts[0]):
        return [], 0
    origins: list[Origin] = []
    position = len(parts[0])
    for mark, template_words in zip(parts[1::2], parts[2::2], strict=True):
        number, text = texts[int(mark)]
        for form in (text, text.strip(), text.rstrip(), text.lstrip()):
            if rendering.startswith(form + template_words, position):
                break
        else:  # the template treats this text unlike a mark
            return origins, position
        origins.append((position, position + len(form), number))
        position += len(form) + len(template_words)
    return origins, position
