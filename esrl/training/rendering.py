"""An episode to look at: a page for Brax, a video or GIF for what draws its own frames."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

from esrl.algorithms.agent import Agent
from esrl.core.extras import import_extra
from esrl.core.types import EsrlError, Key, PyTree, seed_key
from esrl.envs.base import max_episode_steps_of, name_of, on_device, reason_of
from esrl.envs.objectives import Objective
from esrl.envs.suites.gymnasium_lanes import observation_of, outcome_of
from esrl.policies.spaces import row, to_device, to_environment
from esrl.training.files import replacing, writing
from esrl.training.run_folder import at

FPS = 30  # frames a second, where the environment's metadata has no render_fps
_PICTURES, _SIDE = 100, 256  # of a small GIF at most: pictures, and rows and columns of one
_SHOWN = 0x5EE5  # folded into the key: the episode shown is held out as well


class Episode:
    """One episode of the unperturbed parameters: states (on the device), frames (on the host), rewards."""

    def __init__(self, env: Any = None) -> None:
        given = (getattr(env, "metadata", None) or {}).get("render_fps")
        sound = isinstance(given, (int, float)) and 0 < given < 1000
        self.fps: float = given if sound and given else FPS
        self.states: list[Any] = []
        self.frames: list[np.ndarray] = []
        self.rewards: list[float] = []

    @property
    def total(self) -> float:
        return float(sum(self.rewards))


def render(
    agent: Agent,
    state: Any,
    out: str | Path,
    seed: int = 0,
    form: str = "auto",
    max_steps: int | None = None,
) -> tuple[Path, Episode]:
    """Plays an episode and writes it to a file beside `out`.

    Args:
      agent, state: what was trained.
      out: the file without its ending.
      seed: of the episode's world.
      form: "html" (Brax), "mp4" or "gif"; "auto" is html for Brax, and else mp4 where ffmpeg is at hand, or gif.
      max_steps: of the episode that are shown; None shows it to its end.

    Returns:
      The file and the episode.

    Raises:
      EsrlError: an environment that draws nothing, a form that it cannot have, or a missing package (named).
    """
    if isinstance(agent.env, Objective):
        raise EsrlError(f"{name_of(agent.env)} is an objective, which has nothing to draw")
    is_brax = hasattr(agent.env, "backend") and name_of(agent.env).startswith("brax/")
    if form not in ("auto", "html", "mp4", "gif"):
        raise EsrlError(f"form is {form!r}, but must be html, mp4 or gif")
    if form == "html" and not is_brax:
        raise EsrlError(f"a page can be made for Brax environments only; {name_of(agent.env)} takes mp4 or gif")
    if is_brax and form in ("mp4", "gif"):
        raise EsrlError("Brax environments are shown as a page; use html")
    if is_brax:
        return _page(agent, state, at(out), seed, max_steps)
    play = _drawn_episode if on_device(agent.env) else _host_episode
    episode = play(agent, state, seed, max_steps)
    return _video(agent, episode, at(out), form), episode


@lru_cache(maxsize=8)  # the films of a run compile once
def _compiled(agent: Agent) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """An agent's environment begun, and stepped by the agent."""

    @jax.jit
    def step(state: Any, world: PyTree, obs: PyTree, carry: PyTree, key: Key) -> tuple[PyTree, ...]:
        act_key, env_key = jax.random.split(key)
        action, carry = agent.act(state, obs, carry, act_key)
        world, obs, reward, terminated = agent.env.step(world, action, env_key)
        return world, obs, carry, reward, terminated

    return jax.jit(agent.env.reset), step


@lru_cache(maxsize=8)
def _act(agent: Agent) -> Callable[..., Any]:
    return jax.jit(agent.act)


def _length(agent: Agent, max_steps: int | None) -> int:
    whole = max_episode_steps_of(agent.env)
    return whole if max_steps is None else min(whole, max_steps)


