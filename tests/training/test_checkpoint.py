"""Run folders: any name keeps a run, a broken checkpoint gives way to the one before, a misfit is said by name."""

import functools
import shutil
import threading
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import tomli_w
from probes import Walk

import esrl
from esrl import EsrlError
from esrl.training import checkpoint

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
    shutil.rmtree(path)
    path.mkdir()


def cut(path):
    for file in path.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def zeroed(path):
    for file in path.rglob("*"):
        if file.is_file():
            file.write_bytes(bytes(file.stat().st_size))


def without_data(path):
    for file in path.rglob("d/*"):
        file.unlink()


def a_file(path):
    shutil.rmtree(path)
    path.write_text("")


@pytest.mark.parametrize("breaks", [emptied, cut, zeroed, without_data, a_file])
def test_a_broken_checkpoint_gives_way_to_the_one_before(tmp_path, capsys, breaks):
    whole = trained(tmp_path / "whole", 3)
    trained(tmp_path / "run")
    places = tmp_path / "run" / "checkpoints"
    breaks(places / "00000002")
    (places / "notes").mkdir()  # a stray name is no checkpoint
    assert int(esrl.load(tmp_path / "run", agent=agent()).state.generation) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "checkpoint 2" in said and "is broken" in said and "1 is used" in said
    with pytest.raises(EsrlError, match=r"those that are whole: \[1\]"):
        esrl.load(tmp_path / "run", agent=agent(), generation=2)
    rest = trained(tmp_path / "run", 3, resume=True)
    np.testing.assert_array_equal(params_of(rest.state), params_of(whole.state))
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 3 and int(esrl.load(tmp_path / "run", agent=agent()).state.generation) == 3


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
    assert capfd.readouterr() == ("", "")  # nothing from Orbax, TensorStore, or an event loop


@pytest.mark.parametrize(
    ("options", "given", "sentence"),
    [
        ({"learning_rate": 0.5}, {}, "learning_rate: the run has its default, you gave 0.5"),
        (
            {"population": 8, "sigma": 0.3},
            {},
            "population: the run has 4, you gave 8; sigma: the run has its default, you gave 0.3",
        ),
        ({}, {"seed": 3}, "seed: the run has 0, you gave 3"),
        ({}, {"hyperparams": {"sigma": 0.3}}, "sigma: the run has its default, you gave 0.3"),
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
    assert (
        recipe["options"] == {"population": 4, **always}
        and Path(tmp_path / "run" / "recipe.part.toml").exists() is False
    )


def test_an_old_recipe_goes_on(tmp_path):
    trained(tmp_path / "run", 1)
    path = tmp_path / "run" / "recipe.toml"
    path.write_text(path.read_text().replace("num_evals", "evaluations").replace("eval_episodes", "evaluate_episodes"))
    assert int(trained(tmp_path / "run", resume=True).state.generation) == 2


def test_a_run_from_before_the_defaults_changed_goes_on_by_those_it_had(tmp_path, monkeypatch):
    """Its recipe leaves out what was a default then, and its checkpoints have no memory of the signal."""
    monkeypatch.setattr(checkpoint, "save", functools.partial(_saved_then, checkpoint.save))
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


def _saved_then(save, folder, state):
    save(folder, _StateThen(**{name: getattr(state, name) for name in _StateThen._fields}))
