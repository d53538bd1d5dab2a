"""A recipe says where its run comes from, and what it cannot hold; neither changes what is trained."""

import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest
from gymnasium import spaces

import esrl
from esrl.training import provenance
from esrl.training.recipe import read


class OnDevice:
    """Counts steps."""

    observation_space, action_space, max_episode_steps = spaces.Box(0, 9, (1,)), spaces.Discrete(2), 5

    def reset(self, key):
        return jnp.zeros(()), jnp.zeros(1)

    def step(self, state, action, key):
        return state + 1, (state + 1)[None], jnp.float32(action), jnp.bool_(False)


CARTPOLE = "gymnasium/phys2d/CartPole-v1"


def agent(env=CARTPOLE, network=None, **options):
    return esrl.eggroll(env, network or esrl.mlp((4,)), population=8, **options)


def test_a_run_says_where_it_comes_from(tmp_path):
    esrl.train(agent(), generations=1, num_evals=0, out=tmp_path / "run")
    whole = tomllib.loads((tmp_path / "run/recipe.toml").read_text())
    made = whole["made"]
    assert {"date", "command", "machine", "device", "versions"} <= set(made)
    assert made["versions"]["jax"] == jax.__version__ and made["versions"]["esrl"] == esrl.__version__
    assert made["device"].startswith(f"{len(jax.devices())} x ")
    assert {"rank", "sigma", "optimizer", "learning_rate", "population"} <= set(whole["options"])  # defaults as well
    assert read(tmp_path / "run/recipe.toml", run=True).build().name == "eggroll"


def test_what_was_typed_is_the_command(monkeypatch):
    for argv, said in {
        ("/usr/bin/esrl", "train", "a b"): "esrl train 'a b'",
        ("my script.py", "--x"): "python 'my script.py' --x",
        ("-c",): "python",
    }.items():
        monkeypatch.setattr(sys, "argv", list(argv))
        assert provenance.made("brax/hopper")["command"] == said


def test_a_repository_is_named_by_its_commit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.example"]
    assert "commit" not in provenance.made("brax/hopper") or not (tmp_path / ".git").exists()
    Path("file").write_text("1")
    for words in (["init", "-q"], ["add", "file"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert provenance.made("brax/hopper")["commit"] == head
    Path("file").write_text("2")
    assert provenance.made("brax/hopper")["commit"] == f"{head}-changed"


def test_where_it_comes_from_makes_no_difference(tmp_path):
    """Neither when the run goes on, nor when its recipe is another run's; a resumed run keeps what it had."""
    esrl.train(agent(), generations=1, num_evals=0, out=tmp_path / "run")
    path = tmp_path / "run/recipe.toml"
    path.write_text(path.read_text().replace('command = "', 'command = "once: '))
    esrl.train(agent(), generations=2, num_evals=0, out=tmp_path / "run", resume=True)
    assert tomllib.loads(path.read_text())["made"]["command"].startswith("once: ")
    assert read(path) == read(path, run=True)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: agent(OnDevice()), "cannot hold the environment, made in Python"),
        (lambda: agent(network=esrl.network(lambda p, x: x @ p, params=jnp.ones((4, 2)))), "hold the network,"),
        (lambda: agent(optimizer=optax.sgd(0.1)), "hold optimizer, made in Python; keep the code, and give them again"),
    ],
)
def test_what_a_recipe_cannot_hold_is_said_at_the_start(made, words, tmp_path, capsys):
    esrl.iterate(made(), generations=1, out=tmp_path / "run")
    assert words in capsys.readouterr().err


def test_what_can_be_made_again_is_passed_over(tmp_path, capsys):
    esrl.iterate(agent(), generations=1, out=tmp_path / "run")
    assert capsys.readouterr().err == ""
