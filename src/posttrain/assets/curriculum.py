"""The curriculum of the embedded model: what it reads in pretraining, and the data of every stage
after it.

    pretraining   documents, never a chat   demonstrations    conversations for SFT   preferences
                  pairs, with their rule
    held_out      items, exact match        multiple_choice   four choices            prompts
                  for RL, with the answer

and `safety` for requests that ought to be refused. Everything is a function of (seed, split,
index): nothing is stored, and train, validation and test never share a question, whatever the
seeds. Pretraining reads train questions alone, in other words.

Left out: tool calls, languages other than English, answers longer than a line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any, Final

from posttrain.assets import safety
from posttrain.assets.facts import fact, portrait, register, unknown
from posttrain.assets.skills import chosen_skills, exercise, item, mistakes
from posttrain.assets.words import FIRST, Draw, Item, Split, normalise
from posttrain.core.errors import ConfigError

Row = dict[str, Any]

# the difficulty of the course; harder shares leave more room for RL
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
    d = Draw(seed, "document", index)
    kind = d.weighted(DOCUMENTS)
    if kind in _WORLD:
        return _WORLD[kind](d)
    skill = d.pick(chosen_skills())
    rows = [
        exercise(d, skill, d.between(1, 5))
        for _ in range(d.between(1, 3) if kind == "sheet" else d.between(2, 4))
    ]
    if kind == "statements":
        told = [row[3] for row in rows]
        return (" " if all(one.endswith(".") and "\n" not in one for one in told) else "\n").join(
            told
        )
    if kind == "sheet":
        return "\n\n".join(
            f"Exercise. {q}\n" + (f"Solution. {s}\n" if s else "") + f"Result. {a}"
            for q, a, s, _ in rows
        )
    if kind == "table":
        return "\n".join(("exercise | result", *(f"{q} | {a}" for q, a, _, _ in rows)))
    if kind == "spoken":
        p, r = d.some(FIRST, 2)
        return "\n".join(
            f'"{q}" {p} {d.pick(("asked", "read", "began"))}. "{a}," {r}'
            f" {d.pick(('said', 'replied', 'knew'))}."
            for q, a, _, _ in rows
        )
    return "\n".join(f"Q: {q}\nA: {a}" for q, a, _, _ in rows)


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
        skills: names of skills, "fact" and "unknown" among them; all skills but these two unless
            told.
        levels: level → whole-number share; facts and unknowns have their own levels.
    Raises:
        ConfigError: no such skill, or the split has fewer than `n` different items of these levels.
    """
    names = [s for s in skills if s not in ("fact", "unknown")]
    names = (
        *(chosen_skills(names) if names or not skills else ()),
        *(s for s in skills if s in ("fact", "unknown")),
    )
    found: dict[str, Item] = {}
    for index in range(20 * n + 200):
        d = Draw(seed, "item", split, index)
        one = _item(d, split, names[index % len(names)], d.weighted(levels))
        found.setdefault(one["key"], one)
        if len(found) >= n:
            return list(found.values())[:n]
    raise ConfigError(
        f"the split {split} has fewer than {n} different items of {', '.join(names)}",
        cure="ask for fewer, for more skills or for more levels",
    )


def _item(d: Draw, split: Split, skill: str, level: int) -> Item:
    return (
        fact(d, split)
        if skill == "fact"
        else unknown(d, split)
        if skill == "unknown"
        else item(d, split, skill, level)
    )


def final(answer: str) -> str:
    """What is answered in the end: after the last 'Answer:', or all of it."""
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
    for index, one in enumerate(held_out(n, split, seed, levels=levels)):
        d, wrong = Draw(seed, "choices", split, index), {}
        for guess in mistakes(d, one["question"], one["answer"]):
            wrong[guess] = None
            if len(wrong) == 3:
                break
        choices = d.shuffled([one["answer"], *wrong])
        rows.append(
            {
                "question": one["question"],
                "choices": choices,
                "answer_index": choices.index(one["answer"]),
                "skill": one["skill"],
                "level": one["level"],
            }
        )
    return rows


