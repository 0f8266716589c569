"""The schema: one set of tables for SQLite and PostgreSQL. Integers for time (ns), money (micro-dollars), capacity.

`*_ns` is wall time, `*_control_ns` control time. Ids are text. Events are append-only. The migrations in
`migrations/versions` create and change these tables; a test compares the two.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class Words(TypeDecorator[str]):
    """Text that others wrote (Ray, a job's last line): what a database cannot hold, NUL and halves of characters, is
    replaced."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        if value is None:
            return None
        return value.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


_ID, _NAME = String(160), String(128)
_SEQUENCE = BigInteger().with_variant(Integer, "sqlite")

facts = Table(
    "facts",
    metadata,
    Column("key", _NAME, primary_key=True),
    Column("value", Text, nullable=False),
)
"""Single values: cluster_id, created_ns."""

jobs = Table(
    "jobs",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("cluster_id", _ID, nullable=False),
    Column("team", _NAME, nullable=False, index=True),
    Column("principal", _ID, nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("spec_version", Integer, nullable=False),
    Column("submission", JSON, nullable=False),
    Column("ask", JSON, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("created_ns", BigInteger, nullable=False, index=True),
    Column("created_control_ns", BigInteger, nullable=False),
    Column("started_ns", BigInteger),
    Column("ended_ns", BigInteger),
    Column("attempt", Integer, nullable=False, default=0),
    Column("lost_attempts", Integer, nullable=False, default=0),
    Column("failed_attempts", Integer, nullable=False, default=0),
    Column("not_before_control_ns", BigInteger, nullable=False, default=0),
    Column("stop_reason", String(32), nullable=False, default=""),
    Column("message", Words, nullable=False, default=""),
    Column("driver_exit_code", Integer),
    Column("deleted_ns", BigInteger),
    Column("promise", JSON(none_as_null=True)),
)
"""promise: while it waits, the place that others were told to leave for it, and who they are."""

attempts = Table(
    "attempts",
    metadata,
    Column("job_id", _ID, ForeignKey("jobs.id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("submission_id", _ID, nullable=False, unique=True),
    Column("lease_id", _ID, nullable=False),
    Column("state", String(16), nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    Column("launched_ns", BigInteger),
    Column("launched_control_ns", BigInteger),
    Column("started_ns", BigInteger),
    Column("started_control_ns", BigInteger),
    Column("ended_ns", BigInteger),
    Column("message", Words, nullable=False, default=""),
    Column("driver_exit_code", Integer),
    Column("notice", JSON(none_as_null=True)),
    Column("follows_ns", BigInteger),
    Column("wants", Integer),
    Column("shrink", JSON(none_as_null=True)),
)
"""notice: that it was told to leave, for whom, by which rule, and until when. follows_ns: since when it follows its
lease. wants: how many workers it has use for, where it said so. shrink: what it was asked to give up, and for whom."""

leases = Table(
    "leases",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("job_id", _ID, ForeignKey("jobs.id"), nullable=False, index=True),
    Column("attempt", Integer, nullable=False),
    Column("team", _NAME, nullable=False),
    Column("epoch", BigInteger, nullable=False, unique=True),
    Column("held", Boolean, nullable=False, index=True),
    Column("milli_gpu", BigInteger, nullable=False),
    Column("granted_ns", BigInteger, nullable=False),
    Column("granted_control_ns", BigInteger, nullable=False),
    Column("released_ns", BigInteger),
    Column("released_control_ns", BigInteger),
    Column("release_reason", String(64)),
    Column("grown_control_ns", BigInteger),
    Column("shrunk_control_ns", BigInteger),
)
"""kind: "job" or "sublease". An endpoint's capacity is its job's lease; `endpoints.lease_id` says which."""

placements = Table(
    "placements",
    metadata,
    Column("lease_id", _ID, ForeignKey("leases.id"), primary_key=True),
    Column("row", Integer, primary_key=True),
    Column("role", String(8), nullable=False),
    Column("task", Integer, nullable=False),
    Column("node", _NAME, nullable=False),
    Column("device_id", _ID),
    Column("device_index", Integer),
    Column("milli_gpu", BigInteger, nullable=False),
    Column("gpu_mib", BigInteger, nullable=False),
    Column("milli_cpu", BigInteger, nullable=False),
    Column("mib", BigInteger, nullable=False),
)
"""One row per device of a task (or one without a device); CPU and memory stand on the task's first row."""

subleases = Table(
    "subleases",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("job_id", _ID, ForeignKey("jobs.id"), nullable=False, index=True),
    Column("attempt", Integer, nullable=False),
    Column("team", _NAME, nullable=False),
    Column("name", _NAME, nullable=False, default=""),
    Column("ask", JSON, nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("created_ns", BigInteger, nullable=False),
    Column("created_control_ns", BigInteger, nullable=False),
    Column("lease_id", _ID),
)
"""state: WAITING, HELD, RELEASED, EXPIRED."""

endpoints = Table(
    "endpoints",
    metadata,
    Column("name", _NAME, primary_key=True),
    Column("id", _ID, nullable=False, unique=True),
    Column("team", _NAME, nullable=False),
    Column("job_id", _ID, ForeignKey("jobs.id"), nullable=False),
    Column("lease_id", _ID, nullable=False),
    Column("app", _NAME, nullable=False),
    Column("route", String(512), nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    Column("scaling", JSON),
)
"""scaling: what the job's present attempt last said of its replicas (`serving.report`), NULL for one application."""

nodes = Table(
    "nodes",
    metadata,
    Column("name", _NAME, primary_key=True),
    Column("ray_node_id", String(128), nullable=False),
    Column("address", String(256), nullable=False),
    Column("alive", Boolean, nullable=False),
    Column("is_head", Boolean, nullable=False),
    Column("gpu_model", _NAME, nullable=False),
    Column("devices", Integer, nullable=False),
    Column("device_mib", BigInteger, nullable=False),
    Column("milli_cpu", BigInteger, nullable=False),
    Column("mib", BigInteger, nullable=False),
    Column("labels", JSON, nullable=False),
    Column("first_seen_ns", BigInteger, nullable=False),
    Column("changed_ns", BigInteger, nullable=False),
)

devices = Table(
    "devices",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("node", _NAME, ForeignKey("nodes.name"), nullable=False),
    Column("index", Integer, nullable=False),
    Column("gpu_model", _NAME, nullable=False),
    Column("mib", BigInteger, nullable=False),
    UniqueConstraint("node", "index"),
)

team_versions = Table(
    "team_versions",
    metadata,
    Column("version", _SEQUENCE, primary_key=True, autoincrement=True),
    Column("digest", String(64), nullable=False),
    Column("content", JSON, nullable=False),
    Column("created_ns", BigInteger, nullable=False),
)

principals = Table(
    "principals",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("kind", String(8), nullable=False),
    Column("team", _NAME, nullable=False),
    Column("teams", JSON, nullable=False),
    Column("job_id", _ID),
    Column("token_sha256", String(64), nullable=False, unique=True),
    Column("created_ns", BigInteger, nullable=False),
    Column("revoked_ns", BigInteger),
)

events = Table(
    "events",
    metadata,
    Column("seq", _SEQUENCE, primary_key=True, autoincrement=True),
    Column("kind", String(64), nullable=False),
    Column("version", Integer, nullable=False),
    Column("wall_ns", BigInteger, nullable=False),
    Column("control_ns", BigInteger, nullable=False),
    Column("principal", _ID, nullable=False, default=""),
    Column("team", _NAME, nullable=False, default=""),
    Column("job_id", _ID, nullable=False, default=""),
    Column("lease_id", _ID, nullable=False, default=""),
    Column("payload", JSON, nullable=False),
    Index(None, "job_id", "seq"),
    Index(None, "kind", "seq"),
    sqlite_autoincrement=True,
)

outbox = Table(
    "outbox",
    metadata,
    Column("id", _SEQUENCE, primary_key=True, autoincrement=True),
    Column("kind", String(16), nullable=False),
    Column("submission_id", _ID, nullable=False),
    Column("job_id", _ID, nullable=False),
    Column("payload", JSON, nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    Column("begun_ns", BigInteger),
    Column("done_ns", BigInteger, index=True),
    Column("tries", Integer, nullable=False, default=0),
    Column("next_control_ns", BigInteger, nullable=False, default=0),
    Column("error", Words, nullable=False, default=""),
    UniqueConstraint("kind", "submission_id"),
    sqlite_autoincrement=True,
)

findings = Table(
    "findings",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("kind", String(32), nullable=False),
    Column("target", String(32), nullable=False),
    Column("target_id", _ID, nullable=False),
    Column("owner", _ID, nullable=False),
    Column("job_id", _ID, nullable=False),
    Column("team", _NAME, nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("milli_gpu", BigInteger, nullable=False),
    Column("message", Words, nullable=False),
    Column("detail", JSON, nullable=False),
    Column("first_ns", BigInteger, nullable=False),
    Column("warned_ns", BigInteger, nullable=False),
    Column("stop_control_ns", BigInteger, nullable=False),
    Column("ended_ns", BigInteger),
)
"""What the guard found. state: WARNED, STOPPING, STOPPED, CLEARED. `owner` is the Ray job that made the thing, `job_id`
ours ("" for none); `stop_control_ns` when it is stopped, where its kind is stopped at all."""

idempotency = Table(
    "idempotency",
    metadata,
    Column("principal", _ID, primary_key=True),
    Column("key", String(256), primary_key=True),
    Column("job_id", _ID, ForeignKey("jobs.id"), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("created_ns", BigInteger, nullable=False),
)
