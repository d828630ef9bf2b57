"""Novelty: a distance whose unit is the reference's own strangeness."""

from __future__ import annotations

import contextlib
import zipfile
from pathlib import Path

import numpy as np
import pytest

from vlmgate.errors import NoveltyError
from vlmgate.scores.novelty import Method, Reference

METHODS: tuple[Method, ...] = ("mahalanobis", "knn")


def parts(count: int, size: int, *, seed: int = 0, centre: float = 0.0) -> np.ndarray:
    """Return features that vary in a few directions at scales of their own, as those of one line's parts do."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(6, size))
    scales = np.geomspace(0.01, 100, size)
    return np.asarray((rng.normal(size=(count, 6)) @ mixing + 0.2 * rng.normal(size=(count, size)) + centre) * scales)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("count", "size"), [(400, 24), (60, 300)])
def test_a_hundredth_of_what_is_familiar_lies_beyond_one(method: Method, count: int, size: int) -> None:
    reference = Reference.fit(parts(count, size), method)
    familiar = reference.novelty(parts(2000, size, seed=1))
    strange = reference.novelty(parts(200, size, seed=2, centre=4.0))
    assert familiar.min() >= 0
    assert 0.0 <= (familiar > 1).mean() <= 0.05  # with 60 images the hundredth is a guess, but a near one
    assert 0.5 < np.quantile(familiar, 0.99) < 1.3
    assert (strange > 1).all()
    assert reference.count == count


@pytest.mark.parametrize("method", METHODS)
def test_the_unit_of_a_feature_does_not_matter(method: Method) -> None:
    units = np.geomspace(1e-3, 1e3, 24)
    plain = Reference.fit(parts(200, 24), method).novelty(parts(20, 24, seed=1))
    scaled = Reference.fit(parts(200, 24) * units, method).novelty(parts(20, 24, seed=1) * units)
    np.testing.assert_allclose(plain, scaled, rtol=1e-6)


@pytest.mark.parametrize(("count", "size"), [(300, 12), (20, 80)])
def test_mahalanobis_is_that_of_the_shrunk_covariance(count: int, size: int) -> None:
    """Against the textbook: invert the matrix; for fewer rows than features only the shortcut differs."""
    features, others = parts(count, size), parts(5, size, seed=3)
    reference = Reference.fit(features)
    points = (features - features.mean(axis=0)) / features.std(axis=0)
    covariance = points.T @ points / count
    level = np.trace(covariance) / size
    spread = ((covariance - level * np.eye(size)) ** 2).sum()
    noise = sum(((np.outer(p, p) - covariance) ** 2).sum() for p in points) / count**2
    share = max(1e-3, min(1.0, noise / spread))
    inverse = np.linalg.inv((1 - share) * covariance + share * level * np.eye(size))
    apart = (others - features.mean(axis=0)) / features.std(axis=0)
    expected = np.sqrt(np.einsum("md,de,me->m", apart, inverse, apart))
    np.testing.assert_allclose(reference.novelty(others) * reference.unit, expected, rtol=1e-6)


def test_the_neighbours_tell_two_kinds_of_parts_from_what_lies_between() -> None:
    rng = np.random.default_rng(0)
    kinds = np.concatenate([rng.normal(-10, 1, (100, 8)), rng.normal(10, 1, (100, 8))])
    between = rng.normal(0, 1, (20, 8))
    assert (Reference.fit(kinds, "knn").novelty(between) > 2).all()
    assert (Reference.fit(kinds).novelty(between) < 1).all(), "one Gaussian cannot know"


@pytest.mark.parametrize("method", METHODS)
def test_a_feature_that_never_varied_and_equal_rows_break_nothing(method: Method) -> None:
    features = parts(50, 10)
    features[:, 3] = 0.5
    reference = Reference.fit(features, method)
    odd = features[:1].copy()
    odd[0, 3] = 5.0 * features.std()
    assert reference.novelty(odd)[0] > 1 > reference.novelty(features[:1])[0]
    same = Reference.fit(np.ones((10, 4)), method)
    assert same.novelty(np.ones((1, 4)))[0] == 0 and same.novelty(np.zeros((1, 4)))[0] > 1


@pytest.mark.parametrize("method", METHODS)
def test_what_is_not_finite_is_unknown_and_spoils_nothing(method: Method) -> None:
    features = parts(50, 10)
    broken = np.concatenate([features, np.full((3, 10), np.inf)])
    reference = Reference.fit(broken, method)
    assert reference.count == 50
    found = reference.novelty([[*features[0, :9], np.nan], features[0]])
    assert np.isnan(found[0]) and found[1] >= 0
    assert reference.novelty(np.empty((0, 10))).shape == (0,)


@pytest.mark.parametrize("method", METHODS)
def test_a_reference_survives_its_file(tmp_path: Path, method: Method) -> None:
    reference = Reference.fit(parts(60, 90), method)
    reference.save(tmp_path / "novelty.npz")
    read = Reference.load(tmp_path / "novelty.npz")
    others = parts(10, 90, seed=4)
    np.testing.assert_allclose(read.novelty(others), reference.novelty(others), rtol=1e-3)
    assert (read.method, read.count) == (method, 60)


def test_what_is_no_reference_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(NoveltyError, match="7 images"):
        Reference.fit(parts(7, 10))
    with pytest.raises(NoveltyError, match="another model"):
        Reference.fit(parts(20, 10)).novelty(parts(2, 11))
    with pytest.raises(NoveltyError, match="one row per image"):
        Reference.fit(np.ones(10))
    with pytest.raises(NoveltyError, match="unknown method"):
        Reference.fit(parts(20, 10), "magic")  # type: ignore[arg-type]
    path = tmp_path / "r.npz"
    with pytest.raises(NoveltyError, match="cannot read"):
        Reference.load(path)
    for content in (b"", b"PK\x03\x04 torn", b"not a file of numpy"):
        path.write_bytes(content)
        with pytest.raises(NoveltyError, match="no reference"):
            Reference.load(path)
    with path.open("wb") as file:
        np.savez(file, method=np.array(["x"], dtype=object))  # pickled: refused, not run
    with pytest.raises(NoveltyError, match="no reference"):
        Reference.load(path)


def test_a_damaged_reference_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.npz"
    Reference.fit(parts(20, 10)).save(path)
    with np.load(path) as held:
        contents = dict(held)
    for change in (
        {"unit": np.array(0.0)},
        {"mean": np.full(10, np.nan)},
        {"scale": np.zeros(10)},
        {"rows": np.ones(3)},
    ):
        with path.open("wb") as file:
            np.savez(file, **(contents | change))
        with pytest.raises(NoveltyError, match="damaged"):
            Reference.load(path)
    assert zipfile.is_zipfile(path)


def test_whatever_is_wrong_with_a_file_it_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "r.npz"
    Reference.fit(parts(100, 60)).save(path)
    whole = path.read_bytes()
    for i in range(0, len(whole), 97):  # in the middle it is zlib that complains
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 0xFF]) + whole[i + 1 :])
        with contextlib.suppress(NoveltyError):
            Reference.load(path)
    header = b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': %s, }"
    for shape in (b"(100000000000000, 60)", b"(4611686018427387904, 60)", b"((("):
        with zipfile.ZipFile(path, "w") as file:
            for name in ("method", "mean", "scale", "rows", "rest", "unit", "count"):
                file.writestr(f"{name}.npy", (header % shape).ljust(127) + b"\n")
        with pytest.raises(NoveltyError, match="no reference"):
            Reference.load(path)


def test_a_file_that_would_fill_the_memory_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.npz"
    Reference.fit(parts(20, 10)).save(path)
    monkeypatch.setattr("vlmgate.scores.novelty._MOST_BYTES", 1000)
    with pytest.raises(NoveltyError, match="unpacks to more than 1,000 bytes"):
        Reference.load(path)
