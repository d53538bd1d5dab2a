"""The page in a real browser: a person selects runs, changes the axis, opens the film."""

import json
import random

import pytest
from chromium import Chromium, find_chromium

from esrl.training.films import INDEX
from esrl.training.status import Status

pytestmark = pytest.mark.skipif(
    not find_chromium(), reason="no Chromium is installed (Debian, Ubuntu: apt install chromium)"
)
FRAME = '<!doctype html><title>film</title><script>document.title = "played " + self.origin</script>'
EVIL = '<img src=x onerror="window.evil = 1">'


def rows(number, draw, gain):
    found = []
    for g in range(1, number + 1):
        level = gain * g / number
        scored = {"eval_return_mean": level, "eval_return_std": 0.2 * gain} if g % 10 == 0 else {}
        fitness = {f"fitness_q{q:02d}": level + gain * (q - 50) / 100 for q in (5, 25, 50, 75, 95)}
        found.append(
            {"generation": g, "env_steps": 100 * g, "sigma": 0.1 + draw.random() / 100, "return_mean": level}
            | fitness
            | {"update_norm": draw.random(), **scored, "seconds": g / 4, "seconds_training": g / 5}
        )
    return found


@pytest.fixture
def runs(tmp_path, write):
    draw = random.Random(0)
    recipe = 'env = "brax/hopper"\nagent = "eggroll"\nenv_steps = 10000\nseed = {}\n'
    for seed in range(3):
        write(tmp_path / f"hopper-{seed}", rows(100, draw, 10 + seed), recipe.format(seed))
    write(tmp_path / EVIL.replace("/", ""), rows(20, draw, 5), 'env = "<b>bold</b>"\nseed = 9\n')
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "recipe.toml").write_text("= nonsense")
    live = write(tmp_path / "live", rows(20, draw, 3), recipe.format(7))
    status = Status(live / "status.json")
    status.begin(0.0)
    status.generation(20, 0.25)
    films = tmp_path / "hopper-0" / "films"
    films.mkdir()
    about = {}
    for generation, score in ((0, None), (50, 4.0), (100, 3.0)):
        name = f"{generation:08d}.html"
        (films / name).write_text(FRAME)
        about[name] = {"generation": generation, "score": score, "return": score, "steps": 10}
    (films / INDEX).write_text(json.dumps(about))
    return tmp_path


def item(name):
    """The list's entry of a run, as script."""
    return f"[...document.querySelectorAll('.run')].find(li => li.querySelector('.name').textContent === {name!r})"


def drawn(chart):
    """How many pixels of a chart have color."""
    return (
        f"(() => {{ const c = document.querySelector('#{chart} canvas');"
        " const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        " let n = 0; for (let i = 0; i < d.length; i += 4)"
        " if (d[i + 3] && Math.max(d[i], d[i+1], d[i+2]) - Math.min(d[i], d[i+1], d[i+2]) > 30) n++; return n })()"
    )


