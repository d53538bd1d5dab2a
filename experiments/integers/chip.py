"""What does an exported policy take: instructions for a decision, bytes, and does it act as esrl does?

    python -m experiments.integers.chip

Policies for CartPole are trained for 3e5 steps and exported to C: `eggroll_int8` (a perceptron, and a gated unit)
and `eggroll` on floats. Each plays 100 episodes of Gymnasium's CartPole-v1 through ctypes, compiled with `-std=c99
-Wall -Wextra -Werror -fsanitize=undefined,address`, and esrl plays the same episodes; every action is compared.
Instructions are those that callgrind counts for 1000 decisions (`esrl_act`) over those of none, by `cc -O2`; bytes are
text and data of `-Os` for this machine and for an ARM Cortex-M0, if arm-none-eabi-gcc is there.
Written to experiments/integers/results/chip.csv, and printed.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import gymnasium
import jax

import esrl
from experiments import script
from experiments.lab.store import results, write_rows

EPISODES, DECISIONS = 100, 1000
STRICT = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-O1", "-fsanitize=undefined,address", "-fno-sanitize-recover"]
ENV = "gymnax/CartPole-v1"
LIBRARY = """#include "policy.h"
static esrl_carry carry;
void begin(void) { esrl_start(&carry); }
int act(const float *observation) { int32_t action[1]; esrl_act(observation, &carry, action); return (int)action[0]; }
"""
COUNTED = """#include <stdlib.h>
void begin(void);
int act(const float *observation);
int main(int argc, char **argv)
{
    const float observation[4] = {0.01f, -0.2f, 0.03f, 0.4f};
    const int many = argc > 1 ? atoi(argv[1]) : 0;
    int sum = 0;
    begin();
    for (int i = 0; i < many; i++) sum += act(observation);
    return sum < 0;
}
"""
CHILD = """
import ctypes, json, sys
import gymnasium, numpy as np
policy = ctypes.CDLL(sys.argv[1])
env, played = gymnasium.make("CartPole-v1"), []
for seed in range(int(sys.argv[2])):
    policy.begin()
    observation, ended, actions = env.reset(seed=seed)[0], False, []
    while not ended:
        given = np.ascontiguousarray(observation, np.float32)
        actions.append(policy.act(given.ctypes.data_as(ctypes.POINTER(ctypes.c_float))))
        observation, _, terminated, truncated, _ = env.step(actions[-1])
        ended = terminated or truncated
    played.append(actions)
print(json.dumps(played))
"""


def policies() -> dict[str, esrl.Agent]:
    """The agents by what the table calls them."""
    return {
        "int8, 32x32": esrl.eggroll_int8(ENV, population=64),
        "int8, gated unit of 16": esrl.eggroll_int8(ENV, esrl.gru(16, dtype="int8"), population=64),
        "float, 32x32 tanh": esrl.eggroll(ENV, esrl.mlp((32, 32), "tanh", output_scale=0.25, skip=True)),
        "float, GRU of 16": esrl.eggroll(ENV, esrl.gru(16, "tanh")),
    }


def done(command: list[Any], folder: Path, **more: Any) -> str:
    """What a command prints."""
    made = subprocess.run(command, cwd=folder, capture_output=True, text=True, **more)
    if made.returncode:
        raise SystemExit(f"{command[0]} failed: {made.stderr}")
    return made.stdout


def same_actions(whole: esrl.Trained, folder: Path) -> tuple[int, int]:
    """How many of the exported policy's actions are esrl's, of how many."""
    done(["cc", *STRICT, "-shared", "-fPIC", "library.c", "-o", "library.so", "-lm"], folder)
    preload = done(["cc", "-print-file-name=libasan.so"], folder).strip()
    quiet = {"LD_PRELOAD": preload, "ASAN_OPTIONS": "detect_leaks=0"}
    child = [sys.executable, "-c", CHILD, str(folder / "library.so"), str(EPISODES)]
    env, same, total = gymnasium.make("CartPole-v1"), 0, 0
    for seed, actions in enumerate(json.loads(done(child, folder, env=os.environ | quiet))):
        observation = env.reset(seed=seed)[0]
        whole.reset()
        for action in actions:
            same, total = same + (int(whole.predict(observation)) == action), total + 1
            observation = env.step(action)[0]
    return same, total


def instructions(folder: Path) -> int:
    """Of one decision."""
    if not shutil.which("valgrind"):
        return 0
    done(["cc", "-std=c99", "-O2", "counted.c", "library.c", "-o", "counted", "-lm"], folder)
    counts = []
    for many in (0, DECISIONS):
        made = subprocess.run(
            ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", "./counted", str(many)],
            cwd=folder, capture_output=True, text=True, check=True,
        )  # fmt: skip
        counts.append(int(re.search(r"Collected : (\d+)", made.stderr)[1]))  # type: ignore[index]
    return round((counts[1] - counts[0]) / DECISIONS)


def size(folder: Path, compiler: str, *flags: str) -> int | None:
    """Bytes of code and constants; None without the compiler."""
    if not shutil.which(compiler):
        return None
    done([compiler, "-std=c99", "-Os", *flags, "-c", "library.c", "-o", "library.o"], folder)
    text, data = (
        done([compiler.replace("gcc", "size").replace("cc", "size"), "library.o"], folder).splitlines()[1].split()[:2]
    )
    return int(text) + int(data)


def main() -> None:
    rows = []
    for name, agent in policies().items():
        state = agent.init(jax.random.key(0))
        while int(state.env_steps) < 3e5:
            state, _ = agent.step(state)
        whole = esrl.Trained(agent, state)
        with tempfile.TemporaryDirectory() as place:
            folder = esrl.export(whole, to="c", out=Path(place) / "c")
            text = (folder / "policy.h").read_text()
            kind = re.search(r"void esrl_act\(.*?(\w+) action\[1\]", text)
            (folder / "library.c").write_text(LIBRARY.replace("int32_t", kind[1] if kind else "int32_t"))
            (folder / "counted.c").write_text(COUNTED)
            same, total = same_actions(whole, folder)
            told = re.search(r"constants: ([\d,]+) bytes; carry: ([\d,]+) bytes; stack: ([\d,]+)", text)
            constants, carry, stack = (x.replace(",", "") for x in told.groups())  # type: ignore[union-attr]
            rows.append({
                "policy": name, "actions": total, "same": same, "instructions": instructions(folder),
                "bytes_x86": size(folder, "cc"),
                "bytes_m0": size(folder, "arm-none-eabi-gcc", "-mcpu=cortex-m0", "-mthumb"),
                "constants": constants, "carry": carry, "stack": stack,
            })  # fmt: skip
            print(rows[-1], flush=True)
    write_rows(results("integers") / "chip.csv", rows)
    print(script.table(list(rows[0]), [list(row.values()) for row in rows]))


if __name__ == "__main__":
    main()
