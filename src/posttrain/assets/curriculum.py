"""The curriculum of the embedded model: what it reads in pretraining, and the data of every later
stage.

    pretraining       documents, never a chat
    demonstrations    conversations for SFT
    preferences       pairs, with their rule
    held_out          items, for exact match
    multiple_choice   items with four choices
    prompts           for RL, with the answer

Requests that ought to be refused are in `safety`. Everything is a function of (seed, split, index):
nothing is stored, and train, validation and test never share a question, whatever the seeds.
Pretraining reads only train questions, in other words.

Left out: tool calls, languages other than English, answers longer than a line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any, Final

from posttrain.assets import safety
from posttrain.assets.facts import fact, portrait, register, unknown
from posttrain.assets.skills import Exercise, chosen_skills, exercise, item, mistakes
from posttrain.assets.words import FIRST, Draw, Item, Split, normalise
from posttrain.core.errors import ConfigError

Row = dict[str, Any]

# of the levels; more of the hard ones leaves more room for RL
LEVEL_SHARES: Final[Mapping[int, int]] = {1: 30, 2: 25, 3: 20, 4: 15, 5: 10}
DOCUMENTS: Final = {
    "sheet": 14,
    "dialogue": 14,
    "statements": 22,
    "table": 8,
    "spoken": 10,
    "portrait": 14,
    "register": 6,
    "tale": 12,
}
TURNS: Final = {"skill": 74, "fact": 10, "unknown": 5, "request": 8, "courtesy": 3}
SYSTEMS: Final = (
    "You are a helpful assistant.",
    "Answer briefly.",
    "You help people with short questions.",
    "Give only the answer.",
    safety.POLICY,
)
THINK: Final = (
    "Explain your steps, then give the answer.",
    "Think step by step before you answer.",
    "Show your work first.",
)
COURTESIES: Final = (
    ("Hello!", "Hello! How can I help you?"),
    ("Good morning.", "Good morning! What can I do for you?"),
    ("Thank you.", "You are welcome."),
    ("Thanks a lot!", "You are welcome."),
    ("Goodbye.", "Goodbye!"),
    ("How are you?", "I am well, thank you."),
    ("Are you there?", "Yes, I am here."),
)


# -------------------------------------------------------------------------------------- pretraining


def pretraining(seed: int = 0, start: int = 0) -> Iterator[str]:
    """Documents without end: exercises, statements and tables of every skill, the invented world,
    tales.

    Args:
        start: the index of the first one; `start + k` of one call is `start` of another.
    """
    return (document(seed, index) for index in count(start))


def document(seed: int, index: int) -> str:
    """One document of pretraining, some 20 … 600 characters."""
    draw = Draw(seed, "document", index)
    kind = draw.weighted(DOCUMENTS)
    if kind in _WORLD:
        return _WORLD[kind](draw)
    skill = draw.pick(chosen_skills())
    count = draw.between(1, 3) if kind == "sheet" else draw.between(2, 4)
    exercises = [exercise(draw, skill, draw.between(1, 5)) for _ in range(count)]
    return _LAYOUTS[kind](draw, exercises)


def _statements(draw: Draw, exercises: list[Exercise]) -> str:
    statements = [exercise.statement for exercise in exercises]
    prose = all(text.endswith(".") and "\n" not in text for text in statements)
    return (" " if prose else "\n").join(statements)


def _sheet(draw: Draw, exercises: list[Exercise]) -> str:
    blocks = []
    for question, answer, solution, _ in exercises:
        lines = [f"Exercise. {question}", f"Result. {answer}"]
        if solution:
            lines.insert(1, f"Solution. {solution}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _table(draw: Draw, exercises: list[Exercise]) -> str:
    rows = [f"{exercise.question} | {exercise.answer}" for exercise in exercises]
    return "\n".join(["exercise | result", *rows])


def _spoken(draw: Draw, exercises: list[Exercise]) -> str:
    asking, answering = draw.sample(FIRST, 2)
    lines = []
    for question, answer, _, _ in exercises:
        asked = draw.pick(("asked", "read", "began"))
        said = draw.pick(("said", "replied", "knew"))
        lines.append(f'"{question}" {asking} {asked}. "{answer}," {answering} {said}.')
    return "\n".join(lines)


def _dialogue(draw: Draw, exercises: list[Exercise]) -> str:
    return "\n".join(f"Q: {exercise.question}\nA: {exercise.answer}" for exercise in exercises)


_LAYOUTS: Final = {
    "statements": _statements,
    "sheet": _sheet,
    "table": _table,
    "spoken": _spoken,
    "dialogue": _dialogue,
}
_WORLD: Final = {"portrait": portrait, "register": register, "tale": safety.tale}


# -------------------------------------------------------------------------------------------- items


def held_out(
    n: int,
    split: Split,
    seed: int = 0,
    *,
    skills: Sequence[str] = (),
    levels: Mapping[int, int] = LEVEL_SHARES,
) -> list[Item]:
    """`n` items with different content, the skills in turn, for exact match.

    Args:
        skills: names of skills, "fact" and "unknown" among them; by default all skills but these
            two.
        levels: level → whole-number share; facts and unknowns have their own levels.
    Raises:
        ConfigError: no such skill, or the split has fewer than `n` different items of these levels.
    """
    of_world = [skill for skill in skills if skill in ("fact", "unknown")]
    others = [skill for skill in skills if skill not in of_world]
    names = [*(chosen_skills(others) if others or not skills else ()), *of_world]
    different: dict[str, Item] = {}
    for index in range(20 * n + 200):
        draw = Draw(seed, "item", split, index)
        candidate = _item(draw, split, names[index % len(names)], draw.weighted(levels))
        different.setdefault(candidate["key"], candidate)
        if len(different) >= n:
            return list(different.values())[:n]
    raise ConfigError(
        f"the split {split} has fewer than {n} different items of {', '.join(names)}",
        cure="ask for fewer, for more skills or for more levels",
    )


def _item(draw: Draw, split: Split, skill: str, level: int) -> Item:
    if skill == "fact":
        return fact(draw, split)
    if skill == "unknown":
        return unknown(draw, split)
    return item(draw, split, skill, level)


def final(answer: str) -> str:
    """The final answer: what follows the last 'Answer:', or all of it."""
    return normalise(answer.rpartition("Answer:")[2])


def score(item: Mapping[str, Any], answer: str) -> float:
    """1.0 if the final answer is exactly `item["answer"]` up to spaces, else 0.0."""
    return float(final(answer) == normalise(item["answer"]))


def multiple_choice(
    n: int, split: Split, seed: int = 0, *, levels: Mapping[int, int] = LEVEL_SHARES
) -> list[Row]:
    """Rows `{"question", "choices", "answer_index", "skill", "level"}` with four different choices
    in random order.
    """
    rows: list[Row] = []
    for index, held in enumerate(held_out(n, split, seed, levels=levels)):
        draw = Draw(seed, "choices", split, index)
        wrong: dict[str, None] = {}
        for guess in mistakes(draw, held["question"], held["answer"]):
            wrong[guess] = None
            if len(wrong) == 3:
                break
        choices = draw.shuffled([held["answer"], *wrong])
        rows.append(
            {
                "question": held["question"],
                "choices": choices,
                "answer_index": choices.index(held["answer"]),
                "skill": held["skill"],
                "level": held["level"],
            }
        )
    return rows


# ------------------------------------------------------------------------------------------- stages


def demonstrations(
    n: int, split: Split, seed: int = 0, *, levels: Mapping[int, int] = LEVEL_SHARES
) -> list[Row]:
    """Rows `{"messages": …}`: one to three turns of skills, facts, abstention, harmless requests
    and courtesy.

    Nothing is refused here: refusals are left to the safety stage, whose effect then shows.
    """
    return [
        {"messages": _conversation(Draw(seed, "conversation", split, index), split, levels)}
        for index in range(n)
    ]


def _conversation(draw: Draw, split: Split, levels: Mapping[int, int]) -> list[dict[str, str]]:
    kind = draw.weighted(TURNS)
    if kind == "request":
        harmless = safety.request(draw, split, draw.pick([*safety.CATEGORIES]), harmful=False)
        return [*harmless["messages"], {"role": "assistant", "content": harmless["answer"]}]
    turns = [_turn(draw, split, kind, levels)]
    later_turns = {name: share for name, share in TURNS.items() if name != "request"}
    while len(turns) < 3 and draw.chance(0.2):
        turns.append(_turn(draw, split, draw.weighted(later_turns), levels))
    system, think = draw.pick(SYSTEMS) if draw.chance(0.3) else "", False
    if any(solution for _, _, solution in turns) and draw.chance(0.12):
        system, think = draw.pick(THINK), True
    messages = [{"role": "system", "content": system}] if system else []
    for question, answer, solution in turns:
        content = f"{solution} Answer: {answer}" if think and solution else answer
        messages += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": content},
        ]
    return messages


def _turn(draw: Draw, split: Split, kind: str, levels: Mapping[int, int]) -> tuple[str, str, str]:
    """Question, answer and solution."""
    if kind == "courtesy":
        return (*draw.pick(COURTESIES), "")
    skill = draw.pick(chosen_skills()) if kind == "skill" else kind
    asked = _item(draw, split, skill, draw.weighted(levels))
    return asked["question"], asked["answer"], asked["solution"]


def prompts(
    n: int,
    split: Split,
    seed: int = 0,
    *,
    skills: Sequence[str] = (),
    levels: Mapping[int, int] = LEVEL_SHARES,
) -> list[Row]:
    """Rows `{"prompt": messages, "answer", "skill", "level"}` for RL; `score(row, completion)` is
    the reward.
    """
    rows = []
    for held in held_out(n, split, seed, skills=skills, levels=levels):
        row = {name: held[name] for name in ("answer", "skill", "level")}
        rows.append({"prompt": [{"role": "user", "content": held["question"]}], **row})
    return rows


# -------------------------------------------------------------------------------------- preferences

RULES: Final[Mapping[str, str]] = {
    "correct": "A right answer is better than a wrong one.",
    "brief": "Of two answers that are right, the shorter is better.",
    "polite": (
        "Of two answers that are right, the one with a friendly phrase is better, and one with a "
        "rude phrase is worse."
    ),
    "format": (
        "Of two answers that are right, the one in the form that the system prompt demands is "
        "better."
    ),
}
_FRIENDLY = (
    "You are welcome to ask more.",
    "I hope this helps.",
    "Happy to help!",
    "Good question!",
)
_CURT = ("Everybody knows that.", "Do not bother me.", "What a silly question.", "Leave me alone.")
_LONG = (
    "Let me think about this for a while. The answer, if I am not mistaken, is {}",
    "That is something many people ask. After some thought I would say that it is {}",
    "There are many ways to look at this, but in the end it is {}",
)
_FORMS = {
    "Put every answer in square brackets.": "[{}]",
    "Begin every answer with the word Result and a colon.": "Result: {}",
    "Put every answer in quotation marks.": '"{}"',
    "End every answer with the word done.": "{} done",
}


def preferences(
    n: int, split: Split, seed: int = 0, *, levels: Mapping[int, int] = LEVEL_SHARES
) -> list[Row]:
    """Rows `{"prompt": messages, "chosen", "rejected", "rule", "answer"}`; `RULES[rule]` says why,
    `quality` measures it.
    """
    rows: list[Row] = []
    rules = [*RULES]
    for index, held in enumerate(held_out(n, split, seed, levels=levels)):
        draw, answer = Draw(seed, "preference", split, index), held["answer"]
        rule = rules[index // len(chosen_skills()) % len(rules)]
        wrong = next(mistakes(draw, held["question"], answer))
        system, chosen, rejected = _pair(draw, rule, answer, wrong)
        prompt = [{"role": "system", "content": system}] if system else []
        rows.append(
            {
                "prompt": [*prompt, {"role": "user", "content": held["question"]}],
                "chosen": chosen,
                "rejected": rejected,
                "rule": rule,
                "answer": answer,
            }
        )
    return rows


def _pair(draw: Draw, rule: str, answer: str, wrong: str) -> tuple[str, str, str]:
    """System prompt, chosen and rejected answer by a rule."""
    if rule == "correct":
        return "", answer, wrong
    if rule == "brief":
        return "", answer, draw.pick(_LONG).format(answer)
    if rule == "polite":
        chosen = f"{answer}\n{draw.pick(_FRIENDLY)}"
        return "", chosen, f"{answer}\n{draw.pick(_CURT)}" if draw.chance(0.5) else answer
    system = draw.pick([*_FORMS])
    rejected = answer
    if not draw.chance(0.5):
        rejected = draw.pick([*_FORMS.values()]).format(answer) + "."
    return system, _FORMS[system].format(answer), rejected


def quality(row: Row, answer: str) -> float:
    """How good an answer to the row's prompt is by the row's rule; the chosen answer is above the
    rejected one.

    correct: 0 or 1. brief: 1 / words. polite: 0, 1, 2 for curt, plain, friendly. format: 0 or 1.
    All but the first give −1 to an answer in which the right one does not occur.
    """
    rule, right = row["rule"], normalise(row["answer"])
    if rule == "correct":
        return score(row, answer)
    if not re.search(rf"(?<!\w){re.escape(right)}(?!\w)", normalise(answer)):
        return -1.0
    if rule == "brief":
        return 1 / len(answer.split())
    if rule == "polite":
        return 1.0 + any(p in answer for p in _FRIENDLY) - any(p in answer for p in _CURT)
    return float(normalise(answer) == normalise(_FORMS[row["prompt"][0]["content"]].format(right)))
