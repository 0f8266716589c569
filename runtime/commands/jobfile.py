"""job.yaml: one job as a file, turned into the body of Ray's `POST /api/jobs/`.

entrypoint: python train.py --epochs 3
working_dir: .            # uploaded; relative to the file
excludes: ["data/"]
env_vars: {OMP_NUM_THREADS: "1"}
team: ops                 # and priority, workers, gpus_per_worker, ...: see moorage.configs.job.KEYS
workers: 2
gpus_per_worker: 0.5
metadata: {experiment: "17"}
"""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import os
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moorage.configs.job import KEYS, near_miss
from moorage.configs.yamlio import load_mapping
from moorage.errors import InvalidRequest, TooLarge
from moorage.runtime.client import Client

ENTRYPOINT_KEYS = (
    "entrypoint_num_cpus",
    "entrypoint_num_gpus",
    "entrypoint_memory",
    "entrypoint_resources",
    "entrypoint_label_selector",
)
OWN_KEYS = ("entrypoint", "submission_id", "working_dir", "excludes", "env_vars", "runtime_env", "metadata")
ALWAYS_LEFT_OUT = (
    ".git",
    ".venv",
    "__pycache__",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    "node_modules",
)
MAX_FOLDER = 500 << 20
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class JobFile:
    """`body` lacks `working_dir` until the folder was uploaded."""

    body: dict[str, Any]
    working_dir: Path | None
    excludes: tuple[str, ...]


def read(path: Path) -> JobFile:
    """Read and check; `InvalidRequest` names the file and the line (malformed YAML) or the key."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InvalidRequest(f"{path} cannot be read", why=str(reason), code="unreadable-file") from error
    return parse(load_mapping(text, str(path)), str(path), path.parent)


def parse(raw: dict[str, Any], source: str, folder: Path) -> JobFile:
    for key in raw:
        if key not in (*OWN_KEYS, *ENTRYPOINT_KEYS, *KEYS):
            raise _unknown(str(key), source)
    if not isinstance(raw.get("entrypoint"), str) or not raw["entrypoint"].strip():
        raise InvalidRequest(
            f"{source} needs `entrypoint`", why="it is the command the job runs", code="bad-job-file"
        )
    metadata = {key: _text(value) for key, value in _mapping(raw, "metadata", source).items()}
    metadata |= {key: _text(raw[key]) for key in KEYS if key in raw}
    environment = dict(_mapping(raw, "runtime_env", source))
    if variables := _mapping(raw, "env_vars", source):
        both = dict(environment.get("env_vars") or {}) | {
            key: _text(value) for key, value in variables.items()
        }
        environment["env_vars"] = both
    working = raw.get("working_dir", environment.pop("working_dir", None))
    excludes = raw.get("excludes", environment.pop("excludes", [])) or []
    if not isinstance(excludes, list) or not all(isinstance(one, str) for one in excludes):
        raise InvalidRequest(f"{source}: `excludes` must be a list of patterns", code="bad-job-file")
    local: Path | None = None
    if isinstance(working, str) and "://" in working:
        environment["working_dir"] = working
    elif working is not None:
        local = (folder / os.path.expanduser(str(working))).resolve()
        if not local.is_dir():
            raise InvalidRequest(f"{source}: working_dir {local} is not a folder", code="bad-job-file")
    body: dict[str, Any] = {"entrypoint": raw["entrypoint"], "metadata": metadata, "runtime_env": environment}
    body |= {key: raw[key] for key in ("submission_id", *ENTRYPOINT_KEYS) if key in raw}
    return JobFile(body=body, working_dir=local, excludes=tuple(excludes))


def submit(client: Client, job: JobFile) -> str:
    """Upload the folder unless the front door has these bytes already, then submit; the job id."""
    body = dict(job.body)
    if job.working_dir is not None:
        with tempfile.TemporaryDirectory() as scratch:
            archive = Path(scratch) / "package.zip"
            name = pack(job.working_dir, job.excludes, archive)
            if not client.has_package(name):
                client.upload(name, archive)
        body["runtime_env"] = {**body["runtime_env"], "working_dir": f"gcs://{name}"}
    return client.submit(body)


def pack(folder: Path, excludes: tuple[str, ...], archive: Path) -> str:
    """Zip `folder` into `archive`, the same bytes for the same files; the package's name.

    Raises `TooLarge` when the files are over `MAX_FOLDER` bytes together.
    """
    total = 0
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
        for path, name in _files(folder, excludes):
            total += path.stat().st_size
            if total > MAX_FOLDER:
                raise TooLarge(
                    f"{folder} holds more than {MAX_FOLDER >> 20} MiB",
                    why=f"working_dir is sent to every node ({name} went over)",
                    todo="name what is not needed in `excludes`, read data from shared storage",
                )
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = (path.stat().st_mode & 0o777) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            with open(path, "rb") as source, packed.open(entry, "w", force_zip64=True) as out:
                while block := source.read(1 << 20):
                    out.write(block)
    with open(archive, "rb") as packed_bytes:
        return f"_ray_pkg_{hashlib.file_digest(packed_bytes, 'sha256').hexdigest()}.zip"


def _files(folder: Path, excludes: tuple[str, ...]) -> Iterator[tuple[Path, str]]:
    """Regular files in a stable order, without what is always left out and what `excludes` names."""
    for where, folders, names in os.walk(folder):
        base = Path(where)
        folders[:] = sorted(
            name
            for name in folders
            if name not in ALWAYS_LEFT_OUT and not _excluded(base / name, folder, excludes)
        )
        for name in sorted(names):
            path = base / name
            if path.is_file() and not _excluded(path, folder, excludes):
                yield path, path.relative_to(folder).as_posix()


def _excluded(path: Path, folder: Path, excludes: tuple[str, ...]) -> bool:
    """A pattern matches the path from the folder, or any of its parts; a trailing slash is ignored."""
    relative = path.relative_to(folder)
    return any(
        fnmatch.fnmatch(relative.as_posix(), pattern.strip("/"))
        or any(fnmatch.fnmatch(part, pattern.strip("/")) for part in relative.parts)
        for pattern in excludes
    )


def _unknown(key: str, source: str) -> InvalidRequest:
    close = difflib.get_close_matches(key, (*OWN_KEYS, *ENTRYPOINT_KEYS), n=1)
    meant = near_miss(key) or (close[0] if close else None)
    return InvalidRequest(
        f"{source}: key {key!r} is not known",
        why=f"it looks like {meant!r}" if meant else f"known are {', '.join((*OWN_KEYS, *KEYS))}",
        todo="your own keys go under `metadata`",
        code="unknown-key",
    )


def _mapping(raw: dict[str, Any], key: str, source: str) -> dict[str, Any]:
    value = raw.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise InvalidRequest(f"{source}: `{key}` must map names to values", code="bad-job-file")
    return value


def _text(value: Any) -> str:
    """Metadata and variables are strings on the wire: YAML's true becomes "true"."""
    return str(value).lower() if isinstance(value, bool) else str(value)
