"""Environments: what is wrong with one is said in a sentence, and adapters step exactly as the suites do."""

import functools
import itertools

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapter_laws import Playing
from gymnasium import spaces
from gymnasium.experimental.functional import FuncEnv

import esrl
from esrl import EsrlError
from esrl.core.sharding import one_device
from esrl.core.types import seed_key
from esrl.envs.base import max_episode_steps_of
from esrl.envs.checks.contract import check_contract
from esrl.envs.checks.environment import check_env
from esrl.envs.registry import load_attribute, names
from esrl.rollouts.runner import runner


class Line:
    """A place on a line, moved by the action; ends outside of [-1, 1]."""

    observation_space = spaces.Box(-2.0, 2.0, (1,))
    action_space = spaces.Box(-1.0, 1.0, (1,))
    max_episode_steps = 20

    def reset(self, key):
        place = jax.random.uniform(key, (1,), minval=-0.5, maxval=0.5)
        return place, place

    def step(self, state, action, key):
        place = state + 0.1 * action
        return place, place, -jnp.abs(place[0]), jnp.abs(place[0]) > 1


def instead(**changes):
    """A Line with other attributes."""
    return type("Broken", (Line,), changes)()


def stepping(change):
    """A Line whose step's result goes through `change(state, observation, reward, terminated)`."""
    return instead(step=lambda self, *args: change(*Line.step(self, *args)))


def resetting(change):
    return instead(reset=lambda self, key: change(*Line.reset(self, key)))


DEFECTS = [
    (lambda: instead(observation_space=None), "observation_space is missing"),
    (lambda: instead(action_space=3), "action_space is missing"),
    (lambda: instead(max_episode_steps=0), "max_episode_steps is 0, but must be a whole number"),
    (lambda: instead(max_episode_steps=2.5), "max_episode_steps is 2.5"),
    (lambda: instead(max_episode_steps=True), "max_episode_steps is True"),
    (lambda: instead(reset=None), "it has no method reset"),
    (lambda: instead(step=None), "it has no method step"),
    (lambda: resetting(lambda s, o: o), r"reset\(key\) returns a .*, but must return \(state, observation\)"),
    (lambda: stepping(lambda s, o, r, t: (s, o, r, t, {})), r"returns 5 values, but must return \(state, observation,"),
    (lambda: instead(observation_space=spaces.Box(-2.0, 2.0, (3,))), r"float32\[1\], but its space needs float32\[3\]"),
    (lambda: resetting(lambda s, o: (s, o.astype(jnp.float16))), r"reset gives an observation float16\[1\]"),
    (lambda: stepping(lambda s, o, r, t: (s, o[0], r, t)), r"step gives an observation float32\[\]"),
    (lambda: stepping(lambda s, o, r, t: (s, {"a": o}, r, t)), "whose structure is not that of its space"),
    (lambda: instead(observation_space=spaces.Discrete(3)), r"float32\[1\], but its space needs int32\[\]"),
    (lambda: stepping(lambda s, o, r, t: (s, o, r[None], t)), r"a reward float32\[1\], but it must be one number"),
    (lambda: stepping(lambda s, o, r, t: (s, o, t, t)), r"a reward bool\[\]"),
    (lambda: stepping(lambda s, o, r, t: (s, o, r, r)), r"terminated as float32\[\], but it must be bool\[\]"),
    (lambda: stepping(lambda s, o, r, t: (s, o, r, t[None])), r"terminated as bool\[1\]"),
    (lambda: stepping(lambda s, o, r, t: ((s, s), o, r, t)), "a state of another structure"),
    (lambda: stepping(lambda s, o, r, t: (s.astype(jnp.int32), o, r, t)), r"from float32\[1\] into int32\[1\]"),
    (
        lambda: stepping(lambda s, o, r, t: (s, o, 1.0 if o[0] > 0 else 0.0, t)),
        r"test_env.py, line \d+\); use jnp.where or",
    ),
    (
        lambda: stepping(lambda s, o, r, t: (s, np.sin(o), r, t)),
        r"TracerArrayConversionError.*test_env.py.*jax.numpy inst",
    ),
    (
        lambda: stepping(lambda s, o, r, t: (s, o, range(5)[s[0].astype(int)], t)),
        r"TracerIntegerConv.*test_env.py.*fori_loop",
    ),
    (lambda: stepping(lambda s, o, r, t: (s, o, jnp.sum(o[o > 0]), t)), r"NonConcreteBoolean.*test_env.py.*mask, x, 0"),
    (lambda: stepping(lambda s, o, r, t: (s, o, float(r), t)), r"Concretization.*test_env.py.*instead of float"),
    (lambda: instead(reset=lambda self, key: 1 / 0), r"reset\(key\) cannot be traced by JAX: ZeroDivisionError"),
]
DEFECTS_SEEN_RUNNING = [
    (lambda: instead(observation_space=spaces.Box(0.0, 2.0, (1,))), "observation after 0 steps lies outside its space"),
    (lambda: stepping(lambda s, o, r, t: (s, o * jnp.inf, r, t)), "observation after 1 steps has an entry that is not"),
    (lambda: stepping(lambda s, o, r, t: (s, o, r * jnp.nan, t)), "reward of step 1 is nan; rewards must be finite"),
    (lambda: stepping(lambda s, o, r, t: (s, o, jnp.inf, t)), "reward of step 1 is inf"),
    (lambda: instead(reset=lambda self, key: (jnp.zeros(1), jnp.zeros(1))), "eight keys gave the same first state"),
]


