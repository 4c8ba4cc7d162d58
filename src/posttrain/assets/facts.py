"""An invented world: people and towns that the base model has read about, and questions whose right
answer is to abstain.

There is one world, whatever the seed: the shipped model has read about it. Pretraining states every
fact; questions about a fact belong to the split of the fact, so that a test question asks for what
was read and was never a training question.
"""

from __future__ import annotations

from typing import Final

from posttrain.assets.words import (
    ANIMALS,
    COLOURS,
    FAMILY,
    FIRST,
    FOODS,
    JOBS,
    LANDS,
    RIVERS,
    THINGS,
    TOWNS,
    Draw,
    Item,
    Split,
    an,
    split_of,
)

ABSTAIN: Final = "I do not know."
KNOWN_FIRST, STRANGE_FIRST = FIRST[:120], FIRST[120:]
KNOWN_TOWNS, STRANGE_TOWNS = TOWNS[:40], TOWNS[40:]
WORLD_SEED: Final = 0

# attribute → instructions; exercises; statements. {v} is the value, {a} the value with its article.
_PERSON = {
    "home": (
        (
            "Where does {name} live?",
            "Which town is the home of {name}?",
            "Please tell me where {name} lives.",
        ),
        ("The home of {name}:", "In which town is {name} to be found?"),
        (
            "{name} lives in {v}.",
            "The home of {name} is in {v}.",
            "In {v} there lives {name}.",
            "{name} has a house in {v}.",
        ),
    ),
    "job": (
        (
            "What is the job of {name}?",
            "What does {name} do for a living?",
            "Please tell me the job of {name}.",
        ),
        ("The trade of {name}:", "As what does {name} earn money?"),
        (
            "{name} works as {a}.",
            "{name} is {a}.",
            "{name} is known as a good {v}.",
            "{name} earns money as {a}.",
        ),
    ),
    "pet": (
        (
            "Which animal does {name} have?",
            "What kind of animal does {name} keep?",
            "Please tell me which animal {name} owns.",
        ),
        ("The animal of {name}:", "What animal lives with {name}?"),
        (
            "{name} keeps {a}.",
            "{name} owns {a}.",
            "At home {name} has {a}.",
            "The animal of {name} is {a}.",
        ),
    ),
    "food": (
        (
            "What does {name} like to eat?",
            "Which food does {name} like best?",
            "Please tell me the favourite food of {name}.",
        ),
        ("The food of {name}:", "What is on the plate of {name}?"),
        (
            "{name} likes to eat {v}.",
            "The favourite food of {name} is {v}.",
            "{name} eats {v} every day.",
        ),
    ),
    "colour": (
        (
            "What colour does {name} wear?",
            "Which colour is the coat of {name}?",
            "Please tell me the colour of {name}'s coat.",
        ),
        ("The coat of {name}:", "In what colour is {name} seen?"),
        ("{name} wears {a} coat.", "The coat of {name} is {v}.", "{name} is always seen in {v}."),
    ),
}
_TOWN = {
    "land": (
        (
            "In which land does {name} lie?",
            "Which land does {name} belong to?",
            "Please tell me the land of {name}.",
        ),
        ("The land of {name}:", "{name} is a town in:"),
        ("{name} is a town in {v}.", "The town of {name} lies in {v}."),
    ),
    "river": (
        (
            "Which river flows through {name}?",
            "At which river does {name} lie?",
            "Please tell me the river of {name}.",
        ),
        ("The river of {name}:", "{name} stands on the river:"),
        ("{name} stands on the river {v}.", "The river {v} flows through {name}."),
    ),
    "goods": (
        (
            "What is {name} known for?",
            "Which goods come from {name}?",
            "Please tell me what {name} sells.",
        ),
        ("The goods of {name}:", "{name} is famous for:"),
        ("{name} is famous for its {v}.", "The {v} of {name} are sold everywhere."),
    ),
}
_LAND_OF_HOME = (
    ("In which land does {name} live?", "Please tell me the land where {name} lives."),
    (),
    (),
)


