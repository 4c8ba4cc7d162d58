"""Tiny random models and random forests that the tests share. Nothing is downloaded.

Weights are drawn wide enough that attention, norms, biases and sinks all change the output: a model
whose attention is nearly uniform would agree with almost any mask.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Many
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from posttrain.data.forest import Sequence, Tree, Unit
from posttrain.engine.admission import admitted
from posttrain.engine.modes import Admission, Mode
from posttrain.engine.network import Network
from posttrain.engine.policy import Policy

V = 61  # tokens in the vocabulary of every tiny model

_ROPE: dict[str, Any] = {"rope_theta": 10_000.0}
_SHAPE: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _config(name: str, **changes: Any) -> Callable[..., Any]:
    return lambda **more: getattr(transformers, name)(**{**_SHAPE, **changes, **more})


def _own(name: str, **fields: Any) -> Callable[..., Any]:
    """A config that names its sizes in its own way."""
    special = {"vocab_size": V, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return lambda **more: getattr(transformers, name)(**{**special, **fields, **more})


# architectures whose trees run packed
FORESTS = (
    "llama",
    "qwen3",
    "mistral",
    "gemma2",
    "gemma3",
    "phi3",
    "phi",
    "gpt2",
    "granite",
    "cohere",
    "gpt_oss",
    "qwen3_moe",
    "deepseek_v3",
)

# every architecture the tests run, with the switches on that make it differ from Llama
CONFIGS: dict[str, Callable[..., Any]] = {
    "llama": _config("LlamaConfig"),
    "qwen3": _config("Qwen3Config", head_dim=8),
    "mistral": _config("MistralConfig", sliding_window=4),
    "gemma2": _config(
        "Gemma2Config",
        head_dim=8,
        sliding_window=4,
        query_pre_attn_scalar=12,
        attn_logit_softcapping=1.5,
        final_logit_softcapping=3.0,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "gemma3": _config(
        "Gemma3TextConfig",
        head_dim=8,
        sliding_window=4,
        query_pre_attn_scalar=12,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "phi3": _config("Phi3Config"),
    "phi": _config("PhiConfig", num_key_value_heads=4),
    "gpt2": _own(
        "GPT2Config",
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=256,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    ),
    "granite": _config(
        "GraniteConfig",
        embedding_multiplier=3.0,
        logits_scaling=2.5,
        residual_multiplier=0.7,
        attention_multiplier=0.3,
    ),
    "cohere": _config("CohereConfig", logit_scale=0.4),
    "hyperclovax": _config("HyperCLOVAXConfig", head_dim=8, logits_scaling=2.5),
    "minicpm3": _config(
        "MiniCPM3Config",
        num_key_value_heads=4,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        dim_model_base=8,
    ),
    "falcon_h1": _config(
        "FalconH1Config",
        head_dim=8,
        mamba_d_ssm=32,
        mamba_n_heads=4,
        mamba_d_head=8,
        mamba_d_state=8,
        mamba_n_groups=1,
        lm_head_multiplier=0.3,
    ),
    "gpt_oss": _config(
        "GptOssConfig",
        head_dim=8,
        sliding_window=4,
        num_local_experts=4,
        num_experts_per_tok=2,
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10_000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "qwen3_moe": _config(
        "Qwen3MoeConfig", head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
    ),
    "deepseek_v3": _config(
        "DeepseekV3Config",
        num_key_value_heads=4,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
    ),
    # models that no forest can be run on
    "qwen3_5": _config(
        "Qwen3_5TextConfig",
        head_dim=8,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        layer_types=["linear_attention", "full_attention"],
    ),
    "llama4": _config(
        "Llama4TextConfig",
        intermediate_size_mlp=48,
        head_dim=8,
        attention_chunk_size=8,
        num_local_experts=2,
        num_hidden_layers=4,
    ),
    "falcon": _own(
        "FalconConfig",
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        alibi=True,
        multi_query=False,
        new_decoder_architecture=False,
    ),
    "bloom": _own("BloomConfig", hidden_size=32, n_layer=2, n_head=4),
    "mamba": _config("MambaConfig", state_size=8),
    "bamba": _config(
        "BambaConfig",
        mamba_n_heads=4,
        mamba_d_head=16,
        mamba_d_state=8,
        mamba_n_groups=1,
        attn_layer_indices=[1],
    ),
    "minimax": _config(
        "MiniMaxConfig",
        num_local_experts=4,
        num_experts_per_tok=2,
        layer_types=["linear_attention", "full_attention"],
    ),
    "longrope": _config(
        "Phi3Config",
        original_max_position_embeddings=24,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10_000.0,
            "short_factor": [1.0] * 4,
            "long_factor": [4.0, 3.0, 2.0, 1.5],
            "original_max_position_embeddings": 24,
        },
    ),
    "dynamic": _config(
        "LlamaConfig",
        max_position_embeddings=24,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0},
    ),
}


def network(
    architecture: str,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    attention: str | None = None,
    **changes: Any,
) -> Any:
    """A tiny random causal language model, in eval mode; the same seed gives the same weights under
    any attention.
    """
    config = CONFIGS[architecture](**changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=rng)
            p.copy_(noise / p.shape[-1] ** 0.5) if p.ndim >= 2 else p.add_(0.2 * noise)
    return model.eval()


def seq(tokens: Many[int], trained: Many[int] | None = None) -> Sequence:
    """A sequence from plain lists; every token trained where nothing is said."""
    mask = np.ones(len(tokens), bool) if trained is None else np.array(trained, bool)
    return Sequence(np.array(tokens, np.int64), mask)


def tree_of(*sequences: Sequence, units: Many[Many[int]] = (), **facts: Many[float]) -> Tree:
    """A tree, and units of its sequences' places with their facts, a value for each unit."""
    made = []
    for u, members in enumerate(units):
        made.append(Unit(tuple(members), {name: values[u] for name, values in facts.items()}))
    return Tree(sequences, tuple(made))


