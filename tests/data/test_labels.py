"""Labels of given tokens; where a rendering is not in the decoded text, nothing is guessed."""

from __future__ import annotations

import numpy as np
import pytest

from posttrain.data.labels import Group, Origin, _label_given

# the rendering "<u>Hi</u>", whose characters 3 … 5 are message 1's, as four tokens
RENDERING, ORIGINS = "<u>Hi</u>", [(3, 5, 1)]


def labelled(texts: list[str], origins: list[Origin], certain: int) -> tuple[list[str], list[int]]:
    groups: list[Group] = [(i, i + 1, text) for i, text in enumerate(texts)]
    kinds, numbers = np.full(len(texts), "given", object), np.zeros(len(texts), np.int64)
    _label_given(kinds, numbers, groups, RENDERING, origins, certain)
    return kinds.tolist(), numbers.tolist()


@pytest.mark.parametrize(
    "texts",
    [
        ["<u>", "H", "i", "</u>"],
        [" <u>", " H", "i", " </u>"],  # spaces that the tokenizer added do not count
    ],
)
def test_tokens_are_of_the_message_or_the_template(texts: list[str]) -> None:
    assert labelled(texts, ORIGINS, 9) == (["template", "given", "given", "template"], [0, 1, 1, 0])


def test_what_is_not_certain_is_given() -> None:
    assert labelled(["<u>", "H", "i", "</u>"], ORIGINS, 5)[0] == [
        "template",
        "given",
        "given",
        "given",
    ]


def test_tokens_before_the_rendering_are_of_the_template() -> None:
    kinds, numbers = labelled(["<s>", "<u>", "Hi", "</u>"], ORIGINS, 9)
    assert (kinds, numbers) == (["template", "template", "given", "template"], [0, 0, 1, 0])


def test_a_rendering_that_is_not_found_labels_nothing() -> None:
    assert labelled(["<u>", "hi", "</u>"], ORIGINS, 9) == (["given"] * 3, [0] * 3)
