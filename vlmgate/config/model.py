"""Which model reads, and where it runs: here, or behind a server. See `ModelConfig` and `EndpointConfig`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

from vlmgate.config.options import Panel, check, opt, require
from vlmgate.errors import ConfigError

BUILTIN = "builtin"
SERVER = "a model server"  # in the place of a checkpoint; no hub id can be spelt so
DTYPES = ("auto", "float32", "bfloat16", "float16")

_model, _server = partial(opt, panel=Panel.MODEL), partial(opt, panel=Panel.SERVER, rare=True)


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """A model server that speaks OpenAI's chat protocol, and how it is asked. Its key comes from the environment."""

    url: str  # e.g. "http://gpu1:8000/v1"
    max_side: int = _server(
        2048, "With --endpoint: shrink images to this many pixels a side.", ge=28, le=65_536, note="pixels"
    )
    concurrency: int = _server(16, "With --endpoint: requests at once.", ge=1, le=1024)
    timeout: float = _server(
        300.0, "With --endpoint: seconds that a request may take.", gt=0, le=86_400, note="seconds"
    )
    # With growing pauses of a minute at most: two to three minutes in all.
    retries: int = _server(8, "With --endpoint: how often a request is tried again.", ge=0, le=100)

    structured_answers: bool = _server(
        False, "With --endpoint: let the server allow the choices as answers, and nothing else."
    )

    def __post_init__(self) -> None:
        _check_url(self.url)
        check(self)


def _check_url(url: str) -> None:
    """Raise `ConfigError` for what is no plain URL; one that may hold a password is not repeated."""
    allowed = "a URL such as http://host:8000/v1"
    try:
        parts = urlsplit(url)
        plain = bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise ConfigError(f"endpoint is no URL; allowed: {allowed}.") from None
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError(
            f"endpoint has a user, a query or a fragment; allowed: {allowed}. A key goes into VLMGATE_API_KEY."
        )
    printable = url.isascii() and url.isprintable() and " " not in url
    require(parts.scheme in ("http", "https") and plain and printable, "endpoint", url, allowed)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Which model, and where it runs: here, or behind `endpoint`. A server knows `model` by a name."""

    model: str = _model(
        BUILTIN,
        "'builtin', a checkpoint folder, or a hub id.",
        short="-m",
        test=str.strip,
        allowed="'builtin', a checkpoint folder or a hub id",
    )
    revision: str | None = _model(None, "Branch, tag or commit of a hub id.", rare=True)
    device: str = _model(
        "auto",
        "auto, cpu, cuda, cuda:N or mps.",
        test=re.compile(r"auto|cpu|mps|cuda(:\d+)?", re.ASCII).fullmatch,
        allowed="auto, cpu, cuda, cuda:N, mps",
    )
    dtype: str = _model(
        "auto", "auto, float32, bfloat16 or float16.", rare=True, test=DTYPES.__contains__, allowed=", ".join(DTYPES)
    )
    trust_remote_code: bool = _model(False, "Run Python code that comes with the checkpoint.", rare=True)
    trust_vision: bool = _model(
        False, "Go on with a model that did not tell a red picture from a green one.", rare=True
    )
    endpoint: EndpointConfig | None = opt(
        None,
        "OpenAI-compatible server of --model NAME: http://host:8000/v1.",
        panel=Panel.SERVER,
        kind=str,
        metavar="URL",
        into="url",
        alone="is of model servers; name one with --endpoint.",
    )  # None = the model runs here

    def __post_init__(self) -> None:
        check(self)
        if self.endpoint is None:
            return
        if self.model == BUILTIN:
            raise ConfigError("--endpoint needs --model NAME, the name by which the server knows its model.")
        local = {"revision": None, "device": "auto", "dtype": "auto", "trust_remote_code": False}
        for name, usual in local.items():
            if getattr(self, name) != usual:
                option = name.replace("_", "-")
                raise ConfigError(f"--{option} is of a model that runs here; leave it out beside --endpoint.")
