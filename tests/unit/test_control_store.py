"""The store (G2 G6): schema by migrations, durable settings, one transition table, tokens, events."""

from __future__ import annotations

import re
import sqlite3
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from control_world import world
from sqlalchemy import Connection, create_mock_engine, select, text

from moorage.errors import Conflict, Forbidden, NotFound, Unauthenticated, Unavailable
from moorage.runtime.control import failpoints, records, states, tables
from moorage.runtime.control.api import FINAL, Submission
from moorage.runtime.control.clock import ManualClock
from moorage.runtime.control.leadership import Fenced, Interrupted, Standing
from moorage.runtime.control.store import Store, sqlite_url
from moorage.scheduling.ledger import LeaseResized, step


def test_the_migrations_make_the_tables_that_the_code_uses(tmp_path: Path) -> None:
    store = Store(sqlite_url(tmp_path / "c.db"), ManualClock())
    with store.engine.connect() as db:
        assert compare_metadata(MigrationContext.configure(db), tables.metadata) == []
        assert db.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert db.execute(text("PRAGMA synchronous")).scalar() == 2, "FULL: a power loss keeps every commit"
        assert db.execute(text("PRAGMA foreign_keys")).scalar() == 1
    store.close()
    assert stat.S_IMODE((tmp_path / "c.db").stat().st_mode) == 0o600


def test_a_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    store = Store(sqlite_url(tmp_path / "c.db"), ManualClock())
    with store.write() as db:
        db.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    store.close()
    with pytest.raises(Conflict, match="newer"):
        Store(sqlite_url(tmp_path / "c.db"), ManualClock())


