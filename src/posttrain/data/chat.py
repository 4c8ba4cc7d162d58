"""Chat rendering: a conversation as the text that inference would show, turn by turn, and what the
model writes in each.

For every trained turn i, `before` is the template's rendering of the messages ahead of it with the
generation prompt, exactly what a server would prompt with, and `after` is what the model should
write then, up to and with the token that ends the turn. Where the next turn's `before` goes on from
this turn's text, both become one sequence; where the template rewrites history (drops earlier
reasoning, moves the tools), they become branches that share what is really shared.

Nothing of a conversation is lost unseen: a system prompt, tool or answer that the template drops is
    an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from itertools import product
from typing import Any

from posttrain.core.errors import ConfigError, DataError, ModelError
from posttrain.data.formats import Example, Message, Text
from posttrain.data.templates import default_template, pinned
from posttrain.data.thinking import EMPTY, PROMPTED, TAGS, TWICE, closing, thought
from posttrain.data.thinking import reasoning as own_reasoning

_TAIL = re.compile(r"</(?!s>)|\[/|<[^<>]*_end\|>$")  # closes a part of an answer, not the answer
_WORD = "Zq7"  # stands for an answer, to see what the template writes around it


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn to learn: the text before it and the text the model writes.

    Attributes:
        before: what the model is shown.
        after: what it writes, with the text of the token that ends the turn if the template has
            one.
        plain: whether this is plain text, to which the tokenizer adds its own begin token;
            templates write theirs.
        number: which message of the conversation it is, from 1; 0 for plain text.
    """

    before: str
    after: str
    plain: bool
    number: int = 0


