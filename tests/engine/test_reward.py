"""Reward models: packed as alone, the same in plain transformers, heads of their own, and adapters
that merge.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from posttrain.core.errors import ConfigError, ModelError
from posttrain.data.examples import Examples
from posttrain.data.forest import TokenForest, Tree, collate
from posttrain.engine.network import trunk_of
from posttrain.engine.reward import PAD, RewardModel
from posttrain.engine.settings import LoraSettings, OptimiserSettings
from posttrain.methods.reward import bradley_terry, process
from tests.tiny import CONFIGS, V, distance, folder, parameter_gradients, random_tree, seq, tree_of

# gemma-2: soft caps and windows; gpt2: learned positions and transposed matrices
ARCHITECTURES = ("llama", "gpt2", "gemma2", "mistral")


def pairs(choose: Any, n: int) -> list[Tree]:
    """Pairs that go on from a prompt; every answer has a token of its own at the end."""
    out = []
    for _ in range(n):
        prompt = [choose(V) for _ in range(1 + choose(6))]
        sides = [[choose(V) for _ in range(choose(5))] + [3 + k] for k in range(2)]
        trained = [[0] * len(prompt) + [1] * len(side) for side in sides]
        made = [seq([*prompt, *side], mask) for side, mask in zip(sides, trained, strict=True)]
        out.append(tree_of(*made, units=[(0, 1)]))
    return out


def seeded(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return lambda n: int(rng.integers(n))


def flat(trees: Many[Tree]) -> list[list[int]]:
    return [s.tokens.tolist() for tree in trees for s in tree]


def stock(path: Path, kind: Any = AutoModelForSequenceClassification) -> Any:
    return kind.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()


def alone(network: Any, trees: Many[Tree]) -> Tensor:
    """[L, K] every sequence alone through transformers' own forward pass."""
    return torch.cat(
        [network(input_ids=torch.tensor([ids]), use_cache=False).logits for ids in flat(trees)]
    )


def by_number(model: RewardModel, batch: Many[TokenForest]) -> Tensor:
    """[L, K] in the order of the sequences."""
    rewards = torch.cat([columns.reward for columns in model.score(batch)])
    return rewards[torch.cat([forest.sequence for forest in batch]).argsort()]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("llama"))


# ---------------------------------------------------------------------------------- packed as alone


def test_packed_pairs_have_the_rewards_and_gradients_of_sequences_alone(
    base: Path, tmp_path: Path
) -> None:
    """Three heads; transformers runs every answer alone, and the loss is written out: mean over
    heads and pairs.
    """
    model = RewardModel.load(base, device="cpu", heads=3)
    assert model.network.mode == "forest"
    model.save(tmp_path)
    plain = stock(tmp_path)

    @settings(max_examples=8, deadline=None, derandomize=True)
    @given(st.integers(0, 10**6), st.integers(1, 5), st.integers(20, 60))
    def check(seed: int, n: int, budget: int) -> None:
        trees = pairs(seeded(seed), n)
        batch = model.pack(trees, budget)
        expected = alone(plain, trees)
        assert float((by_number(model, batch) - expected).detach().abs().max()) < 1e-5
        chosen, rejected = expected[0::2], expected[1::2]
        value = (-(chosen - rejected).sigmoid().log() + 0.01 * (chosen + rejected) ** 2).mean()
        value.backward()
        found = model.forward_backward(batch, bradley_terry())
        assert found.loss == pytest.approx(float(value.detach()), rel=1e-5)
        assert distance(parameter_gradients(model.network.inner), parameter_gradients(plain)) < 2e-5

    check()


