"""Parity with TRL's trainers of learning from reward, by running TRL's own code: generation,
advantages, `_compute_loss` and gradients. Batches are captured from the trainers; between capture
and update the weights change, so that ratios are not 1.

Our side runs through our engine: completions share their prompt, and a batch is cut into several
forests. A table of what was compared is printed at the end. TRL 1.16 has no PPO, REINFORCE++,
ReMax, Clip-Cov nor KL-Cov: those are held to a padded writing of their reference's formula.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tests.parity.test_trl_sft import SHAPE, farthest, gradients, make_tokenizer, sentence
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.experimental.gmpo import GMPOConfig, GMPOTrainer

from posttrain.core.types import Columns, Facts, Loss
from posttrain.data.forest import Sequence, Tree, Unit
from posttrain.engine.policy import Policy
from posttrain.methods.credit import ALGORITHMS, Samples
from posttrain.methods.policy_gradient import policy_gradient
from posttrain.methods.rl_options import RlOptions

pytestmark = [  # of names that TRL uses and this transformers version renamed
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing` is deprecated:FutureWarning")
]
G, PROMPTS, LONGEST, BUDGET, TEMPERATURE = 4, 3, 8, 48, 0.7
Table = list[tuple[str, float, float, str]]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A random model that samples, a reference near to it, and the policy after some steps."""
    torch.manual_seed(0)
    network = LlamaForCausalLM(LlamaConfig(**SHAPE))
    made = []
    for name in ("sampled", "reference", "policy"):
        folder = tmp_path_factory.mktemp(name)
        network.save_pretrained(folder)
        make_tokenizer(bos=True).save_pretrained(folder)
        made.append(folder)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.008 * torch.randn_like(parameter)
    return made


