"""A model server of the tests' own, that does as it is told: well, badly, or not at all."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

from vlmgate.captioner.streams import COLOUR_QUESTION, trial_picture

AGREE = "a steel washer without visible defects"
TRIAL = trial_picture().rgb.size


@dataclass(frozen=True)
class Asked:
    """One request, as the server sees it."""

    body: dict[str, Any]
    headers: dict[str, str]
    picture: Image.Image
    kind: str  # "png" or "jpeg"

    @property
    def prompt(self) -> str:
        return str(self.body["messages"][0]["content"][1]["text"])

    @property
    def is_trial(self) -> bool:
        width, height = self.picture.size  # it may have been shrunk
        return width * TRIAL[1] == height * TRIAL[0]

    @property
    def name(self) -> bytes:
        """Tell pictures apart."""
        return self.picture.tobytes()[:600]


@dataclass(frozen=True)
class Reply:
    """What is sent back; `cut` = the connection breaks off after half of it."""

    body: bytes | dict[str, Any] = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0  # seconds
    cut: bool = False


def refusal(text: str, status: int = 400) -> Reply:
    return Reply({"error": {"message": text}}, status)


def choice(text: str | None = AGREE, finish: str | None = "stop", index: int = 0, **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": text} | more
    return {"index": index, "message": message, "finish_reason": finish}


def completion(*choices: dict[str, Any]) -> dict[str, Any]:
    return {"object": "chat.completion", "choices": list(choices), "usage": {"completion_tokens": 7}}


def colour_of(picture: Image.Image) -> str:
    """Return what a model that sees says of a picture's colour."""
    red, green, _ = np.asarray(picture.convert("RGB")).reshape(-1, 3).mean(0)
    return f"The picture is {'red' if red > green else 'green'}."


Behaviour = Callable[[Asked], "Reply | dict[str, Any] | None"]  # None = as a good server would


class FaultyServer:
    """Answers on loopback. `behave` is asked first; `say` makes the texts of good answers, `see` names a colour."""

    def __init__(self) -> None:
        self.behave: Behaviour = lambda asked: None
        self.say: Callable[[Asked, int], str] = lambda asked, sample: AGREE
        self.see: Callable[[Asked], str] = lambda asked: colour_of(asked.picture)
        self.takes_n = self.takes_logprobs = True
        self.asked: list[Asked] = []
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @property
    def images(self) -> list[Asked]:
        """Return the requests that were no trial."""
        return [asked for asked in self.asked if not asked.is_trial]

    @contextlib.contextmanager
    def running(self, port: int = 0) -> Iterator[FaultyServer]:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # head and body in one packet, or every answer waits for an acknowledgement

            def do_GET(self) -> None:
                self._send(Reply({"object": "list", "data": [{"id": "other-model", "object": "model"}]}))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self._send(owner._reply(body, {k.lower(): v for k, v in self.headers.items()}))

            def _send(self, reply: Reply) -> None:
                data = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
                time.sleep(reply.delay)
                with contextlib.suppress(OSError):  # who asked may have gone
                    self.send_response(reply.status)
                    for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data[: len(data) // 2] if reply.cut else data)
                    self.wfile.flush()
                if reply.cut:
                    self.close_connection = True

            def log_message(self, *_: object) -> None: ...

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: object) -> None: ...

        with Quiet(("127.0.0.1", port), Handler) as self._server:
            thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
            thread.start()
            try:
                yield self
            finally:
                self._server.shutdown()
                thread.join()

    def stop(self) -> None:
        """Go away in mid-run: no connection is answered any more."""
        assert self._server is not None
        self._server.socket.close()

    def _reply(self, body: dict[str, Any], headers: dict[str, str]) -> Reply:
        url = body["messages"][0]["content"][0]["image_url"]["url"]
        head, _, data = url.partition(";base64,")
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            picture.load()
        asked = Asked(body, headers, picture, head.removeprefix("data:image/"))
        with self._lock:
            self.asked.append(asked)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            told = self.behave(asked)
            if told is None:
                told = self._good(asked)
            return told if isinstance(told, Reply) else Reply(told)
        finally:
            with self._lock:
                self.at_once -= 1

    def _good(self, asked: Asked) -> dict[str, Any]:
        body = asked.body
        samples = body.get("n", 1) if self.takes_n else 1
        return completion(*(self._choice(asked, i) for i in range(samples)))

    def _choice(self, asked: Asked, index: int) -> dict[str, Any]:
        body = asked.body
        if asked.prompt == COLOUR_QUESTION:
            one = choice(self.see(asked), "stop", index)
        elif body["temperature"] == 2.0:  # as who draws wildly
            rng = np.random.default_rng([body.get("seed", len(self.asked)), index])
            one = choice(" ".join(str(n) for n in rng.integers(0, 1000, 8)), "length", index)
        else:
            one = choice(self.say(asked, index), "stop", index)
        if body.get("logprobs") and self.takes_logprobs:
            one["logprobs"] = {"content": [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -1.5}]}
        return one
