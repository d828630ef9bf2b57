"""A real model server, `transformers serve` with the built-in model: the whole way, with nothing faked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.bench.endpoint import correlation
from tests.support.paths import LABELLED
from tests.support.serving import model_server, what_is_missing
from vlmgate.captioner import load_captioner
from vlmgate.captioner.location import weights_folder
from vlmgate.cli import app
from vlmgate.config import EndpointConfig, ImageConfig, ModelConfig, SamplingConfig
from vlmgate.data import Picture, Sampled
from vlmgate.images import find_images, open_pages
from vlmgate.scores.score import Scorer
from vlmgate.store.result import read_result

K = 5
MISSING = what_is_missing()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(MISSING is not None, reason=str(MISSING))]


@pytest.fixture(scope="session")
def real_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with model_server(Path(weights_folder()), tmp_path_factory.mktemp("server") / "server.log") as url:
        yield url


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for path in sorted(LABELLED.glob("*/*_001.jpg"))[:4]:
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_a_folder_is_read_and_resumed(
    real_server: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    # The built-in model knows one prompt, and no word for a colour.
    server = ["--endpoint", real_server, "--model", str(weights_folder()), "-k", str(K), "--trust-vision"]
    command = [
        "scan",
        str(images),
        *server,
        "--choices",
        "none,dent,crack,scratch,stain,rust,chipped edge,missing hole",
    ]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, (done.stdout, done.stderr)
    rows, provenance = read_result(tmp_path / "images.parquet")
    assert len(rows) == 4
    assert all(len(row.captions or ()) == len(row.answers or ()) == K for row in rows)
    assert all(caption.strip() for row in rows for caption in row.captions or ())
    assert max(len(set(row.captions or ())) for row in rows) > 1  # it samples
    told = provenance["model"]["server"]
    assert told["url"] == real_server and told["samples"] == "one a request"
    assert told["log_probabilities"] == "not given" and told["other_sampling"].startswith("generation_config sent")
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0 and "so no model was loaded" in again.stderr


def test_a_model_that_knows_no_colours_needs_a_word_of_trust(real_server: str) -> None:
    command = ["doctor", "--endpoint", real_server, "--model", str(weights_folder())]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 1 and "does not seem to show its model the pictures" in refused.stderr
    assert CliRunner().invoke(app, [*command, "--trust-vision"]).exit_code == 0


def test_a_name_that_the_server_does_not_know(real_server: str) -> None:
    done = CliRunner().invoke(app, ["doctor", "--endpoint", real_server, "--model", "another"])
    assert done.exit_code == 1 and "pinned to" in done.stderr


def test_images_come_into_the_order_that_the_local_engine_puts_them_into(real_server: str) -> None:
    sampling = SamplingConfig(num_samples=K)
    sources = find_images(LABELLED).sources[::8]
    pictures = [p for source in sources for p in open_pages(source, ImageConfig()) if isinstance(p, Picture)]
    # One after the other, for this server's seeds are one for all requests under way: so the figure is always the same.
    where = EndpointConfig(real_server, concurrency=1)
    served = ModelConfig(model=str(weights_folder()), trust_vision=True, endpoint=where)
    here, there = (load_captioner(model, sampling).read(pictures) for model in (ModelConfig(), served))
    scores = [_scores(here), _scores(there)]
    assert len(scores[0]) == 26
    # With so few samples and images chance leaves 0.6 to 0.95; images that were mixed up, or shown otherwise, 0.
    found = correlation(*scores)
    assert found[0] > 0.3


def _scores(sampled: list[Sampled]) -> np.ndarray:
    scorer = Scorer(SamplingConfig().prompt)
    found = [scorer.score(Sampled(one.captions))[0].vendi_score for one in sampled]
    return np.array([np.inf if value is None else value for value in found])
