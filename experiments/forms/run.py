"""In which forms can an environment be given, and what can be done with the run afterwards?

    python -m experiments.forms.run

Each form is trained from Python, and from the command line where it is a text; then a new process loads the run, goes
on with it, evaluates and renders it, from its folder alone. A cell is "yes", or the sentence that esrl says instead.
Written to experiments/forms/results/forms.csv, and printed as a table.
"""

import contextlib
import csv
import importlib
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium

from experiments import script
from experiments.lab.store import ROOT, results, write_rows

STEPS = ("Python train", "command line train", "load", "resume", "evaluate", "render")
WORLDS = """
import gymnasium
import numpy as np
from gymnasium import spaces


class Own(gymnasium.Env):
    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Discrete(2)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), float(action), False, False, {}

    def render(self):
        return np.zeros((16, 16, 3), np.uint8)


def factory(render_mode=None):
    return Own(render_mode)


gymnasium.register("FormOwn-v0", "form_worlds:Own", max_episode_steps=5)
"""
# label: the text, or what makes the object, from the module of WORLDS
FORMS: dict[str, str | Callable[[Any], Any]] = {
    "id": "gymnasium/CartPole-v1",
    "module:id": "form_worlds:FormOwn-v0",
    "module:class": "form_worlds:Own",
    "module:function": "form_worlds:factory",
    "file": "form_worlds.py:Own",
    "file with a neighbor": "form_split.py:Own",
    "class": lambda worlds: worlds.Own,
    "function": lambda worlds: worlds.factory,
    "class of the script": lambda worlds: type("Scripted", (worlds.Own,), {"__module__": "__main__"}),
    "lambda": lambda worlds: lambda: worlds.Own(),
    "partial": lambda worlds: partial(worlds.factory),
    "spec": lambda _: gymnasium.spec("CartPole-v1"),
    "object of gymnasium.make": lambda _: gymnasium.make("CartPole-v1"),
    "the same, wrapped": lambda _: gymnasium.wrappers.FlattenObservation(gymnasium.make("CartPole-v1")),
    "object of a gymnasium.Env class": lambda worlds: worlds.Own(),
    "gymnasium.make_vec": lambda _: gymnasium.make_vec("CartPole-v1", 2),
    "None": lambda _: None,
    "object of gymnax": lambda _: importlib.import_module("gymnax").make("CartPole-v1")[0],
    "object of navix": lambda _: importlib.import_module("navix").make("Navix-Empty-5x5-v0"),
}


def said(call: Callable[[], Any]) -> str:
    """ "yes", or the sentence; an error of any other kind by its type, which is a fault."""
    from esrl import EsrlError

    out, errors = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            status = call()
    except EsrlError as error:
        return " ".join(str(error).split())
    except Exception as error:
        return f"FAULT {type(error).__name__}: {error}"
    last = (errors.getvalue().strip().splitlines() or [""])[-1]
    return last.removeprefix("esrl: error: ") if isinstance(status, int) and status == 2 else "yes"


def train() -> dict[str, dict[str, str]]:
    """Trains every form, from Python and from the command line."""
    import form_worlds

    import esrl
    from esrl.cli.main import main

    def python(form: str, out: str) -> None:
        given = FORMS[form]
        options = {} if "gymnax" in form else {"max_episode_steps": 20}
        env = esrl.make(given(form_worlds) if callable(given) else given, **options)
        agent = esrl.eggroll(env, esrl.mlp(()), population=4)
        esrl.train(agent, generations=1, num_evals=0, out=out)

    found: dict[str, dict[str, str]] = {}
    for number, (form, given) in enumerate(FORMS.items()):
        flags = ["--generations", "1", "--population", "4", "--num-evals", "0", "--out", f"cli{number}"]
        by_text = said(partial(main, ["train", given, *flags])) if isinstance(given, str) else "–"
        found[form] = {"Python train": said(partial(python, form, f"run{number}")), "command line train": by_text}
    return found


def again() -> dict[str, dict[str, str]]:
    """Does with every run what can be done with its folder alone."""
    import esrl
    from esrl.cli.main import main

    found: dict[str, dict[str, str]] = {}
    for number, form in enumerate(FORMS):
        out = f"run{number}"
        calls: dict[str, Callable[[], Any]] = {
            "load": partial(esrl.load, out),
            "resume": partial(main, ["train", "--resume", out, "--generations", "2"]),
            "evaluate": partial(main, ["evaluate", out, "--episodes", "2"]),
            "render": partial(main, ["render", out, "--form", "gif"]),
        }
        found[form] = {step: said(call) if Path(out).exists() else "–" for step, call in calls.items()}
    return found


def run() -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "form_worlds.py").write_text(WORLDS)
        (Path(folder) / "form_gain.py").write_text("GAIN = 1\n")
        (Path(folder) / "form_split.py").write_text("import form_gain\n" + WORLDS.rpartition("\n\n\n")[0])
        rows: dict[str, dict[str, str]] = {form: {"form": form} for form in FORMS}
        paths = os.pathsep.join([str(ROOT), folder])
        for part in ("train", "again"):
            code = f"import json; from experiments.forms import run; print('\\n' + json.dumps(run.{part}()))"
            done = subprocess.run(
                [sys.executable, "-c", code],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": paths},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            for form, cells in json.loads(done.stdout.strip().splitlines()[-1]).items():
                rows[form] |= cells
    path = results("forms") / "forms.csv"
    write_rows(path, list(rows.values()))
    show(path)


def show(path: Path) -> None:
    """Prints the table, sentences by number below it."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    sentences: list[str] = []

    def cell(text: str) -> str:
        if text in ("yes", "–"):
            return text
        if text not in sentences:
            sentences.append(text)
        return f"({sentences.index(text) + 1})"

    print(script.table(["form", *STEPS], ([row["form"], *(cell(row[step]) for step in STEPS)] for row in rows)))
    print()
    for number, sentence in enumerate(sentences, 1):
        print(f"{number}. {sentence}")


if __name__ == "__main__":
    run()