# ------------------------------------------------------------------------------------------- stages


def demonstrations(
    n: int, split: Split, seed: int = 0, *, levels: Mapping[int, int] = LEVEL_SHARES
) -> list[Row]:
    """Rows `{"messages": …}`: one to three turns of skills, facts, abstention, harmless requests
    and courtesy.

    Nothing is refused here: what ought to be is taught by the safety stage, which then has
        something to show.
    """
    return [
        {"messages": _conversation(Draw(seed, "conversation", split, index), split, levels)}
        for index in range(n)
    ]


def _conversation(d: Draw, split: Split, levels: Mapping[int, int]) -> list[dict[str, str]]:
    kind = d.weighted(TURNS)
    if kind == "request":
        one = safety.request(d, split, d.pick([*safety.CATEGORIES]), harmful=False)
        return [*one["messages"], {"role": "assistant", "content": one["answer"]}]
    turns = [_turn(d, split, kind, levels)]
    while len(turns) < 3 and d.chance(0.2):
        turns.append(
            _turn(d, split, d.weighted({k: v for k, v in TURNS.items() if k != "request"}), levels)
        )
    system, think = d.pick(SYSTEMS) if d.chance(0.3) else "", False
    if any(solution for _, _, solution in turns) and d.chance(0.12):
        system, think = d.pick(THINK), True
    messages = [{"role": "system", "content": system}] if system else []
    for question, answer, solution in turns:
        content = f"{solution} Answer: {answer}" if think and solution else answer
        messages += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": content},
        ]
    return messages


def _turn(d: Draw, split: Split, kind: str, levels: Mapping[int, int]) -> tuple[str, str, str]:
    if kind == "courtesy":
        return (*d.pick(COURTESIES), "")
    one = _item(d, split, d.pick(chosen_skills()) if kind == "skill" else kind, d.weighted(levels))
    return one["question"], one["answer"], one["solution"]


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
    return [
        {
            "prompt": [{"role": "user", "content": one["question"]}],
            "answer": one["answer"],
            "skill": one["skill"],
            "level": one["level"],
        }
        for one in held_out(n, split, seed, skills=skills, levels=levels)
    ]


# -------------------------------------------------------------------------------------- preferences

RULES: Final[Mapping[str, str]] = {
    "correct": "A right answer is better than a wrong one.",
    "brief": "Of two answers that are right, the shorter is better.",
    "polite": (
        "Of two answers that are right, the one with a friendly phrase is better, and one with a"
        " rude phrase is worse."
    ),
    "format": (
        "Of two answers that are right, the one in the form that the system prompt demands is"
        " better."
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
    for index, one in enumerate(held_out(n, split, seed, levels=levels)):
        d, answer = Draw(seed, "preference", split, index), one["answer"]
        rule, system = [*RULES][index // len(chosen_skills()) % len(RULES)], ""
        pair = answer, next(mistakes(d, one["question"], answer))
        if rule == "brief":
            pair = answer, d.pick(_LONG).format(answer)
        elif rule == "polite":
            pair = (
                f"{answer}\n{d.pick(_FRIENDLY)}",
                f"{answer}\n{d.pick(_CURT)}" if d.chance(0.5) else answer,
            )
        elif rule == "format":
            system = d.pick([*_FORMS])
            pair = (
                _FORMS[system].format(answer),
                answer if d.chance(0.5) else d.pick([*_FORMS.values()]).format(answer) + ".",
            )
        prompt = [{"role": "system", "content": system}] if system else []
        rows.append(
            {
                "prompt": [*prompt, {"role": "user", "content": one["question"]}],
                "chosen": pair[0],
                "rejected": pair[1],
                "rule": rule,
                "answer": answer,
            }
        )
    return rows


def quality(row: Row, answer: str) -> float:
    """How good an answer to the row's prompt is by the row's rule; the chosen one is above the
    rejected one.

    correct: 0 or 1. brief: 1 / words. polite: 0, 1, 2 for curt, plain, friendly. format: 0 or 1.
        All but the first give −1 to an
    answer in which the right one does not occur.
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
