"""The skills with words: order, spelling, counting, editing, formats, and finding a fact in a
passage.
"""

from __future__ import annotations

from posttrain.assets.numeracy import Problem
from posttrain.assets.words import (
    ANIMALS,
    COLOURS,
    FIRST,
    FOODS,
    JOBS,
    TOWNS,
    WORDS,
    Draw,
    an,
    commas,
    listed,
)

BY_INITIAL = {
    letter: [w for w in WORDS if w[0] == letter] for letter in sorted({w[0] for w in WORDS})
}
BY_LENGTH = {n: [w for w in WORDS if len(w) == n] for n in range(3, 9)}
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
SEPARATORS = {
    "semicolons": "; ",
    "commas": ", ",
    "dashes": " - ",
    "slashes": " / ",
    "plus signs": " + ",
    "stars": " * ",
}


def alphabet(draw: Draw, level: int) -> Problem:
    """Three to six words into alphabetical order; from level 3 two share their first letter, from 4
    also backwards.
    """
    count = (3, 4, 4, 5, 6)[level - 1]
    words = [draw.pick(BY_INITIAL[letter]) for letter in draw.sample([*BY_INITIAL], count)]
    if level > 2:
        words[1] = draw.pick(
            [w for w in WORDS if w[0] == words[0][0] and w not in words] or [words[1]]
        )
    words = draw.shuffled(words)
    kind = "alphabet-down" if level > 3 and draw.chance(0.5) else "alphabet-up"
    return Problem(
        kind,
        " ".join(sorted(words)),
        {"list": commas(words)},
        commas(sorted(words, reverse=kind == "alphabet-down")),
    )


def reverse(draw: Draw, level: int) -> Problem:
    """A list of three to five words (1 … 3), a word of three or four letters (4), a longer word
    (5).
    """
    if level < 4:
        words = draw.sample(WORDS, level + 2)
        return Problem(
            "reverse-list", " ".join(words), {"list": commas(words)}, commas(words[::-1])
        )
    # letters of invented words: too few English ones are short
    pattern = draw.pick(("cvc", "cvcv") if level == 4 else ("cvcvc", "vccvc", "cvccvc"))
    word = "".join(draw.pick("bdfgklmnprstvz" if c == "c" else "aeiou") for c in pattern)
    return Problem(
        "reverse-letters",
        word,
        {"word": word},
        " ".join(word[::-1]),
        f"The letters are {' '.join(word)}.",
    )


def count(draw: Draw, level: int) -> Problem:
    """Words of a list (1), one word in a list (2), letters of a word (3), of two words (4), one
    letter in words (5).
    """
    if level == 1:
        words = draw.sample(WORDS, draw.between(2, 9))
        return Problem("count-words", " ".join(words), {"list": " ".join(words)}, str(len(words)))
    if level == 2:
        word, *others = draw.sample(WORDS, 4)
        n = draw.between(1, 6)
        words = draw.shuffled([word] * n + [draw.pick(others) for _ in range(draw.between(1, 4))])
        return Problem(
            "count-word",
            f"{word}: {' '.join(words)}",
            {"word": word, "list": commas(words)},
            str(n),
        )
    if level == 3:
        word = draw.pick(BY_LENGTH[draw.between(3, 8)])
        return Problem("count-letters", word, {"word": word}, str(len(word)), f"{', '.join(word)}.")
    if level == 4:
        words = [draw.pick(BY_LENGTH[draw.between(3, 8)]) for _ in range(2)]
        a, b = map(len, words)
        return Problem(
            "count-letters-of-two",
            " ".join(words),
            {"list": listed(words)},
            str(a + b),
            f"{words[0]} has {a} letters and {words[1]} has {b}.",
        )
    words = draw.sample(WORDS, 3)
    letters = "".join(words)
    counts = {letter: letters.count(letter) for letter in letters}
    # the number first: chosen by letter, nearly every answer would be 1
    n = draw.pick(sorted(set(counts.values())))
    letter = draw.pick(sorted(letter for letter, occurrences in counts.items() if occurrences == n))
    return Problem(
        "count-letter",
        f"{letter}: {' '.join(words)}",
        {"letter": letter, "list": " ".join(words)},
        str(n),
        " ".join(f"{w}: {w.count(letter)}." for w in words),
    )


def edit(draw: Draw, level: int) -> Problem:
    """Capitals or an end of a list (1), its n-th word (2), a replacement (3), a removal or a swap
    (4), two changes (5).
    """
    words = draw.sample(WORDS, (3, 5, 4, 5, 4)[level - 1])
    n = draw.below(len(words))
    other = draw.pick([w for w in draw.sample(WORDS, 6) if w not in words])
    slots: dict[str, object] = {
        "list": " ".join(words),
        "nth": ORDINALS[n],
        "old": words[n],
        "new": other,
    }
    swapped = [words[-1], *words[1:-1], words[0]]
    kind, made = draw.pick(
        {
            1: (
                ("edit-upper", [w.upper() for w in words]),
                ("edit-first", words[:1]),
                ("edit-last", words[-1:]),
            ),
            2: (("edit-nth", [words[n]]), ("edit-upper-nth", [words[n].upper()])),
            3: (
                ("edit-replace", [other if w == words[n] else w for w in words]),
                ("edit-append", [*words, other]),
            ),
            4: (("edit-remove", words[:n] + words[n + 1 :]), ("edit-swap", swapped)),
            5: (
                ("edit-replace-reverse", [other if w == words[n] else w for w in words][::-1]),
                ("edit-remove-upper", [w.upper() for i, w in enumerate(words) if i != n]),
            ),
        }[level]
    )
    used = ""
    if "replace" in kind:
        used = f"{words[n]} {other}"
    elif "append" in kind:
        used = other
    if "nth" in kind or "remove" in kind:
        used = ORDINALS[n]
    return Problem(kind, f"{slots['list']} {used}", slots, " ".join(made))


