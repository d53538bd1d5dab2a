"""What a run and many runs show of themselves: short texts, rows, tables, curves, films."""

import html
import re

import jax
import matplotlib
import numpy as np
import pandas
import pytest

import esrl
from esrl import EsrlError
from esrl.core import sharding
from esrl.core.tables import Rows
from esrl.training import notebook
from esrl.training.curves import MOST, Curve, Kept, curve, joined
from esrl.training.inline_film import Film
from esrl.training.progress import Progress

matplotlib.use("Agg")
ENV = "gymnasium/phys2d/CartPole-v1"
LANES = {"num_envs": 8, "num_steps": 8, "num_minibatches": 2, "num_epochs": 1}
AGENTS = {
    "eggroll": lambda: esrl.eggroll(ENV, esrl.mlp((300, 300)), population=8, sigma=0.1),
    "eggroll_ac": lambda: esrl.eggroll_ac(ENV, esrl.mlp((300, 300)), **LANES),
    "ppo": lambda: esrl.ppo(ENV, esrl.mlp((300, 300)), **LANES),
    "random": lambda: esrl.random(ENV),
}


@pytest.fixture(autouse=True)
def one_device(monkeypatch, lenient):
    monkeypatch.setattr(sharding, "default_mesh", lambda _: sharding.one_device())


@pytest.fixture(scope="module")
def agent():
    with jax.numpy_dtype_promotion("standard"):
        return esrl.eggroll(ENV, esrl.mlp((4,)), population=8)


def is_short(thing):
    text = repr(thing)
    assert len(text) < 300 and "\n" not in text, text
    assert not re.search(r"Array\(|array\(|lambda|jaxpr|<function| at 0x", text), text
    return text


@pytest.mark.parametrize("name", AGENTS)
def test_agents_and_states_are_told_in_a_line(name):
    agent = AGENTS[name]()
    assert is_short(agent).startswith(f"Agent({name} on {ENV}: {agent.plan.num_params:,} weights")
    abstract = jax.eval_shape(agent.init, jax.eval_shape(lambda: jax.random.key(0)))
    assert "without values" in is_short(abstract)
    assert "3 stacked" in is_short(jax.eval_shape(jax.vmap(agent.init), jax.eval_shape(lambda: keys(3))))
    assert "weights" in is_short(esrl.iterate(agent, generations=3))


def keys(number):
    return jax.random.split(jax.random.key(0), number)


def test_recipes_are_told_by_what_differs_from_their_defaults():
    options = {"sigma": 0.1, "population": 8, "rank": 1}
    recipe = esrl.Recipe(ENV, env_steps=1e5, policy={"hidden": [32], "bias": True}, options=options)
    text = is_short(recipe)
    assert text == f"Recipe('{ENV}', env_steps=100000.0, hidden=[32], sigma=0.1)"


def test_a_result_has_its_rows_and_shows_them(agent, tmp_path):
    result = esrl.train(agent, generations=4, num_evals=2, eval_episodes=4, out=tmp_path / "run")
    assert "4,618" not in is_short(result) and "generation 4" in repr(result) and str(tmp_path) in repr(result)
    assert "generation 4" in is_short(result.state) and "held-out episodes" in is_short(
        esrl.evaluate(agent, result.state)
    )
    assert [row["generation"] for row in result.rows] == [1, 2, 3, 4] and result.rows[-1] == result.metrics
    scores = curve(result.rows)
    assert scores.x.tolist() == [0, *(row["env_steps"] for row in result.rows if "eval_return_mean" in row)]

    ax = result.plot(x="generations")
    population, held_out = (line.get_xydata() for line in ax.lines)
    assert population[:, 0].tolist() == [1, 2, 3, 4] and held_out[:, 0].tolist() == [0, 2, 4]
    np.testing.assert_allclose(held_out[:, 1], scores.mean)
    assert result.plot(ax) is ax
    with pytest.raises(EsrlError, match="x is 'hours'"):
        result.plot(x="hours")
    assert "data:image/png;base64," in result._repr_html_() and html.escape(str(tmp_path)) in result._repr_html_()
    frame = result.to_dataframe()
    assert isinstance(frame, pandas.DataFrame) and frame["generation"].tolist() == [1, 2, 3, 4]

    later = esrl.train(
        agent, generations=6, num_evals=2, eval_episodes=4, out=tmp_path / "run", resume=True, progress=False
    )
    assert [row["generation"] for row in later.rows] == [1, 2, 3, 4, 5, 6]
    trained = esrl.load(tmp_path / "run")
    assert "generation 6" in is_short(trained) and is_short(trained.recipe)


