"""Where a version came from: inputs, code, job, team; and the fingerprint that tells whether to compute it again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import moorage
from moorage.runtime.features.sources import file_sha256
from moorage.runtime.features.versions import DatasetVersion

# The moorage modules whose change can change a value.
_SHARED = (
    "kernels/asof.py",
    "kernels/rolling.py",
    *(f"runtime/features/{name}.py" for name in ("clock", "history", "pipeline", "schema", "sources")),
)


def code_digests(own: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of the pipeline's own files and of the modules of moorage that compute its values, by name."""
    house = Path(moorage.__file__).parent
    digests = {f"moorage/{name}": file_sha256(house / name) for name in _SHARED}
    return digests | {path.name: file_sha256(path) for path in own}


def fingerprint(inputs: Mapping[str, str], own: Iterable[Path], parameters: Mapping[str, Any]) -> str:
    """One digest of inputs, code and parameters: equal fingerprints give equal versions."""
    body = {"inputs": dict(inputs), "code": code_digests(own), "parameters": dict(parameters)}
    return sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def record(
    sources: list[dict[str, Any]], *, code: Sequence[Path], previous: Sequence[DatasetVersion]
) -> dict[str, Any]:
    """The lineage entry of a manifest. Job and team are those that Moorage gave this process, null outside it."""
    return {
        "sources": sources,
        "job_id": os.environ.get("MOORAGE_JOB_ID"),
        "attempt": os.environ.get("MOORAGE_ATTEMPT"),
        "team": os.environ.get("MOORAGE_TEAM"),
        "code": {
            "moorage": moorage.__version__,
            "git": _git_describe(code[0].parent) if code else None,
            "files": code_digests(code),
        },
        "previous": previous[-1].version if previous else None,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _git_describe(folder: Path) -> str | None:
    """`git describe` of the folder, null where it is no repository (a job's working_dir is none)."""
    git = shutil.which("git")
    if git is None:
        return None
    asked = [git, "-C", str(folder), "describe", "--always", "--dirty", "--tags"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=False)
    return done.stdout.strip() or None if done.returncode == 0 else None
