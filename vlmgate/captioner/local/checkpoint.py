"""Load a checkpoint: where it runs, in what precision, which tokens end a caption; or say in one line why not.

Start with `load_checkpoint`.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import logging
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlmgate.captioner.location import Hub, Local, locate, refuse_adapter
from vlmgate.config import ModelConfig
from vlmgate.data import ModelInfo
from vlmgate.errors import ModelError, shorten

logger = logging.getLogger(__name__)

_KEPT_BELOW = (256 * 2**20, 32 * 2**20)  # bytes; older versions of glibc take the second at most
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A model that is ready to run and the processor that feeds it."""

    model: Any  # a PreTrainedModel, in evaluation mode, on `device`
    processor: Any  # a ProcessorMixin
    revision: str | None  # commit of a hub model
    device: torch.device
    dtype: torch.dtype
    end_ids: frozenset[int]  # tokens that end a caption


def load_checkpoint(config: ModelConfig) -> Checkpoint:
    """Load model and processor; raises `ModelError` in one line, with the original exception as its cause.

    Nothing is fetched from the network unless `config.model` is a hub id; pickled weights and code of the repository's
    own are refused unless the latter is asked for.
    """
    place = locate(config)
    device = choose_device(config.device)
    if device.type == "cpu":
        keep_freed_memory()
    if config.dtype != "auto" and config.dtype not in DTYPES:
        raise ModelError(f"There is no dtype {config.dtype!r}. Use auto, {', '.join(DTYPES)}.")
    try:
        with quiet():
            return _load(config, place, device)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(explain(config, place, error)) from error


def choose_device(name: str) -> torch.device:
    """Return the device of that name; `auto` is the first CUDA device, else Apple's, else the CPU."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda:0")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"There is no device {name!r}. Use auto, cpu, cuda, cuda:N or mps.") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ModelError(
                f"No CUDA device is usable from this Python (torch {torch.__version__}). Use --device cpu."
            )
        device = torch.device("cuda", device.index or 0)
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise ModelError(f"There is no {device}: this machine has {torch.cuda.device_count()} CUDA device(s).")
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise ModelError("No Apple GPU is usable from this Python. Use --device cpu.")
    elif device.type not in ("cpu", "mps"):
        raise ModelError(f"The device {name!r} is not supported. Use auto, cpu, cuda, cuda:N or mps.")
    return device


def choose_dtype(name: str, device: torch.device, stored: object) -> torch.dtype:
    """Return the dtype of that name; `auto` is the fastest one in which the model's numbers still hold.

    - CPU: float32. It is exact enough that captions do not depend on the batch.
    - GPU with bfloat16 in hardware: bfloat16; it has float32's range, so nothing overflows.
    - any other GPU: float16 if the checkpoint is stored so and hence known to fit its range, else float32: activations
      of models trained in bfloat16 overflow in float16, and every caption would be broken.
    """
    if name != "auto":
        return DTYPES[name]
    if device.type == "cpu":
        return torch.float32
    if _has_bfloat16(device):
        return torch.bfloat16
    return torch.float16 if str(stored).removeprefix("torch.") == "float16" else torch.float32


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)  # older ones emulate it, slowly
    try:
        torch.ones(1, dtype=torch.bfloat16, device=device).sum()  # needs macOS 14
    except (RuntimeError, TypeError):
        return False
    return True


def _load(config: ModelConfig, place: Local | Hub, device: torch.device) -> Checkpoint:
    from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig

    source = str(place.folder) if isinstance(place, Local) else place.name
    # `trust_remote_code` is passed even when False: left out, transformers asks at the terminal.
    options: dict[str, Any] = {
        "trust_remote_code": config.trust_remote_code,
        "local_files_only": isinstance(place, Local),
    }
    revision = None if isinstance(place, Local) else _commit(place)
    if revision is not None:
        options["revision"] = revision
    if isinstance(place, Hub):
        name = "adapter_config.json"
        refuse_adapter(config.model, [name] if _file(source, name, options, offline=True) else [])
    model_config = AutoConfig.from_pretrained(source, **options)
    processor = load_processor(source, model_config, options)
    if getattr(processor, "image_processor", None) is None:
        raise ModelError(f"{config.model} has no image processor: it is no vision-language model. Name one that is.")
    dtype = choose_dtype(config.dtype, device, getattr(model_config, "dtype", None))
    model, report = AutoModelForImageTextToText.from_pretrained(
        source,
        config=model_config,
        dtype=dtype,
        use_safetensors=True,
        generation_config=GenerationConfig(),  # given, so that the checkpoint's own is not even read
        output_loading_info=True,
        **options,
    )
    _refuse_random_weights(config, report)
    model.to(device).eval()
    ends = end_ids(processor.tokenizer, _generation_file(source, options), model.config)
    return Checkpoint(model, processor, revision, device, dtype, ends)


def _commit(place: Hub) -> str | None:
    """Resolve a hub model's branch or tag to a commit once, so that all its files come from the same one."""
    from transformers.utils.hub import cached_file

    path = cached_file(place.name, "config.json", revision=place.revision or "main")
    found = re.search(r"[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]", str(path))
    return found[1] if found else place.revision


