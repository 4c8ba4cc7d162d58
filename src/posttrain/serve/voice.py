"""A model that takes part in a conversation: prompted as it was trained, its answer given out token
by token.

Left out: keeping the key-value cache from one turn to the next. Templates may rewrite history,
sliding windows and linear attention cannot go back, and in bfloat16 a prompt computed in two parts
may round to another token. For the same reason every turn is prompted for anew, not extended: the
template decides whether earlier reasoning is shown again, as it does in training.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from posttrain.core.errors import DataError, ModelError
from posttrain.data.chat import Chat
from posttrain.data.formats import Example
from posttrain.data.messages import Message
from posttrain.data.prompting import Prompting, before_stop
from posttrain.data.settings import PromptingSettings
from posttrain.data.templates.thinking import OPENING, PROMPTED, TAGS
from posttrain.data.tokens import Encoder
from posttrain.engine.policy import Policy
from posttrain.engine.sampler import Sampling
from posttrain.serve.conversation import Answer

OnText = Callable[[str, bool], None]  # takes a piece of an answer, and whether it is thinking


class Stream:
    """The text of tokens as they come.

    A character may need several tokens, so text is given out when it is complete; what never
    becomes complete is left out. What may be the beginning of a text that ends the answer is held
    back until it is known.

    Args:
        silent: tokens without a text.
        text: what the answer begins with.
        stops: texts that end the answer and are no part of it.
    """

    def __init__(
        self, tokenizer: Any, silent: frozenset[int], text: str = "", stops: tuple[str, ...] = ()
    ) -> None:
        self._tokenizer, self._silent, self._lead = tokenizer, silent, text
        self._stops = stops
        self._tokens: list[int] = []
        self._whole = self.text = text

    @property
    def thinking(self) -> bool:
        """Whether the text ends inside thinking."""
        tags = TAGS.findall(self.text)
        return bool(tags) and OPENING.fullmatch(tags[-1]) is not None

    def take(self, token: int) -> str:
        """The text that this token makes complete."""
        if token in self._silent:
            return ""
        self._tokens.append(token)
        found = self._tokenizer.decode(
            self._tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        found = found.rstrip("\N{REPLACEMENT CHARACTER}")
        self._whole = self._lead + before_stop(found, self._stops)
        held = 0
        if len(self._whole) == len(self._lead) + len(found):  # no such text stands there yet
            held = max((_begun(found, stop) for stop in self._stops), default=0)
        return self._given_out(len(self._whole) - held)

    def rest(self) -> str:
        """What was held back, once the answer has ended."""
        return self._given_out(len(self._whole))

    def _given_out(self, end: int) -> str:
        before = len(self.text)
        self.text = self._whole[: max(before, end)]
        return self.text[before:]


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of a text may be the beginning of another."""
    for n in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0


