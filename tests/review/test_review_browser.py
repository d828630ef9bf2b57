"""The review page in a real Chromium: keys, saving, hostile texts, no network, accessibility.

Needs the extra `browser` and Chromium from the system (Debian: chromium); Playwright drives it and downloads nothing.
For the check of accessibility VLMGATE_AXE names axe.min.js of the npm package axe-core (`npm pack axe-core`).
Where Chromium or its driver fails, and not the page, a test is tried once more with a fresh Chromium.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.fakes import DISAGREE, picture_file
from tests.support.hostile_page import HOSTILE, as_file_name
from tests.support.reviewing import five, items_of, result_of, reviewed
from vlmgate.errors import plain
from vlmgate.export.text_formats import defused
from vlmgate.review.items import shown
from vlmgate.review.make import render
from vlmgate.review.server import ReviewServer
from vlmgate.review.verdicts import Verdict, VerdictFile, checked, to_csv
from vlmgate.store.result import read_result, write_result

if TYPE_CHECKING:
    from playwright.async_api import Page

for package in ("playwright", "pytest_rerunfailures"):
    pytest.importorskip(package, reason="the extra `browser` is not installed")
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
PATIENCE = 30  # seconds that one command to Chromium may take
NOT_THE_PAGE = [r"^(Timeout|TargetClosed)Error", "Page crashed", "Target crashed", "Connection closed"]
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: chromium)"),
    pytest.mark.flaky(reruns=1, only_rerun=NOT_THE_PAGE),
]
SIZES = {"desktop": (1400, 900), "tablet": (820, 1180), "phone": (390, 844)}
NAMED_KEYS = ("Enter", "Escape", "End", "Backspace")


class Chromium:
    """A headless Chromium, started when it is needed, and anew after it failed."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.stack: contextlib.AsyncExitStack | None = None
        self.browser: Any = None
        self.failed = False

    def do(self, command: Coroutine[Any, Any, Any]) -> Any:
        """Return what a command of Playwright returns; raises `TimeoutError` where it takes too long."""
        try:
            return self.loop.run_until_complete(asyncio.wait_for(command, PATIENCE))
        except TimeoutError:
            self.failed = True
            raise

    def new_page(self) -> Page:
        """Return an empty page that shares no storage and no cache with others."""
        if self.failed or self.browser is None or not self.browser.is_connected():
            self.stop()
            self.failed = False
            self.do(self._start())
        return self.do(self._new_page())

    async def _start(self) -> None:
        from playwright.async_api import async_playwright

        self.stack = contextlib.AsyncExitStack()
        playwright = await self.stack.enter_async_context(async_playwright())
        self.browser = await playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--disable-gpu", "--disable-dev-shm-usage"], chromium_sandbox=False
        )

    async def _new_page(self) -> Page:
        context = await self.browser.new_context(accept_downloads=True)
        context.set_default_timeout(1000 * PATIENCE)
        return await context.new_page()

    def stop(self) -> None:
        stack, self.stack = self.stack, None
        if stack is not None:
            with contextlib.suppress(Exception):
                self.do(stack.aclose())


