"""From a result to the review of it on disk: a folder, or a single file, which appears in one step.

Call `make_review`; `held` keeps other processes out meanwhile.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from vlmgate.config import ImageConfig, ReviewConfig
from vlmgate.data import Record, Route
from vlmgate.errors import NoImagesError, OutputError, StoreError, UsageError, one_line, plain
from vlmgate.export.output import check_outside
from vlmgate.gate.rules import COLUMNS, Gate
from vlmgate.images import sources_of
from vlmgate.report.summary import in_words
from vlmgate.report.terminal import notices, short_model
from vlmgate.review.items import Item, choose, facts_of, scales
from vlmgate.review.previews import LARGEST, Lacking, Preview, make_previews
from vlmgate.review.verdicts import COLUMNS as CSV_COLUMNS
from vlmgate.store.result import TRIES_FILE, check_folder, locked, read_result, write_file
from vlmgate.version import __version__

MARKER = "review.json"
PAGE = "index.html"
VERDICTS_FILE = "verdicts.csv"
FORMAT = 1
GENERATOR = '<meta name="generator" content="vlmgate review">'
_PARTS_OF_PAGE = Path(__file__).parent / "page"  # the template, the style and the parts of the program
_PROGRAM = ("basics", "verdicts", "picture", "reading", "grid", "page")  # in the order they build on
MOST_IN_ONE_FILE = 500  # images; browsers give up on larger pages
# The more pictures one file holds, the smaller they are, so that it opens: images up to → pixels of the longer side.
_SIDES_IN_ONE_FILE = {50: LARGEST, 150: 1024, MOST_IN_ONE_FILE: 640}

Mode = Literal["file", "served"]


@dataclass(frozen=True, slots=True)
class Made:
    """A review that lies on disk."""

    out: Path
    items: list[Item]
    accepted: int  # auto-accepted images that the sample was drawn from
    lacking: list[tuple[Item, Lacking]]  # images that cannot be shown
    size_bytes: int
    reused: bool = False  # it was there already


def output_of(result: Path, options: ReviewConfig) -> Path:
    """Return where the review of a result goes."""
    name = f"{result.stem}_review"
    return options.out or result.with_name(f"{name}.html" if options.single_file else name)


def make_review(
    result: Path,
    options: ReviewConfig,
    *,
    reuse: bool = False,
    begin: Callable[[int], None] = lambda _: None,
    advance: Callable[[int], None] = lambda _: None,
) -> Made:
    """Write the review of a result; with `reuse`, one that was made of the same with the same options stays as it is.

    `begin` gets the number of images, `advance` how many more are done. Raises `UsageError` for what the user can
    put right, and `StoreError` where the disk does not take it.
    """
    records, provenance = read_result(result, features=False)
    gate = Gate.of(provenance["gate"])
    items = choose(records, gate, accepted=options.accepted, seed=options.seed)
    passed = sum(record.route == Route.AUTO_ACCEPT for record in records)
    out, images = output_of(result, options), options.images or Path(provenance["folder"])
    if not images.exists():
        raise NoImagesError(f"{images}: the scanned folder is not there; say where it is now with --images FOLDER.")
    marker = _marker(result, provenance, options, images)
    walked = options.images is not None or not provenance.get("listed")
    _check_output(out, images if walked else None, marker, single_file=options.single_file)
    if options.single_file and len(items) > MOST_IN_ONE_FILE:
        raise UsageError(
            f"--single-file holds up to {MOST_IN_ONE_FILE} images, and {len(items):,} are to be looked at; "
            "leave it out, and the page is a folder with its pictures."
        )
    if reuse and (there := _as_it_is(out, marker, items, passed)):
        return there
    config = ImageConfig(**provenance["image_config"] | {"workers": options.workers})
    sources = sources_of(provenance, options.images)
    begin(len(items))
    largest = LARGEST
    if options.single_file:
        largest = next(side for most, side in _SIDES_IN_ONE_FILE.items() if len(items) <= most)

    def written(into: Path | None) -> tuple[bytes, Made]:
        previews = make_previews(items, sources, config, into=into, largest=largest, advance=advance)
        page = _page(result, records, provenance, items, previews, options)
        lacking = [(item, one) for item in items if isinstance(one := previews[item.number], Lacking)]
        on_disk = sum(one.size_bytes for one in previews.values() if isinstance(one, Preview))
        return page, Made(out, items, passed, lacking, len(page) + on_disk)

    if options.single_file:
        page, made = written(None)
        with _disk_errors_in_one_line(out):
            write_file(out, page)
        return made
    with _fresh_folder(out) as fresh:
        page, made = written(fresh)
        (fresh / PAGE).write_bytes(page)
        kept = marker | {"at": datetime.now(UTC).isoformat(timespec="seconds"), "bytes": made.size_bytes}
        kept["lacking"] = [[item.number, asdict(one)] for item, one in made.lacking]
        (fresh / MARKER).write_text(json.dumps(kept, indent=2), encoding="ascii")
    return made


# --- what the page holds ----------------------------------------------------------------------------------------------


def review_id(provenance: Mapping[str, Any]) -> str:
    """Return what verdicts kept in a browser are bound to: the run, and how its readings were scored and split."""
    rule = json.dumps([provenance["kernel"], provenance["gate"]], sort_keys=True)
    return f"{provenance['run_id']}-{hashlib.sha256(rule.encode()).hexdigest()[:12]}"


def _page(
    result: Path,
    records: Sequence[Record],
    provenance: Mapping[str, Any],
    items: Sequence[Item],
    previews: Mapping[int, Preview | Lacking],
    options: ReviewConfig,
) -> bytes:
    gate, sampling = Gate.of(provenance["gate"]), provenance["sampling"]
    facts = [facts_of(item, gate, provenance) | _shown(previews[item.number]) for item in items]
    audits = sum(item.audit for item in items)
    data = {
        "id": review_id(provenance),
        "result": plain(result.name),
        "columns": CSV_COLUMNS,
        "routes": [Route.HUMAN_REVIEW, Route.AUTO_ACCEPT],  # of what is no audit, and of what is one
        "reasons": {
            r: "accepted, audit" if r == "audit" else in_words(r) for r in dict.fromkeys(i.reason for i in items)
        },
        "scales": scales(facts, sampling["num_samples"]),
        "worse": {name: column.higher_is_worse for name, column in COLUMNS.items()},
        "question": plain(sampling["question"]) if sampling.get("question") else None,
        "about": _about(records, provenance, gate, audits, options),
        "items": facts,
    }
    try:
        return render(data, f"Review of {plain(result.name)}", notices(provenance)).encode("utf-8")
    except ValueError as error:  # NaN, which a result never holds
        raise StoreError(f"{result}: holds what cannot be shown ({one_line(error)}); scan again.") from error


def _shown(preview: Preview | Lacking) -> dict[str, Any]:
    if isinstance(preview, Lacking):
        return {"lacking": preview.why}
    shown: dict[str, Any] = {"size": [preview.width, preview.height]}
    if preview.jpeg is not None:
        shown["src"] = f"data:image/jpeg;base64,{base64.b64encode(preview.jpeg).decode('ascii')}"
    return shown


def _about(
    records: Sequence[Record], provenance: Mapping[str, Any], gate: Gate, audits: int, options: ReviewConfig
) -> list[tuple[str, str]]:
    """Return what the page says of the run, as (name, text)."""
    routed = sum(record.route == Route.HUMAN_REVIEW for record in records)
    model = provenance["model"] or {}
    accepted = f"{len(records) - routed:,}"
    drawn = f"{audits:,} of {accepted} auto-accepted, drawn at random (seed {options.seed})"
    pairs = [
        ("Images", f"{len(records):,}; {routed:,} routed to a person, {accepted} auto-accepted"),
        ("Rule", gate.describe()),
        ("Audit", drawn if audits else "none"),
        ("Model", short_model(model["model"]) if model else "none"),
        ("Asked", provenance["sampling"]["prompt"]),
        ("Scanned", provenance["finished"]),
        ("Made by", f"vlmgate {__version__}"),
    ]
    warnings = [("Warning", line) for line in provenance.get("warnings") or ()]
    return [(name, plain(text)) for name, text in (*warnings, *pairs)]


# --- the page as one HTML file ----------------------------------------------------------------------------------------


@lru_cache
def program() -> str:
    """Return the page's JavaScript, all of it in one function."""
    parts = [(_PARTS_OF_PAGE / f"{name}.js").read_text(encoding="utf-8") for name in _PROGRAM]
    return '(() => {\n"use strict";\n' + "\n".join(parts) + "\n})();"


