"""`posttrain chat`: talk to a model, or to two side by side.

Answers go to standard output, everything else to standard error.

Left out: messages of several lines, and files in messages.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.live import Live
from rich.text import Text

from posttrain.cli.options import flat, parser
from posttrain.core.console import Console, Table, console, open_reporter, print_error
from posttrain.core.errors import ConfigError, PosttrainError, nearest
from posttrain.core.events import Reporter
from posttrain.core.seeds import derive
from posttrain.core.settings import assemble
from posttrain.core.terminal import emit, escape
from posttrain.serve.conversation import Answer, Conversation, Turn
from posttrain.serve.settings import ChatSettings

if TYPE_CHECKING:
    from posttrain.engine.sampler import Sampling
    from posttrain.serve.voice import Voice

WIDE = 100  # characters of a terminal that has room for two columns


def main(argv: list[str]) -> int:
    arguments = parser(
        "chat",
        "Talk to a model, or to two side by side. Where standard input is no terminal, every line "
        "of it is a message. In the conversation /help lists what else can be done.",
        ChatSettings,
    ).parse(argv)
    settings = assemble(ChatSettings, flat(arguments, ChatSettings))
    talk = begin(settings, open_reporter(quiet=arguments.quiet))
    talk.quiet = arguments.quiet
    if settings.prompt is not None:
        talk.ask(settings.prompt)
    elif sys.stdin.isatty():
        talk.reporter.note(
            "chat", "/help lists the commands, Ctrl-C stops an answer, Ctrl-D ends the conversation"
        )
        read_messages(talk)
        return 0
    for line in [] if settings.prompt is not None else lines():
        talk.take(line)
        if talk.over or talk.interrupted:
            break
    if talk.interrupted:
        raise KeyboardInterrupt
    return 0


def begin(settings: ChatSettings, reporter: Reporter) -> Talk:
    """Load the models."""
    from posttrain.engine.sampler import Sampling
    from posttrain.serve.voice import Voice

    voices = [
        Voice.load(path, device=settings.device, prompting=settings.prompting)
        for path in (settings.model, settings.vs)
        if path
    ]
    for note in dict.fromkeys(note for voice in voices for note in voice.notes):
        reporter.message(note)
    params = Sampling(settings.max_tokens, settings.temperature, settings.top_k, settings.top_p)
    conversation = Conversation()
    if len({voice.chat.system for voice in voices}) == 1:  # so that /system and /save know it
        conversation.system = voices[0].chat.system
        for voice in voices:
            voice.chat.system = ""
    return Talk(voices, conversation, params, settings.seed, reporter, console())


def lines() -> Iterator[str]:
    """Lines of standard input, as they come."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    return (line.rstrip("\r\n") for line in sys.stdin)


def read_messages(talk: Talk) -> None:
    """Read messages from a terminal, until its user has enough.

    An error is shown, and the conversation goes on.
    """
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # input() then has a history
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    while not talk.over:
        try:
            if not sys.stdout.isatty():
                emit("> ", stderr=True, end="")
            line = input("> " if sys.stdout.isatty() else "")
        except EOFError:
            emit("", stderr=True)
            return
        except KeyboardInterrupt:
            emit("\nCtrl-D or /quit ends the conversation", stderr=True)
            continue
        try:
            talk.take(line)
        except PosttrainError as error:
            print_error(error)
        except KeyboardInterrupt:
            emit("", stderr=True)


