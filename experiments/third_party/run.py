"""Do environments of public Gymnasium packages train by their names, and play back after loading?

    pip install minigrid highway-env gymnasium-robotics flappy-bird-gymnasium gym-pusht
    python -m experiments.third_party.run                       # every id of a package that is installed
    python -m experiments.third_party.run minigrid:MiniGrid-Empty-5x5-v0
    python -m experiments.third_party.run --table               # prints again what is there

An id is named as on the command line, `module:Id`. It is trained for two generations of four members by a process
`esrl train`, its folder is loaded, an episode is played by `esrl.load(folder).predict`, and drawn by `esrl.render`.
Written to experiments/third_party/results/packages.csv, from which a run that was broken off goes on.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

import esrl
from experiments import script
from experiments.lab.store import Row, Store, results

TABLE = results("third_party") / "packages.csv"
STEPS = 40  # of an episode
IDS = (
    "minigrid:MiniGrid-Empty-5x5-v0", "minigrid:MiniGrid-DoorKey-5x5-v0", "minigrid:MiniGrid-FourRooms-v0",
    "minigrid:MiniGrid-LavaGapS5-v0", "minigrid:MiniGrid-MemoryS7-v0", "minigrid:MiniGrid-Dynamic-Obstacles-5x5-v0",
    "minigrid:BabyAI-GoToRedBall-v0", "minigrid:MiniGrid-WFC-MazeSimple-v0",
    "highway_env:highway-fast-v0", "highway_env:merge-v0", "highway_env:roundabout-v0", "highway_env:parking-v0",
    "highway_env:intersection-v0", "highway_env:racetrack-v0", "highway_env:two-way-v0",
    "gymnasium_robotics:FetchReach-v4", "gymnasium_robotics:FetchPush-v4", "gymnasium_robotics:PointMaze_UMaze-v3",
    "gymnasium_robotics:AntMaze_UMaze-v5", "gymnasium_robotics:AdroitHandDoor-v1", "gymnasium_robotics:HandReach-v3",
    "gymnasium_robotics:FrankaKitchen-v1",
    "gymnasium_robotics:PointMaze_Open-v3",
    "flappy_bird_gymnasium:FlappyBird-v0",
    "gym_pusht:gym_pusht/PushT-v0",
    "miniworld:MiniWorld-Hallway-v0", "panda_gym:PandaReach-v3", "mo_gymnasium:mo-mountaincar-v0",
    "rware:rware-tiny-2ag-v2",
)  # fmt: skip
CELLS = {"observations": "observations", "actions": "actions", "trains": "trained", "plays, steps": "steps",
         "picture": "picture"}  # fmt: skip


@dataclass
class Options:
    ids: Positional[tuple[str, ...]] = ()  # module:Id; all of installed packages unless given
    table: bool = False  # print what is there


def measure(name: str) -> Row:
    """Trains an id by name, loads it and plays it; what failed is said in its cell."""
    module = name.partition(":")[0]
    package = importlib.metadata.packages_distributions()[module][0]
    row: Row = {"id": name, "package": f"{package} {importlib.metadata.version(package)}"}
    folder = Path(tempfile.mkdtemp())
    flags = [
        "--generations",
        "2",
        "--population",
        "4",
        "--hidden",
        "16",
        "--num-evals",
        "0",
        "--out",
        str(folder / "run"),
    ]
    env = f"gymnasium/{name}?max_episode_steps={STEPS}"
    try:
        done = subprocess.run(
            [sys.executable, "-m", "esrl", "train", env, *flags, "--out", str(folder / "run")],
            capture_output=True,
            text=True,
        )
        said = [line for line in done.stderr.splitlines() if line.startswith("esrl: error")]
        failed = (said or [f"exit code {done.returncode}"])[0].removeprefix("esrl: error: ")
        row["trained"] = "yes" if done.returncode == 0 else failed.replace(f"{sysconfig.get_path('purelib')}/", "")
        if done.returncode == 0:
            row |= played(folder / "run")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return row


def played(folder: Path) -> Row:
    """An episode of a trained agent, by its actions, and as a picture."""
    trained = esrl.load(folder)
    agent, state, _ = trained
    world, steps, ended = agent.env.make_one(), 0, False
    observation, _ = world.reset(seed=0)
    while not ended:
        observation, _, terminated, truncated, _ = world.step(trained.predict(observation))
        steps, ended = steps + 1, terminated or truncated
    world.close()
    row: Row = {
        "observations": kind(agent.env.observation_space), "actions": kind(agent.env.action_space), "steps": steps,
    }  # fmt: skip
    try:
        path, _ = esrl.render(agent, state, folder / "episode", form="gif")
        row["picture"] = f"{path.stat().st_size // 1024} KiB"
    except esrl.EsrlError as error:
        row["picture"] = str(error)
    return row


def kind(space: Any) -> str:
    """A space in a few words."""
    parts = getattr(space, "spaces", None)
    if parts is not None:
        inside = parts.items() if isinstance(parts, dict) or hasattr(parts, "items") else enumerate(parts)
        return f"{type(space).__name__}({', '.join(f'{n} {kind(part)}' for n, part in inside)})"
    size = int(space.n) if hasattr(space, "n") else list(space.shape or ())
    return f"{type(space).__name__} {space.dtype} {size}".strip()


def main() -> None:
    given = script.options(Options, __doc__)
    store = Store(TABLE, key=("id",))
    if not given.table:
        found = [name for name in given.ids or IDS if importlib.util.find_spec(name.partition(":")[0])]
        with store.alone():
            for name in store.missing(found):
                row = measure(name)
                print(name, row, flush=True)
                store.add([row])
    print(table(store.read()))


def table(rows: list[Row]) -> str:
    """The rows as Markdown."""
    head = ["id", "package", *CELLS]
    lines = [" | ".join([f"`{row['id']}`", row["package"], *(str(row.get(c) or "–") for c in CELLS.values())])
             for row in sorted(rows, key=lambda row: row["id"])]  # fmt: skip
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {line} |" for line in lines)])


if __name__ == "__main__":
    main()