def test_a_tree_of_teams_whose_commit_was_not_answered_is_in_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store has it: the book goes by it too, and to apply it again finds nothing to do."""
    other, write = "teams: {a: {quota: 4}, b: {quota: 1}}", Store.write

    @contextmanager
    def unanswered(store: Store) -> Iterator[Connection]:
        with write(store) as db:
            yield db
        raise Unavailable("the connection broke", code="database-unreachable")

    with world(tmp_path, teams="teams: {a: {quota: 2}}") as w:
        admin = w.caller("admin")
        monkeypatch.setattr(Store, "write", unanswered)
        with pytest.raises(Unavailable):
            w.service.put_quotas(admin, other)
        monkeypatch.undo()
        assert not w.service.put_quotas(admin, other)["applied"]
        assert sorted(w.service.teams.teams) == ["a", "b"]
        ledger = w.service.core.book.ledger
        assert ledger.quota[ledger.team_row["a"], 0] == 4000


def test_who_asks_late_whether_another_one_leads_hears_it_too(tmp_path: Path) -> None:
    """Else a control plane that was replaced while it started would stay, and never end."""
    first = Store(sqlite_url(tmp_path / "c.db"), ManualClock())
    heard: list[str] = []
    with first.write() as db:
        db.execute(text("UPDATE facts SET value = '9' WHERE key = 'generation'"))
    with pytest.raises(Fenced):
        first.leader.confirm()
    first.leader.when_lost(lambda: heard.append("lost"))
    assert heard == ["lost"]
    first.close()


def test_a_start_that_finds_the_database_held_can_be_ended(tmp_path: Path) -> None:
    Store(sqlite_url(tmp_path / "c.db"), ManualClock()).close()
    standing = Standing()
    with sqlite3.connect(tmp_path / "c.db", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        timer = threading.Timer(0.2, standing.ended.set)
        timer.start()
        with pytest.raises(Interrupted):
            Store(sqlite_url(tmp_path / "c.db"), ManualClock(), standing)
        timer.join()
        other.execute("ROLLBACK")


def test_the_schema_compiles_for_postgresql() -> None:
    statements: list[str] = []
    engine = create_mock_engine(
        "postgresql://", lambda sql, *_, **__: statements.append(str(sql.compile(dialect=engine.dialect)))
    )
    tables.metadata.create_all(engine, checkfirst=False)
    assert sum("CREATE TABLE" in statement for statement in statements) == len(tables.metadata.tables)


def test_only_one_function_writes_a_jobs_state(root: Path) -> None:
    """DESIGN: one table holds the transitions; nothing else changes a state."""
    for source in (root / "runtime" / "control").glob("*.py"):
        for update in re.findall(r"update\(jobs\)(?:.|\n){0,200}?values\(([^)]*)\)", source.read_text()):
            assert source.name == "records.py" or "state" not in update.replace("stop_reason", ""), source


def test_the_transition_table_is_the_designs() -> None:
    assert all(before not in FINAL for before, _ in states.TRANSITIONS), "nothing leaves a final state"
    assert all(reasons for reasons in states.TRANSITIONS.values()), "each edge has a reason"
    with pytest.raises(states.IllegalTransition):
        states.check("PENDING", "RUNNING", "observed-running")
    with pytest.raises(states.IllegalTransition):
        states.check("PENDING", "ADMITTED", "stopped-by-user")


def test_events_are_written_with_the_state_and_the_time_never_goes_back(tmp_path: Path) -> None:
    with world(tmp_path) as w:
        job = w.submit("ops", seconds="2")
        w.run(5)
        events = w.service.events(w.caller("ops"), job_id=job)
        kinds = [event["kind"] for event in events if event["kind"].startswith(("job.", "lease."))]
        assert kinds == [
            "job.pending",
            "lease.granted",
            "job.admitted",
            "job.starting",
            "job.running",
            "job.succeeded",
            "lease.released",
        ]
        every = w.service.events(w.caller("admin"), limit=1000)
        assert [e["seq"] for e in every] == sorted({e["seq"] for e in every})
        assert [e["control_ns"] for e in every] == sorted(e["control_ns"] for e in every)
        assert all(e["team"] == "research" for e in w.service.events(w.caller("research")))


def test_tokens_are_files_for_their_owner_and_only_their_hash_is_stored(tmp_path: Path) -> None:
    with world(tmp_path, url=sqlite_url(tmp_path / "control.db")) as w:
        for name in ("ops", "research", "admin"):
            path = w.tokens / f"{name}.token"
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            secret = path.read_text().strip()
            assert secret.encode() not in (tmp_path / "control.db").read_bytes()
            assert secret.encode() not in (tmp_path / "control.db-wal").read_bytes()
        before = (w.tokens / "ops.token").read_text()
        w.restart()
        assert (w.tokens / "ops.token").read_text() == before
        for bad in (None, "", "Bearer ", "x", before.strip() + "x"):
            with pytest.raises(Unauthenticated):
                w.service.authenticate(bad)


def test_a_jobs_token_is_its_own_and_ends_with_it(tmp_path: Path) -> None:
    with world(tmp_path) as w:
        from moorage.runtime.control.tokens import job_token

        mine, other = w.submit("ops", seconds="20"), w.submit("ops", seconds="20")
        w.run(2)
        caller = w.service.authenticate(job_token(b"secret", f"{mine}-1"))
        assert (caller.kind, caller.team, caller.job_id) == ("job", "ops", mine)
        with pytest.raises(Forbidden):
            w.service.stop(caller, other)
        assert w.service.stop(caller, mine)
        w.run(2)
        with pytest.raises(Unauthenticated):
            w.service.authenticate(job_token(b"secret", f"{mine}-1"))
        with w.service.store.read() as db:
            launch = db.execute(select(tables.outbox).where(tables.outbox.c.kind == "launch")).first()
        assert launch is not None and "MOORAGE_TOKEN" not in str(launch.payload)


def test_teams_do_not_see_or_charge_each_other(tmp_path: Path) -> None:
    """S9, S10: the token decides; metadata and headers choose only among the caller's teams."""
    with world(tmp_path) as w:
        job = w.submit("ops", seconds="20")
        research = w.caller("research")
        for act in (w.service.job, w.service.stop, w.service.delete):
            with pytest.raises(NotFound):
                act(research, job)
        assert w.service.jobs(research) == []
        with pytest.raises(Forbidden):
            w.service.submit(research, Submission(entrypoint="x", metadata={"team": "ops"}))
        with pytest.raises(Forbidden):
            w.service.submit(research, Submission(entrypoint="x"), {"Moorage-Team": "ops"})
        admin = w.caller("admin")
        made = w.service.submit(
            admin, Submission(entrypoint="x", metadata={"team": "ops"}), {"Moorage-Team": "research"}
        )
        assert w.job(made).team == "research", "a header beats metadata"


def test_delete_hides_a_final_job_and_keeps_its_record(tmp_path: Path) -> None:
    with world(tmp_path) as w:
        ops, job = w.caller("ops"), w.submit("ops", job="gone", seconds="1")
        with pytest.raises(Conflict):
            w.service.delete(ops, job)
        w.run(4)
        assert w.service.delete(ops, job)
        w.run(1)
        with pytest.raises(NotFound):
            w.service.job(ops, job)
        assert w.backend.jobs == {}, "Ray's record went too"
        assert w.service.cost(ops)["total"]["milli_gpu_ns"] > 0
        with pytest.raises(Conflict):
            w.submit("ops", job="gone", seconds="1")


