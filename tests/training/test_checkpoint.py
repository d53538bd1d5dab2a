"""Run folders: any name keeps a run, a broken checkpoint gives way to the one before, a misfit is said by name."""

import functools
import json
import os
import shutil
import tarfile
import threading
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tomli_w
from probes import Walk
from safetensors.numpy import save

import esrl
from esrl import EsrlError
from esrl.training import checkpoint, state_file
from esrl.training.recipe_table import with_former_defaults

NAMES = ["[lr=0.1]", "a*b?c", "{x} %20", "quote\" and ' space", "größe-行", "[", "**", "~tilde", "-dash", "new\nline"]


@functools.cache  # compiles once
def agent(**options):
    return esrl.eggroll(Walk(), esrl.mlp((), "tanh"), **{"population": 4, **options})


def trained(out, generations=2, **given):
    return esrl.train(agent(), generations=generations, out=out, num_evals=0, checkpoint_every=1, **given)


def params_of(state):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.params)])


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_any_name_keeps_its_run(tmp_path, name):
    out = tmp_path / name / "run"
    result = trained(out, 1)
    np.testing.assert_array_equal(params_of(esrl.load(out, agent=agent()).state), params_of(result.state))
    assert int(trained(str(out) + "/", resume=True).state.generation) == 2
    assert int(esrl.load(out, agent=agent(), generation=1).state.generation) == 1


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    trained("~/run", 1)
    assert (tmp_path / "run" / "recipe.toml").exists() and not (tmp_path / "~").exists()
    esrl.load("~/run", agent=agent())
    assert trained("~/run", 1, resume=True).out == tmp_path / "run"


def test_a_relative_folder_stays_where_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    for _ in esrl.iterate(agent(), generations=2, num_evals=0, checkpoint_every=1, out="run"):
        monkeypatch.chdir(tmp_path / "elsewhere")
    assert not list((tmp_path / "elsewhere").iterdir())
    assert int(esrl.load(tmp_path / "run", agent=agent()).state.generation) == 2


def test_a_link_to_a_folder_keeps_its_run(tmp_path):
    (tmp_path / "[there]").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "[there]", target_is_directory=True)
    trained(tmp_path / "link" / "run", 1)
    assert int(esrl.load(tmp_path / "[there]" / "run", agent=agent()).state.generation) == 1


def emptied(path):
    path.write_bytes(b"")


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def a_byte_short(path):
    path.write_bytes(path.read_bytes()[:-1])


def lengthened(path):
    path.write_bytes(path.read_bytes() + b"x")


def zeroed(path):
    path.write_bytes(bytes(path.stat().st_size))


def another_number(path):
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))


def a_folder(path):
    path.unlink()
    path.mkdir()


def a_former_folder(path):
    path.unlink()
    path.with_suffix("").mkdir()


def a_link(path):
    os.replace(path, path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def a_pipe(path):
    path.unlink()
    os.mkfifo(path)


def a_device(path):
    path.unlink()
    path.symlink_to("/dev/zero")


def of_another_generation(path):
    shutil.copy(path.with_name("00000001.safetensors"), path)


def a_model_of_someone(path):
    path.write_bytes(save({"weight": np.zeros(3, np.float32)}))


BREAKS = [
    emptied, cut, a_byte_short, lengthened, zeroed, another_number, a_folder, a_former_folder, a_link, a_pipe, a_device,
    of_another_generation, a_model_of_someone,
]  # fmt: skip


@pytest.mark.parametrize("breaks", BREAKS)
def test_a_broken_checkpoint_gives_way_to_the_one_before(tmp_path, capsys, breaks):
    whole = trained(tmp_path / "whole", 3)
    trained(tmp_path / "run")
    places = tmp_path / "run" / "checkpoints"
    breaks(places / "00000002.safetensors")
    (places / "notes").mkdir()  # a stray name is no checkpoint
    (places / "²²²²²²²²").mkdir()
    assert int(esrl.load(tmp_path / "run", agent=agent()).state.generation) == 1
    said = capsys.readouterr().err
    said = "".join(line for line in said.splitlines(keepends=True) if "made in Python" not in line)
    assert said.count("\n") == 1 and "checkpoint 2" in said and "is broken" in said and "1 is used" in said
    with pytest.raises(EsrlError, match=r"those that are whole: \[1\]"):
        esrl.load(tmp_path / "run", agent=agent(), generation=2)
    rest = trained(tmp_path / "run", 3, resume=True)
    np.testing.assert_array_equal(params_of(rest.state), params_of(whole.state))
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 3 and int(esrl.load(tmp_path / "run", agent=agent()).state.generation) == 3


def test_every_bit_of_a_checkpoint_counts(tmp_path):
    """One bit of each byte is flipped in turn: it is noticed, or the state is the same (a space of padding)."""
    result = trained(tmp_path / "run", 1)
    template = agent().init(jax.random.key(0))
    path = tmp_path / "run" / "checkpoints" / "00000001.safetensors"
    data = path.read_bytes()
    noticed = 0
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ (1 << place % 8)]) + data[place + 1 :])
        try:
            found = state_file.read(path, template)
        except state_file.Broken:
            noticed += 1
        else:
            assert all(map(np.array_equal, *map(jax.tree.leaves, (saved_form(found), saved_form(result.state)))))
    assert noticed > 0.98 * len(data)


