"""The served review: verdicts on disk as they are made, and nobody else at the door."""

from __future__ import annotations

import csv
import http.client
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.reviewing import five, reviewed
from vlmgate.errors import OutputError
from vlmgate.review import Options, make_review
from vlmgate.review.server import MOST_BYTES, ReviewServer


class Client:
    """A browser that does as it is told."""

    def __init__(self, server: ReviewServer) -> None:
        self.server, self.own = server, server.own
        self.cookie = f"{server.cookie}={server.token}"

    def ask(
        self, path: str, *, method: str = "GET", body: Any = None, cookie: bool = True, **headers: str | None
    ) -> tuple[int, dict[str, str], bytes]:
        sent: dict[str, str | None] = {"Host": self.own}
        if cookie:
            sent["Cookie"] = self.cookie
        if method == "POST":
            sent |= {"Origin": f"http://{self.own}", "Content-Type": "application/json"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_address[1], timeout=10)
        try:
            connection.putrequest(method, path, skip_host=True)
            if data is not None:
                sent.setdefault("Content-Length", str(len(data)))
            for name, value in sent.items():
                if value is not None:
                    connection.putheader(name, value)
            connection.endheaders(data)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def say(self, key: str, verdict: str, **more: str) -> int:
        return self.ask("/verdicts", method="POST", body={"key": key, "verdict": verdict} | more)[0]


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with_server = serving(tmp_path)
    yield next(with_server)
    next(with_server, None)


def serving(root: Path, **options: Any) -> Iterator[Client]:
    made = reviewed(root / "r.parquet" if (root / "r.parquet").exists() else five(root), **options)
    server = ReviewServer(made)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield Client(server)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def rows_of(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((folder / "verdicts.csv").read_text(encoding="utf-8"), newline="")))


def test_the_token_opens_the_door_and_nothing_else_does(client: Client) -> None:
    assert client.server.server_address[0] == "127.0.0.1"
    token = client.server.token
    status, headers, _ = client.ask(f"/?token={token}", cookie=False)
    assert status == 303 and headers["Location"] == "/"
    assert headers["Set-Cookie"] == f"{client.cookie}; Path=/; HttpOnly; SameSite=Strict"
    for path in (
        "/",
        "/?token=",
        f"/?token={token[:-1]}x",
        f"/verdicts?token={token}",
        "/previews/000001.jpg",
        "/?token=%ff",
    ):
        assert client.ask(path, cookie=False)[0] == 403
    assert client.ask("/", Cookie=f"{client.server.cookie}=wrong")[0] == 403
    assert client.ask("/", Cookie="; ;=,\x01")[0] == 403
    assert client.ask("/verdicts", method="POST", body={}, cookie=False)[0] == 403


def test_the_page_and_its_pictures_are_served_and_nothing_else(client: Client) -> None:
    status, headers, page = client.ask("/")
    assert status == 200 and b'content="served"' in page and b"connect-src 'none'" not in page
    assert headers["Content-Security-Policy"].startswith("default-src 'none'") and headers["X-Frame-Options"] == "DENY"
    assert headers["Cache-Control"] == "no-store" and headers["X-Content-Type-Options"] == "nosniff"
    assert client.ask("/previews/000001.jpg")[2].startswith(b"\xff\xd8\xff")
    assert client.ask("/thumbs/000003.jpg")[0] == 200
    assert client.ask("/", method="HEAD")[2] == b""
    for path in (
        "/previews/000004.jpg", "/previews/0.jpg", "/previews/..%2freview.json", "/previews/../review.json",
        "/review.json", "/verdicts.csv", "//etc/passwd", "/../../etc/passwd", "/previews/", "/index.html",
        "/previews/000001.JPG",
    ):  # fmt: skip
        assert client.ask(path)[0] == 404, path
    for method in ("PUT", "DELETE", "OPTIONS", "TRACE"):
        assert client.ask("/", method=method)[0] == 501


def test_other_hosts_and_origins_are_refused(client: Client) -> None:
    port = client.server.server_address[1]
    for host in (
        "evil.example",
        f"evil.example:{port}",
        "127.0.0.1",
        f"localhost:{port}",
        f"127.0.0.1:{port + 1}",
        "",
        None,
    ):
        assert client.ask("/", Host=host)[0] in (400, 403), host
    for origin in (
        "http://evil.example",
        "null",
        f"https://127.0.0.1:{port}",
        f"http://localhost:{port}",
        f"http://127.0.0.1:{port}.evil.example",
    ):
        assert client.ask("/verdicts", Origin=origin)[0] == 403
        assert client.ask("/verdicts", method="POST", body={}, Origin=origin)[0] == 403
    key = client.server.verdicts.items[0].key
    assert client.ask("/verdicts", method="POST", body={"key": key, "verdict": "wrong"}, Origin=None)[0] == 403
    assert client.server.verdicts.given == {}


