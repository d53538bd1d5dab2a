"""The environments that the defaults are chosen and judged by, and the scale of each one's score.

A score is (return - low) / (high - low) within 0 .. 1.2: `low` is a random policy's return, `high` one that a good
agent reaches in a few million steps. It only serves to average over environments; tables show returns.
"""

from __future__ import annotations

from typing import NamedTuple


class World(NamedTuple):
    """An environment: its name, the ends of its score, and the steps of a run of the search."""

    env: str
    low: float
    high: float
    env_steps: float = 2.5e5

    def score(self, value: float) -> float:
        """A return on the scale of scores."""
        return min(max((value - self.low) / (self.high - self.low), 0.0), 1.2)


# The search sees these, the cheap ones first, so that a bad configuration is given up early.
SEEN = (
    World("gymnasium/phys2d/Pendulum-v0", -1250, -150),
    World("jumanji/Game2048-v1", 1000, 3000),
    World("jumanji/Snake-v1", 0, 10),
    World("navix/Navix-Empty-Random-8x8-v0", 0, 1),
    World("navix/Navix-Dynamic-Obstacles-8x8-v0", -0.5, 0.6),
    World("brax/inverted_double_pendulum", 60, 9340),
    World("brax/reacher", -450, -40),
    World("brax/hopper", 60, 1500),
)

# And these only the final comparison.
UNSEEN = (
    World("gymnax/CartPole-v1", 20, 500, 1e6),
    World("gymnax/Acrobot-v1", -500, -80, 1e6),
    World("gymnax/MountainCarContinuous-v0", -50, 95, 1e6),
    World("gymnax/SpaceInvaders-MinAtar", 3, 60, 1e6),
    World("jumanji/Knapsack-v1", 11, 16, 1e6),
    World("navix/Navix-FourRooms-v0", 0, 1, 1e6),
    World("brax/walker2d", 0, 2000, 1e6),
    World("gymnasium/LunarLander-v3", -200, 200, 5e5),
    World("gymnasium/Hopper-v5", 10, 1500, 5e5),
)

# No default was chosen by these either. They came to the comparison when all defaults stood, before either side was run
# to an end on them, for their speed and kinds (pictures, puzzles, robots that fall). The study had tuned Breakout.
LATER = (
    World("gymnax/Asterix-MinAtar", 0, 20, 1e6),
    World("gymnax/Breakout-MinAtar", 0, 10, 1e6),
    World("jumanji/Minesweeper-v0", 5, 30, 1e6),
    World("jumanji/Tetris-v0", 0, 20, 1e6),
    World("brax/inverted_pendulum", 0, 1000, 1e6),
    World("gymnasium/BipedalWalker-v3", -110, 200, 5e5),
)

# What the robots' defaults were chosen by, beside Brax's of the search.
ROBOTS = (World("brax/halfcheetah", -300, 3000, 1e6), World("brax/ant", 0, 2500, 1.5e6))

# For what the Brax suite alone should set. One run of them says little, so the search trains each with two seeds.
BRAX = (
    World("brax/inverted_double_pendulum", 60, 9340, 5e5),
    World("brax/reacher", -450, -40, 5e5),
    World("brax/hopper", 60, 1500, 1e6),
)


def named(env: str) -> World:
    """The world of an environment's name.

    Raises:
      KeyError: it is none of these.
    """
    return {world.env: world for world in (*SEEN, *UNSEEN, *LATER, *ROBOTS)}[env]
