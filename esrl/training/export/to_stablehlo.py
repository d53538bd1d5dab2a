"""A policy for StableHLO: `policy.stablehlo`, a program that `jax.export` reads, `policy.json`, and `self_test.npz`."""

from __future__ import annotations

import io
import json
from typing import Any

import jax
import numpy as np
from jax import export as jax_export

from esrl.core.types import EsrlError, reason_of
from esrl.training.export.deployed import Deployed, batched

PLATFORMS = ("cpu", "cuda")


def write(policy: Deployed) -> dict[str, bytes]:
    """The files of a policy, by their names.

    Raises:
      EsrlError: JAX cannot export its network.
    """
    structure = jax.tree.structure(policy.start)
    act = batched(policy)

    def call(observation: Any, carry: tuple[Any, ...]) -> tuple[Any, Any, tuple[Any, ...]]:
        # A carry as a plain tuple: a class of the user's own is not there when the file is read.
        action, output, after = act(observation, jax.tree.unflatten(structure, carry))
        return action, output, tuple(jax.tree.leaves(after))

    (batch,) = jax_export.symbolic_shape("batch")
    given = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((batch, *x.shape), x.dtype),
        (policy.observation, tuple(jax.tree.leaves(policy.start))),
    )
    try:
        data = jax_export.export(jax.jit(call), platforms=PLATFORMS)(*given).serialize()
    except Exception as error:  # of JAX, for what a network may hold
        raise EsrlError(f"JAX cannot export this network: {reason_of(error)}") from error
    start = {
        name: np.asarray(x).tolist()
        for name, x in zip(policy.about["carry"], jax.tree.leaves(policy.start), strict=True)
    }
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **policy.self_test)
    about = json.dumps(policy.about | {"start": start, "platforms": PLATFORMS}, indent=1).encode()
    return {"policy.stablehlo": bytes(data), "policy.json": about, "self_test.npz": file.getvalue()}
