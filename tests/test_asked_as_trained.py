"""A model is asked as it was trained, by every command, and its answer is judged without its
thinking: tiny models that have learned four capitals by heart.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import posttrain
from posttrain.cli.main import main
from posttrain.data.formats import Format
from posttrain.data.prompting import FILE, Prompting
from posttrain.data.prompts import Prompt
from posttrain.data.rows import Row
from posttrain.engine.load import digest
from posttrain.engine.sampler import Sampling
from posttrain.evals.pair_rows import Group
from posttrain.evals.records import Record, read_records
from posttrain.scoring.ranking import Rules
from posttrain.serve.voice import Voice
from tests import making

CAPITALS = {"Peru": "Lima", "Japan": "Tokyo", "Kenya": "Nairobi", "Norway": "Oslo"}
ROWS = [{"prompt": f"Capital of {a}?", "completion": b} for a, b in CAPITALS.items()]
FAST = {"steps": 130, "batch_size": 4, "learning_rate": 1e-2, "schedule": "constant"}
EITHER: dict[str, Any] = {"device": "cpu", "quiet": True}


def trained(folder: Path, data: Path, **settings: Any) -> Path:
    base = making.model(folder / "base", positions=128)
    words = AutoTokenizer.from_pretrained(base)
    words.chat_template = making.THINKING
    words.save_pretrained(base)
    run = posttrain.sft(model=base, data=data, out=folder / "run", **FAST, **settings, **EITHER)
    return run.model


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return making.write(tmp_path_factory.mktemp("data") / "capitals.jsonl", ROWS)


@pytest.fixture(scope="module")
def direct(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A model that was asked without thinking."""
    kwargs = {"enable_thinking": False}
    return trained(tmp_path_factory.mktemp("direct"), data, template_kwargs=kwargs)


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A model that begins its answers with an empty thinking."""
    return trained(tmp_path_factory.mktemp("thinking"), data)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A model that was asked in plain text."""
    template = "Q: {prompt}\nA:"
    return trained(tmp_path_factory.mktemp("plain"), data, prompt_template=template)


def right(model: Path, data: Path, out: Path, **settings: Any) -> float:
    """The share of answers that are right."""
    found = posttrain.evaluate(
        model=model, exact=data, max_tokens=40, out=out, **settings, **EITHER
    )
    return found.summary["tasks"]["exact-capitals"]["metrics"]["correct"]["mean"]


def test_the_answer_is_judged_and_not_its_thinking(
    thinking: Path, data: Path, tmp_path: Path
) -> None:
    assert not (thinking / FILE).exists()  # nothing is out of the ordinary
    run = posttrain.evaluate(
        model=thinking,
        exact=data,
        win=data,
        scorer="exact",
        max_tokens=40,
        out=tmp_path / "a",
        **EITHER,
    )
    tasks = run.summary["tasks"]
    assert tasks["exact-capitals"]["metrics"]["correct"]["mean"] == 1
    assert tasks["win-capitals"]["metrics"]["score"]["mean"] == 1
    assert [record.output for record in read_records(run.folder / "win-capitals.jsonl")] == [
        *CAPITALS.values()
    ]
    pairs = posttrain.sample_pairs(
        model=thinking, data=data, scorer="exact", n=2, temperature=0.01, max_tokens=40, at_least=1,
        out=tmp_path / "b", **EITHER,
    )  # fmt: skip
    assert pairs.summary["mean_score"]["mean"] == 1
    # what is handed on is trained as it was written: the template adds the empty thinking
    best = [json.loads(line) for line in pairs.outputs["best"].read_text().splitlines()]
    assert [row["completion"] for row in best] == [*CAPITALS.values()]
    assert right(thinking, data, tmp_path / "c", judge_thinking=True) == 0


