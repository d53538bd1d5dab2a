"""The page that plays a Brax episode: all frames in it, nothing fetched, foreign text harmless."""

import base64
import json
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from esrl.core.types import EsrlError
from esrl.training.brax_page import page

pytest.importorskip("brax")

TITLE = "cart </script><img src=x> @@VIEWER@@ & co"


@pytest.fixture(scope="module")
def episode():
    """The system of `inverted_pendulum` and four states of it, the cart moved by hand."""
    from brax import envs, kinematics

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        system = envs.get_environment("inverted_pendulum", backend="spring").sys
        x, _ = kinematics.forward(system, system.init_q, np.zeros(system.qd_size(), np.float32))
    place = np.asarray(x.pos)
    shifts = np.linspace(0.0, 0.3, 4)[:, None, None] * np.array([1.0, 0.0, 0.0])
    states = [SimpleNamespace(x=SimpleNamespace(pos=place + shift, rot=x.rot)) for shift in shifts]
    return system, states


def embedded(text):
    """The JSON in the page, with the poses as an array [frames, links, 7]."""
    found = json.loads(re.search(r'<script type="application/json" id="episode">(.*?)</script>', text, re.S)[1])
    poses = np.frombuffer(base64.b64decode(found["poses"]), "<f4")
    return found, poses.reshape(found["frames"], found["links"], 7)


def test_page_holds_every_frame_and_geom(episode):
    system, states = episode
    found, poses = embedded(page(system, states, TITLE, 0.02, rewards=[1.0, float("nan"), 0.5]))
    np.testing.assert_allclose(poses[..., :3], [state.x.pos for state in states], atol=1e-4)
    np.testing.assert_allclose(poses[..., 3:], [state.x.rot for state in states], atol=1e-4)
    assert [(geom["shape"], geom["link"]) for geom in found["geoms"]] == [("capsule", i) for i in (-1, 0, 1)]
    assert found["parents"] == [-1, 0]
    assert found["dt"] == 0.02
    assert found["rewards"] == [None, 1.0, None, 0.5]


def test_page_fetches_nothing_and_escapes_text(episode):
    text = page(*episode, TITLE, 0.02, subtitle="<b>bold</b>")
    escaped = "cart &lt;/script&gt;&lt;img src=x&gt; @@VIEWER@@ &amp; co"
    assert f"<title>{escaped}</title>" in text
    assert f"<h1>{escaped}</h1><p>&lt;b&gt;bold&lt;/b&gt;</p>" in text
    assert "default-src 'none'" in text
    assert text.count("<script") == text.count("</script>") == 2
    markup = re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert not re.search(r"https?://|\bimport\b|@import|url\(|<script|<iframe", markup)
    assert not re.search(r"""(?:\bimport\s*\(|\bfrom)\s*["'`]|\bsrc\s*=\s*["'`]https?:""", text)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"states": []}, "states is empty"),
        ({"dt": 0.0}, "dt is 0.0"),
        ({"rewards": [1.0]}, "1 rewards given, but 4 states take 4 or 3"),
    ],
)
def test_page_names_what_is_wrong(episode, change, words):
    system, states = episode
    with pytest.raises(EsrlError, match=words):
        page(**({"sys": system, "states": states, "title": "cart", "dt": 0.02} | change))


def test_page_refuses_batched_states(episode):
    system, states = episode
    x = states[0].x
    batched = SimpleNamespace(x=SimpleNamespace(pos=x.pos[None], rot=x.rot[None]))
    with pytest.raises(EsrlError, match="pick a lane first"):
        page(system, [batched], "cart", 0.02)
