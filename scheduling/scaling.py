"""How many nodes more, and which ones less: what a pool that can grow should ask for. Pure.

What to ask for is decided by the planner itself: the jobs that wait are planned once more over the pool as it would be
with all the nodes that may still come, and the nodes that this plan uses are those worth asking for. So quotas, limits,
constraints, gangs and topology bind there as they do here, and nothing is asked for that could not be used.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from moorage.scheduling.ledger import Ledger, NodeUp, step
from moorage.scheduling.model import NodeSpec, Policy, Snapshot
from moorage.scheduling.planner import plan

ASKED = "asked/"
"""Names of nodes that are not there yet begin so: no node of Ray can have a slash in its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeType:
    """A kind of node that the cluster can start: what it will look like (`node`, its name left open), and how many
    of them there are at least and at most."""

    name: str
    node: NodeSpec
    least: int = 0
    most: int = 1

    def has(self, node: NodeSpec) -> bool:
        """Whether a node is one of these, by what it has; labels tell only what the type's own say."""
        mine = (self.node.gpu_model, self.node.devices)
        return mine == (node.gpu_model, node.devices) and set(self.node.traits.labels) <= set(
            node.traits.labels
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """`nodes`: how many more of each type; `jobs`: who would start on them, with the type that it needs first."""

    nodes: Mapping[str, int] = field(default_factory=dict)
    jobs: Mapping[str, str] = field(default_factory=dict)


def counted(types: Sequence[NodeType], nodes: Collection[NodeSpec]) -> dict[str, list[str]]:
    """The nodes of each type by name; a node is of the first type that it could be."""
    found: dict[str, list[str]] = {kind.name: [] for kind in types}
    for node in nodes:
        kind = next((kind for kind in types if kind.has(node)), None)
        if kind is not None:
            found[kind.name].append(node.name)
    return found


def grown(ledger: Ledger, types: Sequence[NodeType], present: Mapping[str, int]) -> Ledger:
    """A copy of the pool with every node that may still come; `present`: how many of each type there are."""
    more = ledger.copy()
    for kind in types:
        for n in range(kind.most - present.get(kind.name, 0)):
            step(more, NodeUp(replace(kind.node, name=f"{ASKED}{kind.name}/{n}")))
    return more


def wanted(
    snapshot: Snapshot, policy: Policy, now_ns: int, types: Sequence[NodeType], present: Mapping[str, int]
) -> Wish:
    """What to ask for, for those who wait in `snapshot`: what the pool as it is can start must not be among them.
    Nobody is pushed out in this plan, and nothing is reserved."""
    if not len(snapshot.pending) or all(present.get(kind.name, 0) >= kind.most for kind in types):
        return Wish()
    larger = grown(snapshot.ledger, types, present)
    ahead = replace(snapshot, version=larger.version, ledger=larger, running=None, scoring=None, drained=())
    used: dict[str, set[str]] = {}
    jobs: dict[str, str] = {}
    for request, tasks in plan(ahead, policy, now_ns).admissions(ahead):
        for task in tasks:
            if task.node.startswith(ASKED):
                kind = task.node[len(ASKED) :].rpartition("/")[0]
                used.setdefault(kind, set()).add(task.node)
                jobs.setdefault(request.job, kind)
    return Wish(nodes={kind: len(names) for kind, names in sorted(used.items())}, jobs=jobs)


def given_back(
    types: Sequence[NodeType],
    present: Mapping[str, Sequence[str]],
    idle_ns: Mapping[str, int],
    patience_ns: int,
) -> list[str]:
    """Nodes to do without: of each type those that nobody has used for `patience_ns`, the longest idle first, as
    long as the least number stays. `idle_ns`: for how long each idle node has been that."""
    found = []
    for kind in types:
        there = present.get(kind.name, ())
        idle = sorted((n for n in there if idle_ns.get(n, -1) >= patience_ns), key=lambda n: (-idle_ns[n], n))
        found += idle[: max(0, len(there) - kind.least)]
    return found