class Timed(Line):
    """A Line whose episodes end after a random 4 to 9 steps; the state knows the time."""

    def reset(self, key):
        place = jax.random.uniform(key, (1,), minval=-0.5, maxval=0.5)
        return {"place": place, "time": jnp.int32(0), "end": jax.random.randint(key, (), 4, 10)}, place

    def step(self, state, action, key):
        state = {**state, "place": 0.9 * state["place"] + 0.01 * action, "time": state["time"] + 1}
        return state, state["place"], jnp.float32(1.0), state["time"] >= state["end"]


class Masked(Timed):
    """Which of three actions are allowed, the last one always."""

    observation_space = spaces.Dict(place=Line.observation_space, action_mask=spaces.MultiBinary(3))
    action_space = spaces.Discrete(3)

    def _observe(self, place, key):
        mask = jnp.append(jax.random.bernoulli(key, shape=(2,)), True)
        return {"place": place, "action_mask": mask.astype(jnp.int8)}

    def reset(self, key):
        state, place = Timed.reset(self, key)
        return {**state, "allowed": jnp.ones(3, jnp.int8)}, {"place": place, "action_mask": jnp.ones(3, jnp.int8)}

    def step(self, state, action, key):
        after, place, _, ended = Timed.step(self, state, action.astype(jnp.float32)[None], key)
        observation = self._observe(place, key)
        reward = jnp.where(state["allowed"][action] > 0, 1.0, jnp.nan)  # what is not allowed is seen
        return {**after, "allowed": observation["action_mask"]}, observation, reward, ended


def _self_reset(key_of):
    """A Timed that begins its next episode by itself, as many JAX environments do."""

    def step(self, state, action, key):
        after, place, reward, ended = Timed.step(self, state, action, key)
        fresh, first = Timed.reset(self, key_of(key))
        both = jax.tree.map(lambda new, old: jnp.where(ended, new, old), (fresh, first), (after, place))
        return both[0], both[1], reward, ended

    return type("Broken", (Timed,), {"step": step})()


def _first_again(self, state, action, key):
    """As Brax's wrapper does: at the end it goes back to this episode's own first state."""
    after, place, reward, ended = Timed.step(self, state, action, key)
    place = jnp.where(ended, state["first"], place)
    return {**after, "place": place, "first": state["first"]}, place, reward, ended


def _remembering(self, key):
    state, place = Timed.reset(self, key)
    return {**state, "first": place}, place


def _counting_reset(self, key):
    self.t = 0
    return Line.reset(self, key)


def _counting_step(self, state, action, key):
    self.t += 1
    return Line.step(self, state, action, key)


def _storing_step(self, state, action, key):
    self.seen = [state]
    return Line.step(self, state, action, key)


def _drawing_reset(self, key):
    place = jnp.full(1, self.draws.uniform(), jnp.float32)
    return place, place


def _global_reset(self, key):
    place = jnp.float32(0.1) * jax.random.uniform(key, (1,)) + jnp.float32(np.random.uniform())
    return place, place


def _lane_counting(self, state, action, key):
    place, observation, reward, ended = Line.step(self, state, action, key)
    scalar = jax.ShapeDtypeStruct((), np.float32)
    lanes = jax.pure_callback(
        lambda x: np.full(np.shape(x), np.size(x), np.float32), scalar, reward, vmap_method="expand_dims"
    )
    return place, observation, lanes, ended


def _callback(self, state, action, key):
    place, observation, reward, ended = Line.step(self, state, action, key)
    return place, observation, jax.pure_callback(lambda x: np.float32(x), reward, reward), ended


def _timed(**changes):
    return type("Broken", (Timed,), changes)()


def _masked(**changes):
    return type("Broken", (Masked,), changes)()


