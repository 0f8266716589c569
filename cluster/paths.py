"""The files of a pool's home that the cluster's own processes share, and how they are written.

`moorage.runtime.pool.home` adds the rest; it builds on this and not the other way round (layers point down).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moorage.errors import DataError

log = logging.getLogger(__name__)
MAX_SOCKET_PATH = 107
"""Bytes in `sockaddr_un.sun_path` less the final zero (unix(7))."""

_RAY_SOCKET_TAIL = len("/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store.99")


@dataclass(frozen=True, slots=True)
class ClusterPaths:
    """Paths below one home. Nothing is created here except by `make`."""

    root: Path

    @property
    def ray_token(self) -> Path:
        """Ray's shared cluster token (0600). Never given to users."""
        return self.root / "ray.token"

    @property
    def ray_json(self) -> Path:
        """What `moorage.cluster.local` started: addresses, nodes, process ids."""
        return self.root / "ray.json"

    @property
    def agent_sock(self) -> Path:
        return self.root / "agent.sock"

    @property
    def gcs(self) -> Path:
        """The tables of a GCS that keeps them on disk (`--gcs-storage rocksdb`)."""
        return self.root / "gcs"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def ray_temp(self) -> Path:
        """Ray's session folder: in the home, unless that would make its socket paths too long for the
        kernel."""
        inside = self.root / "ray"
        if len(os.fsencode(inside)) + _RAY_SOCKET_TAIL <= MAX_SOCKET_PATH:
            return inside
        digest = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:10]
        return Path(tempfile.gettempdir()) / f"moorage-{os.getuid()}-{digest}" / "ray"

    def make(self) -> None:
        """Create the folders, for their owner only. Ray opens its own folder to everyone: its parent does not."""
        for folder in (self.root, self.logs, self.ray_temp.parent):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if folder.stat().st_uid != os.getuid():
                raise PermissionError(f"{folder} belongs to another user")
            folder.chmod(0o700)
        self.ray_temp.mkdir(mode=0o700, exist_ok=True)


def write_private(path: Path, text: str) -> None:
    """Replace `path` by `text` in one step, readable by its owner only: a reader sees the old or the new,
    never half."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def write_json(path: Path, value: Any) -> None:
    write_private(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_json(path: Path, *, strict: bool = False) -> Any | None:
    """The value in `path`, or None when there is no such file. A damaged one counts as none and is logged; `strict`:
    DataError (`state-file-damaged`)."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:  # no JSON, or no UTF-8
        if strict:
            raise DataError(
                f"{path} is damaged",
                why=str(error),
                todo="`moorage up` sets it aside and begins anew; what runs writes it again within a second",
                code="state-file-damaged",
            ) from None
        log.warning("%s is damaged (%s): taken as missing", path, error)
        return None
