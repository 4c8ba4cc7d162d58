"""Sampling on a CPU against transformers: tokens a second at 1, 16, 64 and 256 sequences.

    python benchmarks/cpu_sampling_vs_transformers.py            measure; refuses unless quiet
    python benchmarks/cpu_sampling_vs_transformers.py --tiny     a smoke test of no meaning

The model is that of `cpu_vs_trl.py`: 5 M parameters with random weights, float32. Prompts have 10
to 60 tokens, completions at most 64; one token in a hundred of the vocabulary ends a completion, so
that lengths differ. Temperature 1, nothing cut off.

Contestants: transformers' `generate` on the whole batch, padded on the left; its continuous
batching (`generate_batch`); posttrain in fast mode, and in exact mode. Each measurement is a fresh
process; contestants take turns within a round. Tokens are those of completions, the ending one
included; the best of three repetitions counts, after one to warm up.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cpu_vs_trl
import record

HERE = Path(__file__).resolve()
SEQUENCES, NEW, ENDS, REPEATS = (1, 16, 64, 256), 64, 0.01, 3
CONTESTANTS = ("generate", "continuous batching", "posttrain, fast", "posttrain, exact")
TARGETS = {1: 1.2, 16: 1.7, 64: 3.0, 256: 4.0}  # fast mode over the better of transformers' ways
QUIET = 0.5

Prompts = list[list[int]]


# ---------------------------------------------------------------------------------- in the children


def prepare(job: dict[str, Any]) -> dict[str, Any]:
    made = cpu_vs_trl.prepare({**job, "rows": 16})
    return {"parameters": made["parameters"], "threads": made["threads"]}


def prompts_and_ends(n: int, vocabulary: int) -> tuple[Prompts, list[int]]:
    """n prompts, and the tokens that end a completion."""
    rng = random.Random(5)
    ends = rng.sample(range(3, vocabulary), max(1, int(ENDS * vocabulary)))
    prompts = []
    for _ in range(n):
        prompts.append([rng.randrange(3, vocabulary) for _ in range(rng.randint(10, 60))])
    return prompts, ends


def transformers_way(work: Path, n: int, continuous: bool) -> Callable[[], int]:
    """A call that answers n prompts and returns how many tokens it drew."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    model: Any = AutoModelForCausalLM.from_pretrained(work / "model", dtype=torch.float32).eval()
    prompts, ends = prompts_and_ends(n, model.config.vocab_size)
    config = GenerationConfig(
        max_new_tokens=NEW, do_sample=True, top_k=0, eos_token_id=ends, pad_token_id=0
    )
    if continuous:
        from transformers import ContinuousBatchingConfig

        batching = ContinuousBatchingConfig(
            num_blocks=max(64, 4 * n), max_batch_tokens=max(512, 2 * n), block_size=32
        )

        def batched() -> int:
            done = model.generate_batch(
                prompts, generation_config=config, continuous_batching_config=batching
            )
            return sum(len(one.generated_tokens) for one in done.values())

        return batched
    width = max(map(len, prompts))
    ids = torch.zeros(n, width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        ids[i, width - len(prompt) :] = torch.tensor(prompt)
        mask[i, width - len(prompt) :] = 1
    ending = torch.tensor(ends)

    def padded() -> int:
        with torch.inference_mode():
            out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        ended = torch.isin(out[:, width:], ending).int()
        drawn = (ended.cumsum(1) - ended) == 0  # up to and with the first token that ends it
        return int(drawn.sum())

    return padded


def our_way(work: Path, n: int, exact: bool) -> Callable[[], int]:
    from posttrain.core.products import fix_products

    if exact:
        fix_products()
    from posttrain.engine.policy import Policy
    from posttrain.engine.sampler import Sampling

    policy = Policy.load(work / "model", device="cpu")
    if exact and (why := policy.use_exact()):
        raise SystemExit(why)
    prompts, ends = prompts_and_ends(n, policy.network.vocabulary)
    params = Sampling(max_tokens=NEW, stop=tuple(ends))
    return lambda: sum(len(done.tokens) for done in policy.sample(prompts, params))


def child(job: dict[str, Any]) -> None:
    """One job in this process; its result goes to a file, because libraries print."""
    work = Path(job["work"])
    if job["name"] == "prepare":
        out = prepare(job)
    else:
        name, n = job["name"], job["n"]
        if name.startswith("posttrain"):
            call = our_way(work, n, name.endswith("exact"))
        else:
            call = transformers_way(work, n, name.startswith("continuous"))
        call()
        rates = []
        for _ in range(REPEATS):
            begin = time.perf_counter()
            tokens = call()
            rates.append(tokens / record.durations([begin, time.perf_counter()])[0])
        out = {"tokens_per_second": max(rates), "tokens": tokens}
    Path(job["result"]).write_text(json.dumps(out))


# ---------------------------------------------------------------------------------- in this process


def compare(result: dict[str, Any]) -> list[dict[str, Any]]:
    """At every number of sequences, medians over rounds and posttrain over transformers' better
    way.
    """
    out = []
    for n in result["settings"]["sequences"]:
        rates = {
            name: statistics.median(
                m["tokens_per_second"]
                for m in result["measurements"]
                if m["contestant"] == name and m["sequences"] == n
            )
            for name in CONTESTANTS
        }
        best = max(rates[name] for name in CONTESTANTS[:2])
        ratios = {name: rates[name] / best for name in CONTESTANTS[2:]}
        out.append({"sequences": n, "rates": rates, "ratios": ratios, "target": TARGETS[n]})
    return out


def show(result: dict[str, Any]) -> None:
    for row in result["comparison"]:
        rates = ", ".join(f"{name} {rate:,.0f}" for name, rate in row["rates"].items())
        print(f"{row['sequences']:4} sequences: {rates} tokens/s")
        fast, exact = row["ratios"].values()
        reached = "reached" if fast >= row["target"] else "missed"
        print(f"     fast {fast:.2f} × (target {row['target']} ×, {reached}), exact {exact:.2f} ×")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each contestant [3]")
    parser.add_argument("--loud", action="store_true", help="on a busy machine; writes no result")
    parser.add_argument(
        "--tiny", action="store_true", help="a smoke test: tiny model, one round, no result file"
    )
    parser.add_argument("--out", type=Path, help="result file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.child:
        child(json.loads(a.child))
        return
    if not (a.tiny or a.loud):
        record.refuse_busy(QUIET)
    result = record.header("torch", "transformers", "numpy")
    sequences = (1, 16) if a.tiny else SEQUENCES
    result["settings"] = {"rounds": 1 if a.tiny else a.rounds, "sequences": sequences}
    result["measurements"] = []
    with tempfile.TemporaryDirectory() as folder:
        run = partial(
            record.fresh, HERE, Path(folder), tiny=a.tiny, model="tiny" if a.tiny else "5m"
        )
        result["data"] = run("prepare")
        for turn in range(result["settings"]["rounds"]):
            for n in sequences:
                for name in CONTESTANTS if turn % 2 else reversed(CONTESTANTS):
                    found = run(name, n=n)
                    measured = {"contestant": name, "round": turn, "sequences": n, **found}
                    result["measurements"].append(measured)
    result["comparison"] = compare(result)
    show(result)
    if not (a.tiny or a.loud):
        name = f"{result['date']}-cpu-sampling-vs-transformers.json"
        record.write(result, a.out or record.RESULTS / name)


if __name__ == "__main__":
    main()
