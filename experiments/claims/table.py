"""The table of claims/run.py from its result files: the claims of claims.csv in numbers, and how far points are off.

A claim is a line of claims.csv: the row of a part with this quantity and these settings.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

from experiments import script

CLAIMS = Path(__file__).with_name("claims.csv")
HEAD = ("claim", "measured", "theory", "distance, standard errors")
DISTANCES = ("part", "rows", "with exact theory", "largest distance", "expected of as many normal numbers")


def table(folder: Path, parts: list[str]) -> str:
    """Two tables in Markdown: the claims, and each part's distances from exact theory."""
    found = {name: pd.read_csv(folder / f"{name}.csv") for name in parts if (folder / f"{name}.csv").exists()}
    if not found:
        return f"{folder} has no results"
    claims = []
    for claim in pd.read_csv(CLAIMS, keep_default_na=False).itertuples():
        rows = matching(found[claim.part], claim.quantity, claim.where) if claim.part in found else pd.DataFrame()
        claims += [] if rows.empty else [_claim(claim.claim, rows.iloc[0])]
    distances = [_distances(name, rows) for name, rows in found.items()]
    return script.table(HEAD, claims) + "\n\n" + script.table(DISTANCES, distances)


def matching(rows: pd.DataFrame, quantity: str, where: str) -> pd.DataFrame:
    """The rows of a quantity with settings as in "m=48; rank=2"."""
    rows = rows[rows["quantity"] == quantity]
    for column, _, value in (setting.partition("=") for setting in where.split("; ") if setting):
        rows = rows[rows[column].map(lambda cell, value=value: same(cell, value))] if column in rows else rows[:0]
    return rows


def same(cell: Any, text: str) -> bool:
    """Whether a cell is what a condition says: as numbers where both are, else as text."""
    try:
        return float(cell) == float(text)
    except (TypeError, ValueError):
        return str(cell) == text


def _claim(text: str, row: pd.Series) -> list[str]:
    measured = number(row["measured"], row["standard_error"])
    if pd.isna(row["theory"]):
        return [text, measured, "none", ""]
    about = "about " * (row["basis"] != "exact")
    return [text, measured, f"{about}{row['theory']:.4g}", f"{row['z']:.1f}"]


def number(value: float, error: float) -> str:
    """A value with its standard error, both to the error's second digit; four digits where there is no error."""
    if not (math.isfinite(error) and error > 0):
        return f"{value:.4g}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:,.{digits}f} ± {error:,.{digits}f}"


def _distances(name: str, rows: pd.DataFrame) -> list[Any]:
    exact = rows[rows["basis"] == "exact"]
    largest, varying = exact["z"].abs().max(), int((exact["standard_error"] > 0).sum())
    # the median of the largest of as many normal numbers
    expected = f"{stats.norm.ppf((1 + 0.5 ** (1 / varying)) / 2):.1f}" if varying else ""
    return [name, len(rows), len(exact), "" if pd.isna(largest) else f"{largest:.1f}", expected]