def _device_episode(agent: Agent, state: Any, seed: int, max_steps: int | None) -> Episode:
    key = jax.random.fold_in(seed_key(seed), _SHOWN)
    reset, step = _compiled(agent)
    world, obs = reset(jax.random.fold_in(key, 0))
    episode, carry = Episode(getattr(agent.env, "env", agent.env)), agent.policy.carry
    episode.states.append(jax.device_get(world))
    for t in range(_length(agent, max_steps)):
        world, obs, carry, reward, terminated = step(state, world, obs, carry, jax.random.fold_in(key, t + 1))
        episode.states.append(jax.device_get(world))
        episode.rewards.append(float(reward))
        if terminated:
            break
    return episode


def _page(agent: Agent, state: Any, out: Path, seed: int, max_steps: int | None) -> tuple[Path, Episode]:
    from esrl.training.brax_page import page

    state = jax.device_get(state)
    episode = _device_episode(agent, state, seed, max_steps)
    brax = agent.env.env
    shown = [world.pipeline_state for world in episode.states]
    subtitle = f"{agent.name}, return {episode.total:.0f} in {len(episode.rewards)} steps"
    html = page(brax.sys, shown, name_of(agent.env), float(brax.dt), subtitle, rewards=episode.rewards)
    path = out.with_name(out.name + ".html")
    _write(path, lambda part: part.write_text(html))
    return path, episode


def _drawn_episode(agent: Agent, state: Any, seed: int, max_steps: int | None) -> Episode:
    if not hasattr(agent.env, "render"):
        raise EsrlError(f"{name_of(agent.env)} draws nothing; give it a method render(state) -> rgb array [H, W, 3]")
    episode = _device_episode(agent, jax.device_get(state), seed, max_steps)
    with _drawing(agent):
        episode.frames = [_frame(agent, agent.env.render(world)) for world in episode.states]
    return episode


def _frame(agent: Agent, drawn: Any) -> np.ndarray:
    """A picture [H, W, 3] from what `render` returned: also gray ones, ones with alpha, and the last one of a list.

    Raises:
      EsrlError: it is none of these.
    """
    last = drawn[-1] if isinstance(drawn, list) and drawn and np.ndim(drawn[-1]) >= 2 else drawn
    try:
        frame = np.asarray(last)
    except Exception as error:  # an object of another package
        raise EsrlError(f"{name_of(agent.env)}: render returned {type(drawn).__name__}, {_NEEDED}") from error
    gray = frame[..., None] if frame.ndim == 2 else frame
    if gray.ndim != 3 or gray.shape[2] not in (1, 3, 4) or not gray.size or gray.dtype.kind not in "buif":
        given = "None" if drawn is None else f"{frame.dtype}{list(frame.shape)}"
        raise EsrlError(f"{name_of(agent.env)}: render returned {given}, {_NEEDED}")
    return np.repeat(gray, 3, axis=2) if gray.shape[2] == 1 else gray[..., :3]


_NEEDED = 'but a picture is needed: with render_mode="rgb_array", an rgb array [H, W, 3]'


def _bytes(frames: list[np.ndarray]) -> list[np.ndarray]:
    """Pictures as bytes: real numbers of 0 .. 1 and booleans are scaled, others are cut off at 0 and 255."""
    real = [frame for frame in frames if frame.dtype.kind == "f"]
    # Over the whole episode: a dark picture of 0 .. 255 may have nothing above 1.
    ones = real and max(float(np.nanmax(frame, initial=0.0)) for frame in real) <= 1
    made = []
    for frame in frames:
        scale = 255 if frame.dtype.kind == "b" or (ones and frame.dtype.kind == "f") else 1
        made.append(
            np.clip(np.nan_to_num(frame) * scale, 0, 255).astype(np.uint8) if frame.dtype != np.uint8 else frame
        )
    return made


class _drawing:
    """Turns an environment's drawing failures (no display, missing package) into one sentence."""

    def __init__(self, agent: Agent) -> None:
        self.name = name_of(agent.env)

    def __enter__(self) -> None:
        import os

        os.environ.setdefault("MUJOCO_GL", "egl")
        if not os.environ.get("SDL_VIDEODRIVER"):  # no window; what is drawn by "dummy" may be read as black
            os.environ["SDL_VIDEODRIVER"] = "offscreen" if sys.platform == "linux" else "dummy"

    def __exit__(self, kind: type | None, error: BaseException | None, _: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, EsrlError):
            why = "it has no method render" if isinstance(error, NotImplementedError) else reason_of(error)
            raise EsrlError(f"{self.name} cannot be drawn ({why}), {_NEEDED}") from error


