"""What a job asks for: Ray job metadata (all strings) and `Moorage-*` headers to one frozen `JobAsk`.

A lease is the entrypoint's resources plus `workers` times the per-worker resources; `gpu_memory_mib` is per
device touched. Keys that are not Moorage's stay the user's own, except near misses, which are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from moorage.configs import nodes, units
from moorage.errors import InvalidRequest
from moorage.scheduling.constraints import ANYWHERE, Constraints

PRIORITIES = {"low": 100, "normal": 500, "high": 900}
KEYS = (
    "team",
    "priority",
    "workers",
    "min_workers",
    "gpus_per_worker",
    "gpu_memory_mib",
    "cpus_per_worker",
    "preemptible",
    "max_runtime",
    "deadline",
    "max_attempts",
    "gpu_model",
    "bind",
    *nodes.KEYS,
)
SHAPE = frozenset({"workers", "min_workers", "gpus_per_worker", "gpu_memory_mib", "cpus_per_worker"})
RESERVED = frozenset({"job_submission_id"})
MISTAKES = {
    "gpu": "gpus_per_worker",
    "gpus": "gpus_per_worker",
    "num_gpus": "gpus_per_worker",
    "gpu_count": "gpus_per_worker",
    "gpu_per_worker": "gpus_per_worker",
    "cpu": "cpus_per_worker",
    "cpus": "cpus_per_worker",
    "num_cpus": "cpus_per_worker",
    "num_workers": "workers",
    "n_workers": "workers",
    "max_workers": "workers",
    "gpu_mem": "gpu_memory_mib",
    "gpu_memory": "gpu_memory_mib",
    "gpu_memory_mb": "gpu_memory_mib",
    "gpu_memory_gib": "gpu_memory_mib",
    "prio": "priority",
    "preemptable": "preemptible",
    "max_retries": "max_attempts",
    "gpu_type": "gpu_model",
    "label_selector": "node_selector",
    "labels": "node_selector",
    "toleration": "tolerations",
    "regions": "region",
    "spot": "allow_spot",
    "topology": "required_topology",
    "spread": "max_per_domain",
    "max_per_node": "max_per_domain",
}
MAX_KEYS, MAX_KEY, MAX_VALUE = 128, 256, 16_384
_TEAM = re.compile(r"[a-z0-9]([a-z0-9_.-]{0,62}[a-z0-9])?")


class Piece(BaseModel):
    """What one process of a job needs, on one node. `gpu_mib` is per device touched."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    milli_gpu: int = 0
    gpu_mib: int = 0
    milli_cpu: int = 0
    mib: int = 0

    @property
    def empty(self) -> bool:
        return not (self.milli_gpu or self.milli_cpu or self.mib)


class JobAsk(BaseModel):
    """The checked request; integers only. `head` is the entrypoint's own piece."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    team: str | None = None
    priority: int = PRIORITIES["normal"]
    workers: int = 0
    min_workers: int = 0
    worker: Piece = Piece()
    head: Piece = Piece()
    gpu_model: str = ""
    constraints: Constraints = ANYWHERE
    preemptible: bool = False
    bind: bool = True
    """Whether plain Ray code of the job is kept within its lease."""
    max_runtime_ns: int | None = None
    deadline_ns: int | None = None
    """From submission."""
    max_attempts: int | None = None
    user: dict[str, str] = {}

    def milli_gpu(self, workers: int | None = None) -> int:
        """Milli-GPU of the whole lease at `workers` (default: all of them)."""
        count = self.workers if workers is None else workers
        return self.head.milli_gpu + count * self.worker.milli_gpu


def parse_job(
    metadata: Mapping[str, Any],
    headers: Mapping[str, str] | None = None,
    *,
    entrypoint_num_cpus: float | None = None,
    entrypoint_num_gpus: float | None = None,
    entrypoint_memory: int | None = None,
    default_lease: Mapping[str, Any] | None = None,
) -> JobAsk:
    """The ask of one submission; `InvalidRequest` names the field.

    `headers` (any case, only `Moorage-*` are read) beat metadata key by key. `default_lease` has the shape keys
    of metadata and is used only if neither metadata nor the entrypoint asks for any resource.
    """
    ours, user = _split(metadata)
    ours |= _from_headers(headers or {})
    head = _head(entrypoint_num_cpus, entrypoint_num_gpus, entrypoint_memory)
    if head.empty and not SHAPE & ours.keys():
        ours = {**(default_lease or {"workers": 1}), **ours}
    workers, minimum, worker, memory = _shape(ours)
    if memory and head.milli_gpu:
        head = head.model_copy(update={"gpu_mib": memory})
    if memory and not (head.milli_gpu or worker.milli_gpu):
        raise units.refuse("gpu_memory_mib", memory, "the job asks for no GPU", "add gpus_per_worker")
    attempts = ours.get("max_attempts")
    runtime, deadline = (
        None if ours.get(name) is None else units.duration_ns(name, ours[name])
        for name in ("max_runtime", "deadline")
    )
    if runtime and deadline and runtime > deadline:
        raise units.refuse(
            "deadline",
            ours["deadline"],
            "the job may run for longer, so it would be too late from the start",
            "give it a later deadline or a shorter max_runtime",
        )
    return JobAsk(
        team=team_name("team", ours["team"]) if "team" in ours else None,
        priority=_priority(ours.get("priority", "normal")),
        workers=workers,
        min_workers=minimum,
        worker=worker,
        head=head,
        gpu_model=_text("gpu_model", ours.get("gpu_model", ""), 64),
        constraints=nodes.constraints(ours),
        preemptible=units.boolean("preemptible", ours.get("preemptible", False)),
        bind=units.boolean("bind", ours.get("bind", True)),
        max_runtime_ns=runtime,
        deadline_ns=deadline,
        max_attempts=None if attempts is None else units.whole("max_attempts", attempts, 1, 100),
        user=user,
    )


def team_name(field: str, value: Any) -> str:
    """A team's name: lower case letters, digits and . _ - inside, 64 at most."""
    text = str(value)
    if not _TEAM.fullmatch(text):
        raise units.refuse(field, text, "a team's name has lower case letters, digits, '.', '_' or '-'")
    return text


