"""Is the larger model worth it on our images? Fakes of known skill, and the built-in model beside a spoilt copy."""

from __future__ import annotations

import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.support.fakes import FakeCaptioner, folder_of, let_it_read
from tests.support.paths import LABELLED
from vlmgate.calibration.compare.compare import Difference
from vlmgate.cli import app
from vlmgate.store.result import read_provenance

runner = CliRunner()
CLASSES = ("none", "dent", "crack")
PER_CLASS = 60
SMALL, LARGE, TWIN = "org/small", "org/large", "org/twin"


def number_of(name: str) -> int:
    return int(re.search(r"(\d+)", name.rsplit("/", 1)[-1]).group(1))  # type: ignore[union-attr]


def answers_with(skill: dict[str, int]) -> object:
    """Return how a model answers: of ten images it is wrong on so many, in half of them without a doubt."""

    def answer(name: str, model: str) -> tuple[str, ...]:
        truth = next(c for c in CLASSES if f"{c}_" in name)
        other = CLASSES[(CLASSES.index(truth) + 1) % 3]
        place = (number_of(name) * 7 + len(truth)) % 10
        if place >= skill[model]:
            return (truth,)
        return (other,) if place % 2 else (other, truth, other, other)

    return answer


def reads_with(monkeypatch: pytest.MonkeyPatch, folder: Path) -> FakeCaptioner:
    """Let a fake of each model read, in a working folder."""
    captioner = FakeCaptioner(lambda name: (f"a part with {name.split('/')[0]}",))
    answer = answers_with({SMALL: 4, LARGE: 1, TWIN: 4, "builtin": 4})
    captioner.answer = lambda name: answer(name, captioner.model)  # type: ignore[operator]
    let_it_read(captioner, monkeypatch)
    monkeypatch.chdir(folder)
    return captioner


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeCaptioner:
    return reads_with(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return a folder in which two models have read `labelled/`, and what the comparison printed; copy it to use it."""
    base = tmp_path_factory.mktemp("once")
    folder_of(base / "labelled", *(f"{c}/{c}_{i:03d}.png" for c in CLASSES for i in range(PER_CLASS)))
    with pytest.MonkeyPatch.context() as patch:
        reads_with(patch, base)
        return base, run("labelled", "--model", SMALL, "--model", LARGE, "-k", 4)[0]


@pytest.fixture
def labelled(once: tuple[Path, str], tmp_path: Path) -> Path:
    """Return labelled images that nothing has read yet."""
    return Path(shutil.copytree(once[0] / "labelled", tmp_path / "labelled"))


@pytest.fixture
def compared(once: tuple[Path, str], tmp_path: Path) -> str:
    """Have images, readings and page of a comparison in the working folder; return what it printed."""
    (tmp_path / "labelled").symlink_to(once[0] / "labelled")
    for path in once[0].iterdir():
        if path.is_file():
            shutil.copy2(path, tmp_path)
    return once[1]


def run(*arguments: object, code: int = 0) -> tuple[str, str]:
    result = runner.invoke(app, [str(a) for a in ("compare", *arguments)])
    assert result.exit_code == code, (result.exit_code, result.stdout, result.stderr, result.exception)
    assert "Traceback" not in result.stderr
    return result.stdout, result.stderr


def answer_of(told: str) -> str:
    return next(line for line in told.splitlines() if line.startswith(("Cannot tell", "large ", "small ", "builtin ")))


# --- what it says -----------------------------------------------------------------------------------------------------


def test_a_better_model_is_told_from_a_worse_one(compared: str, fake: FakeCaptioner, tmp_path: Path) -> None:
    told = compared
    assert re.search(r"^accuracy +60\.0% \(.*?\) +90\.0% \(.*?\) +\+30\.0% \(\+", told, re.MULTILINE)
    assert re.search(r"^AURC .*-0\.\d+ \(-0\.\d+ to -0\.\d+\)$", told, re.MULTILINE)
    sentence = answer_of(told)
    assert sentence.startswith("large reads better than small on these images: AURC ") and "95% interval" in sentence
    assert {p.name for p in tmp_path.glob("comparison.*")} >= {"comparison.html"}
    assert len(list(tmp_path.glob("comparison.*.parquet"))) == 2
    again, err = run("labelled", "--model", SMALL, "--model", LARGE, "-k", 4)
    assert fake.history == [] and answer_of(again).split(";")[0] == sentence.split(";")[0]
    assert "Every image has been read before" in err


def test_equal_models_cannot_be_told_apart(labelled: Path, fake: FakeCaptioner) -> None:
    told, _ = run("labelled", "-m", SMALL, "-m", TWIN, "-k", 4, "--no-page")
    assert "Cannot tell" in told and "nor with any number that can be labelled" in told
    assert not Path("comparison.html").exists()


def test_frames_of_a_part_make_no_difference_surer(tmp_path: Path, fake: FakeCaptioner) -> None:
    """Parts are resampled whole, for every model alike; a handful of parts compares nothing."""
    names = [f"{c}/{c}_{i:03d}_frame{k}.png" for c in CLASSES for i in range(30) for k in range(4)]
    folder_of(tmp_path / "burst", *names)
    arguments = ("burst", "-m", SMALL, "-m", LARGE, "-k", 4, "--no-page", "--format", "json")
    widths = {}
    for name, pattern in (("frame", "(?P<part>.+)"), ("part", r"(?P<part>.+)_frame")):
        told = json.loads(run(*arguments, "--group-pattern", pattern)[0])
        one = told["differences_from_the_first"][0]["accuracy"]
        widths[name] = one["value"], one["high"] - one["low"]
    assert widths["part"][0] == widths["frame"][0] and widths["part"][1] > 1.6 * widths["frame"][1]
    _, error = run(*arguments, "--group-pattern", r"(?P<part>[a-z]+_\d\d)", code=2)
    assert "9 labelled parts that every model has read are too few" in error


def test_costs_decide_where_they_are_given(compared: str, fake: FakeCaptioner) -> None:
    costs = ("--cost-escape", 100, "--cost-overkill", 20, "--cost-review", 5)
    told, _ = run("labelled", "-m", SMALL, "-m", LARGE, "-k", 4, *costs)
    assert "large is worth it instead of small on these images: it saves " in told
    # A running cost that eats up all that is saved turns the answer round.
    told, _ = run("labelled", "-m", SMALL, "-m", LARGE, "-k", 4, *costs, "--cost-overhead", 0, "--cost-overhead", 90000)
    assert "large is not worth it instead of small on these images: it costs " in told


def test_results_are_compared_without_a_model(compared: str, fake: FakeCaptioner) -> None:
    small, large = sorted(Path().glob("comparison.small*.parquet")) + sorted(Path().glob("comparison.large*.parquet"))
    told = json.loads(run(small, large, "--labels", "labelled", "--format", "json", "--score", "answer_share")[0])
    assert fake.history == []
    assert told["schema_version"] == 1 and told["images"] == told["graded"] == 180 and told["num_samples"] == 4
    assert [one["name"] for one in told["models"]] == ["small", "large"]
    apart = told["differences_from_the_first"][0]
    assert apart["accuracy"]["value"] == pytest.approx(0.3) and apart["accuracy"]["told"] is True
    assert all(one["low"] <= one["value"] <= one["high"] for one in apart.values())
    first = told["models"][0]
    assert first["images_per_second"] > 0 and first["num_parameters"] == 1 and len(first["by_samples"]) == 3
    # From the one to the other and back is the same way.
    back = json.loads(run(large, small, "--format", "json", "--score", "answer_share")[0])
    assert back["differences_from_the_first"][0]["aurc"]["value"] == pytest.approx(-apart["aurc"]["value"])
    # A result beside a model that reads now; the readings of calibrate will do.
    runner.invoke(app, ["calibrate", "labelled", "-k", "4", "--no-page"])
    assert "large reads better than builtin" in run("labelled", "gate.parquet", "-m", LARGE, "-k", 4)[0].replace(
        "built-in model", "builtin"
    )


def test_images_that_one_has_not_read_are_left_out_and_told(labelled: Path, fake: FakeCaptioner) -> None:
    good = fake.say

    def say(name: str) -> tuple[str, ...]:
        if fake.model == LARGE and name.endswith("_007.png"):
            raise RuntimeError("too large")
        return tuple(str(one) for one in good(name))

    fake.say = say
    told, _ = run("labelled", "-m", SMALL, "-m", LARGE, "-k", 4)
    assert "Accuracy: right answers among 177 labelled images" in told
    assert "3 images that small has read and another has not are left out" in told


def test_how_many_images_it_would_take() -> None:
    seen = Difference("aurc", value=-0.02, low=-0.05, high=0.01, error=0.015, images=200)
    assert not seen.told and seen.needed == math.ceil(200 * (2.8 * 0.015 / 0.02) ** 2)
    assert Difference("aurc", 0.0, -0.01, 0.01, 0.005, 200).needed is None
    # What it takes is what it says: with so many images the difference is seen about four times of five.
    rng = np.random.default_rng(1)
    first_wrong, other_wrong = 0.3, 0.24
    spread = math.sqrt(first_wrong * (1 - first_wrong) + other_wrong * (1 - other_wrong))
    pilot = Difference("accuracy", first_wrong - other_wrong, 0, 0, spread / math.sqrt(200), 200)
    assert pilot.needed is not None
    seen_in = 0
    for _ in range(400):
        first, other = rng.random(pilot.needed) < first_wrong, rng.random(pilot.needed) < other_wrong
        apart = first.astype(float) - other
        seen_in += apart.mean() > 1.96 * apart.std() / math.sqrt(pilot.needed)
    assert 0.7 < seen_in / 400 < 0.9


def test_a_toml_file_may_name_the_models_and_their_costs(compared: str, fake: FakeCaptioner) -> None:
    Path("compare.toml").write_text(
        f'model = ["{SMALL}", "{LARGE}"]\nnum-samples = 4\nno-page = true\n'
        "cost-escape = 100\ncost-overhead = [0, 90000]\n"
    )
    told, _ = run("labelled", "--config", "compare.toml")
    assert "large is not worth it instead of small" in told
    Path("compare.toml").write_text('sources = ["labelled"]\n')
    assert "unknown key 'sources'" in run("labelled", "--config", "compare.toml", code=2)[1]


# --- the page ---------------------------------------------------------------------------------------------------------


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_page_asks_no_network_and_runs_nothing(tmp_path: Path, fake: FakeCaptioner) -> None:
    hostile = "<script>alert(1)</script>"
    names = (*CLASSES[:2], hostile.replace("/", "_"))
    folder_of(tmp_path / "labelled", *(f"{c}/{i:03d}.png" for c in names for i in range(40)))
    fake.answer = lambda name: (name.split("/")[0],)
    run("labelled", "-m", SMALL, "-m", "org/<b>x$_{y", "-k", 4, "--label-map", f"{names[2]}=crack")
    page = Path("comparison.html").read_text(encoding="utf-8")
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page
    tags = _Tags()
    tags.feed(page)
    assert not {"script", "b", "link", "iframe"} & set(tags.tags) and tags.links
    assert all(link.startswith("data:image/svg+xml;base64,") for link in tags.links)
    assert "&lt;b&gt;x$_{y" in page and "nan" not in page.lower().replace("data:image", "")[:2000]


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["labelled", "-m", SMALL], "comparing takes two"),
        (["labelled"], "name the models that read it"),
        (["labelled", "-m", SMALL, "-m", SMALL], "names one twice"),
        (["labelled", "labelled/dent", "-m", SMALL, "-m", LARGE], "a second folder"),
        (["nowhere", "-m", SMALL, "-m", LARGE], "no such folder or result"),
        (["labelled", "-m", SMALL, "-m", LARGE, "-o", "x.txt"], "must end in .html"),
        (["labelled", "-m", SMALL, "-m", LARGE, "-o", "mine.html"], "is no comparison of vlmgate"),
        (["labelled", "-m", SMALL, "-m", LARGE, "--defect-rate", "1%"], "none is given"),
        (["labelled", "-m", SMALL, "-m", LARGE, "--target-risk", "200%"], "allowed: between 0% and 100%"),
        (["labelled", "-m", SMALL, "-m", LARGE, "-k", "4", "--score", "novelty"], "has none"),
        (["labelled", "-m", SMALL, "-m", LARGE, *(3 * ["--cost-overhead", "1"])], "once for each"),
        (["labelled", "-m", SMALL, "-m", LARGE, "--labels", "verdicts.csv"], "holds verdict labels"),
    ],
)
def test_what_compares_nothing_is_refused_in_one_line(
    tmp_path: Path, fake: FakeCaptioner, arguments: list[str], words: str
) -> None:
    folder_of(tmp_path / "labelled", *(f"{c}/{c}_{i:03d}.png" for c in CLASSES for i in range(12)))
    Path("mine.html").write_text("<title>mine</title>")
    Path("verdicts.csv").write_text("file_name,verdict\ndent/dent_001.png,correct\ndent/dent_002.png,wrong\n")
    _, err = run(*arguments, code=2)
    last = err.splitlines()[-1]
    assert last.startswith("vlmgate: error: ") and words in last
    assert Path("mine.html").read_text() == "<title>mine</title>"


# --- a real model -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_built_in_model_beside_a_spoilt_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise on the weights: the copy loads, reads, and is found to be worse."""
    import torch
    from safetensors.torch import load_file, save_file

    from vlmgate.captioner.location import weights_folder

    monkeypatch.chdir(tmp_path)
    samples = LABELLED
    for kind in ("none", "crack", "rust", "dent"):
        (tmp_path / "labelled" / kind).mkdir(parents=True)
        for image in sorted((samples / kind).glob("*.jpg"))[:7]:
            (tmp_path / "labelled" / kind / image.name).symlink_to(image)
    spoilt = tmp_path / "spoilt"
    shutil.copytree(weights_folder(), spoilt, ignore=shutil.ignore_patterns("novelty.npz"))  # it is of other weights
    weights = spoilt / "model.safetensors"
    tensors = load_file(weights)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator) * tensor.float().std() * 0.4
            tensors[name] = (tensor.float() + noise).to(tensor.dtype).contiguous()
    save_file(tensors, weights, metadata={"format": "pt"})
    out, _ = run("labelled", "-m", "builtin", "-m", spoilt, "-k", 2, "--score", "answer_share", "--format", "json")
    told = json.loads(out)
    apart = told["differences_from_the_first"][0]
    assert apart["accuracy"]["high"] < 0 and apart["accuracy"]["told"]
    assert all(one["images_per_second"] > 0 for one in told["models"])
    linux = Path("/proc/self/clear_refs").exists()
    assert not linux or all(one["peak_memory_bytes"] > 1e8 for one in told["models"])
    assert read_provenance(Path("comparison.builtin.parquet"))["model"]["model"] == "builtin"


def test_the_bench_of_comparisons_counts_trials(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.bench import compare

    assert compare.main(["--repeats", "2", "--images", "60", "--gap", "0.1", "--json", str(tmp_path / "b.json")]) == 0
    told = json.loads((tmp_path / "b.json").read_text())["told_apart"]
    assert set(told) == {"accuracy", "aurc", "coverage", "cost"} and set(told.values()) <= {0.0, 0.5, 1.0}
    assert "told apart" in capsys.readouterr().out
