"""S2, S5, S7: what would start a gang that racks, spread or power caps keep waiting: answers worked out by hand.

Nodes have 4 devices of 100 W. The pool is written `zone/rack: nodes`, what is held `node/devices`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import pytest

from moorage.scheduling.changes import (
    Change,
    Ends,
    FewerWorkers,
    RaiseCap,
    Together,
    changed,
    ruled,
)
from moorage.scheduling.constraints import ANYWHERE, Constraints, Power, Term, Traits
from moorage.scheduling.explain import explain
from moorage.scheduling.ledger import LeaseGranted, Ledger, NodeUp, TeamSet, step
from moorage.scheduling.model import (
    JobRequest,
    Lease,
    NodeSpec,
    Policy,
    ReasonCode,
    Role,
    Shape,
    Snapshot,
    TaskPlacement,
    TeamSpec,
)
from moorage.scheduling.planner import plan
from moorage.scheduling.queue import Queue
from moorage.scheduling.relaxing import ANYHOW, EVERYTHING, Closer, Relax, Wider

R = ReasonCode
RACK = Constraints(required="rack")
SSD = (Term(key="disk", values=("ssd",)), Term(key="net", values=("rdma",)))
LEVELS = ("zone", "rack")
TWO_ZONES = "z0/r0: a | z0/r1: b | z1/r2: c"


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    pool: str = TWO_ZONES
    held: str = ""
    """Of one job each, by the name of its place."""
    workers: int
    constraints: Constraints = ANYWHERE
    caps: tuple[tuple[str, int], ...] = ()
    why: ReasonCode
    changes: tuple[Change, ...] = ()


def ends(*jobs: str) -> Ends:
    return Ends(jobs, jobs)


def cap(rack: str, watts: int) -> RaiseCap:
    return RaiseCap("rack", rack, watts)


CASES = [
    Case(
        name="the zone has what its racks have not: not the whole pool is asked for",
        held="a/01 b/01 c/012",
        workers=4,
        constraints=RACK,
        why=R.TOPOLOGY,
        changes=(FewerWorkers(2), Wider("rack", "zone"), ends("c/012")),
    ),
    Case(
        name="no zone has: any rack",
        held="a/012 b/012 c/01",
        workers=4,
        constraints=RACK,
        why=R.TOPOLOGY,
        changes=(FewerWorkers(2), Wider("rack"), ends("a/012")),
    ),
    Case(
        name="more than any rack could hold",
        workers=6,
        constraints=RACK,
        why=R.NO_DEVICE,
        changes=(FewerWorkers(4), Wider("rack", "zone")),
    ),
    Case(
        name="more than the zone could hold",
        workers=12,
        constraints=Constraints(required="zone"),
        why=R.NO_DEVICE,
        changes=(FewerWorkers(8), Wider("zone")),
    ),
    Case(
        name="the least that spread must allow",
        workers=8,
        constraints=Constraints(spread=1),
        why=R.NO_DEVICE,
        changes=(FewerWorkers(3), Closer(3)),
    ),
    Case(
        name="spread over racks, of which one is held",
        held="b/0123",
        workers=6,
        constraints=Constraints(spread=2, spread_by="rack"),
        why=R.SPREAD,
        changes=(FewerWorkers(4), Closer(3, "rack"), ends("b/0123")),
    ),
    Case(
        name="spread within a rack: one of the two gives way",
        workers=2,
        constraints=replace(RACK, spread=1),
        why=R.NO_DEVICE,
        changes=(FewerWorkers(1), Wider("rack", "zone"), Closer(2)),
    ),
    Case(
        name="spread within a rack: both must give way",
        workers=6,
        constraints=replace(RACK, spread=1),
        why=R.NO_DEVICE,
        changes=(FewerWorkers(1), Relax(ANYHOW)),
    ),
    Case(
        name="two labels bind, and the rack does not",
        workers=4,
        constraints=replace(RACK, select=SSD),
        why=R.NO_DEVICE,
        changes=(Relax(EVERYTHING),),
    ),
    Case(
        name="two labels bind, and so does the rack",
        workers=6,
        constraints=replace(RACK, select=SSD),
        why=R.NO_DEVICE,
        changes=(Relax(ANYHOW),),
    ),
    Case(
        name="one rack's cap, by as much as is lacking",
        pool="z0/r0: a | z0/r1: b",
        held="a/0 b/0",
        workers=3,
        caps=(("z0/r0", 150), ("z0/r1", 250)),
        why=R.POWER_CAP,
        changes=(FewerWorkers(1), cap("z0/r1", 150), ends("a/0", "b/0")),
    ),
    Case(
        name="the caps of both racks, none of which is enough alone",
        pool="z0/r0: a | z0/r1: b",
        workers=8,
        caps=(("*", 200),),
        why=R.NO_DEVICE,
        changes=(FewerWorkers(4), Together((cap("z0/r0", 200), cap("z0/r1", 200)))),
    ),
    Case(
        name="a rack and its cap: the other rack's cap is of no use",
        pool="z0/r0: a | z0/r1: b",
        held="a/0",
        workers=4,
        constraints=RACK,
        caps=(("*", 200),),
        why=R.NO_DEVICE,
        changes=(FewerWorkers(2), cap("z0/r1", 200)),
    ),
    Case(
        name="no cap binds where no device is idle",
        pool="z0/r0: a",
        held="a/0123",
        workers=1,
        caps=(("*", 400),),
        why=R.POOL_FULL,
        changes=(ends("a/0123"),),
    ),
]


def build(case: Case) -> tuple[Snapshot, Policy]:
    ledger = Ledger()
    step(ledger, TeamSet(TeamSpec(name="ops")))
    for part in case.pool.split(" | "):
        place, _, nodes = part.partition(": ")
        zone, _, rack = place.partition("/")
        for name in nodes.split():
            traits = Traits.of({"zone": zone, "rack": rack})
            step(ledger, NodeUp(NodeSpec(name=name, gpu_model="L4", devices=4, device_mib=1, traits=traits)))
    for epoch, place in enumerate(case.held.split(), 1):
        node, _, devices = place.partition("/")
        task = TaskPlacement(
            role=Role.WORKER,
            index=0,
            node=node,
            devices=tuple(map(int, devices)),
            milli_gpu=1000 * len(devices),
            gpu_mib=1,
            milli_cpu=0,
            mib=0,
        )
        step(ledger, LeaseGranted(Lease(lease=place, job=place, team="ops", epoch=epoch, tasks=(task,))))
    wanted = JobRequest(
        job="job",
        team="ops",
        submitted_ns=0,
        worker=Shape(milli_gpu=1000),
        workers=case.workers,
        min_workers=case.workers,
        constraints=case.constraints,
    )
    snapshot = Snapshot(version=ledger.version, ledger=ledger, pending=Queue.of((wanted,)))
    return snapshot, Policy(topology=LEVELS, power=Power(watts=(("*", 100),), caps=case.caps))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_scenario(case: Case) -> None:
    snapshot, policy = build(case)
    found = explain(snapshot, policy, 0, 0)
    assert found.reason.code == case.why
    assert found.suggestions == case.changes
    for change in found.suggestions:
        after = changed(snapshot, 0, (change,))
        assert plan(after, ruled(policy, (change,)), 0).admitted.tolist() == [0]


@pytest.mark.parametrize(
    ("change", "text", "data"),
    [
        (
            Wider("rack"),
            "let it use more than one rack",
            {"change": "wider", "required": "rack", "level": ""},
        ),
        (
            Wider("rack", "zone"),
            "let it use more than one rack of the same zone",
            {"change": "wider", "required": "rack", "level": "zone"},
        ),
        (Closer(2), "allow up to 2 workers per node", {"change": "closer", "most": 2, "per": "node"}),
        (Closer(3, "rack"), "allow up to 3 workers per rack", {"change": "closer", "most": 3, "per": "rack"}),
        (
            cap("z0/r1", 150),
            "raise the power cap of rack z0/r1 by 150 W",
            {"change": "raise-cap", "level": "rack", "domain": "z0/r1", "watts": 150},
        ),
        (
            Relax(ANYHOW),
            "allow every node, and its workers anywhere on them, however far apart or close together",
            {"change": "relax", "constraint": "every constraint and limit", "value": ""},
        ),
    ],
)
def test_in_words_and_as_data(change: Change, text: str, data: dict[str, object]) -> None:
    assert change.text() == text
    assert json.loads(json.dumps(change.to_json())) == data


@pytest.mark.parametrize("change", [RaiseCap("zone", "z0", 1), RaiseCap("rack", "z0/r1", 1)])
def test_only_a_cap_that_is_there_can_be_raised(change: RaiseCap) -> None:
    with pytest.raises(ValueError, match="has no power cap"):
        ruled(Policy(power=Power(caps=(("z0/r0", 100),))), (change,))