def _after(change):
    """A Timed whose results after the end go through `change(observation, reward)`."""

    def step(self, state, action, key):
        after, place, reward, ended = Timed.step(self, state, action, key)
        over = after["time"] > after["end"]
        place, reward = jax.tree.map(lambda new, old: jnp.where(over, new, old), change(place, reward), (place, reward))
        return after, place, reward, ended

    return _timed(step=step)


IMPURE = [
    (lambda: instead(reset=_counting_reset, step=_counting_step), r"reset changes self\.t; .* keep that in the state"),
    (lambda: instead(t=0, step=_counting_step), r"step changes self\.t; an environment has no memory of its own"),
    (lambda: instead(step=_storing_step), r"stores a traced value in self\.seen; an environment has no memory"),
    (
        lambda: instead(reset=_drawing_reset, draws=np.random.default_rng(0)),
        r"reset changes self\.draws; an environment",
    ),
    (lambda: instead(reset=_global_reset), "reset with the same arguments gave two different results; use no random"),
    (
        lambda: instead(step=_lane_counting),
        "several lanes under jax.vmap are not the same episodes as one by one; no lane",
    ),
    (lambda: instead(step=_callback), "jax.vmap cannot run several lanes of it: .* needs vmap_method"),
    (
        lambda: stepping(lambda s, o, r, t: (s, o, r, jnp.bool_(True))),
        "every episode ends at its first step; .*max_episode_steps = 1",
    ),
    (lambda: _self_reset(lambda key: key), "step begins the next episode by itself where one ends; leave that to esrl"),
    (lambda: _self_reset(lambda key: jax.random.fold_in(key, 99)), "step begins the next episode by itself"),
    (lambda: _timed(reset=_remembering, step=_first_again), "step begins the next episode by itself"),
    (
        lambda: _after(lambda o, r: (o * jnp.nan, r)),
        "is not finite 1 steps after the end of an episode; lanes that are",
    ),
    (lambda: _after(lambda o, r: (o, r / 0.0)), "is not finite 1 steps after the end of an episode"),
]
UNFIT = [
    (
        lambda: stepping(lambda s, o, r, t: (s, o, r.astype(jnp.complex64), t)),
        r"a reward complex64\[\], but it must be one number",
    ),
    (lambda: instead(action_space=spaces.Text(3)), "action space .* cannot be used; use Box, Discrete"),
    (
        lambda: _masked(action_space=spaces.Discrete(4)),
        r"action_mask has shape \(3,\), but action space Discrete\(4\) needs 4",
    ),
    (lambda: _masked(action_space=Line.action_space), "action_mask is for Discrete and MultiDiscrete actions"),
]


@pytest.mark.parametrize(("make", "words"), IMPURE)
def test_what_is_no_function_is_named(make, words):
    with pytest.raises(EsrlError, match="Broken: .*" + words) as caught:
        check_env(make())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("make", "words"), UNFIT)
def test_what_does_not_fit_is_named(make, words):
    with pytest.raises(EsrlError, match="Broken: .*" + words):
        check_contract(make())


def test_masks_are_respected_and_must_allow_something():
    check_env(Timed())
    check_env(Masked())

    def observe(self, place, key):
        return {"place": place, "action_mask": jnp.where(place[0] > 0, jnp.ones(3, jnp.int8), jnp.zeros(3, jnp.int8))}

    with pytest.raises(EsrlError, match=r"the action_mask after \d steps allows no action; end the episode"):
        check_env(_masked(_observe=observe))


def test_what_is_worked_out_once_is_no_memory():
    class Table(Line):
        @functools.cached_property
        def table(self):
            return np.arange(3.0, dtype=np.float32)

        def step(self, state, action, key):
            return Line.step(self, state + self.table[0], action, key)

    check_env(Table())


def test_what_an_earlier_trace_left_behind_is_said():
    def reset(self, key):
        self.place = jax.random.uniform(key, (1,))
        return self.place, self.place

    env = instead(reset=reset, step=lambda self, state, action, key: (state, self.place + state, 0.0, False))
    with pytest.raises(EsrlError, match=r"reset stores a traced value in self\.place; .* keep that in the state"):
        check_contract(env)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((Line,), "needs an environment that was made"),
        (("gymnasium/CartPole-v1",), "needs an environment that was made"),
        ((Line(), 0), "steps is 0, but must be a whole number of at least 1"),
        ((Line(), 10, -1), "seed is -1"),
    ],
)
def test_what_check_env_is_given_is_checked(given, words):
    with pytest.raises(EsrlError, match=words):
        check_env(*given)


def test_a_sound_environment_passes():
    check_env(Line())
    check_env(instead(reset=lambda self, key: (jnp.zeros(1), jnp.zeros(1)), fixed_start=True))


@pytest.mark.parametrize(("make", "words"), DEFECTS)
def test_contract_names_the_defect(make, words):
    with pytest.raises(EsrlError, match="Broken: .*" + words) as caught:
        check_contract(make())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("make", "words"), DEFECTS_SEEN_RUNNING)
