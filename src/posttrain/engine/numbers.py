"""Numbers people compare, defined once.

tokens/s: real tokens (no padding; a shared prefix counts once) over wall time, everything in a step
    included.
memory: the most the process, or the GPU's allocator, has held so far, GiB.
"""

from __future__ import annotations

import platform
import resource
import sys
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from posttrain.core.version import __version__


def peak_memory(device: torch.device) -> float:
    """GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def not_finite(tensors: Mapping[str, Tensor]) -> str:
    """The name of the first tensor that holds a NaN or an infinity; empty where none does."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            return name
    return ""


def environment(device: torch.device) -> dict[str, Any]:
    """What bit-identity of a resumed run depends on, besides the run itself."""
    return {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "posttrain": __version__,
        **{name: version(name) for name in ("torch", "transformers", "tokenizers", "numpy")},
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }
