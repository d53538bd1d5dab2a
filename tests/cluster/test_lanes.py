"""An iteration of lanes that workers step is the one that one process steps, bit for bit, whatever happens to them."""

import jax
import numpy as np
import pytest

import esrl
from esrl.cluster import messages
from esrl.core.types import EsrlError, seed_key
from tests.cluster.fleets import HANG, Fleets, always
from tests.cluster.test_fleet import equal, hung, killed_once, killed_twice, node_lost, slow

ON_DEVICE = "gymnasium/phys2d/CartPole-v1?max_episode_steps=7"
BY_PYTHON = "gymnasium/CartPole-v1?max_episode_steps=7&vectorization=sync"
SIZES = {"num_envs": 8, "num_steps": 8, "num_epochs": 1, "num_minibatches": 2}
GENERATIONS = 3


def trained(fleet, agent, generations=GENERATIONS, state=None):
    state = agent.init(seed_key(3)) if state is None else state
    fleet.tolerant = False
    for _ in range(generations):
        state, _ = agent.update(state, fleet.rollout(state))
    return state


def learned(state):
    """All of a state but the mark of Python's worlds."""
    return state._replace(lanes=state.lanes._replace(state=()))


@pytest.fixture(scope="module")
def fleets():
    return Fleets(esrl.ppo(ON_DEVICE, esrl.mlp((4,)), **SIZES))


@pytest.fixture(scope="module")
def alone(fleets):
    return trained(fleets.in_process(2), fleets.agent)


@pytest.fixture(scope="module")
def of_python():
    return Fleets(esrl.ppo(BY_PYTHON, esrl.mlp((4,)), **SIZES))


@pytest.fixture(scope="module")
def alone_by_python(of_python):
    return trained(of_python.in_process(4), of_python.agent)


@pytest.mark.parametrize(
    "fate, number", [(always, 1), (killed_once, 2), (killed_twice, 3), (node_lost, 4), (hung, 2), (slow, 3)]
)
def test_the_parameters_do_not_depend_on_what_happens_to_workers(fleets, alone, fate, number):
    fleet, workers = fleets.fleet(number, fate, block=2)
    state = trained(fleet, fleets.agent)
    assert equal(state, alone)
    assert int(state.env_steps) == GENERATIONS * 64
    assert bool(workers.replaced) == (fate in (killed_once, killed_twice, node_lost))
    assert fleet.metrics["bytes_received"] > 64 * 20 and "pairs_missing" not in fleet.metrics


def test_a_worker_that_hangs_alone_is_replaced_after_its_time(fleets, alone):
    fate = lambda worker, n: HANG if (worker, n) == (0, 3) else ("answer", 1.0)  # noqa: E731
    fleet, workers = fleets.fleet(1, fate, block=2, limit=20.0)
    assert equal(trained(fleet, fleets.agent), alone)
    assert workers.replaced == [0]


def test_one_block_of_all_lanes_is_what_the_agent_itself_plays(fleets):
    state = fleets.agent.init(seed_key(0))
    whole, parts = fleets.in_process(8).rollout(state), fleets.in_process(2).rollout(state)
    for one, other in zip(messages._plain(whole), messages._plain(parts), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    assert whole.trajectory.rewards.shape == (8, 8) and whole.last_value.shape == (8,)


def test_a_driver_that_begins_anew_from_a_state_goes_on_to_the_same(fleets, alone):
    half = trained(fleets.fleet(2, block=2)[0], fleets.agent, 2)
    assert equal(trained(fleets.fleet(3, block=2)[0], fleets.agent, 1, half), alone)


def test_a_block_at_which_all_workers_end_ends_the_run_with_a_sentence(fleets):
    fleet, _ = fleets.fleet(1, lambda worker, n: ("die", 1.0), block=2)
    with pytest.raises(EsrlError, match="environments 0 to 1 has ended"):
        fleet.rollout(fleets.agent.init(seed_key(0)))


def test_worlds_of_python_stay_with_their_workers_and_train_what_one_process_trains(of_python, alone_by_python):
    fleet, workers = of_python.fleet(2, block=4)
    assert equal(learned(trained(fleet, of_python.agent)), learned(alone_by_python))
    assert workers.moved == 0


def test_worlds_of_python_whose_worker_ended_begin_new_episodes_elsewhere(of_python):
    fleet, workers = of_python.fleet(2, killed_once, block=4)
    state = trained(fleet, of_python.agent)
    assert int(state.generation) == GENERATIONS and int(state.env_steps) == GENERATIONS * 64
    assert workers.moved == 1 and workers.replaced == [0]


def test_a_state_that_is_not_the_last_one_begins_new_episodes(of_python):
    fleet, _ = of_python.fleet(2, block=4)
    state = of_python.agent.init(seed_key(0))
    after = fleet.rollout(state).lanes
    again = fleet.rollout(state).lanes
    assert np.array_equal(after.time, again.time) and not np.array_equal(after.state, again.state)


def test_steps_of_python_worlds_that_no_worker_could_play_teach_nothing(of_python):
    state, faults = of_python.agent.init(seed_key(0)), of_python.agent.env.faults
    fleet, _ = of_python.fleet(1, lambda worker, n: ("die", 1.0) if worker < 4 else ("answer", 1.0), block=4)
    with faults.tolerating(10.0, 0.5):
        experience = fleet.rollout(state)
        assert faults.count == 4
    after, metrics = of_python.agent.update(state, experience)
    assert int(metrics["nonfinite"]) == 32
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(after.params))


@pytest.mark.parametrize("options", [{"critic": "ridge"}, {"noise_space": "weights", "window": 4}])
def test_the_agent_without_backpropagation_is_played_the_same(options):
    fleets = Fleets(esrl.eggroll_ac(ON_DEVICE, esrl.mlp((4,)), **SIZES, **options))
    alone = trained(fleets.in_process(2), fleets.agent, 2)
    assert equal(trained(fleets.fleet(2, killed_once, block=2)[0], fleets.agent, 2), alone)


def test_keys_in_the_state_of_a_world_travel():
    key = jax.random.split(seed_key(5), 4)
    data = messages.pack({"world": key})
    assert equal(messages.unpack(data, jax.eval_shape(lambda: {"world": key})), {"world": key})