def test_a_model_is_asked_as_it_was_trained(
    direct: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert json.loads((direct / FILE).read_text()) == {
        "template_kwargs": {"enable_thinking": False}
    }
    AutoModelForCausalLM.from_pretrained(direct)
    argv = ["eval", "--model", direct, "--exact", data, "--max-tokens", "40", "--device", "cpu"]
    assert main([*map(str, argv), "--out", str(tmp_path / "a")]) == 0
    assert "prompts   model: as trained: enable_thinking=false" in capfd.readouterr().err
    found = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert found["tasks"]["exact-capitals"]["metrics"]["correct"]["mean"] == 1
    assert found["prompting"]["model"]["template_kwargs"] == {"enable_thinking": False}
    argv += ["--template-kwargs", "enable_thinking=true", "--out", tmp_path / "b"]
    assert main([*map(str, argv)]) == 0
    said = "model: enable_thinking=true (trained with enable_thinking=false)"
    assert said in capfd.readouterr().err
    found = json.loads((tmp_path / "b" / "summary.json").read_text())
    assert found["prompting"]["model"]["template_kwargs"] == {"enable_thinking": True}
    pairs = posttrain.sample_pairs(
        model=direct, data=data, scorer="exact", n=2, temperature=0.01, max_tokens=40, at_least=1,
        out=tmp_path / "c", **EITHER,
    )  # fmt: skip
    assert pairs.summary["mean_score"]["mean"] == 1
    voice = Voice.load(str(direct), device="cpu")
    question = ({"role": "user", "content": "Capital of Kenya?"},)
    assert voice.answer(question, Sampling(40, temperature=0), lambda *_: None).text == "Nairobi"


def test_it_survives_the_next_stage_and_adapters(direct: Path, data: Path, tmp_path: Path) -> None:
    known = Prompting.read(direct)
    more: dict[str, Any] = {"model": direct, "steps": 1, "learning_rate": 1e-9, **EITHER}
    adapted = posttrain.sft(data=data, lora=True, out=tmp_path / "lora", **more)
    assert Prompting.read(adapted.model) == known
    text = making.write(tmp_path / "text.jsonl", [{"text": "Lima is in Peru."}])
    assert Prompting.read(posttrain.adapt(data=text, out=tmp_path / "adapt", **more).model) == known
    rows = making.write(
        tmp_path / "pairs.jsonl", [{**ROWS[0], "chosen": "Lima", "rejected": "Rome"}]
    )
    pairs = posttrain.preference(data=rows, out=tmp_path / "pairs", **more)
    assert Prompting.read(pairs.model) == known
    # the prompt that preference training rendered has what the model remembers
    judge = posttrain.reward_model(data=rows, out=tmp_path / "judge", **more).model
    assert Prompting.read(judge) == known
    scorer = posttrain.open_scorer(f"reward:{judge}", "cpu")
    assert scorer.chat.template.kwargs == {"enable_thinking": False}  # type: ignore[attr-defined]
    given = posttrain.sft(
        data=data, template_kwargs={"enable_thinking": True}, out=tmp_path / "given", **more
    )
    assert Prompting.read(given.model).template_kwargs == {"enable_thinking": True}


def test_rows_that_share_a_system_prompt_teach_it(direct: Path, tmp_path: Path) -> None:
    rows = [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["completion"]},
            ],
            "chat_template_kwargs": {"style": "dry"},
        }
        for row in ROWS
    ]
    shared = making.write(tmp_path / "shared.jsonl", rows)
    more: dict[str, Any] = {"model": direct, "steps": 1, **EITHER}
    model = posttrain.sft(data=shared, out=tmp_path / "a", **more).model
    assert Prompting.read(model) == Prompting(
        template_kwargs={"enable_thinking": False, "style": "dry"}, system="Be brief."
    )
    mixed = making.write(tmp_path / "mixed.jsonl", [*rows, {"messages": rows[0]["messages"][1:]}])
    model = posttrain.sft(data=mixed, out=tmp_path / "b", **more).model
    assert Prompting.read(model) == Prompting.read(direct)


