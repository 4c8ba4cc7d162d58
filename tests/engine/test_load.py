"""Models as they lie on the disk: what is missing is not made up, what is in excess is told."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from posttrain.core.errors import ConfigError, ModelError
from posttrain.engine.load import default_dtype, load_network, resolve
from posttrain.engine.policy import Policy
from tests.tiny import folder, network, random_trees


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
    # weights nobody uses are not passed over
    assert "['model.layers.9.extra']" in load_network(tmp_path, "cpu")[1][0]
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


@pytest.mark.parametrize("name", ["", "bfloat16", "float16"])
def test_weights_have_the_type_that_was_asked_for(name: str, tmp_path: Any) -> None:
    """Position frequencies stay in float32: rounded, they are wrong by half a turn after a thousand
    positions. Log-probabilities are float32 whatever the weights are.
    """
    ours = Policy.load(folder(tmp_path), device="cpu", dtype=name)
    dtype = getattr(torch, name or "float32")
    assert ours.network.dtype == default_dtype("cpu", name) == dtype
    assert {p.dtype for p in ours.network.parameters()} == {dtype}
    assert ours.network.inner.model.rotary_emb.inv_freq.dtype == torch.float32
    (columns,) = ours.score(ours.pack(random_trees(0), 1000))
    assert columns.logprob.dtype == torch.float32


def test_types_by_device_and_name() -> None:
    assert default_dtype("cpu") == torch.float32
    assert default_dtype("cuda") == torch.bfloat16
    assert default_dtype("cuda", "float32") == torch.float32
    with pytest.raises(ConfigError, match="bfloat15") as caught:
        default_dtype("cpu", "bfloat15")
    assert "bfloat16" in caught.value.cure