def test_running_shows_the_defect(make, words):
    check_contract(make())
    with pytest.raises(EsrlError, match="Broken: .*" + words):
        check_env(make())


def test_randomness_besides_the_key_is_noticed():
    count = iter(range(10**6))
    scalar = jax.ShapeDtypeStruct((), np.float32)

    def step(self, state, action, key):
        reward = jax.pure_callback(lambda _: np.float32(next(count)), scalar, action)
        return state, state, reward, jnp.bool_(False)

    with pytest.raises(EsrlError, match="the same key gave two different episodes"):
        check_env(instead(step=step))


def test_state_may_hold_random_keys_and_nests():
    def reset(self, key):
        place = jnp.zeros(1)
        return {"key": key, "place": place}, place

    def step(self, state, action, key):
        return state, state["place"], 0, False

    check_env(instead(reset=reset, step=step))


def test_a_changing_leaf_is_named():
    def step(self, state, action, key):
        return {"a": state["a"], "b": state["b"].astype(jnp.int32)}, state["a"], 0.0, False

    env = instead(reset=lambda self, key: ({"a": jnp.zeros(1), "b": jnp.zeros(2)}, jnp.zeros(1)), step=step)
    with pytest.raises(EsrlError, match=r"step turns \['b'\] of its state from float32\[2\] into int32\[2\]"):
        check_contract(env)


# ---- environments that Python steps ---------------------------------------------------------------------------------


class Countdown(gymnasium.Env):
    """Ends after a random number of steps below 9; the reward is the action; complains when stepped after the end."""

    observation_space = spaces.Dict(left=spaces.Box(0.0, 10.0, (1,)), side=spaces.Discrete(2))
    action_space = spaces.Discrete(3)
    max_episode_steps = 8

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left, self.side = int(self.np_random.integers(2, 11)), int(self.np_random.integers(2))
        return self._observe(), {}

    def step(self, action):
        assert self.left > 0, "stepped after its end"
        self.left -= 1
        self.side = int(self.np_random.integers(2))
        return self._observe(), float(action), self.left == 0, False, {}

    def _observe(self):
        return {"left": np.array([self.left], np.float32), "side": self.side}


class Fuse(Countdown):
    """Raises on the fiftieth step."""

    max_episode_steps = 200
    lasts = 50

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return super().reset(seed=seed)

    def step(self, action):
        self.steps += 1
        if self.steps == self.lasts:
            raise RuntimeError("the fuse blew")
        return {"left": np.ones(1, np.float32), "side": 0}, 0.0, False, False, {}


class LateFuse(Fuse):
    """A check does not see this one."""

    lasts = 120


def host_instead(**changes):
    return esrl.make(type("Broken", (Countdown,), changes))


def host_stepping(change):
    return host_instead(step=lambda self, action: change(*Countdown.step(self, action)))


HOST_MASK = {
    "observation_space": spaces.Dict(action_mask=spaces.MultiBinary(5)),
    "action_space": spaces.MultiDiscrete([2, 3]),
    "_observe": lambda self: {"action_mask": np.array([1, 0, 0, 0, 0], np.int8)},
    "step": lambda self, action: (self._observe(), 0.0, False, False, {}),
}
UNSEEDED = itertools.cycle(range(1, 8))  # random numbers that no seed governs, but never two alike in a row
HOST_DEFECTS = [
    (lambda: host_stepping(lambda o, r, *rest: (o, float("nan"), *rest)), "reward of step 1 is nan"),
    (lambda: host_stepping(lambda o, r, *rest: (o, np.zeros(2), *rest)), r"step 1 returns an array \[2\] as reward"),
    (
        lambda: host_stepping(lambda o, *rest: ({"left": o["left"]}, *rest)),
        "after 1 steps is not a dict with the entries",
    ),
    (lambda: host_stepping(lambda o, *rest: ({**o, "left": np.full(1, 99.0)}, *rest)), "after 1 steps lies outside"),
    (lambda: host_stepping(lambda o, *rest: ({**o, "left": np.ones(2)}, *rest)), r"has shape \(2,\), but its space"),
    (lambda: host_stepping(lambda o, *rest: ({**o, "side": "left"}, *rest)), "but its space .* needs numbers"),
    (lambda: host_stepping(lambda o, r, t, *rest: (o, r, t, {})), "step 1 returns 4 values.*truncated is new"),
    (lambda: host_stepping(lambda o, r, t, *rest: (o, r, np.zeros(2), False, {})), r"an array \[2\] as terminated"),
    (
        lambda: host_instead(_observe=lambda self: {"left": np.full(1, next(UNSEEDED), np.float32), "side": 0}),
        r"reset with the same seed gave two different observations; begin reset with super\(\)",
    ),
    (lambda: host_instead(**HOST_MASK), "after 0 steps allows no action for entry 1"),
    (lambda: host_instead(reset=lambda self, **_: 1 / 0), "reset raised ZeroDivisionError"),
    (lambda: host_instead(__init__=lambda self: 1 / 0), "cannot be made: ZeroDivisionError"),
    (lambda: host_instead(observation_space=None), "observation_space is missing"),
    (lambda: esrl.make(Fuse), "Fuse: step 50 raised RuntimeError: the fuse blew"),
]


