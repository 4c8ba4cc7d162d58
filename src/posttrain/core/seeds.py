"""Randomness as a function of names: every draw comes from (run seed, what for, which step), never
from hidden state.

A run that resumes at step 7 draws what it would have drawn at step 7 anyway, so no generator needs
to be saved.
"""

from __future__ import annotations

import hashlib

import numpy as np


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed for one purpose: the first eight bytes of SHA-256 over the run seed and the
    names.

    Independent of PYTHONHASHSEED, platform and library versions.
    """
    text = "\x1f".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """A numpy generator for one purpose; see `derive`."""
    return np.random.Generator(np.random.Philox(derive(seed, *names)))
