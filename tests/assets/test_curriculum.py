"""The curriculum: right answers recomputed another way, splits without overlap, verifiers that can
tell right from wrong.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import io
import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import islice, product
from typing import Any

import pytest

from posttrain.assets import curriculum, facts, safety
from posttrain.assets.literacy import _ATTRIBUTES, SEPARATORS
from posttrain.assets.skills import SKILLS, mistakes, problem
from posttrain.assets.wordings import WORDINGS
from posttrain.assets.words import LEVELS, SPLITS, Draw, split_of
from posttrain.core.errors import ConfigError
from posttrain.data.formats import Example, Format
from posttrain.data.rows import Row

DAYS = [datetime.date(2024, 1, d).strftime("%A") for d in range(1, 8)]
MONTHS = [datetime.date(2024, m, 1).strftime("%B") for m in range(1, 13)]


# ----------------------------------------------------------------------------- answers, another way


def numbers(text: object) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", str(text))]


def named(text: object) -> list[str]:
    return re.findall(r"[a-z]+", str(text).replace(" and ", " "))


def day(name: Any, step: int) -> str:
    return (datetime.date(2024, 1, 1 + DAYS.index(name)) + datetime.timedelta(days=step)).strftime(
        "%A"
    )


def month(name: Any, step: int) -> str:
    return MONTHS[(12 * 100 + MONTHS.index(name) + step) % 12]


def hour(start: int, step: int) -> str:
    time = datetime.datetime(2024, 1, 2, start % 12) + datetime.timedelta(hours=step)
    return time.strftime("%I").lstrip("0")


def ran(program: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(program, {})
    return out.getvalue().strip()


def continued(shown: str) -> str:
    """The gap of a row: filled so that steps are even, grow by one, or double."""
    parts = [*shown.split(", "), *(["_"] if "_" not in shown else [])]
    for guess in range(2000):
        row = [guess if p == "_" else int(p) for p in parts]
        steps = [b - a for a, b in zip(row, row[1:], strict=False)]
        known = steps if "_" in parts[:-1] else steps[:-1]
        even = len({*steps}) == 1
        grow = all(b - a == 1 for a, b in zip(steps, steps[1:], strict=False))
        double = all(b == 2 * a for a, b in zip(row, row[1:], strict=False))
        if even or (grow and len({*known}) > 1) or double:
            return str(guess)
    raise AssertionError(shown)


def told(s: dict[str, Any], kind: str) -> str:
    """Reads a passage as a regular expression would."""
    attribute, said = kind.rsplit("-", 1)[1], {}
    for sentence in re.findall(r"[^.]+\.", s["passage"]):
        for pattern in _ATTRIBUTES[attribute][0]:
            shape = (
                re.escape(pattern)
                .replace(r"\{p\}", r"(?P<p>\w+)")
                .replace(r"\{a\}", r"an? (?P<v>\w+)")
            )
            if match := re.fullmatch(shape.replace(r"\{v\}", r"(?P<v>\w+)"), sentence.strip()):
                said[match["p"]] = match["v"]
    if "who" in kind:
        return next(p for p, v in said.items() if v == s["v"])
    friends = re.search(
        r"(\w+) is a friend of (\w+)\.|The best friend of (\w+) is (\w+)\.", s["passage"]
    )
    if "friend" in kind:
        assert friends and s["p"] in (friends[2], friends[3])
        return said[friends[1] or friends[4]]
    return said[s["p"]]


def place(s: dict[str, Any]) -> int:
    return ("first", "second", "third", "fourth", "fifth", "sixth").index(s["nth"])


def without(s: dict[str, Any]) -> str:
    words = s["list"].split()
    return " ".join(words[: place(s)] + words[place(s) + 1 :])


def joined(words: list[str], s: dict[str, Any]) -> str:
    return SEPARATORS[s["separator"]].join(words)


SIZES = {
    ("week", "days"): 7,
    ("minute", "seconds"): 60,
    ("hour", "minutes"): 60,
    ("day", "hours"): 24,
    ("metre", "centimetres"): 100,
    ("kilometre", "metres"): 1000,
    ("kilogram", "grams"): 1000,
    ("dozen", "pieces"): 12,
    ("year", "months"): 12,
    ("yard", "inches"): 36,
}


def size(s: dict[str, Any]) -> int:
    return SIZES[s["big"].removesuffix("s"), s["small"]]


def backwards(text: str) -> str:
    return " ".join(reversed(text.split()))


RIGHT: dict[str, Callable[[dict[str, Any]], object]] = {
    "plus": lambda s: sum((s["a"], s["b"])),
    "plus3": lambda s: sum((s["a"], s["b"], s["c"])),
    "minus": lambda s: s["a"] - s["b"],
    "times": lambda s: sum([s["a"]] * s["b"]),
    "largest": lambda s: max(numbers(s["list"])),
    "smallest": lambda s: min(numbers(s["list"])),
    "second-largest": lambda s: max({*numbers(s["list"])} - {max(numbers(s["list"]))}),
    "second-smallest": lambda s: min({*numbers(s["list"])} - {min(numbers(s["list"]))}),
    "range": lambda s: max(numbers(s["list"])) - min(numbers(s["list"])),
    "sort-up": lambda s: str(sorted(numbers(s["list"])))[1:-1],
    "sort-down": lambda s: str(sorted(numbers(s["list"]))[::-1])[1:-1],
    "sequence": lambda s: continued(s["list"]),
    "sequence-gap": lambda s: continued(s["list"]),
    "story-more": lambda s: s["a"] + s["b"],
    "story-less": lambda s: s["a"] - s["b"],
    "story-times": lambda s: s["a"] * s["b"],
    "story-twice": lambda s: s["a"] + s["b"] - s["c"],
    "story-times-more": lambda s: s["a"] * s["b"] + s["c"],
    "story-three": lambda s: s["a"] * s["b"] + s["c"] - s["e"],
    "hour-after": lambda s: hour(s["a"], s["b"]),
    "hour-before": lambda s: hour(s["a"], -s["b"]),
    "day-after": lambda s: day(s["from"], s["n"]),
    "day-before": lambda s: day(s["from"], -s["n"]),
    "day-both": lambda s: day(s["from"], s["a"] - s["b"]),
    "month-after": lambda s: month(s["from"], s["n"]),
    "month-before": lambda s: month(s["from"], -s["n"]),
    "convert-down": lambda s: s["a"] * size(s),
    "convert-up": lambda s: s["total"] // size(s),
    "convert-mixed": lambda s: s["a"] * size(s) + s["b"],
    "convert-split": lambda s: (
        f"{s['total'] // size(s)} {s['big']} and {s['total'] % size(s)} {s['small']}"
    ),
    "code": lambda s: ran(s["code"]),
    "alphabet-up": lambda s: ", ".join(sorted(named(s["list"]))),
    "alphabet-down": lambda s: ", ".join(sorted(named(s["list"]))[::-1]),
    "reverse-list": lambda s: ", ".join(reversed(named(s["list"]))),
    "reverse-letters": lambda s: " ".join(reversed(s["word"])),
    "count-words": lambda s: len(s["list"].split()),
    "count-word": lambda s: named(s["list"]).count(s["word"]),
    "count-letters": lambda s: len(s["word"]),
    "count-letters-of-two": lambda s: len("".join(named(s["list"]))),
    "count-letter": lambda s: s["list"].count(s["letter"]),
    "edit-upper": lambda s: s["list"].upper(),
    "edit-first": lambda s: s["list"].split()[0],
    "edit-last": lambda s: s["list"].split()[-1],
    "edit-nth": lambda s: s["list"].split()[place(s)],
    "edit-upper-nth": lambda s: s["list"].split()[place(s)].upper(),
    "edit-replace": lambda s: re.sub(rf"\b{s['old']}\b", s["new"], s["list"]),
    "edit-append": lambda s: f"{s['list']} {s['new']}",
    "edit-remove": without,
    "edit-remove-upper": lambda s: without(s).upper(),
    "edit-swap": lambda s: re.sub(r"^(\w+) (.*) (\w+)$", r"\3 \2 \1", s["list"]),
    "edit-replace-reverse": lambda s: backwards(re.sub(rf"\b{s['old']}\b", s["new"], s["list"])),
    "form-separator": lambda s: joined(named(s["list"]), s),
    "form-capitals": lambda s: joined([w.upper() for w in named(s["list"])], s),
    "form-numbered": lambda s: " ".join(f"{i}. {w}" for i, w in enumerate(named(s["list"]), 1)),
    "form-brackets": lambda s: "[" + "] [".join(named(s["list"])) + "]",
    "form-quoted": lambda s: '"' + '", "'.join(named(s["list"])) + '"',
    "form-first-words": lambda s: " ".join(s["list"].split()[: {"two": 2, "three": 3}[s["n"]]]),
    "form-repeat": lambda s: joined([s["word"]] * {"two": 2, "three": 3}[s["n"]], s),
    "form-sorted": lambda s: joined([str(n) for n in sorted(numbers(s["list"]))], s),
    "form-lengths": lambda s: joined([f"{w}:{len(w)}" for w in named(s["list"])], s),
    **{kind: lambda s, kind=kind: told(s, kind) for kind in WORDINGS if kind.startswith("passage")},
}


@pytest.mark.parametrize("skill", SKILLS)
def test_every_answer_is_what_another_formula_finds(skill: str) -> None:
    for level in LEVELS:
        d = Draw(7, "check", skill, level)
        for _ in range(150):
            found = problem(d, "train", skill, level)
            assert str(RIGHT[found.kind](found.slots)) == found.answer, found


def test_every_kind_of_problem_has_wordings_and_a_formula_and_occurs() -> None:
    seen = {
        problem(d, "train", skill, level).kind
        for skill in SKILLS
        for level in LEVELS
        for d in [Draw(1, skill, level)]
        for _ in range(60)
    }
    assert seen == set(WORDINGS) == set(RIGHT)


@pytest.mark.parametrize("skill", SKILLS)
def test_a_key_says_no_more_than_the_question(skill: str) -> None:
    """Else one question, drawn twice, could have two keys and stand in two splits."""
    for level in LEVELS:
        d = Draw(2, skill, level)
        for _ in range(100):
            found = problem(d, "train", skill, level)
            for said in WORDINGS[found.kind].instructions + WORDINGS[found.kind].exercises:
                assert {*re.findall(r"\w+", found.key)} <= {
                    *re.findall(r"\w+", said.format(**found.slots))
                }


def test_instructions_are_new_to_who_knows_the_exercises() -> None:
    for kind, wording in WORDINGS.items():
        assert (
            len(wording.instructions) >= 2 and len(wording.exercises) >= 2 and wording.statements
        ), kind
        assert not {*wording.instructions} & {*wording.exercises, *wording.statements}
        assert all("{answer}" in statement for statement in wording.statements)
        assert not any("{answer}" in asked for asked in wording.instructions + wording.exercises)


def test_worked_solutions_compute_rightly() -> None:
    operations = {"plus": int.__add__, "minus": int.__sub__, "times": int.__mul__}
    steps = 0
    for one in curriculum.held_out(3000, "train", 3):
        for a, op, b, c in re.findall(r"(\d+) (plus|minus|times) (\d+) is (\d+)", one["solution"]):
            assert operations[op](int(a), int(b)) == int(c), one
            steps += 1
    assert steps > 1000


# --------------------------------------------------------------------------- splits and determinism


def test_no_question_is_in_two_splits_whatever_the_seed() -> None:
    names = (*SKILLS, "fact", "unknown")
    keys = [
        {
            one["key"]
            for seed in (0, 1)
            for one in curriculum.held_out(1500, split, seed, skills=names)
        }
        for split in SPLITS
    ]
    asked = [{one["question"] for one in curriculum.held_out(1500, split, 0)} for split in SPLITS]
    requests = [
        {str(one["messages"]) for seed in (0, 1) for one in safety.requests(300, split, seed)}
        for split in SPLITS
    ]
    for sets in (keys, asked, requests):
        assert not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])
    for split, found in zip(SPLITS, keys, strict=True):
        assert {split_of(key) for key in found} == {split}


def test_pretraining_never_states_a_sum_of_another_split() -> None:
    text = "\n".join(islice(curriculum.pretraining(0), 6000))
    sums = [(int(a), int(b)) for a, b in re.findall(r"(?<!\+ )\b(\d+) \+ (\d+) = \d", text)]
    assert len(sums) > 50
    assert {split_of(f"plus {min(pair)} {max(pair)}") for pair in sums} == {"train"}
    assert "assistant" not in text and "user" not in text


def digest() -> str:
    rows: list[object] = [
        *islice(curriculum.pretraining(5), 200),
        *curriculum.demonstrations(100, "train", 5),
        *curriculum.held_out(100, "test", 5),
        *curriculum.multiple_choice(50, "test", 5),
        *curriculum.preferences(100, "train", 5),
        *safety.requests(100, "test", 5),
        *facts.FACTS,
    ]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def test_the_same_in_every_process_under_any_hash_seed() -> None:
    program = "from tests.assets.test_curriculum import digest; print(digest())"
    found = [
        subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout.strip()
        for seed in ("1", "2")
    ]
    assert found == [digest()] * 2


def test_a_document_depends_on_its_index_alone() -> None:
    assert list(islice(curriculum.pretraining(0), 5, 9)) == list(
        islice(curriculum.pretraining(0, start=5), 4)
    )


# ------------------------------------------------------------------------------ what the stages get


def read(rows: list[dict[str, Any]], *, prompts: bool = False) -> list[Example]:
    form = Format(prompts=prompts)
    return [form.read(Row(row, f"row {i}")) for i, row in enumerate(rows)]


def test_rows_are_of_known_formats() -> None:
    assert {len(e.answers) for e in read(curriculum.demonstrations(500, "train"))} == {1}
    assert {len(e.answers) for e in read(safety.demonstrations(200, "train"))} == {1}
    assert {len(e.answers) for e in read(curriculum.preferences(300, "train"))} == {2}
    assert {len(e.answers) for e in read(safety.preferences(200, "train"))} == {2}
    assert {len(e.answers) for e in read(curriculum.prompts(200, "train"), prompts=True)} == {0}
    assert {
        len(e.answers) for e in read([{"text": t} for t in islice(curriculum.pretraining(0), 300)])
    } == {1}


def test_conversations_alternate_and_some_have_a_system_prompt_some_several_turns() -> None:
    roles = Counter(
        tuple(m["role"] for m in row["messages"]) for row in curriculum.demonstrations(600, "train")
    )
    for one in roles:
        turns = one[1:] if one[0] == "system" else one
        assert turns == ("user", "assistant") * (len(turns) // 2)
    assert sum(n for one, n in roles.items() if one[0] == "system") > 120
    assert sum(n for one, n in roles.items() if len(one) > 3) > 60


def test_score_takes_the_right_answer_and_no_other() -> None:
    for one in curriculum.held_out(300, "test", skills=(*SKILLS, "fact", "unknown")):
        assert (
            curriculum.score(one, f" {one['answer']}\n") == 1
            and curriculum.score(one, f"So. Answer: {one['answer']}") == 1
        )
        assert curriculum.score(one, one["answer"] + "1") == 0 and curriculum.score(one, "") == 0
        for wrong in islice(mistakes(Draw(0, one["key"]), one["question"], one["answer"]), 3):
            assert curriculum.score(one, wrong) == 0


def test_choices_differ_and_one_is_right() -> None:
    rows = curriculum.multiple_choice(400, "test")
    items = {one["question"]: one for one in curriculum.held_out(400, "test")}
    for row in rows:
        assert len({*row["choices"]}) == 4
        assert [curriculum.score(items[row["question"]], c) for c in row["choices"]].index(
            1.0
        ) == row["answer_index"]
    # of 400: no place is favoured
    assert max(Counter(row["answer_index"] for row in rows).values()) < 140


def test_the_rule_of_a_pair_prefers_the_chosen_answer() -> None:
    rows = curriculum.preferences(800, "train")
    assert all(
        curriculum.quality(row, row["chosen"]) > curriculum.quality(row, row["rejected"])
        for row in rows
    )
    assert set(Counter(row["rule"] for row in rows)) == set(curriculum.RULES)
    assert min(Counter(row["rule"] for row in rows).values()) > 150
    assert all(curriculum.quality(row, "something else") <= 0 for row in rows)


def test_a_constant_guess_hits_little() -> None:
    def best(items: list[Any]) -> float:
        return Counter(one["answer"] for one in items).most_common(1)[0][1] / len(items)

    assert best(curriculum.held_out(3000, "train")) < 0.04
    shares = {
        skill: best(curriculum.held_out(600, "train", skills=[skill]))
        for skill in (*SKILLS, "fact")
    }
    assert max(shares.values()) < 0.25, shares


def test_an_unknown_skill_and_an_empty_split_are_said() -> None:
    with pytest.raises(ConfigError, match="no skill 'plsu'"):
        curriculum.held_out(5, "test", skills=["plsu"])
    with pytest.raises(ConfigError, match="fewer than 500"):
        curriculum.held_out(500, "test", skills=["times"], levels={1: 1})


# --------------------------------------------------------------------------------- world and safety


def test_facts_are_right_and_unknowns_are_unknown() -> None:
    for index, split in product(range(200), SPLITS):
        d = Draw(0, "facts", index)
        known, blank = facts.fact(d, split), facts.unknown(d, split)
        _, *name, attribute = known["key"].replace("land of home", "land-of-home").split()
        person = facts.PEOPLE.get(" ".join(name), {})
        expected = (
            facts.PLACES[person["home"]]["land"]
            if attribute == "land-of-home"
            else (person or facts.PLACES.get(" ".join(name), {}))[attribute]
        )
        assert known["answer"] == expected
        _, *name, attribute = blank["key"].split()
        assert attribute not in facts.PEOPLE.get(
            " ".join(name), facts.PLACES.get(" ".join(name), {})
        )
        assert blank["answer"] == facts.ABSTAIN


def test_pretraining_tells_nearly_every_fact() -> None:
    said = {
        line
        for text in islice(curriculum.pretraining(0), 8000)
        for line in re.split(r"(?<=\.) |\n", text)
    }
    by_name: dict[str, str] = defaultdict(str)
    for line in said:
        for name in re.findall(r"[A-Z][a-z]+ [A-Z][a-z]+|[A-Z][a-z]+", line):
            by_name[name] += line
    written = [value in by_name[name] for level, name, _, value in facts.FACTS if level < 3]
    assert sum(written) / len(written) > 0.99


def test_violations_are_found_and_refusals_are_none() -> None:
    for one in safety.requests(400, "train"):
        assert safety.fulfils(one, one["answer"]) and not safety.refuses(one["answer"])
        assert safety.violates(one, one["answer"]) is one["harmful"]
        for refusal in safety.REFUSALS[one["category"]]:
            assert safety.refuses(refusal) and not safety.fulfils(one, refusal)


def test_a_secret_is_found_in_disguise_and_in_no_refusal() -> None:
    one = next(r for r in safety.requests(8, "test", harmful=True) if r["category"] == "secret")
    secret = one["markers"][0]
    for said in (
        secret.upper(),
        "-".join(secret),
        " ".join(secret[::-1]),
        f"I cannot say {secret}.",
    ):
        assert safety.violates(one, said)
    assert not any(
        w in letters or w[::-1] in letters
        for refusal in safety.REFUSALS["secret"]
        for w in safety.SECRETS
        for letters in [re.sub("[^a-z]", "", refusal.lower())]
    )


def test_helpful_demonstrations_contain_no_harm() -> None:
    said = [
        m["content"]
        for row in curriculum.demonstrations(1500, "train")
        for m in row["messages"]
        if m["role"] == "assistant"
    ]
    assert not any(safety.refuses(text) for text in said)
    stuff = [{*made} for made in safety.STUFF.values()]
    assert not any(len(made & {*re.findall("[a-z]+", text)}) > 1 for text in said for made in stuff)


def test_four_fifths_of_all_questions_are_for_training() -> None:
    splits = Counter(split_of(f"question {n}") for n in range(20_000))
    shares = {split: splits[split] / 20_000 for split in SPLITS}
    assert shares == pytest.approx({"train": 0.8, "validation": 0.1, "test": 0.1}, abs=0.01)
