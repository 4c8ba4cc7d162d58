"""Parity with TRL's preference trainers, by running TRL's own code: data preparation, collators,
compute_loss and gradients.

Our side runs through our engine on the tokens of TRL's batch: pairs share their prompt, and a batch
is cut into several forests. Where we differ on purpose, the test shows both results and says why. A
table of what was compared is printed at the end.

TRL 1.16 has no trainer for BCO of single answers, nor for process reward models; they were taken
out. Those losses are held to numbers by hand only (tests/methods).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tests.parity.test_trl_sft import SHAPE, farthest, gradients, make_tokenizer, sentence
from transformers import LlamaConfig, LlamaForCausalLM
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer
from trl.experimental.tpo import TPOConfig, TPOTrainer

from posttrain.core.errors import ConfigError
from posttrain.core.types import Loss, Measured
from posttrain.data.forest import Sequence, Tree, Unit
from posttrain.engine.policy import Policy
from posttrain.engine.source import Rows, tree_scores
from posttrain.methods.preference import METHODS, Options, preference

pytestmark = [  # of names that TRL uses and this transformers version renamed
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing` is deprecated:FutureWarning")
]
ROWS, BUDGET = 6, 96
Row = dict[str, Any]
Table = list[tuple[str, float, float, str]]
EQUAL = {"sigmoid": "dpo"}  # TRL's name → ours, where they differ
MISSING = "TRL 1.16 has none: by hand only"


# --------------------------------------------------------------------------------- what is compared


def rows(n: int = ROWS) -> list[Row]:
    """Answers of different lengths, near enough that the models order the pairs differently, which
    AOT needs.
    """
    rng = random.Random(3)
    return [
        {
            "prompt": sentence(rng, 1, 6) + "\n",
            "chosen": sentence(rng, 3, 6),
            "rejected": sentence(rng, 3, 6),
            "reference": sentence(rng, 1, 8),
        }
        for _ in range(n)
    ]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A random model, and another near to it as its reference."""
    torch.manual_seed(0)
    network = LlamaForCausalLM(LlamaConfig(**SHAPE))
    made = []
    for name in ("policy", "reference"):
        folder = tmp_path_factory.mktemp(name)
        network.save_pretrained(folder)
        make_tokenizer(bos=True).save_pretrained(folder)
        made.append(folder)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
    return made[0], made[1]


@pytest.fixture(scope="module")
def policies(folders: tuple[Path, Path]) -> tuple[Policy, Policy]:
    return Policy.load(folders[0], device="cpu"), Policy.load(folders[1], device="cpu")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[Table]:
    """Collects (what, ours, TRL's, why they differ) and prints them."""
    found: Table = []
    yield found
    lines = [f"\n{'':<52}{'posttrain':>14}{'TRL':>14}{'difference':>12}"]
    lines += [
        f"{what:<52}{ours:>14.8f}{theirs:>14.8f}{abs(ours - theirs):>12.1e}  {why}"
        for what, ours, theirs, why in found
    ]
    lines += [f"{what:<52}{MISSING}" for what in ("bco (single answers)", "process reward model")]
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n".join(lines))


@dataclass
class Theirs:
    """One batch of TRL's trainer, and what it makes of it."""

    trainer: Any
    inputs: dict[str, Any]
    loss: float
    gradients: dict[str, torch.Tensor]
    shown: dict[str, float]


def theirs(trainer: Any) -> Theirs:
    (batch,) = trainer.get_train_dataloader()
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    shown = (
        trainer._stored_metrics["train"]
        if hasattr(trainer, "_stored_metrics")
        else trainer._metrics["train"]
    )
    return Theirs(
        trainer, batch, loss.item(), gradients(trainer.model), {k: v[0] for k, v in shown.items()}
    )


def made(
    trainer: Any,
    config: Any,
    folders: tuple[Path, Path],
    out: Path,
    data: list[Row],
    **settings: Any,
) -> Any:
    """TRL's trainer in float32 on the CPU; every other setting is its default unless given."""
    args = config(
        **{
            "output_dir": str(out),
            "bf16": False,
            "use_cpu": True,
            "gradient_checkpointing": False,
            "report_to": "none",
            "disable_tqdm": True,
            "remove_unused_columns": False,
            "max_length": 64,
            "per_device_train_batch_size": ROWS,
            **settings,
        }
    )
    networks = [LlamaForCausalLM.from_pretrained(folder) for folder in folders]
    reference = {"ref_model": networks[1]} if trainer in (DPOTrainer, KTOTrainer) else {}
    return trainer(
        model=networks[0],
        args=args,
        train_dataset=Dataset.from_list(data),
        processing_class=make_tokenizer(bos=True),
        **reference,
    )


