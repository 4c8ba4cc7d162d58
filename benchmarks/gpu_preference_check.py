"""Preference training and reward models on a GPU: is it right, and how fast is it? The CPU is the
reference.

    python benchmarks/gpu_preference_check.py --model MODEL_FOLDER --data PAIRS.jsonl \\
        [--out result.json]

Checks, each a number with its limit: loss and gradients of pairs that share their prompt, CUDA
against CPU in float32, for DPO, ORPO, KTO and a Bradley–Terry reward model; 20 steps of DPO on a
real model, bfloat16 with a float32 master against float32 on the CPU; rewards with a bfloat16 trunk
against float32. Then pairs a second, for the record.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence as Many
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from gpu_check import FAMILIES
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from posttrain.core.types import Read
from posttrain.data.chat import Chat
from posttrain.data.examples import Examples, Mismatched
from posttrain.data.forest import Sequence, Tree
from posttrain.data.plan import Plan
from posttrain.data.prepare import Preparation, prepare
from posttrain.data.settings import Source
from posttrain.data.store import Trees
from posttrain.engine.admission import admitted
from posttrain.engine.learner import Learner
from posttrain.engine.policy import Policy
from posttrain.engine.reward import RewardModel
from posttrain.engine.settings import OptimiserSettings
from posttrain.engine.source import Batch, Offline, Rows, tree_scores
from posttrain.methods.preference import Options, preference
from posttrain.methods.reward import bradley_terry


def pairs(n: int, vocabulary: int, median: int, seed: int = 0) -> list[Tree]:
    """Random pairs: log-normal lengths, a quarter prompt, answers of different lengths."""
    rng = np.random.default_rng(seed)
    out = []
    for length in np.clip(rng.lognormal(np.log(median), 0.88, n), 16, 2000).astype(int):
        prompt, said = (
            rng.integers(0, vocabulary, max(4, length // 4)),
            max(4, length - length // 4),
        )
        answers = [
            rng.integers(0, vocabulary, k)
            for k in (said, max(4, int(said * rng.lognormal(0, 0.3))))
        ]
        trained = np.arange(2048) >= len(prompt)
        sequences = []
        for answer in answers:
            tokens = np.concatenate([prompt, answer])[:2048]
            sequences.append(Sequence(tokens, trained[: len(tokens)]))
        out.append(Tree(tuple(sequences)))
    return out


def whole(trees: list[Tree], method: str, seed: int = 1) -> Batch:
    """All trees as one batch, with made-up reference log-probabilities; KTO's with labels and
    probes.
    """
    rng = np.random.default_rng(seed)

    def drawn(trees: Many[Tree]) -> list[np.ndarray]:
        return [np.log(rng.uniform(0.001, 0.1, tree.N)).astype(np.float32) for tree in trees]

    plan = Plan(len(trees), len(trees), 0)
    if method == "reward":
        return Offline(Rows(Examples(trees, "pairs")), plan).take(range(len(trees)))
    if method != "kto":
        return Offline(Rows(Examples(trees, "pairs"), drawn), plan).take(range(len(trees)))
    labels = [np.array([1, 0], np.float32)] * len(trees)
    rows = Rows(Examples(trees, "labels", labels), drawn)
    probes = Rows(Mismatched(trees, 0, 2048), drawn)
    return Offline(rows, plan, probes).take(range(len(trees)))


def compare(learners: dict[str, Learner], loss: Any, batch: Batch) -> tuple[float, float]:
    """Differences of loss and of gradients, relative."""
    found = {}
    for device, learner in learners.items():
        probes = None if batch.probes is None else learner.pack(batch.probes, 512)
        measured = learner.forward_backward(learner.pack(batch.trees, 512), loss, probes=probes)
        inner = learner.network.inner
        gradients = [p.grad.flatten().cpu() for p in inner.parameters() if p.grad is not None]
        found[device] = measured.loss, torch.cat(gradients)
        inner.zero_grad()
    (a, g), (b, h) = found["cpu"], found["cuda"]
    return abs(a - b) / abs(a), float((g - h).norm() / g.norm())


def train(
    policy: Policy, trees: Many[Tree], steps: int, batch: int
) -> tuple[list[float], list[float]]:
    """Losses and pairs/s of DPO steps, held against a frozen copy."""
    reference = tree_scores(policy, policy.reference("copy"), 16384)
    policy.train_with(OptimiserSettings(learning_rate=3e-5))  # type: ignore[call-arg]
    rows, loss = Rows(Examples(trees, "pairs"), reference), preference({"dpo": 1}, Options())
    losses, rates = [], []
    for i in range(steps):
        begin = time.perf_counter()
        taken = rows.take([(i * batch + k) % len(trees) for k in range(batch)])
        losses.append(policy.forward_backward(policy.pack(taken, 16384), loss).loss)
        policy.step()
        if policy.device.type == "cuda":
            torch.cuda.synchronize()
        rates.append(batch / (time.perf_counter() - begin))
    return losses, rates


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument(
        "--data", type=Path, required=True, help="pairs with prompt, chosen and rejected"
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("this check needs a CUDA GPU", file=sys.stderr)
        return 2
    result: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "gpu": torch.cuda.get_device_name(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "command": " ".join(sys.argv),
        "checks": [],
        "pairs_per_second": {},
    }

    def check(name: str, value: float, limit: float) -> None:
        result["checks"].append(
            {"name": name, "value": value, "limit": limit, "ok": value <= limit}
        )
        print(
            f"{'ok  ' if value <= limit else 'FAIL'} {name}: {value:.3g} (limit {limit:g})",
            flush=True,
        )

    tiny(check)
    real(args, check, result)
    big(result)
    for name, value in result["pairs_per_second"].items():
        print(f"     {name}: {value:,.1f} pairs/s")
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if all(c["ok"] for c in result["checks"]) else 1


def tiny(check: Any) -> None:
    """Tiny random models in float32 on both devices."""
    trees = pairs(12, 200, 60)
    for name in ("llama", "qwen3", "gemma3", "gpt2"):
        torch.manual_seed(0)
        network = AutoModelForCausalLM.from_config(FAMILIES[name])
        twin = AutoModelForCausalLM.from_config(FAMILIES[name])
        twin.load_state_dict(network.state_dict())
        both: dict[str, Learner] = {
            "cpu": Policy(admitted(network), None),
            "cuda": Policy(admitted(twin.to("cuda")), None),
        }
        for method in ("dpo", "orpo", "kto"):
            off = compare(both, preference({method: 1}, Options()), whole(trees, method))
            check(f"{name} {method}: loss and gradients CUDA against CPU, relative", max(off), 1e-4)
    torch.manual_seed(0)
    config = FAMILIES["llama"]
    config.num_labels, config.pad_token_id = 2, 0
    network, twin = (AutoModelForSequenceClassification.from_config(config) for _ in range(2))
    twin.load_state_dict(network.state_dict())
    read = Read(logprob=False, reward="sequences")
    both = {
        "cpu": RewardModel(admitted(network), None, read=read),
        "cuda": RewardModel(admitted(twin.to("cuda")), None, read=read),
    }
    off = compare(both, bradley_terry(), whole(trees, "reward"))
    check("reward model: loss and gradients CUDA against CPU, relative", max(off), 1e-4)


def real(args: Any, check: Any, result: dict[str, Any]) -> None:
    """A real model on real pairs."""
    cpu, gpu = Policy.load(args.model, device="cpu"), Policy.load(args.model, device="cuda")
    with tempfile.TemporaryDirectory() as folder:
        prepare(
            Source(path=str(args.data)),
            Preparation(Chat(cpu.tokenizer), max_length=512, learned="pairs"),
            Path(folder),
        )
        trees = Trees(Path(folder))
        slow, _ = train(cpu, trees, 20, 8)
        fast, _ = train(gpu, trees, 20, 8)
        # bfloat16 sees a change of the master only once it is
        check(
            "20 steps of DPO: largest |Δ loss|, bfloat16 against float32 on the CPU",
            max(abs(x - y) for x, y in zip(slow, fast, strict=True)),
            0.1,
        )
        # half a unit in the last place, so that it lags at first
        result["loss"] = {"cpu": slow, "cuda": fast}
        _, rates = train(Policy.load(args.model, device="cuda"), trees, 20, 32)
        result["pairs_per_second"]["28M, 32 pairs a step, a live reference"] = statistics.median(
            rates[5:]
        )
        judges = [RewardModel.load(args.model, device=device, seed=3) for device in ("cpu", "cuda")]
        sample = [trees[i] for i in range(64)]
        a, b = (
            torch.cat([columns.reward.cpu() for columns in judge.score(judge.pack(sample, 8192))])
            for judge in judges
        )
        check(
            "rewards, bfloat16 trunk against float32: mean |Δ| over their spread",
            float((a - b).abs().mean() / a.std()),
            0.05,
        )


def big(result: dict[str, Any]) -> None:
    """A random Qwen3 of 0.6 billion parameters on random pairs: speed alone."""
    config = transformers.Qwen3Config(
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151936,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    with torch.device("cuda"):
        network = AutoModelForCausalLM.from_config(config)
    policy, trees = Policy(admitted(network), None), pairs(200, 151936, 350)
    network.to(torch.bfloat16)
    torch.cuda.reset_peak_memory_stats()
    _, rates = train(policy, trees, 12, 16)
    result["pairs_per_second"]["0.6B, 16 pairs a step, a live reference"] = statistics.median(
        rates[4:]
    )
    result["peak_gib_0.6B"] = torch.cuda.max_memory_allocated() / 2**30


if __name__ == "__main__":
    raise SystemExit(main())
