"""A reward function of one's own: right, short, and in the form that was asked for.

    posttrain rl --model runs/quickstart/sft/model --data questions.jsonl \\
        --scorer examples/reward_function.py:right_and_short --gold exact --out runs/rl

The signature is that of TRL's reward functions: prompts, completions, and every column of the rows
as a list. A number for every completion, or None where there is none to give, which is never a 0.
"""


def right_and_short(prompts, completions, completion=None, **columns):
    """1 for the wanted answer, less a hundredth for every word beyond the first ten."""
    rewards = []
    for text, wanted in zip(completions, completion, strict=True):
        if wanted is None:  # the row does not say what is right
            rewards.append(None)
            continue
        right = float(text.split() == wanted.split())
        rewards.append(right - 0.01 * max(0, len(text.split()) - 10))
    return rewards
