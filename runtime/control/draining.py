"""Nodes that take nothing new: drained by the admin, until somebody takes that back.

In the ledger a drained node is down, so that no plan and no applier can place anything there; what runs there goes on.
The state is one fact in the store, changed in the transaction of its event.
"""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Row, delete, insert, select

from moorage.errors import Forbidden, NotFound
from moorage.runtime import answers
from moorage.runtime.control.api import Caller
from moorage.runtime.control.book import node_spec
from moorage.runtime.control.core import Core
from moorage.runtime.control.drained import FACT, drained_from
from moorage.runtime.control.store import record
from moorage.runtime.control.tables import facts, nodes
from moorage.scheduling.ledger import NodeDown, NodeUp


def change(core: Core, caller: Caller, name: str, drain: bool, why: str) -> answers.Drained:
    """Drain a node or take that back, see `api.Control.drain`."""
    if not caller.is_admin:
        raise Forbidden(
            "only the pool's admin may drain nodes", todo="use the admin's token", code="admin-only"
        )
    with core.change("drain") as made:
        row = made.db.execute(select(nodes).where(nodes.c.name == name)).one_or_none()
        if row is None:
            raise NotFound(
                f"there is no node {name!r}", todo="list them with: moorage status", code="node-not-found"
            )
        now = drained_from(made.db)
        done = drain != (name in now)
        if done:
            if drain:
                now[name] = {"since_ns": made.now.wall_ns, "principal": caller.principal, "why": why}
            else:
                del now[name]
            made.db.execute(delete(facts).where(facts.c.key == FACT))
            made.db.execute(insert(facts).values(key=FACT, value=json.dumps(now)))
            kind = "node.drained" if drain else "node.undrained"
            record(made.db, made.now, kind, {"node": name, "why": why}, principal=caller.principal)
            made.after.append(lambda: _to_book(core, row, now))
        held = [x for x in core.book.ledger.leases.values() if any(task.node == name for task in x.tasks)]
    core.wake.set()
    return {"node": name, "drained": drain, "changed": done, "jobs": sorted({lease.job for lease in held})}


def _to_book(core: Core, row: Row[Any], now: dict[str, Any]) -> None:
    core.book.drained = now
    if row.alive:
        spec = node_spec(row, core.settings)
        core.book.apply(NodeDown(row.name) if row.name in now else NodeUp(spec))
