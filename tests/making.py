"""What tests of whole commands start from: a tiny model folder with a byte-level tokenizer, and
files of rows.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

END = "<|end|>"
# like Qwen3's: the last answer begins with its thinking, an empty one where it has none; the prompt
# has that already where no thinking is wanted
THINKING = (
    "{% for m in messages %}<|start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}"
    "<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}"
    "{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def tokenizer(
    merges: Sequence[tuple[str, str]] = (),
    *,
    start: bool = False,
    ends: bool = False,
    end: str | None = END,
) -> Any:
    """A byte-level BPE tokenizer: id 0 is the end token, 1 the start token, then the 256 bytes,
    then one token a merge.

    Args:
        merges: pairs that become one token, in byte-level spelling (a space is Ġ).
        start, ends: put the start token before, the end token after every text.
        end: the end-of-sequence token; None for a tokenizer without one.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = [
        END,
        "<|start|>",
        *sorted(pre_tokenizers.ByteLevel.alphabet()),
        *(a + b for a, b in merges),
    ]
    vocabulary = {name: i for i, name in enumerate(names)}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(names[:2])
    if start or ends:
        single = [*(["<|start|>"] if start else []), "$A", *([END] if ends else [])]
        raw.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[(n, vocabulary[n]) for n in names[:2]]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token=end, bos_token="<|start|>" if start else None
    )


def model(folder: Path, *, positions: int = 64, seed: int = 0) -> Path:
    """Write a random two-layer Llama of about 30 thousand parameters and its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    words = tokenizer()
    words.save_pretrained(folder)
    torch.manual_seed(seed)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=positions,
            bos_token_id=None,
            eos_token_id=0,
        )
    ).save_pretrained(folder)
    return folder


def trees(
    rows: Iterable[Any],
    words: Any,
    *,
    max_length: int = 1024,
    truncate: str = "",
    source: str = "",
    rejects: Any = None,
    learned: Any = "demonstrations",
    **chat: Any,
) -> tuple[Any, list[Any]]:
    """Rows as the package prepares them: the account of them and their trees.

    Args:
        words: a tokenizer.
        source: what follows the file's name, as in `,prompt=question`.
        chat: arguments of `posttrain.data.chat.Chat`.
    """
    from pydantic import TypeAdapter

    from posttrain.data.chat import Chat
    from posttrain.data.prepare import Preparation, prepare
    from posttrain.data.settings import Sourced
    from posttrain.data.store import Trees

    with tempfile.TemporaryDirectory() as name:
        path = write(Path(name) / "a.jsonl", rows)
        account = prepare(
            TypeAdapter(Sourced).validate_python(f"{path}{source}"),
            Preparation(Chat(words, **chat), max_length, truncate, learned=learned),
            Path(name) / "trees",
            rejects=rejects,
        )
        found = Trees(Path(name) / "trees")
        return account, [found[i] for i in range(len(found))]


def write(path: Path, rows: Iterable[Any]) -> Path:
    """Write rows as JSON lines, compressed where the name ends in .gz; a string is written as it
    stands.
    """
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path