def saved_form(state):
    return state_file.leaves(state)


def test_a_checkpoint_of_a_later_version_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(state_file, "VERSION", 99)
    trained(tmp_path / "run", 1)
    monkeypatch.undo()
    with pytest.raises(EsrlError, match="is of version 99, this esrl reads up to 2"):
        esrl.load(tmp_path / "run", agent=agent())


def test_a_state_comes_back_as_it_was(tmp_path):
    class State(NamedTuple):
        generation: Any
        parts: Any

    key = jax.random.split(jax.random.key(3), 2)
    numbers = {name: jnp.arange(6).reshape(2, 3).astype(name) for name in ("bfloat16", "float16", "int8", "uint32")}
    state = State(
        jnp.int32(4), {"key": key, "none": None, "empty": jnp.zeros((0, 2)), "yes": jnp.array(True), **numbers}
    )
    path = tmp_path / "state.safetensors"
    state_file.write(path, state, score=1.5)
    found = state_file.read(path, jax.tree.map(jnp.zeros_like, state._replace(parts=state.parts | {"key": key[::-1]})))
    assert jax.tree.structure(found) == jax.tree.structure(state)
    for one, other in zip(jax.tree.leaves(saved_form(found)), jax.tree.leaves(saved_form(state)), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    head = state_file.read_head(path)
    assert (head.generation, head.score, head.arrays["parts/int8"]) == (4, 1.5, ("int8", (2, 3)))


@pytest.mark.parametrize(("keep", "kept"), [("last", [5, 6]), ("best", [3, 5, 6]), ("all", [1, 2, 3, 4, 5, 6])])
def test_what_is_kept(tmp_path, keep, kept):
    folder = checkpoint.Checkpoints(tmp_path, keep)
    state = agent().init(jax.random.key(0))
    for generation, score in enumerate([0.0, None, 7.0, 7.0, float("nan"), -1.0], 1):
        folder._wait_again = 0.0 if generation == 6 else float("inf")  # the disk is waited for once
        folder.save(state._replace(generation=jnp.uint32(generation)), score)
    assert folder.generations() == kept
    assert checkpoint.Checkpoints(tmp_path).best() == (3 if 3 in kept else 6)
    assert int(folder.restore(state, "best").generation) == (3 if 3 in kept else 6)


def test_what_the_disk_has_is_kept(tmp_path):
    """A loss of power takes what the disk was not waited for, so the last one that it was waited for stays."""
    folder = checkpoint.Checkpoints(tmp_path)
    state = agent().init(jax.random.key(0))
    for generation in range(1, 7):
        folder._wait_again = 0.0 if generation == 2 else float("inf")
        folder.save(state._replace(generation=jnp.uint32(generation)))
    assert folder.generations() == [2, 5, 6]


def test_the_best_one_is_loaded_by_name(tmp_path):
    result = esrl.train(agent(), generations=4, out=tmp_path / "run", num_evals=4, eval_episodes=2, keep="all")
    assert tomllib.loads((tmp_path / "run" / "recipe.toml").read_text())["keep"] == "all"
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    best = max(rows, key=lambda row: row["eval_return_mean"])["generation"]
    assert int(esrl.load(tmp_path / "run", agent=agent(), generation="best").state.generation) == best
    with pytest.raises(EsrlError, match="there is no checkpoint of generation first"):
        esrl.load(tmp_path / "run", agent=agent(), generation="first")
    trained(tmp_path / "unscored", 1)
    with pytest.raises(EsrlError, match="has a held-out score; take the last one"):
        esrl.load(tmp_path / "unscored", agent=agent(), generation="best")
    assert result.out == tmp_path / "run"


def test_the_best_of_those_that_were_kept_is_said_to_be_that(tmp_path, capsys):
    esrl.train(agent(), generations=4, out=tmp_path / "run", num_evals=4, eval_episodes=2)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rows[0]["eval_return_mean"] = 1e6  # of generation 1, whose checkpoint is gone
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert int(esrl.load(tmp_path / "run", agent=agent(), generation="best").state.generation) > 1
    assert "the best evaluation was of generation 1, whose checkpoint was not kept" in capsys.readouterr().err


def test_a_run_of_version_1_is_read_and_gone_on_with(tmp_path):
    """`former_run.tar.gz` holds a run of three generations that was saved by Orbax, when that was what esrl did."""
    with tarfile.open(Path(__file__).with_name("former_run.tar.gz")) as archive:
        archive.extractall(tmp_path, filter="data")
    found = esrl.load(tmp_path / "former_run", agent=agent())
    given = {"generations": 5, "num_evals": 1, "eval_episodes": 2, "checkpoint_every": 1}
    whole = esrl.train(agent(), out=tmp_path / "whole", **given)
    assert int(found.state.generation) == 3
    gone_on = esrl.train(agent(), resume=True, out=tmp_path / "former_run", **given)
    for one, other in zip(*map(jax.tree.leaves, (saved_form(gone_on.state), saved_form(whole.state))), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)  # it was made by a program for one device
    assert sorted(path.name for path in (tmp_path / "former_run" / "checkpoints").iterdir()) == [
        "00000004.safetensors",
        "00000005.safetensors",
    ]


def test_no_whole_checkpoint_is_one_sentence(tmp_path):
    trained(tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        emptied(path)
    with pytest.raises(EsrlError, match=r"no checkpoint in .* is whole") as caught:
        esrl.load(tmp_path / "run", agent=agent())
    assert "\n" not in str(caught.value)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "checkpoints").write_text("")
    with pytest.raises(EsrlError, match="checkpoints is no folder"):
        esrl.load(tmp_path / "run", agent=agent())


def test_threads_train_side_by_side(tmp_path):
    found = {}
    shared = agent()

    def work(i):
        try:
            out = tmp_path / str(i)
            esrl.train(shared, generations=4, num_evals=0, out=out, checkpoint_every=1, seed=i)
            found[i] = int(esrl.load(out, agent=agent()).state.generation)
        except BaseException as error:
            found[i] = error

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(3), 4)


