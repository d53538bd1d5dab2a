"""Without the packages of its extras, esrl trains; what needs one of them says in a sentence which."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXTRAS = ("rich", "tyro", "tensorboardX", "matplotlib", "imageio")
# flax imports rich for itself, so it is taken away after that.
BLOCKED = f"""
import sys
import flax.linen, flax.nnx
sys.path.insert(0, {str(ROOT)!r})
for name in [*{EXTRAS}, *sys.modules]:
    if name.partition(".")[0] in {EXTRAS}:
        sys.modules[name] = None
"""
TRAINS = """
import esrl
agent = esrl.eggroll("gymnasium/phys2d/CartPole-v1", esrl.mlp((4,)), population=8)
result = esrl.train(agent, generations=2, num_evals=1, eval_episodes=4, out="run", progress=True)
print("left", *sorted(path.name for path in result.out.iterdir()))
print("acts", esrl.load("run").predict([0.0, 0.0, 0.0, 0.0]) in (0, 1))
try:
    esrl.describe(agent)
except esrl.EsrlError as error:
    print(error)
"""
COMMAND = "from esrl.cli.main import main; sys.exit(main({!r}))"
INSTALL = "pip install 'esrl[cli]'"


def python(code, folder):
    return subprocess.run(
        [sys.executable, "-c", BLOCKED + code],
        cwd=folder,
        capture_output=True,
        text=True,
    )


def test_training_needs_no_extra(tmp_path):
    done = python(TRAINS, tmp_path)
    assert done.returncode == 0, done.stderr
    # No curve, and no events.
    assert "left checkpoints metrics.jsonl recipe.toml spaces.json status.json\nacts True\n" in done.stdout
    assert "\nlook: esrl render run" in done.stdout and INSTALL in done.stdout.splitlines()[-1]


def test_the_command_line_says_what_it_needs(tmp_path):
    for argv in (["envs"], ["train", "gymnasium/phys2d/CartPole-v1"]):
        done = python(COMMAND.format(argv), tmp_path)
        assert done.returncode == 2 and done.stdout == "", done.stderr
        assert done.stderr.startswith("esrl: error: the command line needs ") and INSTALL in done.stderr
        assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_library_leaves_the_command_line_alone(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import esrl, sys; print([m for m in sys.modules if m.startswith(('tyro', 'esrl.cli'))])",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "[]", done.stderr
