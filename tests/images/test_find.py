"""What the walk finds, and what reading ahead promises: everything, once, in order, within bounds."""

from __future__ import annotations

import gc
import io
import os
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlmgate.config import ImageConfig
from vlmgate.data import Picture, Source, Unreadable
from vlmgate.errors import NoImagesError
from vlmgate.images import ahead, find_images, memory, open_pages, read_ahead
from vlmgate.images import pages as opening
from vlmgate.images.ahead import _Line
from vlmgate.images.formats import RefusedError
from vlmgate.images.memory import peak_of

ALL = ImageConfig(pages="all")


def save(path: Path, colour: int = 0, size: tuple[int, int] = (8, 8), **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, colour).save(path, **options)
    return path


def names(folder: Path) -> list[str]:
    return [source.file_name for source in find_images(folder).sources]


def reasons(folder: Path) -> dict[str, str]:
    return {item.file_name: item.reason for item in find_images(folder).unreadable}


# --- walk ------------------------------------------------------------------------------------------------------------


def test_everything_is_found_once_and_sorted(tmp_path: Path) -> None:
    wanted = [
        "B.JPG",
        "a.png",
        "line1/part.TIF",
        "line2/deep/er/part.bmp",
        "line2/part.TIF",
        ".hidden.png",
        ".h/x.webp",
    ]
    for name in wanted:
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "line1/labels.json").write_text("{}")
    walk = find_images(tmp_path)
    assert [source.file_name for source in walk.sources] == sorted(wanted)
    assert all(source.path == tmp_path / source.file_name for source in walk.sources)
    assert walk.unreadable == ()
    assert walk.ignored == ("line1/labels.json", "notes.txt")


def test_an_extension_makes_an_image_even_of_rubbish(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.heic", "c.CR2", "d.dng", "e.jxl", "f.dcm", "g.svg", "h.avif", ".png"):
        (tmp_path / name).write_bytes(b"rubbish")
    assert len(names(tmp_path)) == 9
    for opened in read_ahead(find_images(tmp_path).sources, ImageConfig()):
        assert isinstance(opened.result, Unreadable)


def test_first_bytes_make_an_image_where_the_extension_does_not(tmp_path: Path) -> None:
    for number, format_ in enumerate(("JPEG", "PNG", "BMP", "WEBP", "AVIF", "JPEG2000", "TIFF", "GIF", "PPM", "QOI")):
        Image.new("RGB", (8, 8)).save(tmp_path / f"image{number}", format=format_)
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.jpg.bak", format="JPEG")
    for name, data in {
        "text": b"hello",
        "b.bin": bytes(600),
        "BM.txt": b"BM is short for benchmark, and this is text",
        "P5 notes": b"P5 is a processor",
        "empty": b"",
        "one": b"\xff",
    }.items():
        (tmp_path / name).write_bytes(data)
    assert names(tmp_path) == [*(f"image{number}" for number in range(10)), "photo.jpg.bak"]
    assert len(find_images(tmp_path).ignored) == 6


def test_metadata_that_macos_leaves_behind_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "._a.jpg").write_bytes(b"\x00\x05\x16\x07" + bytes(100))
    save(tmp_path / "._b.png")
    walk = find_images(tmp_path)
    assert (*walk.sources,) == () and walk.ignored == () and walk.excluded == {"._*": 2}
    walk = find_images(tmp_path, ())
    assert [source.file_name for source in walk.sources] == ["._b.png"] and walk.ignored == ("._a.jpg",)


def test_special_files_are_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)  # socket addresses are short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.jpg")
        assert reasons(tmp_path) == {"pipe.png": "a named pipe, not a file", "s.jpg": "a socket, not a file"}
    assert find_images(tmp_path).ignored == ("pipe",)


def test_links(tmp_path: Path) -> None:
    save(tmp_path / "real/a.png")
    outside = tmp_path.parent / (tmp_path.name + "-outside")
    save(outside / "b.png")
    (tmp_path / "linked").symlink_to(outside)
    (tmp_path / "file.png").symlink_to(outside / "b.png")
    (tmp_path / "real/up").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "disk").symlink_to("/not/mounted")
    (tmp_path / "gone.txt").symlink_to("/not/there.txt")
    walk = find_images(tmp_path)
    assert [source.file_name for source in walk.sources] == ["file.png", "linked/b.png", "real/a.png"]
    assert reasons(tmp_path) == {
        "disk": "a link to nothing",
        "gone.png": "a link to nothing",
        "self": "a link that leads in circles",
    }
    assert walk.ignored == ("gone.txt", "real/up/")


