"""The key of a model server: where it comes from, and that it goes nowhere else.

Knows environment variables and texts; knows nothing of servers.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from vlmgate.errors import ConfigError

OWN, USUAL = "VLMGATE_API_KEY", "OPENAI_API_KEY"
HIDDEN = "[key]"
SHORTEST = 8  # characters; a shorter "key" such as EMPTY is a word that a caption may hold, and no secret


def find_key(environment: Mapping[str, str], url: str) -> str | None:
    """Return the key for a server; None = none is sent. Raises `ConfigError` for one that no header can hold.

    `OPENAI_API_KEY` is often there for another service's sake, so it does not go over an open line to another machine.
    """
    for name in (OWN, USUAL):
        key = environment.get(name, "").strip()
        if not key or (name == USUAL and not url.startswith("https:") and not is_loopback(url)):
            continue
        if not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigError(f"{name} holds a character that no key has; set it again.")
        return key
    return None


def is_loopback(url: str) -> bool:
    """Say whether a URL leads to this very machine."""
    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def without(key: str | None, text: str) -> str:
    """Return a text in which the key does not stand."""
    return text if key is None or len(key) < SHORTEST else text.replace(key, HIDDEN)
