"""The control plane on PostgreSQL (G6, DESIGN "State"): the same schema and promises as on SQLite.

`MOORAGE_TEST_DATABASE=postgresql make test T='-k control'` runs every other test of the control plane on it too.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from control_world import sound, world
from pools import free_port
from postgres import Server
from sqlalchemy import insert, select, text
from waiting import until

from moorage.errors import Conflict, Unavailable
from moorage.runtime.control import leadership, tables
from moorage.runtime.control.clock import ManualClock
from moorage.runtime.control.leadership import Fenced
from moorage.runtime.control.postgres import open_engine
from moorage.runtime.control.store import Store, record


def test_the_migrations_make_the_same_tables_there(tmp_path: Path, postgresql: Server) -> None:
    store = Store(postgresql.database(tmp_path), ManualClock())
    with store.read() as db:
        assert compare_metadata(MigrationContext.configure(db), tables.metadata) == []
        assert db.execute(text("SHOW synchronous_commit")).scalar() == "on", "the server's own default is off"
    store.close()


def test_a_read_sees_one_snapshot_and_cannot_write(tmp_path: Path, postgresql: Server) -> None:
    store = Store(postgresql.database(tmp_path), ManualClock())
    count = select(tables.facts)
    with store.read() as db:
        before = len(db.execute(count).all())
        with store.write() as other:
            other.execute(insert(tables.facts).values(key="new", value="1"))
        assert len(db.execute(count).all()) == before
        with pytest.raises(Exception, match="read-only"):
            db.execute(insert(tables.facts).values(key="newer", value="1"))
    store.close()


def test_one_control_plane_writes_at_a_time(
    tmp_path: Path, postgresql: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(leadership.GIVE_UP_S, "postgresql", 0.2)
    url = postgresql.database(tmp_path)
    first = Store(url, ManualClock())
    with pytest.raises(Conflict, match="another control plane"):
        Store(url, ManualClock())
    first.close()
    Store(url, ManualClock()).close()


def test_a_deadlock_with_another_program_is_told_as_busy(tmp_path: Path, postgresql: Server) -> None:
    """PostgreSQL undoes one of two that wait for each other. Ours it is here: the other one looks for a cycle late."""
    url = postgresql.database(tmp_path)
    store = Store(url, ManualClock())
    import psycopg

    with psycopg.connect(url) as other:
        other.execute("SET deadlock_timeout = '60s'")
        other.execute("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE")
        with ThreadPoolExecutor(1) as aside:
            with pytest.raises(Unavailable) as told, store.write() as db:
                record(db, store.clock.now(), "test.deadlock")
                both = aside.submit(other.execute, "LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
                waiting = text(
                    "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'events'::regclass"
                )
                until(lambda: db.execute(waiting).scalar() == 1, 10, "the other one to wait for us")
                db.execute(select(tables.jobs))
            both.result(10)
        assert told.value.code == "database-busy"
        other.rollback()
    with store.write() as db:
        kinds = list(db.execute(select(tables.events.c.kind)).scalars())
    assert "test.deadlock" not in kinds, "undone as a whole"
    store.close()


def test_a_control_plane_that_was_replaced_can_no_longer_write(tmp_path: Path, postgresql: Server) -> None:
    """Its connection broke, so the lock fell to another: what it still believes must not reach the store."""
    url = postgresql.database(tmp_path)
    with world(tmp_path, url=url) as old:
        postgresql.stop(signal.SIGQUIT)
        postgresql.start()
        with world(tmp_path, url=url) as new:
            job = new.submit("ops", seconds="1")
            with pytest.raises(Fenced, match="taken over"):
                old.submit("ops")
            new.run(5)
            assert new.states(job) == ["SUCCEEDED"] and old.backend.launches == []
        old.service.core.reload()


def test_a_takeover_ends_the_sessions_of_the_stalled_leader_and_of_nobody_else(
    tmp_path: Path, postgresql: Server
) -> None:
    """Two standbys see the same leader stall. The slower one must not break off what the faster one, who leads by
    now, has under way."""
    url = postgresql.database(tmp_path)
    stalled = Store(url, ManualClock())
    instead = stalled.leader._read()  # as both standbys read it
    with pytest.raises(Unavailable), stalled.write() as db:
        db.execute(insert(tables.facts).values(key="late", value="1"))
        slower = leadership.Leadership(open_engine(url), ManualClock(), leadership.Standing(standby=True))
        faster = leadership.Leadership(open_engine(url), ManualClock(), leadership.Standing(standby=True))
        assert faster.take(instead), "a transaction that its leader never ends holds up nobody"
    with faster._engine.connect().execution_options(moorage_write=True) as db, db.begin():
        faster.enter(db)
        db.execute(insert(tables.facts).values(key="kept", value="1"))
        slower._seat.evict(str(instead.about["seat"]))
    with stalled.read() as db:
        keys = set(db.execute(select(tables.facts.c.key)).scalars())
    assert "kept" in keys and "late" not in keys
    assert not slower.take(instead)
    for one in (faster, slower):
        one.close()
        one._engine.dispose()
    stalled.close()


def test_a_broken_connection_at_the_commit_leaves_book_and_store_alike(
    tmp_path: Path, postgresql: Server
) -> None:
    """The server dies with the transaction open: not acknowledged, not there, and the next one works."""
    with world(tmp_path, url=postgresql.database(tmp_path)) as w:
        kept, core = w.submit("ops", seconds="2"), w.service.core
        with pytest.raises(Unavailable), core.change() as change:
            record(change.db, change.now, "test.lost")
            change.after.append(lambda: core.book.drop(kept))
            postgresql.stop(signal.SIGQUIT)
        assert core.stale
        with pytest.raises(Unavailable):
            w.service.loop.tick()
        postgresql.start()
        w.run(5)
        assert not core.stale and w.states(kept) == ["SUCCEEDED"]
        assert not [e for e in w.service.events(w.caller("admin"), limit=1000) if e["kind"] == "test.lost"]
        sound(w.service, w.clock)


def test_pool_yaml_names_the_database(tmp_path: Path, postgresql: Server) -> None:
    """The process that `moorage up` starts, without a cluster: it serves, and its state is on the server."""
    url = postgresql.database(tmp_path)
    (tmp_path / "pool.yaml").write_text(f"database: {url}\n")
    port = free_port()
    command = [
        sys.executable,
        "-P",
        "-m",
        "moorage.runtime.control",
        "--home",
        str(tmp_path),
        "--port",
        str(port),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert until(lambda: _answers(port), 60, "the front door") == 200
            process.terminate()
            said = process.communicate(timeout=90)[1]
        finally:
            process.kill()
    assert process.returncode == 0, said
    assert not (tmp_path / "control.db").exists()
    store = Store(url, ManualClock())
    with store.read() as db:
        assert "control.started" in db.execute(select(tables.events.c.kind)).scalars().all()
    store.close()


def _answers(port: int) -> int:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False).status_code
    return 0


def test_the_loop_outlives_its_database(tmp_path: Path, postgresql: Server) -> None:
    """The thread itself: rounds fail while the server is away, and go on when it is back."""
    with world(tmp_path, url=postgresql.database(tmp_path)) as w:
        w.service.start()
        postgresql.stop(signal.SIGQUIT)
        until(lambda: w.service.core.stale, 20, "a round that failed")
        postgresql.start()
        job = w.submit("ops", seconds="0")
        until(lambda: w.states(job) == ["SUCCEEDED"], 20, "the job's end")
        w.service.loop.stop()


@pytest.mark.parametrize("where", ["sqlite", "postgresql"])
def test_a_jobs_last_words_may_be_no_text(tmp_path: Path, where: str, request: pytest.FixtureRequest) -> None:
    """PostgreSQL holds no NUL, and neither database a lone surrogate: the loop must not stumble over them."""
    server = request.getfixturevalue("postgresql") if where == "postgresql" else None
    with world(tmp_path, url=server.database(tmp_path) if server else None) as w:
        job = w.submit("ops", seconds="100")
        w.run(2)
        w.backend.kill(f"{job}-1", "entrypoint command failed: \x00\ud800 end")
        w.run(2)
        assert w.states(job) == ["FAILED"] and "end" in w.job(job).message