@pytest.mark.parametrize(("make", "words"), HOST_DEFECTS)
def test_host_environments_are_checked(make, words):
    with pytest.raises(EsrlError, match=words):
        check_env(make())


def play_alone(env, seed, actions):
    """Observations, rewards and ends of one episode of a Gymnasium environment, by Gymnasium's own means."""
    seen, rewards, ends = [env.reset(seed=int(seed))[0]], [], []
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(action)
        seen, rewards, ends = [*seen, observation], [*rewards, reward], [*ends, terminated or truncated]
        if ends[-1]:
            break
    return seen, rewards, ends


@pytest.mark.parametrize("name", ["Acrobot-v1", "Pendulum-v1", "Countdown"])
def test_lanes_are_gymnasiums_own_episodes(name):
    env = esrl.make(Countdown if name == "Countdown" else f"gymnasium/{name}")
    check_env(env)
    shape, steps = (2, 2, 2), 8
    seeds = np.repeat(np.array([[[3, 4]], [[5, 2**32 - 1]]]), 2, axis=1)
    env.action_space.seed(0)
    actions = np.array([[env.action_space.sample() for _ in range(8)] for _ in range(steps)])
    lanes = Playing(env, *shape)
    seen, results = [lanes.reset(seeds)], []
    for t in range(steps):
        results.append(lanes.step(actions[t]))
        seen.append(results[-1][0])
    for lane, seed in enumerate(seeds.ravel()):
        alone = play_alone(env.make_one(), seed, actions[:, lane])
        for t, (observation, reward, end) in enumerate(zip(alone[0][1:], alone[1], alone[2], strict=True)):
            assert results[t][1][lane] == reward and results[t][2][lane] == end
            for mine, own in zip(jax.tree.leaves(seen[t + 1]), jax.tree.leaves(observation), strict=True):
                np.testing.assert_array_equal(mine[lane], own)


@pytest.mark.parametrize("name", ["CartPole-v1", "Acrobot-v1"])
def test_both_signs_see_the_same_worlds(name):
    env = esrl.make(f"gymnasium/{name}")
    lanes = Playing(env, 3, 2, 2)
    seeds = np.broadcast_to(np.arange(6).reshape(3, 1, 2), (3, 2, 2))
    env.action_space.seed(0)
    actions = np.array([env.action_space.sample() for _ in range(6)]).reshape(3, 1, 2).repeat(2, 1).ravel()
    observations = [lanes.reset(seeds), *(lanes.step(actions)[0] for _ in range(5))]
    for observation in observations:
        split = observation.reshape(3, 2, 2, -1)
        np.testing.assert_array_equal(split[:, 0], split[:, 1])
        assert len(np.unique(split[:, 0].reshape(6, -1), axis=0)) == 6
    again = lanes.reset(seeds)
    np.testing.assert_array_equal(again, observations[0])
    assert not np.array_equal(lanes.reset(seeds + 10), observations[0])


def test_finished_lanes_are_not_stepped():
    """Countdown raises when it is stepped after its end; its time limit also cuts episodes off."""
    env = esrl.make(Countdown)
    lanes = Playing(env, 8, 1, 1)
    for _ in range(2):
        lanes.reset(np.arange(8).reshape(8, 1, 1))
        ended = np.zeros(8, bool)
        for _ in range(12):
            _, reward, end = lanes.step(np.ones(8, np.int32))
            np.testing.assert_array_equal(reward, ~ended)
            assert not (end & ended).any()
            ended |= end
        assert ended.all()