# n -> a number below n: hypothesis or a seeded generator behind one function
Choose = Callable[[int], int]


def random_tree(choose: Choose, segment: int = 5) -> Tree:
    """A tree up to three levels deep, with what makes trees difficult.

    Nested shared prefixes; sequences that are a prefix of others, or the same as another; random
    trained masks. Sequences come in no particular order.
    """
    paths: list[list[int]] = []

    def grow(stem: list[int], level: int) -> None:
        path = stem + [choose(V) for _ in range(1 + choose(segment))]
        children = 0 if level == 3 else 1 + choose(2) if level == 1 else choose(3)
        if children == 0 or choose(4) == 0:
            paths.append(path)
        for _ in range(children):
            grow(path, level + 1)

    grow([], 1)
    if choose(3) == 0:
        paths.insert(choose(len(paths) + 1), paths[choose(len(paths))])
    return tree_of(*(seq(path, [choose(3) > 0 for _ in path]) for path in paths))


def random_trees(seed: int, trees: int = 3, segment: int = 5) -> list[Tree]:
    rng = np.random.default_rng(seed)
    return [random_tree(lambda n: int(rng.integers(n)), segment) for _ in range(trees)]


def alone(network: Any, trees: Many[Tree]) -> Tensor:
    """[N] log-probabilities of every target, every sequence alone through the network itself: what
    the law compares with.
    """
    out = []
    for sequence in (sequence for tree in trees for sequence in tree):
        ids = torch.from_numpy(sequence.tokens)
        logprob = network(input_ids=ids[None], use_cache=False).logits[0, :-1].log_softmax(-1)
        out.append(logprob.gather(1, ids[1:, None])[torch.from_numpy(sequence.trained[1:]), 0])
    return torch.cat(out)


def gradients(network: Any, loss: Tensor) -> dict[str, Tensor]:
    """Gradient of a loss by every trainable parameter, by name; zeros where it does not depend on
    it.
    """
    named = {name: p for name, p in network.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(named.items(), found, strict=True)
    }


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest ‖found − expected‖ / ‖expected‖ over parameters.

    A gradient that is zero but for rounding (a query's, where there is one key to see) has no
    direction to compare: norms count as at least a hundredth of the whole gradient's.
    """
    assert found.keys() == expected.keys()
    floor = 1e-2 * float(torch.stack([g.norm() for g in expected.values()]).norm())
    return max(
        float((found[k] - expected[k]).norm()) / max(float(expected[k].norm()), floor, 1e-30)
        for k in expected
    )


def unprobed(inner: Any, mode: Mode = "forest") -> Network:
    """A transformers model run in a mode, without a probe."""
    return Network(inner, Admission(mode))


def policy(architecture: str = "llama", **changes: Any) -> Policy:
    """A policy over a tiny network, without a tokenizer."""
    return Policy(admitted(network(architecture, **changes)), None)


def parameter_gradients(network: Any) -> dict[str, Tensor]:
    """What backward passes have added up, by parameter name; clears it. Of a transformers model."""
    found = {}
    for name, p in network.named_parameters():
        if p.requires_grad:
            found[name] = torch.zeros_like(p) if p.grad is None else p.grad
            p.grad = None
    return found


def folder(path: Path, architecture: str = "llama", **changes: Any) -> Path:
    """A Hugging Face folder: a tiny model and a tokenizer of words w3 … w60."""
    network(architecture, **changes).save_pretrained(path)
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, V)}}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(path)
    return path
