"""Attention in blocks of rows against torch's own; weights laid out for the processor: the same products and tokens."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tests.bench import shapes
from tests.support import tiny_models
from vlmgate.captioner import load_captioner
from vlmgate.captioner.local import layers
from vlmgate.captioner.local.engine import TransformersCaptioner
from vlmgate.captioner.local.fork import ForkDecoder
from vlmgate.captioner.local.layers import PrepackedLinear, attention_in_blocks, blocked_attention
from vlmgate.captioner.local.runner import trial_images
from vlmgate.captioner.local.trials import Teacher, alike
from vlmgate.config import ModelConfig, SamplingConfig

pytestmark = pytest.mark.usefixtures("one_thread")
needs_onednn = pytest.mark.skipif(
    not layers._onednn_has_bfloat16(), reason="this processor or torch has no bfloat16 products"
)

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


# --- linear layers ----------------------------------------------------------------------------------------------------


class Tied(torch.nn.Module):
    """A head that shares its weight with embeddings, and two layers that do not."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(300, 128)
        self.middle = torch.nn.Linear(128, 128)
        self.small = torch.nn.Linear(128, 4)
        self.head = torch.nn.Linear(128, 300, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.middle(self.embed(ids))
        return torch.cat([self.small(hidden), self.head(hidden)], dim=-1)


@needs_onednn
def test_products_are_the_same_and_the_way_back_leads_to_the_same_weights() -> None:
    torch.manual_seed(0)
    model = Tied().to(torch.bfloat16).eval()
    ids = torch.randint(0, 300, (3, 5))
    weight = model.middle.weight.clone()
    with torch.inference_mode():
        before = model(ids)
        assert layers.prepack(model) == 2
        assert type(model.middle) is PrepackedLinear
        assert type(model.small) is torch.nn.Linear  # too small to gain
        assert model.head.weight is model.embed.weight
        assert torch.equal(model(ids), before)
        assert torch.equal(model(ids[:0]), before[:0])
    layers.undo_prepack(model)
    assert type(model.middle) is torch.nn.Linear
    assert torch.equal(model.middle.weight, weight)
    assert torch.equal(model(ids), before)


@needs_onednn
def test_other_dtypes_and_layers_that_are_watched_keep_their_layout() -> None:
    assert layers.prepack(Tied()) == 0
    model = Tied().to(torch.bfloat16)
    model.middle.register_forward_hook(lambda *_: None)
    assert layers.prepack(model) == 1


@needs_onednn
def test_an_operator_that_is_gone_or_wrong_leaves_the_layers_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Tied().to(torch.bfloat16)
    real = torch.ops.mkldnn._reorder_linear_weight
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", lambda weight, rows: real(weight * 2, rows))
    assert layers.prepack(model) == 0
    assert not any(type(module) is PrepackedLinear for module in model.modules())


def load(root: Path, dtype: str) -> TransformersCaptioner:
    folder = tiny_models.build("llava", root)
    engine = load_captioner(
        ModelConfig(str(folder), device="cpu", dtype=dtype), SamplingConfig(num_samples=3, max_new_tokens=6)
    )
    assert isinstance(engine, TransformersCaptioner)
    return engine


@needs_onednn
def test_an_engine_says_the_same_with_either_layout(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "LEAST_WEIGHT", 1)  # the model is tiny
    root = tmp_path_factory.getbasetemp() / "tiny"
    engine = load(root, "bfloat16")
    model: Any = engine._runner.checkpoint.model
    assert any(type(module) is PrepackedLinear for module in model.modules())
    seen = []
    for _ in range(2):
        teacher = Teacher(range(20, 40))
        inputs = engine._runner.inputs(engine._runner.encode, trial_images())
        engine._runner.generate(inputs, engine._runner.decoder(teacher, 4, ForkDecoder))
        seen.append(teacher.seen)
        layers.undo_prepack(model)
    assert alike(*seen, torch.bfloat16)
    assert seen[0][0].shape == (2 * 3, engine._runner.checkpoint.model.config.text_config.vocab_size)


@needs_onednn
def test_a_model_that_comes_out_differently_gets_its_layout_back(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(layers, "LEAST_WEIGHT", 1)
    real = PrepackedLinear.forward
    monkeypatch.setattr(PrepackedLinear, "forward", lambda layer, input: 2 * real(layer, input))
    engine = load(tmp_path_factory.getbasetemp() / "tiny", "bfloat16")
    assert not any(type(module) is PrepackedLinear for module in engine._runner.checkpoint.model.modules())
    assert "would come out differently" in caplog.text


def test_float32_keeps_its_layout(tmp_path_factory: pytest.TempPathFactory) -> None:
    engine = load(tmp_path_factory.getbasetemp() / "tiny", "float32")
    assert not any(type(module) is PrepackedLinear for module in engine._runner.checkpoint.model.modules())
