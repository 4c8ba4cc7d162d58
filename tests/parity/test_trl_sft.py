"""Parity with TRL's SFTTrainer, by running TRL's own code: its data preparation, collator,
compute_loss and training loop.

Where we differ on purpose, the test shows both results and says why. A table of what was compared
is printed at the end.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from tests import making
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from trl import SFTConfig, SFTTrainer

from posttrain.core.errors import DataError
from posttrain.data.account import Account
from posttrain.data.forest import Sequence, Tree, forests
from posttrain.engine.optimiser import rate
from posttrain.engine.policy import Policy
from posttrain.engine.settings import OptimiserSettings
from posttrain.methods.supervised import METHODS

disable_progress_bar()
# TRL sets an option that this transformers version renamed
pytestmark = pytest.mark.filterwarnings(
    "ignore:`gradient_checkpointing` is deprecated:FutureWarning"
)
Rows = list[dict[str, str]]
PAD, BOS, END = "<pad>", "<s>", "</s>"
SYLLABLES = [
    "ba",
    "ce",
    "di",
    "fo",
    "gu",
    "ha",
    "je",
    "ki",
    "lo",
    "mu",
    "na",
    "pe",
    "ing",
    "er",
    "tion",
    "st",
]
SHAPE = {
    "vocab_size": 320,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # wide enough that probabilities are far from uniform: DFT's weights then matter
    "initializer_range": 0.2,
    "tie_word_embeddings": True,
}


# --------------------------------------------------------------------------------- what is compared


def make_tokenizer(*, bos: bool) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 320 tokens, with merges that may cross the border between prompt and
    completion.
    """
    rng = random.Random(0)
    corpus = [" ".join(word(rng) for _ in range(50)) for _ in range(50)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=[PAD, BOS, END],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=END
    )


def word(rng: random.Random) -> str:
    return "".join(rng.choices(SYLLABLES, k=rng.randint(1, 3)))


def sentence(rng: random.Random, low: int, high: int) -> str:
    return " ".join(word(rng) for _ in range(rng.randint(low, high)))


def prompt_rows(n: int) -> Rows:
    """Prompts that end on a token border, with completions of very different lengths."""
    rng = random.Random(1)
    return [
        {"prompt": sentence(rng, 1, 9) + "\n", "completion": sentence(rng, 1, 16)} for _ in range(n)
    ]


def text_rows(n: int) -> Rows:
    rng = random.Random(2)
    return [{"text": sentence(rng, 1, 22)} for _ in range(n)]


