"""A stranger's folder: no link is followed, nothing but plain files is read, no code of it is run unasked."""

import os
import shutil
import sys
from pathlib import Path

import pytest

import esrl
from esrl import EsrlError
from esrl.cli.main import main
from esrl.training import recipe as recipes
from esrl.training.files import open_plain, read_bytes, replace_bytes, replacing
from esrl.training.trust import check_code, code_in, remember

CODE = """
import pathlib
import gymnasium, numpy as np

pathlib.Path({mark!r}).touch()


class Here(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(1, np.float32), {{}}

    def step(self, action):
        self.time += 1
        return np.zeros(1, np.float32), 1.0, self.time == 3, False, {{}}

    def render(self):
        return np.zeros((8, 8, 3), np.uint8)
"""


def agent():
    return esrl.eggroll("gymnasium/phys2d/CartPole-v1", esrl.mlp((2,)), population=4)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A run of two generations, to be copied."""
    out = tmp_path_factory.mktemp("kept") / "run"
    esrl.train(agent(), generations=2, num_evals=0, checkpoint_every=1, out=out)
    return out


@pytest.fixture
def run(kept, tmp_path):
    return Path(shutil.copytree(kept, tmp_path / "run"))


def go_on(run):
    return esrl.train(agent(), generations=3, num_evals=0, checkpoint_every=1, out=run, resume=True, progress=False)


def precious(tmp_path):
    path = tmp_path / "precious"
    path.write_text("mine")
    return path


@pytest.mark.parametrize("name", ["metrics.jsonl", "recipe.toml", "checkpoints/.lock"])
def test_a_link_in_the_place_of_a_file_is_refused(run, tmp_path, name):
    victim = precious(tmp_path)
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(victim)
    with pytest.raises(EsrlError, match="is a link, and none is followed in a run's folder"):
        go_on(run)
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("name", ["curve.png", "recipe.part.toml", "curve.part.png"])
def test_a_link_in_the_place_of_what_is_written_whole_is_replaced(run, tmp_path, name):
    victim = precious(tmp_path)
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(victim)
    go_on(run)
    assert victim.read_text() == "mine"


def test_a_checkpoint_folder_elsewhere_is_refused(run, tmp_path):
    """Old checkpoints are deleted: in that other folder they would be."""
    os.replace(run / "checkpoints", tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "00000001").mkdir()
    (run / "checkpoints").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    for call in (go_on, esrl.load):
        with pytest.raises(EsrlError, match="checkpoints is a link"):
            call(run)
    assert (tmp_path / "elsewhere" / "00000001").is_dir()


def test_another_name_of_a_file_is_not_written_through(run, tmp_path):
    os.link(run / "metrics.jsonl", tmp_path / "copy")
    with pytest.raises(EsrlError, match="is a hard link"):
        go_on(run)


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints/.lock"])
def test_a_pipe_is_not_waited_for(run, name):
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    with pytest.raises(EsrlError, match="is no plain file"):
        go_on(run)


@pytest.mark.parametrize("form", ["gif", "mp4"])
def test_an_episode_replaces_a_link(run, tmp_path, form):
    victim = precious(tmp_path)
    (run / f"episode.{form}").symlink_to(victim)
    found = esrl.load(run)
    path, _ = esrl.render(found.agent, found.state, run / "episode", form=form)
    assert victim.read_text() == "mine" and not path.is_symlink() and path.stat().st_size > 100


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("env = " + "[" * 5000 + "]" * 5000, "it is nested too deeply"),
        ('env = "' + "x" * (1 << 20) + '"', "is too long: over 65536 bytes"),
        ("a." * 300 + "b = 1", "a line has over 200 dots"),
        ("seed = " + "9" * 5000, "cannot be read as a recipe: Exceeds the limit"),
        ("env = 1", "env is 1, but must be a text"),
    ],
)
def test_a_recipe_has_bounds(tmp_path, text, sentence):
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(EsrlError, match=sentence):
        recipes.read(tmp_path / "recipe.toml")


def test_a_device_is_no_recipe():
    with pytest.raises(EsrlError, match="is no plain file"):
        recipes.read("/dev/zero")


@pytest.mark.parametrize("hidden", [(10**9,), (8,) * 5000])
def test_a_network_has_bounds(hidden):
    with pytest.raises(EsrlError, match="hidden"):
        esrl.mlp(hidden)


def test_a_long_line_is_no_row(run):
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b"x" * (3 << 20))
    with pytest.raises(EsrlError, match="a line of over 1048576 bytes, which esrl never writes"):
        go_on(run)


@pytest.mark.parametrize("name", ["gymnasium/cart-pole.evil:X-v0", "cart-pole.evil:X"])
def test_a_folder_is_no_package(tmp_path, monkeypatch, name):
    (tmp_path / "cart-pole").mkdir()
    (tmp_path / "cart-pole" / "evil.py").write_text("raise SystemExit('it was run')")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EsrlError, match=r"there is no module 'cart-pole\.evil'|unknown environment"):
        esrl.make(name)


def test_a_run_without_its_checkpoints_keeps_its_rows(run, capsys):
    shutil.rmtree(run / "checkpoints")
    assert int(go_on(run).state.generation) == 3
    assert "begins anew; the rows of 2 generations are in metrics.before.jsonl" in capsys.readouterr().err
    assert (run / "metrics.before.jsonl").read_text().count("\n") == 2


def test_a_finished_run_without_its_metrics_says_where_it_is(run):
    (run / "metrics.jsonl").unlink()
    result = esrl.train(agent(), generations=2, num_evals=0, checkpoint_every=1, out=run, resume=True, progress=True)
    assert result.metrics["generation"] == 2 and int(result.state.generation) == 2


def test_a_checkpoint_is_compared_before_a_state_is_made(run, monkeypatch):
    """The recipe of a stranger may ask for a network of any size."""
    recipe = run / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("hidden = [\n    2,\n]", "hidden = [65000, 65000, 65000]"))
    with pytest.raises(EsrlError, match="the checkpoint does not fit this agent"):
        esrl.load(run)


def test_a_checkpoint_is_compared_before_a_run_goes_on(run):
    """Also where the newest one is broken, and an older one would be read."""
    (run / "checkpoints" / "00000002.safetensors").write_bytes(b"")
    wide = esrl.eggroll("gymnasium/phys2d/CartPole-v1", esrl.mlp((65_000, 65_000)), population=4)
    recipe = run / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("hidden = [\n    2,\n]", "hidden = [65000, 65000]"))
    with pytest.raises(EsrlError, match="the checkpoint does not fit this agent"):
        esrl.train(wide, generations=3, num_evals=0, checkpoint_every=1, out=run, resume=True)


def test_lost_rows_are_said(run, capsys):
    (run / "metrics.jsonl").unlink()
    assert int(go_on(run).state.generation) == 3
    assert "has no rows of its last 2 generations" in capsys.readouterr().err


# ---- files ----------------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    replace_bytes(path, b"old")
    with pytest.raises(RuntimeError), replacing(path) as part:
        part.write_bytes(b"ne")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    replace_bytes(path, b"new", sync=True)
    assert read_bytes(path, 3) == b"new" and [p.name for p in tmp_path.iterdir()] == ["file"]
    with pytest.raises(EsrlError, match="is too long: over 2 bytes"):
        read_bytes(path, 2)
    with pytest.raises(EsrlError, match="is no plain file"):
        open_plain(tmp_path)


# ---- code -----------------------------------------------------------------------------------------------------------


def test_which_texts_name_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert code_in({"env": "brax/hopper?backend=mjx", "policy": {"network": "mlp"}}) == []
    found = code_in({"env": "a.py:Env?size=3", "policy": {"network": "../net.py:Net"}})
    assert found == [f"{tmp_path / 'a.py'}:Env", f"{tmp_path.parent / 'net.py'}:Net"]
    assert code_in({"env": "gymnasium/no_such:MiniGrid-v0"}) == ["no_such:MiniGrid-v0"]
    assert code_in({"env": "gymnasium/cart-pole.evil:X-v0"}) == ["cart-pole.evil:X-v0"]
    assert code_in({"env": "os:abort"}) == [f"os:abort ({os.__file__})"]
    (tmp_path / "here.py").touch()
    assert code_in({"env": "here:Env"}) == [f"here:Env ({tmp_path / 'here.py'})"]  # another folder's is another


def test_code_that_was_named_here_is_run(tmp_path, capsys):
    recipe = {"env": f"{tmp_path}/a.py:Env"}
    with pytest.raises(EsrlError, match=r"names code, which would be run: .*a.py:Env; read it, and if you trust it"):
        check_code(recipe, "runs/x", trust=False)
    check_code(recipe, "runs/x", trust=True)
    assert "runs/x names code, which is run" in capsys.readouterr().err
    check_code(recipe, "runs/x", trust=False)  # it is remembered
    remember({"env": "a_module:Env"})
    check_code({"env": "a_module:Env?size=3"}, "runs/x", trust=False)
    assert capsys.readouterr().err == ""


@pytest.fixture
def strangers(tmp_path, monkeypatch, capsys):
    """A folder whose code nobody here has named: what was remembered is forgotten, and the mark of its import gone."""
    mark, code = tmp_path / "mark", tmp_path / "here.py"
    code.write_text(CODE.format(mark=str(mark)))
    out = tmp_path / "run"
    given = ["--population", "4", "--hidden", "2", "--generations", "1", "--num-evals", "0", "--out", str(out)]
    assert main(["train", f"{code}:Here", *given]) == 0
    for name in [name for name in sys.modules if name.startswith("esrl_file_here")]:
        monkeypatch.delitem(sys.modules, name)
    mark.unlink()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another"))
    capsys.readouterr()
    return out, mark


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "--episodes", "2"],
        ["render", "--form", "gif"],
        ["train", "--generations", "2", "--resume"],
        ["describe"],
    ],
    ids=lambda command: command[0],
)
def test_a_strangers_code_is_run_by_trust_alone(strangers, capsys, command):
    out, mark = strangers
    at = [command[0], str(out), *command[1:]] if "--resume" not in command else [*command, str(out)]
    assert main(at) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "here.py:Here; read it, and if you trust it give --trust" in said
    assert not mark.exists()
    assert main([*at, "--trust"]) == 0 and mark.exists()
    assert main(at) == 0  # it is remembered


def test_what_one_trained_is_opened_without_a_word(tmp_path, capsys):
    code = tmp_path / "here.py"
    code.write_text(CODE.format(mark=str(tmp_path / "mark")))
    given = ["--population", "4", "--hidden", "2", "--generations", "1", "--num-evals", "0"]
    assert main(["train", f"{code}:Here", *given, "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--episodes", "2"]) == 0
    assert capsys.readouterr().err == ""
    esrl.load(tmp_path / "run")