def _host_episode(agent: Agent, state: Any, seed: int, max_steps: int | None) -> Episode:
    state = jax.device_get(state)
    key = jax.random.fold_in(seed_key(seed), _SHOWN)
    act = _act(agent)
    with _drawing(agent):
        env = agent.env.make_one(render_mode="rgb_array")
        episode = Episode(env)
        try:
            name = agent.env.name
            obs = observation_of(name, env.reset(seed=seed))
            carry, space = agent.policy.carry, agent.env.action_space
            for t in range(_length(agent, max_steps)):
                episode.frames.append(_frame(agent, env.render()))
                seen = to_device(agent.env.observation_space, obs)
                action, carry = act(state, seen, carry, jax.random.fold_in(key, t + 1))
                lane = to_environment(space, jax.tree.map(lambda x: x[None], action))
                called = f"step {t + 1}"
                obs, reward, terminated, truncated = outcome_of(name, env.step(row(space, lane, 0)), called)
                episode.rewards.append(reward)
                if terminated or truncated:
                    break
            episode.frames.append(_frame(agent, env.render()))
        finally:
            env.close()
    return episode


def _video(agent: Agent, episode: Episode, out: Path, form: str) -> Path:
    imageio = import_extra("imageio.v2", "video", "a video")
    if form in ("auto", "mp4"):
        try:
            import imageio_ffmpeg  # noqa: F401
        except ImportError as error:
            if form == "mp4":
                raise EsrlError(
                    "MP4 needs ffmpeg; install it with: pip install 'esrl[video]', or use --form gif"
                ) from error
            form = "gif"
        else:
            form = "mp4"
    path = out.with_name(f"{out.name}.{form}")
    frames: list[Any] = [_even(frame) for frame in _bytes(episode.frames)]
    sizes = {frame.shape for frame in frames}
    if len(sizes) > 1:
        raise EsrlError(f"{name_of(agent.env)}: render returned pictures of {len(sizes)} sizes; draw all in one")
    if form == "mp4":
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="os.fork")  # the child only executes ffmpeg
            _write(path, lambda part: imageio.mimwrite(part, frames, fps=episode.fps, macro_block_size=2))
    else:
        every = max(1, round(episode.fps / 25))  # browsers slow down GIFs of more frames a second
        duration = 1000 * every / episode.fps
        _write(path, lambda part: imageio.mimwrite(part, frames[::every], duration=duration, loop=0))
    return path


def small_gif(episode: Episode) -> bytes:
    """An episode as a GIF that TensorBoard shows, of at most 100 pictures of 256 by 256; empty where it has none."""
    if not episode.frames:
        return b""
    imageio = import_extra("imageio.v2", "video", "a video")
    every = -(-len(episode.frames) // _PICTURES)
    frames = _bytes(episode.frames[::every])
    thin = -(-max(frames[0].shape[:2]) // _SIDE)
    whole = io.BytesIO()
    duration = 1000 * max(every / episode.fps, 0.04)  # browsers slow down GIFs of more than 25 frames a second
    imageio.mimwrite(whole, [frame[::thin, ::thin] for frame in frames], format="gif", duration=duration, loop=0)
    return whole.getvalue()


def _even(frame: np.ndarray) -> np.ndarray:
    """The frame with an even number of rows and columns, as MP4 needs."""
    rows, columns = (n // 2 * 2 for n in frame.shape[:2])
    return np.ascontiguousarray(frame[: max(rows, 1), : max(columns, 1)])


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    """Has a file written under another name first: a link at its place is replaced, not followed."""
    with writing(path), replacing(path) as part:
        write(part)
        if not part.exists():  # ffmpeg may fail without a word
            raise EsrlError(f"{path} was not written; try --form gif")
