"""The paired bootstrap over days and the words that the demo makes of it. L2; no Ray."""

from __future__ import annotations

import math
from typing import Any

import flights_case
import numpy as np
import pytest

from moorage.runtime.telemetry import paired

flights_case.importable()
from demo_steps import sections  # noqa: E402


def two_models(days: int = 40, rows: int = 60, better: float = 0.0) -> tuple[Any, Any, Any, Any]:
    """Labels, two models' probabilities and the day of each row; the first sees `better` more of the truth."""
    rng = np.random.default_rng(3)
    day = np.repeat(np.arange(days), rows)
    truth = rng.normal(size=day.size) + rng.normal(size=days)[day]
    label = (truth + rng.normal(size=day.size) > 1).astype(float)
    one, other = (1 / (1 + np.exp(1 - s * truth + rng.normal(size=day.size))) for s in (1 + better, 1.0))
    return label, one.round(2), other.round(2), day


def test_the_paired_difference_is_that_of_the_metrics_ties_and_all() -> None:
    from moorage.train.evaluate import auc, log_loss

    label, one, other, day = two_models(better=0.5)
    found = paired.difference(label, one, other, day)
    for key, measure in (("auc", auc), ("log_loss", log_loss)):
        assert found[key]["difference"] == pytest.approx(
            measure(label, one) - measure(label, other), abs=1e-12
        )
    assert found["groups"] == 40


def test_each_draw_is_the_auc_of_the_drawn_days() -> None:
    """The form in the counts of days against the rows written out."""
    from moorage.train.evaluate import auc

    label, one, _, day = two_models(days=6, rows=20)
    pairs = paired.pairs_in_order(label, one, day, 6)
    counts = np.array([2.0, 0, 1, 0, 0, 3])
    rows = np.concatenate([np.flatnonzero(day == d) for d in (0, 0, 2, 5, 5, 5)])
    positive = np.bincount(day, weights=label)
    form = counts @ pairs @ counts / ((counts @ positive) * (counts @ (20 - positive)))
    assert form == pytest.approx(auc(label[rows], one[rows]), abs=1e-12)


def test_noise_is_called_noise_and_a_gap_is_not() -> None:
    equal = paired.difference(*two_models())
    for key in ("auc", "log_loss"):
        assert equal[key]["low"] < 0 < equal[key]["high"]
    assert sections.verdict_of(equal).count("equal within noise") == 2
    label, one, other, day = two_models(better=2.0)
    assert "ROC-AUC better" in sections.verdict_of(paired.difference(label, one, other, day))
    assert "ROC-AUC worse" in sections.verdict_of(paired.difference(label, other, one, day))


def test_the_same_seed_draws_the_same_days_and_a_model_equals_itself() -> None:
    label, one, other, day = two_models()
    assert paired.difference(label, one, other, day) == paired.difference(label, one, other, day)
    assert paired.difference(label, one, other, day, seed=1) != paired.difference(label, one, other, day)
    itself = paired.difference(label, one, one, day)
    assert itself["auc"] == itself["log_loss"] == {"difference": 0.0, "low": 0.0, "high": 0.0}


@pytest.mark.parametrize(("at", "bad"), [(1, math.nan), (2, math.inf)])
def test_scores_that_are_no_numbers_and_a_single_day_are_refused(at: int, bad: float) -> None:
    given = list(two_models())
    with pytest.raises(ValueError, match="nothing to draw"):
        paired.difference(*given[:3], np.zeros_like(given[3]))
    given[at][5] = bad
    with pytest.raises(ValueError, match="finite"):
        paired.difference(*given)
