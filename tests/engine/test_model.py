"""Admission: what a forest would get wrong runs path by path, what cannot be run is refused, and
both say why.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from posttrain.engine.model import Model, _length_groups, probe_forest
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from posttrain.core.errors import ModelError
from posttrain.data.forest import plant
from posttrain.engine.head import logprobs
from posttrain.engine.load import load_network, resolve, to_bfloat16
from tests.tiny import CONFIGS, V, alone, distance, gradients, network, random_trees, seq

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
# the mode each is left with, and what its paths alone are compared with: transformers' eager
# attention adds Falcon's ALiBi twice, and Falcon cannot change its attention once it is made, so
# there SDPA is the stock
PATHS = {
    "qwen3_5": ("padded", "eager"),
    "llama4": ("padded", "eager"),
    "falcon": ("padded", "sdpa"),
    "bloom": ("padded", "eager"),
    "mamba": ("padded", "eager"),
    "longrope": ("equal", "eager"),
}


@pytest.mark.parametrize("architecture", FORESTS)
def test_models_that_go_through_the_attention_interface_are_admitted(architecture: str) -> None:
    admission = Model(network(architecture)).admission
    assert admission.mode == "forest"
    # some versions of transformers drop Gemma-2's soft cap in their faster attention: then sampling
    # goes without it, and says so
    assert [r for r in admission.reasons if "sampling uses eager" not in r] == []
    assert admission.deviation < 1e-5


def test_an_attention_of_transformers_that_is_off_is_not_sampled_with() -> None:
    """A soft cap that SDPA drops without an error: the probe finds it, and the model's own eager
    attention takes its place.
    """

    def forgetful(
        module: Any,
        query: Any,
        key: Any,
        value: Any,
        mask: Any,
        softcap: float | None = None,
        **more: Any,
    ) -> Any:
        return sdpa_attention_forward(module, query, key, value, mask, **more)

    AttentionInterface.register("forgetful", forgetful)
    AttentionMaskInterface.register("forgetful", sdpa_mask)
    net = network("gemma2")
    net.set_attn_implementation("forgetful")
    model = Model(net)
    assert model.mode == "forest"
    assert "forgetful attention is off by" in model.admission.reasons[0]
    with model.stock_attention():
        assert net.config._attn_implementation == "eager"


@pytest.mark.parametrize("architecture", PATHS)
def test_models_that_do_not_are_run_path_by_path(architecture: str) -> None:
    """Linear attention, chunks, ALiBi, frequencies that depend on the longest sequence: no error,
    but wrong by nats.
    """
    model = Model(network(architecture))
    mode, _ = PATHS[architecture]
    assert model.mode == model.admission.mode == mode
    assert model.admission.deviation < 1e-5
    name = type(model.network).__name__
    tried = {
        "padded": ["packed, prefixes shared"],
        "equal": ["packed, prefixes shared", "every path alone, in batches of similar length"],
    }[mode]
    assert len(model.admission.reasons) == len(tried)
    for reason, how in zip(model.admission.reasons, tried, strict=True):
        start = f"{name} {how}: log-probabilities off by "
        assert reason.startswith(start) and reason.endswith(" nats")
        assert float(reason[len(start) : -len(" nats")]) > 0.1


@pytest.mark.parametrize("architecture", PATHS)
def test_path_modes_obey_the_law(architecture: str) -> None:
    """The same comparison as for forests: log-probabilities and gradients of every path alone,
    lengths mixed.
    """
    model = Model(network(architecture))
    stock = network(architecture, attention=PATHS[architecture][1])
    for seed in range(4):
        planted = random_trees(
            seed, segment=14
        )  # longer than Llama-4's chunks and longrope's threshold
        forest = plant(planted)
        found, expected = (
            logprobs(model.head, model.hidden(forest), forest.target)[0],
            alone(stock, planted),
        )
        weights = torch.cos(torch.arange(len(expected)))
        assert float((found - expected).detach().abs().max()) < 1e-5
        assert (
            distance(
                gradients(model.network, weights @ found), gradients(stock, weights @ expected)
            )
            < 2e-5
        )


@pytest.mark.parametrize("mode", ["padded", "equal"])
def test_every_mode_of_one_model_says_the_same(mode: Any) -> None:
    """The path modes need nothing of a model that a forest does not: on Llama all three agree, in
    the targets' order.
    """
    model = Model(network("llama"))
    forest = plant(random_trees(3))
    expected = logprobs(model.head, model.hidden(forest), forest.target)[0]
    model.mode = mode
    assert (
        float(
            (logprobs(model.head, model.hidden(forest), forest.target)[0] - expected)
            .detach()
            .abs()
            .max()
        )
        < 1e-5
    )


def test_length_groups_by_hand() -> None:
    """Sorted by length; a padded batch holds (longest · sequences) tokens at most, but always one
    sequence.
    """
    lengths = [5, 2, 9, 2, 5, 30]
    assert list(_length_groups(lengths, equal=True)) == [[1, 3], [0, 4], [2], [5]]
    assert list(_length_groups(lengths, equal=False, tokens=20)) == [[1, 3, 0, 4], [2], [5]]
    assert list(_length_groups(lengths, equal=False, tokens=19)) == [[1, 3, 0], [4, 2], [5]]
    assert list(_length_groups([4, 4, 4], equal=True, tokens=8)) == [[0, 1], [2]]
    assert list(_length_groups([], equal=False)) == []


# --------------------------------------------------------------------------------- beyond the probe


def test_a_chunk_beyond_the_probe_is_believed_not_measured() -> None:
    """Chunks of 8192: a short forest agrees with its paths, so a probe that is shorter than a chunk
    would admit it.
    """
    model = Model(network("llama4", attention_chunk_size=8192))
    assert model.admission.mode == "padded"
    assert model.admission.reasons == ("Llama4ForCausalLM: its attention is chunked (8192 tokens)",)


def test_longrope_beyond_the_probe_is_believed_not_measured() -> None:
    rope = {**CONFIGS["longrope"]().rope_parameters, "original_max_position_embeddings": 4096}
    model = Model(
        network(
            "longrope",
            original_max_position_embeddings=4096,
            max_position_embeddings=16384,
            rope_parameters=rope,
        )
    )
    assert model.admission.mode == "equal"
    assert model.admission.reasons == (
        (
            "Phi3ForCausalLM: its longrope position frequencies depend on the longest sequence"
            " beside it"
        ),
    )
    forest = probe_forest(V)
    expected = logprobs(model.head, model.hidden(forest), forest.target)[0]
    model.mode = "forest"  # what the probe would have seen
    assert (
        float(
            (logprobs(model.head, model.hidden(forest), forest.target)[0] - expected)
            .detach()
            .abs()
            .max()
        )
        < 1e-5
    )


# ------------------------------------------------------------------------------------------ refused


@pytest.mark.parametrize("limit", [24, 4096])
def test_frequencies_that_depend_on_what_ran_before_are_refused(limit: int) -> None:
    """Dynamic NTK keeps the frequencies of the longest sequence it has seen, so no way of running
    it is right.

    That is no theory: after 40 tokens, the same 30 tokens get other log-probabilities than before.
    """
    net = network("dynamic", max_position_embeddings=limit)
    with pytest.raises(
        ModelError, match="LlamaForCausalLM is refused: its dynamic position frequencies"
    ) as caught:
        Model(net)
    assert "rope_type" in caught.value.cure
    if limit == 24:
        short, long = [(seq(list(range(3, n + 3))),) for n in (30, 40)]
        with torch.no_grad():
            before, _, after = (alone(net, [tree]) for tree in (short, long, short))
        assert float((before - after).abs().max()) > 0.1


def test_a_head_that_does_more_than_its_matrix_is_refused() -> None:
    """Logits that are not h·Wᵀ with a known bias, scale and cap would be scored wrongly in every
    mode.
    """
    net = network("llama")
    net.lm_head.register_forward_hook(lambda module, inputs, logits: 1.1 * logits)
    with pytest.raises(
        ModelError,
        match=r"output head is not a matrix with a known bias, scale and soft cap .* off by \d",
    ):
        Model(net)


def test_a_scale_that_the_config_does_not_name_is_refused() -> None:
    """Granite's logits_scaling under another name: the probe compares numbers, so a model that is
    new is not trusted.
    """
    net = network("granite")
    assert Model(net).head.scale == pytest.approx(1 / 2.5)
    refused = network("granite")
    refused.config.logits_scaling = 1.0
    refused.lm_head.register_forward_hook(lambda module, inputs, logits: logits / 2.5)
    with pytest.raises(ModelError, match="output head"):
        Model(refused)


def test_state_that_no_config_names_is_refused_as_what_it_is() -> None:
    """The same frequencies under a config that does not say so: a short sequence resets them, so
    only another order shows it.
    """
    net = network("dynamic", max_position_embeddings=17)
    net.config.rope_parameters["rope_type"] = "default"
    with pytest.raises(ModelError, match="its answers depend on what ran before"):
        Model(net)


def test_noise_outside_training_is_refused_as_what_it_is() -> None:
    """Dropout that eval() does not turn off: the answers change from call to call, and the message
    does not blame the head.
    """
    net = network("llama")
    net.model.layers[0].mlp.register_forward_hook(
        lambda module, inputs, out: F.dropout(out, 0.3, training=True)
    )
    with pytest.raises(ModelError, match="its answers depend on what ran before"):
        Model(net)


def test_what_is_no_language_model_is_refused() -> None:
    class Broken(nn.Module):
        def forward(self, *args: Any, **kwargs: Any) -> None:
            raise ValueError("no such thing")

    net = network("llama")
    net.model.layers[0].self_attn = Broken()
    with pytest.raises(
        ModelError, match="cannot be run as a causal language model: ValueError: no such thing"
    ):
        Model(net)


def test_an_attention_argument_nobody_knows_is_not_ignored() -> None:
    """A model whose attention passes on something new is an error in a forest, and so is run path
    by path.
    """
    net = network("llama")
    for layer in net.model.layers:
        layer.self_attn.register_forward_pre_hook(
            lambda module, args, kwargs: (args, {**kwargs, "tilt": 2.0}), with_kwargs=True
        )
    model = Model(net)
    assert model.mode == "padded"
    assert model.admission.reasons == (
        (
            "LlamaForCausalLM packed, prefixes shared: TypeError: forest attention does not"
            " understand the arguments ['tilt'] of LlamaAttention"
        ),
    )
    model.mode = "forest"
    with pytest.raises(TypeError, match="tilt"):
        model.hidden(plant([(seq([1, 2, 3]),)]))


# ------------------------------------------------------------------------------------------ running


def test_admission_leaves_the_network_as_it_was() -> None:
    net = network("gpt2", resid_pdrop=0.5).train()
    before = {name: p.clone() for name, p in net.state_dict().items()}
    Model(net)
    assert net.training
    assert all(torch.equal(before[name], p) for name, p in net.state_dict().items())


def test_sampling_and_scoring_take_turns() -> None:
    """Inside `stock_attention` the network is plain transformers; afterwards a forest runs
    again.
    """
    net, stock = network("llama"), network("llama")
    model = Model(net)
    ids = torch.arange(3, 12)[None]
    forest = plant([(seq([5, 6, 7]), seq([5, 8]))])
    with torch.no_grad():
        before = model.hidden(forest)
        with model.stock_attention():
            assert torch.equal(net(input_ids=ids).logits, stock(input_ids=ids).logits)
        assert torch.equal(model.hidden(forest), before)


# --------------------------------------------------------------------------------------------- load


def test_weights_that_are_missing_are_not_made_up(tmp_path: Any) -> None:
    network("llama").save_pretrained(tmp_path)
    expected = network("llama").state_dict()
    read, notes = load_network(tmp_path, "cpu")
    loaded = read.state_dict()
    assert notes == ()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())
    weights = load_file(tmp_path / "model.safetensors")
    extra = {"model.layers.9.extra": torch.zeros(3)}
    save_file({**weights, **extra}, tmp_path / "model.safetensors", {"format": "pt"})
    assert (
        "['model.layers.9.extra']" in load_network(tmp_path, "cpu")[1][0]
    )  # weights nobody uses are not passed over
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ModelError, match=r"lacks the weights \['model.layers.1.mlp.up_proj.weight'\]"
    ):
        load_network(tmp_path, "cpu")


def test_a_folder_that_is_no_model(tmp_path: Any) -> None:
    with pytest.raises(ModelError, match=r"has no config.json"):
        resolve(str(tmp_path))
    with pytest.raises(ModelError, match="is not a model folder"):
        resolve(str(tmp_path / "absent"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert resolve(str(tmp_path)) == tmp_path
    with pytest.raises(ModelError, match="cannot load"):
        load_network(tmp_path, "cpu")


def test_rounding_to_bfloat16_is_what_loading_in_bfloat16_gives(tmp_path: Any) -> None:
    """Position frequencies stay in float32: rounded, they are wrong by half a turn after a thousand
    positions.
    """
    network("llama").save_pretrained(tmp_path)
    rounded, _ = load_network(tmp_path, "cpu")
    to_bfloat16(rounded)
    loaded, _ = load_network(tmp_path, "cpu", torch.bfloat16)
    ids = torch.arange(300)[None] % V
    assert torch.equal(rounded(input_ids=ids).logits, loaded(input_ids=ids).logits)
    assert rounded.model.rotary_emb.inv_freq.dtype == torch.float32
    assert rounded.dtype == torch.bfloat16