def test_a_person_looks_at_runs(runs, serve, tmp_path_factory):
    with serve(runs) as client, Chromium(tmp_path_factory.mktemp("profile")) as page:
        page.open(client.address)
        page.wait("document.querySelectorAll('.run').length === 6")
        # What trains is chosen, with the runs of its environment, and says how far it is.
        assert page.wait("document.querySelector('.picked .name').textContent") == "live"
        assert page.do("document.querySelector('.picked .state').textContent") == "training · 25 %"
        assert page.do("document.querySelectorAll('.run input:checked').length") == 4
        page.wait(f"{drawn('returns')} > 500 && {drawn('metrics')} > 200 && {drawn('population')} > 500")
        # A damaged run is there, with its sentence; a hostile name is a text.
        assert "recipe" in page.do(f"{item('broken')}.querySelector('.wrong').textContent")
        assert page.do(f"{item(EVIL.replace('/', ''))} !== undefined") and page.do("window.evil === undefined")

        # Runs are chosen.
        page.click("#none")
        page.wait("document.querySelectorAll('.run input:checked').length === 0")
        page.wait(f"{drawn('returns')} === 0")
        assert page.do("document.querySelector('#returns .say').textContent") == "Choose runs on the left."
        page.do(f"{item('hopper-0')}.querySelector('input').id = 'zero'")
        page.click("#zero")
        page.wait(f"{drawn('returns')} > 200")
        page.do(f"{item('hopper-0')}.querySelector('.name').id = 'pick'")
        page.click("#pick")
        page.wait("document.getElementById('d-name').textContent === 'hopper-0'")
        page.wait("document.getElementById('recipe').textContent.includes('brax/hopper')")

        # Values are shown under the pointer, and by keys.
        box = page.do(
            "(() => { const r = document.querySelector('#returns canvas').getBoundingClientRect();"
            " return [r.x, r.y, r.width, r.height] })()"
        )
        page.point(box[0] + box[2] - 20, box[1] + box[3] / 2)
        page.do("window.tip = document.querySelector('#returns .tip'); 0")
        shown = page.wait("!tip.hidden && tip.textContent")
        assert "10,000 environment steps" in shown and "hopper-0" in shown and "10 ± 2" in shown
        page.do("document.querySelector('#returns canvas').focus()")
        page.press("Home")
        page.wait("tip.textContent.startsWith('1,000 environment steps')")
        page.press("ArrowRight")
        page.wait("tip.textContent.startsWith('2,000 environment steps')")

        # The axis is another.
        said = "document.querySelector('#returns canvas').getAttribute('aria-label')"
        ends = {"seconds": "25 seconds", "seconds_training": "20 seconds of training", "generation": "100 generations"}
        for axis, last in ends.items():
            page.do(f"document.querySelector('input[value={axis}]').parentElement.id = 'axis-{axis}'")
            page.click(f"#axis-{axis}")
            page.wait(f"{said}.includes('Held-out return over {last.partition(' ')[2]}.')")
            page.do("document.querySelector('#returns canvas').focus()")
            page.press("End")
            page.wait(f"tip.textContent.startsWith({last!r})")

        # Another metric; the mean over seeds.
        assert {"sigma", "update_norm"} <= set(page.do("[...metric.options].map(option => option.value)"))
        page.do("metric.value = 'sigma'; metric.dispatchEvent(new Event('change'))")
        page.wait("document.querySelector('#metrics canvas').getAttribute('aria-label').includes('ends at 0.1')")
        page.click("#all")
        page.click("#seeds")
        page.wait(f"{said}.includes('hopper · eggroll (4 seeds)')")

        # The film.
        labels = "[...document.querySelectorAll('#films button')].map(b => b.textContent).join()"
        assert page.wait(labels) == "start,best,last"
        assert page.do("document.querySelector('#screen iframe').getAttribute('sandbox')") == "allow-scripts"
        assert "generation 100" in page.do("document.getElementById('caption').textContent")
        page.do("[...document.querySelectorAll('#films button')][1].id = 'best'")
        page.click("#best")
        page.wait("document.querySelector('#screen iframe').src.includes('00000050.html')")
        page.wait("document.querySelector('#caption').textContent.includes('return 4 in 10 steps')")

        # The list is filtered; what is new appears by itself.
        page.do("filter.value = 'hopper seed 2'; filter.dispatchEvent(new Event('input'))")
        page.wait("document.querySelectorAll('.run').length === 1")
        page.do("filter.value = ''; filter.dispatchEvent(new Event('input'))")
        with (runs / "live" / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"generation": 21, "env_steps": 2100, "eval_return_mean": 77.5, "seconds": 9}) + "\n")
        page.wait(f"{item('live')}.querySelector('.reached b').textContent === '77.5'")
        assert page.problems == []


def test_a_film_reaches_nothing(runs, serve, tmp_path_factory):
    """Opened by itself, its origin is nobody's, and neither the runs nor anything else can be had by its script."""
    script = """<!doctype html><title>0</title><script>
      const say = (word) => () => { document.title = `${self.origin} ${word}` }
      fetch("/api/runs?since=0").then(say("reached"), say("refused"))
    </script>"""
    (runs / "hopper-0" / "films" / "00000050.html").write_text(script)
    with serve(runs) as client, Chromium(tmp_path_factory.mktemp("profile")) as page:
        key = next(r["key"] for r in client.json("/api/runs?since=0")["runs"] if r["name"] == "hopper-0")
        page.open(f"{client.address}film?run={key}&name=00000050.html")
        page.wait("document.title.includes('refused') || document.title.includes('reached')")
        assert page.do("document.title") == "null refused"


def test_an_empty_folder_says_how_to_begin(tmp_path, serve, write, tmp_path_factory):
    with serve(tmp_path) as client, Chromium(tmp_path_factory.mktemp("profile"), dark=True) as page:
        page.open(client.address)
        assert "esrl train" in page.wait("!document.getElementById('empty').hidden && empty.textContent")
        write(tmp_path / "first", rows(10, random.Random(0), 1))
        page.wait("document.querySelectorAll('.run').length === 1 && document.getElementById('empty').hidden")
        assert page.problems == []
