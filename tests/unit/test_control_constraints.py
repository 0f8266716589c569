"""S1, S5, S6, S7: a job's constraints from its metadata to its lease, over a simulated pool and through a restart."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from control_world import World, world
from sqlalchemy import select
from waiting import until

from moorage.configs.pool import PoolSettings, parse_pool
from moorage.errors import Infeasible
from moorage.runtime.control import admission
from moorage.runtime.control.api import GrowAsk, Submission
from moorage.runtime.control.simbackend import SimNode
from moorage.runtime.control.tables import events
from moorage.scheduling.constraints import Traits

TEAMS = "teams: {ops: {}}"
POOL = """
nodes:
  - {match: n0, labels: {rack: r0}, region: eu}
  - {match: n1, labels: {rack: r1}, region: us}
  - {match: n2, labels: {rack: r2}, taints: ["team=ml:NoSchedule"]}
  - {match: n3, labels: {rack: r3}, spot: true}
"""
NODES = tuple(SimNode(name=f"n{n}") for n in range(4))


def settings() -> PoolSettings:
    return parse_pool(POOL)


def where(w: World, job: str) -> set[str]:
    held = w.service.core.book.ledger.held_by(job)
    return {task.node for lease in held for task in lease.tasks}


@pytest.mark.parametrize(
    ("metadata", "nodes"),
    [
        ({"node_selector": "rack=r1"}, {"n1"}),
        ({"node_selector": "rack in (r1, r0), rack!=r0"}, {"n1"}),
        ({"region": "us"}, {"n1"}),
        ({"node_selector": "rack=r2", "tolerations": "team=ml"}, {"n2"}),
        ({"node_selector": "rack=r3", "allow_spot": "true"}, {"n3"}),
        ({"workers": 8}, {"n0", "n1"}),
        ({"workers": 16, "tolerations": "team", "allow_spot": "true"}, {"n0", "n1", "n2", "n3"}),
    ],
)
def test_a_job_is_leased_where_its_metadata_says(
    tmp_path: Path, metadata: dict[str, str], nodes: set[str]
) -> None:
    with world(tmp_path, teams=TEAMS, nodes=NODES, settings=settings()) as w:
        job = w.submit("ops", seconds="60", **metadata)  # type: ignore[arg-type]
        w.run(1)
        assert (w.states(job), where(w, job)) == (["RUNNING"], nodes)


@pytest.mark.parametrize(
    ("metadata", "why"),
    [
        ({"node_selector": "rack=r9"}, "label rack=r9"),
        ({"node_selector": "rack=r2"}, "taint team=ml:NoSchedule"),
        ({"node_selector": "rack=r3"}, "spot"),
        ({"region": "asia"}, "region asia"),
        ({"workers": 5, "region": "eu"}, "region eu"),
    ],
)
def test_what_no_node_can_ever_hold_is_refused_with_the_constraint(
    tmp_path: Path, metadata: dict[str, str], why: str
) -> None:
    with world(tmp_path, teams=TEAMS, nodes=NODES, settings=settings()) as w:
        with pytest.raises(Infeasible) as refused:
            w.submit("ops", **metadata)  # type: ignore[arg-type]
        assert f"ruled out by {why}" in str(refused.value)


def test_a_waiting_job_keeps_its_constraints_over_a_restart(tmp_path: Path) -> None:
    with world(tmp_path, teams=TEAMS, nodes=NODES, settings=settings()) as w:
        first = w.submit("ops", workers=4, seconds="10", node_selector="rack=r1")
        second = w.submit("ops", seconds="60", node_selector="rack=r1")
        w.run(2)
        assert w.states(first, second) == ["RUNNING", "PENDING"]
        assert w.job(second).message.endswith(
            f"asks for 1 GPUs, 0 are free on the nodes that it may use (1); starts when {first} ends"
        )
        w.restart()
        w.run(2)
        assert w.states(first, second) == ["RUNNING", "PENDING"], "twelve devices are free, none in its rack"
        w.run(10)
        assert (w.states(second), where(w, second)) == (["RUNNING"], {"n1"})


RACKS = """
topology: [zone, rack]
nodes:
  - {match: "n[01]", labels: {zone: z0, rack: r1}}
  - {match: "n[23]", labels: {zone: z1, rack: r1}}