@lru_cache
def style() -> str:
    """Return the page's CSS."""
    return (_PARTS_OF_PAGE / "review.css").read_text(encoding="utf-8")


def policy(mode: Mode) -> str:
    """Return the Content-Security-Policy: this very program and style, pictures beside the page, and nothing else.

    Served, the page may talk to the server that it came from, and to no other.
    """
    served = mode == "served"
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src 'sha256-{_digest(program())}'",
            f"style-src 'sha256-{_digest(style())}'",
            "img-src 'self' data:" if served else "img-src 'self' file: data:",
            "connect-src 'self'" if served else "connect-src 'none'",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )


def head(mode: Mode) -> str:
    """Return the part of the page that tells it, and the browser, how it is opened; the server replaces it."""
    return (
        f'<meta http-equiv="Content-Security-Policy" content="{policy(mode)}">\n'
        f'<meta name="vlmgate-mode" content="{mode}">'
    )


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def safe_json(data: Any) -> str:
    """Return JSON that means nothing to HTML: ASCII, without <, > and &; what is no number is refused."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def render(data: Mapping[str, Any], title: str, notes: Sequence[str] = ()) -> str:
    """Return the page as it is opened from disk: one HTML file with all in it, which asks no network for anything."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_PARTS_OF_PAGE), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("page.html.j2").render(
        title=title,
        generator=Markup(GENERATOR),
        head=Markup(head("file")),
        style=Markup(style()),
        program=Markup(program()),
        data=Markup(safe_json(data)),
        total=len(data["items"]),
        notes=[plain(note) for note in notes],
    )


