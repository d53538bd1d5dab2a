"""Processes of `jax.distributed`: what they train together is what one device trains."""

import numpy as np
import pytest
from launching import running

pytestmark = [pytest.mark.slow, pytest.mark.heavy]

AGENTS = ("eggroll", "open_es", "eggroll_ac", "ppo")
GENERATIONS = 20


def trained(agent, **options):
    return ["generations", {"agent": agent, "number": GENERATIONS, **options}]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What groups of processes have found, by their number: one after the other takes longer than two at once."""
    path = tmp_path_factory.mktemp("found")
    alone = {f"{agent}-{devices}": trained(agent, devices=devices) for agent in AGENTS for devices in (1, 2, 4, 8)}
    every = {agent: trained(agent) for agent in AGENTS} | {"scalars": trained("eggroll", exchange="scalars")}
    run = {"agent": "eggroll", "num_evals": 2}
    stopping = {
        "whole": ["train", {**run, "generations": 6}],
        "begun": ["train", {**run, "generations": 3, "out": str(path / "run")}],
        "copied": ["copy", {"source": str(path / "run"), "to": str(path / "stopped")}],
        "gone_on": ["train", {**run, "generations": 6, "out": str(path / "run"), "resume": True}],
    }
    going_on = {"gone_on": ["train", {**run, "generations": 6, "out": str(path / "stopped"), "resume": True}]}
    with (
        running(path / "one", 1, 8, alone) as one,
        running(path / "two", 2, 2, every | stopping) as two,
    ):
        found = {1: one.found(), 2: two.found()}
    with running(path / "four", 4, 1, every | going_on) as four:
        return found | {4: four.found()}


def same(found, wanted):
    """Fitness equal, parameters within 1e-6."""
    np.testing.assert_array_equal(found["fitness"], wanted["fitness"])
    names = [name for name in wanted if name != "fitness"]
    assert names
    for name in names:
        np.testing.assert_allclose(found[name], wanted[name], rtol=0, atol=1e-6)


def equal(found, wanted):
    """Bit for bit."""
    assert found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_array_equal(found[name], wanted[name])


def test_a_run_is_the_same_on_1_2_4_and_8_devices(found):
    alone = found[1][0]
    for agent in AGENTS:
        for devices in (2, 4, 8):
            same(alone[f"{agent}-{devices}"], alone[f"{agent}-1"])


@pytest.mark.parametrize("agent", AGENTS)
def test_two_and_four_processes_train_what_one_device_does(found, agent):
    for each in (*found[2], *found[4]):
        same(each[agent], found[1][0][f"{agent}-1"])


def test_with_scalars_alone_a_run_is_the_same(found):
    for each in (*found[2], *found[4]):
        same(each["scalars"], found[1][0]["eggroll-1"])


def test_every_process_has_the_same_parameters_bit_for_bit(found):
    for first, *others in (found[2], found[4]):
        for other in others:
            for task in (*AGENTS, "scalars"):
                equal(other[task], first[task])


def test_a_run_goes_on_as_if_it_had_never_stopped(found):
    whole = found[2][0]["whole"]
    for each in found[2]:
        equal(each["gone_on"], whole)  # bit for bit on as many processes
    for each in found[4]:
        assert each["gone_on"]["generation"] == 6
        for name in [name for name in whole if name.startswith("params")]:
            np.testing.assert_allclose(each["gone_on"][name], whole[name], rtol=0, atol=1e-6)