class Voice:
    """A model, and how it is talked to.

    Args:
        name: what the user calls it.
        prompting: how it is prompted; None: as it remembers. Plain text shows it the last question
            alone.
    Attributes:
        positions: tokens that prompt and answer may have together; None where the model does not
            say.
        notes: what the user should know.
    """

    def __init__(self, name: str, policy: Policy, prompting: Prompting | None = None) -> None:
        self.name, self.policy = name, policy
        prompting = policy.prompting if prompting is None else prompting
        self.chat = Chat.of(policy.tokenizer, prompting)
        self.encoder = Encoder(policy.tokenizer)
        self.notes = [*policy.notes, *policy.admit_sampling()]
        if described := prompting.described(policy.prompting):
            self.notes.append(f"{name} is prompted {described}")
        if self.plain:
            self.notes.append(f"{name} is shown every question alone, as plain text")
        else:
            if self.chat.template.origin == "default":
                self.notes.append(
                    f"{name} has no chat template; it is talked to in the default one"
                )
            # as training does: the template's end of an answer is a stop, too
            policy.set_chat(self.chat.template.source, self.chat.stop)
            self.notes += self.chat.notes
        self.positions = policy.longest
        special = {
            i
            for i, t in policy.tokenizer.added_tokens_decoder.items()
            if t.special and not TAGS.fullmatch(t.content)
        }
        self._silent = frozenset(special | {*policy.stops})

    @classmethod
    def load(
        cls, path: str, *, device: str = "", prompting: PromptingSettings | None = None
    ) -> Voice:
        """A model by its folder, the folder of the run that made it, or its hub id.

        Args:
            prompting: how it is prompted, where not as it remembers.
        Raises:
            ModelError: there is none, or it cannot be used.
        """
        policy = Policy.load(model_folder(path), device=device)
        given = policy.prompting.overridden(prompting) if prompting else policy.prompting
        return cls(path, policy, given)

    @property
    def plain(self) -> bool:
        """Whether it is prompted in plain text."""
        return self.chat.prompt_template is not None

    def prompt(self, messages: tuple[Message, ...], max_tokens: int) -> tuple[list[int], str, int]:
        """What the model is shown of a conversation: all of it, or without its oldest turns, so
        that an answer has room.

        An answer has room where all its tokens fit, or a quarter of the model's positions is left.

        Returns: token ids, their text, and how many turns were left out.
        Raises:
            DataError: the template refuses the conversation, or the last question alone is too
                long.
        """
        system = messages[: messages[0]["role"] == "system"]
        starts = [i for i, message in enumerate(messages) if message["role"] == "user"]
        ids: list[int] = []
        for forgotten, start in enumerate(starts):
            shown = (*system, *messages[start:])
            if self.plain:
                shown = self._question(system, messages)
            text, plain = self.chat.prompt(Example("", shown))
            (ids,) = self.encoder.prompts([text], [plain])
            if (
                self.positions is None
                or len(ids) + min(max_tokens, self.positions // 4) <= self.positions
            ):
                return ids, text, forgotten
        raise DataError(
            f"the question alone has {len(ids):,} tokens in the chat template, and {self.name} only"
            f" {self.positions:,} positions",
            cure="shorten it, or the system prompt",
        )

    def _question(self, system: tuple[Message, ...], messages: tuple[Message, ...]) -> str:
        """The last question alone.

        Raises:
            DataError: there is a system prompt, which plain text has no place for.
        """
        if system:
            raise DataError(
                f"a system prompt, and {self.name} is prompted in plain text",
                cure="remove it with /system; or give --prompt-template '' to use the chat "
                "template",
            )
        return messages[-1]["content"]

    def answer(self, messages: tuple[Message, ...], params: Sampling, on_text: OnText) -> Answer:
        """Write the next answer of a conversation.

        Args:
            messages: the last is the user's.
            on_text: is given every piece of the text; a KeyboardInterrupt in it, or anywhere, ends
                the answer where it is.
        """
        began = time.perf_counter()
        ids, text, forgotten = self.prompt(messages, params.max_tokens)
        thinking = PROMPTED.search(text, max(0, len(text) - 100))
        opened = ""  # thinking that the prompt begins is part of the answer
        if thinking and thinking[1] and not thinking[2]:
            opened = thinking[0]
        stream = Stream(self.policy.tokenizer, self._silent, opened, self.chat.stops)
        room = params.max_tokens
        if self.positions is not None:
            room = min(room, self.positions - len(ids))
        tokens: list[int] = []
        finished, interrupted = False, False

        def on_token(prompt: int, number: int, token: int) -> None:
            tokens.append(token)
            before = stream.thinking
            if piece := stream.take(token):
                on_text(piece, before or stream.thinking)

        try:
            if opened:
                on_text(opened, True)
            stops = {"stop": self.policy.stops, "stop_texts": self.chat.stops}
            params = replace(params, max_tokens=room, **stops)
            finished = self.policy.sample([ids], params, progress=on_token)[0].finished
        except KeyboardInterrupt:
            interrupted = True
        if rest := stream.rest():
            on_text(rest, stream.thinking)
        seconds = time.perf_counter() - began
        message = self._message(tokens, ids)
        return Answer(stream.text, len(tokens), seconds, finished, interrupted, forgotten, message)

    def _message(self, tokens: list[int], prompt: list[int]) -> Message | None:
        """An answer with its reasoning apart; None where it has none, or no end of it."""
        if self.plain:
            return None
        parsed = self.chat.template.parse(tokens, prompt=prompt)
        message = parsed.message
        if not message.get("reasoning_content") or not message["content"].strip():
            return None
        return None if parsed.faults or "tool_calls" in message else message


def model_folder(path: str) -> str:
    """The model of a run, where `path` is the folder of one; else `path` itself.

    Raises:
        ModelError: the run has no model yet.
    """
    folder = Path(path)
    if (folder / "config.json").is_file():
        return path
    if (folder / "model" / "config.json").is_file():
        return str(folder / "model")
    if (folder / "run.json").is_file():
        raise ModelError(
            f"{path} holds a run without a model",
            cure="finish the run: its command goes on where it was",
        )
    return path