def judge(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
    """Rewards in quarters; one completion in seven cannot be scored."""
    sums = [sum(ids) for ids in completion_ids]
    return [None if s % 7 == 3 else (s % 9) / 4 for s in sums]


def trainer_of(kind: Any, config: Any, folders: list[Path], out: Path, **settings: Any) -> Any:
    """TRL's trainer in float32 on the CPU; every other setting is its default unless given."""
    rng = random.Random(5)
    args = config(
        output_dir=str(out),
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
        per_device_train_batch_size=G * PROMPTS,
        num_generations=G,
        max_completion_length=LONGEST,
        temperature=TEMPERATURE,
        **settings,
    )
    trainer = kind(
        model=LlamaForCausalLM.from_pretrained(folders[0]),
        reward_funcs=judge,
        args=args,
        train_dataset=Dataset.from_list([{"prompt": sentence(rng, 1, 6)} for _ in range(PROMPTS)]),
        processing_class=make_tokenizer(bos=True),
    )
    trainer.current_gradient_accumulation_steps = 1
    return trainer


@dataclass
class Captured:
    """A batch of a trainer, and what its models say of it."""

    trainer: Any
    prompts: list[dict[str, Any]]
    inputs: dict[str, Any]
    rewards: np.ndarray  # [PROMPTS, G]
    logprobs: dict[str, Tensor]  # [B, T] by model: sampled, reference, policy

    @property
    def mask(self) -> Tensor:
        return self.inputs["completion_mask"].bool()

    def rows(self, values: Tensor) -> list[np.ndarray]:
        """[B, T] → [n] of each completion."""
        return [v[m].double().numpy() for v, m in zip(values, self.mask, strict=True)]

    def samples(self) -> list[Samples]:
        logprobs, reference = (self.rows(self.logprobs[k]) for k in ("sampled", "reference"))
        groups = []
        for g, rewards in enumerate(self.rewards):
            part = slice(G * g, G * g + G)
            lengths = np.array([len(row) for row in logprobs[part]])
            done = np.ones(G, bool)
            groups.append(Samples(rewards, lengths, done, logprobs[part], reference[part]))
        return groups

    def trees(self, advantages: Tensor, sampler: Tensor) -> list[Tree]:
        """Our trees of the batch; advantages are [B]."""
        facts = {
            "advantages": advantages[:, None].expand_as(sampler),
            "old_logprobs": self.logprobs["sampled"],
            "sampled_logprobs": sampler,
            "reference": self.logprobs["reference"],
        }
        sequences = []
        for row in range(G * PROMPTS):
            prompt = self.inputs["prompt_ids"][row][self.inputs["prompt_mask"][row].bool()]
            tokens = torch.cat([prompt, self.inputs["completion_ids"][row][self.mask[row]]]).numpy()
            pad = np.zeros(len(prompt), np.float32)
            known = {k: v[row][self.mask[row]].float().numpy() for k, v in facts.items()}
            sequences.append(
                Sequence(
                    tokens,
                    np.arange(len(tokens)) >= len(prompt),
                    {name: np.concatenate([pad, v]) for name, v in known.items()},
                )
            )
        unit = (Unit(tuple(range(G))),)
        groups = range(0, len(sequences), G)
        return [Tree(tuple(sequences[i : i + G]), unit) for i in groups]


LENGTHS = torch.tensor([8, 3, 5, 1, 8, 2, 7, 4, 6, 8, 1, 5])  # the model rarely ends by itself


def capture(trainer: Any, folders: list[Path]) -> Captured:
    """Let the trainer sample and give credit, then move its weights on."""
    torch.manual_seed(1)
    trainer.model.train()
    generate, generated = trainer._generate, []

    def once(prompts: list[Any]) -> Any:
        if not generated:
            generated.append(generate(prompts))
        return generated[0]

    trainer._generate = once
    rows = next(iter(trainer.get_train_dataloader()))
    inputs = trainer._generate_and_score_completions(rows)
    scores = [math.nan if r is None else r for r in judge(inputs["completion_ids"].tolist())]
    assert inputs["completion_mask"].all()
    rewards = np.array(scores).reshape(PROMPTS, G)
    assert np.isnan(rewards).any()
    tokens = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    real = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    inputs["completion_mask"] = (torch.arange(LONGEST) < LENGTHS[:, None]).long()
    inputs["num_items_in_batch"] = LENGTHS.sum()
    logprobs = {}
    for name, folder in zip(("sampled", "reference", "policy"), folders, strict=True):
        trainer.model.load_state_dict(LlamaForCausalLM.from_pretrained(folder).state_dict())
        with torch.no_grad():
            logprobs[name], _, _ = trainer._get_per_token_logps_and_entropies(
                trainer.model, tokens, real, LONGEST
            )
    ratios = (logprobs["policy"] - logprobs["sampled"])[inputs["completion_mask"].bool()].exp()
    assert (ratios < 0.8).any() and (ratios > 1.28).any()
    return Captured(trainer, rows, inputs, rewards, logprobs)


@pytest.fixture(scope="module")
def grpo(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Captured:
    out = tmp_path_factory.mktemp("grpo")
    return capture(trainer_of(GRPOTrainer, GRPOConfig, folders, out), folders)


@pytest.fixture(scope="module")
def rloo(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Captured:
    out = tmp_path_factory.mktemp("rloo")
    trainer = trainer_of(RLOOTrainer, RLOOConfig, folders, out, beta=0.05)
    trainer.ref_model.load_state_dict(LlamaForCausalLM.from_pretrained(folders[1]).state_dict())
    return capture(trainer, folders)


@pytest.fixture(scope="module")
def learner(folders: list[Path]) -> Policy:
    return Policy.load(folders[2], device="cpu")


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[Table]:
    """Collects (what, ours, theirs, whose) and prints them."""
    found: Table = []
    yield found
    lines = [f"\n{'':<58}{'posttrain':>14}{'theirs':>14}{'difference':>12}"]
    lines += [
        f"{what:<58}{ours:>14.8f}{theirs:>14.8f}{abs(ours - theirs):>12.1e}  {whose}"
        for what, ours, theirs, whose in found
    ]
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n".join(lines))


# ------------------------------------------------------------------------------------------ credit


def credited(name: str, batch: Captured, **options: Any) -> Tensor:
    """[B] our advantage of every completion."""
    groups = ALGORITHMS[name].credit(batch.samples(), RlOptions(**{"beta": 0.0, **options}))
    return torch.tensor([float(a[0]) for g in groups for a in g.advantages])


def rescored(batch: Captured, folders: list[Path], **settings: Any) -> Tensor:
    """[B] TRL's advantages of the same completions, with other settings."""
    trainer = batch.trainer
    before = {name: getattr(trainer, name) for name in settings}
    weights = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.model.load_state_dict(LlamaForCausalLM.from_pretrained(folders[0]).state_dict())
    for name, value in settings.items():
        setattr(trainer, name, value)
    advantages = trainer._generate_and_score_completions(batch.prompts)["advantages"]
    for name, value in before.items():
        setattr(trainer, name, value)
    trainer.model.load_state_dict(weights)
    return advantages


def test_grpos_advantages(grpo: Captured, folders: list[Path]) -> None:
    for name in ("grpo", "dapo", "gspo", "cispo", "sapo", "gmpo"):
        torch.testing.assert_close(
            credited(name, grpo), grpo.inputs["advantages"], rtol=1e-5, atol=1e-6
        )
    for scale in ("batch", "none"):
        theirs = rescored(grpo, folders, scale_rewards=scale)
        torch.testing.assert_close(
            credited("grpo", grpo, scale=scale), theirs, rtol=1e-5, atol=1e-6
        )
    torch.testing.assert_close(credited("dr_grpo", grpo), theirs, rtol=1e-5, atol=1e-6)


def test_rloos_advantages(rloo: Captured, folders: list[Path]) -> None:
    """Its divergence in the reward is of all eight tokens: the mask was cut after."""
    whole = replace(rloo, inputs={**rloo.inputs, "completion_mask": torch.ones(G * PROMPTS, 8)})
    theirs = rloo.inputs["advantages"]
    torch.testing.assert_close(credited("rloo", whole, beta=0.05), theirs, rtol=1e-5, atol=1e-5)
    theirs = rescored(rloo, folders, normalize_advantages=True)
    torch.testing.assert_close(
        credited("rloo", whole, beta=0.05, scale="batch"), theirs, rtol=1e-5, atol=1e-5
    )


# ----------------------------------------------------------------------------- losses and gradients


def same(
    table: Table,
    what: str,
    learner: Policy,
    batch: Captured,
    loss: Loss,
    sampler: Tensor,
    theirs: Tensor,
    whose: str = "TRL",
) -> None:
    """Loss and gradients of all parameters agree."""
    theirs.backward()
    expected = gradients(batch.trainer.model)
    trees = batch.trees(batch.inputs["advantages"], sampler)
    forests = learner.pack(trees, BUDGET)
    assert len(forests) > 1
    measured = learner.forward_backward(forests, loss)
    mine = gradients(learner.network.inner)
    table.append((what, measured.loss, theirs.item(), whose))
    assert measured.loss == pytest.approx(theirs.item(), rel=1e-5, abs=2e-6)
    assert farthest(mine, expected) < 1e-4


@contextmanager
def set_to(trainer: Any, settings: dict[str, Any]) -> Iterator[None]:
    """A trainer with other settings, those with a dot of its arguments."""
    before = {}
    for name, value in settings.items():
        holder = trainer.args if name.startswith("args.") else trainer
        name = name.removeprefix("args.")
        before[name] = (holder, getattr(holder, name))
        setattr(holder, name, value)
    yield
    for name, (holder, value) in before.items():
        setattr(holder, name, value)


PLAIN: dict[str, Any] = {"beta": 0.0, "correction": "none"}
KL = {"beta": 0.1}
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("grpo", {}, {"loss_type": "grpo"}),
    ("grpo", KL, {"loss_type": "grpo", "beta": 0.1}),
    (
        "grpo",
        {**KL, "kl_weighted": False},
        {"loss_type": "grpo", "beta": 0.1, "args.use_bias_correction_kl": False},
    ),
    ("grpo", {"clip_largest": 1.5}, {"loss_type": "grpo", "args.delta": 1.5}),
    ("dr_grpo", KL, {"loss_type": "dr_grpo", "beta": 0.1}),
    ("bnpo", KL, {"loss_type": "bnpo", "beta": 0.1}),
    ("dapo", KL, {"loss_type": "dapo", "beta": 0.1, "epsilon_high": 0.28}),
    (
        "dapo",
        {"correction": "token", "correction_cap": 1.1},
        {"loss_type": "dapo", "epsilon_high": 0.28, "use_vllm": True},
    ),
    ("dapo", {"entropy_weight": 0.05}, {"epsilon_high": 0.28, "entropy_coef": 0.05}),
    (
        "gspo",
        KL,
        {
            "loss_type": "grpo",
            "importance_sampling_level": "sequence",
            "epsilon_low": 3e-4,
            "epsilon_high": 4e-4,
            "beta": 0.1,
        },
    ),
    (
        "gspo",
        {"aggregate": "sum", "clip_low": 0.2, "clip_high": 0.2},  # LUSPO
        {"loss_type": "luspo", "importance_sampling_level": "sequence"},
    ),
    ("cispo", KL, {"loss_type": "cispo", "epsilon_high": 5.0, "beta": 0.1}),
    ("cispo", {"clip_high": 1.1}, {"loss_type": "cispo", "epsilon_high": 1.1}),
    ("sapo", KL, {"loss_type": "sapo", "beta": 0.1}),
    ("sapo", {"sapo_positive": 2.0}, {"loss_type": "sapo", "args.sapo_temperature_pos": 2.0}),
    ("gmpo", {}, {"epsilon_low": 0.4, "epsilon_high": 0.4}),
    ("gmpo", {**KL, "clip_high": 0.1}, {"epsilon_low": 0.4, "epsilon_high": 0.1, "beta": 0.1}),
]


def titled(name: str, options: dict[str, Any]) -> str:
    return " ".join([name, *(f"{k}={v}" for k, v in options.items())])


@pytest.mark.parametrize(
    ("name", "options", "settings"), CASES, ids=[titled(n, o) for n, o, _ in CASES]
)
def test_grpos_trainer(
    name: str,
    options: dict[str, Any],
    settings: dict[str, Any],
    grpo: Captured,
    learner: Policy,
    table: Table,
) -> None:
    trainer, old = grpo.trainer, grpo.logprobs["sampled"]
    torch.manual_seed(2)
    sampler = old + 0.3 * torch.randn_like(old)
    more = {
        "old_per_token_logps": old,
        "ref_per_token_logps": grpo.logprobs["reference"],
        "importance_sampling_ratio": (old - sampler).exp().clamp(max=1.1),
    }
    bonus = {"_entropy_bonus_enabled": "entropy_coef" in settings}
    loss = policy_gradient(
        name, RlOptions(**{**PLAIN, **options}), TEMPERATURE, None, longest=LONGEST
    )
    with set_to(trainer, {**settings, **bonus}):
        take = GMPOTrainer._compute_loss if name == "gmpo" else GRPOTrainer._compute_loss
        theirs = take(trainer, trainer.model, {**grpo.inputs, **more})
    same(table, titled(name, options), learner, grpo, loss, sampler, theirs)


def test_rloos_trainer(rloo: Captured, learner: Policy, table: Table) -> None:
    old = (rloo.logprobs["sampled"] * rloo.inputs["completion_mask"]).sum(1)
    theirs = rloo.trainer._compute_loss(rloo.trainer.model, {**rloo.inputs, "old_logps": old})
    loss = policy_gradient("rloo", RlOptions(correction="none"), TEMPERATURE, None)
    same(table, "rloo", learner, rloo, loss, rloo.logprobs["sampled"], theirs)


def test_what_is_shown_is_what_trl_shows(grpo: Captured, learner: Policy) -> None:
    trainer = grpo.trainer
    more = {
        "old_per_token_logps": grpo.logprobs["sampled"],
        "ref_per_token_logps": grpo.logprobs["reference"],
    }
    trainer._metrics["train"].clear()
    with set_to(trainer, {"beta": 0.1, "args.use_bias_correction_kl": False}):
        trainer._compute_loss(trainer.model, {**grpo.inputs, **more})
    shown = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    loss = policy_gradient("grpo", RlOptions(), TEMPERATURE, None)
    trees = grpo.trees(grpo.inputs["advantages"], grpo.logprobs["sampled"])
    means = learner.measure(learner.pack(trees, BUDGET), loss).means()
    for mine, theirs in {
        "policy/kl": "kl",
        "policy/entropy": "entropy",
        "policy/clip_low": "clip_ratio/low_mean",
        "policy/clip_high": "clip_ratio/high_mean",
    }.items():
        assert means[mine] == pytest.approx(shown[theirs], rel=1e-4), mine


def test_trls_defaults_are_ours_or_said() -> None:
    """Where a default is another, docs/reference/rl-methods.md says why."""
    cpu: dict[str, Any] = {"output_dir": "", "use_cpu": True, "bf16": False}
    grpo, gmpo, rloo = GRPOConfig(**cpu), GMPOConfig(**cpu), RLOOConfig(**cpu)
    ours = {name: method.defaults for name, method in ALGORITHMS.items()}
    assert ours["grpo"]["clip_low"] == grpo.epsilon and ours["gmpo"]["clip_low"] == gmpo.epsilon
    assert ours["grpo"]["scale"] == grpo.scale_rewards
    assert ours["grpo"]["kl_weighted"] == grpo.use_bias_correction_kl
    assert ours["grpo"]["correction_cap"] == grpo.vllm_importance_sampling_clip_max
    assert ours["sapo"]["sapo_positive"] == grpo.sapo_temperature_pos
    assert ours["sapo"]["sapo_negative"] == grpo.sapo_temperature_neg
    assert (ours["rloo"]["beta"], ours["rloo"]["clip_low"]) == (rloo.beta, rloo.epsilon)
    assert grpo.beta == 0.0 and ours["grpo"]["beta"] == 0.02  # they differ


# ------------------------------------------------------------------ formulas of others, in matrices


@dataclass
class Padded:
    """Completions as [B, T] matrices: how verl holds them, and TRL's former PPO."""

    mask: Tensor
    logprob: Tensor
    old: Tensor
    reference: Tensor
    value: Tensor
    old_values: Tensor
    scores: Tensor

    def mean(self, matrix: Tensor) -> Tensor:
        return (matrix * self.mask).sum() / self.mask.sum()

    def rewards(self, beta: float) -> Tensor:
        """[B, T] −β·k1, and the score at the last token."""
        last = torch.nn.functional.one_hot(self.mask.sum(1).long() - 1, self.mask.shape[1])
        return (-beta * (self.old - self.reference) + last * self.scores[:, None]) * self.mask

    def backwards(self, steps: Tensor, decay: float) -> Tensor:
        """[B, T] each step and what follows it, decayed."""
        running, columns = torch.zeros(len(steps)).double(), []
        for t in reversed(range(steps.shape[1])):
            running = steps[:, t] + decay * running
            columns.append(running)
        return torch.stack(columns[::-1], 1) * self.mask

    def white(self, matrix: Tensor) -> Tensor:
        mean, n = self.mean(matrix), self.mask.sum()
        variance = self.mean((matrix - mean) ** 2) * n / (n - 1)
        return (matrix - mean) * torch.rsqrt(variance + 1e-8) * self.mask

    def clipped(self, advantages: Tensor, high: float = 0.2) -> Tensor:
        ratio = (self.logprob - self.old).exp()
        return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(0.8, 1 + high))

    def covariance(self, advantages: Tensor) -> Tensor:
        products = (advantages - self.mean(advantages)) * (self.logprob - self.mean(self.logprob))
        return products.detach().masked_fill(self.mask == 0, -torch.inf)


@pytest.fixture
def padded() -> Padded:
    rng = torch.Generator().manual_seed(3)
    lengths = torch.tensor([4, 1, 6, 3])

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape or (4, 6), generator=rng, dtype=torch.float64)

    old = drawn() - 2
    logprob, value = (old + 0.4 * drawn()).requires_grad_(), drawn().requires_grad_()
    mask = (torch.arange(6) < lengths[:, None]).double()
    scores = torch.tensor([1.0, 0.0, 0.5, -1.0], dtype=torch.float64)
    return Padded(mask, logprob, old, old + 0.5 * drawn(), value, drawn(), scores)


