"""posttrain: turn a pretrained language model into one people can use, and prove that it may be
released.

import posttrain
outcome = posttrain.sft(model="path/to/base", data="train.jsonl", out="runs/first")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from posttrain.core.version import __version__

if TYPE_CHECKING:
    from posttrain.engine.policy import Policy as Policy
    from posttrain.engine.reward import RewardModel as RewardModel
    from posttrain.pipeline.run import run_recipe as run_recipe
    from posttrain.scoring.scorers import open_scorer as open_scorer
    from posttrain.stages.adapt import adapt as adapt
    from posttrain.stages.audit_reward import audit_reward as audit_reward
    from posttrain.stages.evaluate import evaluate as evaluate
    from posttrain.stages.inspect import data_inspect as data_inspect
    from posttrain.stages.judge import judge as judge
    from posttrain.stages.pairs import data_pairs as data_pairs
    from posttrain.stages.preference import preference as preference
    from posttrain.stages.reward_model import reward_model as reward_model
    from posttrain.stages.rl import rl as rl
    from posttrain.stages.sample_pairs import sample_pairs as sample_pairs
    from posttrain.stages.select import data_select as data_select
    from posttrain.stages.sft import sft as sft
    from posttrain.stages.split import data_split as data_split
    from posttrain.stages.stage import stage as stage

# Loaded on first use: importing posttrain does not import torch.
_PUBLIC = {
    "adapt": "posttrain.stages.adapt",
    "audit_reward": "posttrain.stages.audit_reward",
    "data_inspect": "posttrain.stages.inspect",
    "data_pairs": "posttrain.stages.pairs",
    "data_select": "posttrain.stages.select",
    "data_split": "posttrain.stages.split",
    "stage": "posttrain.stages.stage",
    "evaluate": "posttrain.stages.evaluate",
    "preference": "posttrain.stages.preference",
    "sft": "posttrain.stages.sft",
    "reward_model": "posttrain.stages.reward_model",
    "RewardModel": "posttrain.engine.reward",
    "open_scorer": "posttrain.scoring.scorers",
    "judge": "posttrain.stages.judge",
    "rl": "posttrain.stages.rl",
    "sample_pairs": "posttrain.stages.sample_pairs",
    "Policy": "posttrain.engine.policy",
    "run_recipe": "posttrain.pipeline.run",
}
__all__ = [
    "Policy",
    "RewardModel",
    "__version__",
    "adapt",
    "audit_reward",
    "data_inspect",
    "data_pairs",
    "data_select",
    "data_split",
    "evaluate",
    "judge",
    "open_scorer",
    "preference",
    "reward_model",
    "rl",
    "run_recipe",
    "sample_pairs",
    "sft",
    "stage",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        from importlib import import_module

        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'posttrain' has no attribute {name!r}")
