"""Trials that wait for cores of a cluster: it is said once what is waited for, and not while processes only start."""

from types import SimpleNamespace

import pytest

from esrl.cli import remote_trials
from esrl.cluster.ray_session import Session
from esrl.training.recipe import Recipe


class Ray:
    """A cluster of two cores in virtual time, `held` of which others have; none of its processes is ever ready."""

    exceptions = SimpleNamespace(RayActorError=RuntimeError, RayError=RuntimeError)

    def __init__(self, held):
        self.held, self.now, self.begun = held, 0.0, 0

    def cluster_resources(self):
        return {"CPU": 2.0}

    def available_resources(self):
        return {"CPU": max(2.0 - self.held - self.begun, 0.0)}

    def remote(self, kind):
        return self

    def options(self, **options):
        def begin(flags):
            self.begun += 1
            return SimpleNamespace(prepare=SimpleNamespace(remote=lambda *common: object()))

        return SimpleNamespace(remote=begin)

    def wait(self, refs, timeout):
        self.now += timeout
        return [], refs


@pytest.mark.parametrize(
    "held, seconds, words",
    [
        (2, 4, []),
        (2, 6, ["2 trials wait for a core each: the search asks for 2, and of the cluster's 2 none is free"]),
        (2, 600, ["2 trials wait"]),  # once
        (0, 50, []),  # they have their cores, and start
        (0, 600, ["2 trials wait"]),
    ],
)
def test_what_a_search_waits_for_is_said_once(held, seconds, words, monkeypatch, tmp_path):
    ray, said = Ray(held), []
    session = object.__new__(Session)  # connected to that
    session.ray = ray
    monkeypatch.setattr(remote_trials, "Session", lambda address, workers: session)
    players = remote_trials.Everywhere(
        Recipe("gymnasium/phys2d/CartPole-v1"), tmp_path, "auto", None, 8, tell=said.append, clock=lambda: ray.now
    )
    for slot in range(players.slots):
        players.begin(slot, {}, tmp_path)
    while ray.now < seconds:
        assert players.wait() == []
    assert len(said) == len(words)
    for line, wanted in zip(said, words, strict=True):
        assert wanted in line and line.endswith("goes on by itself as soon as one is") and "\n" not in line
