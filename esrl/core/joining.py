"""How a process joins those that it trains with, by `jax.distributed`."""

from __future__ import annotations

import atexit
import contextlib
import json
import re
import socket
import threading
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from esrl.core import processes as together
from esrl.core.errors import EsrlError, notice, reason_of
from esrl.core.options import checked
from esrl.core.runtime import configure

PATIENCE = 300.0  # seconds that a process waits for the others to come
_HELLO = "esrl/hello"


@checked
def join(
    coordinator: str | None = None,
    processes: int | None = None,
    process_id: int | None = None,
    patience: float = PATIENCE,
) -> None:
    """Joins this process to the others of a cluster, by `jax.distributed`; call it before anything else uses JAX.

    Under SLURM, Open MPI, Kubernetes and on Cloud TPU the arguments are found in the environment, as
    `jax.distributed.initialize` does. Elsewhere all three are needed. Afterwards `esrl.train` in every process, with
    the same arguments, is one run on the devices of all.

    Args:
      coordinator: HOST:PORT at which process 0 listens and the others find it.
      processes: how many there are. process_id: which one this is, 0 to `processes` - 1.
      patience: seconds to wait until all have come.

    Raises:
      EsrlError: the arguments do not fit, the cluster is not known, the coordinator cannot be reached, not all
        processes came, or they differ in their number or in the versions of Python, JAX or esrl.

    Example:
      >>> esrl.join("localhost:0", processes=2, process_id=2)
      Traceback (most recent call last):
      esrl.core.errors.EsrlError: process_id is 2, but must lie in 0 .. 1, as there are 2 processes
    """
    _check_told(coordinator, processes, process_id)
    configure()
    # esrl hears signals itself; the service would take SIGTERM away from it.
    with contextlib.suppress(AttributeError):
        jax.config.update("jax_enable_preemption_service", False)
    begun = time.monotonic()
    if coordinator is not None and process_id:
        _await_coordinator(coordinator, patience)
    _initialize(coordinator, processes, process_id, patience, begun)
    # After JAX's own, so that it runs before that: which waits for the others.
    atexit.register(together.leave_alone)
    left = max(patience - (time.monotonic() - begun), 10.0)
    _greet(left)
    _connect(left)


def _check_told(coordinator: str | None, processes: int | None, process_id: int | None) -> None:
    if jax.distributed.is_initialized():
        raise EsrlError("this process has joined others already; call esrl.join once")
    if processes is not None and processes < 1:
        raise EsrlError(f"processes is {processes}, but must be 1 or more")
    if process_id is not None and not 0 <= process_id < (processes or process_id + 1):
        most = "" if processes is None else f" .. {processes - 1}, as there are {processes} processes"
        raise EsrlError(f"process_id is {process_id}, but must lie in 0{most or ' or above'}")
    if coordinator is not None and not re.fullmatch(r".+:[0-9]{1,5}", coordinator):
        raise EsrlError(f"coordinator is {coordinator!r}, but must be HOST:PORT, as 10.0.0.1:1234")


def _await_coordinator(coordinator: str, patience: float) -> None:
    """Knocks until process 0 listens: JAX ends the process without a word where nobody does."""
    host, _, port = coordinator.rpartition(":")
    begun, told = time.monotonic(), False
    while True:
        try:
            return socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except (OSError, OverflowError) as error:
            waited = time.monotonic() - begun
            failed = error  # a name may not be known yet: that of a machine that is still being started
            if waited >= patience or isinstance(error, OverflowError):
                raise EsrlError(
                    f"the coordinator {coordinator} cannot be reached ({error}) after {waited:.0f} s; start process 0"
                    " there, and let its port through"
                ) from error
        if not told and waited > 3:
            told = True
            notice(f"waiting for the coordinator {coordinator} ({failed})")
        time.sleep(0.2)


