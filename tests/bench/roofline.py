"""What a run must take at least: FLOPs and bytes of its products, over what the same machine does in the same run.

Every linear layer, convolution and attention that is run is counted from the shapes of its tensors: FLOPs, and the
bytes of weights, keys, values, inputs and outputs. The floor of each is the longer of FLOPs over the rate of one large
bf16 product and bytes over the rate of one large copy; a run's floor is their sum. Norms, activations, the draw and all
that Python does have no floor here, so 1.0 cannot be reached.

Knows tensors and clocks; knows nothing of families or of how tokens are decoded.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

VISION = ("vision", "visual", "projector", "connector", "merger", "multi_modal")


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the machine does."""

    flops: float  # per second, bf16
    bandwidth: float  # bytes per second, read and written
    launch: float  # seconds of one small operation

    def floor(self, flops: float, size: float) -> float:
        """Return the least seconds for a product."""
        return max(flops / self.flops, size / self.bandwidth)


@dataclass(slots=True)
class Work:
    """FLOPs, bytes and floors of a run by part: vision or text."""

    ceilings: Ceilings
    flops: dict[str, float] = field(default_factory=lambda: {"vision": 0.0, "text": 0.0})
    bytes: dict[str, float] = field(default_factory=lambda: {"vision": 0.0, "text": 0.0})
    seconds: dict[str, float] = field(default_factory=lambda: {"vision": 0.0, "text": 0.0})

    def add(self, part: str, flops: float, size: float) -> None:
        """Count one product."""
        self.flops[part] += flops
        self.bytes[part] += size
        self.seconds[part] += self.ceilings.floor(flops, size)

    @property
    def floor(self) -> float:
        """Return the seconds of all parts."""
        return sum(self.seconds.values())


def synchronise(device: torch.device) -> None:
    """Wait for what was started on a device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(act: Callable[[], Any], device: torch.device) -> float:
    """Return the seconds until an action and all it started on the device are done."""
    synchronise(device)
    begun = time.perf_counter()
    act()
    synchronise(device)
    return time.perf_counter() - begun


def measure_ceilings(device: torch.device, size: int = 2048, copied: int = 2**28) -> Ceilings:
    """Measure the best of several large bf16 products, copies and small operations."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.zeros(copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    small = torch.zeros(8, device=device)

    def launches() -> None:
        for _ in range(200):
            small.add_(1.0)

    def best(act: Callable[[], Any]) -> float:
        return min(timed(act, device) for _ in range(6))

    with torch.inference_mode():
        return Ceilings(
            flops=2 * size**3 / best(lambda: a @ b),
            bandwidth=2 * copied / best(lambda: target.copy_(source)),
            launch=best(launches) / 200,
        )


@contextlib.contextmanager
def counting(model: Any, ceilings: Ceilings) -> Iterator[Work]:
    """Count every product that a model runs meanwhile."""
    work, part = Work(ceilings), "text"

    def size(*tensors: Any) -> float:
        return float(sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor)))

    def hook(name: str) -> Callable[..., None]:
        where = "vision" if any(word in name for word in VISION) else "text"

        def count(module: Any, inputs: tuple[Any, ...], output: Any) -> None:
            nonlocal part
            part = where
            # Every number of the output is a sum over what one of the weight's rows holds.
            flops = 2.0 * output.numel() * module.weight[0].numel()
            work.add(where, flops, size(module.weight, *inputs, output))

        return count

    kinds = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Conv3d)
    hooks = [m.register_forward_hook(hook(name)) for name, m in model.named_modules() if isinstance(m, kinds)]
    real = torch.nn.functional.scaled_dot_product_attention

    def attention(query: Any, key: Any, value: Any, *more: Any, **settings: Any) -> Any:
        out = real(query, key, value, *more, **settings)
        seen = 0.5 if settings.get("is_causal") else 1.0
        work.add(part, 4.0 * query.numel() * key.shape[-2] * seen, size(query, key, value, out))
        return out

    torch.nn.functional.scaled_dot_product_attention = attention
    try:
        yield work
    finally:
        torch.nn.functional.scaled_dot_product_attention = real
        for one in hooks:
            one.remove()
