"""A real model server on this machine: `transformers serve` with the built-in model, in a process of its own."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

NEEDED = ("openai", "fastapi", "uvicorn", "accelerate", "pydantic")
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback, whatever the environment says


def what_is_missing() -> str | None:
    """Return why no server can be started here; None where one can."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    return f"transformers serve needs {', '.join(missing)}" if missing else None


@contextlib.contextmanager
def model_server(folder: Path, log: Path, *, patience: float = 180.0) -> Iterator[str]:
    """Serve a checkpoint on loopback; yields the URL, and ends the server afterwards. Raises with the log's end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # float32, as on the CPU here; by itself the server loads bfloat16 and hands the model float32 pixels.
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve", str(folder)]
    offline = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, *options], stdout=file, stderr=file, stdin=subprocess.DEVNULL, env={**os.environ, **offline}
        )
    try:
        _wait(process, f"http://127.0.0.1:{port}/health", patience, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, patience: float, log: Path) -> None:
    until = time.monotonic() + patience
    while time.monotonic() < until and process.poll() is None:
        try:
            with _OPENER.open(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    said = log.read_text(encoding="utf-8", errors="replace")[-2000:]
    raise RuntimeError(f"no server within {patience:g} s (exit code {process.poll()}): {said}")