def paired(
    trainer: Any, config: Any, folders: tuple[Path, Path], out: Path, **settings: Any
) -> Theirs:
    keep = ("prompt", "chosen", "rejected", *(["reference"] if trainer is TPOTrainer else []))
    return theirs(
        made(
            trainer, config, folders, out, [{k: row[k] for k in keep} for row in rows()], **settings
        )
    )


def sequences(tokens: torch.Tensor, real: torch.Tensor, trained: torch.Tensor) -> list[Sequence]:
    return [
        Sequence(ids[on.bool()].numpy(), mask[on.bool()].bool().numpy())
        for ids, on, mask in zip(tokens, real, trained, strict=True)
    ]


def trees(inputs: dict[str, Any]) -> list[Tree]:
    """TRL's batch as our trees, each a unit of (chosen, rejected) or (chosen, rejected, gold)."""
    if "chosen_labels" in inputs:
        sides = []
        for side in ("chosen", "rejected"):
            trained = inputs[f"{side}_labels"] != -100
            real = inputs[f"{side}_attention_mask"]
            sides.append(sequences(inputs[f"{side}_input_ids"], real, trained))
    else:
        every = sequences(inputs["input_ids"], inputs["attention_mask"], inputs["completion_mask"])
        sides = [every[i : i + ROWS] for i in range(0, len(every), ROWS)]
    unit = Unit(tuple(range(len(sides))))
    return [Tree(members, (unit,)) for members in zip(*sides, strict=True)]


def ours(
    policies: tuple[Policy, Policy], loss: Loss, trees: list[Tree], probes: list[Tree] | None = None
) -> tuple[Measured, dict[str, torch.Tensor]]:
    """The same batch through our engine, in several forests."""
    policy, other = policies
    reference = tree_scores(other, other.logprobs, BUDGET)
    forests = policy.pack(Rows(trees, reference).take(range(len(trees))), BUDGET)
    assert len(forests) > 1
    probed = None
    if probes is not None:
        probed = policy.pack(Rows(probes, reference).take(range(len(probes))), BUDGET)
    policy.network.zero_grad()
    measured = policy.forward_backward(forests, loss, probes=probed)
    return measured, gradients(policy.network.inner)


def same(
    table: Table,
    what: str,
    policies: tuple[Policy, Policy],
    loss: Loss,
    other: Theirs,
    batch: tuple[list[Tree], list[Tree] | None] | None = None,
) -> Measured:
    """Loss, gradients of all parameters and what is shown agree."""
    measured, mine = ours(policies, loss, *(batch or (trees(other.inputs),)))
    assert measured.loss == pytest.approx(other.loss, rel=1e-5, abs=1e-6)
    assert farthest(mine, other.gradients) < 1e-4
    table.append((what, measured.loss, other.loss, ""))
    return measured


def shows(measured: Measured, other: Theirs, *names: str) -> None:
    for name in names:
        assert measured.means()[name] == pytest.approx(other.shown[name], rel=1e-4, abs=1e-6), name


# ------------------------------------------------------------------------------------ DPO's trainer