def test_folders_that_link_to_each_other_are_walked_once(tmp_path: Path) -> None:
    for here in range(30):
        save(tmp_path / f"f{here:02}/a.png")
        for there in range(30):
            (tmp_path / f"f{here:02}/to{there:02}").symlink_to(tmp_path / f"f{there:02}")
    walk = find_images(tmp_path)
    assert [source.file_name for source in walk.sources] == [f"f{here:02}/a.png" for here in range(30)]
    assert walk.unreadable == ()
    assert len(walk.ignored) == 900
    assert walk.ignored[0] == "f00/to00/"


def test_linked_folders_that_link_to_each_other_are_walked_once(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    for here in "abcdefghij":
        save(outside / here / "in/x.png")
        for there in "abcdefghij":
            (outside / here / there).symlink_to(outside / there)
    (root / "way").symlink_to(outside / "c")
    found = names(root)
    assert len(found) == 10
    assert {"way/in/x.png", "way/a/in/x.png", "way/j/in/x.png"} < set(found)


@pytest.mark.parametrize("backwards", [False, True])
def test_which_name_wins_does_not_hang_on_the_listing_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backwards: bool
) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    save(root / "zz_real/1.png")
    save(root / "sub/deep/2.png")
    save(outside / "3.png")
    save(outside / "more/4.png")
    (root / "aa_link").symlink_to(root / "zz_real")
    (root / "b").symlink_to(outside)
    (root / "c").symlink_to(outside)
    (root / "a_more").symlink_to(outside / "more")
    (root / "sub/up").symlink_to(tmp_path)
    (outside / "a").symlink_to(root / "sub")
    scandir = os.scandir

    class Ordered:
        def __init__(self, path: str) -> None:
            with scandir(path) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=backwards)

        def __enter__(self) -> Iterator[os.DirEntry[str]]:
            return iter(self.entries)

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr("vlmgate.images.find.os.scandir", Ordered)
    walk = find_images(root)
    assert [source.file_name for source in walk.sources] == [
        "a_more/4.png", "b/3.png", "sub/deep/2.png", "zz_real/1.png"
    ]  # fmt: skip
    assert walk.ignored == ("aa_link/", "b/a/", "b/more/", "c/", "sub/up/outside/", "sub/up/root/")


@pytest.mark.parametrize("oddity", [RefusedError("a folder, not a file"), TypeError("None"), RecursionError(), None])
def test_one_odd_file_does_not_end_the_walk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, oddity: Exception | None
) -> None:
    for name in ("a.png", "m/x.png", "z.png"):
        save(tmp_path / name)
    for name in ("m/._x.png", "m/odd", "m/odd.bin"):
        (tmp_path / name).write_bytes(b"x" * 600)

    class Silent:
        def read(self, size: int) -> bytes | None:
            if oddity is not None:
                raise oddity
            return None  # as files do that are read without waiting and have nothing to say yet

    @contextmanager
    def fake(path: Path) -> Iterator[Any]:
        yield Silent()

    monkeypatch.setattr("vlmgate.images.find.opened", fake)
    walk = find_images(tmp_path, ())
    assert [source.file_name for source in walk.sources] == ["a.png", "m/x.png", "z.png"]
    assert [item.file_name for item in walk.unreadable] == ["m/._x.png", "m/odd"]
    assert walk.ignored == ("m/odd.bin",)


def test_a_file_that_becomes_a_pipe_between_listing_and_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scan").write_bytes(b"x")
    save(tmp_path / "z.png")
    open_ = os.open

    def swap(path: Path, flags: int) -> int:
        path.unlink()
        os.mkfifo(path)
        return open_(path, flags)

    monkeypatch.setattr("vlmgate.images.find.os.open", swap)
    assert find_images(tmp_path).unreadable == (Unreadable("scan", "a named pipe, not a file"),)
    assert names(tmp_path) == ["z.png"]


