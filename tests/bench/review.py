"""How long a review of many images takes to make, and how it feels in Chromium.

    python -m tests.bench.review [--images 10000] [--side 640] [--keep FOLDER]

Makes a folder of JPEGs and a result of made-up captions (no model), all routed; writes the review; opens it from disk
in a headless Chromium (extra `browser`; Debian: chromium, chromium-driver) and presses keys. "Script" is the time that
the page's own code takes for a key, "painted" the time until the frame after it is drawn.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.support.fakes import FakeCaptioner, SilentProgress, config_for
from vlmgate.review import Options, make_review
from vlmgate.run.loop import scan

PARTS, FINISHES = ("washer", "gear", "flange", "plate", "nut", "bracket"), ("steel", "copper", "brass")
DEFECTS = ("a dent", "a crack", "two scratches", "no visible defects", "some rust", "a missing hole")
PLACES = ("at the upper left", "in the middle", "near the rim", "on the lower right side")
PRESS = """
const [key, times] = arguments, done = arguments[arguments.length - 1], script = [], painted = [];
function one(i) {
  if (i >= times) { done([script, painted]); return; }
  const begun = performance.now();
  document.body.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
  script.push(performance.now() - begun);
  requestAnimationFrame(() => {
    const after = new MessageChannel();
    after.port1.onmessage = () => { painted.push(performance.now() - begun); setTimeout(() => one(i + 1), 0); };
    after.port2.postMessage(0);
  });
}
one(0);
"""
GIVE = """
const bar = document.getElementById("progress");
for (let i = 0; i < 200 && bar.value < bar.max; i += 1) document.getElementById("wrong").click();
return bar.value < bar.max;
"""
SCROLL = """
const done = arguments[0], scroll = document.getElementById("grid-scroll"), frames = [];
let last = performance.now();
function frame(now) {
  frames.push(now - last);
  last = now;
  scroll.scrollTop += 600;
  if (frames.length < 101) requestAnimationFrame(frame);
  else done([frames.slice(1), document.querySelectorAll(".tile").length]);
}
requestAnimationFrame(frame);
"""


def main() -> None:
    """Print what it took."""
    options = _options()
    root = options.keep or Path(tempfile.mkdtemp(prefix="vlmgate-review-"))
    try:
        result = root / "r.parquet"
        if not result.exists():
            _make_result(root, options.images, options.side)
        begun = time.monotonic()
        made = make_review(result, Options())
        seconds = time.monotonic() - begun
        page = made.out / "index.html"
        print(
            f"{len(made.items):,} images of {options.side} px: made in {seconds:.0f} s, {made.size_bytes / 1e6:,.0f} MB"
        )
        print(f"index.html: {page.stat().st_size / 1e6:.1f} MB")
        _browse(page)
    finally:
        if options.keep is None:
            shutil.rmtree(root)


def _make_result(root: Path, images: int, side: int) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    base = Image.fromarray(noise).resize((side, side * 3 // 4), Image.Resampling.BICUBIC)
    for i in range(images):
        path = root / "in" / f"line{i % 7}" / f"part_{i:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = base.copy()
        picture.paste((i % 256, i // 256 % 256, 90), (i % side // 2, 10, i % side // 2 + 20, 30))
        picture.save(path, quality=88)
    config = config_for(root / "in", root / "r.parquet", batch_size=64, num_samples=8, threshold=1.25)
    scan(config, SilentProgress(), load=FakeCaptioner(_say).load)


def _say(name: str) -> Sequence[str]:
    draw = random.Random(name)
    return [
        f"A {draw.choice(FINISHES)} {draw.choice(PARTS)} with {draw.choice(DEFECTS)} {draw.choice(PLACES)}."
        for _ in range(8)
    ]


def _browse(page: Path) -> None:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1400,900",
    ):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    driver.set_script_timeout(600)
    try:
        for times in range(5):
            _open(driver, page, "" if times else "cold: ")
        for key, times in (("j", 300), ("w", 2000), ("2", 300), ("z", 300), ("g", 20)):
            _press(driver, key, times)
        while driver.execute_script(GIVE):
            pass
        _open(driver, page, "with a verdict on every image: ")
        _press(driver, "w", 300)
        if driver.execute_script("return document.getElementById('grid').hidden"):
            driver.execute_async_script(PRESS, "g", 1)
        frames, tiles = driver.execute_async_script(SCROLL)
        print(f"grid scrolled by 600 px a frame: {_told(frames)} a frame, {tiles} tiles in the page")
    finally:
        driver.quit()


def _open(driver: Any, page: Path, told: str) -> None:
    driver.get("about:blank")
    begun = time.monotonic()
    driver.get(page.as_uri())
    while driver.execute_script("return document.documentElement.dataset.ready") != "yes":
        time.sleep(0.01)
    ready = time.monotonic() - begun
    time.sleep(0.5)
    first = driver.execute_script("return performance.getEntriesByName('first-contentful-paint')[0].startTime")
    print(f"{told}first paint after {first:.0f} ms, ready for keys after {ready * 1000:.0f} ms")


def _press(driver: Any, key: str, times: int) -> None:
    script, painted = driver.execute_async_script(PRESS, key, times)
    print(f"key {key}, {times} times: script {_told(script)}; painted {_told(painted)}")


def _told(milliseconds: Sequence[float]) -> str:
    ordered = sorted(milliseconds)
    late = ordered[int(0.95 * (len(ordered) - 1))]
    return f"median {statistics.median(ordered):.1f}, 95th percentile {late:.1f}, longest {ordered[-1]:.0f} ms"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--side", type=int, default=640, help="pixels of the longer side")
    parser.add_argument("--keep", type=Path, help="folder to make all in, and to use again if it is there")
    return parser.parse_args()


if __name__ == "__main__":
    main()
