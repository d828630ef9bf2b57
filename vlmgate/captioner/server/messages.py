"""What goes to a model server and comes back: pictures as data URLs, and OpenAI's chat completions.

Start with `data_url` and `captions_of`. Nothing in an answer is trusted: what is missing, malformed or new ends as a
text that goes to a person, or as no text, never as one that is whole.
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from PIL import Image

from vlmgate.data import Caption, Finish

MOST_PNG = 4 * 1024**2  # bytes; above it JPEG is sent, for many servers and proxies refuse large bodies
JPEG_QUALITY = 95
LONGEST = 65_536  # characters of a text that are kept; a longer one counts as cut off
# What a server may say of the end of a text. Anything else, and silence, is "unknown".
_FINISHES: dict[str, Finish] = {"stop": "stop", "length": "length", "content_filter": "refused"}
_THOUGHT = re.compile(r"\s*<think>.*?(?:</think>|\Z)", re.DOTALL)


class BadReplyError(Exception):
    """An answer that is no chat completion."""


def parse(body: bytes) -> dict[str, Any]:
    """Return the object that a body holds; raises `BadReplyError` for anything else, in words that quote none of it."""
    try:
        reply = json.loads(body)
    except (ValueError, RecursionError):
        begins = body.lstrip()[:1]
        kind = "a web page" if begins == b"<" else "no JSON" if begins else "nothing"
        raise BadReplyError(f"it answered with {kind}; a URL usually ends in /v1") from None
    if not isinstance(reply, dict) or not isinstance(reply.get("choices"), list):
        raise BadReplyError("it answered with JSON that is no chat completion")
    return reply


def captions_of(reply: Mapping[str, Any], most: int) -> list[Caption]:
    """Return the texts of a completion, `most` at most; there are fewer where the server gave fewer that can be read.

    The mean log-probability is that of the tokens which the server lists; None where it lists none, or nonsense.
    """
    choices = [choice for choice in reply["choices"] if _has_message(choice)]
    if all(isinstance(choice.get("index"), int) for choice in choices):
        choices.sort(key=lambda choice: int(choice["index"]))
    usage = reply.get("usage")
    spent = usage.get("completion_tokens") if isinstance(usage, dict) and len(choices) == 1 else None
    return [_caption(choice, spent) for choice in choices[:most]]


def thoughts_of(reply: Mapping[str, Any]) -> list[str]:
    """Return everything that each choice says, reasoning included, to tell one answer from another."""
    messages = [choice["message"] for choice in reply["choices"] if _has_message(choice)]
    also = ("reasoning_content", "reasoning", "refusal")
    parts = [
        [_text(one.get("content")), *(one[key] for key in also if isinstance(one.get(key), str))] for one in messages
    ]
    return ["\n".join(part).strip() for part in parts]


def _has_message(choice: object) -> bool:
    return isinstance(choice, dict) and isinstance(choice.get("message"), dict)


def _caption(choice: Mapping[str, Any], spent: object) -> Caption:
    message = choice["message"]
    text = _THOUGHT.sub("", _text(message.get("content")), count=1).strip()
    reason = choice.get("finish_reason")
    finish: Finish = _FINISHES.get(reason, "unknown") if isinstance(reason, str) else "unknown"
    refusal = message.get("refusal")
    if isinstance(refusal, str) and refusal.strip():
        text, finish = text or refusal.strip(), "refused"
    if message.get("tool_calls") or message.get("function_call"):
        finish = "unknown"  # it wanted to do something else first
    if len(text) > LONGEST:
        text, finish = text[:LONGEST], "length"
    logprobs = _logprobs(choice.get("logprobs"))
    mean = None if not logprobs else round(min(math.fsum(logprobs) / len(logprobs), 0.0), 6) + 0.0
    return Caption(text, finish, mean, len(logprobs or ()) or _count(spent))


def _text(content: object) -> str:
    """Return the text of a message, which may come in parts."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _logprobs(logprobs: object) -> list[float] | None:
    """Return the log-probability of every token, nats; None where one of them is none."""
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(content, list):
        return None
    found: list[float] = []
    for token in content:
        value = token.get("logprob") if isinstance(token, dict) else None
        if not isinstance(value, int | float) or isinstance(value, bool) or not -1e4 < value <= 1e-3:
            return None
        found.append(float(value))
    return found


def _count(spent: object) -> int:
    return spent if isinstance(spent, int) and not isinstance(spent, bool) and 0 <= spent < 2**31 else 0


# --- pictures ---------------------------------------------------------------------------------------------------------


def describe_pictures(max_side: int) -> str:
    """Say in words how pictures are sent."""
    return (
        f"upright 8-bit RGB, at most {max_side:,} pixels a side; PNG, or JPEG of quality {JPEG_QUALITY} where a PNG "
        f"exceeds {MOST_PNG // 1024**2} MiB"
    )


def data_url(rgb: Image.Image, max_side: int) -> str:
    """Return an RGB picture as a data URL, shrunk to `max_side` pixels where it is larger.

    Nothing but pixels is sent: no EXIF, no colour profile, no file name.
    """
    bare = _shrunk(rgb, max_side)
    bare.info = {}
    kind, data = "png", _saved(bare, "PNG", compress_level=6)
    if len(data) > MOST_PNG:
        kind, data = "jpeg", _saved(bare, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _shrunk(rgb: Image.Image, max_side: int) -> Image.Image:
    longer = max(rgb.size)
    if longer <= max_side:
        return rgb.copy()
    width, height = (max(1, round(side * max_side / longer)) for side in rgb.size)
    return rgb.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)


def _saved(picture: Image.Image, form: str, **options: int) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()
