"""Ready-made networks: a multi-layer perceptron, a GRU, a convolutional network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from gymnasium import spaces

from esrl.core.options import checked
from esrl.core.types import Array, EsrlError, PyTree
from esrl.policies import integer_networks
from esrl.policies.spaces import features, pictures_and_rest
from esrl.policies.user_network import Bound, Network, linen

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "layernorm_relu": lambda x: nn.relu(nn.LayerNorm(use_bias=False, use_scale=False)(x)),  # the paper's, as in PQN
    "relu": nn.relu,
    "tanh": nn.tanh,
    "silu": nn.silu,
    "gelu": nn.gelu,
    "elu": nn.elu,
}


class _MLP(nn.Module):
    space: spaces.Space
    size: int
    hidden: tuple[int, ...]
    activation: str
    output_scale: float
    bias: bool = True
    skip: bool = False
    one_hot: bool = False

    @nn.compact
    def __call__(self, observation: PyTree) -> Array:
        x = seen = features(self.space, observation, self.one_hot)
        for width in self.hidden:
            x = ACTIVATIONS[self.activation](nn.Dense(width, use_bias=self.bias)(x))
        scale = nn.initializers.variance_scaling(self.output_scale**2, "fan_in", "truncated_normal")
        out = nn.Dense(self.size, use_bias=self.bias, kernel_init=scale)(x)
        return out + nn.Dense(self.size, use_bias=False, kernel_init=scale, name="Skip")(seen) if self.skip else out


class _GRU(nn.Module):
    space: spaces.Space
    size: int
    hidden: int
    activation: str
    output_scale: float
    one_hot: bool = False

    @nn.compact
    def __call__(self, carry: Array, observation: PyTree) -> tuple[Array, Array]:
        x = ACTIVATIONS[self.activation](nn.Dense(self.hidden)(features(self.space, observation, self.one_hot)))
        carry, x = nn.GRUCell(self.hidden)(carry, x)
        scale = nn.initializers.variance_scaling(self.output_scale**2, "fan_in", "truncated_normal")
        return carry, nn.Dense(self.size, kernel_init=scale)(x)


class _CNN(nn.Module):
    space: spaces.Space
    size: int
    channels: tuple[int, ...]
    hidden: tuple[int, ...]
    activation: str
    output_scale: float

    @nn.compact
    def __call__(self, observation: PyTree) -> Array:
        act = ACTIVATIONS[self.activation]
        pictures, rest = pictures_and_rest(self.space, observation)
        parts = [rest] if rest.size else []
        for x in pictures:
            for width in self.channels:
                stride = 2 if max(x.shape[:2]) > _SMALL else 1
                x = act(nn.Conv(width, (3, 3), (stride, stride))(x))
            parts.append(x.ravel())
        x = jnp.concatenate(parts)
        for width in self.hidden:
            x = act(nn.Dense(width)(x))
        scale = nn.initializers.variance_scaling(self.output_scale**2, "fan_in", "truncated_normal")
        return nn.Dense(self.size, kernel_init=scale)(x)


_SMALL = 16  # pixels: sides above it are halved by a convolution


def _check_activation(activation: str | None) -> str:
    """The activation by today's name."""
    activation = "layernorm_relu" if activation is None else activation
    activation = "layernorm_relu" if activation == "pqn" else activation  # its name in the first recipes
    if activation not in ACTIVATIONS:
        raise EsrlError(f"unknown activation {activation!r}; known: {', '.join(ACTIVATIONS)}")
    return activation


def _is_integer(dtype: str, network: str) -> bool:
    """Whether a network is of integers.

    Raises:
      EsrlError: a type that is neither of the two.
    """
    if dtype not in ("float32", "int8"):
        raise EsrlError(f'dtype of {network} is {dtype!r}, but must be "float32" or "int8"; for bfloat16 use precision')
    return dtype == "int8"


@checked
def mlp(
    hidden: tuple[int, ...] = (256, 256, 256),
    activation: str | None = None,
    output_scale: float = 1.0,
    bias: bool = True,
    skip: bool = False,
    one_hot: bool = False,
    dtype: str = "float32",
) -> Network:
    """A multi-layer perceptron; the default is the paper's, three layers of 256 with relu(LayerNorm(x)).

    Args:
      hidden: widths of the hidden layers; () is a linear policy, and 64 is (64,).
      activation: "layernorm_relu" (relu of a LayerNorm without parameters), "relu", "tanh", "silu", "gelu", "elu"; of
        int8 "saturate" or "relu", which saturates too. None is layernorm_relu, or saturate.
      output_scale: standard deviation of the outputs at the start, relative to the usual initialization.
      bias: whether layers have biases.
      skip: whether a linear map of the observation is added to the outputs, so that a linear policy is found as soon as
        without hidden layers.
      one_hot: whether whole numbers within narrow bounds (at most 64 values, as the tags and colors of a grid world)
        are coded one-hot rather than normalized, as Discrete ones always are.
      dtype: "float32", or "int8": weights and activations are int8, sums int32, scales powers of two, and what does not
        fit saturates (`esrl.policies.integer_networks`). `esrl.eggroll_int8` trains those.

    Raises:
      EsrlError: a width below 1, an unknown activation or dtype, or a skip where there is no hidden layer to skip.

    Example:
      >>> agent = esrl.eggroll("gymnasium/phys2d/CartPole-v1", esrl.mlp((32, 32), "tanh"), population=32)
      >>> agent.plan.num_params
      1282
    """
    hidden = tuple(hidden)
    integer = _is_integer(dtype, "mlp")
    activation = integer_networks.check_activation(activation) if integer else _check_activation(activation)
    if skip and not hidden:
        raise EsrlError("skip is true, but hidden is (), which is a linear map already; leave one of them out")

    def bind(observation: PyTree, size: int, *, observation_space: spaces.Space) -> Bound:
        if integer:
            options = (hidden, activation, output_scale, bias, skip, one_hot)
            return integer_networks.mlp(observation_space, observation, size, *options)
        module = _MLP(observation_space, size, hidden, activation, output_scale, bias, skip, one_hot)
        return linen(module, observation, ())

    spec = {
        "network": "mlp",
        "hidden": list(hidden),
        "activation": activation,
        "output_scale": output_scale,
        "bias": bias,
        "skip": skip,
        "one_hot": one_hot,
        **({"dtype": dtype} if integer else {}),  # recipes of before do not have it
    }
    return Network(bind, spec, flat=True, one_hot=one_hot)


