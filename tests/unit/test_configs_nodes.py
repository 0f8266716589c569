"""S1, S5, S7: constraints as text: what a job's metadata asks for, and what nodes are by labels and the pool's file."""

from __future__ import annotations

import pytest

from moorage.configs.job import JobAsk, parse_job
from moorage.configs.nodes import selector, toleration, traits
from moorage.configs.pool import parse_pool
from moorage.errors import InvalidRequest
from moorage.scheduling.constraints import (
    ANYWHERE,
    Constraints,
    Effect,
    Operator,
    Power,
    Taint,
    Term,
    Toleration,
    Traits,
)


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("", ()),
        ("disk=ssd", (Term(key="disk", values=("ssd",)),)),
        ("disk == ssd", (Term(key="disk", values=("ssd",)),)),
        ("disk!=ssd", (Term(key="disk", operator=Operator.NOT_IN, values=("ssd",)),)),
        ("zone in (a, b)", (Term(key="zone", values=("a", "b")),)),
        ("zone notin (a,b)", (Term(key="zone", operator=Operator.NOT_IN, values=("a", "b")),)),
        ("nvme", (Term(key="nvme", operator=Operator.EXISTS),)),
        ("! draining", (Term(key="draining", operator=Operator.ABSENT),)),
        ("x.org/rack=r-1", (Term(key="x.org/rack", values=("r-1",)),)),
        (
            "zone in (a, b), disk=ssd,!old",
            (
                Term(key="zone", values=("a", "b")),
                Term(key="disk", values=("ssd",)),
                Term(key="old", operator=Operator.ABSENT),
            ),
        ),
    ],
)
def test_a_selector_reads_as_kubernetes_writes_it(text: str, terms: tuple[Term, ...]) -> None:
    assert selector("node_selector", text) == terms
    assert selector("node_selector", ", ".join(t.text() for t in terms)) == terms, "and back"


@pytest.mark.parametrize(
    "text", ["zone in ()", "a b", "a=b=c", "!", "=x", "-a=b", "zone in (a", "a=b c", "k=" + "v" * 64]
)
def test_a_selector_that_says_nothing_known_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="node_selector"):
        selector("node_selector", text)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("*", Toleration()),
        ("*:NoSchedule", Toleration(effect=Effect.NO_SCHEDULE)),
        ("team", Toleration(key="team")),
        ("team=ml", Toleration(key="team", value="ml")),
        ("team=", Toleration(key="team", value="")),
        ("team=ml:PreferNoSchedule", Toleration(key="team", value="ml", effect=Effect.PREFER_NO_SCHEDULE)),
    ],
)
def test_a_toleration(text: str, meant: Toleration) -> None:
    assert toleration("tolerations", text) == meant


@pytest.mark.parametrize("text", ["team=ml:NoExecute", "team=ml:noschedule", "*=x", "", "a b"])
def test_a_toleration_of_nothing_known_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="tolerations"):
        toleration("tolerations", text)


def test_metadata_becomes_constraints_and_they_survive_the_store() -> None:
    ask = parse_job(
        {
            "node_selector": "disk=ssd",
            "tolerations": "team=ml, old:NoSchedule",
            "region": "eu|us",
            "allow_spot": "true",
            "required_topology": "zone",
            "preferred_topology": "rack",
        }
    )
    wanted = Constraints(
        select=(Term(key="disk", values=("ssd",)),),
        tolerations=(Toleration(key="team", value="ml"), Toleration(key="old", effect=Effect.NO_SCHEDULE)),
        regions=("eu", "us"),
        spot=True,
        required="zone",
        preferred="rack",
    )
    assert ask.constraints == wanted
    assert JobAsk.model_validate_json(ask.model_dump_json()).constraints == wanted
    assert parse_job({"Moorage": "x"}).constraints == ANYWHERE


@pytest.mark.parametrize(
    ("text", "spread", "by"),
    [("2", 2, ""), ("1/node", 1, ""), ("3/rack", 3, "rack"), ("1 / x.org/pod", 1, "x.org/pod")],
)
def test_how_many_workers_a_domain_may_hold(text: str, spread: int, by: str) -> None:
    found = parse_job({"max_per_domain": text}).constraints
    assert (found.spread, found.spread_by) == (spread, by)


@pytest.mark.parametrize("text", ["0", "-1", "x", "/rack", "1/-", "1.5"])
def test_a_spread_of_nothing_known_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="max_per_domain"):
        parse_job({"max_per_domain": text})


