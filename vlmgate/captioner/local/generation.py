"""What a model's `generate` is told: a configuration of our own, inputs that it takes, tensors where it lies.

Knows transformers' models and processors; knows nothing of pictures, samples or how tokens are drawn.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
import transformers

from vlmgate.captioner.local.checkpoint import Checkpoint


def own_generation_config(checkpoint: Checkpoint, max_new_tokens: int) -> Any:
    """Put a generation config of our own in the place of the checkpoint's, in the model and its parts, and return it.

    `generate` fills every setting that is left open from the model's own config, so that one is replaced as well. Only
    the ids of structural tokens are kept: they say how a sequence begins and ends, not how it is sampled.
    """
    model = checkpoint.model
    text = model.config.get_text_config(decoder=True)

    def from_config(name: str) -> Any:
        value = getattr(model.config, name, None)
        return getattr(text, name, None) if value is None else value

    tokenizer = checkpoint.processor.tokenizer
    config = transformers.GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        num_return_sequences=1,
        use_cache=True,
        bos_token_id=tokenizer.bos_token_id if tokenizer.bos_token_id is not None else from_config("bos_token_id"),
        eos_token_id=sorted(checkpoint.end_ids) or None,
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=from_config("decoder_start_token_id"),
    )
    for part in model.modules():
        if isinstance(getattr(part, "generation_config", None), transformers.GenerationConfig):
            part.generation_config = config
    return config


def image_token_ids_of(checkpoint: Checkpoint) -> frozenset[int]:
    """Return the ids that mark an image in a prompt, as far as model and processor tell."""
    model_config, processor = checkpoint.model.config, checkpoint.processor
    found = [getattr(model_config, name, None) for name in ("image_token_id", "image_token_index")]
    found += [getattr(processor, "image_token_id", None)]
    return frozenset(i for i in found if isinstance(i, int))


def accepted_keys(model: Any) -> frozenset[str]:
    """Return the inputs by name that `generate` lets through to this model."""
    methods = (model.forward, model.prepare_inputs_for_generation, type(model).generate)
    return frozenset(name for method in methods for name in inspect.signature(method).parameters)


def moved(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Move tensors, in dicts and lists too, to the device; pixels and other floats to the model's dtype."""
    if isinstance(value, torch.Tensor):
        return value.to(device, dtype) if value.is_floating_point() else value.to(device)
    if isinstance(value, dict):
        return {key: moved(part, device, dtype) for key, part in value.items()}
    return [moved(part, device, dtype) for part in value] if isinstance(value, list) else value
