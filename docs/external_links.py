"""Asks whether the addresses of other sites that the pages name still answer; needs a network.

python docs/external_links.py
"""

from __future__ import annotations

import re
import sys
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[1]
ADDRESS = re.compile(r"\]\((https?://[^)\s]+)\)")
PLACEHOLDER = "github.com/OWNER/"


def addresses() -> dict[str, str]:
    """Every address, and a page that has it."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return {address: str(page.relative_to(ROOT)) for page in pages for address in ADDRESS.findall(page.read_text())}


def answers(address: str) -> str:
    """Nothing, or why it does not answer."""
    asked = urllib.request.Request(address, headers={"User-Agent": "esrl-docs"})
    try:
        with urllib.request.urlopen(asked, timeout=20):
            return ""
    except OSError as error:
        return str(error)


def main() -> int:
    bad = 0
    for address, page in addresses().items():
        if PLACEHOLDER not in address and (why := answers(address)):
            print(f"{page}: {address}: {why}")
            bad += 1
    return bad > 0


if __name__ == "__main__":
    sys.exit(main())
