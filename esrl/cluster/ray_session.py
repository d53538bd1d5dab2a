"""A connection to Ray: a cluster's, or one that is started on this machine and ends with the run."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import warnings
from typing import Any

from esrl.core.extras import import_extra
from esrl.core.runtime import cores
from esrl.core.types import EsrlError, reason_of

LOCAL = "local"  # the address that starts Ray on this machine
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}  # nothing is sent, nothing is said
_STORE = 256 << 20  # bytes of the object store of a Ray that is started here: a state, not a data set
_ANSWER = 5.0  # seconds within which a cluster's address has to take a connection


class Session:
    """Ray, connected. One that was connected before stays so when this ends.

    Args:
      address: "local", "auto" (a cluster that this machine is a node of), or HOST:PORT of its head.
      workers: logical cores of a Ray that is started here; one for each core where it is None.

    Raises:
      EsrlError: Ray is not installed, no cluster is there, or its versions differ.
    """

    def __init__(self, address: str, workers: int | None) -> None:
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        self.ray: Any = import_extra("ray", "ray", "ray_address")
        self.local = address == LOCAL
        self._owned = not self.ray.is_initialized()
        if self._owned:
            _check(address)
            self._connect(address, workers)
        elif address not in (LOCAL, "auto"):
            _check(address)
            there = str(self.ray.get_runtime_context().gcs_address)
            if there != address:
                raise EsrlError(
                    f"Ray is connected to {there}, not to {address}; call ray.shutdown() first, or give auto"
                )

    def _connect(self, address: str, workers: int | None) -> None:
        own: dict[str, Any] = {}
        if self.local:
            own = {"num_cpus": workers or cores(), "include_dashboard": False, "object_store_memory": _STORE}
        with _signals_kept(), warnings.catch_warnings():
            # Ray's processes are executed at once, which is safe beside JAX's threads.
            warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called", category=RuntimeWarning)
            try:
                self.ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
            except Exception as error:
                if self.local:
                    raise EsrlError(f"Ray cannot be started on this machine ({reason_of(error)})") from error
                raise EsrlError(
                    f"the Ray cluster at {address} cannot be joined ({reason_of(error)}); start the driver on one of"
                    f" its nodes (ray start --address {address}), with its versions of Python and Ray"
                ) from error

    @property
    def cores(self) -> int:
        """Logical cores of all nodes that are there now."""
        return int(self.ray.cluster_resources().get("CPU", 0))

    @property
    def free(self) -> int:
        """Those of them that nobody has been given, as far as this node has heard."""
        return int(self.ray.available_resources().get("CPU", 0))

    def close(self) -> None:
        """Ends what this has begun."""
        if self._owned and self.ray.is_initialized():
            with _signals_kept():
                self.ray.shutdown()
        self._owned = False


def _check(address: str) -> None:
    """Raises an EsrlError for an address that cannot be one; Ray would try for minutes."""
    if address in (LOCAL, "auto"):
        return
    if "://" in address:
        raise EsrlError(
            f"ray_address is {address}, but must be local, auto, or HOST:PORT of a cluster that this machine is a node"
            " of; start the driver on a node"
        )
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit():
        raise EsrlError(f"ray_address is {address!r}, but must be local, auto, or HOST:PORT, as 10.0.0.1:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER).close()
    except (OSError, OverflowError) as error:
        raise EsrlError(
            f"no Ray cluster answers at {address} ({reason_of(error)}); start one with ray start --head --port {port},"
            " or leave the address at local"
        ) from error


@contextlib.contextmanager
def _signals_kept() -> Any:
    """Ray takes SIGTERM for itself; a run's own way to stop stays."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
