"""Figures are whole: every committed picture opens and shows something, and one that breaks off leaves the old one."""

import subprocess
from pathlib import Path

import pytest

Image = pytest.importorskip("PIL.Image")
ROOT = Path(__file__).parents[2]
ENDINGS = {".png", ".jpg", ".jpeg", ".gif", ".webp"}


def committed() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:  # an unpacked archive has no index
        listed.stdout = "\0".join(str(p.relative_to(ROOT)) for place in ("plots", "experiments")
                                  for p in (ROOT / place).rglob("*"))  # fmt: skip
    return [ROOT / name for name in listed.stdout.split("\0") if Path(name).suffix.lower() in ENDINGS]


def test_every_committed_picture_shows_something():
    pictures = committed()
    assert len(pictures) > 10
    for path in pictures:
        with Image.open(path) as picture:
            picture.load()  # reads every byte: a picture that was cut off raises here
            extrema = picture.convert("L").getextrema()
        assert extrema[1] - extrema[0] > 50, f"{path} is blank"


def test_a_figure_that_breaks_off_leaves_the_old_one(tmp_path):
    figures = pytest.importorskip("experiments.lab.figures")

    class Broken:
        def savefig(self, path, **_):
            path.write_bytes(b"\x89PNG")
            raise KeyboardInterrupt

    class Whole:
        def savefig(self, path, **_):
            path.write_bytes(b"whole")

    path = tmp_path / "a.png"
    figures.save(Whole(), path)
    with pytest.raises(KeyboardInterrupt):
        figures.save(Broken(), path)
    assert path.read_bytes() == b"whole"
