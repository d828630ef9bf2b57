"""Say what this machine offers to a model: devices, memory, library versions.

Knows torch and the operating system; knows nothing of any checkpoint.
"""

from __future__ import annotations

import os
import platform
from importlib import metadata

LIBRARIES = (
    "torch",
    "transformers",
    "torchvision",
    "tokenizers",
    "safetensors",
    "pillow",
    "numpy",
    "pyarrow",
    "rich",
    "typer",
)


def describe_machine() -> dict[str, str]:
    """Return facts about the machine in words, in the order in which a person would read them."""
    import torch

    facts = {
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "cpu": f"{len(_cpus())} cores usable, {torch.get_num_threads()} torch threads",
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


def _cpus() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


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
