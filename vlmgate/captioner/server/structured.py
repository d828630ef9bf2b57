"""Let a model server answer with one of the choices and nothing else; start with `WAYS` and `options_of`.

Servers take this under different names, and some take any name without obeying it; `probe` asks. A model that is kept
to the choices cannot say that it sees something else, so shares and log-probabilities mean less: it is asked for by
name, and readings with and without it are never mixed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from vlmgate.config import ABSTENTION, SamplingConfig

# The likeliest first: vLLM from 0.12, vLLM before that, llama.cpp; the last is OpenAI's, which SGLang and others take.
WAYS = ("structured_outputs", "guided_choice", "grammar", "response_format")
MORE_TOKENS = 16  # that the braces and the key of a JSON object cost
# No model says these by itself. Asked for in two pairs, so that one word over and over is not taken for obeying.
NONSENSE = (("qorvel", "zimbat"), ("plundo", "vaxery"))


def allowed_of(sampling: SamplingConfig) -> tuple[str, ...]:
    """Return all that an answer may be: the choices, and the abstention where it is offered."""
    return (*sampling.choices, *((ABSTENTION,) if sampling.abstain else ()))


def options_of(way: str, allowed: Sequence[str]) -> dict[str, Any]:
    """Return the options of a request by which a server keeps to `allowed`, in one of `WAYS`."""
    if way == "structured_outputs":
        return {way: {"choice": list(allowed)}}
    if way == "guided_choice":
        return {way: list(allowed)}
    if way == "grammar":
        return {way: "root ::= " + " | ".join(json.dumps(one, ensure_ascii=False) for one in allowed)}
    schema = {
        "type": "object",
        "properties": {"answer": {"type": "string", "enum": list(allowed)}},
        "required": ["answer"],
        "additionalProperties": False,
    }
    return {way: {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}}


def more_tokens(way: str) -> int:
    """Return how many tokens an answer takes beyond its choice."""
    return MORE_TOKENS if way == "response_format" else 0


def obeys(way: str, text: str, allowed: Sequence[str]) -> bool:
    """Say whether a text is one of `allowed`, in the form that a way gives it."""
    if way == "response_format":
        try:
            found: object = json.loads(text)
        except (ValueError, RecursionError):
            return False
        return isinstance(found, Mapping) and set(found) == {"answer"} and found["answer"] in allowed
    return text.strip() in allowed
