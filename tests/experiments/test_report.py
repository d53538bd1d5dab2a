"""The report: numbers of its prose come from result files, what is missing says so, and the page needs nothing else."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

pd = pytest.importorskip("pandas")
pytest.importorskip("rliable")

ROOT = Path(__file__).parents[2]


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    study, claim, swept = (folder / place for place in ("study/results/study", "claims/results", "sweep/results"))
    for place in (study, claim, swept):
        place.mkdir(parents=True)
    common = {"at": "end", "score": "", "low": 0.85, "high": 0.97, "runs": 10}
    rows = [
        {"measure": "iqm", "environment": "all", "agent": "eggroll", "other": "", "value": 0.912, **common},
        {"measure": "improvement", "environment": "all", "agent": "eggroll", "other": "ppo", "value": 0.7, **common},
        {"measure": "iqm", "environment": "brax/ant", "agent": "ppo", "other": "", "value": 0.4, **common},
    ]
    pd.DataFrame(rows).to_csv(study / "statistics.csv", index=False)
    claims = {
        "part": "thin",
        "quantity": "excess relative to dense",
        "thin": "off",
        "layer": ["256x2", "8x8"],
        "measured": [0.51, 0.2],
        "theory": 0.5,
    }
    pd.DataFrame({**claims, "standard_error": 0.01, "basis": "exact", "z": [1.0, -3.0], "repeats": 9}).to_csv(
        claim / "thin.csv", index=False
    )
    sweep = [
        {"env": "e", "rank": r, "population": 8, "sigma": s, "seed": i, "env_steps": n, "return_mean": 10 * i + n}
        for r in ("1", "dense")
        for s in (0.1, 0.3)
        for i in range(4)
        for n in (0, 100)
    ]
    pd.DataFrame(sweep).to_parquet(swept / "e.parquet")
    return folder


@pytest.fixture
def values(monkeypatch):
    from experiments.report import values as report_values

    return report_values


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("study.all.end.iqm.eggroll", "0.91 [0.85, 0.97]"),
        ("study.all.end.iqm.eggroll.value", "0.91"),
        ("study.all.end.iqm.eggroll.interval", "[0.85, 0.97]"),
        ("study.all.end.iqm.eggroll.runs", "10"),
        ("study.all.end.improvement.eggroll.ppo.low", "0.85"),
        ("study.brax-ant.end.iqm.ppo.value", "0.40"),
        ("claims/thin.csv: measured where quantity=excess relative to dense, layer=256x2", "0.51"),
        ("claims/thin.csv: max z | .1f", "1.0"),
        ("claims/thin.csv: layer where measured=0.2", "8x8"),
        ("sweep/e.parquet: final iqm return_mean where rank=dense, sigma=0.3", "115"),
        ("sweep/e.parquet: final count return_mean where rank=1, sigma=0.1 | d", "4"),
    ],
)
def test_values_are_looked_up(values, results, key, text):
    assert values.fill("so {{" + key + "}}.", results) == f"so {text}."


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("study.all.end.iqm.sarsa", "no sarsa"),
        ("study.all.end.iqm", r"study\.environment\.at"),
        ("study.", r"study\.environment\.at"),
        ("nothing", "neither"),
        ("claims/gone.csv: measured", "is not there"),
        ("claims/thin.csv: measured", "2 rows"),
        ("claims/thin.csv: measured where layer=1x1", "0 rows"),
        ("claims/thin.csv: weight", "no column weight"),
        ("claims/thin.csv: measured where depth=2", "no column depth"),
        ("claims/thin.csv: best measured", "best is none of"),
        ("claims/thin.csv: measured where layer=8x8 | zzz", "no format"),
    ],
)
def test_unknown_values_are_sentences(values, results, key, why):
    with pytest.raises(values.UnknownValue, match=why):
        values.fill("{{" + key + "}}", results)


class Page(HTMLParser):
    """Checks that tags close in order, and notes addresses."""

    VOID = frozenset({"meta", "img", "br", "hr", "link"})

    def __init__(self, text):
        super().__init__()
        self.open, self.addresses, self.ids, self.tags = [], [], set(), set()
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.addresses += [value for key, value in attrs if key in ("src", "href")]
        self.ids |= {value for key, value in attrs if key == "id"}
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page(script, results, tmp_path):
    prose, out = tmp_path / "conclusions.md", tmp_path / "report.html"
    prose.write_text(
        "<!-- not shown -->\n# use\n\nIt is **{{study.all.end.iqm.eggroll.value}}** of `x < 1`.\n\n- one\n"
    )
    options = ("--results", results, "--conclusions", prose, "--out", out)
    script("experiments.report.build", *options)
    text = out.read_text()
    page = Page(text)
    assert (
        "<strong>0.91</strong> of <code>x &lt; 1</code>" in text and "not shown" not in text and "<li>one</li>" in text
    )
    assert all(address.startswith(("data:image/", "#")) for address in page.addresses)
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= page.ids
    assert not page.tags & {"script", "link", "iframe"} and "url(" not in text and "@import" not in text
    paper = text[text.index('<h2 id="paper">') : text.index('<h2 id="sweeps">')]
    assert "Not measured yet: <code>python -m experiments.paper.run" in paper
    sweeps = re.sub(r"\s*\n\s*", "", text[text.index('<h2 id="sweeps">') : text.index('<h2 id="defaults">')])
    assert "<td>dense</td>" in sweeps and "115 [" in sweeps and "Not measured yet" not in sweeps
    assert "256x2" in text and "0.51" in text

    prose.write_text("# use\n{{study.all.end.iqm.sarsa}}")
    out.unlink()
    with pytest.raises(SystemExit, match="no sarsa"):
        script("experiments.report.build", *options)
    assert not out.exists()
    prose.write_text("# usage\nText")
    with pytest.raises(SystemExit, match="part usage"):
        script("experiments.report.build", *options)


def test_page_without_results(script, tmp_path):
    out, empty = tmp_path / "report.html", tmp_path / "empty"
    empty.mkdir()
    script(
        "experiments.report.build", "--results", empty, "--plots", empty, "--conclusions", empty / "no.md", "--out", out
    )
    assert out.read_text().count("Not measured yet") >= 6


def test_the_repository_has_a_report(script, tmp_path):
    script("experiments.report.build", "--out", tmp_path / "report.html")
    Page((tmp_path / "report.html").read_text())
