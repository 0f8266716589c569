"""The pool grows by asking Ray's own autoscaler for nodes, and shrinks by draining first.

Every few seconds the whole wish is said again: which nodes are to stay, which are wanted beside them, which are to
go. It is a state, not a sequence of effects, so it needs no outbox: after a restart the next one is as good. What must
outlive a restart, that a node takes nothing new because it is about to go, is a drain like any other, in the store.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from moorage.cluster.backend import Backend, BackendUnavailable, NodeAsk, Observation, ScaleAsk
from moorage.runtime.control import draining
from moorage.runtime.control.api import Caller
from moorage.runtime.control.core import Core
from moorage.scheduling.model import NodeSpec, Policy, Reason, ReasonCode
from moorage.scheduling.scaling import NodeType, Wish, counted, given_back, wanted

log = logging.getLogger(__name__)
EVERY_NS = 2 * 10**9
AGAIN_NS = 30 * 10**9
"""The same wish is said again after so long: somebody else may have told Ray's autoscaler something."""
LEAVES_WITHIN_NS = 120 * 10**9
"""A node that was to go and is still there after so long is taken back into use."""
ITSELF = Caller(principal="autoscaling", kind="admin", team="", teams=frozenset())


class Scaler:
    """Called by the loop's thread only."""

    def __init__(self, core: Core, backend: Backend, policy: Policy) -> None:
        self._core, self._backend, self._policy = core, backend, policy
        self._types: tuple[NodeType, ...] = core.settings.autoscaling.types()
        self._idle_since: dict[str, int] = {}
        self._leaving_since: dict[str, int] = {}
        self._wish = Wish()
        self._said: tuple[ScaleAsk, int] | None = None
        self._next_ns = 0

    def look(self, seen: Observation) -> None:
        """Decide what to ask for and say it; words for who waits for it."""
        if not self._types:
            return
        now = self._core.store.clock.now().control_ns
        if now >= self._next_ns:
            self._next_ns = now + EVERY_NS
            with self._core.store.lock:
                present = self._present(seen)
                self._wish = self._wanted(now, present)
                self._settle(seen, now)
                self._give_back(now, present)
                ask = self._ask(seen)
            if self._said is None or self._said[0] != ask or now - self._said[1] >= AGAIN_NS:
                self._say(ask, now)
        with self._core.store.lock:
            self._explain()

    # -- what there is and what is wanted

    def _present(self, seen: Observation) -> dict[str, list[str]]:
        """Living nodes by type, the head left out: it is nobody's to give back."""
        ledger, nodes = self._core.book.ledger, []
        for node in seen.nodes:
            if node.alive and not node.is_head and node.name in ledger.node_row:
                traits = ledger.traits[int(ledger.trait[ledger.node_row[node.name]])]
                nodes.append(
                    NodeSpec(
                        name=node.name,
                        gpu_model=node.gpu_model if node.devices else "",
                        devices=node.devices,
                        traits=traits,
                    )
                )
        return counted(self._types, nodes)

    def _wanted(self, now: int, present: dict[str, list[str]]) -> Wish:
        waiting = self._core.book.waiting(now)
        if not waiting:
            return Wish()
        snapshot = self._core.snapshot(waiting, {})
        there = {kind: len(names) for kind, names in present.items()}
        return wanted(snapshot, self._policy, now, self._types, there)

    # -- what goes

    def _give_back(self, now: int, present: dict[str, list[str]]) -> None:
        """Drain what nobody has used for long. While anybody waits for a node, none goes."""
        core = self._core
        held = {task.node for lease in core.book.ledger.leases.values() for task in lease.tasks}
        promised = {task.node for one in core.book.promises.values() for task in one.tasks}
        idle = {
            name
            for names in present.values()
            for name in names
            if name not in held and name not in promised and name not in core.book.drained
        }
        self._idle_since = {name: self._idle_since.get(name, now) for name in idle}
        if self._wish.nodes or core.book.waiting(now):
            self._idle_since = dict.fromkeys(idle, now)
            return
        since = {name: now - at for name, at in self._idle_since.items()}
        staying = {kind: [n for n in names if n not in core.book.drained] for kind, names in present.items()}
        patience = core.settings.autoscaling.idle_s * 10**9
        for name in given_back(self._types, staying, since, patience):
            log.info("node %s is given back: nobody has used it for %d s", name, since[name] // 10**9)
            why = f"given back: idle for {since[name] // 10**9} s"
            draining.change(core, ITSELF, name, True, why)

    def _settle(self, seen: Observation, now: int) -> None:
        """Of the nodes that we drained: one that is gone, or that will not go, is no longer drained."""
        alive = {node.name for node in seen.nodes if node.alive}
        leaving = self._leaving()
        self._leaving_since = {name: self._leaving_since.get(name, now) for name in leaving}
        for name in leaving:
            if name not in alive:
                draining.change(self._core, ITSELF, name, False, "it is gone")
            elif now - self._leaving_since[name] >= LEAVES_WITHIN_NS:
                draining.change(self._core, ITSELF, name, False, "Ray did not let it go")

    def _leaving(self) -> list[str]:
        drained = self._core.book.drained
        return sorted(name for name, one in drained.items() if one.get("principal") == ITSELF.principal)

    # -- what is said

    def _say(self, ask: ScaleAsk, now: int) -> None:
        """A cluster that does not answer this is no reason to hold up anything else: it is said again."""
        try:
            self._backend.scale(ask)
            self._said = (ask, now)
        except BackendUnavailable as error:
            log.warning("Ray's autoscaler could not be told what is wanted: %s", error)

    def _ask(self, seen: Observation) -> ScaleAsk:
        """Each node that stays by its own figures, each one that is wanted by its type's: Ray counts what the
        cluster has in all, not what is free."""
        leaving = set(self._leaving())
        held = {task.node for lease in self._core.book.ledger.leases.values() for task in lease.tasks}
        alive = [node for node in seen.nodes if node.alive]
        nodes = [
            NodeAsk(milli_gpu=node.devices * 1000, milli_cpu=node.milli_cpu)
            for node in alive
            if node.name not in leaving
        ]
        for kind in self._types:
            one = NodeAsk(milli_gpu=kind.node.devices * 1000, milli_cpu=kind.node.milli_cpu)
            nodes += [one] * self._wish.nodes.get(kind.name, 0)
        release = sorted(n.ray_node_id for n in alive if n.name in leaving - held)
        return ScaleAsk(nodes=tuple(nodes), release=tuple(release))

    def _explain(self) -> None:
        reasons = self._core.book.reasons
        for job, kind in self._wish.jobs.items():
            reason: Reason | None = reasons.get(job)
            if reason is not None and reason.code is not ReasonCode.NODE_ASKED:
                many = self._wish.nodes[kind]
                note = f"{many} node{'s' if many > 1 else ''} of type {kind}"
                reasons[job] = replace(reason, code=ReasonCode.NODE_ASKED, note=note)
