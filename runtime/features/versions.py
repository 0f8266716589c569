"""Versioned datasets on a file system: v001, v002, ..., each complete or absent, each with its manifest.

    <root>/<view>/v001/ part-*.parquet  quarantine/*.parquet  state/*  manifest.json

A writer fills a hidden staging folder and renames it: the rename is the commit, and two writers that race for
one number get two numbers. The manifest holds the SHA-256 of every file, so a version is named by its content too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moorage.errors import DataError, NotFound

if TYPE_CHECKING:
    import pyarrow as pa

MANIFEST = "manifest.json"
_VERSION = re.compile(r"v(\d{3,})")
_VIEW = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_ABANDONED_S = 24 * 3600


@dataclass(frozen=True, slots=True)
class DatasetVersion:
    """One committed version of a feature view."""

    view: str
    version: str
    path: Path
    manifest: Mapping[str, Any] = field(repr=False)

    @property
    def digest(self) -> str:
        """SHA-256 over the names and digests of all its files."""
        return str(self.manifest["digest"])

    def parts(self) -> list[Path]:
        return [self.path / name for name in sorted(self.manifest["files"]) if name.startswith("part-")]

    def read(self, *, split: str | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows as one Arrow table, of one split if named, ordered by part and row."""
        import pyarrow.dataset as pds

        rows = pds.dataset([str(p) for p in self.parts()], format="parquet")
        return rows.to_table(
            columns=None if columns is None else list(columns),
            filter=None if split is None else pds.field("split") == split,
        )

    def verify(self) -> None:
        """Raises DataError (code `data-corrupt`) that names the first file that is missing, changed or extra."""
        found = dict(_digests(self.path))
        expected = {name: entry["sha256"] for name, entry in self.manifest["files"].items()}
        for name in sorted(found.keys() | expected.keys()):
            if found.get(name) != expected.get(name):
                state = (
                    "is missing"
                    if name not in found
                    else "is not in it"
                    if name not in expected
                    else "differs"
                )
                raise DataError(
                    f"{self.view} {self.version} does not match its manifest",
                    why=f"{name} {state}",
                    todo="recompute the version with --force",
                    code="data-corrupt",
                    file=str(self.path / name),
                )


class Catalogue:
    """The feature views under a root folder (`$MOORAGE_DATA/features`) and their versions. Reads only."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)

    def views(self) -> list[str]:
        if not self.root.is_dir():
            return []
        return sorted(p.name for p in self.root.iterdir() if p.is_dir() and _VIEW.fullmatch(p.name))

    def versions(self, view: str) -> list[DatasetVersion]:
        """The view's versions, oldest first; none for a view nobody wrote."""
        folder = self.root / view
        if not _VIEW.fullmatch(view) or not folder.is_dir():
            return []
        names = [p.name for p in folder.iterdir() if _VERSION.fullmatch(p.name)]
        return [self._load(view, name) for name in sorted(names, key=lambda n: int(n[1:]))]

    def get(self, view: str, version: str = "latest") -> DatasetVersion:
        """A version by name (`v003`, `3`) or the latest. Raises NotFound."""
        versions = self.versions(view)
        if versions and version == "latest":
            return versions[-1]
        number = version.removeprefix("v")
        for candidate in versions:
            if number.isdecimal() and int(candidate.version[1:]) == int(number):
                return candidate
        raise NotFound(
            f"No {'version ' + version + ' of the' if versions else ''} feature view {view!r}".replace(
                "  ", " "
            ),
            why=f"the catalogue {self.root} has "
            + (f"{versions[0].version}..{versions[-1].version}" if versions else "no such view"),
            todo="see: moorage features list",
        )

    def by_fingerprint(self, view: str, fingerprint: str) -> DatasetVersion | None:
        """The newest version made from exactly these inputs, code and parameters, if there is one."""
        for candidate in reversed(self.versions(view)):
            if candidate.manifest.get("fingerprint") == fingerprint:
                return candidate
        return None

    def _load(self, view: str, name: str) -> DatasetVersion:
        path = self.root / view / name
        try:
            manifest = json.loads((path / MANIFEST).read_text())
            return DatasetVersion(view, name, path, manifest)
        except (OSError, ValueError) as error:
            raise DataError(
                f"The manifest of {view} {name} cannot be read",
                why=str(error),
                todo=f"move {path} away",
                code="data-corrupt",
                file=str(path / MANIFEST),
            ) from error


@contextlib.contextmanager
def staging(root: str | os.PathLike[str], view: str) -> Iterator[Path]:
    """A fresh hidden folder beside the view's versions; gone afterwards unless `commit` renamed it."""
    if not _VIEW.fullmatch(view):
        raise DataError(
            f"{view!r} is no name for a feature view", todo="use a-z, 0-9, - and _", code="data-view-name"
        )
    folder = Path(root) / view
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    draft = folder / f".staging-{uuid.uuid4().hex}"
    draft.mkdir()
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def commit(draft: Path, view: str, manifest: Mapping[str, Any]) -> DatasetVersion:
    """Makes the staged folder the next version and returns it. Durable when it returns.

    The manifest gets `view`, `version`, `files` ({name: {bytes, sha256}}) and `digest`. A crash before the
    rename leaves no version; a writer that loses the race for a number takes the next one.
    """
    digests = dict(_digests(draft))
    files = {name: {"bytes": (draft / name).stat().st_size, "sha256": sha} for name, sha in digests.items()}
    body = {
        **manifest,
        "view": view,
        "files": files,
        "digest": content_digest(digests),
    }
    for name in files:
        _sync(draft / name)
    folder = draft.parent
    number = 1 + max((int(p.name[1:]) for p in folder.iterdir() if _VERSION.fullmatch(p.name)), default=0)
    while True:
        version = f"v{number:03d}"
        path = draft / MANIFEST
        path.write_text(json.dumps({**body, "version": version}, indent=1, sort_keys=True) + "\n")
        _sync(path)
        for inner in {path.parent, *(p.parent for p in map(draft.joinpath, files))}:
            _sync(inner)
        try:
            os.rename(draft, folder / version)
        except OSError:
            if not (folder / version).exists():
                raise
            number += 1
            continue
        _sync(folder)
        return DatasetVersion(view, version, folder / version, {**body, "version": version})


def content_digest(digests: Mapping[str, str]) -> str:
    """One SHA-256 over named digests, whatever the order they come in."""
    return hashlib.sha256(json.dumps(dict(digests), sort_keys=True).encode()).hexdigest()


def _digests(folder: Path) -> Iterator[tuple[str, str]]:
    from moorage.runtime.features.sources import file_sha256

    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != MANIFEST:
            yield name, file_sha256(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sweep(folder: Path) -> None:
    """Removes drafts that a crashed writer left more than a day ago."""
    for draft in folder.glob(".staging-*"):
        with contextlib.suppress(OSError):
            if time.time() - draft.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(draft, ignore_errors=True)