class Chat:
    """Renders examples as a tokenizer's chat template does at inference.

    Args:
        tokenizer: a Hugging Face tokenizer.
        template: Jinja text to use instead of the tokenizer's own. Without either, a default: see
            `data.templates`.
        kwargs: handed to the template for every row; a row's own go first.
        train_on: all answers of a conversation, or the last.
        prompt_template: write prompt and completion as plain text, the prompt like this.
    Raises:
        DataError: a prompt template without {prompt}, or a tokenizer without an end-of-sequence
            token.
        ModelError: the template cannot render the simplest conversation.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        template: str | None = None,
        kwargs: Mapping[str, Any] | None = None,
        train_on: str = "all",
        prompt_template: str | None = None,
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise DataError(
                "the tokenizer has no end-of-sequence token, so the model would never learn to"
                " stop",
                cure="set eos_token in tokenizer_config.json",
            )
        if prompt_template is not None and "{prompt}" not in prompt_template:
            raise DataError(
                f"the prompt template {prompt_template!r} does not contain {{prompt}}",
                cure="write {prompt} where it goes",
            )
        if own := sorted(
            {*(kwargs or {})}
            & {*signature(tokenizer.apply_chat_template).parameters} - {"documents"}
        ):
            raise ConfigError(
                f"--template-kwargs {own[0]} is not for the template to read", cure="leave it out"
            )
        self.tokenizer, self.train_on, self.prompt_template = tokenizer, train_on, prompt_template
        self.kwargs = dict(kwargs or {})
        self.origin = (
            "given" if template else "the model's own" if tokenizer.chat_template else "default"
        )
        self.template: str | dict[str, str] = (
            template or tokenizer.chat_template or default_template(tokenizer)
        )
        self.separator = "\n"  # after every step of an answer that has steps
        self.used = False  # whether a conversation was rendered
        self.notes: list[str] = []
        added = sorted(
            (t.content for t in tokenizer.added_tokens_decoder.values() if t.content.strip()),
            key=len,
            reverse=True,
        )
        names = "|".join(map(re.escape, added)) or "(?!)"
        self._added = re.compile(names)
        self._run = re.compile(rf"(?:{names})+")
        self._closing = re.compile(rf"(?:\s*(?:{names}))+\s*$")
        self._special = re.compile(
            "|".join(
                re.escape(t.content) for t in tokenizer.added_tokens_decoder.values() if t.special
            )
            or "(?!)"
        )
        self._parts, self._no_tools = False, None
        self._tail: str | None = None
        self._stop: str | None = None
        self._end = ""
        self._pinned: dict[str, str] = {}

    # ------------------------------------------------------------------ turns

    def turns(self, example: Example, answer: Text) -> list[Turn]:
        """What the model is shown and should write, for every trained turn of one answer of an
        example.

        Raises:
            DataError: the template refuses the conversation or drops a part of it.
        """
        prompt = example.prompt
        if isinstance(answer, str):
            if not prompt:
                return [Turn("", self._with_end(answer), plain=True)]
            if self.prompt_template is not None:
                return [
                    Turn(
                        self.prompt_template.replace("{prompt}", str(prompt)),
                        self._with_end(answer),
                        plain=True,
                    )
                ]
            prompt, answer = (
                ({"role": "user", "content": prompt},),
                ({"role": "assistant", "content": answer},),
            )
        if self.prompt_template is not None:
            raise DataError(
                "a conversation, where --prompt-template asks for plain text",
                where=example.where,
                cure="leave --prompt-template out; the chat template writes conversations",
            )
        self._probe()
        messages: tuple[Message, ...] = (*(() if isinstance(prompt, str) else prompt), *answer)
        learned = [
            i
            for i in range(len(prompt), len(messages))
            if messages[i]["role"] == "assistant" and messages[i].get("weight", 1)
        ]
        return [
            self._turn(example, messages, i)
            for i in (learned[-1:] if self.train_on == "last" else learned)
        ]

    def prompt(self, example: Example) -> tuple[str, bool]:
        """The text to prompt with, and whether it is plain."""
        if isinstance(example.prompt, str) and self.prompt_template is not None:
            return self.prompt_template.replace("{prompt}", example.prompt), True
        messages = (
            ({"role": "user", "content": example.prompt},)
            if isinstance(example.prompt, str)
            else example.prompt
        )
        self._probe()
        text = self._render(example, messages, True)
        self._check_context(example, messages, text)
        return text, False

    def _turn(self, example: Example, messages: tuple[Message, ...], i: int) -> Turn:
        if not i:
            raise DataError(
                "the conversation begins with an answer, so there is nothing to prompt with",
                where=example.where,
                cure="put a user turn before it, or give it weight 0",
            )
        before = self._render(example, messages[:i], True)
        whole = self._render(example, messages[: i + 1], False)
        self._check_context(example, messages[:i], before)
        prompted = PROMPTED.search(before, max(0, len(before) - 100))
        assert prompted is not None  # it matches nothing, too
        after = whole[len(before) :]
        if (
            not whole.startswith(before)
            or not _complete(messages[i], after)
            or TWICE.match(prompted[0] + after)
        ):
            after = self._as_written(
                example, messages[: i + 1], before[: prompted.start()], prompted, whole
            )
        return Turn(before, self._ended(after), False, i + 1)

    def _as_written(
        self,
        example: Example,
        messages: tuple[Message, ...],
        stem: str,
        prompted: re.Match[str],
        whole: str,
    ) -> str:
        """What the model writes in a turn that the template shows otherwise once it has been said.

        Reasoning models are prompted with an opened thinking tag, and their templates drop the
        thinking from history.

        Args:
            stem, prompted: the prompt, and the thinking at its end, which history does not show
                like that.
            whole: the conversation up to this turn, as history.
        """
        message, where = messages[-1], example.where
        thinking, gap, answer = thought(message)
        opened, over = prompted[1] if not prompted[2] else None, prompted[2]
        if over and (thinking or "").strip():
            raise DataError(
                "the chat template prompts for an answer without reasoning, and this one has some",
                where=where,
                cure=(
                    "turn reasoning on where the template can, often with --template-kwargs"
                    " enable_thinking=true; or remove it; or use another --chat-template"
                ),
            )
        if message.get("tool_calls"):
            head, content, answer, tail = whole[len(stem) :], "", "", ""
            if not whole.startswith(stem) or not _complete(
                {**message, "content": thought(message)[2]}, head, reasoning=False
            ):
                raise self._refused(
                    where,
                    "the chat template does not show this tool call, and what is said with it,"
                    " where it prompts for it",
                )
            head = (
                thought({"content": head})[2] if opened else head
            )  # its thought is written again below, as it is prompted
        else:
            head, content, tail = self._around(
                example, messages, stem, whole, "" if opened else own_reasoning(message).strip()
            )
            answer = answer if thinking is not None else content
        empty = EMPTY.match(head)
        lead = head[empty.end() :] if empty else head
        if opened:
            if thinking is not None:
                return f"{thinking}{closing(opened)}{gap}{(lead + answer).lstrip()}{tail}"
            if closing(opened) in content:
                return lead + content + tail
            raise DataError(
                f"the chat template begins every answer with {opened}, and this one has no"
                " reasoning",
                where=where,
                cure=(
                    "give it as reasoning_content, or use --template-kwargs enable_thinking=false"
                    " where the template knows that, or another --chat-template"
                ),
            )
        if thinking is not None and thinking.strip() not in (
            head if own_reasoning(message) else head + content
        ):
            if not empty or not empty[1]:
                raise DataError(
                    "the chat template drops the reasoning of an answer",
                    where=where,
                    cure=(
                        "write it into content the way the model should, remove it, or use another"
                        " --chat-template"
                    ),
                )
            space = "\n" * bool(empty[2])
            return f"{empty[1]}{space}{thinking.strip()}{space}{empty[3]}{lead}{content}{tail}"
        return (
            lead + answer + tail if over else (head if thinking is None else lead) + content + tail
        )

    def _around(
        self, example: Example, messages: tuple[Message, ...], stem: str, whole: str, reasoning: str
    ) -> tuple[str, str, str]:
        """What the model writes before an answer, the answer, and what follows it, found with words
        in their places.

        A prompt may put words into the model's mouth that are gone once the answer is there. Turn
        tokens and spacing, which some templates write otherwise there, are none.
        """
        word, content = _WORD, messages[-1]["content"]
        while word in stem:
            word += "7"
        thinks = {"reasoning_content": f"{word}r"} if reasoning else {}
        shown = self._render(
            example, (*messages[:-1], {"role": "assistant", "content": word, **thinks}), False
        )
        bare = self._render(example, messages[:-1], False)
        asked = stem[len(bare) :] if stem.startswith(bare) else ""
        content = content if content in whole else content.strip()
        ahead, _, tail = shown.rpartition(word)
        ahead, thought_too, between = ahead.partition(f"{word}r")
        rest = reasoning + between if thought_too else ""
        if ahead.startswith(stem):
            return ahead[len(stem) :] + rest, content, tail
        # where the history before it is another, too, the answer stands after the words that prompt
        # for one
        _, mark, head = ahead.rpartition(asked.strip() or _WORD)
        if mark and (messages[-2]["content"].strip() or _WORD) not in head:
            gap = asked[len(asked.rstrip()) :]
            return (
                (head.removeprefix(gap) if head.startswith(gap) else head.lstrip()) + rest,
                content,
                tail,
            )
        i, j = _alike(stem, ahead)
        lead = self._added.sub("", stem[i:]).strip()
        if lead and "".join(stem.split())[-12:] != "".join(ahead.split())[-12:]:
            if lead not in self._added.sub("", asked):
                raise self._refused(
                    example.where,
                    "the chat template shows what stands before this answer otherwise than it "
                    "prompts for it",
                )
            if not content.startswith(lead):
                raise DataError(
                    f"the chat template begins every answer with {lead!r}, and this one does not",
                    where=example.where,
                    cure=(
                        "write the answer as the model should write it, with this at its "
                        "start, or use another --chat-template"
                    ),
                )
            content = content[len(lead) :]
            content = content.lstrip() if stem[-1].isspace() else content
        return ("" if stem[i:].strip() else ahead[j:].lstrip()) + rest, content, tail

    def _ended(self, after: str) -> str:
        """The text of a turn up to the token that ends it.

        What the template writes after that is not learned: by then the model has stopped.
        """
        if self._stop and self._tail and after.endswith(self._tail):
            text = after.removesuffix(self._tail)
            return (
                text if text.endswith(self._stop) else text + self._end
            )  # a row may bring its own
        if run := self._closing.search(after):
            marks = list(self._added.finditer(after, run.start()))
            if mark := next(
                (m for m in marks if m[0] in (self._stop, self.tokenizer.eos_token)), None
            ):
                return after[: mark.end()]
            if self._stop and (mark := next((m for m in marks if not _TAIL.match(m[0])), None)):
                return after[: mark.end()]  # some end a tool call with a token of its own
        return self._with_end(after.removesuffix(self._tail or "").rstrip())

    def _with_end(self, text: str) -> str:
        """Text that ends with the end-of-sequence token, once: a row may bring its own."""
        return text.removesuffix(self.tokenizer.eos_token) + self.tokenizer.eos_token

    def holds_special(self, example: Example) -> bool:
        """Whether a row's own text has a special token in it, which the model will read as one."""
        for part in (example.prompt, *example.answers):
            texts = (
                (part,)
                if isinstance(part, str)
                else (json.dumps(message, ensure_ascii=False) for message in part)
            )
            if any(self._special.search(text) for text in texts):
                return True
        return False

    # ------------------------------------------------------------------ the template

    def _probe(self) -> None:
        """Find out once with what the template ends a turn."""
        if self._tail is not None:
            return
        self.used = True
        errors = []
        question, answer = (
            {"role": "user", "content": "Hello?"},
            {"role": "assistant", "content": _WORD},
        )
        # some want a system prompt, content as parts, or a list of tools even where there are none
        for system, self._parts, self._no_tools in product(
            (False, True), (False, True), (None, [])
        ):
            messages = ({"role": "system", "content": "Be kind."},) * system + (question, answer)
            try:
                whole = self._apply(messages, False, None, {})
            except Exception as error:
                errors.append(_first_line(error))
                continue
            if _WORD in whole:
                break
            errors.append("it leaves the answer out")
        else:
            raise ModelError(
                f"the chat template cannot render a question and an answer: {errors[0]}",
                cure="give another with --chat-template",
            )
        self._tail = whole.rpartition(_WORD)[2]
        if run := self._run.search(self._tail):
            marks, eos = self._added.findall(run[0]), self.tokenizer.eos_token
            self._stop = stop = eos if eos in marks else marks[0]
            self._end = self._tail[: self._tail.index(stop) + len(stop)]
        elif self._tail.strip():
            self.notes.append(
                f"the chat template ends answers with {self._tail.strip()!r}, which is no token of"
                f" this tokenizer; {self.tokenizer.eos_token} is trained after it"
            )

    @cached_property
    def _quoted(self) -> bool:
        """Whether the template wants the arguments of a call as JSON text."""
        call = {
            "type": "function",
            "id": "abcdefghi",
            "function": {"name": "look", "arguments": {"at": "this"}},
        }
        messages = (
            {"role": "user", "content": "Hello?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        )
        parameters = {
            "type": "object",
            "properties": {"at": {"type": "string", "description": "What."}},
            "required": ["at"],
        }
        tool = {
            "type": "function",
            "function": {"name": "look", "description": "Looks.", "parameters": parameters},
        }

        def works(quoted: bool) -> bool:
            try:
                return "{'at':" not in self._apply(
                    messages, False, (tool,), {}, quoted
                )  # that is Python, and no JSON
            except Exception:
                return False

        return not works(False) and works(True)

    @property
    def stop(self) -> str:
        """The token that ends an answer: a model trained on conversations stops there."""
        self._probe()
        return self._stop or self.tokenizer.eos_token

    def _render(self, example: Example, messages: Iterable[Message], generation: bool) -> str:
        try:
            messages = tuple(messages)
            quoted = any(message.get("tool_calls") for message in messages) and self._quoted
            return self._apply(messages, generation, example.tools, example.kwargs, quoted)
        except Exception as error:
            raise self._refused(
                example.where, f"the chat template refuses the conversation: {_first_line(error)}"
            ) from None

    @staticmethod
    def _refused(where: str, what: str) -> DataError:
        cure = "change the row, or use another --chat-template"
        if "system" in what.lower():
            cure = (
                "put the system prompt at the start of the first user message, or use another"
                " --chat-template"
            )
        return DataError(what, where=where, cure=cure)

    def _apply(
        self,
        messages: tuple[Message, ...],
        generation: bool,
        tools: tuple[dict[str, Any], ...] | None,
        kwargs: Mapping[str, Any],
        quoted: bool = False,
    ) -> str:
        template = self.template
        if isinstance(template, dict):
            template = template.get("tool_use" if tools else "default") or template["default"]
        if template not in self._pinned:
            self._pinned[template] = pinned(template)
        # templates that know no developer role know the system's, which means the same
        developer = "developer" if re.search("""['"]developer['"]""", template) else "system"
        return self.tokenizer.apply_chat_template(
            [self._as_shown(message, developer, quoted) for message in messages],
            tools=list(tools) if tools else self._no_tools,
            chat_template=self._pinned[template],
            add_generation_prompt=generation,
            tokenize=False,
            **{**self.kwargs, **kwargs},
        )

    def _as_shown(self, message: Message, developer: str, quoted: bool) -> Message:
        """A message in the dialect of the template."""
        out = {k: v for k, v in message.items() if k != "weight"}
        if out["role"] == "developer":
            out["role"] = developer
        if self._parts:
            out["content"] = [{"type": "text", "text": out["content"]}]
        if quoted:
            out["tool_calls"] = [
                {
                    **call,
                    "function": {
                        **call["function"],
                        "arguments": json.dumps(call["function"]["arguments"]),
                    },
                }
                for call in out.get("tool_calls", ())
            ]
        return out

    def _check_context(self, example: Example, messages: tuple[Message, ...], before: str) -> None:
        """Everything that is given must be shown. Earlier answers may be shortened: that is what
        branches are for.
        """
        for message in messages:
            if message["role"] != "assistant" and not _shown(message["content"], before):
                what = (
                    "system prompt"
                    if message["role"] in ("system", "developer")
                    else f"{message['role']} message"
                )
                raise self._refused(
                    example.where, f"the chat template drops the {what} {message['content'][:40]!r}"
                )
        for tool in example.tools or ():
            name = tool["function"].get("name", "")
            if name not in before:
                raise self._refused(example.where, f"the chat template drops the tool {name!r}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0] or type(error).__name__


def _complete(message: Message, after: str, *, reasoning: bool = True) -> bool:
    """Whether the text of a turn has all of it: the reasoning, then every part of the content, and
    the calls.
    """
    at = 0
    for part in ([own_reasoning(message)] if reasoning else []) + TAGS.split(message["content"]):
        at = after.find(part.strip(), at) + len(part.strip())
        if at < len(part.strip()):
            return False
    calls = [call["function"] for call in message.get("tool_calls", ())]
    return all(
        call["name"] in after and all(_shown(one, after) for one in _leaves(call["arguments"]))
        for call in calls
    )


def _leaves(value: Any) -> Iterator[str]:
    """The text and the numbers within a value."""
    if isinstance(value, (dict, list, tuple)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _leaves(one)
    elif value is not None and not isinstance(value, bool):
        yield str(value)


def _shown(content: str, text: str) -> bool:
    """Whether a message is in the text.

    Templates may quote it or change its spacing, so it is enough that its words are.
    """
    return content.strip() in text or all(
        word in text or json.dumps(word)[1:-1] in text for word in re.findall(r"\w+", content)
    )


def _alike(a: str, b: str) -> tuple[int, int]:
    """How far two texts are the same but for spacing: a place in each."""
    i = j = 0
    while i < len(a) and j < len(b):
        if a[i] == b[j]:
            i, j = i + 1, j + 1
        elif a[i].isspace():
            i += 1
        elif b[j].isspace():
            j += 1
        else:
            break
    return i, j
