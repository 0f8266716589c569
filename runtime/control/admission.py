"""Submission: resolve the team, parse, validate, refuse what can never run, write the job once.

Order: the caller is authenticated before anything here reads what it sent. When `submit` returns, the job is durable.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, func, insert, select

from moorage.configs import units
from moorage.configs.job import JobAsk, parse_job
from moorage.configs.teams import Teams
from moorage.errors import Conflict, Forbidden, Infeasible, InvalidRequest, MoorageError
from moorage.runtime.control.api import PENDING, Caller, Submission
from moorage.runtime.control.clock import Now
from moorage.runtime.control.store import record
from moorage.runtime.control.tables import idempotency, jobs
from moorage.scheduling.constraints import ANYWHERE
from moorage.scheduling.ledger import Ledger
from moorage.scheduling.model import DeviceRule, JobRequest, Policy
from moorage.scheduling.planner import feasible
from moorage.scheduling.scaling import NodeType, grown

SPEC_VERSION = 1
MAX_ENTRYPOINT = 65_536
MAX_RUNTIME_ENV = 1 << 20
_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_OURS = ("MOORAGE_", "RAY_AUTH", "RAY_ADDRESS", "RAY_JOB_CONFIG", "RAY_RUNTIME_ENV_HOOK")
_GOVERNED = frozenset({"cpu", "gpu", "memory", "object_store_memory"})
_MODEL_LABEL = "moorage.io/gpu-model"


class QueueFull(MoorageError):
    """The team has too many waiting jobs."""

    code = "queue-full"
    http_status = 429


def resolve_team(
    caller: Caller, teams: Teams, metadata: Mapping[str, Any], headers: Mapping[str, str] | None
) -> str:
    """The team a submission is charged to. Forbidden unless it is one of the caller's."""
    named = parse_job(metadata, headers).team
    team = named or caller.team
    if not team:
        raise InvalidRequest(
            "the submission names no team",
            why="an admin's token belongs to none",
            todo='add metadata {"team": ...}; for `moorage submit`, say --as TEAM',
            code="team-missing",
            field="team",
        )
    if not caller.may_see(team):
        raise Forbidden(
            f"this token may not submit for team {team!r}",
            why=f"it may for: {', '.join(sorted(caller.teams)) or 'none'}",
            code="team-forbidden",
        )
    if team not in teams.teams:
        raise InvalidRequest(
            f"there is no team {team!r}",
            why=f"the pool knows: {', '.join(sorted(teams.teams)[:20])}",
            code="team-unknown",
            field="team",
        )
    return team


def parse(submission: Submission, headers: Mapping[str, str] | None, team: str, teams: Teams) -> JobAsk:
    """The checked ask, with the team's default lease where nothing was asked."""
    ask = parse_job(
        submission.metadata,
        headers,
        entrypoint_num_cpus=submission.entrypoint_num_cpus,
        entrypoint_num_gpus=submission.entrypoint_num_gpus,
        entrypoint_memory=submission.entrypoint_memory,
        default_lease=teams.teams[team].default_lease,
    )
    model = ask.gpu_model
    for key, value in (submission.entrypoint_label_selector or {}).items():
        if key != _MODEL_LABEL or (model and model != value):
            raise units.refuse(
                f"entrypoint_label_selector {key[:60]!r}",
                value,
                "Moorage chooses the node of a lease",
                f"ask for a model with metadata gpu_model or {_MODEL_LABEL}",
            )
        model = str(value)
    return ask.model_copy(update={"team": team, "gpu_model": model})