class Browser:
    """One page of Chromium, with the requests that it makes and what it logs."""

    def __init__(self, chromium: Chromium, downloads: Path) -> None:
        self.do, self.page, self.downloads = chromium.do, chromium.new_page(), downloads
        self.logged: list[str] = []
        self._asked: list[str] = []
        self.page.on("console", lambda message: self.logged.append(message.text))
        self.protocol = self.do(self.page.context.new_cdp_session(self.page))
        self.protocol.on("Network.requestWillBeSent", lambda event: self._asked.append(event["request"]["url"]))
        self.command("Network.enable")
        self.look("desktop")

    def command(self, name: str, **parameters: Any) -> Any:
        """Send a command of the DevTools protocol."""
        return self.do(self.protocol.send(name, parameters))

    def look(self, size: str, *, dark: bool = False) -> None:
        width, height = SIZES[size]
        self.do(self.page.set_viewport_size({"width": width, "height": height}))
        self.do(self.page.emulate_media(color_scheme="dark" if dark else "light"))

    def open(self, path: Path | str) -> Browser:
        """Open a page, and wait until it is ready."""
        self._asked.clear()
        self.do(self.page.goto("about:blank"))
        page = path if isinstance(path, str) else (path / "index.html" if path.is_dir() else path).as_uri()
        self.do(self.page.goto(page))
        self.wait_for(lambda: self.run("return document.documentElement.dataset.ready") == "yes")
        return self

    def open_again(self, path: Path, shows: Callable[[], bool]) -> None:
        """Open a page anew, in another process of the browser; what the last one stored may be a moment on its way."""
        self.wait_for(lambda: self.open(path) and shows())

    def run(self, script: str, *arguments: Any) -> Any:
        """Return what a script returns, a promise's value when it has one."""
        whole = f"(given) => (function () {{ {script} }}).apply(null, given)"
        return self.do(self.page.evaluate(whole, list(arguments)))

    def wait_for(self, done: Callable[[], Any], seconds: float = 20) -> Any:
        end = time.monotonic() + seconds
        while not (value := done()):
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.02)
        return value

    def press(self, *keys: str) -> None:
        """Press named keys ("Enter", "Control+Enter"), and type everything else."""
        for key in keys:
            named = key.rpartition("+")[2] in NAMED_KEYS
            self.do(self.page.keyboard.press(key) if named else self.page.keyboard.type(key))

    def text(self, identity: str) -> str:
        told: str = self.run("return document.getElementById(arguments[0]).textContent", identity)
        return told

    def verdicts(self) -> list[dict[str, str]]:
        """Download verdicts.csv with its key, and return its rows."""
        path = self.do(self._downloaded())
        return list(csv.DictReader(io.StringIO(path.read_bytes().decode("utf-8"), newline="")))

    async def _downloaded(self) -> Path:
        async with self.page.expect_download() as expected:
            await self.page.keyboard.press("d")
        download = await expected.value
        assert download.suggested_filename == "verdicts.csv"
        await download.save_as(self.downloads / "verdicts.csv")
        return self.downloads / "verdicts.csv"

    def requests(self) -> list[str]:
        """Return the addresses that were asked for since the last call, or since the page was opened."""
        asked = self._asked.copy()
        self._asked.clear()
        return asked


@pytest.fixture(scope="module")
def started() -> Iterator[Chromium]:
    chromium = Chromium()
    yield chromium
    chromium.stop()
    chromium.loop.close()


@pytest.fixture
def chromium(started: Chromium, tmp_path: Path) -> Iterator[Browser]:
    """An empty page of a Chromium that works."""
    browser = Browser(started, tmp_path / "downloads")
    yield browser
    if not started.failed:
        with contextlib.suppress(Exception):  # of a Chromium that has gone; the next test gets a fresh one
            browser.do(browser.page.context.close())


@pytest.fixture
def page(chromium: Browser, tmp_path: Path) -> Browser:
    """The review of five images, three routed and two accepted."""
    return chromium.open(reviewed(five(tmp_path), accepted=2).out)


def test_keys_give_verdicts_and_move_on(page: Browser) -> None:
    assert page.text("name") == "part_3.png" and page.text("position") == "1 of 5"
    assert page.text("why").startswith("The model read this 4 times and gave about 3.7 different readings")
    page.press("w")
    assert page.text("name") == "part_4.png" and page.text("progress-text") == "1 of 5"
    page.press("u")
    page.press("c")
    page.press("k")
    assert page.text("name") == "part_5.png" and page.text("state") == "✓ correct"
    page.press("z")
    assert page.text("state") == "" and page.text("progress-text") == "2 of 5"
    page.press("2")
    rows = page.verdicts()
    assert [(row["file_name"], row["verdict"], row["reading"]) for row in rows] == [
        ("part_3.png", "wrong", ""),
        ("part_4.png", "unusable", ""),
        ("part_5.png", "wrong", DISAGREE[1]),
    ]
    assert {row["audit"] for row in rows} == {"false"} and all(len(row["sha256"]) == 64 for row in rows)