REWARDS = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")
DPO: list[
    tuple[dict[str, float], dict[str, Any], dict[str, Any]]
] = [  # our mixture, our options, TRL's settings
    ({"dpo": 1}, {}, {}),
    ({"dpo": 1}, {"beta": 0.5}, {"beta": 0.5}),
    *(
        ({"dpo": 1}, {"f_divergence": f}, {"f_divergence_type": f})
        for f in ("forward_kl", "js_divergence", "alpha_divergence")
    ),
    (
        {"dpo": 1},
        {"f_divergence": "alpha_divergence", "f_alpha": 0.3},
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3},
    ),
    ({"hinge": 1}, {"f_divergence": "js_divergence"}, {"f_divergence_type": "js_divergence"}),
    ({"dpo": 1}, {"ld_alpha": 0.4}, {"ld_alpha": 0.4}),
    ({"aot": 1}, {"ld_alpha": 0.4}, {"ld_alpha": 0.4}),
    ({"dpo": 1}, {"weighting": True}, {"use_weighting": True}),
    ({"ipo": 1}, {"weighting": True}, {"use_weighting": True}),
    ({"robust": 1}, {}, {"label_smoothing": 0.1}),
    ({"exo_pair": 1}, {}, {"label_smoothing": 1e-3}),
    ({"aot": 1}, {"label_smoothing": 0.1}, {"label_smoothing": 0.1}),
    ({"aot_unpaired": 1}, {"label_smoothing": 0.1}, {"label_smoothing": 0.1}),
    ({"sigmoid_norm": 1}, {}, {"beta": 5.0}),
    ({"discopop": 1}, {"tau": 0.5}, {"discopop_tau": 0.5}),
    *(
        ({name: 1}, {}, {})
        for name in (
            "hinge",
            "ipo",
            "nca_pair",
            "bco_pair",
            "sppo_hard",
            "aot",
            "aot_unpaired",
            "apo_zero",
            "apo_down",
            "discopop",
            "sft",
        )
    ),
    # RPO
    ({"dpo": 1, "sft": 0.7}, {}, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7]}),
    (
        {"dpo": 0.8, "bco_pair": 0.2, "sft": 1},
        {},
        {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
    ),
]


def titled(mix: dict[str, float], options: dict[str, Any]) -> str:
    return " ".join(["+".join(mix), *(f"{k}={v}" for k, v in options.items())])


@pytest.mark.parametrize(("mix", "options", "settings"), DPO, ids=[titled(m, o) for m, o, _ in DPO])
def test_dpos_trainer(
    mix: dict[str, float],
    options: dict[str, Any],
    settings: dict[str, Any],
    folders: tuple[Path, Path],
    policies: tuple[Policy, Policy],
    table: Table,
    tmp_path: Path,
) -> None:
    names = {ours: trl for trl, ours in EQUAL.items()}
    other = paired(
        DPOTrainer,
        DPOConfig,
        folders,
        tmp_path,
        **{"loss_type": [names.get(name, name) for name in mix], **settings},
    )
    measured = same(
        table, titled(mix, options), policies, preference(mix, Options(**options)), other
    )
    if METHODS[next(iter(mix))].reference:
        shows(measured, other, *REWARDS)
    shows(
        measured,
        other,
        "entropy",
        *(() if "ld_alpha" in options else ("logps/chosen", "logps/rejected")),
    )


def test_every_method_of_dpos_trainer_is_compared() -> None:
    pairs = {name for name, method in METHODS.items() if method.rows == "pairs"}
    assert {name for mix, _, _ in DPO for name in mix} == pairs - {
        "simpo",
        "alphapo",
        "cpo",
        "orpo",
    }


# -------------------------------------------------------------------------- CPO's, ORPO's and TPO's

CPO: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("cpo", {}, {}),
    ("cpo", {"label_smoothing": 0.2, "nll": 0.3}, {"label_smoothing": 0.2, "cpo_alpha": 0.3}),
    ("simpo", {}, {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0, "simpo_gamma": 1.0}),
    (
        "simpo",
        {"label_smoothing": 0.2},
        {
            "loss_type": "simpo",
            "cpo_alpha": 0.0,
            "beta": 2.0,
            "simpo_gamma": 1.0,
            "label_smoothing": 0.2,
        },
    ),
    ("alphapo", {}, {"loss_type": "alphapo", "alpha": 0.25, "beta": 2.5, "simpo_gamma": 0.1}),
]


@pytest.mark.parametrize(
    ("name", "options", "settings"), CPO, ids=[titled({n: 1}, o) for n, o, _ in CPO]
)
def test_cpos_trainer(
    name: str,
    options: dict[str, Any],
    settings: dict[str, Any],
    folders: tuple[Path, Path],
    policies: tuple[Policy, Policy],
    table: Table,
    tmp_path: Path,
) -> None:
    other = paired(CPOTrainer, CPOConfig, folders, tmp_path, **settings)
    measured = same(
        table,
        titled({name: 1}, options),
        policies,
        preference({name: 1}, Options(**options)),
        other,
    )
    shows(measured, other, *REWARDS)


