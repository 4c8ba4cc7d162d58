"""`posttrain sample-pairs` end to end: on the embedded model with questions of its curriculum, and
on a tiny random one.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import posttrain
from posttrain.assets import curriculum
from posttrain.cli.main import main
from posttrain.core.events import Event, Progress
from posttrain.core.files import sha256_file
from posttrain.core.journal import Journal
from posttrain.data.formats import Format
from posttrain.data.rows import Row
from posttrain.evals.records import Record, read_records
from posttrain.pipeline.run import run_recipe
from posttrain.scoring.score import Response, Score
from posttrain.scoring.scorers import SCORERS
from posttrain.scoring.verifiers import same_text
from posttrain.stages import folders, sample_pairs
from tests import making
from tests.engine.lives import die, live, wait

PROMPTS = [{"prompt": f"say {i} ", "answer": "w"} for i in range(7)]
FILES = ("samples.jsonl", "pairs.jsonl", "best.jsonl", "summary.json")
Call = Callable[..., tuple[int, str, str]]


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = making.model(tmp_path_factory.mktemp("tiny") / "model")
    making.write(folder.parent / "prompts.jsonl", PROMPTS)
    return folder


@pytest.fixture
def call(tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Call:
    """Runs the command; exit code, standard output, standard error."""

    def run(
        *more: str | Path, data: Path = tiny.parent / "prompts.jsonl", scorer: str = "longest"
    ) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(
            [str(a) for a in command(tiny, data, tmp_path / "run", "--scorer", scorer, *more)]
        )
        said = capfd.readouterr()
        return code, said.out, said.err

    return run


def command(model: Path | str, data: Path, out: Path, *more: str | Path) -> list[str]:
    return [
        str(a)
        for a in (
            "sample-pairs",
            "--model",
            model,
            "--data",
            data,
            "--out",
            out,
            "--n",
            "4",
            "--max-tokens",
            "6",
            "--batch-size",
            "3",
            "--device",
            "cpu",
            "--unfinished",
            "keep",
            *more,
        )
    ]


# ------------------------------------------------------------------------------- the embedded model


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Questions whose answers the embedded model knows in other words, as plain text; and what was
    made of them.
    """
    folder = tmp_path_factory.mktemp("asked")
    levels = {1: 1}
    found = curriculum.prompts(24, "train", 0, levels=levels)
    making.write(
        folder / "prompts.jsonl",
        [
            {"prompt": f"Q: {one['prompt'][0]['content']}\nA:", "answer": one["answer"]}
            for one in found
        ],
    )
    outcome = posttrain.sample_pairs(
        model="embedded",
        data=folder / "prompts.jsonl",
        scorer="contains",
        n=8,
        max_tokens=8,
        at_least=1,
        device="cpu",
        prompt_template="{prompt}",
        out=folder / "run",
        unfinished="keep",
        quiet=True,
    )
    assert outcome.outputs["pairs"] == folder / "run" / "pairs.jsonl"
    return folder, outcome.folder


