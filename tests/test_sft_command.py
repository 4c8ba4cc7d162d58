"""`posttrain sft` end to end, in this process, on a model of thirty thousand parameters; checked
with plain transformers.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats as scipy
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import posttrain
from posttrain.cli.main import main
from posttrain.core.errors import ConfigError
from posttrain.core.files import sha256_file, sha256_json
from posttrain.engine import loop
from posttrain.engine.optimiser import Optimiser
from posttrain.evals import stats
from posttrain.stages import dataset
from tests import making
from tests.children import child

STEP = {
    "step",
    "epoch",
    "loss",
    "learning_rate",
    "grad_norm",
    "tokens",
    "targets",
    "sequences",
    "seconds",
    "tokens_per_second",
    "memory_gib",
}
TRAIN = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(4) for b in range(5)]
HELD = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in (4, 5) for b in range(4)]


@dataclass(frozen=True)
class Bench:
    """A base model, its data, and a way to run the command on them."""

    folder: Path
    capfd: pytest.CaptureFixture[str]

    @property
    def base(self) -> Path:
        return self.folder / "base"

    def sft(
        self, out: Path, *more: str | Path, held: bool = True, data: Path | None = None
    ) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        argv = [
            "sft",
            "--model",
            self.base,
            "--data",
            data or self.folder / "train.jsonl",
            "--out",
            out,
            "--batch-size",
            "20",
            "--steps",
            "6",
            "--learning-rate",
            "0.01",
            "--device",
            "cpu",
            "--prompt-template",
            "{prompt}",
        ]
        argv += ["--validation", self.folder / "held.jsonl"] if held else []
        return self.run(*argv, *more)

    def chat(self, out: Path, base: Path, *more: str | Path) -> tuple[int, str, str]:
        """The same with rows of conversations; the data comes first."""
        return self.run(
            "sft",
            "--model",
            base,
            "--out",
            out,
            "--batch-size",
            "20",
            "--steps",
            "6",
            "--device",
            "cpu",
            "--data",
            *more,
        )

    def run(self, *argv: str | Path) -> tuple[int, str, str]:
        code = main([str(a) for a in argv])
        said = self.capfd.readouterr()
        return code, said.out, said.err


class Stopped(Exception):
    """What ends a run in the middle."""


def stop_before(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let runs end before the step after this one."""
    take = loop.take_step

    def stops(run: Any) -> None:
        if run.step == step:
            raise Stopped
        take(run)

    monkeypatch.setattr(loop, "take_step", stops)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    making.model(folder / "base")
    making.write(folder / "train.jsonl", TRAIN)
    making.write(folder / "held.jsonl", HELD)
    return folder


@pytest.fixture
def bench(folder: Path, capfd: pytest.CaptureFixture[str]) -> Bench:
    return Bench(folder, capfd)


@torch.no_grad()
def logprobs(model: Any, rows: Sequence[dict[str, str]], words: Any) -> list[torch.Tensor]:
    """Log-probabilities of each row's completion and end token: transformers alone, one row at a
    time.
    """
    out = []
    for row in rows:
        start, ids = (
            len(words(row["prompt"])["input_ids"]),
            words(row["prompt"] + row["completion"])["input_ids"],
        )
        ids = torch.tensor([[*ids, words.eos_token_id]])
        scored = (
            model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        )
        out.append(scored[start - 1 :])
    return out


def nll(
    model: Path,
    rows: Sequence[dict[str, str]],
    weigh: Callable[[torch.Tensor], torch.Tensor] = torch.ones_like,
) -> float:
    """Nats a target, over all targets."""
    network, words = (
        AutoModelForCausalLM.from_pretrained(model),
        AutoTokenizer.from_pretrained(model),
    )
    scored = torch.cat(logprobs(network.eval(), rows, words)).double()
    return float(-(weigh(scored) * scored).sum() / len(scored))


