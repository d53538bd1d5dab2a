"""The recipes agents/paper/<environment>/<agent>.toml, from the paper's configurations in experiments/paper/rl.toml.

    python -m experiments.paper.recipes            # writes all of them
    python -m experiments.paper.recipes --check    # says which files differ from what would be written

An option of the paper and its name in esrl: deterministic_policy is deterministic; rank_transform = true is the shaping
centered_rank, and false is z_score; every other name is the same. Evolution strategies take the paper's step scale and
normalize no observations; PPO normalizes observations, not rewards.
"""

import sys
import textwrap
import tomllib
from dataclasses import dataclass
from typing import Any

from experiments import script
from experiments.lab.recipes import PAPER as DATA
from experiments.lab.recipes import paper_options as options
from experiments.lab.store import ROOT

FOLDER = ROOT / "agents" / "paper"
AGENTS = ("eggroll", "open_es", "ppo")
TABLES = ("protocol", "search_space")  # of the data file; every other one is an environment
ACTIVATION = {"pqn": "layernorm_relu"}  # the paper's name of it
WIDTH = 118

FIRST = (
    "# The configuration of arXiv 2511.16652 (final tables of its appendix: best of 20 random trials, one seed each),"
    " not tuned by esrl."
)
MEANS = {
    "es": "The paper's population is N, the members of a generation; here they are N/2 antithetic pairs. Its learning"
    " rates assume its own step scale. It names no observation normalisation for evolution strategies: none is used.",
    "z_score": "The paper does not say what becomes of fitness that is not ranked: it is taken as a z-score.",
    "ppo": "Observations are normalised and rewards are not, as in the paper; what it does not give (clipped values,"
    " normalised advantages, a separate critic) is esrl's default.",
    "brax": "The paper names no physics backend: this is esrl's default, spring; Brax's own is generalized"
    " (`?backend=generalized`).",
}


def configurations(data: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The tables of every environment: an option table for each agent, and `result`."""
    return {name: table for name, table in data.items() if name not in TABLES}


def header(env: str, agent: str, table: dict[str, Any]) -> str:
    """The comment that a recipe begins with: where it is from, what the paper reached, how its options were read."""
    found = table.get("result", {})
    if agent == "ppo":
        reached = "Its return after 5e8 steps is the 1.0 that the paper's results for the others are fractions of."
        notes = [MEANS["ppo"]]
    else:
        final, early, middle = (found[f"{agent}_{when}"] for when in ("final", "1e8", "25e7"))
        reached = (
            "The paper's results, read off its vector figures (good to about 1 % of an axis), PPO's final return being"
            f" 1.0: {final} after 5e8 steps, {early} after 1e8, {middle} after 2.5e8;"
            f" {found[f'{agent}_seconds_l40s']} s for 5e8 steps on an L40S."
        )
        notes = [MEANS["es"], *([] if table[agent]["rank_transform"] else [MEANS["z_score"]])]
    notes += [MEANS["brax"]] if env.startswith("brax/") else []
    lines = [line for text in (reached, *notes) for line in textwrap.wrap(text, WIDTH)]
    return "\n".join([FIRST, *(f"# {line}" for line in lines)])


def recipe(env: str, agent: str, data: dict[str, Any]) -> str:
    """The text of a recipe."""
    protocol = data["protocol"]
    run = {"env": env, "agent": agent, "env_steps": protocol["env_steps"]}
    policy = {"network": "mlp", "hidden": protocol["hidden"], "activation": ACTIVATION[protocol["activation"]]}
    if agent != "ppo":
        policy |= {"output_scale": 1.0, "skip": False}
    tables = {"policy": policy, "options": options(agent, data[env][agent])}
    blocks = [header(env, agent, data[env]) + "\n" + _lines(run)]
    return "\n\n".join([*blocks, *(f"[{name}]\n{_lines(table)}" for name, table in tables.items())]) + "\n"


def _lines(table: dict[str, Any]) -> str:
    return "\n".join(f"{name} = {_value(value)}" for name, value in table.items())


def _value(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    return f"{value:.0e}".replace("e+0", "e") if isinstance(value, float) and value >= 1e6 else str(value)


@dataclass(frozen=True)
class Options:
    check: bool = False  # write nothing; fail where a file differs


def main() -> None:
    check = script.options(Options, __doc__).check
    data = tomllib.loads(DATA.read_text())
    differ = []
    for env in configurations(data):
        for agent in AGENTS:
            path, text = FOLDER / env / f"{agent}.toml", recipe(env, agent, data)
            if path.is_file() and path.read_text() == text:
                continue
            differ.append(str(path.relative_to(ROOT)))
            if not check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
    print("\n".join([*differ, f"{len(differ)} {'differ' if check else 'written'}"]))
    if check and differ:
        sys.exit(1)


if __name__ == "__main__":
    main()
