"""The promotion gate: a pure decision from holdout metrics, with the reason for each rule.

A candidate passes when it beats the constant prediction and is not worse than the champion by more than a margin,
on the same rows. Nothing here reads a clock, a file or a database.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdout:
    """Metrics of one model on one holdout. `rows_id` names the exact rows (data version, split, count).

    `majority_log_loss` is the log-loss on these rows of the constant prediction at the training base rate.
    """

    rows_id: str
    log_loss: float
    auc: float
    majority_log_loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GatePolicy:
    """`margin`: how much worse (nats of log-loss) than the champion still passes. `min_gain`: how much better
    than the majority baseline is the least. `min_auc`: below it a model ranks no better than chance."""

    margin: float = 0.0
    min_gain: float = 0.001
    min_auc: float = 0.55


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One rule's outcome, in words a person can act on."""

    rule: str
    passed: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GateDecision:
    """The outcome of all rules. `against` is the champion's version, "" when there was none."""

    passed: bool
    checks: tuple[Check, ...]
    against: str
    rows_id: str

    @property
    def reasons(self) -> list[str]:
        """Why it failed, or why it passed."""
        return [check.reason for check in self.checks if check.passed == self.passed]

    def as_dict(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "against": self.against,
            "rows_id": self.rows_id,
            "checks": [{"rule": c.rule, "passed": c.passed, "reason": c.reason} for c in self.checks],
        }


def gate(
    candidate: Holdout, champion: Holdout | None, policy: GatePolicy | None = None, *, against: str = ""
) -> GateDecision:
    """Apply every rule of `policy`; all must hold. `champion` None means that there is nothing to beat yet."""
    policy = policy or GatePolicy()
    checks = [_finite(candidate)]
    if checks[0].passed:
        checks += [_majority(candidate, policy), _ranks(candidate, policy)]
        if champion is not None:
            checks += [_same_rows(candidate, champion), _champion(candidate, champion, policy)]
    return GateDecision(
        passed=all(check.passed for check in checks),
        checks=tuple(checks),
        against=against if champion is not None else "",
        rows_id=candidate.rows_id,
    )


def _finite(candidate: Holdout) -> Check:
    figures = {
        "log_loss": candidate.log_loss,
        "auc": candidate.auc,
        "majority_log_loss": candidate.majority_log_loss,
    }
    odd = [name for name, value in figures.items() if not math.isfinite(value)]
    return Check(
        rule="finite",
        passed=not odd,
        reason=f"not finite: {', '.join(odd)}" if odd else "all metrics are finite",
    )


def _majority(candidate: Holdout, policy: GatePolicy) -> Check:
    gain = candidate.majority_log_loss - candidate.log_loss
    return Check(
        rule="beats-majority",
        passed=gain >= policy.min_gain,
        reason=f"log-loss {candidate.log_loss:.5f} against {candidate.majority_log_loss:.5f} of the majority baseline:"
        f" gain {gain:+.5f}, at least {policy.min_gain:+.5f} is needed",
    )


def _ranks(candidate: Holdout, policy: GatePolicy) -> Check:
    return Check(
        rule="ranks",
        passed=candidate.auc >= policy.min_auc,
        reason=f"AUC {candidate.auc:.4f}, at least {policy.min_auc:.4f} is needed",
    )


def _same_rows(candidate: Holdout, champion: Holdout) -> Check:
    same = candidate.rows_id == champion.rows_id
    return Check(
        rule="same-rows",
        passed=same,
        reason=f"both were measured on {candidate.rows_id}"
        if same
        else f"measured on {candidate.rows_id}, the champion on {champion.rows_id}: the figures cannot be compared",
    )


def _champion(candidate: Holdout, champion: Holdout, policy: GatePolicy) -> Check:
    # written so that a NaN anywhere fails
    worse = candidate.log_loss - champion.log_loss
    return Check(
        rule="not-worse-than-champion",
        passed=worse <= policy.margin,
        reason=f"log-loss {candidate.log_loss:.5f} against the champion's {champion.log_loss:.5f}:"
        f" {worse:+.5f}, at most {policy.margin:+.5f} is allowed",
    )


def holdout_from(metrics: Mapping[str, float], rows_id: str, majority_log_loss: float) -> Holdout:
    """A `Holdout` from the dictionary that `moorage.train.evaluate.evaluate` gives."""
    return Holdout(
        rows_id=rows_id,
        log_loss=float(metrics["log_loss"]),
        auc=float(metrics["auc"]),
        majority_log_loss=majority_log_loss,
    )