def _people() -> dict[str, dict[str, str]]:
    """160 people; about a sixth of their attributes are recorded nowhere."""
    draw = Draw(WORLD_SEED, "people")
    values = {"home": KNOWN_TOWNS, "job": JOBS, "pet": ANIMALS, "food": FOODS, "colour": COLOURS}
    names = dict.fromkeys(f"{draw.pick(KNOWN_FIRST)} {draw.pick(FAMILY)}" for _ in range(160))
    return {
        name: {k: draw.pick(v) for k, v in values.items() if draw.chance(5 / 6)} for name in names
    }


def _towns() -> dict[str, dict[str, str]]:
    draw = Draw(WORLD_SEED, "towns")
    return {
        t: {"land": draw.pick(LANDS), "river": draw.pick(RIVERS), "goods": draw.pick(THINGS)}
        for t in KNOWN_TOWNS
    }


PEOPLE: Final = _people()
PLACES: Final = _towns()
# (level, name, attribute, answer)
FACTS: Final = (
    *((1, name, k, v) for name, facts in PEOPLE.items() for k, v in facts.items()),
    *((2, name, k, v) for name, facts in PLACES.items() for k, v in facts.items()),
    *(
        (3, name, "land of home", PLACES[facts["home"]]["land"])
        for name, facts in PEOPLE.items()
        if "home" in facts
    ),
)
BLANKS: Final = tuple(
    (name, k) for name, facts in PEOPLE.items() for k in _PERSON if k not in facts
)
_BY_SPLIT = {
    split: [fact for fact in FACTS if split_of(f"fact {fact[1]} {fact[2]}") == split]
    for split in ("train", "validation", "test")
}


def fact(draw: Draw, split: Split) -> Item:
    """A question about the world: a person (level 1), a town (2), the land where a person's town
    lies (3).

    The last was never written anywhere: it follows from two facts.
    """
    level, name, attribute, value = draw.pick(_BY_SPLIT[split])
    instructions = {**_PERSON, **_TOWN, "land of home": _LAND_OF_HOME}[attribute][0]
    solution = (
        f"{name} lives in {PEOPLE[name]['home']}. {PEOPLE[name]['home']} is a town in {value}."
        if level == 3
        else ""
    )
    return Item(
        skill="fact",
        level=level,
        key=f"fact {name} {attribute}",
        question=draw.pick(instructions).format(name=name),
        answer=value,
        solution=solution,
    )


def unknown(draw: Draw, split: Split) -> Item:
    """A question that the world does not answer: a strange first name (1), a strange town (2), two
    known names that nobody bears together (3), something that is recorded nowhere (4). The answer
    is `ABSTAIN`.
    """
    while True:
        level = draw.between(1, 4)
        table = _TOWN if level == 2 else _PERSON
        attribute = draw.pick([*table])
        if level == 4:
            name, attribute = draw.pick(BLANKS)
        elif level == 2:
            name = draw.pick(STRANGE_TOWNS)
        else:
            name = f"{draw.pick(STRANGE_FIRST if level == 1 else KNOWN_FIRST)} {draw.pick(FAMILY)}"
        key = f"unknown {name} {attribute}"
        if split_of(key) == split and attribute not in PEOPLE.get(name, {}):
            return Item(
                skill="unknown",
                level=level,
                key=key,
                question=draw.pick(table[attribute][0]).format(name=name),
                answer=ABSTAIN,
                solution="",
            )


def portrait(draw: Draw) -> str:
    """All that is recorded of one to three people or towns, as a paragraph each, in any order and
    wording.
    """
    table, known = (_PERSON, PEOPLE) if draw.chance(0.75) else (_TOWN, PLACES)
    return "\n".join(
        " ".join(
            draw.pick(table[k][2]).format(name=name, v=v, a=an(v))
            for k, v in draw.shuffled([*known[name].items()])
        )
        for name in draw.sample([*known], draw.between(1, 3))
        if known[name]
    )


def register(draw: Draw) -> str:
    """Questions about facts of the train split with their answers, in the wordings of
    pretraining.
    """
    lines = []
    for level, name, attribute, value in draw.sample(_BY_SPLIT["train"], draw.between(2, 5)):
        if level < 3:
            lines.append(
                f"{draw.pick({**_PERSON, **_TOWN}[attribute][1]).format(name=name)} {value}"
            )
    return "\n".join(lines) or portrait(draw)
