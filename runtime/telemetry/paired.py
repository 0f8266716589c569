"""Whether one model is better than another on the same rows, or only luckier with the days: a paired bootstrap.

Rows of one day share its weather and its traffic jams, so whole days are drawn, with replacement, and both models
are measured on the same draw (Efron and Tibshirani 1993, percentile interval; groups drawn whole as in Davison and
Hinkley 1997, 3.8). The AUC of a draw is a quotient of forms in the counts w of the groups: with A[d, e] the pairs of a
late row of d and an early row of e in the right order (ties half), it is w'Aw / (w'p)(w'n). So the rows are ranked
once, not once per draw.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
RESAMPLES, LEVEL = 500, 0.95
_CLIP = 1e-7


def pairs_in_order(label: Floats, score: Floats, group: Ints, groups: int) -> Floats:
    """A[d, e]: pairs of a positive of group d and a negative of e that `score` orders rightly. [n] x3 -> [g, g]."""
    positive = label == 1
    order = np.argsort(score[positive])
    high, where = score[positive][order], group[positive][order]
    low, of = score[~positive], group[~positive]
    counted = np.zeros((groups, groups))
    for e in range(groups):
        ranked = np.sort(low[of == e])
        wins = np.searchsorted(ranked, high, side="left") + np.searchsorted(ranked, high, side="right")
        counted[:, e] = np.bincount(where, weights=wins / 2.0, minlength=groups)
    return counted


def _auc(counts: Floats, pairs: Floats, positives: Floats, negatives: Floats) -> Floats:
    """The AUC of each draw; `counts` [draws, g] says how often each group was drawn."""
    ordered = np.einsum("rd,rd->r", counts @ pairs, counts)
    with np.errstate(invalid="ignore"):  # a draw without one of the classes has no AUC
        return np.asarray(ordered / ((counts @ positives) * (counts @ negatives)))


def _losses(label: Floats, score: Floats) -> Floats:
    inside = np.clip(score, _CLIP, 1 - _CLIP)
    return np.asarray(-(label * np.log(inside) + (1 - label) * np.log1p(-inside)))


def difference(
    label: npt.ArrayLike,
    one: npt.ArrayLike,
    other: npt.ArrayLike,
    group: npt.ArrayLike,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """AUC and log-loss (nats) of `one` minus those of `other`: {"difference", "low", "high"} each, 95% between.

    Labels are 0 or 1, scores probabilities, `group` any id (say, the day) per row. Raises ValueError when the shapes
    differ, a score is not finite, or there are fewer than two groups.
    """
    y = np.asarray(label, np.float64)
    first, second = np.asarray(one, np.float64), np.asarray(other, np.float64)
    names, at = np.unique(np.asarray(group), return_inverse=True)
    if not y.shape == first.shape == second.shape == at.shape or y.ndim != 1:
        raise ValueError(f"shapes differ: {y.shape}, {first.shape}, {second.shape}, {at.shape}")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("scores must be finite")
    if names.size < 2:
        raise ValueError(f"{names.size} group: nothing to draw from")
    size = int(names.size)
    draws = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), size=resamples)
    counts = np.vstack([np.ones(size), draws]).astype(np.float64)  # row 0 is the data as it is
    positives = np.bincount(at, weights=y, minlength=size).astype(np.float64)
    rows = np.bincount(at, minlength=size).astype(np.float64)
    aucs, losses = [], []
    for score in (first, second):
        aucs.append(_auc(counts, pairs_in_order(y, score, at, size), positives, rows - positives))
        losses.append(counts @ np.bincount(at, weights=_losses(y, score), minlength=size) / (counts @ rows))
    return {
        "auc": _interval(aucs[0] - aucs[1]),
        "log_loss": _interval(losses[0] - losses[1]),
        "groups": size,
        "resamples": resamples,
        "seed": seed,
        "level": LEVEL,
    }


def _interval(differences: Floats) -> dict[str, float]:
    low, high = np.nanquantile(differences[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"difference": float(differences[0]), "low": float(low), "high": float(high)}
