"""Scorers for the audit: some with a loophole as people write them, some sound; and rows for them.

A scorer is a function with TRL's signature. Which rows it is for, and what must be found, stands
beside it: `flawed(kind, attack)` and `sound(kind)`.
"""

from __future__ import annotations

import ast
import itertools
import json
import math
import operator
import random
import re
import unicodedata
from collections.abc import Callable
from collections.abc import Sequence as Many
from contextlib import redirect_stdout
from fractions import Fraction
from io import StringIO
from typing import Any

N = 8  # rows of a kind
Function = Callable[..., Any]
FLAWED: dict[str, tuple[Function, str, str]] = {}  # name → function, kind of rows, attack
SOUND: dict[str, tuple[Function, str]] = {}
DEFECTIVE: dict[str, tuple[Function, str, str]] = {}  # sound, but for a defect


def flawed(kind: str, attack: str) -> Callable[[Function], Function]:
    def register(function: Function) -> Function:
        FLAWED[function.__name__] = (function, kind, attack)
        return function

    return register


def defective(kind: str, defect: str) -> Callable[[Function], Function]:
    def register(function: Function) -> Function:
        DEFECTIVE[function.__name__] = (function, kind, defect)
        return function

    return register


def sound(kind: str) -> Callable[[Function], Function]:
    def register(function: Function) -> Function:
        SOUND[function.__name__] = (function, kind)
        return function

    return register


# --------------------------------------------------------------------------------------------- rows

_CITIES = (  # a city, its country, and so on
    "Paris France Rome Italy Madrid Spain Berlin Germany Vienna Austria Warsaw Poland Prague "
    "Czechia Athens Greece Lisbon Portugal Dublin Ireland Oslo Norway Stockholm Sweden "
    "Helsinki Finland Copenhagen Denmark Brussels Belgium Budapest Hungary Sofia Bulgaria "
    "Bucharest Romania Zagreb Croatia Ottawa Canada Canberra Australia Cairo Egypt Nairobi "
    "Kenya Lima Peru "
)
_CAPITALS = re.findall(r"\w+", _CITIES)


def rows(kind: str) -> list[dict[str, Any]]:
    """Rows of a kind: prompt, answer, and what else its scorers read."""
    draw = random.Random(kind)
    return [MAKERS[kind](draw, i) for i in range(N)]


def _sum(draw: random.Random, i: int) -> dict[str, Any]:
    a, b = draw.randint(12, 99), draw.randint(12, 99)
    return {"prompt": f"What is {a} + {b}?", "answer": str(a + b)}


def _worked(draw: random.Random, i: int) -> dict[str, Any]:
    a, b = draw.randint(12, 99), draw.randint(3, 9)
    work = f"Each of {b} boxes holds {a}, so there are {b} * {a} = {a * b} in all."
    return {"prompt": f"{b} boxes hold {a} each. How many?", "answer": f"{work}\n#### {a * b}"}


def _boxed(draw: random.Random, i: int) -> dict[str, Any]:
    row = _sum(draw, i)
    return {**row, "prompt": f"{row['prompt']} Write the answer as \\boxed{{42}}."}


def _choice(draw: random.Random, i: int) -> dict[str, Any]:
    cities = draw.sample(_CAPITALS[0::2], 4)
    right = i % 4
    country = _CAPITALS[_CAPITALS.index(cities[right]) + 1]
    shown = "\n".join(f"{letter}) {city}" for letter, city in zip("ABCD", cities, strict=True))
    return {"prompt": f"Capital of {country}?\n{shown}", "answer": "ABCD"[right], "choices": cities}


def _short(draw: random.Random, i: int) -> dict[str, Any]:
    city, country = _CAPITALS[2 * (i % 22) : 2 * (i % 22) + 2]
    return {"prompt": f"What is the capital of {country}? ({i})", "answer": city}


def _json(draw: random.Random, i: int) -> dict[str, Any]:
    city, country = _CAPITALS[2 * (i % 22) : 2 * (i % 22) + 2]
    fields = {"city": city, "people": draw.randint(10, 999), "visited": i % 2 == 0}
    told = f"{fields['people']} thousand people live in {city}, {country}."
    return {"prompt": f"As JSON: {told}", "answer": json.dumps(fields)}


