"""Metrics against figures known by hand and against scikit-learn (T6)."""

from __future__ import annotations

import math

import numpy as np
import pytest

from moorage.train.evaluate import auc, evaluate, log_loss, majority_baseline


def test_auc_of_small_cases_known_by_hand() -> None:
    assert auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]) == 0.75
    assert auc([0, 1], [0.2, 0.9]) == 1.0
    assert auc([0, 1], [0.9, 0.2]) == 0.0
    assert auc([0, 1, 0, 1], [0.5, 0.5, 0.5, 0.5]) == 0.5
    assert auc([0, 1, 1], [0.5, 0.5, 0.9]) == 0.75  # a tie counts half
    assert math.isnan(auc([1, 1], [0.1, 0.2]))


def test_log_loss_of_small_cases_known_by_hand() -> None:
    assert log_loss([1, 0], [0.5, 0.5]) == pytest.approx(math.log(2))
    assert log_loss([1], [0.8]) == pytest.approx(-math.log(0.8))
    assert log_loss([1], [0.0], eps=1e-7) == pytest.approx(-math.log(1e-7))


@pytest.mark.parametrize("seed", range(5))
def test_both_agree_with_scikit_learn(seed: int) -> None:
    sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn is an optional peer")
    rng = np.random.default_rng(seed)
    labels = (rng.random(500) < 0.2).astype(float)
    scores = np.round(rng.random(500), 2)  # rounded: many ties
    inside = np.clip(scores, 0.01, 0.99)
    assert auc(labels, scores) == pytest.approx(sklearn.roc_auc_score(labels, scores), abs=1e-12)
    assert log_loss(labels, inside) == pytest.approx(sklearn.log_loss(labels, inside), abs=1e-12)
    assert evaluate(labels, inside)["brier"] == pytest.approx(
        sklearn.brier_score_loss(labels, inside), abs=1e-12
    )


def test_the_majority_baseline_is_the_entropy_when_the_rates_agree() -> None:
    labels = [1.0] * 25 + [0.0] * 75
    base = majority_baseline(labels, 0.25)
    assert base["log_loss"] == pytest.approx(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)))
    assert base["auc"] == 0.5 and base["accuracy"] == 0.75


@pytest.mark.parametrize(
    ("labels", "scores"), [([0, 1], [0.5]), ([], []), ([0, 2], [0.1, 0.2]), ([0, 1], [0.1, float("nan")])]
)
def test_what_cannot_be_measured_is_refused(labels: list[float], scores: list[float]) -> None:
    with pytest.raises(ValueError):
        auc(labels, scores)


def test_probabilities_outside_zero_to_one_are_refused() -> None:
    with pytest.raises(ValueError, match="probabilities"):
        log_loss([0, 1], [0.5, 1.5])
