"""Muon: momentum whose every step is made orthogonal, for the matrices inside a network's layers.

After K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024), with the step size of
J. Liu et al., "Muon is scalable for LLM training" (2025). Matrices of one shape are worked on in one batch: faster on a
CPU than one by one. Knows tensors; knows nothing of what they stand for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

_CUBIC_QUINTIC = (3.4445, -4.7750, 2.0315)  # of the odd polynomial that drives singular values towards 1


class Muon(torch.optim.Optimizer):
    """Optimizer of matrices; every parameter must have two dimensions."""

    def __init__(
        self, params: Iterable[dict[str, Any]], lr: float, weight_decay: float = 0.05, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step along the gradients; parameters without one stay as they are."""
        assert closure is None
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in alike.items():
                updates = torch.stack([self._push(parameter, group["momentum"]) for parameter in parameters])
                size = group["lr"] * 0.2 * max(shape) ** 0.5  # the usual length of an Adam step
                for parameter, update in zip(parameters, _orthogonal(updates), strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update.to(parameter.dtype), alpha=-size)

    def _push(self, parameter: Tensor, momentum: float) -> Tensor:
        """Add the gradient to the running mean and return where it will be one step ahead."""
        gradient = parameter.grad
        assert gradient is not None
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        mean: Tensor = state["momentum_buffer"]
        mean.lerp_(gradient, 1 - momentum)
        return gradient.lerp(mean, momentum)


def _orthogonal(matrices: Tensor) -> Tensor:
    """Return each of (N, rows, columns) with its singular values moved close to 1."""
    a, b, c = _CUBIC_QUINTIC
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    made: Tensor = x.mT if tall else x
    return made