def ours(padded: Padded, name: str, **options: Any) -> tuple[Tensor, Tensor]:
    """Advantages, laid end to end, and the loss, by our code; two groups of two."""
    real = padded.mask.bool()
    lengths = real.sum(1).tolist()

    def rows(matrix: Tensor) -> list[np.ndarray]:
        return [m[r].detach().numpy() for m, r in zip(matrix, real, strict=True)]

    batch = []
    for first in (0, 2):
        part = slice(first, first + 2)
        batch.append(
            Samples(
                padded.scores[part].numpy(),
                np.array(lengths[part]),
                np.ones(2, bool),
                rows(padded.old)[part],
                rows(padded.reference)[part],
                rows(padded.old_values)[part],
                greedy=0.25,
            )
        )
    settings = RlOptions(**{"correction": "none", **options})
    credits = ALGORITHMS[name].credit(batch, settings)
    advantages = torch.from_numpy(np.concatenate([a for c in credits for a in c.advantages]))
    targets = {
        "advantages": advantages,
        "old_logprobs": padded.old[real],
        "old_values": padded.old_values[real],
    }
    if credits[0].returns is not None:
        returns = [r for c in credits if c.returns is not None for r in c.returns]
        targets["returns"] = torch.from_numpy(np.concatenate(returns))
    leaf = torch.repeat_interleave(torch.arange(4), real.sum(1))
    facts = Facts(leaf, 4, torch.tensor([[0, 1], [2, 3]]), torch.arange(2), targets)
    columns = Columns(padded.logprob[real], value=padded.value[real])
    loss = policy_gradient(name, settings, 1.0, None)
    with torch.no_grad():
        statistics = loss.prepare([columns], [facts]) if loss.prepare else None
    return advantages, loss.loss(columns, facts, loss.counts(facts), statistics)