def test_a_checkpoint_that_does_not_fit_names_the_first_array(tmp_path, capfd):
    trained(tmp_path / "run", 1)
    with pytest.raises(EsrlError, match=r"Dense_0/bias is float32\[2\] in the checkpoint, float32\[3\]") as caught:
        esrl.load(tmp_path / "run", env=Walk(), policy=esrl.mlp((3,), "tanh"))
    assert "\n" not in str(caught.value)
    with pytest.raises(EsrlError, match=r"opt_state.* in the checkpoint, absent in this agent"):
        esrl.load(tmp_path / "run", agent=agent(optimizer="sgd"))
    out, err = capfd.readouterr()
    # Nothing from Orbax, TensorStore, or an event loop.
    assert out == "" and all("made in Python" in line for line in err.splitlines())


@pytest.mark.parametrize(
    ("options", "given", "sentence"),
    [
        ({"learning_rate": 0.5}, {}, "learning_rate: the run has 0.2, you gave 0.5"),
        (
            {"population": 8, "sigma": 0.3},
            {},
            "population: the run has 4, you gave 8; sigma: the run has 0.05, you gave 0.3",
        ),
        ({}, {"seed": 3}, "seed: the run has 0, you gave 3"),
        ({}, {"hyperparams": {"sigma": 0.3}}, "sigma: the run has 0.05, you gave 0.3"),
        ({"optimizer": "rmsprop"}, {}, "optimizer: the run has 'clipup', you gave 'rmsprop'"),
    ],
)
def test_a_run_goes_on_as_it_began(tmp_path, options, given, sentence):
    trained(tmp_path / "run", 1)
    with pytest.raises(EsrlError, match="goes on as it began") as caught:
        esrl.train(agent(**options), generations=2, out=tmp_path / "run", resume=True, **given)
    assert sentence in str(caught.value)


