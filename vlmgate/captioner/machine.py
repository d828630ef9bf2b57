"""Say what this machine offers to a model: devices, memory, library versions; and try a model.

Start with `describe_machine` and `try_model`; `begin_peak` and `end_peak` measure memory.
"""

from __future__ import annotations

import contextlib
import gc
import os
import platform
import re
import sys
import time
from collections import Counter
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from vlmgate.captioner import load_captioner
from vlmgate.captioner.streams import trial_picture
from vlmgate.config import ModelConfig, SamplingConfig
from vlmgate.errors import EndpointError, ModelError, one_line

LIBRARIES = "torch transformers torchvision tokenizers safetensors pillow numpy pyarrow rich typer".split()


def describe_machine() -> dict[str, str]:
    """Return facts about the machine in words, in the order in which a person would read them."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    facts = {
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "cpu": f"{cores} cores usable, {torch.get_num_threads()} torch threads",
        "memory": _memory(),
    }
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)  # bytes
        name = torch.cuda.get_device_name(index)
        facts[f"cuda:{index}"] = f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    if not torch.cuda.is_available():
        facts["cuda"] = "none found" + ("" if torch.version.cuda else " (this torch is a build without CUDA)")
    if torch.backends.mps.is_available():
        facts["mps"] = "Apple GPU"
    return facts | {name: _version(name) for name in LIBRARIES}


def _memory() -> str:
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total, free = os.sysconf("SC_PHYS_PAGES") * page, os.sysconf("SC_AVPHYS_PAGES") * page
    except (AttributeError, ValueError, OSError):
        return "unknown"
    return f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


# --- memory -----------------------------------------------------------------------------------------------------------


def begin_peak() -> None:
    """Let go of models that nobody holds any more, and count the peak of memory from here on."""
    gc.collect()
    torch = sys.modules.get("torch")  # not loaded yet, it holds nothing
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux: the peak is the present size again


def end_peak(device: str) -> int | None:
    """Return the peak in bytes since `begin_peak` of a CUDA device, else of the process with its libraries; or None."""
    torch = sys.modules.get("torch")
    if torch is not None and device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device))
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def try_model(config: ModelConfig) -> dict[str, Any]:
    """Let a model read a test image, and return what it says of itself; raises `ModelError` or `EndpointError`."""
    begun = time.perf_counter()
    captioner = load_captioner(config, SamplingConfig())
    loaded = time.perf_counter()
    try:
        captions = captioner.read([trial_picture()])[0].captions
    except EndpointError:
        raise
    except Exception as error:
        raise ModelError(f"{config.model}: loads, but cannot read a test image ({one_line(error)}).") from error
    return asdict(captioner.info) | {
        "answers" if config.endpoint else "loads": "yes",
        "ask_seconds" if config.endpoint else "load_seconds": round(loaded - begun, 2),
        "read_seconds": round(time.perf_counter() - loaded, 2),
        "says": captions[0].text,
        "finishes": ", ".join(f"{n} × {finish}" for finish, n in Counter(c.finish for c in captions).items()),
        "tokens": f"{max(c.num_tokens for c in captions)} of {SamplingConfig().max_new_tokens} at most",
    }