def log(run: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The steps and the validations of metrics.jsonl."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [r for r in records if "validation" not in r], [r for r in records if "validation" in r]


def summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


# -------------------------------------------------------------------------------- the whole command


def test_a_run_from_files_to_a_model_that_transformers_loads(bench: Bench, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, out, err = bench.sft(run, "--validate-every", "3")
    assert code == 0, err
    steps, validations = log(run)
    tokens, targets = (
        sum(len(r["prompt"]) * k + len(r["completion"]) + 1 for r in TRAIN) for k in (1, 0)
    )

    assert all(set(r) == STEP for r in steps)
    assert [r["step"] for r in steps] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in validations] == [0, 3, 6]
    assert [(r["tokens"], r["targets"], r["sequences"]) for r in steps] == [
        (tokens, targets, 20)
    ] * 6
    assert [r["epoch"] for r in steps] == [1, 2, 3, 4, 5, 6]
    # one warm-up step at half the peak, then down a straight line
    assert [r["learning_rate"] for r in steps] == pytest.approx(
        [0.005, 0.01, 0.008, 0.006, 0.004, 0.002]
    )
    # the first batch is all the data, before any update: the base model's own loss
    assert steps[0]["loss"] == pytest.approx(nll(bench.base, TRAIN), rel=1e-5)

    found = summary(run)
    assert found["held_out_before"]["loss"] == pytest.approx(nll(bench.base, HELD), rel=1e-5)
    assert found["held_out"]["loss"] == pytest.approx(nll(run / "model", HELD), rel=1e-5)
    assert found["held_out"]["loss"] < found["held_out_before"]["loss"] - 0.5
    assert (
        found["held_out"]["step"]
        == min(validations[1:], key=lambda r: r["validation"]["loss"])["step"]
    )
    assert (found["steps"], found["tokens"], found["targets"]) == (6, 6 * tokens, 6 * targets)
    assert (found["rows"], found["sequences"], found["truncated"], found["dropped"]) == (
        20,
        20,
        0,
        {},
    )
    assert found["learning_rate"] == 0.01
    assert found["sha256"]["model"] == sha256_json(
        {"model.safetensors": sha256_file(run / "model" / "model.safetensors")}
    )
    assert sorted(p.name for p in run.iterdir()) == [
        ".lock",
        "checkpoints",
        "manifest.json",
        "metrics.jsonl",
        "model",
        "run.json",
        "summary.json",
    ]

    before, after = found["held_out_before"]["loss"], found["held_out"]["loss"]
    assert f"{before:.4f}" in out and f"{after:.4f}" in out and f"model    {run / 'model'}\n" in out
    assert (
        "train.jsonl (prompt-completion): 20 rows → 20 sequences" in err
        and "step 6/6" in err
        and "● held-out loss" in err
    )


def test_the_interval_of_held_out_loss(bench: Bench, tmp_path: Path) -> None:
    """Sequences are the units: the delta method's standard error of a ratio of sums, by another
    formula.
    """
    bench.sft(tmp_path / "run", "--steps", "1")
    network, words = (
        AutoModelForCausalLM.from_pretrained(bench.base),
        AutoTokenizer.from_pretrained(bench.base),
    )
    scored = [-x.double() for x in logprobs(network.eval(), HELD, words)]
    s, n = (
        torch.tensor([float(x.sum()) for x in scored]),
        torch.tensor([float(len(x)) for x in scored]),
    )
    residual = s - s.sum() / n.sum() * n
    error = math.sqrt(len(s) * float(residual.var())) / float(n.sum())
    before = summary(tmp_path / "run")["held_out_before"]
    student = scipy.t.ppf(0.975, len(s) - 1)
    assert before["interval"] == pytest.approx(student * error, rel=1e-4)
    assert (before["sequences"], before["targets"]) == (len(HELD), int(n.sum()))


def test_held_out_loss_before_and_after_is_compared_row_by_row(
    bench: Bench, tmp_path: Path
) -> None:
    """Two intervals that overlap say little of a change that all rows share."""
    _, out, err = bench.sft(tmp_path / "run")
    run = tmp_path / "run"
    sums = []
    for model in (bench.base, run / "model"):
        network = AutoModelForCausalLM.from_pretrained(model).eval()
        words = AutoTokenizer.from_pretrained(bench.base)
        sums.append([-float(x.double().sum()) for x in logprobs(network, HELD, words)])
        counts = [len(x) for x in logprobs(network, HELD, words)]
    gaps = [after - before for before, after in zip(*sums, strict=True)]
    expected = stats.ratio(gaps, counts).json()
    found = summary(run)["held_out"]["difference"]["loss"]
    for name in ("mean", "low", "high"):
        assert found[name] == pytest.approx(expected[name], rel=1e-3)
    assert "difference" not in summary(run)["held_out_before"]
    interval = f"{found['mean']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]"
    assert "difference, paired" in out and interval in out
    assert "loss since step 0, paired: " in err


def test_python_and_command_line_are_the_same_run(bench: Bench, tmp_path: Path) -> None:
    bench.sft(tmp_path / "a", held=False)
    outcome = posttrain.sft(
        quiet=True,
        model=bench.base,
        data=bench.folder / "train.jsonl",
        out=tmp_path / "b",
        batch_size=20,
        steps=6,
        learning_rate=0.01,
        device="cpu",
        prompt_template="{prompt}",
    )
    assert bench.capfd.readouterr() == ("", "")
    assert outcome.summary == summary(tmp_path / "b")
    assert outcome.summary["sha256"]["model"] == summary(tmp_path / "a")["sha256"]["model"]
    assert outcome.model == tmp_path / "b" / "model"
    assert outcome.summary["held_out"] is None and outcome.summary["held_out_before"] is None
    with pytest.raises(ConfigError, match="unknown setting 'learning_rat'") as caught:
        posttrain.sft(model=bench.base, data="x.jsonl", out=tmp_path / "c", learning_rat=1)
    assert caught.value.cure == "did you mean 'learning_rate'?"


# --------------------------------------------------------------------------- the same command again


def test_the_same_command_says_finished_and_touches_nothing(bench: Bench, tmp_path: Path) -> None:
    run = tmp_path / "run"
    bench.sft(run)
    before = {
        p: (p.stat().st_mtime_ns, p.stat().st_size)
        for p in run.rglob("*")
        if p.is_file() and p.name != ".lock"
    }
    # how often to save is no part of what a run is
    for more in ([], ["--checkpoint-every", "5", "--checkpoint-keep", "1"]):
        code, out, err = bench.sft(run, *more)
        assert code == 0
        ignored = "; it ignores --checkpoint-every 5, --checkpoint-keep 1" if more else ""
        said = f"finished {run} already holds this run; nothing to do{ignored}"
        assert " ".join(err.split()) == said
        assert f"{summary(run)['held_out']['loss']:.4f}" in out
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in before} == before


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--learning-rate", "0.02"], "optimiser.learning_rate was 0.01, is 0.02"),
        (["--method", "dft"], "method was nll, is dft"),
        (["--lora"], "lora was None, is {"),
    ],
)
def test_another_run_in_the_same_folder_is_refused(
    bench: Bench, tmp_path: Path, more: list[str], said: str
) -> None:
    bench.sft(tmp_path / "run", "--steps", "6")
    code, out, err = bench.sft(tmp_path / "run", *more)
    assert (code, out) == (2, "")
    assert f"holds another run; different: {said}" in err
    assert "cure:  choose another --out" in err


