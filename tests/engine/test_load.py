"""Models as they lie on the disk: what is missing is not made up, what is in excess is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from posttrain.core.errors import ConfigError, ModelError
from posttrain.core.files import LOCK, sha256_folder
from posttrain.engine.load import default_dtype, digest, load_network, resolve
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


def test_more_layers_than_weights_are_refused_before_they_are_built(tmp_path: Path) -> None:
    network("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 10**8}))
    with pytest.raises(ModelError, match=r"100,000,000 layers, and the folder holds \d+ tensors"):
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


# ------------------------------------------------------------------------- the digest of a model


def model(folder: Path, shard: str = "shards/1.safetensors") -> Path:
    """Files with the names of a model's, whose weights an index names."""
    weights = {"model.safetensors.index.json": json.dumps({"weight_map": {"w": shard}})}
    files = {"config.json": "{}", "shards/1.safetensors": "1", "chat/x.jinja": "x", **weights}
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def test_a_flat_folders_digest_is_over_its_files(tmp_path: Path) -> None:
    folder(tmp_path)
    assert digest(tmp_path) == sha256_folder(tmp_path)
    without = sha256_folder(tmp_path, lambda path: path.suffix != ".safetensors")
    assert digest(tmp_path, weights=False) == without


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("config.json", True),
        ("shards/1.safetensors", True),
        ("chat/x.jinja", True),
        ("extra/more.safetensors", True),
        ("README.md", False),
        (".cache/huggingface/x.json", False),
        ("run/summary.json", False),  # of a run that is kept inside
    ],
)
def test_what_is_part_of_a_model(name: str, counts: bool, tmp_path: Path) -> None:
    before = digest(model(tmp_path))
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / LOCK).write_text("")
    (tmp_path / name).write_text("other")
    assert (digest(tmp_path) != before) == counts


def test_a_shard_that_is_a_link_counts_with_its_content(tmp_path: Path) -> None:
    """So the hub's cache keeps models."""
    blobs, linked = tmp_path / "blobs", model(tmp_path / "snapshot")
    blobs.mkdir()
    (linked / "shards" / "1.safetensors").rename(blobs / "abc")
    (linked / "shards" / "1.safetensors").symlink_to(blobs / "abc")
    assert (before := digest(linked)) == digest(model(tmp_path / "flat"))
    (blobs / "abc").write_text("2")
    assert digest(linked) != before


@pytest.mark.parametrize(
    ("shard", "what", "cure"),
    [
        ("../x.safetensors", "lies outside the folder", "move it into"),
        ("shards/../../x.safetensors", "lies outside the folder", "move it into"),
        ("/x.safetensors", "lies outside the folder", "move it into"),
        ("2.safetensors", "names 2.safetensors, which is not there", "complete model"),
        (3, "is no index of weights", "complete model"),
    ],
)
def test_an_index_that_leads_elsewhere_is_refused(
    shard: Any, what: str, cure: str, tmp_path: Path
) -> None:
    (tmp_path / "x.safetensors").write_text("")
    for function in (digest, lambda path: load_network(path, "cpu")):
        with pytest.raises(ModelError, match=r"index\.json") as caught:
            function(model(tmp_path / "m", shard))
        assert what in caught.value.what and cure in caught.value.cure
