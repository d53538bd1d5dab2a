"""Episodes of many lanes at once on the device: the whole population, or a stream of pairs through fewer slots.

No array has a time axis: a loop over steps carries sums only. Lanes have the shape [P, S, E] (pairs, signs, episodes)
outside and are flat, [L], inside. A lane whose episode has ended is masked: its later steps count neither as reward,
nor as length, nor as observation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from esrl.core.lanes import broadcast_lanes
from esrl.core.types import Array, Key, PyTree
from esrl.envs.base import max_episode_steps_of
from esrl.policies import running_statistics
from esrl.policies.running_statistics import AnyMoments, AnySums
from esrl.rollouts.types import Act, Draw, Episodes, PlayEpisodes, StreamEpisodes, Transform

# One refill hands out this part of the slots. A smaller part would mean more and smaller resets; a larger one would
# leave more slots idle while they wait for each other.
REFILL = 8


class _Lanes(NamedTuple):
    """Lanes of a loop over steps, [L, ...]: key, time, world, the policy's carry, whether it lives, and totals."""

    keys: Key
    time: Array
    state: PyTree
    observation: PyTree
    carry: PyTree
    live: Array
    totals: tuple[Array, ...]


def players(env: Any, transform: Transform | None) -> tuple[PlayEpisodes, StreamEpisodes]:
    """`episodes` and `stream` of a `Runner`, for an environment that JAX steps.

    Args:
      env: the environment. transform: maps rewards to what is trained on; None is the reward itself.
    """
    limit = max_episode_steps_of(env)

    def begin(keys: Key, carry: PyTree) -> _Lanes:
        flat = keys.reshape(-1)
        lanes = flat.shape[0]
        with jax.named_scope("reset"):
            state, observation = jax.vmap(env.reset)(jax.vmap(lambda key: jax.random.fold_in(key, 0))(flat))
        zeros, none = jnp.zeros(lanes, jnp.float32), jnp.zeros(lanes, jnp.int32)
        carries, live = broadcast_lanes(carry, lanes), jnp.ones(lanes, bool)
        return _Lanes(flat, none, state, observation, carries, live, (zeros, zeros, none, ~live))

    def step(act: Act, context: PyTree, c: _Lanes, most: Array | None) -> _Lanes:
        # From the episode's key and its own time: a pair plays the same episodes in any slot, begun at any step.
        both = jax.vmap(lambda key, time: jax.random.split(jax.random.fold_in(key, time + 1)))(c.keys, c.time)
        with jax.named_scope("network"):
            actions, carry = act(context, c.observation, c.carry, both[:, 0])
        with jax.named_scope("world"):
            state, observation, reward, terminated = jax.vmap(env.step)(c.state, actions, both[:, 1])
        # A lane that is done is stepped on with the others, and nothing of it counts.
        reward = reward.astype(jnp.float32)
        sound = running_statistics.finite_rows((c.observation, reward))
        totals = _tally(c.live, reward, sound, c.totals, transform)
        last = limit if most is None else jnp.minimum(limit, most)
        live = c.live & ~terminated & (c.time + 1 < last)
        return _Lanes(c.keys, c.time + 1, state, observation, carry, live, totals)

    def episodes(
        act: Act, context: PyTree, keys: Key, carry: PyTree, moments: AnyMoments | None, most: Array | None = None
    ) -> Episodes:
        first = (begin(keys, carry), running_statistics.zero_sums(moments), jnp.int32(0))
        once = _counted(lambda lanes: step(act, context, lanes, most), moments)
        lanes, sums, clock = jax.lax.while_loop(lambda now: jnp.any(now[0].live), once, first)
        returns, shaped, lengths, nonfinite = (x.reshape(keys.shape) for x in lanes.totals)
        return Episodes(returns, shaped, lengths, nonfinite, sums, jnp.full(keys.shape[0], clock))

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
        if slots >= ids.shape[0]:  # empty waits: one loop without refills
            drawn, keys = draw(ids)
            return episodes(act, (shared, drawn), keys, carry, moments, most)

        def fresh(ids: Array) -> tuple[PyTree, _Lanes]:
            drawn, keys = draw(ids)
            return drawn, begin(keys, carry)

        played = _stream(fresh, lambda drawn, lanes: step(act, (shared, drawn), lanes, most), ids, slots, moments)
        shape = jax.eval_shape(draw, ids)[1].shape
        return played._replace(**{name: getattr(played, name).reshape(shape) for name in Episodes._fields[:4]})

    return episodes, stream


