"""How many images fit into a GPU's memory at once, what to do when they do not, and how the CPU's memory is used.

Start with `Footprint` and `fitting`. The answer is an estimate from one picture: larger ones may make longer prompts,
so running out of memory still halves the batch.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

MOST_BATCH = 32  # images, unless more are asked for; steps of this many branches keep a large GPU busy
SHARE = 0.8  # of the free memory that is planned with; the rest is for fragments and for other pictures
LOGIT_COPIES = 5  # float32 arrays as large as the logits that drawing a token makes
_KEPT_BELOW = (256 * 2**20, 32 * 2**20)  # bytes; older versions of glibc take the second at most


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one image takes, in bytes."""

    token: int  # keys and values of one token in all layers
    prefill: int  # measured: everything one image's prefill takes at its peak, its prompt's cache included
    vocabulary: int  # entries
    prompt: int  # tokens

    def image(self, route: str, samples: int, tokens: int) -> int:
        """Return the bytes of an image with K samples of T tokens; `route` is fork or packed.

        The fork has K copies of prompt and tokens besides the prompt's own cache. Packed has one copy of the prompt,
        at other addresses, and the tokens of each branch.
        """
        kept = samples * (self.prompt + tokens) if route == "fork" else self.prompt + samples * tokens
        return self.prefill + kept * self.token + samples * self.vocabulary * 4 * LOGIT_COPIES


def token_bytes(text_config: Any, dtype: torch.dtype) -> int:
    """Return the bytes of the keys and values of one token in all layers, by the decoder's configuration."""
    heads = text_config.num_attention_heads
    size = getattr(text_config, "head_dim", None) or text_config.hidden_size // heads
    shared = getattr(text_config, "num_key_value_heads", None) or heads
    return 2 * int(text_config.num_hidden_layers) * int(shared) * int(size) * dtype.itemsize


def fitting(free: int, image: int, most: int) -> int:
    """Return how many images of so many bytes fit into the planned share of `free` bytes: 1 to `most`."""
    return max(1, min(most, int(free * SHARE) // max(image, 1)))


def peak(act: Callable[[], object], device: torch.device) -> int:
    """Return how many bytes more than before an action takes on a CUDA device at its peak."""
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    act()
    return torch.cuda.max_memory_allocated(device) - before


def free_bytes(device: torch.device) -> int:
    """Return what a CUDA device has left, with what torch holds in reserve."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def release(device: torch.device) -> None:
    """Give back to a device what torch holds in reserve."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def out_of_memory(error: BaseException) -> bool:
    """Tell whether the device, or the machine, ran out of memory."""
    signs = r"out of memory|can't allocate memory|not enough memory|CUBLAS_STATUS_ALLOC_FAILED"
    return isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and re.search(signs, str(error)) is not None
    )


def keep_freed_memory() -> bool:
    """Have the C library keep large blocks that are freed; False if it cannot.

    A model's layers free and ask for the same few megabytes thousands of times a second. glibc would ask the kernel
    each time, which hands out zeroed pages one fault at a time. With it a prefill of 1,024 image tokens had a fifth of
    the page faults and took a tenth less time; the process holds on to up to its peak.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    trim, mapped = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    return any(mallopt(mapped, size) == 1 for size in _KEPT_BELOW) and mallopt(trim, 2**31 - 1) == 1
