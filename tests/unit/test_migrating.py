"""S4, X2: the openb protocol with a migration budget: who moves, how many, and that the ledger agrees."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.scheduling.ledger import Ledger, NodeUp, TeamSet, step
from moorage.scheduling.model import DeviceRule, NodeSpec, TeamSpec
from moorage.scheduling.packing.named import RULES, scoring
from moorage.scheduling.simulator import migrating
from moorage.scheduling.simulator.migrating import Migrating
from moorage.scheduling.simulator.model import COLUMNS, Kind, NotSimulated, Workload
from moorage.scheduling.simulator.queueing import Jobs
from moorage.scheduling.simulator.replay import replay
from moorage.scheduling.validate import check


def workload(milli: list[int], workers: int = 1) -> Workload:
    zero = np.zeros(len(milli), np.int64)
    columns = dict.fromkeys(COLUMNS, zero) | {"milli_gpu": np.array(milli), "workers": zero + workers}
    columns["min_workers"] = columns["workers"]
    return Workload(**columns, names=None, teams=("t",), model_sets=((),), kind=Kind.ARRIVALS)


def nodes(count: int, devices: int = 1) -> list[NodeSpec]:
    return [
        NodeSpec(name=f"n{i}", gpu_model="A", devices=devices, milli_cpu=8000, mib=8000) for i in range(count)
    ]


def seed(
    milli: list[int], pool: list[NodeSpec], share: float, policy: str, rule: DeviceRule = DeviceRule.FREE
) -> Migrating:
    ledger, jobs = Ledger(), Jobs.of(workload(milli))
    step(ledger, TeamSet(TeamSpec(name="t")))
    for spec in pool:
        step(ledger, NodeUp(spec))
    scores = scoring(policy, ledger, jobs.classes, np.bincount(jobs.klass), 7)
    return Migrating(ledger, jobs, np.arange(len(milli)), rule, scores, share)


@pytest.fixture(autouse=True)
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrating, "BATCH", 1)


@pytest.mark.parametrize(("share", "moves"), [(0.5, 1), (0.3, 0)])
def test_a_job_moves_for_one_that_would_not_fit(share: float, moves: int) -> None:
    """300 and 200 lie on the first device, 800 on the second: 200 moves there, and 700 fits."""
    one = seed([300, 800, 200, 700], nodes(2), share, "first")
    accepted, _ = one.run(None)
    assert accepted.tolist() == [True, True, True, bool(moves)]
    assert one.moves == moves
    if moves:
        assert one.place[2] == (1, 1) and one.place[3] == (0, 1)
    check(one.ledger)


def test_the_second_half_of_the_budget_is_for_whole_gpus() -> None:
    one = seed([500], nodes(1), 1.0, "first")
    found = []
    for one.moves in range(5):
        policy = one._policy(4)
        found.append((policy.moves, policy.move_least))
    assert found == [(4, 0), (3, 0), (2, 0), (1, 1000), (0, 1000)]


@settings(max_examples=25, deadline=None)
@given(
    milli=st.lists(st.sampled_from([0, 200, 300, 500, 700, 1000, 2000]), min_size=1, max_size=40),
    share=st.sampled_from([0.1, 0.5, 1.0]),
    policy=st.sampled_from(sorted(RULES)),
    rule=st.sampled_from(DeviceRule),
)
def test_every_move_is_within_the_share_and_the_ledger_agrees(
    milli: list[int], share: float, policy: str, rule: DeviceRule
) -> None:
    one = seed(milli, nodes(4, 2), share, policy, rule)
    accepted, _ = one.run(None)
    assert one.moves <= share * accepted.sum()
    assert sorted(one.leases) == np.flatnonzero(accepted).tolist()
    held = sum(lease.milli_gpu for lease in one.leases.values())
    assert held == np.array(milli)[accepted].sum()
    check(one.ledger)


def test_no_share_is_the_replay_without_moves() -> None:
    milli = [300, 800, 200, 700] * 3
    work = workload(milli)
    runs = [
        replay(nodes(3), work, demand=1.2, seed=3, policy="potential", rule=DeviceRule.FREE, migrate=share)
        for share in (0.0, 1e-9)
    ]
    assert np.array_equal(runs[0].accepted, runs[1].accepted) and runs[1].moves == 0


def test_gangs_are_not_migrated() -> None:
    with pytest.raises(NotSimulated, match="one task each"):
        replay(
            nodes(3),
            workload([500], workers=2),
            demand=1.0,
            seed=3,
            policy="first",
            rule=DeviceRule.FREE,
            migrate=0.1,
        )
