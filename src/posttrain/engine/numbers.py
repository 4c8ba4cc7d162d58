"""Numbers people compare, defined once.

tokens/s: real tokens (no padding; a shared prefix counts once) over wall time, everything in a step
    included.
memory: the most the process, or the GPU's allocator, has held so far, GiB.
"""

from __future__ import annotations

import platform
import resource
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from posttrain.core.version import __version__

PLACES = 2**20  # whole numbers in a block of a checksum


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


def checksums(tensors: Iterable[Tensor]) -> np.ndarray:
    """[tensors] uint64: of each one a number that changes with any of its bits.

    The bytes as whole numbers, each times an odd number of its place in a block, added up modulo
    2⁶⁴. It is taken where the tensor lies: nothing but the sums is copied from a GPU.
    """
    sums = []
    for tensor in tensors:
        flat = tensor.detach().reshape(-1).contiguous().view(torch.uint8)
        whole = len(flat) // 8 * 8
        total = flat[:whole].view(torch.int64)
        places = torch.arange(1, 2 * PLACES, 2, device=flat.device)
        parts = [(p * places[: len(p)]).sum() for p in total.split(PLACES)]
        parts.append((flat[whole:].long() * (1 + 2 * len(parts))).sum())
        sums.append(torch.stack(parts).sum())
    return torch.stack(sums).cpu().numpy().view(np.uint64)


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
