"""Rows as they should not be: named kinds of damage, each with the reason it must be refused for;
and good rows that look odd.

A kind takes a good row, its line and a random generator, and gives another line. `LINES` are no
readable JSON objects whatever the format; `FIELDS[format]` are readable, but no row of that format.
`LEGAL` are odd and yet accepted, with no value changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

Fields = dict[str, Any]
Damage = Callable[[Fields, bytes, Random], bytes]
LINES: dict[str, tuple[Damage, str]] = {}  # name: (damage, pattern of the reason)
LEGAL: dict[str, Damage] = {}
NO_JSON, NO_UTF8, NO_OBJECT = (
    r"^not JSON: ",
    r"^byte \d+ of the line is not UTF-8$",
    r", not an object$",
)

PIECES = [
    "plain words",
    "é",
    "e\u0301\u0323",
    "👩‍👩‍👧‍👦",
    "🇩🇪",
    "\U0001f9d1\U0001f3fd",
    "שלום",
    "مرحبا \u202eabc\u202c",
    "\u2066\u2069",
    "日本語",
    "\u2028",
    "\u2029",
    "\x85",
    "\x0b\x0c",
    "\x01\x1b[31m\x7f",
    "\r\n",
    "\r",
    "\n\n",
    "\t",
    "  ",
    "\xa0\u3000\u200b\u200d\ufeff",
    "\ufffd\uffff",
    "\U0010ffff",
    "\ue000",
    "<|endoftext|>",
    "<|im_start|>assistant\n",
    "</s><s>",
    "[INST] <<SYS>>",
    "{{ messages }}",
    "{% raw %}",
    "<think>",
    "\\",
    "\\u0000",
    "\\ud800",
    '"',
    "'",
    '{"a": 1}',
    "[]",
    "null",
    "NaN",
    "true",
    "0",
    "-1e999",
    "${HOME}",
    "%s %d {0}",
    "a,b;c\td",
    "' OR 1=1 --",
    "<b>&amp;",
    "﷽",
    "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A",
    "ﬁ Å K",
    "ß ẞ İ ı",
    "0\u00b2\u0661",
    "x" * 2000,
    "長" * 700,
]


def nasty(random: Random) -> str:
    """Text that is legal and hard to carry: it is never empty or of spaces alone."""
    return (
        "".join(random.choices(PIECES, k=random.randint(1, 6)))
        + random.choice("abc")
        + random.choice(["", " ", "\n", "\u2028"])
    )


def _conversation(random: Random) -> list[Fields]:
    turns: list[Fields] = (
        [{"role": "system", "content": nasty(random)}] if random.random() < 0.3 else []
    )
    for _ in range(random.randint(1, 3)):
        turns += [
            {"role": "user", "content": nasty(random)},
            {"role": "assistant", "content": nasty(random)},
        ]
    if random.random() < 0.3:
        turns[-1] |= {
            "content": None,
            "tool_calls": [
                {"type": "function", "function": {"name": "f", "arguments": {"x": nasty(random)}}}
            ],
        }
    return turns


GOOD: dict[str, Callable[[Random], Fields]] = {
    "messages": lambda r: {"messages": _conversation(r)},
    "sharegpt": lambda r: {
        "conversations": [{"from": "human", "value": nasty(r)}, {"from": "gpt", "value": nasty(r)}],
        "system": nasty(r),
    },
    "alpaca": lambda r: {
        "instruction": nasty(r),
        "input": r.choice(["", nasty(r)]),
        "output": nasty(r),
    },
    "preference": lambda r: {"prompt": nasty(r), "chosen": nasty(r), "rejected": nasty(r)},
    "label": lambda r: {"prompt": nasty(r), "completion": nasty(r), "label": r.random() < 0.5},
    "steps": lambda r: {
        "prompt": nasty(r),
        "completions": [nasty(r), nasty(r)],
        "labels": [True, False],
    },
    "prompt-completion": lambda r: {"prompt": nasty(r), "completion": nasty(r)},
    "text": lambda r: {"text": nasty(r)},
    "prompt": lambda r: {"prompt": [{"role": "user", "content": nasty(r)}]},
}


def good(format: str, random: Random) -> Fields:
    """A row of a format, with columns beside it that nobody reads."""
    extra: Fields = random.choice(
        [
            {},
            {"id": random.randrange(10**20)},
            {"meta": {"a": [None, {"b": nasty(random)}]}},
            {"score": 0.1},
            {nasty(random): nasty(random)},
            {"": None},
            {"note": "\ud800 \0"},
        ]
    )
    return {**GOOD[format](random), **extra}


def written(row: Fields, random: Random) -> bytes:
    """A row as a line: escaped or not, tight or wide."""
    text = json.dumps(row, ensure_ascii=True, separators=random.choice([(",", ":"), (", ", ": ")]))
    if random.random() < 0.5 and "\\ud800 " not in text:
        text = json.dumps(row, ensure_ascii=False)
    return text.encode()


# ------------------------------------------------------------------ lines that are no JSON objects


def line(pattern: str) -> Callable[[Damage], Damage]:
    def named(damage: Damage) -> Damage:
        LINES[damage.__name__.replace("_", " ")] = (damage, pattern)
        return damage

    return named


def _within(text: bytes, random: Random) -> bytes:
    """The row with something more in a string of its own."""
    return b'{"a": "' + b"x" * random.randrange(9) + text + b'", ' if text else b""


@line(f"{NO_JSON}|{NO_UTF8}")
def cut_off(row: Fields, line: bytes, random: Random) -> bytes:
    return line[: random.randrange(1, len(line))]


@line(NO_JSON)
def start_missing(row: Fields, line: bytes, random: Random) -> bytes:
    return line[1:]


@line(NO_JSON)
def quote_not_closed(row: Fields, line: bytes, random: Random) -> bytes:
    return line[:-1] + b', "a": "b}'


@line(r"^not JSON: Extra data at character \d+$")
def two_objects(row: Fields, line: bytes, random: Random) -> bytes:
    return line + random.choice([b"", b" ", b", ", b"\r"]) + line


@line(r"^not JSON: Extra data at character \d+$")
def one_bracket_too_many(row: Fields, line: bytes, random: Random) -> bytes:
    return line + b"}"


@line(r"^not JSON: Extra data at character \d+$")
def comma_after_the_object(row: Fields, line: bytes, random: Random) -> bytes:
    return line + b","


@line(NO_UTF8)
def one_latin_1_letter(row: Fields, line: bytes, random: Random) -> bytes:
    return _within("déjà vu".encode("latin-1"), random) + line[1:]


@line(NO_UTF8)
def half_a_character_in_bytes(row: Fields, line: bytes, random: Random) -> bytes:
    return _within("\ud83d".encode("utf-8", "surrogatepass"), random) + line[1:]


@line(NO_UTF8)
def a_slash_in_two_bytes(row: Fields, line: bytes, random: Random) -> bytes:
    return _within(b"\xc0\xaf", random) + line[1:]


@line(NO_UTF8)
def half_of_a_letter(row: Fields, line: bytes, random: Random) -> bytes:
    return _within("€".encode()[:2], random) + line[1:]


@line(NO_UTF8)
def beyond_unicode(row: Fields, line: bytes, random: Random) -> bytes:
    return _within(b"\xf4\x90\x80\x80", random) + line[1:]


@line(NO_UTF8)
def compressed(row: Fields, line: bytes, random: Random) -> bytes:
    return b"\x1f\x8b\x08" + random.randbytes(30).replace(b"\n", b"")


@line(f"{NO_JSON}|{NO_UTF8}")
def utf_16(row: Fields, line: bytes, random: Random) -> bytes:
    return json.dumps({"text": "abc"}).encode(random.choice(["utf-16-le", "utf-16-be", "utf-16"]))


@line(r"^not JSON: Invalid control character")
def a_raw_control_character(row: Fields, line: bytes, random: Random) -> bytes:
    return _within(random.choice([b"\x01", b"\x1b", b"\x0c", b"\r", b"\x1f"]), random) + line[1:]


@line(r"^not JSON: Invalid control character")
def a_raw_tab(row: Fields, line: bytes, random: Random) -> bytes:
    return _within(b"\t", random) + line[1:]


@line(r"^not JSON: Invalid control character")
def a_raw_nul(row: Fields, line: bytes, random: Random) -> bytes:
    return _within(b"\0", random) + line[1:]


@line(r"^not JSON: Expecting value at character 1$")
def a_hole_of_nuls(row: Fields, line: bytes, random: Random) -> bytes:
    return b"\0" * random.randint(1, 4096)


@line(r"^not JSON: Invalid \\escape")
def an_unknown_escape(row: Fields, line: bytes, random: Random) -> bytes:
    return _within(random.choice([rb"\x41", rb"\'", rb"\0", rb"\a"]), random) + line[1:]


@line(r"^not JSON: Invalid \\uXXXX escape")
def a_broken_unicode_escape(row: Fields, line: bytes, random: Random) -> bytes:
    return (
        _within(random.choice([rb"\u12G4", rb"\u12", rb"\uD83", rb"\u{1F600}"]), random) + line[1:]
    )


@line(r"^not readable JSON: the key '.*' stands twice$")
def a_key_twice(row: Fields, line: bytes, random: Random) -> bytes:
    key = json.dumps(next(iter(row))).encode()
    return b"{" + key + b': "another", ' + line[1:]


@line(r"^not readable JSON: the key 'role' stands twice$")
def a_key_twice_inside(row: Fields, line: bytes, random: Random) -> bytes:
    return b'{"more": [{"role": "user", "content": "a", "role": "assistant"}], ' + line[1:]


@line(r"^not readable JSON: maximum recursion depth exceeded")
def thousands_of_lists(row: Fields, line: bytes, random: Random) -> bytes:
    return b'{"more": ' + b"[" * 2000 + b"]" * random.choice([0, 2000]) + b", " + line[1:]


@line(r"^not readable JSON: maximum recursion depth exceeded")
def thousands_of_objects(row: Fields, line: bytes, random: Random) -> bytes:
    return b'{"a":' * 2000 + line + b"}" * 2000


@line(r"^not readable JSON: Exceeds the limit \(4300 digits\)")
def a_number_without_end(row: Fields, line: bytes, random: Random) -> bytes:
    return b'{"n": ' + b"7" * random.randint(4301, 6000) + b", " + line[1:]


for _name, _value in {
    "a list": b'["text", "b"]',
    "a list with the row": b"[%s]",
    "text": b'"text"',
    "a number": b"12.5",
    "null": b"null",
    "true": b"true",
    "NaN": b"NaN",
    "the row as text": b"",
}.items():
    LINES[f"{_name} for a row"] = (
        lambda row, line, random, value=_value: (
            value.replace(b"%s", line) or json.dumps(line.decode()).encode()
        ),
        NO_OBJECT,
    )

for _name, _value in {
    "a comma at the end": b'{"a": 1,}',
    "a comma at the end of a list": b'{"a": [1,]}',
    "two commas": b'{"a": 1,, "b": 2}',
    "no comma": b'{"a": 1 "b": 2}',
    "no colon": b'{"a" 1}',
    "no value": b'{"a": }',
    "no quotes": b"{text: a}",
    "single quotes": b"{'text': 'a'}",
    "typographic quotes": "{“text”: “a”}".encode(),
    "Python's words": b'{"a": None, "b": True}',
    "undefined": b'{"a": undefined}',
    "a hexadecimal number": b'{"a": 0x1F}',
    "a number with a zero before it": b'{"a": 01}',
    "a number with a plus": b'{"a": +1}',
    "half a number": b'{"a": 1.}',
    "a key that is a number": b'{1: "a"}',
    "a comment": b"// a comment",
    "a comment within": b'{"a": 1 /* one */}',
    "a hash comment": b"# a comment",
    "HTML": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "CSV": b"prompt,completion",
    "YAML": b"- role: user",
    "server-sent events": b'data: {"text": "a"}',
    "a merge conflict": b"<<<<<<< HEAD",
    "an ellipsis": b"...",
    "a log line": b"2026-01-01 12:00:00 INFO done",
    "base64": b"eyJ0ZXh0IjogImEifQ==",
    "a template": b'{"text": {{ text }}}',
    "a bracket alone": b"{",
    "a byte order mark in the middle": b'\xef\xbb\xbf{"text": "a"}',
    "a space without width": '\u200b{"text": "a"}'.encode(),
    "infinity by a short name": b'{"a": inf}',
    "concatenated text": b'{"text": "a" + "b"}',
    "a pointer": b"version https://git-lfs.github.com/spec/v1",
    "a tuple": b'{"a": (1, 2)}',
    "bytes": b'{"text": b"a"}',
    "a colon for a comma": b'{"a": 1: "b": 2}',
    "no bracket at the list's end": b'{"a": [1, 2}',
}.items():
    LINES[_name] = (lambda row, line, random, value=_value: value, NO_JSON)


# ---------------------------------------------------------- objects that are no row of their format

HALF, NUL, EMPTY = (
    r"half a character, \\ud83d$",
    "holds a NUL character",
    "^the text to learn is empty$",
)
WRONG: dict[str, tuple[Any, str]] = {  # a value that is no text
    "number": (7, "holds a number, not text$"),
    "float": (0.5, "holds a number, not text$"),
    "true": (True, "holds true or false, not text$"),
    "NaN": (float("nan"), "holds NaN, not text$"),
    "infinity": (float("inf"), "holds a number, not text$"),
    "half a character": ("a\ud83d", HALF),
    "NUL": ("a\0b", NUL),
}
NULL = "^(no known format has|this row (is|has))"
BAD_MESSAGES: dict[str, tuple[Any, str]] = {
    "no list": (7, "not a list of messages"),
    "an empty list": ([], "holds an empty list"),
    "broken JSON text": ('[{"role": "user"', "and not JSON"),
    "prose": ("Hello.", "and not JSON"),
    "text in the list": (["Hello."], "message 1 of .* is text, not an object$"),
    "null in the list": ([None], "message 1 of .* is null, not an object$"),
    "no role": ([{"content": "a"}], "message 1 of .* has no role$"),
    "an unknown role": ([{"role": "narrator", "content": "a"}], "the unknown role 'narrator'$"),
    "a number for a role": (
        [{"role": 1, "content": "a"}],
        "the role of message 1 of .* holds a number, not text$",
    ),
    "no content": (
        [{"role": "user", "content": "a"}, {"role": "assistant"}],
        r"message 2 of .* \(assistant\) has no content$",
    ),
    "a number for content": (
        [{"role": "user", "content": 5}],
        "message 1 of .* holds a number, not text$",
    ),
    "an object for content": (
        [{"role": "user", "content": {"a": 1}}],
        "message 1 of .* holds an object, not text$",
    ),
    "an image": (
        [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
        "a part of type 'image_url'$",
    ),
    "half a character in it": ([{"role": "user", "content": "\ud83d"}], HALF),
    "NUL in it": ([{"role": "user", "content": "\0"}], NUL),
    "an empty answer": (
        [{"role": "assistant", "content": " "}],
        r"message 1 of .* \(assistant\) is empty$",
    ),
    "nothing to learn": ([{"role": "user", "content": "a"}], "no assistant turn to learn from$"),
    "nothing with a weight": (
        [{"role": "assistant", "content": "a", "weight": 0}],
        "no assistant turn to learn from$",
    ),
    "a strange weight": (
        [{"role": "assistant", "content": "a", "weight": 0.5}],
        "a weight that is not 0 or 1$",
    ),
    "a call without a name": (
        [{"role": "assistant", "tool_calls": [{"arguments": {}}]}],
        "has no function name$",
    ),
    "a call with broken arguments": (
        [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}],
        "and not JSON",
    ),
    "a call with a list of arguments": (
        [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": [1]}]}],
        "are a list, not an object$",
    ),
    "a call with NaN": (
        [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"x": float("nan")}}]}],
        "which JSON cannot write$",
    ),
}


def _texts(*columns: str) -> dict[str, tuple[Fields, str]]:
    return {
        f"{name} in {column}": ({column: value}, pattern)
        for column in columns
        for name, (value, pattern) in WRONG.items()
    }


def _empty(*columns: str) -> dict[str, tuple[Fields, str]]:
    return {
        f"nothing in {column}": ({column: value}, EMPTY)
        for column in columns
        for value in ("", " \n")
    }


def _missing(*columns: str) -> dict[str, tuple[Fields, str]]:
    return {f"null in {column}": ({column: None}, NULL) for column in columns}


FIELDS: dict[
    str, dict[str, tuple[Fields, str]]
] = {  # format: {name: (what replaces the good row's fields, pattern)}
    "messages": {
        **_missing("messages"),
        **{name: ({"messages": value}, pattern) for name, (value, pattern) in BAD_MESSAGES.items()},
        "text for tools": ({"tools": "f(x)"}, "and not JSON"),
        "a list of text for tools": ({"tools": ["f"]}, "^tools is not a list of objects$"),
        "a list for kwargs": (
            {"chat_template_kwargs": [1]},
            "^chat_template_kwargs holds a list, not an object$",
        ),
    },
    "sharegpt": {
        **_missing("conversations"),
        **{
            name: ({"conversations": value}, pattern)
            for name, (value, pattern) in BAD_MESSAGES.items()
        },
        **_texts("system"),
    },
    "alpaca": {
        **_missing("instruction", "output"),
        **_texts("instruction", "input", "output", "system"),
        **_empty("output"),
        "a broken history": ({"history": [["q"]]}, "^history is not a list of "),
        "a number for history": ({"history": 5}, "^history is not"),
    },
    "preference": {
        **_missing("chosen", "rejected"),
        **_texts("prompt", "chosen", "rejected"),
        **_empty("chosen", "rejected"),
        "two kinds": (
            {"chosen": [{"role": "assistant", "content": "a"}]},
            "one is text and one is messages$",
        ),
    },
    "label": {
        **_missing("prompt", "completion", "label"),
        **_texts("prompt", "completion"),
        **_empty("completion"),
        **{
            f"{name} for a label": ({"label": value}, "^the label is .*, not true or false$")
            for name, value in {"text": "yes", "two": 2, "a float": 0.5, "a list": [True]}.items()
        },
    },
    "steps": {
        **_missing("prompt", "completions", "labels"),
        **_texts("prompt"),
        **{
            f"{name} for the steps": ({"completions": value}, pattern)
            for name, (value, pattern) in {
                "a number": (5, "^completions holds a number, not a list$"),
                "one": (["a"], "^1 steps and 2 labels$"),
                "numbers": ([1, 2], "^step 1 holds a number, not text$"),
                "an empty one": (["a", " "], "^step 2 is empty$"),
                "half a character": (["a", "\ud83d"], HALF),
            }.items()
        },
        **{
            f"{name} for the labels": ({"labels": value}, pattern)
            for name, (value, pattern) in {
                "text": ("yes", "and not JSON"),
                "null": ([True, None], "^the label of step 2 is null, not true or false$"),
                "two": ([2, True], "^the label of step 1 is a number, not true or false$"),
                "three": ([True] * 3, "^2 steps and 3 labels$"),
            }.items()
        },
    },
    "prompt-completion": {
        **_missing("prompt", "completion"),
        **_texts("prompt", "completion"),
        **_empty("completion"),
        "a list of numbers": (
            {"completion": [1]},
            "message 1 of completion is a number, not an object$",
        ),
        "a label among rows without": (
            {"label": True},
            r"^this row is label; the source began as prompt-completion \(",
        ),
    },
    "text": {
        **_missing("text"),
        **_texts("text"),
        **_empty("text"),
        "a list": ({"text": ["a"]}, "holds a list, not text$"),
    },
    "prompt": {
        **_missing("prompt"),
        **_texts("prompt"),
        "an empty list": ({"prompt": []}, "holds an empty list"),
        "a completion among rows without": (
            {"completion": "a"},
            r"^this row is prompt-completion; the source began as prompt \(",
        ),
    },
}
KINDS = {*LINES, *(name for kinds in FIELDS.values() for name in kinds)}


def malformed(format: str, random: Random) -> Iterator[tuple[str, bytes, str]]:
    """Name, line and pattern of the reason for every kind of malformed row of a format, each from
    another good row.
    """
    for name, (damage, pattern) in LINES.items():
        row = good(format, random)
        yield name, damage(row, written(row, random), random), pattern
    for name, (fields, pattern) in FIELDS[format].items():
        yield name, json.dumps({**good(format, random), **fields}).encode(), pattern
    yield "an empty object", b"{}", NULL
    yield "columns of another file", b'{"question": "a", "answer": "b"}', NULL


# ------------------------------------------------------------------ odd and accepted

LEGAL["NaN in a column that nobody reads"] = lambda row, line, random: b'{"odd": NaN, ' + line[1:]
LEGAL["infinity in a column that nobody reads"] = lambda row, line, random: (
    b'{"odd": -Infinity, ' + line[1:]
)
LEGAL["a number beyond floats"] = lambda row, line, random: (
    b'{"odd": 1e999, "odder": 1' + b"0" * 400 + b", " + line[1:]
)
LEGAL["spaces around the object"] = lambda row, line, random: b" \t" + line + b"  "
LEGAL["a line that ends in CR LF"] = lambda row, line, random: line + b"\r"
LEGAL["an escaped NUL in a column that nobody reads"] = lambda row, line, random: (
    b'{"odd": "\\u0000", ' + line[1:]
)
LEGAL["half a character in a column that nobody reads"] = lambda row, line, random: (
    b'{"odd": "\\udc00", ' + line[1:]
)
LEGAL["a hundred lists in a column that nobody reads"] = lambda row, line, random: (
    b'{"odd": ' + b"[" * 100 + b"]" * 100 + b", " + line[1:]
)
