"""One real scan of the sample images, shared by the tests that look at it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.support.faulty_server import FaultyServer
from tests.support.inbox import Run, scan_inbox

# Before torch is imported, here and in every command that a test starts. More threads cost the tests' small models
# time, and where several processes run tests they would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Let torch use one: threads only cost time on models as small as those of the tests."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def inbox_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return scan_inbox(tmp_path_factory.mktemp("inbox") / "inbox.parquet")


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    """A model server of the tests' own, to which nobody comes back late."""
    pytest.importorskip("openai", reason="the extra `endpoint` is not installed")
    from vlmgate.captioner.server.client import Server

    for name in ("VLMGATE_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Server, "_pause", lambda self, tried, wait: 0.01)
    with FaultyServer().running() as running:
        yield running


@pytest.fixture(autouse=True)
def no_own_reference(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a fake stand for a model whose folder carries no reference: its features are not the built-in model's.

    Tests that read with the built-in model itself, in this process, are marked `own_reference`.
    """
    if "own_reference" not in request.keywords:
        monkeypatch.setattr("vlmgate.gate.run_gate.checkpoint_reference", lambda model: None)


@pytest.fixture(autouse=True, scope="session")
def signals_are_heard() -> None:
    """Let SIGHUP and SIGINT end what these tests start, even where a shell or nohup had them ignored."""
    for name, usual in (("SIGHUP", signal.SIG_DFL), ("SIGINT", signal.default_int_handler)):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)
