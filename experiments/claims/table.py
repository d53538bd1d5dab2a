"""The table of claims/run.py, from its result files: the claims in numbers, and how far all points are off."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from scipy import stats


class Claim(NamedTuple):
    """A line of the table: the row of a part with this quantity and these settings."""

    part: str
    text: str
    quantity: str
    where: dict[str, Any]


def _linear(distribution: str, rank: int | str, size: int = 64) -> dict[str, Any]:
    return {"fitness": "linear, every coordinate", "distribution": distribution, "m": size, "rank": rank}


CLAIMS = [
    Claim("error-rank", "Squared error, 64x64, dense", "squared error", _linear("normal", 0)),
    Claim("error-rank", "Squared error, 64x64, rank 1", "squared error", _linear("normal", 1)),
    Claim("error-rank", "Squared error, 64x64, rank 1, signs", "squared error", _linear("rademacher", 1)),
    Claim("error-rank", "Excess over dense falls as R to the power", "power of R in the excess", {"m": 16}),
    Claim(
        "error-rank",
        "Mean of the estimate against dense, sine of a rank-one G, rank 1",
        "mean along G over dense noise's, less 1",
        {"fitness": "sine, rank-one G", "rank": 1},
    ),
    Claim(
        "error-rank",
        "The same, a full-rank G, rank 1",
        "mean along G over dense noise's, less 1",
        {"fitness": "sine, full-rank G", "rank": 1},
    ),
    Claim("error-rank", "That distance falls as R to the power", "power of R in the bias", {}),
    Claim(
        "error-width",
        "Excess of rank 1, 8x8",
        "excess relative to dense",
        {"m": 8, "rank": 1, "distribution": "normal"},
    ),
    Claim(
        "error-width",
        "Excess of rank 1, 128x128",
        "excess relative to dense",
        {"m": 128, "rank": 1, "distribution": "normal"},
    ),
    Claim(
        "error-width", "Cosine with the gradient, 64 pairs, 16x16, dense", "cosine with 64 pairs", {"m": 16, "rank": 0}
    ),
    Claim(
        "error-width",
        "The same, rank 1",
        "cosine with 64 pairs",
        {"m": 16, "rank": 1, "distribution": "normal"},
    ),
    Claim(
        "update-rank",
        "Rank of the update, 12 pairs of rank 2, 48x32",
        "rank of the update",
        {"m": 48, "rank": 2, "pairs": 12},
    ),
    Claim(
        "update-rank",
        "Rank of the update, 96 pairs of rank 1, 48x32",
        "rank of the update",
        {"m": 48, "rank": 1, "pairs": 96},
    ),
    Claim("thin", "Excess of rank 1 on 256x2", "excess relative to dense", {"layer": "256x2", "thin": "off"}),
    Claim(
        "thin", "The same with thin=0.25 (dense noise)", "excess relative to dense", {"layer": "256x2", "thin": "0.25"}
    ),
    Claim("thin", "Excess of rank 1 on 256x256", "excess relative to dense", {"layer": "256x256", "thin": "off"}),
    Claim(
        "thin",
        "Excess of rank 1 in a network 4-256-256-2",
        "excess relative to dense",
        {"layer": "network 4-256-256-2", "thin": "off"},
    ),
    Claim(
        "thin",
        "The same with thin=0.25",
        "excess relative to dense",
        {"layer": "network 4-256-256-2", "thin": "0.25"},
    ),
    *(
        Claim(
            "antithetic",
            f"Leave-one-out over antithetic, squared errors at 32 evaluations: {fitness}, rank 1",
            "ratio of squared errors",
            {"fitness": fitness, "rank": 1},
        )
        for fitness in (
            "linear",
            "quadratic, mild",
            "quadratic, strong",
            "quadratic, strong, small sigma",
            "noisy linear, small sigma",
        )
    ),
    *(
        Claim("antithetic", f"The same: {fitness}, dense", "ratio of squared errors", {"fitness": fitness, "rank": 0})
        for fitness in ("linear", "quadratic, mild", "quadratic, strong")
    ),
    *(
        Claim("crn", f"{env}, common random numbers {words}", quantity, {"env": env, "crn": crn})
        for env in ("gymnax/Pendulum-v1", "brax/inverted_pendulum")
        for words, quantity, crn in (
            ("on: variance over worlds of f+ - f-", "variance over worlds of f+ - f-", "on"),
            ("off: the same", "variance over worlds of f+ - f-", "off"),
            ("off / on: variance of the estimate along the gradient", "ratio of the estimate's variances", "off / on"),
        )
    ),
    *(
        Claim("spectrum", f"Fourth spectral moment, {pairs} pairs, rank 1", "fourth spectral moment", where)
        for pairs in (32, 2048)
        for where in ({"pairs": pairs, "rank": 1},)
    ),
    Claim(
        "spectrum",
        "Largest singular value, 2048 pairs, rank 1, over dense noise's",
        "largest singular value",
        {"pairs": 2048, "rank": 1},
    ),
    *(
        Claim(
            "quadratic",
            f"Loss after one step over the first, condition 1, {noise}",
            "loss after one step over the first",
            {"noise": noise},
        )
        for noise in ("dense", "rank 1")
    ),
    *(
        Claim(
            "quadratic",
            f"{quantity.capitalize()} to 0.1 % of the loss, condition {condition}, {noise}",
            quantity,
            {"noise": noise, "condition": condition},
        )
        for quantity, condition in (("iterations", 1), ("iterations", 100), ("evaluations", 100), ("seconds", 100))
        for noise in ("rank 1", "dense", "exact gradient")
    ),
    *(
        Claim(
            "step",
            f"Slope of a smoothed step at two sigmas, {noise}",
            "slope of the smoothed steps",
            {"noise": noise, "distance": 2},
        )
        for noise in ("rank 1", "dense")
    ),
    *(
        Claim("step", f"Steps: {text}, {noise}", quantity, {"noise": noise})
        for text, quantity in (
            ("iterations to climb all, 300 for a run that does not", "iterations to all steps climbed"),
            ("share of runs that climb all", "share of runs that climb all steps"),
        )
        for noise in ("rank 1", "dense")
    ),
    Claim("step", "Steps: distance that SGD moves", "distance that SGD moves", {}),
    *(
        Claim("moons", f"Two moons: {quantity}, {noise}", quantity, {"noise": noise})
        for quantity in ("steps to 97 %", "evaluations to 97 %", "seconds to 97 %")
        for noise in ("rank 1", "dense", "exact gradient")
    ),
    *(
        Claim(
            "grid",
            f"Noisy quadratic, final loss, rank 1, {scheme}, population {population}, sigma {sigma}",
            "final loss over the first",
            {"scheme": scheme, "rank": 1, "population": population, "sigma": sigma},
        )
        for scheme, population, sigma in (
            ("antithetic", 32, 0.2),
            ("antithetic", 32, 3.0),
            ("leave one out", 32, 0.2),
            ("leave one out", 32, 3.0),
        )
    ),
    Claim(
        "wrong-update",
        "Product of sums: projection on the gradient",
        "projection on the gradient",
        {"update": "product of sums", "rank": 1},
    ),
    Claim(
        "wrong-update",
        "Sum of products: projection on the gradient",
        "projection on the gradient",
        {"update": "sum of products", "rank": 1},
    ),
    Claim(
        "wrong-update",
        "Product of sums: loss on a quadratic after 200 steps, over its first value",
        "loss over its first value",
        {"update": "product of sums", "rank": 1, "step": 200},
    ),
    Claim(
        "wrong-update",
        "Sum of products: the same",
        "loss over its first value",
        {"update": "sum of products", "rank": 1, "step": 200},
    ),
]


def table(folder: Path, parts: list[str]) -> str:
    """Two tables in Markdown: the claims, and each part's distances from exact theory."""
    found = {name: pd.read_csv(folder / f"{name}.csv") for name in parts if (folder / f"{name}.csv").exists()}
    if not found:
        return f"{folder} has no results"
    lines = ["| claim | measured | theory | distance, standard errors |", "|---|---|---|---|"]
    for claim in CLAIMS:
        here = row_of(found[claim.part], claim) if claim.part in found else None
        lines += [] if here is None else [_line(claim.text, here)]
    lines += ["", "| part | rows | with exact theory | largest distance | expected of as many normal numbers |"]
    lines += ["|---|---|---|---|---|", *(_distances(name, rows) for name, rows in found.items())]
    return "\n".join(lines)