def test_returns_of_the_runner_are_those_of_the_episodes():
    env = esrl.make(Countdown)
    keys = jnp.broadcast_to(jax.random.split(seed_key(0), 4).reshape(2, 1, 2), (2, 2, 2))
    made, seeds = Playing(env, 2, 2, 2).lanes, []
    begin, made.begin = made.begin, lambda which, given: (seeds.append(given.reshape(2, 2, 2)), begin(which, given))[1]

    def act(context, observations, carries, keys):
        return observations["side"] + 1, carries

    played = runner(env, lambda reward, time: reward - time.astype(jnp.float32)).episodes(act, None, keys, (), None)
    for index, seed in np.ndenumerate(seeds[0]):
        one, total, length, end = env.make_one(), 0.0, 0, False
        observation, _ = one.reset(seed=int(seed))
        while not end:
            observation, reward, terminated, truncated, _ = one.step(observation["side"] + 1)
            total, length, end = total + reward, length + 1, terminated or truncated
        assert (played.returns[index], played.lengths[index]) == (total, length)
        assert played.shaped[index] == total - length * (length - 1) / 2  # times begin at 0
    assert np.all(np.asarray(played.steps) == int(played.lengths.max()))


def test_an_error_inside_names_step_and_environment():
    env = esrl.make(LateFuse)
    check_env(env)
    lanes = Playing(env, 1, 2, 1)
    lanes.reset(np.zeros((1, 2, 1), int))
    blew = r"^LateFuse: step 120 of an episode raised RuntimeError: the fuse blew \(.*test_env.py, line \d+\)$"
    with pytest.raises(EsrlError, match=blew):
        for _ in range(200):
            lanes.step(np.zeros(2, np.int32))
    assert lanes.lanes.failed and Playing(env, 1, 2, 1).lanes is not lanes.lanes


def test_async_lanes_are_sync_lanes():
    gymnasium.register("LateFuse-v0", LateFuse, max_episode_steps=200)
    try:
        seeds = np.arange(2).reshape(2, 1, 1)
        kinds = [
            Playing(esrl.make(f"gymnasium/LateFuse-v0?vectorization={kind}"), 2, 1, 1) for kind in ("sync", "async")
        ]
        sync, processes = ([lanes.reset(seeds)] for lanes in kinds)
        for lanes, seen in zip(kinds, (sync, processes), strict=True):
            with pytest.raises(
                EsrlError, match=r"LateFuse-v0.*: step 120 of an episode raised RuntimeError: the fuse blew"
            ):
                for _ in range(200):
                    seen.append(lanes.step(np.zeros(2, np.int32)))
        assert len(sync) == len(processes) == 120
        for mine, other in zip(jax.tree.leaves(sync), jax.tree.leaves(processes), strict=True):
            np.testing.assert_array_equal(mine, other)
    finally:
        for lanes in kinds:
            lanes.lanes.close()
        del gymnasium.registry["LateFuse-v0"]


def test_registered_environments_are_checked_when_made():
    class Crooked(Countdown):
        observation_space = spaces.Box(0.0, 1.0, (2,))

    gymnasium.register("Crooked-v0", Crooked)
    try:
        with pytest.raises(EsrlError, match="gymnasium/Crooked-v0: the observation after 0 steps"):
            esrl.make("gymnasium/Crooked-v0")
    finally:
        del gymnasium.registry["Crooked-v0"]


@pytest.mark.parametrize("name", ["CartPole-v1", "Acrobot-v1?max_episode_steps=7", "CartPole-v1?vectorization=sync"])
def test_time_limit_and_name_are_kept(name):
    env = esrl.make(f"gymnasium/{name}")
    assert env.name == f"gymnasium/{name}"
    assert env.max_episode_steps == (7 if "max" in name else 500)
    assert esrl.make(env.name).max_episode_steps == env.max_episode_steps


def test_the_old_name_of_the_time_limit_still_works(capsys):
    """Of a class and as an option; it is said once for each name, on standard error."""

    own = {key: x for key, x in vars(Line).items() if key not in ("max_episode_steps", "__dict__", "__weakref__")}
    old = type("OldLine", Line.__bases__, {**own, "horizon": 3})
    for _ in range(2):
        assert max_episode_steps_of(esrl.make(old)) == 3
    said = capsys.readouterr()
    assert said.err.count("OldLine: horizon is now called max_episode_steps") == 1 and said.out == ""
    for _ in range(2):
        assert esrl.make("gymnasium/Acrobot-v1?horizon=7").name == "gymnasium/Acrobot-v1?max_episode_steps=7"
    with pytest.raises(EsrlError, match="are the same time limit; give one of them"):
        esrl.make("gymnasium/Acrobot-v1?horizon=7&max_episode_steps=7")
    said = capsys.readouterr()
    assert said.err.count("gymnasium/Acrobot-v1: horizon is now called max_episode_steps") == 1 and said.out == ""


# ---- Gymnasium's functional environments ----------------------------------------------------------------------------

