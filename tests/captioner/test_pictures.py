"""Noised views: what they are, and which sample is drawn from which."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support import tiny_models
from tests.support.tiny_models import SIZES, in_float64, picture
from vlmgate.captioner import load_captioner
from vlmgate.captioner.local.engine import TransformersCaptioner
from vlmgate.captioner.streams import CELLS, views_of
from vlmgate.config import ModelConfig, SamplingConfig
from vlmgate.data import Caption, Picture
from vlmgate.errors import ConfigError

K, V = 4, 2
NOISE = 60.0  # strong enough for weights as random as these
PICTURES = [picture(i, size) for i, size in enumerate(SIZES)]


def grey(size: tuple[int, int], value: int = 128) -> Picture:
    return dataclasses.replace(PICTURES[0], rgb=Image.new("RGB", size, (value, value, value)))


class TestNoise:
    def test_the_first_view_is_the_picture_itself_and_the_others_are_noised(self) -> None:
        first, second, third = views_of(grey((300, 200)), 3, 20.0, seed=0)
        assert first is not None and np.array_equal(np.asarray(first), np.full((200, 300, 3), 128))
        for view in (second, third):
            noise = np.asarray(view).astype(float) - 128
            assert noise.std() == pytest.approx(20, rel=0.02) and abs(noise.mean()) < 0.3
            assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 0.05
        assert not np.array_equal(np.asarray(second), np.asarray(third))

    def test_it_hangs_on_the_image_and_the_seed_alone(self) -> None:
        one = np.asarray(views_of(grey((30, 20)), 2, 20.0, seed=0)[1])
        assert np.array_equal(one, np.asarray(views_of(grey((30, 20)), 5, 20.0, seed=0)[1]))
        assert not np.array_equal(one, np.asarray(views_of(grey((30, 20)), 2, 20.0, seed=1)[1]))
        other = dataclasses.replace(grey((30, 20)), file=PICTURES[1].file)
        assert not np.array_equal(one, np.asarray(views_of(other, 2, 20.0, seed=0)[1]))

    def test_it_stays_within_the_range_and_leaves_the_picture_alone(self) -> None:
        white = grey((40, 40), 255)
        noised = np.asarray(views_of(white, 2, 20.0, seed=0)[1])
        assert noised.min() < 250 and noised.max() == 255
        assert np.asarray(white.rgb).min() == 255

    def test_it_survives_the_shrinking_of_large_pictures(self) -> None:
        """Noise of single pixels would be averaged to 20 / 8."""
        view = views_of(grey((8 * CELLS, 300)), 2, 20.0, seed=0)[1]
        small = np.asarray(view.resize((CELLS, 37), Image.Resampling.BOX)).astype(float)
        assert small.std() > 12

    def test_any_shape_will_do(self) -> None:
        for size in ((1, 1), (1, 1500), (513, 511), (1025, 700)):
            assert views_of(grey(size), 2, 20.0, seed=0)[1].size == size


def load(root: Path, **changes: Any) -> TransformersCaptioner:
    settings: dict[str, Any] = {"num_samples": K, "max_new_tokens": 8, "view_noise": NOISE} | changes
    engine = load_captioner(
        ModelConfig(model=str(tiny_models.build("idefics3", root)), device="cpu"), SamplingConfig(**settings)
    )
    assert isinstance(engine, TransformersCaptioner)
    in_float64(engine)
    return engine


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "tiny"


@pytest.fixture(scope="module")
def asked(root: Path) -> TransformersCaptioner:
    return load(root, views=V, question="Which is it?", choices=("ok", "scratch"), max_answer_tokens=4)


def words(texts: tuple[Caption, ...] | None) -> list[str]:
    return [text.text for text in texts or ()]


def test_each_sample_is_drawn_from_its_view(root: Path, asked: TransformersCaptioner) -> None:
    """The views as pictures of their own, read without views, under the same name and hence the same streams."""
    plain = load(root, question="Which is it?", choices=("ok", "scratch"), max_answer_tokens=4)
    noised = [dataclasses.replace(one, rgb=views_of(one, V, NOISE, 0)[1]) for one in PICTURES]
    clean, other, mixed = plain.read(PICTURES), plain.read(noised), asked.read(PICTURES)
    for a, b, both in zip(clean, other, mixed, strict=True):
        assert both.views == (0, 0, 1, 1)
        assert words(both.captions) == [*words(a.captions)[:2], *words(b.captions)[2:]]
        assert words(both.answers) == [*words(a.answers)[:2], *words(b.answers)[2:]]
    changed = sum(words(a.captions)[2:] != words(b.captions)[2:] for a, b in zip(clean, other, strict=True))
    assert changed >= 3  # else the noise would not matter


def test_features_are_those_of_the_clean_view(root: Path, asked: TransformersCaptioner) -> None:
    for one, plain in zip(asked.read(PICTURES), load(root).read(PICTURES), strict=True):
        assert one.features == pytest.approx(plain.features, abs=1e-4)
        assert plain.views is None


def test_same_samples_whatever_the_batch(asked: TransformersCaptioner) -> None:
    together = asked.read(PICTURES)
    for one, both in zip(PICTURES, together, strict=True):
        (alone,) = asked.read([one])
        assert (words(alone.captions), words(alone.answers)) == (words(both.captions), words(both.answers))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"views": 3}, "views is 3; allowed: 1 or more that divides num_samples (8)"),
        ({"views": 0}, "views is 0"),
        ({"view_noise": 0.0}, "view_noise is 0.0"),
        ({"question": " ", "choices": ("a", "b")}, "question is ' '"),
        ({"question": "Which?"}, "choices is ()"),
        ({"question": "Which?", "choices": ("a", "A ")}, "two or more different ones"),
        ({"choices": ("a", "b")}, "none without a question"),
        ({"max_answer_tokens": 0}, "max_answer_tokens is 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SamplingConfig(**changes)
    assert says in str(caught.value)
