"""Objectives as what a population plays: a score for each member and minibatch takes the place of an episode.

The whole function of the user, from key to score, is what the population's forward pass evaluates: however often it
calls the network, each product with a weight matrix is one product for all members. What depends on the minibatch alone
is computed once where all members share it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from esrl.core import sharding
from esrl.core.integers import OUTPUT_BITS
from esrl.core.lanes import broadcast_lanes
from esrl.core.types import Array, EsrlError, Key, PyTree, reason_of, seed_key
from esrl.envs.objectives import Objective
from esrl.perturbation import forward
from esrl.perturbation.noise import Leaf
from esrl.policies import integer_statistics
from esrl.policies.policy import Policy
from esrl.policies.running_statistics import AnyMoments
from esrl.policies.spaces import observation_zeros
from esrl.rollouts.types import Act, Draw, Episodes, Runner


class Apply:
    """The network of one member, as an objective's function gets it. See `esrl.objective`.

    Attributes:
      carry: one lane's at the start; () without memory.
    """

    def __init__(self, called: str, one: Callable[[PyTree, PyTree], tuple[Array, PyTree]], like: PyTree, carry: PyTree):
        self._called, self._one, self._like, self.carry = called, one, like, carry

    def start(self, *batch: int) -> PyTree:
        """The carry at the start, for a batch of this shape."""
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (*batch, *jnp.shape(x))), self.carry)

    def __call__(self, inputs: PyTree, carry: PyTree | None = None) -> Any:
        """Outputs [*batch, size] of inputs [*batch, *shape]; with a carry `(outputs, carry)`.

        Raises:
          EsrlError: inputs of another shape or type, or no carry for a network with memory.
        """
        if carry is None and jax.tree.leaves(self.carry):
            raise EsrlError(
                f"{self._called}: the network has a memory, so call apply(inputs, carry), which gives (outputs, carry);"
                " apply.start(*batch) is the first carry"
            )
        given, batch = self._checked(inputs)
        count = len(batch)
        carries = self.start(*batch) if carry is None else carry
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[count:]), (given, carries))
        outputs, after = jax.vmap(self._one)(*flat)
        outputs, after = jax.tree.map(lambda x: x.reshape(*batch, *x.shape[1:]), (outputs, after))
        return outputs if carry is None else (outputs, after)

    def _checked(self, inputs: PyTree) -> tuple[PyTree, tuple[int, ...]]:
        """The inputs in the types that the network takes, and the shape of their batch."""
        needed, given = jax.tree.leaves(self._like), jax.tree.map(jnp.asarray, inputs)
        leaves = jax.tree.leaves(given)
        alike = jax.tree.structure(given) == jax.tree.structure(self._like)
        batches = {x.shape[: x.ndim - like.ndim] for x, like in zip(leaves, needed, strict=False)}
        fits = all(x.shape[x.ndim - like.ndim :] == like.shape for x, like in zip(leaves, needed, strict=False))
        if not alike or not fits or len(batches) != 1:
            shapes, wanted = jax.tree.map(lambda x: x.shape, (given, self._like))
            raise EsrlError(
                f"{self._called}: apply was given inputs of shape {shapes}, but inputs says {wanted}, behind any batch"
            )
        for x, like in zip(leaves, needed, strict=True):
            if jnp.issubdtype(x.dtype, jnp.floating) and not jnp.issubdtype(like.dtype, jnp.floating):
                raise EsrlError(f"{self._called}: apply was given {x.dtype}, but inputs are of type {like.dtype}")
        return jax.tree.map(lambda x, like: x.astype(like.dtype), given, self._like), batches.pop()


def scored(policy: Policy, objective: Objective) -> Policy:
    """The policy as evolution sees it: its observation is a key, and what it decides is the score.

    A policy of integers gets its inputs as integers, and gives its outputs as numbers: the score is of floats.
    """

    def apply(params: PyTree, key: Key, carry: PyTree) -> tuple[tuple[Array, None], PyTree]:
        integer = all(x.dtype == jnp.int8 for x in jax.tree.leaves(params))

        def one(x: PyTree, carry: PyTree) -> tuple[Array, PyTree]:
            if integer:
                x = integer_statistics.quantized(None, x, policy.normalizable)
            (output, _), carry = policy.apply(params, x, carry)
            return (output.astype(jnp.float32) * 2.0**-OUTPUT_BITS if integer else output), carry

        return (_score(objective, objective.fn, one, policy.carry, key), None), carry

    key = jax.eval_shape(lambda: seed_key(0))
    return policy._replace(
        apply=apply,
        action=lambda output, key: output[0],
        carry=(),
        observation=jax.ShapeDtypeStruct(key.shape, key.dtype),
        normalizable=False,
    )


def population(
    apply: Callable[..., Any], leaves: Sequence[Leaf], frozen: frozenset[int], shared: str, episodes: int
) -> Callable[..., Any]:
    """`ES.forward` of an objective: the scores of all members [L], from keys [L], ordered [P, S, E].

    Args:
      apply: of `scored`. leaves, frozen: as in `forward.population`.
      shared: of the objective. episodes: E.
    """
    if shared == "pair":
        return forward.population(apply, leaves, frozen)

    def of_all(params: PyTree, eps: Sequence[Any], scale: Array, keys: Key, carries: PyTree) -> tuple[Any, PyTree]:
        # Every member has the same E keys. They go in by closure, so that the pass takes them, and whatever is made of
        # them alone, for something that all lanes share; a member is one lane.
        same = keys[:episodes]

        def member(params: PyTree, _: Array) -> Array:
            return jax.vmap(lambda key: apply(params, key, ())[0][0])(same)

        lanes = jnp.zeros(keys.shape[0] // episodes)
        scores = forward.population(member, leaves, frozen)(params, eps, scale, lanes)
        return (scores.reshape(-1), None), carries

    return of_all


def runner(objective: Objective) -> Runner:
    """How an objective is played: `stream` scores a population, `episodes` one network on held-out keys.

    `stream` takes the `act` of a `scored` policy, from keys to scores; `episodes` that of the network itself.
    """

    def stream(
        act: Act,
        shared: PyTree,
        draw: Draw,
        ids: Array,
        slots: int,
        carry: PyTree,
        moments: AnyMoments | None,
        most: Array | None = None,
    ) -> Episodes:
        del moments, most

        def play(_: PyTree, part: Array) -> tuple[Array, tuple[()]]:
            drawn, keys = draw(part)
            flat = keys.reshape(-1)
            scores, _ = act((shared, drawn), flat, broadcast_lanes(carry, flat.shape[0]), flat)
            return scores.reshape(keys.shape), ()

        return _episodes(sharding.map_chunks(play, (), ids, slots, sharding.one_device())[0])

    def episodes(
        act: Act, context: PyTree, keys: Key, carry: PyTree, moments: AnyMoments | None, most: Array | None = None
    ) -> Episodes:
        del moments, most

        def one(x: PyTree, carry: PyTree) -> tuple[Array, PyTree]:
            lane = jax.tree.map(lambda x: x[None], (x, carry))
            output, after = act(context, lane[0], lane[1], seed_key(0)[None])
            return jax.tree.map(lambda x: x[0], (output, after))

        def score(key: Key) -> Array:
            return _score(objective, objective.evaluate, one, carry, key)

        flat = keys.reshape(-1)
        if _ignores(score, flat):  # a score on all held-out data is the same for every key
            return _episodes(jnp.broadcast_to(score(flat[0]), keys.shape))
        return _episodes(jax.lax.map(score, flat).reshape(keys.shape))

    def refuse(*_: Any) -> Any:
        raise EsrlError(f"{objective.name} is an objective, which has no steps")

    return Runner(episodes, stream, refuse, refuse)


def _ignores(score: Callable[[Key], Array], keys: Key) -> bool:
    """Whether a score does not depend on its key."""
    try:
        jax.eval_shape(jax.vmap(score, out_axes=None), keys)
    except ValueError:  # what vmap raises where the output has the mapped axis
        return False
    return True


def _score(
    objective: Objective,
    fn: Callable[..., Any],
    one: Callable[[PyTree, PyTree], tuple[Array, PyTree]],
    carry: PyTree,
    key: Key,
) -> Array:
    """The score of a network on one minibatch, float32 [].

    Raises:
      EsrlError: a function that JAX cannot trace, or that returns something else than one number.
    """
    name = objective.name
    apply = Apply(name, one, observation_zeros(objective.observation_space), carry)
    try:
        found = fn(apply, key)
    except EsrlError:
        raise
    except Exception as error:
        raise EsrlError(
            f"{name}: the objective cannot be traced by JAX: {reason_of(error)}; write it with jax.numpy, without"
            " Python's if, float() or NumPy on what depends on apply or key"
        ) from error
    dtype = getattr(found, "dtype", None)
    if isinstance(found, (bool, int, float)):
        found = jnp.asarray(found, jnp.float32)
    elif dtype is None or getattr(found, "shape", None) != () or not _real(dtype):
        given = f"a {type(found).__name__}" if dtype is None else f"{dtype}{list(found.shape)}"
        raise EsrlError(f"{name}: the objective returns {given}, but must return one number, as jnp.mean(...)")
    return jnp.asarray(found).astype(jnp.float32)


def _real(dtype: Any) -> bool:
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))


def _episodes(scores: Array) -> Episodes:
    """Scores [P, S, E] as episodes of one step."""
    ones = jnp.ones(scores.shape, jnp.int32)
    return Episodes(scores, scores, ones, ~jnp.isfinite(scores), None, jnp.ones(scores.shape[0], jnp.int32))