def validate(submission: Submission) -> Submission:
    """What Ray would choke on or a user may not set; returns the submission with empty `py_modules` dropped."""
    text = submission.entrypoint
    if not isinstance(text, str) or not text.strip() or len(text) > MAX_ENTRYPOINT or "\x00" in text:
        raise units.refuse("entrypoint", text, f"it must be a command of 1 to {MAX_ENTRYPOINT} characters")
    job_id = submission.submission_id
    if job_id is not None and not _JOB_ID.fullmatch(job_id):
        raise units.refuse("submission_id", job_id, "letters, digits, '_', '.', '-'; at most 100 characters")
    for name, amount in (submission.entrypoint_resources or {}).items():
        if name.lower() in _GOVERNED or name.startswith("node:"):
            raise units.refuse(
                f"entrypoint_resources {name!r}", amount, "the lease governs it", "use entrypoint_num_*"
            )
        if (
            isinstance(amount, bool)
            or not isinstance(amount, int | float)
            or not math.isfinite(amount)
            or amount < 0
        ):
            raise units.refuse(
                f"entrypoint_resources {name!r}", amount, "it must be a finite number, not negative"
            )
    environment = dict(submission.runtime_env)
    _check_encoding(text, dict(submission.metadata), environment)
    try:
        size = len(json.dumps(environment, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InvalidRequest("runtime_env is not plain JSON", why=str(error), code="invalid-field") from None
    if size > MAX_RUNTIME_ENV:
        raise InvalidRequest(
            f"runtime_env is {size} bytes", why=f"the limit is {MAX_RUNTIME_ENV}", code="invalid-field"
        )
    _check_environment(environment)
    if not environment.get("py_modules", True):
        del environment["py_modules"]  # Ray fails any job that has an empty list
    values = {name: getattr(submission, name) for name in Submission.__slots__}
    return Submission(**{**values, "runtime_env": environment})


def _check_encoding(*parts: Any) -> None:
    """JSON may carry half of a surrogate pair, and the launch could then not be sent to Ray as UTF-8."""
    try:
        json.dumps(parts, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise InvalidRequest(
            "the submission is not valid Unicode", why=f"it holds {half} alone", code="invalid-field"
        ) from None


def _check_environment(environment: Mapping[str, Any]) -> None:
    variables = environment.get("env_vars") or {}
    if not isinstance(variables, Mapping):
        raise units.refuse("runtime_env.env_vars", type(variables).__name__, "it must map text to text")
    for name, value in variables.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise units.refuse(
                f"runtime_env.env_vars {name!r}", type(value).__name__, "it must map text to text"
            )
        if name.upper().startswith(_OURS):
            raise InvalidRequest(
                f"runtime_env.env_vars may not set {name[:60]}",
                why="Moorage or Ray sets it",
                code="reserved-variable",
                field=name,
            )
    modules = environment.get("py_modules") or []
    for uri in (environment.get("working_dir"), *(modules if isinstance(modules, list) else [])):
        if uri is not None and (not isinstance(uri, str) or uri.startswith("file:") or "://" not in uri):
            raise InvalidRequest(
                f"runtime_env package {str(uri)[:80]!r} is not an uploaded one or a remote URL",
                why="a path here would be read on the cluster, not on your machine",
                todo="let the ray client upload it",
                code="invalid-field",
                field="runtime_env",
            )


def at_its_largest(ledger: Ledger, types: Sequence[NodeType] = ()) -> Ledger:
    """A copy with all nodes there may be. A node that is down counts: it may come back, and a large gang must not be
    refused because one reboots. So do nodes of `types`, as many as there may be."""
    found = grown(ledger, types, {})
    found.up[:] = True
    return found


def check_feasible(
    ledger: Ledger, request: JobRequest, rule: DeviceRule, policy: Policy, types: Sequence[NodeType] = ()
) -> None:
    """Raise what `refusal` answers of the pool at its largest."""
    found = refusal(at_its_largest(ledger, types), request, rule, policy)
    if found is not None:
        raise found


def refusal(ledger: Ledger, request: JobRequest, rule: DeviceRule, policy: Policy) -> Infeasible | None:
    """Why even an idle pool of these nodes and the team's limit could not hold a job: it is refused at once. None also
    while no node is known."""
    reason = feasible(ledger, request, rule, policy) if ledger.node_names else None
    if reason is None:
        return None
    total = int(ledger.capacity()[0])
    least = request.milli_gpu(request.min_workers) / 1000
    return Infeasible(
        f"the job can never start: {reason.text()}",
        why=(
            f"its gang of {request.min_workers} worker(s) and head needs {least:g}"
            f" GPUs together; the pool has {total / 1000:g}"
        ),
        todo="ask for less",
        reason=str(reason.code),
        asked_milli_gpu=reason.asked,
        allowed_milli_gpu=reason.allowed,
        pool_milli_gpu=total,
    )


def content_digest(submission: Submission, ask: JobAsk) -> str:
    """What makes two submissions the same one; the id and where packages are spooled do not count."""
    values = asdict(submission)
    values.pop("submission_id"), values.pop("packages")
    values["metadata"] = dict(sorted(values["metadata"].items()))
    asked = ask.model_dump()
    for added, nothing in (("constraints", ANYWHERE), ("deadline_ns", None), ("bind", True)):
        # as before there was one: a submission is the same over an upgrade
        if getattr(ask, added) == nothing:
            del asked[added]
    text = json.dumps([SPEC_VERSION, values, asked], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def known_job(
    db: Connection, caller: Caller, submission: Submission, key: str | None, digest: str
) -> str | None:
    """The id of the job that this submission already made; Conflict when the id or key stands for other content."""
    if key is not None:
        if not 0 < len(key) <= 256 or not key.isprintable():
            raise units.refuse("Idempotency-Key", ascii(key), "1 to 256 printable characters")
        row = db.execute(
            select(idempotency).where(idempotency.c.principal == caller.principal, idempotency.c.key == key)
        ).one_or_none()
        if row is not None:
            if row.digest != digest:
                raise Conflict(
                    "this idempotency key was used for another submission", code="idempotency-conflict"
                )
            return str(row.job_id)
    if submission.submission_id is None:
        return None
    row = db.execute(select(jobs).where(jobs.c.id == submission.submission_id)).one_or_none()
    if row is None:
        return None
    if row.principal == caller.principal and row.digest == digest and row.deleted_ns is None:
        return str(row.id)
    raise Conflict(
        f"the submission id {submission.submission_id!r} is in use",
        why="it was used before with other content, by another caller, or for a job since deleted",
        todo="choose another id, or leave it out",
        code="submission-id-in-use",
    )


def insert_job(
    db: Connection,
    now: Now,
    cluster_id: str,
    caller: Caller,
    submission: Submission,
    ask: JobAsk,
    digest: str,
    key: str | None,
    max_pending: int,
) -> str:
    """Write the job PENDING with its audit event and idempotency key. The caller's transaction makes it durable."""
    team = str(ask.team)
    waiting = db.execute(
        select(func.count()).select_from(jobs).where(jobs.c.team == team, jobs.c.state == PENDING)
    ).scalar_one()
    if waiting >= max_pending:
        raise QueueFull(
            f"team {team} has {waiting} waiting jobs", why=f"the limit is {max_pending}", todo="wait"
        )
    job_id = submission.submission_id or f"mj-{secrets.token_hex(8)}"
    db.execute(
        insert(jobs).values(
            id=job_id,
            cluster_id=cluster_id,
            team=team,
            principal=caller.principal,
            state=PENDING,
            spec_version=SPEC_VERSION,
            submission={**asdict(submission), "submission_id": job_id},
            ask=ask.model_dump(),
            digest=digest,
            created_ns=now.wall_ns,
            created_control_ns=now.control_ns,
        )
    )
    shape = {"workers": ask.workers, "min_workers": ask.min_workers, "milli_gpu": ask.milli_gpu()}
    record(
        db,
        now,
        "job.pending",
        {"from": "", "reason": "submitted", "spec_version": SPEC_VERSION, "digest": digest, **shape},
        principal=caller.principal,
        team=team,
        job_id=job_id,
    )
    if key is not None:
        db.execute(
            insert(idempotency).values(
                principal=caller.principal, key=key, job_id=job_id, digest=digest, created_ns=now.wall_ns
            )
        )
    return job_id