def form(draw: Draw, level: int) -> Problem:
    """A format instruction: a separator (1), numbering or brackets (2), first words or repetition
    (3), two demands (4, 5).
    """
    words, name = draw.sample(WORDS, 3 if level == 1 else 4), draw.pick([*SEPARATORS])
    glue = SEPARATORS[name]
    n = draw.between(2, 3)
    slots: dict[str, object] = {
        "list": listed(words),
        "separator": name,
        "n": ("two", "three")[n - 2],
        "word": words[0],
    }
    key = f"{' '.join(words)} {name}"
    if level == 1:
        return Problem("form-separator", key, slots, glue.join(words))
    if level == 2:
        kind, answer = draw.pick(
            (
                ("form-numbered", " ".join(f"{i + 1}. {w}" for i, w in enumerate(words))),
                ("form-brackets", " ".join(f"[{w}]" for w in words)),
                ("form-quoted", ", ".join(f'"{w}"' for w in words)),
            )
        )
        return Problem(kind, " ".join(words), slots, answer)
    if level == 3:
        if draw.chance(0.5):
            return Problem(
                "form-first-words",
                f"{' '.join(words)} {slots['n']}",
                slots | {"list": " ".join(words)},
                " ".join(words[:n]),
            )
        return Problem(
            "form-repeat", f"{words[0]} {name} {slots['n']}", slots, glue.join([words[0]] * n)
        )
    if level == 4:
        return Problem("form-capitals", key, slots, glue.join(w.upper() for w in words))
    values = draw.different(4, 1, 99)
    if draw.chance(0.5):
        return Problem(
            "form-sorted",
            f"{sorted(values)} {name}",
            slots | {"list": listed(values)},
            glue.join(map(str, sorted(values))),
        )
    return Problem("form-lengths", key, slots, glue.join(f"{w}:{len(w)}" for w in words))


# what a passage may say of somebody: name → (sentences, values)
_ATTRIBUTES = {
    "home": (("{p} lives in {v}.", "The home of {p} is in {v}.", "{p} has a house in {v}."), TOWNS),
    "job": (("{p} works as {a}.", "{p} is {a}.", "{p} earns money as {a}."), JOBS),
    "pet": (("{p} keeps {a}.", "{p} owns {a}.", "{p} has {a} at home."), ANIMALS),
    "food": (
        ("{p} likes to eat {v}.", "The favourite food of {p} is {v}.", "{p} eats {v} every day."),
        FOODS,
    ),
    "colour": (("{p} wears {a} coat.", "The coat of {p} is {v}.", "{p} put on {a} coat."), COLOURS),
}


def _say(draw: Draw, attribute: str, p: str, v: str) -> str:
    return draw.pick(_ATTRIBUTES[attribute][0]).format(p=p, v=v, a=an(v))


def passage(draw: Draw, level: int) -> Problem:
    """One fact of two (1) or three people (2), two of each (3), who it is of four (4), over a
    friend (5).
    """
    people = draw.sample(FIRST, (2, 3, 3, 4, 3)[level - 1])
    first, second = draw.sample([*_ATTRIBUTES], 2)
    facts = dict(zip(people, draw.sample(_ATTRIBUTES[first][1], len(people)), strict=True))
    sentences = [_say(draw, first, p, v) for p, v in facts.items()]
    p = draw.pick(people)
    kind, slots, answer, solution = f"passage-{first}", {"p": p}, facts[p], ""
    if level == 3:
        others = draw.sample(_ATTRIBUTES[second][1], len(people))
        for i, (person, value) in enumerate(zip(people, others, strict=True)):
            sentences[i] += f" {_say(draw, second, person, value)}"
    elif level == 4:
        kind, slots, answer = f"passage-who-{first}", {"v": facts[p], "a": an(facts[p])}, p
    elif level == 5:
        q = draw.pick([other for other in people if other != p])
        sentences.append(
            draw.pick(("{p} is a friend of {q}.", "The best friend of {q} is {p}.")).format(
                p=p, q=q
            )
        )
        kind, slots, solution = f"passage-friend-{first}", {"p": q}, f"The friend of {q} is {p}."
    text = " ".join(draw.shuffled(sentences))
    return Problem(
        kind, f"{text} {slots.get('p') or slots['v']}", {**slots, "passage": text}, answer, solution
    )
