"""Is the GPU right, and how fast is it? The CPU is the reference.

    python benchmarks/gpu_check.py --model MODEL_FOLDER --data ROWS.jsonl.gz [--out result.json]

Checks, each a number with its limit: forests against paths run alone on CUDA; log-probabilities of
a real model in bfloat16 against float32 on the CPU; 30 steps of training in bfloat16 with a float32
master against 30 steps on the CPU; a run that is cut off and resumed. Then speed, for the record:
the path is plain causal SDPA, document by document.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
import transformers
from transformers import AutoModelForCausalLM

from posttrain.data.forest import Sequence, Tree, forests
from posttrain.engine.admission import admitted, probe_forest
from posttrain.engine.policy import Policy
from posttrain.engine.sampler import Sampling
from posttrain.engine.settings import OptimiserSettings
from posttrain.methods.supervised import METHODS
from posttrain.stages.sft import sft

TINY: dict[str, Any] = dict(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=211,
    max_position_embeddings=512,
)
FAMILIES = {
    "llama": transformers.LlamaConfig(**TINY),
    "qwen3": transformers.Qwen3Config(**TINY, head_dim=16),
    "mistral": transformers.MistralConfig(**TINY, sliding_window=6),
    "gemma2": transformers.Gemma2Config(
        **TINY, head_dim=16, sliding_window=6, query_pre_attn_scalar=16
    ),
    "gemma3": transformers.Gemma3TextConfig(
        **TINY, head_dim=16, sliding_window=6, query_pre_attn_scalar=16
    ),
    "gpt_oss": transformers.GptOssConfig(
        **TINY, head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=6
    ),
    "gpt2": transformers.GPT2Config(
        n_embd=64,
        n_layer=3,
        n_head=4,
        vocab_size=211,
        n_positions=512,
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    ),
}


def family_deviation(config: Any) -> tuple[str, float, float]:
    """Mode, largest log-probability difference from paths alone, and gradient difference CUDA
    against CPU.
    """
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(config)
    gradients = []
    for device in ("cpu", "cuda"):
        policy = Policy(admitted(network.to(device)), None)
        policy.forward_backward([probe_forest(211)], METHODS["nll"])
        gradients.append(
            torch.cat([p.grad.flatten().cpu() for p in network.parameters() if p.grad is not None])
        )
        network.zero_grad()
    difference = float((gradients[1] - gradients[0]).norm() / gradients[0].norm())
    admission = policy.network.admission
    return admission.mode, admission.deviation, difference


def steps(
    policy: Policy, trees: list[Tree], n: int, batch: int, budget: int
) -> tuple[list[float], list[float]]:
    """Losses and tokens/s of n training steps on consecutive batches."""
    losses, rates = [], []
    for i in range(n):
        here = policy.pack([trees[(i * batch + j) % len(trees)] for j in range(batch)], budget)
        begin = time.perf_counter()
        losses.append(policy.forward_backward(here, METHODS["nll"]).loss)
        policy.step()
        if policy.device.type == "cuda":
            torch.cuda.synchronize()
        rates.append(sum(f.T for f in here) / (time.perf_counter() - begin))
    return losses, rates


def random_trees(n: int, vocabulary: int, median: int) -> list[Tree]:
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(median), 0.9, n), 16, 2048).astype(int)
    return [Tree((Sequence(rng.integers(0, vocabulary, k), np.ones(k, bool)),)) for k in lengths]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
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
    }

    def check(name: str, value: float, limit: float) -> None:
        result["checks"].append(
            {"name": name, "value": value, "limit": limit, "ok": value <= limit}
        )
        print(
            f"{'ok  ' if value <= limit else 'FAIL'} {name}: {value:.3g} (limit {limit:g})",
            flush=True,
        )

    for name, config in FAMILIES.items():
        mode, deviation, gradient = family_deviation(config)
        check(
            f"{name} ({mode}): forest against paths alone on CUDA, float32, nats", deviation, 1e-5
        )
        check(f"{name}: gradients CUDA against CPU, relative", gradient, 1e-5)

    cpu = Policy.load(args.model, device="cpu")
    gpu = Policy.load(args.model, device="cuda")
    trees: list[Tree] = record.trees(f"{args.data},limit=600", cpu.tokenizer, "{prompt}\n\n", 512)
    sample = forests(trees[:64], 4096)
    a = torch.cat([s.logprob for s in cpu.score(sample)])
    b = torch.cat([s.logprob.cpu() for s in gpu.score(sample)])
    check(
        "bfloat16 on CUDA against float32 on CPU: mean |Δ log-prob|, nats",
        float((a - b).abs().mean()),
        0.05,
    )
    check("the same: |Δ mean log-prob|, nats", float((a - b).mean().abs()), 0.005)
    settings = OptimiserSettings(learning_rate=3e-4)  # type: ignore[call-arg]
    cpu.train_with(settings)
    gpu.train_with(settings)
    slow, _ = steps(cpu, trees, 30, 8, 4096)
    fast, rates = steps(gpu, trees, 30, 8, 4096)
    check(
        "30 training steps: largest |Δ loss|, nats",
        max(abs(x - y) for x, y in zip(slow, fast, strict=True)),
        0.02,
    )
    result["loss"] = {"cpu": slow, "cuda": fast}
    result["tokens_per_second"] = {"28M, batch 8": statistics.median(rates[5:])}
    prompts = [tree[0].tokens[:12].tolist() for tree in trees[:32]]
    drawn = gpu.sample(prompts, Sampling(max_tokens=32, seed=1, n=4))
    once = gpu.sample(prompts[:1], Sampling(max_tokens=32, seed=1, n=4))
    result["sampled"] = gpu.tokenizer.decode(drawn[0].tokens)
    result["sampled_alone_differs"] = sum(
        x.tokens != y.tokens for x, y in zip(drawn[:4], once, strict=True)
    )

    folder = Path(tempfile.mkdtemp())
    common: dict[str, Any] = dict(
        model=str(args.model),
        data=f"{args.data},limit=600",
        prompt_template="{prompt}",
        batch_size=16,
        learning_rate=3e-4,
        max_length=512,
        quiet=True,
    )
    whole = sft(**common, steps=40, out=folder / "whole", checkpoint_every=20)
    shutil.copytree(folder / "whole", folder / "cut")
    for name in ("summary.json", "model", "checkpoints/step-00000040"):
        path = folder / "cut" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    again = sft(**common, steps=40, out=folder / "cut", checkpoint_every=20)
    loss = [
        json.loads(x)["loss"] for x in (folder / "whole" / "metrics.jsonl").read_text().splitlines()
    ]
    after = [
        json.loads(x)["loss"] for x in (folder / "cut" / "metrics.jsonl").read_text().splitlines()
    ]
    check(
        "resumed at step 20 of 40: largest |Δ loss|, nats",
        max(abs(x - y) for x, y in zip(loss, after, strict=True)),
        0.02,
    )
    result["resumed_bit_identical"] = whole.summary["sha256"] == again.summary["sha256"]
    lora = sft(**common, steps=10, out=folder / "lora", lora=True)
    check("LoRA in 10 steps: loss after minus before", _change(lora.folder), 0.0)

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
    big = Policy(admitted(network), None)
    off = big.network.admission.deviation
    check("0.6B Qwen3 (random): forest against paths alone, nats", off, 1e-3)
    network.to(torch.bfloat16)
    big.train_with(OptimiserSettings(learning_rate=1e-5))  # type: ignore[call-arg]
    torch.cuda.reset_peak_memory_stats()
    _, rates = steps(big, random_trees(600, 151936, 350), 12, 64, 16384)
    result["tokens_per_second"]["0.6B, 64 documents a step"] = statistics.median(rates[4:])
    result["peak_gib_0.6B"] = torch.cuda.max_memory_allocated() / 2**30
    for name, value in result["tokens_per_second"].items():
        print(f"     {name}: {value:,.0f} tokens/s")
    text = json.dumps(result, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")
    return 0 if all(c["ok"] for c in result["checks"]) else 1


def _change(folder: Path) -> float:
    records = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    return records[-1]["loss"] - records[0]["loss"]


if __name__ == "__main__":
    raise SystemExit(main())
