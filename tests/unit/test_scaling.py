"""S6: what a pool that can grow asks for, and what it gives back."""

from __future__ import annotations

from moorage.scheduling.ledger import Ledger, NodeUp, TeamSet, step
from moorage.scheduling.model import ANY_MODEL, JobRequest, NodeSpec, Policy, Shape, Snapshot, TeamSpec
from moorage.scheduling.queue import Queue
from moorage.scheduling.scaling import ASKED, NodeType, Wish, counted, given_back, grown, wanted

SMALL = NodeType(name="small", node=NodeSpec(name="", gpu_model="L4", devices=2), most=4)
BIG = NodeType(name="big", node=NodeSpec(name="", gpu_model="H100", devices=8), least=1, most=2)


def pool(limit: int = 100) -> Ledger:
    ledger = Ledger()
    step(ledger, TeamSet(TeamSpec(name="ops", limit=((ANY_MODEL, limit * 1000),))))
    step(ledger, NodeUp(NodeSpec(name="n0", gpu_model="L4", devices=1)))
    return ledger


def job(name: str, workers: int, gpus: int = 1, models: tuple[str, ...] = ()) -> JobRequest:
    return JobRequest(
        job=name,
        team="ops",
        submitted_ns=len(name),
        worker=Shape(milli_gpu=gpus * 1000),
        workers=workers,
        min_workers=workers,
        gpu_models=models,
    )


def asked(ledger: Ledger, *jobs: JobRequest, present: dict[str, int] | None = None) -> Wish:
    snapshot = Snapshot(version=ledger.version, ledger=ledger, pending=Queue.of(jobs))
    return wanted(snapshot, Policy(), 0, (SMALL, BIG), present or {})


def test_as_many_nodes_as_the_gang_needs_and_of_a_kind_that_can_hold_it() -> None:
    assert asked(pool(), job("a", 3, models=("L4",))).nodes == {"small": 1}  # beside the device that is free
    assert asked(pool(), job("a", 5, models=("L4",))).nodes == {"small": 2}
    wish = asked(pool(), job("a", 1, gpus=8))
    assert (wish.nodes, wish.jobs) == ({"big": 1}, {"a": "big"})


def test_nothing_for_what_starts_without_and_for_what_no_node_could_hold() -> None:
    assert asked(pool()) == Wish()
    assert asked(pool(), job("a", 1)) == Wish()
    assert asked(pool(), job("a", 1, gpus=9)) == Wish()
    assert asked(pool(), job("a", 10, models=("L4",))) == Wish(), "four nodes of two and one: nine in all"


def test_a_team_asks_for_no_more_than_its_limit_lets_it_use() -> None:
    three = [job(f"job{n}", 2, models=("L4",)) for n in range(3)]
    assert asked(pool(), *three).nodes == {"small": 3}
    assert asked(pool(limit=4), *three).nodes == {"small": 2}
    assert asked(pool(limit=1), *three) == Wish()


def test_nodes_that_are_there_count_against_the_most() -> None:
    gang = job("a", 3, models=("L4",))
    assert asked(pool(), gang, present={"small": 3, "big": 2}).nodes == {"small": 1}
    assert asked(pool(), gang, present={"small": 4, "big": 2}) == Wish()


def test_the_pool_itself_is_not_changed() -> None:
    ledger = pool()
    before = ledger.version
    asked(ledger, job("a", 5))
    assert ledger.version == before and ledger.node_names == ["n0"]
    more = grown(ledger, (SMALL, BIG), {"big": 1})
    assert sorted(n for n in more.node_names if n.startswith(ASKED)) == [
        "asked/big/0",
        *(f"asked/small/{n}" for n in range(4)),
    ]


def test_a_node_is_of_the_type_that_it_looks_like() -> None:
    nodes = [
        NodeSpec(name="a", gpu_model="L4", devices=2),
        NodeSpec(name="b", gpu_model="L4", devices=4),
        NodeSpec(name="c", gpu_model="H100", devices=8),
    ]
    assert counted((SMALL, BIG), nodes) == {"small": ["a"], "big": ["c"]}


def test_the_longest_idle_nodes_go_first_and_the_least_number_stays() -> None:
    idle = {"a": 50, "b": 70, "c": 60, "h1": 99, "h2": 80}
    present = {"small": ["a", "b", "busy", "c"], "big": ["h1", "h2"]}
    assert given_back((SMALL, BIG), present, idle, 60) == ["b", "c", "h1"]
    assert given_back((SMALL, BIG), present, idle, 100) == []
