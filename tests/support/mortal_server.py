"""A model server, in its own process, that dies of one kind of picture.

Run `python -m tests.support.mortal_server PORT`. `restarted` starts it again each time, as
systemd or a container would.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.faulty_server import Asked, FaultyServer

DEADLY = (77, 33)  # pixels of a picture that it dies of
HAUNTED = (55, 33)  # of one that takes longer than the others


def main() -> None:
    """Serve until a deadly picture comes."""
    server = FaultyServer()

    def behave(asked: Asked) -> None:
        if asked.picture.size == DEADLY:
            os._exit(3)
        time.sleep(0.5 if asked.picture.size == HAUNTED else 0.0)

    server.behave = behave
    with server.running(int(sys.argv[1])):
        print("ready", flush=True)
        threading.Event().wait()


@contextlib.contextmanager
def restarted(pause: float) -> Iterator[tuple[str, list[float]]]:
    """Yield the URL of such a server, and the times of its deaths; `pause` is how many seconds it stays away."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    deaths: list[float] = []
    ended, ready = threading.Event(), threading.Event()
    running: list[subprocess.Popen[bytes]] = []

    def keep() -> None:
        while not ended.is_set():
            command = [sys.executable, "-m", "tests.support.mortal_server", str(port)]
            root = Path(__file__).parent.parent.parent
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=root)
            running.append(process)
            assert process.stdout is not None
            process.stdout.readline()
            ready.set()
            process.wait()
            process.stdout.close()
            deaths.append(time.monotonic())
            ended.wait(pause)

    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    try:
        assert ready.wait(60)
        yield f"http://127.0.0.1:{port}/v1", deaths
    finally:
        ended.set()
        while thread.is_alive():
            for process in running:
                process.kill()
            thread.join(0.1)


if __name__ == "__main__":
    main()