def _tally(
    live: Array, reward: Array, sound: Array, totals: tuple[Array, ...], transform: Transform | None
) -> tuple[Array, ...]:
    """Adds a step's rewards and lengths of the live lanes to (returns, shaped, lengths, nonfinite)."""
    returns, shaped, lengths, nonfinite = totals
    returns = returns + jnp.where(live, reward, 0.0)
    shaped = returns if transform is None else shaped + jnp.where(live, transform(reward, lengths), 0.0)
    return returns, shaped, lengths + live.astype(jnp.int32), nonfinite | (live & ~sound)


_Now = tuple[_Lanes, AnySums | None, Array]  # lanes, sums of live observations, and a clock that counts steps


def _counted(step: Callable[[_Lanes], _Lanes], moments: AnyMoments | None) -> Callable[[_Now], _Now]:
    """A step that also sums the live observations before it, and moves the clock."""

    def once(now: _Now) -> _Now:
        lanes, sums, clock = now
        return step(lanes), running_statistics.accumulate(sums, moments, lanes.observation, lanes.live), clock + 1

    return once


class _Stream(NamedTuple):
    """What `_stream` carries from refill to refill.

    `next` is the place in the queue of the first pair that waits, `clock` counts steps. Of each of the C slots: the
    place of its pair (P marks an empty slot), the step that it began at, what was drawn for it, and its G lanes, [C G,
    ...].
    `played` has the totals [P, G] and the steps [P] of pairs that are done, `sums` those of live observations.
    """

    next: Array
    clock: Array
    places: Array
    begun: Array
    drawn: PyTree
    lanes: _Lanes
    played: tuple[Array, ...]
    sums: AnySums | None


def _stream(
    fresh: Callable[[Array], tuple[PyTree, _Lanes]],
    step: Callable[[PyTree, _Lanes], _Lanes],
    ids: Array,
    slots: int,
    moments: AnyMoments | None,
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
        """Writes the totals of the pairs in these slots; an empty slot writes nothing."""
        found = [grouped(x) for x in now.lanes.totals] + [now.clock - now.begun]
        places = now.places[which]
        # An empty slot has place P, one behind the end, so mode="drop" drops what it would write.
        return tuple(x.at[places].set(new[which], mode="drop") for x, new in zip(now.played, found, strict=True))

    def refill(now: _Stream) -> _Stream:
        order = jnp.argsort(~free(now.lanes))  # free slots first; argsort is stable, so the others keep their order
        gone, kept = order[:few], order[few:]
        places = now.next + jnp.arange(few)
        drawn, lanes = fresh(jnp.take(ids, places, mode="clip"))
        # Behind the end of the queue the last pair is drawn again, as shapes are fixed; its lanes never live.
        lanes = lanes._replace(live=lanes.live & jnp.repeat(places < pairs, each))

        def of_slot(old: Array, new: Array) -> Array:
            # Slots have no identity, so new pairs may come first: joining is cheaper than a scatter into place.
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
            # Stop for a refill only while pairs wait; afterwards play on until the last lane is done.
            wanted = (now.next < pairs) & (jnp.sum(free(inner[0])) >= few)
            return jnp.any(inner[0].live) & ~wanted

        once = _counted(lambda lanes: step(now.drawn, lanes), moments)
        lanes, sums, clock = jax.lax.while_loop(going, once, (now.lanes, now.sums, now.clock))
        return now._replace(lanes=lanes, sums=sums, clock=clock)

    empty = jnp.full(slots, pairs)
    # All slots start empty and no lane lives, so the first passes of the loop do nothing but fill them.
    drawn, lanes = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    played = (*(jnp.zeros((pairs, each), x.dtype) for x in lanes.totals), jnp.zeros(pairs, jnp.int32))
    start = jnp.int32(0)
    sums = running_statistics.zero_sums(moments)
    first = _Stream(start, start, empty, jnp.zeros_like(empty), drawn, lanes, played, sums)
    last = jax.lax.while_loop(lambda now: (now.next < pairs) | jnp.any(now.lanes.live), play, first)
    returns, shaped, lengths, nonfinite, steps = record(last, jnp.arange(slots))
    return Episodes(returns, shaped, lengths, nonfinite, last.sums, steps)
