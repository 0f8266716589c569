"""Which nodes are drained, as the store has it."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Connection, select

from moorage.runtime.control.tables import facts

FACT = "drained"
"""The fact: node -> since_ns, principal, why."""


def drained_from(db: Connection) -> dict[str, dict[str, Any]]:
    """Node -> since when (wall time, ns), by whom, and why."""
    found = db.execute(select(facts.c.value).where(facts.c.key == FACT)).scalar()
    return {} if found is None else dict(json.loads(found))