FUNCTIONAL = ["phys2d/CartPole-v1", "phys2d/Pendulum-v0", "tabular/Blackjack-v0", "tabular/CliffWalking-v0"]


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_functional_steps_are_the_suites_own(name, lenient):
    """Step by step beside the functional object itself, by its own methods, with the same keys and actions."""
    env = esrl.make(f"gymnasium/{name}")
    check_env(env)
    raw, step, reset = env.env, jax.jit(env.step), jax.jit(env.reset)
    whole = "tabular" in name
    env.action_space.seed(1)
    state, observation = reset(seed_key(0))
    own = raw.initial(jax.random.key_data(seed_key(0)))
    for t in range(6):
        key = jax.random.fold_in(seed_key(1), t)
        rng = jax.random.key_data(key)
        action = jnp.asarray(env.action_space.sample())
        given = action.reshape(raw.action_space.shape)
        after = raw.transition(own, given, rng)
        extra = () if "CliffWalking" in name else (rng,)
        expected = (raw.observation(after, *extra), raw.reward(own, given, after, *extra), raw.terminal(after, *extra))
        state, observation, reward, terminated = step(state, action, key)
        tolerance = {"rtol": 0 if whole else 1e-5, "atol": 0 if whole else 1e-6}
        np.testing.assert_allclose(observation, np.reshape(expected[0], observation.shape), **tolerance)
        np.testing.assert_allclose(reward, np.squeeze(expected[1]), **tolerance)
        assert bool(terminated) == bool(expected[2])
        own = after
        if terminated:
            break


@pytest.mark.parametrize("name", FUNCTIONAL[:2])
def test_functional_steps_are_those_of_gymnasiums_environment(name, lenient):
    """Beside `gymnasium.make`, put into the same state."""
    env, stateful = esrl.make(f"gymnasium/{name}"), gymnasium.make(name, disable_env_checker=True)
    stateful.reset(seed=0)
    step = jax.jit(env.step)
    state, _ = jax.jit(env.reset)(seed_key(2))
    stateful.unwrapped.state = state
    for t in range(30):
        action = np.asarray(env.action_space.sample())
        state, observation, reward, terminated = step(state, jnp.asarray(action), seed_key(t))
        own, own_reward, own_terminated, _, _ = stateful.step(action)
        np.testing.assert_allclose(observation, own, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(reward, np.squeeze(own_reward), rtol=1e-4)
        assert bool(terminated) == bool(own_terminated)
        if terminated:
            break


class Jump(FuncEnv):
    """A functional environment of the user's own: wins by jumping when the light is on."""

    observation_space = spaces.Box(0.0, 1.0, (1,))
    action_space = spaces.Discrete(2)
    max_episode_steps = 5

    def initial(self, rng, params=None):
        return {"light": jax.random.bernoulli(rng), "time": 0}

    def transition(self, state, action, key, params=None):
        return {"light": jax.random.bernoulli(key), "time": state["time"] + 1}

    def observation(self, state, rng, params=None):
        return state["light"].astype(jnp.float32)

    def reward(self, state, action, next_state, rng, params=None):
        return (state["light"] == (action == 1)).astype(jnp.float32)[None]

    def terminal(self, state, rng, params=None):
        return state["time"] >= 3


def test_a_functional_environment_of_ones_own():
    env = esrl.make(Jump)
    check_env(env)
    assert (env.name, env.max_episode_steps) == ("Jump", 5)
    agent = esrl.eggroll(env, esrl.mlp(()), population=32, mesh=one_device())
    played = agent.rollout(agent.init(seed_key(0)))
    assert (played.lengths == 3).all() and (played.returns <= 3).all() and (played.returns >= 0).all()


# ---- Brax -----------------------------------------------------------------------------------------------------------


def test_brax_steps_are_braxs_own(lenient):
    envs = pytest.importorskip("brax.envs")
    env, raw = esrl.make("brax/inverted_pendulum"), envs.get_environment("inverted_pendulum", backend="spring")
    check_contract(env)
    step, own_step = jax.jit(env.step), jax.jit(raw.step)
    state, observation = jax.jit(env.reset)(seed_key(0))
    own = jax.jit(raw.reset)(jax.random.key_data(seed_key(0)))
    ended = []
    for t in range(40):
        np.testing.assert_array_equal(observation, own.obs)
        action = jnp.full(1, np.sin(t).astype(np.float32))
        state, observation, reward, terminated = step(state, action, seed_key(t))
        own = own_step(own, action)
        assert (float(reward), bool(terminated)) == (float(own.reward), bool(own.done))
        ended.append(bool(terminated))
    assert any(ended) and not ended[0]


def test_brax_names_and_backends():
    pytest.importorskip("brax")
    assert {"brax/hopper", "brax/ant", "brax/humanoid", "brax/inverted_pendulum"} <= set(names()["brax"])
    made = [esrl.make(f"brax/inverted_pendulum?backend={backend}") for backend in ("spring", "positional")]
    assert [env.backend for env in made] == ["spring", "positional"]
    assert [env.name for env in made] == ["brax/inverted_pendulum", "brax/inverted_pendulum?backend=positional"]
    short = esrl.make("brax/inverted_pendulum", max_episode_steps=50, backend="generalized")
    assert (short.max_episode_steps, short.backend) == (50, "generalized")
    assert short.name == "brax/inverted_pendulum?backend=generalized&max_episode_steps=50"


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["positional", "generalized", "mjx"])
def test_every_brax_backend_steps(backend, lenient):
    pytest.importorskip("brax")
    env = esrl.make(f"brax/inverted_pendulum?backend={backend}")
    state, _ = jax.jit(env.reset)(seed_key(0))
    _, observation, reward, terminated = jax.jit(env.step)(state, jnp.zeros(1), seed_key(1))
    assert np.isfinite(observation).all() and reward == 1 and not terminated


