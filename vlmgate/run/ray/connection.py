"""Join a Ray cluster, or start one on this machine, and leave nothing of it behind.

Knows Ray's settings and its manners; knows nothing of images or models. Nothing is reported to anybody, there is no
dashboard, and whatever Ray prints goes to the log.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmgate.errors import UsageError, count, one_line
from vlmgate.run.control import ENDING

log = logging.getLogger(__name__)

LOCAL = "local"  # a cluster of this machine alone, for this run alone
AUTO = "auto"  # the cluster that this machine belongs to, else a local one
_KNOCK = 10.0  # seconds
_STORE = 256 << 20  # bytes of shared memory; what is passed on is text and features, not pixels


@dataclass(frozen=True, slots=True)
class Room:
    """What the machines of a cluster offer, whether or not it is in use at the moment."""

    machines: tuple[dict[str, float], ...]  # resources of each

    @property
    def gpus(self) -> float:
        """Return the number of GPUs."""
        return sum(one.get("GPU", 0.0) for one in self.machines)

    @property
    def cpus(self) -> float:
        """Return the number of cores, as Ray counts them."""
        return sum(one.get("CPU", 0.0) for one in self.machines)

    def workers(self, gpus_each: float) -> int:
        """Return how many workers with one core and so many GPUs each there is room for."""
        return sum(
            int(min(one.get("CPU", 0.0), one.get("GPU", 0.0) / gpus_each if gpus_each else float("inf")))
            for one in self.machines
        )

    def describe(self) -> str:
        """Return it in a few words."""
        return f"{count(len(self.machines), 'machine')}, {self.cpus:g} CPUs, {self.gpus:g} GPUs"


def import_ray() -> Any:
    """Return the package; raises `UsageError` where it is not there."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # a worker without a GPU must not see any
    try:
        import ray
    except ImportError as error:
        raise UsageError("--ray needs Ray on this and every other machine; pip install 'vlmgate[ray]'.") from error
    return ray


def _has_token() -> bool:
    """Say whether this user has the token that `ray get-auth-token --generate`, or an earlier cluster, has left."""
    try:
        return (Path.home() / ".ray" / "auth_token").is_file()
    except (RuntimeError, OSError):  # no home
        return False


@contextmanager
def joined(address: str, tell: Callable[[str], None]) -> Iterator[tuple[Any, Room]]:
    """Yield the package and what the cluster offers; raises `UsageError` where there is no cluster at `address`."""
    if address.startswith("ray://"):
        raise UsageError(
            f"--ray {address}: this is a client's address; run vlmgate on a machine of the cluster with --ray auto, or "
            "through `ray job submit`."
        )
    if address != LOCAL and "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ and _has_token():
        os.environ["RAY_AUTH_MODE"] = "token"  # which Ray sees to by itself only where it begins a cluster
    ray = import_ray()
    with _quiet(), contextlib.ExitStack() as left_behind:
        if not ray.is_initialized():  # a program that uses Ray itself keeps its connection
            with _signals_kept():
                left_behind.callback(ray.shutdown)
                _join(ray, address, left_behind, tell)
        room = Room(tuple(node["Resources"] for node in ray.nodes() if node["Alive"]))
        tell(f"Ray: {room.describe()}.")
        yield ray, room


def _join(ray: Any, address: str, left_behind: contextlib.ExitStack, tell: Callable[[str], None]) -> None:
    manners: dict[str, Any] = {"configure_logging": False, "log_to_driver": False}
    if address != LOCAL:
        if address != AUTO:
            _knock(address)
        try:
            ray.init(address=address, **manners)
            return
        except Exception as error:
            if address != AUTO or not isinstance(error, ConnectionError):
                raise UsageError(
                    f"--ray {address}: no cluster can be joined there ({one_line(error, 160)}); `ray start` on its "
                    "machines begins one, --ray local uses this machine alone."
                ) from error
        tell("Ray: this machine belongs to no running cluster, so it is used alone.")
    # In a folder of its own, so that nobody else takes it for the cluster of this machine.
    folder = Path(tempfile.mkdtemp(prefix="vlmgate-ray-"))
    left_behind.callback(shutil.rmtree, folder, ignore_errors=True)
    left_behind.callback(ray.shutdown)  # before its folder goes
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        ray.init(
            address="local",
            num_cpus=cores,
            include_dashboard=False,
            object_store_memory=_STORE,
            _temp_dir=os.fspath(folder),
            **manners,
        )
    except Exception as error:
        raise UsageError(f"--ray {address}: Ray does not start on this machine ({one_line(error, 160)}).") from error


def _knock(address: str) -> None:
    """Raise `UsageError` where nobody listens at host:port; Ray itself tries for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UsageError(f"--ray is '{address}'; give auto, local, or host:port such as head:6379.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UsageError(
            f"--ray {address}: nobody answers there ({one_line(error, 120)}); give host:port of a cluster that "
            "`ray start --head` began, or auto, or local."
        ) from error


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Take our signal handlers back after Ray has put its own in their place, which would end the program at once."""
    ours = {number: signal.getsignal(number) for number in ENDING}
    try:
        yield
    except SystemExit as error:  # of Ray's handler: a signal came meanwhile
        raise KeyboardInterrupt from error
    finally:
        for number, handler in ours.items():
            with contextlib.suppress(ValueError, TypeError):  # not the main thread; a handler that Python did not set
                signal.signal(number, handler)


class _ToLog(io.TextIOBase):
    """Stands in for stdout: what is printed behind our back would end up amid the result."""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        for line in text.splitlines():
            if line.strip():
                log.info("%s", line)
        return len(text)


@contextmanager
def _quiet() -> Iterator[None]:
    """Send to the log what Ray prints, and what it logs to handlers of its own."""
    its = logging.getLogger("ray")
    handlers, propagate = its.handlers[:], its.propagate
    its.handlers, its.propagate = [], True
    try:
        with contextlib.redirect_stdout(_ToLog()):
            yield
    finally:
        its.handlers, its.propagate = handlers, propagate
