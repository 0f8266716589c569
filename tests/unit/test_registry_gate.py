"""The gate decides from figures alone, and says why (T6)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.runtime.registry.gate import GatePolicy, Holdout, gate

GOOD = Holdout(rows_id="july", log_loss=0.48, auc=0.80, majority_log_loss=0.63)


def failed(candidate: Holdout, champion: Holdout | None, policy: GatePolicy | None = None) -> list[str]:
    decision = gate(candidate, champion, policy, against="1" if champion else "")
    assert decision.passed == (not [c for c in decision.checks if not c.passed])
    return [check.rule for check in decision.checks if not check.passed]


def test_the_first_good_model_passes() -> None:
    assert failed(GOOD, None) == []


def test_a_better_model_passes_and_a_worse_one_is_refused_with_both_figures() -> None:
    assert failed(replace(GOOD, log_loss=0.47), GOOD) == []
    decision = gate(replace(GOOD, log_loss=0.49), GOOD, against="4")
    assert not decision.passed and decision.against == "4"
    (reason,) = decision.reasons
    assert "0.49000" in reason and "0.48000" in reason


def test_the_margin_is_inclusive() -> None:
    worse = replace(GOOD, log_loss=0.5)
    champion = replace(GOOD, log_loss=0.375)
    assert failed(worse, champion, GatePolicy(margin=0.125)) == []
    assert failed(worse, champion, GatePolicy(margin=0.1249)) == ["not-worse-than-champion"]


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"log_loss": 0.63}, "beats-majority"),
        ({"auc": 0.5}, "ranks"),
        ({"log_loss": float("nan")}, "finite"),
        ({"auc": float("inf")}, "finite"),
        ({"majority_log_loss": float("nan")}, "finite"),
    ],
)
def test_a_model_that_learned_nothing_is_refused_even_without_a_champion(
    change: dict[str, float], rule: str
) -> None:
    assert failed(replace(GOOD, **change), None) == [rule]


def test_figures_of_other_rows_are_not_compared() -> None:
    assert failed(replace(GOOD, log_loss=0.4), replace(GOOD, rows_id="june")) == ["same-rows"]


def test_a_champion_without_figures_cannot_be_beaten_by_default() -> None:
    assert "not-worse-than-champion" in failed(GOOD, replace(GOOD, log_loss=float("nan")))


@given(st.floats(0.01, 0.6), st.floats(0.01, 0.6), st.floats(0, 0.2))
def test_a_pass_is_never_worse_than_the_margin(candidate: float, champion: float, margin: float) -> None:
    figures = replace(GOOD, log_loss=candidate)
    decision = gate(figures, replace(GOOD, log_loss=champion), GatePolicy(margin=margin))
    assert decision.passed == (candidate - champion <= margin)
