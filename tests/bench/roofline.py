"""What a run must take at least: FLOPs and bytes of its products, over what the same machine does in the same run.

Every product that torch runs (linear layers, convolutions, attention, whichever way it is computed) is counted from the
shapes of its tensors: FLOPs, and the bytes of what goes in and comes out. The floor of each is the longer of FLOPs over
the rate of one large bf16 product and bytes over the rate of one large copy; a run's floor is their sum. Norms,
activations, the draw and all that Python does have no floor here, so 1.0 cannot be reached.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

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


class _Counting(TorchDispatchMode):
    """Adds what every product needs; `part` says whose it is."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.work, self.part = work, "text"

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name, first = func.overloadpacket, out[0] if isinstance(out, tuple) else out
        if str(name) == "mkldnn._linear_pointwise":  # a layer whose weight is laid out for oneDNN
            flops = 2.0 * first.numel() * args[0].shape[-1]
        elif str(name) == "aten._scaled_dot_product_flash_attention_for_cpu":
            causal = args[4] if len(args) > 4 else (kwargs or {}).get("is_causal", False)
            flops = 4.0 * args[0].numel() * args[1].shape[-2] * (0.5 if causal else 1.0)
        elif name in flop_registry:
            flops = float(flop_registry[name](*args, **(kwargs or {}), out_val=out))
        else:
            return out
        read = [one for one in (*args, *(kwargs or {}).values()) if isinstance(one, torch.Tensor)]
        if str(name) == "aten.baddbmm" and (kwargs or {}).get("beta") == 0:
            read = read[1:]  # what is multiplied by nothing is not read
        self.work.add(self.part, flops, float(sum(one.numel() * one.element_size() for one in [*read, first])))
        return out


@contextlib.contextmanager
def counting(model: Any, ceilings: Ceilings) -> Iterator[Work]:
    """Count every product that a model runs meanwhile, however it comes to run it."""
    work = Work(ceilings)
    mode = _Counting(work)

    def entered(part: str) -> Callable[..., None]:
        def enter(*_: Any) -> None:
            mode.part = part

        return enter

    kinds = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Conv3d)
    hooks = [
        module.register_forward_pre_hook(entered("vision" if any(word in name for word in VISION) else "text"))
        for name, module in model.named_modules()
        if isinstance(module, kinds)
    ]
    try:
        with mode:
            yield work
    finally:
        for one in hooks:
            one.remove()
