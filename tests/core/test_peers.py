"""Other trainers' names are answered with ours by meaning, and slips of the pen by spelling."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from posttrain.cli.main import commands, main
from posttrain.core import peers
from posttrain.core.errors import ConfigError, nearly
from posttrain.core.settings import Settings, assemble, leaves
from posttrain.pipeline.recipe import load
from posttrain.serve.settings import ChatSettings
from posttrain.stages.index import entries
from posttrain.stages.registry import find

MEANT = {
    "--lr": "it is --learning-rate here",
    "--eval-steps": "it is --validate-every (in steps) here",
    "--eval_steps=50": "it is --validate-every (in steps) here",
    "--optim": "leave it out: the optimiser is always AdamW",
    "--report-to": "it is --track (wandb, trackio, mlflow or tensorboard) here",
    "--num-train-epochs": "it is --epochs here",
    "--num_epochs": "it is --epochs here",
    "--per-device-train-batch-size": "it is --batch-size (the sequences of a whole step",
    "--gradient_accumulation_steps": "it is --batch-size (the sequences of a whole step",
    "--model_name_or_path": "it is --model here",
    "--dataset_name": "it is --data (files, folders or hub ids) here",
    "--output-dir": "it is --out here",
    "--lora_r": "it is --lora-rank here",
    "--cutoff_len": "it is --max-length here",
    "--sample-packing": "leave it out: batches are always packed",
    "--optimizer.lr": "it is --learning-rate here",
    "--bf16": "leave it out: the precision follows from the device",
    "--pref_beta": "it is --beta here; which this does not take",
    "--lora_rank": "did you mean '--lora-rank'?",
    "--epoch": "did you mean '--epochs'?",
    "--colour": "posttrain sft --help lists the options",
    "--q": "posttrain sft --help lists the options",
}
NEEDED = ("--model", "m", "--data", "d", "--out", "o")


@pytest.mark.parametrize("option", MEANT)
def test_options(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sft", *NEEDED, option, "1"]) == 2
    error = capsys.readouterr().err
    assert f"unknown option {option}\n" in error and f"cure:  {MEANT[option]}" in error


@pytest.mark.parametrize(
    ("command", "cure"),
    [
        ("dpo", "it is posttrain preference --method dpo here"),
        ("kto", "it is posttrain preference --method kto here"),
        ("train", "it is posttrain sft (for preferences posttrain preference, "),
        ("reward", "it is posttrain reward-model here"),
        ("merge-lora", "there is none: a run's folder has the merged model"),
        ("grpo", "there is none: methods that sample while they train"),
        ("sfd", "did you mean 'sft'?"),
        ("paint", "posttrain --help lists them"),
    ],
)
def test_commands(command: str, cure: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--model", "m"]) == 2
    assert f"there is no command '{command}'\ncure:  {cure}" in capsys.readouterr().err


def test_recipes_and_python(tmp_path: Any) -> None:
    path = tmp_path / "a.yaml"
    for text, line, cure in (
        ("stages:\n  sft: {model: m, data: d, num_train_epochs: 3}\n", 2, "it is epochs here"),
        ("stages:\n  sft: {model: m, data: d, packing: true}\n", 2, "leave it out: batches are"),
        ("stages:\n  sft: {model: m, data: d, colour: 1}\n", 2, "it has model, epochs, "),
        ("base_model: m\nstages: {}\n", 1, "it is model here; an option of a stage"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError) as caught:
            load(path)
        assert caught.value.cure.startswith(cure) and caught.value.where == f"{path}:{line}"
    with pytest.raises(ConfigError) as caught:
        assemble(find("sft").settings, {"lr": 1})
    assert caught.value.cure == "it is learning_rate here"


def ours() -> set[str]:
    every: list[type[Settings]] = [ChatSettings, *(find(name).settings for name in entries())]
    return {leaf.name for model in every for leaf in leaves(model)}


def test_the_table_names_what_is_there() -> None:
    """Everything that is ours exists, and a name that is ours in every stage is not theirs."""
    known = ours()
    assert [one for peer in peers.OPTIONS for one in peer.ours if one not in known] == []
    assert [one for peer in peers.COMMANDS for one in peer.ours if one not in commands()] == []
    assert all(peer.ours or peer.note for peer in (*peers.OPTIONS, *peers.COMMANDS))
    training = {leaf.name for leaf in leaves(find("sft").settings)}
    assert {name for peer in peers.OPTIONS for name in peer.every} & training == set()
    assert {name for peer in peers.COMMANDS for name in peer.every} & {*commands()} == set()
    assert len({name for peer in peers.OPTIONS for name in peer.every}) > 150


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed")
def test_what_trl_takes_is_known() -> None:
    """Names that are said to be TRL's are; those of earlier versions apart."""
    import dataclasses

    trl: Any = pytest.importorskip("trl")
    classes = ("SFTConfig", "DPOConfig", "KTOConfig", "RewardConfig", "GRPOConfig", "ModelConfig")
    fields = {
        field.name
        for name in (*classes, "ScriptArguments")
        for field in dataclasses.fields(getattr(trl, name))
    }
    named = {name for peer in peers.OPTIONS for name in peer.names.get(peers.TRL, "").split()}
    earlier = {"eval_dataset", "train_dataset", "lr", "ref_model", "reward_funcs"}  # arguments, too
    assert len(named & fields) > 80
    assert len(named - fields - earlier) < 25, named - fields - earlier


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("lerning_rate", "learning_rate"),
        ("learning-rate", "learning_rate"),
        ("epcohs", "epochs"),
        ("lr", ""),
        ("optim", ""),
        ("eval_steps", ""),
        ("report_to", ""),
        ("num_train_epochs", ""),
        ("", ""),
        ("x" * 5000, ""),
    ],
)
def test_only_slips_are_corrected(name: str, close: str) -> None:
    known = ["learning_rate", "epochs", "steps", "lora", "out", "keep_best", "train_on", "run"]
    assert nearly(name, known) == close
