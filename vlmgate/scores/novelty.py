"""How far an image lies from a set of images that the model is meant for. `Reference.fit`, then `novelty`.

A model may be sure of nonsense: novelty shows whether it should read an image at all. Distances mean the same for every
model and method: 1 is as far out as the strangest hundredth of the reference itself lies when it is held out.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlmgate.captioner.location import Local, locate, weights_digest
from vlmgate.config import ModelConfig
from vlmgate.errors import ConfigError, NoveltyError, one_line

Matrix = NDArray[np.float64]
Method = Literal["mahalanobis", "knn"]

FEWEST = 8  # rows of a reference; fewer have no spread to speak of
NEIGHBOURS = 5  # the distance to the fifth neighbour: one odd row of the reference makes nothing familiar
FOLDS = 10
QUANTILE = 0.99  # of the held-out distances; it is the unit
CHECKPOINT_FILE = "novelty.npz"  # in a checkpoint's folder
_LEAST_SHRINKAGE = 1e-3  # features are stored as float16, so directions of less variance are rounding
_MOST_BYTES = 2 << 30  # of a file when unpacked; half a million images with a thousand numbers each
_UNPACKED = 4096  # rows that are unpacked at once
_CHUNK = 512  # rows whose distances are computed at once


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """The features of a reference set, standardised: fit it once, ask it for the `novelty` of others.

    With "mahalanobis" `rows` holds the directions in which the reference varies, each divided by its standard deviation
    there; with "knn" it holds the standardised reference itself.
    """

    method: Method
    mean: Matrix  # (D,)
    scale: Matrix  # (D,)
    rows: Matrix  # (R, D)
    rest: float  # variance in every direction that `rows` leaves out; 0 where there is none
    unit: float  # the distance that counts as 1
    count: int  # N, images in the reference
    note: str = ""  # what it was made of, for whoever made it
    weights: str = ""  # digest of the checkpoint that it belongs to; "" = it belongs to none
    also: Reference | None = None  # of the same features: an image is as novel as the stranger of the two says

    @classmethod
    def fit(cls, features: ArrayLike, method: Method = "mahalanobis", *, note: str = "") -> Reference:
        """Fit a reference to (N, D) features; rows that are not finite are left out.

        "mahalanobis": distance from the mean under a shrunk covariance (Lee et al., "A Simple Unified Framework for
        Detecting Out-of-Distribution Samples and Adversarial Attacks", NeurIPS 2018); sound for N < D. "knn": Euclidean
        distance to the fifth nearest neighbour (Sun et al., "Out-of-Distribution Detection with Deep Nearest
        Neighbors", ICML 2022), for references of several kinds. Raises `NoveltyError`.
        """
        table = _table(features)
        table = table[np.isfinite(table).all(axis=1)]
        if method not in ("mahalanobis", "knn"):
            raise NoveltyError(f"unknown method '{method}'; choose mahalanobis or knn.")
        if len(table) < FEWEST or table.shape[1] == 0:
            raise NoveltyError(
                f"{len(table)} images with features make no reference; it takes {FEWEST}, and some hundred to be sharp."
            )
        unit = float(np.quantile(_held_out(table, method), QUANTILE))
        return cls(method, *_fitted(table, method), unit=unit if unit > 0 else 1.0, count=len(table), note=note)

    def novelty(self, features: ArrayLike) -> Matrix:
        """Return the novelty (M,) of (M, D) features, at least 0; higher = stranger, NaN for a row that is not finite.

        Raises `NoveltyError` for another D.
        """
        table = _table(features)
        if table.shape[1] != len(self.mean):
            raise NoveltyError(
                f"features of {table.shape[1]} numbers, reference of {len(self.mean)}: made with another model."
            )
        known = np.isfinite(table).all(axis=1)
        found = np.full(len(table), math.nan)
        found[known] = self._distances(table[known]) / self.unit
        return found

    def novelty_of(self, packed: Sequence[bytes | None]) -> Matrix:
        """Return the novelty (M,) of features as they are kept; NaN for none, and for those of another length.

        Beside another reference (`also`) it is the greater of both.
        """
        length = 2 * len(self.mean)  # bytes of float16
        known = [i for i, one in enumerate(packed) if one and len(one) == length]
        found = np.full(len(packed), math.nan)
        for start in range(0, len(known), _UNPACKED):
            some = known[start : start + _UNPACKED]
            found[some] = self.novelty(unpack([packed[i] or b"" for i in some]))
        return found if self.also is None else np.maximum(found, self.also.novelty_of(packed))

    def _distances(self, table: Matrix) -> Matrix:
        points = (table - self.mean) / self.scale  # (M, D)
        if self.method == "knn":
            return _to_neighbour(points, self.rows, NEIGHBOURS)
        along = points @ self.rows.T  # (M, R)
        squared = (along**2).sum(axis=1)
        if self.rest:
            variances = 1 / (self.rows**2).sum(axis=1)  # (R,)
            across = (points**2).sum(axis=1) - (along**2 * variances).sum(axis=1)
            squared += np.maximum(across, 0) / self.rest
        distances: Matrix = np.sqrt(squared)
        return distances

    def to_npz(self) -> bytes:
        """Return the reference as the content of a .npz file, without pickle."""
        file = io.BytesIO()
        arrays = {name: getattr(self, name).astype(np.float32) for name in ("mean", "scale", "rows")}
        values = {name: np.array(getattr(self, name)) for name in _TOLD}
        np.savez_compressed(file, **arrays, **values)  # type: ignore[arg-type]  # no name is `allow_pickle`
        return file.getvalue()

    def save(self, path: Path, write: Callable[[Path, bytes], object] = Path.write_bytes) -> None:
        """Write the reference to a .npz file; a run gives a `write` that is atomic. Raises `NoveltyError`."""
        try:
            write(path, self.to_npz())
        except OSError as error:
            raise NoveltyError(f"{path}: cannot write the reference ({error.strerror}).") from error

    @classmethod
    def load(cls, path: Path) -> Reference:
        """Read what `save` wrote; raises `NoveltyError` for anything else."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
                if sum(part.file_size for part in held.zip.infolist()) > _MOST_BYTES:
                    raise ValueError(f"it unpacks to more than {_MOST_BYTES:,} bytes")
                read = cls(
                    method=str(held["method"]),  # type: ignore[arg-type]  # checked below
                    mean=held["mean"].astype(np.float64),
                    scale=held["scale"].astype(np.float64),
                    rows=held["rows"].astype(np.float64),
                    rest=float(held["rest"]),
                    unit=float(held["unit"]),
                    count=int(held["count"]),
                    note=str(held["note"]) if "note" in held else "",
                    weights=str(held["weights"]) if "weights" in held else "",
                )
        except OSError as error:
            raise NoveltyError(f"{path}: cannot read the reference ({error.strerror or error}).") from error
        except Exception as error:  # a damaged file makes zip, zlib, numpy and ast raise what they like
            raise NoveltyError(f"{path}: is no reference of vlmgate ({one_line(error, 80)}).") from error
        if not read._is_sound():
            raise NoveltyError(f"{path}: is no reference of vlmgate, or a damaged one; make it again.")
        return read

    def _is_sound(self) -> bool:
        shapes = self.mean.ndim == 1 and self.scale.shape == self.mean.shape and self.rows.ndim == 2
        numbers = (self.mean, self.scale, self.rows, self.rest, self.unit)
        return (
            self.method in ("mahalanobis", "knn")
            and shapes
            and self.count >= FEWEST
            and self.rows.shape[1:] == self.mean.shape
            and len(self.rows) > 0
            and all(bool(np.isfinite(part).all()) for part in numbers)
            and bool((self.scale > 0).all())
            and bool((self.rows != 0).any(axis=1).all() or self.method == "knn")
            and self.rest >= 0
            and self.unit > 0
        )


_TOLD = ("method", "rest", "unit", "count", "note", "weights")


def checkpoint_reference(model: ModelConfig) -> Reference | None:
    """Return the reference that lies in the checkpoint's own folder, if there is one.

    Raises `NoveltyError` where it cannot be read, and `ConfigError` where it is of other weights: training on changes
    what the model sees.
    """
    if model.endpoint is not None:
        return None
    place = locate(model)
    if not isinstance(place, Local) or not (path := place.folder / CHECKPOINT_FILE).is_file():
        return None
    found = Reference.load(path)
    if found.weights != weights_digest(place.folder):
        why = "was made with other weights" if found.weights else "does not say which weights it was made with"
        raise ConfigError(f"{path}: {why}. Delete it, and name good images with --reference; calibrate gates again.")
    return found


def told_of_reference(reference: Reference | None, folder: Path | None, *, calibrated: bool) -> dict[str, Any] | None:
    """Return what the provenance says of a reference, and where it comes from."""
    if reference is None:
        return None
    place = folder.resolve().as_posix() if folder else "calibration set" if calibrated else "checkpoint"
    told: dict[str, Any] = {"folder": place.encode("utf-8", "backslashreplace").decode()}
    told |= {"images": reference.count, "method": reference.method}
    return told | ({"also": "checkpoint"} if reference.also is not None else {})


# --- features as they are kept ----------------------------------------------------------------------------------------

_LARGEST = float(np.finfo(np.float16).max)


def pack(features: Sequence[float] | None) -> bytes | None:
    """Return features as float16, little-endian; None where there are none, or one is not finite."""
    if not features:
        return None
    values = np.asarray(features, dtype=np.float64)
    return np.clip(values, -_LARGEST, _LARGEST).astype("<f2").tobytes() if np.isfinite(values).all() else None


def unpack(packed: Sequence[bytes]) -> NDArray[np.float32]:
    """Return features of one length as (N, D)."""
    return np.stack([np.frombuffer(one, "<f2") for one in packed]).astype(np.float32)


# --- arithmetic -------------------------------------------------------------------------------------------------------


def _table(features: ArrayLike) -> Matrix:
    table = np.asarray(features, dtype=np.float64)
    if table.ndim != 2:
        raise NoveltyError(f"features of shape {table.shape}: give one row per image.")
    return table


def _fitted(table: Matrix, method: Method) -> tuple[Matrix, Matrix, Matrix, float]:
    """Return mean, scale, rows and rest; see `Reference`."""
    mean = table.mean(axis=0)
    scale = _scale(mean, table.std(axis=0))
    points = (table - mean) / scale
    return (mean, scale, points, 0.0) if method == "knn" else (mean, scale, *_whitening(points))


def _scale(mean: Matrix, deviations: Matrix) -> Matrix:
    """Return what each feature is divided by: its deviation, but no less than the rounding of float16 makes of it."""
    least = np.maximum(deviations, np.abs(mean) * 2.0**-10)
    varying = least[least > 0]
    return np.where(least > 0, least, float(np.median(varying)) if len(varying) else 1.0)


def _whitening(points: Matrix) -> tuple[Matrix, float]:
    """Return the principal directions divided by their standard deviations, and the variance of all the others.

    The covariance is shrunk towards a multiple of the identity by the share that Ledoit & Wolf derive ("A
    well-conditioned estimator for large-dimensional covariance matrices", J. Multivariate Analysis 88, 2004, Lemma 3.3
    with the estimators of section 3.3).
    """
    n, d = points.shape
    variances, directions = _principal(points)  # (r,), (r, d)
    level = float(variances.sum()) / d  # mu, the mean eigenvalue
    spread = float((variances**2).sum()) - d * level**2  # d², the squared distance of the covariance from mu I
    noise = (float(((points**2).sum(axis=1) ** 2).sum()) / n - float((variances**2).sum())) / n  # b²
    share = min(1.0, max(noise, 0.0) / spread) if spread > 0 else 1.0
    share = max(share, _LEAST_SHRINKAGE)
    if level <= 0:  # all rows are equal
        return np.eye(1, d), 1.0
    shrunk = (1 - share) * variances + share * level
    return directions / np.sqrt(shrunk)[:, None], share * level if len(directions) < d else 0.0


def _principal(points: Matrix) -> tuple[Matrix, Matrix]:
    """Return the variances (r,) along the principal directions (r, d); where r < d there is none along the others.

    With fewer rows than features their (n, n) products hold all there is, and take far less time than an SVD.
    """
    n, d = points.shape
    if n >= d:
        _, singular, directions = np.linalg.svd(points, full_matrices=False)
        return singular**2 / n, directions
    squared, sides = np.linalg.eigh(points @ points.T)  # (n,), (n, n)
    kept = squared > max(float(squared[-1]), 0.0) * 1e-12  # the rest is rounding
    if not kept.any():
        return np.zeros(1), np.eye(1, d)
    squared, sides = squared[kept], sides[:, kept]
    return squared / n, (sides / np.sqrt(squared)).T @ points


def _held_out(table: Matrix, method: Method) -> Matrix:
    """Return the distance (N,) of each row from a reference that was fitted without it: left out with its fold."""
    n = len(table)
    fold = np.random.default_rng(0).permutation(n) % min(FOLDS, n)  # drawn, for files come in an order that means much
    distances = np.empty(n)
    for i in range(min(FOLDS, n)):
        out = fold == i
        fitted = _fitted(table[~out], method)
        distances[out] = Reference(method, *fitted, unit=1.0, count=int((~out).sum()))._distances(table[out])
    return distances


def _to_neighbour(points: Matrix, others: Matrix, k: int) -> Matrix:
    """Return the distance (M,) of each point to its k-th nearest of the others."""
    k = min(k, len(others)) - 1
    sizes = (others**2).sum(axis=1)  # (N,)
    found = np.empty(len(points))
    for i in range(0, len(points), _CHUNK):
        some = points[i : i + _CHUNK]
        squared = (some**2).sum(axis=1)[:, None] + sizes - 2 * some @ others.T  # (chunk, N)
        found[i : i + _CHUNK] = np.sqrt(np.maximum(np.partition(squared, k, axis=1)[:, k], 0))
    return found
