"""A generation of integers that workers play is the one that one process plays, bit for bit, in blocks of any size."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import esrl
from esrl.algorithms import integer_es
from esrl.cluster import messages
from esrl.core.types import seed_key
from tests.cluster.fleets import HANG, Fleets, always
from tests.cluster.test_fleet import HOST, equal, hung, killed_once, killed_twice, node_lost, slow, trained

TINY = esrl.mlp((4,), dtype="int8")
ON_DEVICE = "gymnasium/phys2d/CartPole-v1?max_episode_steps=20"
# Everything that a state can have beside the weights: a running sum of votes, an average, statistics, a table.
ALL = {"momentum_shift": 2, "noise_table": 500, "shaping": "z_score", "group_pairs": 3, "episodes_per_member": 2}


def learned(state):
    """All of a state but the steps of lanes that waited for others: those are of a block."""
    return state._replace(padded_steps=None)


@pytest.fixture(scope="module")
def fleets():
    return Fleets(esrl.eggroll_int8(HOST, TINY, population=12, **ALL))


@pytest.fixture(scope="module")
def alone(fleets):
    """What one process trains, in blocks of one pair."""
    state = trained(fleets.in_process(), fleets.agent)
    assert not equal(state.params, fleets.agent.init(seed_key(3)).params)
    return state


@pytest.mark.parametrize("broadcast", messages.BROADCASTS)
@pytest.mark.parametrize(
    "fate, number", [(always, 1), (killed_once, 2), (killed_twice, 3), (node_lost, 4), (hung, 2), (slow, 3)]
)
def test_the_weights_do_not_depend_on_what_happens_to_workers(fleets, alone, broadcast, fate, number):
    fleet, workers = fleets.fleet(number, fate, broadcast=broadcast)
    assert equal(trained(fleet, fleets.agent), alone)
    assert bool(workers.replaced) == (fate in (killed_once, killed_twice, node_lost))


@pytest.mark.parametrize("name", [HOST, ON_DEVICE])
def test_blocks_of_any_size_train_what_the_agent_itself_trains(name):
    agent = esrl.eggroll_int8(name, TINY, population=12)
    state = agent.init(seed_key(3))
    for _ in range(2):
        state, _ = agent.step(state)
    fleets = Fleets(agent)
    for block in (1, 4):
        assert equal(learned(trained(fleets.in_process(block), fleets.agent, 2)), learned(state))
    for broadcast in messages.BROADCASTS:
        fleet, _ = fleets.fleet(2, killed_once, block=4, broadcast=broadcast)
        assert equal(learned(trained(fleet, fleets.agent, 2)), learned(state))


def test_an_objective_is_scored_by_workers():
    def score(apply, key):
        return -abs(apply(jnp.ones(2))[0] - jax.random.normal(key))

    agent = esrl.eggroll_int8(esrl.objective(score, inputs=2, outputs=1), TINY, population=12)
    fleets = Fleets(agent)
    alone = trained(fleets.in_process(6), fleets.agent, 2)
    for broadcast in messages.BROADCASTS:
        fleet, _ = fleets.fleet(2, killed_once, block=2, broadcast=broadcast)
        assert equal(learned(trained(fleet, fleets.agent, 2)), learned(alone))


def test_votes_take_a_byte_of_each_pair_and_weights_one_of_each():
    sent, weights = {}, {}
    head = 32  # bytes of the numbers in an order
    for width, pairs in itertools.product((4, 64), (6, 12)):
        agent = esrl.eggroll_int8(HOST, esrl.mlp((width,), dtype="int8"), population=2 * pairs)
        fleets, weights[width] = Fleets(agent), agent.plan.num_params
        for broadcast in messages.BROADCASTS:
            fleet, _ = fleets.fleet(1, block=pairs, broadcast=broadcast)
            trained(fleet, fleets.agent, 2)
            sent[width, pairs, broadcast] = fleet.metrics["bytes_sent"] - head
    assert sent[4, 6, "scalars"] == sent[64, 6, "scalars"] == sent[64, 12, "scalars"] - 6
    assert sent[64, 6, "parameters"] == sent[64, 12, "parameters"]
    assert sent[64, 6, "parameters"] - sent[4, 6, "parameters"] == weights[64] - weights[4]


def test_a_table_of_noise_is_sent_once_and_again_to_who_takes_its_workers_place(fleets, alone):
    fleet, workers = fleets.fleet(1, lambda worker, n: ("die", 0.5) if (worker, n) == (0, 15) else ("answer", 1.0))
    kinds, send = [], workers.send

    def told(worker, orders, message):
        kinds.append((worker, orders.kind, len(message or b"")))
        send(worker, orders, message)

    workers.send = told
    assert equal(trained(fleet, fleets.agent), alone)
    states = [(worker, kind) for worker, kind, _ in kinds if kind]
    assert states == [(0, "state"), (0, "trained"), (0, "trained"), (1, "state"), (1, "trained")]
    sizes = {kind: size for _, kind, size in kinds}
    assert sizes["state"] - sizes["trained"] == ALL["noise_table"]


@pytest.mark.parametrize("options", [{}, {"shaping": "z_score", "group_pairs": 6}])
def test_a_generation_that_is_closed_early_is_one_of_fewer_pairs(options):
    fleets = Fleets(esrl.eggroll_int8(HOST, TINY, population=12, **options))
    agent, state = fleets.agent, fleets.agent.init(seed_key(0))
    fleet, _ = fleets.fleet(2, lambda worker, n: HANG if worker == 1 else ("answer", 1.0), close_at=0.8)
    experience = fleet.rollout(state)
    present = np.asarray(experience.present)
    assert present.sum() == 5 and fleet.metrics["pairs_missing"] == 1
    drawn = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    experience = experience._replace(fitness=np.where(present[:, None], drawn, experience.fitness))
    votes = np.asarray(agent.config.score(jnp.asarray(experience.fitness), jnp.asarray(present)))
    score = integer_es.z_scores(5) if options else integer_es.signs
    of_those = score(jnp.asarray(experience.fitness[present]))
    assert votes[present].tolist() == np.asarray(of_those).tolist()
    assert votes[~present].tolist() == [0]
    after, metrics = agent.update(state, experience)
    assert int(metrics["nonfinite"]) == 0 and float(metrics["tied"]) == 0
    # A worker that is told the votes comes to the same weights.
    blocks = fleet._blocks
    assert equal(blocks.follow(agent, state, blocks.scalars(experience)).params, after.params)