ROWS = {"prompt": prompt_rows, "text": text_rows}


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model and its tokenizer, saved."""
    torch.manual_seed(0)
    network = (
        LlamaForCausalLM(LlamaConfig(**SHAPE))
        if request.param == "llama"
        else Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=16))
    )
    path = tmp_path_factory.mktemp(request.param)
    network.save_pretrained(path)
    make_tokenizer(bos=True).save_pretrained(path)
    return path


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small only lose by a second thread, above all beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[list[tuple[str, float, float]]]:
    """Collects (what, ours, TRL's) and prints them."""
    rows: list[tuple[str, float, float]] = []
    yield rows
    lines = [f"\n{'':<42}{'posttrain':>14}{'TRL':>14}{'difference':>12}"]
    lines += [
        f"{what:<42}{ours:>14.8f}{theirs:>14.8f}{abs(ours - theirs):>12.1e}"
        for what, ours, theirs in rows
    ]
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n".join(lines))


def trl_trainer(
    model: Any, rows: Rows, out: Path, tokenizer: Any = None, **settings: Any
) -> SFTTrainer:
    """TRL's trainer in float32 on the CPU; every other setting is its default unless given."""
    args = SFTConfig(
        output_dir=str(out),
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to="none",
        optim="adamw_torch",
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=1,
        **{"max_length": 64, "per_device_train_batch_size": 4, **settings},
    )
    return SFTTrainer(
        model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )


@dataclass
class Ours:
    """Our rows, as plain text."""

    account: Account
    sequences: list[Sequence]


def ours(rows: Rows, tokenizer: Any, max_length: int = 64) -> Ours:
    """Text is cut at the end, as TRL does; we would divide it."""
    account, trees = making.trees(
        rows, tokenizer, prompt_template="{prompt}", max_length=max_length, truncate="right"
    )
    return Ours(account, [one for tree in trees for one in tree])


@dataclass
class Lookup:
    """Finds our sequence for the tokens in one of TRL's batches; tokens we did not make are a
    KeyError.
    """

    sequences: list[Sequence]

    def __post_init__(self) -> None:
        self.by_tokens = {tuple(s.tokens.tolist()): s for s in self.sequences}
        assert len(self.by_tokens) == len(self.sequences), "rows must differ"

    def batch(self, inputs: dict[str, Any]) -> list[Sequence]:
        if "attention_mask" in inputs:
            lengths = inputs["attention_mask"].sum(1).tolist()
            rows = [ids[:n] for ids, n in zip(inputs["input_ids"], lengths, strict=True)]
        else:  # packed: documents end to end
            rows = list(inputs["input_ids"][0].split(inputs["cu_seq_lens_q"].diff().tolist()))
        return [self.by_tokens[tuple(row.tolist())] for row in rows]


def family(folder: Path) -> str:
    return json.loads((folder / "config.json").read_text())["model_type"]


def gradients(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    return found


def farthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest difference of an entry, relative to the largest entry of its tensor."""
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).abs().max() / b[k].abs().max()) for k in a)


# ------------------------------------------------------------------------------- loss and gradients


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("method", ["nll", "dft"])
@pytest.mark.parametrize("kind", ["prompt", "text"])
def test_a_batch_has_trls_loss_and_gradients(
    folder: Path,
    kind: str,
    method: str,
    packed: bool,
    tmp_path: Path,
    table: list[tuple[str, float, float]],
) -> None:
    rows = ROWS[kind](16)
    trainer = trl_trainer(
        str(folder),
        rows,
        tmp_path,
        loss_type=method,
        packing=packed,
        max_length=96 if packed else 64,
    )
    policy = Policy.load(folder, device="cpu")
    known = Lookup(ours(rows, policy.tokenizer).sequences)
    seen = 0
    for batch in trainer.get_train_dataloader():
        inputs = trainer._prepare_inputs(batch)
        count = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
        loss = trainer.compute_loss(trainer.model, dict(inputs), num_items_in_batch=count)
        loss.backward()
        expected = loss.item()
        theirs = gradients(trainer.model)
        sequences = known.batch(inputs)
        got = policy.forward_backward(
            forests([Tree((s,)) for s in sequences], 128), METHODS[method]
        ).loss
        assert abs(got - expected) < 1e-5 * min(1, expected)
        assert farthest(gradients(policy.network.inner), theirs) < 1e-4
        seen += len(sequences)
    assert seen == len(rows)
    table.append(
        (
            f"{family(folder)} {method}, {kind} rows, {'packed' if packed else 'padded'}",
            got,
            expected,
        )
    )


# ----------------------------------------------------------------------------------------- training


@pytest.mark.parametrize(("method", "clip"), [("nll", 1.0), ("dft", 0.05)])
def test_twenty_steps_have_trls_losses(
    folder: Path, method: str, clip: float, tmp_path: Path, table: list[tuple[str, float, float]]
) -> None:
    steps, rows = 20, prompt_rows(40)
    trainer = trl_trainer(
        str(folder),
        rows,
        tmp_path,
        loss_type=method,
        max_steps=steps,
        learning_rate=2e-3,
        warmup_steps=0,
        lr_scheduler_type="linear",
        adam_beta1=0.9,
        adam_beta2=0.95,
        weight_decay=0.1,
        max_grad_norm=clip,
    )
    batches, losses = [], []
    inner = trainer.training_step

    def training_step(model: Any, inputs: dict[str, Any], *rest: Any) -> torch.Tensor:
        batches.append({k: v.clone() for k, v in inputs.items()})
        losses.append(float(inner(model, inputs, *rest)))
        return torch.tensor(losses[-1])

    trainer.training_step = training_step
    trainer.train()
    norms = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]

    policy = Policy.load(folder, device="cpu")
    policy.train_with(
        OptimiserSettings(
            learning_rate=2e-3,
            schedule="linear",
            warmup=0,
            betas=(0.9, 0.95),
            weight_decay=0.1,
            clip=clip,
        )
    )
    known = Lookup(ours(rows, policy.tokenizer).sequences)
    for step, batch in enumerate(batches):
        trees = [Tree((s,)) for s in known.batch(batch)]
        got = policy.forward_backward(forests(trees, 128), METHODS[method]).loss
        norm = policy.step(rate("linear", step, steps, 0))
        assert abs(got - losses[step]) < 1e-5 * min(1, losses[step]), f"step {step}"
        assert norm == pytest.approx(norms[step], rel=1e-4), f"step {step}"
        if step in (0, 9, 19):
            table.append((f"{family(folder)} {method}, loss of step {step + 1}", got, losses[step]))
    assert len(batches) == steps
    assert abs(losses[-1] / losses[0] - 1) > 0.05, "the comparison is empty where nothing is learnt"
    assert max(norms) > clip, "clipping must have been at work"
    weights = dict(trainer.model.named_parameters())
    final = {name: p.detach() for name, p in policy.network.inner.named_parameters()}
    assert farthest(final, {name: weights[name].detach() for name in final}) < 1e-3


def test_warm_up_differs_trls_first_step_has_no_rate() -> None:
    """transformers' warm-up begins at a rate of 0, so its first step changes nothing.

    Ours begins above 0.
    """
    from transformers import get_linear_schedule_with_warmup

    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_linear_schedule_with_warmup(optimiser, 3, 20)
    theirs = []
    for _ in range(5):
        theirs.append(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()
    assert theirs == pytest.approx([0, 1 / 3, 2 / 3, 1, 16 / 17])
    assert [rate("linear", s, 20, 3 / 20) for s in range(5)] == pytest.approx(
        [1 / 4, 2 / 4, 3 / 4, 1, 16 / 17]
    )


# --------------------------------------------------------------------------------- tokens and masks


def prepared(
    rows: Rows, tokenizer: Any, out: Path, **settings: Any
) -> list[tuple[list[int], list[bool]]]:
    """(tokens, which are trained) as TRL's data preparation makes them.

    Position 0 is never predicted, whatever its label.
    """
    torch.manual_seed(0)
    trainer = trl_trainer(LlamaForCausalLM(LlamaConfig(**SHAPE)), rows, out, tokenizer, **settings)
    return [
        (r["input_ids"], [False, *(label != -100 for label in r["labels"][1:])])
        for r in trainer.train_dataset
    ]


def plain(data: Ours) -> list[tuple[list[int], list[bool]]]:
    return [(s.tokens.tolist(), [False, *s.trained[1:].tolist()]) for s in data.sequences]


@pytest.mark.parametrize("bos", [True, False], ids=["bos", "no bos"])
@pytest.mark.parametrize("kind", ["prompt", "text"])
def test_tokens_and_masks_are_trls(kind: str, bos: bool, tmp_path: Path) -> None:
    """30 tokens at most: some rows are cut, and prompts that fill it are dropped, by both."""
    tokenizer = make_tokenizer(bos=bos)
    rows = [
        *ROWS[kind](60),
        *({k: f"{v}{END}" if k != "prompt" else v for k, v in r.items()} for r in ROWS[kind](3)),
    ]
    if kind == "prompt":
        rows += [
            {"prompt": "", "completion": "naing"},
            {"prompt": "ba ce di " * 20 + "\n", "completion": "lost"},
        ]
    mine = ours(rows, tokenizer, 30)
    assert plain(mine) == prepared(rows, tokenizer, tmp_path, max_length=30)
    assert mine.account.truncated > 5
    assert sum(mine.account.dropped.values()) == (1 if kind == "prompt" else 0)
    whole = [s for s in mine.sequences if len(s.tokens) < 30]
    assert all(s.tokens[-1] == 2 and s.trained[-1] and s.tokens[-2] != 2 for s in whole), (
        "one trained end token"
    )


def test_a_merge_across_the_border_keeps_our_prompt_and_not_trls(tmp_path: Path) -> None:
    """TRL tokenises prompt and completion together and trains on a prompt that inference never
    sees; it warns. We keep the prompt as inference tokenises it.
    """
    tokenizer = make_tokenizer(bos=True)
    row = {"prompt": "gu ba st", "completion": "lo ba"}  # ' stlo' is one token
    prompt = tokenizer(row["prompt"])["input_ids"]
    joint = tokenizer(row["prompt"] + row["completion"])["input_ids"]
    assert joint[: len(prompt)] != prompt, "the row must have a merge"
    ((tokens, trained),) = plain(ours([row], tokenizer))
    assert tokens == [
        *prompt,
        *tokenizer(row["completion"], add_special_tokens=False)["input_ids"],
        2,
    ]
    assert trained == [False] * len(prompt) + [True] * (len(tokens) - len(prompt))
    ((their_tokens, their_trained),) = prepared([row], tokenizer, tmp_path)
    assert their_tokens == [*joint, 2]
    assert sum(their_trained) == len(their_tokens) - (len(prompt) - 1)


def test_an_empty_completion_is_refused_where_trl_trains_silence(tmp_path: Path) -> None:
    rows = [{"prompt": "ba ce\n", "completion": ""}]
    ((tokens, trained),) = prepared(rows, make_tokenizer(bos=True), tmp_path)
    assert [t for t, on in zip(tokens, trained, strict=True) if on] == [2]
    with pytest.raises(DataError, match="the text to learn is empty"):
        ours(rows, make_tokenizer(bos=True))


def test_a_tokenizer_that_appends_its_end_token_trains_one_end_and_trl_two(tmp_path: Path) -> None:
    """Two end tokens would teach the model to go on after the first.

    The prompt must not end with one either.
    """
    tokenizer = make_tokenizer(bos=True)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {END}", special_tokens=[(BOS, 1), (END, 2)]
    )
    row = {"prompt": "ba ce\n", "completion": "lost"}
    body = tokenizer(row["prompt"] + row["completion"], add_special_tokens=False)["input_ids"]
    assert plain(ours([row], tokenizer))[0][0] == [1, *body, 2]
    assert prepared([row], tokenizer, tmp_path)[0][0] == [1, *body, 2, 2]