@pytest.mark.parametrize("lora", [[], ["--lora"]])
def test_a_finished_run_goes_on_to_a_longer_one(
    bench: Bench, tmp_path: Path, lora: list[str]
) -> None:
    constant = ["--schedule", "constant", "--checkpoint-every", "4", *lora]
    run, whole = tmp_path / "run", tmp_path / "whole"
    bench.sft(run, *constant, held=False)
    bench.sft(whole, *constant, "--steps", "9", held=False)
    code, _, err = bench.sft(run, *constant, "--steps", "9", held=False)
    assert code == 0
    assert "the run of 6 steps becomes one of 9" in err and "resuming after step 6 of 9" in err
    assert summary(run)["sha256"] == summary(whole)["sha256"] and summary(run)["steps"] == 9
    assert [line["loss"] for line in log(run)[0]] == [line["loss"] for line in log(whole)[0]]
    code, _, err = bench.sft(run, *constant, "--steps", "9", "--verify", held=False)
    assert code == 0 and "nothing to do" in err
    code, _, err = bench.sft(run, *constant, held=False)
    assert code == 2 and "holds a longer run: 9 steps, not 6 steps" in err


def test_a_longer_run_that_is_interrupted_goes_on(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constant = ["--schedule", "constant", "--checkpoint-every", "1"]
    run = tmp_path / "run"
    bench.sft(run, *constant, held=False)
    stop_before(monkeypatch, 8)
    with pytest.raises(Stopped):
        bench.sft(run, *constant, "--steps", "9", held=False)
    monkeypatch.undo()
    assert not (run / "manifest.json").exists() and not (run / "summary.json").exists()
    code, _, err = bench.sft(run, *constant, "--steps", "9", held=False)
    assert code == 0 and "resuming after step 8 of 9" in err


@pytest.mark.parametrize(
    ("began", "now", "why"),
    [
        ([], ["--steps", "7"], "its learning rate (linear) fell to its end"),
        (["--schedule", "constant"], ["--steps", "60"], "--warmup 0.03 is a share of the steps"),
        (["--schedule", "constant"], ["--steps", "7"], "its checkpoints are gone"),
    ],
)
def test_a_finished_run_that_cannot_be_longer_names_two_ways(
    bench: Bench, tmp_path: Path, began: list[str], now: list[str], why: str
) -> None:
    run = tmp_path / "run"
    bench.sft(run, *began, held=False)
    if "gone" in why:
        shutil.rmtree(run / "checkpoints")
    code, _, err = bench.sft(run, *began, *now, held=False)
    err = " ".join(err.split())
    assert code == 2 and f"holds a run of 6 steps, which cannot go on to {now[1]} steps" in err
    assert why in err and f"with {' '.join(now)} --out {run}-longer" in err
    assert f"--model {run}/model --steps {int(now[1]) - 6} --out {run}-more" in err
    code, _, err = bench.sft(run, *began, held=False)  # it is what it was
    assert code == 0 and "nothing to do" in err


def test_changed_data_or_model_is_another_run(bench: Bench, tmp_path: Path) -> None:
    data = making.write(tmp_path / "train.jsonl", TRAIN)
    bench.sft(tmp_path / "run", data=data)
    making.write(data, [*TRAIN[:-1], {"prompt": "3+4=", "completion": "8"}])
    code, _, err = bench.sft(tmp_path / "run", data=data)
    assert (code, "data_sha256.data.jsonl was" in err) == (2, True)
    making.write(data, TRAIN)
    other = making.model(tmp_path / "other", seed=1)
    code, _, err = bench.sft(tmp_path / "run", "--model", other, data=data)
    assert (code, "models_sha256.model was" in err) == (2, True)


# ----------------------------------------------------------------------------- methods and switches


def test_where_the_model_lies_is_not_what_the_run_is(bench: Bench, tmp_path: Path) -> None:
    bench.sft(tmp_path / "run")
    moved = shutil.copytree(bench.base, tmp_path / "elsewhere")
    code, _, err = bench.sft(tmp_path / "run", "--model", moved)
    assert code == 0 and "already holds this run; nothing to do" in err


def test_an_interrupted_run_goes_on_wherever_it_and_its_inputs_are_now(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = ["--checkpoint-every", "2"]
    bench.sft(tmp_path / "whole", *every, held=False)
    stop_before(monkeypatch, 4)
    with pytest.raises(Stopped):
        bench.sft(tmp_path / "runs" / "x", *every, held=False)
    monkeypatch.undo()
    (tmp_path / "other").mkdir()
    shutil.move(tmp_path / "runs", tmp_path / "other" / "moved")
    shutil.copytree(bench.base, tmp_path / "other" / "model")
    shutil.copy(bench.folder / "train.jsonl", tmp_path / "other" / "rows.jsonl")
    monkeypatch.chdir(tmp_path / "other")
    code, _, err = bench.sft(
        Path("moved/../moved/x"), *every, "--model", "./model", held=False, data=Path("rows.jsonl")
    )
    assert code == 0 and "resuming after step 4 of 6" in err
    assert "preparing the rows again" not in err and "demonstrations" not in err  # tokens are found
    run = tmp_path / "other" / "moved" / "x"
    assert summary(run)["sha256"] == summary(tmp_path / "whole")["sha256"]
    code, _, err = bench.sft(run, *every, held=False)  # and at its first inputs again
    assert code == 0 and "nothing to do" in err


@pytest.mark.parametrize("step", [2, 6])
@pytest.mark.parametrize("what", ["", "metrics.jsonl"])
def test_what_is_deleted_during_a_run_is_an_error(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, step: int
) -> None:
    run, take = tmp_path / "run", loop.take_step

    def deletes(state: Any) -> None:
        take(state)
        if state.step == step:
            (run / what).unlink() if what else shutil.rmtree(run)

    monkeypatch.setattr(loop, "take_step", deletes)
    code, _, err = bench.sft(run, "--checkpoint-every", "1", held=False)
    assert code == 2 and f"{run / what} was deleted" in err and "cure:" in err
    assert not (run / "model").exists() and run.exists() == bool(what)
    monkeypatch.undo()
    assert bench.sft(run, held=False)[0] == 0
    assert [line["step"] for line in log(run)[0]] == [1, 2, 3, 4, 5, 6]


def test_dft_weighs_each_token_by_its_probability(bench: Bench, tmp_path: Path) -> None:
    assert bench.sft(tmp_path / "run", "--method", "dft")[0] == 0
    steps, _ = log(tmp_path / "run")
    assert steps[0]["loss"] == pytest.approx(nll(bench.base, TRAIN, torch.exp), rel=1e-5)
    assert steps[-1]["loss"] != pytest.approx(steps[0]["loss"], rel=0.05)
    after = summary(tmp_path / "run")["held_out"]  # held-out loss is always the plain one
    assert after["loss"] == pytest.approx(nll(tmp_path / "run" / "model", HELD), rel=1e-5)


def test_neftune_adds_noise_in_training_only_and_the_same_noise_again(
    bench: Bench, tmp_path: Path
) -> None:
    runs = {name: tmp_path / name for name in ("plain", "one", "two", "other seed")}
    bench.sft(runs["plain"])
    for name in ("one", "two"):
        assert bench.sft(runs[name], "--neftune", "5")[0] == 0
    bench.sft(runs["other seed"], "--neftune", "5", "--seed", "1")
    first = {name: log(run)[0][0]["loss"] for name, run in runs.items()}
    assert first["one"] == first["two"]
    assert (
        summary(runs["one"])["sha256"]["model"]
        == summary(runs["two"])["sha256"]["model"]
        != summary(runs["plain"])["sha256"]["model"]
    )
    assert 1e-5 < abs(first["one"] - first["plain"]) < 1.0
    assert first["one"] != first["other seed"]
    assert summary(runs["one"])["held_out_before"] == summary(runs["plain"])["held_out_before"]


# peft, asked directly
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_lora_trains_adapters_and_exports_them_merged_and_alone(
    bench: Bench, tmp_path: Path
) -> None:
    from peft import PeftModel

    run = tmp_path / "run"
    before = sha256_file(bench.base / "model.safetensors")
    code, _, err = bench.sft(run, "--lora-rank", "4", "--learning-rate", "0.03")
    assert code == 0, err
    assert sha256_file(bench.base / "model.safetensors") == before
    found = summary(run)
    # adapters start as nothing
    assert found["held_out_before"]["loss"] == pytest.approx(nll(bench.base, HELD), rel=1e-5)
    assert found["held_out"]["loss"] < found["held_out_before"]["loss"] - 0.1
    assert found["held_out"]["loss"] == pytest.approx(nll(run / "model", HELD), rel=1e-4)
    assert json.loads((run / "adapter" / "base.json").read_text()) == {
        "base": str(bench.base),
        "base_sha256": found["models_sha256"]["model"],
    }
    merged = AutoModelForCausalLM.from_pretrained(run / "model").eval()
    beside = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(bench.base), run / "adapter"
    ).eval()
    ids = torch.arange(2, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, beside(ids).logits, rtol=1e-4, atol=1e-4)
    # rank 4 on the seven linear layers of two blocks: 4·(rows + columns) each
    sizes = 2 * sum(
        4 * (a + b)
        for a, b in [(32, 32), (32, 16), (32, 16), (32, 32), (32, 64), (32, 64), (64, 32)]
    )
    assert f"{sizes / 1e6:.2f} M trained" in err


def test_patience_stops_and_the_best_step_is_exported(bench: Bench, tmp_path: Path) -> None:
    """A rate far too high: held-out loss gets worse, and two validations in a row without a better
    one are enough.
    """
    found = {}
    for name, more in (("best", []), ("last", ["--no-keep-best"])):
        code, _, err = bench.sft(
            tmp_path / name,
            "--steps",
            "30",
            "--learning-rate",
            "0.3",
            "--schedule",
            "constant",
            "--warmup",
            "0.2",
            "--validate-every",
            "1",
            "--patience",
            "2",
            *more,
        )
        assert code == 0, err
        assert "stopped early: 2 validations without a better one" in err
        found[name] = summary(tmp_path / name)
    _, validations = log(tmp_path / "best")
    losses = [r["validation"]["loss"] for r in validations][1:]
    best = min(range(len(losses)), key=losses.__getitem__)
    assert len(losses) == found["best"]["steps"] == best + 1 + 2 < 30
    assert found["best"]["held_out"]["step"] == best + 1
    assert found["best"]["held_out"]["loss"] == losses[best]
    assert nll(tmp_path / "best" / "model", HELD) == pytest.approx(losses[best], rel=1e-4)
    assert nll(tmp_path / "last" / "model", HELD) == pytest.approx(losses[-1], rel=1e-4)
    assert losses[-1] > losses[best]


@pytest.mark.parametrize(
    "more", [["--activation-checkpointing"], ["--budget", "16"]], ids=lambda m: m[0]
)
def test_what_saves_memory_changes_no_number(bench: Bench, tmp_path: Path, more: list[str]) -> None:
    bench.sft(tmp_path / "plain")
    assert bench.sft(tmp_path / "saving", *more)[0] == 0
    plain, saving = (
        [
            *(r["loss"] for r in log(tmp_path / name)[0]),
            summary(tmp_path / name)["held_out"]["loss"],
        ]
        for name in ("plain", "saving")
    )
    assert saving == pytest.approx(plain, rel=1e-4)


def test_epochs_become_steps(bench: Bench, tmp_path: Path) -> None:
    argv = [
        "sft",
        "--model",
        str(bench.base),
        "--data",
        str(bench.folder / "train.jsonl"),
        "--out",
        str(tmp_path / "run"),
        "--epochs",
        "1.5",
        "--batch-size",
        "8",
    ]
    assert main(argv) == 0
    steps, _ = log(tmp_path / "run")
    # three batches an epoch, the last smaller; half an epoch is two
    assert [r["sequences"] for r in steps] == [8, 8, 4, 8, 8]
    assert [r["epoch"] for r in steps] == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3], abs=1e-4)


