"""Quality of probabilistic binary classifiers: AUC, log-loss, Brier score, against a majority baseline."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def _check(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[Array, Array]:
    y, p = np.asarray(labels, np.float64).ravel(), np.asarray(scores, np.float64).ravel()
    if y.shape != p.shape or y.size == 0:
        raise ValueError(f"{y.size} labels and {p.size} scores")
    if not np.isin(y, (0.0, 1.0)).all():
        raise ValueError("labels must be 0 or 1")
    if not np.isfinite(p).all():
        raise ValueError("scores must be finite")
    return y, p


def auc(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Area under the ROC curve: P(score of a positive > score of a negative), ties count half. NaN with one class.

    The Mann-Whitney form over mid-ranks (Hanley and McNeil 1982); O(n log n).
    """
    y, p = _check(labels, scores)
    positives = float(y.sum())
    negatives = y.size - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    _, inverse, counts = np.unique(p, return_inverse=True, return_counts=True)
    mid_ranks = np.cumsum(counts) - (counts - 1) / 2.0
    rank_sum = float(mid_ranks[inverse][y == 1].sum())
    return (rank_sum - positives * (positives + 1) / 2.0) / (positives * negatives)


def log_loss(labels: npt.ArrayLike, probabilities: npt.ArrayLike, eps: float = 1e-7) -> float:
    """Mean negative log-likelihood in nats; probabilities are clipped to [eps, 1 - eps]."""
    y, p = _check(labels, probabilities)
    if (p < 0).any() or (p > 1).any():
        raise ValueError("probabilities must be in [0, 1]")
    p = np.clip(p, eps, 1 - eps)
    return float(-np.mean(y * np.log(p) + (1 - y) * np.log1p(-p)))


def evaluate(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> dict[str, float]:
    """All metrics of one set of predictions, with the number of rows and the base rate."""
    y, p = _check(labels, probabilities)
    return {
        "rows": float(y.size),
        "positive_rate": float(y.mean()),
        "auc": auc(y, p),
        "log_loss": log_loss(y, p),
        "brier": float(np.mean((p - y) ** 2)),
        "accuracy": float(np.mean((p >= 0.5) == (y == 1))),
    }


def majority_baseline(labels: npt.ArrayLike, train_positive_rate: float) -> Mapping[str, float]:
    """Metrics of the constant prediction that the training set's base rate gives."""
    y = np.asarray(labels, np.float64).ravel()
    return evaluate(y, np.full(y.shape, train_positive_rate))