def test_everything_can_be_done_from_the_keyboard(page: Browser) -> None:
    page.press("e")
    assert page.run("return document.activeElement.id") == "edit-text"
    page.press("a dent, ", "ünd more")
    page.wait_for(lambda: page.run("return document.getElementById('edit-text').value") == "a dent, ünd more")
    page.press("Control+Enter")
    page.wait_for(lambda: page.text("name") == "part_4.png")
    page.press("k")
    page.wait_for(lambda: page.text("own") == "a dent, ünd more")
    page.press("n", "seen under a lamp", "Enter")
    assert page.run("return document.activeElement.id") == "stage", "Enter leaves the field"
    page.press("j")
    assert page.text("name") == "part_4.png"
    page.press("+")
    zoomed = page.text("zoom-text")
    page.press("0")
    assert page.text("zoom-text") != zoomed
    page.press("?")
    assert page.run("return document.getElementById('help-dialog').open")
    page.press("c", "Escape")
    assert page.text("progress-text") == "1 of 5", "keys do not reach the page behind a dialog"
    page.press("/", "part_5", "Escape")
    assert page.text("position") == "1 of 1" and page.text("name") == "part_5.png"
    page.press("/", "none such")
    assert page.run("return document.getElementById('nothing').hidden") is False
    page.do(page.page.click("#show-all"))
    assert page.text("position").endswith("of 5")
    page.press("g")
    page.press("End")
    page.press("Enter")
    assert page.text("position") == "5 of 5" and page.text("reason") == "accepted, audit"
    page.press("Backspace")
    (row,) = page.verdicts()
    assert (row["verdict"], row["reading"], row["note"]) == ("wrong", "a dent, ünd more", "")


def test_a_key_right_after_a_dialog_is_for_the_page(page: Browser) -> None:
    """The browser moves the focus out of a closed dialog only when it draws again; held keys repeat before that."""
    page.press("e")
    page.run(
        "const field = document.getElementById('edit-text'); field.value = 'a scratch';"
        "for (const [key, ctrlKey] of [['Enter', true], ['Enter', true], ['u', false], ['k', false], ['k', false]])"
        "  field.dispatchEvent(new KeyboardEvent('keydown', {key, ctrlKey, bubbles: true}));"
    )
    assert page.text("own") == "a scratch" and page.text("progress-text").startswith("2 of 5")
    focused = "return document.activeElement.id"
    page.wait_for(lambda: page.run(focused) == "stage")
    page.press("?", "Escape")
    page.wait_for(lambda: page.run(focused) == "stage")
    assert [(row["verdict"], row["reading"]) for row in page.verdicts()] == [("wrong", "a scratch"), ("unusable", "")]


@pytest.mark.parametrize(("key", "field"), [("e", "edit-text"), ("n", "note"), ("/", "search")])
def test_a_key_held_down_is_not_typed_into_the_field_that_it_opens(page: Browser, key: str, field: str) -> None:
    def hold(**more: Any) -> None:
        page.command("Input.dispatchKeyEvent", type="keyDown", key=key, text=key, **more)

    value = "return document.getElementById(arguments[0]).value"
    hold()
    assert page.run("return document.activeElement.id") == field
    before = page.run(value, field)
    hold(autoRepeat=True)
    hold(autoRepeat=True)
    assert page.run(value, field) == before
    page.command("Input.dispatchKeyEvent", type="keyUp", key=key)
    page.press("a", key)
    assert page.run(value, field) == f"a{key}"