@pytest.mark.parametrize("architecture", ["llama", "qwen3_5"])
def test_steps_have_the_rewards_and_gradients_of_token_classification(
    architecture: str, tmp_path: Path
) -> None:
    """Every target of a tree is read at itself.

    Where no forest can be run, neither can steps be mixed up.
    """
    made = folder(tmp_path / "base", architecture)
    if architecture == "qwen3_5":
        with pytest.raises(ModelError):
            RewardModel.load(made, device="cpu", process=True)  # transformers has no such class
        return
    model = RewardModel.load(made, device="cpu", heads=2, process=True)
    model.save(tmp_path / "model")
    plain = stock(tmp_path / "model", AutoModelForTokenClassification)
    trees = [random_tree(seeded(seed)) for seed in range(6)]
    trees = [tree for tree in trees if all(s.N for s in tree)]
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, 2, tree.N).astype(np.float32) for tree in trees]
    batch = model.pack(Examples(trees, "steps", labels), 30)
    assert len(batch) > 1
    rows = []
    for s in (s for tree in trees for s in tree):
        every = plain(input_ids=torch.from_numpy(s.tokens)[None]).logits[0]
        rows.append(every[torch.from_numpy(np.append(False, s.trained[1:]))])
    logits = torch.cat(rows)
    label = torch.from_numpy(np.concatenate(labels))[:, None]
    value = -(label * logits.sigmoid().log() + (1 - label) * (-logits).sigmoid().log()).mean()
    value.backward()
    found = model.forward_backward(batch, process())
    assert found.loss == pytest.approx(float(value.detach()), rel=1e-5)
    assert distance(parameter_gradients(model.network.inner), parameter_gradients(plain)) < 2e-5


def test_micro_batches_add_up(llama: Path) -> None:
    trees = pairs(seeded(1), 9)
    model = RewardModel.load(llama, device="cpu", heads=2)
    found = []
    for budget in (1000, 25):
        batch = model.pack(trees, budget)
        value = model.forward_backward(batch, bradley_terry()).loss
        found.append((len(batch), value, parameter_gradients(model.network.inner)))
    (one, whole, expected), (many, cut, gradient) = found
    assert one == 1 and many > 3
    assert cut == pytest.approx(whole, rel=1e-6)
    assert distance(gradient, expected) < 5e-6


def test_the_first_loss_by_hand(llama: Path) -> None:
    """One pair: log(1 + e^−(a − b)) + 0.01·(a + b)², from the two rewards, and what the method
    reports of them.
    """
    model = RewardModel.load(llama, device="cpu")
    forest = collate([tree_of(seq([5, 6, 7]), seq([5, 6, 8, 9]), units=[(0, 1)])])
    a, b = model.score([forest])[0].reward[:, 0].tolist()
    found = model.measure([forest], bradley_terry())
    assert found.loss == pytest.approx(np.log1p(np.exp(b - a)) + 0.01 * (a + b) ** 2, rel=1e-6)
    assert found.means() == pytest.approx(
        {
            "rewards/chosen": a,
            "rewards/rejected": b,
            "rewards/margins": a - b,
            "rewards/accuracies": float(a > b),
        }
    )


