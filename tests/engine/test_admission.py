"""Admission: what a forest would get wrong runs path by path, what cannot be run is refused, and
both say why.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from posttrain.core.errors import ModelError
from posttrain.core.types import Read
from posttrain.data.forest import collate
from posttrain.engine import admission
from posttrain.engine.admission import admitted, probe_forest
from posttrain.engine.network import _length_groups
from tests.tiny import (
    CONFIGS,
    FORESTS,
    V,
    alone,
    distance,
    gradients,
    network,
    random_trees,
    seq,
    tree_of,
    unprobed,
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
    "bamba": ("padded", "eager"),
    "longrope": ("equal", "eager"),
}


@pytest.mark.parametrize("architecture", FORESTS)
def test_models_that_go_through_the_attention_interface_are_admitted(architecture: str) -> None:
    found = admitted(network(architecture)).admission
    assert found.mode == "forest"
    # some versions of transformers drop Gemma-2's soft cap in their faster attention: then sampling
    # goes without it, and says so
    assert [r for r in found.reasons if "sampling uses eager" not in r] == []
    assert found.deviation < 1e-5


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
    ours = admitted(net)
    assert ours.mode == "forest"
    assert "forgetful attention is off by" in ours.admission.reasons[0]
    with ours.stock_attention():
        assert net.config._attn_implementation == "eager"


@pytest.mark.parametrize("architecture", PATHS)
def test_models_that_do_not_are_run_path_by_path(architecture: str) -> None:
    """Linear attention, chunks, ALiBi, frequencies that depend on the longest sequence: no error,
    but wrong by nats.
    """
    ours = admitted(network(architecture))
    mode, _ = PATHS[architecture]
    assert ours.mode == ours.admission.mode == mode
    assert ours.admission.deviation < 1e-5
    name = type(ours.inner).__name__
    tried = {
        "padded": ["packed, prefixes shared"],
        "equal": ["packed, prefixes shared", "every path alone, in batches of similar length"],
    }[mode]
    assert len(ours.admission.reasons) == len(tried)
    for reason, how in zip(ours.admission.reasons, tried, strict=True):
        start = f"{name} {how}: log-probabilities off by "
        assert reason.startswith(start) and reason.endswith(" nats")
        assert float(reason[len(start) : -len(" nats")]) > 0.1


@pytest.mark.parametrize("architecture", PATHS)
def test_path_modes_obey_the_law(architecture: str) -> None:
    """The same comparison as for forests: log-probabilities and gradients of every path alone,
    lengths mixed.
    """
    ours = admitted(network(architecture))
    stock = network(architecture, attention=PATHS[architecture][1])
    for seed in range(4):
        # longer than Llama-4's chunks and longrope's threshold
        trees = random_trees(seed, segment=14)
        found, expected = ours(collate(trees)).logprob, alone(stock, trees)
        weights = torch.cos(torch.arange(len(expected)))
        assert float((found - expected).detach().abs().max()) < 1e-5
        gradient = gradients(ours.inner, weights @ found)
        assert distance(gradient, gradients(stock, weights @ expected)) < 2e-5


@pytest.mark.parametrize("mode", ["padded", "equal"])
def test_every_mode_of_one_model_says_the_same(mode: Any) -> None:
    """The path modes need nothing of a model that a forest does not: on Llama all three agree, in
    the targets' order.
    """
    ours = unprobed(network("llama"))
    forest = collate(random_trees(3))
    for place in ("before", "targets", "ends"):
        read = Read(hidden=place)
        ours.run_as("forest")
        expected = ours(forest, read)
        ours.run_as(mode)
        found = ours(forest, read)
        for name in ("logprob", "hidden"):
            torch.testing.assert_close(
                getattr(found, name), getattr(expected, name), rtol=0, atol=1e-5
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
    found = admitted(network("llama4", attention_chunk_size=8192)).admission
    assert found.mode == "padded"
    assert found.reasons == ("Llama4ForCausalLM: its attention is chunked (8192 tokens)",)


def test_longrope_beyond_the_probe_is_believed_not_measured() -> None:
    rope = {**CONFIGS["longrope"]().rope_parameters, "original_max_position_embeddings": 4096}
    changes = {"original_max_position_embeddings": 4096, "max_position_embeddings": 16384}
    ours = admitted(network("longrope", rope_parameters=rope, **changes))
    assert ours.admission.mode == "equal"
    (reason,) = ours.admission.reasons
    assert "longrope position frequencies depend on the longest sequence" in reason
    forest = probe_forest(V)
    expected = ours(forest).logprob
    ours.run_as("forest")  # what the probe would have seen
    assert float((ours(forest).logprob - expected).detach().abs().max()) < 1e-5


# ----------------------------------------------------------------------------------- the small copy


def test_a_config_is_probed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its verdict is kept; the loaded weights are looked at every time."""
    probed: list[Any] = []
    real = admission._probe
    monkeypatch.setattr(admission, "_VERDICTS", {})
    monkeypatch.setattr(admission, "_probe", lambda inner: probed.append(1) or real(inner))
    first, again = (admitted(network("llama", seed=seed)).admission for seed in (0, 1))
    assert len(probed) == 1 and first.mode == again.mode and first.deviation != again.deviation
    admitted(network("llama", num_key_value_heads=4))
    assert len(probed) == 2