def test_taking_what_says_the_same_is_correct(chromium: Browser, tmp_path: Path) -> None:
    said = ("a gear with a dent", "no dent", "a gear with a dent", "gear, a dent")
    chromium.open(reviewed(result_of(tmp_path, ["a.png", "b.png", "c.png"], lambda _: said)).out)
    chromium.press("1")
    captions = chromium.run("return [...document.querySelectorAll('#captions .words')].map(e => e.textContent)")
    chromium.press(str(captions.index("gear, a dent") + 1))
    chromium.press(str(captions.index("no dent") + 1))
    assert [(row["verdict"], row["reading"]) for row in chromium.verdicts()] == [
        ("correct", "a gear with a dent"),
        ("correct", "gear, a dent"),
        ("wrong", "no dent"),
    ]
    marks = chromium.run("return [...document.querySelectorAll('#captions mark')].map(e => e.textContent)")
    assert "no dent" in marks and "a" not in marks


def test_claims_are_told_in_a_line_and_marked_where_they_stand(chromium: Browser, tmp_path: Path) -> None:
    said = (
        "Straße ½: a long **scratch** 🔩.",
        "A steel ring; no <b>scratches</b> or dents.",
        "A ring, perhaps scratched.",
    )
    result = result_of(tmp_path, ["a.png"], lambda _: (said[0], *said), num_samples=4)
    chromium.open(reviewed(result).out)
    assert chromium.run("return document.getElementById('claims').innerText") == (
        "2 of 4 scratch · 1 of 4 no dent, no scratch · 1 of 4 perhaps scratch"
    )
    marks = chromium.run(
        "return [...document.querySelectorAll('#captions .words')]"
        ".map(e => [e.textContent, [...e.querySelectorAll('mark')].map(m => m.textContent)])"
    )
    assert marks == [[said[0], ["scratch"]], [said[1], ["no", "scratches"]], [said[2], ["perhaps scratched"]]]
    assert "2 of 4 say scratch, 1 of 4 deny it." in chromium.run("return document.getElementById('why').textContent")


def test_a_claim_whose_name_is_markup_is_text(chromium: Browser, tmp_path: Path) -> None:
    name = "gizmo <img src=x onerror=owned=1>"
    result = result_of(tmp_path, ["a.png"], lambda _: (f"a {name} here", "no defects"), answer=lambda _: ("unsure",))
    records, provenance = read_result(result)
    provenance["sampling"]["choices"] = ["ok", name]
    write_result(result, records, provenance)
    chromium.open(reviewed(result).out)
    claims = chromium.run("return document.getElementById('claims').textContent")
    assert f"2 of 4 {name}" in claims and chromium.run("return document.querySelectorAll('#claims img').length") == 0
    assert chromium.run("return window.owned === undefined")


def leaving_warns(browser: Browser) -> bool:
    warned: bool = browser.run(
        "const e = new Event('beforeunload', {cancelable: true}); window.dispatchEvent(e); return e.defaultPrevented"
    )
    return warned


def test_verdicts_survive_a_reload_and_leaving_warns(page: Browser, tmp_path: Path) -> None:
    assert not leaving_warns(page)
    page.press("w")
    assert leaving_warns(page)
    page.open_again(tmp_path / "r_review", lambda: page.text("name") == "part_4.png")
    assert page.text("progress-text") == "1 of 5" and leaving_warns(page)
    page.press("c")
    assert [row["verdict"] for row in page.verdicts()] == ["wrong", "correct"]
    assert not leaving_warns(page)
    page.open(reviewed(five(tmp_path / "other")).out)
    assert page.text("progress-text") == "0 of 3", "another scan has verdicts of its own"


def test_without_storage_the_page_works_and_says_so(chromium: Browser, tmp_path: Path) -> None:
    source = "Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('no') }})"
    chromium.do(chromium.page.add_init_script(source))
    chromium.open(reviewed(five(tmp_path)).out)
    assert "keeps nothing for this page" in chromium.text("warning")
    chromium.press("w")
    assert leaving_warns(chromium) and [row["verdict"] for row in chromium.verdicts()] == ["wrong"]


