"""The command line: bad input is one line and leaves nothing behind; runs stop, resume and report as they should."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import gymnasium
import jax
import numpy as np
import pytest

import esrl
from esrl.cli.commands import train
from esrl.cli.invocation import invocation
from esrl.cli.main import COMMANDS, main
from esrl.cli.main import command as command_named
from esrl.core import names as former
from esrl.core.options import options_of
from esrl.core.types import EsrlError
from esrl.envs import catalog
from esrl.envs.base import max_episode_steps_of
from esrl.training import recipe as recipes
from esrl.training.progress import Progress

ROOT = Path(__file__).parents[2]
TINY = ["--population", "8", "--hidden", "4", "--num-evals", "2", "--eval-episodes", "4", "--generations", "6"]
WORLDS = '''
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

BOX = spaces.Box(-9.0, 9.0, (2,))


class Line:
    """A walk on a line."""

    observation_space = BOX
    action_space = spaces.Discrete(2)
    max_episode_steps = 12

    def reset(self, key):
        state = jax.random.uniform(key, (2,), minval=-1.0)
        return state, state

    def step(self, state, action, key):
        state = state + jnp.stack([0.1 * (2.0 * action.astype(jnp.float32) - 1.0), jnp.float32(0.0)])
        return state, state, self.reward(state), jnp.abs(state[0]) > 1.0

    def reward(self, state):
        return -jnp.abs(state[0])


class Nan(Line):
    def reward(self, state):
        return jnp.nan * state[0]


class LateNan(Line):
    """NaN after more steps than a check makes."""

    max_episode_steps = 150

    def reset(self, key):
        state = jnp.stack([jnp.float32(0.0), jax.random.uniform(key)])
        return state, state

    def step(self, state, action, key):
        state = state + jnp.array([0.005, 0.0])
        return state, state, jnp.where(state[0] > 0.6, jnp.nan, 0.0), jnp.bool_(False)


class Wide(Line):
    observation_space = spaces.Box(-9.0, 9.0, (3,))


class Outside(Line):
    observation_space = spaces.Box(5.0, 9.0, (2,))


class Host(gymnasium.Env):
    """The same walk, stepped by Python."""

    observation_space = BOX
    action_space = spaces.Discrete(2)
    max_episode_steps = 12
    stepped = 0  # by all instances together

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        self.steps = 0
        return self.state.copy(), {}

    def step(self, action):
        type(self).stepped += 1
        self.steps += 1
        self.state[0] += 0.1 * (2 * int(action) - 1) + self.np_random.normal(0, 0.01)
        self.fail()
        return self.state.copy(), self.reward(), bool(abs(self.state[0]) > 1), False, {}

    def render(self):
        return np.full((33, 21, 3), 200, np.uint8)

    def fail(self):
        pass

    def reward(self):
        return -abs(float(self.state[0]))


class HostNan(Host):
    def reward(self):
        return float("nan")


class Fuse(Host):
    """Raises on the fiftieth step of an episode."""

    max_episode_steps = 200

    def fail(self):
        self.state[0] = 0.0
        if self.steps == 50:
            raise RuntimeError("the fuse blew")


class LateFuse(Host):
    """Raises after some generations of training."""

    def fail(self):
        if type(self).stepped > 700:
            raise RuntimeError("the fuse blew")


class Asks(Host):
    action_space = spaces.Text(3)

    def step(self, action):
        return super().step(len(action))


def wrong_output():
    import flax.linen as nn

    return nn.Dense(7)


def raises():
    raise KeyError("weights")
'''


@pytest.fixture(autouse=True)
def worlds(tmp_path, monkeypatch):
    """A working folder with files in it; every path in these tests is relative to it."""
    monkeypatch.chdir(tmp_path)
    Path("w.py").write_text(WORLDS)
    Path("r.toml").write_text(
        'env = "w.py:Line"\nenv_steps = 1e5\nseed = 3\n[policy]\nhidden = [5, 5]\nactivation = "tanh"\n'
        "[options]\npopulation = 6\nsigma = 0.1\n"
    )


def listing():
    return {str(p): p.read_bytes() if p.is_file() else None for p in Path().rglob("*") if "__pycache__" not in p.parts}


def refused(capsys, *argv):
    """The one line that bad input gives; nothing is written, nothing is touched."""
    before = listing()
    code = main([str(a) for a in argv])
    out, err = capsys.readouterr()
    assert code == 2, (out, err)
    lines = err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("esrl: error: "), err
    assert "Traceback" not in out + err and listing() == before
    return lines[0]


def ran(capsys, *argv):
    """Standard output of a command that succeeds."""
    capsys.readouterr()
    assert main([str(a) for a in argv]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


# ---- bad input ------------------------------------------------------------------------------------------------------

REFUSED = {
    "no environment": (["train"], "say what to train on"),
    "unknown command": (["trian"], "unknown command 'trian'; did you mean train?"),
    "unknown environment": (["train", "brax/hoper"], "brax has no environment 'hoper'; did you mean hopper"),
    "unknown suite": (["train", "fantasy/pong"], "unknown environment 'fantasy/pong'"),
    "unknown class": (["train", "w.py:Lin"], "w.py has no 'Lin'; did you mean Line"),
    "unknown agent": (
        ["train", "w.py:Line", "--agent", "egroll"],
        "unknown agent 'egroll'; did you mean eggroll, eggroll_ac or eggroll_int8?",
    ),
    "unknown network": (
        ["train", "w.py:Line", "--network", "mpl"],
        "unknown network 'mpl'; yours is path/to/file.py:Name; did you mean mlp?",
    ),
    "unknown flag": (
        ["train", "w.py:Line", "--popluation", "3"],
        "unknown flag --popluation; did you mean --population",
    ),
    "unexpected argument": (["train", "w.py:Line", "w.py:Wide"], "unexpected argument: w.py:Wide"),
    "no value": (["train", "w.py:Line", "--sigma"], "missing value for argument '--sigma'"),
    "value for a switch": (["train", "w.py:Line", "--antithetic=1"], "unexpected argument: 1"),
    "no switch": (["train", "w.py:Line", "--no-sigma"], "--no-sigma"),
    "no number": (["train", "w.py:Line", "--population", "many"], "--population is 'many', but must be a whole number"),
    "half a number": (
        ["train", "w.py:Line", "--hidden", "4", "4.5"],
        "--hidden is '4 4.5', but must be a list of whole numbers",
    ),
    "odd population": (
        ["train", "w.py:Line", "--population", "7"],
        "population is 7, but antithetic pairs need an even",
    ),
    "rank 0": (["train", "w.py:Line", "--rank", "0"], "rank is 0"),
    "negative sigma": (["train", "w.py:Line", "--sigma", "-1"], "sigma is -1.0, but must be a number above 0"),
    "sigma nan": (["train", "w.py:Line", "--sigma", "nan"], "sigma is nan, but must be a number above 0"),
    "no steps": (["train", "w.py:Line", "--env-steps", "0"], "--env-steps is 0.0, but must be a number of at least 1"),
    "seed": (["train", "w.py:Line", "--seed", "-1"], "seed is -1, but must be a whole number in 0"),
    "minibatches": (
        ["train", "w.py:Line", "--agent", "ppo", "--num-minibatches", "7"],
        "num_envs x num_steps = 4096 steps cannot be split into num_minibatches=7; use 8",
    ),
    "sequences": (
        ["train", "w.py:Line", "--agent", "ppo", "--network", "gru", "--num-envs", "6"],
        "whole sequences, and num_envs=6 of them cannot be split into num_minibatches=8; use 6",
    ),
    "gamma": (
        ["train", "w.py:Line", "--agent", "ppo", "--gamma", "1.01"],
        "gamma is 1.01, but must be a number in 0",
    ),
    "critic": (["train", "w.py:Line", "--agent", "ppo", "--critic", "both"], "critic is 'both', but must be"),
    "option of another agent": (
        ["train", "w.py:Line", "--agent", "ppo", "--rank", "1"],
        "agent ppo has no option rank",
    ),
    "rank of dense noise": (
        ["train", "w.py:Line", "--agent", "open_es", "--rank", "1"],
        "agent open_es has no option rank",
    ),
    "one lane at a time": (
        ["train", "gymnasium/CartPole-v1?vectorization=vector", "--agent", "ppo", "--env-steps", "100"],
        "need vectorization=sync or async",
    ),
    "optimizer": (["train", "w.py:Line", "--optimizer", "adm"], "unknown optimizer 'adm'; did you mean adam"),
    "shaping": (["train", "w.py:Line", "--shaping", "rank"], "rank"),
    "activation": (["train", "w.py:Line", "--activation", "rleu"], "unknown activation 'rleu'"),
    "gru width": (["train", "w.py:Line", "--network", "gru", "--hidden", "4", "4"], "a gru has one width"),
    "observation shape": (["train", "w.py:Wide"], "float32[2], but its space needs float32[3]"),
    "observation outside": (["train", "w.py:Outside"], "the observation after 0 steps lies outside its space"),
    "reward nan": (["train", "w.py:Nan"], "w.py:Nan: the reward of step 1 is nan"),
    "late nan": (["train", "w.py:LateNan", *TINY], "generation 1 has not one finite return"),
    "host reward nan": (["train", "w.py:HostNan"], "w.py:HostNan: the reward of step 1 is nan"),
    "host raises": (["train", "w.py:Fuse"], "w.py:Fuse: step 50 raised RuntimeError: the fuse blew"),
    "action space": (["train", "w.py:Asks"], "cannot be used; use Box, Discrete"),
    "policy output": (
        ["train", "w.py:Line", "--network", "w.py:wrong_output"],
        "output has shape (7,), but action space Discrete(2) needs shape (2,)",
    ),
    "policy raises": (["train", "w.py:Line", "--network", "w.py:raises"], "w.py:raises() raised KeyError"),
    "policy missing": (["train", "w.py:Line", "--network", "w.py:nothing"], "w.py has no 'nothing'"),
    "policy width": (["train", "w.py:Line", "--network", "w.py:wrong_output", "--hidden", "4"], "hidden cannot be set"),
    "no recipe": (["train", "none.toml"], "there is no recipe none.toml"),
    "out under a file": (["train", "w.py:Line", "--out", "w.py/run"], "output folder w.py/run cannot be written"),
    "out is a file": (["train", "w.py:Line", "--out", "w.py"], "output folder w.py exists and is a file"),
    "out is in use": (["train", "w.py:Line", "--out", "."], "output folder . exists and holds files"),
    "resume nothing": (["train", "--resume", "none"], "none is not the folder of a run: it does not exist"),
    "resume a file": (["train", "--resume", "w.py"], "w.py is not the folder of a run: it is a file"),
    "resume no run": (["train", "--resume", "."], "is not the folder of a run: it has no recipe.toml"),
    "evaluate nothing": (["evaluate"], "say the folder of a run"),
    "evaluate no run": (["evaluate", "none"], "it does not exist"),
    "render no run": (["render", "none"], "it does not exist"),
    "describe nothing": (["describe"], "say what to describe"),
    "envs flag": (["envs", "--jsn"], "unknown flag --jsn; did you mean --json?"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_line(case, capsys):
    argv, words = REFUSED[case]
    out = [] if "--out" in argv or argv[0] != "train" or "--resume" in argv else ["--out", "new/run"]
    assert words in refused(capsys, *argv, *out)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('env = "w.py:Line"\nsgima = 1\n', "r2.toml: unknown key 'sgima'"),
        ('env = "w.py:Line"\n[options]\nsgima = 1\n', "[options] unknown key 'sgima'; did you mean sigma"),
        ('env = "w.py:Line"\n[policy]\nhiden = 1\n', "[policy] unknown key 'hiden'; did you mean hidden"),
        ('env = "w.py:Line"\nagent = "egroll"\n', "unknown agent 'egroll'; did you mean eggroll, eggroll_ac or egg"),
        ('env = "w.py:Line"\n[options]\npopulation = "many"\n', "population is 'many', but must be a whole number"),
        ('env = "w.py:Line"\n[options]\npopulation = 8.0\n', "population is 8.0, but must be a whole number"),
        ('env = "w.py:Line"\n[options]\nantithetic = 1\n', "antithetic is 1, but must be true or false"),
        ('env = "w.py:Line"\n[options]\nmesh = 3\n', "mesh is 3, but must be given in Python"),
        ('env = "w.py:Line"\n[options]\nmesh = "custom"\n', "mesh was a Python object"),
        ('env = "w.py:Line"\n[policy]\nhidden = "wide"\n', "hidden is 'wide', but must be a list of whole numbers"),
        ('env = "w.py:Line"\nenv_steps = true\n', "env_steps is True, but must be a number"),
        ("env = 3\n", "env is 3, but must be a text"),
        ("seed = 3\n", "the key env is missing"),
        ('env = "w.py:Line"\noptions = 3\n', "options is 3, but must be a table"),
        ("env = w.py\n", "r2.toml cannot be read as a recipe"),
    ],
)
def test_bad_recipes_are_one_line(text, words, capsys):
    Path("r2.toml").write_text(text)
    assert words in refused(capsys, "train", "r2.toml", "--out", "new")


def test_missing_extra_names_the_command(capsys, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "brax"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "brax", None)
    line = refused(capsys, "train", "brax/hopper", "--out", "new")
    assert "brax is not installed" in line and "pip install 'esrl[brax]'" in line
    assert "pip install 'esrl[brax]'" in ran(capsys, "envs")
    assert "say which: gymnasium/CartPole-v1" in refused(capsys, "train", "CartPole-v1")


# ---- what the commands print ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    out = ran(capsys, *([command] if command else []), "--help")
    assert out.startswith("usage: esrl ") and "Traceback" not in out
    assert max((len(line) for line in out.splitlines() if line.startswith("│")), default=0) <= 100
    if command in ("train", "describe"):
        assert "--rank N " in out and "[clipup]" in out and "--antithetic, --no-antithetic" in out
    if command == "train":
        assert all(flag in out for flag in ("--resume", "--dry-run", "--seconds", "--early-evals"))


def test_help_shows_what_applies(capsys):
    assert "[128]" in ran(capsys, "train", "w.py:Line", "--network", "gru", "-h")
    out = ran(capsys, "train", "r.toml", "--help")
    assert "[5 5]" in out and re.search(r"--population N [^\[]*\[6\]", out)
    assert "--num-envs" in ran(capsys, "train", "w.py:Line", "--agent", "ppo", "-h")
    assert "unknown agent" in refused(capsys, "train", "w.py:Line", "--agent", "x", "--help")


def test_python_m_esrl_is_the_same_command():
    done = subprocess.run([sys.executable, "-m", "esrl", "--version"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, esrl.__version__, "")
    done = subprocess.run([sys.executable, "-m", "esrl", "frain"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == "esrl: error: unknown command 'frain'; did you mean train?\n"


def test_envs(capsys):
    found = json.loads(ran(capsys, "envs", "--json"))
    assert {"gymnasium/CartPole-v1", "gymnasium/phys2d/CartPole-v1"} <= set(found["gymnasium"]["names"])
    shown = ran(capsys, "envs")
    line = next(line for line in shown.splitlines() if line.startswith("gymnasium"))
    assert f" {len(found['gymnasium']['names'])} environments" in line and gymnasium.__version__ in line
    assert len(shown.splitlines()) < 20 and "esrl envs brax" in shown


def test_envs_by_a_part_of_a_name(capsys):
    few = f"gymnasium {gymnasium.__version__} (1)\n  gymnasium/phys2d/Pendulum-v0\n"
    assert few in ran(capsys, "envs", "phys2D/Pendulum")  # in other suites as well
    assert ran(capsys, "envs", "gymnasium/phys2d/Pend") == few
    found = json.loads(ran(capsys, "envs", "phys2d/Pend", "--json"))
    assert found["gymnasium"]["names"] == ["gymnasium/phys2d/Pendulum-v0"] and "navix" not in found
    assert "contains 'gymnasium/CartPol-v1'; did you mean gymnasium" in refused(capsys, "envs", "gymnasium/CartPol-v1")
    assert "see the suites with: esrl envs" in refused(capsys, "envs", "qqqqqqqq")


def test_envs_of_a_suite_import_that_suite_alone():
    code = (
        "import sys; from esrl.cli.main import main; main(['envs', 'gymnasium/Acro']);"
        "print([name for name in ('brax', 'gymnax', 'navix', 'jumanji', 'mujoco_playground') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[1:] == ["  gymnasium/Acrobot-v1", "[]"], done.stderr


SHORT_POLE = "gymnasium/phys2d/CartPole-v1?max_episode_steps=20"


@pytest.mark.parametrize("name", [SHORT_POLE, "w.py:Line", "gymnasium/Acrobot-v1"])
def test_envs_of_one_environment(name, capsys, lenient):
    out = ran(capsys, "envs", name)
    assert out.startswith(f"{name}\n") and re.search(r"speed +[\d,]+ steps/s of a random policy", out)
    found = json.loads(ran(capsys, "envs", name, "--json"))
    assert found["stepped_by"] == ("python" if "Acrobot" in name else "device") and not found["action_mask"]
    assert found["steps_per_second"] > 0 and found["name"] == name and f"{found['parameters']:,}" in out
    assert found["max_episode_steps"] == (20 if "max" in name else max_episode_steps_of(esrl.make(name)))


def test_describe(capsys):
    out = ran(capsys, "describe", "w.py:Line", "--hidden", "16")
    assert "Dense_0/kernel" in out and "2x16" in out and "rank 1" in out
    assert "5x5" in ran(capsys, "describe", "r.toml")


# ---- recipes and flags ----------------------------------------------------------------------------------------------


def recipe(*argv):
    """The recipe that `esrl train` is asked for."""
    return invocation(train, argv)["recipe"]


def test_flags_override_the_recipe():
    base = recipe("r.toml")
    assert (base.env_steps, base.seed, base.policy["hidden"]) == (1e5, 3, [5, 5])
    assert base.options == {"population": 6, "sigma": 0.1}
    flags = ["--hidden", "7", "--sigma=0.2", "--seed", "4", "--no-antithetic", "--momentum", "none"]
    over = recipe("r.toml", *flags)
    assert over.policy == {"hidden": (7,), "activation": "tanh"}
    assert over.options == {"population": 6, "sigma": 0.2, "antithetic": False, "momentum": None}
    assert (over.env, over.env_steps, over.seed) == ("w.py:Line", 1e5, 4)
    assert recipe("--reward-offset", "-1", "r.toml").options["reward_offset"] == -1.0
    assert recipe("r.toml", "--hidden").policy["hidden"] == ()  # a linear policy


def test_a_given_budget_replaces_the_recipes():
    assert recipe("r.toml", "--generations", "3").env_steps is None
    both = recipe("r.toml", "--generations", "3", "--env-steps", "9")
    assert (both.generations, both.env_steps) == (3, 9)
    assert recipe("w.py:Line").env_steps == 1e6


def test_another_network_starts_from_its_own_defaults():
    assert recipe("r.toml", "--network", "gru").policy == {"network": "gru"}
    assert recipe("r.toml", "--network", "mlp", "--no-bias").policy["hidden"] == [5, 5]


def test_agents_and_budgets_are_the_librarys(capsys):
    asked = recipe("w.py:Line", "--agent", "es", "--seconds", "3", "--early-evals", "2")
    assert (asked.agent, asked.seconds, asked.env_steps, asked.early_evals) == ("es", 3.0, None, 2)
    out = ran(
        capsys, "train", "w.py:Line", "--agent", "random", "--population", "4", "--generations", "1", "--out", "run"
    )
    assert "\nrandom on w.py:Line: 4 episodes a generation" in out and "done: return" in out


def test_a_flag_means_the_same_for_every_agent():
    """The flags of all agents are parsed together, so a name must not be a switch here and a number there."""
    kinds = {}
    for constructor in recipes.AGENTS.values():
        for name, option in options_of(constructor).items():
            assert kinds.setdefault(name, option.type) == option.type, name


def test_flags_that_equal_defaults_still_override():
    assert recipe("r.toml", "--sigma", "0.05").options["sigma"] == 0.05
    assert recipe("r.toml", "--seed", "0").seed == 0


OLD = {
    "evaluations": ("", "5", "num_evals", 5),
    "evaluate_episodes": ("", "7", "eval_episodes", 7),
    "thin": ("options", "0.3", "max_excess_variance", 0.3),
    "distribution": ("options", "rademacher", "noise_distribution", "rademacher"),
    "step_scale": ("options", "plain", "gradient_scale", "unbiased"),
    "chunk": ("options", "4", "chunk_pairs", 4),
    "memory": ("options", "1.5", "memory_gib", 1.5),
    "shaping": ("options", "centred_rank", "shaping", "centered_rank"),
    "activation": ("policy", "pqn", "activation", "layernorm_relu"),
}


@pytest.mark.parametrize("old", OLD)
def test_old_spellings_work_with_a_notice(old, capsys):
    table, text, new, value = OLD[old]
    quoted = text if text[0].isdigit() else f'"{text}"'
    Path("old.toml").write_text(f'env = "w.py:Line"\n{f"[{table}]" if table else ""}\n{old} = {quoted}\n')
    said = [f"{old} is called {new} now"] if old != new else []
    said += [f'{new} = "{text}" is called "{value}" now'] if isinstance(value, str) and value != text else []
    notices = [f"esrl: notice: {line}; the old name still works" for line in said]
    for argv in (["old.toml"], ["w.py:Line", "--" + old.replace("_", "-"), text]):
        former.tell_renamed.cache_clear()
        found = recipe(*argv)
        assert (getattr(found, table)[new] if table else getattr(found, new)) == value
        assert capsys.readouterr().err.splitlines() == notices
        assert recipe(*argv) == found and capsys.readouterr().err == ""  # said once


def test_unknown_old_values_are_refused_as_ever(capsys):
    assert "unknown flag --thn" in refused(capsys, "train", "w.py:Line", "--thn", "1")
    Path("old.toml").write_text('env = "w.py:Line"\nseed = "custom"\n')
    assert "seed is 'custom', but must be a whole number" in refused(capsys, "train", "old.toml")


# ---- runs -----------------------------------------------------------------------------------------------------------


def rows(folder):
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def timeless(folder):
    """Metrics without what a clock says."""
    clocks = ("second", "compile")
    return [{k: v for k, v in row.items() if not any(c in k for c in clocks)} for row in rows(folder)]


def arrays(folder):
    state = esrl.load(folder).state._asdict()
    state["key"] = jax.random.key_data(state["key"])
    return [np.asarray(x) for x in jax.tree.leaves(state)]


def stop_after(monkeypatch, generation):
    show = Progress.show

    def interrupt(self, row, progress):
        show(self, row, progress)
        if row["generation"] == generation:
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "show", interrupt)


def test_train_evaluate_and_render_report(capsys):
    out = ran(capsys, "train", "w.py:Host", *TINY, "--json", "--out", "a/run")
    told = json.loads(out)
    assert {"out", "env_steps", "generations", "seconds", "seconds_compile", "env_steps_per_second"} <= set(told)
    assert (told["out"], told["generations"], told["env_steps"]) == ("a/run", 6, rows("a/run")[-1]["env_steps"])
    assert [row["generation"] for row in rows("a/run")] == [1, 2, 3, 4, 5, 6]
    assert {"recipe.toml", "metrics.jsonl", "curve.png", "checkpoints"} <= {p.name for p in Path("a/run").iterdir()}

    told = json.loads(ran(capsys, "evaluate", "a/run", "--episodes", "5", "--json"))
    assert set(told) == {"return_mean", "return_std", "length_mean", "episodes"} and told["episodes"] == 5
    again = ran(capsys, "evaluate", "a/run", "--episodes", "5")
    assert f"return {told['return_mean']:.2f}" in again and again.count("\n") == 1

    assert ran(capsys, "evaluate", "a/run", "--episodes", "5", "--env", "w.py:Host") == again
    assert "has no 'Hosts'; did you mean Host" in refused(capsys, "evaluate", "a/run", "--env", "w.py:Hosts")

    assert "a/run/episode.gif: return" in ran(capsys, "render", "a/run", "--form", "gif")
    assert Path("a/run/episode.gif").read_bytes().startswith(b"GIF8")
    assert "choose another; to go on with the run in it: --resume a/run" in refused(
        capsys, "train", "w.py:Host", "--out", "a/run"
    )
    assert "leave out --seed" in refused(capsys, "train", "--resume", "a/run", "--seed", "4")
    assert "leave out w.py:Line" in refused(capsys, "train", "w.py:Line", "--resume", "a/run")
    assert "form is 'avi', but must be html, mp4 or gif" in refused(capsys, "render", "a/run", "--form", "avi")
    assert "a page can be made for Brax" in refused(capsys, "render", "a/run", "--form", "html")


def test_a_recipe_runs_with_flags(capsys):
    scores = ["--num-evals", "1", "--early-evals", "2", "--eval-seed", "9"]
    out = ran(capsys, "train", "r.toml", "--generations", "2", "--hidden", "3", *scores, "--out", "run")
    assert out.splitlines()[1].startswith("eggroll on w.py:Line: 12 episodes a generation") and "done: return" in out
    assert ", episodes of at most " in out.splitlines()[1]  # no limit that nobody gave goes unsaid
    kept = recipes.read("run/recipe.toml")
    assert (kept.seed, kept.generations, kept.env_steps) == (3, 2, None)
    assert (kept.num_evals, kept.early_evals, kept.eval_seed) == (1, 2, 9)  # a resumed run is scored as it was
    assert (kept.policy["hidden"], kept.policy["activation"]) == ([3], "tanh")
    always = {"optimizer": "clipup", "episodes_per_member": 2, "averaging": 0.97}  # once had other defaults
    assert kept.options.items() >= {"population": 6, "sigma": 0.1, "rank": 1, **always}.items()


@pytest.mark.parametrize("env", ["w.py:Line", "w.py:Host"])
def test_a_stopped_run_ends_where_it_would_have(env, capsys, monkeypatch):
    ran(capsys, "train", env, *TINY, "--out", "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert main(["train", env, *TINY, "--out", "parts"]) == 130
    assert "stopped after generation 3; everything is saved" in capsys.readouterr().out
    assert len(rows("parts")) == 3 and int(esrl.load("parts").state.generation) == 3
    assert main(["train", "--resume", "parts", "--max-failed", "0.75"]) == 0  # what does not shape the training
    said = capsys.readouterr()
    assert "goes on with max_failed 0.75 (was 0.5)" in said.err
    assert "\ngen 4 " in said.out and "\ngen 1 " not in said.out
    assert [row["generation"] for row in rows("parts")] == [1, 2, 3, 4, 5, 6]
    assert timeless("parts") == timeless("whole")
    for mine, other in zip(arrays("parts"), arrays("whole"), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_an_error_on_the_way_loses_nothing(capsys):
    stops = ["--on-env-error", "stop"]
    assert main(["train", "w.py:LateFuse", *TINY, "--generations", "40", "--out", "run", *stops]) == 2
    line = capsys.readouterr().err
    assert line.startswith("esrl: error: w.py:LateFuse: step ") and line.count("\n") == 1
    done = len(rows("run"))
    assert "raised RuntimeError: the fuse blew (" in line and "w.py, line " in line
    assert line.endswith(f"; generation {done} is saved, go on with: esrl train --resume run\n")
    assert 1 <= done < 40 and int(esrl.load("run").state.generation) == done
    Path("w.py").write_text(WORLDS.replace("> 700", "> 10**9"))
    ran(capsys, "train", "--resume", "run", "--generations", done + 2)
    assert [row["generation"] for row in rows("run")] == list(range(1, done + 3))


def test_an_error_at_once_leaves_a_folder_as_it_was(capsys):
    Path("kept").mkdir()
    refused(capsys, "train", "w.py:LateNan", *TINY, "--out", "kept")
    refused(capsys, "train", "w.py:LateNan", *TINY, "--out", "kept/deep/er")
    assert list(Path("kept").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_saves_and_stops(number):
    """A real signal to a real process."""
    # a shell's background job ignores SIGINT, and so would all that it starts
    heed = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL);"
        " os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    train = ["-m", "esrl", "train", "w.py:Line", *TINY, "--generations", "1000000", "--out", "run"]
    command = [sys.executable, "-c", heed, *train]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_environment()
    ) as process:
        for line in process.stdout:
            if line.startswith("gen "):
                break
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert "stopping after this generation; again to leave now" in out
    assert "everything is saved. Go on with: esrl train --resume run" in out and "Traceback" not in err
    done = [row["generation"] for row in rows("run")]
    assert done == list(range(1, len(done) + 1)) and int(esrl.load("run").state.generation) == len(done)
    assert main(["train", "--resume", "run", "--generations", str(len(done) + 2)]) == 0
    assert [row["generation"] for row in rows("run")] == list(range(1, len(done) + 3))


def _environment():
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.mark.slow
def test_a_brax_page(capsys):
    pytest.importorskip("brax")
    ran(capsys, "train", "brax/inverted_pendulum", *TINY, "--generations", "1", "--out", "run")
    assert "run/episode.html: return" in ran(capsys, "render", "run")
    assert "use html" in refused(capsys, "render", "run", "--form", "mp4")


def test_videos_of_the_examples(capsys):
    pytest.importorskip("imageio_ffmpeg")
    env = f"{ROOT / 'envs' / 'rocket.py'}:Rocket"
    ran(capsys, "train", env, *TINY, "--generations", "1", "--out", "run")
    assert "run/episode.mp4: return" in ran(capsys, "render", "run")
    assert Path("run/episode.mp4").stat().st_size > 1000


def test_suites_have_defaults_that_flags_and_recipes_overrule():
    game = recipe("atari/Breakout-v5", "--agent", "ppo")
    assert game.policy == {"network": "cnn"} and game.options == {}
    grid = recipe("jumanji/Game2048-v1", "--population", "64")
    assert grid.options == {"deterministic": False, "population": 64} and grid.policy == {}
    assert recipe("jumanji/Game2048-v1", "--deterministic").options == {"deterministic": True}
    sparse = recipe("navix/Navix-Empty-5x5-v0", "--population", "64", "--hidden", "8")
    assert (sparse.options["population"], sparse.options["optimizer"]) == (64, "adam")
    assert (sparse.policy["hidden"], sparse.policy["skip"]) == ((8,), False)
    assert recipe("craftax/Craftax-Pixels-v1", "--network", "mlp").policy == {"network": "mlp"}
    assert recipe("navix/Navix-Empty-5x5-v0", "--network", "gru").policy == {"network": "gru"}
    robot = recipe("brax/hopper", "--activation", "silu")
    assert robot.policy == {"hidden": [32, 32], "activation": "silu"} and robot.options["learning_rate"] == 0.087
    assert "learning_rate" not in recipe("brax/hopper", "--optimizer", "adam").options  # the rate was ClipUp's
    assert recipe("brax/hopper", "--optimizer", "clipup").options["learning_rate"] == 0.087
    rate = recipe("navix/Navix-Empty-5x5-v0", "--agent", "eggroll_ac", "--optimizer", "adam").options["learning_rate"]
    assert rate == 1e-3  # its own optimizer, told again
    assert recipe("brax/hopper", "--agent", "ppo").options == {}
    assert recipe("gymnasium/Hopper-v5").options == robot.options
    assert recipe("brax/ant", "--horizon", "none").options["horizon"] is None
    assert recipe("gymnasium/CartPole-v1").options == recipe("path/to/navix/file.py:Class").options == {}


# ---- first seconds --------------------------------------------------------------------------------------------------

WITHOUT_JAX = "import sys; from esrl.cli.main import main; status = main({!r}); print('jax' in sys.modules, status)"


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["envs"], 0),
        (["envs", "brax"], 0),
        (["--version"], 0),
        (["--help"], 0),
        (["train", "brax/hoper"], 2),
        (["train", "CartPole-v1"], 2),
        (["frain"], 2),
        (["plot", "nowhere"], 2),
    ],
)
def test_what_needs_no_jax_imports_none(argv, status):
    done = subprocess.run([sys.executable, "-c", WITHOUT_JAX.format(argv)], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == f"False {status}", done.stderr


def test_commands_say_what_their_functions_say():
    for name, known in COMMANDS.items():
        assert (command_named(name).__doc__ or "").partition("\n")[0] == known.does


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (("--total-timesteps", "1M"), "env_steps", 1e6),
        (("--env-steps", "2.5k"), "env_steps", 2500.0),
        (("--generations", "1e3"), "generations", 1000),
        (("--popsize", "10k"), "population", 10_000),
        (("--lr", "0.1"), "learning_rate", 0.1),
        (("--hidden", "32,32"), "hidden", (32, 32)),
        (("--hidden-sizes", "8", "4"), "hidden", (8, 4)),
        (("--algo", "PPO"), "agent", "ppo"),
        (("--agent", "OpenES"), "agent", "open_es"),
        (("--agent", "EGGROLL-AC"), "agent", "eggroll_ac"),
    ],
)
def test_spoken_flags_and_numbers(argv, name, value):
    found = recipe("w.py:Line", *argv)
    own = found.options.get(name, found.policy.get(name, getattr(found, name, None)))
    assert own == value and type(own) is type(value)


def test_numbers_that_are_none_are_refused(capsys):
    for text in ("1.5", "M", "1e400", "k1", "nan"):
        assert "must be a whole number" in refused(capsys, "train", "w.py:Line", "--generations", text)
    with pytest.raises(EsrlError, match="no option 'lr'; it is called learning_rate here"):
        esrl.eggroll("gymnasium/phys2d/CartPole-v1", lr=0.1)


def test_an_environment_that_one_suite_has_needs_no_suite(monkeypatch, capsys):
    monkeypatch.setattr("esrl.envs.catalog._everything", lambda: ["one/Alone-v0", "one/Both-v0", "two/Both-v0"])
    assert catalog.spoken("Alone-v0?a=1") == "one/Alone-v0?a=1" and catalog.spoken("alone-v0") == "one/Alone-v0"
    assert catalog.spoken("Neither") == "Neither" and catalog.spoken("x.py:Alone-v0") == "x.py:Alone-v0"
    with pytest.raises(EsrlError, match="say which: one/Both-v0, two/Both-v0"):
        catalog.spoken("Both-v0")


def test_a_folder_is_refused_before_the_environment_is_made(capsys):
    Path("made.py").write_text("raise SystemExit('the file was run')")
    Path("there").mkdir()
    Path("there/file").write_text("")
    assert "holds files" in refused(capsys, "train", "made.py:World", "--out", "there")


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("words", "found"),
    [(["trai"], "train"), (["train", "brax/hopp"], "brax/hopper"), (["train", "x", "--agent", "pp"], "ppo"),
     (["train", "x", "--popul"], "--population"), (["evaluate", "x", "--episo"], "--episodes")],
)  # fmt: skip
def test_bash_completes(words, found, capsys):
    script = ran(capsys, "completion", "bash")
    line = " ".join(["esrl", *words])
    code = f"{script}\nCOMP_WORDS=({line}); COMP_CWORD={len(words)}; _esrl; echo ${{COMPREPLY[@]}}"
    assert subprocess.run(["bash"], input=code, capture_output=True, text=True).stdout.split()[0] == found


def test_names_that_are_shipped_are_those_of_the_packages():
    """Where a package has another version, its own names are listed; `python -m esrl.envs.catalog` writes them anew."""
    for suite, shipped in catalog._shipped().items():
        if catalog.installed(suite) and shipped["version"] == catalog._key(suite):
            assert set(shipped["names"]) <= set(catalog.names_of(suite)), suite
