"""Sealed directories: files plus a manifest of their SHA-256, committed by one rename.

Checkpoints and model artifacts are both sealed directories. A directory under its final name is complete or
it is damaged, and `verify` tells which: a crash while writing leaves only a temporary name behind.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moorage.errors import MoorageError

MANIFEST = "MANIFEST.json"
TEMPORARY = ".tmp-"
_FORMAT = 1
# What a write answers when the disk, the quota or the process's own file size limit is full.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Damaged(MoorageError):
    """A sealed directory whose bytes are not the ones that were sealed."""

    code = "artifact-damaged"
    http_status = 422


class DiskFull(MoorageError):
    """There was no room to write; what was there before is untouched."""

    code = "disk-full"
    http_status = 507


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """What a verified directory holds. `sha256` is the digest of the manifest, hence of every byte listed in it."""

    sha256: str
    files: Mapping[str, int]  # relative name -> bytes
    meta: Mapping[str, Any]


def sync_directory(path: Path) -> None:
    """Make renames inside `path` durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write and fsync one file."""
    with open(path, "wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())


def _hash(path: Path) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as source:
        while block := source.read(1 << 20):
            digest.update(block)
            size += len(block)
    return digest.hexdigest(), size


def _walk(directory: Path) -> list[str]:
    """Relative names of the files inside, sorted. Raises Damaged on anything that is not a plain file."""
    names = []
    for path in sorted(directory.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise Damaged(
                f"{path.name} is not a plain file", why="links and devices may point outside the directory"
            )
        if path.is_file() and path != directory / MANIFEST:
            names.append(path.relative_to(directory).as_posix())
    return names


def commit(final: Path, write: Callable[[Path], None], meta: Mapping[str, Any] | None = None) -> Seal:
    """Let `write` fill a temporary directory beside `final`, seal it, then rename it to `final`.

    An existing `final` is replaced. Raises DiskFull when there is no room (nothing of the attempt is left, `final`
    is as it was); other errors of `write` pass through after the same clean-up.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    work = final.parent / f"{TEMPORARY}{final.name}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        work.mkdir()
        write(work)
        seal = _seal(work, meta or {})
        _replace(work, final)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise DiskFull(
            f"no room to write {final.name}",
            why=f"{error.strerror} in {final.parent}",
            todo="free space there; what was written before is still usable",
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return seal


def _seal(work: Path, meta: Mapping[str, Any]) -> Seal:
    files: dict[str, dict[str, str | int]] = {}
    sizes: dict[str, int] = {}
    for name in _walk(work):
        path = work / name
        with open(path, "rb") as source:
            os.fsync(source.fileno())
        digest, size = _hash(path)
        files[name], sizes[name] = {"sha256": digest, "bytes": size}, size
    body = json.dumps(
        {"format": _FORMAT, "files": files, "meta": dict(meta)}, sort_keys=True, indent=1
    ).encode()
    write_bytes(work / MANIFEST, body)
    for folder in (p for p in work.rglob("*") if p.is_dir()):
        sync_directory(folder)
    sync_directory(work)
    return Seal(sha256=hashlib.sha256(body).hexdigest(), files=sizes, meta=dict(meta))


def _replace(work: Path, final: Path) -> None:
    old = None
    if final.exists():
        old = final.parent / f"{TEMPORARY}old-{final.name}-{uuid.uuid4().hex[:8]}"
        os.rename(final, old)
    os.rename(work, final)
    sync_directory(final.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def verify(directory: Path) -> Seal:
    """Read every byte and compare with the manifest. Raises Damaged with the first difference."""
    try:
        body = (directory / MANIFEST).read_bytes()
        manifest = json.loads(body)
        listed = {str(n): (str(e["sha256"]), int(e["bytes"])) for n, e in manifest["files"].items()}
        if manifest["format"] != _FORMAT:
            raise Damaged(f"{directory.name} has manifest format {manifest['format']}, not {_FORMAT}")
    except FileNotFoundError as error:
        raise Damaged(f"{directory.name} has no {MANIFEST}", why="it was never completed") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"the manifest of {directory.name} cannot be read", why=str(error)) from error
    present = _walk(directory)
    if present != sorted(listed):
        odd = sorted(set(present) ^ set(listed))
        raise Damaged(f"{directory.name} does not hold the files it was sealed with", why=", ".join(odd))
    for name, (digest, size) in listed.items():
        found, length = _hash(directory / name)
        if (found, length) != (digest, size):
            kind = "truncated" if length < size else "changed"
            raise Damaged(f"{name} in {directory.name} is {kind}", why=f"{length} bytes, {size} were sealed")
    sizes = {name: size for name, (_, size) in listed.items()}
    return Seal(sha256=hashlib.sha256(body).hexdigest(), files=sizes, meta=manifest.get("meta", {}))


def sweep_temporaries(root: Path) -> list[str]:
    """Remove what interrupted writers left in `root`. Call it only where no other writer can be at work."""
    gone = []
    for path in sorted(root.glob(f"{TEMPORARY}*")):
        shutil.rmtree(path, ignore_errors=True)
        gone.append(path.name)
    return gone