SEEN = """
const seen = [], next = document.getElementById("next");
for (;;) {
  const words = [...document.querySelectorAll("#captions .words")].map((e) => e.textContent);
  const answers = [...document.querySelectorAll("#answers .words")].map((e) => e.textContent);
  const name = document.getElementById("name");
  seen.push([name.textContent, words, answers, name.children.length]);
  if (next.disabled) break;
  next.click();
}
return seen;
"""


def test_hostile_texts_are_shown_as_text_and_come_back_unharmed(chromium: Browser, tmp_path: Path) -> None:
    names = [name for text in HOSTILE if (name := as_file_name(text))]
    assert len(names) >= 60
    result = result_of(tmp_path, names, lambda _: HOSTILE, answer=lambda _: HOSTILE, num_samples=len(HOSTILE))
    out = reviewed(result, out=tmp_path / "out").out
    chromium.open(out)
    elements = chromium.run("return document.querySelectorAll('*').length")
    seen = chromium.run(SEEN)
    assert {name for name, *_ in seen} == {plain(name) for name in names}
    expected = {shown(text[:4000]) for text in HOSTILE}
    for _, captions, answers, children in seen:
        assert children == 0 and len(captions) == len(answers) == 64
        assert {text if text.strip() != "(empty)" else text.removesuffix("(empty)") for text in captions} <= expected
        assert set(answers) <= expected
    shown_texts = {text for _, captions, *_ in seen for text in captions}
    assert len(shown_texts & expected) >= 60
    assert not any(c in text for text in shown_texts for c in "\x1b\x07\u202e\u2066\u200b\u2028")
    assert (
        chromium.run("return window.owned") is None and chromium.run("return document.title") == "Review of r.parquet"
    )
    assert chromium.run("return document.querySelectorAll('*').length") == elements
    assert (
        chromium.run("return document.querySelectorAll('iframe, svg, link:not([rel=icon]), script, base').length") == 1
    )

    def give_all() -> list[dict[str, str]]:
        chromium.open(out)
        for i, text in enumerate(HOSTILE[: len(names)]):
            chromium.run(
                "const n = document.getElementById('note'); n.value = arguments[0];"
                "n.dispatchEvent(new Event('change')); document.getElementById('wrong').click();",
                text,
            )
            assert chromium.text("progress-text").startswith(f"{i + 1} of")
        return chromium.verdicts()

    rows = give_all()
    items, _, _ = items_of(result)
    assert [row["sha256"] for row in rows] == [item.record.sha256 for item in items]
    for row, told in zip(rows, HOSTILE, strict=False):
        said = checked({"verdict": "wrong", "note": told.replace("\n", "").replace("\r", "")})  # a note is one line
        assert said is not None and row["note"] == defused(said.note)
    text = (chromium.downloads / "verdicts.csv").read_bytes().decode("utf-8")
    given = VerdictFile(chromium.downloads / "verdicts.csv", items).given
    assert to_csv(items, given) == text, "the page and the server write the same"
    assert all(isinstance(said, Verdict) for said in given.values()) and len(given) == len(names)
    chromium.open_again(out, lambda: chromium.text("progress-text").startswith(f"{len(names)} of {len(names)}"))


def test_no_request_leaves_the_page(page: Browser, tmp_path: Path) -> None:
    page.logged.clear()
    page.open(tmp_path / "r_review")
    page.press("w", "c", "g")
    page.wait_for(lambda: page.run("return document.querySelectorAll('.tile img').length") == 5)
    page.verdicts()
    asked = page.requests()
    assert any("/previews/000001.jpg" in url for url in asked)
    assert {url.split(":")[0] for url in asked if url != "about:blank"} <= {"file", "data", "blob"}
    assert all(url.startswith((tmp_path / "r_review").as_uri()) for url in asked if url.startswith("file:"))
    assert page.run("return fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused')") == "refused"
    page.wait_for(lambda: page.logged or page.run("return 0"))
    assert all("Content Security Policy" in message for message in page.logged), "only what this test tried"