# ---------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("more", "what", "cure"),
    [
        (
            ["--max-length", "65"],
            "--max-length 65 is more than the 64 positions the model knows",
            "give --max-length 64 or less",
        ),
        (
            ["--budget", "4"],
            "--budget 4 is less than the 6 tokens of the longest sequence",
            "give --budget 6 or more, or --max-length 4 or less",
        ),
        (["--data", "none.jsonl"], "there is no file none.jsonl", "check the path"),
        (
            ["--model", "./none"],
            "./none is not a model folder",
            "point --model at a Hugging Face model folder or a hub id",
        ),
        (
            ["--data", "train.jsonl,propmt=question"],
            "'propmt=question' is not KEY=VALUE with a known key",
            "did you mean 'prompt'?",
        ),
        (
            ["--template-kwargs", "a"],
            "--template-kwargs 'a' is not KEY=VALUE",
            "write --template-kwargs key=value",
        ),
        (
            ["--chat-template", "none.jinja", "--prompt-template", ""],
            "cannot read the chat template none.jinja",
            "check the path",
        ),
        (
            ["--format", "alpaca"],
            "train.jsonl:1: format alpaca needs the column 'instruction'",
            None,
        ),
        (
            ["--lora-targets", "q_prj"],
            "--lora-targets q_prj",
            "name modules as the model does, for example q_proj v_proj",
        ),
        (["--groups", "embd=0"], "--groups: 'embd' matches no parameter", None),
        (
            ["--device", "cuda"],
            "there is no GPU here that torch can use",
            "leave --device out, or install torch with CUDA",
        ),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_what_cannot_work_ends_with_code_2_and_a_cure(
    bench: Bench, tmp_path: Path, more: list[str], what: str, cure: str | None
) -> None:
    if more == ["--device", "cuda"] and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    code, out, err = bench.sft(tmp_path / "run", *more)
    assert (code, out) == (2, ""), err
    error, told = err.split("error: ")[1].split("\ncure:  ")
    assert what in error
    assert cure is None or told.strip() == cure
    assert not (tmp_path / "run" / "summary.json").exists()


def test_rows_longer_than_the_model_are_cut_and_counted(bench: Bench, tmp_path: Path) -> None:
    data = making.write(
        tmp_path / "long.jsonl.gz",
        [*TRAIN, {"prompt": "x", "completion": "x" * 100}, {"prompt": "y" * 80, "completion": "z"}],
    )
    code, _, err = bench.sft(tmp_path / "run", data=data)
    assert code == 0
    found = summary(tmp_path / "run")
    assert (found["rows"], found["sequences"], found["truncated"]) == (22, 21, 1)
    assert found["dropped"] == {"the prompt alone fills 64 tokens": 1}
    assert (
        "21 sequences" in err
        and "1 cut to the length limit, 1 dropped: the prompt alone fills 64 tokens" in err
    )


# --------------------------------------------------------------------- nothing of anybody's is lost


def test_a_mistake_leaves_no_folder_and_may_be_corrected(bench: Bench, tmp_path: Path) -> None:
    assert bench.sft(tmp_path / "run", "--groups", "embd=0.5")[0] == 2
    assert not (tmp_path / "run").exists()
    assert bench.sft(tmp_path / "run", "--groups", "embed=0.5")[0] == 0


@pytest.mark.parametrize("name", ["model", "metrics.jsonl", "summary.json", "checkpoints"])
def test_a_folder_with_files_of_somebody_else_is_refused(
    bench: Bench, tmp_path: Path, name: str
) -> None:
    mine = tmp_path / "run" / name
    mine.parent.mkdir()
    (
        mine.write_text("mine")
        if "." in name
        else (mine.mkdir(), (mine / "notes.txt").write_text("mine"))
    )
    code, _, err = bench.sft(tmp_path / "run")
    assert code == 2
    assert f"holds {name}, which no run of ours wrote" in err
    assert (mine if mine.is_file() else mine / "notes.txt").read_text() == "mine"


def test_the_model_may_not_lie_in_the_run_folder(bench: Bench, tmp_path: Path) -> None:
    making.model(tmp_path / "project" / "model")
    before = sha256_file(tmp_path / "project" / "model" / "model.safetensors")
    code, _, err = bench.sft(tmp_path / "project", "--model", tmp_path / "project" / "model")
    assert code == 2
    assert "where the run writes" in err
    assert sha256_file(tmp_path / "project" / "model" / "model.safetensors") == before


def test_a_finished_run_whose_model_is_gone_exports_it_again(bench: Bench, tmp_path: Path) -> None:
    assert bench.sft(tmp_path / "run")[0] == 0
    weights = tmp_path / "run" / "model" / "model.safetensors"
    before = sha256_file(weights)
    weights.write_bytes(weights.read_bytes()[:100])
    code, _, err = bench.sft(tmp_path / "run")
    assert code == 0
    assert f"{weights} was cut: 100 of " in err and "making it again" in err
    assert sha256_file(weights) == before


def test_a_damaged_best_checkpoint_is_said_and_the_last_exported(
    bench: Bench, tmp_path: Path
) -> None:
    """The run has ended and its best step is lost: not a dead end."""
    more = [
        "--steps",
        "30",
        "--learning-rate",
        "0.3",
        "--schedule",
        "constant",
        "--warmup",
        "0.2",
        "--validate-every",
        "1",
        "--patience",
        "2",
    ]
    assert bench.sft(tmp_path / "run", *more)[0] == 0
    first = summary(tmp_path / "run")
    last = first["steps"]
    assert first["exported_step"] == last - 2
    assert first["held_out"]["step"] == first["exported_step"]
    (tmp_path / "run" / "summary.json").unlink()
    file = (
        tmp_path
        / "run"
        / "checkpoints"
        / f"step-{first['exported_step']:08d}"
        / "weights.safetensors"
    )
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    code, _, err = bench.sft(tmp_path / "run", *more)
    assert code == 0
    assert f"exporting step {last}, the last, instead" in err
    again = summary(tmp_path / "run")
    assert (again["exported_step"], again["held_out"]["step"]) == (last, last)
    assert again["held_out"]["loss"] == pytest.approx(
        nll(tmp_path / "run" / "model", HELD), rel=1e-4
    )


def test_what_is_exported_is_what_is_reported(bench: Bench, tmp_path: Path) -> None:
    """Without --keep-best the numbers are those of the last step, not of the best."""
    more = [
        "--steps",
        "30",
        "--learning-rate",
        "0.3",
        "--schedule",
        "constant",
        "--warmup",
        "0.2",
        "--validate-every",
        "1",
        "--patience",
        "2",
        "--no-keep-best",
    ]
    assert bench.sft(tmp_path / "run", *more)[0] == 0
    found = summary(tmp_path / "run")
    assert found["exported_step"] == found["held_out"]["step"] == found["steps"] < 30
    assert found["held_out"]["loss"] == pytest.approx(
        nll(tmp_path / "run" / "model", HELD), rel=1e-4
    )


def test_lost_rows_are_said_even_where_quiet_is_asked_for(bench: Bench, tmp_path: Path) -> None:
    data = making.write(tmp_path / "long.jsonl", [*TRAIN, {"prompt": "y" * 80, "completion": "z"}])
    code, _, err = bench.sft(tmp_path / "run", "--quiet", data=data)
    assert code == 0
    assert err.strip() == "long.jsonl: rows dropped: 1"


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (["--betas", "2", "3"], "betas"),
        (["--betas", "0.9"], "betas"),
        (["--epochs", "inf"], "epochs"),
        (["--groups", "embed=-1"], "groups"),
        (["--groups", "[=1"], "is not a regular expression"),
    ],
    ids=str,
)
def test_values_that_make_no_sense_are_named(
    bench: Bench, tmp_path: Path, more: list[str], what: str
) -> None:
    code, _, err = bench.sft(tmp_path / "run", *more)
    assert code == 2
    assert what in err
    assert "is missing" not in err


