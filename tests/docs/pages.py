"""The documentation's pages, and the blocks of code in them."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^\s*(`{3,})\s*(\w*)\s*$")
_NOT_RUN = re.compile(r"<!-- not run: (\S.*) -->")
_FILE = re.compile(r"# (\w+\.py)\n")


class Block(NamedTuple):
    """A fenced block: its kind, text and first line; why it is not run, or ""."""

    kind: str
    text: str
    line: int
    not_run: str

    @property
    def file(self) -> str:
        """The file that it is, by its first line; "" for a script."""
        found = _FILE.match(self.text) if self.kind == "python" else None
        return found[1] if found else ""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[Block]:
    """Every fenced block of a page, in order."""
    found: list[Block] = []
    lines, fence, begun, above = page.read_text().splitlines(), "", 0, ""
    for number, line in enumerate(lines, 1):
        mark = _FENCE.match(line)
        if not fence and mark:
            reason = _NOT_RUN.fullmatch(above)
            fence, kind, begun, why = mark[1], mark[2], number, reason[1] if reason else ""
        elif fence and mark and mark[1] == fence and not mark[2]:
            text = "\n".join(lines[begun : number - 1]) + "\n"
            found.append(Block(kind, text, begun + 1, why))
            fence = ""
        if line.strip():
            above = line.strip()
    assert not fence, f"{name_of(page)}: the block of line {begun} has no end"
    return found


def commands(text: str) -> list[str]:
    """The commands of a block of shell: its lines, those that go on joined."""
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]


def prose(page: Path) -> str:
    """A page without its blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
