"""Jaxprs, JAX's traced programs: what stands inside an equation, over the versions of JAX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jax.extend import core as jex

_INLINE = ("jaxpr", "call_jaxpr", "fun_jaxpr")  # where call-like primitives (jit, remat, custom_jvp) keep their body


def call_body(eqn: Any) -> Any | None:
    """The closed body of a call-like equation that can be evaluated in place, else None."""
    if eqn.primitive.name in ("scan", "while", "cond"):
        return None
    for name in _INLINE:
        body = eqn.params.get(name)
        if body is None:
            continue
        closed = body if hasattr(body, "consts") else jex.ClosedJaxpr(body, ())
        if len(closed.jaxpr.invars) == len(eqn.invars):
            return closed
    return None


def scan_parts(eqn: Any) -> tuple[int, int]:
    """How many of a scan equation's inputs are constants, and how many are carried; the rest are slices."""
    if "num_consts" in eqn.params:
        return eqn.params["num_consts"], eqn.params["num_carry"]
    consts, carry, _ = eqn.params["ft_in"].update(list(range(len(eqn.invars)))).unpack()  # jax 0.11 and later
    return len(list(consts)), len(list(carry))


def operations(jaxpr: Any) -> int:
    """The operations of a traced function, those of functions and loops inside it too."""
    inner = [
        getattr(part, "jaxpr", part)
        for equation in jaxpr.eqns
        for value in equation.params.values()
        for part in (value if isinstance(value, (tuple, list)) else (value,))
    ]
    return len(jaxpr.eqns) + sum(operations(part) for part in inner if hasattr(part, "eqns"))


def path_name(path: Sequence[Any]) -> str:
    """A leaf's place in its tree, as network/Dense_0/kernel."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)