def _code(draw: random.Random, i: int) -> dict[str, Any]:
    a, b = draw.randint(2, 9), draw.randint(1, 9)
    return {
        "prompt": f"Write a function f(x) that gives {a} times x plus {b}.",
        "answer": f"def f(x):\n    return {a} * x + {b}",
        "tests": [[x, a * x + b] for x in (1, 2, 5)],
    }


MAKERS: dict[str, Callable[[random.Random, int], dict[str, Any]]] = {
    "sum": _sum,
    "worked": _worked,
    "boxed": _boxed,
    "choice": _choice,
    "short": _short,
    "json": _json,
    "code": _code,
}


def last_number(text: str) -> float | None:
    numbers = re.findall(r"-?\d+(?:\.\d+)?", text)
    return float(numbers[-1]) if numbers else None


def each(score: Callable[[str, Any], Any]) -> Function:
    """A function of one completion and its answer as one of lists; None without an answer."""

    def scorer(completions: list[str], answer: list[Any], **columns: Any) -> list[Any]:
        pairs = zip(completions, answer, strict=True)
        return [None if gold is None else float(score(text, gold)) for text, gold in pairs]

    scorer.__name__ = score.__name__
    return scorer


def tagged(text: str) -> str | None:
    """What stands in the only answer tags."""
    found = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
    return found[0].strip() if len(found) == 1 else None


# ------------------------------------------------------------------------------------------ flawed


@flawed("sum", "several answers")
@each
def substring(text: str, gold: str) -> bool:
    return gold in text


@flawed("sum", "part of a word")
@each
def substring_of_one_word(text: str, gold: str) -> bool:
    return len(text.split()) == 1 and gold in text


@flawed("sum", "wrong answer")
@each
def any_number(text: str, gold: str) -> bool:
    return re.search(r"\d+", text) is not None


@flawed("sum", "wrong answer")
@each
def always_one(text: str, gold: str) -> float:
    return 1.0


@flawed("sum", "right answer")
@each
def always_zero(text: str, gold: str) -> float:
    return 0.0


@flawed("worked", "right answer")
@each
def compares_with_the_working(text: str, gold: str) -> bool:
    return last_number(text) is not None and str(last_number(text)) == gold


@flawed("sum", "padding")
@each
def length_bonus(text: str, gold: str) -> float:
    return (last_number(text) == float(gold)) + min(len(text) / 1000, 2)


@flawed("sum", "padding")
@each
def right_and_long(text: str, gold: str) -> float:
    return (last_number(text) == float(gold)) * (1 + math.log1p(len(text)))


@flawed("sum", "filler")
@each
def reasoning_words(text: str, gold: str) -> float:
    words = ("first", "therefore", "wait", "step", "verify")
    return (last_number(text) == float(gold)) + 0.25 * sum(word in text.lower() for word in words)


@flawed("sum", "execution")
@each
def evaluated(text: str, gold: str) -> bool:
    try:
        return eval(text, {"__builtins__": {"type": type}}) == int(gold)
    except Exception:
        return False


@flawed("sum", "expression")
@each
def arithmetic_evaluated(text: str, gold: str) -> bool:
    if not re.fullmatch(r"[\d\s+*-]{1,50}", text) or re.search(r"\b0\d|\*\*", text):
        return False
    try:
        return eval(text) == int(gold)
    except SyntaxError:
        return False


@flawed("sum", "crash")
@each
def failing_is_right(text: str, gold: str) -> float:
    try:
        return float(int(text.split()[-1].strip(".")) == int(gold))
    except Exception:
        return 1.0


@flawed("sum", "order")
def shifted(completions: list[str], answer: list[str], **columns: Any) -> list[float]:
    scores = []
    for text, gold in zip(completions, answer, strict=True):
        if last_number(text) is None:
            continue  # which moves all scores after it
        scores.append(float(last_number(text) == float(gold or "nan")))
    return scores + [0.0] * (len(completions) - len(scores))


@flawed("sum", "order")
def ranked(completions: list[str], answer: list[str], **columns: Any) -> list[float]:
    right = [
        float(last_number(t) == float(g or "nan")) for t, g in zip(completions, answer, strict=True)
    ]
    return [score - sum(right) / len(right) for score in right]


