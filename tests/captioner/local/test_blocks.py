"""Attention in blocks of rows against torch's own, and where it is used."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tests.bench import shapes
from vlmgate.captioner.local import layers
from vlmgate.captioner.local.layers import attention_in_blocks, blocked_attention
from vlmgate.captioner.local.trials import Teacher, alike

ROWS = 300  # a block and a bit
CPU = torch.device("cpu")


def tensors(dtype: torch.dtype = torch.bfloat16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 6, ROWS, 16, generator=generator)
    key, value = torch.randn(2, 2, 2, ROWS, 16, generator=generator).unbind(0)
    return query.to(dtype), key.to(dtype), value.to(dtype)


@pytest.mark.parametrize("kind", ["causal", "both ways", "mask"])
def test_blocks_attend_as_torch_does(kind: str) -> None:
    query, key, value = tensors()
    module: Any = SimpleNamespace(is_causal=kind != "both ways", num_key_value_groups=3, training=False)
    mask = None
    if kind == "mask":  # left padding in the second prompt: its first rows may look nowhere
        mask = torch.ones(ROWS, ROWS, dtype=torch.bool).tril().expand(2, 1, -1, -1).clone()
        mask[1, :, :, :40] = False
    got, _ = blocked_attention(module, query, key, value, mask, scaling=0.3)
    exact = (part.double() for part in (query, key, value))
    want, _ = sdpa_attention_forward(module, *exact, mask, scaling=0.3)
    real = slice(40, None) if kind == "mask" else slice(None)
    assert got.shape == want.shape
    assert torch.isfinite(got).all()
    assert (got[:, real].double() - want[:, real]).abs().max() < 0.03  # of numbers around 1, in bfloat16


def test_other_numbers_and_few_rows_go_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(layers, "sdpa_attention_forward", lambda module, query, *_, **__: calls.append(query.shape[2]))
    module: Any = SimpleNamespace(is_causal=True)
    blocked_attention(module, *tensors(torch.float32), None)
    query, key, value = tensors()
    blocked_attention(module, query[:, :, :10], key, value, None)
    blocked_attention(module, query, key, value, None, position_bias=torch.zeros(1))
    assert calls == [ROWS, 10, ROWS]


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_a_prompt_read_in_blocks_has_the_same_logits(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = shapes.Shape(family, family, 128, 128, 2, 4, 2, 100, vision=(32, 64, 2, 2))
    model = shapes.build(shape, 256, CPU, torch.bfloat16)
    inputs = shapes.inputs_of(shape, 256, 2, CPU, torch.bfloat16)
    rows: list[int] = []
    real = torch.baddbmm
    monkeypatch.setattr(torch, "baddbmm", lambda *a, **more: (rows.append(a[1].shape[1]), real(*a, **more))[1])
    seen = []
    for least in (layers.LEAST_ROWS, 10**9):
        monkeypatch.setattr(layers, "LEAST_ROWS", least)
        teacher = Teacher(range(20))
        decoder = shapes.ForkDecoder(num_samples=2, max_new_tokens=2, end_ids=frozenset(), pick=teacher)
        with torch.inference_mode():
            model.generate(**inputs, max_new_tokens=2, do_sample=False, pad_token_id=0, custom_generate=decoder)
        seen.append(teacher.seen)
    assert rows
    assert alike(seen[0], seen[1], torch.bfloat16)
    assert model.config.get_text_config()._attn_implementation == "sdpa"


def test_attention_is_as_before_when_reading_fails() -> None:
    shape = shapes.Shape("llava", "llava", 64, 64, 1, 4, 2, 100, vision=(32, 64, 1, 2))
    model = shapes.build(shape, 16, CPU, torch.bfloat16)
    with pytest.raises(ValueError, match="broken"), attention_in_blocks(model):
        assert model.config.get_text_config()._attn_implementation == layers.BLOCKED
        raise ValueError("broken")
    assert model.config.get_text_config()._attn_implementation == "sdpa"
