"""Episodes of many lanes at once: the whole population, on the device or on the host (level 3).

`episodes` plays one episode in every lane, `stream` those of more pairs than are in memory at once; both return sums
only: no array has a time axis. Lanes have the shape [P, S, E] (pairs, signs, episodes) outside and are flat inside. A
lane that is done is masked: its later steps count neither as reward, nor as length, nor as observation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from esrl.core.types import Array, Key, PyTree
from esrl.envs.base import HostEnv, horizon_of
from esrl.policies import running_statistics as moment
from esrl.policies.running_statistics import Moments, Sums
from esrl.rollouts import host as host_rollout
from esrl.rollouts.types import Act, Episodes, Transform, tally
from esrl.rollouts.unroll import Unroll, spread, unroller

Draw = Callable[[Array], tuple[PyTree, Key]]
REFILL = 8


class Runner(NamedTuple):
    """Plays episodes.

    Attributes:
      episodes: `episodes(act, context, keys [P, S, E], carry, moments) -> Episodes`, all at once. `act(context,
        observations, carries, keys) -> (actions, carries)` is for all lanes at once; `carry` is one lane's at the
        start; `moments` says which observations to sum, or is None. Lanes with equal keys see the same world and the
        same action noise.
      stream: `stream(act, shared, draw, ids [P], slots, carry, moments) -> Episodes`, as many pairs at once as there
        are slots; the others wait, and take the place of pairs that are done. `draw(ids [C]) -> (drawn, keys [C, S,
        E])` is what each pair brings along, arrays with a leading axis C; `act`'s context is `(shared, drawn)`. A
        pair's episodes do not depend on the slots.
      unroll: a fixed number of steps in lanes that live on, see `esrl.rollouts.unroll`.
      jittable: whether they are pure JAX; else they step Python environments and must not be traced.
    """

    episodes: Callable[..., Episodes]
    stream: Callable[..., Episodes]
    unroll: Unroll
    jittable: bool


def runner(env: Any, transform: Transform | None = None) -> Runner:
    """The runner of an environment; `transform` maps rewards to what is trained on, and returns stay raw."""
    if isinstance(env, HostEnv):
        return Runner(*host_rollout.player(env, transform), unroller(env), False)
    return Runner(*_player(env, transform), unroller(env), True)


class _Lanes(NamedTuple):
    """Lanes of a loop over steps, [L, ...]: key, time, world, the policy's carry, whether it lives, and totals."""

    keys: Key
    time: Array
    state: PyTree
    observation: PyTree
    carry: PyTree
    live: Array
    totals: tuple[Array, ...]


def _player(env: Any, transform: Transform | None) -> tuple[Callable[..., Episodes], Callable[..., Episodes]]:
    horizon = horizon_of(env)

    def begin(keys: Key, carry: PyTree) -> _Lanes:
        flat = keys.reshape(-1)
        lanes = flat.shape[0]
        with jax.named_scope("reset"):
            state, observation = jax.vmap(env.reset)(jax.vmap(lambda key: jax.random.fold_in(key, 0))(flat))
        zeros, none = jnp.zeros(lanes, jnp.float32), jnp.zeros(lanes, jnp.int32)
        carries, live = spread(carry, lanes), jnp.ones(lanes, bool)
        return _Lanes(flat, none, state, observation, carries, live, (zeros, zeros, none))

    def step(act: Act, context: PyTree, c: _Lanes) -> _Lanes:
        both = jax.vmap(lambda key, time: jax.random.split(jax.random.fold_in(key, time + 1)))(c.keys, c.time)
        with jax.named_scope("network"):
            actions, carry = act(context, c.observation, c.carry, both[:, 0])
        with jax.named_scope("world"):
            state, observation, reward, terminated = jax.vmap(env.step)(c.state, actions, both[:, 1])
        totals = tally(c.live, reward.astype(jnp.float32), c.totals, transform)
        live = c.live & ~terminated & (c.time + 1 < horizon)
        return _Lanes(c.keys, c.time + 1, state, observation, carry, live, totals)

    def episodes(act: Act, context: PyTree, keys: Key, carry: PyTree, moments: Moments | None) -> Episodes:
        first = (begin(keys, carry), moment.zero_sums(moments), jnp.int32(0))
        once = _counted(lambda lanes: step(act, context, lanes), moments)
        lanes, sums, clock = jax.lax.while_loop(lambda now: jnp.any(now[0].live), once, first)
        returns, shaped, lengths = (x.reshape(keys.shape) for x in lanes.totals)
        return Episodes(returns, shaped, lengths, sums, jnp.full(keys.shape[0], clock))

    def stream(
        act: Act, shared: PyTree, draw: Draw, ids: Array, slots: int, carry: PyTree, moments: Moments | None
    ) -> Episodes:
        if slots >= ids.shape[0]:
            drawn, keys = draw(ids)
            return episodes(act, (shared, drawn), keys, carry, moments)

        def fresh(ids: Array) -> tuple[PyTree, _Lanes]:
            drawn, keys = draw(ids)
            return drawn, begin(keys, carry)

        played = _stream(fresh, lambda drawn, lanes: step(act, (shared, drawn), lanes), ids, slots, moments)
        shape = jax.eval_shape(draw, ids)[1].shape
        returns, shaped, lengths = (x.reshape(shape) for x in played[:3])
        return Episodes(returns, shaped, lengths, played.sums, played.steps)

    return episodes, stream