def test_a_picture_is_never_shown_beside_another_reading(chromium: Browser, tmp_path: Path) -> None:
    out = reviewed(five(tmp_path)).out
    (out / "previews" / "000002.jpg").unlink()
    page = chromium.open(out)
    visible = "const p = document.getElementById('picture'); return !p.hidden && p.getAttribute('src')"
    assert page.wait_for(lambda: page.run(visible)) == "previews/000001.jpg"
    assert page.run("document.getElementById('next').click();" + visible) is False, "hidden until its own is there"
    page.wait_for(lambda: "preview is missing" in page.text("no-picture"))
    assert page.run(visible) is False
    page.press("j")
    assert page.wait_for(lambda: page.run(visible)) == "previews/000003.jpg"
    assert page.run("return document.getElementById('no-picture').hidden")


def test_the_grid_holds_only_what_is_seen(chromium: Browser, tmp_path: Path) -> None:
    items = [
        {"name": f"{i:05}.png", "key": str(i), "page": 1, "reason": "disagreed", "why": "It is.", "lacking": "None"}
        for i in range(10_000)
    ]
    data: dict[str, Any] = {"id": "x", "result": "r", "columns": [], "routes": ["", ""], "reasons": {"disagreed": "d"}}
    data |= {"scales": {}, "worse": {}, "question": None, "about": [], "items": items}
    (tmp_path / "many.html").write_text(render(data, "many"), encoding="utf-8")
    chromium.open(tmp_path / "many.html")
    chromium.press("g")
    assert 0 < chromium.run("return document.querySelectorAll('.tile').length") < 100
    chromium.press("End")
    chromium.wait_for(lambda: chromium.run("return document.querySelector('[aria-selected=true]').id") == "tile-9999")
    assert chromium.run("return document.querySelectorAll('.tile').length") < 100
    box = (
        "const r = document.getElementById('tile-9999').getBoundingClientRect(); return [r.top, r.bottom, innerHeight]"
    )
    top, bottom, height = chromium.run(box)
    assert 0 < top < bottom <= height


def test_a_single_file_shows_its_pictures(chromium: Browser, tmp_path: Path) -> None:
    chromium.open(reviewed(five(tmp_path), single_file=True).out)
    assert chromium.wait_for(lambda: chromium.run("return document.getElementById('picture').naturalWidth")) == 12
    files = {url for url in chromium.requests() if url.startswith(("http", "file"))}
    assert len(files) == 1 and files.pop().endswith("r_review.html")


def test_unreadable_images_cannot_be_called_correct(chromium: Browser, tmp_path: Path) -> None:
    chromium.open(reviewed(result_of(tmp_path, ["a.png"], lambda _: DISAGREE, broken=True)).out)
    assert chromium.text("name") == "broken.png" and "could not read this file" in chromium.text("no-picture")
    chromium.press("c")
    assert chromium.text("progress-text") == "0 of 2"
    chromium.press("u")
    assert chromium.text("progress-text") == "1 of 2"


def test_copies_are_judged_once(chromium: Browser, tmp_path: Path) -> None:
    picture_file(tmp_path / "in" / "a.png")
    shutil.copy(tmp_path / "in" / "a.png", tmp_path / "in" / "b.png")
    chromium.open(reviewed(result_of(tmp_path, ["c.png"], lambda _: DISAGREE)).out)
    chromium.press("w")
    assert chromium.text("progress-text") == "2 of 3" and chromium.text("name") == "c.png"
    assert [row["file_name"] for row in chromium.verdicts()] == ["a.png", "b.png"]


def test_time_left_follows_the_pace(chromium: Browser, tmp_path: Path) -> None:
    chromium.open(reviewed(result_of(tmp_path, [f"{i}.png" for i in range(30)], lambda _: DISAGREE)).out)
    chromium.press("w")
    assert "left" not in chromium.text("progress-text")
    chromium.press("w", "w", "w", "w")
    assert chromium.text("progress-text") == "5 of 30 · about a minute left"