def test_a_folder_that_cannot_be_listed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "open/a.png")
    save(tmp_path / "locked/in/b.png")
    save(tmp_path / "torn/c.png")
    save(tmp_path / "torn/d.png")
    scandir = os.scandir

    class Torn:
        def __init__(self, path: str) -> None:
            self.entries = scandir(path)

        def __enter__(self) -> Iterator[os.DirEntry[str]]:
            yield next(self.entries)
            raise OSError(5, "Input/output error")

        def __exit__(self, *_: object) -> None:
            self.entries.close()

    def fake(path: Any) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return Torn(path) if str(path).endswith("torn") else scandir(path)

    monkeypatch.setattr("vlmgate.images.find.os.scandir", fake)
    assert reasons(tmp_path) == {
        "locked": "folder cannot be listed: permission denied",
        "torn": "folder cannot be listed: input/output error",
    }
    found = names(tmp_path)
    assert "open/a.png" in found
    assert len([name for name in found if name.startswith("torn/")]) == 1


def test_a_file_without_extension_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_bytes(b"?")
    (tmp_path / "secret.key").write_bytes(b"?")

    def deny(path: object, flags: int) -> int:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("vlmgate.images.find.os.open", deny)
    assert reasons(tmp_path) == {"secret": "permission denied"}
    assert find_images(tmp_path).ignored == ("secret.key",)


def test_one_file_is_a_walk_of_one(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png")
    assert [*find_images(path).sources] == [Source("a.png", path)]
    (tmp_path / "notes.txt").write_text("x")
    assert names(tmp_path / "notes.txt") == ["notes.txt"]  # named by hand; opening it says that it is no image


def test_a_missing_or_locked_root_is_a_wrong_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NoImagesError, match="not found"):
        find_images(tmp_path / "nowhere")

    def deny(path: object) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("vlmgate.images.find.os.scandir", deny)
    with pytest.raises(NoImagesError, match="permission denied"):
        find_images(tmp_path)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    for name in (b"caf\xe9.png", b"caf\xe8.png", rb"caf\xe9.png", b"d\xff/a.png"):
        path = os.path.join(os.fsencode(tmp_path), name)  # noqa: PTH118 - bytes
        os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120 - bytes
        with open(path, "wb") as file:  # noqa: PTH123 - bytes
            Image.new("L", (2, 2)).save(file, format="PNG")
    sources = find_images(tmp_path).sources
    assert [s.file_name for s in sources] == [r"caf\xe8.png", r"caf\xe9.png", r"caf\xe9.png~2", r"d\xff/a.png"]
    for source in sources:
        source.file_name.encode()
        (result,) = open_pages(source, ImageConfig())
        assert isinstance(result, Picture)


def test_two_names_that_would_be_one_are_told_apart_alike_every_night(tmp_path: Path) -> None:
    for name in (b"\xff\\xfe.png", b"\\xff\xfe.png"):
        with open(os.path.join(os.fsencode(tmp_path), name), "wb"):  # noqa: PTH118, PTH123 - bytes
            pass
    assert {s.file_name: os.path.basename(os.fsencode(s.where)) for s in find_images(tmp_path).sources} == {  # noqa: PTH119
        r"\xff\xfe.png": b"\\xff\xfe.png",
        r"\xff\xfe.png~2": b"\xff\\xfe.png",
    }


def test_names_with_odd_characters_stay_as_they_are(tmp_path: Path) -> None:
    wanted = sorted(["ü 部品.png", "a[bold].png", "new\nline.png", "emoji😀.png", "back\\slash.png", " .png"])
    for name in wanted:
        save(tmp_path / name)
    assert names(tmp_path) == wanted


# --- read ahead ------------------------------------------------------------------------------------------------------


def sources_of(folder: Path, count: int) -> list[Source]:
    return [Source(f"{i:04}.png", save(folder / f"{i:04}.png", i % 256)) for i in range(count)]


def running() -> int:
    return sum(thread.name.startswith("vlmgate-decode") for thread in threading.enumerate())


def wait_until_none_runs() -> bool:
    deadline = time.monotonic() + 30
    while running() and time.monotonic() < deadline:
        time.sleep(0.01)
    return running() == 0


@pytest.mark.parametrize("workers", [0, 1, 3, 32])
def test_order_and_completeness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    sources = sources_of(tmp_path, 150)
    for i in range(0, 150, 7):
        sources[i].path.write_bytes(b"rubbish")
    sources[20].path.unlink()
    pages = opening.pages_of

    def uneven(source: Source, *args: Any) -> Any:
        time.sleep(hash(source.file_name) % 5 / 2000)
        return pages(source, *args)

    monkeypatch.setattr(ahead, "pages_of", uneven)
    opened = list(read_ahead(iter(sources), ImageConfig(workers=workers)))
    assert [item.source for item in opened] == sources
    assert all(item.last for item in opened)
    for i, item in enumerate(opened):
        if i % 7 == 0 or i == 20:
            assert isinstance(item.result, Unreadable)
        else:
            assert isinstance(item.result, Picture)
            assert item.result.file.file_name == item.source.file_name
            assert item.result.rgb.getpixel((0, 0)) == (i % 256,) * 3
    assert wait_until_none_runs()