@pytest.mark.parametrize(
    ("name", "options", "settings"),
    [
        ("tpo", {}, {}),
        (
            "tpo",
            {"beta": 0.1, "label_smoothing": 0.2, "nll": 0.3},
            {"beta": 0.1, "label_smoothing": 0.2, "tpo_alpha": 0.3},
        ),
        ("tpo_l", {}, {"loss_type": "tpo-l", "beta": 2.0, "tpo_l_gamma": 1.0}),
    ],
)
def test_tpos_trainer(
    name: str,
    options: dict[str, Any],
    settings: dict[str, Any],
    folders: tuple[Path, Path],
    policies: tuple[Policy, Policy],
    table: Table,
    tmp_path: Path,
) -> None:
    other = paired(TPOTrainer, TPOConfig, folders, tmp_path, **settings)
    measured = same(
        table,
        titled({name: 1}, options),
        policies,
        preference({name: 1}, Options(**options)),
        other,
    )
    shows(measured, other, *REWARDS, "entropy")


def test_orpos_odds_are_trls_and_its_likelihood_is_not(
    folders: tuple[Path, Path], policies: tuple[Policy, Policy], table: Table, tmp_path: Path
) -> None:
    """The paper's likelihood is of the answer.

    TRL's is of prompt and answer, so that it also trains the prompts.
    """
    other = paired(ORPOTrainer, ORPOConfig, folders, tmp_path)
    trainer = other.trainer
    measured, mine = ours(policies, preference({"orpo": 1}, Options()), trees(other.inputs))
    assert abs(measured.loss - other.loss) > 0.01 and farthest(mine, other.gradients) > 0.01
    table.append(("orpo", measured.loss, other.loss, "TRL's likelihood is of the prompt, too"))
    shows(measured, other, *REWARDS)
    whole = trainer.concatenated_forward
    # TRL's code without its likelihood
    trainer.concatenated_forward = lambda *a: (*whole(*a)[:4], torch.zeros(()))
    trainer.model.zero_grad()
    trainer._stored_metrics["train"].clear()
    same(table, "orpo nll=0", policies, preference({"orpo": 1}, Options(nll=0.0)), theirs(trainer))


# -------------------------------------------------------------------------------------------- KTO's


def labelled(data: list[Row]) -> list[Row]:
    return [
        {"prompt": row["prompt"], "completion": row["chosen"], "label": i % 3 != 0}
        for i, row in enumerate(data)
    ]


def kto_batch(inputs: dict[str, Any]) -> tuple[list[Tree], list[Tree] | None]:
    """TRL's labelled answers as our trees, and its mismatched ones as our probes."""
    probes = None
    if "KL_input_ids" in inputs:
        tokens, real = inputs["KL_input_ids"], inputs["KL_attention_mask"]
        mismatched = sequences(tokens, real, inputs["KL_completion_mask"])
        probes = [Tree((sequence,)) for sequence in mismatched]
    answers = sequences(inputs["input_ids"], inputs["attention_mask"], inputs["completion_mask"])
    labelled = []
    for answer, label in zip(answers, inputs["label"], strict=True):
        labelled.append(Tree((replace(answer, whole={"label": float(label)}),)))
    return labelled, probes


@pytest.mark.parametrize("swapped", [False, True], ids=["z at 0", "z above 0"])
@pytest.mark.parametrize(
    ("name", "options", "settings"),
    [
        ("kto", {}, {}),
        (
            "kto",
            {"beta": 0.3, "desirable": 1.5, "undesirable": 0.5},
            {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.5},
        ),
        ("apo_zero_unpaired", {}, {"loss_type": "apo_zero_unpaired"}),
    ],
)
def test_ktos_trainer(
    name: str,
    options: dict[str, Any],
    settings: dict[str, Any],
    swapped: bool,
    folders: tuple[Path, Path],
    policies: tuple[Policy, Policy],
    table: Table,
    tmp_path: Path,
) -> None:
    turn = slice(None, None, -1 if swapped else 1)
    other = theirs(
        made(KTOTrainer, KTOConfig, folders[turn], tmp_path, labelled(rows()), **settings)
    )
    what = titled({name: 1}, options) + (" swapped" if swapped else "")
    measured = same(
        table,
        what,
        policies[turn],
        preference({name: 1}, Options(**options)),
        other,
        kto_batch(other.inputs),
    )
    shows(
        measured,
        other,
        "rewards/chosen",
        "rewards/rejected",
        "logps/chosen",
        "logps/rejected",
        "entropy",
    )
    if name == "kto":
        z = measured.means()["rewards/baseline"] / options.get("beta", 0.1)
        assert z == pytest.approx(other.shown["kl"], rel=1e-4, abs=1e-6)
        assert (z > 0) == swapped, "both sides of the clamp must be compared"


