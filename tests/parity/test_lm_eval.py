"""Multiple choice and perplexity against lm-eval (0.4.13), on a tiny model.

lm-eval is not among the dependencies: what it says of these items is kept in `lm_eval.json`. Where
it is installed, `python -m tests.parity.test_lm_eval` asks it again.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests import making
from tests.tiny import network

from posttrain.data.chat import Chat
from posttrain.data.rows import Row
from posttrain.engine.policy import Policy
from posttrain.evals.subject import Subject
from posttrain.evals.tasks import find_task

EXPECTED = Path(__file__).with_name("lm_eval.json")
# tokens that cross the border between prompt and choice, and the one between words
MERGES = [("Ġ", "S"), ("o", "n"), (":", "Ġ"), ("e", "Ġ"), ("Ċ", "L"), ("Ċ", "Ċ")]
CHATML = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
QUIZ = [
    ("What makes plants grow?", ["Sun", "Größe"], 0),
    ("Son of?", ["a hero", "世界", "Song Song"], 2),
    ("Capital of Peru?", ["Lima", "New York", "Tokyo"], 0),
]
TEMPLATES = ["Q: {prompt}\nA:", "{prompt} ", None]
TEXTS = ["one two three. " * 9, "Lima", "x", "a" * 32, "世界 " * 11]


def folder(path: Path) -> Path:
    """A model of 64 positions, whose tokenizer has no begin token."""
    words = making.tokenizer(MERGES)
    words.chat_template = CHATML
    words.save_pretrained(path)
    ends: dict[str, Any] = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": None}
    network("llama", vocab_size=len(words), max_position_embeddings=64, **ends).save_pretrained(
        path
    )
    return path


def prompts(template: str | None, apply: Any) -> list[str]:
    if template is None:
        return [apply(question) for question, _, _ in QUIZ]
    return [template.replace("{prompt}", question) for question, _, _ in QUIZ]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return Policy.load(folder(tmp_path_factory.mktemp("lm-eval")), device="cpu")


def subject(policy: Policy, template: str | None = None, longest: int = 64) -> Subject:
    chat = Chat(policy.tokenizer, prompt_template=template)
    return Subject(policy, chat, 4096, longest, lambda done, total: None)


@pytest.mark.parametrize("number", range(len(TEMPLATES)))
def test_choices(policy: Policy, number: int) -> None:
    known = json.loads(EXPECTED.read_text())["choices"][number]
    rows = [
        Row({"question": q, "choices": choices, "answer_index": right}, f"a:{i}")
        for i, (q, choices, right) in enumerate(QUIZ)
    ]
    found = find_task("choice").ask(subject(policy, TEMPLATES[number]), rows)
    for record, expected in zip(found, known, strict=True):
        assert record.output["logprobs"] == pytest.approx(expected["logprobs"], abs=1e-4)
        named = {name: record.values[name] for name in ("acc", "acc_norm", "acc_bytes")}
        assert named == expected["metrics"]


def test_perplexity_in_windows(policy: Policy) -> None:
    """Windows of 32 tokens; 135 bytes are five of them."""
    known = json.loads(EXPECTED.read_text())["rolling"]
    rows = [Row({"text": text}, f"a:{i}") for i, text in enumerate(TEXTS)]
    found = find_task("perplexity").ask(subject(policy, longest=32), rows)
    assert [-record.value("nats") for record in found] == pytest.approx(known, abs=1e-3)


def main() -> None:
    """Write what lm-eval says."""
    from lm_eval.api.instance import Instance  # pyright: ignore[reportMissingImports]
    from lm_eval.api.task import ConfigurableTask  # pyright: ignore[reportMissingImports]
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]

    with tempfile.TemporaryDirectory() as name:
        path = str(folder(Path(name) / "model"))
        long, short = (
            HFLM(pretrained=path, device="cpu", dtype="float32", batch_size=1, max_length=n)
            for n in (64, 32)
        )

    def asked(lm: Any, kind: str, arguments: list[tuple[str, ...]]) -> list[Any]:
        requests = [Instance(kind, {}, each, i) for i, each in enumerate(arguments)]
        return getattr(lm, kind)(requests, disable_tqdm=True)

    class Quiz(ConfigurableTask):  # its arithmetic alone, without a data set
        OUTPUT_TYPE = "multiple_choice"
        multiple_input = multiple_target = 0

        def __init__(self, choices: list[str], right: int) -> None:
            self._config = SimpleNamespace(process_results=None)
            self.choices, self.right = choices, right
            self._metric_fn_list = dict.fromkeys(("acc", "acc_norm", "acc_bytes"))

        def doc_to_choice(self, doc: Any) -> list[str]:
            return self.choices

        def doc_to_target(self, doc: Any) -> int:
            return self.right

    def apply(question: str) -> str:
        return long.apply_chat_template([{"role": "user", "content": question}])

    choices = []
    for template in TEMPLATES:
        items = []
        for context, (_, texts, right) in zip(prompts(template, apply), QUIZ, strict=True):
            delimiter = " " if template and not context.endswith(" ") else ""
            pairs = [(context, delimiter + text) for text in texts]
            results = asked(long, "loglikelihood", pairs)
            metrics = Quiz(texts, right).process_results({}, results)
            items.append({"logprobs": [float(ll) for ll, _ in results], "metrics": metrics})
        choices.append(items)
    rolling = [float(ll) for ll in asked(short, "loglikelihood_rolling", [(t,) for t in TEXTS])]
    known = {"choices": choices, "rolling": np.round(rolling, 5).tolist()}
    EXPECTED.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