"""


@pytest.mark.parametrize(
    ("metadata", "nodes"),
    [
        ({"workers": 6, "required_topology": "rack"}, {"n0", "n1"}),
        ({"workers": 6, "preferred_topology": "rack"}, {"n0", "n1"}),
        ({"workers": 9, "preferred_topology": "rack"}, {"n0", "n1", "n2"}),
        ({"workers": 4, "max_per_domain": "1"}, {"n0", "n1", "n2", "n3"}),
        ({"workers": 4, "max_per_domain": "2/zone"}, {"n0", "n2"}),
    ],
)
def test_a_gang_is_leased_in_the_domains_that_it_asks_for(
    tmp_path: Path, metadata: dict[str, str], nodes: set[str]
) -> None:
    with world(tmp_path, teams=TEAMS, nodes=NODES, settings=parse_pool(RACKS)) as w:
        job = w.submit("ops", seconds="60", **metadata)  # type: ignore[arg-type]
        w.run(1)
        assert (w.states(job), where(w, job)) == (["RUNNING"], nodes)


def test_a_gang_that_no_rack_can_hold_is_refused_and_one_that_must_wait_says_why(tmp_path: Path) -> None:
    with world(tmp_path, teams=TEAMS, nodes=NODES, settings=parse_pool(RACKS)) as w:
        with pytest.raises(Infeasible, match="no rack is large enough for the whole gang"):
            w.submit("ops", workers=9, required_topology="rack")
        small = [w.submit("ops", workers=1, seconds="20", node_selector=f"zone=z{z}") for z in (0, 1)]
        w.run(2)
        job = w.submit("ops", workers=8, seconds="60", required_topology="rack")
        w.run(2)
        view = w.job(job)
        assert view.reason is not None and view.reason["code"] == "topology"
        assert "14 are free in the pool, but in no rack is there room" in view.message
        w.run(20)
        assert w.states(*small, job) == ["SUCCEEDED", "SUCCEEDED", "RUNNING"]
        assert where(w, job) in ({"n0", "n1"}, {"n2", "n3"})


def test_growth_stays_in_the_domain_that_the_job_required(tmp_path: Path) -> None:
    with world(tmp_path, teams=TEAMS, nodes=NODES, settings=parse_pool(RACKS)) as w:
        job = w.submit("ops", workers=6, seconds="60", required_topology="rack")
        w.run(1)
        assert where(w, job) == {"n0", "n1"}
        ask = GrowAsk(workers=2, milli_gpu=1000, gpu_mib=0, milli_cpu=0, timeout_s=60, job_id=job)
        answers: list[object] = []
        asking = threading.Thread(
            target=lambda: answers.append(w.service.grow(w.caller("ops"), ask)), daemon=True
        )
        asking.start()
        (waiting,) = until(lambda: list(w.service.core.book.pending.values()), 60, "the ask to be written")
        assert [term.text() for term in waiting.constraints.select] == ["zone=z0", "rack=r1"]
        w.run(1)
        asking.join(60)
        assert answers and where(w, job) == {"n0", "n1"}, "two of the eight free devices are in its rack"
        assert sum(lease.milli_gpu for lease in w.service.core.book.ledger.held_by(job)) == 8000


POWER = """
nodes: [{match: "n[01]", labels: {rack: r0}}]
power: {watts: {L4: 100, gpus: 300}, caps: {r0: 300}}
"""


def test_a_rack_never_draws_more_than_its_cap(tmp_path: Path) -> None:
    with world(tmp_path, teams=TEAMS, nodes=NODES[:2], settings=parse_pool(POWER)) as w:
        with pytest.raises(Infeasible, match="a power cap allows less: rack r0"):
            w.submit("ops", workers=4)
        first, second = (w.submit("ops", workers=2, seconds="10") for _ in range(2))
        w.run(2)
        assert w.states(first, second) == ["RUNNING", "PENDING"]
        reason = w.job(second).reason
        assert reason is not None and reason["code"] == "power-cap"
        assert "rack r0 (200 of 300 W)" in w.job(second).message
        w.run(12)
        assert w.states(first, second) == ["SUCCEEDED", "RUNNING"]


def test_a_label_that_changes_is_seen_stored_and_told(tmp_path: Path) -> None:
    """A node's labels may change while it is up: who waits for the new one starts; an event says so."""
    with world(tmp_path, teams=TEAMS, nodes=(SimNode(name="n0"),)) as w:
        with pytest.raises(Infeasible):
            w.submit("ops", node_selector="disk=ssd")
        w.backend.nodes = (SimNode(name="n0", labels=(("disk", "ssd"), ("ray.io/market-type", "spot"))),)
        w.run(1)
        job = w.submit("ops", seconds="60", node_selector="disk=ssd", allow_spot="true")
        w.run(1)
        assert w.states(job) == ["RUNNING"]
        with w.service.store.read() as db:
            last = db.execute(select(events).where(events.c.kind == "node.up")).all()[-1]
        assert last.payload["traits"]["labels"] == [["disk", "ssd"]] and last.payload["traits"]["spot"]
        w.restart()
        ledger = w.service.core.book.ledger
        assert ledger.traits[int(ledger.trait[0])] == Traits.of({"disk": "ssd"}, spot=True)


def test_a_submission_without_constraints_is_the_same_one_as_before_there_were_any(tmp_path: Path) -> None:
    with world(tmp_path, teams=TEAMS, nodes=NODES) as w:
        submission = Submission(entrypoint="x", metadata={"workers": "1"})
        ask = admission.parse(submission, None, "ops", w.service.teams)
        before = "836607fdb0d732611a7822cf36712188"
        assert admission.content_digest(submission, ask)[:32] == before