@dataclass
class Talk:
    """A conversation with models, in a terminal or between pipes."""

    voices: list[Voice]
    conversation: Conversation
    params: Sampling
    seed: int
    reporter: Reporter
    out: Console
    aside: Console = field(default_factory=lambda: console(stderr=True))
    quiet: bool = False
    over: bool = False
    interrupted: bool = False

    def take(self, line: str) -> None:
        """One line from the user: a command, or a message; `//` begins a message that begins with a
        slash.
        """
        if line.startswith("/") and not line.startswith("//"):
            name, _, rest = line[1:].strip().partition(" ")
            if name not in COMMANDS:
                raise ConfigError(
                    f"there is no command /{name}",
                    cure=(
                        f"{nearest(name, COMMANDS)}; /help lists them, and // "
                        "begins a message with a slash"
                    ),
                )
            COMMANDS[name][0](self, rest.strip())
        elif line.strip():
            self.ask(line[line.startswith("//") :])

    def ask(self, question: str) -> None:
        """Let every model answer."""
        self._answer(Turn(question), [])

    def _answer(self, turn: Turn, before: list[Turn]) -> None:
        """Answer a turn. If that fails, or is stopped before a word was written, what was there
        before takes its place.
        """
        turns, kept = self.conversation.turns, False
        turns.append(turn)
        try:
            (
                self._side_by_side
                if len(self.voices) > 1 and self.out.is_terminal and self.out.width >= WIDE
                else self._below
            )()
            self.interrupted = any(answer.interrupted for answer in turn.answers)
            kept = not self.interrupted or any(answer.text for answer in turn.answers)
        finally:
            if not kept:
                turns[-1:] = before

    def draw(self, k: int, on_text: Callable[[str, bool], None]) -> Answer:
        """Model k's answer to the last question."""
        turns = self.conversation.turns
        seed = derive(self.seed, "chat", len(turns), turns[-1].attempt)
        answer = self.voices[k].answer(
            self.conversation.messages(k), replace(self.params, seed=seed), on_text
        )
        turns[-1].answers.append(answer)
        return answer

    # ------------------------------------------------------------------ showing

    def _below(self) -> None:
        """One answer after the other, as they are written."""
        for k, voice in enumerate(self.voices):
            if len(self.voices) > 1:
                self._say(voice.name, style="bold")
            answer = self.draw(k, self._write)
            if not answer.text.endswith("\n"):
                self._write("\n")
            self._account(k, answer)

    def _write(self, piece: str, thinking: bool = False) -> None:
        """Write a piece of an answer; in a terminal thinking is dim."""
        self.out.write(piece, dim=thinking)

    def _side_by_side(self) -> None:
        """Two columns that fill one after the other."""
        texts = [Text() for _ in self.voices]
        grid = Table(box=None, expand=True, padding=(0, 2, 0, 0))
        for voice in self.voices:
            grid.add_column(voice.name, ratio=1, overflow="fold")
        grid.add_row(*texts)
        with Live(grid, console=self.out, auto_refresh=False) as live:

            def on_text(piece: str, thinking: bool) -> None:
                text = texts[len(self.conversation.turns[-1].answers)]
                text.append(escape(piece), style="dim" if thinking else "")
                live.refresh()

            answers = [self.draw(k, on_text) for k in range(len(self.voices))]
        for k, answer in enumerate(answers):
            self._account(k, answer)

    def _account(self, k: int, answer: Answer) -> None:
        """How an answer came about."""
        voice, ends = self.voices[k], "" if answer.finished else ", cut off at the limit"
        name = f"{voice.name}: " if len(self.voices) > 1 else ""
        self._say(
            f"{name}{answer.tokens:,} tokens, "
            f"{answer.tokens / max(answer.seconds, 1e-9):,.0f} "
            f"tokens/s{', stopped' if answer.interrupted else ends}",
            style="dim",
        )
        if answer.forgotten:
            self.reporter.message(
                f"{voice.name} has {voice.positions:,} positions; the oldest {answer.forgotten} of "
                f"{len(self.conversation.turns)} turns were not shown to it"
            )

    def _say(self, text: str, style: str = "") -> None:
        if not self.quiet:
            self.aside.print_line(text, style=style)

    # ------------------------------------------------------------------ commands

    def help(self, _text: str) -> None:
        for name, (_, argument, what) in COMMANDS.items():
            self.aside.print_line(f"{f'/{name} {argument}':<15} {what}")

    def set_system(self, text: str) -> None:
        self.conversation.system = text
        self._say("the system prompt is set" if text else "there is no system prompt now")

    def reset(self, _text: str) -> None:
        self.conversation.turns.clear()
        self._say("the conversation begins anew")

    def undo(self, _text: str) -> None:
        turn = self._last()
        self.conversation.turns.pop()
        self._say(f"taken back: {turn.question}")

    def retry(self, _text: str) -> None:
        turn = self._last()
        self.conversation.turns.pop()
        self._answer(Turn(turn.question, attempt=turn.attempt + 1), [turn])

    def set_temperature(self, text: str) -> None:
        try:
            self.params = replace(self.params, temperature=float(text))
        except ValueError:
            raise ConfigError(
                f"temperature {text!r} is no number", cure="for example /temperature 0.7"
            ) from None
        self._say(f"temperature {self.params.temperature:g}")

    def save(self, text: str) -> None:
        if not text:
            raise ConfigError(
                "/save needs the name of a file", cure="for example /save chats.jsonl"
            )
        rows = self.conversation.save(Path(text).expanduser())
        self._say(f"{rows} row{'s' * (rows > 1)} added to {text}")

    def quit(self, _text: str) -> None:
        self.over = True

    def _last(self) -> Turn:
        if not self.conversation.turns:
            raise ConfigError("there is no turn yet", cure="ask something first")
        return self.conversation.turns[-1]


# name: (what it does, its argument, what /help says of it)
COMMANDS: dict[str, tuple[Callable[[Talk, str], None], str, str]] = {
    "help": (Talk.help, "", "show this"),
    "system": (Talk.set_system, "TEXT", "set the system prompt; without TEXT there is none"),
    "reset": (Talk.reset, "", "forget the conversation; the system prompt stays"),
    "undo": (Talk.undo, "", "take the last turn back"),
    "retry": (Talk.retry, "", "answer the last question anew"),
    "temperature": (Talk.set_temperature, "X", "0 takes the most likely token"),
    "save": (Talk.save, "FILE", "add the conversation to a JSONL file that posttrain sft reads"),
    "quit": (Talk.quit, "", "end the conversation, as Ctrl-D does"),
}