def test_verdicts_are_on_disk_when_they_are_acknowledged(client: Client) -> None:
    first, second, _ = (item.key for item in client.server.verdicts.items)
    assert client.say(first, "wrong", reading="=a dent", note="</script>") == 200
    (row,) = rows_of(client.server.folder)
    assert (row["file_name"], row["verdict"], row["reading"], row["note"]) == (
        "part_3.png",
        "wrong",
        "'=a dent",
        "</script>",
    )
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", row["at"])
    assert client.say(second, "correct") == 200 and client.say(first, "unusable") == 200
    assert [row["verdict"] for row in rows_of(client.server.folder)] == ["unusable", "correct"]
    assert client.say(first, "") == 200, "taken back"
    assert [row["file_name"] for row in rows_of(client.server.folder)] == ["part_4.png"]
    told = json.loads(client.ask("/verdicts")[2])
    assert list(told) == [second] and told[second]["verdict"] == "correct"


def test_what_is_no_verdict_is_refused(client: Client) -> None:
    key = client.server.verdicts.items[0].key
    bodies: list[Any] = [
        b"", b"{", b"[]", b"\xff", b"null", b"[" * 60_000,
        {"key": key, "verdict": "maybe"}, {"key": "x", "verdict": "wrong"},
        {"key": [], "verdict": "wrong"}, {"verdict": "wrong"}, {"key": key, "verdict": "wrong", "note": 1},
        {"key": key, "verdict": "wrong", "reading": "x" * 10_001},
    ]  # fmt: skip
    for body in bodies:
        assert client.ask("/verdicts", method="POST", body=body)[0] == 400, body
    good = {"key": key, "verdict": "wrong"}
    assert client.ask("/verdicts", method="POST", body=b"x" * (MOST_BYTES + 1))[0] == 413
    assert client.ask("/verdicts", method="POST", body=good, Content_Type="text/plain")[0] == 415
    assert client.ask("/verdicts", method="POST", body=good, Content_Length="-1")[0] == 411
    assert client.ask("/other", method="POST", body=good)[0] == 404
    assert client.server.verdicts.given == {} and not (client.server.folder / "verdicts.csv").exists()


def test_a_disk_that_refuses_is_told_and_loses_nothing(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    key = client.server.verdicts.items[0].key
    assert client.say(key, "wrong") == 200

    def refuse(*_: object) -> None:
        raise OSError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", refuse)
        status, _, why = client.ask("/verdicts", method="POST", body={"key": key, "verdict": "correct"})
    assert status == 503 and b"is it open in another program?" in why
    assert rows_of(client.server.folder)[0]["verdict"] == "wrong"
    assert client.say(key, "correct") == 200


def test_many_at_once_lose_nothing(client: Client) -> None:
    keys = [item.key for item in client.server.verdicts.items]
    threads = [threading.Thread(target=client.say, args=(key, "wrong")) for key in keys * 8]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [row["verdict"] for row in rows_of(client.server.folder)] == ["wrong"] * 3


def test_a_shift_hands_over(tmp_path: Path) -> None:
    for say, expected in (("wrong", 0), ("correct", 1)):
        (line,) = [serving(tmp_path)]
        client = next(line)
        assert len(json.loads(client.ask("/verdicts")[2])) == expected
        assert client.say(client.server.verdicts.items[expected].key, say) == 200
        next(line, None)
    assert [row["verdict"] for row in rows_of(tmp_path / "r_review")] == ["wrong", "correct"]


def test_a_review_of_the_same_result_and_options_is_not_made_twice(tmp_path: Path) -> None:
    result = five(tmp_path)
    assert not make_review(result, Options(), reuse=True).reused
    assert make_review(result, Options(), reuse=True).reused
    assert not make_review(result, Options(accepted=1), reuse=True).reused
    assert len(make_review(result, Options(accepted=1), reuse=True).items) == 4


def test_a_port_that_is_taken_is_told(client: Client, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="give another --port"):
        ReviewServer(reviewed(tmp_path / "r.parquet"), client.server.server_address[1])


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_told_to_stop(tmp_path: Path, signum: signal.Signals) -> None:
    command = [sys.executable, "-m", "vlmgate", "review", str(five(tmp_path)), "--serve", "-q"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        lines: list[str] = []
        while not (lines and lines[-1].startswith("Verdicts go to")):
            lines.append(process.stdout.readline())
            assert lines[-1], process.stderr.read()
        address = re.search(r"http://(127\.0\.0\.1:\d+)(/\?token=[\w-]{43})\n", "".join(lines))
        assert address, lines
        connection = http.client.HTTPConnection(address[1], timeout=10)
        connection.request("GET", address[2])
        assert connection.getresponse().status == 303
        connection.close()
        process.send_signal(signum)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0 and "Stopped. 0 verdicts in" in out and err == ""