def test_levels_and_caps_of_the_pool_file() -> None:
    settings = parse_pool(
        "topology: [zone, rack]\npower: {watts: {H100: 700, gpus: 300}, caps: {a/r1: 9000, '*': 12000}}"
    )
    assert settings.topology == ("zone", "rack")
    power = settings.power.policy()
    assert power.watts == (("*", 300), ("H100", 700)) and power.caps == (("*", 12000), ("a/r1", 9000))
    assert parse_pool("").power.policy() == Power()


def test_an_ask_stored_before_there_were_constraints_is_read() -> None:
    stored = parse_job({"workers": "1"}).model_dump()
    del stored["constraints"]
    assert JobAsk.model_validate(stored).constraints == ANYWHERE


@pytest.mark.parametrize("key", ["regions", "spot", "labels", "label_selector", "toleration"])
def test_a_key_that_was_meant_for_a_constraint_is_not_passed_over(key: str) -> None:
    with pytest.raises(InvalidRequest, match="unknown"):
        parse_job({key: "x"})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tick: 3", "file: unknown key 'tick' in the pool file; did you mean 'tick_ms'?"),
        ("preemption: {grace: 3}", "unknown key 'grace' in preemption; did you mean 'grace_s'?"),
        ("elastic: {settle: 3}", "unknown key 'settle' in elastic; did you mean 'settle_s'?"),
        ("power: {levels: r}", "unknown key 'levels' in power; did you mean 'level'?"),
        ("nodes: [{mach: a}]", "nodes.0: unknown key 'mach' in a rule of nodes; did you mean 'match'?"),
        ("autoscaling: {idle: 3}", "unknown key 'idle' in autoscaling; did you mean 'idle_s'?"),
        ("autoscaling: {node_types: {a: {device: 3}}}", "autoscaling.node_types.a: unknown key 'device'"),
        ("guard: {allow: {name: []}}", "guard.allow: unknown key 'name' in the guard's settings"),
        ("guard: {kinds: {no-lease: {mod: off}}}", "unknown key 'mod' in the guard's settings"),
    ],
)
def test_each_section_refuses_an_unknown_key_by_name(text: str, says: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_pool(text)
    assert says in refused.value.why


POOL = """
nodes:
  - {match: "gpu-*", labels: {rack: r1}, taints: ["team=ml:NoSchedule"], device_watts: 400}
  - {match: "gpu-2", labels: {rack: r2}, region: eu, spot: true}
"""


def test_the_pool_file_says_what_nodes_are() -> None:
    rules = parse_pool(POOL).nodes
    taints = (Taint(key="team", value="ml"),)
    assert traits("gpu-1", {}, rules) == Traits.of({"rack": "r1"}, taints=taints, device_watts=400)
    assert traits("gpu-2", {}, rules) == Traits.of(
        {"rack": "r2"}, taints=taints, region="eu", spot=True, device_watts=400
    )
    assert traits("cpu-1", {}, rules) == Traits()


def test_labels_of_ray_say_what_nodes_are() -> None:
    labels = {
        "ray.io/node-id": "abc",
        "ray.io/market-type": "spot",
        "ray.io/availability-region": "us-west4",
        "ray.io/availability-zone": "us-west4-a",
        "moorage.io/node": "n1",
        "moorage.io/device-watts": "700",
        "moorage.io/no-schedule.team": "ml",
        "moorage.io/prefer-no-schedule.old": "",
        "rack": "r7",
    }
    assert traits("n1", labels) == Traits.of(
        {"rack": "r7", "zone": "us-west4-a"},
        taints=(Taint(key="team", value="ml"), Taint(key="old", effect=Effect.PREFER_NO_SCHEDULE)),
        region="us-west4",
        spot=True,
        device_watts=700,
    )
    assert not traits("n1", {**labels, "ray.io/market-type": "on-demand"}).spot


@pytest.mark.parametrize(
    "rule",
    [
        '{match: "a", label: {x: y}}',
        '{match: "a", taints: ["x"]}',
        '{match: "a", taints: ["x:NoExecute"]}',
        '{match: "a", labels: {"-": y}}',
        '{match: "a", device_watts: -1}',
        '{match: ""}',
    ],
)
def test_a_wrong_rule_names_its_field(rule: str) -> None:
    with pytest.raises(InvalidRequest, match=r"pool\.yaml is not valid") as error:
        parse_pool(f"nodes: [{rule}]")
    assert "nodes" in str(error.value.why)
