"""The review of a result: which images, what is said of them, what lies on the disk."""

from __future__ import annotations

import csv
import html
import io
import json
import os
import re
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.support.fakes import AGREE, DISAGREE, folder_of, picture_file
from tests.support.hostile_page import HOSTILE, as_file_name
from tests.support.reviewing import FIVE, facts_in, five, items_of, result_of, reviewed
from vlmgate.cli import app
from vlmgate.data import Caption, Reason, Record, Route
from vlmgate.errors import NoImagesError, OutputError, StoreError, UsageError
from vlmgate.export.sheet import read_sheet
from vlmgate.export.text_formats import defused
from vlmgate.gate.rules import COLUMNS, Gate
from vlmgate.report.terminal import BUILTIN_NOTICE
from vlmgate.review.items import apart, differing, facts_of, pieces, sentence, shown
from vlmgate.review.make import MARKER, held, policy, render, safe_json
from vlmgate.review.verdicts import Verdict, VerdictError, VerdictFile, checked, to_csv
from vlmgate.store.result import TRIES_FILE, read_result, write_result

NOW = datetime(2026, 11, 25, 8, 30, tzinfo=UTC)


class Page(HTMLParser):
    """What a browser makes of a page: its elements, and the text of its scripts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.scripts: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "script" and self.scripts:
            self.scripts[-1] += data

    @property
    def data(self) -> dict[str, object]:
        told: dict[str, object] = json.loads(self.scripts[0])
        return told


def marked(*texts: str) -> list[list[str]]:
    return [[text[a:b] for a, b in ranges] for text, ranges in zip(texts, differing(texts), strict=True)]


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (("a brass gear with a dent", "a brass gear with a crack"), [["dent"], ["crack"]]),
        (("a scratch on the gear", "no scratch on the gear"), [["scratch"], ["no scratch"]]),
        (("no scratch", "without a scratch"), [[], []]),
        (("a burr-free edge", "an edge with a burr"), [["burr-free"], ["burr"]]),
        (("one dent", "two dents"), [["one"], ["two"]]),
        (("one dent", "a dent"), [[], []]),
        (("holes of 2.5 mm", "holes of 3 mm"), [["2.5"], ["3"]]),
        (("The GEAR is here.", "gears"), [[], []]),
        (("in the middle of it", "at the middle"), [[], []]),
        (("ok w/o cracks", "ok with cracks"), [["w/o cracks"], ["cracks"]]),
        (("傷あり", "傷なし"), [["傷あり"], ["傷なし"]]),
        (("ﾈｼﾞ", "ねじ"), [["ﾈｼﾞ"], ["ねじ"]]),
        (("a gear", ""), [[], []]),
        (("is it", "of the"), [[], []]),
        (("½ gear", "gear"), [["½"], []]),
        (("the gear isn’t cracked", "the gear is cracked"), [["isn’t cracked"], ["cracked"]]),
    ],
)
def test_words_that_captions_disagree_on_are_marked(texts: tuple[str, ...], words: list[list[str]]) -> None:
    assert marked(*texts) == words


def test_pieces_are_the_text_again_whatever_the_text() -> None:
    for text, ranges in zip(HOSTILE, differing(HOSTILE), strict=True):
        assert "".join(pieces(text, ranges)) == shown(text)
        assert all(0 <= a < b <= len(text) for a, b in ranges)
        assert all(before[1] < after[0] for before, after in pairwise(ranges))


def test_shown_text_keeps_lines_and_escapes_what_steers() -> None:
    assert shown("a\r\nb\tc\x1b[2J\u202e\rd") == "a\nb c\\x1b[2J\\u202e\\rd"


# --- why an image is there --------------------------------------------------------------------------------------------


def row_of(result: Path, name: str = "part_3.png", **changes: object) -> Record:
    (row,) = [r for r in read_result(result)[0] if r.file_name == name]
    return replace(row, **changes)  # type: ignore[arg-type]


def test_the_reason_is_a_plain_sentence(tmp_path: Path) -> None:
    result = five(tmp_path)
    row = row_of(result, vendi_score=3.42, threshold=1.8)
    assert sentence(row, "vendi_score") == (
        "The model read this 4 times and gave about 3.4 different readings; up to 1.8 are accepted."
    )
    beyond = replace(row, reason=Reason.BEYOND_LIMIT, answers=("ok",) * 8)
    told = {
        (
            "answer_share",
            0.375,
            0.75,
        ): "38% of the model's answers, 3 of 8, name the same choice; at least 75% is accepted.",
        ("sharpness", 12.0, 40.0): "The sharpness of the picture is 12; at least 40 is accepted.",
        ("exposure", 0.9, 0.8): "The mean brightness of the picture is 90%; up to 80% is accepted.",
        ("novelty", 1.004, 1.0): "The distance of this image from what the model is meant for (novelty) is 1.004; "
        "up to 1.000 is accepted.",
    }
    for (column, value, limit), words in told.items():
        one = replace(beyond, decided_by=column, threshold=limit, **{column: value})  # type: ignore[arg-type]
        assert sentence(one, "vendi_score") == words
    assert sentence(row_of(result, "part_1.png"), "vendi_score", audit=True) == (
        "Accepted without a person, and drawn at random for this audit. "
        "The model read this 4 times and gave about 1.0 different readings; up to 1.2 are accepted."
    )
    budget = replace(row, reason=Reason.MOST_UNCERTAIN)
    assert "among the most uncertain images, which fill the review budget" in sentence(budget, "vendi_score")


def test_every_reason_has_a_sentence(tmp_path: Path) -> None:
    row = row_of(five(tmp_path), error="truncated\x1b[2J")
    for reason in Reason:
        words = sentence(replace(row, reason=reason), "vendi_score")
        assert words.endswith(".") and "{" not in words and "\x1b" not in words
        assert "novelty" in sentence(replace(row, reason=Reason.NO_SCORE, decided_by="novelty"), "vendi_score")


def test_every_column_that_may_have_a_limit_has_a_sentence(tmp_path: Path) -> None:
    row = row_of(five(tmp_path), reason=Reason.BEYOND_LIMIT, threshold=0.5, answers=("ok",) * 4)
    for column in COLUMNS:
        words = sentence(replace(row, decided_by=column, **{column: 0.25}), "vendi_score")
        assert words.endswith(" is accepted.") or words.endswith(" are accepted."), column
    backed = replace(row, reason=Reason.DISAGREED, decided_by="support", support=0.25)
    assert sentence(backed, "support") == (
        "25% of the model's readings, 1 of 4, back the least backed claim of the typical one; at least 50% is accepted."
    )


def test_figures_are_told_in_as_few_digits_as_tell_them_apart() -> None:
    assert apart(3.42, 1.8, share=False) == ("3.4", "1.8")
    assert apart(1.801, 1.8, share=False) == ("1.801", "1.800")
    assert apart(2.0, 2.0, share=False) == ("2.0", "2.0")
    assert apart(0.7501, 0.75, share=True) == ("75.01%", "75.00%")
    assert apart(12345.0, 900.0, share=False) == ("12,345", "9e+02") or apart(12345.0, 900.0, share=False)[1] == "900"


# --- which images -----------------------------------------------------------------------------------------------------


def test_the_worst_come_first_and_audits_last(tmp_path: Path) -> None:
    items, records, _ = items_of(five(tmp_path), accepted=1)
    assert [item.record.file_name for item in items[:3]] == ["part_3.png", "part_4.png", "part_5.png"]
    assert [item.number for item in items] == [1, 2, 3, 4]
    assert items[3].audit and items[3].reason == "audit" and items[3].record.route == Route.AUTO_ACCEPT
    assert len(records) == 5


def test_the_audit_is_random_and_the_same_with_the_same_seed(tmp_path: Path) -> None:
    result = result_of(tmp_path, [f"p_{i:03}.png" for i in range(60)], lambda _: AGREE)
    drawn = [[i.record.file_name for i in items_of(result, accepted=10, seed=seed)[0]] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and len(set(drawn[0])) == 10
    assert len(items_of(result, accepted=999)[0]) == 60
    with pytest.raises(UsageError, match="--accepted 50 shows some"):
        items_of(result)


def test_identical_captions_are_merged_and_the_reading_is_first(tmp_path: Path) -> None:
    said = ("a gear with a dent", "no dent", "a gear with a dent", "dented gear", "gear, a dent")
    result = result_of(tmp_path, ["a.png"], lambda _: said, num_samples=5)
    (facts,) = facts_in(result)
    first = facts["captions"][0]
    assert facts["typical"] == 0 and first["times"] == 2 and "".join(first["text"]) == said[0]
    same = {"".join(one["text"]) for one in facts["captions"] if one.get("same")}
    assert same == {"a gear with a dent", "dented gear", "gear, a dent"}, "what claims the same is the same reading"
    assert facts["scale"] == ["contradiction", 0.2, 0.0, "<="], "one caption of five denies the dent"
    assert facts["reason"] == "contradicted"
    assert facts["captions"][1]["text"][1::2] == ["no dent"]
    assert facts["claims"] == [["dent", 4], ["no dent", 1]]
    assert facts["why"] == "The model's 5 readings contradict each other: 4 of 5 say dent, 1 of 5 deny it."


def test_captions_that_contradict_the_answer_are_counted(tmp_path: Path) -> None:
    result = result_of(tmp_path, ["a.png"], lambda _: ("no defects",), answer=lambda _: ("scratch",))
    (facts,) = facts_in(result)
    assert facts["why"] == "4 of 4 readings contradict the answer 'scratch'."


def test_under_another_kernel_words_are_compared_and_marked(tmp_path: Path) -> None:
    said = ("a gear with a dent", "no dent", "a gear with a dent", "dented gear", "gear, a dent")
    (facts,) = facts_in(result_of(tmp_path, ["a.png"], lambda _: said, num_samples=5, kernel="words"))
    same = {"".join(one["text"]) for one in facts["captions"] if one.get("same")}
    assert same == {"a gear with a dent", "gear, a dent"} and "claims" not in facts
    marks = {word for one in facts["captions"] for word in one["text"][1::2]}
    assert marks == {"gear", "dent", "no dent", "dented gear"}
    assert "4 of 5 say dent, 1 of 5 deny it" in facts["why"], "captions contradict each other under every kernel"


def test_a_caption_that_hedges_or_claims_nothing_says_the_same_as_its_equal_alone(tmp_path: Path) -> None:
    said = ("perhaps a dent", "perhaps there is a dent", "perhaps a dent", "a grey gear")
    (facts,) = facts_in(result_of(tmp_path, ["a.png"], lambda _: said))
    assert ["".join(one["text"]) for one in facts["captions"] if one.get("same")] == ["perhaps a dent"]
    assert facts["claims"] == [["perhaps dent", 3], ["nothing of the condition", 1]]


def test_claims_on_the_page_are_text_that_steers_nothing(tmp_path: Path) -> None:
    said = ("a \x1b[2J \u202edent", "no <b>dent</b> at all\u200b", "a de\u00adnt")
    (facts,) = facts_in(result_of(tmp_path, ["a.png"], lambda _: said, num_samples=3))
    assert facts["claims"] == [["dent", 2], ["no dent", 1]]
    shown_as = ["".join(one["text"]) for one in facts["captions"]]
    assert sorted(shown_as) == sorted(map(shown, said)) and all(text.isprintable() for text in shown_as)
    assert [one["text"][1::2] for one in facts["captions"] if "<b>" in "".join(one["text"])] == [["no", "dent"]]


def test_a_very_long_list_of_captions_is_cut_but_keeps_the_reading(tmp_path: Path) -> None:
    result = result_of(tmp_path, ["a.png"], lambda _: [f"caption {i}" for i in range(100)], num_samples=100)
    (item,), _, gate = items_of(result)
    provenance = read_result(result)[1]
    assert len(facts_of(item, gate, provenance)["captions"]) == 64
    last = replace(item, record=replace(item.record, caption="caption 99"))
    facts = facts_of(last, gate, provenance)
    assert facts["claims"] == [["nothing of the condition", 100]]
    assert len(facts["captions"]) == 64 and "".join(facts["captions"][0]["text"]) == "caption 99"


# --- pictures ---------------------------------------------------------------------------------------------------------


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


def test_previews_are_upright_small_and_numbered(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", "a.png")
    wide = Image.new("RGB", (2000, 500), "white")
    wide.paste((255, 0, 0), (0, 0, 1000, 500))  # red on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # turn 90° clockwise: red on top
    wide.save(folder / "turned.jpg", exif=exif, quality=95)
    deep = np.full((40, 60), 4095 << 4, np.uint16)
    deep[:20] = 0
    Image.fromarray(deep).save(folder / "deep.tif")
    result = result_of(tmp_path, ["b.png"], lambda _: DISAGREE)
    made = reviewed(result)
    names = {item.record.file_name: item.number for item in made.items}
    turned = opened(made.out / "previews" / f"{names['turned.jpg']:06d}.jpg")
    assert turned.size == (400, 1600)
    green = np.asarray(turned)[..., 1]
    assert green[100, 200] < 40 and green[1500, 200] > 200
    thumb = opened(made.out / "thumbs" / f"{names['turned.jpg']:06d}.jpg")
    assert thumb.size == (64, 256) and not thumb.getexif()
    shades = np.asarray(opened(made.out / "previews" / f"{names['deep.tif']:06d}.jpg").convert("L"))
    assert shades[:15].max() < 20 and shades[25:].min() > 235
    assert {p.name for p in (made.out / "previews").iterdir()} == {f"{i:06d}.jpg" for i in range(1, 5)}


def test_what_cannot_be_shown_says_why(tmp_path: Path) -> None:
    result = result_of(tmp_path, FIVE, lambda _: DISAGREE, broken=True)
    (tmp_path / "in" / "part_1.png").unlink()
    picture_file(tmp_path / "in" / "part_2.png", salt="another")
    (tmp_path / "in" / "part_3.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    made = reviewed(result)
    lacking = {item.record.file_name: one for item, one in made.lacking}
    assert {name: one.kind for name, one in lacking.items()} == {
        "broken.png": "unreadable",
        "part_1.png": "missing",
        "part_2.png": "changed",
        "part_3.png": "changed",
    }
    page = Page(made.out / "index.html").data
    told = {item["name"]: item for item in page["items"]}  # type: ignore[attr-defined]
    assert "has changed since the model read it" in told["part_2.png"]["lacking"] and "size" not in told["part_2.png"]
    assert "could not read this file" in told["broken.png"]["lacking"] and told["part_4.png"]["size"] == [12, 9]
    assert len(list((made.out / "previews").iterdir())) == 2


def test_only_files_of_the_image_folder_are_opened(tmp_path: Path) -> None:
    result = five(tmp_path)
    secret = picture_file(tmp_path / "secret.png")
    records, provenance = read_result(result)
    hostile = [replace(r, file_name="../secret.png") if r.file_name == "part_3.png" else r for r in records]
    absolute = [replace(r, file_name=str(secret)) if r.file_name == "part_4.png" else r for r in hostile]
    write_result(tmp_path / "h.parquet", absolute, provenance)
    made = reviewed(tmp_path / "h.parquet")
    assert sorted(one.kind for _, one in made.lacking) == ["missing", "missing"]


def test_the_images_may_have_moved(tmp_path: Path) -> None:
    result = five(tmp_path)
    (tmp_path / "in").rename(tmp_path / "moved")
    with pytest.raises(NoImagesError, match="say where it is now with --images"):
        reviewed(result)
    assert not reviewed(result, images=tmp_path / "moved").lacking


# --- the page ---------------------------------------------------------------------------------------------------------


def test_hostile_texts_are_data_and_nothing_else(tmp_path: Path) -> None:
    names = [name for text in HOSTILE if (name := as_file_name(text))]
    assert len(HOSTILE) >= 60 and len(names) >= 60
    result = result_of(tmp_path, names, lambda _: HOSTILE, answer=lambda _: HOSTILE[:8], num_samples=len(HOSTILE))
    hostile = tmp_path / "<img src=x onerror=owned=1>&{{ 7*7 }}.parquet"
    result.rename(hostile)
    page = Page(reviewed(hostile, out=tmp_path / "out").out / "index.html")
    harmless = Page(reviewed(five(tmp_path / "five"), out=tmp_path / "five" / "out").out / "index.html")
    assert page.tags == harmless.tags, "no text became an element"
    assert [n for n, _ in page.attributes if n.startswith("on")] == []
    assert page.scripts[0].isascii() and not set("<>&") & set(page.scripts[0])
    told = {item.get("raw", item["name"]): item for item in page.data["items"]}  # type: ignore[attr-defined]
    assert set(told) == set(names)
    captions = {"".join(one["text"]) for one in told[names[0]]["captions"]}
    assert captions <= {shown(text[:4000]) for text in HOSTILE} and len(captions) >= 60


def test_json_for_html_is_the_data_again() -> None:
    data = {"texts": list(HOSTILE)}
    assert json.loads(safe_json(data)) == data
    with pytest.raises(ValueError):
        safe_json([float("nan")])


def test_the_policy_forbids_the_network_and_inline_scripts() -> None:
    page = render({"items": []}, "</title><script>owned=1</script>")
    assert page.count("<script") == 2 and "&lt;/title&gt;" in page
    assert "default-src 'none'" in policy("file") and "connect-src 'none'" in policy("file")
    assert "connect-src 'self'" in policy("served") and "unsafe" not in policy("file") + policy("served")
    assert policy("file") in page and "http:" not in re.sub(r"http-equiv", "", page) and "https:" not in page


# --- on the disk ------------------------------------------------------------------------------------------------------


def test_a_review_is_replaced_and_verdicts_stay(tmp_path: Path) -> None:
    result = five(tmp_path)
    made = reviewed(result)
    assert made.out == tmp_path / "r_review" and len(made.items) == 3
    (made.out / "verdicts.csv").write_text("file_name,page\n")
    (made.out / TRIES_FILE).write_text("what was tried on these verdicts")
    (made.out / "left.txt").write_text("x")
    again = reviewed(result, accepted=2)
    assert (made.out / TRIES_FILE).read_text() == "what was tried on these verdicts"
    assert len(again.items) == 5 and (made.out / "verdicts.csv").read_text() == "file_name,page\n"
    assert not (made.out / "left.txt").exists()
    assert {p.name for p in tmp_path.iterdir() if "review" in p.name} == {"r_review"}


def test_other_folders_are_refused(tmp_path: Path) -> None:
    result = five(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    (tmp_path / "page.html").write_text("<p>mine</p>")
    other = reviewed(five(tmp_path / "other"))
    for options, words in (
        ({"out": tmp_path / "mine"}, "exists and is no review"),
        ({"out": tmp_path / "page.html", "single_file": True}, "exists and is no review"),
        ({"out": tmp_path / "page.htm", "single_file": True}, "must end in .html"),
        ({"out": other.out}, "is the review of another scan"),
        ({"out": tmp_path / "in" / "review"}, "lies in the image folder"),
    ):
        with pytest.raises(OutputError, match=words):
            reviewed(result, **options)  # type: ignore[arg-type]
    assert (tmp_path / "mine" / "thesis.tex").exists() and (tmp_path / "page.html").read_text() == "<p>mine</p>"


def test_what_was_stopped_half_way_is_put_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = five(tmp_path)
    made = reviewed(result)
    (made.out / "verdicts.csv").write_text("kept")
    made.out.rename(tmp_path / ".r_review.old")  # as after a power cut between the two renames
    (tmp_path / ".r_review.new").mkdir()
    assert (reviewed(result).out / "verdicts.csv").read_text() == "kept"

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(StoreError, match="No space left on device"):
            reviewed(result)
    assert (made.out / "index.html").exists() and (made.out / "verdicts.csv").read_text() == "kept"
    assert {p.name for p in tmp_path.iterdir() if "review" in p.name} == {"r_review"}


def test_a_single_file_holds_its_pictures_and_is_limited(tmp_path: Path) -> None:
    made = reviewed(five(tmp_path), single_file=True)
    assert made.out == tmp_path / "r_review.html"
    items = Page(made.out).data["items"]
    assert all(item["src"].startswith("data:image/jpeg;base64,/9j/") for item in items)  # type: ignore[attr-defined]
    assert reviewed(tmp_path / "r.parquet", single_file=True).out == made.out
    many = result_of(tmp_path / "many", [f"{i}.png" for i in range(501)], lambda _: DISAGREE)
    with pytest.raises(UsageError, match="holds up to 500 images, and 501"):
        reviewed(many, single_file=True)


# --- verdicts ---------------------------------------------------------------------------------------------------------


def test_verdicts_are_checked() -> None:
    said = checked({"verdict": "wrong", "reading": "a\x00b\u202ec\n\td\ud800", "note": "ü"}, NOW)
    assert said == Verdict("wrong", "abc\n\td", "ü", "2026-11-25T08:30:00Z")
    assert checked({"verdict": ""}) is None and checked({}) is None
    for told in ({"verdict": "maybe"}, {"verdict": 1}, {"verdict": "wrong", "note": "x" * 10_001}, {"reading": None}):
        with pytest.raises(VerdictError):
            checked(told)


def test_hostile_verdicts_survive_csv_and_are_no_formulas(tmp_path: Path) -> None:
    names = [name for text in HOSTILE if (name := as_file_name(text))]
    items, _, _ = items_of(result_of(tmp_path, names, lambda _: DISAGREE))
    given = {}
    for item, text in zip(items, HOSTILE, strict=False):
        said = checked({"verdict": "wrong", "reading": text, "note": text}, NOW)
        assert said is not None
        given[item.key] = said
    text = to_csv(items, given)
    (tmp_path / "verdicts.csv").write_bytes(text.encode())
    assert VerdictFile(tmp_path / "verdicts.csv", items).given == given
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert tuple(rows[0]) == ("file_name", "page", "sha256", "verdict", "reading", "note", "at", "audit", "route")
    assert not any(cell[:1] in "=+-@\t\r＝" and cell for row in rows for cell in row.values())
    assert {row["audit"] for row in rows} == {"false"} and {row["route"] for row in rows} == {"human_review"}


FORMULAS = ("=1+1", "'=1+1", "''=1+1", "'quoted'", "a;=1+1", "a\n-1", " =1+1", "\t=1+1", "plain - text", "＝1+1")


def test_a_sheet_and_a_review_keep_formulas_from_running_by_the_same_rule(tmp_path: Path) -> None:
    items, _, _ = items_of(result_of(tmp_path, [f"{i:02}.png" for i in range(len(FORMULAS))], lambda _: DISAGREE))
    given = {item.key: Verdict("wrong", text, text, "") for item, text in zip(items, FORMULAS, strict=True)}
    text = to_csv(items, given)
    cells = [row["note"] for row in csv.DictReader(io.StringIO(text, newline=""))]
    assert cells == [defused(one) for one in FORMULAS] and cells[4] == "a;'=1+1" and cells[8] == "plain - text"
    path = tmp_path / "verdicts.csv"
    path.write_bytes(text.encode())
    assert VerdictFile(path, items).given == given
    assert [one.note for one in read_sheet(path)] == list(FORMULAS)


def test_verdicts_that_an_earlier_release_wrote_are_read(tmp_path: Path) -> None:
    names = ["a;'=1.png", "=b;-1.png", "'c'.png"]  # it wrote ' only before a formula at the start of a cell
    items, _, _ = items_of(result_of(tmp_path, names, lambda _: DISAGREE))
    written = {"=b;-1.png": "'=b;-1.png"}
    path, file = tmp_path / "verdicts.csv", io.StringIO()
    table = csv.DictWriter(file, ("file_name", "page", "sha256", "verdict", "reading", "note", "at"))
    table.writeheader()
    for item in items:
        name, told = item.record.file_name, {"reading": "'=1", "note": "'so' it is;-1", "at": "2026-11-25T08:30:00Z"}
        key = {"file_name": written.get(name, name), "page": 1, "sha256": item.record.sha256}
        table.writerow({"verdict": "wrong"} | key | told)
    path.write_text(file.getvalue(), encoding="utf-8")
    said = Verdict("wrong", "=1", "'so' it is;-1", "2026-11-25T08:30:00Z")
    assert VerdictFile(path, items).given == {item.key: said for item in items}


@pytest.mark.parametrize("row", [",a note", "maybe,", "correct,"])
def test_a_file_with_a_row_that_is_no_verdict_of_the_review_is_not_overwritten(tmp_path: Path, row: str) -> None:
    items, _, _ = items_of(five(tmp_path))
    path = tmp_path / "verdicts.csv"
    path.write_text(f"file_name,verdict,note\npart_9.png,{row}\n")
    with pytest.raises(StoreError, match="move it away"):
        VerdictFile(path, items)
    path.write_text("")
    assert VerdictFile(path, items).given == {}


def test_the_file_of_verdicts_is_whole_at_any_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items, _, _ = items_of(five(tmp_path), accepted=1)
    file = VerdictFile(tmp_path / "verdicts.csv", items)
    said = Verdict("correct", "a gear", "", "2026-11-25T08:30:00Z")
    for item in items:
        file.put(item.key, said)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "verdicts.csv").read_text(encoding="utf-8"))))
    assert [(row["file_name"], row["audit"], row["route"]) for row in rows[2:]] == [
        ("part_5.png", "false", "human_review"),
        (items[3].record.file_name, "true", "auto_accept"),
    ]
    before = (tmp_path / "verdicts.csv").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(13, "Permission denied")))
        with pytest.raises(OSError, match="Permission denied"):
            file.put(items[0].key, None)
    assert (tmp_path / "verdicts.csv").read_bytes() == before and len(file.given) == 4
    file.put(items[0].key, None)
    assert VerdictFile(tmp_path / "verdicts.csv", items).given == file.given and len(file.given) == 3


def test_verdicts_of_another_review_are_not_overwritten(tmp_path: Path) -> None:
    items, _, _ = items_of(five(tmp_path), accepted=2)
    file = VerdictFile(tmp_path / "verdicts.csv", items)
    file.put(items[4].key, Verdict("correct", "", "", "2026-11-25T08:30:00Z"))
    with pytest.raises(StoreError, match="holds verdicts on images that are not in this review"):
        VerdictFile(tmp_path / "verdicts.csv", items[:3])
    (tmp_path / "verdicts.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StoreError, match="cannot be read as verdicts"):
        VerdictFile(tmp_path / "verdicts.csv", items)


def test_copies_share_a_verdict_and_have_a_row_each(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", "a.png")
    shutil.copy(folder / "a.png", folder / "b.png")
    items, _, _ = items_of(result_of(tmp_path, ["c.png"], lambda _: DISAGREE))
    keys = {item.record.file_name: item.key for item in items}
    assert keys["a.png"] == keys["b.png"] != keys["c.png"]
    text = to_csv(items, {keys["a.png"]: Verdict("wrong", "", "", "2026-11-25T08:30:00Z")})
    assert [row["file_name"] for row in csv.DictReader(io.StringIO(text))] == ["a.png", "b.png"]


# --- the command ------------------------------------------------------------------------------------------------------


def run(*arguments: object, code: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, (result.exit_code, result.stdout, result.stderr, result.exception)
    return result.stdout, result.stderr


def test_the_command_tells_what_it_wrote(tmp_path: Path) -> None:
    out, _ = run("review", five(tmp_path), "--accepted", 9)
    assert "3 images routed to human, the worst first." in out
    assert "2 images of 2 auto-accepted, drawn at random (seed 0)." in out and "smaller than --accepted 9" in out
    assert f"Wrote {tmp_path / 'r_review'} (5 images," in out
    assert f"Next: open {(tmp_path / 'r_review' / 'index.html').as_uri()} in a browser." in out
    (tmp_path / "in" / "part_3.png").unlink()
    out, _ = run("review", tmp_path / "r.parquet", code=3)
    assert "1 image not in the image folder any more, first: part_3.png" in out
    told = json.loads((tmp_path / "r_review" / MARKER).read_text())
    assert told["run_id"] == read_result(tmp_path / "r.parquet")[1]["run_id"] and told["accepted"] == 0


def test_usage_errors_are_one_line(tmp_path: Path) -> None:
    result = five(tmp_path)
    assert "exclude each other" in run("review", result, "--serve", "--single-file", code=2)[1]
    assert "no such folder" in run("review", result, "-o", tmp_path / "no" / "where", code=2)[1]
    assert not (tmp_path / "no").exists()
    assert "no such file" in run("review", tmp_path / "none.parquet", code=1)[1]
    assert not list(tmp_path.glob(".none*"))
    with held(tmp_path / "r_review"):
        assert "another `vlmgate review` makes or serves it" in run("review", result, code=2)[1]


def test_an_unanswered_question_and_its_answers_are_told(tmp_path: Path) -> None:
    result = result_of(tmp_path, ["a.png"], lambda _: AGREE, answer=lambda _: ("ok", "scratch", "ok", "unsure"))
    (facts,) = facts_in(result)
    (item,), _, gate = items_of(result)
    assert [(one["times"], "".join(one["text"])) for one in facts["answers"]] == [
        (2, "ok"),
        (1, "scratch"),
        (1, "unsure"),
    ]
    assert facts["scale"] == ["answer_probability", item.record.answer_probability, 0.75, ">="]
    assert facts["answer"] == "ok"
    assert isinstance(gate, Gate)
    silent = tuple(Caption(said, "stop", None, 2) for said in ("ok", "scratch", "ok", "unsure"))
    result = result_of(tmp_path / "silent", ["a.png"], lambda _: AGREE, answer=lambda _: silent)
    assert facts_in(result)[0]["scale"] == ["answer_share", 0.5, 0.75, ">="], "without log-probabilities"


def test_the_built_in_model_is_disowned_on_the_page(tmp_path: Path) -> None:
    result = five(tmp_path)
    made = reviewed(result)
    page = (made.out / "index.html").read_text(encoding="utf-8")
    _, provenance = read_result(result)
    assert provenance["model"]["model"] == "builtin" and BUILTIN_NOTICE in html.unescape(page)
    assert BUILTIN_NOTICE not in html.unescape(render({"items": []}, "t"))
