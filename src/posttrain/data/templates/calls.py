"""Tool calls in the text of an answer, read by the form in which the template writes them.

The form is learned from renderings of calls whose names, arguments and ids are known: what stands
between them is how the template writes a call. Three forms cover the templates in use:

    whole JSON      <tool_call>{"name": "look", "arguments": {"at": "Oslo"}}</tool_call>
    named JSON      [TOOL_CALLS]look[ARGS]{"at": "Oslo"}
    one by one      <function=look><parameter=at>Oslo</parameter></function>
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from posttrain.data.templates.jinja import Tools
from posttrain.data.tokens import common_prefix

NAMES, KEYS, VALUES = ("zqlook", "zqfind"), ("zqarea", "zqhour"), ("Zqoslo", "Zqrome")
IDS = ("a1b2c3d4e", "f5g6h7i8j")
NUMBER = 70317

Call = dict[str, Any]  # {type: function, function: {name, arguments}, id where it is written}
_JSON = json.JSONDecoder()
_NAME = r"(?P<name>[\w.\-]+)"
_ID = r"(?P<id>[\w\-]+?)"


@dataclass(frozen=True, slots=True)
class Samples:
    """Renderings of known calls, without what stands before them and without the end of the answer;
    None where the template refuses.

    Attributes:
        one: NAMES[0](KEYS[0]=VALUES[0])
        two_arguments: NAMES[0](KEYS[0]=VALUES[0], KEYS[1]=VALUES[1])
        number: NAMES[0](KEYS[0]=NUMBER)
        none: NAMES[0]()
        two_calls: NAMES[0](KEYS[0]=VALUES[0]), NAMES[1](KEYS[0]=VALUES[1])
    """

    one: str
    two_arguments: str | None = None
    number: str | None = None
    none: str | None = None
    two_calls: str | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """Calls found in a text.

    Attributes:
        start, end: where in the text.
        calls: in order.
    """

    start: int
    end: int
    calls: tuple[Call, ...]


# reads the calls (most forms: one) at a place in a text; with where they end; None where there are
# none
_Reader = Callable[[str, int, dict[str, dict[str, Any]]], tuple[list[Call], int] | None]


@dataclass(frozen=True)
class CallForm:
    """How a template writes tool calls: begin, call, (between, call)…, end.

    Attributes:
        begin: before the first call; empty where an answer begins with its calls.
        between: between two; None where the template does not render two.
        end: after the last.
        read: reads one call.
    """

    begin: re.Pattern[str]
    between: re.Pattern[str] | None
    end: re.Pattern[str]
    read: _Reader

    def find(self, text: str, tools: Tools | None) -> Block | None:
        """The first block of calls in a text.

        Args:
            tools: whose parameters say of what type arguments are that a template writes bare.
        """
        types = _types(tools)
        for start in self._starts(text):
            read = self.read(text, start.end(), types)
            if read is None:
                continue
            calls, at = read
            while self.between and (between := self.between.match(text, at)):
                more = self.read(text, between.end(), types)
                if more is None:
                    break
                calls, at = [*calls, *more[0]], more[1]
            end = self.end.match(text, at)
            if end or not text[at:].strip():
                return Block(start.start(), end.end() if end else len(text), tuple(calls))
        return None

    def _starts(self, text: str) -> list[re.Match[str]]:
        """Where calls may begin: where nothing marks that, at the start, or where more calls do."""
        starts = list(self.begin.finditer(text))
        if starts and not starts[0][0].strip() and self.begin.fullmatch(""):
            more = self.between.finditer(text) if self.between else ()
            return [starts[0], *(match for match in more if match[0].strip())]
        return starts

    def begins(self, text: str) -> bool:
        """Whether calls seem to begin somewhere in a text."""
        match = self.begin.search(text)
        return match is not None and bool(match[0].strip())


def learn(samples: Samples) -> CallForm | None:
    """The form of the samples; None where it is none of those that are known."""
    start = samples.one.find(NAMES[0])
    if start < 0:
        return None
    for i, char in enumerate(samples.one):
        if char not in "[{":
            continue
        try:
            value, end = _JSON.raw_decode(samples.one, i)
        except ValueError:
            continue
        if value == {KEYS[0]: VALUES[0]}:
            return _named_json(samples, start, i, end)
        if NAMES[0] in json.dumps(value) and VALUES[0] in json.dumps(value):
            return _whole_json(samples, value, i, end)
    return _one_by_one(samples, start)


def loose(literal: str) -> str:
    """A pattern for text whose white space at either end may be left out."""
    lead = literal[: len(literal) - len(literal.lstrip())]
    if lead == literal:
        return "".join(re.escape(c) + "?" for c in literal)
    trail = literal[len(literal.rstrip()) :]
    inner = re.escape(literal.strip())
    return "".join(re.escape(c) + "?" for c in lead) + inner + loose(trail)


def _pattern(literal: str, counted: bool = False) -> re.Pattern[str]:
    """A loose pattern of a literal in which ids, and numbers where they count the calls, vary."""
    pattern = loose(literal)
    for example in IDS:
        pattern = pattern.replace(example, _ID, 1)
    return re.compile(re.sub(r"\d+", r"\\d+", pattern) if counted else pattern)


def _call(name: str, arguments: dict[str, Any], identity: str | None = None) -> Call:
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {**call, "id": identity} if identity else call


# --------------------------------------------------------------------------------------- whole JSON


def _whole_json(samples: Samples, value: Any, start: int, end: int) -> CallForm | None:
    listed = isinstance(value, list)
    shape = value[0] if listed and len(value) == 1 else value
    if not isinstance(shape, dict):
        return None
    path: list[str] = []  # to the object with name and arguments
    while {KEYS[0]: VALUES[0]} not in shape.values():
        inner = [key for key, held in shape.items() if isinstance(held, dict)]
        if len(inner) != 1:
            return None
        path, shape = [*path, inner[0]], shape[inner[0]]
    arguments_key = next(k for k, held in shape.items() if held == {KEYS[0]: VALUES[0]})
    name_key = next((key for key, held in shape.items() if held == NAMES[0]), None)
    id_key = next((key for key, held in shape.items() if held == IDS[0]), None)
    if name_key is None and arguments_key != NAMES[0]:
        return None

    def one(held: Any) -> Call | None:
        for key in path:
            held = held.get(key) if isinstance(held, dict) else None
        if not isinstance(held, dict):
            return None
        if name_key is None:
            name, arguments = next(iter(held.items()), (None, None))
        else:
            name, arguments = held.get(name_key), held.get(arguments_key)
        if not isinstance(name, str) or not isinstance(arguments, dict):
            return None
        identity = held.get(id_key) if id_key else None
        return _call(name, arguments, identity if isinstance(identity, str) else None)

    def read(text: str, at: int, types: object) -> tuple[list[Call], int] | None:
        found = _decoded(text, at)
        if found is None or isinstance(found[0], list) is not listed:
            return None
        calls = [one(held) for held in (found[0] if listed else [found[0]])]
        read_calls = [call for call in calls if call is not None]
        return (read_calls, found[1]) if read_calls and len(read_calls) == len(calls) else None

    between = None
    if samples.two_calls and not listed:
        first = _decoded(samples.two_calls, start)
        second = samples.two_calls.find("{", first[1]) if first else -1
        if first and second >= 0:
            between = _pattern(samples.two_calls[first[1] : second])
    begin, close = _pattern(samples.one[:start]), _pattern(samples.one[end:])
    return CallForm(begin, between, close, read)


def _decoded(text: str, at: int) -> tuple[Any, int] | None:
    """The JSON value at a place, and where it ends."""
    at += len(text[at:]) - len(text[at:].lstrip())
    try:
        return _JSON.raw_decode(text, at)
    except (ValueError, RecursionError):
        return None


# --------------------------------------------------------------------------------------- named JSON


def _named_json(samples: Samples, name: int, start: int, end: int) -> CallForm:
    middle = samples.one[name + len(NAMES[0]) : start]
    between, counted = None, False
    if samples.two_calls and (first := _decoded(samples.two_calls, start)):
        second = samples.two_calls.find(NAMES[1], first[1])
        json_start = samples.two_calls.find("{", second)
        other = samples.two_calls[second + len(NAMES[1]) : json_start]
        counted = other.replace(IDS[1], IDS[0]) != middle
        between = _pattern(samples.two_calls[first[1] : second], counted)
    head = re.compile(_NAME + _pattern(middle, counted).pattern)

    def read(text: str, at: int, types: object) -> tuple[list[Call], int] | None:
        called = head.match(text, at)
        found = _decoded(text, called.end()) if called else None
        if called is None or found is None or not isinstance(found[0], dict):
            return None
        identity = called.groupdict().get("id")
        return [_call(called["name"], found[0], identity)], found[1]

    return CallForm(_pattern(samples.one[:name]), between, _pattern(samples.one[end:]), read)


# --------------------------------------------------------------------------------------- one by one


@dataclass(frozen=True)
class _Arguments:
    """Arguments one by one: first, key, to value, value, (join, key, to value, value)…, last.

    Attributes:
        first, join, last: before the first key, between a value and the next key, after the last.
        empty: stands where there are none.
        to_string, string_end: around a string; `to_other` before another value.
        marked: whether a string can be told from another value.
        stop: what may come after a value.
    """

    first: re.Pattern[str]
    join: re.Pattern[str] | None
    last: re.Pattern[str]
    empty: re.Pattern[str] | None
    string: re.Pattern[str]
    other: re.Pattern[str]
    marked: bool

    def read(self, text: str, at: int, types: dict[str, Any]) -> tuple[dict[str, Any], int] | None:
        arguments: dict[str, Any] = {}
        step = self.first.match(text, at)
        while step:
            string = self.string.match(text, step.end())
            other = self.other.match(text, step.end())
            found = string or other
            if found is None:
                break
            if string and other and len(other["key"]) < len(string["key"]):
                found, string = other, None  # the marks of a string are those of a later argument
            value: Any = found["value"]
            if not self.marked and types.get(found["key"]) not in (None, "string"):
                value = _literal(value, value)
            elif self.marked and string is None and (value := _literal(value, ...)) is ...:
                return None
            arguments[found["key"]] = value
            at = found.end()
            step = self.join.match(text, at) if self.join else None
        after = self.last if arguments else self.empty
        last = after.match(text, at) if after else None
        return (arguments, last.end()) if last else None


def _one_by_one(samples: Samples, start: int) -> CallForm | None:
    one, key, value = samples.one, samples.one.find(KEYS[0]), samples.one.find(VALUES[0])
    name_end = start + len(NAMES[0])
    if not name_end <= key < value:
        return None
    to_string, after = one[key + len(KEYS[0]) : value], one[value + len(VALUES[0]) :]
    to_other, quote = to_string, ""
    if samples.number and (number := samples.number.find(str(NUMBER))) > 0:
        to_other = samples.number[samples.number.find(KEYS[0]) + len(KEYS[0]) : number]
        bare = samples.number[number + len(str(NUMBER)) :]
        quote = after.removesuffix(bare) if after.endswith(bare) else ""
    after = after.removeprefix(quote)
    head = end = last = None
    if samples.none:
        none = samples.none[samples.none.find(NAMES[0]) + len(NAMES[0]) :]
        shared = common_prefix(none[::-1], after[::-1])
        end = after[len(after) - shared :]
        head, last = none[: len(none) - shared], after[: len(after) - shared]
    end, last = after if end is None else end, last or ""

    def gap(text: str | None, other: str) -> str | None:
        """What stands between the first value and something behind it."""
        if not text or (until := text.find(other)) < 0:
            return None
        return text[text.find(VALUES[0]) + len(VALUES[0] + quote) : until]

    join, between = gap(samples.two_arguments, KEYS[1]), gap(samples.two_calls, NAMES[1])
    between = None if between is None else between.removeprefix(last)
    stops = [join, *(last + tail for tail in (between, end) if tail is not None)]
    follows = "|".join([*(loose(stop) for stop in stops if stop and stop.strip()), r"\s*\Z"])
    bounds = rf"(?={re.escape(quote)}(?:{follows}))" + re.escape(quote)
    arguments = _Arguments(
        _pattern(one[name_end:key]),
        None if join is None else _pattern(join),
        _pattern(last),
        None if head is None else _pattern(head),
        re.compile(rf"(?P<key>.+?){loose(to_string)}(?P<value>.*?){bounds}", re.DOTALL),
        re.compile(rf"(?P<key>.+?){loose(to_other)}(?P<value>.*?)(?={follows})", re.DOTALL),
        marked=(to_string, quote) != (to_other, ""),
    )
    named = re.compile(r"[\w.\-]+")

    def read(text: str, at: int, types: dict[str, dict[str, Any]]) -> tuple[list[Call], int] | None:
        name = named.match(text, at)
        found = arguments.read(text, name.end(), types.get(name[0], {})) if name else None
        return ([_call(name[0], found[0])], found[1]) if name and found else None

    ending = _pattern(end)
    return CallForm(
        _pattern(one[:start]), None if between is None else _pattern(between), ending, read
    )


def _literal(text: str, otherwise: Any) -> Any:
    """The value of text that is JSON or a Python literal."""
    for decode in (json.loads, ast.literal_eval):
        try:
            return decode(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return otherwise


def _types(tools: Tools | None) -> dict[str, dict[str, Any]]:
    """The JSON types of every tool's parameters."""
    types: dict[str, dict[str, Any]] = {}
    for tool in tools or ():
        function = tool.get("function") or {}
        properties = (function.get("parameters") or {}).get("properties") or {}
        types[function.get("name", "")] = {
            key: schema.get("type")
            for key, schema in properties.items()
            if isinstance(schema, dict)
        }
    return types
