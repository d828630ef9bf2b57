"""Scores of the same captions by other people's packages, their own code, unmodified.

Neither package can be
imported as it is without some gigabytes of dependencies that these scores do not use: of lm-polygraph the files of the
estimators are imported without the package's `__init__`, which imports all of it; for vendi-score an empty `datasets`
stands in where there is none, which only its download of a corpus would use. What cannot be imported is left out, and
told; nothing of ours takes its place.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Texts = Sequence[Sequence[str]]  # of every image, its captions
Score = Callable[[Sequence[str]], float]  # higher = less to be trusted

NEEDS_A_MODEL = "NumSemSets and the NLI forms of lm-polygraph: need a model of entailment from a hub"


def peers(folder: Path) -> tuple[dict[str, Score], list[str]]:
    """Return the scores that can be had from the packages in a folder, by name, and what was left out and why."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # last: what is installed here goes first
    scores: dict[str, Score] = {}
    left_out = [NEEDS_A_MODEL]
    for package, found in (("vendi-score", _vendi_score), ("lm-polygraph", _lm_polygraph)):
        try:
            release = f"{package} {distribution(package).version}"
            scores |= {f"{release}: {name}": score for name, score in found(folder)}
        except (ImportError, AttributeError, PackageNotFoundError) as error:
            left_out.append(f"{package}: {type(error).__name__}: {error}")
    return scores, left_out


def values_of(score: Score, texts: Texts) -> tuple[NDArray[np.float64], int]:
    """Return the score (N,) of every image, infinite where the peer has none, and how many have none."""
    found = np.round([_valued(score, captions) for captions in texts], 9)  # equal readings are to be equal
    return np.where(np.isfinite(found), found, math.inf), int((~np.isfinite(found)).sum())


def _valued(score: Score, captions: Sequence[str]) -> float:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # theirs: of other releases of scipy, of captions without a common word
        try:
            return float(score(captions))
        except (ValueError, ZeroDivisionError, np.linalg.LinAlgError):  # e.g. no caption has four words
            return math.nan


def _vendi_score(_folder: Path) -> Iterator[tuple[str, Score]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if importlib.util.find_spec("datasets") is None:
            sys.modules["datasets"] = types.ModuleType("datasets")
        text_utils: Any = importlib.import_module("vendi_score.text_utils")
        vendi: Any = importlib.import_module("vendi_score.vendi")
        normalize = importlib.import_module("sklearn.preprocessing").normalize
    tokenizer = text_utils.sklearn_tokenizer()  # its other one downloads a model

    def kernel(captions: Sequence[str], n: int) -> Any:
        grams = normalize(text_utils.get_ngrams(captions, n=n, tokenizer=tokenizer))
        return (grams @ grams.T).toarray()

    def score(*sizes: int) -> Score:
        # What its ngram_vendi_score does, which itself calls an attribute that scipy 1.14 took away.
        return lambda captions: float(vendi.score_K(np.mean([kernel(captions, n) for n in sizes], axis=0)))

    yield "Vendi score, words", score(1)
    yield "Vendi score, 1- to 4-grams", score(1, 2, 3, 4)


def _lm_polygraph(folder: Path) -> Iterator[tuple[str, Score]]:
    for name in ("lm_polygraph", "lm_polygraph.estimators", "lm_polygraph.utils"):
        package = types.ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")))]
        sys.modules[name] = package
    estimators = "lm_polygraph.estimators"
    lexical: Any = importlib.import_module(f"{estimators}.lexical_similarity").LexicalSimilarity
    made = [lexical(metric) for metric in ("rouge1", "rouge2", "rougeL", "BLEU")]
    for module, name in (
        ("eig_val_laplacian", "EigValLaplacian"),
        ("deg_mat", "DegMat"),
        ("eccentricity", "Eccentricity"),
    ):
        made.append(getattr(importlib.import_module(f"{estimators}.{module}"), name)("Jaccard_score"))
    for estimator in made:
        yield str(estimator), _one_by_one(estimator)


def _one_by_one(estimator: Any) -> Score:
    return lambda captions: float(estimator({"sample_texts": [list(captions)]})[0])
