"""The benches of the engine: what they count, what they print, what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.bench import engine, gpu, peers, roofline, shapes
from tests.bench.roofline import Ceilings

SMALL = ["--layers", "1", "--hidden", "128", "--samples", "2", "--tokens", "3", "--rounds", "1", "--device", "cpu"]


def test_products_are_counted_from_their_shapes() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vision = torch.nn.Linear(8, 16, bias=False)
            self.decoder = torch.nn.Linear(16, 16, bias=False)

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            hidden = self.decoder(self.vision(rows))[:, None]  # (B, 1, L, 16)
            return torch.nn.functional.scaled_dot_product_attention(hidden, hidden, hidden, is_causal=True)

    model, ceilings = Model(), Ceilings(flops=1e3, bandwidth=1e6, launch=0.0)
    with roofline.counting(model, ceilings) as work:
        model(torch.zeros(2, 5, 8))
    assert work.flops["vision"] == 2 * 10 * 8 * 16
    assert work.flops["text"] == 2 * 10 * 16 * 16 + 4 * 2 * 5 * 5 * 16 / 2
    assert work.bytes["vision"] == 4 * (8 * 16 + 10 * 8 + 10 * 16)
    assert work.floor == pytest.approx(sum(work.flops.values()) / 1e3)  # bytes are cheap here
    before = dict(work.flops)
    model(torch.zeros(2, 5, 8))
    assert work.flops == before  # nothing is counted afterwards


def test_a_floor_is_the_longer_of_two() -> None:
    ceilings = Ceilings(flops=100.0, bandwidth=10.0, launch=0.0)
    assert ceilings.floor(200, 1) == 2.0
    assert ceilings.floor(1, 30) == 3.0


def test_the_grid_tells_ratios_and_distance_from_the_floor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engine, "grid_of", lambda quick: [("llava", 16, 2), ("gemma3", 16, 1)])
    monkeypatch.setattr(roofline, "measure_ceilings", lambda device: Ceilings(1e9, 1e9, 1e-6))
    file = tmp_path / "grid.json"
    code = engine.main(["--grid", *SMALL, "--json", str(file)])
    told = json.loads(file.read_text())["cases"]
    assert [set(case["ways"]) - {"prefill"} for case in told] == [
        {"naive", "loop", "fork", "packed"},
        {"naive", "loop", "fork"},  # makes masks of its own
    ]
    fork = told[0]["ways"]["fork"]
    assert set(fork["floor"]) == {"vision", "prefill", "decode"}
    assert all(seconds > 0 for seconds in fork["floor"].values())
    assert code == int(told[0]["packed_to_fork"] > 1.05)
    assert "gemma3, 16 image tokens, B = 1" in capsys.readouterr().out


def test_the_whole_grid_has_every_family_and_size() -> None:
    whole = engine.grid_of(False)
    assert {family for family, *_ in whole} == set(engine.FAMILIES)
    assert {tuple(size) for _, *size in whole} == {(64, 1), (64, 4), (256, 1), (256, 4), (1024, 1), (1024, 2)}
    assert len(engine.grid_of(True)) < len(whole)


@pytest.mark.slow
def test_the_bench_for_gpus_runs_without_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "gpu.json"
    arguments = ["--device", "cpu", "--tiny", "--samples", "2", "--tokens", "5", "--rounds", "1", "--json", str(file)]
    assert gpu.main([*arguments, "--markdown", str(tmp_path / "gpu.md")]) == 0
    told = json.loads(file.read_text())
    assert all(set(found.values()) == {True} for found in told["same_tokens"].values())
    assert len(told["cases"]) == 4
    assert all("median" in way for case in told["cases"] for way in case["ways"].values())
    assert "| llava tiny | 16 | 1 |" in (tmp_path / "gpu.md").read_text()
    assert "tiny" in capsys.readouterr().out


def test_a_case_that_fails_is_told_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = gpu.build

    def build(shape: shapes.Shape, tokens: int, device: torch.device, dtype: torch.dtype) -> object:
        if shape.name == "llava tiny":
            raise RuntimeError("no room")
        return real(shape, tokens, device, dtype)

    monkeypatch.setattr(gpu, "build", build)
    file = tmp_path / "gpu.json"
    arguments = ["--device", "cpu", "--tiny", "--samples", "2", "--tokens", "3", "--rounds", "1", "--ways", "fork"]
    assert gpu.main([*arguments, "--json", str(file)]) == 0
    cases = json.loads(file.read_text())["cases"]
    assert "no room" in cases[0]["error"]
    assert [case["model"] for case in cases[1:]] == ["qwen tiny", "qwen tiny"]
    assert "no room" in capsys.readouterr().err


def test_image_tokens_that_are_no_square_are_refused() -> None:
    with pytest.raises(SystemExit, match="no square"):
        shapes.pixels(gpu.TINY["llava tiny"], 99)


def test_peers_want_an_environment() -> None:
    with pytest.raises(SystemExit, match="--build FOLDER"):
        peers.main(["--ways", "vllm,packed"])


def test_a_prompt_has_as_many_tokens_as_wanted() -> None:
    assert len(peers.prompt_of(lambda text: len(text), 24)) == 24
    assert len(peers.prompt_of(lambda text: len(text.split()), 24).split()) == 24


def test_weights_are_renamed_for_vllm_and_not_changed(tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.mkdir()
    weights = {"vision_tower.a.weight": torch.ones(2), "language_model.b": torch.zeros(3)}
    save_file(weights, source / "model.safetensors")
    found = load_file(peers.for_vllm(source, tmp_path / "copy") / "model.safetensors")
    assert found.keys() == {"vision_tower.vision_model.a.weight", "language_model.b"}
    assert torch.equal(found["vision_tower.vision_model.a.weight"], weights["vision_tower.a.weight"])
    assert load_file(source / "model.safetensors").keys() == weights.keys()
