"""EGGROLL beside the paper's: which runs are taken, what they are fractions of, and which reading they stand beside."""

import pandas as pd
import pytest

pytest.importorskip("rliable")

CARTPOLE, SNAKE = "gymnax/CartPole-v1", "jumanji/Snake-v1"
RESULT = {"eggroll_1e8": 0.25, "eggroll_25e7": 0.5, "eggroll_final": 0.75}


@pytest.fixture
def paper_steps(monkeypatch):
    from experiments.paper import compare as paper_steps

    return paper_steps


def write(folder, env, agent, returns, steps):
    runs = [
        {"env": env, "seed": i, "env_steps": s, "return_mean": x} for i, x in enumerate(returns) for s in (0, steps)
    ]
    path = folder / env.replace("/", "-") / f"{agent}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(runs).to_csv(path, index=False)


def test_the_longest_runs_beside_the_papers_at_no_fewer_steps(paper_steps, tmp_path):
    short, long = tmp_path / "short", tmp_path / "long"
    for env, top in ((CARTPOLE, 260), (SNAKE, 30)):
        write(short, env, "random", [20, 20], 0)
        write(short, env, "eggroll", [top, top], 1e6)
    write(short, SNAKE, "ppo", [70, 70], 1e6)
    write(long, SNAKE, "ppo", [40, 40], 9e6)
    write(long, SNAKE, "eggroll", [45, 45], 2e8)
    paper = {env: {"result": RESULT} for env in (CARTPOLE, SNAKE, "brax/ant")}
    cartpole, snake = paper_steps.rows([short, long], paper)
    assert cartpole["fraction"] == pytest.approx(0.5) and cartpole["reference"] == 500  # a perfect agent's
    assert (cartpole["paper"], cartpole["paper_steps"]) == (0.25, 1e8)
    assert snake["fraction"] == pytest.approx(0.5)  # of the better PPO's 70, from the random policy's 20
    assert (snake["env_steps"], snake["paper"], snake["paper_steps"]) == (2e8, 0.5, 2.5e8)
    assert cartpole["ratio"] == pytest.approx(260 / 500) and snake["ratio"] == pytest.approx(45 / 70)
    assert f"| mean | | | | | | 0.500 | {(0.52 + 45 / 70) / 2:.3f} | 0.375 | |" in paper_steps.markdown(
        [cartpole, snake]
    )


def test_without_ppo_there_is_no_fraction(paper_steps, tmp_path):
    write(tmp_path, SNAKE, "eggroll", [5, 6], 1e6)
    (row,) = paper_steps.rows([tmp_path], {SNAKE: {"result": RESULT}})
    assert row["reference_is"] == "not measured" and row["fraction"] != row["fraction"]
