"""AdamW with a schedule, clipping and parameter groups; float32 master weights where the parameters
are smaller.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from posttrain.core.errors import ConfigError
from posttrain.engine.settings import OptimiserSettings


def rate(schedule: str, step: int, steps: int, warmup: float) -> float:
    """Factor on the peak learning rate for step `step` of `steps` (0-based).

    Rises linearly over the first ⌈warmup·steps⌉ steps. Then linear: to 0; cosine: ½(1 + cos πx) to
    0; wsd: 1, falling to 0 over the last fifth (1 − √x, Hägele et al. 2024, arXiv 2405.18392);
    constant: 1.
    """
    # 0.07 · 100 is 7, and 7.000000000000001 in floating point
    rise = math.ceil(warmup * steps - 1e-9)
    if step < rise:
        return (step + 1) / (rise + 1)
    x = (step - rise) / max(1, steps - rise)
    if schedule == "linear":
        return 1 - x
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * x))
    if schedule == "wsd":
        start = max(rise, steps - math.ceil(0.2 * steps))
        return 1.0 if step < start else 1 - math.sqrt((step - start) / max(1, steps - start))
    if schedule == "constant":
        return 1.0
    raise ConfigError(f"unknown schedule {schedule!r}", cure="use linear, cosine, wsd or constant")


def _whole(norm: Tensor) -> Tensor:
    """A norm over all ranks, where the gradients are sharded."""
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


class Optimiser:
    """Updates the trainable parameters from the gradients that backward passes have added up.

    Parameters in float32 or better are updated in place. Smaller ones (bfloat16) have a float32
    master, which is the truth: their gradients are added up in float32 as backward makes them, the
    master is updated, and the parameter is its rounding.

    Args:
        named: names and parameters; those that need no gradient are left alone.
        settings: see OptimiserSettings; its `learning_rate` must be set.
    Raises:
        ConfigError: a group's pattern matches no parameter, or nothing is left to train.
    """

    def __init__(
        self, named: Iterable[tuple[str, nn.Parameter]], settings: OptimiserSettings
    ) -> None:
        assert settings.learning_rate is not None
        self.settings = settings
        self.parameters: dict[str, nn.Parameter] = {}
        self.masters: dict[str, Tensor] = {}
        self._hooks = []
        groups: dict[tuple[float, float], list[Tensor]] = {}
        unmatched = set(settings.groups)
        for name, parameter in named:
            if not parameter.requires_grad:
                continue
            factor = 1.0
            for pattern, value in settings.groups.items():
                if re.search(pattern, name):
                    unmatched.discard(pattern)
                    factor = value
            if factor == 0:
                parameter.requires_grad_(False)
                continue
            self.parameters[name] = parameter
            self.masters[name] = master = self._master(parameter)
            decay = settings.weight_decay if parameter.ndim >= 2 else 0.0
            groups.setdefault((factor, decay), []).append(master)
        if unmatched:
            raise ConfigError(
                f"--groups: {sorted(unmatched)[0]!r} matches no parameter",
                cure="use part of a parameter's name, for example 'embed' or 'layers.0.'",
            )
        if not groups:
            raise ConfigError(
                "there is no parameter left to train", cure="remove a group whose factor is 0"
            )
        self._factors = [factor for factor, _ in groups]
        # A tensor, so that a GPU reads the rate without waiting; torch's fused kernel is one pass
        # over memory on both.
        self._adamw = torch.optim.AdamW(
            [
                {"params": list(params), "weight_decay": decay, "lr": 0.0}
                for (_, decay), params in groups.items()
            ],
            betas=settings.betas,
            eps=1e-8,
            fused=True,
        )

    def _master(self, parameter: nn.Parameter) -> Tensor:
        if torch.finfo(parameter.dtype).bits >= 32:
            return parameter
        master = parameter.detach().float().clone().requires_grad_()

        def take(p: Tensor) -> None:
            assert p.grad is not None
            master.grad = p.grad.float() if master.grad is None else master.grad.add_(p.grad)
            p.grad = None

        self._hooks.append(parameter.register_post_accumulate_grad_hook(take))
        return master

    def step(self, factor: float) -> float:
        """One update with the peak learning rate times `factor`; clears the gradients.

        Returns: the gradient norm before clipping.
        """
        assert self.settings.learning_rate is not None
        masters = list(self.masters.values())
        norm = nn.utils.get_total_norm([m.grad for m in masters if m.grad is not None])
        norm = _whole(norm)
        if self.settings.clip > 0 and math.isfinite(float(norm)):
            nn.utils.clip_grads_with_norm_(masters, self.settings.clip, norm)
        for group, scale in zip(self._adamw.param_groups, self._factors, strict=True):
            group["lr"] = self.settings.learning_rate * factor * scale
        # otherwise the caller stops the run, and the weights must still be good
        if math.isfinite(float(norm)):
            self._adamw.step()
            self._copy_masters()
        self.zero_grad()
        return float(norm)

    def zero_grad(self) -> None:
        for master in self.masters.values():
            master.grad = None

    @torch.no_grad()
    def _copy_masters(self) -> None:
        for name, parameter in self.parameters.items():
            if self.masters[name] is not parameter:
                parameter.copy_(self.masters[name])

    # state: named tensors, so that checkpoints need no pickle

    def weights(self) -> dict[str, Tensor]:
        """The trained parameters in full precision, by name."""
        return {name: master.detach() for name, master in self.masters.items()}

    @torch.no_grad()
    def load_weights(self, weights: dict[str, Tensor]) -> None:
        for name, master in self.masters.items():
            master.copy_(weights[name])
        self._copy_masters()

    def moments(self, which: str) -> dict[str, Tensor]:
        """Adam's state by parameter name; `which` is exp_avg, exp_avg_sq or step."""
        state = self._adamw.state
        return {name: state[m][which] for name, m in self.masters.items() if m in state}

    def load_moments(self, which: str, moments: dict[str, Tensor]) -> None:
        for name, tensor in moments.items():
            master = self.masters[name]
            self._adamw.state[master][which] = tensor.to(device=master.device, copy=True)