def test_a_long_run_keeps_its_scores_and_few_other_rows():
    kept = Kept()
    for n in range(1, 20_001):
        kept.add({"generation": n} | ({"eval_return_mean": 1.0} if n % 1000 == 0 else {}))
    rows = kept.rows()
    generations = [row["generation"] for row in rows]
    assert generations[0] == 1 and generations[-1] == 20_000 and generations == sorted(set(generations))
    assert sum("eval_return_mean" in row for row in rows) == 20 and len(rows) <= MOST + 1


def test_what_pandas_or_matplotlib_are_needed_for_is_said(agent, monkeypatch):
    result = esrl.train(agent, generations=1, num_evals=1, eval_episodes=4)
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.pyplot", None)
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(EsrlError, match=r"Result.to_dataframe needs the package pandas.*esrl\[experiments\]"):
        result.to_dataframe()
    with pytest.raises(EsrlError, match=r"a plot needs the package matplotlib.*esrl\[logs\]"):
        result.plot()
    assert "<img" not in result._repr_html_()  # and no error


def test_many_runs_are_a_table_and_a_line_for_each_value(agent):
    many = esrl.train_many(
        agent, [0, 1, 0], hyperparams={"sigma": [0.1, 0.1, 0.3]}, generations=2, num_evals=2, eval_episodes=4
    )
    assert "3 runs of eggroll" in is_short(many)
    assert [(row["seed"], row["sigma"]) for row in many.final] == [(0, 0.1), (1, 0.1), (0, 0.3)]
    last = [row["eval_return_mean"] for row in many.rows if row["generation"] == 2]
    assert [row["eval_return_mean"] for row in many.final] == last
    labels = [line.get_label() for line in many.plot().lines]
    assert labels == ["eggroll, sigma=0.1 (2 runs)", "eggroll, sigma=0.3"]
    assert "data:image/png" in many._repr_html_() and len(many.to_dataframe()) == len(many.rows)
    unscored = esrl.train_many(agent, [0], generations=1, num_evals=0)
    assert "return" not in is_short(unscored) and "<img" not in unscored._repr_html_()
    with pytest.raises(EsrlError, match="no held-out scores"):
        unscored.plot()


def test_curves_of_seeds_are_joined_where_all_have_values():
    one, other = Curve(*np.array([[0, 10, 20], [0, 1, 2], [0, 0, 0.0]])), Curve(*np.array([[5, 15], [1, 3], [0, 0.0]]))
    line = joined([one, other], points=3)
    assert line.x.tolist() == [5, 10, 15] and line.runs == 2
    np.testing.assert_allclose(line.middle, [(0.5 + 1) / 2, (1 + 2) / 2, (1.5 + 3) / 2])
    assert (line.low <= line.middle).all() and (line.middle <= line.high).all()
    assert joined([one]).middle.tolist() == [0, 1, 2] and np.isnan(joined([one]).low).all()


def test_tables_escape_what_they_show():
    rows = Rows([{"name": "<b>", "value": 1.5}, {"name": "b", "value": None}])
    assert "<b>" not in rows._repr_html_() and "&lt;b&gt;" in rows._repr_html_()
    assert repr(rows).splitlines() == ["name  value", "<b>     1.5", "b         -"]


def test_a_film_is_shown_in_place(agent, tmp_path):
    film = esrl.Trained(agent, agent.init(jax.random.key(0))).film(form="gif", max_steps=3)
    assert film.form == "gif" and film.steps == 3 and film.total == 3 and "in 3 steps" in is_short(film)
    assert "data:image/gif;base64," in film._repr_html_() and 'src="http' not in film._repr_html_()
    assert film.save(tmp_path / "x.gif").read_bytes() == film.data
    with pytest.raises(EsrlError, match=r"name it .*x\.gif"):
        film.save(tmp_path / "x.mp4")
    page = Film("html", b'<p title="a">&</p><script>1</script>', 1.0, 1, "a page")._repr_html_()
    found = re.search(r'<iframe sandbox="allow-scripts"[^>]* srcdoc="([^"]*)"></iframe>', page)
    assert html.unescape(found[1]) == '<p title="a">&</p><script>1</script>'


def test_progress_in_a_notebook_is_one_output(monkeypatch):
    shown = []

    class Handle:
        def update(self, bundle, raw):
            shown[-1].append(bundle["text/plain"])

    def display(bundle, raw, display_id):
        shown.append([bundle["text/plain"]])
        return Handle()

    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr(notebook, "_SECONDS", 0.0)
    monkeypatch.setattr("esrl.training.progress.in_notebook", lambda: True)
    progress = Progress()
    agent = esrl.random(ENV, population=8)
    progress.start(agent, None)
    for n in range(1, 101):
        row = {"generation": n, "env_steps": n, "return_mean": 1.0, "eval_return_mean": float(n)}
        progress.show(row, n / 100)
    progress.stop()
    (texts,) = shown
    assert "compiling" in texts[0] and texts[-1].splitlines()[-1].startswith("gen 100 ")
    assert max(len(text.splitlines()) for text in texts) <= 26 and "lines left out" in texts[-1]
