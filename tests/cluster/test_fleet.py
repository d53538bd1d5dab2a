"""A generation that workers play is the one that one process plays, bit for bit, whatever happens to them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import esrl
from esrl.cluster import messages
from esrl.core.types import EsrlError, seed_key
from tests.cluster.fleets import HANG, Fleets, always

HOST = "gymnasium/CartPole-v1?max_episode_steps=20&vectorization=sync"
GENERATIONS = 4


def equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(messages._plain(one), messages._plain(other), strict=True))


def trained(fleet, agent, generations=GENERATIONS):
    state = agent.init(seed_key(3))
    fleet.tolerant = False
    for _ in range(generations):
        state, _ = agent.update(state, fleet.rollout(state))
    return state


@pytest.fixture(scope="module")
def fleets():
    agent = esrl.eggroll(HOST, esrl.mlp((4,)), population=12, max_population=24, horizon=10)
    return Fleets(agent)


@pytest.fixture(scope="module")
def alone(fleets):
    """What one process trains, in blocks of one pair."""
    agent = fleets.agent
    return trained(fleets.in_process(), agent)


def test_the_last_block_is_smaller_and_nothing_else_of_a_generation_depends_on_blocks(fleets):
    state = fleets.agent.init(seed_key(0))
    whole = fleets.in_process(6).rollout(state)
    parts = fleets.in_process(4).rollout(state)
    for name in ("fitness", "returns", "lengths", "nonfinite"):  # of steps, those of the block are counted
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))
    for one, other in zip(jax.tree.leaves(whole.sums), jax.tree.leaves(parts.sums), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def killed_once(worker, n):
    return ("die", 0.5) if (worker, n) == (0, 2) else ("answer", 1.0)


def killed_twice(worker, n):  # and the one that takes its place
    return ("die", 0.5) if (worker, n) in ((1, 3), (3, 1)) else ("answer", 1.0)


def node_lost(worker, n):
    return ("die", 0.5) if worker % 2 == 0 and n == 3 else ("answer", 1.0)


def hung(worker, n):
    return HANG if (worker, n) == (1, 4) else ("answer", 1.0)


def slow(worker, n):
    return "answer", 10.0 if worker == 0 else 1.0


@pytest.mark.parametrize("broadcast", messages.BROADCASTS)
@pytest.mark.parametrize(
    "fate, number", [(always, 1), (killed_once, 2), (killed_twice, 3), (node_lost, 4), (hung, 2), (slow, 3)]
)
def test_the_parameters_do_not_depend_on_what_happens_to_workers(fleets, alone, broadcast, fate, number):
    fleet, workers = fleets.fleet(number, fate, broadcast=broadcast)
    assert equal(trained(fleet, fleets.agent), alone)
    assert bool(workers.replaced) == (fate in (killed_once, killed_twice, node_lost))


def test_a_worker_that_hangs_alone_is_replaced_after_its_time(fleets, alone):
    fleet, workers = fleets.fleet(1, lambda worker, n: HANG if (worker, n) == (0, 3) else ("answer", 1.0), limit=20.0)
    assert equal(trained(fleet, fleets.agent), alone)
    assert workers.replaced == [0]


def test_workers_that_join_play_and_make_it_faster(fleets, alone):
    few, alone_workers = fleets.fleet(1)
    more, with_more = fleets.fleet(1, joins={8.0: 2})
    assert equal(trained(few, fleets.agent), trained(more, fleets.agent))
    assert with_more.now < alone_workers.now
    assert more.metrics["workers"] == 3


def test_a_driver_that_begins_anew_from_a_state_goes_on_to_the_same(fleets, alone):
    agent = fleets.agent
    half = trained(fleets.fleet(2, broadcast="scalars")[0], agent, 2)
    fleet = fleets.fleet(2, broadcast="scalars")[0]
    for _ in range(2):
        half, _ = agent.update(half, fleet.rollout(half))
    assert equal(half, alone)


def test_a_worker_that_computes_otherwise_is_sent_the_parameters(fleets, alone):
    fleet, workers = fleets.fleet(2, broadcast="scalars")
    strange = workers._players[1]
    honest = strange.agent

    def other(state, experience):
        after, metrics = honest.update(state, experience)
        return after._replace(params=jax.tree.map(lambda x: x + jnp.float32(1e-7), after.params)), metrics

    strange.agent = dataclasses.replace(honest, update=other)
    assert equal(trained(fleet, fleets.agent), alone)


def test_scalars_do_not_grow_with_the_network_and_parameters_do():
    sizes, params = {}, {}
    for width in (4, 64):
        agent = esrl.eggroll(HOST, esrl.mlp((width,)), population=12)
        fleets, params[width] = Fleets(agent), agent.plan.num_params
        for broadcast in messages.BROADCASTS:
            fleet, _ = fleets.fleet(1, broadcast=broadcast)
            trained(fleet, fleets.agent, 2)
            sizes[width, broadcast] = fleet.metrics["bytes_sent"]
    assert sizes[4, "scalars"] == sizes[64, "scalars"]
    assert sizes[64, "parameters"] - sizes[4, "parameters"] == 4 * (params[64] - params[4])


@pytest.fixture(scope="module")
def held():
    """Fleets of an agent most of whose parameters are frozen."""
    agent = esrl.eggroll(HOST, esrl.mlp((64,)), population=12, frozen=["Dense_0/*"])
    return Fleets(agent)


def frozen_bytes(agent):
    return 4 * sum(int(np.prod(leaf.shape)) for leaf in agent.plan.frozen)


def test_frozen_parameters_are_sent_once_to_each_node(held):
    agent = held.agent
    fleet, _ = held.fleet(2)  # on two nodes
    state, sent = agent.init(seed_key(3)), []
    for _ in range(3):
        state, _ = agent.update(state, fleet.rollout(state))
        sent.append(fleet.metrics["bytes_sent"])
    assert frozen_bytes(agent) > 500
    assert sent[0] - sent[1] == 2 * frozen_bytes(agent)
    assert sent[1] == sent[2]
    # Without them a message is what is trained, and the same for every generation.
    playable = messages.playable(jax.device_get(state))
    assert messages.size_of(playable) - messages.size_of(messages.without_frozen(playable)) == frozen_bytes(agent)


@pytest.mark.parametrize("broadcast", messages.BROADCASTS)
def test_a_worker_that_takes_the_place_of_another_is_sent_the_frozen_parameters(held, broadcast):
    alone = trained(held.in_process(), held.agent)
    # The first one ends in its third generation; who comes then was never sent anything.
    fleet, workers = held.fleet(
        1, lambda worker, n: ("die", 0.5) if (worker, n) == (0, 15) else ("answer", 1.0), broadcast=broadcast
    )
    kinds = []
    send = workers.send
    workers.send = lambda worker, orders, message: (kinds.append((worker, orders.kind)), send(worker, orders, message))
    assert equal(trained(fleet, held.agent), alone)
    assert workers.replaced == [0]
    told = {worker: [kind for who, kind in kinds if who == worker and kind] for worker in (0, 1)}
    later = "trained" if broadcast == "parameters" else "scalars"
    assert told[0] == ["state", later, later]
    assert told[1] == ["state", later]


def test_another_state_with_other_frozen_parameters_is_sent_whole(held):
    agent = held.agent
    fleet, here = held.fleet(1)[0], held.in_process()
    fleet.rollout(agent.init(seed_key(3)))
    other = agent.init(seed_key(4))
    other, _ = agent.update(other, here.rollout(other))
    np.testing.assert_array_equal(fleet.rollout(other).fitness, here.rollout(other).fitness)


def test_a_worker_that_was_never_sent_the_frozen_parameters_says_so():
    like = jax.eval_shape(lambda: esrl.eggroll(HOST, esrl.mlp((4,))).init(seed_key(0)))
    with pytest.raises(EsrlError, match="frozen"):
        messages.state_of("trained", b"", like, None)


def test_a_generation_that_is_closed_early_is_one_of_fewer_pairs(fleets):
    fleet, _ = fleets.fleet(2, lambda worker, n: HANG if worker == 1 else ("answer", 1.0), close_at=0.8)
    agent, state = fleets.agent, fleets.agent.init(seed_key(0))
    experience = fleet.rollout(state)
    present = np.asarray(experience.present)
    assert present.sum() == 5 and fleet.metrics["pairs_missing"] == 1
    assert np.isnan(experience.fitness[~present]).all() and np.isfinite(experience.fitness[present]).all()
    _, metrics = agent.update(state, experience)
    # The same pairs alone, weighed by hand.
    config = agent.config
    weights = np.asarray(config.shaping(jnp.asarray(experience.fitness[present]))) @ np.array(config.signs)
    key = jax.random.fold_in(jax.random.fold_in(state.key, jnp.uint32(1)), 0)
    factors = config.draw(key, jnp.arange(6, dtype=jnp.uint32)[present])
    sums = config.noise.weighted_sum(jnp.asarray(weights, jnp.float32), factors, config.leaves)
    norm = np.sqrt(sum(float(jnp.sum(x**2)) for x in sums)) / (10 * float(config.sigma(state)))
    assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-4)
    assert int(metrics["nonfinite"]) == 0


def test_a_block_at_which_all_workers_end_has_failed_and_is_counted(fleets):
    state = fleets.agent.init(seed_key(0))
    faults = fleets.agent.env.faults
    fleet, _ = fleets.fleet(1, lambda worker, n: ("die", 1.0) if worker < 4 else ("answer", 1.0))
    with faults.tolerating(10.0, 0.5):
        experience = fleet.rollout(state)
        assert faults.count == 4  # two members, two episodes
    assert np.isnan(experience.fitness[0]).all() and experience.present is None
    fleet, _ = fleets.fleet(1, lambda worker, n: ("die", 1.0))
    with pytest.raises(EsrlError, match="has ended"), faults.tolerating(10.0, 0.0):
        fleet.rollout(state)


def test_without_any_worker_the_run_says_so_once_and_ends_with_a_sentence(fleets, capsys):
    fleet, _ = fleets.fleet(0)
    with pytest.raises(EsrlError, match="no worker"):
        fleet.rollout(fleets.agent.init(seed_key(0)))
    assert capsys.readouterr().err.count("there is no worker yet") == 1


@pytest.mark.parametrize("name", ["gymnasium/phys2d/CartPole-v1?max_episode_steps=20"])
def test_jax_environments_play_in_workers(name):
    agent = esrl.open_es(name, esrl.mlp((4,)), population=10, antithetic=False)
    fleets = Fleets(agent)
    alone = trained(fleets.in_process(4), fleets.agent, 2)
    for broadcast in messages.BROADCASTS:
        fleet, _ = fleets.fleet(2, killed_once, block=4, broadcast=broadcast)
        assert equal(trained(fleet, fleets.agent, 2), alone)


def test_packed_trees_come_back():
    tree = {"key": seed_key(5), "x": jnp.arange(6, dtype=jnp.float32).reshape(2, 3), "none": None, "b": np.array(True)}
    like = jax.eval_shape(lambda: tree)
    data = messages.pack(tree)
    assert len(data) == messages.size_of(like) == 8 + 24 + 1
    assert equal(messages.unpack(data, like), tree)
    with pytest.raises(EsrlError, match="bytes"):
        messages.unpack(data[:-1], like)
