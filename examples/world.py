"""A small world for the quickstart: six skills with right answers, a small tokenizer, and a model that knows nothing.

Everything is made here, in a second, from a seed: no download. What is new in a held-out prompt is its combination (these
three words, this sum, this country in this wording); the words themselves occur in training.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path


def _words(text: str) -> list[str]:
    return text.split()


CAPITALS = [pair.split("/") for pair in _words(
    "France/Paris Italy/Rome Spain/Madrid Japan/Tokyo Egypt/Cairo Kenya/Nairobi Peru/Lima Chile/Santiago Norway/Oslo "
    "Poland/Warsaw Greece/Athens Turkey/Ankara India/Delhi China/Beijing Cuba/Havana Ghana/Accra Iran/Tehran Iraq/Baghdad "
    "Nepal/Kathmandu Syria/Damascus")]
OPPOSITES = [pair.split("/") for pair in _words(
    "hot/cold big/small old/new fast/slow up/down left/right open/closed day/night happy/sad light/dark high/low early/late "
    "rich/poor strong/weak thick/thin wet/dry loud/quiet full/empty near/far easy/hard")]
WORDS = _words("cat dog sun moon tree fish bird stone river hill rain wind fire ice sand leaf bread milk salt gold")
CYCLES = (_words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
          _words("January February March April May June July August September October November December"))

# wordings of each question, and for the calendar whether it asks for the next or the one before
ASK_CAPITAL = ("What is the capital of {}?", "Name the capital of {}.", "{} has which capital?", "Capital of {}?",
               "Which city is the capital of {}?", "Tell me the capital of {}.", "{}: which capital?", "Which city governs {}?")
ASK_OPPOSITE = ("What is the opposite of {}?", "Give the opposite of {}.", "{}: the opposite?", "Not {}, but what?",
                "Which word means the opposite of {}?", "Opposite of {}?")
ASK_CALENDAR = (("What comes after {}?", 1), ("What follows {}?", 1), ("Name the one after {}.", 1), ("After {}?", 1),
                ("What comes before {}?", -1), ("What precedes {}?", -1), ("Name the one before {}.", -1), ("Before {}?", -1))
ASK_SUM = ("What is {} + {}?", "Add {} and {}.", "{} plus {} is what?", "Sum of {} and {}?")


def _questions(rng: random.Random) -> Iterator[tuple[str, str, str]]:
    """(skill, prompt, answer), endless, with repeats."""
    while True:
        country, capital = rng.choice(CAPITALS)
        yield "capital", rng.choice(ASK_CAPITAL).format(country), capital
        one, other = rng.sample(rng.choice(OPPOSITES), 2)
        yield "opposite", rng.choice(ASK_OPPOSITE).format(one), other
        cycle, (ask, step) = rng.choice(CYCLES), rng.choice(ASK_CALENDAR)
        i = rng.randrange(len(cycle))
        yield "calendar", ask.format(cycle[i]), cycle[(i + step) % len(cycle)]
        a, b = rng.randrange(10), rng.randrange(10)
        yield "sum", rng.choice(ASK_SUM).format(a, b), str(a + b)
        words = rng.sample(WORDS, 3)
        yield "reverse", f"Reverse: {' '.join(words)}", " ".join(reversed(words))
        digits = rng.sample(range(10), 3)
        yield "sort", f"Sort: {' '.join(map(str, digits))}", " ".join(map(str, sorted(digits)))


SKILLS = ("capital", "opposite", "calendar", "sum", "reverse", "sort")


def demonstrations(train: int, held_out: int, seed: int = 0) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Rows `{"skill", "prompt", "completion"}`; no prompt occurs twice or in both lists.

    Args:
        train, held_out: rows a skill at most; a skill with fewer prompts gives a quarter of them to the held-out list.
    """
    pools: dict[str, dict[str, str]] = {skill: {} for skill in SKILLS}
    for (skill, prompt, answer), _ in zip(_questions(random.Random(seed)), range(60_000), strict=False):
        if len(pools[skill]) < train + held_out:
            pools[skill][prompt] = answer
    lists: tuple[list[dict[str, str]], list[dict[str, str]]] = ([], [])
    for skill, pool in pools.items():
        rows = [{"skill": skill, "prompt": p, "completion": a} for p, a in sorted(pool.items())]
        random.Random(seed).shuffle(rows)
        cut = min(held_out, len(rows) // 4)
        lists[1].extend(rows[:cut])
        lists[0].extend(rows[cut:])
    return lists


def make_model(folder: Path, texts: list[str], vocabulary: int = 1000, seed: int = 0) -> None:
    """Write a Hugging Face folder: a byte-level BPE tokenizer trained on `texts`, and a small Llama with random weights."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, logging

    logging.disable_progress_bar()

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=["<|end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(folder)
    torch.manual_seed(seed)
    LlamaForCausalLM(LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=128, intermediate_size=384, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=128, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=0)).save_pretrained(folder)