# --- what may be replaced ---------------------------------------------------------------------------------------------


def _marker(result: Path, provenance: Mapping[str, Any], options: ReviewConfig, images: Path) -> dict[str, Any]:
    """Return what a review folder says of its making; equal ones show the same."""
    return {
        "vlmgate_review": FORMAT,
        "run_id": provenance["run_id"],
        "review_id": review_id(provenance),
        "result": plain(result.name),
        "result_sha256": hashlib.sha256(result.read_bytes()).hexdigest(),
        "images": plain(os.fspath(images.resolve())),
        "accepted": options.accepted,
        "seed": options.seed,
        "vlmgate_version": __version__,
        "page_sha256": hashlib.sha256(render({"items": []}, "").encode()).hexdigest(),
    }


def _check_output(out: Path, images: Path | None, marker: Mapping[str, Any], *, single_file: bool) -> None:
    """Raise `OutputError` unless the review may be written there without harm to anything else."""
    if single_file:
        if out.suffix != ".html":
            raise OutputError(f"{out}: a single file must end in .html; give another -o.")
        if out.exists() and not _is_our_page(out):
            raise OutputError(f"{out}: exists and is no review of vlmgate; give another -o.")
        return
    check_outside(out, images, "previews")
    if not out.exists():
        return
    there = read_marker(out)
    if there is None:
        raise OutputError(f"{out}: exists and is no review of vlmgate; give another -o.")
    if there.get("run_id") != marker["run_id"]:
        raise OutputError(f"{out}: is the review of another scan ({there.get('result')}); move it, or give another -o.")
    if there.get("review_id") != marker["review_id"] and (out / VERDICTS_FILE).exists():
        raise OutputError(f"{out}: holds verdicts on another split of this scan; move it, or give another -o.")


def _is_our_page(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return GENERATOR.encode() in file.read(4096)


def read_marker(folder: Path) -> dict[str, Any] | None:
    """Return what a review folder says of its making, or None for any other folder."""
    try:
        found = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("vlmgate_review") == FORMAT else None


def _as_it_is(out: Path, marker: Mapping[str, Any], items: list[Item], passed: int) -> Made | None:
    there = read_marker(out)
    if there is None or any(there.get(name) != value for name, value in marker.items()) or not (out / PAGE).is_file():
        return None
    lacking = [(items[number - 1], Lacking(**one)) for number, one in there["lacking"]]
    return Made(out, items, passed, lacking, there["bytes"], reused=True)


def held(out: Path) -> AbstractContextManager[None]:
    """Hold a review for this process alone, while it is made or served."""
    check_folder(out)  # which the lock would make
    taken = "another `vlmgate review` makes or serves it; stop that one, or give another -o."
    return locked(out, out.with_name(f".{out.name}.lock"), taken)


@contextmanager
def _fresh_folder(out: Path) -> Iterator[Path]:
    """Give an empty folder that takes the place of `out` when the block ends well; verdicts there come along."""
    fresh, former = out.with_name(f".{out.name}.new"), out.with_name(f".{out.name}.old")
    with _disk_errors_in_one_line(out):
        try:
            if former.exists() and not out.exists():  # stopped between the two renames below
                os.replace(former, out)
            for left in (fresh, former):
                shutil.rmtree(left, ignore_errors=True)
            fresh.mkdir()
            yield fresh
            for name in (VERDICTS_FILE, TRIES_FILE):  # verdicts, and what was tried on them
                if (out / name).exists():
                    shutil.copy2(out / name, fresh / name)
            if out.exists():
                os.replace(out, former)
            os.replace(fresh, out)
        finally:
            if out.exists():
                shutil.rmtree(former, ignore_errors=True)
            shutil.rmtree(fresh, ignore_errors=True)


@contextmanager
def _disk_errors_in_one_line(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = f"{out}: cannot write the review ({error.strerror}); make room, or give another -o."
        raise StoreError(why) from error
