"""One HTML page that needs nothing outside it: Markdown rendered, figures embedded, CSS for light, dark and print."""

from __future__ import annotations

import base64
import html
import re
from pathlib import Path

from markdown_it import MarkdownIt

from experiments.lab.record import ROOT

CSS = """
:root { color-scheme: light dark; --line: #d5d8dc; --soft: #f4f5f6; --quiet: #5c6670; --link: #0b5cad; }
@media (prefers-color-scheme: dark) {
  :root { --line: #3a4047; --soft: #1d2126; --quiet: #9aa4ae; --link: #7ab7f5; }
  body { background: #121518; color: #e4e7ea; }
}
body { font: 16px/1.55 system-ui, sans-serif; margin: 0 auto; max-width: 62rem; padding: 1.5rem; }
h1 { font-size: 1.7rem; } h2 { border-top: 1px solid var(--line); margin-top: 2.5rem; padding-top: 1.2rem; }
h1, h2, h3 { line-height: 1.25; } a { color: var(--link); } nav a { margin-right: 1rem; }
code { background: var(--soft); border-radius: 3px; font-size: 0.88em; padding: 0.1em 0.3em; }
pre { background: var(--soft); border-radius: 5px; overflow-x: auto; padding: 0.7rem 0.9rem; }
pre code { background: none; padding: 0; }
.wide { margin: 1rem 0; overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.86rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: 0.3rem 0.7rem 0.3rem 0; text-align: left; vertical-align: top; }
figure { margin: 1.2rem 0; } figure img { background: #fff; max-width: 100%; }
figcaption, .missing, footer { color: var(--quiet); font-size: 0.9rem; }
details { margin: 0.8rem 0; } summary { cursor: pointer; }
@media print {
  body { background: #fff; color: #000; font-size: 10pt; max-width: none; padding: 0; }
  nav { display: none; } figure, tr { break-inside: avoid; } h2, h3 { break-after: avoid; }
  details::details-content { content-visibility: visible; height: auto; }
  .wide { overflow: visible; } table { font-size: 7.5pt; }
}
"""
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{css}</style>
</head>
<body>
<h1>{title}</h1>
{lead}
<nav>{contents}</nav>
{sections}
</body>
</html>
"""
KINDS = {".png": "image/png", ".svg": "image/svg+xml"}


def markdown(text: str) -> str:
    """Markdown with tables as HTML. HTML in it is shown as text; a table that is too wide scrolls.

    Pictures are files by their path in the repository, and are embedded.
    """
    made = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    made = re.sub(r'(<img src=")([^":]+)"', lambda found: f'{found[1]}{embedded(ROOT / found[2])}"', made)
    return made.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")


def embedded(path: Path) -> str:
    """A picture's file as an address that holds its bytes."""
    return f"data:{KINDS[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def figure(path: Path, caption: str) -> str:
    """A picture with its bytes in the page; nothing where there is no file."""
    if not path.exists():
        return ""
    text = html.escape(caption)
    return f'<figure><img alt="{text}" src="{embedded(path)}"><figcaption>{text}</figcaption></figure>'


def missing(command: str) -> str:
    """What stands where there are no results."""
    return f'<p class="missing">Not measured yet: <code>{html.escape(command)}</code></p>'


def folded(summary: str, content: str) -> str:
    """Content that opens by a click, and is whole in print by the browser's choice."""
    return f"<details><summary>{html.escape(summary)}</summary>{content}</details>"


def page(title: str, lead: str, sections: dict[str, tuple[str, str]]) -> str:
    """The page: sections by key, each a heading and its HTML."""
    contents = " ".join(f'<a href="#{key}">{html.escape(heading)}</a>' for key, (heading, _) in sections.items())
    parts = [f'<h2 id="{key}">{html.escape(head)}</h2>\n{body}' for key, (head, body) in sections.items()]
    return PAGE.format(title=html.escape(title), css=CSS, lead=lead, contents=contents, sections="\n".join(parts))