def test_what_is_written(asked: tuple[Path, Path]) -> None:
    given, run = rows(asked[0] / "prompts.jsonl"), asked[1]
    samples, pairs, best, summary = (
        read_records(run / "samples.jsonl"),
        rows(run / "pairs.jsonl"),
        rows(run / "best.jsonl"),
        json.loads((run / "summary.json").read_text()),
    )
    assert sorted(p.name for p in run.iterdir()) == [
        ".lock",
        "best.jsonl",
        "manifest.json",
        "pairs.jsonl",
        "run.json",
        "samples.jsonl",
        "summary.json",
    ]
    assert [(one.meta["prompt"], one.meta["sample"]) for one in samples] == [
        (i, j) for i in range(24) for j in range(8)
    ]
    for one in samples:
        number = one.meta["prompt"]
        (score,) = SCORERS["contains"]([Response("", one.output, given[number])])
        assert one.values["score"] == score.value
        assert one.meta["where"] == f"{asked[0]}/prompts.jsonl:{number + 1}"
        assert one.item == f"{one.meta['where']}#{one.meta['sample']}"
        assert 1 <= one.value("tokens") <= 8 and one.value("logprob") < 0
        assert one.meta["finished"] or one.value("tokens") == 8
    assert len({one.cluster for one in samples}) == len({one["prompt"] for one in given})
    right = [[one.value("score") for one in samples if one.meta["prompt"] == i] for i in range(24)]
    able = [i for i in range(24) if sum(right[i]) > 0]
    assert len(able) > 3 and summary["mean_score"]["mean"] == pytest.approx(
        sum(map(sum, right)) / 192
    )
    assert (
        summary["pass_at"]["8"]["mean"]
        == summary["best_of_n"]["score"]["mean"]
        == pytest.approx(len(able) / 24)
    )
    assert summary["pass_at"]["1"]["mean"] == pytest.approx(summary["mean_score"]["mean"])
    assert [one["prompt"] for one in best] == [given[i]["prompt"] for i in able]
    assert summary["pairs"] == len(pairs) == sum(0 < sum(some) < 8 for some in right)
    for one in pairs:
        assert set(one) == {
            "prompt",
            "chosen",
            "rejected",
            "margin",
            "chosen_score",
            "rejected_score",
            "where",
        }
        assert (one["chosen_score"], one["rejected_score"], one["margin"]) == (1, 0, 1)
        example = Format().read(Row(one, "here"))
        assert (example.prompt, example.answers, example.margin) == (
            one["prompt"],
            (one["chosen"], one["rejected"]),
            1,
        )


def test_the_pairs_are_what_a_model_can_learn_from(
    asked: tuple[Path, Path], tmp_path: Path
) -> None:
    """The margin of rewards grows on the pairs that the model itself made."""
    outcome = posttrain.preference(
        model="embedded",
        data=asked[1] / "pairs.jsonl",
        prompt_template="{prompt}",
        steps=4,
        batch_size=4,
        learning_rate=1e-4,
        device="cpu",
        out=tmp_path / "dpo",
        quiet=True,
    )
    assert (
        outcome.summary["rejected"] == 0
        and outcome.summary["last_steps"]["rewards/margins"] > 0.005
    )


# ----------------------------------------------------------------------------------- the same files


def files(run: Path) -> dict[str, str]:
    return {name: sha256_file(run / name) for name in FILES if (run / name).is_file()}


def test_another_seed_and_other_chunks(tiny: Path, call: Call, tmp_path: Path) -> None:
    """What a prompt is answered does not depend on what is sampled beside it, nor on how many
    others there are.
    """
    assert call("--at-least", "0")[0] == 0
    first = read_records(tmp_path / "run" / "samples.jsonl")
    for number, (batch, prompts) in enumerate(((7, 7), (1, 7), (3, 4))):
        data = Path(f"{tiny.parent}/prompts.jsonl,limit={prompts}")
        out = tmp_path / str(number)
        assert (
            main(
                command(
                    tiny, data, out, "--scorer", "longest", "--batch-size", str(batch), "--quiet"
                )
            )
            == 0
        )
        again = read_records(out / "samples.jsonl")
        assert [_but(one) for one in again] == [_but(one) for one in first[: 4 * prompts]]
        assert [one.value("logprob") for one in again] == pytest.approx(
            [one.value("logprob") for one in first[: 4 * prompts]], abs=1e-4
        )
    data = tiny.parent / "prompts.jsonl"
    assert (
        main(
            command(tiny, data, tmp_path / "seed", "--scorer", "longest", "--seed", "1", "--quiet")
        )
        == 0
    )
    other = read_records(tmp_path / "seed" / "samples.jsonl")
    assert sum(a.output == b.output for a, b in zip(first, other, strict=True)) < 3
    assert len({one.output for one in first}) > 20


def _but(one: Record) -> Record:
    """Without the log-probability, whose last bits depend on what is sampled beside it."""
    values = {key: value for key, value in one.values.items() if key != "logprob"}
    return replace(one, values=values)