# ----------------------------------------------------------------------- where we differ on purpose


def test_smoothed_dpo_is_smoothed(
    folders: tuple[Path, Path], policies: tuple[Policy, Policy], table: Table, tmp_path: Path
) -> None:
    """TRL's sigmoid loss takes label_smoothing and does not look at it."""
    other = paired(DPOTrainer, DPOConfig, folders, tmp_path, label_smoothing=0.2)
    same(table, "dpo, TRL with label_smoothing=0.2", policies, preference({"dpo": 1}), other)
    smoothed, _ = ours(
        policies, preference({"dpo": 1}, Options(label_smoothing=0.2)), trees(other.inputs)
    )
    # −.8·log σ(z) − .2·log σ(−z) is −log σ(z) + .2 z
    assert smoothed.loss - other.loss == pytest.approx(
        0.2 * other.shown["rewards/margins"], rel=1e-4
    )
    assert abs(smoothed.loss - other.loss) > 1e-3
    table.append(("dpo label_smoothing=0.2", smoothed.loss, other.loss, "TRL ignores it"))


@pytest.mark.parametrize(
    ("name", "trainer", "config", "settings", "why"),
    [
        (
            "simpo",
            CPOTrainer,
            CPOConfig,
            {"loss_type": "simpo"},
            "TRL: β .1, γ .5, plus likelihood; ours β 2, γ 1",
        ),
        (
            "alphapo",
            CPOTrainer,
            CPOConfig,
            {"loss_type": "alphapo"},
            "TRL: α 0, which is SimPO, β .1, γ .5; ours α .25, β 2.5, γ .1",
        ),
        ("tpo_l", TPOTrainer, TPOConfig, {"loss_type": "tpo-l"}, "TRL: β .01, γ .5; ours β 2, γ 1"),
        (
            "sigmoid_norm",
            DPOTrainer,
            DPOConfig,
            {"loss_type": ["sigmoid_norm"]},
            "TRL: β .1; ours 5 (Tülu 3)",
        ),
        (
            "robust",
            DPOTrainer,
            DPOConfig,
            {"loss_type": ["robust"]},
            "TRL: no flips, which is DPO; ours 0.1",
        ),
    ],
)
def test_defaults_that_differ(
    name: str,
    trainer: Any,
    config: Any,
    settings: dict[str, Any],
    why: str,
    folders: tuple[Path, Path],
    policies: tuple[Policy, Policy],
    table: Table,
    tmp_path: Path,
) -> None:
    other = paired(trainer, config, folders, tmp_path, **settings)
    measured, _ = ours(policies, preference({name: 1}), trees(other.inputs))
    assert abs(measured.loss - other.loss) > 1e-3
    table.append((f"{name}, defaults", measured.loss, other.loss, why))