def agrees(
    table: Table, padded: Padded, name: str, advantages: Tensor, loss: Tensor, **options: Any
) -> None:
    mine, value = ours(padded, name, **options)
    torch.testing.assert_close(mine, advantages[padded.mask.bool()])
    torch.testing.assert_close(value, loss)
    leaves = [padded.logprob, padded.value] if name == "ppo" else [padded.logprob]
    for one, other in zip(*(torch.autograd.grad(v, leaves) for v in (value, loss)), strict=True):
        torch.testing.assert_close(one, other)
    table.append((titled(name, options), value.item(), loss.item(), "formula"))


def test_ppo(table: Table, padded: Padded) -> None:
    """TRL's former PPOTrainer: δ, A, whitening, value clipping; vf_coef 0.1."""
    values = padded.old_values * padded.mask
    following = torch.cat([values[:, 1:], torch.zeros(4, 1)], 1)
    deltas = (padded.rewards(0.05) + 0.9 * following - values) * padded.mask
    raw = padded.backwards(deltas, 0.9 * 0.95)
    returns, advantages = raw + values, padded.white(raw)
    near = torch.clamp(padded.value, values - 0.2, values + 0.2)
    errors = torch.maximum((padded.value - returns) ** 2, (near - returns) ** 2)
    loss = padded.mean(padded.clipped(advantages)) + 0.1 * 0.5 * padded.mean(errors)
    agrees(table, padded, "ppo", advantages, loss, gamma=0.9)


