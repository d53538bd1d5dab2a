"""A policy for NumPy: `policy.py`, which is `numpy_policy.py` of this folder, and `policy.npz` with its arrays."""

from __future__ import annotations

import io
import json
from pathlib import Path

import jax
import numpy as np

from esrl.core.types import EsrlError, reason_of
from esrl.training.export import numpy_policy
from esrl.training.export.deployed import Deployed
from esrl.training.export.graph import held
from esrl.training.export.program import Program, program


def write(policy: Deployed) -> dict[str, bytes]:
    """The files of a policy, by their names.

    Raises:
      EsrlError: its network has an operation without a rule.
    """
    data = arrays_of(policy, program(policy, "numpy"))
    return {"policy.npz": data, "policy.py": Path(numpy_policy.__file__).read_bytes()}


def arrays_of(policy: Deployed, made: Program) -> bytes:
    """The file `policy.npz`, which was tried.

    Raises:
      EsrlError: it does not act as the policy does.
    """
    start = dict(zip(policy.about["carry"], jax.tree.leaves(policy.start), strict=True))
    about = policy.about | {
        "nodes": [[node.op, node.inputs, node.output, node.attributes] for node in made.graph.nodes],
        "values": {name: value.name for name, value in made.actions.items()},
        "output": made.output.name,
        "next_carry": [value.name for value in made.carry],
    }
    file = io.BytesIO()
    arrays = made.graph.arrays | {name: np.asarray(x, held(x.dtype)) for name, x in start.items()} | policy.self_test
    np.savez(file, allow_pickle=False, about=np.asarray(json.dumps(about)), **arrays)
    file.seek(0)
    try:
        numpy_policy.self_test(numpy_policy.Policy(file))
    except Exception as error:
        raise EsrlError(
            f"the exported policy does not act as the trained one ({reason_of(error)}); its network has an operation"
            " whose rule is wrong, or numbers that are not finite; stablehlo takes any network"
        ) from error
    return file.getvalue()