@pytest.mark.parametrize(
    ("name", "options", "settings", "error"),
    [
        ("exo_pair", {"label_smoothing": 0.0}, {}, ValueError),  # TRL's own default
        ("aot", {"weighting": True}, {"use_weighting": True}, NotImplementedError),
        ("aot_unpaired", {"weighting": True}, {"use_weighting": True}, NotImplementedError),
        (
            "nca_pair",
            {"f_divergence": "js_divergence"},
            {"f_divergence_type": "js_divergence"},
            ValueError,
        ),
        # TRL's breaks in its own code
        ("sft", {"weighting": True}, {"use_weighting": True}, RuntimeError),
    ],
)
def test_what_both_refuse(
    name: str,
    options: dict[str, Any],
    settings: dict[str, Any],
    error: type[Exception],
    folders: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    with pytest.raises(error):
        paired(DPOTrainer, DPOConfig, folders, tmp_path, loss_type=[name], **settings)
    with pytest.raises(ConfigError):
        preference({name: 1}, Options(**options))


@pytest.mark.parametrize(
    ("name", "options", "settings"),
    [
        ("ipo", {"ld_alpha": 0.4}, {"ld_alpha": 0.4}),
        ("sigmoid_norm", {"ld_alpha": 0.4}, {"ld_alpha": 0.4}),
        ("ipo", {"f_divergence": "js_divergence"}, {"f_divergence_type": "js_divergence"}),
        ("sigmoid_norm", {"f_divergence": "js_divergence"}, {"f_divergence_type": "js_divergence"}),
        ("sft", {"f_divergence": "js_divergence"}, {"f_divergence_type": "js_divergence"}),
        ("hinge", {"label_smoothing": 0.2}, {"label_smoothing": 0.2}),
        ("ipo", {"label_smoothing": 0.2}, {"label_smoothing": 0.2}),
        ("apo_zero", {"label_smoothing": 0.2}, {"label_smoothing": 0.2}),
        ("dpo", {"tau": 0.2}, {"discopop_tau": 0.2}),
    ],
)
def test_options_that_trl_takes_and_we_refuse(
    name: str,
    options: dict[str, Any],
    settings: dict[str, Any],
    folders: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    """TRL ignores them, or they mean nothing there: a sum's tail in a mean, f′ of a sequence over
    its length.
    """
    trl = {ours: trl for trl, ours in EQUAL.items()}.get(name, name)
    assert np.isfinite(
        paired(DPOTrainer, DPOConfig, folders, tmp_path, loss_type=[trl], **settings).loss
    )
    with pytest.raises(ConfigError, match="has no meaning for"):
        preference({name: 1}, Options(**options))


def test_trls_micro_batches_are_means_of_means(
    folders: tuple[Path, Path], policies: tuple[Policy, Policy], table: Table, tmp_path: Path
) -> None:
    """Two micro-batches of three rows. TRL averages them, so that tokens of a shorter half weigh
    more, AOT sorts each half for itself and KTO has a reference point for each half. Ours is one
    batch of six whatever it is cut into.
    """
    why = "TRL averages two micro-batches"
    by_pair = paired(DPOTrainer, DPOConfig, folders, tmp_path).loss
    for name in ("sft", "aot", "aot_unpaired"):
        whole = paired(DPOTrainer, DPOConfig, folders, tmp_path, loss_type=[name])
        trainer, inputs = whole.trainer, whole.inputs
        halves = [
            {k: torch.cat([v[i : i + 3], v[i + ROWS : i + ROWS + 3]]) for k, v in inputs.items()}
            for i in (0, 3)
        ]
        accumulated = (
            sum(float(trainer.compute_loss(trainer.model, half).detach()) for half in halves) / 2
        )
        measured, _ = ours(policies, preference({name: 1}), trees(inputs))
        assert measured.loss == pytest.approx(whole.loss, rel=1e-5)
        assert abs(accumulated - whole.loss) > 1e-4 and abs(whole.loss - by_pair) > 1e-4
        table.append((f"{name}, accumulated", measured.loss, accumulated, why))
    whole = theirs(made(KTOTrainer, KTOConfig, folders[::-1], tmp_path, labelled(rows())))
    halves = [{k: v[i : i + 3] for k, v in whole.inputs.items()} for i in (0, 3)]
    accumulated = (
        sum(
            float(whole.trainer.compute_loss(whole.trainer.model, half).detach()) for half in halves
        )
        / 2
    )
    measured, _ = ours(policies[::-1], preference({"kto": 1}), *kto_batch(whole.inputs))
    assert measured.loss == pytest.approx(whole.loss, rel=1e-5)
    assert abs(accumulated - whole.loss) > 1e-4
    table.append(("kto, accumulated", measured.loss, accumulated, why))


def test_undecided_pairs_count_half(
    folders: tuple[Path, Path], policies: tuple[Policy, Policy], table: Table, tmp_path: Path
) -> None:
    """At the first step policy and reference are one model: every margin is 0.

    TRL shows an accuracy of 0.
    """
    other = paired(DPOTrainer, DPOConfig, (folders[0], folders[0]), tmp_path)
    measured, _ = ours((policies[0], policies[0]), preference({"dpo": 1}), trees(other.inputs))
    assert measured.loss == pytest.approx(other.loss, rel=1e-6)
    assert (
        measured.means()["rewards/accuracies"] == 0.5 and other.shown["rewards/accuracies"] == 0.0
    )
    table.append(("dpo, accuracy before the first step", 0.5, 0.0, "a tie is no error"))