# ------------------------------------------------------------------------------- plain transformers


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_saved_model_gives_the_same_rewards_in_a_padded_batch(
    base: Path, side: str, tmp_path: Path
) -> None:
    """AutoModelForSequenceClassification, its own tokenizer's padding, an attention mask, one batch
    of mixed lengths.
    """
    model = RewardModel.load(base, device="cpu", heads=2, seed=3)
    trees = pairs(seeded(4), 6)
    expected = by_number(model, model.pack(trees, 50))
    model.set_written({})
    model.save(tmp_path)
    plain, words = stock(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    words.padding_side = side
    batch = words.pad({"input_ids": flat(trees)}, return_tensors="pt")
    assert (
        len({len(ids) for ids in flat(trees)}) > 2
        and (batch["input_ids"] == words.pad_token_id).any()
    )
    with torch.no_grad():
        found = plain(**batch, use_cache=False).logits
    assert (
        type(plain).__name__ == type(model.network.inner).__name__ and plain.config.num_labels == 2
    )
    if side == "left" and "gpt2" in type(plain).__name__.lower():
        return  # transformers gives GPT-2's padding on the left positions of its own
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_save_and_load_keep_every_bit(llama: Path, tmp_path: Path) -> None:
    model = RewardModel.load(llama, device="cpu", heads=3, seed=9)
    model.set_written({"prompt_template": "Q {prompt}"})
    model.save(tmp_path)
    again = RewardModel.load(tmp_path, device="cpu", seed=1)
    forest = collate(pairs(seeded(0), 4))
    assert torch.equal(again.score([forest])[0].reward, model.score([forest])[0].reward)
    assert (again.heads, again.process, again.written) == (
        3,
        False,
        {"prompt_template": "Q {prompt}", "heads": 3},
    )
    assert again.network.config.pad_token_id == again.tokenizer.pad_token_id == 0


def test_a_reward_model_of_anothers_is_taken_as_it_is(llama: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    LlamaForSequenceClassification(CONFIGS["llama"](num_labels=1)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(llama).save_pretrained(tmp_path)
    model = RewardModel.load(tmp_path, device="cpu")
    trees = pairs(seeded(2), 3)
    torch.testing.assert_close(
        by_number(model, [collate(trees)]), alone(stock(tmp_path), trees), rtol=0, atol=1e-6
    )
    with pytest.raises(ConfigError, match="a reward model with 1 heads, not 2"):
        RewardModel.load(tmp_path, device="cpu", heads=2)
    with pytest.raises(ConfigError, match="a reward model of whole answers"):
        RewardModel.load(tmp_path, device="cpu", process=True)


def test_a_classifier_is_no_reward_model(llama: Path, tmp_path: Path) -> None:
    LlamaForSequenceClassification(CONFIGS["llama"](num_labels=2)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(llama).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="classifies into 2 labels; a reward model has one number"):
        RewardModel.load(tmp_path, device="cpu")


def test_a_head_that_is_no_linear_map_is_refused(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = LlamaForSequenceClassification.forward

    def squashed(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = real(self, *args, **kwargs)
        out.logits = out.logits.tanh()
        return out

    monkeypatch.setattr(LlamaForSequenceClassification, "forward", squashed)
    with pytest.raises(ModelError, match="not a linear map of the last hidden state"):
        RewardModel.load(llama, device="cpu")


def test_a_trunk_that_forests_get_wrong_runs_path_by_path(tmp_path: Path) -> None:
    """The probe looks at hidden states through the input embeddings: Bloom's ALiBi is found out
    without a head over words.
    """
    model = RewardModel.load(folder(tmp_path / "base", "bloom"), device="cpu")
    assert (
        model.network.mode == "padded"
        and "packed, prefixes shared: " in model.network.admission.reasons[0]
    )
    model.save(tmp_path / "model")
    trees = pairs(seeded(5), 4)
    torch.testing.assert_close(
        by_number(model, [collate(trees)]),
        alone(stock(tmp_path / "model"), trees),
        rtol=0,
        atol=1e-5,
    )


# -------------------------------------------------------------------------------------------- heads


def test_heads_are_drawn_from_the_seed_each_from_its_own_stream(llama: Path) -> None:
    """Head 0 is the same whether there are two or three; a first weight is normal with standard
    deviation 1/√(d + 1).
    """

    def weight(**more: Any) -> Tensor:
        return RewardModel.load(llama, device="cpu", **more).network.reward_head.weight.detach()

    two, three, other = weight(heads=2), weight(heads=3), weight(heads=2, seed=1)
    assert (
        torch.equal(two, three[:2])
        and not torch.equal(two, other)
        and not torch.equal(two[0], two[1])
    )
    many = weight(heads=400)
    assert float(many.std()) == pytest.approx(33**-0.5, rel=0.05)


# ---------------------------------------------------------------------------------------- what pads


def words(path: Path, special: dict[str, str], names: Many[str], rows: int = V) -> Path:
    """A tiny model whose tokenizer has these special tokens first."""
    made = folder(path, vocab_size=rows, pad_token_id=None, eos_token_id=0, bos_token_id=None)
    vocabulary = {
        name: i for i, name in enumerate([*names, *(f"w{i}" for i in range(len(names), V))])
    }
    raw = Tokenizer(WordLevel(vocabulary, unk_token=names[0]))
    raw.add_special_tokens(list(names))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (made / file).unlink()
    PreTrainedTokenizerFast(tokenizer_object=raw, **special).save_pretrained(made)
    return made


@pytest.mark.parametrize(
    ("special", "names", "pad"),
    [
        ({"eos_token": "<end>", "pad_token": "<p>"}, ("<end>", "<p>"), "<p>"),
        (
            {"eos_token": "<end>", "pad_token": "<end>"},
            ("<end>", "<other>", "<|right_pad|>"),
            "<|right_pad|>",
        ),
        ({"eos_token": "<end>"}, ("<end>", "<|reserved_7|>"), "<|reserved_7|>"),
        ({"eos_token": "<end>", "bos_token": "<s>"}, ("<end>", "<s>"), "<s>"),
    ],
)
def test_padding_is_a_token_that_no_sequence_ends_with(
    special: dict[str, str], names: Many[str], pad: str, tmp_path: Path
) -> None:
    model = RewardModel.load(words(tmp_path, special, names), device="cpu")
    assert model.tokenizer.pad_token == pad
    assert (
        model.network.inner.config.pad_token_id == model.tokenizer.pad_token_id == names.index(pad)
    )


def test_padding_gives_way_to_data_that_ends_with_it(tmp_path: Path) -> None:
    model = RewardModel.load(
        words(
            tmp_path,
            {"eos_token": "<end>", "pad_token": "<p>", "bos_token": "<s>"},
            ("<end>", "<p>", "<s>"),
        ),
        device="cpu",
    )
    model.pad_unlike({1})
    assert model.tokenizer.pad_token == "<s>"


@pytest.mark.parametrize("rows", [V, V + 3], ids=["full", "roomy"])
def test_a_tokenizer_with_nothing_to_pad_with_gets_a_token(rows: int, tmp_path: Path) -> None:
    """GPT-2's tokenizer knows the end token alone, and transformers would read before it.

    The new token has an embedding of zeros, in a row that was free or is added, and rewards are the
    same in a padded batch.
    """
    only = {"eos_token": "<end>", "pad_token": "<end>"}
    model = RewardModel.load(words(tmp_path / "base", only, ("<end>",), rows=rows), device="cpu")
    embeddings = model.network.inner.get_input_embeddings().weight
    assert (model.tokenizer.pad_token, model.tokenizer.pad_token_id, len(embeddings)) == (
        PAD,
        V,
        max(rows, V + 1),
    )
    assert not embeddings[V].any() and embeddings.requires_grad
    trees = []
    for tree in pairs(seeded(6), 4):
        trees.append(tree_of(*(seq([*s.tokens.tolist(), 0]) for s in tree)))
    model.save(tmp_path / "model")
    batch = AutoTokenizer.from_pretrained(tmp_path / "model").pad(
        {"input_ids": flat(trees)}, return_tensors="pt"
    )
    with torch.no_grad():
        found = stock(tmp_path / "model")(**batch).logits
    torch.testing.assert_close(found, by_number(model, [collate(trees)]), rtol=0, atol=1e-5)
    assert RewardModel.load(tmp_path / "model", device="cpu").tokenizer.pad_token_id == V


# ----------------------------------------------------------------------------------------- adapters


def adapted(path: Path, steps: bool, **more: Any) -> RewardModel:
    """Trained for three steps, so that adapters and head are no longer what they were."""
    model = RewardModel.load(
        path, device="cpu", lora=LoraSettings(rank=4, alpha=6), process=steps, **more
    )
    model.train_with(OptimiserSettings(learning_rate=0.03))
    if steps:
        plain = [tree_of(seq([4, 5, 6, 7], [0, 1, 0, 1])), tree_of(seq([9, 8, 7], [0, 1, 1]))]
        batch = model.pack(Examples(plain, "steps", [np.array([1, 0], np.float32)] * 2), 100)
    else:
        batch = model.pack(pairs(seeded(0), 6), 100)
    for _ in range(3):
        model.forward_backward(batch, process() if steps else bradley_terry())
        model.step()
    return model


@pytest.mark.parametrize("steps", [False, True], ids=["pairs", "steps"])
def test_only_adapters_and_the_head_train(llama: Path, steps: bool) -> None:
    fresh = RewardModel.load(
        llama, device="cpu", lora=LoraSettings(rank=4, alpha=6), process=steps
    ).network.inner.state_dict()
    after = adapted(llama, steps).network.inner.state_dict()
    moved = {name for name in fresh if not torch.equal(fresh[name], after[name])}
    assert moved == {
        name for name in fresh if ".lora_" in name or name.startswith("score.modules_to_save.")
    }
    assert any(name.startswith("score.") for name in moved)


def test_fresh_adapters_change_no_reward(base: Path) -> None:
    forest = collate(pairs(seeded(3), 4))
    plain, fresh = (
        RewardModel.load(base, device="cpu", lora=lora) for lora in (None, LoraSettings(rank=4))
    )
    assert torch.equal(plain.score([forest])[0].reward, fresh.score([forest])[0].reward)


# peft asks transformers by its old name
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_a_trained_adapter_merges_and_its_folder_belongs_to_plain_peft(
    base: Path, tmp_path: Path
) -> None:
    """The exported model needs neither peft nor us; the adapter's folder holds the head, too."""
    model = adapted(base, steps=False, heads=2)
    trees = pairs(seeded(8), 5)
    expected = by_number(model, [collate(trees)])
    model.save(tmp_path / "model")
    merged = stock(tmp_path / "model")
    torch.testing.assert_close(alone(merged, trees), expected, rtol=0, atol=2e-5)
    start = RewardModel.load(base, device="cpu", heads=2)
    assert merged.state_dict().keys() == start.network.inner.state_dict().keys()
    assert float((by_number(start, [collate(trees)]) - expected).abs().max()) > 0.05
    model.save_adapter(tmp_path / "adapter")
    bare = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=2, dtype=torch.float32
    )
    torch.testing.assert_close(
        alone(peft.PeftModel.from_pretrained(bare, tmp_path / "adapter").eval(), trees),
        expected,
        rtol=0,
        atol=2e-5,
    )


# ----------------------------------------------------------------------------------------- on a GPU


def test_a_trunk_in_bfloat16_keeps_its_head_in_float32(llama: Path) -> None:
    """What happens on a GPU, on the CPU: rewards are float32 and near the whole model's, the head's
    weights lose no bit, and training moves them by less than bfloat16 could.
    """
    whole, half = (RewardModel.load(llama, device="cpu", heads=2) for _ in range(2))
    trunk_of(half.network.inner).to(torch.bfloat16)
    head, inner = half.network.reward_head, half.network.inner
    trunk = {p.dtype for name, p in inner.named_parameters() if not name.startswith("score.")}
    assert trunk == {torch.bfloat16}
    assert torch.equal(head.weight, whole.network.reward_head.weight)
    trees = pairs(seeded(1), 8)
    found, expected = (by_number(model, [collate(trees)]) for model in (half, whole))
    assert found.dtype == torch.float32 and 0 < float((found - expected).abs().max()) < 0.1
    before = head.weight.detach().clone()
    half.train_with(OptimiserSettings(learning_rate=1e-6))
    half.forward_backward(half.pack(trees, 1000), bradley_terry())
    half.step()
    assert float((head.weight.detach() - before).abs().max()) == pytest.approx(1e-6, rel=0.2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_head_stays_in_float32(llama: Path) -> None:
    model = RewardModel.load(llama, device="cuda", heads=2)
    head = model.network.reward_head
    assert isinstance(head, nn.Linear) and head.weight.dtype == torch.float32
    assert model.network.dtype == torch.bfloat16
    trees = pairs(seeded(1), 8)
    whole = RewardModel.load(llama, device="cpu", heads=2)
    found, expected = (by_number(m, [collate(trees)]).cpu() for m in (model, whole))
    assert found.dtype == torch.float32 and float((found - expected).abs().max()) < 0.1