def test_the_small_copy_has_a_layer_of_each_kind_in_order() -> None:
    kinds = ["sliding_attention"] * 3 + ["full_attention", "sliding_attention"]
    net = network("gemma3", num_hidden_layers=5, layer_types=kinds, vocab_size=1000)
    made = admission.small_copy(net, 5.0)
    assert made is not None
    assert made.config.layer_types == ["sliding_attention", "full_attention"]
    assert len(made.model.layers) == 2
    assert made.get_input_embeddings().weight.shape[0] == admission.SMALL_VOCABULARY
    assert net.config.layer_types == kinds and net.config.vocab_size == 1000  # left alone
    made = admission.small_copy(network("llama", num_hidden_layers=6), 5.0)
    assert made is not None and made.config.num_hidden_layers == 2


def test_layers_that_differ_without_a_list_keep_the_whole_depth() -> None:
    """Two layers that are alike stand for six; one that is not could be the one that leaks."""
    net = network("llama", num_hidden_layers=6)
    net.model.layers[4].mlp.act_fn = nn.Tanh()
    made = admission.small_copy(net, 5.0)
    assert made is not None and made.config.num_hidden_layers == 6


def test_a_leak_that_hides_at_first_weights_is_found() -> None:
    """A layer that hands a thousandth of what the token before it in the forest says to the next
    one: less than the tolerance with weights as they are drawn, and far more five times as large.
    """

    class Whispering(LlamaForCausalLM):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            for layer in self.model.layers:
                layer.mlp.register_forward_hook(
                    lambda module, inputs, out: out + 0.02 * out.roll(1, -2)
                )

    config = CONFIGS["llama"]()
    config._attn_implementation = "sdpa"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Whispering(config).eval()
    forest = probe_forest(V)
    with torch.no_grad():
        ours = unprobed(net)
        packed = ours(forest).logprob
        ours.run_as("equal")
        off = float((packed - ours(forest).logprob).abs().max())
    assert 1e-5 < off < 1e-3
    found = admitted(net).admission
    assert found.mode != "forest" and "packed, prefixes shared" in found.reasons[0]


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
        admitted(net)
    assert "rope_type" in caught.value.cure
    if limit == 24:
        short, long = [tree_of(seq(list(range(3, n + 3)))) for n in (30, 40)]
        with torch.no_grad():
            before, _, after = (alone(net, [tree]) for tree in (short, long, short))
        assert float((before - after).abs().max()) > 0.1


def made_as(kind: Any) -> Any:
    """A tiny model of another class with Llama's weights; its small copy is of that class, too.

    First weights are drawn wide, because with a width of 32 attention is nearly uniform otherwise.
    """
    net = network("llama", initializer_range=0.2)
    made = kind(net.config).eval()
    made.load_state_dict(net.state_dict(), strict=False)
    return made


def test_a_head_that_does_more_than_its_matrix_is_refused() -> None:
    """Logits that are not h·Wᵀ with a known bias, scale and cap would be scored wrongly in every
    mode.
    """

    class Louder(LlamaForCausalLM):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.lm_head.register_forward_hook(lambda module, inputs, logits: 1.1 * logits)

    with pytest.raises(
        ModelError,
        match=r"output head is not a matrix with a known bias, scale and soft cap .* off by \d",
    ):
        admitted(made_as(Louder))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_particular_to_the_loaded_weights_is_refused(dtype: torch.dtype) -> None:
    """The small copy of the config is fine, and the model is not: in float32 a head that is a
    hundredth too loud, in half precision one that is twice as loud, and weights that are not
    finite.
    """
    louder, broken = network("llama", dtype=dtype), network("llama", dtype=dtype)
    factor = 1.01 if dtype == torch.float32 else 2.0
    louder.lm_head.register_forward_hook(lambda module, inputs, logits: factor * logits)
    with torch.no_grad():
        broken.lm_head.weight[3, 3] = torch.nan
    for net in (louder, broken):
        with pytest.raises(ModelError, match="LlamaForCausalLM is refused: with these weights"):
            admitted(net)
    assert admitted(network("llama", dtype=dtype)).mode == "forest"


def test_a_scale_that_the_config_does_not_name_is_refused() -> None:
    """Granite's logits_scaling under another name: the probe compares numbers, so a model that is
    new is not trusted.
    """
    assert admitted(network("granite")).head.scale == pytest.approx(1 / 2.5)
    refused = network("granite")
    refused.config.logits_scaling = 1.0
    refused.lm_head.register_forward_hook(lambda module, inputs, logits: logits / 2.5)
    with pytest.raises(ModelError, match="output head"):
        admitted(refused)


