"""The bench of promises draws what the sample images were drawn like, and counts as a plant would."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.bench import frames, promise
from tests.support.fakes import FakeCaptioner, let_it_read
from vlmgate.calibration.labels import read_labels
from vlmgate.calibration.readings import join
from vlmgate.factory.world import CONDITIONS
from vlmgate.store.result import read_result


def truth(name: str) -> str:
    folder, _, rest = name.rpartition("/")
    return folder.replace("_", " ") if folder else CONDITIONS[int(rest.split(".")[0]) % len(CONDITIONS)]


def unsure(name: str) -> bool:
    return int(name.split(".")[0][-3:]) % 4 == 0


@pytest.fixture
def sure_of_two_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read everything as it is, some of it hesitantly, and two of the fresh images wrong without hesitation."""

    def answer(name: str) -> tuple[str, ...]:
        wrong = CONDITIONS[(CONDITIONS.index(truth(name)) + 1) % len(CONDITIONS)]
        if name in ("00001.jpg", "00002.jpg"):
            return (wrong,)
        return (truth(name), wrong, wrong) if unsure(name) else (truth(name),)

    # The captions say what the answers do: one that disputes its answer is never accepted.
    captioner = FakeCaptioner(say=lambda name: (f"a part with {answer(name)[0]}",), answer=answer)
    let_it_read(captioner, monkeypatch)


def test_what_is_accepted_is_compared_with_the_truth(
    sure_of_two_lies: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--repeats", "1", "--images", "24", "--cache", str(tmp_path / "c"), "--json", str(tmp_path / "p.json")]
    code = promise.main(arguments)
    told = json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))
    (row,) = told["rows"]
    assert (row["images"], row["accepted"], row["wrong"], row["target"]) == (24, 18, 2, 0.1)
    assert code == 1 and not row["kept"]  # two of eighteen are more than a tenth
    assert "kept 0 of 1" in capsys.readouterr().out
    assert promise.main(arguments) == 1  # what was read is there already


def test_images_follow_from_their_seed(tmp_path: Path) -> None:
    one, other = promise.draw(tmp_path / "a", 1, 3), promise.draw(tmp_path / "b", 2, 3)
    assert one == other == {f"{i:05d}.jpg": CONDITIONS[i] for i in range(3)}
    assert (tmp_path / "a" / "00000.jpg").read_bytes() != (tmp_path / "b" / "00000.jpg").read_bytes()
    again = promise.draw(tmp_path / "c", 1, 3)
    assert again == one
    assert (tmp_path / "c" / "00001.jpg").read_bytes() == (tmp_path / "a" / "00001.jpg").read_bytes()


# --- frames of a part -------------------------------------------------------------------------------------------------


@pytest.fixture
def unsure_of_some_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read all frames of a part alike; of a fifth of the parts wrong, and those mostly with doubt."""

    def answer(name: str) -> tuple[str, ...]:
        part, frame = (int(text) for text in name.removeprefix("part").removesuffix(".png").split("_frame"))
        right = CONDITIONS[part % len(CONDITIONS)]
        wrong = CONDITIONS[(part + 1) % len(CONDITIONS)]
        if part % 5:
            return (right,)
        return (wrong,) if part % 10 == 0 and frame == 0 else (wrong, right, wrong, wrong)

    captioner = FakeCaptioner(say=lambda name: (f"a part with {answer(name)[0]}",), answer=answer)
    let_it_read(captioner, monkeypatch)


def test_frames_are_drawn_once_and_counted_by_part(
    unsure_of_some_parts: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--cache", str(tmp_path), "--parts", "24", "--frames", "3", "--calibrations", "6", "--naive", "6"]
    arguments += ["--settings", "60:0.2", "--json", str(tmp_path / "f.json")]
    frames.main(arguments)
    by_part, by_frame = json.loads((tmp_path / "f.json").read_text(encoding="utf-8"))["rows"]
    assert (by_part["counted"], by_frame["counted"]) == ("part", "frame")
    assert by_part["calibrations"] == 6 and 0 <= by_part["promised"] <= 6
    assert max(by_part["broken_by_image"], by_part["broken_by_part"]) <= by_part["promised"]
    assert "look like" in capsys.readouterr().out
    first = {path.name: path.read_bytes() for path in (tmp_path / "burst_24_10").glob("part0001_*.png")}
    assert len(set(first.values())) == 10  # near copies, none exact


def test_a_calibration_of_the_bench_knows_the_truth(unsure_of_some_parts: None, tmp_path: Path) -> None:
    """One part in ten has one frame in ten that is wrong without a doubt: a hundredth by image, a ninth by part."""
    folder = frames.burst(tmp_path, 20)
    promise.calibrated(folder, tmp_path / "g.toml")
    records, provenance = read_result(tmp_path / "g.parquet")
    pool = frames.pool_of(join(records, provenance, read_labels(folder)))
    rng = np.random.default_rng(0)
    found = frames.one_calibration(pool, rng, 600, 10, 0.18, grouped=True)
    assert found is not None and found[0] == pytest.approx(2 / 162) and found[1] == pytest.approx(2 / 18)
