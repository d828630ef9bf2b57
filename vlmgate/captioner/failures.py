"""Say in one line why a model cannot be loaded, and what to do next; and tell when memory ran out.

Knows what transformers, the hub's client and torch raise; knows nothing of how a model is loaded or run.
"""

from __future__ import annotations

import re

import torch

from vlmgate.captioner.location import Hub, Local
from vlmgate.config import ModelConfig

LONGEST_DETAIL = 240  # characters of somebody else's message

# A pattern in the original message → what to say of the model. The first that matches speaks.
_CAUSES: tuple[tuple[str, str], ...] = (
    (
        r"trust_remote_code|custom code",
        "needs Python code from its own repository. Read that code, then allow it with --trust-remote-code.",
    ),
    (
        r"unrecognized configuration class|is not supported for|no processor",
        "is no vision-language model that transformers can run (image and text in, text out). Name another.",
    ),
    (
        r"does not recognize this architecture|unrecognized model|unrecognized processing class",
        "is of an architecture that the installed transformers does not know. Update it, or name another model.",
    ),
    (
        r"ignore_mismatched_sizes",
        "has weights of other shapes than its config.json says. The checkpoint is damaged or mixed from two.",
    ),
    (
        r"deserializing header",
        "has a damaged weights file. Copy or download the model again.",
    ),
    (
        r"instantiate the backend tokenizer",
        "has no tokenizer that can be read here. Copy the whole model folder, tokenizer.json included.",
    ),
    (
        r"safetensors",
        "has no readable .safetensors weights; pickled ones are refused because loading them runs code. "
        "Use a revision that has them, or convert it with save_pretrained.",
    ),
)
_HUB_CAUSES: tuple[tuple[str, str], ...] = (
    (
        r"gated|401 client|403 client|access to model",
        "is gated or private on the hub. Ask for access on its page, then log in with `hf auth login`.",
    ),
    (
        r"not a valid git identifier|revision not found|invalid rev",
        "has no such revision on the hub. Check --revision.",
    ),
    (
        r"couldn't connect|offline|connection|cannot find the requested files|resolve host|timed? ?out",
        "was found neither on this machine nor on the hub, which cannot be reached. "
        "Give the path of a downloaded model folder, or connect once to fetch it.",
    ),
    (
        r"not a valid model identifier|repository not found|404 client|repo id must",
        "is neither a folder here nor a model on the hub. Check the spelling (owner/name).",
    ),
)


def explain(config: ModelConfig, place: Local | Hub, error: BaseException) -> str:
    """Return one line: what failed, where, what to do next."""
    where = str(place.folder) if isinstance(place, Local) else place.name
    if out_of_memory(error):
        return f"{where} does not fit into the memory of {config.device}. Use a smaller model, or --dtype bfloat16."
    told = " ".join(str(part) for part in _chain(error))
    if isinstance(error, ImportError):
        return f"{where} needs a package that is not installed: {one_line(error)}"
    for pattern, says in _CAUSES if isinstance(place, Local) else _HUB_CAUSES + _CAUSES:
        if re.search(pattern, told, re.IGNORECASE):
            return f"{where} {says}"
    if missing := re.search(r"can't load (?:the )?([\w ]+?) for ", told, re.IGNORECASE):
        return f"{where} lacks the files of its {missing[1]}. Copy the whole model folder."
    return f"{where} cannot be loaded: {one_line(error)} ({type(error).__name__})"


def one_line(error: BaseException) -> str:
    """Return an exception's message on one line, cut where it gets long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST_DETAIL else text[: LONGEST_DETAIL - 1] + "…"


def out_of_memory(error: BaseException) -> bool:
    """Tell whether the device, or the machine, ran out of memory."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    signs = r"out of memory|can't allocate memory|not enough memory|CUBLAS_STATUS_ALLOC_FAILED"
    return isinstance(error, RuntimeError) and re.search(signs, str(error)) is not None


def _chain(error: BaseException | None) -> list[BaseException]:
    """Return the exception and what caused it, outermost first."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain
