"""A tie counts one half, for numbers, arrays and tensors."""

from __future__ import annotations

import numpy as np
import torch

from posttrain.core.ties import wins


def test_wins_ties_and_losses() -> None:
    assert [wins(margin) for margin in (2.0, 0.0, -0.1, 3, -0.0)] == [1, 0.5, 0, 1, 0.5]
    assert wins(np.array([[2.0, 0.0], [-1.0, 5.0]])).tolist() == [[1, 0.5], [0, 1]]
    found = wins(torch.tensor([2.0, 0.0, -1.0]))
    assert found.dtype == torch.float32 and found.tolist() == [1, 0.5, 0]