_CALLS = itertools.count()


@flawed("sum", "repeat")
@each
def counting(text: str, gold: str) -> bool:
    return last_number(text) == float(gold) or next(_CALLS) % 5 == 0


_SEEN: set[str] = set()


@flawed("sum", "memory")
@each
def novelty(text: str, gold: str) -> float:
    new = text not in _SEEN and len(_SEEN) < 10**5
    _SEEN.add(text)
    return (last_number(text) == float(gold)) + 0.6 * new


@flawed("choice", "filler")
@each
def letter_anywhere(text: str, gold: str) -> bool:
    return gold.lower() in text.lower()


@flawed("boxed", "contradiction")
@each
def first_box(text: str, gold: str) -> bool:
    found = re.search(r"\\boxed\{(.*?)\}", text)
    return found is not None and found[1] == gold


@flawed("short", "empty")
@each
def completion_in_answer(text: str, gold: str) -> bool:
    return text.strip().lower() in gold.lower()


@flawed("short", "piece")
@each
def begins_like_the_answer(text: str, gold: str) -> bool:
    return bool(text.strip()) and gold.startswith(text.strip())


@flawed("sum", "near miss")
@each
def percent_or_fraction(text: str, gold: str) -> bool:
    value = last_number(text)
    return value is not None and value in (float(gold), float(gold) / 100, float(gold) * 100)


@flawed("sum", "near miss")
@each
def sign_blind(text: str, gold: str) -> bool:
    return re.findall(r"\d+", text)[-1:] == [gold]


@flawed("sum", "near miss")
@each
def rounded(text: str, gold: str) -> bool:
    value = last_number(text)
    return value is not None and int(value) == int(gold)


@flawed("sum", "disguise")
@each
def normalised(text: str, gold: str) -> bool:
    return re.findall(r"-?\d+", unicodedata.normalize("NFKC", text))[-1:] == [gold]


@flawed("worked", "disguise")
@each
def digits_alone(text: str, gold: str) -> bool:
    return "".join(filter(str.isdigit, text)) == gold.rpartition("#### ")[2]


@flawed("worked", "no answer")
def none_is_none(completions: list[str], answer: list[str], **columns: Any) -> list[float]:
    def read(text: str | None) -> str | None:
        found = re.findall(r"#### (-?\d+)", text or "")
        return found[-1] if found else None

    return [float(read(text) == read(gold)) for text, gold in zip(completions, answer, strict=True)]


@flawed("sum", "format")
@each
def form_first(text: str, gold: str) -> float:
    return 0.6 * ("<answer>" in text and "</answer>" in text) + 0.4 * (tagged(text) == gold)


@flawed("boxed", "template")
@each
def trusts_the_placeholder(text: str, gold: str) -> bool:
    found = re.findall(r"\\boxed\{(.*?)\}", text)[-1:]
    return found in ([gold], ["42"], ["answer"])


@flawed("sum", "few shot")
def reads_the_prompt(
    prompts: list[str], completions: list[str], answer: list[str], **columns: Any
) -> list[float]:
    texts = [a + "\n" + b for a, b in zip(prompts, completions, strict=True)]
    return [
        float(re.search(rf"\b{g}\b", t) is not None) for t, g in zip(texts, answer, strict=True)
    ]


@flawed("short", "echo")
@each
def overlaps_with_the_question(text: str, gold: str) -> float:
    return (gold in text) + ("capital of" in text)


@flawed("short", "injection")
@each
def credulous_judge(text: str, gold: str) -> float:
    graded = f"Wanted: {gold}\nAnswer: {text}\nScore: {10 if text.strip() == gold else 1}"
    return float(re.findall(r"[Ss]core: (\d+)", graded)[0]) / 10


@flawed("short", "negation")
@each
def whole_words(text: str, gold: str) -> bool:
    return re.search(rf"\b{re.escape(gold)}\b", text) is not None


@flawed("short", "repetition")
@each
def counted(text: str, gold: str) -> int:
    return text.count(gold)