def test_nothing_to_read() -> None:
    assert list(read_ahead([], ImageConfig())) == []


def test_pages_of_one_source_stay_together(tmp_path: Path) -> None:
    wanted = []
    for i, num_pages in enumerate((1, 3, 6, 2, 1, 4)):
        frames = [Image.new("L", (8, 8), 10 * i + page) for page in range(num_pages)]
        frames[0].save(tmp_path / f"{i}.tif", save_all=True, append_images=frames[1:])
        wanted += [(f"{i}.tif", page, page == num_pages) for page in range(1, num_pages + 1)]
    for budget in (1, 1_000_000, 10**9):
        opened = list(read_ahead(find_images(tmp_path).sources, ALL, most_waiting=budget))
        pages = [(o.source.file_name, o.result.file.page, o.last) for o in opened if isinstance(o.result, Picture)]
        assert pages == wanted


def test_what_waits_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [Source(f"{i}.png", save(tmp_path / f"{i}.png", i, size=(300, 300))) for i in range(20)]
    decoded: list[int] = []
    decode = opening.Container.decode

    def counting(self: Any, page: int, *more: Any) -> Any:
        decoded.append(page)
        return decode(self, page, *more)

    monkeypatch.setattr(opening.Container, "decode", counting)
    ahead = []
    for taken, _ in enumerate(read_ahead(sources, ImageConfig(workers=8), most_waiting=4 * 360_000)):
        time.sleep(0.02)
        ahead.append(len(decoded) - taken)
    assert len(decoded) == 20
    assert max(ahead) == 4  # the one in hand is one of them


def test_nothing_is_kept_of_files_that_were_read(tmp_path: Path) -> None:
    sources = [Source(f"{i}.png", save(tmp_path / f"{i}.png", i)) for i in range(30)]
    line = _Line(ImageConfig(), 2, 10**9, 10**9)
    for source in sources:
        line.submit(source)
    for _ in sources:
        _, cost = line.collect()
        line.release(cost, done=True)
    line.stop()
    assert (len(line.jobs), line._to_do.qsize(), line._decoding, line._waiting) == (0, 0, 0, 0)


def test_a_picture_larger_than_the_budget_is_let_through(tmp_path: Path) -> None:
    sizes = [(10, 10), (900, 900), (10, 10), (900, 900), (900, 900), (10, 10)]
    sources = [Source(f"{i}.png", save(tmp_path / f"{i}.png", size=size)) for i, size in enumerate(sizes)]
    opened = list(read_ahead(sources, ImageConfig(workers=4), most_waiting=2_000_000))
    assert [o.result.rgb.size for o in opened if isinstance(o.result, Picture)] == sizes


def test_memory_bounds_what_is_decoded_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [Source(f"{i}.png", save(tmp_path / f"{i}.png", i, size=(300, 300))) for i in range(20)]
    running, most, lock = 0, 0, threading.Lock()
    decode = opening.Container.decode

    def counting(self: Any, page: int, *more: Any) -> Any:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        try:
            return decode(self, page, *more)
        finally:
            with lock:
                running -= 1

    monkeypatch.setattr(opening.Container, "decode", counting)
    peak = peak_of("PNG", "RGB", 300 * 300, 0)
    for fit in (1, 3):
        most = 0
        # What is decoded and what waits: each takes a peak and what is kept of it.
        config = ImageConfig(workers=8, image_memory=fit * (peak + 4 * 300 * 300 + 10_000) / 1e9)
        assert len([one for one in read_ahead(sources, config) if isinstance(one.result, Picture)]) == 20
        assert most <= fit + 1  # the page that the consumer waits for is decoded in any case


def test_a_picture_that_would_never_fit_is_refused_with_the_figure(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (9000, 9000)).save(path)
    assert path.stat().st_size < 300_000
    for way in (open_pages, lambda source, config: (one.result for one in read_ahead([source], config))):
        (refused,) = way(Source("a.png", path), ImageConfig(image_memory=0.5))
        assert isinstance(refused, Unreadable)
        assert refused.reason.startswith("needs more memory than images may take: 1 GB to decode, of 0.5 GB")
        assert "--image-memory" in refused.reason
        (read,) = way(Source("a.png", path), ImageConfig(image_memory=1.5))
        assert isinstance(read, Picture)