@checked
def gru(
    hidden: int = 128,
    activation: str | None = None,
    output_scale: float = 1.0,
    one_hot: bool = False,
    dtype: str = "float32",
) -> Network:
    """A recurrent network: a dense layer, a GRU cell, a dense output. The carry starts at zero in every episode.

    Of int8 the cell is a minimal gated unit (`esrl.policies.integer_networks`), and the carry an int16.

    Args:
      hidden: width of the layer and of the carry.
      activation: of the layer before the cell, as in `mlp`.
      output_scale, one_hot, dtype: as in `mlp`.

    Raises:
      EsrlError: a width below 1, or an unknown activation or dtype.

    Example:
      >>> agent = esrl.eggroll("gymnasium/phys2d/CartPole-v1", esrl.gru(16), population=32)
      >>> agent.policy.carry.shape
      (16,)
    """
    integer = _is_integer(dtype, "gru")
    activation = integer_networks.check_activation(activation) if integer else _check_activation(activation)

    def bind(observation: PyTree, size: int, *, observation_space: spaces.Space) -> Bound:
        if integer:
            options = (hidden, activation, output_scale, one_hot)
            return integer_networks.gru(observation_space, observation, size, *options)
        module = _GRU(observation_space, size, hidden, activation, output_scale, one_hot)
        return linen(module, observation, jnp.zeros(hidden))

    spec = {
        "network": "gru",
        "hidden": [hidden],
        "activation": activation,
        "output_scale": output_scale,
        "one_hot": one_hot,
        **({"dtype": dtype} if integer else {}),  # recipes of before do not have it
    }
    return Network(bind, spec, flat=True, one_hot=one_hot)


@checked
def cnn(
    channels: tuple[int, ...] = (16, 32, 32),
    hidden: tuple[int, ...] = (128,),
    activation: str | None = None,
    output_scale: float = 1.0,
    dtype: str = "float32",
) -> Network:
    """A convolutional network for pictures: 3x3 convolutions, then dense layers.

    A picture is an entry of the observation that is a Box of three dimensions, with the channels last, or first where
    that side is the shortest; uint8 ones are divided by 255. A convolution halves sides above 16 pixels and keeps
    smaller ones. Entries that are no pictures join before the dense layers.

    Args:
      channels: of the convolutions.
      hidden: widths of the dense layers.
      activation, output_scale, dtype: as in `mlp`.

    Raises:
      EsrlError: a number below 1, an unknown activation or dtype, or an observation without a picture.

    Example:
      >>> class Picture:
      ...     observation_space = gymnasium.spaces.Box(0.0, 1.0, (8, 8, 1), np.float32)
      ...     action_space = gymnasium.spaces.Discrete(2)
      ...     def reset(self, key):
      ...         return (), jnp.zeros((8, 8, 1))
      ...     def step(self, state, action, key):
      ...         return (), jnp.zeros((8, 8, 1)), jnp.float32(0), jnp.bool_(True)
      >>> agent = esrl.eggroll(Picture(), esrl.cnn((4,), (8,)), population=32)
      >>> [leaf.rank for leaf in agent.plan.leaves if "kernel" in leaf.path]
      [1, 1, 1]
    """
    channels, hidden = tuple(channels), tuple(hidden)
    if not channels:
        raise EsrlError("channels are none, but a cnn has at least one convolution")
    integer = _is_integer(dtype, "cnn")
    activation = integer_networks.check_activation(activation) if integer else _check_activation(activation)

    def bind(observation: PyTree, size: int, *, observation_space: spaces.Space) -> Bound:
        if not pictures_and_rest(observation_space, observation)[0]:
            raise EsrlError(f"a cnn needs a picture [H, W, C] in the observation, but its space is {observation_space}")
        if integer:
            options = (channels, hidden, activation, output_scale)
            return integer_networks.cnn(observation_space, observation, size, *options)
        return linen(_CNN(observation_space, size, channels, hidden, activation, output_scale), observation, ())

    spec = {
        "network": "cnn",
        "channels": list(channels),
        "hidden": list(hidden),
        "activation": activation,
        "output_scale": output_scale,
        **({"dtype": dtype} if integer else {}),  # recipes of before do not have it
    }
    return Network(bind, spec)


NETWORKS: dict[str, Callable[..., Network]] = {"mlp": mlp, "gru": gru, "cnn": cnn}


def network_of(kind: str, given: dict[str, Any]) -> Network:
    """The ready-made network of a name, from plain data as a file or a message has them: widths as lists.

    Raises:
      EsrlError: several widths for a gru, or a value that the network refuses.
    """
    given = dict(given)
    for name in {"hidden", "channels"} & given.keys():  # lists; a list of one may be written as a number
        given[name] = tuple(given[name]) if isinstance(given[name], (list, tuple)) else (given[name],)
    if kind == "gru" and "hidden" in given:
        if len(given["hidden"]) != 1:
            raise EsrlError(f"a gru has one width, but hidden is {list(given['hidden'])}")
        (given["hidden"],) = given["hidden"]
    return NETWORKS[kind](**given)
