"""Uploaded packages on disk. Stored under the hash of their bytes; who uploaded which name is kept beside.

A stock client names a package after a hash that *it* computed. Were that name the key, one team could upload
other bytes under the name another team is about to use. So a name is only an alias, private to its uploader,
of a file named after the SHA-256 of what arrived; jobs are submitted with the content's own name.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import lzma
import os
import re
import secrets
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import AsyncIterable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO
from urllib.parse import quote

from moorage.errors import InvalidRequest, MoorageError, TooLarge

_NAME = re.compile(
    r"(?P<stem>[A-Za-z0-9_][A-Za-z0-9_.+!-]{0,180}?)(?P<extension>\.zip|\.whl|\.tar\.gz|\.tgz|\.tar\.xz)"
)
_INCOMING = ".incoming-"
_STEP = 8 << 20
"""Bytes that an upload of unknown size is granted at a time."""
FULL_S = 60
"""When to try again where the bound is reached."""
_URI = re.compile(r"gcs://(?P<name>.+)", re.DOTALL)


class SpoolFull(MoorageError):
    """No room for a package: on the disk, or within the bound on all of them."""

    code = "spool-full"
    http_status = 507


def package_name(text: str) -> tuple[str, str]:
    """(stem, extension) of a package's file name; `InvalidRequest` for anything that is not a plain one."""
    match = _NAME.fullmatch(text)
    if match is None or ".." in text:
        raise InvalidRequest(
            f"{text[:80]!r} is not a package name",
            why="expected letters, digits and _.+!- ending in .zip, .whl, .tar.gz, .tgz or .tar.xz",
            code="bad-package-name",
        )
    return match["stem"], match["extension"]


@dataclass(frozen=True, slots=True)
class Spool:
    """The folder `root` (created on first use, 0700). `max_total` bounds the bytes of all packages together."""

    root: Path
    max_package: int
    max_unpacked: int
    max_total: int = 20 << 30
    under_way: dict[str, int] = field(default_factory=dict)
    """Uploads by the name of their file: bytes that each is expected to have, 0 where it did not say."""

    def room(self, size: int = 0) -> bool:
        """Whether `size` bytes more fit beside what is there and what is still to come."""
        total = size
        for one in os.scandir(self.root) if self.root.exists() else ():
            try:
                if one.is_file():
                    total += max(one.stat().st_size, self.under_way.get(one.name, 0))
            except FileNotFoundError:  # renamed or pruned at this moment
                continue
        return total <= self.max_total

    def locate(self, owner: str, name: str) -> Path | None:
        """The file that `owner` uploaded as `name`, or None. Touches it, so that pruning sees it is in use."""
        package_name(name)
        alias = self._alias(owner, name)
        try:
            target = self.root / alias.read_text(encoding="ascii").strip()
            if not target.is_file():  # an empty name, which a power failure may leave, is the folder itself
                return None
            os.utime(target)
        except (OSError, UnicodeDecodeError):
            return None
        return target

    async def put(
        self, owner: str, name: str, chunks: AsyncIterable[bytes], expected: int | None = None
    ) -> Path:
        """Stream to a temporary file, verify, rename. Never holds the package in memory. `expected`: its size, if
        known.

        Raises `TooLarge`, `InvalidRequest` (not an archive) or `SpoolFull`; leaves nothing behind then.
        """
        stem, extension = package_name(name)
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        digest, size = hashlib.sha256(), 0
        handle, partial = tempfile.mkstemp(dir=self.root, prefix=_INCOMING)
        self.under_way[Path(partial).name] = checked = expected or 0
        try:
            with os.fdopen(handle, "wb") as out:
                await self._check_room()
                async for chunk in chunks:
                    size += len(chunk)
                    if size > self.max_package:
                        raise too_large(self.max_package)
                    if size > checked:
                        self.under_way[Path(partial).name] = checked = size + _STEP
                        await self._check_room()
                    digest.update(chunk)
                    out.write(chunk)
                out.flush()
                await asyncio.to_thread(os.fsync, out.fileno())
            await asyncio.to_thread(check_archive, Path(partial), extension, self.max_unpacked)
            target = self.root / _content_name(stem, extension, digest.hexdigest())
            os.replace(partial, target)
            self._remember(owner, name, target.name)
            return target
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise SpoolFull(
                    "No room to store the package",
                    why=str(error),
                    todo="ask the pool's operator to free disk",
                ) from error
            raise
        finally:
            Path(partial).unlink(missing_ok=True)
            del self.under_way[Path(partial).name]

    async def _check_room(self) -> None:
        if not await asyncio.to_thread(self.room):
            raise SpoolFull(
                "No room to store the package",
                why=f"all packages together may have {self.max_total / (1 << 20):g} MiB",
                todo="try again when jobs that wait have run; or ask the pool's operator to raise spool_limit_mib",
                retry_after_s=FULL_S,
            )

    def resolve(self, owner: str, uri: str) -> tuple[str, Path] | None:
        """(content URI, file) of a `gcs://` URI that `owner` uploaded; None when it is no such URI.

        Raises `InvalidRequest` when nothing was uploaded under that name.
        """
        match = _URI.fullmatch(uri)
        if match is None:
            return None
        found = self.locate(owner, match["name"])
        if found is None:
            own = self.root / match["name"]
            known = re.fullmatch(r"_ray_pkg_[0-9a-f]{64}\.[a-z.]+", match["name"]) and own.is_file()
            if not known:
                raise InvalidRequest(
                    f"Package {uri} was not uploaded by you",
                    todo="upload it first: PUT /api/packages/gcs/<name> (Ray's client does it by itself)",
                    code="unknown-package",
                )
            found = own
        return f"gcs://{found.name}", found

    def prune(self, keep: Iterable[str], before_s: float, broken_before_s: float = 0.0) -> int:
        """Delete content files not named in `keep` and last used before `before_s` (epoch seconds); how many.

        Uploads that got no byte since `broken_before_s` go too: a killed front door cannot tidy up after itself. So do
        names of content that is gone.
        """
        wanted, gone = set(keep), 0
        for file in self.root.glob("*"):
            before = max(before_s, broken_before_s) if file.name.startswith(_INCOMING) else before_s
            if file.is_file() and file.name not in wanted and file.stat().st_mtime < before:
                file.unlink(missing_ok=True)
                gone += 1
        for alias in self.root.glob("names/*/*"):
            if (
                alias.stat().st_mtime < before_s
                and not (self.root / alias.read_text("ascii").strip()).is_file()
            ):
                alias.unlink(missing_ok=True)
        return gone

    def _alias(self, owner: str, name: str) -> Path:
        folder = "of-" + quote(owner, safe="")  # one to one: no two owners share a folder
        return self.root / "names" / folder / name

    def _remember(self, owner: str, name: str, content: str) -> None:
        alias = self._alias(owner, name)
        alias.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = alias.with_name(f".{secrets.token_hex(8)}")
        fresh.write_text(content, encoding="ascii")
        os.replace(fresh, alias)