@pytest.mark.parametrize(
    "name",
    [
        "final_logit_softcap",
        "final_logit_softcapping",  # Gemma
        "logit_softcap",
        "logits_soft_cap",  # RecurrentGemma
        "output_logit_soft_cap",  # xLSTM
        "output_logits_softcap",
    ],
)
def test_a_soft_cap_is_known_by_its_names(name: str) -> None:
    net = network("llama")
    setattr(net.config, name, 2.5)
    assert unprobed(net).head.softcap == 2.5


@pytest.mark.parametrize(
    ("architecture", "settings", "scale"),
    [
        ("hyperclovax", {"logits_scaling": 2.5}, 2.5),
        ("minicpm3", {"dim_model_base": 8}, 0.25),
        ("falcon_h1", {"lm_head_multiplier": 0.3}, 0.3),
    ],
)
def test_scales_of_the_logits_are_read_as_their_models_mean_them(
    architecture: str, settings: dict[str, float], scale: float
) -> None:
    """What Granite divides by, HyperCLOVA X multiplies with."""
    ours = admitted(network(architecture, **settings))
    assert ours.head.scale == pytest.approx(scale) and ours.admission.deviation < 1e-5


def test_a_soft_cap_that_no_config_names_is_refused() -> None:
    """At first weights logits are small, and a cap of 300 changes them by less than the tolerance;
    the model's own head shows it on large ones.
    """

    class Capped(LlamaForCausalLM):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.lm_head.register_forward_hook(lambda m, inputs, z: 300 * torch.tanh(z / 300))

    net = made_as(Capped)
    with torch.no_grad():
        forest = probe_forest(V)
        off = (unprobed(net)(forest).logprob - admission._paths_alone(unprobed(net), forest)).abs()
    assert 0 < float(off.max()) < 1e-3
    with pytest.raises(ModelError, match="large logits are changed after the output head"):
        admitted(net)


def test_state_that_no_config_names_is_refused_as_what_it_is() -> None:
    """The frequencies of `dynamic` under a config that does not say so: a short sequence resets
    them, so only another order shows it.
    """

    class Remembering(LlamaForCausalLM):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            dynamic = CONFIGS["dynamic"](max_position_embeddings=17)
            self.model.rotary_emb = LlamaRotaryEmbedding(config=dynamic)

    with pytest.raises(ModelError, match="its answers depend on what ran before"):
        admitted(made_as(Remembering))


def test_noise_outside_training_is_refused_as_what_it_is() -> None:
    """Dropout that eval() does not turn off: the answers change from call to call, and the message
    does not blame the head.
    """

    class Noisy(LlamaForCausalLM):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.model.layers[0].mlp.register_forward_hook(
                lambda module, inputs, out: F.dropout(out, 0.3, training=True)
            )

    with pytest.raises(ModelError, match="its answers depend on what ran before"):
        admitted(made_as(Noisy))


def test_what_is_no_language_model_is_refused() -> None:
    class Broken(nn.Module):
        def forward(self, *args: Any, **kwargs: Any) -> None:
            raise ValueError("no such thing")

    class Mute(LlamaForCausalLM):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.model.layers[0].self_attn = Broken()

    with pytest.raises(
        ModelError, match="cannot be run as a causal language model: ValueError: no such thing"
    ):
        admitted(made_as(Mute))


def test_an_attention_argument_nobody_knows_is_not_ignored() -> None:
    """A model whose attention passes on something new is an error in a forest, and so is run path
    by path.
    """

    class Tilted(LlamaForCausalLM):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            for layer in self.model.layers:
                layer.self_attn.register_forward_pre_hook(
                    lambda module, args, kwargs: (args, {**kwargs, "tilt": 2.0}), with_kwargs=True
                )

    ours = admitted(made_as(Tilted))
    assert ours.mode == "padded"
    (reason,) = ours.admission.reasons
    assert "packed, prefixes shared: TypeError" in reason
    assert "does not understand the argument tilt of LlamaAttention" in reason
    ours.run_as("forest")
    with pytest.raises(TypeError, match="tilt"):
        ours(collate([tree_of(seq([1, 2, 3]))]))


# ------------------------------------------------------------------------------------------ running


def test_admission_leaves_the_network_as_it_was() -> None:
    """Training mode, weights, and the caller's random numbers."""
    net = network("gpt2", resid_pdrop=0.5).train()
    before = {name: p.clone() for name, p in net.state_dict().items()}
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    ours = admitted(net)
    assert torch.equal(torch.rand(3), expected)
    assert net.training and ours.training
    assert all(torch.equal(before[name], p) for name, p in net.state_dict().items())


def test_sampling_and_scoring_take_turns() -> None:
    """Inside `stock_attention` the network is plain transformers; afterwards a forest runs
    again.
    """
    net, stock = network("llama"), network("llama")
    ours = admitted(net)
    ids = torch.arange(3, 12)[None]
    forest = collate([tree_of(seq([5, 6, 7]), seq([5, 8]))])
    with torch.no_grad():
        before = ours(forest).logprob
        with ours.stock_attention():
            assert torch.equal(net(input_ids=ids).logits, stock(input_ids=ids).logits)
        assert torch.equal(ours(forest).logprob, before)
