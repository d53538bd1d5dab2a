"""What `esrl.train` returns."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any, NamedTuple

from esrl.algorithms.agent import Agent, Metrics
from esrl.core.tables import frame
from esrl.envs.base import name_of
from esrl.training.curves import curve, draw_run, inline, new_axes
from esrl.training.logs import Row


class Result(NamedTuple):
    """Where a run ended. A notebook shows it with its learning curve.

    Attributes:
      agent: what was trained. state: its last state, for `esrl.evaluate` and `esrl.Trained`.
      metrics: the last row. out: the run's folder, None without one.
      rows: of the run: the first and the last one, every one with a held-out score, and about a thousand others; of a
        run that went on, those of before as well.

    Example:
      >>> agent = esrl.eggroll("gymnasium/phys2d/CartPole-v1", esrl.mlp((16,)), population=32)
      >>> result = esrl.train(agent, generations=3, num_evals=3)
      >>> [row["generation"] for row in result.rows]
      [1, 2, 3]
      >>> result.plot().get_xlabel()
      'environment steps'
    """

    agent: Agent
    state: Any
    metrics: Metrics
    out: Path | None
    rows: list[Row] = []  # noqa: RUF012

    def __repr__(self) -> str:
        steps, generation = self.metrics.get("env_steps") or 0, self.metrics.get("generation", 0)
        done = f"{steps:,} environment steps, generation {generation}"
        scores = curve(self.rows).mean
        reached = f", return {scores[0]:.1f} -> {scores[-1]:.1f}" if scores.size > 1 else ""
        where = f"; in {self.out}" if self.out is not None else ""
        weights = f"{self.agent.plan.num_params:,} weights"
        return f"Result({self.agent.name} on {name_of(self.agent.env)}: {weights}, {done}{reached}{where})"

    def plot(self, ax: Any = None, x: str = "env_steps") -> Any:
        """Draws the learning curve: returns of the population, held-out returns with their spread over episodes.

        Args:
          ax: matplotlib's axes to draw on; None makes new ones.
          x: what the curve is over: "env_steps", "seconds" (of training) or "generations".

        Returns:
          The axes.

        Raises:
          EsrlError: matplotlib is not installed, or another x.
        """
        ax = new_axes(ax)
        draw_run(ax, self.rows, self._title(), x)
        return ax

    def to_dataframe(self) -> Any:
        """The rows as a `pandas.DataFrame`.

        Raises:
          EsrlError: pandas is not installed.
        """
        return frame(self.rows, "Result.to_dataframe")

    def _title(self) -> str:
        return f"{self.agent.name} on {name_of(self.agent.env)}"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self))}</p>{inline(lambda ax: draw_run(ax, self.rows, self._title()))}"
