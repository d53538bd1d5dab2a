"""The game of Snake: a stateful Gymnasium environment to copy.

Train it with
    esrl train envs/snake.py:Snake --population 64 --env-steps 5e5 --hidden 32 --out runs/snake
"""

import gymnasium
import numpy as np
from gymnasium import spaces

SIZE, HUNGER = 10, 100
SIDES = ((0, 1), (1, 0), (0, -1), (-1, 0))  # right, down, left, up, as (row, column)


class Snake(gymnasium.Env):
    """Sees what is deadly at its left, ahead and right, and where the apple is; turns left, goes on, or turns right."""

    observation_space = spaces.Box(-1.0, 1.0, (5,), np.float32)
    action_space = spaces.Discrete(3)
    max_episode_steps = 500

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.body = [(SIZE // 2, SIZE // 2 - i) for i in range(3)]
        self.heading, self.fasting, self.apple = 0, 0, self._free_cell()
        return self._observe(), {}

    def step(self, action):
        self.heading = (self.heading + int(action) - 1) % 4
        head = self._beside(0)
        ate, dead = head == self.apple, self._deadly(head)
        self.fasting = 0 if ate else self.fasting + 1
        self.body = [head, *(self.body if ate else self.body[:-1])]
        if ate:
            self.apple = self._free_cell()
        return self._observe(), float(ate) - float(dead), dead, self.fasting > HUNGER, {}

    def render(self):
        cells = np.full((SIZE + 2, SIZE + 2, 3), 40, np.uint8)
        cells[1:-1, 1:-1] = 225
        for (row, column), color in [*((cell, (60, 140, 80)) for cell in self.body), (self.apple, (210, 50, 50))]:
            cells[row + 1, column + 1] = color
        return cells.repeat(20, axis=0).repeat(20, axis=1)

    def _free_cell(self):
        free = [(i, j) for i in range(SIZE) for j in range(SIZE) if (i, j) not in self.body]
        return free[self.np_random.integers(len(free))]

    def _beside(self, turn):
        (row, column), (down, right) = self.body[0], SIDES[(self.heading + turn) % 4]
        return row + down, column + right

    def _deadly(self, cell):
        return cell in self.body[:-1] or not all(0 <= x < SIZE for x in cell)

    def _observe(self):
        ahead, right = (np.array(SIDES[(self.heading + turn) % 4]) for turn in (0, 1))
        way = np.array(self.apple) - np.array(self.body[0])
        deadly = [self._deadly(self._beside(turn)) for turn in (-1, 0, 1)]
        return np.array([*deadly, np.sign(way @ ahead), np.sign(way @ right)], np.float32)
