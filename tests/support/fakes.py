"""A captioner without a model, and folders of small images: what most tests of the line are made of."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlmgate.config import ModelConfig, SamplingConfig, ScanConfig
from vlmgate.data import Caption, ModelInfo, Picture, Sampled

AGREE = ("a steel washer without visible defects",)
DISAGREE = (
    "a brass gear with a dent",
    "a copper plate with a crack",
    "one hex nut",
    "some rust at the top",
    "scratches",
)


class FakeCaptioner:
    """Says what `say` returns for a file name, cycled to K captions; `history` tells the batches it was given.

    Asked a question, it says what `answer` returns for the file name, cycled to K answers, each as probable as it is
    frequent.
    """

    def __init__(
        self,
        say: Callable[[str], Sequence[str | Caption]] = lambda _: AGREE,
        *,
        answer: Callable[[str], Sequence[str | Caption]] = lambda _: ("unsure",),
        features: Callable[[str], tuple[float, ...] | None] = lambda _: None,
        dtype: str = "float32",
    ) -> None:
        self.say, self.answer, self.features, self.dtype = say, answer, features, dtype
        self.history: list[list[str]] = []
        self.sampling = SamplingConfig()
        self.num_samples = 0  # until it is loaded
        self.model = "fake"  # likewise

    def load(self, model: ModelConfig, sampling: SamplingConfig) -> FakeCaptioner:
        self.model = model.model
        self.sampling, self.num_samples = sampling, sampling.num_samples
        return self

    def with_samples(self, num_samples: int) -> FakeCaptioner:
        other = copy.copy(self)
        other.history, other.sampling = [], replace(self.sampling, num_samples=num_samples)
        return other

    @property
    def info(self) -> ModelInfo:
        return ModelInfo(self.model, None, "Fake", 1, "cpu", self.dtype, "FakeProcessor", "fork", {})

    @property
    def read_names(self) -> list[str]:
        return [name for batch in self.history for name in batch]

    def read(self, pictures: Sequence[Picture]) -> list[Sampled]:
        names = [picture.file.file_name for picture in pictures]
        self.history.append(names)
        return [self._sampled(name) for name in names]

    def look(self, pictures: Sequence[Picture]) -> list[tuple[float, ...] | None]:
        return [sampled.features for sampled in self.read(pictures)]

    def _sampled(self, name: str) -> Sampled:
        samples, views = self.sampling.num_samples, self.sampling.views
        return Sampled(
            captions=self._cycled(self.say(name)),
            answers=self._cycled(_as_probable(self.answer(name))) if self.sampling.question else None,
            features=self.features(name),
            views=tuple(k * views // samples for k in range(samples)) if views > 1 else None,
        )

    def _cycled(self, said: Sequence[str | Caption]) -> tuple[Caption, ...]:
        return tuple(_as_caption(said[i % len(said)]) for i in range(self.sampling.num_samples))


class InRounds(FakeCaptioner):
    """A fake that stops where it is told that it may."""

    def read_in_rounds(
        self,
        pictures: Sequence[Picture],
        looks: Sequence[int],
        enough: Callable[[Picture, Sampled], bool],
        prepared: Any = None,
    ) -> list[Sampled]:
        found = []
        for picture, whole in zip(pictures, self.read(pictures), strict=True):
            for look in looks:
                answers = whole.answers
                if answers is not None and answers[0].finish != "scored":  # one a sample
                    answers = answers[:look]
                drawn = replace(whole, captions=whole.captions[:look], answers=answers)
                if enough(picture, drawn):
                    break
            found.append(drawn)
        return found


def _as_probable(answers: Sequence[str | Caption]) -> list[str | Caption]:
    """Return answers that are as probable as they are frequent."""
    return [
        Caption(one, "stop", math.log(answers.count(one) / len(answers)) / (len(one.split()) + 1), len(one.split()) + 1)
        if isinstance(one, str)
        else one
        for one in answers
    ]


def _as_caption(said: str | Caption) -> Caption:
    return said if isinstance(said, Caption) else Caption(said, "stop", -0.25, len(said.split()) + 1)


class SilentProgress:
    """Keeps what a person would have been told."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.advanced = 0

    def header(self, *_: object) -> None: ...
    def start(self, total: int, done: int) -> None:
        self.total, self.done = total, done

    def advance(self, images: int) -> None:
        self.advanced += images

    def message(self, text: str) -> None:
        self.messages.append(text)

    def stop(self) -> None: ...


def picture_file(path: Path, *, size: tuple[int, int] = (12, 9), salt: str = "") -> Path:
    """Write a small image whose pixels follow from its path, so that no two files are equal by accident."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = int.from_bytes(hashlib.sha256(f"{path.name}{path.parent.name}{salt}".encode()).digest()[:8])
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def folder_of(path: Path, *names: str) -> Path:
    for name in names:
        picture_file(path / name)
    return path


def config_for(folder: Path, out: Path, *, batch_size: int = 4, num_samples: int = 4, **changes: object) -> ScanConfig:
    """Return a configuration whose checkpoint fingerprint is that of the built-in model; the fake reads instead."""
    sampling = SamplingConfig(num_samples=num_samples, batch_size=batch_size)
    return ScanConfig(folder=folder, out=out, sampling=sampling, **changes)  # type: ignore[arg-type]


def let_it_read(captioner: FakeCaptioner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every command read with a fake, and split by the default rather than by what was measured on the real one."""
    import vlmgate.calibration.compare.run
    import vlmgate.calibration.run
    import vlmgate.gate.run_gate
    import vlmgate.run.loop

    run_comparison = vlmgate.calibration.compare.run.run_comparison
    for function in (vlmgate.run.loop.scan, vlmgate.calibration.run.calibrate, run_comparison):
        monkeypatch.setattr(function, "__kwdefaults__", {**function.__kwdefaults__, "load": captioner.load})
    monkeypatch.setattr(vlmgate.gate.run_gate, "own_limits", lambda sampling, kernel: ())
    monkeypatch.setattr(vlmgate.gate.run_gate, "checkpoint_reference", lambda model: None)
