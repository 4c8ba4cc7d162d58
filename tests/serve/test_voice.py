"""A model in a conversation: prompted as trained, streamed in whole characters, stopped
without loss.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from posttrain.core.errors import DataError, ModelError
from posttrain.data.chat import Chat
from posttrain.data.formats import Example
from posttrain.data.prompting import Prompting
from posttrain.data.tokens import Encoder
from posttrain.engine.policy import Policy
from posttrain.engine.sampler import Sampling
from posttrain.serve.conversation import Conversation, Turn
from posttrain.serve.voice import Stream, Voice, model_folder
from tests import making

HELLO = ({"role": "user", "content": "Hello?"},)
LONG = (
    {"role": "system", "content": "Be kind."},
    *({"role": role, "content": f"{role} {i}"} for i in range(8) for role in ("user", "assistant")),
    *HELLO,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return making.model(tmp_path_factory.mktemp("base"), positions=256)


@pytest.fixture(scope="module")
def voice(base: Path) -> Voice:
    return Voice.load(str(base), device="cpu")


# --------------------------------------------------------------------------------------------- text


def test_a_character_of_several_tokens_is_told_when_it_is_whole() -> None:
    """é is two byte tokens, € three, 😀 four; the end of half a character is no text."""
    words = making.tokenizer()
    text = "é€😀 a"
    tokens = words(text)["input_ids"]
    stream = Stream(words, frozenset({0}))
    assert [stream.take(token) for token in [*tokens, 0, *words("€")["input_ids"][:2]]] == [
        "",
        "é",
        "",
        "",
        "€",
        "",
        "",
        "",
        "😀",
        " ",
        "a",
        "",
        "",
        "",
    ]
    assert stream.text == text


def test_bytes_that_are_no_character_are_told_with_the_next_one() -> None:
    words = making.tokenizer()
    stream = Stream(words, frozenset(), "<think>")
    assert [stream.take(t) for t in (words("é")["input_ids"][0], words("b")["input_ids"][0])] == [
        "",
        "\ufffdb",
    ]
    assert stream.text == "<think>\ufffdb"


# ------------------------------------------------------------------------------------------ answers


def ignore(_piece: str, _thinking: bool) -> None:
    """Listens to no piece of an answer."""


@pytest.mark.parametrize(
    "params",
    [Sampling(60, temperature=0), Sampling(60, temperature=1.0, seed=3)],
    ids=["greedy", "drawn"],
)
def test_what_is_streamed_is_what_is_sampled_without_streaming(
    base: Path, voice: Voice, params: Sampling
) -> None:
    """The prompt is the default template's; the answer, piece by piece, is plain decoding of the
    same draws.
    """
    pieces: list[str] = []
    answer = voice.answer(HELLO, params, lambda piece, _: pieces.append(piece))
    policy = Policy.load(base, device="cpu")
    prompt = policy.tokenizer("### User:\nHello?\n\n### Assistant:\n", add_special_tokens=False)[
        "input_ids"
    ]
    (plain,) = policy.sample([prompt], params)
    text = policy.tokenizer.decode(plain.tokens, skip_special_tokens=True).rstrip("\ufffd")
    assert "".join(pieces) == answer.text == text and len(pieces) > 5
    assert (answer.tokens, answer.finished, answer.interrupted) == (
        len(plain.tokens),
        plain.finished,
        False,
    )


def test_history_is_what_the_template_renders(base: Path, voice: Voice) -> None:
    words = Policy.load(base, device="cpu").tokenizer
    chat = Chat(words)
    ids, text, forgotten = voice.prompt(LONG[:4], 8)
    expected = (
        "### System:\nBe kind.\n\n### User:\nuser 0\n\n### Assistant:\nassistant 0<|end|>\n\n"
        "### User:\nuser 1\n\n### Assistant:\n"
    )
    assert text == expected == chat.prompt(Example("", LONG[:4]))[0]
    assert ids == Encoder(words).prompts([expected], [False])[0] and forgotten == 0
    # and the prompt's tokens are those that a trained conversation begins with
    (trained,) = Encoder(words).encode(
        [chat.turns(Example("", LONG[:4]), ({"role": "assistant", "content": "x"},))]
    )
    assert not isinstance(trained, DataError) and trained[-1].ids[: len(ids)] == ids


def test_the_end_token_is_not_shown(voice: Voice, monkeypatch: pytest.MonkeyPatch) -> None:
    words = voice.policy.tokenizer
    script = [
        *words("ok", add_special_tokens=False)["input_ids"],
        words.convert_tokens_to_ids(making.END),
    ]

    def scripted(_network: Any, prompts: Any, params: Sampling, told: Any, _seeds: Any) -> Any:
        assert params.stop == voice.policy.stops and script[-1] in voice.policy.stops
        for token in script:
            told(0, 0, token)
        return [type("Done", (), {"finished": True})]

    monkeypatch.setattr("posttrain.engine.sampler.sample", scripted)
    answer = voice.answer(HELLO, Sampling(), ignore)
    assert (answer.text, answer.tokens, answer.finished) == ("ok", 3, True)


def test_an_interrupted_answer_is_kept(voice: Voice) -> None:
    whole, pieces = voice.answer(HELLO, Sampling(60, seed=3), ignore), []

    def stop_at_five(piece: str, _thinking: bool) -> None:
        pieces.append(piece)
        if len(pieces) == 5:
            raise KeyboardInterrupt

    answer = voice.answer(HELLO, Sampling(60, seed=3), stop_at_five)
    assert answer.interrupted and not answer.finished and 0 < answer.tokens < whole.tokens
    assert answer.text == "".join(pieces) and whole.text.startswith(answer.text)


def test_thinking_that_the_prompt_begins_is_part_of_the_answer(base: Path) -> None:
    """So that the template finds it, and drops it, when the answer has become history."""
    policy = Policy.load(base, device="cpu")
    policy.tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content.split('</think>')[-1] }}<|end|>\n{% "
        "endfor %}{% if add_generation_prompt %}assistant: {% if think | default(true) "
        "%}<think>\n{% endif %}{% endif %}"
    )
    pieces: list[tuple[str, bool]] = []

    def keep(piece: str, is_thinking: bool) -> None:
        pieces.append((piece, is_thinking))

    thinking = Voice("it", policy).answer(HELLO, Sampling(5, seed=1), keep)
    assert pieces[0] == ("<think>\n", True) and thinking.text.startswith("<think>\n")
    assert all(is_thinking for _, is_thinking in pieces)
    direct = Voice("it", policy, Prompting(template_kwargs={"think": False}))
    pieces.clear()
    assert not direct.answer(HELLO, Sampling(5, seed=1), keep).text.startswith("<think>")
    assert direct.notes == ["it is prompted think=false"] and not any(
        is_thinking for _, is_thinking in pieces
    )


def scripted(monkeypatch: pytest.MonkeyPatch, voice: Voice, text: str) -> None:
    """Every answer has the tokens of this text."""
    tokens = voice.policy.tokenizer(text, add_special_tokens=False)["input_ids"]

    def sample(_model: Any, prompts: Any, params: Sampling, progress: Any, _seeds: Any) -> Any:
        for token in tokens:
            progress(0, 0, token)
        return [type("Done", (), {"finished": text.endswith(making.END)})]

    monkeypatch.setattr("posttrain.engine.sampler.sample", sample)


def test_thinking_is_given_out_apart_and_kept_apart_in_history(
    voice: Voice, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, voice, f"<think>\nHm.\n</think>\n\nYes.{making.END}")
    pieces = {True: "", False: ""}

    def keep(piece: str, thinking: bool) -> None:
        pieces[thinking] += piece

    answer = voice.answer(HELLO, Sampling(), keep)
    assert answer.text == "<think>\nHm.\n</think>\n\nYes." and answer.finished
    assert pieces[False].endswith("\n\nYes.") and pieces[True].endswith("Hm.\n</think>")
    told = {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}
    assert answer.message == told
    talk = Conversation("", [Turn("Hello?", [answer])])
    assert talk.messages(0)[-1] == told
    # and so it stands in the next prompt as it was written
    _, text, _ = voice.prompt((*talk.messages(0), *HELLO), 8)
    assert f"### Assistant:\n{answer.text}{making.END}" in text


@pytest.mark.parametrize("text", ["Yes.", "<think>\nHm", "<think>\nHm.\n</think>\n\n"])
def test_an_answer_without_thinking_or_without_its_end_is_history_as_it_is(
    voice: Voice, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    scripted(monkeypatch, voice, text)
    answer = voice.answer(HELLO, Sampling(), ignore)
    assert (answer.text, answer.message) == (text, None)
    talk = Conversation("", [Turn("Hello?", [answer])])
    assert talk.messages(0)[-1] == {"role": "assistant", "content": text}


# ---------------------------------------------------------------------------------------- positions


def test_the_oldest_turns_go_where_there_is_no_room(voice: Voice) -> None:
    """A quarter of the 256 positions is left for the answer; the system prompt stays, and so does
    the last question.
    """
    ids, text, forgotten = voice.prompt(LONG, 512)
    assert len(ids) <= 256 - 64 and 0 < forgotten < 8
    assert (
        text.startswith(f"### System:\nBe kind.\n\n### User:\nuser {forgotten}\n\n")
        and "Hello?" in text
    )
    more = voice.chat.prompt(Example("", (LONG[0], *LONG[2 * forgotten - 1 :])))[0]
    assert len(voice.encoder.prompts([more], [False])[0]) > 256 - 64  # one turn more would not fit
    answer = voice.answer(LONG, Sampling(512, seed=2), ignore)
    assert answer.forgotten == forgotten and (answer.finished or answer.tokens == 256 - len(ids))
    assert voice.prompt(LONG, 3)[2] < forgotten  # a short answer needs less room


def test_a_question_that_is_too_long_is_an_error(voice: Voice) -> None:
    with pytest.raises(
        DataError,
        match=r"the question alone has 326 tokens in the chat template, and .* only 256 positions",
    ):
        voice.prompt(({"role": "user", "content": "x" * 299},), 8)


# ------------------------------------------------------------------------------------------ folders


def test_the_folder_of_a_run_stands_for_its_model(base: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    with pytest.raises(ModelError, match="holds a run without a model"):
        model_folder(str(run))
    (run / "model").symlink_to(base)
    assert model_folder(str(run)) == str(run / "model")
    assert model_folder(str(run / "model")) == str(run / "model")
    assert model_folder("some/hub-id") == "some/hub-id"


def test_a_default_template_is_told_once(voice: Voice) -> None:
    assert len([note for note in voice.notes if "has no chat template" in note]) == 1