def test_some_memory_is_free_and_a_quarter_of_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory.usual_budget() >= 10**9
    monkeypatch.setattr(memory, "_free_of_machine", lambda: 64 * 10**9)
    monkeypatch.setattr(memory, "_free_of_container", lambda: None)
    assert memory.usual_budget() == 16 * 10**9
    monkeypatch.setattr(memory, "_free_of_container", lambda: 8 * 10**9)
    assert memory.usual_budget() == 2 * 10**9
    monkeypatch.setattr(memory, "_free_of_container", lambda: -5)
    assert memory.usual_budget() == 10**9


def test_no_more_sources_are_begun_than_can_wait(tmp_path: Path) -> None:
    drawn = 0

    def supply() -> Iterator[Source]:
        nonlocal drawn
        assert threading.current_thread() is threading.main_thread()
        for source in sources_of(tmp_path, 60):
            drawn += 1
            yield source

    reader = read_ahead(supply(), ImageConfig(workers=2))
    next(reader)
    time.sleep(0.1)
    assert drawn == 8
    assert len(list(reader)) == 59


def test_early_close_is_prompt_and_leaves_no_thread(tmp_path: Path) -> None:
    sources = sources_of(tmp_path, 200)
    for taken in (0, 1, 5):
        reader = read_ahead(sources, ImageConfig(workers=8), most_waiting=1)
        for _ in range(taken):
            next(reader)
        start = time.monotonic()
        reader.close()  # type: ignore[attr-defined]  # it is a generator
        assert time.monotonic() - start < 10  # seconds, for the busiest machine
        assert wait_until_none_runs()


def test_a_consumer_that_raises_leaves_no_thread(tmp_path: Path) -> None:
    def consume() -> None:
        for _ in read_ahead(sources_of(tmp_path, 50), ImageConfig(workers=4)):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consume()
    gc.collect()
    assert wait_until_none_runs()


@pytest.mark.parametrize("workers", [1, 3])
def test_a_file_whose_reading_never_ends_holds_up_nothing_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    release, pages = threading.Event(), opening.pages_of

    def hang(source: Source, *args: Any) -> Any:
        if source.file_name in ("0001.png", "0007.png"):
            release.wait(60)
        return pages(source, *args)

    monkeypatch.setattr(ahead, "pages_of", hang)
    monkeypatch.setattr(ahead, "_PATIENCE", 0.5)
    found = [one.result for one in read_ahead(sources_of(tmp_path, 12), ImageConfig(workers=workers))]
    release.set()
    assert wait_until_none_runs()
    lost = {one.file_name: one.reason for one in found if isinstance(one, Unreadable)}
    assert len(found) == 12 and set(lost) == {"0001.png", "0007.png"}
    assert all(reason.startswith("gave no picture within") for reason in lost.values())


def test_what_cannot_even_be_told_of_at_once_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deliver, failures = ahead._Line._deliver, [MemoryError(), MemoryError()]

    def fail(line: Any, job: Any, *args: Any) -> None:
        if job.source.file_name == "0003.png" and failures:
            raise failures.pop()
        deliver(line, job, *args)

    monkeypatch.setattr(ahead._Line, "_deliver", fail)
    found = [one.result for one in read_ahead(sources_of(tmp_path, 9), ImageConfig(workers=2))]
    assert [isinstance(one, Unreadable) for one in found] == [i == 3 for i in range(9)]


def test_closing_does_not_wait_for_a_read_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    pages = opening.pages_of

    def hang(source: Source, *args: Any) -> Any:
        if source.file_name == "0001.png":
            release.wait(60)
        return pages(source, *args)

    monkeypatch.setattr(ahead, "pages_of", hang)
    reader = read_ahead(sources_of(tmp_path, 3), ImageConfig(workers=2))
    next(reader)
    start = time.monotonic()
    reader.close()  # type: ignore[attr-defined]  # it is a generator
    assert time.monotonic() - start < 10  # seconds, for the busiest machine
    assert all(thread.daemon for thread in threading.enumerate() if thread.name.startswith("vlmgate-decode"))
    release.set()
    assert wait_until_none_runs()


