"""Weights laid out for the processor: the same products, the same tokens, and the way back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import tiny_models
from vlmgate.captioner import load_captioner
from vlmgate.captioner.local import layers
from vlmgate.captioner.local.engine import TransformersCaptioner
from vlmgate.captioner.local.fork import ForkDecoder
from vlmgate.captioner.local.layers import PrepackedLinear
from vlmgate.captioner.local.prompts import trial_images
from vlmgate.captioner.local.trials import Teacher, alike
from vlmgate.config import ModelConfig, SamplingConfig

needs_onednn = pytest.mark.skipif(
    not layers._onednn_has_bfloat16(), reason="this processor or torch has no bfloat16 products"
)


pytestmark = pytest.mark.usefixtures("one_thread")


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