def test_reinforce_pp(table: Table, padded: Padded) -> None:
    """verl's reinforce_plus_plus, and OpenRLHF's token-level loss."""
    advantages = padded.white(padded.backwards(padded.rewards(0.05), 0.9))
    loss = padded.mean(padded.clipped(advantages))
    agrees(table, padded, "reinforce_pp", advantages, loss, gamma=0.9)


def test_remax(table: Table, padded: Padded) -> None:
    """verl's remax; the likelihood summed over completions, as in the paper."""
    advantages = (padded.backwards(padded.rewards(0.05), 1.0) - 0.25) * padded.mask
    weight = (padded.logprob - padded.old).exp().detach()
    loss = (-weight * advantages * padded.logprob * padded.mask).sum() / 4
    agrees(table, padded, "remax", advantages, loss)


def grouped(padded: Padded) -> Tensor:
    """[B, T] of groups of two."""
    pairs = padded.scores.view(2, 2)
    centred = (pairs - pairs.mean(1, keepdim=True)) / (pairs.std(1, keepdim=True) + 1e-4)
    return centred.view(4, 1) * padded.mask


def test_kl_cov(table: Table, padded: Padded) -> None:
    """verl's kl_cov: the largest fifth pays |log ρ|."""
    advantages = grouped(padded)
    log_ratio = padded.logprob - padded.old
    top = padded.covariance(advantages).flatten().topk(2).indices
    held = torch.zeros(24).index_fill(0, top, 1.0).view(4, 6)
    loss = padded.mean(-advantages * log_ratio.exp() + held * log_ratio.abs())
    agrees(table, padded, "kl_cov", advantages, loss, cov_share=0.2, beta=0.0)


def test_clip_cov(table: Table, padded: Padded) -> None:
    """verl's clip_cov, with a share that holds back all between the bounds."""
    advantages = grouped(padded)
    ratio = (padded.logprob - padded.old).exp()
    free = padded.clipped(advantages) <= -advantages * ratio  # not clipped as it is
    covariance = padded.covariance(advantages)
    held = (covariance > 0.1) & (covariance < 0.8) & free
    assert 0 < held.sum() < free.sum()
    loss = padded.mean(padded.clipped(advantages) * ~held)
    options = {"cov_share": 1.0, "cov_low": 0.1, "cov_high": 0.8, "beta": 0.0}
    agrees(table, padded, "clip_cov", advantages, loss, **options)


def test_every_algorithm_is_compared() -> None:
    formulas = {"ppo", "reinforce_pp", "remax", "kl_cov", "clip_cov"}
    by_trl = {name for name, _, _ in CASES} | {"rloo"}
    # reinforce is remax with another baseline, by hand in tests/methods
    assert by_trl | formulas | {"reinforce"} == set(ALGORITHMS)