def test_killed_and_run_again_it_ends_with_the_same_files(
    tiny: Path, call: Call, tmp_path: Path
) -> None:
    """Killed before each chunk is written, and before each of the results: every life goes on where
    the last one died.
    """
    assert call("--at-least", "1")[0] == 0
    expected = files(tmp_path / "run")
    assert set(expected) == set(FILES)
    out = tmp_path / "killed"
    argv = command(
        tiny, tiny.parent / "prompts.jsonl", out, "--scorer", "longest", "--at-least", "1"
    )
    sampled = []
    for life in range(7):

        def prepare(life: int = life) -> None:
            append, whole = Journal.append, sample_pairs._whole

            def write(self: Journal, records: Any) -> None:
                first = records[0]["meta"]["prompt"]
                if life < 3 and first == 3 * life:
                    die()
                with open(tmp_path / "sampled", "a") as file:
                    file.write(f"{life} {first}\n")
                append(self, records)

            def results(path: Path) -> Any:
                return (
                    die()
                    if 3 <= life < 6 and path.name == sample_pairs.FILES[life - 3]
                    else whole(path)
                )

            Journal.append, sample_pairs._whole = write, results  # type: ignore[method-assign]
            if life == 6:
                folders.write_json = lambda path, value: die()

        code = wait(live(argv, prepare, tmp_path / "log"))
        assert code == -9, (tmp_path / "log").read_text()
        assert not (out / "summary.json").exists()
        lines = (out / "chunks" / "records.jsonl").read_text().split("\n")
        sampled.append(sum('"record"' in line for line in lines))
    assert sampled == [0, 1, 2, 3, 3, 3, 3]
    assert (tmp_path / "sampled").read_text().split() == ["1", "0", "2", "3", "3", "6"]
    assert wait(live(argv, None, tmp_path / "log")) == 0
    assert files(out) == expected
    assert not (out / "chunks").exists()


def test_done_is_found_and_what_is_changed_is_made_again(call: Call, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert call()[0] == 0
    made = files(run)
    code, out, err = call()
    assert code == 0 and "nothing to do" in err and f"{made and run}/pairs.jsonl" in out
    (run / "pairs.jsonl").write_text("{}\n")
    code, _, err = call()
    assert code == 0 and "pairs.jsonl was cut: 3 of " in err and files(run) == made
    code, _, err = call("--n", "5")
    assert code == 2 and "holds another run; different: n was 4, is 5" in err and files(run) == made
    shutil.rmtree(run)
    run.mkdir()
    (run / "pairs.jsonl").write_text("mine\n")
    code, _, err = call()
    assert (
        code == 2
        and "holds pairs.jsonl, which no run of ours wrote" in err
        and (run / "pairs.jsonl").read_text() == "mine\n"
    )


# ------------------------------------------------------------------------------------------ prompts


def test_every_shape_of_row(tmp_path: Path) -> None:
    tiny = making.model(tmp_path / "model", positions=256)
    question, answer = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}
    system = {"role": "system", "content": "Be brief."}
    shapes: list[tuple[dict[str, Any], Any, str | None]] = [
        ({"prompt": "2+2?", "answer": "4"}, "2+2?", "4"),
        ({"prompt": "2+2?", "completion": "4"}, "2+2?", "4"),
        ({"prompt": [system, question], "completion": [answer]}, [system, question], "4"),
        (
            {"messages": [system, question, answer, question, answer]},
            [system, question, answer, question],
            "4",
        ),
        ({"prompt": [question], "chosen": "4", "rejected": "5"}, [question], None),
        ({"prompt": "2+2?", "completion": "4", "label": True}, "2+2?", "4"),
        ({"prompt": "2+2?", "completion": "5", "label": False}, "2+2?", None),
        (
            {"prompt": "2+2?", "completions": ["2 and 2", "5"], "labels": [True, False]},
            "2+2?",
            None,
        ),
    ]
    for i, (row, prompt, wanted) in enumerate(shapes):
        out = tmp_path / str(i)
        making.write(tmp_path / f"{i}.jsonl", [row])
        outcome = posttrain.sample_pairs(
            model=tiny,
            data=tmp_path / f"{i}.jsonl",
            scorer="shortest",
            n=2,
            max_tokens=6,
            at_least=-99,
            device="cpu",
            unfinished="keep",
            out=out,
            quiet=True,
        )
        assert rows(outcome.folder / "best.jsonl")[0]["prompt"] == prompt
        judged = tmp_path / f"judged-{i}"
        if wanted is None:  # refused before anything ran
            assert (
                main(command(tiny, tmp_path / f"{i}.jsonl", judged, "--scorer", "exact", "--quiet"))
                == 2
            )
            assert not judged.exists()
        else:
            assert (
                main(
                    command(
                        tiny,
                        tmp_path / f"{i}.jsonl",
                        judged,
                        "--scorer",
                        "exact",
                        "--at-least",
                        "0",
                        "--quiet",
                    )
                )
                == 0
            )
            records = read_records(judged / "samples.jsonl")
            assert [one.values["score"] for one in records] == [
                float(same_text(one.output, wanted)) for one in records
            ]