def test_served_verdicts_reach_the_disk_and_the_next_shift(chromium: Browser, tmp_path: Path) -> None:
    made = reviewed(five(tmp_path))
    rows: Callable[[], list[dict[str, str]]] = lambda: list(  # noqa: E731 - read anew each time
        csv.DictReader(io.StringIO((made.out / "verdicts.csv").read_text(encoding="utf-8")))
    )
    for shift in (1, 2):
        server = ReviewServer(made)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            chromium.open(server.address)
            assert chromium.text("progress-text").startswith(f"{shift - 1} of 3")
            assert "token" not in chromium.page.url
            chromium.press("w")
            chromium.wait_for(lambda n=shift: (made.out / "verdicts.csv").exists() and len(rows()) == n)
            chromium.wait_for(lambda: not leaving_warns(chromium))
            origin = f"http://{server.own}/"
            assert {url[: len(origin)] for url in chromium.requests() if url.startswith("http")} == {origin}
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
    chromium.press("c")
    chromium.wait_for(lambda: "1 verdict not saved yet" in chromium.text("warning"))
    assert leaving_warns(chromium)
    assert [row["verdict"] for row in rows()] == ["wrong", "wrong"]


AXE = """
axe.run(document, {resultTypes: ["violations"]}).then((told) => JSON.stringify(told.violations.map(
  (v) => [v.id, v.impact, v.nodes.map((n) => n.html.slice(0, 200))])))
"""


@pytest.mark.skipif("VLMGATE_AXE" not in os.environ, reason="VLMGATE_AXE does not name axe.min.js of npm's axe-core")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_axe_finds_nothing_serious(chromium: Browser, tmp_path: Path, size: str, dark: bool) -> None:
    result = result_of(
        tmp_path, [f"{i}.png" for i in range(4)], lambda _: DISAGREE, answer=lambda _: ("ok", "unsure"), broken=True
    )
    chromium.look(size, dark=dark)
    chromium.open(reviewed(result).out)
    source = Path(os.environ["VLMGATE_AXE"]).read_text(encoding="utf-8")
    states: dict[str, tuple[str, ...]] = {
        "unreadable": (),
        "reading": ("j",),
        "judged": ("2", "k"),
        "grid": ("g",),
        "help": ("Enter", "?"),
        "edit": ("Escape", "e"),
        "warning": ("Escape",),
    }
    for state, keys in states.items():
        chromium.press(*keys)
        time.sleep(0.3)  # colours change in a moment of their own
        if state == "warning":
            chromium.run("const w = document.getElementById('warning'); w.textContent = 'Watch out.'; w.hidden = false")
        chromium.command("Runtime.evaluate", expression=source)
        told = chromium.command("Runtime.evaluate", expression=AXE, awaitPromise=True, returnByValue=True)
        found = json.loads(told["result"]["value"])
        assert found == [], (state, found)


@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_cut_off_and_touch_targets_are_large(chromium: Browser, tmp_path: Path, size: str) -> None:
    long = ["w" * 200 + ".png", "a.png", "b.png"]
    said = ("x" * 300, *DISAGREE[:3])
    chromium.look(size)
    chromium.open(reviewed(result_of(tmp_path, long, lambda _: said)).out)
    assert chromium.run("return document.documentElement.scrollWidth <= innerWidth")
    assert chromium.run("const p = document.getElementById('panel-scroll'); return p.scrollWidth <= p.clientWidth")
    low = "return [...document.querySelectorAll('button, select, input:not([type=checkbox])')]"
    low += ".filter((e) => e.offsetParent && e.getBoundingClientRect().height < 44).map((e) => e.id || e.className)"
    assert chromium.run(low) == []
    outside = "return [...document.querySelectorAll('.verdicts button, .bar button, .bar select')].filter((e) => {"
    outside += (
        "const r = e.getBoundingClientRect(); return r.left < 0 || r.right > innerWidth || r.bottom > innerHeight;"
    )
    outside += "}).map((e) => e.id)"
    assert chromium.run(outside) == []
