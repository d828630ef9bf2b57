"""The review page from this machine's own address, with verdicts written to disk as they are made.

Make a `ReviewServer`, open its `address`, call `serve_forever`.

Who may talk to it: a browser on this machine that was opened with the token, which only whoever started the server has
seen. A page of another site in that same browser may not: its requests carry another Origin, lack the cookie
(SameSite=Strict), or name another Host, as after a name was pointed at 127.0.0.1.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import re
import secrets
import threading
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from vlmgate.errors import OutputError
from vlmgate.review.make import PAGE, VERDICTS_FILE, Made, head, policy
from vlmgate.review.verdicts import VerdictError, VerdictFile, checked

HOST = "127.0.0.1"
MOST_BYTES = 128 * 1024  # of a verdict
_PICTURE = re.compile(r"/(previews|thumbs)/(\d{6,8})\.jpg", re.ASCII)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class ReviewServer(ThreadingHTTPServer):
    """Serves one review folder on 127.0.0.1."""

    request_queue_size = 128  # connections that wait; browsers and a grid of pictures open several at once
    allow_reuse_address = False  # on Windows, reuse would let two servers share a port

    def __init__(self, made: Made, port: int = 0) -> None:
        """Read the verdicts that are there, and take the port; raises `OutputError`, for bad verdicts `StoreError`."""
        self.folder = made.out
        self.numbers = len(made.items)
        self.verdicts = VerdictFile(made.out / VERDICTS_FILE, made.items)
        self.token = secrets.token_urlsafe(32)
        self.lock = threading.Lock()  # one writer at a time
        self.ended = False  # connections that browsers keep open outlive the port
        page = (made.out / PAGE).read_text(encoding="utf-8")
        self.page = page.replace(head("file"), head("served"), 1).encode("utf-8")
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise OutputError(f"port {port} cannot be had ({error.strerror}); give another --port.") from error
        self.own = f"{HOST}:{self.server_address[1]}"
        self.cookie = f"vlmgate-{self.server_address[1]}"  # cookies know no ports

    def server_close(self) -> None:
        """Give the port back, and take no verdict any more."""
        self.ended = True
        super().server_close()

    @property
    def address(self) -> str:
        """Return the address to open; who has it may give verdicts."""
        return f"http://{self.own}/?token={self.token}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a browser that has gone away."""

    def knows(self, token: str) -> bool:
        return hmac.compare_digest(token.encode("utf-8", "replace"), self.token.encode("ascii"))


class _Refusal(Exception):  # noqa: N818 - it is an answer
    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: ReviewServer
    timeout = 30  # seconds; a client that says nothing holds a thread no longer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "vlmgate", ""

    def do_GET(self) -> None:
        self._answer(self._get)

    do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, method: Any) -> None:
        try:
            self._check_host_and_origin()
            method()
        except _Refusal as refusal:
            self.close_connection = True  # what was sent may not have been read
            self._send(refusal.status, f"{refusal}\n".encode(), "text/plain; charset=utf-8")

    def _check_host_and_origin(self) -> None:
        """Refuse whatever another site made a browser ask for."""
        if self.headers.get_all("Host") != [self.server.own]:
            raise _Refusal(HTTPStatus.FORBIDDEN, f"This is {self.server.own}, and answers to no other name.")
        origin = self.headers.get("Origin")
        if origin is not None and origin != f"http://{self.server.own}":
            raise _Refusal(HTTPStatus.FORBIDDEN, "Requests from other pages are refused.")
        if self.command == "POST" and origin is None:
            raise _Refusal(HTTPStatus.FORBIDDEN, "Verdicts are taken from the review page only.")

    def _check_cookie(self) -> None:
        cookie = None
        with contextlib.suppress(CookieError):
            cookie = SimpleCookie(self.headers.get("Cookie", "")).get(self.server.cookie)
        if cookie is None or not self.server.knows(cookie.value):
            why = "Open the address that `vlmgate review --serve` printed, token included."
            raise _Refusal(HTTPStatus.FORBIDDEN, why)

    def _get(self) -> None:
        parts = urlsplit(self.path)
        token = parse_qs(parts.query).get("token", [""])[0]
        if parts.path == "/" and token and self.server.knows(token):
            cookie = f"{self.server.cookie}={self.server.token}; Path=/; HttpOnly; SameSite=Strict"
            self._send(HTTPStatus.SEE_OTHER, b"", "text/plain", {"Location": "/", "Set-Cookie": cookie})
            return
        self._check_cookie()
        picture = _PICTURE.fullmatch(parts.path)
        if parts.path == "/":
            rule = {"Content-Security-Policy": policy("served")}
            self._send(HTTPStatus.OK, self.server.page, "text/html; charset=utf-8", rule)
        elif parts.path == "/verdicts":
            self._send(HTTPStatus.OK, json.dumps(self.server.verdicts.as_json()).encode(), "application/json")
        elif picture and 1 <= int(picture[2]) <= self.server.numbers:
            self._send_file(self.server.folder / picture[1] / f"{int(picture[2]):06d}.jpg")
        else:
            raise _Refusal(HTTPStatus.NOT_FOUND, "There is no such page here.")

    def _send_file(self, path: Path) -> None:
        try:
            jpeg = path.read_bytes()
        except OSError as error:
            raise _Refusal(HTTPStatus.NOT_FOUND, "There is no such picture.") from error
        self._send(HTTPStatus.OK, jpeg, "image/jpeg")

    def _post(self) -> None:
        self._check_cookie()
        if urlsplit(self.path).path != "/verdicts":
            raise _Refusal(HTTPStatus.NOT_FOUND, "There is no such page here.")
        if self.headers.get_content_type() != "application/json":
            raise _Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "A verdict is JSON.")
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"\d{1,9}", length, re.ASCII):
            raise _Refusal(HTTPStatus.LENGTH_REQUIRED, "A verdict has a length.")
        if int(length) > MOST_BYTES:
            raise _Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "This is too long for a verdict.")
        self._keep(self.rfile.read(int(length)))
        self._send(HTTPStatus.OK, b"{}", "application/json")

    def _keep(self, body: bytes) -> None:
        try:
            sent = json.loads(body.decode("utf-8"))
            if not isinstance(sent, dict) or sent.get("key") not in self.server.verdicts.keys:
                raise VerdictError("there is no such image in this review")
            verdict = checked(sent)
        except (ValueError, TypeError, RecursionError) as error:  # VerdictError is one, and so is bad JSON
            raise _Refusal(HTTPStatus.BAD_REQUEST, f"No verdict: {error}.") from error
        try:
            with self.server.lock:
                if self.server.ended:
                    raise _Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "The review is not served any more.")
                self.server.verdicts.put(sent["key"], verdict)
        except OSError as error:
            why = f"{VERDICTS_FILE} cannot be written ({error.strerror}); is it open in another program?"
            raise _Refusal(HTTPStatus.SERVICE_UNAVAILABLE, why) from error

    def _send(self, status: HTTPStatus, body: bytes, kind: str, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-store"}
        for name, value in (headers | _HEADERS | (more or {})).items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the terminal shows what was decided, not what was asked for."""