def too_large(limit: int) -> TooLarge:
    return TooLarge(
        f"The package is larger than {limit / (1 << 20):g} MiB",
        why="this is the front door's limit for one uploaded package",
        todo="leave data out (.rayignore, runtime_env excludes) and read it from shared storage, "
        "or ask the pool's operator to raise max_package",
    )


def check_archive(path: Path, extension: str, max_unpacked: int) -> None:
    """Refuse what is not the archive its name says, or would unpack to more than `max_unpacked` bytes."""
    try:
        if extension in (".zip", ".whl"):
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(entry.file_size for entry in archive.infolist())
        else:
            unpacked = _tar_size(path, max_unpacked)
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        EOFError,
        zlib.error,
        lzma.LZMAError,
        ValueError,
        OSError,
    ) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise InvalidRequest(
            f"The package is not a readable {extension} archive",
            why=f"{type(error).__name__}: {error}",
            code="bad-package",
        ) from error
    if unpacked > max_unpacked:
        raise TooLarge(
            f"The package unpacks to more than {max_unpacked / (1 << 20):g} MiB",
            why="every node that runs the job unpacks it",
            code="package-unpacks-too-large",
        )


def _tar_size(path: Path, stop_after: int) -> int:
    """Sum of member sizes; reading stops soon after `stop_after`, so a bomb is not unpacked to be measured."""
    total = 0
    raw: IO[bytes]
    with open(path, "rb") as raw, tarfile.open(fileobj=raw, mode="r|*") as archive:
        for member in archive:
            total += member.size
            if total > stop_after:
                break
    return total


def _content_name(stem: str, extension: str, digest: str) -> str:
    """A wheel keeps its name (pip reads it) with the hash as build tag; all else is named by the hash alone."""
    if extension == ".whl":
        parts = stem.split("-")
        if len(parts) == 5:
            return "-".join([*parts[:2], f"0{digest[:32]}", *parts[2:]]) + extension
        if len(parts) == 6:
            return "-".join([*parts[:2], f"{parts[2]}.{digest[:32]}", *parts[3:]]) + extension
        raise InvalidRequest(f"{stem}{extension} is not a wheel's file name", code="bad-package-name")
    return f"_ray_pkg_{digest}{extension}"
