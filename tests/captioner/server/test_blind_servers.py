"""A server that never hands its model the picture: what it says agrees on every image, and none of it may pass."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.captioner.server.test_server import K, captioner, config, run
from tests.support.fakes import SilentProgress, folder_of
from tests.support.faulty_server import Asked, FaultyServer, Reply, choice, colour_of, completion, refusal
from vlmgate.captioner.server.probe import names_of
from vlmgate.captioner.streams import COLOUR_QUESTION, COLOURS, colour_picture
from vlmgate.cli import app
from vlmgate.config import SamplingConfig
from vlmgate.errors import EndpointError
from vlmgate.report.summary import summarise
from vlmgate.run.loop import scan
from vlmgate.store.result import read_result

BLIND = "The image shows a metal part with no visible defects."


def asked_about_colour(faulty: FaultyServer) -> list[Asked]:
    return [asked for asked in faulty.asked if asked.prompt == COLOUR_QUESTION]


@pytest.mark.parametrize("takes_n", [True, False])
@pytest.mark.parametrize(
    "says",
    [
        lambda asked: BLIND,
        lambda asked: "The picture is red.",
        lambda asked: "green",
        lambda asked: "Red or green.",
        lambda asked: "I cannot see a picture.",
        lambda asked: "",
        lambda asked: "The picture is predominantly blue.",
        lambda asked: {"The picture is red.": "Green.", "The picture is green.": "Red."}[colour_of(asked.picture)],
    ],
)
def test_one_that_does_not_name_the_colour_is_refused(
    faulty: FaultyServer, says: Callable[[Asked], str], takes_n: bool
) -> None:
    faulty.see, faulty.takes_n = says, takes_n
    with pytest.raises(EndpointError, match=r"does not seem to show its model the pictures.*--trust-vision") as caught:
        captioner(faulty)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("wrong", "refused"), [(1, False), (2, True)])
@pytest.mark.parametrize("takes_n", [True, False])
def test_one_slip_in_four_is_forgiven(faulty: FaultyServer, wrong: int, refused: bool, takes_n: bool) -> None:
    def slips(asked: Asked) -> dict[str, Any] | None:
        if asked.prompt != COLOUR_QUESTION or "green" not in colour_of(asked.picture):
            return None
        if "n" in asked.body:
            said = ["red"] * wrong + ["green"] * (asked.body["n"] - wrong)
        else:
            said = ["red" if asked.body["seed"] < 11 + wrong else "green"]
        return completion(*(choice(text, index=i) for i, text in enumerate(said)))

    faulty.behave, faulty.takes_n = slips, takes_n
    if refused:
        with pytest.raises(EndpointError, match="2 of 4 answers about a green one were right; it said 'red'"):
            captioner(faulty)
    else:
        assert "3 of 4 answers about a green one" in str(captioner(faulty).info.vision)


@pytest.mark.parametrize(
    "says", ["Red", "The picture is RED.", "it's reddish", "**{}**", "Answer: {}", "The picture is a solid {} square."]
)
def test_one_that_sees_is_heard_in_any_words(faulty: FaultyServer, says: str) -> None:
    def see(asked: Asked) -> str:
        colour = "red" if "red" in colour_of(asked.picture) else "green"
        return says.format(colour) if "{}" in says else says if colour == "red" else "Greenish."

    faulty.see = see
    reader = captioner(faulty)
    assert reader.info.warnings == () and "4 of 4 answers about a red one" in str(reader.info.vision)
    assert len(asked_about_colour(faulty)) == 2, "a request a picture, where n samples come in one"
    assert {asked.body["max_tokens"] for asked in asked_about_colour(faulty)} == {16}


def test_one_that_thinks_first_gets_as_many_tokens_as_a_caption(faulty: FaultyServer) -> None:
    def thinking(asked: Asked) -> dict[str, Any] | None:
        short = asked.prompt == COLOUR_QUESTION and asked.body["max_tokens"] < 192
        return completion(*[choice(None, "length")] * asked.body.get("n", 1)) if short else None

    faulty.behave = thinking
    assert captioner(faulty).info.warnings == ()


def test_it_is_asked_no_hotter_than_one(faulty: FaultyServer) -> None:
    captioner(faulty, SamplingConfig(num_samples=K, temperature=1.7))
    assert {asked.body["temperature"] for asked in asked_about_colour(faulty)} == {1.0}
    faulty.asked.clear()
    captioner(faulty, SamplingConfig(num_samples=K, temperature=0.5))
    assert {asked.body["temperature"] for asked in asked_about_colour(faulty)} == {0.5}


def test_a_refused_question_counts_as_no_answer(faulty: FaultyServer) -> None:
    faulty.behave = lambda asked: refusal("no such question") if asked.prompt == COLOUR_QUESTION else None
    with pytest.raises(EndpointError, match=r"0 of 4 answers about a red one.*it said HTTP 400: no such question"):
        captioner(faulty)


def test_a_busy_server_does_not_pass_for_a_blind_one(faulty: FaultyServer) -> None:
    left = iter(range(6))
    busy = Reply(b"slow down", 429, {"Retry-After": "1"})
    faulty.behave = lambda asked: busy if asked.prompt == COLOUR_QUESTION and next(left, None) is not None else None
    assert captioner(faulty).info.warnings == ()


def test_a_model_that_only_thinks_is_told_what_it_needs(faulty: FaultyServer) -> None:
    faulty.see = lambda asked: ""
    with pytest.raises(
        EndpointError, match="it said nothing within 192 tokens, of which a model that thinks first may"
    ):
        captioner(faulty)


def test_who_insists_is_told_of_it_in_every_place(faulty: FaultyServer, tmp_path: Path) -> None:
    faulty.see = lambda asked: BLIND
    folder = folder_of(tmp_path / "in", *(f"{i}.png" for i in range(12)))
    command = ["scan", str(folder), "-o", str(tmp_path / "out.parquet"), "-k", "4"]
    where = ["--endpoint", faulty.url, "--model", "m"]
    refused = CliRunner().invoke(app, [*command, *where])
    assert refused.exit_code == 1 and "--trust-vision insists" in refused.stderr
    assert not faulty.images, "no image was sent"
    told = CliRunner().invoke(app, [*command, *where, "--trust-vision"])
    line = "This server may not show its model the pictures"
    assert told.exit_code == 0 and line in told.stdout and line in told.stderr
    _, provenance = read_result(tmp_path / "out.parquet")
    assert any(line in warning for warning in provenance["warnings"])
    assert "0 of 4 answers about a red one" in provenance["model"]["vision"]
    again = CliRunner().invoke(app, [*command, *where, "--trust-vision", "--format", "json"])
    assert any(line in warning for warning in json.loads(again.stdout)["warnings"]), "no model was asked this time"


def test_doctor_says_it_too(faulty: FaultyServer) -> None:
    where = ["doctor", "--endpoint", faulty.url, "--model", "m"]
    good = CliRunner().invoke(app, [*where, "--format", "json"])
    assert "4 of 4 answers about a green one were right" in json.loads(good.stdout)["model"]["vision"]
    faulty.see = lambda asked: "red"
    bad = CliRunner().invoke(app, [*where, "--format", "json"])
    assert bad.exit_code == 1 and json.loads(bad.stdout)["model"]["answers"] == "no"
    assert "does not seem to show its model the pictures" in bad.stderr and len(bad.stderr.splitlines()) == 1
    insisted = CliRunner().invoke(app, [*where, "--format", "json", "--trust-vision"])
    assert insisted.exit_code == 0 and "may not show" in json.loads(insisted.stdout)["model"]["warnings"][0]


@pytest.mark.parametrize(("images", "different", "told"), [(12, 0, True), (12, 5, True), (12, 6, False), (9, 0, False)])
def test_a_caption_that_is_that_of_most_images_is_told(
    faulty: FaultyServer, tmp_path: Path, images: int, different: int, told: bool
) -> None:
    """A model may name a colour and see nothing else: a tower that was never trained, say."""
    folder = folder_of(tmp_path / "in", *(f"{i:02}.png" for i in range(images)))
    names: dict[bytes, int] = {}

    def say(asked: Asked, sample: int) -> str:
        number = images if asked.is_trial else names.setdefault(asked.name, len(names))
        return f"A gear with dent number {number}." if number < different else BLIND

    faulty.say = say
    run(config(faulty, folder, tmp_path / "out.parquet"))
    shown = CliRunner().invoke(app, ["show", str(tmp_path / "out.parquet")], terminal_width=400).stdout
    assert (f"{images - different} of {images} images got the same caption: {BLIND!r}" in shown) == told
    assert ("got the same caption" in shown) == told
    found = CliRunner().invoke(app, ["show", str(tmp_path / "out.parquet"), "--format", "json"]).stdout
    one = json.loads(found)["summary"]["one_caption"]
    assert one == ({"caption": BLIND, "images": images - different, "of": images} if told else None)


def test_copies_of_one_image_are_no_sign(faulty: FaultyServer, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", "a.png")
    for i in range(20):
        (folder / f"copy{i}.png").write_bytes((folder / "a.png").read_bytes())
    result = scan(config(faulty, folder, tmp_path / "out.parquet"), SilentProgress())
    assert len(result.records) == 21 and summarise(result.records)["one_caption"] is None


def test_the_two_pictures_differ_in_grey_as_well() -> None:
    red, green = (colour_picture(colour) for colour in COLOURS)
    assert red.size == green.size and abs(red.convert("L").getpixel((0, 0)) - green.convert("L").getpixel((0, 0))) > 20
    assert names_of("a green, not a Red one") == {"red", "green"} and names_of("A bored Greenland gardener") == set()
