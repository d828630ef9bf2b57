"""A checkpoint that does not see its pictures says the same of all of them, and none of that may pass."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from tests.support import tiny_models
from tests.support.fakes import folder_of
from vlmgate.captioner import load_captioner
from vlmgate.captioner.local import engine, trials
from vlmgate.captioner.local.engine import TransformersCaptioner
from vlmgate.captioner.location import weights_folder
from vlmgate.cli import app
from vlmgate.config import BUILTIN, ModelConfig, SamplingConfig
from vlmgate.errors import ModelError
from vlmgate.store.result import read_result

pytestmark = pytest.mark.usefixtures("one_thread")
SAMPLING = SamplingConfig(num_samples=2, max_new_tokens=4)
BRIDGES = ("projector", "connector", "merger", "projection", "mm_projector")  # from the vision tower to the decoder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


def blinded(folder: Path, into: Path) -> Path:
    """Return a copy of a checkpoint, with zeros between the vision tower and the decoder."""
    shutil.copytree(folder, into, ignore=shutil.ignore_patterns("novelty.npz"))  # it is of other weights
    for file in into.glob("*.safetensors"):
        weights = load_file(file)
        bridge = [name for name in weights if any(part in name for part in BRIDGES)]
        assert bridge
        save_file(weights | {name: torch.zeros_like(weights[name]) for name in bridge}, file, {"format": "pt"})
    return into


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_a_projector_of_zeros_is_refused_and_a_random_one_is_not(family: str, root: Path, tmp_path: Path) -> None:
    folder = tiny_models.build(family, root)
    seeing = load_captioner(ModelConfig(str(folder), device="cpu"), SAMPLING).info
    assert seeing.warnings == () and "logits differ by" in str(seeing.vision)
    blind = blinded(folder, tmp_path / "blind")
    with pytest.raises(ModelError, match=r"does not seem to see the pictures: .*--trust-vision") as caught:
        load_captioner(ModelConfig(str(blind), device="cpu"), SAMPLING)
    assert "\n" not in str(caught.value)
    trusted = load_captioner(ModelConfig(str(blind), device="cpu", trust_vision=True), SAMPLING).info
    assert "may not see the pictures" in trusted.warnings[0] and "--trust-vision was given" in trusted.warnings[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_built_in_model_sees_in_every_precision(dtype: str, tmp_path: Path) -> None:
    seeing = load_captioner(ModelConfig(BUILTIN, device="cpu", dtype=dtype), SAMPLING)
    assert isinstance(seeing, TransformersCaptioner)
    apart = trials.sight(seeing._runner)
    assert apart is not None and apart > 2 * trials.TOLERANCE[seeing._runner.checkpoint.dtype]
    blind = blinded(weights_folder(), tmp_path / "blind")
    with pytest.raises(ModelError, match="does not seem to see the pictures"):
        load_captioner(ModelConfig(str(blind), device="cpu", dtype=dtype), SAMPLING)


def test_a_prompt_that_leaves_no_choice_is_no_sign_of_blindness(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompt of a run may fix the first word; the question about the colour does not."""
    seeing = load_captioner(ModelConfig(str(tiny_models.build("llava", root)), device="cpu"), SAMPLING)
    assert isinstance(seeing, TransformersCaptioner)
    runner, asked = seeing._runner, []
    usual = runner.inputs

    def inputs(encode: Any, images: Any) -> dict[str, Any]:
        asked.append(encode)
        return usual(encode, [images[0]] * len(images) if encode is runner.encode else images)

    monkeypatch.setattr(runner, "inputs", inputs)
    apart = trials.sight(runner)
    assert apart is not None and apart > 0.1 and len(asked) == 2


def test_a_trial_that_fails_refuses_nothing_and_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.trials, "colour_picture", lambda colour: 1 / 0)
    info = load_captioner(ModelConfig(str(tiny_models.build("llava", root)), device="cpu"), SAMPLING).info
    assert len(info.warnings) == 1 and "could not be tried" in info.warnings[0]


def test_the_command_line_refuses_or_tells(tmp_path: Path) -> None:
    blind = blinded(weights_folder(), tmp_path / "blind")
    folder = folder_of(tmp_path / "in", "a.png", "b.png")
    out = tmp_path / "out.parquet"
    command = ["scan", str(folder), "--model", str(blind), "--device", "cpu", "-o", str(out), "-k", "2"]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 1 and "does not seem to see the pictures" in refused.stderr
    told = CliRunner().invoke(app, [*command, "--trust-vision", "--format", "json"])
    assert told.exit_code == 0 and "may not see the pictures" in json.loads(told.stdout)["warnings"][0]
    assert "may not see the pictures" in read_result(out)[1]["warnings"][0]
    assert CliRunner().invoke(app, ["doctor", "--model", str(blind), "--device", "cpu"]).exit_code == 1