def near_miss(key: str) -> str | None:
    """The known key that `key` was probably meant to be, or None. Namespaced keys (`a.b`, `a/b`) never are."""
    if key in KEYS or any(mark in key for mark in "./:"):
        return None
    plain = re.sub(r"[\s-]+", "_", key.strip().lower())
    if plain in KEYS:
        return plain
    if plain in MISTAKES:
        return MISTAKES[plain]
    best = min(KEYS, key=lambda known: _distance(plain, known))
    return best if _distance(plain, best) <= max(1, len(best) // 5) else None


def _split(metadata: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    ours: dict[str, Any] = {}
    user: dict[str, str] = {}
    if len(metadata) > MAX_KEYS:
        raise InvalidRequest(f"metadata has {len(metadata)} keys", why=f"at most {MAX_KEYS} are kept")
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise InvalidRequest(
                f"metadata {key!r} must map text to text", code="invalid-field", field=str(key)
            )
        if len(key) > MAX_KEY or len(value) > MAX_VALUE:
            raise units.refuse(f"metadata {key[:60]}", value, "it is too long")
        if "\x00" in key or "\x00" in value:
            raise units.refuse(f"metadata {key[:60]!r}", "", "it holds a NUL character")
        folded = key.strip().lower().replace("-", "_")
        if folded in RESERVED or folded.startswith(("moorage_", "moorage.", "moorage/")):
            raise InvalidRequest(
                f"metadata key {key[:60]!r} is reserved",
                why="Moorage or Ray sets it",
                todo="use another name",
                code="reserved-key",
                field=key,
            )
        if key in KEYS:
            ours[key] = value
        elif (meant := near_miss(key)) is not None:
            raise InvalidRequest(
                f"metadata key {key[:60]!r} is unknown",
                why=f"it looks like {meant!r}",
                todo=f"write {meant!r}, or give your own key a dot (for example 'my.{key[:40]}')",
                code="near-miss-key",
                field=key,
                suggestion=meant,
            )
        else:
            user[key] = value
    return ours, user


def _from_headers(headers: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in headers.items():
        folded = name.lower()
        if not folded.startswith("moorage-"):
            continue
        key = folded.removeprefix("moorage-").replace("-", "_")
        if key not in KEYS:
            meant = near_miss(key)
            raise InvalidRequest(
                f"header {name[:60]!r} is unknown",
                why=f"it looks like {meant!r}"
                if meant
                else "Moorage-* headers carry Moorage's own keys only",
                code="near-miss-key",
                field=name,
            )
        found[key] = value
    return found


def _shape(ours: Mapping[str, Any]) -> tuple[int, int, Piece, int]:
    """(workers, min_workers, per-worker piece, gpu_memory_mib)."""
    gpus = units.milli_gpu("gpus_per_worker", ours.get("gpus_per_worker", 0))
    cpus = units.milli("cpus_per_worker", ours.get("cpus_per_worker", 1), units.MAX_CPUS)
    memory = ours.get("gpu_memory_mib")
    mib = 0 if memory is None else units.whole("gpu_memory_mib", memory, 1, units.MAX_MIB)
    implied = 1 if {"gpus_per_worker", "cpus_per_worker"} & ours.keys() else 0
    workers = units.whole(
        "workers", ours.get("workers", implied), 1 if "workers" in ours else 0, units.MAX_WORKERS
    )
    minimum = units.whole("min_workers", ours.get("min_workers", workers), min(1, workers), units.MAX_WORKERS)
    if minimum > workers:
        raise units.refuse("min_workers", minimum, f"it is above workers = {workers}")
    if workers and not (gpus or cpus):
        raise units.refuse("cpus_per_worker", 0, "a worker must ask for some CPU or GPU")
    piece = Piece(milli_gpu=gpus, gpu_mib=mib if gpus else 0, milli_cpu=cpus) if workers else Piece()
    return workers, minimum, piece, mib


def _head(cpus: float | None, gpus: float | None, memory: int | None) -> Piece:
    memory_bytes = 0 if memory is None else units.whole("entrypoint_memory", memory, 0, units.MAX_MIB << 20)
    return Piece(
        milli_gpu=0 if gpus is None else units.milli_gpu("entrypoint_num_gpus", gpus),
        milli_cpu=0 if cpus is None else units.milli("entrypoint_num_cpus", cpus, units.MAX_CPUS),
        mib=-(-memory_bytes >> 20) if memory_bytes else 0,
    )


def _priority(value: Any) -> int:
    text = str(value).strip().lower()
    return PRIORITIES[text] if text in PRIORITIES else units.whole("priority", value, 0, 1000)


def _text(field: str, value: Any, limit: int) -> str:
    text = str(value)
    if len(text) > limit or not text.isprintable():
        raise units.refuse(field, text, f"it must be printable and at most {limit} characters")
    return text


def _distance(left: str, right: str) -> int:
    """Edit distance with insertions, deletions, substitutions and swaps of neighbours (restricted Damerau)."""
    before: list[int] = []
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        now = [i]
        for j, b in enumerate(right, 1):
            cost = min(row[j] + 1, now[j - 1] + 1, row[j - 1] + (a != b))
            if i > 1 and j > 1 and a == right[j - 2] and left[i - 2] == b:
                cost = min(cost, before[j - 2] + 1)
            now.append(cost)
        before, row = row, now
    return row[-1]