def test_another_way_to_ask_is_another_model(direct: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(direct, tmp_path / "copy")
    assert digest(copy) == digest(direct)
    Prompting(system="Be kind.").write(copy)
    assert digest(copy) != digest(direct)


def test_plain_text_is_remembered_and_answers_end_at_a_blank_line(
    plain: Path, data: Path, tmp_path: Path
) -> None:
    assert json.loads((plain / FILE).read_text()) == {"prompt_template": "Q: {prompt}\nA:"}
    assert right(plain, data, tmp_path / "a") == 1
    assert right(plain, data, tmp_path / "b", prompt_template="") == 0  # the chat template
    # a stop text is honoured wherever the model writes, and is no part of the answer
    run = posttrain.evaluate(model=plain, exact=data, stop="i", out=tmp_path / "c", **EITHER)
    records = read_records(run.folder / "exact-capitals.jsonl")
    outputs = [record.output for record in records]
    assert outputs == ["L", "Tokyo", "Na", "Oslo"] and records[0].value("tokens") == 2
    samples = posttrain.sample_pairs(
        model=plain, data=data, scorer="longest", n=2, temperature=0.01, stop="i", at_least=0,
        out=tmp_path / "d", **EITHER,
    )  # fmt: skip
    assert {record.output for record in read_records(samples.folder / "samples.jsonl")} == {
        *outputs
    }
    voice = Voice.load(str(plain), device="cpu")
    voice.chat.stops = ("rob", "zz")
    pieces: list[str] = []
    history = tuple({"role": role, "content": "Hi."} for role in ("user", "assistant"))
    question = (*history, {"role": "user", "content": "Capital of Kenya?"})
    answer = voice.answer(
        question, Sampling(40, temperature=0), lambda piece, _: pieces.append(piece)
    )
    assert answer.text == "".join(pieces) == "Nai" and answer.finished


@pytest.mark.parametrize("apart", [False, True])
def test_given_answers_are_judged_without_their_thinking(tmp_path: Path, apart: bool) -> None:
    """Inline or in a field of its own; the option judges all of it."""

    def told(thinking: str, answer: str) -> Any:
        if not apart:
            return f"<think>\n{thinking}\n</think>\n\n{answer}"
        return [{"role": "assistant", "content": answer, "reasoning_content": thinking}]

    row = {"prompt": "Capital of Peru?", "answer": "Lima"}
    row |= {"chosen": told("Rome?", "Lima"), "rejected": told("Lima? No, no, no.", "Rome")}
    rows = making.write(tmp_path / "rows.jsonl", [row])
    accuracy = {}
    for scorer, whole in (("exact", False), ("exact", True), ("longest", False), ("longest", True)):
        run = posttrain.judge(
            data=rows,
            scorer=scorer,
            judge_thinking=whole,
            out=tmp_path / f"{scorer}{whole}",
            **EITHER,
        )
        accuracy[scorer, whole] = run.summary["results"]["rows"]["accuracy"]["mean"]
    assert accuracy == {
        ("exact", False): 1,
        ("exact", True): 0.5,  # neither is just “Lima”
        ("longest", False): 0.5,
        ("longest", True): 0,
    }


def test_pairs_keep_thinking_apart() -> None:
    """Where one of two answers has thinking both are messages: a row has its sides in one form."""
    prompt = Prompt("a:1", "Q", [1], {}, {})
    values = [{"score": score, "tokens": 1} for score in (1.0, 0.0)]
    bare = [
        Record(text, values=v, output=text, meta={"finished": True})
        for text, v in zip("ab", values, strict=True)
    ]
    assert Group.ranked(prompt, bare, Rules()).pairs()[0]["chosen"] == "a"
    thought = replace(bare[1], meta={"finished": True, "thinking": "Hm."})
    group = Group.ranked(prompt, [bare[0], thought], Rules())
    (pair,) = group.pairs()
    assert pair["chosen"] == [{"role": "assistant", "content": "a"}]
    assert pair["rejected"] == [{"role": "assistant", "content": "b", "reasoning_content": "Hm."}]
    example = Format().read(Row(pair, "a:1"))
    assert example.prompt == ({"role": "user", "content": "Q"},) and len(example.answers) == 2
    row = group.demonstration(1)
    assert row is not None and row["completion"] == "a"
