"""How far the record of a SQLite pool had come, kept beside its database: what shows that its end was cut off.

SQLite drops a torn end of its log in silence, and a copy that was put back looks like any other. The file names the
last event that was durable a second ago; a database that ends before it has lost what lay between.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, select, text

from moorage.cluster.paths import write_json
from moorage.runtime.control import tables

log = logging.getLogger(__name__)


class Head:
    """The file beside the database at `path`."""

    def __init__(self, path: Path) -> None:
        self._file = path.with_name(f"{path.name}.head")
        self._noted = 0

    def note(self, cluster: str, seq: int) -> None:
        """Everything up to event `seq` is durable."""
        if seq != self._noted:
            write_json(self._file, {"cluster": cluster, "seq": seq})
            self._noted = seq

    def missing(self, db: Connection, cluster: str) -> dict[str, Any]:
        """What the database has lost, for the record; {} for nothing. The numbers of lost events are not used again."""
        try:
            said = json.loads(self._file.read_text(encoding="utf-8"))
            before, of = int(said["seq"]), str(said["cluster"])
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s is damaged (%s): whether the database is whole is not known", self._file, error)
            return {}
        last = int(db.execute(select(func.max(tables.events.c.seq))).scalar() or 0)
        if of != cluster or before <= last:
            return {}
        log.error(
            "the database ends at event %d, and was at %d: the last %d are lost (a torn end, or an older copy)."
            " Jobs acknowledged in them are unknown; what they run on GPUs the guard will find",
            last,
            before,
            before - last,
        )
        db.execute(text("UPDATE sqlite_sequence SET seq = :seq WHERE name = 'events'"), {"seq": before})
        return {"last": last, "was": before, "lost_events": before - last}