def test_rows_that_cannot_be_asked(call: Call, tmp_path: Path) -> None:
    wrong = [{"prompt": " "}, {"prompt": "x" * 90}, {"text": "no prompt"}]
    data = making.write(tmp_path / "a.jsonl", [PROMPTS[0], *wrong, PROMPTS[1]])
    code, _, err = call(data=data)
    assert (
        code == 2
        and f"{data}:2: the row has no prompt to answer" in err
        and "--on-bad-row reject" in err
    )
    assert not (tmp_path / "run").exists()
    code, _, err = call("--on-bad-row", "reject", data=data)
    assert code == 0, err
    run = tmp_path / "run"
    assert [(one["where"][-2:], one["what"][:40]) for one in rows(run / "rejects.jsonl")] == [
        (":2", "the row has no prompt to answer"),
        (":4", "this row is text; the source began as pr"),
        (":3", "the prompt has 117 tokens, and beside --"),
    ]
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["rows"], summary["rejected"], summary["prompts"]) == (5, 3, 2)


@pytest.mark.parametrize(
    ("more", "scorer", "what"),
    [
        (
            (),
            "exakt",
            (
                "there is no scorer 'exakt'\ncure:  did you mean 'exact'?; or reward:FOLDER, or "
                "FILE.py:FUNCTION"
            ),
        ),
        ((), "", "answers need something that scores them"),
        (("--reward-model", "somewhere"), "exact", "answers need something that scores them"),
        (("--n", "1"), "exact", "n = '1': Input should be greater than or equal to 2"),
        (("--pairs", "bestworst"), "exact", "did you mean 'best-worst'?"),
        (("--format", "preference"), "exact", "format preference needs the column 'chosen'"),
        (("--max-tokens", "64"), "longest", "and beside --max-tokens 0 fit"),
        (
            ("--min-margin", "100"),
            "longest",
            "of 7 prompts none gives a pair; margin below --min-margin: ",
        ),
        (
            ("--unfinished", "reject"),
            "longest",
            "of 7 prompts none gives a pair; the better one is unfinished: ",
        ),
        (("--unfinished", "reject"), "longest", "with a higher --max-tokens, or --unfinished keep"),
        (("--reward-modle", "x"), "exact", "did you mean '--reward-model'?"),
    ],
)
def test_what_is_wrong_is_said_with_a_cure(
    call: Call, more: tuple[str, ...], scorer: str, what: str
) -> None:
    code, _, err = call(*more, scorer=scorer)
    assert code == 2 and what in err and "cure:" in err


