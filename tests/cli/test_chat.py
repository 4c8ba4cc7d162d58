"""`posttrain chat`: what goes where, what commands do, and how it ends; on a model of thirty
thousand parameters.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.cli import chat
from posttrain.cli.main import main
from posttrain.core.console import Console, open_reporter
from posttrain.core.errors import ConfigError, DataError
from posttrain.serve.conversation import Answer
from posttrain.serve.settings import ChatSettings
from tests import making

Said = tuple[int, str, str]
Run = Callable[..., Said]
SHARED = (Path(__file__).parents[2] / ".." / "shared" / "data").resolve()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    making.model(folder / "a", positions=512)
    making.model(folder / "run" / "model", positions=512, seed=1)
    return folder


@pytest.fixture
def run(models: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """`posttrain chat` with lines on standard input: exit code, standard output, standard error."""

    def run(*argv: str | Path, model: str = "a", lines: str = "") -> Said:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        code = main(
            [
                "chat",
                "--model",
                str(models / model),
                "--device",
                "cpu",
                "--max-tokens",
                "12",
                *map(str, argv),
            ]
        )
        said = capfd.readouterr()
        return code, said.out, said.err

    return run


class Scripted:
    """A voice that says what it was asked, and how often it was drawn."""

    positions = 100

    def __init__(self, name: str, *, stops: bool = False) -> None:
        self.name, self.stops, self.seeds = name, stops, list[int]()
        self.seen: list[Any] = []

    def answer(self, messages: Any, params: Any, on_text: Callable[[str, bool], None]) -> Answer:
        self.seen.append(messages)
        self.seeds.append(params.seed)
        text = (
            f"{self.name}: {messages[-1]['content']}"
            if not self.stops
            else ""
            if messages[-1]["content"] == "?"
            else "half"
        )
        on_text(text, False)
        return Answer(text, 4, 2.0, not self.stops, self.stops, len(messages) // 6)


def talk(
    *voices: Scripted, out: Console | None = None
) -> tuple[chat.Talk, io.StringIO, io.StringIO]:
    from posttrain.engine.sampler import Sampling

    stdout, stderr = io.StringIO(), io.StringIO()
    some: Any = list(voices)
    return (
        chat.Talk(
            some,
            chat.Conversation(),
            Sampling(),
            0,
            open_reporter(Console(file=stderr, width=200)),
            out or Console(file=stdout, width=200),
            Console(file=stderr, width=200),
        ),
        stdout,
        stderr,
    )


# -------------------------------------------------------------------------------------- real models


def test_a_question_and_the_same_through_a_pipe(run: Run) -> None:
    """Answers on standard output and nothing else; the default template is told of once, on
    standard error.
    """
    code, out, err = run("--prompt", "Hello?")
    assert code == 0 and len(out) > 5 and out.endswith("\n")
    assert err.count("has no chat template") == 1
    assert re.search(r"^12 tokens, \d[\d,]* tokens/s, cut off at the limit$", err, re.MULTILINE)
    assert run(lines="Hello?\n")[:2] == (0, out)
    assert run(lines="\nHello?")[:2] == (0, out)
    assert run("--seed", "1", "--prompt", "Hello?")[1] != out
    quiet = run("--quiet", "--prompt", "Hello?")
    assert quiet[:2] == (0, out) and quiet[2].count("\n") == 1  # the template
    assert run(lines="") == (0, "", quiet[2])


def test_the_second_answer_depends_on_the_first_turn(run: Run) -> None:
    """The same seed, and the same question in the same place of the conversation, after another
    one.
    """
    first = run("--temperature", "0", lines="One?\nTwo?\n")[1]
    again = run("--temperature", "0", lines="One?\nTwo?\n")[1]
    other = run("--temperature", "0", lines="Uno?\nTwo?\n")[1]
    assert first == again and first != other
    alone = run("--temperature", "0", lines="One?\n/reset\nTwo?\n")[1]
    assert alone.endswith(run("--temperature", "0", lines="Two?\n")[1]) and alone != first


def test_another_model_answers_beside_it(run: Run, models: Path) -> None:
    """--vs takes the folder of a run; each answers as it does alone, and the same model twice says
    the same.
    """
    ours, theirs = run(lines="One?\nTwo?\n")[1], run(model="run", lines="One?\nTwo?\n")[1]
    assert run(model="run/model", lines="One?\nTwo?\n")[1] == theirs != ours
    _, both, err = run("--vs", models / "run", "--prompt", "One?")
    assert both == run("--prompt", "One?")[1] + run("--prompt", "One?", model="run")[1]
    assert err.index(f"{models / 'a'}\n") < err.index(f"{models / 'run'}\n")
    _, twice, _ = run("--vs", models / "a", lines="One?\nTwo?\n", model="a")
    assert len(twice) == 2 * len(ours)


def test_a_saved_conversation_is_trained_on(
    run: Run, models: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """`/save` writes rows that `posttrain sft` reads; the run's folder can be talked to at once."""
    path = tmp_path / "chats.jsonl"
    it, _, err = talk(Scripted("it"))
    for line in ("/system Be kind.", "One?", f"/save {path}"):
        it.take(line)
    assert err.getvalue().endswith(f"1 row added to {path}\n")
    assert [m["content"] for m in json.loads(path.read_text())["messages"]] == [
        "Be kind.",
        "One?",
        "it: One?",
    ]
    argv = [
        "sft",
        "--model",
        models / "a",
        "--data",
        path,
        "--out",
        tmp_path / "first",
        "--steps",
        "1",
        "--device",
        "cpu",
    ]
    assert main([str(a) for a in argv]) == 0
    capfd.readouterr()
    code, out, err = run("--prompt", "One?", model=str(tmp_path / "first"))
    assert code == 0 and out and "no chat template" not in err


