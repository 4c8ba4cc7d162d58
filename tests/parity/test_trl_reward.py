"""Parity with TRL's RewardTrainer, by running TRL's own code: its data preparation, collator,
compute_loss and gradients.

Our loss gets the rewards of the same network on the same batch, and our engine the rows themselves,
packed into forests; where we differ on purpose both results are shown. A table of what was compared
is printed at the end. TRL 1.16 has no trainer of process reward models.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tests.parity.test_trl_sft import SHAPE, farthest, gradients, make_tokenizer, sentence
from transformers import LlamaConfig, LlamaForSequenceClassification
from trl import RewardConfig, RewardTrainer

from posttrain.core.types import Columns, Facts, Loss
from posttrain.data.forest import Sequence, Tree, Unit
from posttrain.engine.reward import RewardModel
from posttrain.methods.reward import bradley_terry

pytestmark = [  # of names that TRL uses and this transformers version renamed
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing` is deprecated:FutureWarning")
]
PAIRS = 6
Table = list[tuple[str, float, float, str]]


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[Table]:
    """Collects (what, ours, TRL's, why they differ) and prints them."""
    found: Table = []
    yield found
    lines = [f"\n{'':<42}{'posttrain':>14}{'TRL':>14}{'difference':>12}"]
    lines += [
        f"{what:<42}{ours:>14.8f}{theirs:>14.8f}{abs(ours - theirs):>12.1e}  {why}"
        for what, ours, theirs, why in found
    ]
    lines.append(f"{'process reward model':<42}TRL 1.16 has none: by hand only")
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n".join(lines))


def made(out: Path, *, margin: bool, **settings: Any) -> RewardTrainer:
    """TRL's trainer in float32 on the CPU; every other setting is its default unless given."""
    rng = random.Random(5)
    rows = [
        {
            "prompt": sentence(rng, 1, 6) + "\n",
            "chosen": sentence(rng, 1, 8),
            "rejected": sentence(rng, 1, 8),
            **({"margin": rng.random()} if margin else {}),
        }
        for _ in range(PAIRS)
    ]
    torch.manual_seed(0)
    network = LlamaForSequenceClassification(LlamaConfig(**SHAPE, num_labels=1))
    args = RewardConfig(
        **{
            "output_dir": str(out),
            "bf16": False,
            "use_cpu": True,
            "gradient_checkpointing": False,
            "report_to": "none",
            "disable_tqdm": True,
            "max_length": 64,
            "per_device_train_batch_size": PAIRS,
            **settings,
        }
    )
    return RewardTrainer(
        network,
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=make_tokenizer(bos=True),
    )


def theirs(trainer: RewardTrainer, inputs: dict[str, Any]) -> tuple[float, dict[str, torch.Tensor]]:
    loss = trainer.compute_loss(trainer.model, dict(inputs))
    loss.backward()
    return loss.item(), gradients(trainer.model)


def ours(
    loss: Loss, trainer: RewardTrainer, inputs: dict[str, Any], size: int = 2
) -> tuple[float, dict[str, torch.Tensor], Any]:
    """In micro-batches of `size` pairs."""
    total, values = 0.0, []
    for i in range(0, PAIRS, size):
        at = torch.tensor([*range(i, i + size), *range(PAIRS + i, PAIRS + i + size)])
        part = {name: inputs[name][at] for name in ("input_ids", "attention_mask")}
        columns = Columns(reward=trainer.model(**part, use_cache=False).logits)
        facts = Facts(
            torch.arange(2 * size),
            L=2 * size,
            members=torch.arange(2 * size).reshape(2, size).T,
            numbers=torch.arange(i, i + size),
            units={"margin": inputs["margin"][i : i + size]} if "margin" in inputs else {},
        )
        value = loss.loss(columns, facts, {"pairs": PAIRS}, None)
        value.backward()
        total += float(value.detach())
        assert loss.report is not None
        values.append(loss.report(columns, facts, None))
    return (
        total,
        gradients(trainer.model),
        {name: float(torch.cat([v[name] for v in values]).mean()) for name in values[0]},
    )


@pytest.mark.parametrize("center", [None, 0.01, 0.3])
@pytest.mark.parametrize("margin", [False, True], ids=["", "margin"])
def test_bradley_terry_is_trls(
    margin: bool, center: float | None, tmp_path: Path, table: Table
) -> None:
    trainer = made(tmp_path, margin=margin, center_rewards_coefficient=center)
    (batch,) = trainer.get_train_dataloader()
    inputs = dict(batch)
    assert ("margin" in inputs) == margin
    expected, gradient = theirs(trainer, inputs)
    got, mine, shown = ours(bradley_terry(center or 0.0), trainer, inputs)
    assert got == pytest.approx(expected, rel=1e-6)
    assert farthest(mine, gradient) < 1e-4
    metrics = {k: v[0] for k, v in trainer._metrics["train"].items()}
    assert shown["rewards/accuracies"] == pytest.approx(metrics["accuracy"])
    assert shown["rewards/margins"] == pytest.approx(metrics["margin"], rel=1e-5)
    assert (shown["rewards/chosen"] + shown["rewards/rejected"]) / 2 == pytest.approx(
        metrics["mean_reward"], rel=1e-4, abs=1e-7
    )
    table.append(
        (f"bradley_terry center={center or 0}{' margin' if margin else ''}", got, expected, "")
    )


def test_rewards_are_centered_by_default_and_trls_drift(tmp_path: Path, table: Table) -> None:
    """Pairs tell only differences. TRL has the term and leaves it out unless told otherwise."""
    trainer = made(tmp_path, margin=False)
    assert trainer.args.center_rewards_coefficient is None
    with torch.no_grad():
        trainer.model.score.weight += 0.5  # a head whose rewards are not around 0
    (batch,) = trainer.get_train_dataloader()
    expected, _ = theirs(trainer, dict(batch))
    got, _, shown = ours(bradley_terry(), trainer, dict(batch))
    plain, _, _ = ours(bradley_terry(center=0), trainer, dict(batch))
    assert plain == pytest.approx(expected, rel=1e-6)
    assert (
        got - expected > 1e-3
        and got - expected >= 0.01 * (shown["rewards/chosen"] + shown["rewards/rejected"]) ** 2
    )
    table.append(("bradley_terry, defaults", got, expected, "TRL: no centering; ours 0.01"))


@pytest.mark.parametrize("margin", [False, True], ids=["", "margin"])
@pytest.mark.parametrize("budget", [400, 50])
def test_the_engine_has_trls_loss_and_gradients(
    budget: int, margin: bool, tmp_path: Path, table: Table
) -> None:
    """TRL pads the answers of six pairs into one batch of twelve; the engine packs pairs, prompts
    shared, into forests.
    """
    trainer = made(tmp_path / "trl", margin=margin, center_rewards_coefficient=0.01)
    trainer.model.save_pretrained(tmp_path / "model")
    trainer.processing_class.save_pretrained(tmp_path / "model")
    (batch,) = trainer.get_train_dataloader()
    inputs = dict(batch)
    expected, gradient = theirs(trainer, inputs)
    every = [
        ids[mask.bool()].numpy()
        for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    ]
    trees = []
    for i in range(PAIRS):
        answers = (every[i], every[PAIRS + i])
        pair = tuple(Sequence(ids, np.ones(len(ids), bool)) for ids in answers)
        unit = Unit((0, 1), {"margin": float(inputs["margin"][i])} if margin else {})
        trees.append(Tree(pair, (unit,)))
    model = RewardModel.load(tmp_path / "model", device="cpu")
    forests = model.pack(trees, budget)
    assert (len(forests) > 1) == (budget == 50)
    # prompts are computed once
    assert sum(forest.T for forest in forests) < int(inputs["attention_mask"].sum())
    found = model.forward_backward(forests, bradley_terry(0.01))
    assert found.loss == pytest.approx(expected, rel=1e-5)
    assert farthest(gradients(model.network.inner), gradient) < 1e-5
    table.append(
        (f"engine, {len(forests)} forests{' margin' if margin else ''}", found.loss, expected, "")
    )