def row_of(rows: pd.DataFrame, claim: Claim) -> pd.Series | None:
    """The first row that fits a claim, or None: settings are compared as numbers where both are, else as text."""
    good = rows["quantity"] == claim.quantity
    for column, value in claim.where.items():
        good &= rows[column].map(lambda cell, value=value: _same(cell, value)) if column in rows else False
    return rows[good].iloc[0] if good.any() else None


def _same(cell: Any, value: Any) -> bool:
    try:
        return float(cell) == float(value)
    except (TypeError, ValueError):
        return str(cell) == str(value)


def _line(text: str, row: pd.Series) -> str:
    measured = number(row["measured"], row["standard_error"])
    if pd.isna(row["theory"]):
        return f"| {text} | {measured} | none | |"
    about = "about " * (row["basis"] != "exact")
    return f"| {text} | {measured} | {about}{row['theory']:.4g} | {row['z']:.1f} |"


def number(value: float, error: float) -> str:
    """A value with its standard error, both to the error's second digit; four digits where there is no error."""
    if not (math.isfinite(error) and error > 0):
        return f"{value:.4g}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:,.{digits}f} ± {error:,.{digits}f}"


def _distances(name: str, rows: pd.DataFrame) -> str:
    exact = rows[(rows["basis"] == "exact") & (rows["standard_error"] > 0)]
    points = len(rows[rows["basis"] == "exact"])
    if exact.empty:
        worst = rows.loc[rows["basis"] == "exact", "z"].abs().max()
        return f"| {name} | {len(rows)} | {points} | {'' if pd.isna(worst) else f'{worst:.1f}'} | |"
    expected = stats.norm.ppf((1 + 0.5 ** (1 / len(exact))) / 2)  # the median of the largest
    largest = float(rows.loc[rows["basis"] == "exact", "z"].abs().max())
    return f"| {name} | {len(rows)} | {points} | {largest:.1f} | {expected:.1f} |"
