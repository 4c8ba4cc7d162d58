"""Makes the embedded base model, from texts and the curriculum to src/posttrain/assets/base.

    python scripts/make_base.py --texts books.jsonl.gz stories.jsonl.gz --work runs/base \\
        [--tokens 500e6] [--install]

1. `data`: pages of the curriculum, drawn anew, beside the texts.
2. `tokenizer`: byte-level BPE of 4,096 tokens, digits split, with turn tokens that pretraining does
   not use.
3. `model`: a Llama of 4.7 M parameters with random weights.
4. `adapt`: this project's own stage reads all of it. About six minutes on one H200; on a CPU it
   would take days.
5. With --install the result goes to src/posttrain/assets/base, with MODEL_CARD.md.

Each step is done once; the same command continues.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path

from posttrain.assets import curriculum
from posttrain.core.files import atomic_folder, sha256_file

ASSETS = Path(__file__).resolve().parents[1] / "src" / "posttrain" / "assets"
VOCABULARY, CONTEXT, BATCH = 4096, 1024, 128
PAGE = 2400  # characters; about a context
CHARACTERS = 2.6  # of a token of this vocabulary, on average
SHARE = 0.6  # of the tokens that are curriculum
UNIQUE = 0.5  # of the curriculum's tokens that are different: it is read twice
SPECIAL = ["<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"]


def pages(start: int, count: int) -> Iterator[str]:
    """Pages of documents of the curriculum; every page has documents of its own."""
    documents = curriculum.pretraining(seed=0, start=start)
    for _ in range(count):
        page = ""
        while len(page) < PAGE:
            page += ("\n\n" if page else "") + next(documents)
        yield page


def _write_part(job: tuple[str, int, int]) -> str:
    path, start, count = job
    with gzip.open(path, "wt", compresslevel=1) as file:
        for page in pages(start, count):
            file.write(json.dumps({"text": page}) + "\n")
    return path


def make_data(folder: Path, tokens: float) -> None:
    """The curriculum's part, written by all cores."""
    if (folder / "curriculum").is_dir():
        return
    count = int(tokens * SHARE * UNIQUE * CHARACTERS / PAGE)
    parts = 32
    pages_each = count // parts + 1
    # a page has at most 60 documents, so parts never overlap
    documents_each = 60 * pages_each
    with atomic_folder(folder / "curriculum") as target, ProcessPoolExecutor() as pool:
        jobs = []
        for i in range(parts):
            path = target / f"part-{i:02d}.jsonl.gz"
            jobs.append((str(path), i * documents_each, pages_each))
        list(pool.map(_write_part, jobs))


def _sample(texts: list[Path], folder: Path) -> Iterator[str]:
    """Some of everything, for the tokenizer."""
    for path in texts:
        with gzip.open(path, "rt") as file:
            for line in islice(file, 40):
                yield json.loads(line)["text"][:200_000]
    for path in sorted((folder / "curriculum").iterdir())[:4]:
        with gzip.open(path, "rt") as file:
            for line in islice(file, 800):
                yield json.loads(line)["text"]


def make_model(texts: list[Path], folder: Path) -> None:
    """Tokenizer and random weights, as a Hugging Face folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from posttrain.data.templates.default import default_template

    if (folder / "random").is_dir():
        return
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        _sample(texts, folder),
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token=SPECIAL[0], pad_token=SPECIAL[1]
    )
    tokenizer.chat_template = default_template(tokenizer)
    torch.manual_seed(0)
    network = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=256,
            intermediate_size=704,
            num_hidden_layers=5,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            rope_theta=10_000.0,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    with atomic_folder(folder / "random") as target:
        tokenizer.save_pretrained(target)
        network.save_pretrained(target)


def pretrain(texts: list[Path], folder: Path, tokens: float) -> Path:
    """The `adapt` stage, from random weights."""
    from posttrain import adapt

    parts = sorted(str(p) for p in (folder / "curriculum").iterdir())
    # rows are windows of about a context each, so shares of rows are about shares of tokens
    data = [f"{path},weight={SHARE / len(parts)}" for path in parts]
    total = sum(path.stat().st_size for path in texts)
    for path in texts:
        data.append(f"{path},weight={(1 - SHARE) * path.stat().st_size / total}")
    outcome = adapt(
        model=folder / "random",
        data=data,
        out=folder / "adapt",
        steps=int(tokens / (BATCH * CONTEXT * 0.85)),
        batch_size=BATCH,
        budget=BATCH * CONTEXT,
        learning_rate=4e-3,
        schedule="wsd",
        warmup=0.02,
        weight_decay=0.1,
        betas=(0.9, 0.95),
        max_length=CONTEXT,
    )
    return outcome.model


def install(model: Path, texts: list[Path], summary: Path) -> None:
    """Put the model into the package, with what it was made of."""
    target = ASSETS / "base"
    card = target / "MODEL_CARD.md"
    text = card.read_text() if card.is_file() else ""
    with atomic_folder(target) as folder:
        for path in model.iterdir():
            shutil.copy2(path, folder / path.name)
        made = json.loads(summary.read_text())
        about = {
            "tokens": made["tokens"],
            "steps": made["steps"],
            "seconds": round(made["seconds"]),
            "texts": {path.name: sha256_file(path) for path in texts},
            "curriculum_seed": 0,
        }
        (folder / "made.json").write_text(json.dumps(about, indent=2) + "\n")
        if text:
            (folder / "MODEL_CARD.md").write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=Path, nargs="+", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--tokens", type=float, default=500e6)
    parser.add_argument("--install", action="store_true")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    make_data(args.work, args.tokens)
    make_model(args.texts, args.work)
    model = pretrain(args.texts, args.work, args.tokens)
    if args.install:
        install(model, args.texts, args.work / "adapt" / "summary.json")
    print(model)


if __name__ == "__main__":
    main()