def test_what_may_change_is_taken_said_and_written(tmp_path, capsys):
    trained(tmp_path / "run", 1)
    esrl.train(agent(), generations=2, num_evals=1, eval_episodes=2, out=tmp_path / "run", resume=True, progress=False)
    said = capsys.readouterr().err
    assert "goes on with generations 2 (was 1), num_evals 1 (was 0), eval_episodes 2 (was 128)" in said
    recipe = tomllib.loads((tmp_path / "run" / "recipe.toml").read_text())
    assert (recipe["generations"], recipe["num_evals"], recipe["eval_episodes"]) == (2, 1, 2)
    always = {"optimizer": "clipup", "episodes_per_member": 2, "averaging": 0.97}
    assert recipe["options"].items() >= {"population": 4, **always}.items() and not list((tmp_path / "run").glob(".*"))


def test_an_old_recipe_goes_on(tmp_path):
    trained(tmp_path / "run", 1)
    path = tmp_path / "run" / "recipe.toml"
    path.write_text(path.read_text().replace("num_evals", "evaluations").replace("eval_episodes", "evaluate_episodes"))
    assert int(trained(tmp_path / "run", resume=True).state.generation) == 2


def test_a_run_from_before_the_defaults_changed_goes_on_by_those_it_had(tmp_path, monkeypatch):
    """Its recipe leaves out what was a default then, and its checkpoints have no memory of the signal."""
    saved = checkpoint.Checkpoints.save
    monkeypatch.setattr(checkpoint.Checkpoints, "save", lambda self, *given: _saved_then(saved, self, *given))
    former = agent(episodes_per_member=1, optimizer="adam", averaging=0.0)
    esrl.train(former, generations=1, out=tmp_path / "run", num_evals=0)
    recipe = tmp_path / "run" / "recipe.toml"
    table = tomllib.loads(recipe.read_text())
    table["options"] = {"population": 4}
    del table["policy"]["skip"]
    recipe.write_text(tomli_w.dumps(table))
    monkeypatch.undo()

    found = esrl.load(tmp_path / "run", env=Walk())
    assert int(found.state.generation) == 1 and found.state.average is None
    assert found.agent.options == former.options and found.agent.policy.spec["skip"] is False
    gone_on = esrl.train(former, generations=2, out=tmp_path / "run", num_evals=0, resume=True)
    assert int(gone_on.state.generation) == 2
    with pytest.raises(EsrlError, match=r"averaging: the run has 0\.0, you gave 0\.97"):
        esrl.train(agent(), generations=2, out=tmp_path / "run", resume=True)


def test_a_run_of_ppo_goes_on_by_the_defaults_that_it_had(tmp_path):
    """Until version 0.2 its recipe left out the learning rate, and before that whatever had its default."""
    sizes = {"num_envs": 8, "num_steps": 4, "num_minibatches": 2}
    former = esrl.ppo(Walk(), esrl.mlp((), "tanh"), learning_rate=3e-4, entropy_coef=0.0, **sizes)
    esrl.train(former, generations=1, out=tmp_path / "run", num_evals=0)
    path = tmp_path / "run" / "recipe.toml"
    table = tomllib.loads(path.read_text())
    del table["options"]["learning_rate"]
    path.write_text(tomli_w.dumps(table))

    found = esrl.load(tmp_path / "run", env=Walk())
    assert found.agent.options == former.options
    assert int(esrl.train(former, generations=2, out=tmp_path / "run", num_evals=0, resume=True).state.generation) == 2
    with pytest.raises(EsrlError, match=r"learning_rate: the run has 0\.0003, you gave 0\.0007"):
        now = esrl.ppo(Walk(), esrl.mlp((), "tanh"), entropy_coef=0.0, **sizes)
        esrl.train(now, generations=3, out=tmp_path / "run", resume=True)
    older = with_former_defaults({"env": "x", "agent": "ppo", "options": {"num_steps": 16}})["options"]
    assert older == {"num_envs": 64, "num_steps": 16, "learning_rate": 3e-4, "entropy_coef": 0.0}


class _StateThen(NamedTuple):
    params: Any
    opt_state: Any
    moments: Any
    key: Any
    generation: Any
    sigma: Any
    learning_rate: Any
    env_steps: Any
    padded_steps: Any


def _saved_then(save, folder, state, score=None):
    save(folder, _StateThen(**{name: getattr(state, name) for name in _StateThen._fields}))
