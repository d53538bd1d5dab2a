"""The compiled program of a generation: no tensor of members x m x n, and a bound on its temporary memory."""

import itertools
import math
import re

import jax
import pytest
from probes import Walk

import esrl
from esrl.algorithms import memory_plan
from esrl.core import sharding
from esrl.core.types import EsrlError, seed_key


def compiled(agent):
    state = jax.eval_shape(agent.init, seed_key(0))
    batch = jax.eval_shape(agent.rollout, state)
    return jax.jit(agent.rollout).lower(state).compile(), jax.jit(agent.update).lower(state, batch).compile()


def biggest_with(program, sides):
    """The most numbers in any tensor of the program whose shape holds both sides of a weight matrix."""
    most = 0
    for shape in re.findall(r"\b[a-z]+\d+\[([\d,]+)\]", program.as_text()):
        dims = [int(d) for d in shape.split(",")]
        if all(dims.count(side) >= sides.count(side) for side in sides):
            most = max(most, math.prod(dims))
    return most


@pytest.mark.parametrize("rank", [1, 4])
def test_no_tensor_of_members_by_m_by_n_in_the_compiled_generation(rank):
    m, n = 48, 80
    agent = esrl.eggroll(Walk(), esrl.mlp((m, n, m), "tanh"), population=64, rank=rank, chunk_pairs=8)
    for program in compiled(agent):
        assert biggest_with(program, [m, n]) <= m * n
    dense = esrl.open_es(Walk(), esrl.mlp((m, n, m), "tanh"), population=64, chunk_pairs=8)
    assert max(biggest_with(program, [m, n]) for program in compiled(dense)) > m * n  # the test can see one


@pytest.mark.parametrize("make", [esrl.eggroll, esrl.open_es])
def test_the_loop_over_steps_reads_noise_as_it_is_stored(make):
    """The cast stays inside: a loop that carried float32 copies would move four times the bytes."""
    agent = make(
        Walk(),
        esrl.mlp((48, 80), "tanh"),
        population=64,
        chunk_pairs=8,
        noise_distribution="rademacher",
        noise_dtype="int8",
    )
    loops = [line for line in compiled(agent)[0].as_text().splitlines() if " while(" in line]
    shape = r"\[8,1,80\]" if make is esrl.eggroll else r"\[8,48,80\]"
    assert any(re.search("s8" + shape, line) for line in loops)
    assert not any(re.search("f32" + shape, line) for line in loops)


@pytest.mark.slow
def test_a_generation_of_brax_ant_needs_at_most_64_mib():
    agent = esrl.eggroll("brax/ant", esrl.mlp(), population=1024)
    for program in compiled(agent):
        assert program.memory_analysis().temp_size_in_bytes <= 64 * 2**20


@pytest.fixture
def accelerator(monkeypatch):
    """Has memory planned as if each device of this machine were an accelerator with so many bytes."""

    def of(size):
        monkeypatch.setattr(memory_plan, "device_of", lambda mesh: memory_plan.Device("gpu", size, True))

    return of


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("gib", [None, 0.25, 4.0])
@pytest.mark.parametrize("memory", [1 << 20, 3 << 30, 80 << 30])
def test_chunks_on_an_accelerator_fit_its_memory(accelerator, memory, gib, devices):
    accelerator(memory)
    mesh = sharding.default_mesh(devices)
    assert mesh.size == devices
    room = memory // 2 if gib is None else int(gib * 2**30)
    for pairs, lanes, each in itertools.product([1, 24, 1 << 18], [1, 2, 6, 64], [4, 5_000, 3 << 20, 5 << 30]):
        pairs = pairs * devices
        if each > memory or (gib is not None and each > room):
            with pytest.raises(EsrlError, match=r"one pair needs \d"):
                memory_plan.default_chunk(pairs, lanes, each, mesh, gib)
            continue
        chunk = memory_plan.default_chunk(pairs, lanes, each, mesh, gib)
        sharding.check_chunk(chunk, pairs, mesh)
        assert chunk == 1 or chunk * each <= room
        # Whatever fits is taken: all of them, or so many that one more would not fit, or enough to fill the device.
        assert chunk == pairs // devices or (chunk + 1) * each > room or (chunk + 1) * lanes > 1 << 18


def test_an_agents_plan_on_an_accelerator_fits_or_says_what_one_pair_needs(accelerator):
    accelerator(8 << 20)
    agent = esrl.eggroll(Walk(), esrl.mlp((64, 64)), population=65536)
    parts = {item.name: item.bytes for item in agent.plan.memory}
    assert 1 < agent.plan.chunk < 8192 and sum(parts[name] for name in ("noise", "worlds", "activations")) <= 4 << 20
    with pytest.raises(EsrlError, match=r"one pair needs [\d.]+ GiB, but a device has 0.00781; take a smaller network"):
        esrl.open_es(Walk(), esrl.mlp((2048, 2048)), population=64)
