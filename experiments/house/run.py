"""How large is each room of esrl, and who imports whom? Prints it in numbers.

python -m experiments.house.run     # or: make lines
"""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("core", "perturbation", "policies", "envs", "rollouts", "algorithms", "training", "watch", "cli")
FLOORS = {
    "core": 0,
    "perturbation": 1,
    "policies": 1,
    "envs": 2,
    "rollouts": 3,
    "algorithms": 4,
    "training": 5,
    "watch": 6,
    "cli": 7,
}


def files() -> list[Path]:
    """Every Python file of the library that git tracks."""
    listed = subprocess.run(["git", "ls-files", "esrl/*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [path for path in (ROOT / name for name in listed.stdout.split()) if path.exists()]


def comments_of(path: Path) -> tuple[int, int]:
    """Lines of code (without docstrings, comments and blank lines), and comments."""
    text = path.read_text()
    docs = {
        line
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node, clean=False)
        for line in range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
    }
    lines = [(i, line.strip()) for i, line in enumerate(text.splitlines(), 1)]
    code = sum(1 for i, line in lines if line and i not in docs and not line.startswith("#"))
    return code, sum(1 for i, line in lines if i not in docs and ("  # " in line or line.startswith("# ")))


def functions_of(path: Path) -> list[tuple[int, str]]:
    """Length of each function without its docstring, and where it is."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            first = node.body[0]
            doc = ast.get_docstring(node, clean=False)
            start = (first.end_lineno or 0) + 1 if doc and len(node.body) > 1 else first.lineno
            found.append(((node.end_lineno or 0) - start + 1, f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"))
    return found


def room_of(module: str) -> str | None:
    """The room of a module; None for the face and what starts the command line."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else None


def circles(graph: grimp.ImportGraph) -> set[str]:
    """The modules that import themselves through others, function-level imports included."""
    imported = graph.find_modules_directly_imported_by
    return {m for m in graph.modules if any(graph.chain_exists(other, m) for other in imported(m))}


def main() -> None:
    paths = files()
    print(f"{'room':14s}{'files':>6s}{'lines':>7s}{'comments in 100 lines of code':>32s}")
    for room in (*ROOMS, ""):
        own = [p for p in paths if (p.relative_to(ROOT).parts[1] if len(p.relative_to(ROOT).parts) > 2 else "") == room]
        code, comments = (sum(x) for x in zip(*map(comments_of, own), strict=True))
        lines = sum(len(p.read_text().splitlines()) for p in own)
        print(f"{room or 'esrl itself':14s}{len(own):6d}{lines:7d}{100 * comments / max(code, 1):32.1f}")
    whole = [(len(p.read_text().splitlines()), str(p.relative_to(ROOT))) for p in paths]
    print(f"{'all':14s}{len(whole):6d}{sum(n for n, _ in whole):7d}\n")
    print("longest files:    ", *(f"{n} {name}" for n, name in sorted(whole)[-3:]), sep="\n  ")
    longest = sorted(found for p in paths for found in functions_of(p))[-3:]
    print("longest functions:", *(f"{n} {name}" for n, name in longest), sep="\n  ")

    graph = grimp.build_graph("esrl")
    arrows = {
        (room_of(m), room_of(other))
        for m in graph.modules
        for other in graph.find_modules_directly_imported_by(m)
        if room_of(m) and room_of(other) and room_of(m) != room_of(other)
    }
    upward = sorted((a, b) for a, b in arrows if FLOORS[str(a)] <= FLOORS[str(b)])
    floors = len(set(FLOORS.values()))
    print(f"\n{len(ROOMS)} rooms on {floors} floors, {len(arrows)} arrows between them, {len(upward)} upward")
    print(f"{len(graph.modules)} modules, {len(circles(graph))} of them in a circle of imports")


if __name__ == "__main__":
    main()
