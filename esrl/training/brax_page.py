"""A self-contained HTML page that shows a Brax episode in 3D and opens without a network."""

from __future__ import annotations

import base64
import html
import json
import math
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

import numpy as np

from esrl.core.types import EsrlError

SHAPES = {0: "plane", 2: "sphere", 3: "capsule", 4: "ellipsoid", 5: "cylinder", 6: "box", 7: "mesh"}
UNCOLORED = ((0.5, 0.5, 0.5, 1.0), (0.4, 0.33, 0.26, 1.0))  # MuJoCo's default grey and Brax's default brown
DECIMALS = 4


def page(
    sys: Any,
    states: Sequence[Any],
    title: str,
    dt: float,
    subtitle: str = "",
    rewards: Sequence[float] | np.ndarray | None = None,
) -> str:
    """The HTML text of a page that plays an episode; shapes other than `SHAPES` are left out.

    In the page's address, `?t=1.25&play=0` (or the same after `#`) opens it paused at 1.25 s; `speed=0.5` and
    `follow=0` set those two controls.

    Args:
      sys: the environment's Brax `System`, `env.sys`.
      states: pipeline states of one lane, in order; of each, `x.pos` [links, 3] in metres and `x.rot` [links, 4],
        a quaternion w, x, y, z, are shown.
      title: heading, plain text.
      dt: seconds between two states, `float(env.dt)`.
      subtitle: a line below the heading, plain text.
      rewards: one reward per state, or per state but the first. Without them the page shows no reward.

    Raises:
      EsrlError: no states, states of more than one lane, a `dt` that is not positive, or a wrong number of rewards.
    """
    if not (math.isfinite(dt) and dt > 0):
        raise EsrlError(f"dt is {dt}, but must be a positive number of seconds")
    poses = _poses(sys, states)
    geoms, meshes = _geoms(sys)
    episode = {
        "dt": round(float(dt), 7),
        "frames": len(poses),
        "links": poses.shape[1],
        "parents": [int(parent) for parent in sys.link_parents],
        "poses": _base64(poses.round(DECIMALS), "<f4"),
        "geoms": geoms,
        "meshes": meshes,
        "rewards": _rewards(rewards, len(poses)),
    }
    parts = {
        "TITLE": html.escape(title),
        "SUBTITLE": html.escape(subtitle),
        "EPISODE": json.dumps(episode, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        "VIEWER": _asset("viewer.js"),
    }
    # One pass, so that text put in is never searched for markers itself.
    return re.sub("@@([A-Z]+)@@", lambda marker: parts[marker[1]], _asset("viewer.html"))


def _asset(name: str) -> str:
    return resources.files("esrl.training.assets").joinpath(name).read_text(encoding="utf-8")


def _base64(values: np.ndarray, dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype=dtype).tobytes()).decode("ascii")


def _poses(sys: Any, states: Sequence[Any]) -> np.ndarray:
    """Positions and quaternions of every link in every state, [states, links, 7]."""
    if not states:
        raise EsrlError("states is empty, but a page needs at least one state")
    links = len(sys.link_parents)
    frames = []
    for index, state in enumerate(states):
        pos, rot = np.asarray(state.x.pos, np.float64), np.asarray(state.x.rot, np.float64)
        if pos.shape != (links, 3) or rot.shape != (links, 4):
            raise EsrlError(
                f"states[{index}].x has shapes {pos.shape} and {rot.shape}, but one lane of this system has "
                f"({links}, 3) and ({links}, 4); pick a lane first"
            )
        frames.append(np.concatenate([pos, rot], axis=1))
    return np.stack(frames)


def _rewards(rewards: Sequence[float] | np.ndarray | None, frames: int) -> list[float | None] | None:
    """One reward or None per frame; None where it is missing or not finite."""
    if rewards is None:
        return None
    if len(rewards) not in (frames, frames - 1):
        raise EsrlError(f"{len(rewards)} rewards given, but {frames} states take {frames} or {frames - 1}")
    values = [round(float(reward), DECIMALS) for reward in rewards]
    padded: list[float | None] = [None] * (frames - len(values))
    return padded + [value if math.isfinite(value) else None for value in values]


def _geoms(sys: Any) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """What to draw: one entry per visible geom, `link` -1 for the world, and the meshes that they name by index."""
    kinds, bodies = np.asarray(sys.geom_type), np.asarray(sys.geom_bodyid)
    sizes, places, turns = np.asarray(sys.geom_size), np.asarray(sys.geom_pos), np.asarray(sys.geom_quat)
    colors = np.asarray(sys.geom_rgba, np.float64)
    meshes: dict[int, int] = {}
    geoms = []
    for i in _visible(sys):
        geom = {
            "shape": SHAPES[int(kinds[i])],
            "link": int(bodies[i]) - 1,
            "size": _numbers(sizes[i]),
            "pos": _numbers(places[i]),
            "quat": _numbers(turns[i]),
            "rgba": _color(colors[i], sys.mj_model, i),
        }
        if geom["shape"] == "mesh":
            geom["mesh"] = meshes.setdefault(int(sys.mj_model.geom_dataid[i]), len(meshes))
        geoms.append(geom)
    return geoms, [_mesh(sys.mj_model, mesh) for mesh in meshes]


def _visible(sys: Any) -> list[int]:
    """Geoms of known shape that are not transparent, nor in a hidden group where the links show another one."""
    kinds, alpha = np.asarray(sys.geom_type), np.asarray(sys.geom_rgba)[:, 3]
    shown = np.asarray(sys.mj_model.geom_group) < 3
    known = np.isin(kinds, list(SHAPES)) & (alpha > 0)
    if np.any(known & shown & (np.asarray(sys.geom_bodyid) > 0)):
        known &= shown
    return [int(i) for i in np.flatnonzero(known)]


def _color(rgba: np.ndarray, model: Any, i: int) -> list[float] | None:
    """The geom's own color, else its material's; None where neither says more than a default."""
    material = int(model.geom_matid[i])
    if material >= 0 and np.allclose(rgba, UNCOLORED[0]):
        rgba = np.asarray(model.mat_rgba[material], np.float64)
        if np.all(rgba == 1):
            return None
    return None if any(np.allclose(rgba, default) for default in UNCOLORED) else _numbers(rgba)


def _mesh(model: Any, mesh: int) -> dict[str, str]:
    """Vertices [n, 3] float32 and triangles [m, 3] uint32 of a MuJoCo mesh, little-endian."""
    vertices = slice(model.mesh_vertadr[mesh], model.mesh_vertadr[mesh] + model.mesh_vertnum[mesh])
    faces = slice(model.mesh_faceadr[mesh], model.mesh_faceadr[mesh] + model.mesh_facenum[mesh])
    return {
        "vertices": _base64(model.mesh_vert[vertices], "<f4"),
        "faces": _base64(model.mesh_face[faces], "<u4"),
    }


def _numbers(values: Any) -> list[float]:
    return [round(float(value), 5) for value in values]
