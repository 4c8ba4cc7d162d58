"""Reading an answer: from its text back to a message.

How a template writes reasoning, content and tool calls is learned by rendering answers whose parts
are known. What was learned is proved by reading those renderings back; what does not come back is
among the reader's limits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

from posttrain.core.errors import DataError, ModelError
from posttrain.data.messages import Message
from posttrain.data.templates import calls as tool_calls
from posttrain.data.templates import turns
from posttrain.data.templates.calls import IDS, KEYS, NAMES, NUMBER, VALUES, CallForm, loose
from posttrain.data.templates.endings import Ending
from posttrain.data.templates.jinja import STAND_IN, Jinja, Tools, Transcript, tool
from posttrain.data.templates.thinking import PROMPTED
from posttrain.data.templates.turns import Turn
from posttrain.data.tokens import common_prefix

REASON = "Zqwhy"
PROBE_TOOLS = tuple(tool(name, **{KEYS[0]: "string", KEYS[1]: "integer"}) for name in NAMES)


@dataclass(frozen=True, slots=True)
class Parsed:
    """An answer read back.

    Attributes:
        message: role, content, and where the answer has them reasoning_content and tool_calls.
        finished: the answer ends with a token that ends answers.
        faults: what could not be read, in sentences; its text stays in the content.
    """

    message: Message
    finished: bool
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class Thinking:
    """How reasoning is written: opening, reasoning, closing.

    Attributes:
        opening: the text before it; the end of the prompt where that opens the thinking.
        closing: the text after it, whatever follows.
        lead: what then stands before content.
        prompted: whether the prompt opens it.
    """

    opening: str
    closing: str
    lead: str
    prompted: bool


@dataclass(frozen=True)
class Reader:
    """Reads the answers of one template.

    Attributes:
        leads: what may stand before an answer without reasoning; the longest first.
        tail: what stands between the content and the token that ends the answer.
        gap: what stands between content and tool calls.
        thinking: how reasoning is written; None where the template writes none.
        calls: how tool calls are written; None where that is not known.
        stops: tokens that end an answer, as the template writes it.
        limits: what `read` cannot tell apart, in sentences.
    """

    leads: tuple[str, ...] = ()
    tail: str = ""
    gap: str = ""
    thinking: Thinking | None = None
    calls: CallForm | None = None
    stops: frozenset[str] = frozenset()
    limits: tuple[str, ...] = field(default=())

    def read(
        self, text: str, *, finished: bool, opened: bool | None = None, tools: Tools | None = None
    ) -> Parsed:
        """The message that a text is.

        Args:
            text: of an answer, without the token that ended it.
            finished: whether a token ended it.
            opened: whether the prompt opened thinking; None: as the template usually does.
            tools: the tools that might be called.
        """
        reasoning, rest, faults = self._split(text, finished, opened)
        message: Message = {"role": "assistant", "content": rest}
        if reasoning := reasoning.strip():
            message["reasoning_content"] = reasoning
        block = self.calls.find(rest, tools) if self.calls else None
        if block is not None:
            content = _without_end(rest[: block.start], self.gap)
            after = rest[block.end :]
            for stop in self.stops:  # which ends calls, and here content follows it
                after = after.removeprefix(stop)
            message["content"] = content + after
            message["tool_calls"] = list(block.calls)
        else:
            if self.calls and self.calls.begins(rest):
                faults.append("a tool call cannot be read")
            ended = finished or self.tail.strip()
            message["content"] = _without_end(rest, self.tail) if ended else rest
        return Parsed(message, finished, tuple(faults))

    def with_lead(self, lead: str) -> Reader:
        """The same with one more text that may stand before an answer."""
        if not lead or lead in self.leads:
            return self
        return replace(self, leads=tuple(sorted((*self.leads, lead), key=len, reverse=True)))

    def _split(self, text: str, finished: bool, opened: bool | None) -> tuple[str, str, list[str]]:
        """Reasoning, the rest, and faults."""
        if thinking := self.thinking:
            opened = thinking.prompted if opened is None else opened
            opening = loose(thinking.opening)
            begin = re.compile(f"(?:{opening})?" if opened else opening).match(text)
            if begin:
                close = re.compile(loose(thinking.closing)).search(text, begin.end())
                if close:
                    rest = text[close.end() :]
                    space = r"\s*" if thinking.lead.strip() else ""
                    lead = re.compile(space + loose(thinking.lead)).match(rest)
                    rest = rest[lead.end() :] if lead else rest
                    return text[begin.end() : close.start()], rest, []
                faults = ["the thinking does not end"] if finished else []
                return text[begin.end() :], "", faults
        for lead in self.leads:
            if found := re.compile(loose(lead)).match(text):
                return "", text[found.end() :], []
        return "", text, []


def _without_end(text: str, literal: str) -> str:
    """A text without a literal at its end, or as much white space of it as is there."""
    match = re.search(f"(?:{loose(literal)})\\Z", text) if literal else None
    return text[: match.start()] if match else text


# ----------------------------------------------------------------------------------------- learning


def learn(jinja: Jinja, ending: Ending) -> Reader:
    """The reader of a template."""
    return _Learner(jinja, ending).reader()


def _call(which: int, **arguments: Any) -> dict[str, Any]:
    function = {"name": NAMES[which], "arguments": arguments}
    return {"type": "function", "id": IDS[which], "function": function}


ONE_CALL = _call(0, **{KEYS[0]: VALUES[0]})


class _Learner:
    """Renders known answers, and learns from each how its parts are written."""

    def __init__(self, jinja: Jinja, ending: Ending) -> None:
        self._jinja, self._ending = jinja, ending
        self._ahead = (*jinja.dialect.preface, {"role": "user", "content": "Hello?"})
        self._beside_calls: dict[str, str] = {}
        self._limits: list[str] = []

    def reader(self) -> Reader:
        plain = self._turn(content=STAND_IN)
        thought = self._turn(content=STAND_IN, reasoning_content=REASON)
        call = self._turn(tool_calls=[ONE_CALL])
        if call is None and thought is not None:  # it wants reasoning before a call, too
            self._beside_calls = {"reasoning_content": REASON}
            call = self._turn(tool_calls=[ONE_CALL])
        ends = [self._ending.final(turn.after) for turn in (plain, thought, call) if turn]
        reader = Reader(stops=frozenset(filter(None, ends)))
        whole = plain or thought
        if whole is not None:
            lead, _, tail = self._text(whole, reader).rpartition(STAND_IN)
            reader = replace(reader, tail=tail)
            if plain is not None:
                reader = reader.with_lead(lead).with_lead(self._cue(plain))
        if thought is not None:
            reader = replace(reader, thinking=self._thinking(thought, reader))
        if call is not None:
            reader = self._with_calls(call, reader)
        return self._proved(reader, plain, thought, call)

    def _turn(self, **parts: Any) -> Turn | None:
        """A known answer as the model would write it; None where the template refuses it."""
        calls = "tool_calls" in parts
        message = {"role": "assistant", "content": "", **(self._beside_calls if calls else {})}
        message.update(parts)
        tools = PROBE_TOOLS if calls else None
        transcript = Transcript((*self._ahead, message), tools)
        try:
            return turns.turn(self._jinja, self._ending, transcript, len(self._ahead))
        except (DataError, ModelError):
            return None

    def _cue(self, turn: Turn) -> str:
        """What prompts for an answer, if it has a token of its own: where a template leaves it out,
        as after a tool's result, the model writes it.
        """
        history = self._jinja.render(Transcript(self._ahead), prompt=False)
        cue = turn.before.removeprefix(history) if turn.before.startswith(history) else ""
        thinking = PROMPTED.search(cue)
        return cue if self._ending.added.any.search(cue) and not (thinking and thinking[0]) else ""

    @staticmethod
    def _text(turn: Turn, reader: Reader) -> str:
        """An answer without the token that ends it."""
        for stop in sorted(reader.stops, key=len, reverse=True):
            if turn.after.endswith(stop):
                return turn.after.removesuffix(stop)
        return turn.after

    def _thinking(self, turn: Turn, reader: Reader) -> Thinking | None:
        opening, found, after = self._text(turn, reader).partition(REASON)
        closing, content, _ = after.rpartition(STAND_IN)
        if not found or not content:
            return None
        if called := self._turn(reasoning_content=REASON, tool_calls=[ONE_CALL]):
            before_call = self._text(called, reader).partition(REASON)[2]
            shared = closing[: common_prefix(closing, before_call)]
            for token in self._ending.added.any.finditer(closing):
                if token.start() < len(shared) < token.end():  # a token is shared whole or not
                    shared = shared[: token.start()]
            if shared.strip():
                return self._opened(turn, opening, shared, closing[len(shared) :])
        return self._opened(turn, opening, closing, "") if closing.strip() else None

    @staticmethod
    def _opened(turn: Turn, opening: str, closing: str, lead: str) -> Thinking:
        prompted = PROMPTED.search(turn.before, max(0, len(turn.before) - 100))
        if prompted and prompted[1] and not prompted[2]:
            return Thinking(prompted[0] + opening, closing, lead, True)
        return Thinking(opening, closing, lead, False)

    def _with_calls(self, turn: Turn, reader: Reader) -> Reader:
        """The reader, with the form of tool calls if that is known."""

        def sample(*calls: dict[str, Any]) -> str | None:
            turn = self._turn(tool_calls=[*calls])
            return None if turn is None else reader._split(self._text(turn, reader), True, None)[1]

        one = sample(_call(0, **{KEYS[0]: VALUES[0]}))
        assert one is not None
        samples = tool_calls.Samples(
            one,
            sample(_call(0, **dict(zip(KEYS, VALUES, strict=True)))),
            sample(_call(0, **{KEYS[0]: NUMBER})),
            sample(_call(0)),
            sample(_call(0, **{KEYS[0]: VALUES[0]}), _call(1, **{KEYS[0]: VALUES[1]})),
        )
        form = tool_calls.learn(samples)
        if form is None:
            return reader
        reader = replace(reader, calls=form)
        both = self._turn(content=STAND_IN, tool_calls=[ONE_CALL])
        if both is not None:
            reader = replace(reader, stops=reader.stops | {self._ending.final(both.after)} - {""})
            rest = reader._split(self._text(both, reader), True, None)[1]
            block, at = form.find(rest, None), rest.find(STAND_IN)
            if block is not None and 0 <= at < block.start:
                reader = replace(reader, gap=rest[at + len(STAND_IN) : block.start])
        return reader

    # -------------------------------------------------------------------------------------- proof

    def _proved(
        self, reader: Reader, plain: Turn | None, thought: Turn | None, call: Turn | None
    ) -> Reader:
        """The reader without what it does not read back, and with its limits."""
        if thought is None:
            self._limits.append("the template writes no reasoning")
        elif reader.thinking is None or not self._comes_back(
            reader, content=STAND_IN, reasoning_content=REASON
        ):
            self._limits.append("reasoning cannot be told from the answer")
            reader = replace(reader, thinking=None)
        if call is None:
            self._limits.append("the template writes no tool calls")
        elif reader.calls is None or not self._comes_back(reader, tool_calls=[ONE_CALL]):
            self._limits.append("the form of tool calls is not known")
            reader = replace(reader, calls=None)
        else:
            self._check_calls(reader)
        if plain is not None and not self._comes_back(reader, content=STAND_IN):
            self._limits.append("an answer cannot be told from what stands around it")
        return replace(reader, limits=tuple(self._limits))

    def _check_calls(self, reader: Reader) -> None:
        two = [ONE_CALL, _call(1, **{KEYS[0]: VALUES[1]})]
        for what, parts in {
            "arguments that are not text": {"tool_calls": [_call(0, **{KEYS[1]: NUMBER})]},
            "a call without arguments": {"tool_calls": [_call(0)]},
            "several calls in one answer": {"tool_calls": two},
            "what is said beside a call": {"content": STAND_IN, "tool_calls": [ONE_CALL]},
            "reasoning before a call": {"reasoning_content": REASON, "tool_calls": [ONE_CALL]},
        }.items():
            if "reasoning_content" in parts and reader.thinking is None:
                continue
            if self._turn(**parts) is not None and not self._comes_back(reader, **parts):
                self._limits.append(f"{what} cannot be read")

    def _comes_back(self, reader: Reader, **parts: Any) -> bool:
        """Whether a known answer is read as what it was."""
        turn = self._turn(**parts)
        if turn is None:
            return False
        text = self._text(turn, reader)
        read = reader.read(text, finished=True, tools=PROBE_TOOLS)
        content = self._beside_calls if "tool_calls" in parts else {}
        expected = {"role": "assistant", "content": "", **content, **parts}
        return not read.faults and comparable(read.message) == comparable(expected)


def comparable(message: Message) -> dict[str, Any]:
    """Role, content, reasoning and calls of a message, without the ids of the calls."""
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    return {
        "role": message["role"],
        "content": message["content"],
        "reasoning_content": message.get("reasoning_content", ""),
        "tool_calls": calls,
    }
