"""Samples that are drawn a few at a time are the first of those that are drawn at once, for every family."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import tiny_models
from tests.support.tiny_models import SIZES, in_float64, picture
from vlmgate.captioner import DrawsInRounds, Prepares, Timed, load_captioner
from vlmgate.captioner.local.engine import TransformersCaptioner
from vlmgate.config import ModelConfig, SamplingConfig
from vlmgate.data import Picture, Sampled

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings(
        # numpy's, at PaliGemma's processor, which turns torch tensors into arrays the old way
        "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning",
    ),
]
PICTURES = [picture(i, size) for i, size in enumerate(SIZES)]
WANTED = {p.file.file_name: (2, 6, 3, 5, 2)[i % 5] for i, p in enumerate(PICTURES)}
LOOKS = (2, 3, 5, 6)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "tiny"


def load(family: str, root: Path, question: str | None = None) -> TransformersCaptioner:
    asked = {"question": question, "choices": ("ok", "scratch")} if question else {}
    sampling = SamplingConfig(num_samples=6, max_new_tokens=8, max_answer_tokens=4, **asked)  # type: ignore[arg-type]
    engine = load_captioner(ModelConfig(model=str(tiny_models.build(family, root)), device="cpu"), sampling)
    assert isinstance(engine, TransformersCaptioner)
    in_float64(engine)
    return engine


def enough(one: Picture, sampled: Sampled) -> bool:
    assert sampled.answers is None or len(sampled.answers) == len(sampled.captions)
    return len(sampled.captions) >= WANTED[one.file.file_name]


@pytest.mark.parametrize("family", [f for f in tiny_models.FAMILIES if f != "qwen3_5"])
def test_every_family_draws_the_first_of_its_samples(family: str, root: Path) -> None:
    engine = load(family, root)
    drawn = engine.read_in_rounds(PICTURES, LOOKS, enough)
    assert [len(one.captions) for one in drawn] == list(WANTED.values())
    for one, whole in zip(drawn, engine.read(PICTURES), strict=True):
        assert one.captions == whole.captions[: len(one.captions)] and one.features == whole.features


@pytest.mark.parametrize(("family", "stops"), [("llava", True), ("qwen2_5_vl", True), ("gemma3", False)])
def test_answers_are_drawn_along_where_they_share_the_prefill(family: str, stops: bool, root: Path) -> None:
    engine = load(family, root, "Is it ok?")
    drawn = engine.read_in_rounds(PICTURES, LOOKS, enough)
    assert [len(one.captions) for one in drawn] == (list(WANTED.values()) if stops else [6] * len(PICTURES))
    for one, whole in zip(drawn, engine.read(PICTURES), strict=True):
        k = len(one.captions)
        assert whole.answers is not None and (one.captions, one.answers) == (whole.captions[:k], whole.answers[:k])


def test_pictures_prepared_ahead_are_drawn_the_same_and_too_many_are_parted(root: Path) -> None:
    engine = load("llava", root)
    expected = engine.read_in_rounds(PICTURES, LOOKS, enough)
    assert engine.read_in_rounds(PICTURES, LOOKS, enough, engine.prepare(PICTURES)) == expected
    engine.at_once = 2
    assert engine.read_in_rounds(PICTURES, LOOKS, enough) == expected


def test_the_engine_keeps_to_the_protocols(root: Path) -> None:
    engine = load("llava", root)
    assert isinstance(engine, DrawsInRounds) and isinstance(engine, Prepares) and isinstance(engine, Timed)
