"""A private PostgreSQL for tests, from Debian's packages: a temporary folder, a Unix socket, no TCP listener.

`server()` starts one per test session at first use, `stop()` ends it. A process of its own user when we are root:
PostgreSQL refuses to run as root.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import psutil
from waiting import until

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
MISSING = "" if BINARIES else "PostgreSQL is not installed (Debian: apt-get install postgresql)"
# No test cuts the power: durability against a killed process needs no fsync of this throw-away folder.
SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",  # the store must turn this on for itself
    "max_connections": "60",
    "shared_buffers": "32MB",
}


_LIBC, _PR_SET_PDEATHSIG = ctypes.CDLL(None), 1


def _end_with_the_tests() -> None:
    """In the child: a run that is killed tears nothing down."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT, 0, 0, 0)


class Server:
    """One running server. `restart` and `kill` are for the tests of what a lost database does."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mpg-"))  # short: a socket's path has about 100 bytes
        self._bin = BINARIES[-1].parent
        self._as: dict[str, Any] = {}
        if os.getuid() == 0:
            who = _unprivileged()
            self._as = {"user": who.pw_uid, "group": who.pw_gid, "extra_groups": []}
            os.chown(self.folder, who.pw_uid, who.pw_gid)
        self._process: subprocess.Popen[bytes] | None = None
        # Another order of text than Python's, as on a server somebody else set up.
        order = ["--encoding=UTF8", "--locale=C", "--locale-provider=icu", "--icu-locale=en-US"]
        made = subprocess.run(
            [self._bin / "initdb", "-D", self.folder / "data", "-U", "moorage", "-A", "trust", "-N", *order],
            capture_output=True,
            text=True,
            cwd=self.folder,
            timeout=60,
            **self._as,
        )
        assert made.returncode == 0, made.stderr
        self.start()

    def start(self) -> None:
        options = [f"-c{name}={value}" for name, value in SETTINGS.items()]
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                [self._bin / "postgres", "-D", self.folder / "data", "-k", self.folder, *options],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                preexec_fn=_end_with_the_tests,
                **self._as,
            )
        until(self._answers, 30, f"PostgreSQL in {self.folder}")

    def _answers(self) -> bool:
        import psycopg

        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "log").read_text()[-2000:]
        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self.url, connect_timeout=5):
            return True
        return False

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: disconnect everybody and end cleanly; SIGQUIT: as after a crash."""
        if self._process is not None:
            self._process.send_signal(how)
            try:
                self._process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(timeout=10)
            self._process = None

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def pids(self) -> set[int]:
        """The server's process and those that it runs, now."""
        if self._process is None:
            return set()
        with contextlib.suppress(psutil.Error):
            server = psutil.Process(self._process.pid)
            return {server.pid, *(child.pid for child in server.children(recursive=True))}
        return set()

    @property
    def url(self) -> str:
        return f"postgresql://moorage@/postgres?host={self.folder}"

    def database(self, folder: Path) -> str:
        """The URL of the database that stands for `folder`, made at first use."""
        return database(self.url, folder)


def database(url: str, folder: Path) -> str:
    """The URL of the database of `folder` on the server of `url`, made at first use."""
    import psycopg

    name = "m" + hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    with psycopg.connect(url, autocommit=True) as db:
        if not db.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone():
            db.execute(f"CREATE DATABASE {name}")
    return url.replace("/postgres?", f"/{name}?")


def _unprivileged() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise LookupError("neither a user `postgres` nor `nobody`")
