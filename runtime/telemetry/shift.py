"""How far a distribution moved: the population stability index, feature by feature and month by month.

PSI = sum over bins of (a - e) ln(a / e), with e and a the shares of the reference and of the compared sample in
the bin: the symmetrised Kullback-Leibler divergence of the two histograms. Reading of the figure after Siddiqi,
"Credit Risk Scorecards" (2006): under 0.10 stable, 0.10 to 0.25 some shift, above 0.25 a shift to act on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

BINS = 10
FLOOR = 1e-4
"""Least share of a bin, so that an empty one gives a large figure and not an infinite one."""

SOME, LARGE = 0.10, 0.25
RULE = (
    f"{BINS} bins at the training quantiles, equal edges merged, open at both ends; a feature of at most {BINS} values "
    f"has a bin per value and one for all new values; shares floored at {FLOOR:g}"
)

SOURCE = "Readings after Siddiqi, Credit Risk Scorecards (2006); mean without shift after Yurdakul (2018)"

Floats = npt.NDArray[np.float64]


def edges(reference: npt.ArrayLike, bins: int = BINS) -> Floats:
    """Inner bin edges of `reference` by `RULE`. Bin i holds edges[i-1] <= x < edges[i]. NaN is refused (ValueError)."""
    values = _finite(reference)
    distinct = np.unique(values)
    if distinct.size <= bins:
        # an edge just above each value too: whatever is between or beyond known values falls in a bin of its own
        return np.unique(np.concatenate([distinct, np.nextafter(distinct, np.inf)]))
    inner = np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1])
    return np.unique(inner)


def shares(sample: npt.ArrayLike, inner: Floats) -> Floats:
    """The share of `sample` in each of the `len(inner) + 1` bins; they sum to 1."""
    values = _finite(sample)
    counts = np.bincount(np.searchsorted(inner, values, side="right"), minlength=inner.size + 1)
    return counts / values.size


def psi(reference_shares: npt.ArrayLike, sample_shares: npt.ArrayLike, floor: float = FLOOR) -> float:
    """The index of two histograms over the same bins; 0 when they are equal. Bins empty in both do not count."""
    e, a = np.asarray(reference_shares, np.float64), np.asarray(sample_shares, np.float64)
    if e.shape != a.shape:
        raise ValueError(f"{e.size} bins and {a.size} bins")
    used = (e > 0) | (a > 0)
    e, a = np.maximum(e[used], floor), np.maximum(a[used], floor)
    return float(np.sum((a - e) * np.log(a / e)))


def reading(index: float) -> str:
    """The index in a word."""
    return "stable" if index < SOME else "some shift" if index < LARGE else "large shift"


def expected(bins: int, reference: int, sample: int) -> float:
    """The mean of the index when nothing moved: (bins - 1)(1/reference + 1/sample), its chi-squared limit.

    After Yurdakul, "Statistical Properties of Population Stability Index" (2018). Both are counts of rows.
    """
    return (bins - 1) * (1 / reference + 1 / sample)


def shift_table(
    reference: Mapping[str, npt.ArrayLike],
    samples: Mapping[str, Mapping[str, npt.ArrayLike]],
    bins: int = BINS,
) -> list[dict[str, Any]]:
    """A row per column of `reference`: {"name", "psi": {sample: index}, "max", "reading"}, largest first.

    `samples` maps a sample's name (a month) to its columns.
    """
    rows = []
    for name, values in reference.items():
        inner = edges(values, bins)
        base = shares(values, inner)
        found = {key: psi(base, shares(columns[name], inner)) for key, columns in samples.items()}
        top = max(found.values(), default=0.0)
        rows.append({"name": name, "psi": found, "max": top, "reading": reading(top)})
    return sorted(rows, key=lambda row: (-row["max"], row["name"]))


def _finite(values: npt.ArrayLike) -> Floats:
    found = np.asarray(values, np.float64).ravel()
    if found.size == 0 or not np.isfinite(found).all():
        raise ValueError("a distribution needs at least one value, all finite")
    return found
