"""The tree of teams in force: which one a start begins with, and how another takes its place without a restart.

Every tree that was ever in force is a row of `team_versions`. The teams file counts when it is new or changed; until
then what was applied stays in force, over restarts too.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select

from moorage.configs.quotafile import as_file, changes
from moorage.configs.teams import ANY, Teams, parse_teams, stored_teams
from moorage.errors import Conflict, Forbidden, Infeasible
from moorage.runtime import answers
from moorage.runtime.control import tokens
from moorage.runtime.control.api import FINAL, Caller
from moorage.runtime.control.clock import Now
from moorage.runtime.control.core import Core
from moorage.runtime.control.store import record
from moorage.runtime.control.tables import facts, jobs, team_versions
from moorage.scheduling.ledger import Ledger

_FILE = "teams_file"
"""The fact: digest of the teams file that was read last."""


def begin(db: Connection, now: Now, file: Teams) -> Teams:
    """The tree to start with: the file's if it changed since it was last read, else the one in force."""
    read = db.execute(select(facts.c.value).where(facts.c.key == _FILE)).scalar()
    content = file.model_dump()
    last = _newest(db)
    if last is not None and read == _digest(content):
        return stored_teams(last.content)
    if last is None or last.digest != _digest(content):
        version = _insert(db, now, content)
        record(db, now, "quota.read", {"version": version, "source": "the teams file"})
    db.execute(delete(facts).where(facts.c.key == _FILE))
    db.execute(insert(facts).values(key=_FILE, value=_digest(content)))
    return file


def in_force(db: Connection) -> answers.Quotas:
    """The version in force, and its tree as a teams file says it."""
    last = _newest(db)
    assert last is not None, "a control plane that runs has read one"
    return {"version": last.version, "since_ns": last.created_ns, "file": as_file(stored_teams(last.content))}


def change(
    core: Core, tokens_in: Path, caller: Caller, text: str, *, base: int | None, force: bool, dry: bool
) -> answers.QuotasPut:
    """Put another tree in force, or (`dry`) say what would change; see `api.Control.put_quotas`."""
    if not caller.is_admin:
        raise Forbidden(
            "only the pool's admin may change quotas", todo="use the admin's token", code="admin-only"
        )
    teams = parse_teams(text, "the proposed quotas")
    with core.change("quota") as made:
        db, last = made.db, _newest(made.db)
        if base is not None and base != last.version:
            raise Conflict(
                f"version {last.version} of the quotas is in force, not {base}",
                why="somebody changed them in the meantime",
                todo="look at them again with: moorage quota show",
                code="quota-changed",
            )
        _check(db, teams, core.book.ledger, force)
        content, different = teams.model_dump(), changes(stored_teams(last.content), teams)
        if dry or last.digest == _digest(content):
            return {"version": last.version, "applied": False, "changes": different}
        version = _insert(db, made.now, content)
        revoked = tokens.provision(db, made.now, tokens_in, teams)
        said = {"version": version, "before": last.version, "changes": different}
        record(db, made.now, "quota.applied", said, principal=caller.principal)
        made.after += [lambda: _put_in_force(core, teams), lambda: tokens.remove(revoked)]
    core.wake.set()
    return {"version": version, "applied": True, "changes": different}


def _put_in_force(core: Core, teams: Teams) -> None:
    """The book anew: the ledger knows no team that leaves it, and rows of it stand in the order of the tree."""
    core.book.teams = teams
    core.spending.of(teams)
    core.reload()


def _check(db: Connection, teams: Teams, ledger: Ledger, force: bool) -> None:
    """Infeasible where the nodes that are up have less than what is guaranteed, unless that is forced; Conflict where a
    team that is gone has jobs that have not ended."""
    capacity = ledger.capacity().tolist()
    pool = {ANY if column == 0 else model: capacity[column] for column, model in enumerate(ledger.models)}
    if not force and (beyond := teams.over_committed(pool)):
        raise Infeasible(
            "the quotas guarantee more than the pool has",
            why="; ".join(beyond),
            todo="lower them, wait for the nodes that are down, or say --force",
            code="quota-over-committed",
        )
    unfinished = select(jobs.c.team).where(jobs.c.state.not_in(FINAL)).distinct()
    if gone := sorted(set(db.execute(unfinished).scalars()) - set(teams.teams)):
        raise Conflict(
            f"team {', '.join(gone)} would be gone and has jobs that have not ended",
            todo="stop them, or wait until they have ended",
            code="team-in-use",
        )


def _newest(db: Connection) -> Any:
    return db.execute(select(team_versions).order_by(team_versions.c.version.desc()).limit(1)).one_or_none()


def _insert(db: Connection, now: Now, content: dict[str, Any]) -> int:
    db.execute(insert(team_versions).values(digest=_digest(content), content=content, created_ns=now.wall_ns))
    return int(db.execute(select(func.max(team_versions.c.version))).scalar_one())


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