@pytest.mark.parametrize("error", [RuntimeError("bug"), MemoryError(), SystemExit(3), KeyboardInterrupt()])
def test_a_failing_worker_loses_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    pages = opening.pages_of

    def fail(source: Source, *args: Any) -> Any:
        if source.file_name in ("0000.png", "0007.png"):
            raise error
        return pages(source, *args)

    monkeypatch.setattr(ahead, "pages_of", fail)
    opened = list(read_ahead(sources_of(tmp_path, 20), ImageConfig(workers=3)))
    assert len(opened) == 20
    failed = [item.source.file_name for item in opened if isinstance(item.result, Unreadable)]
    assert failed == ["0000.png", "0007.png"]


def test_an_error_in_the_supply_reaches_the_consumer(tmp_path: Path) -> None:
    def supply() -> Iterator[Source]:
        yield from sources_of(tmp_path, 3)
        raise ValueError("the caller's own")

    with pytest.raises(ValueError, match="own"):
        list(read_ahead(supply(), ImageConfig()))
    assert wait_until_none_runs()


# --- fuzz ------------------------------------------------------------------------------------------------------------


def specimens() -> dict[str, bytes]:
    """One small file per format and way of storing; noise, so that every byte counts."""
    rng = np.random.default_rng(7)
    noise = Image.fromarray(rng.integers(0, 256, (24, 30, 3), dtype=np.uint8))
    grey16 = Image.fromarray(rng.integers(0, 4096, (24, 30)).astype(np.uint16))
    others = {"save_all": True, "append_images": [noise.rotate(90), noise.rotate(180)]}
    wanted: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("jpg", noise, {}),
        ("jpg", noise, {"progressive": True}),
        ("jpg", noise.convert("CMYK"), {}),
        ("png", noise, {}),
        ("png", grey16, {}),
        ("png", noise, others),
        ("bmp", noise, {}),
        ("gif", noise, others),
        ("webp", noise, {}),
        ("webp", noise, {"lossless": True}),
        ("avif", noise, {}),
        ("jp2", noise, {}),
        ("tif", noise, others),
        ("tif", grey16, {}),
        ("tif", noise, {"compression": "tiff_lzw"}),
        ("tif", noise, {"compression": "tiff_adobe_deflate"}),
        ("tif", noise, {"compression": "jpeg"}),
        ("ppm", noise, {}),
        ("pgm", grey16, {}),
        ("tga", noise, {"compression": "tga_rle"}),
        ("qoi", noise, {}),
        ("pcx", noise, {}),
        ("sgi", noise, {}),
    ]
    files = {}
    for number, (extension, image, options) in enumerate(wanted):
        buffer = io.BytesIO()
        buffer.name = f"x.{extension}"
        image.save(buffer, format=Image.registered_extensions()[f".{extension}"], **options)
        files[f"{number:02}.{extension}"] = buffer.getvalue()
    return files


def results(path: Path, data: bytes) -> list[Picture | Unreadable]:
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = list(open_pages(Source(path.name, path), ImageConfig(pages="all", max_pixels=4_000_000)))
    assert found, "no result"
    for result in found:
        if isinstance(result, Picture):
            assert result.rgb.mode == "RGB"
            assert result.rgb.size == (result.file.width, result.file.height)
        else:
            assert result.reason.isprintable()
    return found


@pytest.mark.parametrize("name", specimens())
def test_a_truncated_file_never_passes_for_whole(tmp_path: Path, name: str) -> None:
    data = specimens()[name]
    whole = [np.asarray(r.rgb) for r in results(tmp_path / name, data) if isinstance(r, Picture)]
    rng = np.random.default_rng(1)
    for length in {1, 2, 3, len(data) - 1, len(data) - 2, len(data) - 4, *rng.integers(1, len(data), 30).tolist()}:
        for result in results(tmp_path / name, data[:length]):
            if isinstance(result, Picture):
                assert np.array_equal(np.asarray(result.rgb), whole[result.file.page - 1]), length
                assert not name.endswith("jpg") or length >= len(data) - 2  # all but the end marker


@pytest.mark.parametrize("name", specimens())
def test_flipped_bytes_are_never_an_exception_nor_a_warning(tmp_path: Path, name: str) -> None:
    data = specimens()[name]
    rng = np.random.default_rng(2)
    for attempt in range(60):
        broken = bytearray(data)
        within = min(len(broken), 300) if attempt % 2 else len(broken)  # headers are where parsers break
        for position in rng.integers(0, within, rng.integers(1, 6)):
            broken[position] = rng.integers(0, 256)
        results(tmp_path / name, bytes(broken))
