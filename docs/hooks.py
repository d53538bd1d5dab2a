"""What the site needs beside its pages: pages that live elsewhere in the repository, links into it, equations.

A page of the repository, as `esrl/training/README.md`, is a page of the site at the same path, so that a text stands in
one place and its links hold there and here. A link to a file that is no page goes to the repository's address.
Equations are fenced blocks of the kind `math`, in LaTeX; they become MathML, which browsers draw without a script.
"""

from __future__ import annotations

import logging
import os.path
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = (
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "envs/README.md",
    "envs/kinetix/README.md",
    "esrl/training/README.md",
    "esrl/training/export/README.md",
    "esrl/watch/README.md",
)
REPOSITORY = "https://github.com/OWNER/esrl"  # a placeholder until it has an address
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s#]*)(#[^)\s]*)?(\))")
FENCE = re.compile(r"^(\s*)(`{3,})(\w*)")

log = logging.getLogger("mkdocs.hooks.esrl")


def pages() -> list[str]:
    """The repository's pages that the site has, by their paths in it."""
    return [*PAGES, *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "experiments").glob("**/README.md"))]


def on_files(files: Any, config: Any) -> Any:
    """Adds these pages, and the pictures that any page shows."""
    for path in pages():
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    sources = [*pages(), *(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
    shown = {target for path in sources for target in _targets(path) if _is_picture(target)}
    for target in sorted(shown):
        if not target.startswith("docs/") and (ROOT / target).is_file():
            files.append(File.generated(config, target, abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """A page's text with links as the site has them, and equations as MathML."""
    here = page.file.src_uri if page.file.src_uri in pages() else f"docs/{page.file.src_uri}"
    lines: list[str] = []
    math: list[str] | None = None
    fence = ""
    for line in markdown.splitlines():
        found = FENCE.match(line)
        if math is not None:
            if found and not found[3]:
                lines.append(_mathml("\n".join(math)))
                math = None
            else:
                math.append(line)
        elif found and not fence:
            if found[3] == "math":
                math = []
            else:
                fence = found[2]
                lines.append(line)
        elif fence:
            fence = "" if found and found[2] == fence and not found[3] else fence
            lines.append(line)
        else:
            lines.append(LINK.sub(lambda link: link[1] + _address(here, link[2]) + (link[3] or "") + link[4], line))
    return "\n".join(lines)


def _mathml(text: str) -> str:
    """An equation; its lines are equations one below the other."""
    rows = [convert(row, display="block") for row in text.split("\\\\") if row.strip()]
    return '<div class="equation">' + "".join(rows) + "</div>"


def _targets(path: str) -> list[str]:
    """What a page links to within the repository."""
    found = [link[2] for link in LINK.finditer((ROOT / path).read_text())]
    return [_resolved(path, link) for link in found if link and "://" not in link]


def _resolved(here: str, link: str) -> str:
    return os.path.normpath(os.path.join(os.path.dirname(here), link))


def _is_picture(target: str) -> bool:
    return target.endswith((".png", ".gif", ".svg", ".jpg"))


def _address(here: str, link: str) -> str:
    """Where a link of a page goes on the site."""
    if not link or "://" in link or link.startswith("mailto:"):
        return link
    target = _resolved(here, link)
    if not (ROOT / target).exists():
        log.warning(f"{here} links to {link}, but there is no {target}")
        return link
    own = os.path.dirname(_on_site(here))
    if (ROOT / target).is_dir() and f"{target}/README.md" in pages():
        target = f"{target}/README.md"
    if target.startswith("docs/") or target in pages() or _is_picture(target):
        return os.path.relpath(_on_site(target), own or ".")
    return f"{REPOSITORY}/{'tree' if (ROOT / target).is_dir() else 'blob'}/main/{target}"


def _on_site(path: str) -> str:
    return path.removeprefix("docs/")