def test_a_resized_lease_is_stored_billed_and_read_again(tmp_path: Path) -> None:
    """S3, L5: what the planner will do to a running gang is durable, though nothing in a live pool does it yet."""
    with world(tmp_path, url=sqlite_url(tmp_path / "control.db")) as w:
        w.submit("ops", gpus=1, workers=2, seconds="1000")
        w.run(2)
        core = w.service.core
        (lease,) = core.book.ledger.leases.values()
        before = w.service.cost(w.caller("ops"))["total"]["milli_gpu_ns"]

        def resized(event: LeaseResized) -> None:
            with core.change("resize") as change:
                step(core.book.ledger, event)
                now = core.book.ledger.leases[event.lease]
                records.resize(change.db, change.now, now, event, models={}, settings=core.settings)

        resized(LeaseResized(lease.lease, lease.epoch, lease.epoch + 1, 1))
        w.clock.tick(10)
        after = w.service.cost(w.caller("ops"))["total"]["milli_gpu_ns"]
        assert after - before == 10 * 10**9 * 1000, "one GPU from the shrink on, two before"
        resized(LeaseResized(lease.lease, lease.epoch + 1, lease.epoch + 2, 1, lease.tasks[1:]))
        w.clock.tick(10)
        assert w.service.cost(w.caller("ops"))["total"]["milli_gpu_ns"] - after == 10 * 10**9 * 2000
        held = core.book.ledger.leases
        with pytest.raises(Conflict), core.change("resize") as change:
            stale = LeaseResized(lease.lease, lease.epoch, lease.epoch + 9, 1)
            records.resize(change.db, change.now, lease, stale, models={}, settings=core.settings)
        w.restart()
        again = w.service.core.book.ledger
        assert again.leases == held and again.last_epoch == lease.epoch + 2
        kinds = [e["kind"] for e in w.service.events(w.caller("ops"), limit=1000)]
        assert kinds.count("lease.resized") == 2
        w.service.stop(w.caller("ops"), lease.job)
        w.run(2)
        assert not w.service.core.book.ledger.leases, "released under its new epoch"


def test_a_team_gone_from_the_file_has_no_token_any_more(tmp_path: Path) -> None:
    """Its file goes too: `moorage up` offers the tokens it finds there."""
    with world(tmp_path, teams="teams: {a: {}, b: {}}") as w:
        old = (w.tokens / "a.token").read_text(encoding="utf-8")
        w.service.put_quotas(w.caller("admin"), "teams: {b: {}}")
        assert sorted(path.stem for path in w.tokens.glob("*.token")) == ["admin", "b"]
        with pytest.raises(Unauthenticated):
            w.service.authenticate(old)


def test_tokens_change_with_the_teams_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a change of the teams breaks off: who is a team has a file, and what is in it is the token."""
    with world(tmp_path, teams="teams: {a: {}, b: {}}") as w:
        old = (w.tokens / "a.token").read_text(encoding="utf-8")

        def break_off(name: str) -> None:
            if name == at:
                raise RuntimeError(name)

        monkeypatch.setattr(failpoints, "hit", break_off)
        at = "quota.before-commit"
        with pytest.raises(RuntimeError):
            w.service.put_quotas(w.caller("admin"), "teams: {b: {}}")
        assert (w.tokens / "a.token").read_text(encoding="utf-8") == old
        assert w.service.authenticate(old).team == "a"
        at = "quota.after-commit"
        with pytest.raises(RuntimeError):
            w.service.put_quotas(w.caller("admin"), "teams: {b: {}}")
        assert (w.tokens / "a.token").exists(), "removed after the commit only"
        with pytest.raises(Unauthenticated):
            w.service.authenticate(old)
        at = ""
        w.service.put_quotas(w.caller("admin"), "teams: {a: {}, b: {}}")
        new = (w.tokens / "a.token").read_text(encoding="utf-8")
        assert w.service.authenticate(new).team == "a"
        with pytest.raises(Unauthenticated):
            w.service.authenticate(old)
        at = "quota.after-commit"
        with pytest.raises(RuntimeError):
            w.service.put_quotas(w.caller("admin"), "teams: {b: {}}")
        w.restart()
        assert sorted(path.stem for path in w.tokens.glob("*.token")) == ["admin", "b"], (
            "made up for by a start"
        )
