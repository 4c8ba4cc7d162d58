"""What makes a run's numbers look better than they are is said before step 1, and in the summary:
rows that are trained on and held out, preferences that contradict each other, and a margin that has
hardly moved.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import posttrain
from posttrain.core.events import Event, Note, Step
from posttrain.data.messages import answer_length
from posttrain.evals import judging
from posttrain.stages.alarms import hardly_moved, hardly_moved_in_steps
from tests import making
from tests.stages.objectives.small import PAIRS

TEXTS = [
    {"text": f"{a} and {b} are {a + b}, as they have always been"} for a in (1, 2) for b in (3, 4)
]
ROWS: dict[str, list[dict[str, Any]]] = {
    "sft": [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in (1, 2) for b in (3, 4)],
    "adapt": TEXTS,
    "preference": PAIRS,
    "reward_model": PAIRS,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return making.model(tmp_path_factory.mktemp("base"))


def run(stage: str, base: Path, data: Path, out: Path, **more: Any) -> tuple[dict[str, Any], str]:
    """The summary, and what was said before step 1, where quiet is asked for, too."""
    events: list[Event] = []
    common = {"device": "cpu", "quiet": True, "steps": 1, "sinks": [events.append]}
    if stage != "adapt":
        common["prompt_template"] = "{prompt}"
    if stage == "preference":
        common["answered"] = 0
    found = getattr(posttrain, stage)(model=base, data=data, out=out, **common, **more)
    first = next(i for i, event in enumerate(events) if isinstance(event, Step))
    said = [event.text for event in events[:first] if isinstance(event, Note) and event.always]
    return found.summary, "\n".join(said)


@pytest.mark.parametrize("stage", list(ROWS))
def test_the_same_file_trained_on_and_held_out_is_said(
    stage: str, base: Path, tmp_path: Path
) -> None:
    data, n = making.write(tmp_path / "a.jsonl", ROWS[stage]), len(ROWS[stage])
    summary, said = run(stage, base, data, tmp_path / "run", validation=data)
    assert f"{n} of {n} held-out rows (100.0 %) are also training rows" in said
    assert "posttrain data split" in said
    held_out = summary["overlap"]["held_out"]
    assert (held_out["rows"], held_out["same"], held_out["near"]) == (n, n, n)


def test_some_rows_some_nearly_and_none(base: Path, tmp_path: Path) -> None:
    """One row is there in another file, one with a word more; a third is like none."""
    words = "one two three four five six seven eight nine ten eleven"
    train = making.write(tmp_path / "train.jsonl", [*TEXTS, {"text": words}])
    held = [TEXTS[0], {"text": words + " twelve"}, {"text": "nothing of the kind is here"}]
    summary, said = run(
        "adapt", base, train, tmp_path / "a", validation=making.write(tmp_path / "h.jsonl", held)
    )
    assert "1 of 3 held-out rows (33.3 %) are also training rows, 2 (66.7 %)" in said
    training = summary["overlap"]["training"]
    assert (training["rows"], training["same"], training["near"]) == (5, 1, 2)
    other = making.write(tmp_path / "o.jsonl", held[2:])
    summary, said = run("adapt", base, train, tmp_path / "b", validation=other)
    assert "overlap" not in said and summary["overlap"]["held_out"]["same"] == 0
    summary, _ = run("adapt", base, train, tmp_path / "c")
    assert summary["overlap"] is None and summary["contradictions"] is None


def test_data_inspect_says_it_too(base: Path, tmp_path: Path) -> None:
    data = making.write(tmp_path / "a.jsonl", ROWS["sft"])
    events: list[Event] = []
    found = posttrain.data_inspect(
        model=base,
        data=data,
        validation=data,
        out=tmp_path / "look",
        prompt_template="{prompt}",
        quiet=True,
        sinks=[events.append],
    )
    assert any(isinstance(e, Note) and "(100.0 %) are also training rows" in e.text for e in events)
    assert found.summary["overlap"]["held_out"]["same"] == 4
    page = (tmp_path / "look" / "page.html").read_text()
    assert "held-out rows that are training rows, too</td><td class=n>4 (100.0%)" in page


@pytest.mark.parametrize("stage", ["preference", "reward_model"])
def test_contradictions_are_counted_across_files(stage: str, base: Path, tmp_path: Path) -> None:
    """One pair of eight stands the other way round in a second file; a repeated one is none."""
    swapped = {**PAIRS[2], "chosen": PAIRS[2]["rejected"], "rejected": PAIRS[2]["chosen"]}
    a = making.write(tmp_path / "a.jsonl", PAIRS)
    b = making.write(tmp_path / "b.jsonl", [swapped, PAIRS[5]])
    summary, said = run(stage, base, a, tmp_path / "run")
    assert summary["contradictions"] == {"rows": 8, "contradicted": 0} and "contradict" not in said
    summary, said = run(stage, base, [a, b], tmp_path / "both")  # type: ignore[arg-type]
    assert summary["contradictions"] == {"rows": 10, "contradicted": 2}
    assert "2 of 10 preferences (20.0 %) contradict each other" in said


def test_answers_labelled_both_ways_are_contradictions(base: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "1+1=", "completion": "2", "label": label} for label in (True, False)]
    rows += [{"prompt": "1+2=", "completion": "2", "label": False}]
    data = making.write(tmp_path / "a.jsonl", rows)
    summary, _ = run("preference", base, data, tmp_path / "run", method="bco")
    assert summary["contradictions"] == {"rows": 3, "contradicted": 2}


# ------------------------------------------------------------------------- longest and shortest


def test_longest_means_the_same_everywhere(base: Path, tmp_path: Path) -> None:
    """Sixty pairs whose chosen answer has more characters and fewer tokens: every command calls the
    longer one, by characters, the same, and the baseline is right on as many.
    """
    import transformers

    words = making.tokenizer([("a", "a"), ("aa", "aa"), ("aaaa", "aaaa")])
    model = making.model(tmp_path / "model")
    rows = []
    for i in range(60):
        long, short = "a" * 8 + str(i), "bcd"
        rows.append({"prompt": f"{i}?", "chosen": long, "rejected": short})
        if i % 4 == 0:
            rows[-1].update(chosen=short, rejected=long)
    assert len(words("a" * 8)["input_ids"]) == 1 and len(words("bcd")["input_ids"]) == 3
    config = transformers.AutoConfig.from_pretrained(model)
    config.vocab_size = len(words)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(model)
    words.save_pretrained(model)

    data = making.write(tmp_path / "pairs.jsonl", rows)
    train = making.write(tmp_path / "train.jsonl", PAIRS)
    shares = {}
    for scorer, sign in (("longest", 1), ("shortest", -1)):
        found = posttrain.judge(
            data=data, scorer=scorer, out=tmp_path / scorer, quiet=True
        ).summary["results"]["pairs"]
        shares[f"judge {scorer}"] = (
            found["accuracy"]["mean"] if sign > 0 else (1 - found["accuracy"]["mean"])
        )
        shares[f"its baseline {scorer}"] = found["baselines"]["longest"]["mean"]
    for stage in ("reward_model", "preference"):
        summary, _ = run(stage, model, train, tmp_path / stage, validation=data)
        held = summary["held_out"]
        shares[stage] = held["longer_chosen"] / 60
        if "baselines" in held:
            shares["its baseline"] = held["baselines"]["longest"]["mean"]
    cared = posttrain.data_pairs(data=data, out=tmp_path / "clean.jsonl", quiet=True)
    shares["data pairs"] = cared.summary["bias"]["longer"]["characters"]["mean"]
    assert set(shares.values()) == {0.75}, shares


def test_the_length_of_an_answer_is_that_of_what_the_assistant_says(tmp_path: Path) -> None:
    """An answer of two messages: both count, and what the user says between them does not."""
    turns = (
        {"role": "assistant", "content": "four"},
        {"role": "user", "content": "a long question about it"},
        {"role": "assistant", "content": "yes"},
    )
    assert (answer_length(turns), answer_length("yes"), answer_length(None)) == (8, 3, 0)
    prompt = [{"role": "user", "content": "2+2?"}]
    short = [{"role": "assistant", "content": "seven"}]
    data = making.write(
        tmp_path / "a.jsonl", [{"prompt": prompt, "chosen": list(turns), "rejected": short}]
    )
    found = posttrain.judge(data=data, scorer="longest", out=tmp_path / "run", quiet=True)
    result = found.summary["results"]["a"]
    assert result["accuracy"]["mean"] == result["baselines"]["longest"]["mean"] == 1
    record = json.loads((tmp_path / "run" / "a.jsonl").read_text())
    assert record["values"]["longer"] == 3


# ----------------------------------------------------------------------- a margin that hardly moved


def held(margin: float, *, low: float = 0.7, **more: Any) -> dict[str, Any]:
    return {"accuracy": 0.78, "accuracy_low": low, "margin": {"mean": margin}, **more}


def test_a_good_accuracy_at_next_to_no_margin_is_said() -> None:
    """σ(0.003) = 0.50075: of a hundred choices the model is sure of none."""
    said = hardly_moved(held(0.003), relative=True)
    assert "accuracy 0.78 at a mean margin of +0.003" in said and "50.1% sure" in said
    assert "hardly moved" in said and "--learning-rate" in said
    assert hardly_moved(held(0.3), relative=True) == ""
    assert hardly_moved(held(0.003, low=0.49), relative=True) == ""  # not good
    assert hardly_moved({"accuracy": 0.9, "accuracy_low": None}, relative=True) == ""
    assert "rounding" in hardly_moved(held(0.003, margin_size_before=0.002), relative=True)
    # of likelihoods a margin may be small; what counts is whether it has moved
    assert hardly_moved(held(0.003), relative=False) == ""
    change = {"margin": {"mean": 0.01, "low": -0.01, "high": 0.03}}
    said = hardly_moved(held(0.9, difference=change), relative=False)
    assert "has not been shown to change: +0.01 [-0.01, +0.03]" in said
    change = {"margin": {"mean": 0.02, "low": 0.01, "high": 0.03}}
    assert hardly_moved(held(0.9, difference=change), relative=False) == ""
    steps = {"rewards/accuracies": 0.78, "rewards/margins": 0.003}
    assert "50.1% sure" in hardly_moved_in_steps(steps)
    assert hardly_moved_in_steps({**steps, "rewards/margins": 0.3}) == ""
    assert hardly_moved_in_steps({**steps, "rewards/accuracies": 0.5}) == ""


def test_a_run_that_hardly_moves_says_so(base: Path, tmp_path: Path) -> None:
    """Eight pairs by heart at a rate that moves their margins by less than a hundredth."""
    data = making.write(tmp_path / "a.jsonl", PAIRS)
    more = {"validation": data, "learning_rate": 1e-5, "batch_size": 8}
    summary, _ = run("preference", base, data, tmp_path / "run", **more)
    found = summary["held_out"]
    assert found["accuracy"] > 0.9 and 0 < found["margin"]["mean"] < 0.05
    assert found["chance"] == judging.CHANCE == 0.5
    (alarm,) = summary["alarms"]
    assert alarm.startswith("after step 1: accuracy") and "hardly moved" in alarm
    change = found["difference"]
    assert change["margin"]["mean"] == pytest.approx(found["margin"]["mean"])
    before = summary["held_out_before"]
    assert change["accuracy"]["mean"] == pytest.approx(found["accuracy"] - before["accuracy"])
