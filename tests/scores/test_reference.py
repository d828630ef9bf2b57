"""Novelty in a scan: a folder that the model is meant for, read once, and what lies far from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import vlmgate.gate.run_gate
from tests.support.fakes import AGREE, DISAGREE, FakeCaptioner, SilentProgress, config_for, folder_of, picture_file
from vlmgate.captioner.location import weights_digest
from vlmgate.config import ImageConfig, ModelConfig, ScanConfig
from vlmgate.data import Picture, Reason, Record, Route, Sampled
from vlmgate.errors import ConfigError, GateError, NoImagesError, NoveltyError
from vlmgate.gate.rules import make_gate
from vlmgate.gate.run_gate import RunGate
from vlmgate.run.loop import scan
from vlmgate.run.rescore import rescore
from vlmgate.scores.diversity import load_kernel
from vlmgate.scores.novelty import Reference, checkpoint_reference, pack
from vlmgate.store.result import read_provenance, read_result

KNOWN = tuple(f"known_{i:02d}.png" for i in range(30))
SCANNED = ("part_1.png", "part_2.png", "fish.png")


def features(name: str) -> tuple[float, ...]:
    """Return features that vary a little from part to part and are elsewhere for a fish."""
    rng = np.random.default_rng(list(name.encode()))
    return tuple(rng.normal(50.0 if "fish" in name else 0.0, 1.0, 6))


def run(config: ScanConfig, fake: FakeCaptioner | None = None) -> dict[str, Record]:
    fake = fake or FakeCaptioner(features=features)
    return {r.file_name: r for r in scan(config, SilentProgress(), load=fake.load).records}


@pytest.fixture
def config(tmp_path: Path) -> ScanConfig:
    folder_of(tmp_path / "good", *KNOWN)
    folder_of(tmp_path / "in", *SCANNED)
    return config_for(tmp_path / "in", tmp_path / "r.parquet", reference=tmp_path / "good", limits=("novelty <= 1.5",))


def test_what_lies_far_from_the_reference_is_for_a_person_however_sure_the_model(config: ScanConfig) -> None:
    rows = run(config)
    assert {name for name, r in rows.items() if r.route == Route.HUMAN_REVIEW} == {"fish.png"}
    fish = rows["fish.png"]
    assert (fish.reason, fish.decided_by, fish.threshold) == (Reason.BEYOND_LIMIT, "novelty", 1.5)
    assert fish.vendi_score == 1.0 and fish.novelty is not None and fish.novelty > 10
    assert read_provenance(config.out)["reference"] == {
        "folder": config.reference.resolve().as_posix(),  # type: ignore[union-attr]
        "images": 30,
        "method": "mahalanobis",
    }


def test_doubt_is_the_vendi_score_of_what_is_familiar_and_more_of_what_is_not(
    config: ScanConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    unsure = FakeCaptioner(lambda name: DISAGREE if name == "part_2.png" else AGREE, features=features)
    rows = run(replace(config, limits=(), score="doubt", threshold=1.5), unsure)
    sure, split, fish = (rows[name] for name in ("part_1.png", "part_2.png", "fish.png"))
    assert sure.novelty is not None and sure.novelty <= 1 and fish.novelty is not None
    assert (sure.doubt, split.doubt, fish.doubt) == (1.0, split.vendi_score, 1.0 + 4)
    assert {name for name, r in rows.items() if r.route == Route.HUMAN_REVIEW} == {"part_2.png", "fish.png"}
    records, provenance = read_result(config.out)
    again = rescore(
        records,
        provenance,
        make_gate(num_samples=4, score="doubt", threshold=1.5),
        load_kernel("findings"),
        kernel_name="findings",
        source=config.out,
    )
    assert again.records == records
    monkeypatch.setattr(vlmgate.gate.run_gate, "checkpoint_reference", lambda _: None)
    with pytest.raises(GateError, match="doubt needs a distance from a reference"):
        run(replace(config, reference=None, limits=(), score="doubt", threshold=1.5))


def test_the_reference_is_read_once_and_again_when_it_changes(config: ScanConfig) -> None:
    first = FakeCaptioner(features=features)
    before = run(config, first)
    assert first.read_names == [*KNOWN, *sorted(SCANNED)]
    again = FakeCaptioner(features=features)
    assert {n: r.novelty for n, r in run(config, again).items()} == {n: r.novelty for n, r in before.items()}
    assert not again.history
    picture_file(config.reference / "known_99.png")  # type: ignore[operator]
    run(config, again)
    assert again.read_names == [*KNOWN, "known_99.png"]


def test_a_reference_named_later_needs_no_image_read_again(config: ScanConfig) -> None:
    assert run(replace(config, reference=None, limits=()))["fish.png"].novelty is None
    fake = FakeCaptioner(features=features)
    rows = run(config, fake)
    assert fake.read_names == list(KNOWN) and rows["fish.png"].reason == Reason.BEYOND_LIMIT


def test_a_damaged_reference_is_read_again(config: ScanConfig) -> None:
    run(config)
    config.out.with_suffix(".reference.npz").write_bytes(b"PK torn")
    fake = FakeCaptioner(features=features)
    assert run(config, fake)["fish.png"].reason == Reason.BEYOND_LIMIT
    assert fake.read_names == list(KNOWN)


def test_images_whose_features_are_unknown_are_not_accepted_under_a_limit(config: ScanConfig) -> None:
    fake = FakeCaptioner(features=lambda name: None if name == "part_1.png" else features(name))
    row = run(config, fake)["part_1.png"]
    assert (row.route, row.reason, row.decided_by) == (Route.HUMAN_REVIEW, Reason.NO_SCORE, "novelty")


def test_an_image_of_the_reference_that_cannot_be_read_costs_nobody_else(config: ScanConfig) -> None:
    class Picky(FakeCaptioner):
        def read(self, pictures: Sequence[Picture]) -> list[Sampled]:
            if any(p.file.file_name == KNOWN[3] for p in pictures):
                raise RuntimeError("too small")
            return super().read(pictures)

    (config.reference / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")  # type: ignore[operator]
    run(config, Picky(features=features))
    assert read_provenance(config.out)["reference"]["images"] == 29


def test_a_reference_is_not_made_of_what_a_share_left_of_it(config: ScanConfig) -> None:
    def lose(name: str) -> tuple[float, ...]:
        if good.exists():
            good.rename(good.with_name("away"))
        return features(name)

    good = config.reference
    assert good is not None
    fake = FakeCaptioner(features=lose)
    result = scan(replace(config, images=ImageConfig(workers=1)), SilentProgress(), load=fake.load)
    assert "vanished while the reference was read; run again" in str(result.error)
    good.with_name("away").rename(good)
    run(config)
    assert read_provenance(config.out)["reference"]["images"] == 30


def test_an_engine_without_features_is_told_before_the_night_is_spent(config: ScanConfig) -> None:
    fake = FakeCaptioner()
    result = scan(config, SilentProgress(), load=fake.load)
    assert isinstance(result.error, NoveltyError) and "shows no vision features" in str(result.error)
    assert [r.reason for r in result.records] == [Reason.NOT_READ] * 3
    assert not set(fake.read_names) & set(SCANNED)


def test_a_reference_that_is_not_there_is_a_wrong_command(config: ScanConfig, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoImagesError, match="--reference"):
        run(replace(config, reference=tmp_path / "empty"))


def test_what_the_checkpoint_carries_serves_without_a_folder(
    config: ScanConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    carried = Reference.fit([features(name) for name in KNOWN])
    other = Reference.fit(np.random.default_rng(0).normal(size=(20, 9)))  # of features of another length
    for reference, novel in ((carried, True), (other, False), (None, False)):
        monkeypatch.setattr(vlmgate.gate.run_gate, "checkpoint_reference", lambda _, found=reference: found)
        rows = run(replace(config, reference=None, limits=()))
        assert (rows["fish.png"].novelty is not None) == novel
    with pytest.raises(GateError, match="carries none"):
        run(replace(config, reference=None))


def test_a_checkpoint_folder_may_carry_its_reference(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    model = ModelConfig(model=str(folder))
    assert checkpoint_reference(model) is None
    reference = Reference.fit([features(name) for name in KNOWN])
    replace(reference, weights=weights_digest(folder)).save(folder / "novelty.npz")
    found = checkpoint_reference(model)
    assert found is not None and found.count == 30
    (folder / "config.json").write_text('{"more": 1}')
    assert checkpoint_reference(model) is not None, "it is of the weights, whatever else changes"
    (folder / "model.safetensors").write_bytes(b"trained on")
    with pytest.raises(ConfigError, match=r"novelty\.npz: was made with other weights. Delete it"):
        checkpoint_reference(model)
    reference.save(folder / "novelty.npz")
    with pytest.raises(ConfigError, match="does not say which weights it was made with"):
        checkpoint_reference(model)


def test_an_image_must_be_familiar_to_both_references() -> None:
    near, far = (Reference.fit([features(name) for name in KNOWN]) for _ in range(2))
    far = replace(far, mean=far.mean + 100)
    packed = [pack(features(name)) for name in (*KNOWN[:3], "fish.png")]
    both = replace(near, also=far).novelty_of(packed)
    assert np.array_equal(both, np.maximum(near.novelty_of(packed), far.novelty_of(packed)))
    assert (both > 1).all() and not (near.novelty_of(packed[:3]) > 1).any()
    short = replace(far, mean=far.mean[:1], scale=far.scale[:1], rows=far.rows[:, :1])
    assert np.isnan(replace(near, also=short).novelty_of(packed)).all(), "unknown to one of them is unknown"
    assert RunGate(make_gate(num_samples=4, threshold=2.0), own=far).reference(near) is not None
    assert RunGate(make_gate(num_samples=4, threshold=2.0), own=far).reference() is far