def test_lora_is_on_or_off() -> None:
    with pytest.raises(ConfigError, match="True or False"):
        posttrain.sft(model="m", data=__file__, out="o", lora={"rank": 4})
    with pytest.raises(ConfigError, match="lora is off, but lora_rank is set"):
        posttrain.sft(model="m", data=__file__, out="o", lora=False, lora_rank=4)


def test_a_reader_that_goes_away_does_not_end_the_run(bench: Bench, tmp_path: Path) -> None:
    """`posttrain sft … 2>&1 | head -1`: the pipe closes, the run goes on to its end."""
    argv = [
        "sft",
        "--model",
        str(bench.base),
        "--data",
        str(bench.folder / "train.jsonl"),
        "--out",
        str(tmp_path / "run"),
        "--steps",
        "6",
        "--learning-rate",
        "0.01",
    ]
    with child(
        [sys.executable, "-m", "posttrain", *argv], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as run:
        assert run.stdout is not None
        run.stdout.close()
        assert run.wait(120) == 0
    assert summary(tmp_path / "run")["steps"] == 6


# ----------------------------------------------------------------------- conversations and mixtures

TALK = [
    {
        "messages": [
            {"role": "user", "content": f"{a}+{b}"},
            {"role": "assistant", "content": str(a + b)},
        ]
    }
    for a in range(4)
    for b in range(5)
]


def test_a_model_without_a_chat_template_gets_one_that_transformers_reads(
    bench: Bench, tmp_path: Path
) -> None:
    data = making.write(tmp_path / "talk.jsonl", TALK)
    argv = [
        "sft",
        "--model",
        bench.base,
        "--data",
        data,
        "--out",
        tmp_path / "run",
        "--steps",
        "40",
        "--batch-size",
        "20",
        "--learning-rate",
        "0.02",
        "--schedule",
        "constant",
        "--device",
        "cpu",
    ]
    assert main([str(a) for a in argv]) == 0
    said = bench.capfd.readouterr().err
    assert "talk.jsonl (messages): 20 rows → 20 sequences" in said
    assert (
        "the model has no chat template: a default, whose answers end with <|end|>, is used and "
        "saved with it" in said
    )
    assert "first: ### User:⏎0+0⏎⏎### Assistant:⏎ ⟶ 0<|end|>" in said

    words, network = (
        c.from_pretrained(tmp_path / "run" / "model") for c in (AutoTokenizer, AutoModelForCausalLM)
    )
    prompt = words.apply_chat_template(
        [{"role": "user", "content": "2+3"}], add_generation_prompt=True, tokenize=False
    )
    assert prompt == "### User:\n2+3\n\n### Assistant:\n"
    # it learned the digits' distribution and to stop: no answer is longer than a digit and the end
    ids = words(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    answer = network.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8
    )[0, ids.shape[1] :]
    text = words.decode(answer)
    assert text.endswith("<|end|>") and len(answer) == 2, text


def test_the_template_that_was_given_is_saved_and_its_end_stops_generation(
    bench: Bench, tmp_path: Path
) -> None:
    template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|stop|>{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    (tmp_path / "short.jinja").write_text(template)
    base = shutil.copytree(bench.base, tmp_path / "base")
    words = AutoTokenizer.from_pretrained(base)
    words.add_special_tokens({"extra_special_tokens": ["<|stop|>"]})
    words.save_pretrained(base)
    network = AutoModelForCausalLM.from_pretrained(base)
    network.resize_token_embeddings(len(words))
    network.save_pretrained(base)
    data = making.write(tmp_path / "talk.jsonl", TALK)
    code, _, _ = bench.chat(
        tmp_path / "run", base, data, "--chat-template", tmp_path / "short.jinja"
    )
    assert code == 0
    model = tmp_path / "run" / "model"
    assert AutoTokenizer.from_pretrained(model).chat_template == template
    assert GenerationConfig.from_pretrained(model).eos_token_id == [
        0,
        words.convert_tokens_to_ids("<|stop|>"),
    ]
    # the template's text is part of what the run is
    (tmp_path / "short.jinja").write_text(template + " ")
    code, _, err = bench.chat(
        tmp_path / "run", base, data, "--chat-template", tmp_path / "short.jinja"
    )
    assert code == 2 and "holds another run; different: files_sha256.chat_template was" in err


def test_a_mixture_takes_its_shares_and_resumes_to_the_row(bench: Bench, tmp_path: Path) -> None:
    talk = making.write(tmp_path / "talk.jsonl", TALK[:3])
    text = making.write(tmp_path / "text.jsonl.gz", [{"body": f"number {i}"} for i in range(12)])
    mixture = (f"{talk},weight=1", f"{text},weight=2,text=body,limit=9")
    code, _, err = bench.chat(
        tmp_path / "run", bench.base, *mixture, "--batch-size", "2", "--steps", "12"
    )
    assert code == 0
    assert (
        "talk.jsonl (messages): 3 rows → 3 sequences" in err
        and "text.jsonl.gz (text): 9 rows → 9 sequences" in err
    )
    steps, _ = log(tmp_path / "run")
    # twelve rows an epoch: four conversations, one of them twice, and eight texts
    assert [r["sequences"] for r in steps] == [2] * 12
    assert [r["epoch"] for r in steps][-1] == 2.0
    again = tmp_path / "again"
    assert (
        bench.chat(
            again,
            bench.base,
            *mixture,
            "--batch-size",
            "2",
            "--steps",
            "12",
            "--checkpoint-every",
            "5",
        )[0]
        == 0
    )
    shutil.rmtree(again / "model")
    shutil.rmtree(
        again / "checkpoints" / sorted(p.name for p in (again / "checkpoints").iterdir())[-1]
    )
    (again / "summary.json").unlink()
    code, _, err = bench.chat(
        again, bench.base, *mixture, "--batch-size", "2", "--steps", "12", "--checkpoint-every", "5"
    )
    assert code == 0 and "resuming after step 10 of 12" in err
    assert summary(again)["sha256"]["model"] == summary(tmp_path / "run")["sha256"]["model"]


def test_bad_rows_are_set_aside_where_that_is_asked_for(bench: Bench, tmp_path: Path) -> None:
    bad = [
        '{"messages": [{"role": "user", "content": "1+1"}]}',
        '{"messages": [',
        '{"prompt": "a", "completion": "b"}',
    ]
    data = making.write(tmp_path / "talk.jsonl", [bad[0], *TALK, *bad[1:]])
    code, _, err = bench.chat(tmp_path / "run", bench.base, data)
    assert code == 2 and "talk.jsonl:1: the conversation has no assistant turn to learn from" in err
    assert "--on-bad-row reject sets such rows aside and goes on" in err
    assert not (tmp_path / "run").exists()
    code, _, err = bench.chat(tmp_path / "run", bench.base, data, "--on-bad-row", "reject")
    assert code == 0
    assert "talk.jsonl: 3 rows rejected, written to rejects.jsonl" in err
    found = [
        json.loads(line) for line in (tmp_path / "run" / "rejects.jsonl").read_text().splitlines()
    ]
    assert [r["raw"] for r in found] == bad
    assert [r["where"].rsplit(":", 1)[1] for r in found] == ["1", "22", "23"]
    assert (summary(tmp_path / "run")["rows"], summary(tmp_path / "run")["rejected"]) == (23, 3)
    assert not (tmp_path / "run" / "tokens").exists()  # nothing reads them any more


def test_a_run_that_goes_on_reads_its_tokens_and_not_the_rows_again(
    bench: Bench, tmp_path: Path
) -> None:
    argv = ("--steps", "6", "--checkpoint-every", "2", "--max-length", "60")
    assert bench.sft(tmp_path / "whole", *argv)[0] == 0
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_choose", lambda run: (_ for _ in ()).throw(KeyboardInterrupt()))
        assert bench.sft(run, *argv)[0] == 130
    assert (run / "tokens" / "key.json").is_file()
    tokens = (run / "tokens" / "data 0" / "tokens").stat()
    shutil.rmtree(run / "checkpoints")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "_tokenize", None)  # it is not called
        assert bench.sft(run, *argv)[0] == 0
    assert tokens.st_size == 4 * 6 * 20
    assert summary(run)["sha256"]["model"] == summary(tmp_path / "whole")["sha256"]["model"]


def test_a_run_that_goes_on_leaves_the_chat_template_in_its_model(
    bench: Bench, tmp_path: Path
) -> None:
    rows = making.write(tmp_path / "rows.jsonl", [{"prompt": "Hi", "completion": "Yo"}] * 20)
    base, run = making.model(tmp_path / "base"), tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_choose", lambda run: (_ for _ in ()).throw(KeyboardInterrupt()))
        assert bench.chat(run, base, rows)[0] == 130
    assert bench.chat(run, base, rows)[0] == 0
    assert bench.chat(tmp_path / "whole", base, rows)[0] == 0
    template = AutoTokenizer.from_pretrained(tmp_path / "whole" / "model").chat_template
    assert template and AutoTokenizer.from_pretrained(run / "model").chat_template == template


def test_an_empty_chat_template_is_no_default(bench: Bench, tmp_path: Path) -> None:
    rows = making.write(tmp_path / "rows.jsonl", [{"prompt": "Hi", "completion": "Yo"}])
    (tmp_path / "empty.jinja").write_text("")
    code, _, err = bench.chat(
        tmp_path / "run", bench.base, rows, "--chat-template", tmp_path / "empty.jinja"
    )
    assert code == 2 and "empty.jinja is empty" in err


@pytest.mark.parametrize(
    ("rate", "more", "what"),
    [
        ("3e38", (), ".weight is not finite"),
        ("1e30", (), "the model's logprob is not finite"),  # the weights are, what they give is not
        ("3e38", ("--lora",), ".weight is not finite"),
    ],
)
def test_what_is_not_finite_is_neither_saved_nor_exported(
    bench: Bench, tmp_path: Path, rate: str, more: tuple[str, ...], what: str
) -> None:
    run = tmp_path / "run"
    argv = ("--learning-rate", rate, "--warmup", "0", "--steps", "1", *more)
    for _ in range(2):  # the same command is allowed, and ends alike
        code, _, err = bench.sft(run, *argv, held=False)
        assert code == 2, err
        assert "after step 1" in err and what in err and "no checkpoint yet" in err
        assert "lower --learning-rate" in err
    assert not {"model", "adapter", "summary.json"} & {path.name for path in run.iterdir()}
    assert not list(run.glob("checkpoints/*"))


def test_a_run_that_diverges_names_the_last_good_checkpoint(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 3 makes the weights NaN: the checkpoint of step 2 stays, and the run goes on from it."""
    real, run = Optimiser.step, tmp_path / "run"

    def broken(self: Optimiser, factor: float) -> float:
        norm = real(self, factor)
        if math.isclose(factor, 4 / 6):
            next(iter(self.parameters.values())).data.fill_(math.nan)
        return norm

    argv = ("--checkpoint-every", "2", "--warmup", "0")
    with monkeypatch.context() as patch:
        patch.setattr(Optimiser, "step", broken)
        code, _, err = bench.sft(run, *argv, held=False)
    assert code == 2
    assert "step 4: the loss is nan. The checkpoint of step 2 is good" in err
    code, _, err = bench.sft(run, *argv, held=False)
    assert code == 0 and "resuming after step 2" in err
