"""Learn from the model's own answers: a source that samples, scores and gives credit, and GRPO.

    python examples/online.py

Rewards short answers; after a few steps the mean length falls. The loop does the rest: checkpoints,
resume after a kill, metrics.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from posttrain import Policy
from posttrain.core.console import open_reporter
from posttrain.core.seeds import derive
from posttrain.core.types import Columns, Counts, Facts, Loss
from posttrain.data.forest import Sequence, Tree
from posttrain.engine.loop import Run, train
from posttrain.engine.sampler import Sampling
from posttrain.engine.settings import CheckpointSettings, OptimiserSettings, ValidationSettings
from posttrain.engine.source import Batch, TreeScores, tree_scores

CLIP, BETA, GROUP = 0.2, 0.02, 8
QUESTIONS = ("What is 2 + 3?", "Name an animal.", "What is the opposite of hot?", "Say hello.")


def grpo(columns: Columns, facts: Facts, counts: Counts, statistics: Any) -> torch.Tensor:
    """Σ over targets of −min(ρA, clip(ρ)A) + β·(eˣ − x − 1), a mean over each sequence; x is the
    log-ratio of the reference to the policy.
    """
    ratio = torch.exp(columns.logprob - facts.targets["old"])
    advantage = facts.sequences["advantage"][facts.leaf]
    gain = torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)
    x = facts.targets["reference"] - columns.logprob
    losses = BETA * (x.exp() - x - 1) - gain
    return (losses / facts.lengths[facts.leaf]).sum() / counts["sequences"]


def sequences(facts: Facts) -> dict[str, float]:
    return {"sequences": facts.L}


def report(columns: Columns, facts: Facts, statistics: Any) -> dict[str, torch.Tensor]:
    return {"score": facts.sequences["score"], "answer_tokens": facts.lengths}


def credit(scores: np.ndarray) -> np.ndarray:
    """[G] scores of a group → [G] advantages."""
    return (scores - scores.mean()) / (scores.std() + 1e-4)


@dataclass
class Online:
    """Samples a group of answers to every prompt, scores them, and gives credit."""

    policy: Policy
    prompts: list[list[int]]
    score: Callable[[str], float]
    reference: TreeScores
    seed: int = 0
    steps_per_epoch: int = 1
    answered: int = field(default=0)

    def batch(self, step: int) -> Batch:
        # the step is in the seed, or every step would draw the same random numbers
        seeds = [derive(self.seed, "prompt", step, i) for i in range(len(self.prompts))]
        drawn = self.policy.sample(self.prompts, Sampling(max_tokens=16, n=GROUP), seeds)
        trees = []
        for i, prompt in enumerate(self.prompts):
            group = drawn[i * GROUP : (i + 1) * GROUP]
            texts = [self.policy.tokenizer.decode(answer.tokens) for answer in group]
            scores = np.array([self.score(text) for text in texts])
            answers = []
            for answer, score, advantage in zip(group, scores, credit(scores), strict=True):
                tokens = np.array(prompt + answer.tokens)
                old = np.array([0.0] * len(prompt) + answer.logprobs, np.float32)
                whole = {"score": float(score), "advantage": float(advantage)}
                trained = np.arange(len(tokens)) >= len(prompt)
                answers.append(Sequence(tokens, trained, targets={"old": old}, whole=whole))
            trees.append(Tree(tuple(answers)))
        self.answered += len(drawn)
        values = self.reference(trees)
        pairs = zip(trees, values, strict=True)
        return Batch([tree.with_targets("reference", value) for tree, value in pairs])

    def state(self) -> dict[str, int]:
        return {"answered": self.answered}

    def restore(self, state: dict[str, int]) -> None:
        self.answered = state["answered"]


def main(folder: str = "runs/online", steps: int = 8) -> None:
    policy = Policy.load("embedded")
    words = policy.tokenizer
    prompts = []
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        text = words.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        prompts.append(words(text, add_special_tokens=False)["input_ids"])
    # before the loop, which may restore a checkpoint: the reference is the model of the start
    reference = tree_scores(policy, policy.reference("copy"), 4096)
    policy.without_dropout()
    policy.train_with(OptimiserSettings(learning_rate=2e-4, warmup=0.0))  # type: ignore[call-arg]
    train(
        Run(
            policy=policy,
            loss=Loss(grpo, counts=sequences, report=report, additive=True),
            source=Online(policy, prompts, lambda text: -float(len(text)), reference),
            steps=steps,
            budget=4096,
            seed=0,
            folder=Path(folder),
            reporter=open_reporter(),
            checkpoints=CheckpointSettings(),  # type: ignore[call-arg]
            validation=ValidationSettings(),  # type: ignore[call-arg]
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:2])
