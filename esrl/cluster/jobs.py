"""What a worker makes its agent from: the constructor's call, its environment by name, the files behind that name."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import math
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle

from esrl.algorithms.agent import Agent
from esrl.core.types import EsrlError, reason_of
from esrl.envs.base import name_of, recipe_name_of
from esrl.envs.references import is_file, load_attribute
from esrl.envs.registry import check_again, make
from esrl.policies.networks import NETWORKS, network_of
from esrl.policies.user_network import Network

_BIGGEST = 16 << 20  # bytes of an agent without its parameters: more than that is a mistake


class Job(NamedTuple):
    """An agent as another process can make it.

    Attributes:
      env: its environment's name, "" where only an object leads to it.
      files: Python files by their names, that of the environment first, which a machine may not have.
      call: the constructor, the environment where no name leads to it, and the other arguments, by cloudpickle.
    """

    env: str
    files: dict[str, bytes]
    call: bytes


def job_of(agent: Agent) -> Job:
    """An agent as a job.

    Raises:
      EsrlError: it was not made by a constructor of esrl, or something of it cannot be sent to another process.
    """
    if agent.call is None:
        raise EsrlError(f"{agent.name} was put together by hand, and no worker could make it; use its constructor")
    function, given = agent.call
    constructor: Any = function
    if function.__module__ != "__main__":  # by its name: nodes have its package
        constructor = f"{function.__module__}:{function.__qualname__}"
    given = {k: v for k, v in given.items() if k not in ("env", "mesh", "chunk_pairs", "memory_gib")}
    name = recipe_name_of(agent.env)
    try:
        check_again(name)
    except EsrlError:
        name = ""
    files = _files(name)
    given["policy"] = _by_name(given.get("policy"))
    try:
        call = cloudpickle.dumps((constructor, None if name else agent.env, given))
    except Exception as error:
        what = "its network or options" if name else "its environment, network or options"
        raise EsrlError(
            f"{agent.name} on {name_of(agent.env)} cannot be sent to workers ({reason_of(error)}); give {what}"
            " by names, or as classes and functions of a file"
        ) from error
    weights = sum(4 * math.prod(leaf.shape) for leaf in (*agent.plan.leaves, *agent.plan.frozen))
    if len(call) > _BIGGEST + weights:  # a network may bring the parameters that it starts from
        raise EsrlError(
            f"{agent.name} on {name_of(agent.env)} takes {len(call) >> 20} MiB to send; an object of its environment,"
            " network or options holds arrays: let it make them when it is called"
        )
    return Job(name, files, call)


def agent_of(job: Job) -> Agent:
    """The agent of a job, in the process that is to play it.

    Raises:
      EsrlError: it cannot be made here.
    """
    name = _with_files(job.env, job.files)
    try:
        # Runs code: that of the driver, over Ray, whose every message is code of the driver's.
        constructor, env, given = cloudpickle.loads(job.call)
    except Exception as error:
        raise EsrlError(
            f"a worker cannot read the agent ({reason_of(error)}); install on each node what the driver has installed"
        ) from error
    if isinstance(constructor, str):
        constructor = load_attribute(constructor)
    if isinstance(given["policy"], dict):
        given["policy"] = network_of(given["policy"].pop("network"), given["policy"])
    return constructor(env=make(name) if name else env, **given)


def _by_name(network: Any) -> Any:
    """What a ready-made network is made from; any other network as it is."""
    spec = network.spec if isinstance(network, Network) else None
    if spec is None or network.start is not None or spec["network"] not in NETWORKS:
        return network
    return spec


def _files(name: str) -> dict[str, bytes]:
    """The file behind `path/to/file.py:Name`, and the modules beside it that it has imported."""
    bare = name.partition("?")[0]
    if not is_file(bare):
        return {}
    path = Path(bare.rpartition(":")[0]).expanduser().resolve()
    found = {str(path): path.read_bytes()}
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if not (file and file.endswith(".py")):
            continue
        whole = Path(file).resolve()
        # What is installed, as in a virtual environment beside the file, every node has by itself.
        if whole.is_relative_to(path.parent) and "site-packages" not in whole.relative_to(path.parent).parts:
            with contextlib.suppress(OSError):
                found.setdefault(str(whole), whole.read_bytes())
    return found


def _with_files(name: str, files: dict[str, bytes]) -> str:
    """The environment's name here. Where a file of it is missing or is another one, all of them are written anew."""
    if not files:
        return name
    if all(Path(path).is_file() and Path(path).read_bytes() == text for path, text in files.items()):
        first = next(iter(files))  # its place is absolute; the name's may be seen from the driver's folder
    else:
        whole = hashlib.sha256(b"".join(files.values())).hexdigest()[:16]
        home = Path(tempfile.mkdtemp(prefix=f"esrl-{whole}-"))
        atexit.register(shutil.rmtree, home, ignore_errors=True)
        base = Path(next(iter(files))).parent
        for path, text in files.items():
            place = home / Path(path).relative_to(base)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(text)
        first = str(home / Path(next(iter(files))).name)
    bare, _, query = name.partition("?")
    return f"{first}:{bare.rpartition(':')[2]}" + (f"?{query}" if query else "")
