"""The page as one HTML file that holds its style, its program and the data, and asks no network for anything.

Call `render`. The template, the style and the parts of the program lie in `page/`.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

PAGE = Path(__file__).parent / "page"
PARTS = ("basics", "verdicts", "picture", "reading", "grid", "page")  # of the program, in the order they build on
GENERATOR = '<meta name="generator" content="vlmgate review">'

Mode = Literal["file", "served"]


@lru_cache
def program() -> str:
    """Return the page's JavaScript, all of it in one function."""
    parts = [(PAGE / f"{name}.js").read_text(encoding="utf-8") for name in PARTS]
    return '(() => {\n"use strict";\n' + "\n".join(parts) + "\n})();"


@lru_cache
def style() -> str:
    """Return the page's CSS."""
    return (PAGE / "review.css").read_text(encoding="utf-8")


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


def render(data: Mapping[str, Any], title: str) -> str:
    """Return the page as it is opened from disk."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("page.html.j2").render(
        title=title,
        generator=Markup(GENERATOR),
        head=Markup(head("file")),
        style=Markup(style()),
        program=Markup(program()),
        data=Markup(safe_json(data)),
        total=len(data["items"]),
    )
