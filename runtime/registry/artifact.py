"""Model artifacts: a sealed directory of safetensors and JSON, and a refusal of everything that could run code."""

from __future__ import annotations

import errno
import json
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moorage.errors import InvalidRequest
from moorage.runtime.registry import sealed

WEIGHTS, CARD = "model.safetensors", "model.json"
_ALLOWED = frozenset({".safetensors", ".json", ".md", ".txt"})
_ZIP, _PICKLE_PROTOCOL = b"PK", 0x80


class UnsafeArtifact(InvalidRequest):
    """An artifact holds a file that loading might execute."""

    code = "artifact-unsafe"
    http_status = 422


def check_safe(directory: Path) -> None:
    """Refuse links, unknown kinds of file and pickles under any name. Raises UnsafeArtifact."""
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_symlink():
            raise UnsafeArtifact(f"{name} is a link", why="a model directory must hold its own files")
        if path.is_dir():
            continue
        if path.suffix not in _ALLOWED:
            raise UnsafeArtifact(
                f"{name} is not allowed in a model directory",
                why=f"only {', '.join(sorted(_ALLOWED))} are: other formats may run code when loaded",
                todo="save weights with safetensors",
            )
        with open(path, "rb") as source:
            head = source.read(2)
        # torch.save writes a zip, pickle starts with its protocol byte; safetensors with a small length, JSON with text
        if head.startswith(_ZIP) or (head and head[0] == _PICKLE_PROTOCOL and path.suffix != ".safetensors"):
            raise UnsafeArtifact(f"{name} holds a pickle or an archive, whatever its name says")
        if path.suffix == ".safetensors":
            _check_safetensors(path, name)


def _check_safetensors(path: Path, name: str) -> None:
    """The header must be the JSON its length says and describe exactly the bytes that follow."""
    size = path.stat().st_size
    try:
        with open(path, "rb") as source:
            length = int.from_bytes(source.read(8), "little")
            if not 2 <= length <= min(size - 8, 100_000_000):
                raise ValueError(f"header of {length} bytes in a file of {size}")
            header = json.loads(source.read(length))
        ends = [int(entry["data_offsets"][1]) for key, entry in header.items() if key != "__metadata__"]
        if max(ends, default=0) != size - 8 - length:
            raise ValueError(f"tensors end at {max(ends, default=0)}, the data at {size - 8 - length}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnsafeArtifact(f"{name} is not a safetensors file", why=str(error)) from error


def save_model(directory: Path | str, weights: Mapping[str, Any], card: Mapping[str, Any]) -> sealed.Seal:
    """Write `weights` (name -> torch tensor) and `card` (JSON) as a sealed model directory."""
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}

    def write(work: Path) -> None:
        sealed.write_bytes(work / WEIGHTS, save(tensors))
        sealed.write_bytes(work / CARD, json.dumps(card, indent=1, sort_keys=True).encode())

    return sealed.commit(Path(directory), write, {"kind": "model"})


def load_model(directory: Path | str) -> tuple[dict[str, Any], dict[str, Any], sealed.Seal]:
    """Verify, then read (weights, card, seal). Raises `sealed.Damaged` or UnsafeArtifact before any parsing."""
    from safetensors.torch import load

    path = Path(directory)
    seal = sealed.verify(path)
    check_safe(path)
    card = json.loads((path / CARD).read_bytes())
    return load((path / WEIGHTS).read_bytes()), card, seal


def adopt(directory: Path, root: Path) -> tuple[Path, sealed.Seal]:
    """Copy a model directory to `root/<sha256>` (content-addressed: adopting twice is one copy).

    A sealed directory must verify; an unsealed one is sealed by the copy.
    """
    if not directory.is_dir():
        raise InvalidRequest(
            f"no model directory at {directory}", todo="pass the directory that save_model wrote"
        )
    check_safe(directory)
    if not (directory / WEIGHTS).is_file() or not (directory / CARD).is_file():
        raise InvalidRequest(
            f"{directory.name} is not a model directory", why=f"it needs {WEIGHTS} and {CARD}"
        )
    if (directory / sealed.MANIFEST).exists():
        meta = dict(sealed.verify(directory).meta)
    else:
        meta = {"kind": "model"}
    staging = root / f"{sealed.TEMPORARY}adopt-{uuid.uuid4().hex[:12]}"

    def write(work: Path) -> None:
        shutil.copytree(directory, work, dirs_exist_ok=True)
        (work / sealed.MANIFEST).unlink(missing_ok=True)  # the seal below writes its own

    seal = sealed.commit(staging, write, meta)
    final = root / seal.sha256
    try:
        staging.rename(final)
        sealed.sync_directory(root)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        shutil.rmtree(staging)
        sealed.verify(final)
    return final, seal
