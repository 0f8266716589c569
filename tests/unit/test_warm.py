"""The warm-up is a real decision: what is lent is taken back for its owner."""

from __future__ import annotations

from moorage.scheduling.warm import warm_up


def test_the_owner_of_a_quota_pushes_out_who_borrowed_it() -> None:
    """S2: reclaim."""
    decided = warm_up()
    assert decided.preempted == ("l",)
    assert decided.admitted.tolist() == [0]
    assert decided.task_devices.tolist() == [1]
