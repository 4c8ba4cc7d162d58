"""Chat rendering: a conversation as the text that inference would show, turn by turn, and what the model writes in each.

For every trained turn i, `before` is the template's rendering of the messages ahead of it with the generation prompt, exactly
what a server would prompt with, and `after` is what the model should write then, up to and with the token that ends the turn.
Where the next turn's `before` goes on from this turn's text, both become one sequence; where the template rewrites history
(drops earlier reasoning, moves the tools), they become branches that share what is really shared.

Nothing of a conversation is lost unseen: a system prompt, tool or answer that the template drops is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from itertools import product
from typing import Any

from posttrain.core.errors import DataError, ModelError
from posttrain.data.formats import Example, Message, Text
from posttrain.data.templates import default_template

# Some templates print today's date. A run that goes on tomorrow must see what it saw today; a row can say another one, in
# chat_template_kwargs, where its template allows that.
TODAY = date(2026, 1, 1)

_OPEN = r"<(?:think|thinking|reasoning|thought|seed:think)>|\[THINK\]|<\|START_THINKING\|>|<\|channel>thought"
_CLOSE = r"</(?:think|thinking|reasoning|thought|seed:think)>|\[/THINK\]|<\|END_THINKING\|>|<channel\|>"
_OPENED = re.compile(rf"({_OPEN})\s*$")
_INJECTED = re.compile(rf"(?:{_OPEN})\s*(?:(?:{_CLOSE})\s*)?$")
_TAGS = re.compile(f"{_OPEN}|{_CLOSE}")
_TAIL = re.compile(r"</|\[/|<[^<>]*_end\|>$")  # closes a part of an answer, not the answer
_NOW = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn to learn: the text before it and the text the model writes.

    Attributes:
        before: what the model is shown.
        after: what it writes, with the text of the token that ends the turn if the template has one.
        plain: whether this is plain text, to which the tokenizer adds its own begin token; templates write theirs.
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
        template: Jinja text to use instead of the tokenizer's own. Without either, a default: see `data.templates`.
        kwargs: handed to the template for every row; a row's own go first.
        train_on: all answers of a conversation, or the last.
        prompt_template: write prompt and completion as plain text, the prompt like this.
    Raises:
        DataError: a prompt template without {prompt}, or a tokenizer without an end-of-sequence token.
        ModelError: the template cannot render the simplest conversation.
    """

    def __init__(self, tokenizer: Any, *, template: str | None = None, kwargs: Mapping[str, Any] | None = None,
                 train_on: str = "all", prompt_template: str | None = None) -> None:
        if tokenizer.eos_token_id is None:
            raise DataError("the tokenizer has no end-of-sequence token, so the model would never learn to stop",
                            cure="set eos_token in tokenizer_config.json")
        if prompt_template is not None and "{prompt}" not in prompt_template:
            raise DataError(f"the prompt template {prompt_template!r} does not contain {{prompt}}",
                            cure="write {prompt} where it goes")
        self.tokenizer, self.train_on, self.prompt_template = tokenizer, train_on, prompt_template
        self.kwargs = dict(kwargs or {})
        self.origin = "given" if template else "the model's own" if tokenizer.chat_template else "default"
        self.template: str | dict[str, str] = template or tokenizer.chat_template or default_template(tokenizer)
        self.used = False  # whether a conversation was rendered
        self.notes: list[str] = []
        added = sorted((t.content for t in tokenizer.added_tokens_decoder.values() if t.content.strip()), key=len, reverse=True)
        names = "|".join(map(re.escape, added)) or "(?!)"
        self._added = re.compile(names)
        self._closing = re.compile(rf"(?:\s*(?:{names}))+\s*$")
        self._special = re.compile("|".join(re.escape(t.content) for t in tokenizer.added_tokens_decoder.values() if t.special)
                                   or "(?!)")
        self._parts, self._no_tools = False, None
        self._tail: str | None = None
        self._stop: str | None = None
        self._pinned: dict[str, str] = {}

    # ------------------------------------------------------------------ turns

    def turns(self, example: Example, answer: Text) -> list[Turn]:
        """What the model is shown and should write, for every trained turn of one answer of an example.

        Raises:
            DataError: the template refuses the conversation or drops a part of it.
        """
        prompt = example.prompt
        if isinstance(answer, str):
            if not prompt:
                return [Turn("", self._with_end(answer), plain=True)]
            if self.prompt_template is not None:
                return [Turn(self.prompt_template.replace("{prompt}", str(prompt)), self._with_end(answer), plain=True)]
            prompt, answer = ({"role": "user", "content": prompt},), ({"role": "assistant", "content": answer},)
        assert not isinstance(prompt, str) or not prompt
        if self.prompt_template is not None:
            raise DataError("a conversation, where --prompt-template asks for plain text", where=example.where,
                            cure="leave --prompt-template out; the chat template writes conversations")
        self._probe()
        messages = (*prompt, *answer)
        learned = [i for i in range(len(prompt), len(messages))
                   if messages[i]["role"] == "assistant" and messages[i].get("weight", 1)]
        return [self._turn(example, messages, i) for i in (learned[-1:] if self.train_on == "last" else learned)]

    def prompt(self, example: Example) -> tuple[str, bool]:
        """The text to prompt with, and whether it is plain."""
        if isinstance(example.prompt, str) and self.prompt_template is not None:
            return self.prompt_template.replace("{prompt}", example.prompt), True
        messages = ({"role": "user", "content": example.prompt},) if isinstance(example.prompt, str) else example.prompt
        self._probe()
        return self._render(example, messages, True), False

    def _turn(self, example: Example, messages: tuple[Message, ...], i: int) -> Turn:
        where, message = example.where, messages[i]
        before = self._render(example, messages[:i], True)
        whole = self._render(example, messages[:i + 1], False)
        self._check_context(example, messages[:i], before)
        if not whole.startswith(before) or not _complete(message, after := whole[len(before):]):
            after = self._as_written(message, before, whole, where)
        return Turn(before, self._ended(after), False, i + 1)

    def _as_written(self, message: Message, before: str, whole: str, where: str) -> str:
        """What the model writes in a turn that the template shows otherwise once it has been said.

        Reasoning models are prompted with an opened thinking tag, and their templates drop the thinking from history.
        """
        written, reasoning = message["content"], _reasoning(message)
        opened, stem = _OPENED.search(before), _INJECTED.sub("", before)
        if calls := message.get("tool_calls"):
            written = whole[len(stem):]
            if not whole.startswith(stem) or not all(call["function"]["name"] in written for call in calls):
                raise self._refused(where, "the chat template does not show this tool call where it prompts for it")
        elif stem == before and (lead := self._lead(before, whole, written)):
            if not written.startswith(lead):
                raise DataError(f"the chat template begins every answer with {lead!r}, and this one does not", where=where,
                                cure="write the answer as the model should write it, with this at its start; or use another "
                                "--chat-template")
            written = written[len(lead):].lstrip("\n")
        if opened and reasoning:
            written = f"{reasoning.strip()}\n{_closing(opened[1])}\n\n{written.lstrip()}"
        elif opened and not calls and written.lstrip().startswith(opened[1]):
            written = written.lstrip()[len(opened[1]):].lstrip("\n")
        elif opened and _closing(opened[1]) not in written:
            raise DataError(f"the chat template begins every answer with {opened[1]}, and this one has no reasoning",
                            where=where, cure="give it as reasoning_content, or use --template-kwargs enable_thinking=false "
                            "where the template knows that, or another --chat-template")
        elif reasoning and not opened:
            raise DataError("the chat template drops the reasoning of an answer", where=where,
                            cure="write it into content the way the model should, remove it, or use another --chat-template")
        return written if calls else written.rstrip() + (self._stop or "")

    def _lead(self, before: str, whole: str, content: str) -> str:
        """Words that the prompt puts into the model's mouth and that are gone once the answer is there. Turn tokens and
        spacing, which some templates write otherwise there, are none."""
        shown = content.strip() if content.strip() in whole else _TAGS.split(content)[-1].strip()
        written = [i for i, c in enumerate(before) if not c.isspace()]  # positions, so that spacing does not count
        ahead, after = "".join(before.split()), "".join(whole[:max(0, whole.rfind(shown))].split())
        if not shown or ahead[-12:] == after[-12:]:
            return ""
        same = next((i for i, (a, b) in enumerate(zip(ahead, after, strict=False)) if a != b), min(len(ahead), len(after)))
        return self._added.sub("", before[written[same]:]).strip() if same < len(ahead) else ""

    def _ended(self, after: str) -> str:
        """The text of a turn up to the token that ends it. What the template writes after that is not learned: by then the
        model has stopped."""
        if closing := self._closing.search(after):
            marks = list(self._added.finditer(after, closing.start()))
            stops = (self._stop, self.tokenizer.eos_token)
            if mark := next((m for m in marks if m[0] in stops), None):
                return after[:mark.end()]
            if self._stop is not None and not _TAIL.match(marks[-1][0]):
                return after[:marks[-1].end()]  # some end a tool call with a token of its own
        return self._with_end(after.removesuffix(self._tail or "").rstrip())

    def _with_end(self, text: str) -> str:
        """Text that ends with the end-of-sequence token, once: a row may bring its own."""
        return text.removesuffix(self.tokenizer.eos_token) + self.tokenizer.eos_token

    def holds_special(self, example: Example) -> bool:
        """Whether a row's own text has a special token in it, which the model will read as one."""
        for part in (example.prompt, *example.answers):
            for one in (part,) if isinstance(part, str) else (message["content"] for message in part):
                if self._special.search(one):
                    return True
        return False

    # ------------------------------------------------------------------ the template

    def _probe(self) -> None:
        """Find out once with what the template ends a turn."""
        if self._tail is not None:
            return
        self.used = True
        word, errors = "Zq7", []
        question, answer = {"role": "user", "content": "Hello?"}, {"role": "assistant", "content": word}
        # some want a system prompt, content as parts, or a list of tools even where there are none
        for system, self._parts, self._no_tools in product((False, True), (False, True), (None, [])):
            messages = ({"role": "system", "content": "Be kind."},) * system + (question, answer)
            try:
                whole = self._apply(messages, False, None, {})
            except Exception as error:
                errors.append(_first_line(error))
                continue
            if word in whole:
                break
            errors.append("it leaves the answer out")
        else:
            raise ModelError(f"the chat template cannot render a question and an answer: {errors[0]}",
                             cure="give another with --chat-template")
        self._tail = whole[whole.rindex(word) + len(word):]
        mark = self._added.search(self._tail)
        self._stop = mark[0] if mark else None
        if mark is None and self._tail.strip():
            self.notes.append(f"the chat template ends answers with {self._tail.strip()!r}, which is no token of this "
                              f"tokenizer; {self.tokenizer.eos_token} is trained after it")

    @cached_property
    def _quoted(self) -> bool:
        """Whether the template wants the arguments of a call as JSON text."""
        call = {"type": "function", "id": "abcdefghi", "function": {"name": "look", "arguments": {"at": "this"}}}
        messages = ({"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "", "tool_calls": [call]})
        tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}

        def works(quoted: bool) -> bool:
            try:
                self._apply(messages, False, (tool,), {}, quoted)
            except Exception:
                return False
            return True

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
            raise self._refused(example.where, f"the chat template refuses the conversation: {_first_line(error)}") from None

    @staticmethod
    def _refused(where: str, what: str) -> DataError:
        cure = "change the row, or use another --chat-template"
        if "system" in what.lower():
            cure = "put the system prompt at the start of the first user message, or use another --chat-template"
        return DataError(what, where=where, cure=cure)

    def _apply(self, messages: tuple[Message, ...], generation: bool, tools: tuple[dict[str, Any], ...] | None,
               kwargs: Mapping[str, Any], quoted: bool = False) -> str:
        template = self.template
        if isinstance(template, dict):
            template = template.get("tool_use" if tools else "default") or template["default"]
        if template not in self._pinned:
            self._pinned[template] = _NOW.sub(lambda m: repr(TODAY.strftime(m[2])), template)
        # templates that know no developer role know the system's, which means the same
        developer = "developer" if "developer" in template else "system"
        return self.tokenizer.apply_chat_template(
            [self._as_shown(message, developer, quoted) for message in messages], tools=list(tools) if tools else self._no_tools,
            chat_template=self._pinned[template], add_generation_prompt=generation, tokenize=False, **{**self.kwargs, **kwargs})

    def _as_shown(self, message: Message, developer: str, quoted: bool) -> Message:
        """A message in the dialect of the template."""
        out = {k: v for k, v in message.items() if k != "weight"}
        if out["role"] == "developer":
            out["role"] = developer
        if self._parts:
            out["content"] = [{"type": "text", "text": out["content"]}]
        if quoted:
            out["tool_calls"] = [
                {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
                for call in out.get("tool_calls", ())]
        return out

    def _check_context(self, example: Example, messages: tuple[Message, ...], before: str) -> None:
        """Everything that is given must be shown. Earlier answers may be shortened: that is what branches are for."""
        for message in messages:
            if message["role"] != "assistant" and not _shown(message["content"], before):
                what = "system prompt" if message["role"] in ("system", "developer") else f"{message['role']} message"
                raise self._refused(example.where, f"the chat template drops the {what} {message['content'][:40]!r}")
        for tool in example.tools or ():
            name = tool["function"].get("name", "")
            if name not in before:
                raise self._refused(example.where, f"the chat template drops the tool {name!r}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0] or type(error).__name__


def _reasoning(message: Message) -> str:
    return next((message[k] for k in ("reasoning_content", "reasoning", "thinking") if isinstance(message.get(k), str)), "")


def _closing(opening: str) -> str:
    if opening.startswith("<|channel>"):
        return "<channel|>"
    return opening.replace("START", "END") if "START" in opening else opening[0] + "/" + opening[1:]


def _complete(message: Message, after: str) -> bool:
    """Whether the text of a turn has all of it: every part of the content, the reasoning and the called functions."""
    parts = [*_TAGS.split(message["content"]), _reasoning(message)]
    names = [call["function"]["name"] for call in message.get("tool_calls", ())]
    return all(part.strip() in after for part in parts) and all(name in after for name in names)


def _shown(content: str, text: str) -> bool:
    """Whether a message is in the text. Templates may quote it or change its spacing, so its longest word is enough."""
    return content.strip() in text or max(re.findall(r"\w+", content), key=len, default="") in text