def _refuse_random_weights(config: ModelConfig, report: Mapping[str, Any]) -> None:
    """Raise if part of the model is not in the checkpoint: transformers fills it with random numbers and goes on."""
    missing = sorted(str(key) for key in (*report.get("missing_keys", ()), *report.get("mismatched_keys", ())))
    if missing:
        raise ModelError(
            f"{config.model} lacks {len(missing)} of its model's weights, first: {missing[0]}. "
            "The checkpoint is incomplete or of another architecture."
        )
    adapter = sorted(str(key) for key in report.get("unexpected_keys", ()) if "lora_" in str(key).casefold())
    if adapter:
        raise ModelError(
            f"{config.model} holds {len(adapter)} weights of an adapter, which are left out, first: {adapter[0]}. "
            "Merge it into the model (in peft: merge_and_unload, then save_pretrained)."
        )


def _generation_file(source: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Read generation_config.json as plain data; empty if there is none or it is no JSON object."""
    path = _file(source, "generation_config.json", options)
    if path is None:
        return {}
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError:
        logger.warning("%s is no JSON and was ignored", path)
        return {}
    return content if isinstance(content, dict) else {}


def _file(source: str, name: str, options: Mapping[str, Any], *, offline: bool = False) -> str | None:
    """Return the path of a file of a checkpoint, fetched where it is a hub model's; None if there is none.

    With `offline`, a file that is not on this machine counts as none where the hub cannot be reached.
    """
    from transformers.utils.hub import cached_file

    known: dict[str, Any] = {key: value for key, value in options.items() if key != "trust_remote_code"}
    known |= {"_raise_exceptions_for_connection_errors": False} if offline else {}
    found: str | None = cached_file(source, name, _raise_exceptions_for_missing_entries=False, **known)
    return found


def end_ids(tokenizer: Any, generation: Mapping[str, Any], config: Any) -> frozenset[int]:
    """Return the tokens that end a caption: those the checkpoint's authors wrote down, and the tokenizer's own.

    The token that ends a turn (such as <|im_end|>) may be named only in generation_config.json, or only in the
    tokenizer: the union is right. A model's config, and a generation_config.json derived from it, may hold nothing but
    its class's default (2 for Llama, "#" in some vocabularies): from there only the tokenizer's special tokens count.
    """
    derived = bool(generation.get("_from_model_config"))
    written = _ids(generation.get("eos_token_id"))
    sure = _ids(getattr(tokenizer, "eos_token_id", None)) | (set() if derived else written)
    unsure = written if derived else set()
    for part in (config, config.get_text_config(decoder=True)):
        unsure |= _ids(getattr(part, "eos_token_id", None))
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special = set(tokenizer.all_special_ids) | {i for i, token in added.items() if token.special}
    return frozenset(sure | (unsure & special))


def _ids(value: object) -> set[int]:
    values = value if isinstance(value, (list, tuple)) else [value]
    return {v for v in values if isinstance(v, int) and not isinstance(v, bool) and v >= 0}


def describe(name: str, checkpoint: Checkpoint, route: str) -> ModelInfo:
    """Return what a result says of the model; `route` is how K captions are made."""
    import transformers

    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    try:
        versions["torchvision"] = importlib.import_module("torchvision").__version__
    except Exception as error:  # next to another torch its import can fail with RuntimeError
        logger.debug("torchvision is not used: %s", error)
    return ModelInfo(
        model=name,
        revision=checkpoint.revision,
        architecture=type(checkpoint.model).__name__,
        num_parameters=sum(p.numel() for p in checkpoint.model.parameters()),
        device=str(checkpoint.device),
        dtype=str(checkpoint.dtype).removeprefix("torch."),
        image_processor=type(checkpoint.processor.image_processor).__name__,
        route=route,
        versions=versions,
    )


# --- the processor ----------------------------------------------------------------------------------------------------


def load_processor(source: str, config: Any, options: Mapping[str, Any]) -> Any:
    """Return the processor of a checkpoint; raises what transformers raises.

    Many families (Qwen-VL, InternVL, SmolVLM) read video, too, and that half needs torchvision, which is optional here
    and often clashes with the installed torch. Without it that half is left out.
    """
    from transformers import AutoProcessor
    from transformers.utils.import_utils import is_torchvision_available

    try:
        return AutoProcessor.from_pretrained(source, **options)
    except (ImportError, ValueError, AttributeError) as error:  # what it is depends on the version and the family
        base = None if is_torchvision_available() else _class_with_video(config)
        if base is None:
            raise
        logger.info("%s is loaded without its video half: %s", base.__name__, error)
    return _without_video(base).from_pretrained(source, **options)


def _class_with_video(config: Any) -> Any:
    """Return the processor class of an architecture if it takes a video processor."""
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES, processor_class_from_name

    names: Mapping[str, str] = PROCESSOR_MAPPING_NAMES
    base = processor_class_from_name(names[config.model_type]) if config.model_type in names else None
    return base if base is not None and "video_processor" in base.get_attributes() else None


def _without_video(base: Any) -> Any:
    """Return the class less its video part; under the same name, because transformers looks at names."""

    def get_attributes(cls: Any) -> list[str]:
        return [name for name in base.get_attributes() if name != "video_processor"]

    return type(base.__name__, (base,), {"get_attributes": classmethod(get_attributes)})


# --- the terminal -----------------------------------------------------------------------------------------------------


@contextmanager
def quiet() -> Iterator[None]:
    """Show no progress bars, and send warnings to the application's log.

    Log records of both libraries go to the application's handlers, also afterwards; without any they are dropped.
    """
    from transformers.utils import logging as hf_logging

    hf_logging.disable_default_handler()
    for name in ("transformers", "huggingface_hub"):
        library = logging.getLogger(name)
        library.propagate = True
        for handler in list(library.handlers):
            # What the library itself puts there at import: a plain handler, not formatted, that writes to stderr.
            if type(handler) is logging.StreamHandler and handler.formatter is None:
                library.removeHandler(handler)
        if not any(isinstance(handler, logging.NullHandler) for handler in library.handlers):
            library.addHandler(logging.NullHandler())  # else Python prints what nobody handles
    had_bars = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            yield
    finally:
        if had_bars:
            hf_logging.enable_progress_bar()
    for warning in caught:
        logger.info("while loading: %s: %s", warning.category.__name__, warning.message)


# --- memory -----------------------------------------------------------------------------------------------------------


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

    A model's layers free and ask for the same few megabytes thousands of times a second, and glibc would ask the kernel
    each time. With it a prefill of 1,024 image tokens had a fifth of the page faults and took a tenth less time; the
    process holds on to up to its peak.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    trim, mapped = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    return any(mallopt(mapped, size) == 1 for size in _KEPT_BELOW) and mallopt(trim, 2**31 - 1) == 1


# --- why a model cannot be loaded -------------------------------------------------------------------------------------

# A pattern in the original message → what to say of the model. The first that matches speaks.
_CAUSES = {
    r"trust_remote_code|custom code": "needs Python code from its own repository. Read that code, then allow it with "
    "--trust-remote-code.",
    r"unrecognized configuration class|is not supported for|no processor": "is no vision-language model that "
    "transformers can run (image and text in, text out). Name another.",
    r"does not recognize this architecture|unrecognized model|unrecognized processing class": "is of an architecture "
    "that the installed transformers does not know. Update it, or name another model.",
    r"ignore_mismatched_sizes": "has weights of other shapes than its config.json says. The checkpoint is damaged or "
    "mixed from two.",
    r"deserializing header": "has a damaged weights file. Copy or download the model again.",
    r"instantiate the backend tokenizer": "has no tokenizer that can be read here. Copy the whole model folder, "
    "tokenizer.json included.",
    r"safetensors": "has no readable .safetensors weights; pickled ones are refused because loading them runs code. "
    "Use a revision that has them, or convert it with save_pretrained.",
}
_HUB_CAUSES = {
    r"gated|401 client|403 client|access to model": "is gated or private on the hub. Ask for access on its page, then "
    "log in with `hf auth login`.",
    r"not a valid git identifier|revision not found|invalid rev": "has no such revision on the hub. Check --revision.",
    r"couldn't connect|offline|connection|cannot find the requested files|resolve host|timed? ?out": "was found "
    "neither on this machine nor on the hub, which cannot be reached. Give the path of a downloaded model folder, or "
    "connect once to fetch it.",
    r"not a valid model identifier|repository not found|404 client|repo id must": "is neither a folder here nor a "
    "model on the hub. Check the spelling (owner/name).",
}


def explain(config: ModelConfig, place: Local | Hub, error: BaseException) -> str:
    """Return one line: what failed, where, what to do next."""
    where = str(place.folder) if isinstance(place, Local) else place.name
    if out_of_memory(error):
        return f"{where} does not fit into the memory of {config.device}. Use a smaller model, or --dtype bfloat16."
    if isinstance(error, ImportError):
        return f"{where} needs a package that is not installed: {shorten(error)}"
    chain: list[BaseException] = []  # the exception and what caused it, outermost first
    part: BaseException | None = error
    while part is not None and part not in chain:
        chain.append(part)
        part = part.__cause__ or part.__context__
    text = " ".join(map(str, chain))
    for pattern, says in (_CAUSES if isinstance(place, Local) else _HUB_CAUSES | _CAUSES).items():
        if re.search(pattern, text, re.IGNORECASE):
            return f"{where} {says}"
    if missing := re.search(r"can't load (?:the )?([\w ]+?) for ", text, re.IGNORECASE):
        return f"{where} lacks the files of its {missing[1]}. Copy the whole model folder."
    return f"{where} cannot be loaded: {shorten(error)} ({type(error).__name__})"