@pytest.mark.parametrize(
    ("argv", "lines", "what"),
    [
        (["--model", "nowhere/at/all"], "", r"nowhere/at/all.*\ncure:  .*"),
        (["--temperature", "-1"], "", r"temperature = '-1'.*\ncure:  .*"),
        (["--vs", "./missing"], "", r"\./missing is not a model folder\ncure:  .*"),
        (
            [],
            "/rest\n",
            r"there is no command /rest\ncure:  did you mean 'reset'\?; /help lists them, .*",
        ),
        ([], "/undo\n", r"there is no turn yet\ncure:  ask something first"),
        (
            [],
            "x" * 600,
            (
                r"the question alone has \d+ tokens in the chat template, and .* only 512 "
                r"positions\ncure:  shorten it.*"
            ),
        ),
    ],
    ids=["model", "temperature", "vs", "command", "undo", "long"],
)
def test_what_is_wrong_ends_with_the_cure(run: Run, argv: list[str], lines: str, what: str) -> None:
    code, out, err = run(*argv, lines=lines)
    assert (code, out) == (2, "")
    assert re.search(rf"^error: .*{what}$", err, re.MULTILINE), err


def test_help_needs_no_torch(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom posttrain.cli.main import main\ntry:\n    main(['chat', '--help'])\n"
        "except SystemExit:\n    pass\nprint(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]" and "--template-kwargs" in done.stdout


# ----------------------------------------------------------------------------------------- commands


def test_commands() -> None:
    one = Scripted("it")
    it, out, err = talk(one)
    for line in (
        "/system Be kind.",
        "a",
        "/retry",
        "//b",
        "/undo",
        "c",
        "/temperature 0",
        "/system",
        "/reset",
        "d",
        " ",
        "/quit",
    ):
        assert not it.over
        it.take(line)
    assert it.over and it.params.temperature == 0
    assert out.getvalue() == "it: a\nit: a\nit: /b\nit: c\nit: d\n"
    assert [[m["content"] for m in messages] for messages in one.seen] == [
        ["Be kind.", "a"],
        ["Be kind.", "a"],
        ["Be kind.", "a", "it: a", "/b"],
        ["Be kind.", "a", "it: a", "c"],
        ["d"],
    ]
    assert (
        one.seeds[0] != one.seeds[1]
        and one.seeds[2] == one.seeds[3]
        and one.seeds[0] == one.seeds[4]
    )
    assert err.getvalue().splitlines() == [
        "the system prompt is set",
        "4 tokens, 2 tokens/s",
        "4 tokens, 2 tokens/s",
        "4 tokens, 2 tokens/s",
        "taken back: /b",
        "4 tokens, 2 tokens/s",
        "temperature 0",
        "there is no system prompt now",
        "the conversation begins anew",
        "4 tokens, 2 tokens/s",
    ]


def test_help_lists_every_command() -> None:
    it, out, err = talk(Scripted("it"))
    it.take("/help")
    assert out.getvalue() == "" and re.findall(r"^/(\w+)", err.getvalue(), re.MULTILINE) == list(
        chat.COMMANDS
    )


@pytest.mark.parametrize(
    "line",
    [
        "/temperature",
        "/temperature warm",
        "/temperature -1",
        "/temperature nan",
        "/save",
        "/save a.jsonl",
        "/retry",
        "/",
    ],
)
def test_commands_that_make_no_sense(line: str) -> None:
    it, _, _ = talk(Scripted("it"))
    with pytest.raises(ConfigError):
        it.take(line)
    assert it.params.temperature == 1.0


def test_what_a_model_forgets_is_told() -> None:
    it, _, err = talk(Scripted("it"))
    for line in "abcd":
        it.take(line)
    assert (
        err.getvalue().splitlines()[-1]
        == "it has 100 positions; the oldest 1 of 4 turns were not shown to it"
    )


def test_a_stopped_answer_is_kept_and_one_without_a_word_is_not() -> None:
    it, out, err = talk(Scripted("it", stops=True))
    it.take("a")
    assert it.interrupted and it.conversation.turns[-1].answers[0].text == "half"
    assert out.getvalue() == "half\n" and err.getvalue() == "4 tokens, 2 tokens/s, stopped\n"
    it.take("?")
    assert [turn.question for turn in it.conversation.turns] == ["a"]


def test_a_turn_that_fails_is_taken_back_and_a_retry_that_fails_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = Scripted("it")
    it, _, _ = talk(one)
    it.take("a")
    before = it.conversation.turns[0]

    def refuse(*_: Any) -> Answer:
        raise DataError("refused", cure="none")

    monkeypatch.setattr(one, "answer", refuse)
    for line in ("b", "/retry"):
        with pytest.raises(DataError):
            it.take(line)
        assert it.conversation.turns == [before]


# ---------------------------------------------------------------------------------------- terminals


def test_two_columns_in_a_wide_terminal_and_one_below_the_other_in_a_narrow_one() -> None:
    for width, beside in ((120, True), (60, False)):
        screen = io.StringIO()
        console = Console(
            file=screen, width=width, force_terminal=True, color_system=None, legacy_windows=False
        )
        it, _, err = talk(Scripted("left"), Scripted("right"), out=console)
        it.take("hm")
        last = [line for line in screen.getvalue().splitlines() if "right: hm" in line][-1]
        assert ("left: hm" in last) is beside
        assert ("right\n" in err.getvalue()) is not beside  # its heading is in the column
        assert "left: 4 tokens, 2 tokens/s\nright: 4 tokens" in err.getvalue().replace(
            "right\n", ""
        )


def test_an_answer_cannot_move_the_cursor() -> None:
    for width in (120, 60):
        screen = io.StringIO()
        console = Console(
            file=screen, width=width, force_terminal=True, color_system=None, legacy_windows=False
        )
        it, _, _ = talk(Scripted("a"), Scripted("b"), out=console)
        it.take("\x1b[31mred\x07")
        assert "␛[31mred␇" in screen.getvalue() and "\x1b[31m" not in screen.getvalue()


class Thinker(Scripted):
    """A voice that thinks before it speaks."""

    def answer(self, messages: Any, params: Any, on_text: Callable[[str, bool], None]) -> Answer:
        on_text("<think>hm</think>", True)
        on_text("yes", False)
        return Answer("<think>hm</think>yes", 4, 2.0, True)


def test_thinking_is_dim_in_a_terminal_and_as_it_is_in_a_pipe() -> None:
    for width in (120, 60):
        screen = io.StringIO()
        console = Console(
            file=screen,
            width=width,
            force_terminal=True,
            color_system="standard",
            legacy_windows=False,
        )
        it, _, _ = talk(Thinker("a"), Thinker("b"), out=console)
        it.take("hello")
        assert re.search(r"\x1b\[2m<think>hm</think>\x1b\[(0|22)myes", screen.getvalue())
    it, out, _ = talk(Thinker("a"))
    it.take("hello")
    assert out.getvalue() == "<think>hm</think>yes\n"


def test_a_conversation_in_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What goes wrong is told and the conversation goes on; Ctrl-C at the prompt does, too; Ctrl-D
    ends it.
    """
    it, out, _ = talk(Scripted("it"))
    typed = iter(["/nonsense", KeyboardInterrupt(), "hello", EOFError()])

    def input(_prompt: str) -> str:
        if isinstance(one := next(typed), str):
            return one
        raise one

    monkeypatch.setattr("builtins.input", input)
    chat.read_messages(it)
    said = capfd.readouterr()
    assert out.getvalue() == "it: hello\n" and said.out == ""
    assert "there is no command /nonsense" in said.err and "Ctrl-D or /quit ends" in said.err


def test_an_interrupted_script_ends(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between pipes Ctrl-C keeps the line whole and ends with 130; the next question is not
    asked.
    """
    it, out, _ = talk(Scripted("it", stops=True))
    monkeypatch.setattr(chat, "begin", lambda settings, reporter: it)
    assert run(lines="a\nb\n")[0] == 130
    assert out.getvalue() == "half\n"


def test_settings_have_the_defaults_that_are_documented() -> None:
    settings = ChatSettings(model="m")
    assert (
        settings.temperature,
        settings.top_p,
        settings.top_k,
        settings.max_tokens,
        settings.seed,
    ) == (0.7, 1.0, 0, 512, 0)


@pytest.mark.skipif(
    not (SHARED / "models" / "base-28m").is_dir(),
    reason=f"the shared data folder {SHARED} has no base-28m",
)
def test_a_real_base_model_answers(run: Run) -> None:
    code, out, err = run(
        "--temperature",
        "0",
        lines="What is 3+4?\nAnd 5+6?\n",
        model=str(SHARED / "models" / "base-28m"),
    )
    assert code == 0 and len(out.split()) > 5 and "\ufffd" not in out and "<|" not in out
    assert err.count("tokens/s") == 2