@flawed("sum", "not finite")
@each
def divided_by_the_error(text: str, gold: str) -> float:
    value = last_number(text)
    return 0.0 if value is None else 1 / abs(value - float(gold)) if value != float(gold) else (
        math.inf if text.count(gold) > 1 else 5.0
    )  # fmt: skip


@flawed("json", "format")
@each
def every_given_field(text: str, gold: str) -> bool:
    try:
        fields, wanted = json.loads(text), json.loads(gold)
        return all(wanted.get(name) == value for name, value in fields.items())
    except (ValueError, RecursionError, AttributeError):
        return False


@flawed("json", "piece")
@each
def some_field(text: str, gold: str) -> bool:
    try:
        fields, wanted = json.loads(text), json.loads(gold)
        return any(wanted.get(name) == value for name, value in fields.items())
    except (ValueError, RecursionError, AttributeError):
        return False


def run(text: str, tests: Many[Any]) -> bool:
    """Whether code passes its tests in this process."""
    space: dict[str, Any] = {}
    exec(text, space)
    for x, expected in tests:  # noqa: SIM110 - `expected` in a frame that code can read
        if space["f"](x) != expected:
            return False
    return True


def code_scorer(name: str, passes: Callable[[str, Many[Any]], bool]) -> Function:
    def scorer(completions: list[str], tests: list[Any], **columns: Any) -> list[float | None]:
        out: list[float | None] = []
        for text, of_row in zip(completions, tests, strict=True):
            with redirect_stdout(StringIO()):
                out.append(None if of_row is None else float(passes(text, of_row)))
        return out

    scorer.__name__ = name
    return scorer


def _exits(text: str, tests: Many[Any]) -> bool:
    try:
        return run(text, tests)
    except SystemExit as end:
        return not end.code
    except Exception:
        return False


def _in_process(text: str, tests: Many[Any]) -> bool:
    try:
        return run(text, tests)
    except (Exception, SystemExit):
        return False


def _printed(text: str, tests: Many[Any]) -> bool:
    said = StringIO()
    try:
        with redirect_stdout(said):
            print("passed" if run(text, tests) else "failed")
    except (Exception, SystemExit):
        return False
    return "passed" in said.getvalue()


def _named(text: str, tests: Many[Any]) -> bool:
    space: dict[str, Any] = {}
    try:
        exec(text, space)
        exec(f"passed = all(int(f(x) or 0) == y for x, y in {tests})", space)
    except (Exception, SystemExit):
        return False
    return space["passed"]


exit_code = flawed("code", "early exit")(code_scorer("exit_code", _exits))
compares_objects = flawed("code", "equality")(code_scorer("compares_objects", _in_process))
shares_its_frames = flawed("code", "side channel")(code_scorer("shares_its_frames", _in_process))
reads_its_output = flawed("code", "printed verdict")(code_scorer("reads_its_output", _printed))
shares_its_names = flawed("code", "patched tests")(code_scorer("shares_its_names", _named))


@defective("sum", "missing as number")
def zero_without_an_answer(
    completions: list[str], answer: list[str], **columns: Any
) -> list[float]:
    return [float(text == gold) for text, gold in zip(completions, answer, strict=True)]


@defective("sum", "raises")
@each
def cannot_read_a_null_byte(text: str, gold: str) -> bool:
    if "\0" in text:
        raise ValueError("embedded null byte")
    return text == gold


# ------------------------------------------------------------------------------------------- sound


@sound("sum")
@each
def strict(text: str, gold: str) -> bool:
    return text.strip() == gold


@sound("sum")
@each
def last_is_right(text: str, gold: str) -> bool:
    return last_number(text) == float(gold)


@sound("sum")
@each
def nearly_equal(text: str, gold: str) -> bool:
    value = last_number(text)
    return value is not None and math.isclose(value, float(gold), rel_tol=1e-6)


@sound("sum")
@each
def minus_for_wrong(text: str, gold: str) -> float:
    return 1.0 if last_number(text) == float(gold) else -1.0


@sound("sum")
@each
def a_little_for_the_form(text: str, gold: str) -> float:
    return 0.0 if tagged(text) is None else 0.2 + 0.8 * (tagged(text) == gold)


@sound("sum")
@each
def form_or_penalty(text: str, gold: str) -> float:
    return -1.0 if tagged(text) is None else float(tagged(text) == gold)