def _initialize(
    coordinator: str | None, processes: int | None, process_id: int | None, patience: float, begun: float
) -> None:
    """`jax.distributed.initialize`, in a thread: at its own timeout JAX ends the process with a page of addresses."""
    failed: list[BaseException] = []

    def initialize() -> None:
        try:
            jax.distributed.initialize(coordinator, processes, process_id, initialization_timeout=int(patience) + 3600)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=initialize, name="esrl-join", daemon=True)
    thread.start()
    while thread.is_alive() and time.monotonic() - begun < patience:
        thread.join(0.2)
    if thread.is_alive():
        together.abandon()
        atexit.register(together.leave_alone)
        many = f"all {processes} processes" if processes else "all processes"
        raise EsrlError(
            f"not {many} came within {patience:g} s; start each one, with the same --processes and an id of its own"
        )
    if failed:
        raise EsrlError(_refusal(failed[0], coordinator, processes, process_id)) from failed[0]


def _refusal(error: BaseException, coordinator: Any, processes: Any, process_id: Any) -> str:
    told = {"--coordinator HOST:PORT": coordinator, "--processes N": processes, "--process-id I": process_id}
    if isinstance(error, ValueError) and None in told.values():
        missing = " and ".join(name for name, value in told.items() if value is None)
        return f"no cluster's environment says how the processes find each other; give {missing}"
    if "before any JAX" in str(error) or "must be called before" in str(error):
        return "JAX was used before the processes had joined; call esrl.join first thing"
    return f"the processes cannot join at {coordinator or 'the coordinator'} ({reason_of(error)})"


def _greet(patience: float) -> None:
    """Compares number and versions by the coordinator's table, before a device is asked for: that waits for all.

    Raises:
      EsrlError: in every process, when one of them differs.
    """
    from jax._src import distributed  # the table has no public door

    state = distributed.global_state
    client: Any = state.client
    own = {"processes": str(state.num_processes), **together.versions()}
    wait = int(patience * 1000)
    client.key_value_set(f"{_HELLO}/{state.process_id}", json.dumps(own))
    try:
        if state.process_id == 0:
            others = (
                (i, json.loads(client.blocking_key_value_get(f"{_HELLO}/{i}", wait))) for i in range(1, _number_in(own))
            )
            client.key_value_set(f"{_HELLO}/verdict", _difference(own, others))
        verdict = client.blocking_key_value_get(f"{_HELLO}/verdict", wait)
    except jax.errors.JaxRuntimeError as error:
        together.abandon()
        raise EsrlError(
            f"a process that had joined left at once ({reason_of(error)[:200]}); see what it said"
        ) from error
    if verdict.strip():
        together.abandon()
        raise EsrlError(verdict)


def _number_in(told: dict[str, str]) -> int:
    """The number of processes in a greeting."""
    return int(told["processes"])


def _difference(own: dict[str, str], others: Any) -> str:
    """The first difference between process 0 and another, as a sentence; a space without any, for the table."""
    for i, other in others:
        for name, value in own.items():
            if other.get(name) != value:
                what = "was told of" if name == "processes" else "has"
                called = (lambda v: f"{v} processes") if name == "processes" else (lambda v: f"{name} {v}")  # noqa: B023
                again = "start all with the same number" if name == "processes" else f"install one {name} everywhere"
                return f"process 0 {what} {called(value)}, and process {i} {called(other.get(name))}; {again}"
    return " "


def _connect(patience: float) -> None:
    """Connects all devices, while all processes are here: gloo gives up where one comes 30 seconds later than another,
    as it may from compiling. What is connected once stays so, and waits for as long as it takes."""
    from jax._src import distributed

    mesh = Mesh(np.array(jax.devices()), ("all",))
    everywhere = NamedSharding(mesh, PartitionSpec())
    added = jax.shard_map(
        lambda x: jax.lax.psum(x, "all"), mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec()
    )
    one = np.ones(1, np.float32)
    x = jax.make_array_from_process_local_data(everywhere, one, one.shape)
    program = jax.jit(added).lower(x).compile()
    client: Any = distributed.global_state.client
    try:
        client.wait_at_barrier("esrl/connect", int(patience * 1000))
        jax.block_until_ready(program(x))
    except jax.errors.JaxRuntimeError as error:
        together.abandon()
        raise EsrlError(f"the processes cannot reach each other ({reason_of(error)[:200]})") from error
