"""Any Flax module or plain function of the user's as a network that esrl takes, unmodified.

A network is for one lane, without a batch axis: it takes one observation as the observation space describes it (a Dict
space gives a dict) and returns one array with as many numbers as the action space's head needs. A recurrent network
takes and returns a carry as well; the carry starts again with every episode. Feed-forward networks are the special case
of an empty carry, so both share one path.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from esrl.core.types import Array, EsrlError, Key, PyTree


class Bound(NamedTuple):
    """A network that knows its spaces: `init(key) -> params`, `apply(params, obs, carry) -> (output, carry)`."""

    init: Callable[[Key], PyTree]
    apply: Callable[[PyTree, PyTree, PyTree], tuple[Array, PyTree]]
    carry: PyTree = ()


class Network(NamedTuple):
    """A network that does not know its spaces yet.

    Attributes:
      bind: `bind(observation, size) -> Bound`, given one observation (zeros, as the space describes it) and the number
        of outputs that the action space needs. `observation_space` comes as a keyword.
      spec: what a recipe says of it, `{"network": "mlp", ...}`; None for a network that only the user's code can build.
      flat: whether it makes one float32 vector of every observation, so that normalized numbers are as good to it as
        bytes and whole numbers.
      one_hot: whether it codes categories one-hot, which then are not normalized.
      start: `start(key) -> params`, parameters of the policy to start from in place of the network's own. A critic that
        is built like the policy does not take them.
    """

    bind: Callable[..., Bound]
    spec: dict[str, Any] | None = None
    flat: bool = False
    one_hot: bool = False
    start: Callable[[Key], PyTree] | None = None


_KEEPS_STATE = (
    "{} keeps state outside its parameters ({}), which no generation could share; use layers without it"
    " (LayerNorm or GroupNorm in place of BatchNorm)"
)


def network(
    module: Any,
    *,
    init: Callable[[Key], PyTree] | None = None,
    params: PyTree | None = None,
    carry: PyTree = (),
) -> Network:
    """Any network as esrl takes it: a Flax Linen module, a Flax NNX module, or a plain function. Nothing is rewritten.

    Args:
      module: one of
        * a ready-made network (`esrl.mlp(...)`), to start from `init` or `params`; its carry is its own;
        * a Linen module `module(obs) -> output`, or `module(carry, obs) -> (carry, output)` when `carry` is given;
        * an NNX module with the same call, or a function `rngs -> module` (then every seed has its own start);
        * a function `f(params, obs) -> output`, or `f(params, obs, carry) -> (output, carry)` when `carry` is given.
      init: `init(key) -> params`, the parameters to start from; a function needs it, a module has its own.
      params: in place of `init`, parameters that are the same for every seed.
      carry: for recurrent networks: the carry of one lane at the start of an episode.

    Raises:
      EsrlError: something that is none of these, a function without `init` or `params`, both of them, or a carry for
        a ready-made network.

    Example:
      >>> linear = esrl.network(lambda params, observation: observation @ params, params=jnp.zeros((4, 2)))
      >>> agent = esrl.eggroll("gymnasium/phys2d/CartPole-v1", linear, population=32)
      >>> agent.plan.num_params
      8
    """
    if init is not None and params is not None:
        raise EsrlError("a policy starts from init=function(key) or from params=..., but both were given")
    start = init if params is None else lambda key: jax.tree.map(jnp.asarray, params)
    if isinstance(module, Network):
        if jax.tree.leaves(carry):
            raise EsrlError("a ready-made network has a carry of its own; leave out carry, or give your own module")
        # No spec: a recipe could not say what it starts from, and would train another start without a word.
        return module if start is None else module._replace(start=start, spec=None)
    if inspect.isclass(module) and issubclass(module, nn.Module):
        module = _instance(module)
    if isinstance(module, nn.Module):
        return Network(lambda obs, size, *, observation_space: started(linen(module, obs, carry), start))
    if isinstance(module, nnx.Module) or _makes_nnx(module):
        return Network(lambda obs, size, *, observation_space: started(_nnx(module, carry), start))
    if not callable(module):
        raise EsrlError(f"a policy is a Flax module or a function, but got {type(module).__name__}")
    if start is None:
        raise EsrlError(
            "a policy function needs its parameters: give init=function(key), or params=...; what makes a network is"
            " called first, as esrl.gru()"
        )
    apply = module if jax.tree.leaves(carry) else lambda p, obs, c: (module(p, obs), c)
    return Network(lambda obs, size, *, observation_space: Bound(start, apply, carry))


def _instance(kind: type[nn.Module]) -> nn.Module:
    """An instance of a Linen class with its defaults.

    Raises:
      EsrlError: one of its fields has no default.
    """
    try:
        return kind()
    except TypeError:
        name = kind.__name__
        raise EsrlError(
            f"{name} is a Linen class whose fields have no defaults; give an instance, {name}(...), which in a file has"
            f" a name of its own: net = {name}(...)"
        ) from None


def started(bound: Bound, init: Callable[[Key], PyTree] | None) -> Bound:
    """The network with these parameters to start from, when there are any."""
    return bound if init is None else bound._replace(init=init)


def linen(module: nn.Module, observation: PyTree, carry: PyTree) -> Bound:
    recurrent = jax.tree.leaves(carry) != []
    inputs = (carry, observation) if recurrent else (observation,)

    def init(key: Key) -> PyTree:
        variables = dict(module.init(key, *inputs))
        others = sorted(set(variables) - {"params"})
        if others:
            raise EsrlError(_KEEPS_STATE.format(type(module).__name__, ", ".join(others)))
        return variables.get("params", {})

    def apply(params: PyTree, obs: PyTree, carry: PyTree) -> tuple[Array, PyTree]:
        out: Any = module.apply({"params": params}, *((carry, obs) if recurrent else (obs,)))
        return (out[1], out[0]) if recurrent else (out, carry)

    return Bound(init, apply, carry)


def _makes_nnx(network: Any) -> bool:
    if inspect.isclass(network):
        return issubclass(network, nnx.Module)
    if not callable(network) or isinstance(network, nnx.Module):
        return False
    try:
        names = list(inspect.signature(network).parameters)
    except (TypeError, ValueError):
        return False
    return names == ["rngs"]


def _nnx(network: Any, carry: PyTree) -> Bound:
    recurrent = jax.tree.leaves(carry) != []
    make = network if not isinstance(network, nnx.Module) else None
    module = network if make is None else make(rngs=nnx.Rngs(0))
    if jax.tree.leaves(nnx.state(module, nnx.BatchStat)):
        raise EsrlError(_KEEPS_STATE.format(type(module).__name__, "BatchStat"))
    # Parameters leave the module, so that they can be perturbed and trained; all else of it stays in `rest`.
    parts: Any = nnx.split(module, nnx.Param, ...)
    graph, start, rest = parts

    def init(key: Key) -> PyTree:
        fresh = start if make is None else nnx.state(make(rngs=nnx.Rngs(key)), nnx.Param)
        return nnx.to_pure_dict(fresh)

    def apply(params: PyTree, obs: PyTree, carry: PyTree) -> tuple[Array, PyTree]:
        state = jax.tree.map(lambda x: x, start)  # a copy: replacing writes into it
        nnx.replace_by_pure_dict(state, params)
        whole = nnx.merge(graph, state, rest)
        if not recurrent:
            return whole(obs), carry
        carry, output = whole(carry, obs)
        return output, carry

    return Bound(init, apply, carry)
