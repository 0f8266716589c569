"""What a run was made with: installed packages, interpreter, code. Enough to say whether two runs are alike."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

_NAMED = ("moorage", "ray", "torch", "deepspeed", "numpy", "pyarrow", "safetensors", "mlflow")


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """`packages` is what `pip freeze` would list; `digest` its SHA-256 with the interpreter's version."""

    digest: str
    python: str
    platform: str
    packages: Mapping[str, str]

    def named(self) -> dict[str, str]:
        """The versions a person asks for first."""
        return {name: self.packages[name] for name in _NAMED if name in self.packages}

    def as_json(self) -> str:
        body = {
            "python": self.python,
            "platform": self.platform,
            "packages": dict(sorted(self.packages.items())),
        }
        return json.dumps(body, indent=1, sort_keys=True)


def current_environment() -> Environment:
    """The environment of this process."""
    packages: dict[str, str] = {}
    for found in metadata.distributions():
        name = found.metadata["Name"]
        if name:
            packages.setdefault(name.lower().replace("_", "-"), found.version)
    python = platform.python_version()
    text = "\n".join([f"python=={python}", *(f"{n}=={v}" for n, v in sorted(packages.items()))])
    digest = hashlib.sha256(text.encode()).hexdigest()
    where = f"{platform.system()}-{platform.machine()}"
    return Environment(digest=digest, python=python, platform=where, packages=packages)


def code_version(folder: Path | str) -> str:
    """SHA-256 over the names and contents of the Python files below `folder`: the version of a user's code.

    A job's working_dir is an uploaded copy without its git history, so the content itself is the name.
    """
    root, digest = Path(folder), hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root).as_posix()
        if any(part.startswith(".") or part == "__pycache__" for part in relative.split("/")):
            continue
        content = path.read_bytes()
        digest.update(f"{relative}\0{len(content)}\0".encode() + content)
    return f"sha256:{digest.hexdigest()[:16]}"
