"""Packed steps in fixed shapes: the fork's tokens, whatever is reused; and what is chosen where."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support import tiny_models
from tests.support.tiny_models import SIZES, copied, images, in_float64, picture
from vlmgate.captioner import load_captioner
from vlmgate.captioner.local import checkpoint, trials
from vlmgate.captioner.local import recorded as graphs
from vlmgate.captioner.local.engine import TransformersCaptioner
from vlmgate.captioner.local.fork import ForkDecoder
from vlmgate.captioner.local.layers import UnsuitableError
from vlmgate.captioner.local.packed import PackedDecoder
from vlmgate.captioner.local.recorded import RecordedDecoder, RecordedStep, Recordings
from vlmgate.captioner.local.trials import draws_alike, fitting
from vlmgate.config import ModelConfig, SamplingConfig
from vlmgate.data import Picture

K, T = 3, 10


pytestmark = pytest.mark.usefixtures("one_thread")


def load(root: Path, family: str, **sampling: Any) -> TransformersCaptioner:
    folder = tiny_models.build(family, root / "tiny")
    settings = SamplingConfig(num_samples=K, max_new_tokens=T, **sampling)
    engine = load_captioner(ModelConfig(model=str(folder), device="cpu"), settings)
    assert isinstance(engine, TransformersCaptioner)
    in_float64(engine)
    return engine


@pytest.fixture(scope="module", params=["idefics3", "internvl", "llava", "qwen2_5_vl"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TransformersCaptioner:
    return load(tmp_path_factory.getbasetemp(), request.param)


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> TransformersCaptioner:
    return load(tmp_path_factory.getbasetemp(), "llava")


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    return [picture(i, size) for i, size in enumerate(SIZES)]


def drawn(
    engine: TransformersCaptioner, batch: list[Picture], kind: type[ForkDecoder], ends: frozenset[int] | None = None
) -> tuple[list[list[int]], list[float], list[bool]]:
    decoder = engine._runner.decoder(engine._runner.sampler(batch, "captions"), T, kind)
    decoder.end_ids = decoder.end_ids if ends is None else ends
    engine._runner.generate(engine._runner.inputs(engine._runner.encode, images(batch)), decoder)
    return decoder.tokens, [round(sum(row), 6) for row in decoder.logprobs], decoder.finite


def test_fixed_shapes_draw_what_the_fork_draws(engine: TransformersCaptioner, pictures: list[Picture]) -> None:
    """Uneven prompts in one batch; then others through the same steps, which must have forgotten the first."""
    engine._runner.recordings.clear()
    for batch in (pictures, pictures[::-1], pictures):
        assert drawn(engine, batch, RecordedDecoder) == drawn(engine, batch, ForkDecoder)
    assert len(engine._runner.recordings._kept) == 1


def test_rows_end_where_they_end_in_the_fork(llava: TransformersCaptioner, pictures: list[Picture]) -> None:
    half = frozenset(range(0, 160, 2))  # every other token is an end: all rows are done long before the last step
    want = drawn(llava, pictures, ForkDecoder, half)
    assert drawn(llava, pictures, RecordedDecoder, half) == want
    assert {len(row) for row in want[0]} != {T}


def test_what_a_broken_batch_left_does_not_spoil_the_next(
    llava: TransformersCaptioner, pictures: list[Picture]
) -> None:
    want = drawn(llava, pictures, RecordedDecoder)
    with torch.inference_mode():
        for step in llava._runner.recordings._kept.values():
            for layer in step._layers:
                layer.keys.fill_(torch.nan)
                layer.values.fill_(torch.nan)
    assert drawn(llava, pictures, RecordedDecoder) == want
    assert all(want[2])


def test_tokens_can_be_drawn_outside(
    llava: TransformersCaptioner, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    inside: list[int] = []
    real = RecordedStep.draw
    monkeypatch.setattr(RecordedStep, "draw", lambda step: (inside.append(1), real(step))[1])
    other = copied(llava)
    other._runner.sampling = dataclasses.replace(llava._runner.sampling, top_p=0.7)
    assert drawn(other, pictures, RecordedDecoder) == drawn(other, pictures, ForkDecoder)
    assert not inside
    assert drawn(llava, pictures, RecordedDecoder) == drawn(llava, pictures, ForkDecoder)
    assert len(inside) == T


def test_drawing_that_cannot_be_recorded_is_done_outside(
    llava: TransformersCaptioner,
    pictures: list[Picture],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    real = Recordings.get

    def refuse(self: Recordings, model: Any, wide: Any, sequences: Any, rule: graphs.Rule) -> RecordedStep:
        if rule.warp is not None:
            raise UnsuitableError("the stream is capturing")
        return real(self, model, wide, sequences, rule)

    monkeypatch.setattr(Recordings, "get", refuse)
    other = copied(llava)
    other._runner.recordings = Recordings()
    assert drawn(other, pictures, RecordedDecoder) == drawn(other, pictures, ForkDecoder)
    assert not other._runner.recordings.draws_inside
    assert "the stream is capturing" in caplog.text


def test_what_is_drawn_inside_is_tried_against_outside(
    llava: TransformersCaptioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert draws_alike(llava._runner)
    real = RecordedStep.draw

    def wrong(step: RecordedStep) -> None:
        step._table.fill_(0.999)
        real(step)

    monkeypatch.setattr(RecordedStep, "draw", wrong)
    assert not draws_alike(llava._runner)


def test_few_recordings_are_kept_and_lengths_are_rounded(llava: TransformersCaptioner, pictures: list[Picture]) -> None:
    other = copied(llava)
    other._runner.recordings = Recordings(most=2)
    for count in (1, 2, 3, 3):
        drawn(other, pictures[:count], RecordedDecoder)
    assert [key[1] for key in other._runner.recordings._kept] == [2, 3]
    assert all(key[3] % graphs.ROUND_TO == 0 for key in other._runner.recordings._kept)


def test_one_token_needs_no_recording(llava: TransformersCaptioner, pictures: list[Picture]) -> None:
    other = copied(llava)
    other._runner.recordings = Recordings()
    decoder = other._runner.decoder(other._runner.sampler(pictures, "captions"), 1, RecordedDecoder)
    other._runner.generate(other._runner.inputs(other._runner.encode, images(pictures)), decoder)
    assert {len(row) for row in decoder.tokens} == {1}
    assert not other._runner.recordings._kept


def test_a_gpu_packs_in_recorded_steps_and_a_cpu_does_not(llava: TransformersCaptioner) -> None:
    assert llava._runner.fast_kind() is PackedDecoder
    other = copied(llava)
    other._runner.checkpoint = dataclasses.replace(llava._runner.checkpoint, device=torch.device("cuda"))
    assert other._runner.fast_kind() is RecordedDecoder


def test_out_of_memory_lets_the_recordings_go(
    llava: TransformersCaptioner, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = copied(llava)
    other._runner.recordings = Recordings()
    drawn(other, pictures[:2], RecordedDecoder)

    def act(batch: Any) -> list[Any]:
        if len(batch) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return list(batch)

    assert other._in_batches(act, pictures[:2]) == pictures[:2]
    assert not other._runner.recordings._kept


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA: recording needs a GPU")
def test_a_recording_replays_what_the_fork_draws_on_a_gpu(tmp_path: Path, pictures: list[Picture]) -> None:
    folder = tiny_models.build("llava", tmp_path)
    engine = load_captioner(
        ModelConfig(model=str(folder), device="cuda", dtype="float32"), SamplingConfig(num_samples=K, max_new_tokens=T)
    )
    assert isinstance(engine, TransformersCaptioner)
    assert engine.info.route == "packed"
    for batch in (pictures, pictures[::-1]):
        assert drawn(engine, batch, RecordedDecoder)[0] == drawn(engine, batch, ForkDecoder)[0]
    assert engine._runner.recordings.draws_inside


def test_what_an_image_takes() -> None:
    text = SimpleNamespace(num_attention_heads=32, num_key_value_heads=8, hidden_size=4096, num_hidden_layers=32)
    token = trials.token_bytes(text, torch.bfloat16)
    assert token == 131_072  # Llama 3 8B: 128 KiB a token
    one = trials.Footprint(token=token, prefill=500 << 20, vocabulary=128_256, prompt=1048)
    logits = 8 * 128_256 * 4 * trials.LOGIT_COPIES
    assert one.image("fork", 8, 32) == (500 << 20) + 8 * 1080 * token + logits
    assert one.image("packed", 8, 32) == (500 << 20) + (1048 + 256) * token + logits
    small = SimpleNamespace(num_attention_heads=4, hidden_size=64, num_hidden_layers=2, head_dim=8)
    assert trials.token_bytes(small, torch.float32) == 2 * 2 * 4 * 8 * 4


@pytest.mark.parametrize(("free", "want"), [(0, 1), (99, 1), (1000, 8), (10_000, 16)])
def test_what_fits(free: int, want: int) -> None:
    assert trials.images_that_fit(free, 100, 16) == want


def test_the_batch_is_as_asked_for_where_memory_is_not_counted(llava: TransformersCaptioner) -> None:
    assert fitting(llava._runner, "packed", 99) == llava._runner.sampling.batch


def test_a_batch_that_would_not_fit_is_made_smaller(
    llava: TransformersCaptioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A card of 10 MiB; its memory is made up, for there is none."""
    other = copied(llava)
    other._runner.checkpoint = dataclasses.replace(llava._runner.checkpoint, device=torch.device("cuda"))
    monkeypatch.setattr(other._runner, "generate", lambda inputs, decoder: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1 << 20)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 << 20)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 1 << 20)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 << 20, 80 << 30))
    assert fitting(other._runner, "packed", 99) == 3  # of 10 MiB four fifths, for a little more than 2 MiB each
    for asked, rounds, most in ((None, None, 32), (None, 2, 64), (5, None, 5), (100, None, 100)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (80 << 30, 80 << 30))
        sampling = dataclasses.replace(llava._runner.sampling, batch_size=asked, num_samples=4, first_samples=rounds)
        other._runner.sampling = sampling
        assert fitting(other._runner, "packed", 8) == most


def test_freed_memory_is_kept_or_that_is_said() -> None:
    assert checkpoint.keep_freed_memory() in (True, False)
    kept = [torch.zeros(2**20) for _ in range(4)]
    assert all(float(part.sum()) == 0.0 for part in kept)