_Now = tuple[_Lanes, Sums | None, Array]  # lanes, sums of live observations, and a clock that counts steps


def _counted(step: Callable[[_Lanes], _Lanes], moments: Moments | None) -> Callable[[_Now], _Now]:
    """A step that also sums the live observations before it, and moves the clock."""

    def once(now: _Now) -> _Now:
        lanes, sums, clock = now
        return step(lanes), moment.accumulate(sums, moments, lanes.observation, lanes.live), clock + 1

    return once


class _Stream(NamedTuple):
    """What `_stream` carries from refill to refill.

    `next` is the place in the queue of the first pair that waits, `clock` counts steps. Of each of the C slots: the
    place of its pair (P is nobody's), the step that it began at, what was drawn for it, and its G lanes, [C G, ...].
    `played` has the totals [P, G] and the steps [P] of pairs that are done, `sums` those of live observations.
    """

    next: Array
    clock: Array
    places: Array
    begun: Array
    drawn: PyTree
    lanes: _Lanes
    played: tuple[Array, ...]
    sums: Sums | None


def _stream(
    fresh: Callable[[Array], tuple[PyTree, _Lanes]],
    step: Callable[[PyTree, _Lanes], _Lanes],
    ids: Array,
    slots: int,
    moments: Moments | None,
) -> Episodes:
    """Plays the pairs with these ids [P] in fewer slots: when one in `REFILL` is free, pairs that wait get them.

    Totals come out as [P, G], G = S E. All slots are filled before the first step.

    Args:
      fresh: `fresh(ids [K]) -> (drawn [K, ...], lanes [K G, ...])` at the beginning of their episodes.
      step: `step(drawn, lanes) -> lanes` after one step of all of them.
      ids, slots, moments: as in `Runner.stream`.
    """
    pairs, few = ids.shape[0], max(1, slots // REFILL)
    slots -= slots % few  # as many as whole refills fill
    shapes = jax.eval_shape(fresh, ids[:slots])
    each = shapes[1].live.shape[0] // slots

    def grouped(x: Array) -> Array:
        return x.reshape(x.shape[0] // each, each, *x.shape[1:])

    def free(lanes: _Lanes) -> Array:
        return ~jnp.any(grouped(lanes.live), axis=1)

    def record(now: _Stream, which: Array) -> tuple[Array, ...]:
        """Writes the totals of the pairs in these slots; nobody's are dropped."""
        found = [grouped(x) for x in now.lanes.totals] + [now.clock - now.begun]
        places = now.places[which]
        return tuple(x.at[places].set(new[which], mode="drop") for x, new in zip(now.played, found, strict=True))

    def refill(now: _Stream) -> _Stream:
        order = jnp.argsort(~free(now.lanes))
        gone, kept = order[:few], order[few:]
        places = now.next + jnp.arange(few)
        drawn, lanes = fresh(jnp.take(ids, places, mode="clip"))
        lanes = lanes._replace(live=lanes.live & jnp.repeat(places < pairs, each))

        def of_slot(old: Array, new: Array) -> Array:
            return jnp.concatenate([new, old[kept]])

        def of_lanes(old: Array, new: Array) -> Array:
            return of_slot(grouped(old), grouped(new)).reshape(old.shape)

        return now._replace(
            next=now.next + few,
            places=of_slot(now.places, jnp.minimum(places, pairs)),
            begun=of_slot(now.begun, jnp.full(few, now.clock)),
            drawn=jax.tree.map(of_slot, now.drawn, drawn),
            lanes=jax.tree.map(of_lanes, now.lanes, lanes),
            played=record(now, gone),
        )

    def play(now: _Stream) -> _Stream:
        with jax.named_scope("refill"):
            now = refill(now)

        def going(inner: _Now) -> Array:
            wanted = (now.next < pairs) & (jnp.sum(free(inner[0])) >= few)
            return jnp.any(inner[0].live) & ~wanted

        once = _counted(lambda lanes: step(now.drawn, lanes), moments)
        lanes, sums, clock = jax.lax.while_loop(going, once, (now.lanes, now.sums, now.clock))
        return now._replace(lanes=lanes, sums=sums, clock=clock)

    nobody = jnp.full(slots, pairs)
    drawn, lanes = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    played = (*(jnp.zeros((pairs, each), x.dtype) for x in lanes.totals), jnp.zeros(pairs, jnp.int32))
    start = jnp.int32(0)
    first = _Stream(start, start, nobody, jnp.zeros_like(nobody), drawn, lanes, played, moment.zero_sums(moments))
    last = jax.lax.while_loop(lambda now: (now.next < pairs) | jnp.any(now.lanes.live), play, first)
    returns, shaped, lengths, steps = record(last, jnp.arange(slots))
    return Episodes(returns, shaped, lengths, last.sums, steps)
