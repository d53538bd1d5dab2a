"""A rocket that has to land upright, slowly and in the middle of its pad: a pure JAX environment to copy.

Train it with
    esrl train envs/rocket.py:Rocket --population 128 --env-steps 5e5 --hidden 32 --sigma 0.1 --learning-rate 0.05
"""

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

DT, GRAVITY = 0.2, 1.0


class Rocket:
    """State and observation: x, height, their speeds, tilt, turning. Actions: throttle, and where the nozzle points."""

    observation_space = spaces.Box(-np.inf, np.inf, (6,))
    action_space = spaces.Box(-1.0, 1.0, (2,))
    max_episode_steps = 100

    def reset(self, key):
        middle = jnp.array([0.0, 8.0, 0.0, -0.5, 0.0, 0.0])
        spread = jnp.array([3.0, 1.0, 0.5, 0.2, 0.3, 0.1])
        state = middle + spread * jax.random.uniform(key, (6,), minval=-1.0)
        return state, state

    def step(self, state, action, key):
        x, height, speed_x, speed_y, tilt, turning = state
        thrust = 1.0 + action[0]
        speed_x += DT * thrust * jnp.sin(tilt)
        speed_y += DT * (thrust * jnp.cos(tilt) - GRAVITY)
        turning -= DT * thrust * action[1] / 2.0
        after = jnp.stack([x + DT * speed_x, height + DT * speed_y, speed_x, speed_y, tilt + DT * turning, turning])

        landed = after[1] <= 0.0
        lost = (jnp.abs(after[0]) > 10.0) | (after[1] > 12.0) | (jnp.abs(after[4]) > 1.5)
        impact = jnp.abs(jnp.array([0.2, 0.0, 1.0, 1.0, 2.0, 0.0]) * after).sum()
        reward = jnp.where(landed, 100.0 / (1.0 + impact), -0.02 * thrust)
        return after, after, jnp.where(lost, -20.0, reward), landed | lost

    def render(self, state):
        """One frame, [240, 400, 3]: sky, sea, pad, rocket. Only `esrl render` needs this."""
        frame = np.full((240, 400, 3), (20, 24, 46), np.uint8)
        frame[220:], frame[216:220, 160:240] = (36, 80, 130), (240, 200, 80)
        x, height, _, _, tilt, _ = np.asarray(state)
        for part in np.linspace(0.0, 1.5, 30):
            column, row = 200 + 20 * (x + part * np.sin(tilt)), 216 - 18 * (height + part * np.cos(tilt))
            row, column = (int(np.clip(v, 3, most - 4)) for v, most in ((row, 240), (column, 400)))
            frame[row - 3 : row + 4, column - 3 : column + 4] = (230, 90, 70) if part < 0.3 else (235, 235, 240)
        return frame
