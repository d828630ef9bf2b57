"""The fast routes against the naive one, on tiny random checkpoints of real architectures."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from tests.support import tiny_models
from tests.support.naive import TOLERANCE, Forced, naive_logits, random_tokens, tolerance
from tests.support.tiny_models import SIZES, copied, images, in_float64, picture
from vlmgate.captioner import load_captioner
from vlmgate.captioner.local.engine import TransformersCaptioner
from vlmgate.captioner.local.fork import Warp, draw
from vlmgate.captioner.local.layers import folded_attention
from vlmgate.captioner.local.packed import PackedDecoder, _Layer
from vlmgate.captioner.local.runner import image_token_ids_of
from vlmgate.captioner.local.trials import can_pack
from vlmgate.captioner.streams import uniforms
from vlmgate.config import ModelConfig, SamplingConfig
from vlmgate.data import Picture, Sampled

K, T = 3, 10
# Decoders of which every layer keeps and sees every token, under masks that are not made by the model itself.
PACKS = ("idefics3", "internvl", "llava", "qwen2_5_vl")
ROUTES = [(family, "fork") for family in sorted(tiny_models.FAMILIES)] + [(family, "packed") for family in PACKS]

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings(
        # numpy's, at PaliGemma's processor, which turns torch tensors into arrays the old way
        "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning",
    ),
]


@pytest.fixture(scope="module", params=ROUTES, ids="-".join)
def captioner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TransformersCaptioner:
    family, route = request.param
    folder = tiny_models.build(family, tmp_path_factory.getbasetemp() / "tiny")
    engine = load_captioner(
        ModelConfig(model=str(folder), device="cpu"), SamplingConfig(num_samples=K, max_new_tokens=T)
    )
    assert isinstance(engine, TransformersCaptioner)
    assert engine.info.route == ("packed" if family in PACKS else "fork")
    engine._runner.packs = route == "packed"
    return engine


@pytest.fixture(scope="module")
def exact(captioner: TransformersCaptioner) -> TransformersCaptioner:
    """Return the same in float64, for the tests that compare tokens."""
    if "Qwen3_5" in captioner.info.architecture:
        pytest.skip("computes its linear attention in float32, in chunks that shift with padding")
    other = copied(captioner)
    other._runner.checkpoint = replace(
        captioner._runner.checkpoint, model=copy.deepcopy(captioner._runner.checkpoint.model)
    )
    in_float64(other)
    return other


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    return [picture(i, size) for i, size in enumerate(SIZES)]


def forked_logits(captioner: TransformersCaptioner, batch: list[Picture], forced: torch.Tensor) -> torch.Tensor:
    """Return the (B·K, T, V) logits of the fork route when it is made to say `forced` (B·K, T); NaN: not computed."""
    pick = Forced(forced)
    decoder = captioner._decode(images(batch), pick)
    assert isinstance(decoder, PackedDecoder) == captioner._runner.packs
    return pick.logits


def texts(readings: list[Sampled]) -> list[list[tuple[str, str, int]]]:
    return [[(c.text, c.finish, c.num_tokens) for c in reading.captions] for reading in readings]


def test_same_logits_as_the_naive_route_under_teacher_forcing(
    captioner: TransformersCaptioner, pictures: list[Picture]
) -> None:
    close = tolerance(captioner)
    forced = random_tokens(captioner, len(pictures) * K, T)
    forked = forked_logits(captioner, pictures, forced)  # all pictures in one batch
    for b, one in enumerate(pictures):
        for k in range(K):
            row = b * K + k
            naive = naive_logits(captioner, one, forced[row])
            assert torch.allclose(forked[row], naive, atol=close, rtol=close), (one.file.file_name, k)


def test_rows_that_ended_are_dropped_and_the_others_go_on_as_before(
    captioner: TransformersCaptioner, pictures: list[Picture]
) -> None:
    close = tolerance(captioner)
    forced = random_tokens(captioner, len(pictures) * K, T)
    lengths = torch.tensor([(3 * row) % T + 1 for row in range(len(forced))])  # 1 to T, in no order
    forced[torch.arange(len(forced)), lengths - 1] = min(captioner._runner.checkpoint.end_ids)
    forked = forked_logits(captioner, pictures, forced)
    computed = forked.isfinite().all(-1).sum(0)  # (T,), rows computed at each step
    assert computed[-1] < len(forced) / 2 and computed.tolist() == sorted(computed.tolist(), reverse=True)
    for row, length in enumerate(lengths.tolist()):
        naive = naive_logits(captioner, pictures[row // K], forced[row, :length])
        assert torch.allclose(forked[row, :length], naive, atol=close, rtol=close), row


def test_pictures_matter(captioner: TransformersCaptioner, pictures: list[Picture]) -> None:
    """Without this, the tests of this file could pass with every caption on the wrong image."""
    forced = random_tokens(captioner, 1, T).expand(len(pictures) * K, -1)
    logits = forked_logits(captioner, pictures, forced)[::K]  # (B, T, V)
    for a, b in pairwise(logits):
        assert (a - b).abs().mean(-1).min() > 500 * TOLERANCE  # at every step, the last one included


def test_same_tokens_as_the_naive_route_under_the_same_uniforms(
    exact: TransformersCaptioner, pictures: list[Picture]
) -> None:
    forked = exact._decode(images(pictures), exact._runner.sampler(pictures, "captions"))
    compared = 0
    for b, one in enumerate(pictures[:3]):
        stream = torch.from_numpy(uniforms(0, one.file.sha256, 1, K, T))
        for k in range(K):
            tokens, logprobs = naive_tokens(exact, one, stream[k])
            row = b * K + k
            assert forked.tokens[row][: len(tokens)] == tokens
            assert forked.logprobs[row][: len(tokens)] == pytest.approx(logprobs, abs=1e-4)
            compared += len(tokens)
    assert compared > 0.7 * 3 * K * T


def naive_tokens(
    captioner: TransformersCaptioner, one: Picture, uniform: torch.Tensor
) -> tuple[list[int], list[float]]:
    """Sample token by token until the end, or an image token: a plain forward takes no further ones."""
    tokens: list[int] = []
    logprobs: list[float] = []
    last = captioner._runner.checkpoint.end_ids | image_token_ids_of(captioner._runner.checkpoint)
    while len(tokens) < T and not (tokens and tokens[-1] in last):
        logits = naive_logits(captioner, one, torch.tensor([*tokens, 0]))[-1:]
        drawn = draw(logits, uniform[len(tokens)][None], Warp())
        tokens.append(int(drawn.tokens))
        logprobs.append(float(drawn.logprobs))
    return tokens, logprobs


def test_captions_are_the_tokens_in_words(exact: TransformersCaptioner, pictures: list[Picture]) -> None:
    decoded = exact._decode(images(pictures), exact._runner.sampler(pictures, "captions"))
    ends = exact._runner.checkpoint.end_ids
    captions = [caption for reading in exact.read(pictures) for caption in reading.captions]
    for caption, tokens, logprobs in zip(captions, decoded.tokens, decoded.logprobs, strict=True):
        words = exact._runner.checkpoint.processor.tokenizer.decode(tokens, skip_special_tokens=True)
        assert (caption.text, caption.num_tokens) == (words.strip(), len(tokens))
        assert caption.finish == ("stop" if tokens[-1] in ends else "length")
        assert len(tokens) == T or caption.finish == "stop"
        assert caption.mean_logprob == pytest.approx(np.mean(logprobs), abs=1e-6)


def test_same_captions_whatever_the_batch_and_the_order(exact: TransformersCaptioner, pictures: list[Picture]) -> None:
    together = exact.read(pictures)
    alone = [exact.read([one])[0] for one in pictures]
    order = [3, 0, 4, 1, 2]
    shuffled = exact.read([pictures[i] for i in order])
    assert texts(together) == texts(alone)
    assert texts([together[i] for i in order]) == texts(shuffled)
    for a, b in zip(together, alone, strict=True):
        assert [c.mean_logprob for c in a.captions] == pytest.approx([c.mean_logprob for c in b.captions], abs=1e-5)


def test_no_caption_lands_on_another_image(exact: TransformersCaptioner) -> None:
    """All pictures have one name, hence the same uniforms: only the pixels tell their captions apart."""
    same_name = [picture(0, size, content=i) for i, size in enumerate(SIZES)]
    readings = texts(exact.read(same_name))
    assert readings == [texts(exact.read([one]))[0] for one in same_name]
    assert len({str(reading) for reading in readings}) == len(same_name)


def test_captions_of_one_image_differ_from_each_other(exact: TransformersCaptioner, pictures: list[Picture]) -> None:
    for reading in exact.read(pictures):
        assert len({caption.text for caption in reading.captions}) == K


def test_float32_gives_the_same_captions_but_for_a_rare_draw_on_a_border(
    captioner: TransformersCaptioner, pictures: list[Picture]
) -> None:
    together = captioner.read(pictures)
    alone = [captioner.read([one])[0] for one in pictures]
    pairs = [(a, b) for x, y in zip(together, alone, strict=True) for a, b in zip(x.captions, y.captions, strict=True)]
    different = sum(a.text != b.text for a, b in pairs)
    assert different <= 1


# --- packed -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> TransformersCaptioner:
    folder = tiny_models.build("llava", tmp_path_factory.getbasetemp() / "tiny")
    engine = load_captioner(
        ModelConfig(model=str(folder), device="cpu"), SamplingConfig(num_samples=8, max_new_tokens=T)
    )
    assert isinstance(engine, TransformersCaptioner)
    return engine


def test_packed_draws_what_fork_draws(llava: TransformersCaptioner, pictures: list[Picture]) -> None:
    exact = copied(llava)
    exact._runner.checkpoint = replace(llava._runner.checkpoint, model=copy.deepcopy(llava._runner.checkpoint.model))
    in_float64(exact)
    both = []
    for exact._runner.packs in (False, True):
        done = exact._decode(images(pictures), exact._runner.sampler(pictures, "captions"))
        both.append((done.tokens, done.finite, [round(sum(row), 6) for row in done.logprobs]))
    assert both[0] == both[1]


def test_packed_keeps_one_cache_for_all_branches(
    llava: TransformersCaptioner, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[_Layer] = []
    real = _Layer.__init__

    def spy(layer: _Layer, *arguments: object) -> None:
        real(layer, *arguments)
        made.append(layer)

    monkeypatch.setattr(_Layer, "__init__", spy)
    prompt = llava._runner.encode(images(pictures))["input_ids"].shape[1]
    forced = random_tokens(llava, len(pictures) * 8, T)
    llava._decode(images(pictures), Forced(forced))
    assert {tuple(layer.keys.shape) for layer in made} == {(len(pictures), 2, prompt + 8 * (T - 1), 12)}


def test_query_heads_of_a_group_share_one_product() -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 6, 4, 8, generator=generator)
    key, value = torch.randn(2, 2, 2, 9, 8, generator=generator).unbind(0)
    mask = torch.rand(2, 1, 4, 9, generator=generator) < 0.6
    mask[..., 0] = True
    got, _ = folded_attention(torch.nn.Module(), query, key, value, mask, scaling=0.3)
    repeated = (part.repeat_interleave(3, dim=1) for part in (key, value))
    want = torch.nn.functional.scaled_dot_product_attention(query, *repeated, attn_mask=mask, scale=0.3)
    assert torch.allclose(got, want.transpose(1, 2), atol=1e-6)


@pytest.mark.parametrize("heads", [2, 6])
def test_attention_by_products_is_attention(heads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, heads, 4, 16, generator=generator).bfloat16()
    key, value = torch.randn(2, 2, 2, 50, 16, generator=generator).bfloat16().unbind(0)
    key, value = key[:, :, :30], value[:, :, :30]  # a part of a buffer, as in the cache
    mask = torch.rand(2, 1, 4, 30, generator=generator) < 0.6
    mask[..., 0] = True
    got, _ = folded_attention(torch.nn.Module(), query, key, value, mask, scaling=0.3)
    repeated = (part.double().repeat_interleave(heads // 2, dim=1) for part in (key, value))
    want = torch.nn.functional.scaled_dot_product_attention(query.double(), *repeated, attn_mask=mask, scale=0.3)
    assert (got.double() - want.transpose(1, 2)).abs().max() < 0.03  # of numbers around 1, in bfloat16


def test_a_model_that_packs_wrongly_falls_back_to_fork(
    llava: TransformersCaptioner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch, "eye", lambda n, **more: torch.ones(n, n, **more))  # branches see one another
    with caplog.at_level("INFO"):
        assert not can_pack(llava._runner)
    assert "the captions would come out differently" in caplog.text


def test_attention_is_as_before_once_the_captions_are_drawn(
    llava: TransformersCaptioner, pictures: list[Picture]
) -> None:
    llava.read(pictures[:1])
    assert llava._runner.checkpoint.model.config.get_text_config()._attn_implementation == "sdpa"