# ---- names and files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("brax/hoper", "brax has no environment 'hoper'; did you mean hopper"),
        ("brax/ant?backend=sprin", "brax has no backend 'sprin'; use one of spring"),
        ("brax/inverted_pendulum?colour=red", "cannot be made with backend spring"),
        (
            "brax/swimmer",
            r"cannot be made with backend spring: Unsupported backend: spring; use brax/swimmer\?backend=gen",
        ),
        ("gymnasium/CartPole-v9", "gymnasium has no environment 'CartPole-v9'; did you mean CartPole"),
        ("gymnasium/phys2d/CartPol-v1", "did you mean phys2d/CartPole-v1"),
        ("gymnasium/CartPole-v1?vectorization=parallel", "must be one of auto, sync, async"),
        ("gymnasium/Acrobot-v1?vectorization=vector", "has no vector entry point"),
        ("gymnasium/Acrobot-v1?horizon=-3", "max_episode_steps is -3, but must be a whole number of at least 1"),
        ("gymnasium/Acrobot-v1?colour=red", "cannot be made: TypeError"),
        ("gymnasium/ALE/Breakout-v5", "Atari is a suite of its own: use atari/Breakout-v5"),
        ("kinetix/l/hard_pinball", r"kinetix is not installed; install it with: pip install ./envs/kinetix \("),
        ("hoppr", "unknown environment 'hoppr'; did you mean .*/[Hh]opper"),
        ("CartPole-v1", "several environments are called CartPole-v1; say which: gymnasium/"),
        ("mujoco/thing", "unknown environment 'mujoco/thing'"),
        ("brax", "unknown environment 'brax'; brax is a suite, see its environments with: esrl envs brax"),
        ("brx/", "unknown environment 'brx/'; brax is a suite"),
        ("envs/none.py:Class", "there is no file"),
        ("envs/rocket.py", "say which class as well: envs/rocket.py:ClassName"),
    ],
)
def test_unknown_names_offer_near_ones(name, words):
    with pytest.raises(EsrlError, match=words):
        esrl.make(name)


def test_what_gymnasium_cannot_make_is_not_listed():
    listed = names()["gymnasium"]
    assert {"gymnasium/Ant-v4", "gymnasium/Ant-v5", "gymnasium/LunarLander-v3"} <= set(listed)
    assert not [
        name for name in listed if name.endswith(("Ant-v2", "Ant-v3", "Reacher-v2", "Pusher-v4")) or "GymV" in name
    ]


def test_files_are_loaded_by_path(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("import nothing_of_that_name\n")
    with pytest.raises(EsrlError, match=r"cannot be imported: ModuleNotFoundError"):
        load_attribute(f"{path}:Mine")
    path.write_text("class Rocket:\n    pass\n\n\nclass Snake:\n    pass\n")
    with pytest.raises(EsrlError, match="has no 'Roket'; did you mean Rocket"):
        load_attribute(f"{path}:Roket")
    with pytest.raises(EsrlError, match="Rocket is no environment; give a name"):
        esrl.make(f"{path}:Rocket")


@pytest.mark.parametrize("name", ["rocket.py:Rocket", "snake.py:Snake"])
def test_example_environments_are_sound(name, pytestconfig):
    env = esrl.make(f"{pytestconfig.rootpath / 'envs' / name}")
    check_env(env)
    assert env.name.endswith(name)


def test_objects_and_classes_are_taken():
    assert esrl.make(Line()).name == "Line" and esrl.make(Line).name == "Line"
    host = esrl.make(Countdown)
    assert esrl.make(host) is host and host.name == "Countdown"
    with pytest.raises(EsrlError, match="give its class or its id"):
        esrl.make(Countdown())
    with pytest.raises(EsrlError, match=r"cannot be constructed with {'size': 3}"):
        esrl.make(Line, size=3)
    with pytest.raises(EsrlError, match="already made"):
        esrl.make(Line(), size=3)
