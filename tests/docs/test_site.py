"""The site builds strictly, loads nothing from elsewhere, and has every public name."""

import os
import re
import subprocess
import sys

import pytest

import esrl

from .pages import PAGES, ROOT, name_of, prose

ELSEWHERE = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"https?:|<link\b[^>]*rel=\"(?:stylesheet|preconnect|icon)\"[^>]*href=\"https?:|url\([\"']?https?:|@import"
)


@pytest.mark.slow
def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    site = tmp_path / "site"
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert built.returncode == 0, built.stdout + built.stderr
    for page in (*site.rglob("*.html"), *site.rglob("*.css")):
        found = ELSEWHERE.search(page.read_text())
        assert not found, f"{page.relative_to(site)}: {found[0]}"
    whole = (site / "algorithms" / "eggroll.html").read_text()
    assert "<math" in whole and "\\frac" not in whole


def test_every_public_name_is_in_the_reference():
    reference = " ".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    assert set(re.findall(r"^::: esrl\.(\w+)$", reference, re.MULTILINE)) == set(esrl.__all__)


@pytest.mark.parametrize("page", [pytest.param(page, id=name_of(page)) for page in PAGES])
def test_links_of_a_page_lead_somewhere(page):
    """Of the repository, as GitHub has them; the site's own are checked when it is built."""
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"\w+:", link):
            assert link.startswith("https://"), link
        elif target := link.partition("#")[0]:
            assert (page.parent / target).exists(), f"{name_of(page)}: {link}"
