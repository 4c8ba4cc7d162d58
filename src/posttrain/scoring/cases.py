"""Rows as an audit needs them: the question, the right answer, answers that are clearly wrong, and
the forms in which an answer may be written.

The kind of a row follows from its right answer: a number, the letter of a choice, JSON, Python
code with a function, or other text.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Many
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Literal

from posttrain.data.messages import Text
from posttrain.scoring.score import Response

Kind = Literal["number", "choice", "json", "code", "text"]
WRONG = 4  # wrong answers of a row at most
LONG = 100  # digits of a number at most
_CHOICES = ("choices", "options")  # columns with the texts of a question's choices
_LABEL = re.compile(r"^[ \t]*\(?([A-J])[).:]", re.MULTILINE)  # of a choice, in a question
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
# what an answer may be written as; a scorer that wants another form is given it by the user
FORMS = {
    "bare": "{answer}",
    "sentence": "The answer is {answer}.",
    "label": "Answer: {answer}",
    "bold": "**Final answer:** {answer}",
    "boxed": "So it is $\\boxed{{answer}}$.",
    "hashes": "#### {answer}",
    "fence": "```\n{answer}\n```",
    "json": '{"answer": "{answer}"}',
    "tags": "<answer>{answer}</answer>",
    "thinking": "<think>Working it out.</think><answer>{answer}</answer>",
    "thinking on lines": "<think>\nWorking it out.\n</think>\n<answer>\n{answer}\n</answer>",
    "reasoning on lines": (
        "<reasoning>\nWorking it out.\n</reasoning>\n<answer>\n{answer}\n</answer>\n"
    ),
}
AS_GIVEN = "as in the row"  # the right answer as its row writes it, with its working


@dataclass(frozen=True)
class Given:
    """A row and the answer it wants.

    Attributes:
        where: the row. prompt: what is asked. columns: what a scorer may read.
        gold: the right answer as the row has it.
        rejected: a wrong answer, where the row has one.
    """

    where: str
    prompt: Text
    columns: Mapping[str, Any]
    gold: str
    rejected: str | None = None

    @property
    def question(self) -> str:
        """The prompt, or its last message."""
        prompt = self.prompt
        return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])


@dataclass(frozen=True)
class Case:
    """A row to attack.

    Attributes:
        given: the row. kind: of its answer.
        answer: the right answer without its working.
        wrong: answers that are clearly wrong, one or more.
    """

    given: Given
    kind: Kind
    answer: str
    wrong: tuple[str, ...]

    @property
    def question(self) -> str:
        return self.given.question

    def written(self, form: str, answer: str) -> str:
        """An answer in a form: a name of `FORMS`, `AS_GIVEN`, or a text with {answer} in it."""
        if form == AS_GIVEN:
            before, _, after = self.given.gold.rpartition(self.answer)
            return before + answer + after
        if form == "fence" and self.kind in ("code", "json"):
            return f"```{'python' if self.kind == 'code' else 'json'}\n{answer}\n```"
        return FORMS.get(form, form).replace("{answer}", answer)

    def response(
        self, completion: str, prompt: Text | None = None, columns: Mapping[str, Any] | None = None
    ) -> Response:
        """A completion for a scorer, to the row's prompt and with its columns or others."""
        return Response(
            self.given.prompt if prompt is None else prompt,
            completion,
            self.given.columns if columns is None else columns,
            self.given.where,
        )


def cases(rows: Many[Given]) -> list[Case]:
    """Rows as cases. Wrong texts are the right answers of other rows."""
    found = []
    for given in rows:
        answer = (given.rejected is None and final_answer(given.gold)) or given.gold.strip()
        kind: Kind = "text" if given.rejected is not None else _kind(answer)
        found.append((given, kind, answer.strip("().: ") if kind == "choice" else answer))
    texts = list(dict.fromkeys(answer for _, kind, answer in found if kind == "text"))
    out = []
    for given, kind, answer in found:
        wrong: dict[str, None] = {}
        for other in _wrong(given, kind, answer, texts):
            wrong[other] = None
            if len(wrong) == WRONG:
                break
        out.append(Case(given, kind, answer, tuple(wrong)))
    return out