def test_a_scorer_that_cannot_judge_most_rows_is_refused(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = making.write(
        tmp_path / "a.jsonl",
        [{"prompt": f"{i} ", **({"answer": "w"} if i < 3 else {})} for i in range(7)],
    )
    code, _, err = call(data=data, scorer="exact")
    assert (
        code == 2 and "exact cannot judge 4 of 7 prompts" in err and not (tmp_path / "run").exists()
    )
    assert (
        "exact needs the wanted answer: a column completion or answer (--data "
        "FILE,completion=COLUMN)" in err
    )
    # half of them is not most; those without a score are counted
    monkeypatch.setitem(
        SCORERS,
        "longest",
        lambda responses: [
            Score(float(sum(one.completion.encode())) if one.prompt == "1 " else None)
            for one in responses
        ],
    )
    making.write(data, [{"prompt": f"{i} "} for i in range(2)])
    code, out, err = call(data=data)
    assert code == 0, err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["left_out"]["unscored"] == 4 and summary["prompts_without"] == {
        "no answer has a score": 1
    }
    samples = read_records(tmp_path / "run" / "samples.jsonl")
    assert [one.values["score"] is None for one in samples] == [True] * 4 + [False] * 4
    assert [one.meta.get("why") for one in samples] == ["the scorer gave none"] * 4 + [None] * 4
    assert "unscored" in out and summary["mean_score"]["n"] == 4


def test_a_reward_model_scores(tiny: Path, tmp_path: Path) -> None:
    making.write(
        tmp_path / "judged.jsonl", [{"prompt": "say", "chosen": "yes", "rejected": "no"}] * 4
    )
    judge = posttrain.reward_model(
        model="embedded",
        data=tmp_path / "judged.jsonl",
        steps=1,
        batch_size=2,
        device="cpu",
        out=tmp_path / "rm",
        quiet=True,
    ).model
    outcome = posttrain.sample_pairs(
        model=tiny,
        data=tiny.parent / "prompts.jsonl",
        reward_model=judge,
        n=3,
        max_tokens=6,
        device="cpu",
        unfinished="keep",
        out=tmp_path / "pairs",
        quiet=True,
    )
    samples = read_records(outcome.folder / "samples.jsonl")
    responses = [Response(PROMPTS[one.meta["prompt"]]["prompt"], one.output) for one in samples]
    scores = posttrain.open_scorer(f"reward:{judge}", "cpu")(responses)
    assert [one.values["score"] for one in samples] == pytest.approx(
        [score.value for score in scores], abs=1e-5
    )
    assert len({one.value("score") for one in samples}) > 15 and outcome.summary["pass_at"] is None
    assert set(outcome.summary["models_sha256"]) == {"model", "reward_model"}


TOY = Path(__file__).parent / "scoring" / "toy_scorer.py"


def test_a_scorer_of_ones_own(call: Call, tmp_path: Path) -> None:
    """A function with TRL's signature; another file of that name is another run."""
    toy = tmp_path / "mine.py"
    toy.write_text("def size(completions, **columns):\n    return [len(c) for c in completions]\n")
    code, _, err = call(scorer=f"{toy}:size")
    assert code == 0, err
    samples = read_records(tmp_path / "run" / "samples.jsonl")
    assert [one.value("score") for one in samples] == [len(one.output) for one in samples]
    toy.write_text(toy.read_text().replace("len(c)", "-len(c)"))
    code, _, err = call(scorer=f"{toy}:size")
    assert code == 2 and "files_sha256" in err


@pytest.mark.parametrize("name", ["broken", "hanging"])
def test_a_scorer_that_fails_ends_the_run_with_its_reason(
    call: Call, tmp_path: Path, name: str
) -> None:
    """At the first batch, whose answers are not kept, so that the same command goes on."""
    code, _, err = call(scorer=f"{TOY}:{name}")
    reason = {"broken": "KeyError: 'no such thing'", "hanging": "no score within 0.1 seconds"}
    assert code == 2 and reason[name] in err and "failed on all of 12 responses" in err
    (journal,) = (tmp_path / "run").glob("chunks/*.jsonl")
    assert "value" not in journal.read_text()  # its key alone: no answer was kept


# -------------------------------------------------------------------------------------- in a recipe


def test_sft_then_pairs_then_preference(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """On the embedded model: what the stages hand over are rows, whose stage is part of what the
    next one is made of.
    """
    making.write(tmp_path / "train.jsonl", curriculum.demonstrations(16, "train", 0))
    making.write(tmp_path / "prompts.jsonl", curriculum.prompts(6, "train", 1))
    recipe: dict[str, Any] = {
        "name": "on-policy",
        "stages": {
            "sft": {
                "model": "embedded",
                "data": f"{tmp_path}/train.jsonl",
                "steps": 2,
                "learning_rate": 5e-4,
                "device": "cpu",
            },
            "mine": {
                "stage": "sample_pairs",
                "model": "sft",
                "data": f"{tmp_path}/prompts.jsonl",
                "scorer": "longest",
                "n": 3,
                "max_tokens": 6,
                "unfinished": "keep",
                "device": "cpu",
            },
            "dpo": {
                "stage": "preference",
                "model": "sft",
                "data": "mine,limit=4",
                "validation": ["mine"],
                "steps": 1,
                "device": "cpu",
            },
        },
    }
    found = run_recipe(recipe, out=tmp_path / "run")
    about = {
        name: json.loads((folder / "artifact.json").read_text())
        for name, folder in found.artifacts.items()
    }
    assert about["dpo"]["parents"] == {"model": "sft", "data": "mine", "validation": "mine"}
    assert found.summary["stages"]["dpo"]["parents"] == about["dpo"]["parents"]
    assert (
        about["dpo"]["inputs"]["rows"] == {"mine": about["mine"]["digest"]}
        and about["dpo"]["inputs"]["data"] == {}
    )
    told = json.loads((found.artifacts["dpo"] / "run.json").read_text())["identity"]
    made = found.artifacts["mine"] / "pairs.jsonl"
    assert told["data_sha256"]["data.jsonl"] == sha256_file(made)
    assert found.summary["stages"]["dpo"]["result"]["rows"] == 4
    capfd.readouterr()

    def states(**changes: Any) -> list[tuple[str, str]]:
        stages = {
            name: {**body, **changes.get(name, {})} for name, body in recipe["stages"].items()
        }
        (tmp_path / "on-policy.yaml").write_text(
            json.dumps({"name": "on-policy", "stages": stages})
        )
        assert (
            main(
                ["plan", str(tmp_path / "on-policy.yaml"), "--out", str(tmp_path / "run"), "--json"]
            )
            == 0
        )
        return [(one["state"], one["why"]) for one in json.loads(capfd.readouterr().out)]

    assert states() == [("made", "")] * 3
    assert states(mine={"seed": 1}) == [
        ("made", ""),
        ("new", "seed was 0, is 1"),
        ("new", "mine changed"),
    ]
    assert main(["plan", str(tmp_path / "on-policy.yaml"), "--out", str(tmp_path / "run")]) == 0
    assert "sft, mine" in capfd.readouterr().out
    assert main(["show", str(tmp_path / "run" / "dpo")]) == 0
    assert re.search(rf"rows +{about['mine']['digest'][:12]}  mine", capfd.readouterr().out)
    (found.artifacts["mine"] / "pairs.jsonl").unlink()
    assert [state for state, _ in states()] == ["made", "damaged", "made"]


def test_progress_counts_prompts(tiny: Path, tmp_path: Path) -> None:
    """Four prompts in batches of three are four, not six."""
    prompts = making.write(tmp_path / "four.jsonl", [{"prompt": f"{i}+1="} for i in range(4)])
    seen: list[tuple[int, int]] = []

    def sink(event: Event) -> None:
        if isinstance(event, Progress) and event.label == "sampling":
            seen.append((event.done, event.total))

    posttrain.sample_pairs(
        model=tiny,
        data=prompts,
        out=tmp_path / "out",
        scorer="longest",
        n=3,
        max_tokens=6,
        batch_size=3,
        unfinished="keep",
        device="cpu",
        quiet=True,
        sinks=[sink],
    )
    assert seen[-1] == (4, 4)