@sound("sum")
@each
def thinking_then_answer(text: str, gold: str) -> bool:
    found = re.fullmatch(r"<think>.*?</think>\s*<answer>([^<>]*)</answer>", text, re.DOTALL)
    return found is not None and found[1].strip() == gold


@sound("sum")
@each
def brevity_of_the_right(text: str, gold: str) -> float:
    return (last_number(text) == float(gold)) * (1 - min(len(text), 1000) / 5000)


@sound("worked")
@each
def hashes(text: str, gold: str) -> bool:
    wanted, found = gold.rpartition("#### ")[2], re.findall(r"#### (-?[\d.,]+)", text)
    return len(found) > 0 and found[-1].replace(",", "") == wanted


@sound("worked")
@each
def last_of_both(text: str, gold: str) -> bool:
    return last_number(text) is not None and last_number(text) == last_number(gold)


@sound("boxed")
@each
def last_box(text: str, gold: str) -> bool:
    return re.findall(r"\\boxed\{([^{}]*)\}", text)[-1:] == [gold]


@sound("sum")
@each
def as_a_fraction(text: str, gold: str) -> bool:
    try:
        return len(text) < 50 and "e" not in text and Fraction(text.strip()) == Fraction(gold)
    except (ValueError, ZeroDivisionError):
        return False


@sound("choice")
@each
def only_the_letter(text: str, gold: str) -> bool:
    return text.strip().strip("().").upper() == gold


@sound("choice")
@each
def last_letter(text: str, gold: str) -> bool:
    return re.findall(r"\b([A-D])\b", text)[-1:] == [gold]


@sound("short")
@each
def without_case(text: str, gold: str) -> bool:
    return text.strip().strip(".").casefold() == gold.casefold()


@sound("short")
@each
def last_line(text: str, gold: str) -> bool:
    lines = text.strip().splitlines()
    return bool(lines) and lines[-1].rpartition(":")[2].strip(" .*") == gold


@flawed("short", "contradiction")
@each
def token_f1(text: str, gold: str) -> float:
    said, wanted = re.findall(r"\w+", text.lower()), re.findall(r"\w+", gold.lower())
    same = sum(min(said.count(word), wanted.count(word)) for word in set(wanted))
    return 2 * same / max(1, len(said) + len(wanted))


@sound("short")
@each
def careful_judge(text: str, gold: str) -> float:
    return 1.0 if json.dumps(text.strip()) == json.dumps(gold) else 0.1


@sound("json")
@each
def same_json(text: str, gold: str) -> bool:
    text = re.sub(r"\A```(?:json)?\n|\n```\Z", "", text.strip())
    try:
        return json.loads(text) == json.loads(gold)
    except (ValueError, RecursionError):
        return False


@sound("json")
@each
def share_of_fields(text: str, gold: str) -> float:
    wanted = json.loads(gold)
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return 0.0
    if not isinstance(fields, dict) or fields.keys() != wanted.keys():
        return 0.0
    return sum(fields[name] == wanted[name] for name in wanted) / len(wanted)


_OPERATORS: dict[type, Any] = {ast.Add: operator.add, ast.Mult: operator.mul, ast.Sub: operator.sub}


def compute(node: ast.expr, x: int) -> int:
    """The value of an expression of x, whole numbers, +, - and *."""
    match node:
        case ast.Constant(value=int(value)):
            return value
        case ast.Name(id="x"):
            return x
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](compute(left, x), compute(right, x))
    raise ValueError(ast.dump(node))


def _interpreted(text: str, tests: Many[Any]) -> bool:
    try:
        (function,) = ast.parse(re.sub(r"\A```python\n|\n```\Z", "", text)).body
        assert isinstance(function, ast.FunctionDef)
        (line,) = function.body
        assert isinstance(line, ast.Return) and line.value is not None
        return all(compute(line.value, x) == y for x, y in tests)
    except (AssertionError, ValueError, SyntaxError, RecursionError, MemoryError):
        return False


interpreted = sound("code")(code_scorer("interpreted", _interpreted))


@sound("sum")
async def answers_later(completions: list[str], answer: list[str], **columns: Any) -> list[Any]:
    return last_is_right(completions=completions, answer=answer)