def final_answer(gold: str) -> str:
    """What a worked answer comes to: what stands in its last box, behind #### or between answer
    tags; else all of it.
    """
    start = gold.rfind("\\boxed{")
    if start >= 0:
        start, depth = start + len("\\boxed{"), 1
        for end in range(start, len(gold)):
            depth += {"{": 1, "}": -1}.get(gold[end], 0)
            if not depth:
                return gold[start:end]
    for pattern in (r"<answer>(.*?)</answer>", r"####[ \t]*(\S.*)"):
        if found := re.findall(pattern, gold, re.DOTALL if "<" in pattern else 0):
            return found[-1].strip()
    return gold.strip()


def number(text: str) -> Decimal | None:
    """The number that a text is, with commas and a currency or not."""
    with suppress(InvalidOperation):
        value = Decimal(text.strip().lstrip("$€£").replace(",", ""))
        return value if value.is_finite() and abs(value.adjusted()) < LONG else None
    return None


def plain(value: Decimal) -> str:
    """A number without an exponent and without zeros at its end."""
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def functions(code: str) -> list[str]:
    """Names of the functions that a Python text defines; empty where it is none."""
    with suppress(SyntaxError, ValueError, RecursionError):
        return [node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)]
    return []


def _kind(answer: str) -> Kind:
    if number(answer) is not None:
        return "number"
    if re.fullmatch(r"\(?[A-J]\)?[.:]?", answer):
        return "choice"
    with suppress(ValueError, RecursionError):
        if isinstance(json.loads(answer), (dict, list)):
            return "json"
    return "code" if functions(answer) else "text"


# ------------------------------------------------------------------------------------ wrong answers


def _wrong(given: Given, kind: Kind, answer: str, texts: Many[str]) -> Iterator[str]:
    """Answers that are clearly wrong, many or few; some may be the same."""
    if given.rejected is not None:
        yield given.rejected
    elif kind == "number":
        value = number(answer) or Decimal(0)
        others = (plain(value * (k % 7 + 1) + 13 * k) for k in range(2, 200))
        yield from (x for x in others if answer not in x and number(x) != value)
    elif kind == "choice":
        for labels in (_LABEL.findall(given.question), _labels(given), "ABCD"):
            yield from (label for label in labels if label != answer)
    elif kind == "json":
        for by in (1, 2, 3):
            yield json.dumps(altered(json.loads(answer), by), ensure_ascii=False)
    elif kind == "code":
        for body in ("return None", "return 'nothing'", "raise NotImplementedError"):
            yield define(answer, body)
    else:
        offered = next((v for c in _CHOICES if isinstance(v := given.columns.get(c), list)), [])
        start = texts.index(answer)
        others = (*texts[start:], *texts[:start], "something else", "none", "0", "7")
        for text in (*offered, *others):
            if isinstance(text, str) and not _overlaps(text, answer):
                yield text


def _overlaps(one: str, other: str) -> bool:
    one, other = one.casefold().strip(), other.casefold().strip()
    return one in other or other in one


def _labels(given: Given) -> list[str]:
    """Letters for the choices that stand in a column."""
    choices = next((v for c in _CHOICES if isinstance(v := given.columns.get(c), list)), [])
    return [chr(ord("A") + i) for i in range(min(len(choices), 10))]


def altered(value: Any, by: int) -> Any:
    """JSON of the same shape whose every value is another."""
    if isinstance(value, dict):
        return {key: altered(inner, by) for key, inner in value.items()} or {"other": by}
    if isinstance(value, list):
        return [altered(inner, by) for inner in value] or [by]
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 17 * by
    return "none" if value is None else f"not {value[::-1]} {'x' * by}"


def define(code: str, body: str) -> str:
    """The functions of a Python text with another body."""
    lines = body.replace("\n", "\n    ")
    return "\n\n".join(f"def {f}(*args, **kwargs):\n    {lines}" for f in functions(code))
