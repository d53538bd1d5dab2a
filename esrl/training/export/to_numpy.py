"""A policy for NumPy: `policy.py`, which is `numpy_policy.py` of this folder, and `policy.npz` with its arrays."""

from __future__ import annotations

import io
import json
from pathlib import Path

import jax
import numpy as np

from esrl.training.export import numpy_policy
from esrl.training.export.deployed import Deployed
from esrl.training.export.graph import held
from esrl.training.export.program import program


def write(policy: Deployed) -> dict[str, bytes]:
    """The files of a policy, by their names.

    Raises:
      EsrlError: its network has an operation without a rule.
    """
    made = program(policy, "numpy")
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
    source = Path(numpy_policy.__file__).read_bytes()
    return {"policy.npz": file.getvalue(), "policy.py": source}
