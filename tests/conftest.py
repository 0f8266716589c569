"""What every test stands on.

Tests import helpers by name (`from waiting import until`): the folder is not a package and never on
`sys.path`, where it and the root folders could shadow what they are named after.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import Scheduling

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent


class Helpers(importlib.abc.MetaPathFinder):
    """Finds `waiting` and its like as tests/<name>.py, after every other finder: it shadows nothing."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        source = TESTS / f"{fullname}.py"
        return importlib.util.spec_from_file_location(fullname, source) if source.is_file() else None


sys.meta_path.append(Helpers())

# A kernel's cached machine code is dropped when its own file changes, not when that of a kernel it calls does.
KERNELS = ROOT / "kernels"
NEWEST = max(path.stat().st_mtime for path in KERNELS.glob("*.py"))
for stale in KERNELS.glob("__pycache__/*.nbi"):
    if stale.stat().st_mtime < NEWEST:
        stale.unlink(missing_ok=True)

import halves  # noqa: E402  (found by the finder above)
import postgres  # noqa: E402
import processes  # noqa: E402

# What our own commands run under must not reach the users' jobs that tests start (their scripts import siblings),
# and what the machine's owner has set up for a pool of theirs must not reach the tests.
for inherited in (
    "PYTHONSAFEPATH",
    "RAY_ADDRESS",
    "RAY_AUTH_MODE",
    "RAY_AUTH_TOKEN",
    "RAY_AUTH_TOKEN_PATH",
    "MOORAGE_HOME",
    "MOORAGE_URL",
    "MOORAGE_TOKEN",
    "MOORAGE_LEASE",
    "MOORAGE_JOB_ID",
    "MOORAGE_DATA",
):
    os.environ.pop(inherited, None)
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

# No deadline for one example: on a shared machine it measures the neighbours. In CI the same examples each time.
settings.register_profile(
    "moorage",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("moorage")


# Every process that a test starts, and what it starts in turn, carries this in its environment. Each worker of
# `pytest -n` has a mark of its own: it must not take what another worker's tests run for left behind.
MARK = os.environ[processes.VARIABLE] = processes.new_mark()
# Of the session: it outlives the module whose test asked first.
DATABASES: list[postgres.Server] = []


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    """`pytest -n`: one worker begins with the modules that start Ray, the others with the rest."""
    return halves.Halves(config, log)


@pytest.fixture(scope="module", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """A module that leaves a process behind has failed, whatever its tests said; the process is ended."""
    yield
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()
    kept = {pid for server in DATABASES for pid in server.pids()}
    left = processes.wait_gone(MARK, timeout=20.0, apart_from=kept)
    if left:
        processes.end(MARK, apart_from=kept)
        pytest.fail("\n  ".join(["left behind by this module's tests, ended now:", *left]), pytrace=False)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """What the fixtures of the session started is gone too."""
    left = processes.wait_gone(MARK, timeout=20.0)
    if left:
        processes.end(MARK)
        print("\nleft behind by the tests, ended now:", *left, sep="\n  ", file=sys.stderr)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def postgresql() -> Iterator[postgres.Server]:
    """A private PostgreSQL for the session; skipped with the reason where it is not installed."""
    if postgres.MISSING:
        pytest.skip(postgres.MISSING)
    server = postgres.Server()
    DATABASES.append(server)
    try:
        yield server
    finally:
        DATABASES.remove(server)
        server.remove()


@pytest.fixture(scope="session", autouse=True)
def every_world_on_postgresql(request: pytest.FixtureRequest) -> None:
    """MOORAGE_TEST_DATABASE=postgresql: the control plane of every test stands on a server of this session."""
    if os.environ.get("MOORAGE_TEST_DATABASE") == "postgresql":
        os.environ["MOORAGE_TEST_DATABASE"] = request.getfixturevalue("postgresql").url


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the tree under test."""
    return ROOT
