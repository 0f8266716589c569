"""S1, S6, S7: labels, taints, regions, spot: which nodes a job may use, by tables and against a plain reading."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from moorage.scheduling.constraints import (
    Constraints,
    Effect,
    Operator,
    Taint,
    Term,
    Toleration,
    Traits,
)
from moorage.scheduling.ledger import LeaseGranted, Ledger, NodeDown, NodeUp, TeamSet, step
from moorage.scheduling.model import (
    DeviceRule,
    JobRequest,
    Lease,
    NodeSpec,
    Policy,
    ReasonCode,
    Shape,
    Snapshot,
    TeamSpec,
)
from moorage.scheduling.planner import feasible, plan
from moorage.scheduling.queue import Queue
from moorage.scheduling.validate import check

R = ReasonCode


def term(text: str) -> Term:
    """'k=a' 'k!=a' 'k in a,b' 'k notin a,b' 'k' '!k'"""
    for mark, operator in ((" in ", Operator.IN), (" notin ", Operator.NOT_IN)):
        if mark in text:
            key, _, values = text.partition(mark)
            return Term(key=key, operator=operator, values=tuple(values.split(",")))
    for mark, operator in (("!=", Operator.NOT_IN), ("=", Operator.IN)):
        if mark in text:
            key, _, value = text.partition(mark)
            return Term(key=key, operator=operator, values=(value,))
    return Term(key=text.lstrip("!"), operator=Operator.ABSENT if text[0] == "!" else Operator.EXISTS)


@pytest.mark.parametrize(
    ("text", "labels", "holds"),
    [
        ("disk=ssd", {"disk": "ssd"}, True),
        ("disk=ssd", {"disk": "hdd"}, False),
        ("disk=ssd", {}, False),
        ("disk!=ssd", {"disk": "hdd"}, True),
        ("disk!=ssd", {"disk": "ssd"}, False),
        ("disk!=ssd", {}, True),
        ("zone in a,b", {"zone": "b"}, True),
        ("zone in a,b", {"zone": "c"}, False),
        ("zone notin a,b", {"zone": "c"}, True),
        ("zone notin a,b", {"zone": "a"}, False),
        ("zone notin a,b", {}, True),
        ("gpu-net", {"gpu-net": ""}, True),
        ("gpu-net", {}, False),
        ("!old", {}, True),
        ("!old", {"old": "yes"}, False),
    ],
)
def test_a_term_reads_a_label(text: str, labels: dict[str, str], holds: bool) -> None:
    assert term(text).holds(labels) is holds
    assert (Constraints(select=(term(text),)).excluded(Traits.of(labels)) == "") is holds


@pytest.mark.parametrize("key", [("in", ()), ("exists", ("a",)), ("absent", ("a",)), ("notin", ())])
def test_a_term_has_values_exactly_where_it_reads_them(key: tuple[str, tuple[str, ...]]) -> None:
    with pytest.raises(ValueError, match="values"):
        Term(key="k", operator=Operator(key[0]), values=key[1])


TEAM_ML = Taint(key="team", value="ml")


@pytest.mark.parametrize(
    ("toleration", "tolerated"),
    [
        (Toleration(), True),
        (Toleration(key="team"), True),
        (Toleration(key="team", value="ml"), True),
        (Toleration(key="team", value="web"), False),
        (Toleration(key="other"), False),
        (Toleration(key="team", value="ml", effect=Effect.NO_SCHEDULE), True),
        (Toleration(key="team", value="ml", effect=Effect.PREFER_NO_SCHEDULE), False),
        (Toleration(key="team", value=""), False),
    ],
)
def test_a_toleration_matches_a_taint(toleration: Toleration, tolerated: bool) -> None:
    wanted = "" if tolerated else "taint team=ml:NoSchedule"
    assert Constraints(tolerations=(toleration,)).excluded(Traits(taints=(TEAM_ML,))) == wanted


def test_every_taint_must_be_tolerated() -> None:
    traits = Traits(taints=(TEAM_ML, Taint(key="old")))
    assert Constraints(tolerations=(Toleration(key="team"),)).excluded(traits) == "taint old:NoSchedule"


@dataclass(frozen=True, kw_only=True)
class Case:
    """Nodes of two devices each, one team without bounds; jobs of whole GPUs."""

    name: str
    nodes: dict[str, Traits]
    jobs: dict[str, tuple[int, Constraints]]
    """job -> workers, constraints"""
    held: dict[str, tuple[int, Constraints]] = field(default_factory=dict)
    starts: dict[str, str] = field(default_factory=dict)
    waits: dict[str, str] = field(default_factory=dict)
    """job -> its reason: the code, or the whole sentence"""
    down: tuple[str, ...] = ()


PLAIN, SSD, SPOT = Traits(), Traits.of({"disk": "ssd"}), Traits(spot=True)
EU, US = Traits(region="eu"), Traits(region="us")
TAINTED = Traits(taints=(TEAM_ML,))
NONE = Constraints()


def select(*texts: str) -> Constraints:
    return Constraints(select=tuple(map(term, texts)))


CASES = [
    Case(
        name="a label picks the node",
        nodes={"a": PLAIN, "b": SSD},
        jobs={"j": (1, select("disk=ssd"))},
        starts={"j": "b/0"},
    ),
    Case(
        name="all terms must hold",
        nodes={"a": SSD, "b": Traits.of({"disk": "ssd", "zone": "z"})},
        jobs={"j": (1, select("disk=ssd", "zone"))},
        starts={"j": "b/0"},
    ),
    Case(
        name="a gang stays on the nodes that its label allows",
        nodes={"a": SSD, "b": PLAIN, "c": SSD},
        jobs={"j": (4, select("disk=ssd"))},
        starts={"j": "a/0 a/1 c/0 c/1"},
    ),
    Case(
        name="no node has the label",
        nodes={"a": SSD, "b": PLAIN},
        jobs={"j": (1, select("disk=nvme"))},
        waits={
            "j": "the nodes that are up could not hold its tasks even idle (1 GPUs asked; of 2 nodes 2 are ruled "
            "out by label disk=nvme); starts when a node that can joins or comes back"
        },
    ),
    Case(
        name="too few nodes have the label",
        nodes={"a": SSD, "b": PLAIN},
        jobs={"j": (3, select("disk=ssd"))},
        waits={
            "j": "the nodes that are up could not hold its tasks even idle (3 GPUs asked; of 2 nodes 1 are ruled "
            "out by label disk=ssd); starts when a node that can joins or comes back"
        },
    ),
    Case(
        name="the node with the label is taken: who holds it is named, not who holds others",
        nodes={"a": PLAIN, "b": SSD},
        held={"other": (2, select("!disk")), "holder": (2, select("disk"))},
        jobs={"j": (1, select("disk=ssd"))},
        waits={
            "j": "asks for 1 GPUs, 0 are free on the nodes that it may use (1); starts when holder ends",
        },
    ),
    Case(
        name="free elsewhere is no room",
        nodes={"a": PLAIN, "b": SSD},
        held={"holder": (1, select("disk"))},
        jobs={"j": (2, select("disk=ssd"))},
        waits={
            "j": "asks for 2 GPUs, 1 are free on the nodes that it may use (1); starts when holder ends",
        },
    ),
    Case(
        name="a taint keeps others away",
        nodes={"a": TAINTED, "b": PLAIN},
        jobs={"j": (1, NONE)},
        starts={"j": "b/0"},
    ),
    Case(
        name="a toleration lets it in",
        nodes={"a": TAINTED},
        jobs={"j": (1, Constraints(tolerations=(Toleration(key="team", value="ml"),)))},
        starts={"j": "a/0"},
    ),
    Case(
        name="a toleration does not send it there",
        nodes={"a": PLAIN, "b": TAINTED},
        jobs={"j": (1, Constraints(tolerations=(Toleration(key="team"),)))},
        starts={"j": "a/0"},
    ),
    Case(
        name="a tainted pool holds nobody",
        nodes={"a": TAINTED, "b": TAINTED},
        jobs={"j": (1, NONE)},
        waits={
            "j": "the nodes that are up could not hold its tasks even idle (1 GPUs asked; of 2 nodes 2 are ruled "
            "out by taint team=ml:NoSchedule); starts when a node that can joins or comes back"
        },
    ),
    Case(
        name="data stays in its region",
        nodes={"a": US, "b": EU},
        jobs={"j": (1, Constraints(regions=("eu",)))},
        starts={"j": "b/0"},
    ),
    Case(
        name="one of several regions",
        nodes={"a": Traits(region="asia"), "b": US},
        jobs={"j": (1, Constraints(regions=("eu", "us")))},
        starts={"j": "b/0"},
    ),
    Case(
        name="a node of no region is in none of them",
        nodes={"a": PLAIN},
        jobs={"j": (1, Constraints(regions=("eu",)))},
        waits={"j": R.NO_DEVICE},
    ),
    Case(
        name="the region is a label too",
        nodes={"a": US, "b": EU},
        jobs={"j": (1, select("region!=us"))},
        starts={"j": "b/0"},
    ),
    Case(
        name="spot is only for who allows it",
        nodes={"a": SPOT, "b": PLAIN},
        jobs={"j": (1, NONE)},
        starts={"j": "b/0"},
    ),
    Case(
        name="who allows spot may have it",
        nodes={"a": SPOT, "b": PLAIN},
        held={"h": (2, NONE)},
        jobs={"j": (2, Constraints(spot=True))},
        starts={"j": "a/0 a/1"},
    ),
    Case(
        name="a down node is no match",
        nodes={"a": SSD, "b": PLAIN},
        down=("a",),
        jobs={"j": (1, select("disk=ssd"))},
        waits={"j": R.NO_DEVICE},
    ),
]


def job(name: str, workers: int, constraints: Constraints) -> JobRequest:
    return JobRequest(
        job=name,
        team="ops",
        submitted_ns=0,
        worker=Shape(milli_gpu=1000),
        workers=workers,
        min_workers=workers,
        constraints=constraints,
    )


def build(case: Case) -> Ledger:
    ledger = Ledger()
    step(ledger, TeamSet(TeamSpec(name="ops")))
    for name, traits in case.nodes.items():
        step(ledger, NodeUp(NodeSpec(name=name, gpu_model="L4", devices=2, traits=traits)))
    assert not apply(ledger, {})[1]
    assert set(apply(ledger, case.held)[0]) == set(case.held)
    for name in case.down:
        step(ledger, NodeDown(name))
    return ledger


def apply(
    ledger: Ledger, jobs: dict[str, tuple[int, Constraints]]
) -> tuple[dict[str, str], dict[str, tuple[ReasonCode, str]]]:
    pending = Queue.of([job(name, *wanted) for name, wanted in jobs.items()])
    snapshot = Snapshot(version=ledger.version, ledger=ledger, pending=pending)
    decided = plan(snapshot, Policy(), 0)
    waits = {request.job: (reason.code, reason.text()) for request, reason in decided.waiting(snapshot)}
    starts = {}
    for request, tasks in list(decided.admissions(snapshot)):
        starts[request.job] = " ".join(f"{t.node}/{''.join(map(str, t.devices))}" for t in tasks)
        lease = Lease(
            lease=request.job, job=request.job, team="ops", epoch=ledger.last_epoch + 1, tasks=tasks
        )
        step(ledger, LeaseGranted(lease))
        check(ledger)
    return starts, waits


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_scenario(case: Case) -> None:
    starts, waits = apply(build(case), case.jobs)
    assert starts == case.starts
    assert waits.keys() == case.waits.keys()
    for name, wanted in case.waits.items():
        assert wanted in waits[name]


def test_what_no_node_ever_matches_is_refused_with_the_constraint_that_excludes() -> None:
    ledger = build(Case(name="", nodes={"a": SSD, "b": TAINTED}, jobs={}))
    reason = feasible(ledger, job("j", 1, select("disk=nvme")), DeviceRule.RAYLET)
    assert reason is not None and reason.code is R.NO_DEVICE
    assert reason.note == "of 2 nodes 2 are ruled out by label disk=nvme"
    assert feasible(ledger, job("j", 2, select("disk=ssd")), DeviceRule.RAYLET) is None


def test_traits_change_under_leases_and_the_ledger_stays_as_it_was_otherwise() -> None:
    ledger = build(Case(name="", nodes={"a": SSD}, held={"h": (1, select("disk"))}, jobs={}))
    before = ledger.copy()
    step(ledger, NodeUp(NodeSpec(name="a", gpu_model="L4", devices=2, traits=TAINTED)))
    check(ledger)
    assert ledger.traits[ledger.trait[0]] == TAINTED
    assert before.traits[before.trait[0]] == SSD, "a copy keeps its own"
    assert (ledger.milli_free == before.milli_free).all()
    assert apply(ledger, {"j": (1, NONE)})[1]["j"][0] is R.NO_DEVICE
    assert apply(before, {"j": (1, NONE)})[0] == {"j": "a/1"}


def test_copies_that_part_do_not_mistake_each_others_traits() -> None:
    """The verdicts on traits are kept by row, and two ledgers may give one row to different traits."""
    ledger = build(Case(name="", nodes={"a": PLAIN}, jobs={}))
    other = ledger.copy()
    wanted = select("disk=ssd")
    assert ledger.may_run(wanted).tolist() == [0]
    step(other, NodeUp(NodeSpec(name="a", gpu_model="L4", devices=2, traits=SSD)))
    assert other.may_run(wanted).tolist() == [2]
    step(ledger, NodeUp(NodeSpec(name="a", gpu_model="L4", devices=2, traits=TAINTED)))
    assert ledger.may_run(wanted).tolist() == [0]
    assert other.may_run(wanted).tolist() == [2]
