"""Who may call: tokens in files for teams and the admin, derived ones for jobs. Only SHA-256 of each is stored."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from sqlalchemy import Connection, delete, insert, select, update

from moorage.cluster.paths import write_private
from moorage.configs.teams import Teams
from moorage.errors import Unauthenticated
from moorage.runtime.control.api import Caller
from moorage.runtime.control.clock import Now
from moorage.runtime.control.store import record
from moorage.runtime.control.tables import principals

log = logging.getLogger(__name__)
ADMIN = "admin"


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def secret_file(path: Path) -> bytes:
    """The pool's own secret, made at first use (0600); job tokens are derived from it, so none is stored."""
    return bytes.fromhex(_read_or_make(path))


def job_token(secret: bytes, submission_id: str) -> str:
    """The token of one attempt: the same however often its launch is repeated after a crash."""
    return "mrj_" + hmac.new(secret, submission_id.encode(), hashlib.sha256).hexdigest()


def provision(db: Connection, now: Now, folder: Path, teams: Teams) -> list[Path]:
    """One token file per team that submits, and one for the admin. A team gone from the tree is revoked.

    The files of who is revoked are answered, for `remove` once the transaction is durable (`moorage up` would offer
    them): were they gone before, a death in between would leave a team that is still there without its token. Files of
    new tokens come first: a death leaves them to be issued by the next start.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    wanted = {name: ("team", name, [name]) for name in teams.teams} | {ADMIN: (ADMIN, "", [])}
    query = select(principals.c.id, principals.c.revoked_ns, principals.c.token_sha256)
    known = {row.id: row for row in db.execute(query.where(principals.c.kind != "job"))}
    for name, (kind, team, of) in wanted.items():
        path, row = folder / f"{name}.token", known.get(name)
        token = _read_or_make(path)
        if row is not None and row.revoked_ns is not None and row.token_sha256 == digest(token):
            token = _make(path)  # its file was not removed in time: a revoked token stays revoked
        put(db, now, name, kind, team, of, token)
    gone = [row for row in known.values() if row.id not in wanted]
    for row in gone:
        if row.revoked_ns is None:
            db.execute(update(principals).where(principals.c.id == row.id).values(revoked_ns=now.wall_ns))
            record(db, now, "principal.revoked", {"id": row.id})
    return [folder / f"{row.id}.token" for row in gone]


def remove(files: Iterable[Path]) -> None:
    """Files of revoked tokens; one that cannot be removed now is tried again by the next start."""
    for file in files:
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            log.warning("the file of a revoked token stays: %s", error)


def put(
    db: Connection,
    now: Now,
    principal: str,
    kind: str,
    team: str,
    teams: Iterable[str],
    token: str,
    job_id: str | None = None,
) -> None:
    """Make `token` the one token of `principal`; no change if it is already."""
    mark = digest(token)
    row = db.execute(select(principals).where(principals.c.id == principal)).one_or_none()
    if row is not None and row.token_sha256 == mark and row.revoked_ns is None and row.teams == list(teams):
        return
    db.execute(delete(principals).where(principals.c.id == principal))
    db.execute(
        insert(principals).values(
            id=principal,
            kind=kind,
            team=team,
            teams=list(teams),
            job_id=job_id,
            token_sha256=mark,
            created_ns=now.wall_ns,
        )
    )
    record(db, now, "principal.issued", {"id": principal, "kind": kind}, team=team, job_id=job_id or "")


def authenticate(db: Connection, bearer: str | None) -> Caller:
    """The caller of a token. Unauthenticated without one, or when nobody issued it or it was revoked."""
    token = (bearer or "").strip()
    if token.lower().startswith("bearer "):
        token = token[7:].strip()
    if not token:
        raise Unauthenticated("no token was sent", todo="send Authorization: Bearer <your team's token>")
    row = db.execute(
        select(principals).where(
            principals.c.token_sha256 == digest(token[:4096]), principals.c.revoked_ns.is_(None)
        )
    ).one_or_none()
    if row is None:
        raise Unauthenticated(
            "this token is not valid",
            why="nobody issued it, or it was revoked or its job ended",
            todo="use the token file that the pool's operator gave your team",
        )
    return Caller(
        principal=row.id, kind=row.kind, team=row.team, teams=frozenset(row.teams), job_id=row.job_id
    )


def _read_or_make(path: Path) -> str:
    if path.exists():
        os.chmod(path, 0o600)
        text = path.read_text(encoding="utf-8").strip()
        if text:
            return text
    return _make(path)


def _make(path: Path) -> str:
    write_private(path, secrets.token_hex(32) + "\n")
    return path.read_text(encoding="utf-8").strip()
